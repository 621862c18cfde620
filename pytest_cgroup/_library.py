"""`Container`: the containers of tests as a library, without pytest. A place to start programs in, and to end them all.

Theory of operation. A container is one tree of a backend (`_backends`), as a contained test's is, but many processes
come into it, from outside, one after the other. The C library or a launcher forks them (`_popen`, `_launcher`), and
each is in every hierarchy and namespace before its exec. Nobody waits for a first process: the container is there from
the start of its ``with`` to its end, and what then still lives is asked to end, killed, and listed in the outcome.

A watcher thread ends it at a limit that the kernel does not hold by itself (`_watcher`). Whoever ends it, and however
often: there is one end and one `Outcome`.
"""

from __future__ import annotations

import contextlib
import shlex
from typing import TYPE_CHECKING, Any, Protocol

from ._asked import known_backend, parse, parse_init, parse_output_limit, parse_path
from ._call import call
from ._commands import Commands
from ._isolated import os
from ._left import complain
from ._life import Life
from ._network import Network
from ._ports import parse_ports
from ._run import Completed
from ._slice import Slice
from ._station import living
from ._visit import Visit
from .exceptions import ContainerError

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator, Mapping
    from types import TracebackType

    import execnet
    import psutil

    from ._async_process import AsyncProcess
    from ._daemon import Daemon
    from ._events import Event
    from ._outcome import Outcome, Usage
    from ._spec import Spec

_STOP_GRACE_SECONDS = 0.5
_GATEWAY_SECONDS = 1.0  # for the threads of one whose process is gone


class ContainedFactory(Protocol):
    """The type of the fixture ``contained_factory``."""

    def __call__(self, *, backend: str | None = None, name: str | None = None, **spec: Any) -> Container:
        """A container, started, that ends with who asked for the fixture."""


