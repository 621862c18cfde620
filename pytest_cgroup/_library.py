"""`Container`: the containers of tests as a library, without pytest. A place to start programs in, and to end them all.

Theory of operation. A container is one tree of a backend (`_backends`), as a contained test's is, but many processes
come into it, from outside, one after the other: `popen` has a launcher fork them (`_launcher`, `_popen`), and each is
in every hierarchy and namespace before its exec. Nobody waits for a first process: the container is there from the
start of its ``with`` to its end, and what then still lives is asked to end, killed, and listed in the outcome.

A watcher thread ends it at a limit that the kernel does not hold by itself (`_watcher`). Whoever ends it, and however
often: there is one end and one `Outcome`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
import warnings
from typing import TYPE_CHECKING, Any

from . import _station, _watcher
from ._backends import namespaces_asked
from ._container import KILL_SECONDS, SETTLE_SECONDS
from ._host import LIMIT_FILES
from ._namespaces import Namespaces
from ._outcome import Leak, Outcome, Usage
from ._popen import Popen
from ._process import descendants, describe, signal_members, wait_gone
from ._run import Completed, Text, talk
from ._spec import FIELDS, Spec, parse_kwargs
from .exceptions import ContainedWarning, ContainerError, NotOffered, SpecError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    import psutil

    from ._backends import Backend, Tree
    from ._host import Host
    from ._popen import Launcher

_WHERE = "Container"
#: fields that say something of tests
_OF_TESTS = ("isolation", "expect", "slice")
_STOP_GRACE_SECONDS = 0.5
_REAP_SECONDS = 1.0
_FOREVER = 1e6  # seconds; poll(2) takes no more than 24 days' milliseconds


class Container:
    """A container: limits, namespaces, and a tree of processes that ends with it. A context manager.

    Args:
        backend: "auto" for the best that works here, "cgroup", or "process" (see the backends' page).
        name: becomes part of a directory's name, and of messages.
        spec: what is asked of it, as the arguments of the marker ``contained``: ``memory="64M", pid_ns=True``.

    Raises:
        SpecError: an unknown field, a bad value, or two that contradict each other.

    It is made on entering, and destroyed on leaving ``with``, or by `start` and `destroy`. Any thread may use it; a
    forked child of the process that made it may not.

    What still lives at the end gets SIGTERM and, after ``grace`` seconds (0.5 unless given), SIGKILL; the outcome lists
    it, and no more comes of it, but for ``leaks="warn"``, a `ContainedWarning`, and ``leaks="fail"``, an error.
    """

    def __init__(self, *, backend: str = "auto", name: str = "container", **spec: Any) -> None:
        self.spec = _parse(spec)
        self.name = name
        self._asked = spec
        self._backend_name = _known_backend(backend)
        self._grace = self.spec.grace if "grace" in spec else _STOP_GRACE_SECONDS
        self._leaks = self.spec.leaks if "leaks" in spec else "ignore"
        self._owner = 0
        self._backend: Backend | None = None
        self._tree: Tree | None = None
        self._launcher: Launcher | None = None
        self._branched = False
        self._own = False
        self._watcher: _watcher.Watcher | None = None
        self._started_at = 0.0
        self._starting = threading.RLock()  # held while a process is on its way in
        self._ending = threading.RLock()
        self._closing = False
        self._frozen = False
        self._processes: list[Popen] = []
        self._running = self._overlaps = 0
        self._cause: str | None = None
        self._outcome: Outcome | None = None

    def __repr__(self) -> str:
        state = "not started" if self._tree is None else "live" if self._outcome is None else self._outcome.ended
        return f"<Container {self.name} ({state})>"

    def __enter__(self) -> Container:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        leaks = self.stop().leaks
        if not leaks or self._leaks == "ignore":
            return
        text = f"container {self.name}: {len(leaks)} left behind, and killed:\n  " + "\n  ".join(
            leak.describe() for leak in leaks
        )
        if self._leaks == "warn":
            warnings.warn(ContainedWarning(text), stacklevel=2)
        elif error is None:
            raise ContainerError(text, remedy='end them before the container ends, or leave out leaks="fail"')

    # the beginning

    def start(self) -> Container:
        """Make it, empty, its limits in force. Once.

        Raises:
            NotOffered: this host can't honour what was asked; the reason and the remedy are named.
            ContainerError: the kernel refused something; nothing is left behind.
        """
        if self._tree is not None:
            raise ContainerError(f"container {self.name} was started already", operation="start")
        station = _station.station()
        host, self._backend = station.backend(self._backend_name)
        if lacking := self._backend.missing(self.spec):
            raise NotOffered(
                "contained: this host can't honour "
                + "; ".join(f"{field}: {why.reason} ({why.remedy})" for field, why in lacking),
                missing=tuple(field for field, _ in lacking),
            )
        self._owner = os.getpid()
        self._own = self._backend.needs_reaper
        tree = self._backend.create(self.spec, station.next_name(_safe(self.name)))
        try:
            self._launcher = self._find_launcher(station.launcher(), host, tree)
        except BaseException:
            tree.remove()
            raise
        self._tree = tree
        self._started_at = time.monotonic()
        if _watcher.needed(self.spec, tree):
            self._watcher = _watcher.Watcher(self.spec, tree, self._kill_for)
            self._watcher.start()
        return self

    def _find_launcher(self, first: Launcher, host: Host, tree: Tree) -> Launcher:
        """The first launcher, or one in the namespaces of the container, or one above its tree."""
        namespaces = dataclasses.replace(Namespaces.from_spec(self.spec, keep=_kept()), cgroup=False)
        user_ns = self.spec.user_ns or host.needs_user_namespace(namespaces_asked(self.spec))
        if not (self._own or namespaces.any or user_ns):
            return first
        self._branched = True
        launcher, init = first.branch(dataclasses.asdict(namespaces), user_ns=user_ns, own=self._own)
        tree.held_by(launcher.pid, frozenset(() if init is None else (init,)))
        return launcher

    # processes

    def popen(self, argv: Any, **options: Any) -> subprocess.Popen[Any]:
        """Start a program in it: a real `subprocess.Popen`, with all of its arguments but ``preexec_fn``.

        The process is in the container, with everything that was asked of it, before the program begins, and it is a
        child of this process; on the process backend it is the child of a process of ours, where `os.waitpid` does not
        reach, and Popen's own methods do.

        Raises:
            OSError: as Popen does, of a program that is not there.
            ContainerError: the container has ended, or the process could not step into it.
        """
        return self._start_process(argv, options)

    def _start_process(self, argv: Any, options: dict[str, Any]) -> Popen:
        with self._starting:
            tree = self._live("popen")
            if self._frozen:
                raise ContainerError(f"container {self.name} is frozen", operation="popen", remedy="thaw it first")
            assert self._launcher is not None
            process = Popen(
                self._launcher,
                argv,
                doors=tree.doors(),
                own=self._own,
                entry=self._entry(tree),
                keeps_cwd=not self.spec.mount_ns,
                **options,
            )
            self._processes = [each for each in self._processes if each.returncode is None]
            self._processes.append(process)
            return process

    def _entry(self, tree: Tree) -> dict[str, Any]:
        spec = self.spec
        asked = {
            "rlimits": dict(spec.rlimits),
            "user": spec.user,
            "group": spec.group,
            "no_new_privs": spec.no_new_privs,
            "cgroup_ns": spec.cgroup_ns,
            "affinity": tree.affinity(),
        }
        return {name: value for name, value in asked.items() if value not in (None, False, {})}

    def run(
        self,
        argv: Any,
        *,
        timeout: float | None = None,
        input: str | bytes | None = None,  # subprocess.run's name for it
        capture_output: bool = False,
        check: bool = False,
        **options: Any,
    ) -> Completed:
        """Run a program to its end, as `subprocess.run` does.

        Its end is the end: a daemon that it left behind with its output open does not hang this. What outlives it goes
        on living in the container, and is listed in the result's ``outcome``; the usage there is the container's so
        far. Where several commands run in one container at once, an orphan can't be told to be one's, and is listed at
        the container's end only.

        Raises:
            subprocess.TimeoutExpired: it was killed after *timeout* seconds, with all that came of it.
            subprocess.CalledProcessError: with *check*, and a returncode other than 0.
            ContainerError, OSError: as `popen`.
        """
        text = Text(options)
        if input is not None:
            if options.get("stdin") is not None:
                raise ValueError("stdin and input arguments may not both be used.")
            options["stdin"] = subprocess.PIPE
        if capture_output:
            if options.get("stdout") is not None or options.get("stderr") is not None:
                raise ValueError("stdout and stderr arguments may not be used with capture_output.")
            options["stdout"] = options["stderr"] = subprocess.PIPE
        given = text.encode(input)
        with self._counted():
            begun, before, overlaps = time.monotonic(), set(self._live("run").pids()), self._overlaps
            process = self._start_process(argv, options)

            def born() -> list[int]:
                """What came of it, and of nobody else, and lives."""
                if self._running > 1 or self._overlaps != overlaps or any(p is not process for p in self._alive()):
                    return descendants(process.pid)
                return [pid for pid in self._live_pids() if pid not in before]

            try:
                out, err, in_time = talk(process, given, timeout)
            except BaseException:
                self._end_command(process, born)
                raise
            if not in_time:
                self._end_command(process, born)
                assert timeout is not None
                raise subprocess.TimeoutExpired(process.args, timeout, output=out, stderr=err)
            left = born()
            if left and not wait_gone(left, SETTLE_SECONDS):
                left = born()
        outcome = self._outcome_of(process, time.monotonic() - begun, left)
        done = Completed(process.args, process.returncode, text.decode(out), text.decode(err), outcome)
        if check:
            done.check_returncode()
        return done

    @contextlib.contextmanager
    def _counted(self) -> Any:
        with self._starting:
            self._running += 1
            self._overlaps += self._running > 1
        try:
            yield
        finally:
            with self._starting:
                self._running -= 1

    def _alive(self) -> list[Popen]:
        return [process for process in self._processes if process.poll() is None]

    def _live_pids(self) -> list[int]:
        return [] if self._tree is None or self._outcome is not None else self._tree.pids()

    def _end_command(self, process: Popen, born: Callable[[], list[int]]) -> None:
        """Kill *process* and what came of it: who is stopped forks no more, and its children show whose they are."""
        with contextlib.suppress(OSError):
            process.send_signal(signal.SIGSTOP)
        deadline = time.monotonic() + KILL_SECONDS
        while (left := [pid for pid in born() if pid != process.pid]) and time.monotonic() < deadline:
            signal_members(born, signal.SIGKILL)
            wait_gone(left, 0.5)
        process.kill()
        process.wait()

    def _outcome_of(self, process: Popen, wall: float, left: list[int]) -> Outcome:
        assert self._backend is not None
        tree, code = self._tree, process.returncode
        owner = shlex.join(map(str, args)) if isinstance(args := process.args, list | tuple) else str(args)
        oom = tree.oom() if tree is not None and code == -signal.SIGKILL and self._outcome is None else None
        return Outcome(
            ended=self._cause or oom or ("exit" if code >= 0 else "signal"),  # type: ignore[arg-type]
            exit_code=code if code >= 0 else None,
            signal=-code if code < 0 else None,
            usage=dataclasses.replace(self.usage(), wall_seconds=wall),
            leaks=tuple(leak for pid in left if (leak := describe(pid, owner=owner, ancestors_until=os.getpid()))),
            backend=self._backend.name,
            not_enforced=self._backend.weaker(self.spec),
            limits=self._limits(),
        )

    # living with it

    def processes(self) -> list[psutil.Process]:
        """What lives in it, as `psutil.Process`; zombies are not listed."""
        import psutil

        found = []
        for pid in self._live("processes").pids():
            with contextlib.suppress(psutil.NoSuchProcess):
                found.append(psutil.Process(pid))
        return found

    @property
    def populated(self) -> bool:
        """Whether anything lives in it."""
        return bool(self._live_pids())

    def usage(self) -> Usage:
        """What it has used so far, all of its processes together; after the end, what it used in all.

        On the process backend what the living use is not in it: the kernel tells that of the ended alone.
        """
        if self._outcome is not None:
            return self._outcome.usage
        tree = self._live("usage")
        self._measure(tree)
        return dataclasses.replace(tree.usage(), wall_seconds=time.monotonic() - self._started_at)

    def _measure(self, tree: Tree) -> None:
        if self._own and self._launcher is not None:
            with contextlib.suppress(ContainerError):
                tree.ended(self._launcher.ask({"rusage": True}))

    def signal(self, number: int) -> None:
        """Signal each of its processes, and no other."""
        self._live("signal").signal(number)

    def freeze(self) -> None:
        """Stop everything in it where it stands, until `thaw`. A frozen container can be killed.

        On the process backend it is SIGSTOP, which who is stopped can see, and anybody's SIGCONT undoes.
        """
        with self._starting:
            self._live("freeze").freeze()
            self._frozen = True

    def thaw(self) -> None:
        """Let everything go on."""
        with self._starting:
            self._live("thaw").thaw()
            self._frozen = False

    def update(self, **limits: Any) -> None:
        """Set limits of the living container: ``update(memory="128M")``. They are read back, into `limits`.

        Raises:
            SpecError: a bad value, or a field that can be had at the start only.
            NotOffered: this host has no such limit.
            ContainerError: the kernel refused it (EBUSY: more is in use than shall be allowed).
        """
        tree = self._live("update")
        changeable = [field for field in LIMIT_FILES if field != "oom_group"]
        for field in limits:
            if field not in changeable and field in {known.name for known in FIELDS}:
                raise SpecError(
                    field, limits[field], "can't be changed later", where="update", allowed=", ".join(changeable)
                )
        parse_kwargs(limits, "update")
        spec = _resolved({**self._asked, **limits}, "update")
        assert self._backend is not None
        if lacking := self._backend.missing(spec):
            field, why = lacking[0]
            raise NotOffered(f"update: {field}: {why.reason}", missing=(field,), remedy=why.remedy)
        with self._starting:
            pair = {"memory", "swap"} if {"memory", "swap"} & limits.keys() else set()  # each counts with the other
            beside = {name: value for name, value in self._asked.items() if name in pair}
            tree.change(_resolved({**beside, **limits}, "update"))
            self._asked = {**self._asked, **limits}
            self.spec = spec

    @property
    def limits(self) -> dict[str, str]:
        """The limits in force, as read back from the kernel."""
        return self._limits()

    def _limits(self) -> dict[str, str]:
        if self._outcome is not None:
            return dict(self._outcome.limits)
        watched = {name: getattr(self.spec, name) for name in ("timeout", "cpu_time")}
        found = {} if self._tree is None else dict(self._tree.limits)
        return {**found, **{name: f"{value:g} s" for name, value in watched.items() if value is not None}}

    def wait_empty(self, timeout: float | None = None) -> bool:
        """Wait until nothing lives in it; whether that came about in *timeout* seconds."""
        if self._outcome is not None:
            return True
        return self._live("wait_empty").settle(_FOREVER if timeout is None else timeout)

    # the end

    def kill(self) -> None:
        """SIGKILL everything in it, at once, frozen or not, and wait until it is gone. The container lives on.

        Raises:
            ContainerError: something is still there after ten seconds, in an uninterruptible sleep.
        """
        if self._outcome is not None:
            return
        tree = self._live("kill")
        if tree.kill(KILL_SECONDS):
            self._reap()
        else:
            raise ContainerError(f"still there {KILL_SECONDS:.0f} s after SIGKILL: {tree.pids()}", operation="kill")

    def _reap(self) -> None:
        """They are gone: their own Popens shall know how they ended, too."""
        for process in self._processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_REAP_SECONDS)

    def _kill_for(self, cause: str) -> None:
        """In the watcher's thread: everything ends, for *cause*, and nothing begins any more."""
        self._cause = cause
        assert self._tree is not None
        self._tree.kill(KILL_SECONDS)
        with self._starting:  # who was on the way in has arrived
            self._tree.kill(KILL_SECONDS)

    def stop(self, grace: float | None = None) -> Outcome:
        """End it: SIGTERM to all, SIGKILL after *grace* seconds to who is still there; no longer than needed."""
        return self._end(self._grace if grace is None else grace)

    def destroy(self) -> Outcome:
        """End it at once: kill everything, wait until it is gone, measure, remove. The outcome, the same every time."""
        return self._end(0.0)

    @property
    def outcome(self) -> Outcome | None:
        """What came of it, once it has ended."""
        return self._outcome

    def _end(self, grace: float) -> Outcome:
        with self._ending:  # who comes second waits for the one end
            if self._outcome is not None:
                return self._outcome
            if self._tree is None:
                raise ContainerError(f"container {self.name} was not started", operation="destroy")
            self._live("destroy")
            with self._starting:  # who is on the way in has arrived
                self._closing = True
            notes: list[str] = []
            leaks: tuple[Leak, ...] = ()
            try:
                leaks = self._ask_to_end(self._tree, grace)
                if not self._tree.kill(KILL_SECONDS):
                    notes.append(f"still there {KILL_SECONDS:.0f} s after SIGKILL: pids {self._tree.pids()}")
            finally:
                self._outcome = self._conclude(self._tree, leaks, notes)
            return self._outcome

    def _ask_to_end(self, tree: Tree, grace: float) -> tuple[Leak, ...]:
        """Name what is left, and end it gently where there is time for that."""
        running = self._alive()
        if self._cause is not None or tree.settle(0.0 if running else SETTLE_SECONDS):
            return ()
        me = os.getpid()
        leaks = [describe(pid, owner=self.name, ancestors_until=me) for pid in tree.pids()]
        if grace > 0:
            tree.signal(signal.SIGTERM)
            if self._frozen:
                tree.thaw()
            tree.settle(grace)
        return tuple(leak for leak in leaks if leak is not None)

    def _conclude(self, tree: Tree, leaks: tuple[Leak, ...], notes: list[str]) -> Outcome:
        if self._watcher is not None:
            self._watcher.stop()
        if tree.kill(0.0):
            self._reap()
        self._measure(tree)
        assert self._backend is not None
        usage = dataclasses.replace(tree.usage(), wall_seconds=time.monotonic() - self._started_at)
        if self._cause == "oom":  # we may have been faster than the kernel's killer, and done its work
            usage = dataclasses.replace(usage, oom_kill=max(1, usage.oom_kill or 0))
        limits = self._limits()
        if self._branched and self._launcher is not None:
            self._launcher.close()
        try:
            tree.remove()
        except ContainerError as error:
            notes.append(str(error))
        return Outcome(
            ended=self._cause or "exit",  # type: ignore[arg-type]
            usage=usage,
            leaks=leaks,
            backend=self._backend.name,
            not_enforced=self._backend.weaker(self.spec),
            limits=limits,
            notes=tuple(notes),
        )

    def _live(self, operation: str) -> Tree:
        """Its tree.

        Raises:
            ContainerError: it is not there yet, no longer, or another process's.
        """
        if self._tree is None:
            why, remedy = "was not started", "use it inside `with`, or call start()"
        elif self._owner != os.getpid():
            why, remedy = "was made by another process", "make one here"
        elif self._closing or self._outcome is not None:
            why, remedy = "has ended", "make another one"
        elif self._cause is not None and operation in ("popen", "run"):
            why, remedy = f"was killed: {self._cause}", "make another one"
        else:
            return self._tree
        raise ContainerError(f"container {self.name} {why}", operation=operation, remedy=remedy)


def _parse(asked: dict[str, Any]) -> Spec:
    for field in _OF_TESTS:
        if field in asked:
            allowed = ", ".join(known.name for known in FIELDS if known.name not in _OF_TESTS)
            raise SpecError(field, asked[field], "is about tests, and no container's", where=_WHERE, allowed=allowed)
    return _resolved(asked, _WHERE)


def _resolved(asked: dict[str, Any], where: str) -> Spec:
    return Spec.parse(asked, where).resolve(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def _known_backend(name: str) -> str:
    if name not in ("auto", "cgroup", "process"):
        raise SpecError("backend", name, "is no backend", where=_WHERE, allowed='"auto", "cgroup" or "process"')
    return name


def _kept() -> tuple[str, ...]:
    """What stays visible below a private /tmp: where we are, and the interpreter."""
    tmp = os.path.realpath("/tmp")
    with contextlib.suppress(FileNotFoundError):
        if (here := os.path.realpath(os.getcwd())) != tmp:
            return here, sys.prefix, sys.base_prefix
    return sys.prefix, sys.base_prefix


def _safe(name: str) -> str:
    """Part of a directory's name, whatever *name* holds."""
    import re

    return re.sub(r"[^A-Za-z0-9_-]+", "_", name)[:60].strip("_") or "container"
