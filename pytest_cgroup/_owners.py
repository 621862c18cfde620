"""Who owns which process: every start falls into somebody's time, and what outlives its owner is a leak.

Owners stack: the session, a fixture that is set up or torn down, a test. `Book.enter` and `Book.leave` are called where
one begins and ends; who stands beside pytest then belongs to the one whose time it was. Children belong to their
parent's owner. What a thread starts belongs to whoever started the thread, as long as that lives.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from itertools import chain
from typing import TYPE_CHECKING, ParamSpec, Protocol, TypeVar

from . import _exempt
from ._description import describe_all
from ._held import held_pids
from ._isolated import os, threading, time
from ._origins import Origins, new_list, placed, trace
from ._process import lineage, reap, stat_fields
from ._shared import ask_to_end, settle
from .exceptions import CgroupError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from ._belongings import Belongings
    from ._origins import Origin, Traced
    from ._outcome import Leak
    from ._shared import Ground, Place

P = ParamSpec("P")
T = TypeVar("T")

_KILL_SECONDS = 10.0
#: as often anything is tried
_TRIES = 3


class Owner:
    """Somebody whom processes can belong to.

    Attributes:
        name: ``"test_x.py::test_a"``, ``"fixture:db"``, ``"collection of test_x.py"``, ``"session"``.
        judged: whether what outlives it is a leak; if not it is left alone.
        grace: seconds between SIGTERM and SIGKILL.
        places: where its processes were born.
        ended: whether it is over.
    """

    __slots__ = ("__weakref__", "ended", "grace", "judged", "name", "origins", "places")

    def __init__(self, name: str, *, judged: bool = True, grace: float = 0.0) -> None:
        self.name = name
        self.judged = judged
        self.grace = grace
        self.origins = new_list()
        self.places: list[Place] = []
        self.ended = False


class Accounts(Protocol):
    """Who owns which process, as `_leaks` keeps it told of whose time it is.

    Attributes:
        session: who owns what nobody else does.
        holders: living owners, each with the objects that are its own; asked only when something is left.
        trouble: why the accounts are closed before their time; None while all is well.
    """

    session: Owner
    holders: Callable[[], Iterable[tuple[Owner, list[object]]]]
    trouble: str | None

    @property
    def described(self) -> str:
        """How processes are found, for the header of the run."""

    @property
    def own(self) -> bool:
        """Whether this is the process whose accounts these are, and not one that it forked."""

    @property
    def here(self) -> bool:
        """Whether accounts are kept: in the process whose they are, and as long as all is well."""

    def enter(self, owner: Owner) -> None:
        """From now on what is started belongs to *owner*."""

    def leave(self, owner: Owner) -> None:
        """*owner*'s time is over for now; it may come again."""

    def has_left(self, owner: Owner) -> bool:
        """Whether *owner* has processes, now that its time is over."""

    def end(self, owner: Owner) -> list[Leak]:
        """*owner* is over: what of it still lives, now killed. Its processes have a moment to end by themselves."""

    def close(self) -> None:
        """The session is over."""


