"""The kernel's cgroup texts, parsed: pure functions over what the files of cgroup v1 and v2 and /proc say.

Source: Documentation/admin-guide/cgroup-v2.rst ("Format"), cgroups(7), proc_pid_mountinfo(5).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ._isolated import os

_OCTAL = re.compile(r"\\([0-7]{3})")
_V1_CONTROLLERS = frozenset(
    (
        *("cpu", "cpuacct", "cpuset", "memory", "pids", "blkio", "freezer", "devices"),
        *("hugetlb", "net_cls", "net_prio", "perf_event", "rdma", "misc"),
    )
)


@dataclass(frozen=True, slots=True)
class CgroupMount:
    """A mounted cgroup hierarchy: ``root`` is the part of it that the mount shows."""

    version: int
    controllers: frozenset[str]  # of v1, from the mount options; empty for v2
    mount_point: str
    root: str
    read_only: bool


def flat_keyed(text: str) -> dict[str, int]:
    """``"oom 0\\noom_kill 1\\n"`` -> ``{"oom": 0, "oom_kill": 1}``; a value that is no integer is left out."""
    found = {}
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if value.isascii() and value.isdigit():
            found[key] = int(value)
    return found


def io_bytes(text: str) -> tuple[int, int]:
    """Bytes read and written over all devices, of v2's ``io.stat``."""
    read = written = 0
    for word in text.split():
        key, _, value = word.partition("=")
        if key == "rbytes":
            read += int(value)
        elif key == "wbytes":
            written += int(value)
    return read, written


def io_bytes_v1(text: str) -> tuple[int, int] | None:
    """The same of v1's ``blkio.throttle.io_service_bytes``: ``"8:0 Read 4096"``; None where it counted nothing.

    That is not zero: some kernels count in a cgroup with a throttle only (6.1), others from the first throttle on
    that anybody has set on the device (6.10).
    """
    total = {"Read": 0, "Write": 0}
    for line in text.splitlines():
        words = line.split()
        if len(words) == 3 and words[1] in total:
            total[words[1]] += int(words[2])
    return (total["Read"], total["Write"]) if any(total.values()) else None


def pressure_total_usec(text: str) -> int | None:
    """``some``'s ``total`` of a pressure file in microseconds (Documentation/accounting/psi.rst)."""
    match = re.search(r"^some .*\btotal=(\d+)", text, re.M)
    return int(match[1]) if match else None


def membership(text: str) -> dict[str, str]:
    """/proc/PID/cgroup: each v1 controller's path, and the v2 path under ``""``."""
    found = {}
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            found[controller] = path
    return found


def cgroup_mounts(mountinfo: str) -> list[CgroupMount]:
    """The cgroup mounts of /proc/PID/mountinfo, in its order; a later mount over the same point wins."""
    found: dict[str, CgroupMount] = {}
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        fields = left.split()
        kind, _, options = right.partition(" ")
        point = _unescape(fields[4])
        found.pop(point, None)  # something else may lie over it
        if kind not in ("cgroup", "cgroup2"):
            continue
        words = frozenset(options.split()[-1].split(","))
        found[point] = CgroupMount(
            version=2 if kind == "cgroup2" else 1,
            controllers=frozenset() if kind == "cgroup2" else words & _V1_CONTROLLERS,
            mount_point=point,
            root=_unescape(fields[3]),
            read_only="ro" in fields[5].split(",") or "ro" in words,
        )
    return list(found.values())


def own_directory(mount: CgroupMount, path: str) -> str | None:
    """Where the cgroup *path* (of /proc/self/cgroup) is seen under *mount*; None if the mount does not show it.

    Bind mounts and containers without a cgroup namespace show a part of the tree only (`root`); what lies outside of
    the reader's cgroup namespace begins with ``/..`` (cgroup_namespaces(7)).
    """
    root = mount.root.rstrip("/")
    if (path == root or path.startswith(root + "/")) and ".." not in path.split("/"):
        return os.path.normpath(f"{mount.mount_point}/{path[len(root) :]}")
    return None


def membership_path(mount: CgroupMount, directory: str) -> str | None:
    """What /proc/PID/cgroup calls the cgroup that is seen as *directory*; None if it is not under *mount*."""
    below = os.path.relpath(directory, mount.mount_point)
    return None if below.split("/")[0] == ".." else os.path.normpath(f"{mount.root.rstrip('/')}/{below}")


def _unescape(path: str) -> str:
    return _OCTAL.sub(lambda m: chr(int(m[1], 8)), path)
