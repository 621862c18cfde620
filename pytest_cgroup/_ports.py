"""TCP ports of a container published outside of it: the side of who asks."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ._forwarder import READY
from ._isolated import os, signal, socket
from ._network import Network
from ._process import readable, send_signal
from ._trace import trace
from .exceptions import ContainerError, SpecError

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._popen import Launcher

_WHERE = "Container"
_LARGEST = 65535
_OUTSIDE = "127.0.0.1"


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
        before = bool(readable(self._pidfd))
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
