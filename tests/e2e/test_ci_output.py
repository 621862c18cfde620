"""What CI reads of leaks: annotations and the step's summary on GitHub, JSON lines, JUnit's XML."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterable
from html import unescape
from typing import Any
from urllib.parse import unquote
from xml.etree import ElementTree

import pytest

from tests.e2e.inner import HEAD, command
from tests.e2e.leaving import WAYS, pid_of, survivors, watch
from tests.e2e.test_reports import check_against, documented

workers = pytest.mark.parametrize("workers", [0, 2])
_COMMAND = re.compile(r"^::(error|warning) (.*?)::(.*)$")

#: a leak of a test's, of a fixture's, of a contained test's, of the collection, and what is none
_SOURCE = """
popen("collection") if os.environ.get("PYTEST_XDIST_WORKER", "gw0") == "gw0" else None
@pytest.fixture(scope="session")
def server():
    popen("server")
def test_own(): popen("own")
def test_use(server): pass
@contained
def test_contained():
    subprocess.Popen(["sleep", "117"])
@contained(timeout=60, leaks="ignore")
def test_ignored():
    subprocess.Popen(["sleep", "118"])
@contained(timeout=60, leaks="warn")
def test_warned():
    subprocess.Popen(["sleep", "119"])
@contained(isolation="shared", leaks="ignore")
def test_clean(): pass
"""


class Step:
    """A step of GitHub Actions that runs pytest in a directory below the workspace."""

    def __init__(self, pytester: pytest.Pytester) -> None:
        self.workspace = pytester.path.parent
        self.below = pytester.path.name
        self.path = pytester.path
        self.summary = pytester.path / "summary.md"
        self.summary.write_text("before\n")

    def run(self, source: str, *arguments: str, actions: str | None = "true", inside_a_test: bool = False) -> str:
        self.path.joinpath("test_it.py").write_text(HEAD + WAYS + source, encoding="utf-8")
        environ = {
            name: value for name, value in os.environ.items() if name not in ("PYTEST_CURRENT_TEST", "PYTHONPATH")
        }
        environ |= {"GITHUB_WORKSPACE": str(self.workspace), "GITHUB_STEP_SUMMARY": str(self.summary)}
        environ |= {} if actions is None else {"GITHUB_ACTIONS": actions}
        environ |= {"PYTEST_CURRENT_TEST": "test_outer.py::test_outer (call)"} if inside_a_test else {}
        line = command(("-o", "process_leaks_settle=50ms", *arguments))
        done = subprocess.run(line, cwd=self.path, env=environ, capture_output=True, text=True, timeout=60, check=False)
        assert "INTERNALERROR" not in done.stdout + done.stderr
        self.ret = done.returncode
        return done.stdout


def told_github(text: str) -> list[dict[str, str]]:
    """What GitHub would read."""
    found = []
    for line in text.splitlines():
        if match := _COMMAND.match(line):
            properties = dict(pair.split("=", 1) for pair in match[2].split(","))
            found.append({name: unquote(value) for name, value in properties.items()})
            found[-1] |= {"level": match[1], "message": unquote(match[3])}
    return found


def line_of(pytester: pytest.Pytester, text: str) -> str:
    lines = pytester.path.joinpath("test_it.py").read_text().splitlines()
    return str(1 + next(number for number, line in enumerate(lines) if text in line))


def distribution(workers: int) -> tuple[str, ...]:
    return ("-p", "xdist.plugin", f"-n{workers}", "--dist=loadfile") if workers else ()


@workers
def test_a_line_for_every_leak(pytester: pytest.Pytester, workers: int) -> None:
    step = Step(pytester)
    text = step.run(_SOURCE, "--process-leaks=fail", "--cgroup-missing=fail", *distribution(workers))
    assert survivors(pytester) == {}
    assert step.ret == 1
    found = {
        re.sub(r".*(sleep \d+).*", r"\1", one["message"]) + one["message"].partition(" left")[0]: one
        for one in told_github(text)
    }
    popen = line_of(pytester, "note(name, subprocess.Popen(ARGV).pid)")
    assert {key: (one["level"], one["line"]) for key, one in found.items()} == {
        "sleep 120test_it.py::test_own": ("error", popen),
        "sleep 120fixture:server": ("error", popen),
        "sleep 120collection of test_it.py": ("error", popen),
        "sleep 117test_it.py::test_contained": ("error", line_of(pytester, '["sleep", "117"]')),
        "sleep 119test_it.py::test_warned": ("warning", line_of(pytester, '["sleep", "119"]')),
    }  # fmt: skip
    assert {one["file"] for one in found.values()} == {f"{step.below}/test_it.py"}
    assert {one["title"] for one in found.values()} == {"leaked process: sleep"}
    summary = step.summary.read_text()
    assert summary.startswith("before\n"), "it is appended"
    rows = [line for line in summary.splitlines() if line.startswith("| ")][2:]
    assert sorted(unescape(row.split(" | ")[0]).removeprefix("| ") for row in rows) == [
        "collection of test_it.py", "fixture:server", "test_it.py::test_contained", "test_it.py::test_own",
        "test_it.py::test_warned",
    ]  # fmt: skip
    assert f"pid {pid_of(pytester, 'own')}: sleep 120" in summary


@pytest.mark.parametrize(
    ("actions", "inside_a_test", "source"),
    [
        (None, False, "def test_it(): popen('it')\n"),
        ("false", False, "def test_it(): popen('it')\n"),
        ("true", True, "def test_it(): popen('it')\n"),
        ("true", False, "def test_it(): pass\n"),
    ],
    ids=["no GitHub", "not true", "a pytest in a test", "no leak"],
)
def test_silence(pytester: pytest.Pytester, actions: str | None, inside_a_test: bool, source: str) -> None:
    step = Step(pytester)
    text = step.run(source, "--process-leaks=fail", actions=actions, inside_a_test=inside_a_test)
    assert survivors(pytester) == {}
    assert step.ret == ("popen('it')" in source)
    assert told_github(text) == []
    assert step.summary.read_text() == "before\n"


def test_under_warn_it_is_a_warning(pytester: pytest.Pytester) -> None:
    step = Step(pytester)
    source = "@pytest.fixture(scope='module')\ndef server(): popen('server')\ndef test_it(server): popen('it')\n"
    text = step.run(source, "--process-leaks=warn")
    assert survivors(pytester) == {}
    assert step.ret == 0
    assert [one["level"] for one in told_github(text)] == ["warning", "warning"]


def test_hostile_names_stay_one_line_and_one_cell(pytester: pytest.Pytester) -> None:
    step = Step(pytester)
    name = "a|b\\n::error::x,y:z%0A<b>`*_"
    source = f"""
