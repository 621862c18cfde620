"""Containers for tests: every test, and every process it starts, in a cgroup and namespaces of its own."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from .exceptions import (
    CgroupError,
    ContainedWarning,
    ContainerError,
    ContainerTimeout,
    DaemonError,
    NotOffered,
    SpecError,
)

if TYPE_CHECKING:
    from . import ready
    from ._daemon import Daemon
    from ._events import Event
    from ._library import ContainedFactory, Container, containers
    from ._network import Network
    from ._outcome import Leak, Outcome, Usage
    from ._run import Completed
    from ._slice import Slice
    from ._spec import Spec

__version__ = "0.1.0"

__all__ = [
    "CgroupError",
    "Completed",
    "ContainedFactory",
    "ContainedWarning",
    "Container",
    "ContainerError",
    "ContainerTimeout",
    "Daemon",
    "DaemonError",
    "Event",
    "Leak",
    "Network",
    "NotOffered",
    "Outcome",
    "Slice",
    "Spec",
    "SpecError",
    "Usage",
    "containers",
    "ready",
]

#: where to find what is imported when it is first asked for: a run of pytest without a container has no use for it
_LATER = {
    "Completed": "_run",
    "ContainedFactory": "_library",
    "Container": "_library",
    "Daemon": "_daemon",
    "Event": "_events",
    "Leak": "_outcome",
    "Network": "_network",
    "Outcome": "_outcome",
    "Slice": "_slice",
    "Spec": "_spec",
    "Usage": "_outcome",
    "containers": "_library",
}


def __getattr__(name: str) -> object:
    if name == "ready":
        return import_module(f"{__name__}.ready")
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
