"""A pytest of its own, run on files of its own: with this plugin, with xdist where that is asked for, and no other."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

import pytest_cgroup

_BLOCK = re.compile(r"^_{2,} (.+) _{2,}$")
_RULE = re.compile(r"^={2,}.*={2,}$")
#: where a run that hangs ends; a slow machine may take a minute for what takes five seconds elsewhere
_SECONDS = 240
#: `env` without what says to the inner run that it is a worker of the outer one
NOT_OURS = ("-uPYTEST_ADDOPTS", "-uPYTEST_XDIST_WORKER", "-uPYTEST_XDIST_WORKER_COUNT", "-uPYTEST_XDIST_TESTRUNUID")
#: what every inner test file may use
HEAD = "import os, signal, socket, subprocess, sys, threading, time\nimport pytest\ncontained = pytest.mark.contained\n"
#: reads back a limit of the cgroup that an inner test stands in or below, by how that one's name begins
LIMIT_ABOVE = r"""
def limit_above(begins, file, v1_file, controller):
    lines = [line.rstrip("\n").split(":", 2) for line in open("/proc/self/cgroup")]
    paths = {name: path for _, names, path in lines for name in names.split(",")}
    for fields in [line.split() for line in open("/proc/self/mountinfo")]:
        kind, options = fields[fields.index("-") + 1], fields[-1].split(",")
        v1 = kind == "cgroup" and controller in options
        if v1 or (kind == "cgroup2" and controller not in paths):
            path = paths[controller if v1 else ""]
            at = fields[4] + (path[len(fields[3]):] if fields[3] != "/" else path)
            while not os.path.basename(at).startswith(begins):
                at = os.path.dirname(at)
                if len(at) < 2: return None
            return open(f"{at}/{v1_file if v1 else file}").read().strip()
"""


class Result:
    """What the inner run said."""

    def __init__(self, ret: int, text: str, records: list[dict[str, Any]], junit: Path) -> None:
        self.ret = ret
        self.text = text
        self._records = records
        self.junit = junit

    @property
    def counts(self) -> dict[str, int]:
        """``{"passed": 2, "failed": 1}``."""
        last = next(line for line in reversed(self.text.splitlines()) if re.search(r" in \d+\.\d+s|no tests ran", line))
        return {
            word.rstrip("s"): int(number) for number, word in re.findall(r"(\d+) ([a-z]+)", last.partition(" in ")[0])
        }

    @cached_property
    def blocks(self) -> dict[str, str]:
        """The text of each failure by its heading: ``"test_x"``, ``"ERROR at setup of test_x"``."""
        found: dict[str, list[str]] = {}
        current: list[str] = []
        for line in self.text.splitlines():
            if match := _BLOCK.match(line):
                current = found.setdefault(match[1], [])
            elif _RULE.match(line):
                current = []
            elif not line.startswith("[gw"):  # xdist's, of the worker
                current.append(line)
        return {name: "\n".join(lines) for name, lines in found.items()}

    @property
    def records(self) -> dict[str, dict[str, Any]]:
        """The JSON lines, by the name of the test."""
        return {record["nodeid"].partition("::")[2]: record for record in self._records}

    @property
    def record(self) -> dict[str, Any]:
        """The JSON line of the only test."""
        (only,) = self._records
        return only

    @property
    def table(self) -> list[str]:
        """The lines of the usage table, its head first; [] without one."""
        match = re.search(r"^=+ contained tests[^\n]* =+\n(.*?)(?=^=)", self.text, re.MULTILINE | re.DOTALL)
        return [line for line in match[1].splitlines() if not line.startswith("contained: ")] if match else []


def command(
    arguments: Iterable[str | os.PathLike[str]], python: str = sys.executable, before: Iterable[str] = ()
) -> list[str]:
    """The command line of an inner run; *before* are plugins that are loaded before ours."""
    path = os.pathsep.join([str(Path(pytest_cgroup.__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    variables = ("PYTEST_DISABLE_PLUGIN_AUTOLOAD=1", "COLUMNS=200", "PYTHONUNBUFFERED=1", f"PYTHONPATH={path}")
    plugins = [f"-p{name}" for name in (*before, "pytest_cgroup.plugin", "no:cacheprovider")]
    return ["env", *NOT_OURS, *variables, python, "-m", "pytest", *plugins, *map(str, arguments)]


def run(
    pytester: pytest.Pytester,
    source: str | None = None,
    *arguments: str,
    workers: int = 0,
    prefix: tuple[str, ...] = (),
    before: tuple[str, ...] = (),
    usage_json: bool = True,
) -> Result:
    """Run the tests of *source* (or those that lie there already); *prefix* stands before the command.

    *before* are plugins that are loaded before ours.
    """
    if source is not None:
        pytester.path.joinpath("test_it.py").write_text(HEAD + source, encoding="utf-8")
    path, junit = pytester.path / "usage.json", pytester.path / "junit.xml"
    path.unlink(missing_ok=True)
    xdist = ("-p", "xdist.plugin", f"-n{workers}") if workers else ()
    options = (
        f"--junitxml={junit}",
        "-o",
        "junit_family=xunit1",
        *((f"--resource-usage-json={path}",) if usage_json else ()),
    )
    done = pytester.run(*prefix, *command((*options, *xdist, *arguments), before=before), timeout=_SECONDS)
    text = "\n".join([*done.outlines, *done.errlines])
    assert "INTERNALERROR" not in text
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return Result(int(done.ret), text, [json.loads(line) for line in lines], junit)
