"""What a daemon prints: kept in memory, bounded, for any number of readers, each at a place of its own.

Theory of operation. One thread writes what it has read of the daemon's pipes. The bytes have offsets, from the daemon's
first byte on, and a reader is an offset: it begins with the oldest byte that is kept, and is told what it has missed.
With a *window* nothing is missed: where the slowest reader is so many bytes behind, whoever writes stops reading the
pipe, and the daemon blocks in write(2) once that is full (pipe(7)).
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from ._isolated import threading, time

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: where somebody prints no newline, so many bytes are a line
MAX_LINE = 1 << 16


class Log:
    """The output of one daemon, all of its runs one after the other.

    Args:
        limit: the last so many bytes are kept, at the least.
        window: bytes that may be unread, None for no bound.
        written: called after each piece, in the writer's thread.
    """

    def __init__(self, limit: int, window: int | None, written: Callable[[bytes], object]) -> None:
        self._limit = limit
        self._window = window
        self._written = written
        #: called when a full log is so no longer
        self.resume: Callable[[], object] = lambda: None
        self._changed = threading.Condition()
        self._data = bytearray()
        self._start = 0
        self._ended = False
        self._consumed = 0
        self._readers: dict[object, int] = {}

    @property
    def size(self) -> int:
        """How many bytes came so far, kept or not."""
        with self._changed:
            return self._start + len(self._data)

    @property
    def full(self) -> bool:
        """Whether its window is: nothing more shall be read of the pipe."""
        with self._changed:
            return self._is_full()

    def _is_full(self) -> bool:
        return self._window is not None and self._start + len(self._data) - self._consumed >= self._window

    # writing

    def write(self, piece: bytes) -> None:
        """More of it."""
        with self._changed:
            self._data += piece
            if len(self._data) > 2 * self._limit:  # not at each piece: what is left is moved
                surplus = len(self._data) - self._limit
                if self._window is not None:
                    surplus = min(surplus, max(0, self._consumed - self._start))
                del self._data[:surplus]
                self._start += surplus
            self._changed.notify_all()
        self._written(piece)

    def close(self) -> None:
        """Nothing more comes."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def reopen(self) -> None:
        """More will come."""
        with self._changed:
            self._ended = False

    # reading

    def since(self, offset: int) -> tuple[bytes, int]:
        """What came from *offset* on, as far as it is kept, and the offset where that ends."""
        with self._changed:
            return bytes(self._data[max(0, offset - self._start) :]), self._start + len(self._data)

    def tail(self, lines: int, since: int = 0) -> str:
        """The last *lines* lines, of what came from the offset *since* on."""
        data = self.since(since)[0].rstrip(b"\n")
        return "\n".join(map(_text, data.split(b"\n")[-lines:])) if lines > 0 and data else ""

    def lines(self, *, follow: bool, timeout: float | None) -> Iterator[str]:
        """Its lines, from the oldest that is kept on; see `Daemon.lines`."""
        deadline = None if timeout is None else time.monotonic() + timeout
        me, at = object(), 0
        try:
            while True:
                with self._changed:
                    self._readers.setdefault(me, at)
                    found = self._next(at, final=self._ended or not follow)
                    if found is None:
                        left = None if deadline is None else deadline - time.monotonic()
                        if not follow or self._ended or (left is not None and left <= 0):
                            return
                        self._changed.wait(left)
                        continue
                    line, at = found
                    was_full = self._is_full()
                    self._readers[me] = at
                    self._consumed = max(self._consumed, min(self._readers.values()))
                    wanted = was_full and not self._is_full()
                if wanted:
                    self.resume()
                yield line
        finally:
            with self._changed:
                self._readers.pop(me, None)

    def _next(self, at: int, *, final: bool) -> tuple[str, int] | None:
        """The line at the offset *at*, and where the next one begins; None where it is not complete."""
        if at < self._start:
            return f"[{self._start - at} bytes left out]", self._start
        begin, most = at - self._start, min(MAX_LINE, self._window or MAX_LINE)
        end = self._data.find(b"\n", begin, begin + most)
        if end >= 0:
            return _text(self._data[begin:end]), self._start + end + 1
        piece = self._data[begin : begin + most]
        if piece and (final or len(piece) == most):
            return _text(piece), at + len(piece)
        return None


class ToLogging:
    """Hands the lines of a daemon on to `logging`.

    Args:
        logger: whose.
        level: logging's number.
        prefix: stands before each line.
        transform: makes another line of it, and None is left out.
    """

    def __init__(
        self, logger: logging.Logger, level: int, prefix: str, transform: Callable[[str], str | None] | None
    ) -> None:
        self._logger = logger
        self._level = level
        self._prefix = prefix
        self._transform = transform
        self._rest = b""

    def write(self, piece: bytes) -> None:
        """Log the lines that are complete."""
        *lines, self._rest = (self._rest + piece).split(b"\n")
        if len(self._rest) >= MAX_LINE:
            lines, self._rest = [*lines, self._rest], b""
        for line in lines:
            self._say(_text(line))

    def flush(self) -> None:
        """Nothing more comes of a line that was begun."""
        rest, self._rest = self._rest, b""
        if rest:
            self._say(_text(rest))

    def _say(self, line: str) -> None:
        try:
            told = line if self._transform is None else self._transform(line)
        except Exception as error:  # the transform is the user's, and the daemons of others go on
            told = f"{line} [log_transform: {type(error).__name__}: {error}]"
        if told is not None:
            self._logger.log(self._level, "%s%s", self._prefix, told)


def _text(line: bytes | bytearray) -> str:
    return line.decode(errors="replace").removesuffix("\r")
