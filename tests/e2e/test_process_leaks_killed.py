"""--process-leaks, and pytest is killed: what was started in place does not outlive it, and no cgroup is left."""

from __future__ import annotations

import contextlib
import os
import signal
import time

import psutil
import pytest

from tests.e2e.inner import run as run_inner
from tests.e2e.leaving import WAYS, is_alive, pid_of, section, survivors
from tests.e2e.stage import SECONDS, Run, Stage, cgroups_of, guards_of, lives

pytestmark = pytest.mark.usefixtures("no_other_recovery", "with_recovery")
backends = pytest.mark.parametrize("backend", ["auto", "process"])
#: of a fixture and of the test; by exec, by fork alone, and by a fork of a fork that left its session
_STAY = """
import multiprocessing
PYTEST, CONTROLLER = os.getpid(), os.getppid()
LEFT = []

def fork(session=False):
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        if session:
            os.setsid()
            if os.fork():
                os._exit(0)
        signal.alarm(120)
        os.write(writer, str(os.getpid()).encode())
        while True:
            signal.pause()
    LEFT.append(int(os.read(reader, 20)))
    if session:
        os.waitpid(pid, 0)

def start(*argv):
    LEFT.append(subprocess.Popen(argv, start_new_session=True).pid)

def stay():
    controller = os.environ.get("PYTEST_XDIST_WORKER") and CONTROLLER
    with os.fdopen(os.open("told", os.O_WRONLY), "w") as f:
        f.write(" ".join(map(str, [PYTEST, controller or PYTEST, *LEFT])) + "\\n")
    signal.alarm(120)
    while True:
        signal.pause()

@pytest.fixture(scope="session")
def server():
    start("sleep", "121")
    yield
"""
_TEST = """
def test_it(server):
    start("sleep", "122")
    fork()
    fork(session=True)
    stay()
"""


def _watch(
    stage: Stage, *arguments: str, source: str = _TEST, guard: bool = True
) -> contextlib.AbstractContextManager[Run]:
    return stage.run("--process-leaks=fail", *arguments, source=_STAY + source, guard=guard)


@backends
def test_nothing_survives_pytest(stage: Stage, backend: str) -> None:
    with _watch(stage, f"--cgroup-backend={backend}") as run:
        said = run.kill(run.pytest)
        assert run.survivors == []
        assert cgroups_of(run.pytest) == []
        assert f"pytest[{run.pytest}] was killed, and left behind, now killed: 4 processes" in said


@backends
def test_without_the_guard_it_survives(stage: Stage, backend: str) -> None:
    """The negative control. Cgroups are found by `clean` all the same; what the process table shows is left alone."""
    with _watch(stage, f"--cgroup-backend={backend}", guard=False) as run:
        os.kill(run.pytest, signal.SIGKILL)
        run.process.wait(SECONDS)
        assert run.survivors == run.left
        cgroups = cgroups_of(run.pytest)
        told = stage.clean()
        assert set(cgroups) <= set(map(str, told["removed"]))
        assert cgroups_of(run.pytest) == []
        assert run.survivors == ([] if cgroups else run.left)


@backends
@pytest.mark.parametrize("victim", ["worker", "controller"])
def test_nothing_survives_xdist(stage: Stage, backend: str, victim: str) -> None:
    arguments = ("-p", "xdist.plugin", "-n2", "--max-worker-restart=0", f"--cgroup-backend={backend}")
    with _watch(stage, *arguments) as run:
        assert run.controller == run.process.pid
        worker = psutil.Process(run.pytest)
        said = run.kill(run.pytest if victim == "worker" else run.controller)
        assert run.survivors == []
        assert not lives(worker)
        assert cgroups_of(run.pytest) == cgroups_of(run.controller) == []
        assert f"pytest[{run.pytest}] was killed" in said


@pytest.mark.requires("cgroup")
def test_what_a_worker_left_is_its_own_guards_matter(root: Stage) -> None:
    """The others' guards don't know what is to be spared, and are done first here."""
    source = """
@pytest.mark.parametrize("number", [0, 1])
def test_it(number):
    LEFT.append(subprocess.Popen(["sleep", "123"]).pid)
    mine = os.path.abspath(f"told-{number}")
    with open(mine + "-", "w") as f:
        f.write(f"{PYTEST} {LEFT[0]}")
    os.rename(mine + "-", mine)
    while not os.path.exists("told-0") or not os.path.exists("told-1"):
        time.sleep(0.01)
    if number == 0:
        stay()
    signal.alarm(120)
    signal.pause()
"""
    arguments = ("-p", "xdist.plugin", "-n2", "--max-worker-restart=0", "--process-leaks-ignore=*sleep 123*")
    with _watch(root, *arguments, source=source) as run:
        slow, spared = map(int, root.path.joinpath("told-1").read_text().split())
        run.left.append(psutil.Process(spared))
        (guard,) = guards_of(slow)
        os.kill(guard, signal.SIGSTOP)
        try:
            os.kill(slow, signal.SIGKILL)
            os.kill(run.controller, signal.SIGKILL)
            deadline = time.monotonic() + SECONDS / 5
            while (guards_of(run.pytest) or cgroups_of(run.pytest)) and time.monotonic() < deadline:
                time.sleep(0.01)
            assert not guards_of(run.pytest)
            assert not cgroups_of(run.pytest)
            assert cgroups_of(slow)
            assert run.survivors == run.left
        finally:
            os.kill(guard, signal.SIGCONT)
        run.process.communicate(timeout=SECONDS)
        assert run.survivors == run.left
        assert cgroups_of(slow) == cgroups_of(run.controller) == []


