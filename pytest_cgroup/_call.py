"""A function in a forked child inside a container: its value, or its exception, comes back over a pipe.

The child is a copy of this process, with its one thread; it steps into the container before it does anything else
(`_forked`), and it ends without this process's atexit. A leftover of the function's may hold the pipe: so what comes is
framed, and the end of the child is the end.
"""

from __future__ import annotations

import contextlib
import pickle
import struct
import sys
import traceback
from typing import TYPE_CHECKING, Any, NoReturn

from ._isolated import os, select, signal
from .exceptions import ContainerError

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._forked import Forked

_LENGTH = struct.Struct("=Q")
_PIECE = 1 << 16


def call(
    fork: Callable[[Callable[[], NoReturn]], Forked],
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """What *function* returns in a process that *fork* makes.

    Raises:
        ContainerError: the process ended before the function did; or what it raised, or returned, can't be pickled.
        BaseException: what it raised, with its traceback as a note.
    """
    reader, writer = os.pipe()

    def inside() -> NoReturn:
        os.close(reader)
        try:
            answer = _answer(function, args, kwargs)
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(Exception):  # the function may have put anything in their place
                    stream.flush()
            view = memoryview(_LENGTH.pack(len(answer)) + answer)
            while view:
                view = view[os.write(writer, view) :]
        except BaseException as error:
            os.write(
                2, f"pytest-cgroup: {type(error).__name__} in telling what a function returned: {error}\n".encode()
            )
        finally:
            os._exit(0)

    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # or the child would print it, too
            stream.flush()
    try:
        try:
            forked = fork(inside)
        finally:
            os.close(writer)
        try:
            answer = _read(reader, forked)
        except BaseException:
            forked.kill()
            raise
        finally:
            status = forked.wait()
    finally:
        os.close(reader)
    if answer is None:
        raise ContainerError(f"the function did not return: its process {_how(status)}", operation="call")
    return _open(answer)


def _answer(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
    try:
        value = function(*args, **kwargs)
    except BaseException as error:
        text = "".join(traceback.format_exception(error.with_traceback(_below(error))))
        with contextlib.suppress(Exception):
            pickled = pickle.dumps(error)
            if type(pickle.loads(pickled)) is type(error):  # it may be pickled, and not come back
                return pickle.dumps(("raised", pickled, text))
        return pickle.dumps(("text", f"the function raised {type(error).__name__}: {error}", text))
    try:
        return pickle.dumps(("value", pickle.dumps(value), ""))
    except Exception as error:
        why = f"the function returned {_shown(value)}, which can't be pickled: {type(error).__name__}: {error}"
        return pickle.dumps(("text", why, ""))


def _below(error: BaseException) -> Any:
    """Its traceback without our own frame."""
    return error.__traceback__ and error.__traceback__.tb_next


def _shown(value: object) -> str:
    try:
        return repr(value)[:200]
    except Exception:
        return f"an object of {type(value).__name__}"


def _open(answer: bytes) -> Any:
    __tracebackhide__ = True
    kind, content, text = pickle.loads(answer)
    if kind == "text":
        raise ContainerError(content + (f"\n{text}" if text else ""), operation="call")
    value = pickle.loads(content)
    if kind == "value":
        return value
    value.add_note(f"raised in a container:\n{text}")
    raise value


def _read(reader: int, forked: Forked) -> bytes | None:
    """What it has said, whole; None if it has ended before."""
    os.set_blocking(reader, False)
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    poll.register(forked.end, select.POLLIN)
    data, more = bytearray(), True
    while True:
        ended = any(fd == forked.end for fd, _ in poll.poll())
        with contextlib.suppress(BlockingIOError):
            while more:
                data += (piece := os.read(reader, _PIECE))
                more = bool(piece)
                if not more:
                    poll.unregister(reader)  # that alone says nothing of how the process ended
        if len(data) >= _LENGTH.size and len(data) >= _LENGTH.size + (size := _LENGTH.unpack_from(data)[0]):
            return bytes(data[_LENGTH.size : _LENGTH.size + size])
        if ended:
            return None


def _how(status: int | None) -> str:
    if status is None:
        return "went with the one above it, which was killed"
    code = os.waitstatus_to_exitcode(status)
    return f"exited with status {code}" if code >= 0 else f"was killed by {signal.Signals(-code).name}"
