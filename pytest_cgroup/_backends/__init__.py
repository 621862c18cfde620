"""How a container is made on this host: the rungs of the ladder, behind one interface.

A `Backend` makes a `Tree`: one container's processes, as that backend can hold, measure and kill them.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple, Protocol

from .._host import NAMESPACES, nothing_at_all
from .._isolated import os
from .._values import EXEC

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .._host import Host
    from .._outcome import Usage
    from .._placement import Missing
    from .._spec import Spec


class Run(NamedTuple):
    """A run of pytest in this process: what it makes containers with, and the name that it asked for that by.

    ``slices`` are the limits of the slices that it knows: in a contained test there are such, too, inside.
    """

    pid: int
    host: Host
    backend: Backend
    asked: str
    slices: Mapping[str, Spec]


#: containers that are made meanwhile, in a test as elsewhere, are made with the same
of_this_run: Run | None = None


class Tree(Protocol):
    """One container's processes. Made before the first of them is forked."""

    @property
    def limits(self) -> Mapping[str, str]:
        """Limits in force, read back from the kernel: ``{"memory": "67108864"}``."""

    @property
    def oom_fd(self) -> int | None:
        """Readable when memory runs out, where the kernel would not end the container by itself."""

    @property
    def watch_interval(self) -> float | None:
        """Seconds between two calls of `over_limit`, None where the kernel enforces every limit itself."""

    def join(self) -> None:
        """In the forked child, before anything else: step into the container."""

    def admitted(self) -> None:
        """In a process above the container, before it forks the first one in it: wait until it may.

        Raises:
            ContainerError: it may not.
        """

    def part(self) -> None:
        """In the process that joined, at its end, where it ends soon after: make the next one's join cheap.

        A process that joins a cgroup v2 shuts out every fork and exit of the host (cgroup_threadgroup_rwsem), and waits
        for an RCU grace period, which is milliseconds, unless another did the same a moment ago. So tests that follow
        one another quickly spare each other that wait: this one joins, once more, where it is.
        """

    def started(self, root: int) -> None:
        """In the parent: *root* is the pid whose descendants (or itself) the container holds."""

    def doors(self) -> list[int]:
        """Where somebody else forks the processes: descriptors that each of them joins by, with a "0" into each."""

    def birthplace(self) -> int | None:
        """The open directory of a cgroup of v2 in which such a process can be born, instead of by the first door.

        A process that joins shuts out every fork of the host, and waits for an RCU grace period: some milliseconds,
        unless another moved just before. Who is born inside (CLONE_INTO_CGROUP, clone3(2)) does neither.
        """

    def affinity(self) -> set[int] | None:
        """The CPUs that such a process binds itself to, where nothing else holds it there."""

    def held_by(self, root: int, apart: frozenset[int]) -> None:
        """Such processes, and nothing of ours, are below *root*; *apart* are there for the container's sake."""

    def held_by_another(self, root: int) -> None:
        """More of such processes are below *root*, too; it is nobody else's pid before it is waited for."""

    def ended(self, rusage: dict[str, float]) -> None:
        """In the parent: what the reaper, if there is one, measured of all that it waited for."""

    def pids(self) -> list[int]:
        """Every living process of the container."""

    def signal(self, number: int) -> None:
        """Signal every process of the container, and no other."""

    def settle(self, timeout: float) -> bool:
        """Wait *timeout* seconds at most for the last process to go by itself; whether it did."""

    def kill(self, timeout: float) -> bool:
        """Kill everything, and wait; whether nothing is left after *timeout* seconds."""

    def freeze(self) -> None:
        """Stop every process where it stands, until `thaw`. A frozen container can be killed."""

    def thaw(self) -> None:
        """Let them go on."""

    def change(self, spec: Spec) -> None:
        """Set the limits of *spec*, and no other, on the living container; read back into `limits`.

        Raises:
            ContainerError: the kernel refused one.
        """

    def usage(self) -> Usage:
        """What was used so far."""

    def cpu_seconds(self) -> float | None:
        """CPU time so far, in seconds."""

    def over_limit(self) -> bool:
        """Whether a limit that this backend only watches is exceeded now."""

    def out_of_memory(self) -> bool:
        """Asked when `oom_fd` is readable, and then it no longer is: whether it is this container that ran out."""

    def oom_bell(self) -> tuple[int, int] | None:
        """A descriptor, and what to poll(2) it for, when memory runs out in a container that nobody waits for.

        None where nothing tells. Asked again it is the same one.
        """

    def oom(self) -> str | None:
        """``"oom"``, ``"oom-ancestor"`` or None: what the counters say of an OOM kill in it."""

    def remove(self) -> None:
        """Give back what it took on the host; the processes are gone."""


