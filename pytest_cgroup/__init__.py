"""Containers for tests: every test, and every process it starts, in a cgroup and namespaces of its own."""

from ._outcome import Leak, Outcome, Usage
from ._spec import Spec
from .exceptions import CgroupError, ContainedWarning, ContainerError, NotOffered, SpecError

__version__ = "0.1.0"

__all__ = [
    "CgroupError",
    "ContainedWarning",
    "ContainerError",
    "Leak",
    "NotOffered",
    "Outcome",
    "Spec",
    "SpecError",
    "Usage",
]
