"""Who listens where, as the kernel lists it for each network namespace: no connection is made to find out.

Sources: proc_net(5), and proc_pid_net(5) for the network of another process.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from ._isolated import io, os
from ._process import living_thread

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_TCP_LISTEN = "0A"
_ACCEPTS = 0x10000  # __SO_ACCEPTCON
_DATAGRAM = "0002"


def tcp_listeners(pid: int | str, port: int) -> set[str]:
    """The inodes of the sockets that listen on TCP *port* in the network of the process *pid*."""
    found = set()
    for table in ("tcp", "tcp6"):
        for line in _lines(pid, table):
            local, state, inode = line[1], line[3], line[9]
            if state == _TCP_LISTEN and int(local.rpartition(":")[2], 16) == port:
                found.add(inode)
    return found


def unix_listeners(pid: int | str, path: str) -> set[str]:
    """The inodes of the Unix sockets at *path* that wait for somebody, in the network of the process *pid*.

    A name that begins with "@" is an abstract one. A relative name was bound so, and is compared by its end.
    """
    found = set()
    for line in _lines(pid, "unix"):
        if len(line) < 8 or not (int(line[3], 16) & _ACCEPTS or line[4] == _DATAGRAM):
            continue
        name = " ".join(line[7:])
        if name == path or (not name.startswith(("/", "@")) and path.endswith(f"/{name.removeprefix('./')}")):
            found.add(line[6])
    return found


def _lines(pid: int | str, table: str) -> list[list[str]]:
    try:
        with io.open(f"/proc/{pid}/net/{table}", encoding="utf-8", errors="surrogateescape") as f:
            return [line.split() for line in f.read().splitlines()[1:]]
    except OSError:  # it is gone, or the kernel has no such protocol
        return []


def hold(pids: Iterable[int], inodes: set[str]) -> bool | None:
    """Whether one of *pids* has one of the sockets *inodes*; None where that may not be seen of one, and no other has.

    Another user's descriptors are not to be seen, nor those of a program that changed its user (proc_pid_fd(5)).
    """
    unseen = False
    for pid in pids:
        try:
            if not inodes.isdisjoint(_sockets(pid)):
                return True
        except PermissionError:
            unseen = True
        except OSError:
            continue
    return None if unseen else False


def _sockets(pid: int) -> Iterator[str]:
    """The inodes of the sockets that a process has open.

    Raises:
        OSError: it is gone, or may not be looked into.
    """
    files = f"/proc/{living_thread(pid)}/fd"
    for fd in os.listdir(files):
        with contextlib.suppress(FileNotFoundError):
            if (target := os.readlink(f"{files}/{fd}")).startswith("socket:["):
                yield target[len("socket:[") : -1]


class Ports:
    """The ports that processes wait at, of TCP and of UDP: the kernel's lists are read once for each network."""

    def __init__(self) -> None:
        self._by_network: dict[int, dict[str, int]] = {}

    def of(self, pid: int) -> tuple[int, ...]:
        """Those of one process; none where that may not be seen."""
        with contextlib.suppress(OSError):
            if inodes := {*_sockets(pid)}:
                network = os.stat(f"/proc/{pid}/ns/net").st_ino
                if network not in self._by_network:
                    self._by_network[network] = _waiting(pid)
                known = self._by_network[network]
                return tuple(sorted({known[inode] for inode in inodes & known.keys()}))
        return ()


def _waiting(pid: int) -> dict[str, int]:
    """By inode, the port of each socket that waits for whoever comes, in the network of the process *pid*."""
    found = {}
    for table in ("tcp", "tcp6", "udp", "udp6"):
        for line in _lines(pid, table):
            local, remote, state, inode = line[1], line[2], line[3], line[9]
            port = int(local.rpartition(":")[2], 16)
            is_connected = int(remote.rpartition(":")[2], 16) != 0
            if state == _TCP_LISTEN if table.startswith("tcp") else port and not is_connected:
                found[inode] = port
    return found
