"""What a fixture holds: the pids that can be reached from it by way of objects, without running any code of theirs.

A pool that a session's fixture made may grow a worker while a test runs: it was started in the test's time, but it is
the fixture that keeps it and ends it. It is the fixture's if its Popen, or any object that has its `pid`, is within
reach of the fixture's value, of the variables of its generator, or of those of its finalizers.
"""

from __future__ import annotations

import gc
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

#: as many objects are looked at; a value that reaches more holds everything, and so says nothing
MOST = 50_000
_ENDS = (str, bytes, bytearray, int, float, complex, type, types.ModuleType, types.CodeType, types.BuiltinFunctionType)
_FOREIGN = ("_pytest", "pluggy", "pytest", "xdist", "logging", "importlib")


def held_pids(roots: Iterable[object]) -> set[int]:
    """Every number that an object within reach of *roots* calls its pid; nothing if there is no end to them."""
    found: set[int] = set()
    seen: dict[int, object] = {}  # the objects, too: an id is good as long as its object lives
    todo = list(roots)
    while todo:
        one = todo.pop()
        if id(one) in seen or one is None or isinstance(one, _ENDS) or _is_foreign(one):
            continue
        if len(seen) > MOST:
            return set()
        seen[id(one)] = one
        if isinstance(one, types.FunctionType):
            todo += [*(one.__closure__ or ()), *(one.__defaults__ or ())]  # and not its module
            continue
        names = _attributes(one)
        found.update(pid for name in ("pid", "_pid") if isinstance(pid := names.get(name), int))
        todo += gc.get_referents(one)
    return found


def _attributes(one: object) -> dict[str, Any]:
    try:
        names = object.__getattribute__(one, "__dict__")
    except (AttributeError, TypeError):
        return {}
    return names if isinstance(names, dict) else {}


def _is_foreign(one: object) -> bool:
    """An object of the machinery's, from which everything can be reached."""
    return str(type(one).__module__).partition(".")[0] in _FOREIGN