@pytest.mark.parametrize("x", [1], ids=["a,b:c%0Ad|<e>"])
def test_it(x): note("it", subprocess.Popen(["bash", "-c", "exec -a $'{name}' sleep 120"]).pid)
"""
    text = step.run(source, "--process-leaks=fail", "-o", "process_leaks_settle=0.3")
    assert survivors(pytester) == {}
    (one,) = told_github(text)
    assert one["title"] == "leaked process: a|b\\n::error::x,y:z%0A<b>`*_"
    assert one["line"] == line_of(pytester, 'note("it"')
    assert "test_it[a,b:c%0Ad|<e>] left behind pid " in one["message"]
    (row,) = [line for line in step.summary.read_text().splitlines() if line.startswith("| test")]
    assert row.count("|") == 4
    assert "<" not in row
    assert "test_it[a,b:c%0Ad|<e>]" in unescape(row)


def test_a_line_outside_of_the_repository_is_none_to_annotate(pytester: pytest.Pytester) -> None:
    """Then it is the test's."""
    step = Step(pytester)
    elsewhere = pytester.mkdir("elsewhere")
    elsewhere.joinpath("helper.py").write_text(
        "import subprocess\ndef leave(): return subprocess.Popen(['sleep', '120']).pid\n"
    )
    step.workspace = pytester.path
    step.below = ""
    pytester.mkdir("repository")
    source = "sys.path.insert(0, 'elsewhere')\nimport helper\ndef test_it(): note('it', helper.leave())\n"
    assert [one["file"] for one in told_github(step.run(source, "--process-leaks=fail"))] == ["elsewhere/helper.py"]
    assert survivors(pytester) == {}
    step.workspace = pytester.path / "repository"
    (one,) = told_github(step.run(source, "--process-leaks=fail"))
    assert survivors(pytester) == {}
    assert ("file" in one, "line" in one) == (False, False), "neither is below the workspace"
    assert one["title"] == "leaked process: sleep"


def test_a_summary_that_cant_be_written_is_said(pytester: pytest.Pytester) -> None:
    step = Step(pytester)
    step.summary = pytester.path / "not there" / "summary.md"
    text = step.run("def test_it(): popen('it')\n", "--process-leaks=fail")
    assert survivors(pytester) == {}
    assert len(told_github(text)) == 1
    assert f"GITHUB_STEP_SUMMARY={step.summary}: the leaks can't be added: No such file or directory" in text


@pytest.mark.parametrize(
    ("place", "why"),
    [
        ("os.symlink('victim', 'summary.md')", "Too many levels of symbolic links"),
        ("os.mkfifo('summary.md')", "No such device or address"),
        ("os.mkdir('summary.md')", "Is a directory"),
    ],
    ids=["a link", "a pipe", "a directory"],
)
def test_a_summary_that_a_test_has_replaced(pytester: pytest.Pytester, place: str, why: str) -> None:
    """Nothing is written elsewhere, and nobody waits."""
    step = Step(pytester)
    victim = pytester.path / "victim"
    victim.write_text("mine\n")
    source = f"def test_it():\n    os.unlink('summary.md')\n    {place}\n    popen('it')\n"
    text = step.run(source, "--process-leaks=fail")
    assert survivors(pytester) == {}
    assert f"the leaks can't be added: {why}" in text
    assert victim.read_text() == "mine\n"


