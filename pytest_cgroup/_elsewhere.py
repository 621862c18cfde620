"""Who owns which process on a system that is not Linux: what psutil finds among pytest's descendants.

Theory of operation. The descendants are looked at wherever somebody's time begins or ends. Who is new by then belongs
to its parent's owner, or else to the one whose time it was. Who has been seen once is kept in mind, by its pid and the
time of its creation, and stays somebody's as an orphan, too. But only Linux has orphans come to pytest: who loses its
parent before anybody looks is not found.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import psutil

from . import _exempt
from ._description import ask, describe_all
from ._held import held_pids
from ._isolated import os, time
from ._owners import Owner

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from ._outcome import Leak

_KILL_SECONDS = 10.0
# Between two looks at what should end. It is not waited for: that would take its status from whoever started it.
_PAUSE_SECONDS = 0.01


class Descendants:
    """The `_owners.Accounts` of one pytest process; the arguments are those of `_owners.Book`."""

    described = "by psutil among pytest's descendants"

    def __init__(self, settle_seconds: float, ignore: Sequence[str], *, keep_pools: bool) -> None:
        self.session = Owner("session")
        self.holders: Callable[[], Iterable[tuple[Owner, list[object]]]] = lambda: ()
        self.trouble: str | None = None
        self._settle_seconds = settle_seconds
        self._ignore = ignore
        self._keep_pools = keep_pools
        self._nobody = Owner("nobody", judged=False)
        self._me = psutil.Process()
        self._owners: dict[psutil.Process, Owner] = {}
        self._held: dict[int, Owner] | None = None
        self._pool: set[int] = set()
        self._stack = [self._nobody]  # whose is what was there before
        self._look()
        self._stack = [self.session]

    @property
    def own(self) -> bool:
        return os.getpid() == self._me.pid

    @property
    def here(self) -> bool:
        return self.own and self.trouble is None

    def enter(self, owner: Owner) -> None:
        self._look()
        self._stack.append(owner)

    def leave(self, owner: Owner) -> None:
        self._look()
        self._pop(owner)

    def _pop(self, owner: Owner) -> None:
        if owner in self._stack:
            self._stack.remove(owner)

    def has_left(self, owner: Owner) -> bool:
        return owner in self._owners.values()

    def end(self, owner: Owner) -> list[Leak]:
        leaks: list[Leak] = []
        self._held = None
        left = self._wait(owner, self._settle_seconds if owner.judged else 0.0)
        if left and owner.judged:
            leaks = describe_all([one.pid for one in left], owner=owner.name, ancestors_until=self._me.pid)
            for process in left if owner.grace else ():
                ask(process.terminate)
            self._wait(owner, owner.grace)
            self._wait(owner, _KILL_SECONDS, kill=True)
        self._pop(owner)  # a look has just been taken: it costs a millisecond or two
        owner.ended = True
        for process in [process for process, whose in self._owners.items() if whose is owner]:
            self._owners[process] = self._rightful(process, owner) or self._nobody
        return leaks

    def close(self) -> None:
        self._owners.clear()

    def _look(self) -> None:
        """Who is new belongs to its parent's owner, or to the one whose time it is; parents come before children."""
        if not self.here:
            return
        try:
            self._owners = {process: owner for process, owner in self._owners.items() if _lives(process)}
            by_pid = {process.pid: owner for process, owner in self._owners.items()}
            from_server = _exempt.fork_server_children()  # their parent, the server, is nobody's
            for process in self._me.children(recursive=True):
                if process not in self._owners and _lives(process):
                    parent = 0 if process.pid in from_server else ask(process.ppid)
                    self._owners[process] = by_pid[process.pid] = by_pid.get(parent, self._stack[-1])
        except (psutil.Error, OSError) as error:
            self.trouble = f"{type(error).__name__}: {error}"

    def _left(self, owner: Owner) -> list[psutil.Process]:
        """What lives of *owner*'s, and nobody else has a right to."""
        self._look()
        mine = [process for process, whose in self._owners.items() if whose is owner]
        return [process for process in mine if self._rightful(process, owner) is None] if self.here else []

    def _wait(self, owner: Owner, seconds: float, *, kill: bool = False) -> list[psutil.Process]:
        """Until nothing is left of *owner*'s, *seconds* at most; what is left."""
        deadline = time.monotonic() + seconds
        while left := self._left(owner):
            for process in left if kill else ():
                ask(process.kill)  # psutil makes sure that the pid is still this process's
            if time.monotonic() >= deadline:
                break
            time.sleep(_PAUSE_SECONDS)
        return left

    def _rightful(self, process: psutil.Process, owner: Owner) -> Owner | None:
        """To whom but *owner* the process belongs; None if it is a leak of *owner*'s."""
        if self._held is None:
            holders = [pair for pair in self.holders() if pair[0] is not owner and not pair[0].ended]
            self._held = {pid: holder for holder, roots in holders for pid in held_pids(roots)}
            self._pool = _exempt.pool_workers() if self._keep_pools else set()
        line = [process, *(one for one in ask(process.parents) or () if one in self._owners)]
        lines = [ask(one.cmdline) or [] for one in line]
        forked = process.pid in _exempt.fork_server_children() or lines[0] in lines[1:2]  # by the fork server
        if _exempt.runs_helper(lines[0]) and not forked:
            return self._nobody
        for one, argv in zip(line, lines, strict=True):
            if one.pid in self._pool or _exempt.matches(argv, ask(one.name) or "", self._ignore):
                return self._nobody
        return next((self._held[one.pid] for one in line if one.pid in self._held), None)


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
