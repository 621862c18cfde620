"""What this machine offers, and for each thing that it does not: why, and what to do. Tried, never guessed.

Each thing is tried when it is first asked for, and once a session: an empty session tries nothing.
"""

from __future__ import annotations

import errno
import sys
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

from . import _remedies, _syscalls
from ._environment import Environment, recognise
from ._isolated import os, socket
from ._namespaces import Namespaces, enter_user_namespace, set_up, unshare_pid
from ._placement import CONTROLLERS, Missing, Placement
from ._process import ask_child
from ._steps import namespace_remedy
from .exceptions import CgroupError

#: each limit's v2 file, by the name of the field that asks for it
LIMIT_FILES = {
    "memory": "memory.max",
    "swap": "memory.swap.max",
    "memory_high": "memory.high",
    "oom_group": "memory.oom.group",
    "pids": "pids.max",
    "cpu": "cpu.max",
    "cpu_weight": "cpu.weight",
    "cpuset": "cpuset.cpus",
    "io": "io.max",
    "io_weight": "io.weight",
}
NAMESPACES = {
    "pid_ns": _syscalls.CLONE_NEWPID,
    "net_ns": _syscalls.CLONE_NEWNET,
    "mount_ns": _syscalls.CLONE_NEWNS,
    "ipc_ns": _syscalls.CLONE_NEWIPC,
    "uts_ns": _syscalls.CLONE_NEWUTS,
    "cgroup_ns": _syscalls.CLONE_NEWCGROUP,
    "time_ns": _syscalls.CLONE_NEWTIME,
}
_FILES = {"pid_ns": "pid", "net_ns": "net", "mount_ns": "mnt", "ipc_ns": "ipc", "uts_ns": "uts"} | {
    "cgroup_ns": "cgroup",
    "time_ns": "time",
}
_NOT_LINUX = Missing("pytest-cgroup contains processes on Linux only", "run these tests on Linux")
_NOT_TRIED = "the host is short of something, for the moment perhaps: run it again"
_NO_PROC = Missing("/proc is not mounted here", "mount it: `mount -t proc proc /proc`")


def nothing_at_all() -> Missing | None:
    """Why this host offers nothing whatever, if that is so."""
    if sys.platform != "linux":
        return _NOT_LINUX
    return None if os.path.exists("/proc/self/mountinfo") else _NO_PROC


@dataclass(frozen=True, slots=True)
class Capability:
    """One thing that a container can be asked for. ``reason`` and ``remedy`` are empty where it is offered."""

    name: str
    offered: bool
    reason: str = ""
    remedy: str = ""


class Guardian(Protocol):
    """Who cleans up when this process is killed (`_guard`)."""

    def announce(self, pid: int | None = None) -> None:
        """In a process that stands above a container, or of the process *pid*: tell of it."""

    def announce_fork(self) -> None:
        """In a process that was forked in place: tell of it."""

    def end(self) -> None:
        """There is nothing to clean up any more."""


