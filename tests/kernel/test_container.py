"""One container from start to end, on every backend: how it ended, what came of races, that nothing stays."""

from __future__ import annotations

import errno
import os
import resource
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest

from pytest_cgroup import _direct_child, _syscalls
from pytest_cgroup._backends import choose
from pytest_cgroup._backends.cgroup import CgroupTree
from pytest_cgroup._container import Container
from pytest_cgroup._host import Host
from pytest_cgroup._process import children, pidfd_open, wait_gone
from pytest_cgroup.exceptions import ContainerError
from tests.kernel.contain import (
    DEADLINE_SECONDS,
    Lab,
    Tell,
    burn,
    descriptors,
    identity,
    leak,
    nothing,
    on_cgroup,
    on_process,
    wait,
)
from tests.kernel.forked import become_ordinary, forked


def test_a_value_comes_home_and_nothing_stays(lab: Lab) -> None:
    before = children()
    value, outcome = lab.call(lambda _: 6 * 7)
    assert value == 42
    assert (outcome.ended, outcome.exit_code, outcome.signal) == ("exit", 0, None)
    assert outcome.leaks == ()
    assert outcome.usage.wall_seconds
    assert outcome.backend == lab.backend.name
    assert children() == before


def test_an_exit_status_comes_home(lab: Lab) -> None:
    outcome = lab.run(lambda _: os._exit(3))
    assert (outcome.ended, outcome.exit_code) == ("exit", 3)


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("pid_ns", [False, pytest.param(True, marks=pytest.mark.requires("pid_ns"))])
def test_a_signal_is_told(lab: Lab, number: int, pid_ns: bool) -> None:
    """Also in a pid namespace, whose PID 1 would survive what it sends itself."""
    outcome = lab.run(lambda _: os.kill(os.getpid(), number), pid_ns=pid_ns)
    assert (outcome.ended, outcome.signal, outcome.exit_code) == ("signal", number, None)


def test_a_deadline_ends_all_of_it(lab: Lab) -> None:
    def function(tell: Tell) -> None:
        tell(leak("sigterm"))
        wait(tell)

    with lab.live(function, timeout=0.4) as live:
        said: list[bool] = []
        live.container.before_kill = lambda: said.append(bool(live.container.tree.pids()))
        outcome = live.finish()
    assert (outcome.ended, outcome.timed_out, outcome.leaks) == ("timeout", True, ())
    assert said == [True]
    assert outcome.usage.wall_seconds is not None
    assert outcome.usage.wall_seconds >= 0.4


def test_a_deadline_waits_for_a_debugger(lab: Lab) -> None:
    def function(tell: Tell) -> str:
        tell("here")
        os.read(0 if go < 0 else go, 1)
        return "not killed"

    go, let_go = os.pipe()
    try:
        with lab.live(function, timeout=0.3) as live:
            live.container.watched.pause()
            assert live.told() == "here"
            live.container.watch({}, lambda: False, timeout=0.5)
            os.write(let_go, b"!")
            assert live.told() == "not killed"
            live.container.watched.resume()
            assert live.finish().ended == "exit"
    finally:
        os.close(go)
        os.close(let_go)


@pytest.mark.parametrize("timeout", [1e-6, 0.001, 0.003])
def test_a_deadline_before_it_has_entered(lab: Lab, timeout: float) -> None:
    """The kill comes when the container is still empty: who is on the way into it must not stay there."""
    with lab.live(wait, timeout=timeout) as live:
        outcome = live.finish()
    assert outcome.ended == "timeout"


@pytest.mark.parametrize("pid_ns", [False, pytest.param(True, marks=pytest.mark.requires("pid_ns"))])
def test_destroyed_before_it_has_entered(lab: Lab, pid_ns: bool) -> None:
    before = children()
    for _ in range(10):
        with lab.live(lambda tell: leak("double_fork"), pid_ns=pid_ns):
            pass
    assert children() == before


def test_cpu_time_of_the_whole_tree_is_bounded(lab: Lab) -> None:
    """Also what is burnt by grandchildren, the ended and waited for included."""

    def function(tell: Tell) -> None:
        while True:
            if (pid := os.fork()) == 0:
                burn(0.1)
                os._exit(0)
            os.waitpid(pid, 0)

    outcome = lab.run(function, cpu_time=0.5)
    assert outcome.ended == "cpu-time"
    usage = outcome.usage
    if usage.cpu_user_seconds is not None and usage.cpu_system_seconds is not None:
        assert usage.cpu_user_seconds + usage.cpu_system_seconds > 0.25


