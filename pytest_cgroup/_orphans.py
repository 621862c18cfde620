"""What a dead session left running where there is no cgroup: found in the process table, and killed.

A process is known by a variable of its environment, that it was executed with, by who stood above it, or by what it
told the guard of itself.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ._isolated import os, time
from ._ownership import owner_in_place, owner_of
from ._process import (
    SIGKILL,
    comm,
    descendants,
    has_ended,
    open_pidfds,
    send_signal,
    signal_members,
    stat_fields,
    status_fields,
    wait_gone,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ._ownership import Owner
    from ._process import ProcessId

_SIGSTOP = 19
#: how long a killed process may take to be gone: more is uninterruptible sleep
KILL_SECONDS = 10.0


@dataclass(slots=True)
class Cleaned:
    """What was done.

    Attributes:
        killed: by pid, the program's name.
        removed: the sessions' cgroups, by their paths.
        left: what was not touched or could not be removed, and why.
    """

    killed: dict[int, str] = field(default_factory=dict)
    removed: list[str] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        count = f"{len(self.killed)} process{'es' if len(self.killed) != 1 else ''}"
        names = [f"{name}[{pid}]" for pid, name in self.killed.items()]
        shown = ", ".join(names[:10]) + (" …" if len(names) > 10 else "")
        return f"{count} ({shown})" if names else "no process"


def end_processes(members: Callable[[], list[int]], cleaned: Cleaned) -> None:
    """Kill what *members* lists until that is nothing: stopped first, since what is stopped can't fork."""
    deadline = time.monotonic() + KILL_SECONDS
    while pids := members():
        cleaned.killed.update((pid, comm(pid)) for pid in pids)
        signal_members(members, _SIGSTOP)
        signal_members(members, SIGKILL)
        wait_gone(pids, 0.5)
        if time.monotonic() > deadline:
            cleaned.left.update((f"pid {pid}", "still there after SIGKILL") for pid in members())
            return


def below(roots: Iterable[ProcessId], owner: Owner) -> list[int]:
    """The living processes below *roots*, the reapers of containers, and those that were executed in one of *owner*'s.

    The roots are not in it: while they live, what loses its parent stays theirs.
    """
    found = [one for pid in _table() if owner_of(pid) == owner for one in _kin(pid)]
    for root in roots:
        born = descendants(root.pid) if root.alive else []
        if root.alive:  # else its pid may have been another's meanwhile
            found += born
    return _living(found)


def in_place(forks: Iterable[ProcessId], owner: Owner, outlives: Callable[[int], bool]) -> list[int]:
    """The living processes that *owner* started in place: *forks*, what was executed with its mark, and their children.

    Those that *outlives* says so of are not in it.
    """
    found = [one for pid in _table() if owner_in_place(pid) == owner for one in _kin(pid)]
    found += [pid for one in forks if one.alive for pid in (one.pid, *descendants(one.pid))]
    return [pid for pid in _living(found) if not outlives(pid)]


def end_reapers(roots: Iterable[ProcessId]) -> None:
    """Kill the reapers, which have nobody below them any more: each would end by itself, but may have been stopped."""
    for root in roots:
        with open_pidfds([root.pid]) as fds:
            for fd in fds:
                if root.alive:  # the one that the descriptor is of
                    send_signal(fd, SIGKILL)


def orphans() -> list[int]:
    """The processes of dead owners, and what they started: that may have been forked, and not executed."""
    marked = [pid for pid in _table() if (owner := owner_of(pid)) and owner.is_dead]
    return _living([one for pid in marked for one in _kin(pid)])


def _kin(pid: int) -> list[int]:
    """A process that bears a mark, and of those below it whom it speaks for.

    Anybody can mark a process of his own, and put it above others, as a subreaper is above what sudo(8) started. So a
    mark speaks for the processes of the same user, and root's for all.
    """
    uid = _uid(pid)
    everybody = uid == os.geteuid() == 0
    return [pid, *(one for one in descendants(pid) if everybody or _uid(one) == uid)]


def _uid(pid: int) -> int | None:
    """The effective one, None of who is gone; /proc/PID itself is root's where a process may not be looked into."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return int(status_fields(pid)["Uid"].split()[1])
    return None


def _table() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _living(pids: Iterable[int]) -> list[int]:
    found = [pid for pid in dict.fromkeys(pids) if pid != os.getpid()]
    return [pid for pid in found if (fields := stat_fields(pid)) and not has_ended(fields)]
