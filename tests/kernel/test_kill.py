"""Nothing survives: each way to escape that is known, shown to work without a container and not to work with one."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from pytest_cgroup import Container, _station, _syscalls
from pytest_cgroup._description import describe_all
from pytest_cgroup._kernel_text import cgroup_mounts, membership, own_directory
from pytest_cgroup._process import ProcessId, own_zombies, send_signal, wait_gone
from tests.kernel.contain import DEADLINE_SECONDS, PROGRAMS, Lab, Tell, identity, leak, nothing, on_cgroup
from tests.kernel.forked import forked

KINDS = ["background", "setsid", "double_fork", "sigterm", "stopped", "traced", "leaderless", "zombie"]
ESCAPES = ["setsid", "double_fork", "sigterm", "stopped", "traced", "leaderless"]


@pytest.mark.parametrize("kind", ESCAPES)
def test_without_a_container_it_survives(kind: str) -> None:
    """The negative control: the session leader's end, a hangup and SIGTERM to the whole group, and there it is."""

    def first() -> list[int]:
        os.setsid()
        pids = leak(kind)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.killpg(0, signal.SIGTERM)
        return pids

    _syscalls.set_child_subreaper(True)  # so that they are ours to wait for
    try:
        pids = forked(lambda: _orphaning(first))
        leaked = pids[-1]
        fd = os.pidfd_open(leaked)
        assert identity(leaked).alive
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.kill(pid, signal.SIGCONT)
        assert wait_gone(pids, DEADLINE_SECONDS)
        assert not send_signal(fd, 0) or not identity(leaked).alive
        os.close(fd)
        for pid in pids:  # a tracee is its tracer's to reap until that has gone
            os.waitpid(pid, 0)
    finally:
        _syscalls.set_child_subreaper(False)


def _orphaning(function: Callable[[], list[int]]) -> list[int]:
    """forked() asks for SIGKILL at its parent's end, which must not reach what is leaked: it is in the first alone."""
    _syscalls.set_pdeathsig(0)
    return function()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pid_ns", [False, pytest.param(True, marks=pytest.mark.requires("pid_ns"))])
def test_with_a_container_it_is_named_and_does_not_survive(lab: Lab, kind: str, pid_ns: bool) -> None:
    with lab.live(lambda _: leak(kind), pid_ns=pid_ns) as live:
        numbers = live.told()
        live.watch()
        pids = [identity(pid) for pid in live.container.tree.pids()]
        outcome = live.finish()
    assert (outcome.ended, outcome.exit_code) == ("exit", 0)
    assert not any(pid.alive for pid in pids)
    leaked = {found.pid: found for found in outcome.leaks}
    assert set(leaked) == {pid.pid for pid in pids}
    assert len(leaked) == (2 if kind == "traced" else 1)
    if not pid_ns:
        assert set(leaked) == set(numbers[:1] if kind == "zombie" else numbers)
    for found in leaked.values():
        assert found.argv[1:3] == (str(PROGRAMS / "leaker.py"), kind)
        assert found.cwd == os.getcwd()
        assert found.age_seconds is not None
        assert 0 <= found.age_seconds < DEADLINE_SECONDS
        assert found.rss_bytes
        assert found.owner == "the test"
    status = leaked[max(leaked)].status
    expected = {"stopped": psutil.STATUS_STOPPED, "traced": psutil.STATUS_TRACING_STOP}
    assert status == expected.get(kind, psutil.STATUS_SLEEPING)


def test_a_leak_is_named_with_its_ports(lab: Lab) -> None:
    (pid, port), outcome = lab.call(lambda _: leak("listening"))
    (found,) = outcome.leaks
    assert (found.pid, found.ports) == (pid, (port,))
    assert f"listening on {port}" in found.describe()


