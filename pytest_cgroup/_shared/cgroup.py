"""Places that are cgroups: whoever is started in one is in its list, and so are those that it starts."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from .._cgroup import Cgroup
from .._isolated import os, time
from .._kernel_files import read_file
from .._ownership import SHARED
from .._recover import own_cgroup
from ..exceptions import CgroupError

if TYPE_CHECKING:
    from . import Place

#: as many empty places are kept for those who come next
_SPARE = 4
#: as often it is tried to step back, if that is refused
_MOST_REFUSALS = 5


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
        except (CgroupError, OSError):
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
        new = self._empty()
        try:
            self._step(new)
        except (CgroupError, OSError):
            self._spare.append(new)
            raise
        left, self._here = self._here, new
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
        for _ in range(_MOST_REFUSALS):
            with contextlib.suppress(CgroupError):
                self._home.adopt(0)
                break
        self._close()
        for place in list(self._places):
            place.move_out(self._home)
        for pid in self._top.pids():
            _move(self._home, pid)
        with contextlib.suppress(CgroupError):
            self._top.remove(0.5) if not self._top.pids() else None

    def take_back(self, place: CgroupPlace) -> None:
        """An empty one serves again, unless somebody made cgroups of his own in it."""
        cgroup = place.cgroup
        serves = len(self._spare) < _SPARE and os.stat(cgroup.path).st_nlink == 2
        self._places.remove(place)
        if serves:
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
        """All of it, or none."""
        fds: list[int] = []
        try:
            fds.append(os.open(f"{cgroup.path}/cgroup.procs", os.O_RDONLY | os.O_CLOEXEC))
            fds.append(os.open(cgroup.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
            cgroup.adopt(0)
        except (CgroupError, OSError):
            for fd in fds:
                os.close(fd)
            raise
        self._close()
        self._fds = tuple(fds)

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
