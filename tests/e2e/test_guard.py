"""pytest is killed, and nothing survives it; without the guard it does, until `clean`, or the next run, comes."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from pytest_cgroup._placement import has_to_step_aside
from tests.e2e.inner import HEAD
from tests.e2e.stage import SECONDS, Stage, cgroups_of, guards_of, lives

pytestmark = pytest.mark.usefixtures("no_other_recovery", "with_recovery")
#: a daemon that left its parent's session, and a child of the test's own that was forked and not executed
_LEAVE = """
def stay(phase):
    daemon = subprocess.Popen(["sleep", "120"], start_new_session=True)
    forked = os.fork()
    if forked == 0:
        signal.alarm(120)
        signal.pause()
    controller = os.environ.get("PYTEST_XDIST_WORKER") and CONTROLLER
    told = [PYTEST, controller or PYTEST, os.getpid(), daemon.pid, forked]
    with os.fdopen(os.open("told", os.O_WRONLY), "w") as f:
        f.write(" ".join(map(str, told)) + "\\n")
    signal.alarm(120)
    while True:
        signal.pause()

PYTEST, CONTROLLER = os.getpid(), os.getppid()

@pytest.fixture
def stays(request):
    if request.param == "setup": stay("setup")
    yield
    if request.param == "teardown": stay("teardown")

@contained
@pytest.mark.parametrize("stays", [PHASE], indirect=True)
def test_it(stays):
    if PHASE == "call": stay("call")
"""


def leave(phase: str) -> str:
    return f"PHASE = {phase!r}\n{_LEAVE}"


backends = pytest.mark.parametrize("backend", ["auto", "process"])


@backends
@pytest.mark.parametrize("phase", ["setup", "call", "teardown"])
def test_nothing_survives_pytest(stage: Stage, backend: str, phase: str) -> None:
    with stage.run(f"--cgroup-backend={backend}", source=leave(phase)) as run:
        said = run.kill(run.pytest)
        assert run.survivors == []
        assert cgroups_of(run.pytest) == []
        assert f"pytest[{run.pytest}] was killed, and left behind, now killed: 3 processes" in said
        assert f"sleep[{run.left[1].pid}]" in said


@backends
def test_without_the_guard_it_survives_until_it_is_cleaned(stage: Stage, backend: str) -> None:
    """The negative control. What was forked, and not executed, has no mark in the process backend but its parent."""
    with stage.run(f"--cgroup-backend={backend}", source=leave("call"), guard=False) as run:
        os.kill(run.pytest, signal.SIGKILL)
        run.process.wait(SECONDS)
        cgroups = cgroups_of(run.pytest)
        daemon = run.left[1]
        assert lives(daemon)
        told = stage.clean()
        assert daemon.pid in [one["pid"] for one in told["killed"]]
        assert not lives(daemon)
        assert cgroups_of(run.pytest) == []
        assert set(cgroups) <= set(map(str, told["removed"]))
        if cgroups:
            assert run.survivors == []


@backends
def test_the_next_run_cleans_up_as_well(root: Stage, tmp_path: Path, backend: str) -> None:
    with root.run(f"--cgroup-backend={backend}", source=leave("call"), guard=False) as run:
        os.kill(run.pytest, signal.SIGKILL)
        run.process.wait(SECONDS)
        assert lives(run.left[1])
        other = tmp_path / "other"
        other.mkdir()
        other.joinpath("test_it.py").write_text(f"{HEAD}\n@contained\ndef test_it(): pass\n", encoding="utf-8")
        process = Stage(other, None).popen(f"--cgroup-backend={backend}")
        assert process.communicate(timeout=SECONDS)[1] == ""
        assert process.returncode == 0
        assert not lives(run.left[1])
        assert cgroups_of(run.pytest) == []


@backends
@pytest.mark.parametrize("victim", ["worker", "controller"])
def test_nothing_survives_xdist(stage: Stage, backend: str, victim: str) -> None:
    arguments = ("-p", "xdist.plugin", "-n2", "--max-worker-restart=0", f"--cgroup-backend={backend}")
    with stage.run(*arguments, source=leave("call")) as run:
        assert run.controller == run.process.pid
        worker = psutil.Process(run.pytest)
        said = run.kill(run.pytest if victim == "worker" else run.controller)
        assert run.survivors == []
        assert not lives(worker)
        assert cgroups_of(run.pytest) == cgroups_of(run.controller) == []
        assert f"pytest[{run.pytest}] was killed" in said


@pytest.mark.requires("cgroup")
def test_a_controller_of_nothing_contained(root: Stage) -> None:
    """On pure cgroup v2 it steps aside all the same, and is guarded; elsewhere it makes nothing."""
    source = """
def test_it():
    Path("told").write_text(f"{os.getpid()} {os.getppid()} {os.getpid()}\\n")
    time.sleep(120)