class Container:
    """A container: limits, namespaces, and a tree of processes that ends with it. A context manager.

    Args:
        backend: "auto" for the best that works here, "cgroup", "process", or "exec:PROGRAM" (see the
            backends' page).
        name: becomes part of a directory's name, and of messages.
        ports: TCP ports to be published at 127.0.0.1, ``{8080: 0}``: the one inside, and the one outside, 0 for any
            that is free. It takes a network of its own, and brings ``net_ns``; see `ports`.
        network: the private network that it shares with others, instead of one of its own; see `address`.
        init: PID 1 of its pid namespace, where it has one, is a process of ours, which reaps orphans; without it the
            first program is PID 1, gets no signal that it has no handler for, and takes everything along when it ends.
        slice: the parent that it has in common with others, a `Slice`, or the name of one; of one that nobody has made,
            and that the ini ``contained_slices`` has not, it is made without limits.
        path: that of its cgroup, known beforehand to whoever looks at it from outside: below the cgroup that pytest was
            started in, or ``--cgroup-base``; in a contained test below the test's. Nothing may be there yet.
        spec: what is asked of it, as the arguments of the marker ``contained``: ``memory="64M", pid_ns=True``.

    Raises:
        SpecError: an unknown field, a bad value, or two that contradict each other.

    It is made on entering, and destroyed on leaving ``with``, or by `start` and `destroy`. Any thread may use it; a
    forked child of the process that made it may not.

    What still lives at the end gets SIGTERM and, after ``grace`` seconds (0.5 unless given), SIGKILL; the outcome lists
    it, and no more comes of it, but for ``leaks="warn"``, a `ContainedWarning`, and ``leaks="fail"``, an error.
    """

    def __init__(
        self,
        *,
        backend: str = "auto",
        name: str = "container",
        ports: Mapping[int, int] | None = None,
        network: Network | None = None,
        slice: Slice | str | None = None,
        init: bool = True,
        path: str | None = None,
        **spec: Any,
    ) -> None:
        self._ports, self._network = parse_ports(ports, spec, network), network
        self._slice = slice if isinstance(slice, Slice) else None
        if slice is not None:
            spec["slice"] = slice if self._slice is None else self._slice.name
        self._spec = parse(spec)
        self._init = parse_init(init, self._spec)
        self._path = None if path is None else parse_path(path, self._spec)
        self.name = name
        self._asked = spec
        self._backend_name = known_backend(backend)
        self._grace = self._spec.grace if "grace" in spec else _STOP_GRACE_SECONDS
        self._leaks = self._spec.leaks if "leaks" in spec else "ignore"
        self._life: Life | Visit | None = None

    def __repr__(self) -> str:
        state = "not started" if self._life is None else "live" if self.outcome is None else self.outcome.ended
        return f"<Container {self.name} ({state})>"

    @property
    def spec(self) -> Spec:
        """What is asked of it, `update` counted in."""
        return self._spec if self._life is None else self._life.spec

    def __enter__(self) -> Container:
        """Start it, unless it lives already."""
        return self if self._life is not None and self.outcome is None else self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not isinstance(self._life, Visit):
            self._finish(failed=error is not None)

    def finish(self) -> Outcome:
        """End it as leaving ``with`` does: `stop`, and then ``leaks`` says what comes of what was left.

        Raises:
            ContainerError: ``leaks="fail"`` was asked for, and something was left.
        """
        return self._finish(failed=False)

    def _finish(self, *, failed: bool) -> Outcome:
        """*failed*: an error is on its way, which one of ours would hide."""
        outcome = self.stop()
        if outcome.leaks and (self._leaks == "warn" or (self._leaks == "fail" and not failed)):
            complain(self.name, outcome.leaks, self._leaks)
        daemons = None if self._life is None or failed else self._life.daemons
        if daemons is not None and (errors := daemons.untold()):
            for another in errors[1:]:
                errors[0].add_note(str(another))
            raise errors[0]
        return outcome

    @classmethod
    def from_path(cls, path: str | os.PathLike[str], *, owned: bool = False) -> Container:
        """Look at a cgroup that is there already: its processes, `usage`, `stats`, `limits`, and wait for it.

        It is never removed, and nothing is started in it. What lives there is signalled, frozen or ended only with
        *owned*, and not by leaving ``with``, but by asking for it.

        Raises:
            ContainerError: *path* is no directory of a cgroup mount.
        """
        container = cls(name=os.fspath(path))
        container._life = Visit(os.fspath(path), owned=owned)
        return container

    # the beginning

    def start(self) -> Container:
        """Make it, empty, its limits in force. Once.

        Raises:
            NotOffered: this host can't honour what was asked; the reason and the remedy are named.
            ContainerError: the kernel refused something; nothing is left behind.
        """
        if self._life is not None:
            raise ContainerError(f"container {self.name} was started already", operation="start")
        if self._slice is not None:
            self._slice.check()
        life = self._life = Life(
            self.name,
            self._spec,
            self._asked,
            self._backend_name,
            ports=self._ports,
            network=self._network,
            init=self._init,
            path=self._path,
        )
        life.face = self
        self._commands = Commands(life.start_process, life.pids, life.alive)
        return self

    # processes

    def popen(self, argv: Any, **options: Any) -> subprocess.Popen[Any]:
        """Start a program in it: a real `subprocess.Popen`, with all of its arguments but ``preexec_fn``.

        The process is in the container, with everything that was asked of it, before the program begins, and it is a
        child of this process; on the process backend, and without an init, it is the child of a process of ours, where
        `os.waitpid` does not reach, and Popen's own methods do.

        Raises:
            OSError: as Popen does, of a program that is not there.
            ContainerError: the container has ended, or the process could not step into it.
        """
        return self._live("popen").start_process(argv, options)

    def run(
        self,
        argv: Any,
        *,
        timeout: float | None = None,
        input: str | bytes | None = None,  # subprocess.run's name for it
        capture_output: bool = False,
        output_limit: int | str | None = None,
        check: bool = False,
        **options: Any,
    ) -> Completed:
        """Run a program to its end, as `subprocess.run` does.

        Of stdout and of stderr, where they are read, no more than *output_limit* bytes are kept (``"1M"``), the first
        half and the last, and between them a line that says how many are missing. The program may write on.

        Its end is the end: a daemon that it left behind with its output open does not hang this. What outlives it goes
        on living in the container, and is listed in the result's ``outcome``; the usage there is the container's so
        far. Where several commands run in one container at once, an orphan can't be told to be one's, and is listed at
        the container's end only.

        Raises:
            subprocess.TimeoutExpired: it was killed after *timeout* seconds, with all that came of it.
            subprocess.CalledProcessError: with *check*, and a returncode other than 0.
            ContainerError, OSError: as `popen`.
        """
        life, limit = self._live("run"), parse_output_limit(output_limit)
        ended = self._commands.run(
            argv, timeout=timeout, input=input, capture_output=capture_output, limit=limit, options=options
        )
        args, code = ended.process.args, ended.process.returncode
        owner = shlex.join(map(str, args)) if isinstance(args, list | tuple) else str(args)
        outcome = life.outcome_of(code, ended.wall_seconds, ended.left, owner)
        done = Completed(args, code, ended.stdout, ended.stderr, outcome)
        if check:
            done.check_returncode()
        return done

    def call(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """What ``function(*args, **kwargs)`` returns in a forked child of this process, inside.

        The child has everything that this process has, the function and its arguments need not be pickled; what comes
        back is. Of other threads the child has none, and a lock that one of them holds stays locked there. It ends
        without this process's atexit, and what it leaves behind lives on in the container.

        Raises:
            BaseException: what the function raised, with the traceback in the child as a note.
            ContainerError: that, or the value, can't be pickled, and is told as text; or the child ended before.
        """
        __tracebackhide__ = True
        return call(self._live("call").fork, function, args, kwargs)

    async def create_subprocess_exec(self, program: Any, *args: Any, **options: Any) -> AsyncProcess:
        """Start a program in it for asyncio, as `asyncio.create_subprocess_exec` does; *options* are those of `popen`.

        What comes back has ``stdin``, ``stdout``, ``stderr``, ``pid``, ``returncode``, ``wait``, ``communicate``,
        ``send_signal``, ``terminate`` and ``kill``, as `asyncio.subprocess.Process` has.

        Raises:
            ContainerError, OSError: as `popen`.
        """
        from ._async_process import start

        return await start(self._live("popen").start_process, [program, *args], options)

    def gateway(self, spec: str = "popen") -> execnet.Gateway:
        """An execnet gateway whose interpreter lives inside: ``gateway().remote_exec("channel.send(1)")``.

        Args:
            spec: execnet's, of a popen gateway: ``"popen//python=python3.12"``.

        It dies with the container, and is no leak of it.

        Raises:
            ValueError: *spec* is of another kind, which would run elsewhere.
            ContainerError: as `popen`.
        """
        import execnet

        from ._gateway import Inside

        life = self._live("popen")
        if not (asked := execnet.XSpec(spec)).popen or asked.via:
            raise ValueError(f"{spec!r}: a gateway inside a container is started by popen")

        def popen(argv: Any, **options: Any) -> Any:
            process = life.start_process(argv, options)
            life.not_left.add(process.pid)
            return process

        group = Inside(popen)
        life.after_end.append(lambda: group.terminate(_GATEWAY_SECONDS))
        return group.makegateway(asked)

    def daemon(self, argv: Any, *, name: str | None = None, wait: bool = True, **asked: Any) -> Daemon:
        """Start a program that is supervised until the container ends: restarted by a policy, its output kept.

        Args:
            name: no other daemon of the container may have it; the program's, with a number, unless given.
            wait: return when it is ready; else at once, and `Daemon.wait_ready` waits.
            asked: ``restart``, ``max_restarts``, ``within``, ``backoff``, ``ready``, ``after``, ``stop_signal``,
                ``grace``, ``exit_status``, ``log``, ``log_level``, ``log_prefix``, ``log_transform``, ``log_limit``,
                ``output_window`` and ``pidfile``, as the guide to daemons has them; and Popen's options.

        Raises:
            SpecError: one of them can't be right.
            DaemonError: it ended before it was ready, or was not in time; with the last that it printed.
            ContainerError, OSError: as `popen`; and *name* is taken.
        """
        __tracebackhide__ = True
        from ._daemons import of

        life = self._live("popen")
        assert isinstance(life, Life), "a visit admits nobody"
        return of(life).start(argv, name=name, wait=wait, grace=self._grace, asked=asked)

    # living with it

    def processes(self) -> list[psutil.Process]:
        """What lives in it, as `psutil.Process`; zombies are not listed."""
        import psutil

        found = []
        for pid in self._live("processes").pids():
            with contextlib.suppress(psutil.NoSuchProcess):
                found.append(psutil.Process(pid))
        return found

    def __contains__(self, pid: object) -> bool:
        """Whether the process of this pid lives in it."""
        return self._life is not None and pid in self._life.pids()

    @property
    def populated(self) -> bool:
        """Whether anything lives in it."""
        return self._life is not None and bool(self._life.pids())

    def usage(self) -> Usage:
        """What it has used so far, all of its processes together; after the end, what it used in all.

        On the process backend what the living use is not in it: the kernel tells that of the ended alone.
        """
        return (self._live if self.outcome is None else self._ever)("usage").usage()

    def signal(self, number: int) -> None:
        """Signal each of its processes, and no other."""
        self._live("signal").tree.signal(number)

    def adopt(self, pid: int) -> None:
        """Move a process that was started elsewhere into the container's cgroup: limits, measuring and the end hold for
        it and for what it starts from now on. Its namespaces stay its own, and its children stay where they are.

        Raises:
            ContainerError: it is not ours to move (another user's, this process, one that this descends from), or gone.
            NotOffered: the container is no cgroup.
        """
        self._live("adopt").adopt(pid)

    def stats(self) -> dict[str, str]:
        """The files of its cgroup as the kernel has them, by name: ``stats()["memory.events"]``.

        On cgroup v1 under the names of v1; empty on the process backend, and after the end.
        """
        return self._ever("stats").stats()

    def freeze(self) -> None:
        """Stop everything in it where it stands, until `thaw`. A frozen container can be killed.

        On the process backend it is SIGSTOP, which who is stopped can see, and anybody's SIGCONT undoes.
        """
        self._live("freeze").freeze()

    def thaw(self) -> None:
        """Let everything go on."""
        self._live("thaw").thaw()

    def update(self, **limits: Any) -> None:
        """Set limits of the living container: ``update(memory="128M")``. They are read back, into `limits`.

        Raises:
            SpecError: a bad value, or a field that can be had at the start only.
            NotOffered: this host has no such limit.
            ContainerError: the kernel refused it (EBUSY: more is in use than shall be allowed).
        """
        self._live("update").change(limits)

    @property
    def ports(self) -> dict[int, int]:
        """By each port inside that is published, the one at 127.0.0.1 that leads there: ``container.ports[8080]``.

        A connection to it is accepted at once, and reset if nobody listens inside, at 127.0.0.1 or ::1.
        """
        return getattr(self._life, "ports", {})

    @property
    def address(self) -> str | None:
        """Where the others of its `Network` reach what listens in it; None while it is in none."""
        seat = getattr(self._life, "seat", None)
        return None if seat is None else seat.address

    @property
    def limits(self) -> dict[str, str]:
        """The limits in force: as read back from the kernel, or watched from here."""
        return {} if self._life is None else self._life.limits()

    def wait_empty(self, timeout: float | None = None) -> bool:
        """Wait until nothing lives in it; whether that came about in *timeout* seconds."""
        return self._ever("wait_empty").wait_empty(timeout)

    def events(self, timeout: float | None = None) -> Iterator[Event]:
        """What happens to it, from its start to its end, as it happens; who comes late is told what was before.

        The kernel tells of it, nothing is polled for. The iteration ends with the event ``stopped``, or *timeout*
        seconds after its first step. Of limits that are hit quickly several times there is one event, with the count.
        On cgroup v1 there is no ``memory_high``; on the process backend there are ``started``, ``stopped``, and an
        ``oom`` before that.
        """
        return self._ever("events").events.follow(timeout)

    # the end

    def wait(self, timeout: float | None = None) -> Outcome:
        """Wait until it is ended, by another thread or at a limit; the one outcome, whoever waits.

        Raises:
            ContainerTimeout: it lives on after *timeout* seconds.
        """
        return self._ever("wait").wait(timeout)

    def kill(self) -> None:
        """SIGKILL everything in it, at once, frozen or not, and wait until it is gone. The container lives on.

        Raises:
            ContainerError: something is still there after ten seconds, in an uninterruptible sleep.
        """
        self._ever("kill").kill()

    def stop(self, grace: float | None = None) -> Outcome:
        """End it: SIGTERM to all, SIGKILL after *grace* seconds to who is still there; no longer than needed."""
        return self._ever("stop").end(self._grace if grace is None else grace)

    def destroy(self) -> Outcome:
        """End it at once: kill everything, wait until it is gone, measure, remove. The outcome, the same every time."""
        return self._ever("destroy").end(0.0)

    @property
    def outcome(self) -> Outcome | None:
        """What came of it, once it has ended."""
        return None if self._life is None else self._life.outcome

    def _ever(self, operation: str) -> Life | Visit:
        """Its life, also when that is over.

        Raises:
            ContainerError: it has not begun.
        """
        if self._life is None:
            remedy = "use it inside `with`, or call start()"
            raise ContainerError(f"container {self.name} was not started", operation=operation, remedy=remedy)
        return self._life

    def _live(self, operation: str) -> Life | Visit:
        """Its life, which goes on.

        Raises:
            ContainerError: it has not begun, or is over, or another process's.
        """
        life = self._ever(operation)
        life.check(operation)
        return life


def containers() -> list[Container]:
    """The containers of this process that live, the oldest first; not those of contained tests themselves."""
    faces = (getattr(life, "face", None) for life in living())
    return [face for face in faces if isinstance(face, Container) and face.outcome is None]
