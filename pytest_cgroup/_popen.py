"""A real `subprocess.Popen` whose process begins in a container: the side of who asks.

All that Popen does stays Python's own: arguments, pipes, the reading of errors, waiting. Only ``_fork_exec``, the C
function at the bottom of it, is another one, for this Popen alone: `Popen._execute_child` is called with globals in
which that name is ours. Where one cgroup of v2 is all that it takes, and the C library knows how, that starts the
program; else a launcher does (`_launcher`), and also whatever the C library refuses: it tells why, in Python's words.
"""

from __future__ import annotations

import contextlib
import struct
import sys
import types
from typing import TYPE_CHECKING, Any

from . import _syscalls, _trace
from ._isolated import os, signal, socket, subprocess, threading, time
from ._launcher import receive, send
from ._process import has_ended, readable, stat_fields, status_fields
from ._program import BIRTHPLACE, CWD, DOOR, ERRORS, NOT_ENTERED, TOLD
from .exceptions import ContainerError

if sys.platform == "linux":  # the package imports elsewhere, too
    import resource

    _RLIMITS = sorted({getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")})

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ._veth import Seat

# It takes the package's modules without the package's own __init__, which imports what a launcher has no use for.
_BOOTSTRAP = """
import sys, types
package = types.ModuleType("pytest_cgroup")
package.__path__ = [sys.argv[2]]
sys.modules["pytest_cgroup"] = package
from pytest_cgroup._launcher import main
main()
"""
_RESTORED = {getattr(signal, name) for name in ("SIGPIPE", "SIGXFZ", "SIGXFSZ") if hasattr(signal, name)}
_OF_THE_C_LIBRARY = frozenset(range(32, getattr(signal, "SIGRTMIN", 32)))
_PF_FORKNOEXEC = 0x40  # forked, and has executed nothing yet: proc_pid_stat(5), include/linux/sched.h
_GONE = "the process that starts programs in containers has ended"


class Launcher:
    """A launcher, spoken to by one thread at a time.

    Args:
        pid: its pid, a child of ours.
        sock: its socket.
    """

    def __init__(self, pid: int, sock: socket.socket) -> None:
        self.pid = pid
        self._socket = sock
        self._lock = threading.Lock()
        #: it can be asked nothing more
        self.broken = False

    @classmethod
    def start(cls) -> Launcher:
        """The first one of this process: a fresh interpreter, since nobody may fork where other threads live.

        Raises:
            ContainerError: it can't be started.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            argv = [sys.executable, "-I", "-S", "-c", _BOOTSTRAP, str(theirs.fileno()), os.path.dirname(__file__)]
            try:
                process = subprocess.Popen(
                    argv,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=_trace.stderr,
                    pass_fds=[theirs.fileno()],
                    cwd="/",
                )
            except OSError as error:
                ours.close()
                raise ContainerError(
                    "can't start a second Python, which starts the programs in containers",
                    path=sys.executable,
                    operation="execve",
                    errno=error.errno,
                    remedy="sys.executable has to be a Python that this user may execute",
                ) from error
        process.returncode = 0  # it is waited for in `close`
        return cls(process.pid, ours)

    def ask(self, message: dict[str, Any], fds: Sequence[int] = ()) -> dict[str, Any]:
        """Its answer.

        Raises:
            ContainerError: it has ended.
            OSError: the kernel refused what was asked for.
        """
        for fd in fds:
            os.fstat(fd)  # no message shall end half-way for want of one
        with self._lock:
            answered = None
            try:
                if not self.broken:
                    send(self._socket, message, list(fds))
                    answered = receive(self._socket)
            except (BrokenPipeError, ConnectionResetError):
                pass
            finally:
                self.broken = answered is None  # also by Ctrl-C: nobody knows what the next answer would be to
        if answered is None:
            raise ContainerError(_GONE, operation="ask", remedy="it has been killed by somebody: leave it alone")
        answer = answered[0]
        if "errno" in answer:
            raise OSError(answer["errno"], os.strerror(answer["errno"]))
        return answer

    def branch(
        self,
        namespaces: dict[str, Any],
        *,
        user_ns: bool,
        own: bool,
        seat: Seat | None = None,
        init: bool = True,
    ) -> tuple[Launcher, int | None]:
        """A launcher for one container, in *namespaces*, and its init's pid; *own*: see `_launcher`.

        *seat* is its place in a network; without *init* its first program is PID 1.

        Raises:
            ContainerError: it could not enter one.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                asked = {
                    "namespaces": namespaces,
                    "user_ns": user_ns,
                    "own": own,
                    "network": None if seat is None else (seat.network_of, seat.number),
                    "init": init,
                }
                pid = self.ask(asked, [theirs.fileno()])["pid"]
            except BaseException:
                ours.close()
                raise
        branch = Launcher(pid, ours)
        try:
            answered = receive(ours)
        except ConnectionResetError:
            answered = None
        if answered is None or "error" in answered[0]:
            branch.close()
            raise ContainerError(answered[0]["error"] if answered else _GONE, operation="enter")
        return branch, answered[0]["init"]

    def close(self) -> None:
        """Let it end, and wait for it."""
        self._socket.close()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)

    def kill(self) -> None:
        """End it at once, whether it listens already or not."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)  # it is ours, and not waited for
        self.close()

    def forget(self) -> None:
        """In a forked child: it is the parent's."""
        self._socket.close()


class Popen(subprocess.Popen[Any]):
    """A `subprocess.Popen` of a program that a launcher forks, or the C library.

    Args:
        launcher: gives who forks it.
        direct: that one is in the same namespaces as this process, and above nothing.
        doors: descriptors that the process joins the container by.
        birthplace: the directory that it can be born in instead of going through the first door; None for none.
        own: the process is the launcher's child and not ours; then os.waitpid does not know it, all of Popen does.
        entry: what the process takes on, see `_program`.
        keeps_cwd: the working directory is the same file inside.
        argv, options: Popen's own.
    """

    def __init__(
        self,
        launcher: Callable[[], Launcher],
        argv: Any,
        *,
        direct: bool,
        doors: Sequence[int],
        birthplace: int | None,
        own: bool,
        entry: dict[str, Any],
        keeps_cwd: bool,
        **options: Any,
    ) -> None:
        self._launch = launcher
        self._doors = doors
        self._birthplace = birthplace
        self._entry = entry
        self._keeps_cwd = keeps_cwd
        is_all = direct and len(doors) == 1 and not entry
        self._only_cgroup = birthplace if is_all and _syscalls.can_spawn_into_cgroup() else None
        #: it could not be born inside, and had to join
        self.was_stillborn = False
        self.told: int | None = None
        self._tell = -1
        if own:
            self.told, self._tell = os.pipe()
        try:
            super().__init__(argv, **options)
        except BaseException as error:
            self._close_tell()
            if self.told is not None:
                os.read(self.told, 4)  # until the process that failed has ended
                self.returncode = 255
            self._close_told()
            if isinstance(error, subprocess.SubprocessError) and str(error).startswith(NOT_ENTERED):
                raise ContainerError(str(error).removeprefix(NOT_ENTERED), operation="enter") from None
            raise
        self._close_tell()

    def _execute_child(self, *arguments: Any) -> None:
        original = subprocess.Popen._execute_child  # type: ignore[attr-defined]
        names = {**original.__globals__, "_fork_exec": self._fork_exec, "_USE_POSIX_SPAWN": False}
        types.FunctionType(original.__code__, names, original.__name__, original.__defaults__)(self, *arguments)

    def _fork_exec(
        self,
        argv: Sequence[Any],
        executables: Sequence[bytes],
        close_fds: bool,
        kept: Sequence[int],
        cwd: Any,
        env: Sequence[bytes] | None,
        p2cread: int,
        p2cwrite: int,
        c2pread: int,
        c2pwrite: int,
        errread: int,
        errwrite: int,
        errpipe_read: int,
        errpipe_write: int,
        restore_signals: bool,
        setsid: bool,
        pgid: int,
        gid: int | None,
        gids: Sequence[int] | None,
        uid: int | None,
        umask: int,
        preexec_fn: Callable[[], object] | None,
        *_: object,
    ) -> int:
        if preexec_fn is not None:
            raise ValueError("preexec_fn is not to be had in a container: it would have to run in another process")
        words = [os.fsencode(word) for word in argv]
        if any(b"\0" in word for word in (*words, *executables, *(env or ()))):
            raise ValueError("embedded null byte")
        standard = {0: p2cread, 1: c2pwrite, 2: errwrite}
        is_plain = close_fds and set(kept) <= {errpipe_write} and umask < 0 and (uid, gid, gids) == (None,) * 3
        if self._only_cgroup is not None and is_plain and not _crosses(standard):
            asked = {
                "argv": words,
                "env": env,
                "cwd": None if cwd is None else os.fsencode(cwd),
                "pgid": pgid,
                "setsid": setsid,
                "restored": _RESTORED if restore_signals else (),
            }
            if (pid := self._spawn_directly(self._only_cgroup, executables, standard, asked)) is not None:
                return pid
        sources = {target: target if fd == -1 else fd for target, fd in standard.items()}
        sources |= {fd: fd for fd in (kept if close_fds else _inheritable()) if fd > 2 and fd != errpipe_write}
        wanted = [(target, fd) for target, fd in sources.items() if target != fd or _is_inherited(fd)]
        wanted += [(ERRORS, errpipe_write), *((DOOR, fd) for fd in self._doors)]
        if self._birthplace is not None:
            wanted.append((BIRTHPLACE, self._birthplace))
        if self._tell != -1:
            wanted.append((TOLD, self._tell))
        here = -1
        if cwd is None and self._keeps_cwd:
            here = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            wanted.append((CWD, here))
        try:
            own_umask, blocked, ignored = _dispositions()
            answer = self._launch().ask(
                {
                    "argv": words,
                    "executables": list(executables),
                    "env": list(env) if env is not None else [k + b"=" + v for k, v in os.environb.items()],
                    "cwd": os.path.abspath(os.fsencode(cwd)) if cwd is not None else os.getcwdb(),
                    "chdir": _CHDIR,
                    "targets": [target for target, _ in wanted],
                    "umask": umask if umask >= 0 else own_umask,
                    "setsid": setsid,
                    "pgid": pgid,
                    "gid": gid,
                    "gids": None if gids is None else list(gids),
                    "uid": uid,
                    "mask": blocked,
                    "ignored": ignored - (_RESTORED if restore_signals else set()),
                    "rlimits": _rlimits(),
                    "entry": self._entry,
                },
                [fd for _, fd in wanted],
            )
        finally:
            if here != -1:
                os.close(here)
        if answer.get("stillborn") is not None:
            self._was_stillborn(answer["stillborn"])
        return int(answer["pid"])

    def _spawn_directly(
        self, cgroup: int, executables: Sequence[bytes], standard: dict[int, int], asked: dict[str, Any]
    ) -> int | None:
        """Have the C library start it; None if that failed."""
        fds = {target: fd for target, fd in standard.items() if fd != -1}
        try:
            # Those that are not there are passed over; what is wrong with another one the launcher says.
            executable = next(each for each in executables if os.path.lexists(os.path.join(asked["cwd"] or b"", each)))
            pid = _syscalls.spawn_into_cgroup(cgroup, executable, fds=fds, **asked)
        except (OSError, StopIteration):
            return None
        if not _has_begun(pid):
            self._was_stillborn(pid)
            return None
        _trace.trace("spawn: %s: pid %d", asked["argv"], pid)
        return pid

    def _was_stillborn(self, pid: int) -> None:
        """Of its birthplace: see `_launcher`."""
        self.was_stillborn = True
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)

    # the end of a process that is the launcher's child

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        if self.told is None:
            return super()._try_wait(wait_flags)  # type: ignore[misc, no-any-return]
        if wait_flags & os.WNOHANG and not readable(self.told):
            return 0, 0
        data = os.read(self.told, 4)
        self._close_told()
        # Without a word, the launcher was killed, and the process with it.
        return self.pid, struct.unpack("=i", data)[0] if data else int(signal.SIGKILL)

    def _internal_poll(self, *arguments: Any, **options: Any) -> int | None:
        if self.told is None:
            found: int | None = super()._internal_poll(*arguments, **options)  # type: ignore[misc]
            return found
        if self.returncode is None and self._waitpid_lock.acquire(False):  # type: ignore[attr-defined]
            try:
                pid, status = self._try_wait(os.WNOHANG)
                if pid == self.pid:
                    self._handle_exitstatus(status)  # type: ignore[attr-defined]
            finally:
                self._waitpid_lock.release()  # type: ignore[attr-defined]
        return self.returncode

    def _close_tell(self) -> None:
        if self._tell != -1:
            os.close(self._tell)
            self._tell = -1

    def _close_told(self) -> None:
        if self.told is not None:
            os.close(self.told)
            self.told = None


