"""Asks for runs in which something fails, and judges them: what was promised, and what came of it."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest_cgroup
from tests.faults.scenarios import Scenario

_OWN_TRACEBACK = re.compile(r"(?:File \")?\S*pytest_cgroup/_?\w+\.py\"?(?:, line |:\d+: )")
#: the two kinds of errors that a user of the library is to expect
_RAISED = re.compile(r"^E   +(?:pytest_cgroup\.exceptions\.\w+|\w*Error): .*\[(?:Errno )?\w+\]", re.MULTILINE)
#: what pytest's own status may be: 0 and 1 are verdicts, 4 says in a line what can't be had
_STATUSES = (0, 1, 4)


#: what a run says that could not look for leaks in place: its status is no 0, and it does not vouch for any test
_LOOKED_NO_MORE = "not looked for to the end of the run"


@dataclass(frozen=True)
class Fault:
    """One call that fails.

    Attributes:
        role, number, which: see `injector.install`.
        call, subject, errno: what that is, where nothing differs from the run that was counted.
    """

    role: str
    number: int
    which: int
    call: str
    subject: str
    errno: str

    @property
    def kind(self) -> tuple[str, ...]:
        """What it has in common with others: the depth of its process, the call, the file's name, the errno."""
        subject = re.sub(r"pytest-cgroup-\d+-\d+(-[0-9a-f]{8})?(-\d+)?", "SESSION", self.subject)
        subject = re.sub(r"\d+", "N", subject.removeprefix("/sys/fs/cgroup"))
        where = "SESSION" + subject.rpartition("SESSION")[2] if "SESSION" in subject else subject.rpartition("/")[2]
        return re.sub(r"\d+", "N", self.role), self.call, where, self.errno

    def __str__(self) -> str:
        subject = re.sub(r"pytest-cgroup-\d+-\d+(-[0-9a-f]{8})?", "SESSION", re.sub(r"/\d+", "/N", self.subject))
        return f"{self.role}#{self.number} {self.call}({subject}) {self.errno}"


