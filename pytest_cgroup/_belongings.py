"""What else a test leaves, beside processes: zombies, threads, listening sockets, shared memory; if asked for.

Looked at wherever somebody's time begins or ends: what is new by then belongs to whoever's time it was. It is a leak if
it is there when its owner is over. It is named and left as it is: a thread can't be ended from outside, and whoever
holds a socket or a segment may go on to use it.
"""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Any

from . import _exempt
from ._isolated import io, os, threading, time
from ._outcome import Leak
from ._process import own_zombies, stat_fields

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

_FOREIGN_THREADS = ("execnet", "xdist", "pytest_timeout", "pytest_rerunfailures", "pytest_cgroup", "_pytest")
_SHM = "/dev/shm"  # shm_overview(7)
_SYSV = "/proc/sysvipc/shm"
_PAUSE_SECONDS = 0.005

# What a thing is known by, its kind first: nothing else has it as long as the thing is there.
Key = tuple[Any, ...]


class Belongings:
    """Who owns what, of the *kinds* that were asked for.

    Args:
        kinds: of `_values.BELONGINGS`.
        keep_pools: whether the threads of an executor that is not shut down are nobody's.
    """

    def __init__(self, kinds: Sequence[str], *, keep_pools: bool) -> None:
        looks: dict[str, Callable[[], dict[Key, Leak]]] = {
            "zombies": _zombies,
            "threads": self._threads,
            "sockets": _sockets,
            "shared_memory": self._shared_memory,
        }
        self._looks = [look for kind, look in looks.items() if kind in kinds]
        self._keep_pools = keep_pools
        self._made: dict[str, str | None] = {}
        self._owners: dict[Key, Any] = dict.fromkeys(self._found())
        self._undo = _hear_of_shared_memory(self._made) if "shared_memory" in kinds else lambda: None

    def look(self, owner: object) -> dict[Key, Leak]:
        """What is new is *owner*'s; all that is there."""
        found = self._found()
        self._owners = {key: self._owners.get(key, owner) for key in found}
        return found

    def left(self, owner: object, seconds: float) -> list[Leak]:
        """What of *owner*'s is there, after *seconds* at most in which it may go by itself; told once."""
        deadline = time.monotonic() + seconds
        while mine := {key: leak for key, leak in self.look(owner).items() if self._owners[key] is owner}:
            if time.monotonic() >= deadline:
                break
            time.sleep(_PAUSE_SECONDS)  # there is no event for most of these
        self._owners.update(dict.fromkeys(mine))
        return list(mine.values())

    def close(self) -> None:
        """Nothing is looked for any more."""
        self._undo()

    def _found(self) -> dict[Key, Leak]:
        return {key: leak for look in self._looks for key, leak in look().items()}

    def _threads(self) -> dict[Key, Leak]:
        """Those that keep the interpreter from ending: not the daemons."""
        kept = _exempt.pool_threads() if self._keep_pools else set()
        main, frames = threading.main_thread(), None
        found: dict[Key, Leak] = {}
        for thread in threading.enumerate():
            if thread is main or thread.daemon or thread in kept or _is_foreign(thread):
                continue
            if frames is None:
                frames = sys._current_frames()
            found["thread", thread] = _leak("thread", thread.name, at=_where(frames.get(thread.ident or 0)))
        return found

    def _shared_memory(self) -> dict[Key, Leak]:
        """What this process made: the kernel knows that of System V's; we have heard of POSIX's, or they are mapped."""
        found: dict[Key, Leak] = {}
        for name in {*self._made, *_mapped()}:
            with contextlib.suppress(OSError):
                there = os.stat(f"{_SHM}/{name}")
                leak = _leak("shared memory segment", f"{_SHM}/{name}", size=there.st_size, at=self._made.get(name))
                found["shared memory segment", name, there.st_ino] = leak
        for number, size, maker in _segments():
            if maker == os.getpid():
                found["shared memory segment", number] = _leak(
                    "shared memory segment", f"System V segment {number}", size=size
                )
        return found