class Backend(Protocol):
    """A rung of the ladder."""

    @property
    def name(self) -> str:
        """What it is called in options and reports."""

    @property
    def needs_reaper(self) -> bool:
        """Whether the container needs a process above it that adopts and reaps orphans."""

    def describe(self) -> str:
        """The rung in one phrase, for the header of the run."""

    def missing(self, spec: Spec) -> list[tuple[str, Missing]]:
        """The fields of *spec* that can't be honoured here, with reason and remedy."""

    def weaker(self, spec: Spec) -> tuple[str, ...]:
        """What of *spec* is honoured, but less strictly than the kernel could."""

    def create(self, spec: Spec, name: str, *, nests: bool = False) -> Tree:
        """A new container, limits set and read back; *nests*: others are to be made inside, with limits of any kind.

        Raises:
            ContainerError: the kernel refused something.
        """

    def create_at(self, path: str, spec: Spec) -> Tree:
        """The same, with a path of its own: below the cgroup that pytest was started in.

        Raises:
            NotOffered: there are no cgroups here.
            ContainerError: the kernel refused something, or it is there already.
        """


def namespaces_asked(spec: Spec) -> frozenset[str]:
    """The fields of the namespaces that *spec* asks for; ``user_ns`` is no reason to need another."""
    return frozenset(name for name in NAMESPACES if getattr(spec, name))


def missing_namespaces(host: Host, spec: Spec) -> list[tuple[str, Missing]]:
    """Those that this host does not offer."""
    asked = sorted(namespaces_asked(spec)) + (["user_ns"] if spec.user_ns else [])
    lacking = [(name, capability) for name in asked if not (capability := host.capability(name)).offered]
    return [(name, _as_missing(capability.reason, capability.remedy)) for name, capability in lacking]


def missing_identity(spec: Spec) -> list[tuple[str, Missing]]:
    """Running as somebody else takes root: the user and group of *spec*, where they are not to be had."""
    from .._identity import look_up

    if os.geteuid() == 0 or (spec.user is None and spec.group is None):
        return []
    who = look_up(spec.user, spec.group)
    if (who.uid, who.gid, {*who.groups}) == (os.getuid(), os.getgid(), {*os.getgroups(), os.getgid()}):
        return []
    missing = _as_missing("only root may run a test as somebody else", "run pytest as root")
    return [(field, missing) for field in ("user", "group") if getattr(spec, field) is not None]


def _as_missing(reason: str, remedy: str) -> Missing:
    from .._placement import Missing

    return Missing(reason, remedy)


def choose(host: Host, name: str = "auto", slices: Mapping[str, Spec] = MappingProxyType({})) -> Backend:
    """The backend *name*, or for ``"auto"`` the highest rung that works here; *slices*: the limits of those known.

    Raises:
        NotOffered: *name* was asked for and does not work here, or nothing does.
    """
    from ..exceptions import NotOffered
    from .cgroup import CgroupBackend
    from .process import ProcessBackend

    if (nothing := nothing_at_all()) is not None:
        raise NotOffered(f"nothing can be contained: {nothing.reason}", remedy=nothing.remedy, missing=("cgroup",))
    if name == "process":
        return ProcessBackend(host, by_name=True)
    if name.startswith(EXEC):
        from .containerizer import Containerizer

        return ProcessBackend(host, by_name=True, outside=Containerizer(name.removeprefix(EXEC)))
    cgroup = host.capability("cgroup")
    if cgroup.offered:
        return CgroupBackend(host, slices)
    if name == "cgroup":
        raise NotOffered(f"--cgroup-backend=cgroup: {cgroup.reason}", remedy=cgroup.remedy, missing=("cgroup",))
    return ProcessBackend(host)


def refuse_what_is_missing(backend: Backend, spec: Spec, what: str) -> None:
    """*what* asks for *spec*, and gets it whole or not at all.

    Raises:
        NotOffered: this host can't honour it; the reason and the remedy are named.
    """
    from ..exceptions import NotOffered

    if lacking := backend.missing(spec):
        raise NotOffered(
            f"{what}: this host can't honour "
            + "; ".join(f"{field}: {why.reason} ({why.remedy})" for field, why in lacking),
            missing=tuple(field for field, _ in lacking),
        )


def check_base(host: Host, base: str) -> None:
    """A base that was named is used, or nothing is: what is beside it is no substitute.

    Raises:
        NotOffered: no container can be made below it.
    """
    from ..exceptions import NotOffered

    cgroup, session = host.capability("cgroup"), host.placement.session
    inside = os.path.realpath(base) + "/" if os.path.isabs(base) else ""
    if session is None or not any(os.path.realpath(path).startswith(inside) for path in session.directories):
        reason, remedy = cgroup.reason, cgroup.remedy
        if cgroup.offered:
            reason, remedy = next((m.reason, m.remedy) for m in host.placement.missing.values())
        raise NotOffered(f"the cgroup base {base} can't be used: {reason}", remedy=remedy, missing=("cgroup",))
