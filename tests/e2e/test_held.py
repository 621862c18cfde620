"""The next contained test is forked while one runs, and held: it is ready when its turn comes, and not before."""

from __future__ import annotations

import os
import signal

import pytest

from pytest_cgroup._process import wait_gone
from tests.e2e.inner import Result, run

_HEAD = """
from pathlib import Path
import psutil
pytestmark = contained
HERE, PYTEST = Path(__file__).parent, os.getpid()
def was_held():
    "Whether this process was forked before the test before had ended, by the clock of proc_pid_stat(5)."
    started = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
    return started < float((HERE / "end").read_text()) - 0.1
def test_first(): pass
def test_before():
    time.sleep(1.0)
    (HERE / "end").write_text(str(time.clock_gettime(time.CLOCK_BOOTTIME)))
"""


@pytest.fixture(params=[pytest.param("cgroup", marks=pytest.mark.requires("cgroup")), "process"])
def backend(request: pytest.FixtureRequest) -> str:
    return f"--cgroup-backend={request.param}"


def held(pytester: pytest.Pytester, source: str, *arguments: str) -> Result:
    return run(pytester, _HEAD + source + "\ndef test_last(): pass", *arguments)


@pytest.mark.parametrize("options", ["", pytest.param("pid_ns=True", marks=pytest.mark.requires("pid_ns"))])
def test_it_is_ready(pytester: pytest.Pytester, backend: str, options: str) -> None:

    source = f"@contained({options})\ndef test_it(): assert was_held()"
    assert held(pytester, source, backend).counts == {"passed": 4}


def test_it_does_not_begin(pytester: pytest.Pytester, backend: str) -> None:
    """Neither it nor its clock, before what the other has left is gone."""
    source = """
def test_leaks():
    child = subprocess.Popen(["sleep", "118"], start_new_session=True, stdout=subprocess.DEVNULL)
    (HERE / "pid").write_text(str(child.pid))
    time.sleep(1.5)
    test_before()
@contained(timeout=2)
def test_it():
    assert was_held()
    try:
        assert psutil.Process(int((HERE / "pid").read_text())).status() == "zombie"
    except psutil.NoSuchProcess:
        pass
"""
    result = held(pytester, source, backend)
    assert result.counts == {"passed": 5, "error": 1}
    assert result.records["test_it"]["wall_seconds"] < 2


def test_it_never_begins(pytester: pytest.Pytester, backend: str) -> None:
    source = """
def test_fails(): assert 0
def test_it(): (HERE / "begun").touch()
"""
    assert held(pytester, source, backend, "-x").counts == {"passed": 2, "failed": 1}
    assert not (pytester.path / "begun").exists()


def test_it_is_killed_meanwhile(pytester: pytest.Pytester, backend: str) -> None:
    source = """
def is_next(process):
    return process.name() == psutil.Process().name() and process.create_time() > psutil.Process().create_time()
def test_kills():
    while not (those := [one for one in psutil.Process(PYTEST).children(recursive=True) if is_next(one)]):
        time.sleep(0.01)
    for process in those: process.kill()
def test_it(): assert 0, "it was not killed"
"""
    result = held(pytester, source, backend)
    assert result.counts["passed"] == 4
    assert "was killed, and" in (text := result.blocks["ERROR at setup of test_it"]) or "by SIGKILL (signal 9)" in text


@pytest.mark.parametrize("options", ["", pytest.param("pid_ns=True", marks=pytest.mark.requires("pid_ns"))])
def test_it_ends_with_pytest(pytester: pytest.Pytester, options: str) -> None:
    """Without a guard, too. Who stands above it has inherited the pipe that it is held by: no end of that is seen."""
    source = f"""
def is_guard(process):
    try:
        return f'"owner": [{{PYTEST}}, ' in " ".join(process.cmdline())
    except psutil.Error:
        return False
def test_kills():
    while len(family := psutil.Process(PYTEST).children(recursive=True)) < 4: time.sleep(0.01)
    (HERE / "family").write_text(" ".join(str(one.pid) for one in family))
    (guard,) = [one for one in psutil.process_iter() if is_guard(one)]
    guard.kill()
    psutil.Process(PYTEST).kill()
@contained({options})
def test_it(): (HERE / "begun").touch()
"""
    result = held(pytester, source, "--cgroup-backend=process")
    assert result.ret == -signal.SIGKILL
    family = [int(pid) for pid in (pytester.path / "family").read_text().split()]
    assert len(family) >= 4  # two tests, and who stands above each
    assert wait_gone(family, 30.0)
    assert not (pytester.path / "begun").exists()


_LISTENS = """
seen = []
class Listener:
    def pytest_runtest_logreport(self, report):
        if report.when == "call":
            seen.append(report.nodeid.partition("::")[2])
"""
_AS_A_MODULE = _LISTENS + "pytest_runtest_logreport = Listener().pytest_runtest_logreport"
_AS_AN_OBJECT = _LISTENS + "def pytest_configure(config): config.pluginmanager.register(Listener())"


@pytest.mark.parametrize("text", [_AS_A_MODULE, _AS_AN_OBJECT], ids=["module", "object"])
@pytest.mark.parametrize("name", ["conftest", "listener", "site-packages/elsewhere"])
def test_what_the_suite_learns_the_next_test_knows(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, name: str, text: str
) -> None:
    """So nobody is forked early there. What is installed does not count: it writes reports, as a rule."""
    file = pytester.path / f"{name}.py"
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(file.parent), prepend=os.pathsep)
    expected = (True, "test_first") if file.parent != pytester.path else (False, "test_before")
    source = f"def test_it():\n    from {file.stem} import seen\n    assert (was_held(), seen[-1]) == {expected}"
    assert held(pytester, source, *([] if name == "conftest" else [f"-p{file.stem}"])).counts == {"passed": 4}


@pytest.mark.requires("cgroup")
def test_who_shares_limits_is_not_held(pytester: pytest.Pytester) -> None:
    """It would have its part of them before its turn."""
    source = """
@contained(slice="few")
def test_one():
    time.sleep(0.3)
    test_before()
@contained(slice="few")
def test_it(): assert not was_held()
"""
    assert held(pytester, source).counts == {"passed": 5}


@pytest.mark.parametrize("arguments", [("-s",), ("--process-leaks=warn",), ("-pagain",)], ids=str)
def test_where_it_would_be_seen_nobody_is_held(pytester: pytest.Pytester, arguments: tuple[str, ...]) -> None:
    pytester.makepyfile(again="def pytest_runtest_protocol(item): return None")
    pytester.syspathinsert()
    assert held(pytester, "def test_it(): assert not was_held()", *arguments).counts == {"passed": 4}