def _leak(kind: str, name: str, *, size: int | None = None, at: str | None = None, pid: int | None = None) -> Leak:
    return Leak(
        kind=kind,
        name=name,
        pid=os.getpid() if pid is None else pid,
        argv=(),
        cwd=None,
        age_seconds=None,
        rss_bytes=size,
        owner=None,
        status=None,
        started_at=at,
    )


def _zombies() -> dict[Key, Leak]:
    found: dict[Key, Leak] = {}
    for pid, name in own_zombies().items():
        if fields := stat_fields(pid):
            found["zombie", pid, fields[19]] = _leak("zombie", f"{name}[{pid}]", pid=pid)
    return found


def _is_foreign(thread: threading.Thread) -> bool:
    modules = (type(thread).__module__, getattr(getattr(thread, "_target", None), "__module__", "") or "")
    return any(module.partition(".")[0] in _FOREIGN_THREADS for module in modules)


def _where(frame: Any) -> str | None:
    """Where a thread is: its outermost line that is not of the standard library's threading."""
    shown = None
    while frame is not None:
        if os.path.basename(frame.f_code.co_filename) != "threading.py":
            shown = _shown(frame)
        frame = frame.f_back
    return shown


def _sockets() -> dict[Key, Leak]:
    """Those of this process that listen, of TCP and of unix(7)."""
    import psutil

    me = psutil.Process()
    connections = getattr(me, "net_connections", None) or me.connections
    found: dict[Key, Leak] = {}
    for kind in ("tcp", "unix"):
        for one in connections(kind):
            if one.status == psutil.CONN_LISTEN or (kind == "unix" and one.fd >= 0 and _listens(one.fd)):
                at = f"{one.laddr.ip}:{one.laddr.port}" if kind == "tcp" else one.laddr or "without a name"
                found["socket", one.fd, at] = _leak("socket", f"{kind} {at}")
    return found


def _listens(fd: int) -> bool:
    from ._isolated import socket

    try:
        with socket.socket(fileno=os.dup(fd)) as copy:
            return bool(copy.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    except OSError:
        return False


def _mapped() -> set[str]:
    with io.open("/proc/self/maps", encoding="utf-8", errors="replace") as f:
        return {line.partition(f" {_SHM}/")[2].strip() for line in f if f" {_SHM}/" in line and "(deleted)" not in line}


def _segments() -> Iterable[tuple[int, int, int]]:
    """Id, size in bytes and maker's pid of each System V segment (proc_sysvipc(5))."""
    try:
        with io.open(_SYSV, encoding="ascii") as f:
            head, *lines = (line.split() for line in f)
    except (OSError, ValueError):  # a kernel without System V IPC
        return
    at = [head.index(name) for name in ("shmid", "size", "cpid")]
    for line in lines:
        number, size, maker = (int(line[one]) for one in at)
        yield number, size, maker


def _hear_of_shared_memory(made: dict[str, str | None]) -> Callable[[], None]:
    """Note in *made* what multiprocessing.shared_memory makes, and where; there is no audit event. How to stop that."""
    try:
        import _posixshmem  # type: ignore[import-not-found]
    except ImportError:
        return lambda: None
    original = _posixshmem.shm_open

    def shm_open(path: str, flags: int, mode: int = 0o777) -> int:
        fd: int = original(path, flags, mode)
        if flags & os.O_CREAT:
            made[path.lstrip("/")] = _caller()
        return fd

    def undo() -> None:
        if _posixshmem.shm_open is shm_open:
            _posixshmem.shm_open = original

    _posixshmem.shm_open = shm_open
    return undo


def _caller() -> str | None:
    frame: Any = sys._getframe(2)
    while frame is not None and "multiprocessing" in frame.f_code.co_filename:
        frame = frame.f_back
    return None if frame is None else _shown(frame)


def _shown(frame: Any) -> str:
    return f"{os.path.relpath(frame.f_code.co_filename)}:{frame.f_lineno} in {frame.f_code.co_name}"
