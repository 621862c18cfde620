"""TCP ports of a container published outside of it, and a network that several share: the side of who asks."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import select
import signal
import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from . import _station
from ._forwarder import READY
from ._namespaces import Namespaces
from ._process import send_signal
from ._trace import trace
from .exceptions import ContainerError, NotOffered, SpecError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from ._popen import Launcher

_WHERE = "Container"
_LARGEST = 65535
_OUTSIDE = "127.0.0.1"
_NET = frozenset(("net_ns",))


def parse_ports(asked: Mapping[int, int] | None, spec: dict[str, Any], network: Network | None) -> dict[int, int]:
    """The ports to be published; *spec*, as it was asked, gets the network that they take.

    Raises:
        SpecError: they are no ports, or the container is to have no network of its own.
    """
    allowed = f"{{inside: outside}}, inside from 1 to {_LARGEST}, outside 0 for any that is free"
    ports: object = {} if asked is None else asked
    if not isinstance(ports, Mapping):
        raise SpecError("ports", ports, "is no mapping", where=_WHERE, allowed=allowed)
    for inside, outside in ports.items():
        if not (_is_port(inside) and inside and _is_port(outside)):
            raise SpecError("ports", {inside: outside}, "is no pair of TCP ports", where=_WHERE, allowed=allowed)
    if network is not None:
        if not isinstance(network, Network):
            raise SpecError("network", network, "is no network", where=_WHERE, allowed="a pytest_cgroup.Network")
        if spec.get("net_ns"):
            why, allowed = "is beside network, which is one already", "one of the two"
            raise SpecError("net_ns", True, why, where=_WHERE, allowed=allowed)
    elif ports and not spec.setdefault("net_ns", True):
        why, allowed = "needs net_ns, which is not asked for", "ports with net_ns=True or without it"
        raise SpecError("ports", dict(ports), why, where=_WHERE, allowed=allowed)
    return dict(ports)


def _is_port(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _LARGEST


class Published:
    """Ports of one container, and the forwarder that serves them (`_forwarder`).

    Args:
        launcher: forks it.
        asked: the ports inside, and for each the one outside, or 0.
        network_of: a process that is in the container's network.
        announce: tells the guard of the forwarder.

    Raises:
        ContainerError: a port is taken, or the forwarder could not step inside.

    Attributes:
        ports: by each port inside, the one outside.
        pid: the forwarder's, a child of this process.
    """

    def __init__(
        self, launcher: Launcher, asked: dict[int, int], network_of: int, announce: Callable[[int], None]
    ) -> None:
        with contextlib.ExitStack() as stack:
            listeners = [stack.enter_context(_listen(inside, outside)) for inside, outside in asked.items()]
            self.ports = {inside: listener.getsockname()[1] for inside, listener in zip(asked, listeners, strict=True)}
            self._socket, theirs = socket.socketpair()
            with theirs:
                message = {"forward": list(asked), "network_of": network_of}
                fds = [theirs.fileno(), *(listener.fileno() for listener in listeners)]
                try:
                    self.pid = launcher.ask(message, fds)["pid"]
                    self._pidfd = os.pidfd_open(self.pid)
                except BaseException:
                    self._socket.close()
                    raise
        told = self._socket.recv(4096)
        if told != READY:
            self.close()
            why = told.decode(errors="replace") or "the forwarder of the ports was killed"
            raise ContainerError(why, operation="publish", value=asked)
        announce(self.pid)
        trace("publish: ports %s by pid %d", self.ports, self.pid)

    def close(self) -> str | None:
        """End the forwarder, and wait for it; what should be said if it had ended before."""
        before = bool(select.select([self._pidfd], [], [], 0)[0])
        self._socket.close()
        send_signal(self._pidfd, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)
        os.close(self._pidfd)
        trace("publish: ports %s are closed", self.ports)
        return f"the forwarder of ports {[*self.ports]} was killed before the end: pid {self.pid}" if before else None

    def forget(self) -> None:
        """In a forked child: it is the parent's."""
        self._socket.close()


def _listen(inside: int, outside: int) -> socket.socket:
    try:
        return socket.create_server((_OUTSIDE, outside), backlog=128)
    except OSError as error:
        raise ContainerError(
            f"port {inside} can't be published",
            path=f"{_OUTSIDE}:{outside}",
            operation="bind",
            value=outside,
            errno=error.errno,
            remedy="0 takes any port that is free",
        ) from error


class Network:
    """A private network with loopback and nothing else, for several containers: ``Container(network=network)``.

    What listens in one of them is reached from the others at 127.0.0.1 and ::1, and from nowhere else, unless
    ``ports`` publishes it: it is one network namespace (network_namespaces(7)). A context manager; containers that are
    in it when it ends keep it until they end, and it takes in no more.

    Where this process has no privilege, it stands in a user namespace, which its containers share.

    Args:
        name: what messages call it.
    """

    def __init__(self, *, name: str = "network") -> None:
        self.name = name
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
            NotOffered: this host gives no network namespace; the reason and the remedy are named.
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
        self._holder, _ = station.launcher().branch(namespaces, user_ns=user_ns, own=False)
        self._owner = os.getpid()
        station.begins(self)
        return self

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