"""
    with root.run("-p", "xdist.plugin", "-n1", source=f"from pathlib import Path{source}") as run:
        assert bool(cgroups_of(run.controller)) == has_to_step_aside()
        run.kill(run.controller)
        assert cgroups_of(run.controller) == []


@backends
def test_what_survives_xdist_without_the_guard(root: Stage, backend: str) -> None:
    with root.run("-p", "xdist.plugin", "-n2", f"--cgroup-backend={backend}", source=leave("call"), guard=False) as run:
        worker = psutil.Process(run.pytest)
        os.kill(run.controller, signal.SIGKILL)
        run.process.wait(SECONDS)
        assert run.survivors == run.left
        if lives(worker):  # for it learns of it by itself, and ends in its own time
            worker.kill()
            worker.wait(SECONDS)
        assert lives(run.left[1])
        root.clean()
        assert not lives(run.left[1])
        assert cgroups_of(run.pytest) == cgroups_of(run.controller) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_other_ends_of_the_whole_group(root: Stage, number: int) -> None:
    """As from a CI service, or a terminal that closes: pytest handles none of them; the guard is not reached."""
    with root.run(source=leave("call")) as run:
        os.killpg(run.process.pid, number)
        said = run.process.communicate(timeout=SECONDS)[1]
        assert run.process.returncode == -number
        assert run.survivors == []
        assert cgroups_of(run.pytest) == []
        assert "was killed, and left behind" in said


ENDS = {
    "pass": ("", "", 0),
    "-x": ("assert 0", "-x", 1),
    "exit": ("pytest.exit('enough', 3)", "", 3),
    "ctrl-c": ("raise KeyboardInterrupt", "", 2),
    "collect-only": ("", "--collect-only", 0),
}


@backends
@pytest.mark.parametrize("end", ENDS)
def test_a_clean_end_is_the_guards_too(root: Stage, backend: str, end: str) -> None:
    does, option, status = ENDS[end]
    source = f"{HEAD}\n@contained\ndef test_it():\n    {does or 'pass'}\n@contained\ndef test_other(): pass\n"
    root.path.joinpath("test_it.py").write_text(source, encoding="utf-8")
    process = root.popen(f"--cgroup-backend={backend}", *filter(None, [option]))
    _, errors = process.communicate(timeout=SECONDS)
    assert (process.returncode, errors) == (status, "")
    assert guards_of(process.pid) == []
    assert cgroups_of(process.pid) == []


@pytest.mark.parametrize(
    ("hook", "status"),
    [("raise RuntimeError('elsewhere')", 3), ("os._exit(7)", 7)],
    ids=["internal-error", "os._exit"],
)
def test_an_end_in_a_hook(root: Stage, hook: str, status: int) -> None:
    source = f"import os\ndef pytest_runtest_logfinish(nodeid):\n    {hook}\n"
    root.path.joinpath("conftest.py").write_text(source, encoding="utf-8")
    root.path.joinpath("test_it.py").write_text(f"{HEAD}\n@contained\ndef test_it(): pass\n", encoding="utf-8")
    process = root.popen()
    _, errors = process.communicate(timeout=SECONDS)  # the guard has it open as long as it lives
    assert process.returncode == status
    assert "pytest-cgroup:" not in errors
    assert guards_of(process.pid) == []
    assert cgroups_of(process.pid) == []


def test_the_guard_is_beside_the_tests(root: Stage) -> None:
    """In a session of its own, nobody's child, in pytest's cgroup, with no descriptor of the test's, and deaf."""
    with root.run(source=leave("call")) as run:
        (pid,) = guards_of(run.pytest)
        guard = psutil.Process(pid)
        assert pid not in [child.pid for child in psutil.Process(run.pytest).children(recursive=True)]
        assert os.getsid(pid) != os.getsid(run.pytest)
        assert Path(f"/proc/{pid}/cgroup").read_text() == Path(f"/proc/{run.pytest}/cgroup").read_text()
        assert guard.num_fds() == 3
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            guard.send_signal(number)
        assert f"pytest[{run.pytest}] was killed" in run.kill(run.pytest)
        assert run.survivors == []


def test_the_guard_is_killed_first(root: Stage) -> None:
    """Then there is nobody to clean up; pytest, while it lives, does not notice."""
    with root.run(source=leave("call")) as run:
        (pid,) = guards_of(run.pytest)
        os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + SECONDS
        while guards_of(run.pytest) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert run.survivors == run.left
        os.kill(run.pytest, signal.SIGKILL)
        run.process.wait(SECONDS)
        assert lives(run.left[1])
        root.clean()
        assert not lives(run.left[1])


def test_no_guard_without_a_contained_test(root: Stage) -> None:
    source = f"""{HEAD}
def test_it():
    os.kill(os.getpid(), signal.SIGSTOP)
"""
    root.path.joinpath("test_it.py").write_text(source, encoding="utf-8")
    process = root.popen()
    os.waitpid(process.pid, os.WUNTRACED)
    assert guards_of(process.pid) == []
    process.send_signal(signal.SIGCONT)
    assert process.communicate(timeout=SECONDS)[1] == ""
    assert process.returncode == 0
