"""The one thread that looks after all daemons of this process: their output, their ends, and when to start them again.

It sleeps in one poll(2), is there as long as a daemon is, and nothing that it calls may wait for a daemon.
"""

from __future__ import annotations

import collections
import contextlib
import heapq
import itertools
import logging
import selectors
from typing import TYPE_CHECKING

from ._isolated import are_threads_replaced, os, threading, time
from .exceptions import ContainerError

if TYPE_CHECKING:
    from collections.abc import Callable

_JOIN_SECONDS = 10.0
_count = itertools.count()


class Timer:
    """Something that is to be called at a time, unless it is cancelled."""

    def __init__(self, function: Callable[[], object]) -> None:
        self.function = function
        self.cancelled = False

    def cancel(self) -> None:
        """It is not called, if it is not called already."""
        self.cancelled = True


class Supervisor:
    """Made by `enter`. What it is given is called in its thread."""

    def __init__(self) -> None:
        if are_threads_replaced():
            raise ContainerError(
                "a daemon is looked after in a thread, and threads are greenlets here (gevent or eventlet did that)",
                operation="daemon",
                remedy="start it with popen(), or leave threads as they are: monkey.patch_all(thread=False)",
            )
        self.users = 0
        self._todo: collections.deque[Callable[[], object]] = collections.deque()
        self._timers: list[tuple[float, int, Timer]] = []
        self._selector = selectors.PollSelector()
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._selector.register(self._bell, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="pytest-cgroup supervisor", daemon=True)
        self._thread.start()

    # from any thread

    def call(self, function: Callable[[], object]) -> None:
        """Call *function* soon. Who calls has entered, and not left: it lives as long."""
        self._todo.append(function)
        os.eventfd_write(self._bell, 1)

    def call_later(self, seconds: float, function: Callable[[], object]) -> Timer:
        """Call *function* in so many seconds."""
        timer = Timer(function)
        due = time.monotonic() + seconds
        self.call(lambda: heapq.heappush(self._timers, (due, next(_count), timer)))
        return timer

    def join(self) -> None:
        """Wait for its end, which is due."""
        if self._thread is not threading.current_thread():
            self._thread.join(_JOIN_SECONDS)

    # in its thread

    def watch(self, fd: int, function: Callable[[], object]) -> None:
        """Call *function* whenever *fd* is readable, or at its end."""
        self._selector.register(fd, selectors.EVENT_READ, function)

    def unwatch(self, fd: int) -> None:
        """No longer."""
        with contextlib.suppress(KeyError):
            self._selector.unregister(fd)

    def _run(self) -> None:
        while not self._is_over():
            for key, _ in self._selector.select(self._seconds_left()):
                if key.fd == self._bell:
                    with contextlib.suppress(BlockingIOError):
                        os.eventfd_read(self._bell)
                elif key.fd in self._selector.get_map():  # what was called before may have closed it
                    _call(key.data)
            while self._todo:
                _call(self._todo.popleft())
            while self._timers and self._timers[0][0] <= time.monotonic():
                timer = heapq.heappop(self._timers)[2]
                if not timer.cancelled:
                    _call(timer.function)
        self._selector.close()
        os.close(self._bell)

    def _seconds_left(self) -> float | None:
        return max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None

    def _is_over(self) -> bool:
        with _lock:
            return not (self.users or self._todo)


def _call(function: Callable[[], object]) -> None:
    try:
        function()
    except Exception:  # one daemon's trouble is no reason to leave the others alone
        logging.getLogger("pytest_cgroup").exception("in the supervisor of daemons")


_lock = threading.Lock()
_current: Supervisor | None = None


def enter() -> Supervisor:
    """This process's supervisor, for somebody who will `leave`."""
    global _current
    with _lock:
        if _current is None:
            _current = Supervisor()
        _current.users += 1
        return _current


def leave(supervisor: Supervisor) -> None:
    """Somebody has no use for it any more; without anybody it ends."""
    global _current
    with _lock:
        supervisor.users -= 1
        if supervisor.users == 0:
            if _current is supervisor:
                _current = None  # it ends, whoever comes now
            supervisor.call(lambda: None)  # before it can end, and its descriptor be another's


def rest(supervisor: Supervisor) -> None:
    """Where nobody is left, wait until its thread and its descriptors are gone."""
    with _lock:
        last = supervisor.users == 0
    if last:
        supervisor.join()


def _after_fork() -> None:
    """In a forked child there is no such thread."""
    global _current, _lock
    _current, _lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):  # the package imports elsewhere, too
    os.register_at_fork(after_in_child=_after_fork)