_CONSTANTS = subprocess.Popen._execute_child.__code__.co_consts  # type: ignore[attr-defined]
#: what Python's reader takes for "the directory could not be entered": another word from 3.12 on
_CHDIR = b"noexec:chdir" if "noexec:chdir" in _CONSTANTS else b"noexec"


def _crosses(standard: dict[int, int]) -> bool:
    """Whether one of 0, 1 and 2, put in place in this order, is overwritten before it is put elsewhere."""
    return any(0 <= fd < target and standard[fd] not in (-1, fd) for target, fd in standard.items())


def _has_begun(pid: int) -> bool:
    """Whether it executes its program, or was killed before; whom vfork(2) kept goes on before either is to be seen."""
    with contextlib.suppress(OSError):  # it lives, or its end is told as any other's
        while (fields := stat_fields(pid)) and int(fields[6]) & _PF_FORKNOEXEC:
            if has_ended(fields):
                return False
            time.sleep(0.0001)
    return True


def _rlimits() -> dict[int, tuple[int, int]]:
    return {limit: resource.getrlimit(limit) for limit in _RLIMITS}


def _is_inherited(fd: int) -> bool:
    try:
        return fd > 2 or os.get_inheritable(fd)
    except OSError:  # it is closed
        return False


def _inheritable() -> list[int]:
    found = []
    for fd in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError):
            if os.get_inheritable(fd):
                found.append(fd)
    return found


def _dispositions() -> tuple[int, set[int], set[int]]:
    """This thread's umask, and the signals that it blocks and ignores (proc_pid_status(5)).

    A umask can be asked for only by setting it, or here, since Linux 4.7. And each signal would take a call.
    """
    fields = status_fields("thread-self")
    blocked, ignored = (_signals(int(fields.get(name, "0"), 16)) for name in ("SigBlk", "SigIgn"))
    return int(fields.get("Umask", "-1"), 8), blocked, ignored


def _signals(bits: int) -> set[int]:
    """Those of a mask, without the C library's own."""
    return {number for number in range(1, bits.bit_length() + 1) if bits >> number - 1 & 1} - _OF_THE_C_LIBRARY
