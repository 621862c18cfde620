"""The guard's own business: whom it believes, whom it kills, when it is silent."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest

from pytest_cgroup._guard import Guard, watch_over
from pytest_cgroup._host import Host
from pytest_cgroup._process import ProcessId, wait_gone
from tests.kernel.contain import identity
from tests.kernel.forked import forked

pytestmark = pytest.mark.usefixtures("no_other_recovery")
backends = pytest.mark.parametrize(
    "processes",
    [pytest.param(False, marks=pytest.mark.requires("cgroup"), id="cgroup"), pytest.param(True, id="process")],
)


def guarded(function: Callable[[Host, Guard], object], *, processes: bool) -> str:
    """What the guard of a process says that calls *function*, and then ends as if it had been killed."""
    reader, writer = os.pipe()

    def owner() -> None:
        os.dup2(writer, 2)
        host = Host(scope=False)
        watch_over(host, processes=processes)
        assert isinstance(host.guard, Guard)
        function(host, host.guard)

    try:
        forked(owner)
        os.close(writer)
        writer = -1
        text = b""
        while piece := os.read(reader, 4096):  # until the guard has ended
            text += piece
    finally:
        os.close(reader)
        if writer != -1:
            os.close(writer)
    return text.decode()


@pytest.fixture
def sleeper() -> Iterator[ProcessId]:
    child = subprocess.Popen(["sleep", "120"])
    yield identity(child.pid)
    child.kill()
    child.wait()


@backends
def test_silent_where_nothing_is_left(processes: bool) -> None:
    assert guarded(lambda host, guard: None, processes=processes) == ""


@backends
def test_a_clean_end(processes: bool) -> None:
    def function(host: Host, guard: Guard) -> None:
        host.close()
        left = ProcessId.of(guard.pid)
        assert left is None or not left.alive

    assert guarded(function, processes=processes) == ""


@pytest.mark.requires("cgroup")
def test_silent_where_the_session_is_gone() -> None:
    def function(host: Host, guard: Guard) -> None:
        host.placement.close()

    assert guarded(function, processes=False) == ""


@pytest.mark.parametrize("right", [True, False])
def test_a_pid_that_is_anothers_by_now(right: bool) -> None:
    """The negative control is the right start time. What stands above a container is known by both."""
    reader, writer = os.pipe()

    def function(host: Host, guard: Guard) -> None:
        apart = [(os.POSIX_SPAWN_CLOSE, 2)]  # or who waits for the guard's words waits for the child
        child = identity(os.posix_spawn("/bin/sleep", ["sleep", "120"], {}, file_actions=apart))
        os.write(writer, b"%d %d" % (child.pid, child.start_time))
        os.write(guard._pipe, b"%d %d\n" % (child.pid, child.start_time - (not right)))

    try:
        assert guarded(function, processes=True) == ""
        child = ProcessId(*map(int, os.read(reader, 100).split()))
    finally:
        os.close(reader)
        os.close(writer)
    if right:
        assert wait_gone([child.pid], 10)
    else:
        assert child.alive
        os.kill(child.pid, signal.SIGKILL)


def test_who_was_there_before_pytest(sleeper: ProcessId) -> None:
    """PID 1, say: whoever can write into the pipe can tell of it, and below it is everybody."""
    while time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK") < sleeper.start_time + 1:
        os.sched_yield()

    def function(host: Host, guard: Guard) -> None:
        os.write(guard._pipe, b"%d %d\n" % (sleeper.pid, sleeper.start_time))

    assert guarded(function, processes=True) == ""
    assert sleeper.alive


def test_anything_may_come_through_the_pipe(sleeper: ProcessId) -> None:
    """It is open in contained tests as well, if they look for it."""
    texts = [b"\n", b"\xff\0 1\n", b"%d\n" % sleeper.pid, b"-1 -1\n", b"1 2 3\n" * 5000]
    texts += [b"9" * 5000 + b" 1\n", b"fork " + b"9" * 5000 + b" 1\n", b"9" * 200_000, b"\n", b"%d " % sleeper.pid]

    def function(host: Host, guard: Guard) -> None:
        for text in texts:
            os.set_blocking(guard._pipe, True)
            os.write(guard._pipe, text)

    assert guarded(function, processes=True) == ""
    assert sleeper.alive


@pytest.mark.requires("cgroup")
@pytest.mark.parametrize("closed", [False, True])
def test_who_closes_the_pipe_is_guarded_all_the_same(closed: bool) -> None:
    def function(host: Host, guard: Guard) -> None:
        session = host.placement.session
        assert session is not None
        container = session.child("1-test")
        container.make()
        container.adopt(os.posix_spawn("/bin/sleep", ["sleep", "120"], {}))
        if closed:
            os.close(guard._pipe)

    said = guarded(function, processes=False)
    assert "was killed, and left behind, now killed: 1 process (sleep[" in said


def test_there_is_one_guard() -> None:
    def function(host: Host, guard: Guard) -> None:
        watch_over(host, processes=True)
        assert host.guard is guard

    assert guarded(function, processes=True) == ""