def test_ports_of_many() -> None:
    """Whoever waits for others is told, and nobody who talks to one; each his own, though all are looked up at once."""

    def listener(family: socket.AddressFamily, kind: socket.SocketKind) -> socket.socket:
        found = socket.socket(family, kind)
        found.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
        if kind == socket.SOCK_STREAM:
            found.listen()
        return found

    families = [socket.AF_INET, *([socket.AF_INET6] if os.path.exists("/proc/net/if_inet6") else [])]
    waiting = [listener(family, kind) for family in families for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM)]
    talking = [socket.create_connection(waiting[0].getsockname()), socket.socket(socket.AF_INET, socket.SOCK_DGRAM)]
    talking[1].connect(waiting[1].getsockname())
    held = [waiting[:2], waiting[2:], talking, []]
    expected = [tuple(sorted(each.getsockname()[1] for each in some)) for some in (waiting[:2], waiting[2:], (), ())]
    programs = [subprocess.Popen(["sleep", "1000"], pass_fds=[each.fileno() for each in some]) for some in held]
    try:
        assert [told.ports for told in describe_all([program.pid for program in programs])] == expected
    finally:
        for program in programs:
            program.kill()
            program.wait()
        for each in (*waiting, *talking):
            each.close()


@pytest.mark.requires("net_ns")
def test_ports_in_networks_of_their_own() -> None:
    """Two listen at the same port, each in its own: they are looked up together, and not taken for one."""
    listen = "import socket; s = socket.create_server(('127.0.0.1', {})); print(flush=True); input()"
    with Container(net_ns=True) as one, Container(net_ns=True) as other:
        programs = [
            container.popen(
                [sys.executable, "-c", listen.format(port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            for container, port in ((one, 8080), (other, 8080), (other, 8081))
        ]
        for program in programs:
            assert program.stdout is not None
            assert program.stdout.readline() == "\n"
        told = describe_all([program.pid for program in programs])
        assert [each.ports for each in told] == [(8080,), (8080,), (8081,)]
        for program in programs:
            program.communicate()
    _station.close()


def test_a_leak_is_named_with_its_parents(lab: Lab) -> None:
    """A chain of two: the second one's parent is the first."""

    def function(tell: Tell) -> tuple[int, int]:
        reader, writer = os.pipe()
        outer = os.fork()
        if outer == 0:
            if (inner := os.fork()) != 0:
                os.write(writer, str(inner).encode())
            while True:
                signal.pause()
        return outer, int(os.read(reader, 100))

    (outer, inner), outcome = lab.call(function)
    found = {leaked.pid: leaked for leaked in outcome.leaks}
    assert set(found) == {outer, inner}
    assert found[inner].parents[0] == f"{psutil.Process().name()}[{outer}]"
    assert not any(parent.endswith(f"[{os.getpid()}]") for leaked in found.values() for parent in leaked.parents)


def test_a_process_that_is_about_to_end_is_no_leak(lab: Lab) -> None:
    """It ends by itself a moment after the first process: who ends in time has not leaked."""

    def function(tell: Tell) -> None:
        reader, writer = os.pipe()
        if os.fork() == 0:
            os.close(writer)
            os.read(reader, 1)  # until the first process has ended
            os._exit(0)
        os.close(reader)

    assert lab.run(function).leaks == ()


def test_zombies_that_were_not_waited_for(lab: Lab) -> None:
    """The test says which; they are no processes any more, but somebody forgot to wait."""

    def function(tell: Tell) -> tuple[int, dict[int, str]]:
        reaped, left = (os.posix_spawn("/bin/true", ["true", "lies"], {}) for _ in range(2))
        os.waitpid(reaped, 0)
        os.waitid(os.P_PID, left, os.WEXITED | os.WNOWAIT)
        return left, own_zombies()

    with lab.live(function) as live:
        pid, zombies = live.told()
        (found,) = live.finish(zombies=zombies).leaks
    assert zombies == {pid: "true"}, "its arguments are gone, but not its name"
    assert (found.pid, found.argv, found.status) == (pid, ("[true]",), "zombie")
    assert found.describe().startswith(f"pid {pid}: [true], zombie: exited, but never waited for")


@pytest.mark.parametrize("grace", [0.0, 30.0])
def test_grace_is_given_and_no_longer_than_needed(lab: Lab, grace: float) -> None:
    """With grace a process may clean up after SIGTERM, and the time is not waited for when it has."""
    reader, writer = os.pipe()

    def function(tell: Tell) -> None:
        ready, tell_ready = os.pipe()
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, lambda *_: (os.write(writer, b"cleaned up"), os._exit(0)))
            os.write(tell_ready, b"!")
            while True:
                signal.pause()
        os.read(ready, 1)

    try:
        outcome = lab.run(function, grace=grace)
    finally:
        os.close(writer)
        said = os.read(reader, 100)
        os.close(reader)
    assert len(outcome.leaks) == 1
    assert said == (b"cleaned up" if grace else b"")
    assert outcome.usage.wall_seconds is not None
    assert outcome.usage.wall_seconds < 25


def test_grace_ends(lab: Lab) -> None:
    """Who ignores SIGTERM is killed after it."""
    with lab.live(lambda _: leak("sigterm"), grace=0.2) as live:
        pid = identity(live.told()[0])
        assert len(live.finish().leaks) == 1
        assert not pid.alive


def _bomb(lab: Lab, most: int, until: Callable[[bytes], bool], **asked: object) -> None:
    """Start a fork bomb, see that it is in full swing, and destroy it."""
    reader, writer = os.pipe()
    try:

        def function(tell: Tell) -> None:
            bomb = subprocess.Popen(
                [sys.executable, PROGRAMS / "fork_bomb.py", str(most), str(writer)], pass_fds=[writer]
            )
            tell(bomb.pid)
            bomb.wait()

        with lab.live(function, **asked) as live:
            live.told()
            os.close(writer)
            writer = -1
            said = b""
            while not until(said):
                piece = os.read(reader, 4096)
                assert piece, "the bomb ended by itself"
                said += piece
            pids = [found for pid in live.container.tree.pids() if (found := ProcessId.of(pid))]
            assert len(pids) > 20
        assert live.outcome is not None
        assert not any(pid.alive for pid in pids)
        while os.read(reader, 65536):
            pass  # nobody holds the other end any more
    finally:
        os.close(reader)
        if writer != -1:
            os.close(writer)


def _is_frail() -> bool:
    """User-mode Linux 6.12 panics when a fork is refused while the process is killed; 6.1 and 7.2 do not."""
    return "User Mode Linux" in Path("/proc/cpuinfo").read_text() and os.uname().release.startswith("6.12.")


@on_cgroup
@pytest.mark.requires("pids")
@pytest.mark.skipif(_is_frail(), reason="this guest's kernel would panic")
def test_a_fork_bomb_under_a_limit(lab: Lab) -> None:
    """It never stops to fork; that 50 is in force is read from the kernel before."""
    probe = lab.backend.create(lab.spec(pids=50), "probe")
    assert probe.limits["pids"] == "50"
    probe.remove()
    _bomb(lab, 0, lambda said: said.count(b"!") > 5, pids=50)
    assert os.waitpid(os.spawnlp(os.P_NOWAIT, "true", "true"), 0)[1] == 0  # pytest still forks


def test_four_hundred_processes(lab: Lab) -> None:
    _bomb(lab, 400, lambda said: said.count(b".") == 400)


@on_cgroup
def test_cgroups_made_inside_are_no_refuge(lab: Lab) -> None:
    def inside(tell: Tell) -> None:
        reader, writer = os.pipe()
        program = PROGRAMS / "nested_cgroups.py"
        directories = live_directories()
        subprocess.run([sys.executable, program, str(writer), *directories], pass_fds=[writer], check=True)
        tell(int(os.read(reader, 100)))

    def live_directories() -> list[str]:
        """Where we are, in each hierarchy that the container is a cgroup of."""
        mounts = cgroup_mounts(Path("/proc/self/mountinfo").read_text())
        mine = membership(Path("/proc/self/cgroup").read_text())
        found = [
            own_directory(mount, mine[key])
            for mount in mounts
            for key in (sorted(mount.controllers & mine.keys())[:1] if mount.version == 1 else [""])
        ]
        return [directory for directory in found if directory and directory.endswith("-nested")]

    with lab.live(inside, name="1-nested") as live:
        pid = identity(live.told())
        cgroup = live.cgroup
        outcome = live.finish()
    assert [found.pid for found in outcome.leaks] == [pid.pid]
    assert not pid.alive
    assert not any(os.path.exists(directory) for directory in cgroup.directories)
    assert outcome.notes == ()


def test_who_is_outside_is_left_alone(lab: Lab) -> None:
    """A process of the same user, started by pytest itself, is nobody's business."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as outside:
        lab.run(lambda _: leak("setsid"))
        lab.run(nothing)
        assert outside.poll() is None
        outside.communicate(b"\n")
    assert outside.returncode == 0
