"""What happens to a container, as it happens: told by the kernel to who polls, and by whoever ends the container.

Theory of operation. The kernel counts in files, and wakes up who polls them for POLLPRI (kernfs_notify; cgroup-v2.rst,
"Core Interface Files" and "Memory Interface Files"): ``cgroup.events``, ``memory.events``, ``pids.events``. v1 has no
``memory.events``, and tells of each out-of-memory on an eventfd (cgroup-v1/memory.rst, section 10). Who iterates polls
by itself, so nobody pays who does not look; and since it is counters that are read, who comes late misses nothing. What
was not read before the files went is in the outcome.
"""

from __future__ import annotations

import contextlib
import dataclasses
from typing import TYPE_CHECKING, Any, Literal

from ._cgroup_v1 import controller_of, oom_eventfd
from ._isolated import os, select, threading, time
from ._kernel_text import flat_keyed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from ._cgroup import Cgroup
    from ._outcome import Outcome, Usage

__all__ = ["Event", "Events", "Kind"]

Kind = Literal["started", "oom", "pids_max", "memory_high", "populated", "stopped"]
#: kind of event, the file, and those of its keys whose rise is that event
_COUNTERS: tuple[tuple[Kind, str, tuple[str, ...]], ...] = (
    ("oom", "memory.events", ("oom", "oom_kill")),
    ("memory_high", "memory.events", ("high",)),
    ("pids_max", "pids.events", ("max",)),
)
_FILES = ("cgroup.events", "memory.events", "pids.events")
_IN_USAGE: dict[Kind, str] = {"oom": "oom_kill", "memory_high": "memory_high_hits", "pids_max": "pids_max_hits"}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened to a container.

    Attributes:
        kind: ``"started"``; ``"oom"``, ``"pids_max"`` and ``"memory_high"``, of a limit that was hit; ``"populated"``,
            of the first process that comes, and of the last that goes; ``"stopped"``, the last.
        time: when it was noticed, in seconds of `time.monotonic`.
        detail: the kernel's words and numbers: ``{"oom_kill": 1}``, ``{"max": 3}`` and ``{"high": 12}`` are how often
            so far, ``{"populated": 0}`` that nobody is left, ``{"ended": "timeout"}`` is `Outcome.ended`.
    """

    kind: Kind
    time: float
    detail: Mapping[str, int | str] = dataclasses.field(default_factory=dict)


class Events:
    """What is to be told of one container.

    Args:
        cgroup: where the kernel counts; None where there is none, and then it tells of nothing.
        outcome: what came of it, once it has ended.
    """

    def __init__(self, cgroup: Cgroup | None, outcome: Callable[[], Outcome | None]) -> None:
        self._cgroup = cgroup
        self._outcome = outcome
        self._started_at = time.monotonic()
        self._stopped_at = 0.0
        self._lock = threading.Lock()
        self._bells: set[int] = set()

    def stopped(self) -> None:
        """The outcome is there: tell whoever polls."""
        with self._lock:
            self._stopped_at = time.monotonic()
            for bell in self._bells:
                os.eventfd_write(bell, 1)

    def follow(self, timeout: float | None) -> Iterator[Event]:
        """All that happens, from the start of the container to its end, or for *timeout* seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        yield Event(kind="started", time=self._started_at)
        with contextlib.ExitStack() as stack:
            # before it is asked whether the container has ended: who ends it afterwards rings
            poll, bell = select.poll(), self._hang_bell(stack)
            poll.register(bell, select.POLLIN)
            seen = _Seen()
            told = _Told(self._cgroup, stack, poll) if self._cgroup is not None and self._outcome() is None else None
            while (outcome := self._outcome()) is None:
                if told is not None:
                    yield from seen.news(told.read())
                if deadline is not None and time.monotonic() >= deadline:
                    return
                poll.poll(None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000)
            yield from seen.rest(outcome.usage, at=self._stopped_at)
            yield Event(kind="stopped", time=self._stopped_at, detail={"ended": outcome.ended})

    def _hang_bell(self, stack: contextlib.ExitStack) -> int:
        bell = os.eventfd(0, os.EFD_CLOEXEC)
        with self._lock:
            self._bells.add(bell)
        stack.callback(self._take_down, bell)
        return bell

    def _take_down(self, bell: int) -> None:
        with self._lock:
            self._bells.discard(bell)
        os.close(bell)


class _Told:
    """The files of one cgroup, open, and polled."""

    def __init__(self, cgroup: Cgroup, stack: contextlib.ExitStack, poll: select.poll) -> None:
        self._files: dict[str, int] = {}
        for name in _FILES:
            if (fd := _open(cgroup, name)) is not None:
                stack.callback(os.close, fd)
                self._files[name] = fd
                poll.register(fd, select.POLLPRI)
        self._ooms: list[int] = []
        if (directory := cgroup.controllers.get("memory")) is not None:
            # one that runs out above is told here, too: see `CgroupTree.out_of_memory`
            for path in (directory, os.path.dirname(directory)):
                if (fd := oom_eventfd(path)) is not None:
                    stack.callback(os.close, fd)
                    self._ooms.append(fd)
            if self._ooms:
                poll.register(self._ooms[0], select.POLLIN)
        self._counts = [0, 0]

    def read(self) -> dict[str, dict[str, int]]:
        """By file what stands there now; one that is gone is left out."""
        found = {}
        for name, fd in self._files.items():
            with contextlib.suppress(OSError):
                found[name] = flat_keyed(os.pread(fd, 4096, 0).decode())
        for place, fd in enumerate(self._ooms):
            with contextlib.suppress(BlockingIOError):
                self._counts[place] += os.eventfd_read(fd)
        if self._counts[0] > self._counts[1]:
            found["memory.events"] = {"oom": self._counts[0] - self._counts[1]}
        return found


def _open(cgroup: Cgroup, name: str) -> int | None:
    for directory in (cgroup.controllers.get(controller_of(name)), cgroup.unified):
        with contextlib.suppress(OSError):
            if directory is not None:
                return os.open(f"{directory}/{name}", os.O_RDONLY | os.O_CLOEXEC)
    return None


class _Seen:
    """What has been told of already."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[Kind, str], int] = {}
        self._populated = 0

    def news(self, found: Mapping[str, Mapping[str, int]]) -> Iterator[Event]:
        """Those of *found*."""
        now = time.monotonic()
        for kind, file, keys in _COUNTERS:
            numbers = {key: found[file][key] for key in keys if key in found.get(file, {})}
            if any(number > self._numbers.get((kind, key), 0) for key, number in numbers.items()):
                self._numbers |= {(kind, key): number for key, number in numbers.items()}
                yield Event(kind=kind, time=now, detail=dict(numbers))
        populated = found.get("cgroup.events", {}).get("populated", self._populated)
        if populated != self._populated:
            self._populated = populated
            yield Event(kind="populated", time=now, detail={"populated": populated})

    def rest(self, usage: Usage, *, at: float) -> Iterator[Event]:
        """What was counted in all, and is not told yet."""
        known: dict[str, Any] = {kind: getattr(usage, field) or 0 for kind, field in _IN_USAGE.items()}
        for kind, _, keys in _COUNTERS:
            if known[kind] and known[kind] > max(self._numbers.get((kind, key), 0) for key in keys):
                yield Event(kind=kind, time=at, detail={keys[-1]: known[kind]})
        if self._populated:
            yield Event(kind="populated", time=at, detail={"populated": 0})
