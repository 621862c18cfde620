"""A process whose first thread has ended, as by pthread_exit(3) in main(): a zombie by its state, and it goes on."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from pytest_cgroup._backends.process import _memory_bytes
from pytest_cgroup._cgroup import Cgroup
from pytest_cgroup._host import Host
from pytest_cgroup._kernel_files import move_all, read_file, write_file
from pytest_cgroup._listening import hold
from pytest_cgroup._origins import command_line
from pytest_cgroup._ownership import executed_with
from pytest_cgroup._process import ProcessId, is_zombie, wait_gone
from tests.kernel.contain import DEADLINE_SECONDS, PROGRAMS, identity
from tests.kernel.forked import forked


@contextlib.contextmanager
def leaderless(kind: str = "leaderless", **environment: str) -> Iterator[tuple[ProcessId, list[int]]]:
    """The process, and what else is told of it."""
    reader, writer = os.pipe()
    program = [sys.executable, str(PROGRAMS / "leaker.py"), kind, str(writer)]
    subprocess.run(program, pass_fds=[writer], env={**os.environ, **environment}, check=True)
    os.close(writer)
    with open(reader, encoding="utf-8") as told:
        pid, *more = map(int, told.readline().split())
    try:
        yield identity(pid), more
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        assert wait_gone([pid], DEADLINE_SECONDS)


@pytest.fixture
def places(host: Host) -> Iterator[tuple[Cgroup, Cgroup]]:
    assert host.placement.session is not None
    found = [host.placement.session.child(name) for name in ("leaderless", "elsewhere")]
    for one in found:
        one.make()
    yield found[0], found[1]
    for one in found:
        one.remove()


def test_what_is_known_of_it() -> None:
    """The state that /proc shows is its first thread's. It lives; files and memory are shown as another thread's."""
    with leaderless(MARK="it") as (one, _):
        with open(f"/proc/{one.pid}/stat", encoding="utf-8") as stat:
            assert stat.read().rpartition(")")[2].split()[0] == "Z"
        assert one.alive
        assert not is_zombie(one.pid)
        assert executed_with(one.pid, "MARK") == "it"
        assert command_line(one.pid)[1:3] == (str(PROGRAMS / "leaker.py"), "leaderless")
        assert _memory_bytes(one.pid, 0) > 100_000
        os.kill(one.pid, signal.SIGKILL)
        assert wait_gone([one.pid], DEADLINE_SECONDS)
        assert not one.alive


def test_what_it_listens_on_is_its_own() -> None:
    """A server's other threads go on when its first has ended: a daemon is ready by that."""
    with leaderless("leaderless_server") as (one, (inode,)):
        assert hold([one.pid], {str(inode)})
        assert not hold([one.pid], {"1"})


@pytest.mark.requires("cgroup")
def test_it_is_killed_though_the_kernels_cgroup_kill_passes_over_it(places: tuple[Cgroup, Cgroup]) -> None:
    place, _ = places
    with leaderless() as (one, _):
        place.adopt(one.pid)
        assert place.pids() == [one.pid]
        if place.unified and os.path.exists(f"{place.unified}/cgroup.kill"):
            write_file(f"{place.unified}/cgroup.kill", "1")
            assert not wait_gone([one.pid], 0.2), "this kernel kills it: say so in the documentation"
        assert place.kill_until_empty(DEADLINE_SECONDS)
        assert not one.alive


@pytest.mark.requires("cgroup")
def test_it_is_moved_and_that_ends(places: tuple[Cgroup, Cgroup]) -> None:
    """v2 lists its first thread where that ended: to move whoever is listed, until nobody is, would not end."""
    place, elsewhere = places
    with leaderless() as (one, _):
        place.adopt(one.pid)
        for source, target in zip(place.directories, elsewhere.directories, strict=True):
            assert forked(functools.partial(move_all, source, target)) == []
            assert _threads(source) == []
            assert _threads(target) == [
                int(name) for name in os.listdir(f"/proc/{one.pid}/task") if name != str(one.pid)
            ]
        os.kill(one.pid, signal.SIGKILL)
        assert wait_gone([one.pid], DEADLINE_SECONDS)


def _threads(directory: str) -> list[int]:
    """Of a cgroup, v2's or v1's."""
    name = next(name for name in ("cgroup.threads", "tasks") if os.path.exists(f"{directory}/{name}"))
    return [int(word) for word in read_file(f"{directory}/{name}").split()]
