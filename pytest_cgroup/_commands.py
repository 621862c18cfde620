"""Commands that are run to their end in one container, and what came of each of them alone."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ._container import KILL_SECONDS, SETTLE_SECONDS
from ._isolated import signal, subprocess, threading, time
from ._process import descendants, signal_members, wait_gone
from ._run import Text, talk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ._popen import Popen


@dataclass(frozen=True, slots=True)
class Ended:
    """A command that has ended.

    Attributes:
        wall_seconds: how long it took.
        left: pids of what came of it, and lives on.
    """

    process: Popen
    stdout: str | bytes | None
    stderr: str | bytes | None
    wall_seconds: float
    left: list[int]


class Commands:
    """The commands of one container.

    Args:
        start: starts a process in it, of an argv and Popen's options.
        pids: who lives in it.
        alive: the processes that were started in it, and have not ended.
    """

    def __init__(
        self,
        start: Callable[[Any, dict[str, Any]], Popen],
        pids: Callable[[], list[int]],
        alive: Callable[[], list[Popen]],
    ) -> None:
        self._start = start
        self._pids = pids
        self._alive = alive
        self._lock = threading.Lock()
        self._running = self._overlaps = 0

    def run(
        self,
        argv: Any,
        *,
        timeout: float | None,
        input: str | bytes | None,
        capture_output: bool,
        limit: int | None,
        options: dict[str, Any],
    ) -> Ended:
        """Run one: see `Container.run`.

        Raises:
            subprocess.TimeoutExpired: it was killed after *timeout* seconds, with all that came of it.
        """
        text = Text(options)
        if input is not None:
            if options.get("stdin") is not None:
                raise ValueError("stdin and input arguments may not both be used.")
            options["stdin"] = subprocess.PIPE
        if capture_output:
            if options.get("stdout") is not None or options.get("stderr") is not None:
                raise ValueError("stdout and stderr arguments may not be used with capture_output.")
            options["stdout"] = options["stderr"] = subprocess.PIPE
        given = text.encode(input)
        with self._counted():
            begun, before, overlaps = time.monotonic(), set(self._pids()), self._overlaps
            process = self._start(argv, options)

            def born() -> list[int]:
                """What came of it, and of nobody else, and lives."""
                if self._running > 1 or self._overlaps != overlaps or any(p is not process for p in self._alive()):
                    return descendants(process.pid)
                return [pid for pid in self._pids() if pid not in before]

            try:
                out, err, in_time = talk(process, given, timeout, limit)
            except BaseException:
                _end(process, born)
                raise
            if not in_time:
                _end(process, born)
                assert timeout is not None
                raise subprocess.TimeoutExpired(process.args, timeout, output=out, stderr=err)
            left = born()
            if left and not wait_gone(left, SETTLE_SECONDS):
                left = born()
        return Ended(process, text.decode(out), text.decode(err), time.monotonic() - begun, left)

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        with self._lock:
            self._running += 1
            self._overlaps += self._running > 1
        try:
            yield
        finally:
            with self._lock:
                self._running -= 1


def _end(process: Popen, born: Callable[[], list[int]]) -> None:
    """Kill *process* and what came of it: who is stopped forks no more, and its children show whose they are."""
    with contextlib.suppress(OSError):
        process.send_signal(signal.SIGSTOP)
    deadline = time.monotonic() + KILL_SECONDS
    while (left := [pid for pid in born() if pid != process.pid]) and time.monotonic() < deadline:
        signal_members(born, signal.SIGKILL)
        wait_gone(left, 0.5)
    process.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):  # in uninterruptible sleep: the container's end will tell
        process.wait(KILL_SECONDS)
