"""What this machine offers, and for each thing that it does not: why, and what to do. Tried, never guessed.

Each thing is tried when it is first asked for, and once a session: an empty session tries nothing.
"""

from __future__ import annotations

import errno
import os
import sys
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from . import _syscalls
from ._namespaces import Namespaces, enter_user_namespace, set_up, unshare_pid
from ._placement import CONTROLLERS, Missing, Placement
from ._process import ask_child
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
_NOT_LINUX = Missing("pytest-cgroup contains processes on Linux only", "run these tests on Linux")


@dataclass(frozen=True, slots=True)
class Capability:
    """One thing that a container can be asked for. ``reason`` and ``remedy`` are empty where it is offered."""

    name: str
    offered: bool
    reason: str = ""
    remedy: str = ""


class Host:
    """This machine, as this process may use it. `close` gives back what trying needed.

    The arguments are `Placement`'s.
    """

    def __init__(self, base: str | None = None, *, scope: bool = True, take_over: bool = False) -> None:
        self._placed = (base, scope, take_over)
        self._known: dict[str, Capability] = {}

    @cached_property
    def placement(self) -> Placement:
        """The session's cgroup, made on first use."""
        base, scope, take_over = self._placed
        placement = Placement(base, scope=scope, take_over=take_over)
        if sys.platform == "linux":
            placement.open()
        else:
            placement.missing["cgroup"] = _NOT_LINUX
        return placement

    def close(self) -> None:
        """Remove the session's cgroup, if it was made."""
        if "placement" in self.__dict__:
            self.placement.close()

    def capability(self, name: str) -> Capability:
        """Whether *name* is offered: a limit's field, a namespace's field, ``cgroup``, ``kill``, ``freeze``,
        ``pressure``, ``privileged`` or ``user_ns``.

        Raises:
            KeyError: there is no such thing.
        """
        if name not in self._known:
            self._known[name] = self._try(name)
        return self._known[name]

    def _try(self, name: str) -> Capability:
        if name in NAMESPACES or name in ("user_ns", "privileged"):
            missing = self._namespaces.get(name)
        elif name in LIMIT_FILES:
            missing = self._limit(name)
        elif name == "cgroup":
            missing = None if self.placement.session else self.placement.missing.get("cgroup", _NOT_LINUX)
        elif name in TREE_FILES:
            missing = self._tree_file(name)
        else:
            raise KeyError(name)
        return Capability(name, True) if missing is None else Capability(name, False, missing.reason, missing.remedy)

    # cgroups

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
            return self.placement.missing.get("cgroup", _NOT_LINUX)
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
        return self.placement.missing.get("cgroup") or Missing(
            f"no cgroup2 tree with {TREE_FILES[name]} is offered",
            "a kernel with PSI (psi=1)" if name == "pressure" else "a kernel from 5.14 on with cgroup2 mounted",
        )

    # namespaces

    @cached_property
    def _namespaces(self) -> dict[str, Missing]:
        """What can't be had, by field; what is not in it is offered."""
        if sys.platform != "linux":  # pragma: no cover
            return dict.fromkeys((*NAMESPACES, "user_ns", "privileged"), _NOT_LINUX)
        direct, through_user = self._refused, _refusals(user=True)
        missing = {}
        if lacking := [refusal.why for refusal in direct.values() if refusal.privilege]:
            missing["privileged"] = Missing(lacking[0], "run as root")
        if "user_ns" in through_user:
            missing["user_ns"] = Missing(through_user["user_ns"].why, _USER_REMEDY)
        for name in direct:
            if refusal := through_user.get(name) or through_user.get("user_ns"):
                remedy = _USER_REMEDY if refusal.privilege else "a kernel that has this namespace"
                missing[name] = Missing(refusal.why, remedy)
        return missing

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


def _refusals(*, user: bool) -> dict[str, _Refusal]:
    """Each namespace that is refused to this process, as it is or inside a user namespace; tried in a child."""
    try:
        answer = ask_child(lambda: _try_namespaces(user=user))
    except CgroupError as error:  # killed for trying, as a seccomp filter may do
        return dict.fromkeys((*NAMESPACES, "user_ns"), _Refusal(str(error), True))
    return {name: _Refusal(*refusal) for name, refusal in answer.items()} if isinstance(answer, dict) else {}


def _try_namespaces(*, user: bool) -> dict[str, tuple[str, bool]]:
    refused = {}
    if user:
        try:
            enter_user_namespace(uid=os.getuid(), gid=os.getgid())
        except (OSError, CgroupError) as error:
            return {"user_ns": (str(error), True)}
    for name, flag in NAMESPACES.items():
        try:
            if name == "pid_ns":
                _try_pid_namespace()
            else:
                _syscalls.unshare(flag)
        except (OSError, CgroupError) as error:
            refused[name] = (str(error), error.errno in (errno.EPERM, errno.EACCES))
    return refused


def _try_pid_namespace() -> None:
    unshare_pid()
    if isinstance(refused := ask_child(_try_proc), list):
        why, number = refused
        raise CgroupError(why, errno=number)


def _try_proc() -> tuple[str, int | None] | None:
    try:
        set_up(Namespaces(mount=True, new_proc=True))
    except CgroupError as error:
        return str(error), error.errno
    return None
