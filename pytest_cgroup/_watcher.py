"""The thread that ends a container at its deadline, or where memory ran out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._isolated import os, select, threading
from ._watched import Watched

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._backends import Tree
    from ._spec import Spec


def needed(spec: Spec, tree: Tree) -> bool:
    """Whether there is anything to watch."""
    return (
        spec.timeout is not None
        or spec.cpu_time is not None
        or tree.watch_interval is not None
        or (spec.oom_group and tree.oom_bell() is not None)
    )


class Watcher(threading.Thread):
    """Sleeps in one poll(2) until something is due. *kill* is called once, with the cause, in this thread."""

    def __init__(self, spec: Spec, tree: Tree, kill: Callable[[str], None]) -> None:
        super().__init__(name="pytest-cgroup watcher", daemon=True)
        self._spec = spec
        self._tree = tree
        self._kill = kill
        self._watched = Watched(spec)
        self._watched.start()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        self._stopped = False

    def look_again(self, spec: Spec) -> None:
        """The limits are others now."""
        self._spec = spec
        os.eventfd_write(self._wake, 1)

    def stop(self) -> None:
        """Let it end, and wait for it."""
        self._stopped = True
        os.eventfd_write(self._wake, 1)
        if self is not threading.current_thread():
            self.join()
        os.close(self._wake)

    def run(self) -> None:
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        while True:
            if self._spec.oom_group and (bell := self._tree.oom_bell()) is not None:
                poll.register(*bell)
            for fd, _ in poll.poll(self._milliseconds()):
                if fd == self._wake:
                    if self._stopped:
                        return
                    os.eventfd_read(fd)
                    break
                if self._tree.out_of_memory():
                    return self._kill(self._tree.oom() or "oom")
                if fd == self._tree.oom_fd:  # v1's, which tells of a cgroup above, too; v2's rings also for less
                    self._watched.suspect()
            if (cause := self._watched.due(self._tree)) is not None:
                return self._kill(cause)

    def _milliseconds(self) -> float | None:
        waits = self._watched.seconds_left(self._tree)
        return max(0.0, min(waits)) * 1000 if waits else None