class Book:
    """The `Accounts` of one pytest process on Linux: who stands where.

    Args:
        ground: what pytest stands on.
        root: paths below it are shown relative to it.
        settle_seconds: how long a process may take to end by itself after its owner.
        ignore: globs of what is nobody's leak.
        keep_pools: whether the workers of an executor that somebody still holds are nobody's leak.
        also: what else is looked for, of `_values.BELONGINGS`.
    """

    def __init__(
        self,
        ground: Ground,
        *,
        root: str,
        settle_seconds: float = 0.1,
        ignore: Sequence[str] = (),
        keep_pools: bool = True,
        also: Sequence[str] = (),
    ) -> None:
        self.ground = ground
        self.session = Owner("session")
        self._settle_seconds = settle_seconds
        self._ignore = ignore
        self._keep_pools = keep_pools
        self._stack = [self.session]
        self._watching = True
        self._starts_at_end = -1  # how many were known when the last test ended; -1 once another time has begun
        self._living: dict[Owner, None] = {self.session: None}
        self._nobody = Owner("nobody", judged=False)
        self._from_server: set[int] = set()
        self._pid = os.getpid()
        self.holders: Callable[[], Iterable[tuple[Owner, list[object]]]] = lambda: ()
        self._held: dict[int, Owner] | None = None
        self._pool: set[int] | None = None
        self.trouble: str | None = None
        self._origins = Origins(self._top, root)
        self._origins.start()
        self._belongings: Belongings | None = None
        if also:
            from ._belongings import Belongings

            self._belongings = Belongings(also, keep_pools=keep_pools)

    @property
    def described(self) -> str:
        return self.ground.described

    @property
    def own(self) -> bool:
        return os.getpid() == self._pid

    @property
    def here(self) -> bool:
        return os.getpid() == self._pid and self.trouble is None

    def _top(self) -> Owner:
        return self._stack[-1]

    def enter(self, owner: Owner) -> None:
        """Between two tests nobody asks twice who stands here, unless Python has started something since the first."""
        if self._origins.count == self._starts_at_end:
            self._note(self._stack[-1])
        else:
            self.flush()
        self._starts_at_end = -1
        self._stack.append(owner)
        self._living[owner] = None
        if owner.judged != self._watching:
            self._watch(owner.judged)

    def leave(self, owner: Owner) -> None:
        self.flush()
        self._starts_at_end = -1
        self._step_down(owner)

    def _step_down(self, owner: Owner) -> None:
        if self._stack[-1] is owner:
            self._stack.pop()
        elif owner in self._stack:
            self._stack.remove(owner)
        if self._stack and self._stack[-1].judged != self._watching:
            self._watch(self._stack[-1].judged)

    def _watch(self, on: bool) -> None:
        """What is started in a time that nobody judges may outlive pytest."""
        if self.trouble is not None:
            return
        self._watching = on
        try:
            self.ground.watch(on)
        except (CgroupError, OSError) as error:
            self._give_up(error)

    def has_left(self, owner: Owner) -> bool:
        return bool(owner.places)

    def flush(self, patience: float = 0.0) -> None:
        """Whoever stands beside pytest belongs to the one whose time it is, once they had *patience* seconds to end."""
        if self.trouble is not None:
            return
        top = self._stack[-1]
        try:
            _patiently(self._hand_over, top, patience)
        except (CgroupError, OSError) as error:
            self._give_up(error)
        self._note(top)

    def _note(self, owner: Owner) -> None:
        """What there is of *owner* beside processes, and who may start some."""
        if threading.active_count() > 1:
            self._origins.threads_belong_to(owner)
        if self._belongings is not None:
            self._belongings.look(owner)

    def _hand_over(self, owner: Owner, patience: float) -> None:
        if _exempt.FORK_SERVER in sys.modules:
            self._fetch_from_server()
        if not self.ground.crowded():
            return
        if patience:
            settle(lambda: self._suspects(self.ground.others(), owner), patience)
        if self.ground.others():
            owner.places.append(self.ground.hand_over())

    def _give_up(self, error: Exception) -> None:
        """The ground is taken away under our feet: what has been found is told, and nothing is looked for any more."""
        self.trouble = f"{type(error).__name__}: {error}"

    def _fetch_from_server(self) -> None:
        """What multiprocessing's fork server has started since, for whoever asked it to."""
        started = _exempt.fork_server_children()
        for pid in started - self._from_server:
            self.ground.take_in(pid)
        self._from_server = started

    def end(self, owner: Owner) -> list[Leak]:
        self._held = self._pool = None
        starts = self._origins.count
        deadline = time.monotonic() + self._settle_seconds
        self.flush(self._settle_seconds if owner.judged and self._stack[-1] is owner else 0.0)
        self._step_down(owner)
        owner.ended = True
        self._living.pop(owner, None)
        places, owner.places = owner.places, []
        leaks = self._other_things(owner, deadline) if owner.judged else []
        for place in places if owner.judged else ():
            try:
                leaks[:0] = self._clear(place, owner, deadline - time.monotonic())
            except (CgroupError, OSError) as error:
                self._give_up(error)
        if places:
            try:
                _patiently(self._let_be, places)
            except (CgroupError, OSError) as error:
                self._give_up(error)
            if owner.judged and self._belongings is not None:
                self._belongings.look(self._nobody)  # the zombies that we made
        self._starts_at_end = starts if len(self._stack) == 1 else -1
        return leaks

    def _other_things(self, owner: Owner, deadline: float) -> list[Leak]:
        """What is left beside processes. An orphan that pytest adopted, as no process else does, is no zombie of it."""
        if self._belongings is None:
            return []
        left = self._belongings.left(owner, max(0.0, deadline - time.monotonic()))
        started = {origin.pid: origin for origin in owner.origins}
        leaks = []
        for leak in left:
            if leak.kind == "zombie" and (origin := started.get(leak.pid)) is not None:
                leaks.append(dataclasses.replace(leak, owner=owner.name, started_at=origin.place))
            elif leak.kind != "zombie" or self.ground.name == "cgroup":
                leaks.append(dataclasses.replace(leak, owner=owner.name))
        return leaks

    def close(self) -> None:
        """pytest goes back to where it came from."""
        self._origins.stop()
        if self._belongings is not None:
            self._belongings.close()
        with contextlib.suppress(CgroupError, OSError):
            self.ground.leave()

    # judging

    def _clear(self, place: Place, owner: Owner, patience: float) -> list[Leak]:
        me = os.getpid()
        found, leaks = _patiently(self._look, place, owner, patience)
        if found:
            ours = {pid for pid in found if _parent(pid) == me}
            with contextlib.suppress(OSError):
                if owner.grace:
                    ask_to_end(place.pids, owner.grace)
            if not place.kill(_KILL_SECONDS):
                self._give_up(TimeoutError(f"a leak of {owner.name} is still there after SIGKILL"))
            for pid in ours:
                _take_in_the_end(pid, found[pid])
        return leaks

    def _look(self, place: Place, owner: Owner, patience: float) -> tuple[dict[int, Traced | None], list[Leak]]:
        """Who is left there of *owner*; who is somebody else's goes to him."""
        left = settle(lambda: self._suspects(place.pids(), owner), patience)
        found = {pid: self._trace(pid, owner) for pid in left}
        described = describe_all(found, owner=owner.name, ancestors_until=os.getpid())
        leaks = [_told(leak, found[leak.pid], owner) for leak in described]
        for pid in place.pids():
            if pid not in found and (other := self._rightful(pid, owner)) is not None:
                self._place_of(other).take_in(pid)
        return found, leaks

    def _let_be(self, places: list[Place]) -> None:
        """Whoever still lives there is nobody's; what is empty serves again."""
        self._nobody.places += [place for place in places if place not in self._nobody.places]
        for place in [place for place in self._nobody.places if not place.pids()]:
            place.give_back()
            self._nobody.places.remove(place)

    def _suspects(self, pids: list[int], owner: Owner) -> list[int]:
        """Those of *pids* that nobody else has a right to."""
        return [pid for pid in pids if self._rightful(pid, owner) is None]

    def _rightful(self, pid: int, owner: Owner) -> Owner | None:
        """To whom but *owner* the process belongs; None if it is a leak of *owner*'s, or has ended."""
        if _exempt.own_helper(pid):
            return self._nobody
        if self._pool is None:
            self._pool = _exempt.pool_workers() if self._keep_pools else set()
        line = lineage(pid)
        for one in line:
            if one in self._pool or _exempt.named(one, self._ignore):
                return self._nobody
        for one in line:
            if (holder := self._holder(one, owner)) is not None:
                return holder
        traced = self._trace(pid, owner)
        if traced is None:
            return None
        origin = traced.origin
        if traced.sure and (origin.ours or not _exempt.PLUMBING.isdisjoint(origin.plumbing)):
            return self._nobody
        other: Owner = origin.owner
        return other if traced.sure and other is not owner and not other.ended else None

    def _holder(self, pid: int, owner: Owner) -> Owner | None:
        if self._held is None:
            holders = [pair for pair in self.holders() if pair[0] is not owner and not pair[0].ended]
            self._held = {pid: holder for holder, roots in holders for pid in held_pids(roots)}
        return self._held.get(pid)

    def _trace(self, pid: int, owner: Owner) -> Traced | None:
        others = chain.from_iterable(other.origins for other in self._living if other is not owner)
        return trace(pid, owner.origins, others)

    def _place_of(self, owner: Owner) -> Place:
        if not owner.places:
            owner.places.append(self.ground.new_place())
        return owner.places[0]


