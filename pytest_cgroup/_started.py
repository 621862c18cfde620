"""Where a contained test started what it left behind: written down inside, told at its end, traced from outside."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING

from ._origins import Origin, Origins, new_list, placed, trace
from ._ownership import numbers_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from ._outcome import Leak

    #: pid, place, command line, seconds since boot
    Start = tuple[int, str | None, Sequence[str], float]

_MOST_TOLD = 100  # the latest
_MOST_CHARACTERS = 10_000  # of a command line; nothing is told of a longer one


class Starts:
    """In the test's process: it owns all that is started there. Paths below *root* are shown relative to it."""

    ended = False

    def __init__(self, root: str) -> None:
        self.origins = new_list()
        Origins(lambda: self, root).start()

    def told(self) -> list[Start]:
        """For `as_told`, in what JSON can hold."""
        latest = list(self.origins)[-_MOST_TOLD:]
        return [
            (one.pid, one.place, one.argv if sum(map(len, one.argv)) < _MOST_CHARACTERS else (), one.boottime)
            for one in latest
        ]


def as_told(
    leaks: list[Leak], family: Mapping[int, tuple[str, ...]], started: Iterable[Start], *, own_numbers: bool
) -> list[Leak]:
    """The leaks, each with its parents, and where it was started, or the ancestor of it that Python started.

    Args:
        family: the parents of each, as the test's process saw them.
        started: what `Starts.told` said, its shape looked at: a test can write into the pipe.
        own_numbers: the test has a pid namespace, and knows its processes by other numbers than we do.
    """
    outside = {_inside(leak.pid): leak.pid for leak in leaks} if own_numbers else None
    origins = [
        Origin(place, tuple(argv), None, boottime, (), False, pid if outside is None else outside.get(pid, 0))
        for pid, place, argv, boottime in started
    ]
    leaks = [replace(leak, parents=family.get(leak.pid, leak.parents)) for leak in leaks]
    return [leak if (traced := trace(leak.pid, origins)) is None else placed(leak, traced) for leak in leaks]


def _inside(pid: int) -> int:
    """Its number in its own pid namespace; 0 when it is gone."""
    with contextlib.suppress(OSError):
        return next(reversed(numbers_of(pid)), 0)
    return 0
