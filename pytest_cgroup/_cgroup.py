"""A cgroup: made, joined, limited, killed, removed. What it has used is read in `_cgroup_usage`.

Theory of operation. cgroup v2 is the model, and every name above this module is a v2 name. On a pure v2 host a
`Cgroup` is one directory. On a v1 or hybrid host it is a directory of the same name in each v1 hierarchy, beside one
in the cgroup2 tree where one is mounted: that tree, though it has no controllers, still gives cgroup.kill (5.14),
cgroup.events, cgroup.freeze (5.2), cpu.stat and pressure. What v1 calls otherwise is translated in `_cgroup_v1`.

A process joins by writing "0" to each cgroup.procs itself, before it does anything else: a process that is moved from
outside may have children already, and those stay behind.
"""

from __future__ import annotations

import contextlib
import errno
import stat
from typing import TYPE_CHECKING

from . import _cgroup_v1 as v1
from ._isolated import os, select, time
from ._kernel_files import mkdir, read_file, read_record, rmdir, words, write_file
from ._kernel_text import flat_keyed
from ._process import SIGKILL, process_of, signal_members, wait_gone
from ._refusal import refused
from ._trace import trace
from .exceptions import ContainerError

if TYPE_CHECKING:
    from collections.abc import Mapping

PREFIX = "pytest-cgroup-"
#: what a cgroup's file says when it is gone
_GONE = (errno.ENOENT, errno.ENODEV)
#: as often rmdir is tried again after any refusal but EBUSY
_MOST_REFUSALS = 5
#: how long who was killed may take before he is killed in another way
_A_MOMENT = 0.2
#: they change while they are read, and `pids` knows better
_LISTS = frozenset(("cgroup.procs", "cgroup.threads", "tasks"))


