"""Processes by identity: a pid alone is reused, a pid with its start time is not, and a pidfd never is.

The process table is read straight from /proc, as it is read for every test (a 100 times cheaper than psutil's
recursive search).
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import _syscalls
from ._isolated import io, json, os, select, signal, time
from ._trace import trace
from .exceptions import ContainerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

SIGKILL = getattr(signal, "SIGKILL", signal.SIGTERM)
#: as many descriptors as we open at once, whatever there is to signal or to wait for: a soft limit may be 256
_MOST_PIDFDS = 64
#: their handlers may raise
_RAISE = {getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGALRM") if hasattr(signal, name)}


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process for good: its pid and its start time in clock ticks since boot (proc_pid_stat(5), field 22)."""

    pid: int
    start_time: int

    @classmethod
    def of(cls, pid: int) -> ProcessId | None:
        """The identity of the process that has *pid* now; None if there is none, or none to be seen."""
        fields = stat_fields(pid)
        return cls(pid, int(fields[19])) if fields else None

    @classmethod
    def own(cls) -> ProcessId:
        """This process's.

        Raises:
            ContainerError: it can't be read.
        """
        try:
            return cls(os.getpid(), int(_read_stat(os.getpid())[19]))
        except OSError as error:
            raise ContainerError(
                "this process can't see itself in /proc", path=error.filename, operation="read", errno=error.errno
            ) from error

    @property
    def alive(self) -> bool:
        """Whether this very process still exists and is not a zombie. Who can't be looked at may live."""
        return self.lives is not False

    @property
    def lives(self) -> bool | None:
        """The same; None where it can't be looked at."""
        try:
            fields = _read_stat(self.pid)
        except (FileNotFoundError, ProcessLookupError):
            return False
        except OSError:
            return None
        return int(fields[19]) == self.start_time and not has_ended(fields)


