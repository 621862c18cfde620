"""`Daemon`: a program in a container that is started, waited for until it is ready, watched, and started again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._upkeep import OVER, TAIL_LINES
from .exceptions import ContainerTimeout

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ._life import Life
    from ._upkeep import Upkeep

__all__ = ["Daemon"]


class Daemon:
    """A supervised program in a container; made by `Container.daemon`. Any thread may use it.

    Attributes:
        name: as given, or the program's; no other daemon of the container has it.
    """

    def __init__(self, life: Life, upkeep: Upkeep) -> None:
        self.name = upkeep.name
        self._life = life
        self._upkeep = upkeep

    def __repr__(self) -> str:
        return f"<Daemon {self.name} ({self._upkeep.state}, pid {self.pid})>"

    # what it is

    @property
    def state(self) -> str:
        """``"waiting"`` for what it was asked to be after, ``"starting"`` until it is ready, ``"ready"``,
        ``"restarting"`` between two runs, ``"stopping"``; ``"ended"`` and ``"failed"`` for good."""
        return self._upkeep.state

    @property
    def pid(self) -> int | None:
        """The program's, as seen from here; None while it does not run."""
        instance = self._upkeep.instance
        return None if instance is None else instance.pid

    @property
    def running(self) -> bool:
        """Whether the program runs; one that has ended does not, waited for or not."""
        instance = self._upkeep.instance
        return instance is not None and instance.process.poll() is None

    @property
    def returncode(self) -> int | None:
        """Of the run before this one, as `subprocess.Popen.returncode`; None in the first."""
        return self._upkeep.returncode

    @property
    def reason(self) -> str | None:
        """What that means: ``"normal"`` for 0, ``"exit 3"``, ``"SIGSEGV"``, or the word that ``exit_status`` gave."""
        return self._upkeep.reason

    @property
    def restarts(self) -> int:
        """How often it was started again because it had ended."""
        return self._upkeep.restarts

    # its output

    @property
    def output_bytes(self) -> int:
        """How much it has printed, in all of its runs, in bytes."""
        return self._upkeep.logs[0].size + self._upkeep.logs[1].size

    def tail(self, lines: int = TAIL_LINES) -> str:
        """The last lines that it has printed, as text; bytes that are not UTF-8 are replaced."""
        self._life.check_owner("tail")
        return self._upkeep.tail(lines)

    def lines(self, *, follow: bool = False, timeout: float | None = None, stderr: bool = False) -> Iterator[str]:
        """What it has printed, line by line, from the beginning, or from the oldest that is kept on.

        Args:
            follow: go on with what it prints, until it has ended for good; every reader gets every line.
            timeout: with *follow*, end after so many seconds.
            stderr: of its own, where it was started with ``stderr=subprocess.PIPE``.

        What a reader has missed is a line that says how much. 64 KiB without a newline are a line.
        """
        self._life.check_owner("lines")
        return self._upkeep.logs[stderr].lines(follow=follow, timeout=timeout)

    # waiting for it

    def wait_ready(self, timeout: float | None = None) -> None:
        """Wait until it is ready.

        Raises:
            DaemonError: it will not be: it has ended, or was stopped.
            ContainerTimeout: it is not after *timeout* seconds.
        """
        __tracebackhide__ = True
        self._life.check_owner("wait_ready")
        self._upkeep.wait_ready(timeout)

    def wait(self, timeout: float | None = None) -> str:
        """Wait until it has ended for good: no restart is to come. The `reason` of its last end.

        Raises:
            DaemonError: it has failed.
            ContainerTimeout: it has not ended after *timeout* seconds.
        """
        __tracebackhide__ = True
        self._life.check_owner("wait")
        with self._upkeep.changed:
            if not self._upkeep.changed.wait_for(lambda: self._upkeep.state in OVER, timeout):
                raise ContainerTimeout(f"daemon {self.name} has not ended in {timeout:g} s", operation="wait")
            self._upkeep.check()
            return self._upkeep.reason or "shutdown"

    def check(self) -> None:
        """Has it failed? The error is raised here, or by whatever waits for the daemon; if by none, by its container's
        end.

        Raises:
            DaemonError: it was restarted too often, or was never ready.
        """
        __tracebackhide__ = True
        self._upkeep.check()

    # what can be done with it

    def signal(self, number: int) -> None:
        """Signal the program alone, if it runs."""
        self._life.check_owner("signal")
        if (instance := self._upkeep.instance) is not None:
            instance.signal(number)

    def stop(self, grace: float | None = None) -> str | None:
        """End it for good: its stop signal, SIGKILL after *grace* seconds, no longer than needed.

        What came of it, and is still there, is killed with it. A restart, and a wait until it is ready, that are
        pending are cancelled.

        Its `reason`. A second time nothing happens.

        Raises:
            ContainerError: it is still there ten seconds after SIGKILL.
        """
        self._life.check_owner("stop")
        self._upkeep.stop(grace)
        return self.reason

    def restart(self) -> None:
        """End the program as `stop` does, and start it again, ready; also after it has ended, or failed. It is not
        counted with the restarts of the policy.

        Raises:
            DaemonError, ContainerError, OSError: as at its start.
        """
        __tracebackhide__ = True
        self._life.check("restart")
        self._upkeep.restart()