class Host:
    """This machine, as this process may use it. `close` gives back what trying needed.

    The arguments are `Placement`'s.
    """

    def __init__(
        self, base: str | None = None, *, scope: bool = True, take_over: bool = False, all_ours: bool = False
    ) -> None:
        self._placed = (base, scope, take_over, all_ours)
        self._known: dict[str, Capability] = {}
        self.guard: Guardian | None = None

    @cached_property
    def placement(self) -> Placement:
        """The session's cgroup, made on first use."""
        base, scope, take_over, all_ours = self._placed
        placement = Placement(base, scope=scope, take_over=take_over, all_ours=all_ours)
        if (nothing := nothing_at_all()) is None:
            placement.open()
        else:
            placement.missing["cgroup"] = nothing
        return placement

    @cached_property
    def environment(self) -> Environment:
        """Where this is: what is missing here has its remedy here."""
        return recognise()

    def announce(self, pid: int | None = None) -> None:
        """In a process that stands above a container, or of the process *pid*: tell the guard, where there is one."""
        if self.guard is not None:
            self.guard.announce(pid)

    def close(self) -> None:
        """Remove the session's cgroup, if it was made, and then the guard has nothing to guard.

        Raises:
            ContainerError: it can't be removed; the guard tries it again when this process has ended.
        """
        guard, self.guard = self.guard, None
        if "placement" in self.__dict__:
            self.placement.close()
        if guard is not None:
            guard.end()

    def capability(self, name: str) -> Capability:
        """Whether *name* is offered: a limit's field, a namespace's field, ``cgroup``, ``kill``, ``freeze``,
        ``pressure``, ``privileged`` or ``user_ns``.

        Raises:
            KeyError: there is no such thing.
            CgroupError, OSError: of ``cgroup``: it can't be found out.
        """
        if name not in self._known:
            try:
                self._known[name] = self._try(name)
            except (CgroupError, OSError) as error:
                if name == "cgroup":
                    raise
                return Capability(name, False, f"it can't be tried: {error}", _NOT_TRIED)
        return self._known[name]

    def _try(self, name: str) -> Capability:
        if name in NAMESPACES or name in ("user_ns", "privileged"):
            missing = self._namespaces.get(name)
        elif name in LIMIT_FILES:
            missing = self._limit(name)
        elif name == "cgroup":
            missing = None if self.placement.session else self._no_cgroup()
        elif name in TREE_FILES:
            missing = self._tree_file(name)
        else:
            raise KeyError(name)
        return Capability(name, True) if missing is None else Capability(name, False, missing.reason, missing.remedy)

    # cgroups

    def _no_cgroup(self) -> Missing:
        if (nothing := nothing_at_all()) is not None:
            return nothing
        missing = self.placement.missing["cgroup"]
        return Missing(missing.reason, _remedies.for_cgroup(self.environment, missing.reason) or missing.remedy)

    @cached_property
    def _offered_files(self) -> frozenset[str]:
        """The v2 names that a container has here: root cgroups lack most, so a cgroup is made to look."""
        session = self.placement.session
        if session is None:
            return frozenset()
        probe = session.child("probe")
        probe.make()
        try:
            return frozenset(f for f in (*LIMIT_FILES.values(), *TREE_FILES.values()) if probe.offers(f))
        finally:
            probe.remove()

    def _limit(self, name: str) -> Missing | None:
        file = LIMIT_FILES[name]
        if file in self._offered_files:
            return None
        controller = file.partition(".")[0]
        if self.placement.session is None:
            return self._no_cgroup()
        if controller in CONTROLLERS and controller not in self.placement.controllers:
            return self.placement.missing.get(controller) or Missing(
                f"the {controller} controller is not offered by this kernel or this cgroup",
                "a kernel and a parent cgroup with that controller",
            )
        where = "cgroup v1 has no such limit" if self.placement.kind != "v2" else f"this kernel has no {file}"
        return Missing(where, _FILE_REMEDY.get(name, "a newer kernel with cgroup v2"))

    def _tree_file(self, name: str) -> Missing | None:
        if TREE_FILES[name] in self._offered_files:
            return None
        if self.placement.session is None:
            return self._no_cgroup()
        return self.placement.missing.get("cgroup") or Missing(
            f"no cgroup2 tree with {TREE_FILES[name]} is offered",
            "a kernel with PSI (psi=1)" if name == "pressure" else "a kernel from 5.14 on with cgroup2 mounted",
        )

    # namespaces

    @cached_property
    def _namespaces(self) -> dict[str, Missing]:
        """What can't be had, by field; what is not in it is offered."""
        if (nothing := nothing_at_all()) is not None:
            return dict.fromkeys((*NAMESPACES, "user_ns", "privileged"), nothing)
        direct, through_user = self._refused, _refusals(user=True)
        missing = {}
        if lacking := [refusal.why for refusal in direct.values() if refusal.privilege]:
            without = "root may not do this here: in a container it takes `--privileged`"
            missing["privileged"] = Missing(lacking[0], without if os.geteuid() == 0 else "run as root")
        for name in ("user_ns", *direct):
            if refusal := through_user.get(name) or through_user.get("user_ns"):
                missing[name] = Missing(refusal.why, self._namespace_remedy(name, refusal))
        return missing

    def _namespace_remedy(self, name: str, refusal: _Refusal) -> str:
        if refusal.privilege:
            masked_proc = "/proc" in refusal.why
            if remedy := _remedies.for_namespaces(self.environment, masked_proc=masked_proc):
                return remedy
        return refusal.remedy or (_USER_REMEDY if refusal.privilege else "a kernel that has this namespace")

    @cached_property
    def _refused(self) -> dict[str, _Refusal]:
        return _refusals(user=False)

    def needs_user_namespace(self, names: frozenset[str]) -> bool:
        """Whether the namespaces *names* are to be had only inside a new user namespace."""
        return any(name in self._refused for name in names)


