"""Our own frames, left out of what is shown: a contained test's traceback, and the place that a warning points to."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import types

    import pytest

_US = __name__.partition(".")[0]
_ABOVE_A_TEST = (_US, "_pytest", "pluggy")


def leave_out_own_frames(call: pytest.CallInfo[Any]) -> None:
    """Link the traceback of *call* past our frames between pytest and the test: an uncontained one has none there.

    ``--tb=native`` and ``--full-trace`` show them else, hidden or not.
    The test's own code may well call us, and where it is we who raised, the frames say where.
    """
    last: types.TracebackType | None = getattr(call.excinfo, "tb", None)
    if last is None:  # nothing was raised, or, as where a report came home, it was not raised here
        return
    above = []
    entry = last.tb_next
    while entry is not None and _package(entry) in _ABOVE_A_TEST:
        above.append(entry)
        entry = entry.tb_next
    if entry is None and above and _package(above[-1]) == _US:
        return
    for entry in above:
        if _package(entry) == _US:
            last.tb_next = entry.tb_next
        else:
            last = entry


def depth_of_caller() -> int:
    """How many frames above the caller's the first is that is not ours; none is 0."""
    depth, frame = 0, sys._getframe(1)
    while frame.f_back is not None and _is_ours(frame):
        depth, frame = depth + 1, frame.f_back
    return depth


def _is_ours(frame: types.FrameType) -> bool:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0] == _US


def _package(entry: types.TracebackType) -> str:
    return str(entry.tb_frame.f_globals.get("__name__", "")).partition(".")[0]
