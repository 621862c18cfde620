"""Where a process was started: the file, line and function of the user's that asked Python for it.

Theory of operation. An audit hook (PEP 578) hears of every start before it happens: `subprocess`, os.fork,
os.posix_spawn, os.system, and with them os.spawn*, pty, asyncio and most of multiprocessing. What it writes down is an
`Origin`: the frame, the time, who owned the moment. The pid comes later: a Popen object knows its own; a forked child
writes its pid into a page that it shares with us; multiprocessing's spawn, which has no event, is asked for it.
Whatever Python did not start itself is traced to the ancestor that it did.
"""

from __future__ import annotations

import contextlib
import functools
import mmap
import shlex
import struct
import sys
import weakref
from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ._isolated import io, os, threading, time
from ._process import comm, living_thread, stat_fields

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import FrameType

    from ._outcome import Leak

_EVENTS = frozenset(("subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.system"))
#: their threads work for whoever comes next
_LENDS_THREADS = ("trio", "anyio")
_STDLIB = os.path.dirname(os.__file__) + os.sep  # sysconfig would say the same, and take 10 ms for it
_INSTALLED = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")
_OURS = os.path.dirname(os.path.abspath(__file__)) + os.sep
_SLOTS = 1024
_PID = struct.Struct("i")
_TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
#: as many starts of one owner are kept in mind; the oldest go first
MOST = 1000


@dataclass(slots=True, eq=False)
class Origin:
    """One start of a process.

    Attributes:
        place: ``"tests/test_build.py:31 in test_all"``; None where no user's frame is on the stack.
        argv: what was started, where Python was told.
        owner: whoever owned the moment, or the thread.
        boottime: when, in seconds since boot.
        plumbing: the top-level packages that the call went through, the nearest first.
        ours: this plugin started it for itself.
    """

    place: str | None
    argv: tuple[str, ...]
    owner: Any
    boottime: float
    plumbing: tuple[str, ...]
    ours: bool
    _pid: int = 0
    _popen: Callable[[], Any] = lambda: None
    _slot: Callable[[], int] = lambda: 0

    @property
    def pid(self) -> int:
        """The pid, 0 as long as nobody knows it."""
        if not self._pid:
            self._pid = getattr(self._popen(), "pid", None) or self._slot()
        return self._pid

    @property
    def popen(self) -> Any:
        """The subprocess.Popen that holds the process, None without one."""
        return self._popen()

    def may_be(self, start_time: int) -> bool:
        """Whether a process with this start time (clock ticks since boot) was started here or later."""
        return start_time >= (self.boottime - 0.02) * _TICKS


