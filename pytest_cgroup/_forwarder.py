"""The forwarder: a process that lives in a container's network, and accepts connections from outside of it.

A socket belongs to the network namespace that it was made in, whoever holds it. So who asks makes the listening sockets
outside, and the forwarder, which has stepped inside, accepts from them and connects to the same port number's server
beside it: no address, no route and no privilege on the host is needed. It is forked by a launcher, stands in no
container's cgroup, and ends when its own end of a socket pair is at its end: with the container, or with who made that.
"""

from __future__ import annotations

import contextlib
import errno
import struct
import sys
from typing import NoReturn

from ._isolated import os, select, socket
from ._namespaces import join_network

if sys.platform == "linux":  # the package imports elsewhere, too
    import resource

#: as much as this may be on the way in each direction of a connection: who sends faster waits, in bytes
_WINDOW = 256 * 1024
_PIECE = 64 * 1024
#: where no more connection can be accepted for want of descriptors, it is tried again so soon, in seconds
_PAUSE_SECONDS = 0.1
_RESET = struct.pack("ii", 1, 0)  # struct linger: a close that the other end sees as a reset
_INSIDE = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))
#: what it tells when it is ready
READY = b"ready"


def run(owner: socket.socket, listeners: list[tuple[socket.socket, int]], network_of: int) -> NoReturn:
    """In the forked process: step into the network of the process *network_of*, say so to *owner*, and forward."""
    try:
        join_network(network_of)
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        forwarder = Forwarder(listeners)
    except BaseException as error:
        with contextlib.suppress(OSError):
            owner.sendall(str(error).encode(errors="replace")[:3000])
        os._exit(1)
    with contextlib.suppress(OSError):  # who asked is gone: that is seen at once
        owner.sendall(READY)
    try:
        forwarder.until_end_of(owner)
    finally:
        os._exit(0)


class _Way:
    """What goes one way of a connection."""

    __slots__ = ("data", "ended", "sink", "source", "told")

    def __init__(self, source: socket.socket, sink: socket.socket) -> None:
        self.source = source
        self.sink = sink
        self.data = bytearray()
        #: nothing more comes
        self.ended = False
        #: and the other side knows that
        self.told = False

    def take(self) -> None:
        """Read what is there."""
        if self.ended or len(self.data) >= _WINDOW:
            return
        with contextlib.suppress(BlockingIOError):
            piece = self.source.recv(_PIECE)
            self.data += piece
            self.ended = not piece

    def give(self) -> None:
        """Write what goes; after the last of it the end itself, which leaves the other way open."""
        if self.data:
            with contextlib.suppress(BlockingIOError):
                del self.data[: self.sink.send(self.data)]
        if self.ended and not self.data and not self.told:
            self.told = True
            self.sink.shutdown(socket.SHUT_WR)


class _Connection:
    """One connection: its end outside, its end inside, and what is on the way."""

    def __init__(self, outer: socket.socket, port: int) -> None:
        self.outer = outer
        self._port = port
        self._addresses = list(_INSIDE)
        self.connecting = True
        self.inner = self._connect()

    def _connect(self) -> socket.socket:
        family, address = self._addresses.pop(0)
        inner = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            number = inner.connect_ex((address, self._port))
            if number not in (0, errno.EINPROGRESS):
                raise OSError(number, os.strerror(number))
        except OSError:
            inner.close()
            if not self._addresses:
                raise
            return self._connect()
        self.ways = (_Way(self.outer, inner), _Way(inner, self.outer))
        return inner

    def connected(self) -> bool:
        """The kernel has an answer; False where it was no, and another address is tried.

        Raises:
            OSError: nobody listens at any.
        """
        number = self.inner.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        self.connecting = bool(number)
        if not number:
            return True
        self.inner.close()
        if not self._addresses:
            raise OSError(number, os.strerror(number))
        self.inner = self._connect()
        return False

    def move(self) -> None:
        """Move what can be moved."""
        for way in self.ways:
            way.take()
            way.give()

    @property
    def over(self) -> bool:
        """Whether both ways have ended."""
        return all(way.told for way in self.ways)

    def wants(self) -> dict[socket.socket, int]:
        """What each end is waited for."""
        if self.connecting:
            return {self.inner: select.EPOLLOUT}
        found = {self.outer: 0, self.inner: 0}
        for way in self.ways:
            if not way.ended and len(way.data) < _WINDOW:
                found[way.source] |= select.EPOLLIN
            if way.data:
                found[way.sink] |= select.EPOLLOUT
        return found

    def close(self, *, reset: bool) -> None:
        """Both ends; *reset*: so that who is there sees that it was no good end."""
        for end in (self.outer, self.inner):
            if reset:
                with contextlib.suppress(OSError):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            end.close()


class Forwarder:
    """Forwards the connections that *listeners* get, each to the port inside that stands beside it."""

    def __init__(self, listeners: list[tuple[socket.socket, int]]) -> None:
        self._epoll = select.epoll()
        self._listeners = {listener.fileno(): (listener, port) for listener, port in listeners}
        self._connections: dict[int, _Connection] = {}
        self._waited: dict[int, int] = {}
        self._paused = False
        for fd, (listener, _) in self._listeners.items():
            listener.setblocking(False)
            self._wait_for(fd, select.EPOLLIN)

    def until_end_of(self, owner: socket.socket) -> None:
        """Forward until *owner* is at its end."""
        self._wait_for(owner.fileno(), select.EPOLLIN)
        while True:
            ready = self._epoll.poll(_PAUSE_SECONDS if self._paused else None)
            if any(fd == owner.fileno() for fd, _ in ready):
                return
            for fd, _ in ready:
                if (connection := self._connections.get(fd)) is not None:
                    self._serve(connection)
            for fd, _ in ready:  # last: a new descriptor may have the number of one that was closed just now
                if fd in self._listeners:
                    self._accept(*self._listeners[fd])
            if self._paused:
                self._listen(select.EPOLLIN)

    def _listen(self, events: int) -> None:
        self._paused = not events
        for fd in self._listeners:
            self._wait_for(fd, events)

    def _accept(self, listener: socket.socket, port: int) -> None:
        try:
            outer, _ = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError:  # no descriptor to be had: one that is closed makes room
            self._listen(0)
            return
        outer.setblocking(False)
        try:
            connection = _Connection(outer, port)
        except OSError:
            with contextlib.suppress(OSError):
                outer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            outer.close()
            return
        self._watch(connection)

    def _serve(self, connection: _Connection) -> None:
        if connection.connecting:
            self._forget(connection)  # its inner end may become another one
        reset = False
        try:
            if not connection.connecting or connection.connected():
                connection.move()
        except OSError:
            reset = True
        if reset or connection.over:
            self._forget(connection)
            connection.close(reset=reset)
        else:
            self._watch(connection)

    def _watch(self, connection: _Connection) -> None:
        for end, events in connection.wants().items():
            self._connections[end.fileno()] = connection
            self._wait_for(end.fileno(), events)

    def _forget(self, connection: _Connection) -> None:
        for end in (connection.outer, connection.inner):
            self._connections.pop(end.fileno(), None)
            self._wait_for(end.fileno(), 0)

    def _wait_for(self, fd: int, events: int) -> None:
        """0 takes it out: what is only registered tells of its end again and again."""
        before = self._waited.pop(fd, 0)
        if events:
            self._waited[fd] = events
        if events and before:
            if events != before:
                self._epoll.modify(fd, events)
        elif events:
            self._epoll.register(fd, events)
        elif before:
            self._epoll.unregister(fd)
