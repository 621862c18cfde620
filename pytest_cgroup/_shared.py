"""The place that pytest itself stands in, so that whatever it starts is born there: a cgroup, or the process table.

Theory of operation. pytest stands in a cgroup of its own, alone. Who is in it beside pytest was started since pytest
came. That costs one read to know, and nothing else as long as nobody is there: empty tests share one place. When
somebody is, the place is *handed over* to whoever owns that moment, and pytest steps on to an empty one; a process is
never moved to where it belongs, it was born there, and so are its children. Only what turns out to be somebody else's
(a background thread of a fixture's started it) is moved.

Below the session's cgroup there is one without controllers, ``shared``, that holds these places: no limit, no memory
charged to a place that is gone, one mkdir and one write a step, and in v1 trees one hierarchy only.

Where no cgroup can be used pytest becomes the reaper of its orphans (PR_SET_CHILD_SUBREAPER), and a place is a set of
processes in the process table: what descends from pytest and belongs to no other place. An orphan of a place's process
is known by its session, its process group, or by the number that it inherited in its environment.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import TYPE_CHECKING, Protocol

from . import _syscalls
from ._cgroup import Cgroup
from ._kernel_files import read_file
from ._ownership import PLACE, SHARED, executed_with, this_process
from ._process import (
    ProcessId,
    children,
    descendants,
    has_children,
    signal_members,
    stat_fields,
    wait_gone,
)
from ._recover import own_cgroup
from .exceptions import CgroupError

if TYPE_CHECKING:
    from collections.abc import Callable

_UNWATCHED = "unwatched:"  # before the mark of what is not to end with pytest
#: as many empty places are kept for those who come next
_SPARE = 4


class Place(Protocol):
    """A place that was handed over: its processes, and what they start."""

    def pids(self) -> list[int]:
        """Who lives there, zombies not counted."""

    def take_in(self, pid: int) -> None:
        """Have a process of another place belong here."""

    def kill(self, timeout: float) -> bool:
        """Kill all of them, and wait; whether nobody is left after *timeout* seconds."""

    def give_back(self) -> None:
        """It is empty, and nobody asks for it any more."""


class Ground(Protocol):
    """Where pytest stands.

    Attributes:
        name: ``"cgroup"`` or ``"process"``.
        described: how its processes are found, for the header of the run.
    """

    name: str
    described: str

    def crowded(self) -> bool:
        """Whether somebody beside pytest may stand here; asked after every test, so it costs next to nothing."""

    def others(self) -> list[int]:
        """Who stands here beside pytest."""

    def hand_over(self) -> Place:
        """This place, with all who stand here; pytest goes on to another, where it is alone."""

    def new_place(self) -> Place:
        """A place that nobody stands in."""

    def take_in(self, pid: int) -> None:
        """Have a process of another place stand here."""

    def watch(self, on: bool) -> None:
        """Whether what is started from now on is to end with pytest at the latest, or is nobody's business."""

    def leave(self) -> None:
        """pytest goes back to where it came from, and so does all that is left."""


