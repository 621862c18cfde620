"""Who is left in a container at its end, told for a person; that nobody can tell is no reason to say that nobody is."""

from __future__ import annotations

import contextlib
import warnings
from typing import TYPE_CHECKING

from ._description import describe_all
from ._exempt import is_launcher
from ._isolated import os
from ._outcome import Leak
from .exceptions import ContainedWarning, ContainerError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._backends import Tree

#: as often it is looked, if looking fails
_LOOKS = 3


def settles(tree: Tree, timeout: float) -> bool:
    """Whether nobody is left after *timeout* seconds at the most, as far as can be told."""
    with contextlib.suppress(OSError):
        return tree.settle(timeout)
    return False


def left_behind(tree: Tree, owner: str | None) -> tuple[list[Leak], str | None]:
    """Who is left; and if somebody is, and who can't be told, why."""
    me, trouble = os.getpid(), None
    for _ in range(_LOOKS):
        try:
            pids = tree.pids()
            others = [pid for pid in pids if not is_launcher(pid)]
            leaks = describe_all(others, owner=owner, ancestors_until=me)
        except OSError as error:
            trouble = error
            continue
        if leaks or len(others) < len(pids) or settles(tree, 0.0):
            return leaks, None
    return [], f"what is left behind can't be told: {trouble or 'it is not listed'}"


def complain(name: str, leaks: Sequence[Leak], how: str) -> None:
    """*how*: "warn" whoever leaves the container called *name*, or "fail".

    Raises:
        ContainerError: it is "fail".
    """
    text = f"container {name}: {len(leaks)} left behind, and killed:\n  " + "\n  ".join(
        leak.describe() for leak in leaks
    )
    if how == "warn":
        warnings.warn(ContainedWarning(text), stacklevel=4)
    else:
        raise ContainerError(text, remedy='end them before the container ends, or leave out leaks="fail"')


def who(tree: Tree) -> str:
    """Who is still there."""
    try:
        return f"pids {tree.pids()}"
    except OSError as error:
        return f"who, can't be told: {error}"


def zombie(pid: int, name: str, owner: str | None) -> Leak:
    """A process that has ended, and that nobody has waited for."""
    return Leak(pid=pid, argv=(f"[{name}]",), cwd=None, age_seconds=None, rss_bytes=None, owner=owner, status="zombie")
