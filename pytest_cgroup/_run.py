"""One command from start to end: its input written, its output read, until it has ended, and no longer.

`subprocess.run` waits for the end of the output, which a daemon that was left behind keeps from coming. Here the end of
the command is the end; what it has written by then is read.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from ._isolated import io, os, select, subprocess, time
from ._process import pidfd_open

if TYPE_CHECKING:
    from ._outcome import Outcome
    from ._popen import Popen

_PIECE = 1 << 16


class Completed(subprocess.CompletedProcess[Any]):
    """A `subprocess.CompletedProcess` that knows more.

    Attributes:
        outcome: how the command ended, what the container has used so far, and the processes that the command left.
    """

    def __init__(self, args: Any, returncode: int, stdout: Any, stderr: Any, outcome: Outcome) -> None:
        super().__init__(args, returncode, stdout, stderr)
        self.outcome = outcome


class Text:
    """How bytes become text; asked for in one of the ways that `subprocess.run` knows, or not at all."""

    def __init__(self, options: dict[str, Any]) -> None:
        """Takes what is about it out of *options*."""
        text = [options.pop(name, None) for name in ("text", "universal_newlines")]
        self.encoding: str | None = options.pop("encoding", None)
        self.errors: str | None = options.pop("errors", None)
        self.asked = any((*text, self.encoding, self.errors))

    def encode(self, given: str | bytes | None) -> bytes:
        """What the program is to read."""
        if isinstance(given, str):
            if not self.asked:
                raise TypeError("input is text: give text=True, or bytes")
            return given.encode(self.encoding or _locale_encoding(), self.errors or "strict")
        return bytes(given or b"")

    def decode(self, read: bytes | None) -> str | bytes | None:
        """What the program has written."""
        if read is None or not self.asked:
            return read
        text = read.decode(self.encoding or _locale_encoding(), self.errors or "strict")
        return text.replace("\r\n", "\n").replace("\r", "\n")


def _locale_encoding() -> str:
    import locale

    return locale.getpreferredencoding(do_setlocale=False)


class Kept:
    """What a program has written: all of it, or its head and its tail where it is more than *limit* bytes.

    Attributes:
        written: how many bytes the program wrote, as far as they were read.
    """

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self._head = io.BytesIO()
        self._tail = bytearray()
        self.written = 0

    def write(self, piece: bytes) -> None:
        """More of it."""
        self.written += len(piece)
        if self._limit is None:
            self._head.write(piece)
            return
        room = self._limit - self._limit // 2 - self._head.tell()
        self._head.write(piece[:room])
        self._tail += piece[room:]
        if len(self._tail) > 2 * self._limit + _PIECE:  # not at each piece: what is left is moved
            del self._tail[: len(self._tail) - self._limit // 2]

    def getvalue(self) -> bytes:
        """What was kept, with a line that says how much is missing."""
        limit = self._limit
        if limit is None or self.written <= limit:
            return self._head.getvalue() + bytes(self._tail)
        tail = bytes(self._tail[len(self._tail) - limit // 2 :])
        return self._head.getvalue() + b"\n[%d bytes left out]\n" % (self.written - limit) + tail


def talk(
    process: Popen, given: bytes, timeout: float | None, limit: int | None = None
) -> tuple[bytes | None, bytes | None, bool]:
    """Write *given*, read stdout and stderr where they are pipes, until *process* has ended; whether it has in time.

    Of each of the two *limit* bytes are kept.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    read = {pipe.fileno(): Kept(limit) for pipe in (process.stdout, process.stderr) if pipe is not None}
    outputs = [None if pipe is None else read[pipe.fileno()] for pipe in (process.stdout, process.stderr)]
    end, own_end = _end_of(process)
    poll = select.poll()
    for fd in (*read, *([end] if end is not None else ())):
        poll.register(fd, select.POLLIN)
    if process.stdin is not None:
        os.set_blocking(process.stdin.fileno(), False)
        poll.register(process.stdin.fileno(), select.POLLOUT)
    rest = memoryview(given)
    in_time = True
    try:
        ended = end is None
        while not ended:
            wait = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
            ready = poll.poll(wait)
            if not ready and deadline is not None and time.monotonic() >= deadline:
                in_time = False
                break
            for fd, _ in ready:
                if fd == end:
                    ended = True
                elif fd in read:
                    if not (piece := os.read(fd, _PIECE)):
                        poll.unregister(fd)
                    read[fd].write(piece)
                else:
                    rest = _write(process, rest, poll)
        if ended:
            process.wait()
        for fd, output in read.items():
            _drain(fd, output)
    finally:
        if own_end and end is not None:
            os.close(end)
        _close(process)
    stdout, stderr = (None if output is None else output.getvalue() for output in outputs)
    return stdout, stderr, in_time


def _end_of(process: Popen) -> tuple[int | None, bool]:
    """A descriptor that is readable once the process has ended, and whether it is to be closed; None: it has."""
    if process.told is not None:
        return process.told, False
    return (pidfd_open(process.pid), True) if process.poll() is None else (None, False)


def _write(process: Popen, rest: memoryview, poll: select.poll) -> memoryview:
    assert process.stdin is not None
    fd = process.stdin.fileno()
    try:
        rest = rest[os.write(fd, rest[:_PIECE]) :] if rest else rest
    except BlockingIOError:
        return rest
    except BrokenPipeError:  # it does not want to read more, which is its right
        rest = rest[:0]
    if not rest:
        poll.unregister(fd)
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
    return rest


def _drain(fd: int, output: Kept) -> None:
    """What is there already; no more than was there at the end, whoever goes on writing."""
    os.set_blocking(fd, False)
    most = 1 << 20  # the largest pipe that a process without privilege can make
    with contextlib.suppress(BlockingIOError):
        while most > 0 and (piece := os.read(fd, min(_PIECE, most))):
            output.write(piece)
            most -= len(piece)


def _close(process: Popen) -> None:
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
