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

from typing import TYPE_CHECKING, Protocol

from .._isolated import signal, time
from .._process import signal_members, wait_gone
from ..exceptions import CgroupError

if TYPE_CHECKING:
    from collections.abc import Callable

    from .._cgroup import Cgroup


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


def open_ground(session: Cgroup | None, announce: Callable[[], None] | None = None) -> Ground:
    """Cgroups below *session* where pytest can step into them, else the process table."""
    from .process import ProcessGround

    if session is None:
        return ProcessGround(announce=announce)
    from .cgroup import CgroupGround

    try:
        return CgroupGround(session)
    except (CgroupError, OSError) as error:
        return ProcessGround(str(error), announce)


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
