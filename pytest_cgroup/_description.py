"""A leak described for a person, as psutil knows it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from ._isolated import os, time
from ._listening import Ports
from ._outcome import Leak
from ._process import ProcessId, comm, living_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import psutil

_IS_LINUX = sys.platform == "linux"


class Look:
    """One look at many: what they have in common is asked for once."""

    def __init__(self) -> None:
        self.ports = Ports()
        #: by pid, a process's name and those of its parents
        self.chains: dict[int, tuple[str, ...]] = {}


def describe_all(pids: Iterable[int], *, owner: str | None = None, ancestors_until: int = 0) -> list[Leak]:
    """`describe` of each that is not gone meanwhile."""
    look = Look()
    told = (describe(pid, owner=owner, ancestors_until=ancestors_until, look=look) for pid in pids)
    return [leak for leak in told if leak is not None]


def describe(pid: int, *, owner: str | None = None, ancestors_until: int = 0, look: Look | None = None) -> Leak | None:
    """What a person needs to know of a process that outlived its owner; None when it is gone meanwhile.

    ``ancestors_until``: the parent chain is named up to this pid (exclusive). Details that may not be read
    (another user's process) are None, as psutil reports them.
    """
    look = look or Look()
    import psutil  # 20 ms of import that a session without a leak need not pay

    try:
        process = psutil.Process(living_thread(pid))
        status = process.status()
        zombie = status == psutil.STATUS_ZOMBIE
        age = _age_seconds(pid)
    except psutil.NoSuchProcess:
        return None
    except (psutil.Error, OSError):  # that it is there is known, and no more
        return Leak(
            pid=pid, argv=(f"[{comm(pid)}]",), cwd=None, age_seconds=None, rss_bytes=None, owner=owner, status="?"
        )
    with process.oneshot():
        name = ask(process.name) or "?"
        argv = () if zombie else tuple(ask(process.cmdline) or ())
        memory = None if zombie else ask(process.memory_info)
        ports = () if zombie else _listening_ports(process, look)
        return Leak(
            pid=pid,
            argv=argv or (f"[{name}]",),
            cwd=None if zombie else ask(process.cwd),
            age_seconds=age,
            rss_bytes=memory.rss if memory else None,
            owner=owner,
            parents=_parents(process, ancestors_until, look.chains),
            ports=ports,
            status=status,
        )


def _age_seconds(pid: int) -> float | None:
    """From the start in clock ticks since boot: psutil adds those to a time of boot in whole seconds."""
    import psutil

    if not hasattr(time, "CLOCK_BOOTTIME"):  # not Linux
        return round(max(0.0, time.time() - psutil.Process(pid).create_time()), 3)
    identity = ProcessId.of(pid)
    if identity is None:
        return None
    return round(max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - identity.start_time / os.sysconf("SC_CLK_TCK")), 3)


def ask(method: Callable[[], Any]) -> Any:
    """What a method of psutil's says; None where it may not, or the process is gone."""
    import psutil

    try:
        return method()
    except (psutil.Error, OSError):
        return None


def _listening_ports(process: psutil.Process, look: Look) -> tuple[int, ...]:
    if _IS_LINUX:
        return look.ports.of(process.pid)
    from socket import SOCK_DGRAM  # psutil has it loaded

    found = ask(getattr(process, "net_connections", None) or process.connections) or ()
    # a UDP socket that is bound and not connected waits for whoever comes, too
    listening = [c for c in found if c.status == "LISTEN" or (c.type == SOCK_DGRAM and c.laddr and not c.raddr)]
    return tuple(sorted({c.laddr.port for c in listening}))


def _parents(process: psutil.Process, until: int, known: dict[int, tuple[str, ...]]) -> tuple[str, ...]:
    parent = ask(process.parent)
    if parent is None or parent.pid in (until, 0):
        return ()
    if parent.pid not in known:
        known[parent.pid] = (f"{ask(parent.name) or '?'}[{parent.pid}]", *_parents(parent, until, known))
    return known[parent.pid]