@pytest.mark.requires("pids")
@pytest.mark.parametrize("victim", ["worker", "controller"])
def test_nothing_survives_a_limited_worker(root: Stage, victim: str) -> None:
    arguments = ("-p", "xdist.plugin", "-n2", "--max-worker-restart=0", "-o", "contained_worker=pids=100")
    with _watch(root, *arguments) as run:
        worker = psutil.Process(run.pytest)
        run.kill(run.pytest if victim == "worker" else run.controller)
        assert run.survivors == []
        assert not lives(worker)
        assert cgroups_of(run.pytest) == cgroups_of(run.controller) == []


@backends
def test_what_is_named_by_the_user_outlives_pytest(root: Stage, backend: str) -> None:
    """And so does a resource tracker, which tidies up and ends; the others are killed."""
    source = """
def test_it(server):
    from multiprocessing import resource_tracker, shared_memory
    memory = shared_memory.SharedMemory("pytest-cgroup-%d" % os.getpid(), create=True, size=10)
    LEFT.append(resource_tracker._resource_tracker._pid)
    start("sh", "-c", "sleep 123; true")
    stay()
"""
    ignore = "--process-leaks-ignore=*sleep 123*"
    with _watch(root, f"--cgroup-backend={backend}", ignore, source=source) as run:
        run.kill(run.pytest)
        server, tracker, named = run.left
        assert not lives(server)
        assert lives(named)
        tracker.wait(SECONDS)
        assert not os.path.exists(f"/dev/shm/pytest-cgroup-{run.pytest}")
        assert cgroups_of(run.pytest) == []
        for child in named.children():
            child.kill()


@backends
def test_what_nobody_judges_outlives_pytest(root: Stage, backend: str) -> None:
    """Where a mark alone asks for it, it is the marked tests' processes that end with pytest."""
    source = """
def test_unmarked(server):
    start("sleep", "122")
@contained(isolation="shared")
def test_marked():
    start("sleep", "123")
    stay()
"""
    with root.run(f"--cgroup-backend={backend}", source=_STAY + source) as run:
        run.kill(run.pytest)
        assert [lives(one) for one in run.left] == [True, True, False]
        assert cgroups_of(run.pytest) == []


_ENDS = """
def test_before(): popen("before")
def test_ends():
    popen("it")
    {how}
def test_after(): popen("after")
"""


@backends
@pytest.mark.parametrize("how", ["os._exit(3)", "os.kill(os.getpid(), signal.SIGKILL)", "faulthandler"])
def test_a_test_ends_pytest(pytester: pytest.Pytester, backend: str, how: str) -> None:
    """As pytest-timeout's thread does, and faulthandler's timer."""
    if how == "faulthandler":
        how = "import faulthandler; faulthandler.dump_traceback_later(0.01, exit=True); time.sleep(60)"
    pytester.path.joinpath("test_it.py").write_text(
        "import os, signal, subprocess, sys, threading, time\nimport pytest\n" + WAYS + _ENDS.format(how=how)
    )
    stage = Stage(pytester.path, None)
    process = stage.popen("--process-leaks=fail", f"--cgroup-backend={backend}")
    process.communicate(timeout=SECONDS)  # the guard has stderr open as long as it lives
    assert survivors(pytester) == {}
    assert cgroups_of(process.pid) == []


@backends
@pytest.mark.parametrize("restarts", [0, 1])
def test_workers_that_are_killed(pytester: pytest.Pytester, backend: str, restarts: int) -> None:
    """What a dead worker's test left is killed, and its cgroup removed; the one that replaces it looks on."""
    source = WAYS + _ENDS.format(how="os.kill(os.getpid(), signal.SIGKILL)")
    result = run_inner(
        pytester,
        source,
        "--process-leaks=fail",
        f"--cgroup-backend={backend}",
        f"--max-worker-restart={restarts}",
        workers=1,
    )
    assert "worker 'gw0' crashed while running 'test_it.py::test_ends'" in result.text
    text = section(result)
    assert "test_ends" not in text
    assert "test_it.py::test_before left behind 1 process:" in text
    assert ("test_it.py::test_after left behind 1 process:" in text) == (restarts == 1)
    deadline = time.monotonic() + SECONDS  # nobody waits for the worker's guard, which may be at it yet
    while is_alive(pid_of(pytester, "it")) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert survivors(pytester) == {}
