"""The life of one container of the library, from its making to its one end; `_library.Container` is its public face.

Theory of operation. Two locks hold it together. Who starts a process holds ``_starting`` while that is on its way in,
so who ends the container, or freezes it, knows that everybody has arrived. Who ends it holds ``_ending``, so who comes
second waits for the one end, and gets the one outcome.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from . import _station, _watcher
from ._asked import parse_change, safe_name
from ._backends import refuse_what_is_missing
from ._container import KILL_SECONDS, SETTLE_SECONDS
from ._description import describe_all
from ._events import Events
from ._isolated import os, signal, threading, time
from ._outcome import Leak, Outcome, Usage
from ._process import lineage
from ._spawn import Spawner
from ._trace import trace
from ._visit import adopt
from .exceptions import ContainerError, ContainerTimeout, NotOffered

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._backends import Tree
    from ._forked import Forked
    from ._network import Network
    from ._popen import Launcher, Popen
    from ._ports import Published
    from ._spec import Spec
    from .exceptions import DaemonError

_CGROUP = "a container with a cgroup, see `python -m pytest_cgroup doctor`"
_FOREVER = 1e6  # seconds; poll(2) takes no more than 24 days' milliseconds


class Supervised(Protocol):
    """The daemons of a container (`_daemons`)."""

    def end(self, grace: float) -> None:
        """Stop them; none is started again."""

    def join(self) -> None:
        """Nothing lives any more: be done with them."""

    def untold(self) -> list[DaemonError]:
        """What went wrong, and nobody has been told of."""

    def sections(self) -> list[tuple[str, str]]:
        """The last that they printed, for a report."""


class Life:
    """A container that was made, empty, its limits in force.

    Args:
        name: what messages call it.
        spec: what is asked of it.
        asked: the same as it was written.
        backend: "auto", or the name of one.
        ports: those to be published, the inside ones by the outside ones.
        network: the one that it shares with others.
        init: its pid namespace, if it has one, has an init.
        path: its cgroup's, below the one that pytest was started in; None for any.

    Raises:
        NotOffered: this host can't honour what was asked; the reason and the remedy are named.
        ContainerError: the kernel refused something; nothing is left behind.
    """

    def __init__(
        self,
        name: str,
        spec: Spec,
        asked: dict[str, Any],
        backend: str,
        *,
        ports: dict[int, int] | None = None,
        network: Network | None = None,
        init: bool = True,
        path: str | None = None,
    ) -> None:
        self.name = name
        self.spec = spec
        self.outcome: Outcome | None = None
        #: why it was killed, if it was at a limit
        self.cause: str | None = None
        self._asked = asked
        self._owner = os.getpid()
        self._starting = threading.RLock()
        self._ending = threading.RLock()
        self._closing = False
        self._frozen = False
        #: pids that end with it by design, and are nobody's leaks
        self.not_left: set[int] = set()
        #: pids of daemons: so does whatever they have started
        self.daemon_pids: set[int] = set()
        self.daemons: Supervised | None = None
        #: its public face
        self.face: object = None
        #: called when nothing lives in it any more
        self.after_end: list[Callable[[], object]] = []
        station = _station.station()
        host, self._backend = station.backend(backend)
        refuse_what_is_missing(self._backend, spec, "contained")
        self.seat = None if network is None else network.seat()
        self.has_own_network = spec.net_ns or network is not None
        self._published: Published | None = None
        self.tree: Tree = (
            self._backend.create(spec, station.next_name(safe_name(name)))
            if path is None
            else self._backend.create_at(path, spec)
        )
        try:
            self._spawner = Spawner(
                station.launcher,
                spec=spec,
                host=host,
                tree=self.tree,
                own=self._backend.needs_reaper or not init,
                announce=host.announce,
                seat=self.seat,
                init=init,
            )
            if ports:
                self._publish(station.launcher(), ports, host.announce)
        except BaseException:
            self.tree.remove()
            raise
        trace("container %s: made by %s, limits in force: %s", name, self._backend.name, dict(self.tree.limits))
        self._started_at = time.monotonic()
        self._over = threading.Event()
        self.events = Events(getattr(self.tree, "cgroup", None), lambda: self.outcome)
        self._watcher: _watcher.Watcher | None = None
        self._watch()
        self._station = station
        station.begins(self)

    def _watch(self) -> None:
        if self._watcher is not None:
            self._watcher.look_again(self.spec)
        elif _watcher.needed(self.spec, self.tree):
            self._watcher = _watcher.Watcher(self.spec, self.tree, self._kill_for)
            self._watcher.start()

    def _publish(self, launcher: Launcher, ports: dict[int, int], announce: Callable[[int], None]) -> None:
        from ._ports import Published

        try:
            self._published = Published(launcher, ports, self._spawner.launcher().pid, announce)
        except BaseException:
            self._spawner.close()
            raise

    @property
    def ports(self) -> dict[int, int]:
        """By each port inside that is published, the one outside."""
        return {} if self._published is None else dict(self._published.ports)

    def check(self, operation: str) -> None:
        """It lives, and is ours.

        Raises:
            ContainerError: it has ended, or it is another process's.
        """
        self.check_owner(operation)
        if self._closing or self.outcome is not None:
            why, remedy = "has ended", "make another one"
        elif self.cause is not None and operation in ("popen", "run", "call"):
            why, remedy = f"was killed: {self.cause}", "make another one"
        else:
            return
        raise ContainerError(f"container {self.name} {why}", operation=operation, remedy=remedy)

    def check_owner(self, operation: str) -> None:
        """It is ours.

        Raises:
            ContainerError: it is another process's.
        """
        if self._owner != os.getpid():
            what = f"container {self.name} was made by another process"
            raise ContainerError(what, operation=operation, remedy="make one here")

    @property
    def is_ending(self) -> bool:
        """Nothing begins in it any more."""
        return self._closing or self.cause is not None or self.outcome is not None

    @property
    def network_of(self) -> int | str:
        """A process, by its name in /proc, that is in its network."""
        return self._spawner.launcher().pid if self.has_own_network else "self"

    def supervised_by(self, make: Callable[[], Supervised]) -> Supervised:
        """Its daemons; *make* is called for the first of them."""
        with self._starting:
            if self.daemons is None:
                self.daemons = make()
            return self.daemons

    # processes

    def start_process(self, argv: Any, options: dict[str, Any]) -> Popen:
        """Start one in it; *options* are Popen's."""
        with self._starting:
            self._admit("popen")
            return self._spawner.start(argv, options)

    def _admit(self, operation: str) -> None:
        self.check(operation)
        if self._frozen:
            raise ContainerError(f"container {self.name} is frozen", operation=operation, remedy="thaw it first")

    def fork(self, function: Callable[[], NoReturn]) -> Forked:
        """Fork this process into it, to call *function* there."""
        with self._starting:
            self._admit("call")
            return self._spawner.fork(function)

    def alive(self) -> list[Popen]:
        """The processes that were started from here, and live."""
        return self._spawner.alive()

    def pids(self) -> list[int]:
        """Who lives in it."""
        return [] if self.outcome is not None else self.tree.pids()

    def helpers(self) -> set[int]:
        """Who lives in it, and who stands above them."""
        above = {each.pid for each in (self._spawner.branch, self._published) if each is not None}
        return above.union(self.pids())

    def forget(self) -> None:
        """In a forked child: a launcher ends when nobody holds its socket any more, and that shall be our parent."""
        if self._spawner.branch is not None:
            self._spawner.branch.forget()
        if self._published is not None:
            self._published.forget()

    # living with it

    def freeze(self) -> None:
        """Stop everything, and let nobody in."""
        with self._starting:
            self.check("freeze")
            self.tree.freeze()
            self._frozen = True

    def thaw(self) -> None:
        """Let everything go on."""
        with self._starting:
            self.check("thaw")
            self.tree.thaw()
            self._frozen = False

    def change(self, limits: dict[str, Any]) -> None:
        """Set other limits: see `Container.update`."""
        spec, change = parse_change(self._asked, limits)
        refuse_what_is_missing(self._backend, spec, "update")
        with self._starting:
            self.tree.change(change)
            self._asked = {**self._asked, **limits}
            self.spec = spec
            self._watch()

    def limits(self) -> dict[str, str]:
        """Those in force, read back, and what is watched from here."""
        if self.outcome is not None:
            return dict(self.outcome.limits)
        watched = {name: getattr(self.spec, name) for name in ("timeout", "cpu_time")}
        return {**self.tree.limits, **{name: f"{value:g} s" for name, value in watched.items() if value is not None}}

    def usage(self, wall_seconds: float | None = None) -> Usage:
        """What was used so far, or in all; *wall_seconds* are the container's unless given."""
        if self.outcome is not None:
            used, wall = self.outcome.usage, self.outcome.usage.wall_seconds
        else:
            self._spawner.measure()
            used, wall = self.tree.usage(), time.monotonic() - self._started_at
        return dataclasses.replace(used, wall_seconds=wall if wall_seconds is None else wall_seconds)

    def stats(self) -> dict[str, str]:
        """The files of its cgroup; none where there is none."""
        cgroup = getattr(self.tree, "cgroup", None)
        return {} if cgroup is None or self.outcome is not None else cgroup.files()

    def adopt(self, pid: int) -> None:
        """Move a process in from outside: see `Container.adopt`."""
        cgroup = getattr(self.tree, "cgroup", None)
        if cgroup is None:
            raise NotOffered("adopt: a tree of processes takes in nobody", missing=("cgroup",), remedy=_CGROUP)
        with self._starting:
            self._admit("adopt")
            adopt(cgroup, pid, ours=self._station.helpers() - set(self.pids()))

    def wait_empty(self, timeout: float | None) -> bool:
        """Wait until nothing lives in it."""
        if self.outcome is not None:
            return True
        self.check("wait_empty")
        return self.tree.settle(_FOREVER if timeout is None else timeout)

    def wait(self, timeout: float | None) -> Outcome:
        """Wait for its end: see `Container.wait`."""
        if self.outcome is None:
            self.check_owner("wait")
        if not self._over.wait(timeout):
            raise ContainerTimeout(f"container {self.name} has not ended in {timeout:g} s", operation="wait")
        return self.end(0.0)

    def outcome_of(self, code: int, wall: float, left: list[int], owner: str) -> Outcome:
        """The outcome of one command of it, *owner*, that has ended with *code*, and left *left* behind."""
        oom = self.tree.oom() if code == -signal.SIGKILL and self.outcome is None else None
        return Outcome(
            ended=self.cause or oom or ("exit" if code >= 0 else "signal"),  # type: ignore[arg-type]
            exit_code=code if code >= 0 else None,
            signal=-code if code < 0 else None,
            usage=self.usage(wall),
            leaks=tuple(describe_all(left, owner=owner, ancestors_until=os.getpid())),
            backend=self._backend.name,
            not_enforced=self._backend.weaker(self.spec),
            limits=self.limits(),
        )

    # the end

    def kill(self) -> None:
        """Kill everything, and live on: see `Container.kill`."""
        if self.outcome is not None:
            return
        self.check("kill")
        if not self._starting.acquire(blocking=False):
            self.tree.signal(signal.SIGKILL)  # also who is on the way in, and has joined
            self._starting.acquire()
        try:  # nobody, as a daemon that is kept up, comes in meanwhile
            if not self.tree.kill(KILL_SECONDS):
                raise ContainerError(self._still_there(), operation="kill")
            self._spawner.reap()
        finally:
            self._starting.release()

    def _still_there(self) -> str:
        return f"still there {KILL_SECONDS:.0f} s after SIGKILL: pids {self.tree.pids()}"

    def _kill_for(self, cause: str) -> None:
        """In the watcher's thread: everything ends, for *cause*, and nothing begins any more."""
        self.cause = cause
        trace("container %s: killed: %s", self.name, cause)
        self.tree.kill(KILL_SECONDS)
        with self._starting:  # who was on the way in has arrived
            self.tree.kill(KILL_SECONDS)
        self._over.set()

    def end(self, grace: float) -> Outcome:
        """Its one end: what is left is named, asked to end, and killed after *grace* seconds."""
        with self._ending:
            if self.outcome is not None:
                return self.outcome
            self.check("destroy")
            if self.daemons is not None:
                self.daemons.end(0.0 if self._frozen else grace)
            with self._starting:
                self._closing = True
            notes: list[str] = []
            leaks: tuple[Leak, ...] = ()
            emptied = False
            try:
                if not (emptied := self._is_empty()):
                    leaks = self._ask_to_end(grace)
                    emptied = self.tree.kill(KILL_SECONDS)
                if not emptied:
                    notes.append(self._still_there())
            finally:
                self.outcome = self._conclude(leaks, notes, emptied)
                self.events.stopped()
                self._over.set()
                trace("container %s: ended: %s", self.name, self.outcome.describe())
                self._station.is_over(self)
            return self.outcome

    def _is_empty(self) -> bool:
        """Whether all have ended by themselves, or do so in a moment."""
        return self.cause is None and self.tree.settle(0.0 if self.alive() else SETTLE_SECONDS)

    def _ask_to_end(self, grace: float) -> tuple[Leak, ...]:
        """Name what is left, and end it gently where there is time for that."""
        if self.cause is not None:
            return ()
        tree, me = self.tree, os.getpid()
        left = [pid for pid in tree.pids() if pid not in self.not_left and not self._is_of_a_daemon(pid)]
        leaks = describe_all(left, owner=self.name, ancestors_until=me)
        if grace > 0:
            tree.signal(signal.SIGTERM)
            if self._frozen:
                tree.thaw()
            tree.settle(grace)
        return tuple(leaks)

    def _is_of_a_daemon(self, pid: int) -> bool:
        return bool(self.daemon_pids) and not self.daemon_pids.isdisjoint(lineage(pid))

    def _was_out_of_memory(self) -> bool:
        """Just before its end, when the watcher had not heard of it; on v2 also by the limit of a cgroup above."""
        return self.spec.oom_group and (self.tree.out_of_memory() or self.tree.oom_fd is not None)

    def _conclude(self, leaks: tuple[Leak, ...], notes: list[str], emptied: bool) -> Outcome:
        if self._watcher is not None:
            self._watcher.stop()
        if emptied or self.tree.kill(0.0):
            self._spawner.reap()
            for done in self.after_end:
                done()
            if self.daemons is not None:
                self.daemons.join()
        usage = self.usage()
        if self.cause is None and usage.oom_kill and self._was_out_of_memory():
            self.cause = self.tree.oom()
        if self.cause == "oom":  # we may have been faster than the kernel's killer, and done its work
            usage = dataclasses.replace(usage, oom_kill=max(1, usage.oom_kill or 0))
        limits = self.limits()
        if self._published is not None and (note := self._published.close()) is not None:
            notes.append(note)
        self._spawner.close()
        try:
            self.tree.remove()
        except ContainerError as error:
            notes.append(str(error))
        return Outcome(
            ended=self.cause or "exit",  # type: ignore[arg-type]
            usage=usage,
            leaks=leaks,
            backend=self._backend.name,
            not_enforced=self._backend.weaker(self.spec),
            limits=limits,
            notes=tuple(notes),
        )