class Zygote:
    """A process that runs pytest in forks of itself (`zygote`)."""

    def __init__(self, path: Path, python: Sequence[str] = (sys.executable,)) -> None:
        self.path = path
        home = str(Path(pytest_cgroup.__file__).parent.parent)
        tests = str(Path(__file__).parent.parent.parent)
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([home, tests]),
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "PYTEST_CGROUP_NO_RECOVERY": "1",
            "PYTEST_ADDOPTS": "",
            "COLUMNS": "200",
        }
        self._process = subprocess.Popen(
            [*python, "-m", "tests.faults.zygote"],
            cwd=path,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, scenario: Scenario, fault: Fault | None = None, **more: Any) -> dict[str, Any]:
        """One run; see `zygote.run`. Adds ``verdicts``, by test, and ``messages``."""
        self.path.joinpath("test_it.py").write_text(scenario.text, encoding="utf-8")
        junit = self.path / "junit.xml"
        junit.unlink(missing_ok=True)
        arguments = (
            *("-ppytest_cgroup.plugin", "-pno:cacheprovider", "-ra", f"--junitxml={junit}", "-ojunit_family=xunit1"),
            *("-Wignore::pytest.PytestAssertRewriteWarning", "-cnone.ini", *scenario.arguments, "test_it.py"),
        )
        self.path.joinpath("none.ini").write_text("[pytest]\n", encoding="utf-8")
        order = {
            "arguments": arguments,
            "cwd": str(self.path),
            "fault": None if fault is None else (fault.role, fault.number, fault.which),
            **more,
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        answer["verdicts"], answer["messages"] = _verdicts(junit)
        return answer

    def close(self) -> None:
        """Let it end."""
        self._process.communicate()


@contextlib.contextmanager
def zygote(path: Path, python: Sequence[str] = (sys.executable,)) -> Iterator[Zygote]:
    """A zygote as long as this lasts."""
    one = Zygote(path, python)
    try:
        yield one
    finally:
        one.close()


def _verdicts(junit: Path) -> tuple[dict[str, set[str]], dict[str, str]]:
    verdicts: dict[str, set[str]] = {}
    messages: dict[str, str] = {}
    if not junit.exists():
        return verdicts, messages
    for case in ElementTree.parse(junit).getroot().iter("testcase"):
        name = case.get("name") or "?"
        said = verdicts.setdefault(name, set())
        for kind, word in (("failure", "failed"), ("error", "failed"), ("skipped", "skipped")):
            for one in case.iter(kind):
                said.add(word)
                messages[name] = f"{messages.get(name, '')}\n{one.get('message')}\n{one.text}"
        if not said:
            said.add("passed")
    return verdicts, messages


def faults_of(calls: Sequence[Sequence[Any]]) -> list[Fault]:
    """Every fault that a run which counted its calls has room for."""
    return [
        Fault(role, number, which, call, subject, name)
        for role, number, call, subject, allowed in calls
        for which, name in enumerate(allowed)
    ]


def some_of(faults: Sequence[Fault], most: int) -> list[Fault]:
    """Of the faults that are alike, *most* at the most: in a like process, of one call, on a like file."""
    counts: Counter[tuple[str, ...]] = Counter()
    found = []
    for fault in faults:
        kind = fault.kind
        counts[kind] += 1
        if counts[kind] <= most:
            found.append(fault)
    return found


def one_of_each(faults: Sequence[Fault]) -> list[Fault]:
    """One errno of each kind of call, and not always the same."""
    by_kind: dict[tuple[str, ...], list[Fault]] = {}
    for fault in faults:
        by_kind.setdefault(fault.kind[:-1], []).append(fault)
    return [alike[number % len(alike)] for number, alike in enumerate(by_kind.values())]


def happened(run: dict[str, Any], fault: Fault | None) -> Fault | None:
    """The fault of that number as it came about: a call more or less before it, and it is another call that failed."""
    if fault is None or not run["calls"]:
        return fault
    role, number, call, subject, name = run["calls"][0]
    return Fault(role, number, fault.which, call, subject, name)


def complaints(scenario: Scenario, run: dict[str, Any], fault: Fault | None) -> list[str]:
    """What is not as it was promised: of any run with one fault in it, or of one without."""
    fault = happened(run, fault)
    found = []
    text = run["text"]
    if run["hung"]:
        found.append("hangs")
    found += [f"orphan: {one}" for one in run["orphans"] if not run["hung"]]
    found += [f"cgroup left: {one}" for one in run["cgroups"][:1] if not run["hung"]]
    if "INTERNALERROR" in text:
        found.append("INTERNALERROR")
    if (trace := _OWN_TRACEBACK.search(text)) and not (scenario.raises and _RAISED.search(text)):
        found.append(f"a traceback of ours: {trace[0]}")
    if scenario.killed:
        return [*found, "was to be cleaned"] if run["cleaned"] and fault is None else found
    fired = fault is not None and bool(run["calls"])
    if run["status"] not in _STATUSES and not run["hung"]:
        found.append(f"status {run['status']}")
    if run["status"] == 4:
        return found if _explains(text, fault) else [*found, "status 4, and does not say why"]
    if _LOOKED_NO_MORE in text and run["status"] == 1 and _explains(text, fault):
        return [one for one in found if not one.startswith("orphan")]
    for test, expected in scenario.verdicts.items():
        said = run["verdicts"].get(test, set())
        if not said:
            found.append(f"{test}: no verdict")
        elif said == {expected}:
            continue
        elif not fired or (expected == "failed" and "passed" in said and len(said) == 1):
            found.append(f"{test}: {', '.join(said)} instead of {expected}")
        elif not _explains(run["messages"].get(test, ""), fault):
            found.append(f"{test}: {', '.join(said)}, and does not say why")
    return found


def _explains(text: str, fault: Fault | None) -> bool:
    """Whether it names what failed."""
    if fault is None:
        return False
    return fault.errno in text or os.strerror(getattr(errno, fault.errno)) in text