class Cgroup:
    """One cgroup, in v2 words.

    Args:
        unified: its directory in a cgroup2 tree, or None on a host that mounts none.
        controllers: its directories in v1 hierarchies, ``{"memory": "/sys/fs/cgroup/memory/…"}``; empty on pure v2.
    """

    __slots__ = ("controllers", "directories", "unified")

    def __init__(self, unified: str | None, controllers: Mapping[str, str] | None = None) -> None:
        self.unified = unified
        self.controllers = dict(controllers or {})
        first = (unified,) if unified else ()
        #: every directory once (v1 controllers can be mounted together), the cgroup2 one first
        self.directories: tuple[str, ...] = tuple(dict.fromkeys((*first, *self.controllers.values())))

    def __repr__(self) -> str:
        return f"<Cgroup {self.path}>"

    @property
    def path(self) -> str:
        """The directory that stands for it in messages."""
        return self.directories[0]

    # making and removing

    def child(self, name: str, controllers: frozenset[str] | None = None) -> Cgroup:
        """The cgroup *name* below this one, not made yet; in the v1 hierarchies of *controllers* only, if given."""
        unified = f"{self.unified}/{name}" if self.unified else None
        return Cgroup(
            unified,
            {
                controller: f"{directory}/{name}"
                for controller, directory in self.controllers.items()
                if controllers is None or controller in controllers
            },
        )

    def make(self, mode: int = 0o700) -> None:
        """Make every directory, with those permissions, or none.

        Raises:
            ContainerError: the kernel refused one (EACCES, EROFS, ENOSPC, …), or it is there already.
        """
        made = []
        try:
            for directory in self.directories:
                mkdir(directory, mode)
                made.append(directory)
            if cpuset := self.controllers.get("cpuset"):
                v1.adopt_cpuset(cpuset)
        except (OSError, ContainerError) as error:
            for path in reversed(made):
                remove_quietly(path)
            if isinstance(error, ContainerError):
                raise
            raise refused("cannot make a cgroup", error, path=directory, operation="mkdir") from error

    def remove(self, timeout: float = 2.0) -> None:
        """Remove the directories, inner ones that somebody made first. They must be empty, or become so.

        rmdir(2) answers EBUSY for a moment after the last process has gone, and as long as a child cgroup lives.

        Raises:
            ContainerError: a directory is still busy after *timeout* seconds.
        """
        deadline = time.monotonic() + timeout
        trouble = None
        for directory in reversed(self.directories):  # as `_recover` has it
            try:
                _remove_tree(directory, deadline)
            except OSError as error:
                trouble = refused("cannot remove a cgroup", error, path=directory, operation="rmdir")
        if trouble is not None:
            raise trouble

    @property
    def exists(self) -> bool:
        """Whether every directory of it is there."""
        return all(os.path.isdir(directory) for directory in self.directories)

    def delegate(self) -> None:
        """Give its children every controller that it has, which in v1 they have anyway. No process may be in it.

        Raises:
            ContainerError: the kernel refused it.
        """
        if self.unified and (names := words(f"{self.unified}/cgroup.controllers")):
            path, value = f"{self.unified}/cgroup.subtree_control", " ".join(f"+{name}" for name in names)
            try:
                write_file(path, value)
            except OSError as error:
                raise refused("can't enable controllers", error, path=path, operation="write", value=value) from error

    # joining and looking

    def open_procs(self) -> list[int]:
        """Descriptors for a process with one thread, as a forked one is, to join by: each takes a "0".

        They are opened in the parent: a child may lose sight of the tree before it joins. On v1 it is ``tasks``, which
        moves a thread: to move a whole process, the kernel shuts out every fork and exit of the host, and waits for an
        RCU grace period of some milliseconds. v2 moves no thread out of its domain.
        """
        fds: list[int] = []
        try:
            for directory in self.directories:
                file = "cgroup.procs" if directory == self.unified else "tasks"
                fds.append(os.open(f"{directory}/{file}", os.O_WRONLY | os.O_CLOEXEC))  # all or none
        except OSError as error:
            for fd in fds:
                os.close(fd)
            raise refused("cannot open a cgroup to join", error, path=directory, operation="open") from error
        return fds

    def adopt(self, pid: int) -> None:
        """Move the process *pid* (0: the caller) here, into every hierarchy.

        Raises:
            ContainerError: the kernel refused the move.
        """
        for directory in self.directories:
            try:
                write_file(f"{directory}/cgroup.procs", str(pid))
            except OSError as error:
                path = f"{directory}/cgroup.procs"
                raise refused("cannot join a cgroup", error, path=path, operation="write", value=pid) from error

    def pids(self) -> list[int]:
        """The pids in it and below it, without zombies, each once.

        Raises:
            OSError: they can't be read.
        """
        with contextlib.suppress(OSError):  # then the lists tell why
            if self.unified and not self._is_populated():
                return []
        found: dict[int, None] = {}
        for directory in self.directories[:1]:
            for path in _tree(directory):
                found.update(dict.fromkeys(_members(path)))
        if not found and self.unified:
            found = dict.fromkeys(_of_threads(self.unified))
        return list(found)

    @property
    def populated(self) -> bool:
        """Whether a process is in it or below it (cgroup.events; the process lists on v1)."""
        return self._is_populated() if self.unified else bool(self.pids())

    def _is_populated(self) -> bool:
        """Of a cgroup of v2."""
        return flat_keyed(read_record(f"{self.unified}/cgroup.events")).get("populated") != 0

    def wait_empty(self, timeout: float) -> bool:
        """Wait until no process is left in it or below it; whether that came about in *timeout* seconds."""
        deadline = time.monotonic() + timeout
        if self.unified is None:
            while pids := self.pids():
                if not wait_gone(pids, deadline - time.monotonic()):
                    return not self.pids()
            return True
        fd = os.open(f"{self.unified}/cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
        try:
            poll = select.poll()
            poll.register(fd, select.POLLPRI)  # kernfs notifies a change of "populated"
            while flat_keyed(os.pread(fd, 4096, 0).decode()).get("populated"):
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    return False
                poll.poll(remaining * 1000)
        finally:
            os.close(fd)
        return True

    def files(self) -> dict[str, str]:
        """What stands in each file that can be read, under the kernel's own name, but for those that list processes."""
        found: dict[str, str] = {}
        for directory in self.directories:
            with os.scandir(directory) as entries:
                names = sorted(one.name for one in entries if one.is_file() and one.stat().st_mode & stat.S_IRUSR)
            for name in names:
                if name not in _LISTS:
                    with contextlib.suppress(OSError):  # not everything that may be opened can be read
                        found.setdefault(name, read_file(f"{directory}/{name}"))
        return found

    # killing and freezing

    def kill(self) -> None:
        """SIGKILL every process in it and below it, those that fork meanwhile too; returns before they are gone.

        cgroup.kill where the kernel has it (5.14), else freeze, kill each, thaw: a frozen process cannot fork. A
        process whose first thread has ended is passed over by cgroup.kill, and not by `kill_until_empty`.
        """
        if self.unified:
            try:
                write_file(f"{self.unified}/cgroup.kill", "1")
                return
            except OSError:
                pass  # older than 5.14
        with contextlib.suppress(OSError, ContainerError):  # who can't be stopped is killed all the same
            self.freeze()
        try:
            self.signal(SIGKILL)
        finally:
            self.thaw()

    def signal(self, number: int) -> None:
        """Signal every process in it and below it."""
        signal_members(self.pids, number)

    def kill_until_empty(self, timeout: float) -> bool:
        """Kill again and again until nothing is left, as kernels before 6.x may let a fork slip through cgroup.kill.

        Whatever else the kernel refuses meanwhile is no reason to give up before.
        """
        deadline = time.monotonic() + timeout
        while True:
            try:
                if not self.populated:
                    return True
                self.kill()
                if self.wait_empty(min(_A_MOMENT, max(0.0, deadline - time.monotonic()))):
                    return True
                self.signal(SIGKILL)  # cgroup.kill asks the first thread of each, and passes over one that has ended
                if self.wait_empty(min(0.5, max(0.0, deadline - time.monotonic()))):
                    return True
            except (OSError, ContainerError):
                if not self.exists:
                    return True
                time.sleep(0.001)
            if time.monotonic() >= deadline:
                return False

    def freeze(self) -> None:
        """Stop every process where it stands (cgroup.freeze, since 5.2; v1 freezer), in 0.5 s at most."""
        self._set_frozen(True)

    def thaw(self) -> None:
        """Let frozen processes go on."""
        self._set_frozen(False)

    def _set_frozen(self, frozen: bool) -> None:
        if self.unified and os.path.exists(f"{self.unified}/cgroup.freeze"):
            write_file(f"{self.unified}/cgroup.freeze", str(int(frozen)))
            if frozen:
                self._wait_frozen(f"{self.unified}/cgroup.events")
        elif directory := self.controllers.get("freezer"):
            v1.set_frozen(directory, frozen)

    def _wait_frozen(self, events: str) -> None:
        fd = os.open(events, os.O_RDONLY | os.O_CLOEXEC)
        try:
            poll = select.poll()
            poll.register(fd, select.POLLPRI)
            deadline = time.monotonic() + 0.5
            while not flat_keyed(os.pread(fd, 4096, 0).decode()).get("frozen"):
                if (remaining := deadline - time.monotonic()) <= 0:
                    return
                poll.poll(remaining * 1000)
        finally:
            os.close(fd)

    # its files

    def read(self, name: str) -> str | None:
        """The text of a cgroup file by its kernel name; None where the kernel does not offer it."""
        for directory in self._directories_of(name):
            with contextlib.suppress(OSError):
                return read_record(f"{directory}/{name}")
        return None

    def set(self, name: str, value: str) -> str:
        """Set a limit by its v2 name and value, in one write; what the kernel then says is in force.

        Raises:
            ContainerError: the file is not offered, the value is refused, or what was read back is not what was asked
                (beyond the kernel's own rounding to pages).
        """
        directory = self._directories_of(name)[0]
        path = f"{directory}/{name}"
        try:
            if self._on_v1(name) and (translated := v1.WRITERS.get(name)):
                return translated(self.controllers, value)
            write_file(path, value)
            trace("in force %s: %s", path, in_force := read_file(path).strip())
            return in_force
        except OSError as error:
            raise refused(f"{name} was not accepted", error, path=path, operation="write", value=value) from error

    def offers(self, name: str) -> bool:
        """Whether the limit of this v2 name can be set here."""
        if self._on_v1(name) and name in v1.WRITERS:
            return v1.offers(self.controllers, name)
        return any(os.path.exists(f"{directory}/{name}") for directory in self._directories_of(name))

    def _on_v1(self, name: str) -> str | None:
        """The v1 directory that answers for a v2 file name, None on a v2 host."""
        return self.controllers.get(v1.controller_of(name))

    def _directories_of(self, name: str) -> list[str]:
        return [path for path in (self._on_v1(name), self.unified) if path] or [self.path]

    def events(self, name: str) -> dict[str, int]:
        """``memory.events``, ``memory.events.local`` or ``pids.events``; a key that is not offered is missing."""
        if name.startswith("memory.") and (directory := self._on_v1(name)):
            with contextlib.suppress(OSError):
                return v1.memory_events(directory)
            return {}
        return flat_keyed(self.read(name) or "")


def _tree(directory: str) -> list[str]:
    """*directory* and every cgroup below it, parents first; [] when it is gone."""
    found = [directory]
    for path in found:
        try:
            with os.scandir(path) as entries:
                found += [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
        except FileNotFoundError:
            continue
    return found


def _members(directory: str) -> list[int]:
    """Who is in it, without those below it; [] when it is gone: what says so and still is there is asked again."""
    for _ in range(_MOST_REFUSALS):
        try:
            return [*map(int, read_file(f"{directory}/cgroup.procs").split())]
        except OSError as error:
            answer = error
        # a threaded one's processes are listed above it
        if answer.errno == errno.EOPNOTSUPP or not os.path.exists(directory):
            return []
        if answer.errno not in _GONE:
            break
    raise answer


def _of_threads(directory: str) -> list[int]:
    """Whose threads are in it, or below it: a process that was moved when its first had ended is listed elsewhere."""
    threads = [word for path in _tree(directory) for word in words(f"{path}/cgroup.threads")]
    return [pid for thread in threads if (pid := process_of(int(thread)))]


def remove_quietly(directory: str) -> None:
    """Remove a directory that was just made and is not to be used, if it lets itself be removed."""
    with contextlib.suppress(OSError):
        _remove_tree(directory, time.monotonic())


def _remove_tree(directory: str, deadline: float) -> None:
    pause, refusals = 0.0, 0
    while True:
        try:
            for path in reversed(_tree(directory)) if pause else (directory,):
                with contextlib.suppress(FileNotFoundError):
                    rmdir(path)
            return
        except OSError as error:
            busy = error.errno in (errno.EBUSY, errno.ENOTEMPTY)
            refusals += not busy  # some pass, as ENOMEM does: what is left behind is worth asking once more
            if refusals > _MOST_REFUSALS or (busy and time.monotonic() > deadline):
                raise
            time.sleep(pause)  # the kernel has no event for "rmdir would work now"
            pause = min(max(pause * 2, 0.0005), 0.05)