def _patiently(what: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Once more, and once again, before it is given up: the kernel may be short of something for a moment."""
    for left in range(_TRIES, 0, -1):
        try:
            return what(*args, **kwargs)
        except (CgroupError, OSError):
            if left == 1:
                raise
    raise AssertionError("it returns or raises")


def _parent(pid: int) -> int:
    with contextlib.suppress(OSError):
        return int(fields[1]) if (fields := stat_fields(pid)) else 0
    return 0


def _told(leak: Leak, traced: Traced | None, owner: Owner) -> Leak:
    if traced is None:
        return leak
    name = traced.origin.owner.name if traced.sure else owner.name
    return dataclasses.replace(placed(leak, traced), owner=name)


def _take_in_the_end(pid: int, traced: Traced | None) -> None:
    """A child of ours was killed: the object that stands for it hears of that, and if there is none nobody else does.

    Else the next test that waits for any child would see it. asyncio has a watcher that waits by itself, and a package
    that forks has an object of its own that will, as ptyprocess has.
    """
    origin: Origin | None = None if traced is None or traced.deeper else traced.origin
    if origin is not None and "asyncio" in origin.plumbing:
        return
    if origin is not None and origin.pid == pid and (popen := origin.popen) is not None:
        popen.poll()
        return
    for process in list(getattr(sys.modules.get("multiprocessing.process"), "_children", ())):
        with contextlib.suppress(Exception):  # of another version
            if process.pid == pid:
                process.exitcode  # noqa: B018  # asking it is what takes it in
                return
    if origin is None or sys.stdlib_module_names.issuperset(origin.plumbing):
        reap(pid)
