"""A leak described for a person, as psutil knows it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._isolated import os, time
from ._outcome import Leak
from ._process import ProcessId, comm, living_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def describe(pid: int, *, owner: str | None = None, ancestors_until: int = 0) -> Leak | None:
    """What a person needs to know of a process that outlived its owner; None when it is gone meanwhile.

    ``ancestors_until``: the parent chain is named up to this pid (exclusive). Details that may not be read
    (another user's process) are None, as psutil reports them.
    """
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
        ports = () if zombie else _listening_ports(process)
        return Leak(
            pid=pid,
            argv=argv or (f"[{name}]",),
            cwd=None if zombie else ask(process.cwd),
            age_seconds=age,
            rss_bytes=memory.rss if memory else None,
            owner=owner,
            parents=tuple(_parent_chain(process, ancestors_until)),
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


def _listening_ports(process: object) -> tuple[int, ...]:
    from socket import SOCK_DGRAM  # psutil has it loaded

    connections = getattr(process, "net_connections", None) or process.connections  # type: ignore[attr-defined]
    found = ask(connections) or ()
    # a UDP socket that is bound and not connected waits for whoever comes, too
    listening = [c for c in found if c.status == "LISTEN" or (c.type == SOCK_DGRAM and c.laddr and not c.raddr)]
    return tuple(sorted({c.laddr.port for c in listening}))


def _parent_chain(process: object, until: int) -> Iterator[str]:
    for parent in ask(process.parents) or ():  # type: ignore[attr-defined]
        if parent.pid in (until, 0):
            return
        yield f"{ask(parent.name) or '?'}[{parent.pid}]"
