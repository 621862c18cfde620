"""What a test prints: where it goes on the terminal, and how pytest captures it."""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING, Any

import pytest

from .._isolated import io, os

if TYPE_CHECKING:
    from collections.abc import Callable


def shares_terminal(config: pytest.Config) -> bool:
    """Whether a test prints where pytest prints: then their lines must come in the order of an uncontained run."""
    from _pytest.capture import TeeCaptureIO

    captures = _captures(config).values()
    if not captures or any(isinstance(capture.tmpfile, TeeCaptureIO) for capture in captures):
        return True
    logging = config.pluginmanager.get_plugin("logging-plugin")
    return bool(config.option.setupshow or config.option.usepdb or (logging is not None and logging._log_cli_enabled()))


def terminal_line(config: pytest.Config) -> str | None:
    """What pytest has printed on the terminal's current line: where it goes on depends on that."""
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    return None if terminal is None else terminal._tw._current_line


def set_terminal_line(config: pytest.Config, line: object) -> None:
    """Take over `terminal_line` from another process that prints on the same terminal."""
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    if terminal is not None and isinstance(line, str):
        terminal._tw._current_line = line


def pending_output(config: pytest.Config) -> dict[str, bytes]:
    """What pytest has captured of the set-up so far and not yet read: a fork must not lose it, nor show it twice."""
    pending = {}
    for name, capture in _captures(config).items():
        tmpfile = capture.tmpfile
        if isinstance(tmpfile, io.TextIOWrapper) and (file := _descriptor(tmpfile)) is not None:
            if size := os.fstat(file).st_size:
                pending[name] = os.pread(file, size, 0)
        elif text := tmpfile.getvalue():
            pending[name] = text.encode(errors="replace")
    return pending


def capture_into(config: pytest.Config, files: dict[str, int], snap: Callable[[str], str]) -> None:
    """In the forked child: capture into *files* (``{"out": fd, "err": fd}``) instead of what is shared with pytest.

    ``snap(name)`` then gives what came since it was last asked. pytest's own capture goes on as before.
    """
    from _pytest.capture import FDCapture, TeeCaptureIO

    for name, capture in _captures(config).items():
        fd = files[name]
        resumed = capture._state in ("started", "resumed") and capture._state != "suspended"
        if isinstance(capture, FDCapture):
            os.dup2(fd, capture.tmpfile.fileno(), inheritable=False)
            if resumed:
                os.dup2(fd, capture.targetfd)
        else:
            tee = capture.tmpfile._other if isinstance(capture.tmpfile, TeeCaptureIO) else None
            capture.tmpfile = _TextFile(fd, tee)
            if resumed:
                setattr(sys, capture.name, capture.tmpfile)
        capture.snap = functools.partial(snap, name)


class _TextFile(io.TextIOWrapper):
    """Text straight into a descriptor, and to the terminal as well under ``--capture=tee-sys``."""

    def __init__(self, fd: int, tee: Any) -> None:
        super().__init__(
            io.FileIO(os.dup(fd), "w"),
            encoding="utf-8",
            errors="replace",
            newline="",
            write_through=True,
        )
        self._tee = tee

    def write(self, text: str) -> int:
        if self._tee is not None:
            self._tee.write(text)
            self._tee.flush()  # or a crash would take it along
        return super().write(text)


def _captures(config: pytest.Config) -> dict[str, Any]:
    """pytest's own captures of stdout and stderr, by "out" and "err"; none under ``-s``."""
    manager = config.pluginmanager.get_plugin("capturemanager")
    if manager is None or not manager.is_globally_capturing():
        return {}
    capturing = manager._global_capturing
    found = {"out": capturing.out, "err": capturing.err}
    return {name: capture for name, capture in found.items() if hasattr(capture, "tmpfile")}


def _descriptor(file: io.TextIOWrapper) -> int | None:
    try:
        return file.fileno()
    except (OSError, ValueError):
        return None