class Origins:
    """Writes down every start while it listens.

    Args:
        owner: who owns this moment, in this thread.
        root: paths below it are shown relative to it.

    Attributes:
        count: how many starts have been written down.
    """

    def __init__(self, owner: Callable[[], Any], root: str) -> None:
        self.count = 0
        self._owner = owner
        self._root = root.rstrip(os.sep) + os.sep
        self._main = threading.get_ident()  # pytest's: behind a socket it need not be the main one
        self._threads: weakref.WeakKeyDictionary[threading.Thread, Any] = weakref.WeakKeyDictionary()
        self._page = mmap.mmap(-1, _SLOTS * _PID.size)
        self._in_slot: list[Origin | None] = [None] * _SLOTS
        self._next = 0

    def start(self) -> None:
        """Listen from now on. An audit hook can't be removed: there is one for the whole process."""
        _listeners.append(self)
        _install()

    def stop(self) -> None:
        """Listen no longer."""
        if self in _listeners:
            _listeners.remove(self)
        _uninstall()

    # writing down

    def heard(self, event: str, args: tuple[Any, ...], frame: FrameType | None) -> Origin | None:
        """An audit event of a start."""
        origin = self._written_down(_argv(event, args), frame)
        if event == "subprocess.Popen":
            popen = frame.f_locals.get("self") if frame is not None else None
            if popen is not None:
                origin._popen = weakref.ref(popen)
        elif event in ("os.fork", "os.forkpty"):
            self._await_pid(origin)
        return origin

    def spawned(self, args: tuple[Any, ...], pid: int, before: float, frame: FrameType | None) -> None:
        """A start that has no audit event, with its pid; *before* it the boot was so many seconds ago."""
        words = args[0] if args and isinstance(args[0], list | tuple) else ()
        origin = self._written_down(_texts(words), frame)
        origin._pid, origin.boottime = pid, before

    def _written_down(self, argv: tuple[str, ...], frame: FrameType | None) -> Origin:
        place, plumbing, ours = self._users(frame)
        if threading.get_ident() == self._main:
            owner = self._owner()
        else:
            owner = self._owner_of_thread()
            if place is None:  # a thread that works for the main one, as trio's do: where is that?
                place, *_ = self._users(sys._current_frames().get(self._main))
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        origin = Origin(place, argv, owner, now, plumbing, ours)
        owner.origins.append(origin)
        self.count += 1
        return origin

    def _owner_of_thread(self) -> Any:
        owner = self._threads.get(threading.current_thread())
        return self._owner() if owner is None or owner.ended else owner

    def threads_belong_to(self, owner: Any) -> None:
        """What a thread starts belongs to whoever started the thread: those that are new by now to *owner*.

        An audit event tells of a thread since Python 3.12 only, so they are looked at where an owner's time ends.
        """
        for thread in threading.enumerate():
            if thread.ident != self._main and thread not in self._threads:
                module = getattr(getattr(thread, "_target", None), "__module__", None) or type(thread).__module__
                lent = module.partition(".")[0] in _LENDS_THREADS
                self._threads[thread] = None if lent else owner

    def _await_pid(self, origin: Origin) -> None:
        """The child that is about to be forked will write its pid into a slot of the page."""
        slot = self._next = (self._next + 1) % _SLOTS
        if (earlier := self._in_slot[slot]) is not None:
            earlier._pid = earlier._pid or self._read(slot)
        self._in_slot[slot] = origin
        _PID.pack_into(self._page, slot * _PID.size, 0)
        origin._slot = lambda: self._read(slot) if self._in_slot[slot] is origin else 0
        _pending.slot = self._page, slot

    def _read(self, slot: int) -> int:
        pid: int = _PID.unpack_from(self._page, slot * _PID.size)[0]
        return pid

    def _users(self, frame: FrameType | None) -> tuple[str | None, tuple[str, ...], bool]:
        """The innermost frame of the user's on a stack, and the outermost one, which pytest called.

        Where all of it is installed: what pytest called.
        """
        first = outer = last = None
        plumbing: dict[str, None] = {}
        ours = False
        while frame is not None:
            whose, top = _whose(frame.f_code.co_filename, str(frame.f_globals.get("__name__", "")))
            if whose == "pytest":
                break
            if whose == "ours":
                ours = True
            elif whose == "user":
                first, outer = first or frame, frame
            elif whose == "installed":
                last = frame
            if first is None:
                plumbing[top] = None
            frame = frame.f_back
        if first is None or outer is None:
            return (None if last is None else self._shown(last)), tuple(plumbing), ours
        called = "" if outer is first else f", called at {self._shown(outer)}"
        return self._shown(first) + called, tuple(plumbing), ours

    def _shown(self, frame: FrameType) -> str:
        return f"{frame.f_code.co_filename.removeprefix(self._root)}:{frame.f_lineno} in {frame.f_code.co_name}"


@dataclass(frozen=True, slots=True)
class Traced:
    """Where a process comes from: *deeper* if it is a descendant of what was started there, *sure* if by its pid."""

    origin: Origin
    deeper: bool
    sure: bool


def trace(pid: int, origins: Iterable[Origin], others: Iterable[Origin] = ()) -> Traced | None:
    """The start of the process *pid*, or of its nearest ancestor that Python started.

    By the pid, the parents' pids, and those of the leaders of its session and its group, who may be dead by now. Where
    none is known, and among *origins* only: by the command line, and at last the latest start before its own.
    """
    fields = stat_fields(pid)
    if fields is None:
        return None
    start, candidates = int(fields[19]), list(origins)
    by_pid = {origin.pid: origin for origin in (*others, *candidates) if origin.pid}
    for one in _ancestry(pid, fields):
        found = by_pid.get(one)
        if found is not None and found.may_be(start):
            return Traced(found, deeper=one != pid, sure=True)
    possible = [origin for origin in candidates if origin.may_be(start) and origin.boottime * _TICKS <= start + 2]
    argv, name = command_line(pid), comm(pid)
    for origin in reversed(possible):
        same = origin.argv == argv if any(argv) else bool(origin.argv) and _comm_of(origin.argv[0]) == name
        if not origin.pid and origin.argv and same:
            return Traced(origin, deeper=False, sure=False)
    return Traced(possible[-1], deeper=bool(possible[-1].argv), sure=False) if possible else None


def _comm_of(program: str) -> str:
    """What a zombie, which has no command line any more, is known by (TASK_COMM_LEN of the kernel's sched.h)."""
    return os.path.basename(program)[:15]


