"""A slice: a parent that several containers have in common, whose limits hold for all of them together."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from . import _station
from ._asked import parse_change
from ._backends import refuse_what_is_missing
from ._backends.cgroup import CgroupBackend
from ._isolated import os
from ._of_many import limits_of_many
from ._spec import parse_kwargs
from .exceptions import ContainerError

if TYPE_CHECKING:
    from types import TracebackType

    from ._backends.cgroup import CgroupTree
    from ._outcome import Usage


class Slice:
    """A parent cgroup for several containers: ``Container(slice=db)``. A context manager.

    Args:
        name: what tells it from others, as the marker's field ``slice``.
        limits: those that hold for its containers together, as the marker has them: ``memory="256M", pids=100``.

    Raises:
        SpecError: one of them can't be right, or can't be many containers' together.

    Each container may have limits of its own besides. One that is still there when the slice ends stays in it.
    """

    def __init__(self, name: str, **limits: Any) -> None:
        self.name = str(parse_kwargs({"slice": name}, "Slice")["slice"])
        self._asked = limits
        self._spec = limits_of_many(limits, f"Slice {self.name}")
        self._made: tuple[CgroupBackend, CgroupTree] | None = None
        self._owner = os.getpid()

    def __repr__(self) -> str:
        return f"<Slice {self.name} ({'not live' if self._made is None else 'live'})>"

    def __enter__(self) -> Slice:
        """Make it, unless it is there already."""
        return self if self._made is not None else self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> Slice:
        """Make it, its limits in force.

        Raises:
            NotOffered: this host has no cgroup for it, or no such limit; the reason and the remedy are named.
            ContainerError: it was made already, or another one of its name, or the kernel refused something.
        """
        if self._made is not None:
            raise ContainerError(f"slice {self.name} was started already", operation="start")
        _, backend = _station.station().backend("auto")
        refuse_what_is_missing(backend, dataclasses.replace(self._spec, slice=self.name), f"slice {self.name}")
        assert isinstance(backend, CgroupBackend), "no other has slices"
        self._made = backend, backend.open_slice(self.name, self._spec)
        self._owner = os.getpid()
        return self

    @property
    def limits(self) -> dict[str, str]:
        """The limits in force, as read back from the kernel."""
        return dict(self._tree("limits").limits)

    def usage(self) -> Usage:
        """What its containers have used so far, all of them together, and those that are gone, too."""
        return self._tree("usage").usage()

    def update(self, **limits: Any) -> None:
        """Set other limits, which hold at once for all that is in it; read back, into `limits`.

        Raises:
            SpecError: a bad value, or a field that can be had at the start only.
            NotOffered: this host has no such limit.
            ContainerError: the kernel refused it.
        """
        tree = self._tree("update")
        assert self._made is not None
        spec, change = parse_change(self._asked, limits)
        refuse_what_is_missing(self._made[0], spec, "update")
        tree.change_limits(change)
        self._asked = {**self._asked, **limits}

    def close(self) -> None:
        """End it. Idempotent."""
        made, self._made = self._made, None
        if made is not None and self._owner == os.getpid():
            made[0].close_slice(self.name)

    def _tree(self, operation: str) -> CgroupTree:
        """What there is of it.

        Raises:
            ContainerError: it is not live, or was made by another process.
        """
        if self._made is None:
            remedy = "use it inside `with`, or call start()"
            raise ContainerError(f"slice {self.name} is not live", operation=operation, remedy=remedy)
        if self._owner != os.getpid():
            why, remedy = "was made by another process", "make one here"
            raise ContainerError(f"slice {self.name} {why}", operation=operation, remedy=remedy)
        return self._made[1]

    def check(self) -> None:
        """:meta private:"""
        self._tree("start")
