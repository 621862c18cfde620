"""The daemons of one container: each has a name of its own, and they end with it, first of all that lives there."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from ._daemon import Daemon
from ._instance import DEFAULTS, program_name
from ._isolated import threading, time
from ._policy import parse_policy
from ._upkeep import OVER, Upkeep
from .exceptions import ContainerError, DaemonError

if TYPE_CHECKING:
    from ._life import Life

#: of a failed test's report, from each daemon
_SECTION_LINES = 100


class Daemons:
    """Those of one container; made by `of`."""

    def __init__(self, life: Life) -> None:
        self._life = life
        self._lock = threading.Lock()
        self._daemons: dict[str, Upkeep] = {}

    def start(self, argv: Any, *, name: str | None, wait: bool, grace: float, asked: dict[str, Any]) -> Daemon:
        """Start one: see `Container.daemon`."""
        __tracebackhide__ = True
        options = {**DEFAULTS, **asked}
        policy = parse_policy(options, grace=grace, upkeep_of=_upkeep_of)
        for text in ("text", "universal_newlines", "encoding", "errors", "bufsize"):
            if options.pop(text, None):
                raise ValueError(f"{text}: the output of a daemon is read as bytes, and told as text")
        with self._lock:
            chosen = self._name(name, argv)
            daemon = self._daemons[chosen] = Upkeep(self._life, argv, {**options, "bufsize": 0}, policy, chosen)
        if wait:
            try:
                daemon.bring_up()
            except DaemonError as error:
                raise error.with_traceback(None) from None  # the way here is nobody's matter
        else:
            daemon.bring_up_behind()
        return Daemon(self._life, daemon)

    def _name(self, name: str | None, argv: Any) -> str:
        """One that no other living daemon has.

        Raises:
            ContainerError: somebody has the *name* that is asked for.
        """
        taken = {known for known, daemon in self._daemons.items() if daemon.state not in OVER}
        if name is not None:
            if name in taken:
                what = f"container {self._life.name} has a daemon {name} already"
                raise ContainerError(what, operation="daemon", remedy="stop it, or name this one otherwise")
            return name
        taken |= self._daemons.keys()
        wanted, count = program_name(argv), 1
        chosen = wanted
        while chosen in taken:
            count += 1
            chosen = f"{wanted}-{count}"
        return chosen

    @property
    def all(self) -> tuple[Upkeep, ...]:
        """In the order in which they were started."""
        with self._lock:
            return tuple(self._daemons.values())

    def end(self, grace: float) -> None:
        """Stop them all at once: the container ends. None is started again.

        Each has *grace* seconds, or what was asked for it if that is longer; with 0 they are killed with the container.
        """
        daemons = self.all
        for daemon in daemons:
            self._life.not_left.update(daemon.family())
            daemon.begin_stop(gently=grace > 0)
        begun = time.monotonic()
        if grace > 0:
            for daemon in sorted(daemons, key=lambda daemon: daemon.own_grace):
                with contextlib.suppress(ContainerError):  # who can't be killed is the container's matter, then
                    daemon.finish_stop(begun + max(grace, daemon.own_grace))

    def join(self) -> None:
        """Nothing lives in the container: wait until all of them have noticed."""
        for daemon in self.all:
            with contextlib.suppress(ContainerError):  # the outcome comes first
                daemon.join()

    def untold(self) -> list[DaemonError]:
        """The errors of those that have failed, and that nobody was told of; now they are."""
        found = []
        for daemon in self.all:
            if daemon.error is not None and not daemon.told:
                daemon.told = True
                found.append(daemon.error)
        return found

    def sections(self) -> list[tuple[str, str]]:
        """The last that each has printed, for a report: title and text."""
        return [(f"daemon {daemon.name}", text) for daemon in self.all if (text := daemon.tail(_SECTION_LINES))]


def _upkeep_of(given: object) -> Upkeep | None:
    return given._upkeep if isinstance(given, Daemon) else None


def of(life: Life) -> Daemons:
    """Those of the container that lives *life*."""
    found = life.supervised_by(lambda: Daemons(life))
    assert isinstance(found, Daemons)
    return found