def stat_fields(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from the third (state) on, None when the process is gone, or hidden from this user.

    Raises:
        OSError: it can't be read for another reason, as for want of a descriptor: who is there is not taken for gone.
    """
    try:
        return _read_stat(pid)
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None


def _read_stat(pid: int) -> list[str]:
    with io.open(f"/proc/{pid}/stat", "rb", buffering=0) as f:
        return f.read(4096).rpartition(b")")[2].decode().split()  # the name before that may hold any bytes


def status_fields(pid: int | str) -> dict[str, str]:
    """The fields of /proc/PID/status by name (proc_pid_status(5)), of a process or a thread; the name may be any bytes.

    Raises:
        OSError: it is gone, or can't be read.
    """
    with io.open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as f:
        return {name: value.strip() for name, _, value in (line.partition(":") for line in f)}


def has_ended(fields: Sequence[str]) -> bool:
    """By its fields of /proc/PID/stat, whether the process has: Z is shown, too, of whom only the first thread has."""
    return fields[0] == "X" or (fields[0] == "Z" and int(fields[17]) <= 1)


def is_zombie(pid: int) -> bool:
    """Whether the process has ended and waits to be reaped."""
    fields = stat_fields(pid)
    return fields is not None and has_ended(fields)


def living_thread(pid: int) -> int:
    """*pid*, or, where the first thread has ended and others go on, the number of another one.

    /proc shows the memory, files, environment and arguments of a process as a thread's, and of an ended one's none.
    """
    with contextlib.suppress(OSError):  # what is asked of it next says so
        if (fields := stat_fields(pid)) and fields[0] == "Z" and not has_ended(fields):
            return next((int(name) for name in os.listdir(f"/proc/{pid}/task") if name != str(pid)), pid)
    return pid


def process_of(thread: int) -> int | None:
    """The process that a thread is one of (Tgid, proc_pid_status(5)); None when it is gone."""
    with contextlib.suppress(OSError):
        return int(status_fields(thread)["Tgid"])
    return None


def switches(pids: Iterable[int]) -> dict[int, str] | None:
    """By pid, how often each slept and woke up; None while one runs or waits for a CPU (proc_pid_status(5))."""
    found = {}
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = status_fields(pid)
            if fields["State"].startswith("R"):
                return None
            found[pid] = " ".join(value for name, value in fields.items() if name.endswith("_ctxt_switches"))
    return found


def children(pid: int | str = "self") -> list[int]:
    """The direct children of a process, zombies too (proc_tid_children(5)); [] when it is gone.

    Raises:
        OSError: they can't be listed.
    """
    found: list[int] = []
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except (FileNotFoundError, ProcessLookupError):
        return found
    for thread in threads:
        try:
            with io.open(f"/proc/{pid}/task/{thread}/children", encoding="utf-8") as f:
                found += map(int, f.read().split())
        except FileNotFoundError:
            if not _has_children_files():
                return _by_parent().get(os.getpid() if pid == "self" else int(pid), [])
        except ProcessLookupError:
            continue
    return found


def _has_children_files() -> bool:
    """A kernel without CONFIG_PROC_CHILDREN has none."""
    return os.path.exists("/proc/thread-self/children")


def _by_parent() -> dict[int, list[int]]:
    """The whole process table, which takes as long as there are processes on the host: read once for a whole tree."""
    found: dict[int, list[int]] = {}
    for pid in [int(name) for name in os.listdir("/proc") if name.isdigit()]:
        if fields := stat_fields(pid):
            found.setdefault(int(fields[1]), []).append(pid)
    return found


def descendants(root: int) -> list[int]:
    """Every living or zombie descendant of *root*, parents before their children; not *root* itself."""
    table = None if _has_children_files() else _by_parent()
    found: list[int] = []
    todo = [root]
    while todo:
        pid = todo.pop()
        born = children(pid) if table is None else table.get(pid, [])
        found += born
        todo += born
    return found


def lineage(pid: int) -> list[int]:
    """The process and its parents, up to this process or the end."""
    me, found = os.getpid(), []
    while pid > 1 and pid != me and pid not in found:
        found.append(pid)
        fields = stat_fields(pid)
        pid = int(fields[1]) if fields else 0
    return found


def has_children() -> bool:
    """Whether this process has children, zombies too: one system call, as it is asked at the end of every test."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def own_zombies() -> dict[int, str]:
    """This process's own children that have ended and that nobody waited for, with what the kernel still calls them.

    That is the name of the program, without its arguments (proc_pid_comm(5)). They are left as they are.
    """
    return {pid: comm(pid) for pid in children() if is_zombie(pid)} if has_children() else {}


def family() -> dict[int, list[str]]:
    """This process's descendants, each with its parents up to this one: once it has ended, nobody can tell."""
    found: dict[int, list[str]] = {}
    todo = [(os.getpid(), [_named(os.getpid())])] if has_children() else []
    while todo:
        parent, above = todo.pop()
        for pid in children(parent):
            found[pid] = above
            todo.append((pid, [_named(pid), *above]))
    return found


def _named(pid: int) -> str:
    return f"{comm(pid)}[{pid}]"


def comm(pid: int, gone: str = "?") -> str:
    """The name of its program, fit to be shown (proc_pid_comm(5)); *gone* where the process is."""
    try:
        with io.open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as f:
            name = f.read().strip()
    except OSError:
        return gone
    return name if name.isprintable() else ascii(name)[1:-1]  # anybody gives himself a name


def pidfd_open(pid: int) -> int | None:
    """A descriptor that is readable once the process has ended (pidfd_open(2)); None when it is gone already."""
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None


def own_pidfd() -> int:
    """A descriptor that is readable in others once this process has ended."""
    return os.pidfd_open(os.getpid())


def readable(*fds: int, seconds: float | None = 0.0) -> list[int]:
    """Those of *fds* that can be read, or are at their end, after *seconds* at most; None: once one is.

    With poll(2), as select(2) takes no descriptor above 1023, and a suite may have many open.
    """
    poll = select.poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    ready = {fd for fd, _ in poll.poll(None if seconds is None else seconds * 1000) or poll.poll(0)}  # EINTR, time over
    return [fd for fd in fds if fd in ready]


def send_signal(pidfd: int, number: int) -> bool:
    """Signal the process behind *pidfd*; False when it is gone (pidfd_send_signal(2))."""
    try:
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        return False
    return True


def signal_members(members: Callable[[], list[int]], number: int = SIGKILL) -> None:
    """Signal every process that *members* lists, and no other: a pid may be another's by the time it is used.

    A pidfd is opened first and the list read again: if the pid is still in it, the pidfd is one of the members, or
    one that has ended.
    """
    done: set[int] = set()
    while batch := [pid for pid in members() if pid not in done][:_MOST_PIDFDS]:
        with open_pidfds(batch) as fds:
            still = set(members())
            for fd, pid in fds.items():
                if pid in still:
                    with contextlib.suppress(PermissionError):
                        send_signal(fd, number)
                    trace("signal %d: pid %d", number, pid)
        done.update(batch)


def kill_members(members: Callable[[], list[int]], timeout: float) -> bool:
    """Kill what *members* lists until that is nothing; whether it is, after *timeout* seconds.

    They are stopped first: what is stopped can't fork while the others are killed. What the kernel refuses meanwhile,
    as for want of descriptors, is no reason to give up before.
    """
    deadline = time.monotonic() + timeout
    while True:
        try:
            if not (pids := members()):
                return True
            if len(pids) > 1:
                signal_members(members, signal.SIGSTOP)
            signal_members(members, SIGKILL)
            wait_gone(pids, min(0.5, max(0.0, deadline - time.monotonic())))
        except OSError:
            time.sleep(0.001)
        if time.monotonic() >= deadline:
            return False


@contextlib.contextmanager
def open_pidfds(pids: Iterable[int]) -> Iterator[dict[int, int]]:
    """pidfds of those of *pids* that still exist, ``{pidfd: pid}``, closed again on leaving."""
    fds: dict[int, int] = {}
    try:
        for pid in pids:
            if (fd := pidfd_open(pid)) is not None:
                fds[fd] = pid
        yield fds
    finally:
        for fd in fds:
            os.close(fd)


def gets_orphans() -> bool:
    """Whether orphans become children of this process: PID 1, as in a container of Docker's, or a subreaper."""
    return os.getpid() == 1 or _syscalls.get_child_subreaper()


def reap(pid: int) -> None:
    """Take in the end of a child of ours that was killed, so that whoever waits for any child next does not."""
    with contextlib.suppress(OSError):
        os.waitpid(pid, os.WNOHANG)


def wait_gone(pids: Iterable[int], timeout: float) -> bool:
    """Wait until the processes have ended (zombies count as ended); whether they have, after *timeout* seconds."""
    deadline = time.monotonic() + timeout
    waiting = list(pids)
    for first in range(0, len(waiting), _MOST_PIDFDS):
        with open_pidfds(waiting[first : first + _MOST_PIDFDS]) as fds:
            poll = select.poll()
            for fd in fds:
                poll.register(fd, select.POLLIN)
            left = set(fds)
            while left:
                ready = poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
                if not ready and time.monotonic() >= deadline:
                    return False
                for fd, _ in ready:
                    poll.unregister(fd)
                    left.remove(fd)
    return True


def fork() -> int:
    """os.fork() without Python 3.12's warning of other threads: who forks here says it better, and once.

    What a signal's handler raises, Ctrl-C's for one, is raised from here, and there is no child then. It may not come
    while os.fork() calls what was given to os.register_at_fork: what is raised there is dropped.
    """
    import warnings

    before = signal.pthread_sigmask(signal.SIG_BLOCK, _RAISE)
    pid = -1
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
    finally:
        try:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        except BaseException:
            if pid > 0:
                os.kill(pid, SIGKILL)
                os.waitpid(pid, 0)
            raise
    if pid:
        trace("fork: pid %d", pid)
    return pid


def set_rlimits(limits: Mapping[str, tuple[int | str, int | str]]) -> None:
    """Limit this process: ``{"nofile": (soft, hard)}``, where a string means unlimited (setrlimit(2))."""
    import resource

    for name, pair in limits.items():
        soft, hard = (resource.RLIM_INFINITY if isinstance(limit, str) else limit for limit in pair)
        try:
            resource.setrlimit(getattr(resource, f"RLIMIT_{name.upper()}"), (soft, hard))
        except (ValueError, OSError) as error:
            remedy = "without privilege pytest's own hard limit is the most (`ulimit -H`)"
            raise ContainerError(f"rlimits: {name} can't be set to {pair}: {error}", remedy=remedy) from error


def ask_child(function: Callable[[], object], timeout: float = 10.0) -> object:
    """What *function* returns, JSON-ready, when it is called in a forked child that is then gone.

    Raises:
        ContainerError: the child said nothing in *timeout* seconds, or died.
        OSError: there is no process to be had.
    """
    reader, writer = os.pipe()
    try:
        pid = fork()
    except OSError:
        os.close(reader)
        os.close(writer)
        raise
    if pid == 0:
        try:
            os.write(writer, json.dumps(function()).encode())
        finally:
            os._exit(0)
    os.close(writer)
    try:
        poll = select.poll()
        poll.register(reader, select.POLLIN)
        text = b""
        while poll.poll(timeout * 1000):
            if not (more := os.read(reader, 65536)):
                break
            text += more
        else:
            os.kill(pid, SIGKILL)
    finally:
        os.close(reader)
        os.waitpid(pid, 0)
    if not text:
        raise ContainerError("a forked child gave no answer", operation="fork")
    return json.loads(text)
