"""The cgroup backend: a container is a cgroup (v2, v1 or hybrid), killed whole by the kernel."""

from __future__ import annotations

import contextlib
import dataclasses
from types import MappingProxyType
from typing import TYPE_CHECKING

from .. import _cgroup_usage
from .. import _cgroup_v1 as v1
from .._cgroup import Cgroup
from .._host import LIMIT_FILES
from .._isolated import io, os, select, threading, time
from .._kernel_files import join, read_file
from .._kernel_text import cgroup_mounts, flat_keyed, membership, membership_path
from .._ownership import SLICE, UNSIGNED_MODE, base_of, claim, signpost_name
from .._placement import Missing
from .._process import children, gets_orphans, reap, wait_gone
from .._spec import Spec
from .._units import format_size
from ..exceptions import ContainerError
from . import missing_identity, missing_namespaces
from .limits import is_as_asked, is_size, limits_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .._host import Host
    from .._outcome import Usage

#: v1 controllers that every container joins, for the numbers alone
_MEASURED = frozenset(("memory", "pids", "blkio"))
#: how soon after one process moved between cgroups the next can move without waiting, at the least; in seconds
_GRACE_PERIOD_SECONDS = 0.005
_V1_OF_FIELD = {"cpu": "cpu", "cpu_weight": "cpu", "cpuset": "cpuset"}


_UNLIMITED = Spec(oom_group=False)


