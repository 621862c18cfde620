"""What the containers of one process share: its host, its backends and its launcher, each found on first use."""

from __future__ import annotations

import atexit
import contextlib
import sys
from typing import TYPE_CHECKING, Protocol

from . import _backends, _entry
from ._guard import watch_over
from ._host import Host
from ._isolated import os, threading
from .exceptions import CgroupError

if TYPE_CHECKING:
    from ._backends import Backend
    from ._popen import Launcher


class Living(Protocol):
    """A container that lives (`_life`)."""

    def helpers(self) -> set[int]:
        """Who lives in it, and who stands above them."""

    def forget(self) -> None:
        """In a forked child, where it is the parent's."""

    def end(self, grace: float) -> object:
        """End it."""


class Station:
    """Made by `station`, once a process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._host: Host | None = None
        self._backends: dict[str, Backend] = {}
        self._launcher: tuple[Launcher, tuple[int, ...]] | None = None
        self._count = 0
        self._borrowed = self._watched = False
        self._parted: list[Host] = []
        self._living: list[Living] = []

    def lend(self, host: Host, backend: Backend, *, asked: str) -> None:
        """From now on containers are made on *host*, which is not ours to close, by *backend*, if *asked* is wanted."""
        with self._lock:
            if self._host is host:
                return
            if self._host is not None and not self._borrowed:
                self._parted.append(self._host)
            self._host, self._borrowed = host, True
            self._backends = {asked: backend, backend.name: backend, "auto": backend}

    def begins(self, life: Living) -> None:
        """A container lives."""
        with self._lock:
            self._living.append(life)

    def is_over(self, life: Living) -> None:
        """It has ended."""
        with self._lock:
            if life in self._living:
                self._living.remove(life)

    def helpers(self) -> set[int]:
        """The processes that start those of containers, and these: they end with a container, or with this process."""
        launcher = self._launcher
        first = set() if launcher is None else {launcher[0].pid}
        return first.union(*(life.helpers() for life in list(self._living)))

    def backend(self, name: str) -> tuple[Host, Backend]:
        """The backend *name*, "auto" for the highest rung that works here.

        Raises:
            NotOffered: it does not work here.
        """
        run = _backends.of_this_run
        if self._host is None and run is not None and run.pid == os.getpid():
            self.lend(run.host, run.backend, asked=run.asked)
        with self._lock:
            inside = _entry.inside  # then it stands in its own container, and shall not leave that
            if self._host is None:
                self._host = Host(scope=not inside, all_ours=inside)
            if name not in self._backends:
                chosen = _backends.choose(self._host, name, {} if run is None else run.slices)
                self._backends[name] = self._backends.setdefault(chosen.name, chosen)  # one of a kind, whatever asked
            backend = self._backends[name]
            if not (self._watched or inside):  # inside, the end of that container is all it takes
                self._watched = True
                watch_over(self._host, processes=backend.needs_reaper, name=_program())
            return self._host, backend

    def launcher(self) -> Launcher:
        """The first launcher. What it forks is in its session and process group: one that moved on has another."""
        from ._popen import Launcher

        with self._lock:
            place = os.getsid(0), os.getpgid(0), os.getuid(), os.geteuid()
            if self._launcher is not None and (self._launcher[1] != place or self._launcher[0].broken):
                self._launcher[0].close()
                self._launcher = None
            if self._launcher is None:
                self._launcher = Launcher.start(), place
            return self._launcher[0]

    def next_name(self, name: str) -> str:
        """A name that no other container of this process has."""
        with self._lock:
            self._count += 1
            return f"own-{self._count}-{name}"  # and no test's

    def close(self) -> None:
        """End the containers that live, and give everything back; the next container finds it anew."""
        for life in self._living[::-1]:
            with contextlib.suppress(CgroupError):
                life.end(0.0)
        with self._lock:
            launcher, self._launcher = self._launcher, None
            host, self._host = self._host, None
            hosts, self._parted = self._parted, []
            self._backends.clear()
            if launcher is not None:
                launcher[0].close()
            if host is not None and not self._borrowed:
                hosts.append(host)
            self._borrowed = self._watched = False
            for one in hosts:
                one.close()

    def leave(self) -> None:
        """In a process that ends without `close`: the launcher goes before, and is nobody's leak."""
        launcher, self._launcher = self._launcher, None
        if launcher is not None:
            launcher[0].kill()

    def forget(self) -> None:
        """In a forked child, where all of it is the parent's: its lock may be held by a thread that is not here."""
        if self._launcher is not None:
            self._launcher[0].forget()
        for life in self._living:
            life.forget()


def _program() -> str:
    return os.path.basename(sys.argv[0]) if sys.argv and sys.argv[0] not in ("", "-c", "-m") else "python"


_station: Station | None = None


def station() -> Station:
    """This process's."""
    global _station
    if _station is None:
        _station = Station()
        atexit.register(_station.close)
    return _station


def living() -> list[Living]:
    """What lives of this process, the oldest first."""
    return [] if _station is None else list(_station._living)


def close() -> None:
    """Give back what containers took of the host, before this process ends."""
    if _station is not None:
        _station.close()


def leave() -> None:
    """This process ends now: what listens for it does, too."""
    if _station is not None:
        _station.leave()


def _after_fork() -> None:
    global _station
    if _station is not None:
        atexit.unregister(_station.close)
        _station.forget()
        _station = None


if hasattr(os, "register_at_fork"):  # the package imports elsewhere, too
    os.register_at_fork(after_in_child=_after_fork)
