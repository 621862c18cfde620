"""The limits of a container that are kept from outside: of time, and of memory where the kernel does not end it all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._isolated import os, time

if TYPE_CHECKING:
    from ._backends import Tree
    from ._spec import Spec

#: after the word that a cgroup above ran out, for so long the kernel's choice may fall on a process in here, in seconds
_SUSPECT_SECONDS = 1.0


class Watched:
    """Says when to look, and what is due then. Its clock runs from `start` on."""

    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        self._started_at = 0.0
        self._deadline: float | None = None
        self._paused_at: float | None = None
        self._suspect_until = 0.0

    def start(self) -> None:
        self._started_at = time.monotonic()
        if self._spec.timeout is not None:
            self._deadline = self._started_at + self._spec.timeout

    @property
    def wall_seconds(self) -> float | None:
        """Since the start; None before it."""
        return time.monotonic() - self._started_at if self._started_at else None

    def pause(self) -> None:
        """`timeout` and `cpu_time` stand still: a person is looking at it in a debugger."""
        if self._paused_at is None:
            self._paused_at = time.monotonic()

    def resume(self) -> None:
        """They go on."""
        if self._paused_at is not None and self._deadline is not None:
            self._deadline += time.monotonic() - self._paused_at
        self._paused_at = None

    def suspect(self) -> None:
        """A cgroup above ran out of memory, and the kernel's choice, which comes next, may be in here."""
        self._suspect_until = time.monotonic() + _SUSPECT_SECONDS

    def seconds_left(self, tree: Tree) -> list[float]:
        """For so long nothing is due, by each limit that there is."""
        now = time.monotonic()
        waits = [] if self._deadline is None or self._paused_at is not None else [self._deadline - now]
        if self._spec.cpu_time is not None and self._paused_at is None:
            left = self._spec.cpu_time - (tree.cpu_seconds() or 0.0)
            waits.append(max(0.01, left / (os.cpu_count() or 1)))  # no sooner can it be used up
        if tree.watch_interval is not None:
            waits.append(tree.watch_interval)
        if now < self._suspect_until:
            waits.append(0.01)
        return waits

    def due(self, tree: Tree) -> str | None:
        """Which limit is reached, as `Outcome.ended` has it."""
        if tree.watch_interval is not None and tree.over_limit():
            return "oom"
        if time.monotonic() < self._suspect_until and (oom := tree.oom()):
            return oom
        if self._paused_at is not None:
            return None
        if self._deadline is not None and time.monotonic() >= self._deadline:
            return "timeout"
        if self._spec.cpu_time is not None and (tree.cpu_seconds() or 0.0) >= self._spec.cpu_time:
            return "cpu-time"
        return None