class CgroupBackend:
    """Containers as cgroups below the session's, or below that of a slice.

    Args:
        host: this machine.
        slices: the limits of the slices that are known to have any, by their names.
    """

    name = "cgroup"
    needs_reaper = False

    def __init__(self, host: Host, slices: Mapping[str, Spec] = MappingProxyType({})) -> None:
        self.host = host
        self._asked_of_slices = {**slices}
        self._slices: dict[str, CgroupTree] = {}
        self._making_slices = threading.RLock()
        session = host.placement.session
        assert session is not None, "choose() gives this backend only where a cgroup can be made"
        self.session = session
        self._measured = _MEASURED | (frozenset() if session.unified else frozenset(("cpuacct", "freezer")))

    def describe(self) -> str:
        placement = self.host.placement
        lacking = [field for field in LIMIT_FILES if field != "oom_group" and not self.host.capability(field).offered]
        where = self.session.path
        if placement.base is not None:  # on v1 it may be one of a single hierarchy
            base = os.path.normpath(placement.base)
            where = next((one for one in self.session.directories if os.path.dirname(one).endswith(base)), where)
        text = f"cgroup {placement.kind} at {where}"
        return text + (f" (can't enforce: {', '.join(lacking)})" if lacking else "")

    def missing(self, spec: Spec) -> list[tuple[str, Missing]]:
        lacking = missing_namespaces(self.host, spec) + missing_identity(spec)
        for field in LIMIT_FILES:
            value = getattr(spec, field)
            if value in (None, ()) or field == "oom_group" or (field == "swap" and value == 0):
                continue
            capability = self.host.capability(field)
            if not capability.offered:
                lacking.append((field, Missing(capability.reason, capability.remedy)))
        if (limits := self._asked_of_slices.get(spec.slice or "")) is not None:
            lacking += [
                ("slice", Missing(f"{spec.slice} has {field}, and {why.reason}", why.remedy))
                for field, why in self.missing(limits)
            ]
        return lacking

    def weaker(self, spec: Spec) -> tuple[str, ...]:
        if spec.memory is None or self.host.capability("swap").offered or not _has_swap():
            return ()
        return ("swap: this kernel does not account for it, the memory limit does not hold what is swapped out",)

    def create(self, spec: Spec, name: str, *, nests: bool = False) -> CgroupTree:
        within = None if spec.slice is None else self._slice(spec.slice)
        above = self.session if within is None else within.cgroup
        # what limits a slice, holds for who is in that hierarchy of it
        everywhere = nests or within is not None
        cgroup = above.child(name, None if everywhere else self._measured | self._controllers(spec))
        tree = self._make_listening(cgroup, spec)
        if within is not None:
            tree.stands_in(str(spec.slice), within)
        return tree

    def create_at(self, path: str, spec: Spec) -> CgroupTree:
        session = self.session
        placed = Cgroup(
            session.unified and f"{base_of(session.unified)}/{path}",
            {name: f"{base_of(directory)}/{path}" for name, directory in session.controllers.items()},
        )
        signpost = session.child(signpost_name(path))
        signpost.make()
        try:
            tree = self._make_listening(placed, spec, claimed=True)
        except BaseException:
            with contextlib.suppress(ContainerError):
                signpost.remove()
            raise
        tree.signpost = signpost
        return tree

    def _make_listening(self, cgroup: Cgroup, spec: Spec, *, claimed: bool = False) -> CgroupTree:
        tree = self._make(cgroup, spec, claimed=claimed)
        try:
            tree.listen()
        except BaseException:
            with contextlib.suppress(ContainerError):
                tree.remove()
            raise
        return tree

    def _make(self, cgroup: Cgroup, spec: Spec, *, claimed: bool = False) -> CgroupTree:
        cgroup.make(UNSIGNED_MODE if claimed else 0o700)
        try:
            if claimed:
                self._claim(cgroup)
            tree = CgroupTree(cgroup)
        except BaseException:
            with contextlib.suppress(ContainerError):  # the session's end tries it again
                cgroup.remove()
            raise
        try:
            tree.limit(spec, swap=spec.memory is not None and self.host.capability("swap").offered)
        except BaseException:
            with contextlib.suppress(ContainerError):
                tree.remove()
            raise
        return tree

    def _claim(self, cgroup: Cgroup) -> None:
        for directory in cgroup.directories:
            if not claim(directory, self.session.path):
                raise ContainerError(
                    "a container with a path of its own can't be signed here",
                    path=directory,
                    operation="setxattr",
                    remedy="run pytest as root, or on cgroup v2 since Linux 5.7; or do without path=",
                )

    def open_slice(self, name: str, spec: Spec) -> CgroupTree:
        """A slice with limits of its own: the cgroup that holds those of the containers that name it.

        Raises:
            ContainerError: there is one of this name, or the kernel refused something.
        """
        with self._making_slices:
            if name in self._slices or name in self._asked_of_slices:
                raise ContainerError(f"there is a slice {name} already", operation="start", remedy="take another name")
            tree = self._slices[name] = self._make_slice(name, spec)
            return tree

    def close_slice(self, name: str) -> None:
        """It is to go, and takes in no more; where a container is still in it, it goes with the session."""
        with self._making_slices:
            if (tree := self._slices.pop(name, None)) is not None:
                with contextlib.suppress(ContainerError):
                    tree.cgroup.remove(0.0)

    def _slice(self, name: str) -> CgroupTree:
        """The slice *name*, made with the first container that is in it."""
        with self._making_slices:
            if name not in self._slices:
                self._slices[name] = self._make_slice(name, self._asked_of_slices.get(name) or _UNLIMITED)
            return self._slices[name]

    def _make_slice(self, name: str, spec: Spec) -> CgroupTree:
        tree = self._make(self.session.child(f"{SLICE}{name}"), spec)
        tree.started(0)  # nobody joins it: who is in it is in one of its containers
        try:
            tree.cgroup.delegate()
        except BaseException:
            with contextlib.suppress(ContainerError):
                tree.remove()
            raise
        return tree

    def _controllers(self, spec: Spec) -> frozenset[str]:
        asked = {v1_name for field, v1_name in _V1_OF_FIELD.items() if getattr(spec, field) is not None}
        asked.update(v1.controller_of(file) for file in dict(spec.controls or {}))
        return frozenset(asked)


