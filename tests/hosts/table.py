"""The named hosts that the project promises to work on, and what each of them offers.

No guest here offers cpuset, pressure figures or more than one CPU: user-mode Linux has none of them.  io_weight wants
an I/O scheduler or cost model that these kernels lack, and time namespaces are only in the newest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from .rig.settings import Settings

# And what goes between two of the network: veth.
NAMESPACES: Final = ("user_ns", "pid_ns", "net_ns", "mount_ns", "ipc_ns", "uts_ns", "cgroup_ns", "veth")
V2: Final = (
    *("cgroup", "kill", "freeze", "memory", "swap", "memory_high", "oom_group"),
    *("pids", "cpu", "cpu_weight", "io"),
)
SYSTEMD: Final = (*V2, *NAMESPACES, "systemd")  # through a scope of pytest's own, wherever it is started
# Root of a rootless container is an ordinary user outside: no "root". Part of /proc is masked: no pid_ns. And podman's
# filter of system calls refuses to set a host name: no uts_ns.
CONTAINED: Final = ("user_ns", "net_ns", "mount_ns", "ipc_ns", "cgroup_ns", "veth")
V1: Final = ("cgroup", "memory", "swap", "pids", "cpu", "cpu_weight", "io")


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """``offers``: what must work there, so that a skip for the want of it is a failure.  ``fast``: part of every run
    of the continuous integration."""

    settings: Settings
    offers: tuple[str, ...]
    fast: bool = False


HOSTS: Final[dict[str, Host]] = {
    "v2-root": Host(
        settings=Settings(kernel="uml-6.12"),
        offers=("root", *V2, *NAMESPACES),
    ),
    "v2-systemd-root": Host(
        settings=Settings(kernel="uml-6.12", init="systemd"),
        offers=("root", *SYSTEMD),
    ),
    "v2-systemd-service": Host(
        settings=Settings(kernel="uml-6.12", init="systemd", place="service"),
        offers=("root", *SYSTEMD),
    ),
    "v2-systemd-user-scope": Host(
        settings=Settings(kernel="uml-6.12", init="systemd", user="tester"),
        offers=SYSTEMD,
        fast=True,
    ),
    "v2-systemd-user-terminal": Host(  # the shell that starts pytest is beside it: no controller can be enabled there
        settings=Settings(kernel="uml-6.12", init="systemd", user="tester", place="terminal"),
        offers=SYSTEMD,
    ),
    "v2-systemd-user-session": Host(  # as after ssh: the session's cgroup is not the user's to write
        settings=Settings(kernel="uml-6.12", init="systemd", user="tester", place="session"),
        offers=SYSTEMD,
    ),
    "v2-oldest": Host(
        settings=Settings(kernel="uml-6.1", init="systemd", user="tester"),
        offers=SYSTEMD,
    ),
    "v2-newest": Host(
        settings=Settings(kernel="uml-7.2", suite="trixie", init="systemd"),
        offers=("root", *SYSTEMD, "time_ns", "privileged"),
        fast=True,
    ),
    "v1-root": Host(
        settings=Settings(kernel="uml-6.1", cgroup="v1"),
        offers=("root", *V1, *NAMESPACES),
    ),
    "hybrid-root": Host(
        settings=Settings(kernel="uml-6.1", cgroup="hybrid"),
        offers=("root", *V1, "kill", "freeze", *NAMESPACES),
    ),
    "py313": Host(
        settings=Settings(kernel="uml-6.12", suite="trixie", init="systemd", user="tester"),
        offers=SYSTEMD,
    ),
    "podman": Host(
        settings=Settings(kernel="uml-6.12", suite="trixie", init="systemd", user="tester", place="podman"),
        offers=CONTAINED,
    ),
    "podman-writable": Host(
        settings=Settings(kernel="uml-6.12", suite="trixie", init="systemd", user="tester", place="podman-writable"),
        offers=(*V2, *CONTAINED),
    ),
    "docker": Host(
        settings=Settings(kernel="uml-6.12", suite="trixie", init="systemd", place="docker"),
        offers=(),  # root without CAP_SYS_ADMIN: a cgroupfs to read, and no namespaces of its own
    ),
    "docker-privileged": Host(
        settings=Settings(kernel="uml-6.12", suite="trixie", init="systemd", place="docker-privileged"),
        offers=("root", *V2, *NAMESPACES, "privileged"),
    ),
    "docker-unconfined": Host(
        settings=Settings(kernel="uml-6.12", suite="trixie", init="systemd", place="docker-unconfined"),
        offers=NAMESPACES,
    ),
}