def test_rlimits_hold(lab: Lab) -> None:
    def function(tell: Tell) -> tuple[object, ...]:
        opened = 0
        try:
            while True:
                os.dup(0)
                opened += 1
        except OSError as error:
            return opened < 60, error.errno, resource.getrlimit(resource.RLIMIT_NOFILE)

    value, _ = lab.call(function, rlimits={"nofile": (64, 100)})
    assert value == (True, errno.EMFILE, (64, 100))


def test_a_step_that_fails_stops_it_before_it_begins(lab: Lab) -> None:
    """It fails closed, and says which step."""
    outcome = lab.run(lambda _: os._exit(0), user="nobody-of-this-name")
    assert outcome.ended == "error"
    assert outcome.message is not None
    assert "nobody-of-this-name" in outcome.message


def test_no_cgroup_to_join(lab: Lab) -> None:
    """The first process can't enter: then it does not run, and the reason is told."""
    container = Container(lab.spec(), backend=lab.backend, host=lab.host, name="test")
    container.start()

    def refuse() -> None:
        raise ContainerError("the door is locked", operation="enter")

    container.tree.join = refuse  # type: ignore[method-assign]
    if container.fork():
        os._exit(77)
    container.watch({}, lambda: False, DEADLINE_SECONDS)
    outcome = container.destroy()
    assert (outcome.ended, outcome.message) == ("error", "the door is locked (enter) (enter)")


@on_process
def test_the_reaper_is_killed_by_the_contained(lab: Lab) -> None:
    """What holds the tree is gone: it is told, and the first process went with it."""

    def function(tell: Tell) -> None:
        tell(os.getpid())
        os.kill(os.getppid(), signal.SIGKILL)
        wait(tell)

    with lab.live(function) as live:
        first = live.told()
        outcome = live.finish()
        assert outcome.ended == "error"
        assert "was killed" in str(outcome.message)
        assert wait_gone([first], DEADLINE_SECONDS)


@on_process
def test_the_reaper_is_stopped_by_the_contained(lab: Lab) -> None:
    outcome = lab.run(lambda _: os.kill(os.getppid(), signal.SIGSTOP), timeout=0.5)
    assert outcome.ended in ("timeout", "exit")


@pytest.mark.requires("pid_ns")
def test_the_init_can_not_be_killed_from_inside(lab: Lab) -> None:
    def function(tell: Tell) -> int:
        os.kill(1, signal.SIGKILL)
        os.kill(1, signal.SIGSTOP)
        return os.getpid()

    value, outcome = lab.call(function, pid_ns=True)
    assert value == 2
    assert outcome.ended == "exit"


@pytest.mark.requires("pid_ns")
def test_the_init_dies(lab: Lab) -> None:
    """Somebody outside kills it; the kernel ends its whole namespace, and that is no pass."""

    def function(tell: Tell) -> None:
        leak("setsid")
        wait(tell)

    with lab.live(function, pid_ns=True) as live:
        live.told()
        pids = [identity(pid) for pid in live.container.tree.pids()]
        assert len(pids) == 2
        init = live.container.direct_child.reaper
        assert init is not None
        os.kill(init, signal.SIGKILL)
        outcome = live.finish()
    assert outcome.ended in ("error", "signal")
    assert not any(pid.alive for pid in pids)


@pytest.mark.requires("user_ns", "pid_ns")
def test_a_pid_namespace_inside_a_user_namespace(lab: Lab) -> None:
    """As it is made where privilege is lacking: an init, and the test is its PID 2."""

    def function(tell: Tell) -> tuple[object, ...]:
        leak("setsid")
        return os.getpid(), os.getppid(), sorted(int(pid) for pid in os.listdir("/proc") if pid.isdigit())

    (pid, parent, everybody), outcome = lab.call(function, pid_ns=True, user_ns=True)
    assert (pid, parent) == (2, 1)
    assert everybody[:2] == [1, 2]
    assert (outcome.ended, outcome.exit_code, len(outcome.leaks)) == ("exit", 0, 1)


@pytest.mark.requires("net_ns", "uts_ns")
def test_namespaces_are_entered(lab: Lab) -> None:
    def function(tell: Tell) -> tuple[object, ...]:
        return os.uname().nodename, [name for _, name in socket.if_nameindex()]

    value, _ = lab.call(function, hostname="inside", net_ns=True)
    assert value[0] == "inside"
    assert "lo" in value[1]
    assert os.uname().nodename != "inside"


