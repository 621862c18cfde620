"""A private network that several containers share."""

from __future__ import annotations

import dataclasses
import itertools
from typing import TYPE_CHECKING

from . import _station
from ._isolated import os
from ._namespaces import Namespaces
from ._trace import trace
from ._veth import Seat, address_of
from .exceptions import ContainerError, NotOffered

if TYPE_CHECKING:
    from types import TracebackType

    from ._popen import Launcher

_NET = frozenset(("net_ns",))
_LOOPBACK = "127.0.0.1"


class Network:
    """A private network for several containers: ``Container(network=network)``.

    Each container has a device there (veth(4)) and an address of its own, `Container.address`. What listens at that is
    reached from the others, and from nowhere else, unless ``ports`` publishes it. So two may bind one port.

    Where the kernel has no such devices, they stand in one network namespace (network_namespaces(7)): all have the
    address 127.0.0.1, and a port is one container's.

    A context manager; containers that are in it when it ends keep what they have of it until they end, and it takes in
    no more. Where this process has no privilege, it stands in a user namespace, which its containers share.

    Args:
        name: what messages call it.
        veth: whether each container has a device of its own; None for where that can be had.
    """

    def __init__(self, *, name: str = "network", veth: bool | None = None) -> None:
        self.name = name
        self._veth = veth
        self._numbers: itertools.count[int] | None = None
        self._holder: Launcher | None = None
        self._owner = os.getpid()

    def __repr__(self) -> str:
        return f"<Network {self.name} ({'not live' if self._holder is None else 'live'})>"

    def __enter__(self) -> Network:
        """Make it, unless it is there already."""
        return self if self._holder is not None else self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> Network:
        """Make it.

        Raises:
            NotOffered: this host gives no network namespace, or no devices; the reason and the remedy are named.
            ContainerError: it was made already, or the kernel refused something.
        """
        if self._holder is not None:
            raise ContainerError(f"network {self.name} was started already", operation="start")
        station = _station.station()
        host, _ = station.backend("auto")
        if not (offered := host.capability("net_ns")).offered:
            why = f"network: this host can't honour net_ns: {offered.reason} ({offered.remedy})"
            raise NotOffered(why, missing=("net_ns",))
        namespaces = dataclasses.asdict(Namespaces(net=True))
        user_ns = host.needs_user_namespace(_NET)
        holder, _ = station.launcher().branch(namespaces, user_ns=user_ns, own=False)
        try:
            self._numbers = self._bridged(holder)
        except BaseException:
            holder.close()
            raise
        self._holder, self._owner = holder, os.getpid()
        station.begins(self)
        return self

    def _bridged(self, holder: Launcher) -> itertools.count[int] | None:
        """What its containers are numbered by; None if all are to have one address."""
        if self._veth is False:
            return None
        refused = holder.ask({"bridge": True})["refused"]
        if refused is None:
            return itertools.count(1)
        trace("network %s: one address for all: %s", self.name, refused)
        if self._veth:
            raise NotOffered(f"network: this host can't honour veth: {refused}", missing=("veth",))
        return None

    def seat(self) -> Seat:
        """:meta private:"""
        network_of = self.pid
        if self._numbers is None:
            return Seat(network_of, None, _LOOPBACK)
        number = next(self._numbers)
        return Seat(network_of, number, address_of(number))

    @property
    def pid(self) -> int:
        """A process that is in it, and in no container.

        Raises:
            ContainerError: it is not live, or was made by another process.
        """
        if self._holder is None:
            remedy = "use it inside `with`, or call start()"
            raise ContainerError(f"network {self.name} is not live", operation="network", remedy=remedy)
        if self._owner != os.getpid():
            why, remedy = "was made by another process", "make one here"
            raise ContainerError(f"network {self.name} {why}", operation="network", remedy=remedy)
        return self._holder.pid

    def close(self) -> None:
        """End it. Idempotent."""
        holder, self._holder = self._holder, None
        if holder is not None and self._owner == os.getpid():
            holder.close()
            _station.station().is_over(self)

    # what the station of this process asks of all that lives

    def helpers(self) -> set[int]:
        """:meta private:"""
        return set() if self._holder is None else {self._holder.pid}

    def forget(self) -> None:
        """:meta private:"""
        if self._holder is not None:
            self._holder.forget()

    def end(self, grace: float) -> None:
        """:meta private:"""
        self.close()
