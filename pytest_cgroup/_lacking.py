"""Why a controller or a cgroup can't be had here, and what would change that: texts out of what the tree says."""

from __future__ import annotations

import errno
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ._isolated import os
from ._kernel_files import words

if TYPE_CHECKING:
    from ._kernel_text import CgroupMount
    from .exceptions import ContainerError

HOW = "run pytest where it may write a cgroup: `systemd-run --user --scope -p Delegate=yes pytest`, or as root"
OWN_SCOPE = "start pytest in a scope of its own: `systemd-run --user --scope -p Delegate=yes pytest`"
TAKE_OVER = "--cgroup-take-over has pytest move them into a cgroup of their own, for as long as it runs"
SCOPE_OFF = "leave out --cgroup-scope=no, and pytest asks systemd for a scope of its own"
#: remedies that a scope of pytest's own is one of
GENERAL = (HOW, OWN_SCOPE)
_ALL = "Delegate=cpu cpuset io memory pids"


@dataclass(frozen=True, slots=True)
class Missing:
    """Something that this host does not offer: why, and what would change that."""

    reason: str
    remedy: str


def from_refusal(trouble: ContainerError, remedy: str) -> Missing:
    """The kernel's refusal; with *remedy* for want of permission, or where there is none for it."""
    found, trouble.remedy = trouble.remedy, None
    if found is None or trouble.errno in (errno.EACCES, errno.EPERM, errno.EBUSY):
        found = remedy
    return Missing(str(trouble), found)


def not_delegated(controller: str, base: str, mount_point: str) -> Missing:
    """Why *controller* is not in cgroup.controllers of *base*: who has it, who did not pass it on, and who can.

    Args:
        controller: its v2 name.
        base: the cgroup that lacks it.
        mount_point: where the tree begins that we see.
    """
    holder = base
    while holder != mount_point and controller not in words(f"{holder}/cgroup.controllers"):
        holder = os.path.dirname(holder)
    if controller not in words(f"{holder}/cgroup.controllers"):
        if os.path.exists(f"{holder}/cgroup.type"):  # a container's root is none to the kernel
            reason = f"this container was not given the {controller} controller"
            return Missing(reason, f"have whoever starts the container delegate {controller} to it")
        reason = f"this kernel's cgroup v2 has no {controller} controller"
        return Missing(reason, f"a kernel that has it, and no `cgroup_disable={controller}` on its command line")
    reason = f"the {controller} controller is not delegated to {base}: {holder} has it, and does not pass it on"
    if found := re.search(r"/(user@)\d+\.service(?:/|$)", base):
        unit, then = f"{found[1]}.service", "then `systemctl daemon-reload`, and log in again"
    elif found := re.search(r".*/([^/]+\.service)(?:/|$)", base):
        unit, then = found[1], "then `systemctl daemon-reload`, and restart it"
    else:
        return Missing(reason, f"have it delegated to pytest's cgroup: {OWN_SCOPE.partition(': ')[2]}, or as root")
    drop_in = f"/etc/systemd/system/{unit}.d/delegate.conf"
    return Missing(reason, f"write `[Service]` and `{_ALL}`, a line each, into {drop_in}, {then}")


def not_in_container(controllers: list[str]) -> dict[str, Missing]:
    """Of a test's own container, in which others are to be made: it is in no cgroup of *controllers*."""
    names = ["io" if name == "blkio" else name or "cgroup2" for name in controllers]
    why = f"the test's own container is not in the hierarchy of {', '.join(names)}"
    return dict.fromkeys([*names, "cgroup"], Missing(why, "let the test ask for `contained` or `contained_factory`"))


def not_shown(mount: CgroupMount) -> Missing:
    """Pytest's own cgroup is not below *mount*: a bind mount of another part, or of another cgroup namespace."""
    reason = f"pytest's cgroup is outside what {mount.mount_point} shows"
    if ".." in mount.root.split("/"):
        kind = "cgroup2" if mount.version == 2 else "cgroup"
        reason += ", which was mounted in another cgroup namespace"
        point = mount.mount_point
        return Missing(reason, f"mount it anew in this one: `umount -l {point} && mount -t {kind} none {point}`")
    return Missing(reason, HOW)


def empty_cpuset(directory: str, files: tuple[str, ...]) -> Missing | None:
    """Why no process could join a cgroup with this cpuset (ENOSPC): one of *files*, its CPUs and nodes, is empty."""
    for file in files:
        path = f"{directory}/{file}"
        if os.path.exists(path) and not words(path):
            remedy = f"give {os.path.dirname(directory)} CPUs and memory nodes: cpuset.cpus and cpuset.mems there"
            return Missing(f"{path} is empty, so that no process could be run there", remedy)
    return None
