"""The process that pytest forks for a container: the first one itself, or who stands above it, and tells of it.

The reaper and the keeper of namespaces (`_reaper`) tell on a pipe how the first process ended. Without them the direct
child is the first process, and on its pipe it tells only that it could not enter.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from . import _syscalls
from ._isolated import json, os, select, signal, time
from ._process import pidfd_open, readable, send_signal
from .exceptions import ContainerError

if TYPE_CHECKING:
    from ._backends import Tree


class DirectChild:
    """One of pytest's own children; before `forked` there is none, and it counts as ended.

    Args:
        tree: what it is the root of; told who the reaper is, and what was used in all.

    Attributes:
        pid: the direct child's.
        reaper: who adopts and reaps what is in the container; None where nobody does, or as long as that is not told.
        reaped: whether the direct child was waited for.
        is_killed: set by who kills the container: that the direct child was killed is no news, then.
        wait_status: the first process's; None as long as it has not ended.
        error: what kept the first process from being what it was forked for, or us from knowing how it ended.
        untold: why nobody can say what the first process left behind.
    """

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self.pid = 0
        self.reaper: int | None = None
        self.reaped = self.is_killed = False
        self.wait_status: int | None = None
        self.error: ContainerError | None = None
        self.untold: str | None = None
        self._pidfd: int | None = None
        self._status: int | None = None
        self._status_text = b""

    def forked(self, pid: int, status: int, *, above: bool) -> None:
        """It is there.

        Args:
            pid: its pid.
            status: the end of the pipe to read; closed by `close`.
            above: it stands above the first process.

        Raises:
            OSError: it can't be watched, and is to be ended at once.
        """
        os.set_blocking(status, False)
        self.pid, self._status = pid, status
        self.reaper = pid if above else None
        self._tree.started(pid)
        self._pidfd = pidfd_open(pid)
        if self._pidfd is None:  # it has ended, and somebody else has waited for it
            self._has_ended()

    def end_unseen(self) -> None:
        """It can't be watched: it is killed. Its pid is its own until it is waited for."""
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)

    def close(self) -> None:
        """Close the descriptors."""
        for fd in (self._pidfd, self._status):
            if fd is not None:
                os.close(fd)
        self._pidfd = self._status = None

    # what it tells

    @property
    def fds(self) -> list[int]:
        """What to poll for, as long as it lives."""
        # Without a reaper, what is told on the pipe is of no use before the process has ended.
        fds = (self._status if self.reaper is not None else None, self._pidfd if not self.reaped else None)
        return [fd for fd in fds if fd is not None]

    def notice(self, fd: int) -> bool:
        """One of `fds` has something; False once that is at its end."""
        if fd == self._status:
            return self.read_status()
        self._has_ended()
        return False

    def read_status(self) -> bool:
        """Take what the reaper, or a first process that could not enter, has told; False at the end of file."""
        if self._status is None:
            return False
        try:
            text = os.read(self._status, 65536)
        except BlockingIOError:
            return True
        self._status_text += text
        *lines, self._status_text = self._status_text.split(b"\n")
        for message in map(json.loads, lines):
            if "error" in message:
                self.error = ContainerError(message["error"], operation="enter")
            if "status" in message:
                self.wait_status = message["status"]
            if "rusage" in message:
                self._tree.ended(message["rusage"])
            if "reaper" in message:
                self.reaper = message["reaper"]
                self._tree.started(message["reaper"])
        if not text:
            os.close(self._status)
            self._status = None
        return bool(text)

    def fail(self, error: ContainerError) -> None:
        """The first error is the one that counts."""
        self.error = self.error or error

    # its end

    def ends_in(self, seconds: float) -> bool:
        """Whether it ends in that time, or has; it is not waited for."""
        if self._pidfd is None or self.reaped:
            return True
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return bool(poll.poll(seconds * 1000))

    def signal(self, number: int) -> None:
        """Signal it, as long as it was not waited for."""
        if self._pidfd is not None and not self.reaped:
            with contextlib.suppress(OSError):
                send_signal(self._pidfd, number)

    def signal_first(self, number: int) -> bool:
        """Signal the first process; where a reaper stands above it, the reaper passes the signal on."""
        if self._pidfd is None or self.reaped:
            return False
        with contextlib.suppress(ProcessLookupError, PermissionError):
            _syscalls.sigqueue(self.reaper or self.pid, number)  # neither pid is anybody else's before it is reaped
            return True
        return False

    def kill_reaper(self) -> None:
        """SIGKILL for who stands directly above the first process."""
        if self.reaper is not None and self.reaper != self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.reaper, signal.SIGKILL)  # its parent has not reaped it, or that would have ended
        else:
            self.signal(signal.SIGKILL)

    def end(self, seconds: float) -> bool:
        """Nothing is left for it to do, so it ends, and is reaped here; it is killed if it does not.

        False if it is still there after *seconds*: in uninterruptible sleep.
        """
        if self._pidfd is None or self.reaped:
            return True
        deadline = time.monotonic() + seconds
        while not self.ends_in(0.0):
            self.signal(signal.SIGKILL)
            if not self.ends_in(0.05) and time.monotonic() > deadline:
                return False
        while self.read_status():
            if self._status is not None and not readable(self._status):
                break
        self._wait()
        return True

    def _has_ended(self) -> None:
        """What it told of the first process is there, if it has told."""
        self.read_status()
        self._wait()
        if self.wait_status is None:
            self._took_it_along()

    def _wait(self) -> None:
        """Reap it. Where it stands above the first process, its own status says nothing of that one."""
        self.reaped = True
        try:
            _, status = os.waitpid(self.pid, 0)
        except ChildProcessError:  # SIGCHLD is ignored in this process, or a thread of it waits for any child
            if self.wait_status is None:
                self.fail(
                    ContainerError(
                        "somebody else in this process has waited for the container's process: "
                        "how it ended is not known",
                        operation="waitpid",
                        remedy="wait for your own children by pid, and leave SIGCHLD alone",
                    )
                )
                self.wait_status = 0
        else:
            if self.reaper is None:
                self.wait_status = status
            elif os.WIFSIGNALED(status) and not self.is_killed:
                self.untold = "the process above it was killed: what it left behind can't be told"

    def _took_it_along(self) -> None:
        """It has ended, and said nothing of the first process, which went with it."""
        self.wait_status = signal.SIGKILL
        self.fail(
            ContainerError(
                "the process above the container's first one was killed, and took it along",
                operation="reap",
                remedy="a contained test's parent process is not pytest: do not signal it",
            )
        )