class CgroupGround:
    """Places are cgroups below the session's.

    Raises:
        CgroupError: pytest can't step into them, or not back.
    """

    name = "cgroup"
    described = "by cgroups"

    def __init__(self, session: Cgroup) -> None:
        self._v2 = session.unified is not None
        self._home = own_cgroup(v2=self._v2)
        kinds = None if self._v2 else frozenset(("freezer",))
        top = session.child(SHARED, kinds)
        self._top = Cgroup(top.unified) if self._v2 else top
        self._top.make()
        self._alone = f"{os.getpid()}\n".encode()
        self._count = 0
        self._spare: list[Cgroup] = []
        self._places: list[CgroupPlace] = []
        self._fds: tuple[int, ...] = ()
        try:
            self._here = self._empty()
            self._step(self._here)
            self._home.adopt(0)
            self._here.adopt(0)
        except CgroupError:
            self.leave()
            raise

    def crowded(self) -> bool:
        """The second question is for cgroups that somebody made in this one, as a pytest in a test does.

        v1 answers from a list that may be a second old unless cgroup.procs is opened anew (pidlist_array_load).
        """
        if not self._fds:
            return False
        procs, directory = self._fds
        here = os.pread(procs, 64, 0) if self._v2 else read_file(f"{self._here.path}/cgroup.procs").encode()
        return here != self._alone or os.fstat(directory).st_nlink > 2

    def others(self) -> list[int]:
        me = os.getpid()
        return [pid for pid in self._here.pids() if pid != me] if self._fds else []

    def hand_over(self) -> Place:
        left, self._here = self._here, self._empty()
        self._step(self._here)
        return self._place(left)

    def new_place(self) -> Place:
        return self._place(self._empty())

    def take_in(self, pid: int) -> None:
        if self._fds:
            _move(self._here, pid)

    def watch(self, on: bool) -> None:
        """What stands below the session's cgroup is killed with pytest: what is nobody's is not born there."""
        if not on:
            self._home.adopt(0)
            self._close()
        elif not self._fds:
            self._step(self._here)

    def leave(self) -> None:
        with contextlib.suppress(CgroupError):
            self._home.adopt(0)
        self._close()
        for place in list(self._places):
            place.move_out(self._home)
        for pid in self._top.pids():
            _move(self._home, pid)
        with contextlib.suppress(CgroupError):
            self._top.remove(0.5) if not self._top.pids() else None

    def take_back(self, place: CgroupPlace) -> None:
        """An empty one serves again, unless somebody made cgroups of his own in it."""
        self._places.remove(place)
        cgroup = place.cgroup
        if len(self._spare) < _SPARE and os.stat(cgroup.path).st_nlink == 2:
            self._spare.append(cgroup)
            return
        with contextlib.suppress(CgroupError):  # somebody holds it: it goes with the session, or stays empty
            cgroup.remove(0.5)

    def _place(self, cgroup: Cgroup) -> CgroupPlace:
        place = CgroupPlace(self, cgroup)
        self._places.append(place)
        return place

    def _empty(self) -> Cgroup:
        if self._spare:
            return self._spare.pop()
        self._count += 1
        cgroup = self._top.child(str(self._count))
        cgroup.make()
        return cgroup

    def _step(self, cgroup: Cgroup) -> None:
        cgroup.adopt(0)
        self._close()
        procs = os.open(f"{cgroup.path}/cgroup.procs", os.O_RDONLY | os.O_CLOEXEC)
        self._fds = procs, os.open(cgroup.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def _close(self) -> None:
        for fd in self._fds:
            os.close(fd)
        self._fds = ()


class CgroupPlace:
    """A cgroup that pytest has left to those who were born in it."""

    def __init__(self, ground: CgroupGround, cgroup: Cgroup) -> None:
        self._ground = ground
        self.cgroup = cgroup

    def pids(self) -> list[int]:
        return self.cgroup.pids()

    def take_in(self, pid: int) -> None:
        _move(self.cgroup, pid)

    def kill(self, timeout: float) -> bool:
        return self.cgroup.kill_until_empty(timeout)

    def give_back(self) -> None:
        self._ground.take_back(self)

    def move_out(self, home: Cgroup) -> None:
        """Those who are nobody's leak live on where pytest came from. One may fork meanwhile: until nobody is left."""
        deadline = time.monotonic() + 2.0
        while (pids := self.pids()) and time.monotonic() < deadline:
            for pid in pids:
                _move(home, pid)


def _move(cgroup: Cgroup, pid: int) -> None:
    with contextlib.suppress(CgroupError):  # it has ended
        cgroup.adopt(pid)


class ProcessGround:
    """Places are sets of processes below pytest, which reaps its orphans meanwhile.

    Args:
        why: why it is not cgroups, where they were to be had.
        announce: called in what is forked, to tell whoever cleans up after pytest: a fork bears no mark.
    """

    name = "process"

    def __init__(self, why: str = "", announce: Callable[[], None] | None = None) -> None:
        self.described = "in the process table" + (f", since {why}" if why else "")
        self._was_reaper = _syscalls.set_child_subreaper(True)
        self._before = {identity for pid in descendants(os.getpid()) if (identity := ProcessId.of(pid))}
        self._places: list[ProcessPlace] = []
        self._cookie_before = os.environ.get(PLACE)
        self._owner = this_process()
        self._serial = 0
        self._watching = True
        self._announce = announce
        if announce is not None:
            os.register_at_fork(after_in_child=self._forked)
        self._here = self._new()
        self._show_cookie()

    def crowded(self) -> bool:
        return bool(self._here.members) or (has_children() and bool(self._newcomers()))

    def others(self) -> list[int]:
        for pid in self._newcomers():
            self._here.take_in(pid)
        return self._here.pids()

    def hand_over(self) -> Place:
        here = self._here
        self.others()
        self._places.append(here)
        self._here = self._new()
        self._show_cookie()
        return here

    def new_place(self) -> Place:
        place = self._new()
        self._places.append(place)
        return place

    def take_in(self, pid: int) -> None:
        self._here.take_in(pid)

    def watch(self, on: bool) -> None:
        if on != self._watching:
            self._watching = on
            self._show_cookie()

    def _forked(self) -> None:
        if self._watching and self._announce is not None:
            self._announce()

    def leave(self) -> None:
        self._announce = None
        _syscalls.set_child_subreaper(self._was_reaper)
        os.environ.pop(PLACE, None)
        if self._cookie_before is not None:
            os.environ[PLACE] = self._cookie_before

    def forget(self, pid: int) -> None:
        """No place has it any more."""
        for place in (*self._places, self._here):
            place.members = {one for one in place.members if one.pid != pid}

    def elsewhere(self, place: ProcessPlace) -> set[int]:
        """Those who belong to another place, whoever their parents are."""
        return {one.pid for other in (*self._places, self._here) if other is not place for one in other.members}

    def take_back(self, place: ProcessPlace) -> None:
        """Nobody is left of it."""
        self._places.remove(place)

    def _new(self) -> ProcessPlace:
        self._serial += 1
        return ProcessPlace(self, f"{self._owner}.{self._serial}")

    def _show_cookie(self) -> None:
        os.environ[PLACE] = self._here.cookie if self._watching else _UNWATCHED + self._here.cookie

    def adopt_orphans(self) -> None:
        """What a place's processes have left to pytest belongs to that place."""
        if has_children():
            self._newcomers()

    def _newcomers(self) -> list[int]:
        """pytest's own children that belong to no place yet. A place's own orphans go there on the way."""
        known = self._before.union(*(place.members for place in (*self._places, self._here)))
        found = []
        for pid in children():
            identity = ProcessId.of(pid)
            if identity is None or identity in known or not identity.alive:
                continue
            if (place := self._ancestral(pid)) is not None:
                place.members.add(identity)
            else:
                found.append(pid)
        return found

    def _ancestral(self, pid: int) -> ProcessPlace | None:
        fields = stat_fields(pid)
        leaders = {int(field) for field in fields[2:4]} if fields else set()
        cookie = (executed_with(pid, PLACE) or "").removeprefix(_UNWATCHED)
        for place in self._places:  # pytest's own place is where it is new
            if place.cookie == cookie or not leaders.isdisjoint(place.pids_ever):
                return place
        return None


class ProcessPlace:
    """Processes that belong together, and what they start."""

    def __init__(self, ground: ProcessGround, cookie: str) -> None:
        self._ground = ground
        self.cookie = cookie
        self.members: set[ProcessId] = set()
        self.pids_ever: set[int] = set()

    def pids(self) -> list[int]:
        """Parents before their children. Who ended while the table was read may have left orphans to pytest."""
        self._ground.adopt_orphans()
        elsewhere = self._ground.elsewhere(self)
        self.members = {one for one in self.members if one.alive}
        todo = [one.pid for one in self.members]
        while todo:
            born = [pid for pid in children(todo.pop()) if pid not in elsewhere]
            todo += born
            for pid in born:
                self._add(pid)
        return sorted((one.pid for one in self.members if one.alive), key=_start_time)

    def _add(self, pid: int) -> None:
        if (identity := ProcessId.of(pid)) is not None:
            self.members.add(identity)
            self.pids_ever.add(pid)

    def take_in(self, pid: int) -> None:
        self._ground.forget(pid)
        self._add(pid)

    def kill(self, timeout: float) -> bool:
        """Stop them all first: what is stopped can't fork while the others are killed."""
        deadline = time.monotonic() + timeout
        while pids := self.pids():
            if len(pids) > 1:
                signal_members(self.pids, signal.SIGSTOP)
            signal_members(self.pids, signal.SIGKILL)
            wait_gone(pids, min(0.5, max(0.0, deadline - time.monotonic())))
            if time.monotonic() >= deadline:
                return not self.pids()
        return True

    def give_back(self) -> None:
        self._ground.take_back(self)


def _start_time(pid: int) -> int:
    fields = stat_fields(pid)
    return int(fields[19]) if fields else 0


# how a place is emptied


def settle(pids: Callable[[], list[int]], timeout: float) -> list[int]:
    """Wait *timeout* seconds at most until those that *pids* lists have ended; who has not."""
    deadline = time.monotonic() + timeout
    while (left := pids()) and (rest := deadline - time.monotonic()) > 0:
        wait_gone(left, rest)
    return left


def ask_to_end(pids: Callable[[], list[int]], grace: float) -> None:
    """SIGTERM, and *grace* seconds to follow it."""
    signal_members(pids, signal.SIGTERM)
    settle(pids, grace)


def reap(pid: int) -> None:
    """Take in the end of a child of ours that was killed, so that whoever waits for any child next does not."""
    with contextlib.suppress(OSError):
        os.waitpid(pid, os.WNOHANG)


def open_ground(session: Cgroup | None, announce: Callable[[], None] | None = None) -> Ground:
    """Cgroups below *session* where pytest can step into them, else the process table."""
    if session is None:
        return ProcessGround(announce=announce)
    try:
        return CgroupGround(session)
    except (CgroupError, OSError) as error:
        return ProcessGround(str(error), announce)
