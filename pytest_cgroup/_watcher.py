"""The thread that ends a container at its deadline, or where memory ran out and the kernel does not do it."""

from __future__ import annotations

import os
import select
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._backends import Tree
    from ._spec import Spec

#: after the word that a cgroup above ran out, for so long the kernel's choice may fall on a process in here, in seconds
_SUSPECT_SECONDS = 1.0


def needed(spec: Spec, tree: Tree) -> bool:
    """Whether there is anything to watch."""
    return (
        spec.timeout is not None
        or spec.cpu_time is not None
        or tree.watch_interval is not None
        or (tree.oom_fd is not None and spec.oom_group)
    )


class Watcher(threading.Thread):
    """Sleeps in one poll(2) until something is due. *kill* is called once, with the cause, in this thread."""

    def __init__(self, spec: Spec, tree: Tree, kill: Callable[[str], None]) -> None:
        super().__init__(name="pytest-cgroup watcher", daemon=True)
        self._spec = spec
        self._tree = tree
        self._kill = kill
        self._deadline = None if spec.timeout is None else time.monotonic() + spec.timeout
        self._suspect_until = 0.0
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)

    def stop(self) -> None:
        """Let it end, and wait for it."""
        os.eventfd_write(self._wake, 1)
        if self is not threading.current_thread():
            self.join()
        os.close(self._wake)

    def run(self) -> None:
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        if self._tree.oom_fd is not None and self._spec.oom_group:
            poll.register(self._tree.oom_fd, select.POLLIN)
        while True:
            for fd, _ in poll.poll(self._milliseconds()):
                if fd == self._wake:
                    return
                if self._tree.out_of_memory():
                    return self._kill("oom")
                self._suspect_until = time.monotonic() + _SUSPECT_SECONDS
            if (cause := self._due()) is not None:
                return self._kill(cause)

    def _due(self) -> str | None:
        tree, now = self._tree, time.monotonic()
        if tree.watch_interval is not None and tree.over_limit():
            return "oom"
        if now < self._suspect_until and (oom := tree.oom()):
            return oom
        if self._deadline is not None and now >= self._deadline:
            return "timeout"
        if self._spec.cpu_time is not None and (tree.cpu_seconds() or 0.0) >= self._spec.cpu_time:
            return "cpu-time"
        return None

    def _milliseconds(self) -> float | None:
        now = time.monotonic()
        waits = [] if self._deadline is None else [self._deadline - now]
        if self._spec.cpu_time is not None:
            left = self._spec.cpu_time - (self._tree.cpu_seconds() or 0.0)
            waits.append(max(0.01, left / (os.cpu_count() or 1)))  # no sooner can it be used up
        if self._tree.watch_interval is not None:
            waits.append(self._tree.watch_interval)
        if now < self._suspect_until:
            waits.append(0.01)
        return max(0.0, min(waits)) * 1000 if waits else None
