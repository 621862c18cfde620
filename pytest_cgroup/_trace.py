"""Every step told, with paths and values: to the logger ``pytest_cgroup``, and under a switch to stderr.

Many of our processes have no use for `logging`, and shall not pay for it: where nobody has imported it, nobody listens.
"""

from __future__ import annotations

import contextlib
import sys
from typing import Any

from ._isolated import os

#: in the environment: tell it all on stderr
SWITCH = "PYTEST_CGROUP_DEBUG"
_DEBUG = 10
_logger: Any = None


def trace(text: str, *values: object) -> None:
    """Tell a step; *values* go into *text* as `logging` does it, where somebody listens."""
    if listens():
        _logger.debug(text, *values, stacklevel=2)


def warn(text: str, *values: object) -> None:
    """Tell of what went wrong, and does no harm to this run."""
    import logging

    logging.getLogger("pytest_cgroup").warning(text, *values, stacklevel=2)


def listens() -> bool:
    """Whether anybody is told: whoever asked for this logger, and not for all there are, as caplog and --log-level do.

    A test that looks at what is logged finds nothing of ours.
    """
    global _logger
    if _logger is None:
        if (logging := sys.modules.get("logging")) is None or not hasattr(logging, "getLogger"):
            return False
        _logger = logging.getLogger("pytest_cgroup")
    return 0 < _logger.level <= _DEBUG and bool(_logger.isEnabledFor(_DEBUG))


def target(fd: int) -> str:
    """The path that a descriptor was opened by."""
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:  # another /proc, or none
        return f"descriptor {fd}"


#: a copy of the stderr that this process began with, under the switch; it is nobody's output
stderr: int | None = None


def _tell_stderr() -> None:
    """Give the logger a handler that writes to stderr as it is now, whatever captures it later."""
    global stderr
    import logging

    from ._isolated import time

    stderr = fd = os.dup(2)
    mine = _identity(fd)

    class Stderr(logging.Handler):
        """One line a step, in one write, of whichever process it is."""

        def emit(self, record: logging.LogRecord) -> None:
            line = f"pytest-cgroup[{os.getpid()}] {time.monotonic():.6f} {record.getMessage()}\n"
            if _identity(fd) == mine:  # a test that closes all descriptors may have opened others in their place
                with contextlib.suppress(OSError):  # nobody reads
                    os.write(fd, line.encode(errors="backslashreplace"))

    logger = logging.getLogger("pytest_cgroup")
    logger.addHandler(Stderr())
    logger.setLevel(_DEBUG)


def _identity(fd: int) -> tuple[int, int] | None:
    try:
        found = os.fstat(fd)
    except OSError:
        return None
    return found.st_dev, found.st_ino


if os.environ.get(SWITCH, "0") != "0":
    _tell_stderr()
