"""What a guest is made of: pure values, checked for combinations that cannot work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, get_args

Kernel = Literal["uml-6.1", "uml-6.12", "uml-7.2"]
Suite = Literal["bookworm", "trixie"]
Init = Literal["mini", "systemd"]
Mode = Literal["v2", "hybrid", "v1"]
User = Literal["root", "tester"]
Place = Literal[
    "scope",
    "terminal",
    "service",
    "session",
    "root",
    "podman",
    "podman-writable",
    "docker",
    "docker-privileged",
    "docker-unconfined",
]
Engine = Literal["", "podman", "docker"]

KERNEL_SUITES: Final[dict[Kernel, str]] = {"uml-6.1": "bookworm", "uml-6.12": "trixie", "uml-7.2": "sid"}
"""The Debian suite that each kernel is taken from."""

PYTHONS: Final[dict[Suite, str]] = {"bookworm": "3.11", "trixie": "3.13"}
"""The Python of each suite's image."""

UIDS: Final[dict[User, int]] = {"root": 0, "tester": 1000}

ENGINE_USERS: Final[dict[Engine, User]] = {"podman": "tester", "docker": "root"}
"""Who runs the containers of each engine: one is there for rootless ones."""

SYSTEMD_MODES: Final[dict[Mode, str]] = {
    "v2": "systemd.unified_cgroup_hierarchy=1",
    "hybrid": "systemd.unified_cgroup_hierarchy=0 systemd.legacy_systemd_cgroup_controller=0",
    "v1": "systemd.unified_cgroup_hierarchy=0 systemd.legacy_systemd_cgroup_controller=1",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """One guest.

    ``place`` is where the command runs.  Without systemd: ``scope`` (a child cgroup in every hierarchy, given to the
    user) or ``root`` (the root cgroups).  Under systemd: ``scope`` (``systemd-run [--user] --scope -p Delegate=yes``),
    ``terminal`` (a scope that a shell shares, nothing delegated),
    ``service`` (inside a plain system service), ``session`` (a login session, whose cgroup its user may not write),
    ``podman`` (as root of a rootless container with everything at its default: its cgroups are read-only),
    ``podman-writable`` (where they are not), ``docker`` (as PID 1 of a container with everything at its default),
    ``docker-privileged`` or ``docker-unconfined`` (of system calls and paths, with no privilege more).

    Raises ValueError for a combination that the kernels or inits do not offer.
    """

    kernel: Kernel = "uml-6.12"
    suite: Suite = "bookworm"
    init: Init = "mini"
    cgroup: Mode = "v2"
    user: User = "root"
    place: Place = "scope"
    memory_mib: int = 1536

    def __post_init__(self) -> None:
        for value, allowed in (
            (self.kernel, Kernel),
            (self.suite, Suite),
            (self.init, Init),
            (self.cgroup, Mode),
            (self.user, User),
            (self.place, Place),
        ):
            if value not in get_args(allowed):
                raise ValueError(f"{value!r}: must be one of {', '.join(get_args(allowed))}")
        if self.cgroup != "v2" and self.kernel != "uml-6.1":
            raise ValueError(
                f"{self.cgroup} needs the kernel uml-6.1: Debian's later ones have no v1 memory controller"
            )
        if self.init == "mini" and self.place not in ("scope", "root"):
            raise ValueError(f"place {self.place} needs systemd")
        if self.engine and (self.suite, self.user) != ("trixie", ENGINE_USERS[self.engine]):
            raise ValueError(f"place {self.place} needs the suite trixie and the user {ENGINE_USERS[self.engine]}")
        if self.init == "systemd" and self.place == "root":
            raise ValueError("systemd keeps the root cgroup to itself")
        if self.init == "systemd" and self.suite == "trixie" and self.cgroup != "v2":
            raise ValueError("systemd of trixie no longer starts on v1 or hybrid")

    @property
    def engine(self) -> Engine:
        """What runs the container that the command is in."""
        name = self.place.partition("-")[0]
        return name if name in ("podman", "docker") else ""  # type: ignore[return-value]

    @property
    def python(self) -> str:
        """The ``major.minor`` of the guest's Python."""
        return PYTHONS[self.suite]

    @property
    def uid(self) -> int:
        return UIDS[self.user]

    @property
    def boot_words(self) -> list[str]:
        """The words of the kernel's command line that choose init and cgroup mode."""
        if self.init == "mini":
            return ["init=/usr/local/sbin/guest-init", f"guest.cgroup={self.cgroup}"]
        words = ["init=/sbin/init", "systemd.unit=guest.target", "systemd.show_status=0"]
        return words + SYSTEMD_MODES[self.cgroup].split()