def test_a_host_short_of_processes() -> None:
    """RLIMIT_NPROC of an ordinary user: no fork, a clean error, and nothing is left."""

    def function() -> tuple[object, ...]:
        _syscalls.load()
        become_ordinary()
        host = Host()
        container = Container(Lab(host, None).spec(), backend=choose(host, "process"), host=host, name="test")  # type: ignore[arg-type]
        container.start()
        before = descriptors()
        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
        try:
            if container.fork():
                os._exit(0)
        except ContainerError as error:
            return error.errno, descriptors() == before, container.destroy().ended
        return "forked", container.destroy()

    assert forked(function) == (errno.EAGAIN, True, "exit")


@on_cgroup
@pytest.mark.requires("pids")
def test_a_limit_on_pytest_itself_leaves_no_process(lab: Lab) -> None:
    """The cgroup that pytest is in has room for nobody else."""
    full = lab.backend.create(lab.spec(pids=1), "full")
    assert isinstance(full, CgroupTree)

    def function() -> object:
        full.cgroup.adopt(0)
        container = Container(lab.spec(), backend=lab.backend, host=lab.host, name="inner")
        container.start()
        try:
            if container.fork():
                os._exit(0)
        except ContainerError as error:
            return error.errno, container.destroy().ended
        return "forked", container.destroy()

    try:
        assert forked(function) == (errno.EAGAIN, "exit")
    finally:
        full.remove()


@on_process
def test_no_process_for_the_first_one(lab: Lab) -> None:
    """The reaper is there, and can fork nobody."""

    def function() -> tuple[object, ...]:
        _syscalls.load()
        become_ordinary()
        with lab.live(nothing, rlimits={"nproc": 0}) as live:  # not yet: the limit comes with the test
            assert live.finish().ended == "exit"
        container = Container(lab.spec(), backend=lab.backend, host=lab.host, name="test")
        container.start()
        reaper_only = _processes_of(os.getuid()) + 1
        resource.setrlimit(resource.RLIMIT_NPROC, (reaper_only, reaper_only))
        if container.fork():
            os._exit(0)
        container.watch({}, lambda: False, DEADLINE_SECONDS)
        outcome = container.destroy()
        return outcome.ended, outcome.message

    if os.geteuid() != 0:
        pytest.skip("other processes of this user come and go")
    ended, message = forked(function)
    assert ended == "error"
    assert "EAGAIN" in str(message)


def _processes_of(uid: int) -> int:
    return sum(1 for process in psutil.process_iter(["uids"]) if (uids := process.info["uids"]) and uids.real == uid)


@pytest.mark.parametrize("when", ["while it is watched", "before"])
def test_somebody_else_waits_for_any_child(lab: Lab, when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGCHLD ignored: the kernel reaps, and how it ended is lost. That is an error, and no hang."""

    def too_late(pid: int) -> int | None:
        until = time.monotonic() + DEADLINE_SECONDS
        while (fd := pidfd_open(pid)) is not None and time.monotonic() < until:
            os.close(fd)
        return fd

    def function() -> tuple[object, ...]:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        with lab.live(lambda _: time.sleep(0.1 if when == "while it is watched" else 0.0)) as live:
            outcome = live.finish()
        return outcome.ended, outcome.message

    if when == "before":
        monkeypatch.setattr(_direct_child, "pidfd_open", too_late)
    ended, message = forked(function)
    if lab.backend.needs_reaper:  # it is not what was waited for, and tells what it waited for
        assert ended == "exit"
    else:
        assert (ended, "somebody else" in str(message)) == ("error", True)


def test_destroy_gives_one_outcome(lab: Lab) -> None:
    with lab.live(nothing) as live:
        first = live.finish()
        assert live.container.destroy() is first


def test_a_container_that_nothing_was_started_in(lab: Lab) -> None:
    container = Container(lab.spec(), backend=lab.backend, host=lab.host, name="empty")
    container.start()
    assert container.destroy().leaks == ()


def test_signals_reach_the_first_process(lab: Lab) -> None:
    def function(tell: Tell) -> str:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
        tell("ready")
        return signal.Signals(signal.sigwait([signal.SIGUSR1])).name

    with lab.live(function) as live:
        assert live.told() == "ready"
        assert live.container.signal(signal.SIGUSR1)
        assert live.told() == "SIGUSR1"


def test_a_signal_after_the_first_process_has_ended(lab: Lab) -> None:
    """The reaper still lives for the orphan's sake; it passes nothing on to a pid that may be another's by now."""
    with lab.live(lambda _: leak("background")) as live:
        live.watch()
        live.container.signal(signal.SIGUSR1)
        assert len(live.finish().leaks) == 1


def test_a_subprocess_is_inside(lab: Lab) -> None:
    def function(tell: Tell) -> None:
        process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        tell(process.pid)
        process.communicate(b"\n")

    with lab.live(function) as live:
        assert live.told() in live.container.tree.pids()
        assert live.finish().leaks == ()
