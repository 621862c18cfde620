"""Contained tests on the backend exec: an outside program limits and measures, and nothing survives all the same."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

import pytest_cgroup
from tests.e2e.inner import HEAD, command, run
from tests.kernel.test_library_containerizer import PROGRAM

_SOURCE = """
def in_what():
    return [line for line in open("/proc/self/cgroup") if "/of-" in line]
@contained(pids=20)
def test_pass():
    assert in_what()
@contained(pids=20, memory="64M")
def test_hog():
    bytearray(200 << 20)
@contained(pids=5)
def test_bomb():
    with pytest.raises(BlockingIOError):
        for _ in range(20): os.fork() or time.sleep(100)
@contained(pids=20)
def test_leak():
    subprocess.Popen(["sleep", "120"], start_new_session=True)
@contained(pids=20)
def test_library():
    import pytest_cgroup
    with pytest_cgroup.Container() as container:
        assert container.run(["grep", "-q", "/of-", "/proc/self/cgroup"]).returncode == 0
@contained(cpu=0.5)
def test_not_offered(): pass
def test_unmarked():
    assert not in_what()
"""


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The program's; it finds the package that is tested."""
    root = str(Path(pytest_cgroup.__file__).parent.parent)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]))
    (state := tmp_path / "state").mkdir()
    return state


def option(state: Path, offers: str) -> str:
    return "--cgroup-backend=exec:" + shlex.join([sys.executable, str(PROGRAM), str(state), offers])


def held(state: Path) -> list[str]:
    return [one.name for one in state.iterdir() if one.is_dir()]


@pytest.mark.requires("root", "memory", "pids")
@pytest.mark.parametrize("workers", [0, 2])
def test_contained_tests(pytester: pytest.Pytester, state: Path, workers: int) -> None:
    result = run(pytester, _SOURCE, option(state, "pids,memory"), "-rs", workers=workers)
    assert result.counts == {"passed": 5, "failed": 1, "skipped": 1, "error": 2}, result.text
    ended = {name: record["ended"] for name, record in result.records.items()}
    assert ended == {**dict.fromkeys(ended, "exit"), "test_hog": "oom"}
    assert {record["backend"] for record in result.records.values()} == {"exec"}
    assert result.records["test_hog"]["memory_peak_bytes"] == 64 << 20
    assert "ERROR at teardown of test_bomb" in result.text
    assert "ERROR at teardown of test_leak" in result.text
    assert "honour cpu: needs a cgroup: the containerizer does not take it" in result.text
    assert held(state) == []


@pytest.mark.parametrize("how", ["", pytest.param(", pid_ns=True", marks=pytest.mark.requires("pid_ns"))])
def test_who_is_not_taken_in_does_not_run(pytester: pytest.Pytester, state: Path, how: str) -> None:
    (state / "refuse").touch()
    source = f"@contained(pids=9{how})\ndef test_it():\n    open('ran', 'w')\ndef test_other(): pass\n"
    result = run(pytester, source, option(state, "pids"))
    assert result.counts["passed"] == 1
    assert not pytester.path.joinpath("ran").exists()
    assert "failed: it is full" in result.text or "pid_ns: " in result.text
    assert held(state) == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--cgroup-backend=exec:",), "allowed: auto, cgroup, process, exec:PROGRAM"),
        (("--cgroup-backend=exec:x", "--cgroup-base=/x"), "--cgroup-backend=exec:x: that backend makes no cgroups"),
    ],
)
def test_a_bad_option(pytester: pytest.Pytester, arguments: tuple[str, ...], says: str) -> None:
    result = run(pytester, "@contained\ndef test_it(): pass\n", *arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert says in result.text


@pytest.mark.parametrize(("program", "says"), [("/no/such", "can't be run"), ("false", "failed: 1")])
def test_a_bad_program(pytester: pytest.Pytester, program: str, says: str) -> None:
    source = "@contained\ndef test_it(): pass\ndef test_other(): pass\n"
    result = run(pytester, source, f"--cgroup-backend=exec:{program}")
    assert result.counts == {"passed": 1, "error": 1}
    assert f"contained: --cgroup-backend=exec:{program}: the containerizer '{program}' {says}" in result.text


_KILLED = """
@contained
def test_it():
    subprocess.Popen(["sleep", "120"], start_new_session=True)
    os.kill(int(open("pid").read()), signal.SIGKILL)
    time.sleep(120)
"""


@pytest.mark.usefixtures("no_other_recovery")
def test_pytest_is_killed(pytester: pytest.Pytester, state: Path) -> None:
    """The guard ends the processes; what the program holds of it ends with the next run."""
    pytester.makeconftest("import os\nopen('pid', 'w').write(str(os.getpid()))\n")
    pytester.path.joinpath("test_it.py").write_text(HEAD + _KILLED)
    subprocess.run(command([option(state, "")]), cwd=pytester.path, capture_output=True, check=False, timeout=240)
    pid = pytester.path.joinpath("pid").read_text()
    (left,) = held(state)
    assert left.startswith(f"pytest-cgroup-{pid}-")
    assert not psutil.pid_exists(int(pid))
    result = run(pytester, "@contained\ndef test_next(): pass\n", option(state, ""), "test_it.py")
    assert result.ret == 0, result.text
    assert held(state) == []
