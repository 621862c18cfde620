"""A container: one live tree of processes, started, watched, killed whole and measured.

Theory of operation. `fork` makes the first process, which enters the container by itself before it does anything
else, and returns in both processes. The parent then `watch`es: it sleeps in one poll(2) on whatever its caller wants
to read, on the end of the first process, on the kernel's word that memory ran out, and on the nearest deadline.
`destroy` names what is left, kills it, waits until the kernel says that nothing is there, and gives the `Outcome`.

Between parent and first process there may be one or two more, and they are never in the container's cgroup::

    pytest ── test                                     cgroup backend
    pytest ── reaper ── test                           pid namespace (the reaper is its PID 1), process backend
    pytest ── namespace keeper ── reaper ── test       pid namespace without privilege, in a user namespace
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from types import MappingProxyType
from typing import TYPE_CHECKING

from . import _syscalls
from ._direct_child import DirectChild
from ._entry import Shape, enter, fork_first
from ._isolated import os, select, signal, time
from ._left import left_behind, settles, who, zombie
from ._outcome import Leak, Outcome
from ._reaper import no_fork
from ._started import as_told
from ._trace import trace
from ._watched import Watched
from .exceptions import ContainerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from ._backends import Backend, Tree
    from ._host import Host
    from ._spec import Spec
    from ._started import Start

#: how long a process that is on its way out may take before it counts as left behind, in seconds
SETTLE_SECONDS = 0.1
#: how long a killed tree may take to be gone: more is a task in uninterruptible sleep
KILL_SECONDS = 10.0
#: how long a reaper may take to end when its container is empty
_REAPER_SECONDS = 0.5


class Container:
    """One container, from `start` to `destroy`.

    Args:
        spec: what is asked of it; already resolved, so that sizes are bytes.
        backend: makes its tree.
        host: what this machine offers.
        name: becomes part of a directory's name.
        keep: paths that stay visible where a private /tmp would hide them.
        nests: its processes are going to make containers inside.
    """

    def __init__(
        self, spec: Spec, *, backend: Backend, host: Host, name: str, keep: tuple[str, ...] = (), nests: bool = False
    ) -> None:
        self.spec = spec
        self.backend = backend
        self.name = name
        self._host = host
        self._keep = keep
        self._nests = nests
        self._tree: Tree | None = None
        self._direct_child: DirectChild | None = None
        #: its limits that the kernel does not keep
        self.watched = Watched(spec)
        self._cause: str | None = None
        #: the first process has outlived a kill: who waits for its end may wait for ever
        self._survives = False
        self._notes: list[str] = []
        self._outcome: Outcome | None = None
        self._unseen: str | None = None
        #: called just before a container is killed at a deadline, while everything in it still lives
        self.before_kill: Callable[[], None] = lambda: None
        #: others that are kept in sight while this one is watched
        self.beside: Sequence[Container] = ()
        #: by descriptor, what reads of it while it stands beside another
        self.readers: Mapping[int, Callable[[], bool]] = {}
        #: called when it has ended beside another
        self.after_end: Callable[[], None] = lambda: None

    def start(self) -> None:
        """Make the container, empty, with its limits in force.

        Raises:
            ContainerError: the kernel refused something; nothing is left behind.
        """
        self._tree = self.backend.create(self.spec, self.name, nests=self._nests)
        self._direct_child = DirectChild(self._tree)
        trace("container %s: made by %s, limits in force: %s", self.name, self.backend.name, dict(self._tree.limits))

    @property
    def tree(self) -> Tree:
        assert self._tree is not None, "the container is not started"
        return self._tree

    @property
    def direct_child(self) -> DirectChild:
        """The process that pytest waits for: the first one, or who stands above it."""
        assert self._direct_child is not None, "the container is not started"
        return self._direct_child

    # the first process

    def fork(self) -> bool:
        """Fork the first process of the container. True in that process, which is inside already; False in the parent.

        Raises:
            ContainerError: the host has no process to give (EAGAIN, ENOMEM), in the parent.
        """
        shape = Shape.of(self.spec, self.backend, self._host)
        _syscalls.load()  # here, once, and not in every child
        try:
            status_reader, status = os.pipe()
        except OSError as error:
            raise no_fork(error) from error
        self.watched.start()
        try:
            pid = fork_first(shape, status, self._announce)
        except (OSError, ContainerError) as error:
            os.close(status_reader)
            os.close(status)
            if isinstance(error, ContainerError):
                raise
            raise no_fork(error) from error
        if pid == 0:
            os.close(status_reader)
            enter(self.spec, shape, self.tree.join, keep=self._keep, status=status)
            return True
        os.close(status)
        try:
            self.direct_child.forked(pid, status_reader, above=shape.reaper)
        except OSError as error:
            self.tree.kill(KILL_SECONDS)
            self.direct_child.end_unseen()
            self.tree.kill(KILL_SECONDS)
            raise no_fork(error) from error
        return False

    def _announce(self) -> None:
        """In a process above the first one."""
        self._host.announce()
        self.tree.admitted()

    def refused(self, why: str) -> None:
        """The first process is in, and could not go on from there."""
        self.direct_child.fail(ContainerError(f"the test could not be begun: {why}", operation="enter"))

    # watching it

    @property
    def ended(self) -> bool:
        """Whether the first process has ended."""
        return self.direct_child.wait_status is not None

    def watch(
        self, readers: Mapping[int, Callable[[], bool]], done: Callable[[], bool], timeout: float | None = None
    ) -> None:
        """Sleep until *done* or the first process has ended; *readers* are called when their descriptor has something.

        Also until it can't be ended: it was killed, and is still there.

        A reader returns False once its descriptor is at its end. A container that is over a limit of time, or out of
        memory where the kernel does not end it, is killed from here; so are those `beside` it. *timeout* seconds bound
        the sleep itself.
        """
        until = None if timeout is None else time.monotonic() + timeout
        poll = select.poll()
        heard = {self: self._heard(readers)}
        heard |= {one: one._heard(one.readers) for one in self.beside if not (one is self or one.ended)}
        for fd in [fd for its_own in heard.values() for fd in its_own]:
            poll.register(fd, select.POLLIN)
        while not (done() or self.ended or self._survives) and (until is None or time.monotonic() < until):
            hear = {fd: call for its_own in heard.values() for fd, call in its_own.items()}
            waits = [wait for one in heard if (wait := one._poll_milliseconds(until)) is not None]
            for fd, _ in poll.poll(min(waits, default=None)):
                if not hear[fd]():
                    poll.unregister(fd)
            for one in list(heard):
                one._check_limits()
                if one.ended and one is not self:
                    for fd in heard.pop(one):
                        with contextlib.suppress(KeyError):  # it was at its end
                            poll.unregister(fd)
                    one.after_end()

    def _heard(self, readers: Mapping[int, Callable[[], bool]]) -> dict[int, Callable[[], bool]]:
        """By descriptor, what is called when it has something, and returns False at its end."""
        return {**{fd: functools.partial(self._notice, fd) for fd in self._own_fds()}, **readers}

    def _own_fds(self) -> list[int]:
        oom = self.tree.oom_fd if self._cause is None else None
        return self.direct_child.fds + ([] if oom is None else [oom])

    def _notice(self, fd: int) -> bool:
        if fd != self.tree.oom_fd:
            return self.direct_child.notice(fd)
        own = self.tree.out_of_memory()
        if self.spec.oom_group:
            if own:
                self._kill_for("oom")
            else:
                self.watched.suspect()
        return True

    def _poll_milliseconds(self, until: float | None) -> float | None:
        waits = [] if until is None else [until - time.monotonic()]
        if self._cause is None:
            waits += self.watched.seconds_left(self.tree)
        return max(0.0, min(waits)) * 1000 if waits else None

    def _check_limits(self) -> None:
        if self._cause is None and not self.ended and (cause := self.watched.due(self.tree)) is not None:
            self._kill_for(cause)

    def _kill_for(self, cause: str) -> None:
        trace("container %s: killed: %s", self.name, cause)
        self._cause = cause
        if cause in ("timeout", "cpu-time"):
            self.before_kill()
        self._kill()

    def _kill(self) -> bool:
        """Kill what is in the container, and what is on its way into it; whether all of it is gone.

        The first process may not have entered yet, and the reaper may not have forked it yet: so it goes on until the
        direct child has ended, which it does when nothing is left below it.
        """
        child = self.direct_child
        child.is_killed = True
        deadline = time.monotonic() + self._kill_seconds
        patience = time.monotonic() + _REAPER_SECONDS
        if child.reaper is None:
            child.signal(signal.SIGKILL)
        while True:
            emptied = self.tree.kill(max(0.0, deadline - time.monotonic()))
            if (ends := child.ends_in(0.05)) or time.monotonic() > deadline:
                self._survives = not ends
                return emptied
            child.read_status()  # who the reaper is, where a namespace keeper stands above it
            child.signal(signal.SIGKILL if child.reaper is None else signal.SIGCONT)  # it may have been stopped
            if emptied and self.ended and time.monotonic() > patience:
                child.kill_reaper()  # nobody else is left: somebody has left the cgroup, and not the pid namespace

    @property
    def _kill_seconds(self) -> float:
        """It is waited for so long once, and not at each step of its end."""
        return 0.0 if self._survives else KILL_SECONDS

    def time_out(self) -> None:
        """Kill everything as at the deadline: somebody else's has come."""
        if self._cause is None and not self.ended:
            self._kill_for("timeout")

    def signal(self, number: int) -> bool:
        """Signal the first process; False where it has ended, or can't be signalled."""
        return self.direct_child.signal_first(number)

    def _limits(self) -> dict[str, str]:
        """What is in force: the cgroup's, read back, and what is watched from here."""
        watched = {name: getattr(self.spec, name) for name in ("timeout", "cpu_time")}
        return {**self.tree.limits, **{name: f"{value:g} s" for name, value in watched.items() if value is not None}}

    # the end

    def so_far(self) -> Outcome:
        """What is known while it lives: nothing has ended, and the numbers still grow."""
        if self._outcome is not None:  # it was ended before its turn
            return self._outcome
        return Outcome(
            ended="exit",
            usage=dataclasses.replace(self.tree.usage(), wall_seconds=self.watched.wall_seconds),
            backend=self.backend.name,
            not_enforced=self.backend.weaker(self.spec),
            limits=self._limits(),
        )

    def destroy(
        self,
        *,
        owner: str | None = None,
        zombies: Mapping[int, str] = MappingProxyType({}),
        family: Mapping[int, tuple[str, ...]] = MappingProxyType({}),
        started: Iterable[Start] = (),
    ) -> Outcome:
        """Name what is left, kill everything, wait until it is gone, measure, remove. Idempotent: one outcome.

        Args:
            owner: what the processes left behind are said to belong to.
            zombies: what the first process said it had not waited for, by pid the name of the program.
            family: the parents of each of its descendants, as it saw them just before it ended.
            started: what it started, and where, as it told it (`_started`).
        """
        if self._outcome is not None:
            return self._outcome
        tree, child = self.tree, self.direct_child
        leaks: list[Leak] = []
        try:
            emptied = self.ended and self._cause is None and settles(tree, SETTLE_SECONDS)
            if emptied and child.reaper is not None and child.ends_in(0.05):
                child.end(KILL_SECONDS)  # now, so that the verdict knows whether somebody else has killed the reaper
            if self.ended and self._cause is None and not emptied:
                leaks, self._unseen = left_behind(tree, owner)
                leaks = as_told(leaks, family, started, own_numbers=self.spec.pid_ns)
                with contextlib.suppress(OSError):
                    self._ask_to_end(tree)
            wall = self.watched.wall_seconds
            if not (emptied and child.reaped and self.untold is None) and not self._kill():
                self._notes.append(f"still there {KILL_SECONDS:.0f} s after SIGKILL: {who(tree)}")
            if not child.end(self._kill_seconds):
                self._notes.append(f"the first process is still there {KILL_SECONDS:.0f} s after SIGKILL: {child.pid}")
            usage = dataclasses.replace(tree.usage(), wall_seconds=wall)
            if self._cause == "oom":  # told of it, we may have been faster than the kernel's killer, and done its work
                usage = dataclasses.replace(usage, oom_kill=max(1, usage.oom_kill or 0))
            ended, code, number = self._how_it_ended()
        except BaseException:  # Ctrl-C while it was asked to end, or an error in telling what is left
            self._kill()
            raise
        finally:
            child.close()
            try:
                tree.remove()
            except ContainerError as error:
                self._notes.append(str(error))
        trace("container %s: ended: %s", self.name, ended)
        self._outcome = Outcome(
            ended=ended,  # type: ignore[arg-type]
            exit_code=code,
            signal=number,
            usage=usage,
            leaks=tuple(leaks) + tuple(zombie(pid, name, owner) for pid, name in zombies.items()),
            backend=self.backend.name,
            not_enforced=self.backend.weaker(self.spec),
            limits=self._limits(),
            message=str(child.error) if child.error else None,
            notes=tuple(self._notes),
        )
        return self._outcome

    @property
    def untold(self) -> str | None:
        """What `destroy` could not find out, and should have."""
        return self._unseen or self.direct_child.untold

    def _ask_to_end(self, tree: Tree) -> None:
        """SIGTERM and `grace`, as long as needed and no longer, where that was asked for."""
        if self.spec.grace:
            tree.signal(signal.SIGTERM)
            tree.settle(self.spec.grace)

    def _how_it_ended(self) -> tuple[str, int | None, int | None]:
        child = self.direct_child
        code = None if child.wait_status is None else os.waitstatus_to_exitcode(child.wait_status)
        exit_code, number = (None, -code) if code is not None and code < 0 else (code, None)
        if self._cause is not None:
            return self._cause, exit_code, number
        if child.error is not None:
            return "error", exit_code, number
        # A process of it that was killed for memory is the container's end only if the first process went with it.
        if number == signal.SIGKILL and (oom := self.tree.oom()):
            return oom, exit_code, number
        return ("exit" if number is None else "signal"), exit_code, number
