"""A cgroup that somebody else made, looked at through a `Container`; and what of other people's may be moved into ours.

It is never removed. Its processes are left alone, unless who looks says that they are theirs to end (*owned*).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from ._backends.cgroup import CgroupTree
from ._cgroup import Cgroup
from ._container import KILL_SECONDS
from ._description import describe_all
from ._events import Events
from ._isolated import os, signal
from ._kernel_files import read_file
from ._kernel_text import cgroup_mounts
from ._outcome import Outcome, Usage
from ._process import ProcessId
from ._spec import Spec
from .exceptions import ContainerError

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._popen import Popen

_FOREVER = 1e6


def find_cgroup(path: str) -> Cgroup:
    """The cgroup at *path*, a directory of a cgroup mount: on v1 in every hierarchy that has it at the same place.

    Raises:
        ContainerError: there is no cgroup.
    """
    real = os.path.realpath(path)
    mounts = cgroup_mounts(read_file("/proc/self/mountinfo"))
    for mount in sorted(mounts, key=lambda mount: -len(mount.mount_point)):
        relative = os.path.relpath(real, os.path.realpath(mount.mount_point))
        if relative.startswith("..") or not os.path.isfile(f"{real}/cgroup.procs"):
            continue
        if mount.version == 2:
            return Cgroup(real)
        found = {c: os.path.join(m.mount_point, relative) for m in mounts if m.version == 1 for c in m.controllers}
        return Cgroup(None, {name: where for name, where in found.items() if os.path.isdir(where)})
    raise ContainerError(
        "this is no cgroup", path=path, operation="open", remedy="name a directory below /sys/fs/cgroup"
    )


class Visit:
    """Stands for the life of a cgroup that is not ours: what can be asked of it, and no more."""

    def __init__(self, path: str, *, owned: bool) -> None:
        self.name = path
        self.spec = Spec()
        self.outcome: Outcome | None = None
        self.not_left: set[int] = set()
        self.daemons: None = None
        self.after_end: list[Callable[[], object]] = []
        self.owned = owned
        self._cgroup = find_cgroup(path)
        self.tree = CgroupTree(self._cgroup)
        self.tree.started(0)  # nobody joins
        self.events = Events(self._cgroup, lambda: self.outcome)

    def check(self, operation: str) -> None:
        """It may be looked at; to touch who lives in it takes *owned*."""
        if self.outcome is not None:
            raise ContainerError(f"container {self.name} has ended", operation=operation, remedy="look again")
        if operation in ("popen", "run", "call", "update", "adopt"):
            raise ContainerError("a cgroup that was made by somebody else is only looked at", operation=operation)
        if not self.owned and operation in ("kill", "stop", "destroy", "signal", "freeze", "thaw"):
            raise ContainerError(
                f"{self.name} was made by somebody else",
                operation=operation,
                remedy="say that its processes are yours to end: from_path(path, owned=True)",
            )

    def pids(self) -> list[int]:
        """Who lives in it."""
        return self._cgroup.pids() if self._cgroup.exists else []

    def alive(self) -> list[Popen]:
        """Nobody was started from here."""
        return []

    def start_process(self, argv: Any, options: dict[str, Any]) -> NoReturn:
        """Never."""
        self.check("popen")
        raise AssertionError

    def fork(self, function: object) -> NoReturn:
        """Never."""
        self.check("call")
        raise AssertionError

    def outcome_of(self, code: int, wall: float, left: list[int], owner: str) -> NoReturn:
        """Never."""
        self.check("run")
        raise AssertionError

    def change(self, limits: dict[str, Any]) -> None:
        """Never."""
        self.check("update")

    def adopt(self, pid: int) -> None:
        """Never."""
        self.check("adopt")

    def freeze(self) -> None:
        """Stop everything."""
        self.check("freeze")
        self.tree.freeze()

    def thaw(self) -> None:
        """Let everything go on."""
        self.check("thaw")
        self.tree.thaw()

    def limits(self) -> dict[str, str]:
        """Those whose files it has."""
        from ._host import LIMIT_FILES

        found = {field: self._cgroup.read(file) for field, file in LIMIT_FILES.items()}
        return {field: value.strip() for field, value in found.items() if value is not None}

    def usage(self) -> Usage:
        """What the kernel has counted."""
        return self.tree.usage() if self.outcome is None else self.outcome.usage

    def stats(self) -> dict[str, str]:
        """Its files."""
        return self._cgroup.files()

    def wait_empty(self, timeout: float | None) -> bool:
        """Wait until nothing lives in it."""
        return not self._cgroup.exists or self.tree.settle(_FOREVER if timeout is None else timeout)

    def wait(self, timeout: float | None) -> NoReturn:
        """Never: its end is its maker's matter."""
        raise ContainerError(
            f"the end of {self.name} is up to who made it", operation="wait", remedy="use wait_empty()"
        )

    def kill(self) -> None:
        """Kill everything in it."""
        self.check("kill")
        if not self.tree.kill(KILL_SECONDS):
            raise ContainerError(
                f"still there {KILL_SECONDS:.0f} s after SIGKILL: pids {self.pids()}", operation="kill"
            )

    def end(self, grace: float) -> Outcome:
        """Where that is *owned*, end who lives in it. The cgroup stays."""
        if self.outcome is not None:
            return self.outcome
        self.check("stop")
        me = os.getpid()
        leaks = describe_all(self.pids(), owner=self.name, ancestors_until=me)
        if grace > 0 and leaks:
            self.tree.signal(signal.SIGTERM)
            self.tree.settle(grace)
        self.kill()
        usage, limits = self.usage(), self.limits()
        self.outcome = Outcome(
            ended="exit",
            usage=usage,
            limits=limits,
            backend="cgroup",
            leaks=tuple(leaks),
        )
        self.events.stopped()
        return self.outcome


def adopt(cgroup: Cgroup, pid: int, *, ours: set[int]) -> None:
    """Move the process *pid* into *cgroup*; its children stay where they are. *ours*: helpers of our own.

    Raises:
        ContainerError: it is not ours to move, or it has ended, or the kernel refused the move.
    """

    def refused(why: str) -> ContainerError:
        return ContainerError(f"{why}, and is not moved", operation="adopt", value=pid)

    identity = ProcessId.of(pid)
    if identity is None:
        raise ContainerError("there is no such process", operation="adopt", value=pid)
    if pid in (os.getpid(), *_ancestors()):
        raise refused("this is the process that asks, or one that it descends from")
    if pid in ours:
        raise refused("it starts the processes of containers")
    if (uid := os.stat(f"/proc/{pid}").st_uid) not in (os.getuid(), os.geteuid()):
        raise refused(f"it belongs to uid {uid}")
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        raise ContainerError("it has ended", operation="adopt", value=pid) from None
    try:
        if not identity.alive:  # asked when the descriptor holds whoever has the number now
            raise ContainerError("it has ended", operation="adopt", value=pid)
        cgroup.adopt(pid)
        if not identity.alive:
            raise ContainerError("it has ended while it was moved", operation="adopt", value=pid)
    finally:
        os.close(fd)


def _ancestors() -> list[int]:
    import psutil

    return [process.pid for process in psutil.Process().parents()]
