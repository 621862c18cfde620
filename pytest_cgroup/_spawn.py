"""How processes come into one container: who forks them, what each takes on, and which of them still live."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import sys
from typing import TYPE_CHECKING, Any, NoReturn

from ._backends import namespaces_asked
from ._forked import fork_into
from ._isolated import os, subprocess
from ._namespaces import Namespaces
from ._popen import Popen
from .exceptions import ContainerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ._backends import Tree
    from ._forked import Forked
    from ._host import Host
    from ._popen import Launcher
    from ._spec import Spec
    from ._veth import Seat

_REAP_SECONDS = 1.0
_SUMMED = ("user_seconds", "system_seconds", "read_bytes", "write_bytes")


class Spawner:
    """Starts the processes of one container.

    Args:
        first: gives this process's launcher, and starts it where there is none; where the container has namespaces,
            or a tree to be held, that makes another one.
        own: the launcher has to stand above the tree.
        announce: tells of who stands above a tree: of the process with a pid, or of this one.
        seat: its place in the network that it shares with others.
        init: its pid namespace has an init; without, the first program is PID 1.

    Raises:
        ContainerError: a namespace could not be entered.
    """

    def __init__(
        self,
        first: Callable[[], Launcher],
        *,
        spec: Spec,
        host: Host,
        tree: Tree,
        own: bool,
        announce: Callable[..., None],
        seat: Seat | None = None,
        init: bool = True,
    ) -> None:
        self._tree = tree
        self._init = init
        self._pid_1: Popen | None = None
        self._has_begun = False
        self._joins = False
        self._own = own
        self._keeps_cwd = not spec.mount_ns
        self._announce = announce
        self._processes: list[Popen] = []
        self._above: list[int] = []
        self._rusage: list[tuple[float, ...]] = []
        #: what each process takes on, see `_program`
        self.entry = _entry(spec, tree)
        asked = namespaces_asked(spec)
        user_ns = spec.user_ns or host.needs_user_namespace(asked)
        self._first = first
        #: the container's own launcher, where it has one
        self.branch: Launcher | None = None
        self._in_namespaces = bool(asked - {"cgroup_ns"}) or user_ns or seat is not None  # that one each enters itself
        if own or self._in_namespaces:
            namespaces = Namespaces.from_spec(spec, keep=_kept() if spec.private_tmp else ())
            namespaces = dataclasses.replace(namespaces, cgroup=False)
            self.branch, pid_1 = first().branch(
                dataclasses.asdict(namespaces), user_ns=user_ns, own=own, seat=seat, init=init
            )
            try:
                tree.held_by(self.branch.pid, frozenset(() if pid_1 is None else (pid_1,)))
            except BaseException:
                self.branch.close()
                raise
            if own:
                announce(self.branch.pid)

    def launcher(self) -> Launcher:
        """Who forks its programs."""
        return self.branch or self._first()

    def start(self, argv: Any, options: dict[str, Any]) -> Popen:
        """Start one, in the container before it begins; *options* are Popen's."""
        with self._below_pid_1("popen"):
            process = Popen(
                self.launcher,
                argv,
                direct=self.branch is None,
                doors=self._tree.doors(),
                birthplace=None if self._own or self._joins else self._tree.birthplace(),
                own=self._own,
                entry=self.entry,
                keeps_cwd=self._keeps_cwd,
                **options,
            )
        self._pid_1 = self._pid_1 or process
        self._joins = self._joins or process.was_stillborn
        self._processes = [each for each in self._processes if each.returncode is None]
        self._processes.append(process)
        return process

    def fork(self, function: Callable[[], NoReturn]) -> Forked:
        """Fork this process into the container, and call *function* there."""
        if not (self._init or self._has_begun):
            remedy = "start a program first, by popen, or take an init"
            raise ContainerError("without an init a function can't be PID 1", operation="call", remedy=remedy)
        with self._below_pid_1("call"):
            return self._fork(function)

    @contextlib.contextmanager
    def _below_pid_1(self, operation: str) -> Iterator[None]:
        """Without an init all hangs on the first program: in its pid namespace nothing begins after its end.

        Raises:
            ContainerError: it has ended.
        """
        if self._init:
            yield
            return
        ended = "PID 1 of the container has ended, and all that was in its pid namespace with it"
        over = ContainerError(ended, operation=operation, remedy="make another container, or one with an init")
        if self._has_begun and (self._pid_1 is None or self._pid_1.poll() is not None):
            raise over
        self._has_begun = True
        try:
            yield
        except OSError as error:
            if error.errno == errno.ENOMEM:  # it ends just now
                raise over from error
            raise

    def _fork(self, function: Callable[[], NoReturn]) -> Forked:
        forked = fork_into(
            function,
            doors=self._tree.doors(),
            entry=self.entry,
            namespaces_of=self.launcher().pid if self._in_namespaces else None,
            reaper=self._own,
            announce=self._announce_above,
        )
        if forked.above:
            self._above.append(forked.pid)
            self._tree.held_by_another(forked.pid)
        return forked

    def _announce_above(self) -> None:
        """In a process above what is forked."""
        self._announce()
        if self._own:
            self._tree.admitted()

    def alive(self) -> list[Popen]:
        """Those that have not ended."""
        return [process for process in self._processes if process.poll() is None]

    def reap(self) -> None:
        """They are gone: their own Popens shall know how they ended, too. Who stood above them ends, then."""
        for process in self._processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_REAP_SECONDS)
        while self._above:
            with contextlib.suppress(ChildProcessError):
                used = os.wait4(self._above.pop(), 0)[2]
                self._rusage.append((used.ru_utime, used.ru_stime, used.ru_inblock * 512, used.ru_oublock * 512))

    def measure(self) -> None:
        """Where the launcher stands above the tree, it knows what of it was waited for."""
        if self._own:
            with contextlib.suppress(ContainerError):
                used = self.launcher().ask({"rusage": True})
                for name, more in zip(_SUMMED, zip(*self._rusage, strict=True), strict=False):
                    used[name] += sum(more)
                self._tree.ended(used)

    def close(self) -> None:
        """The container's own launcher ends; nothing lives below it any more."""
        if self.branch is not None:
            self.branch.close()


def _entry(spec: Spec, tree: Tree) -> dict[str, Any]:
    asked = {
        "rlimits": dict(spec.rlimits),
        "user": spec.user,
        "group": spec.group,
        "no_new_privs": spec.no_new_privs,
        "cgroup_ns": spec.cgroup_ns,
        "affinity": tree.affinity(),
    }
    return {name: value for name, value in asked.items() if value not in (None, False, {})}


def _kept() -> tuple[str, ...]:
    """What stays visible below a private /tmp: where we are, and the interpreter."""
    tmp = os.path.realpath("/tmp")
    with contextlib.suppress(FileNotFoundError):
        if (here := os.path.realpath(os.getcwd())) != tmp:
            return here, sys.prefix, sys.base_prefix
    return sys.prefix, sys.base_prefix