# JSON lines and JUnit


def json_lines(pytester: pytest.Pytester) -> list[dict[str, Any]]:
    return [json.loads(line) for line in pytester.path.joinpath("leaks.jsonl").read_text().splitlines()]


@workers
def test_json_lines_of_tests_in_place(pytester: pytest.Pytester, workers: int) -> None:
    arguments = (f"--resource-usage-json={pytester.path / 'leaks.jsonl'}", "--cgroup-missing=fail")
    result = watch(pytester, _SOURCE, *arguments, *distribution(workers)[3:], workers=workers)
    assert survivors(pytester) == {}
    assert result.ret == 1
    lines = json_lines(pytester)
    record_types, leak_types = documented()
    for one in lines:
        check_against(record_types, one)
        for leak in one["leaks"]:
            check_against(leak_types, leak)
    told = {(one["nodeid"], leak["owner"]): one for one in lines for leak in one["leaks"]}
    assert {key: (one["outcome"], one["backend"] is None) for key, one in told.items()} == {
        ("test_it.py::test_own", "test_it.py::test_own"): ("failed", True),
        (fixture_user(lines), "fixture:server"): ("failed", True),
        (None, "collection of test_it.py"): (None, True),
        ("test_it.py::test_contained", "test_it.py::test_contained"): ("failed", False),
        ("test_it.py::test_ignored", "test_it.py::test_ignored"): ("passed", False),
        ("test_it.py::test_warned", "test_it.py::test_warned"): ("passed", False),
    }
    for owner in ("test_it.py::test_own", "fixture:server", "collection of test_it.py"):
        (leak,) = [leak for one in lines for leak in one["leaks"] if leak["owner"] == owner]
        assert leak["started_at"].startswith("test_it.py:")
    assert not any(
        one["nodeid"] in ("test_it.py::test_clean", "test_it.py::test_use") and not one["leaks"] for one in lines
    )


def fixture_user(lines: Iterable[dict[str, Any]]) -> object:
    (found,) = [one["nodeid"] for one in lines if any(leak["owner"] == "fixture:server" for leak in one["leaks"])]
    assert found == "test_it.py::test_use"
    return found


@pytest.mark.parametrize("stop", [(), ("-x",)])
@workers
def test_junit_has_every_leak(pytester: pytest.Pytester, workers: int, stop: tuple[str, ...]) -> None:
    """Also those that are found when pytest has written the file: it is written again."""
    source = """
popen("collection") if os.environ.get("PYTEST_XDIST_WORKER", "gw0") == "gw0" else None
@pytest.fixture(scope="session")
def server(): popen("server")
def test_use(server): pass
def test_fails(): assert False
def test_never(): pass
"""
    result = watch(pytester, source, *stop, *distribution(workers)[3:], workers=workers)
    assert survivors(pytester) == {}
    root = ElementTree.parse(result.junit).getroot()
    (suite,) = root.iter("testsuite")
    (ours,) = [json.loads(one.get("value", "")) for one in suite.iterfind("properties/property")]
    assert [(leak["pid"], leak["owner"]) for leak in ours] == [
        (pid_of(pytester, "collection"), "collection of test_it.py")
    ]
    used = [case for case in suite.iter("testcase") if case.get("name") == "test_use"]
    assert any("session fixture 'server'" in (error.text or "") for case in used for error in case.iter("error"))
    assert sum("fixture:server" in one.get("value", "") for case in used for one in case.iter("property")) == 1


def test_what_a_test_records_under_our_name_breaks_nothing(pytester: pytest.Pytester) -> None:
    source = """
@pytest.mark.parametrize("value", ["no JSON", "[1]", "{}", '[{"pid": "x"}]'])
@pytest.mark.parametrize("name", ["process_leaks", "contained"])
def test_it(name, value, record_property): record_property(name, value)
"""
    step = Step(pytester)
    text = step.run(source, "--process-leaks=fail", f"--resource-usage-json={pytester.path / 'leaks.jsonl'}")
    assert step.ret == 0, text
    assert told_github(text) == []
    assert json_lines(pytester) == []


def test_the_mark_alone_is_told_by_the_controller_too(pytester: pytest.Pytester) -> None:
    """isolation="shared" without the option: the controller, which collects nothing, has the section all the same."""
    source = '@contained(isolation="shared")\ndef test_it(): popen("it")\ndef test_other(): pass\n'
    step = Step(pytester)
    for arguments in ((), distribution(2)):
        text = step.run(source, *arguments)
        assert survivors(pytester) == {}
        assert text.count("test_it.py::test_it left behind 1 process:") == 1
        assert len(told_github(text)) == 1
