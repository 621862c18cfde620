"""Places that are sets of processes in the process table, where no cgroup can be used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import _syscalls
from .._isolated import os
from .._ownership import PLACE, executed_with, this_process
from .._process import ProcessId, children, descendants, has_children, kill_members, stat_fields

if TYPE_CHECKING:
    from collections.abc import Callable

    from . import Place

#: before the mark of what is not to end with pytest
_UNWATCHED = "unwatched:"


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
            identity = ProcessId.of(pid) or ProcessId.of(pid)  # once more before our own child is taken for hidden
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
        return kill_members(self.pids, timeout)

    def give_back(self) -> None:
        self._ground.take_back(self)


def _start_time(pid: int) -> int:
    fields = stat_fields(pid)
    return int(fields[19]) if fields else 0
