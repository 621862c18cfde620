"""One run of a daemon's program: its process, the processes that came of it, its output, and its end."""

from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING, Any

from ._isolated import io, os, signal, subprocess
from ._process import ProcessId, descendants, pidfd_open, signal_members, stat_fields, wait_gone
from .exceptions import DaemonError

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._life import Life
    from ._log import Log
    from ._popen import Popen
    from ._supervisor import Supervisor

_PIECE = 1 << 16
_LARGEST_PIPE = 1 << 20  # that a process without privilege can make
#: for the killed to be gone, before the next run of the program begins
_GONE_SECONDS = 2.0
_SESSION = 3  # proc_pid_stat(5), counted from the state


class Instance:
    """The program, started.

    Args:
        start: starts a process in the container, of an argv and Popen's options.
        pids: who lives in the container.
        supervisor: reads its output, and notices its end.
        logs: for stdout and for stderr, where they are pipes.
        ended: called with the returncode, in the supervisor's thread, when all has been read.

    Raises:
        ContainerError, OSError: as `Container.popen`.
    """

    def __init__(
        self,
        argv: Any,
        options: dict[str, Any],
        *,
        start: Callable[[Any, dict[str, Any]], Popen],
        pids: Callable[[], list[int]],
        supervisor: Supervisor,
        logs: tuple[Log, Log],
        ended: Callable[[Instance, int], object],
    ) -> None:
        self._supervisor = supervisor
        self._in_container = pids
        self._ended = ended
        #: where in its log the output of this run begins
        self.log_from = logs[0].size
        self.process = start(argv, options)
        self.pid = self.process.pid
        self._end = pidfd_open(self.pid) if self.process.told is None else os.dup(self.process.told)
        self._pipes: dict[int, Log] = {}
        for pipe, log in zip((self.process.stdout, self.process.stderr), logs, strict=True):
            if pipe is not None:
                os.set_blocking(pipe.fileno(), False)
                self._pipes[pipe.fileno()] = log
        #: why it was killed, if it was from here
        self.doomed: str | None = None
        supervisor.call(self._watch)

    def family(self) -> list[int]:
        """It, what descends from it, and who lost its parent, but stayed in its session (setsid(2))."""
        found = {self.pid, *descendants(self.pid)}
        inside = self._in_container()
        members = (pid for pid in inside if (fields := stat_fields(pid)) and int(fields[_SESSION]) == self.pid)
        return [pid for pid in inside if pid in {*found, *members}]

    def signal(self, number: int) -> None:
        """Signal the program alone."""
        with contextlib.suppress(OSError):
            self.process.send_signal(number)

    def kill(self, why: str | None = None) -> None:
        """SIGKILL for it and its family."""
        self.doomed = self.doomed or why
        with contextlib.suppress(OSError):
            signal_members(self.family, signal.SIGKILL)
        with contextlib.suppress(OSError):
            self.process.kill()

    # in the supervisor's thread

    def _watch(self) -> None:
        for fd, log in self._pipes.items():
            self._supervisor.watch(fd, functools.partial(self._read, fd, log))
        if self._end is None:
            self._gone()
        else:
            self._supervisor.watch(self._end, self._gone)

    def _read(self, fd: int, log: Log) -> None:
        try:
            piece = os.read(fd, _PIECE)
        except BlockingIOError:
            return
        if not piece:
            self._supervisor.unwatch(fd)
            del self._pipes[fd]
            return
        log.write(piece)
        if log.full:
            self._supervisor.unwatch(fd)

    def read_on(self) -> None:
        """Somebody has read of a log that was full."""
        for fd, log in self._pipes.items():
            if not log.full:
                self._supervisor.unwatch(fd)
                self._supervisor.watch(fd, functools.partial(self._read, fd, log))

    def _gone(self) -> None:
        if self._end is not None:
            self._supervisor.unwatch(self._end)
            os.close(self._end)
        code = self.process.wait()
        self._end_family()
        for fd, log in self._pipes.items():
            self._supervisor.unwatch(fd)
            most = _LARGEST_PIPE
            with contextlib.suppress(BlockingIOError):
                while most > 0 and (piece := os.read(fd, _PIECE)):
                    log.write(piece)
                    most -= len(piece)
        self._pipes.clear()
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()
        self._ended(self, code)

    def _end_family(self) -> None:
        """Whatever is left of it would be in the way of the next run: of its port, of its files."""
        with contextlib.suppress(OSError):
            if left := self.family():
                signal_members(self.family, signal.SIGKILL)
                wait_gone(left, _GONE_SECONDS)


class Scene:
    """Where a condition is looked at: see `ready.Scene`."""

    def __init__(self, life: Life, instance: Instance | None, log: Log) -> None:
        self._life = life
        self.instance = instance
        self.log = log
        self.log_from = 0 if instance is None else instance.log_from
        self.own_network = life.has_own_network
        self.network_of: int | str = life.network_of

    def family(self) -> list[int] | None:
        return None if self.instance is None else self.instance.family()

    def helper(self, argv: list[str], options: dict[str, Any]) -> Any:
        process = self._life.start_process(argv, options)
        self._life.not_left.add(process.pid)
        return process


def program_name(argv: Any) -> str:
    """The program's, without its directory."""
    first = argv if isinstance(argv, str | bytes | os.PathLike) else next(iter(argv), "daemon")
    words = os.fsdecode(first).split()
    return os.path.basename(words[0]) if words else "daemon"


# the file that says its pid


def claim_pidfile(path: str, name: str) -> None:
    """It is free, or was left behind.

    Raises:
        DaemonError: a process of the pid in it lives.
    """
    with contextlib.suppress(OSError, ValueError), io.open(path, encoding="utf-8") as f:
        pid = int(f.read().split()[0])
        if (identity := ProcessId.of(pid)) is not None and identity.alive:
            raise DaemonError(
                f"daemon {name}: process {pid} lives, says {path}",
                daemon=name,
                operation="pidfile",
                remedy="end it, or name another file",
            )


def write_pidfile(path: str, pid: int) -> None:
    """Its content, at once and whole."""
    beside = f"{path}.{os.getpid()}"
    with io.open(beside, "w", encoding="utf-8") as f:
        f.write(f"{pid}\n")
    os.replace(beside, path)


def remove_pidfile(path: str, pid: int) -> None:
    """If it is still that of *pid*."""
    with contextlib.suppress(OSError, ValueError):
        with io.open(path, encoding="utf-8") as f:
            ours = int(f.read()) == pid
        if ours:
            os.unlink(path)


#: Popen's options, where the user says nothing else
DEFAULTS: dict[str, Any] = {
    "stdin": subprocess.DEVNULL,
    "stdout": subprocess.PIPE,
    "stderr": subprocess.STDOUT,
    "start_new_session": True,
}