class CgroupTree:
    """One container as a cgroup."""

    watch_interval = None

    def __init__(self, cgroup: Cgroup) -> None:
        self.cgroup = cgroup
        self.limits: dict[str, str] = {}
        self.oom_fd: int | None = None
        self._oom_above_fd: int | None = None
        self._events_fd: int | None = None
        self._ooms = self._ooms_above = 0
        self._procs = cgroup.open_procs()
        self._joined: tuple[float, int] | None = None
        self._birthplace: int | None = None
        self._slice: Cgroup | None = None
        #: of one with a path of its own: points to it from the session
        self.signpost: Cgroup | None = None
        self._slice_hits = 0
        self._used: Usage | None = None

    def limit(self, spec: Spec, *, swap: bool) -> None:
        """Set every limit of *spec*, each read back; what the kernel rounded is kept as what is in force."""
        for field, value in limits_of(spec, swap=swap):
            if field == "oom_group":
                self._end_on_oom()
            else:
                self.limits[field] = self._set(field, value)
        for file, value in dict(spec.controls or {}).items():
            self.limits[file] = self.cgroup.set(file, str(value))

    def stands_in(self, name: str, tree: CgroupTree) -> None:
        """It is a container of the slice *name*, which is *tree*."""
        self._slice, self._slice_hits = tree.cgroup, _pids_hits(tree.cgroup)
        sizes = {field: format_size(int(value)) for field, value in tree.limits.items() if is_size(field, value)}
        limits = ", ".join(f"{field}={value}" for field, value in {**tree.limits, **sizes}.items())
        self.limits["slice"] = f"{name} ({limits})" if limits else name

    def change(self, spec: Spec) -> None:
        self.change_limits(spec)
        if self.oom_fd is None:
            self.listen()

    def change_limits(self, spec: Spec) -> None:
        """`change`, and no more: of a slice nobody waits to be told."""
        swap = spec.memory is not None and "swap" in self.limits
        if spec.memory == "max" and spec.swap is None:
            spec = dataclasses.replace(spec, swap="max")
        for field, value in limits_of(spec, swap=swap):
            if field != "oom_group":
                self.limits[field] = self._set(field, value)

    def _set(self, field: str, value: str) -> str:
        file = LIMIT_FILES[field]
        in_force = self.cgroup.set(file, value)
        if field in ("memory", "swap", "memory_high", "pids") and not is_as_asked(value, in_force):
            raise ContainerError(
                f"{field} was set, but the kernel says otherwise: {in_force}",
                path=f"{self.cgroup.path}/{file}",
                operation="write",
                value=value,
            )
        return in_force

    def _end_on_oom(self) -> None:
        """memory.oom.group (4.19) ends the container on one OOM kill; on v1 whoever waits is told, and does it."""
        if "memory" not in self.cgroup.controllers and self.cgroup.offers("memory.oom.group"):
            self.cgroup.set("memory.oom.group", "1")

    def listen(self) -> None:
        """v1 counts no OOM, but tells of each: here, and in the cgroup above, so that the two can be told apart."""
        if self._limits_memory() and (directory := self.cgroup.controllers.get("memory")):
            self.oom_fd = v1.oom_eventfd(directory)
            self._oom_above_fd = v1.oom_eventfd(os.path.dirname(directory))

    def join(self) -> None:
        for fd in self._procs:
            join(fd)
        if self.cgroup.unified:
            first = self._procs.pop(0)
            self._joined = time.monotonic(), first
        self._close_procs()

    def admitted(self) -> None:
        """Nobody has a say in that."""

    def part(self) -> None:
        joined, self._joined = self._joined, None
        if joined is not None and time.monotonic() - joined[0] < _GRACE_PERIOD_SECONDS:
            with contextlib.suppress(OSError):
                os.write(joined[1], b"0")

    def _close_procs(self) -> None:
        for fd in self._procs:
            os.close(fd)
        self._procs = []

    def started(self, root: int) -> None:
        self._close_procs()

    def doors(self) -> list[int]:
        return self._procs

    def birthplace(self) -> int | None:
        if self._birthplace is None and self.cgroup.unified:
            self._birthplace = os.open(self.cgroup.unified, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        return self._birthplace

    def affinity(self) -> set[int] | None:
        return None

    def held_by(self, root: int, apart: frozenset[int]) -> None:
        """The cgroup knows who is in it."""

    def held_by_another(self, root: int) -> None:
        """It knows them, too."""

    def ended(self, rusage: dict[str, float]) -> None:
        """The cgroup counts better: whoever was born in it, waited for or not."""

    def pids(self) -> list[int]:
        return self.cgroup.pids()

    def signal(self, number: int) -> None:
        self.cgroup.signal(number)

    def settle(self, timeout: float) -> bool:
        return self.cgroup.wait_empty(timeout)

    def kill(self, timeout: float) -> bool:
        return self.cgroup.kill_until_empty(timeout)

    def freeze(self) -> None:
        self.cgroup.freeze()

    def thaw(self) -> None:
        self.cgroup.thaw()

    def usage(self) -> Usage:
        usage = self._used = _cgroup_usage.usage(self.cgroup, self._used)
        if self._slice is None or (hits := _pids_hits(self._slice) - self._slice_hits) <= 0:
            return usage
        return dataclasses.replace(usage, pids_max_hits=(usage.pids_max_hits or 0) + hits)

    def cpu_seconds(self) -> float | None:
        return _cgroup_usage.cpu_seconds(self.cgroup)

    def over_limit(self) -> bool:
        return False

    def out_of_memory(self) -> bool:
        """v1 tells the cgroup that ran out, and then all below it (mem_cgroup_oom_notify), before anything is killed.

        So it is ours if we were told, and the one above was not. Asked in this order: that one was told before us.
        """
        self._ooms += _count(self.oom_fd)
        self._ooms_above += _count(self._oom_above_fd)
        return self._ooms > self._ooms_above or self._was_killed_whole()

    def _was_killed_whole(self) -> bool:
        """By v2's memory.oom.group. Before Linux 5.17 that is not counted apart from other OOM kills in it."""
        if "memory" in self.cgroup.controllers:
            return False
        if self._events_fd is None:
            events = self.cgroup.events("memory.events.local")
        else:  # its poll(2) tells again until it is read
            events = flat_keyed(os.pread(self._events_fd, 4096, 0).decode())
        return bool(events.get("oom_group_kill", events.get("oom_kill")))

    def oom_bell(self) -> tuple[int, int] | None:
        if self.oom_fd is not None:
            return self.oom_fd, select.POLLIN
        if self._events_fd is None and self._limits_memory() and "memory" not in self.cgroup.controllers:
            with contextlib.suppress(OSError):
                self._events_fd = os.open(f"{self.cgroup.path}/memory.events.local", os.O_RDONLY | os.O_CLOEXEC)
        return None if self._events_fd is None else (self._events_fd, select.POLLPRI)

    def oom(self) -> str | None:
        """v2's ``oom`` counts where a limit was hit, in it or below it, and ``oom_kill`` where the victim was."""
        events = self.cgroup.events("memory.events")
        if not events.get("oom_kill"):
            return None
        if "oom" in events:
            hit = bool(events["oom"])
        elif self.oom_fd is not None:
            hit = self.out_of_memory()
        else:  # nobody is told under PREEMPT_RT: that the limit was ever hit has to do
            hit = self._limits_memory() and bool(events.get("max"))
        return "oom" if hit else "oom-ancestor"

    def _limits_memory(self) -> bool:
        return any(v1.controller_of(name) == "memory" for name in self.limits)

    def remove(self) -> None:
        self._close_procs()
        for fd in (self.oom_fd, self._oom_above_fd, self._events_fd, self._birthplace):
            if fd is not None:
                os.close(fd)
        self.oom_fd = self._oom_above_fd = self._events_fd = self._birthplace = None
        if self.cgroup.unified and gets_orphans():  # v1 does not know where they were
            self._reap_orphans(self.cgroup.unified)
        self.cgroup.remove()
        if self.signpost is not None:
            self.signpost.remove()

    def _reap_orphans(self, directory: str) -> None:
        """Those of here have ended, and nobody but this process can wait for them."""
        if not (pids := children()):
            return
        mounts = (mount for mount in cgroup_mounts(read_file("/proc/self/mountinfo")) if mount.version == 2)
        here = next(filter(None, (membership_path(mount, directory) for mount in mounts)), directory)
        for pid in pids:
            with contextlib.suppress(OSError):
                path = membership(read_file(f"/proc/{pid}/cgroup")).get("", "")
                if f"{path}/".startswith(f"{here}/") and wait_gone([pid], 0.5):
                    reap(pid)


def _pids_hits(cgroup: Cgroup) -> int:
    """How often its own limit was hit, wherever below it; before Linux 6.11 that counts where the fork was tried."""
    return cgroup.events("pids.events.local").get("max", 0)


def _count(eventfd: int | None) -> int:
    """How often it was signalled since it was last asked."""
    try:
        return 0 if eventfd is None else os.eventfd_read(eventfd)
    except BlockingIOError:
        return 0


def _has_swap() -> bool:
    with contextlib.suppress(OSError), io.open("/proc/meminfo", encoding="ascii") as f:
        return any(line.startswith("SwapTotal:") and int(line.split()[1]) > 0 for line in f)
    return True
