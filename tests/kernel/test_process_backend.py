"""Without any cgroup: the reaper above the container, and the process table."""

from __future__ import annotations

import os
import signal

import pytest

from pytest_cgroup import _syscalls
from pytest_cgroup._backends.process import ProcessTree
from pytest_cgroup._process import children, descendants, is_zombie, signal_members, wait_gone
from tests.kernel.contain import DEADLINE_SECONDS, Lab, Tell, identity, leak, nothing, on_process


@on_process
def test_an_orphan_stays_below_the_reaper(lab: Lab) -> None:
    """A double fork and setsid lead to the reaper, not to init; that is what makes it findable."""

    def function(tell: Tell) -> tuple[int, int]:
        return os.getppid(), leak("double_fork")[0]

    with lab.live(function) as live:
        reaper, pid = live.told()
        live.watch()
        assert descendants(reaper) == [pid]
        assert live.container.tree.pids() == [pid]
        assert [found.pid for found in live.finish().leaks] == [pid]


@on_process
def test_orphans_are_reaped_while_the_test_runs(lab: Lab) -> None:
    """No zombie heaps up that nobody could wait for."""

    def function(tell: Tell) -> tuple[int, bool]:
        reader, writer = os.pipe()
        if (pid := os.fork()) == 0:
            if os.fork() == 0:
                os.write(writer, str(os.getpid()).encode())
            os._exit(0)
        os.waitpid(pid, 0)
        os.close(writer)
        orphan = int(os.read(reader, 100))
        os.read(reader, 1)  # end of file: it has ended
        while is_zombie(orphan):
            os.sched_yield()
        return orphan, orphan in children()

    (orphan, mine), outcome = lab.call(function)
    assert not mine
    assert outcome.leaks == ()
    assert not os.path.exists(f"/proc/{orphan}")


@on_process
def test_the_reaper_passes_on_what_it_alone_is_sent(lab: Lab) -> None:
    def function(tell: Tell) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP])
        tell(os.getppid())
        tell(signal.Signals(signal.sigwait([signal.SIGHUP])).name)

    with lab.live(function) as live:
        _syscalls.sigqueue(live.told(), signal.SIGHUP)
        assert live.told() == "SIGHUP"


@on_process
def test_what_is_weaker_is_said(lab: Lab) -> None:
    weaker = lab.backend.weaker(lab.spec(memory="64M", cpuset="0"))
    assert [words.partition(":")[0] for words in weaker] == ["memory", "cpuset"]
    assert lab.backend.weaker(lab.spec()) == ()
    assert lab.run(nothing, memory="64M").not_enforced == weaker[:1]


@on_process
def test_nobody_elses_children_are_its_own(lab: Lab) -> None:
    """pytest's other children are neither named nor killed, nor waited for."""
    reader, writer = os.pipe()
    if (pid := os.fork()) == 0:
        os.close(writer)
        os.read(reader, 1)
        os._exit(7)
    outcome = lab.run(nothing)
    assert outcome.leaks == ()
    assert identity(pid).alive
    os.close(writer)
    os.close(reader)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7


def test_an_empty_table_is_believed_only_twice() -> None:
    """A tree without a living process has none; with one it has it, though the others are zombies."""
    tree = ProcessTree(None, None)
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(writer)
        zombie = os.fork()
        if zombie == 0:
            os._exit(0)
        os.waitid(os.P_PID, zombie, os.WEXITED | os.WNOWAIT)
        os.read(reader, 1)
        os._exit(0)
    os.close(reader)
    try:
        tree.started(pid)
        while not (found := descendants(pid)) or not is_zombie(found[0]):
            os.sched_yield()
        assert tree.pids() == []
        tree.started(os.getpid())
        assert pid in tree.pids()
    finally:
        os.close(writer)
        os.waitpid(pid, 0)


@pytest.mark.parametrize("count", [1, 70])
def test_only_members_are_signalled(count: int) -> None:
    """More than are signalled at once; and a pid that is not listed any more when it comes to it is let be."""
    pids = []
    for _ in range(count):
        if (pid := os.fork()) == 0:
            signal.pause()
        pids.append(pid)
    listings = iter([pids, []])
    signal_members(lambda: next(listings, []))
    assert not wait_gone(pids[:1], 0)
    signal_members(lambda: [pid for pid in pids if not is_zombie(pid)])
    assert wait_gone(pids, DEADLINE_SECONDS)
    for pid in pids:
        os.waitpid(pid, 0)
