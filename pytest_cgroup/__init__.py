"""Containers for tests: every test, and every process it starts, in a cgroup and namespaces of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._outcome import Leak, Outcome, Usage
from ._spec import Spec
from .exceptions import CgroupError, ContainedWarning, ContainerError, NotOffered, SpecError

if TYPE_CHECKING:
    from ._library import ContainedFactory, Container
    from ._run import Completed

__version__ = "0.1.0"

__all__ = [
    "CgroupError",
    "Completed",
    "ContainedFactory",
    "ContainedWarning",
    "Container",
    "ContainerError",
    "Leak",
    "NotOffered",
    "Outcome",
    "Spec",
    "SpecError",
    "Usage",
]


def __getattr__(name: str) -> object:
    """The library is imported when it is first asked for: a run of pytest without a container has no use for it."""
    if name in ("Container", "ContainedFactory"):
        from . import _library

        return getattr(_library, name)
    if name == "Completed":
        from ._run import Completed

        return Completed
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
