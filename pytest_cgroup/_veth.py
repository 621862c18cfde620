"""A network that several containers share, each with a device and an address of its own.

Theory of operation. The network is a network namespace with a bridge in it, and nothing else. A container that comes
to it steps in, leaves one end of a pair of devices (veth(4)) at the bridge, and takes the other along into a network
namespace of its own, as ``eth0``. Who has the right to make the network has it here as well, also within a user
namespace. With the last process of a container its namespace goes, and with that its pair of devices.

It is asked of the kernel by messages (rtnetlink(7)), since pairs can't be had by ioctl(2).
"""

from __future__ import annotations

import errno
import itertools
import struct
from typing import NamedTuple

from . import _syscalls as sc
from ._isolated import os, socket
from ._namespaces import bring_up
from ._steps import step
from .exceptions import ContainerError

#: the containers of one network are 10.0.0.1 to 10.0.255.254; nobody else sees it
_SUBNET, _PREFIX_BITS, _BROADCAST = 10 << 24, 16, (10 << 24) + (1 << 16) - 1
_BRIDGE = "bridge0"
_DEVICE = "eth0"
_REMEDY = "The kernel needs CONFIG_VETH and CONFIG_BRIDGE; without them containers share one address: veth=False"

# linux/netlink.h, linux/rtnetlink.h, linux/if_link.h, linux/if_addr.h, linux/veth.h
_ERROR, _NEWLINK, _DELLINK, _NEWADDR = 2, 16, 17, 20
_REQUEST, _ACK, _EXCL, _CREATE = 0x1, 0x4, 0x200, 0x400
_IFLA_IFNAME, _IFLA_MASTER, _IFLA_LINKINFO, _IFLA_NET_NS_FD = 3, 10, 18, 28
_INFO_KIND, _INFO_DATA, _VETH_INFO_PEER = 1, 2, 1
_IFA_ADDRESS, _IFA_LOCAL, _IFA_BROADCAST = 1, 2, 4
_IFF_UP = 1
_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_LINK = struct.Struct("=BxHiII")  # ifinfomsg: family, type, index, flags, change
_ADDRESS = struct.Struct("=BBBBI")  # ifaddrmsg: family, prefix, flags, scope, index


class Seat(NamedTuple):
    """A container's place in a network.

    Attributes:
        network_of: a process that is in the network.
        number: which one it is, from 1; None where all stand in one network namespace.
        address: where the others reach it.
    """

    network_of: int
    number: int | None
    address: str


def address_of(number: int) -> str:
    """The address of the container that is the *number*-th of its network, from 1.

    Raises:
        ContainerError: there is none left.
    """
    if not _SUBNET < _SUBNET + number < _BROADCAST:
        what = f"a network has {_BROADCAST - _SUBNET - 1} addresses, and all have been given"
        raise ContainerError(what, operation="attach", value=number, remedy="make another Network")
    return socket.inet_ntoa(_packed(_SUBNET + number))


def make_bridge() -> None:
    """Make the bridge, in the network namespace of this process, and see that pairs can be had.

    Raises:
        ContainerError: the kernel has none, or refused.
    """
    with step("no bridge to be had", "RTM_NEWLINK", _BRIDGE, _REMEDY), _Rtnetlink() as ask:
        ask.new_link(_named(_BRIDGE), _kind("bridge"), up=True)
    with step("no pair of devices to be had", "RTM_NEWLINK", "veth", _REMEDY), _Rtnetlink() as ask:
        ask.new_link(_named("probe"), _pair(_named("peer")))
        ask.delete_link("probe")


def attach(number: int) -> None:
    """Step out of the network, which this process is in, into a network namespace that is attached to it.

    For a process with one thread and CAP_SYS_ADMIN and CAP_NET_ADMIN over the network.

    Raises:
        ContainerError: the kernel refused a step.
    """
    address = address_of(number)
    with step("can't attach to the network", "RTM_NEWLINK", f"veth{number}", _REMEDY), _Rtnetlink() as there:
        bridge = socket.if_nametoindex(_BRIDGE)
        sc.unshare(sc.CLONE_NEWNET)
        here = os.open("/proc/self/ns/net", os.O_RDONLY)
        try:
            peer = _named(_DEVICE) + _attribute(_IFLA_NET_NS_FD, struct.pack("=I", here))
            master = _attribute(_IFLA_MASTER, struct.pack("=I", bridge))
            there.new_link(_named(f"veth{number}") + master, _pair(peer), up=True)
        finally:
            os.close(here)
    with step(f"can't take the address {address}", "RTM_NEWADDR", _DEVICE), _Rtnetlink() as ask:
        ask.new_address(_DEVICE, address)
        for device in ("lo", _DEVICE):
            bring_up(device)


class _Rtnetlink:
    """A conversation with the network namespace that it was begun in, whichever this process is in later."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._sequence = itertools.count(1)

    def __enter__(self) -> _Rtnetlink:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def new_link(self, attributes: bytes, kind: bytes, *, up: bool = False) -> None:
        flags = _IFF_UP if up else 0
        self._ask(_NEWLINK, _CREATE | _EXCL, _LINK.pack(socket.AF_UNSPEC, 0, 0, flags, flags) + attributes + kind)

    def delete_link(self, name: str) -> None:
        self._ask(_DELLINK, 0, _LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0) + _named(name))

    def new_address(self, device: str, address: str) -> None:
        index, number = socket.if_nametoindex(device), socket.inet_aton(address)
        attributes = [
            _attribute(_IFA_LOCAL, number),
            _attribute(_IFA_ADDRESS, number),
            _attribute(_IFA_BROADCAST, _packed(_BROADCAST)),
        ]
        message = _ADDRESS.pack(socket.AF_INET, _PREFIX_BITS, 0, 0, index)
        self._ask(_NEWADDR, _CREATE | _EXCL, message + b"".join(attributes))

    def _ask(self, what: int, flags: int, body: bytes) -> None:
        header = _HEADER.pack(_HEADER.size + len(body), what, _REQUEST | _ACK | flags, next(self._sequence), 0)
        self._socket.send(header + body)
        answer = self._socket.recv(4096)
        _, kind, *_ = _HEADER.unpack_from(answer)
        if kind != _ERROR or len(answer) < _HEADER.size + 4:
            raise OSError(errno.EPROTO, os.strerror(errno.EPROTO))
        (number,) = struct.unpack_from("=i", answer, _HEADER.size)
        if number:
            raise OSError(-number, os.strerror(-number))


def _packed(address: int) -> bytes:
    return struct.pack("!I", address)


def _attribute(kind: int, data: bytes) -> bytes:
    """An rtattr: its length, which padding does not count in, its kind, and what it says."""
    length = 4 + len(data)
    return struct.pack("=HH", length, kind) + data + bytes(-length % 4)


def _named(name: str) -> bytes:
    return _attribute(_IFLA_IFNAME, name.encode() + b"\0")


def _kind(name: str, data: bytes = b"") -> bytes:
    return _attribute(_IFLA_LINKINFO, _attribute(_INFO_KIND, name.encode() + b"\0") + data)


def _pair(peer: bytes) -> bytes:
    device = _attribute(_VETH_INFO_PEER, _LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0) + peer)
    return _kind("veth", _attribute(_INFO_DATA, device))