def placed(leak: Leak, traced: Traced) -> Leak:
    """The leak, with where it was started, or the ancestor of it that was started there."""
    origin = traced.origin
    ancestor = (shlex.join(origin.argv) or None) if traced.deeper else None
    if ancestor is None:
        return replace(leak, started_at=origin.place)
    above = [name.endswith(f"[{origin.pid}]") for name in leak.parents]
    between = leak.parents[: above.index(True)] if True in above else ()
    return replace(leak, started_at=origin.place, ancestor=ancestor, parents=between)


def _ancestry(pid: int, fields: list[str]) -> list[int]:
    """The process, its parents, its session's and its group's leader: proc_pid_stat(5), fields 4 to 6."""
    found = [pid]
    above = fields
    while above and (parent := int(above[1])) > 1 and parent not in found and parent != os.getpid():
        found.append(parent)
        above = stat_fields(parent) or []
    return [*found, int(fields[2]), int(fields[3])]


def command_line(pid: int) -> tuple[str, ...]:
    """The arguments of a process; () when it is gone, or a zombie."""
    try:
        with io.open(f"/proc/{living_thread(pid)}/cmdline", "rb") as f:
            return tuple(word.decode(errors="replace") for word in f.read().rstrip(b"\0").split(b"\0"))
    except OSError:
        return ()


def new_list() -> deque[Origin]:
    """Where an owner keeps its origins."""
    return deque(maxlen=MOST)


def _argv(event: str, args: tuple[Any, ...]) -> tuple[str, ...]:
    if event == "os.system" and args:
        return _texts(("sh", "-c", args[0]))
    if event in ("subprocess.Popen", "os.posix_spawn") and len(args) > 1:
        return _texts(args[1] if isinstance(args[1], list | tuple) else (args[1],))
    return ()


def _texts(words: Iterable[Any]) -> tuple[str, ...]:
    return tuple([word if isinstance(word, str) else _text(word) for word in words])


def _text(word: object) -> str:
    return os.fsdecode(word) if isinstance(word, bytes | os.PathLike) else str(word)


@functools.lru_cache
def _whose(file: str, module: str) -> tuple[str, str]:
    """Whose code it is, and its top-level package.

    ``"pytest"``, ``"ours"``, ``"installed"`` for a package's, ``"stdlib"`` for that and what has no file, ``"user"``.
    """
    top = module.partition(".")[0]
    if top in ("_pytest", "pluggy"):
        return "pytest", top
    if file.startswith(_OURS):
        return "ours", top
    if any(part in file for part in _INSTALLED):  # which may lie in the standard library's directory
        return "installed", top
    return "stdlib" if file.startswith(("<", _STDLIB)) else "user", top


# the hook of this process

_listeners: list[Origins] = []
_installed = False
_pending = threading.local()
_fork_exec: Any = None


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if event in _EVENTS:
        _heard(event, args)


def _heard(event: str, args: tuple[Any, ...]) -> None:
    if not _listeners:
        return
    listener = _listeners[-1]
    try:
        listener.heard(event, args, sys._getframe(2))
    except Exception:  # a hook that raises forbids what it should only watch
        return


def _install() -> None:
    global _installed, _fork_exec
    if not _installed:
        _installed = True
        sys.addaudithook(_hook)
        os.register_at_fork(after_in_child=_in_child, after_in_parent=_in_parent)
    if _fork_exec is None and (module := _spawner()) is not None:
        _fork_exec = module.fork_exec
        module.fork_exec = _spawn


def _uninstall() -> None:
    global _fork_exec
    if not _listeners and _fork_exec is not None and (module := _spawner()) is not None:
        if module.fork_exec is _spawn:
            module.fork_exec = _fork_exec
        _fork_exec = None


def _spawner() -> Any:
    """multiprocessing looks fork_exec up when it spawns; subprocess did when it was imported, and has an event."""
    try:
        import _posixsubprocess

        __import__("subprocess")  # it keeps the original
    except ImportError:
        return None
    return _posixsubprocess if hasattr(_posixsubprocess, "fork_exec") else None


def _spawn(*args: Any) -> Any:
    before = time.clock_gettime(time.CLOCK_BOOTTIME)
    pid = _fork_exec(*args)
    if _listeners:
        with contextlib.suppress(Exception):  # the process has been started, and must be returned
            _listeners[-1].spawned(args, pid, before, sys._getframe(1))
    return pid


def _in_child() -> None:
    slot, _pending.slot = getattr(_pending, "slot", None), None
    _listeners.clear()  # what a forked child starts is not pytest's doing
    if slot is not None:
        page, number = slot
        _PID.pack_into(page, number * _PID.size, os.getpid())


def _in_parent() -> None:
    _pending.slot = None
