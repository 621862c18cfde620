"""The guard: a small process beside pytest that cleans up when pytest is killed.

Theory of operation. With its first contained test a session starts one more process (`_guard_process`), which sleeps
in one poll(2). It has a pidfd of pytest, readable when pytest has ended however that came about (and not when the
thread that started something has, as with PR_SET_PDEATHSIG), and a pipe, by which pytest says at a clean end that there
is nothing to do. If pytest ends without that, the guard kills what is in the session's containers and removes its
cgroups (`_recover`). The pidfd and not the pipe's end of file is what counts: every process that pytest has
forked holds the pipe, too. That has its use: until it is at its end, somebody may be on the way into a container, and
the guard looks again.

In the process backend there is no cgroup that tells who is in it. There the process above each container tells the
guard of itself by the same pipe, before it starts anything; and whatever was executed bears an environment variable
(`_ownership`).

It is a program of its own and not a fork of pytest: a fork that lives as long as the session makes pytest copy every
page that it writes, and holds its locks, files and memory. Starting it takes pytest a fork; for the interpreter pytest
does not wait. It has 9 MB, of which 5 are shared with pytest's own interpreter, and 13 in a session of more than a
second, by when it has what it needs to be quick.

It is nobody's child, so no test waits for it, nor takes it for a leak. It stands in pytest's own cgroup, and so in no
test's limits; in a session of its own with every signal blocked, so that neither Ctrl-C nor a closed terminal reaches
it; and where that is allowed the OOM killer does not choose it.

Each worker of pytest-xdist has its own, which watches the controller as well: when that is killed, the worker is too.
"""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, NoReturn

from . import _guard_process
from ._isolated import io, json, os, signal
from ._ownership import Owner, this_process
from ._process import ProcessId, fork, pidfd_open, readable
from ._recover import NO_RECOVERY, sweep, sweep_processes
from ._trace import SWITCH as DEBUG
from ._trace import trace, warn
from .exceptions import CgroupError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._cgroup import Cgroup
    from ._host import Host

#: set by the tests of what happens without a guard
SWITCH = "PYTEST_CGROUP_NO_GUARD"
#: under this name a controller of pytest-xdist tells its workers who it is
CONTROLLER = "pytest_cgroup_controller"


def watch_over(
    host: Host,
    *,
    processes: bool,
    controller: str | None = None,
    in_place: Sequence[str] | None = None,
    name: str = "pytest",
) -> str | None:
    """Start the guard of *host*'s session, and clean up after sessions that had none to do so.

    Args:
        host: what holds the session's cgroup; it ends the guard when it is closed.
        processes: whether containers are no cgroups here, but trees of processes.
        name: what this process is called if it was killed.
        controller: `str(Owner)` of the process that this one works for, and with which it is to end.
        in_place: where leaks are looked for in place, the globs of what is none; None where they are not.

    Returns:
        Why there is no guard, where there is none.
    """
    session = None if processes else host.placement.session
    if not os.environ.get(NO_RECOVERY):
        try:
            if session is None:
                sweep_processes()
            else:
                sweep(session)
        except (OSError, CgroupError) as error:  # whatever is left, it is not this run's
            warn("can't look for what dead runs left behind: %s", error)
    if host.guard is not None or os.environ.get(SWITCH):
        return None
    try:
        host.guard = _start_guard(
            host, session, processes=processes, controller=controller, in_place=in_place, name=name
        )
    except (OSError, ValueError, CgroupError) as error:  # no process to be had, no interpreter to be executed
        return f"there is no guard, and if {name} is killed it leaves its containers behind: {error}"
    return None


def _start_guard(
    host: Host,
    session: Cgroup | None,
    *,
    processes: bool,
    controller: str | None,
    in_place: Sequence[str] | None,
    name: str,
) -> Guard:
    owner = this_process()
    orders = {
        "name": name,
        "owner": [owner.process.pid, owner.process.start_time, *owner.namespaces],
        "cgroup": session is not None,
        "unified": session and session.unified,
        "controllers": session and session.controllers,
        "enabled": host.placement.enabled_above if session is not None else (),
        "cookie": processes,
        "in_place": in_place,
    }
    return Guard(json.dumps(orders), _living(controller))