TREE_FILES = {"kill": "cgroup.kill", "freeze": "cgroup.freeze", "pressure": "cpu.pressure"}
_FILE_REMEDY = {
    "swap": "a kernel with swap accounting (swapaccount=1)",
    "io_weight": "an I/O scheduler with weights (BFQ, or io.cost)",
}
_USER_REMEDY = (
    "run as root, or allow user namespaces: sysctl user.max_user_namespaces > 0, "
    "kernel.unprivileged_userns_clone=1 (Debian), kernel.apparmor_restrict_unprivileged_userns=0 (Ubuntu); "
    "in Docker a seccomp profile that allows unshare"
)


class _Refusal(NamedTuple):
    """Why the kernel refuses a namespace; ``privilege``: for want of it, and not because it knows no such namespace."""

    why: str
    privilege: bool
    remedy: str | None = None


def _refusals(*, user: bool) -> dict[str, _Refusal]:
    """Each namespace that is refused to this process, as it is or inside a user namespace; tried in a child."""
    try:
        answer = ask_child(lambda: _try_namespaces(user=user))
    except CgroupError as error:  # killed for trying, as a seccomp filter may do
        return dict.fromkeys((*NAMESPACES, "user_ns"), _Refusal(str(error), True))
    return {name: _Refusal(*refusal) for name, refusal in answer.items()} if isinstance(answer, dict) else {}


def _try_namespaces(*, user: bool) -> dict[str, _Refusal]:
    refused: dict[str, _Refusal] = {}
    if user:
        try:
            enter_user_namespace(uid=os.getuid(), gid=os.getgid())
        except (OSError, CgroupError) as error:
            return {"user_ns": _refusal(error, "user_ns")}
    for name, flag in NAMESPACES.items():
        try:
            if name == "pid_ns":
                _try_pid_namespace()
            else:
                _syscalls.unshare(flag)
            if name == "uts_ns":  # podman's filter allows the namespace, and then not to name it
                socket.sethostname(socket.gethostname())
        except (OSError, CgroupError) as error:
            refused[name] = _refusal(error, name)
    return refused


def _refusal(error: OSError | CgroupError, name: str) -> _Refusal:
    """The remedy apart from the reason: in a container it is another one."""
    privilege = name == "user_ns" and error.errno not in (errno.ENOSPC, errno.EUSERS)
    privilege = privilege or error.errno in (errno.EPERM, errno.EACCES)
    remedy = error.remedy if isinstance(error, CgroupError) else None
    if remedy is None and not privilege and name in _FILES:
        remedy = namespace_remedy(_FILES[name])(error.errno or 0)
    why = str(error).removesuffix(f". {remedy}")
    if isinstance(error, OSError):
        why = f"{error.strerror} [{errno.errorcode.get(error.errno or 0, error.errno)}]"
    return _Refusal(why, privilege, remedy)


def _try_pid_namespace() -> None:
    unshare_pid()
    if isinstance(refused := ask_child(_try_proc), list):
        why, operation, path, number, remedy = refused
        raise CgroupError(why, operation=operation, path=path, errno=number, remedy=remedy)


def _try_proc() -> tuple[object, ...] | None:
    try:
        set_up(Namespaces(mount=True, new_proc=True))
    except CgroupError as error:
        return error.what, error.operation, error.path, error.errno, error.remedy
    return None