def _living(controller: str | None) -> list[int]:
    """A pidfd of the controller, if it is a process of this host that still lives; else there is nothing to watch."""
    owner = Owner.parse(controller or "")
    fd = None if owner is None or owner.is_dead is None else pidfd_open(owner.process.pid)
    if fd is None or owner is None:
        return []
    if owner.is_dead:  # asked when its pid could no longer become another's
        os.close(fd)
        return []
    return [fd]


class Guard:
    """A guard that runs, seen from pytest.

    Args:
        orders: what it is to clean up, in JSON.
        others: pidfds of who must live beside this process; taken over.

    Raises:
        OSError: it can't be started.
    """

    def __init__(self, orders: str, others: list[int]) -> None:
        self._owner = os.getpid()
        argv = [sys.executable, "-I", "-S", "-B", _guard_process.__file__, orders, str(len(others))]
        self._pipe = self._pidfd = -1
        with contextlib.ExitStack() as stack:
            for fd in others:
                stack.callback(os.close, fd)
            try:
                self.pid = self._start(argv, others, stack)
            except BaseException:
                self._close()
                raise

    def _start(self, argv: list[str], others: list[int], stack: contextlib.ExitStack) -> int:
        """Its pid; what only the guard needs is closed with *stack*."""
        reader, self._pipe = os.pipe()
        stack.callback(os.close, reader)
        os.set_blocking(self._pipe, False)  # whatever becomes of the guard, no test hangs on it
        answer, told = os.pipe()
        stack.callback(os.close, answer)
        with io.open(told, "wb"):
            me = os.pidfd_open(self._owner)
            stack.callback(os.close, me)
            signals = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            try:
                if (between := fork()) == 0:
                    _start([reader, me, 2, *others], argv, told)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, signals)
        with contextlib.suppress(ChildProcessError):  # SIGCHLD is ignored here
            os.waitpid(between, 0)
        said = os.read(answer, 1000).decode(errors="replace")
        if not said.isdigit():
            raise OSError(said or "the process that was to start it was killed")
        self._pidfd = os.pidfd_open(int(said))
        trace("guard: pid %s watches pid %d", said, self._owner)
        return int(said)

    def announce(self, pid: int | None = None) -> None:
        """In a process that stands above a container, or of the process *pid*: if pytest dies, kill what is below."""
        self._tell(b"%d %d\n", pid)

    def announce_fork(self) -> None:
        """In a process that was forked in place: it is to be killed if pytest dies, with what is below it."""
        self._tell(_guard_process.FORK + b" %d %d\n")

    def _tell(self, line: bytes, pid: int | None = None) -> None:
        # The number by which pytest knows it: in a pid namespace it has another one, but there is no new /proc yet.
        told = ProcessId.of(int(os.readlink("/proc/self")) if pid is None else pid)
        if told is not None:
            with contextlib.suppress(BlockingIOError, BrokenPipeError):  # it was killed, or stopped
                os.write(self._pipe, line % (told.pid, told.start_time))

    def end(self) -> None:
        """There is nothing to clean up any more. In a forked child nothing happens."""
        if os.getpid() != self._owner:
            return
        with contextlib.suppress(OSError):
            os.write(self._pipe, _guard_process.DONE + b"\n")
            trace("guard: nothing is left to do for pid %d", self.pid)
            readable(self._pidfd, seconds=1.0)
        self._close()

    def _close(self) -> None:
        for fd in (self._pipe, self._pidfd):
            if fd != -1:
                os.close(fd)
        self._pipe = self._pidfd = -1


def _start(fds: list[int], argv: list[str], told: int) -> NoReturn:
    """In the process between, which ends: what it has started is then nobody's child."""
    try:
        os.setsid()
        os.chdir("/")
        first = max(*fds, told, len(fds)) + 1  # above all that is open here and of use
        for number, fd in enumerate((*fds, told)):
            os.dup2(fd, first + number)
        for number in range(len(fds)):
            os.dup2(first + number, number)
        told = first + len(fds)
        os.set_inheritable(told, False)
        os.closerange(len(fds), told)
        os.closerange(told + 1, os.sysconf("SC_OPEN_MAX"))
        kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH", DEBUG, NO_RECOVERY) if name in os.environ}
        pid = os.posix_spawn(argv[0], argv, {"LC_ALL": "C.UTF-8", **kept})  # no second copy of the page tables
        os.write(told, b"%d" % pid)
    except OSError as error:
        os.write(told, str(error).encode(errors="replace")[:900])
    finally:
        os._exit(0)
