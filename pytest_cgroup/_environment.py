"""Where this process runs, recognised from files and variables alone: nothing is tried or changed here.

Every file is looked for below a root, so that the tests can show us any machine as a directory.
Sources: sd_booted(3), systemd.special(7), proc_pid_cgroup(5), proc_pid_mountinfo(5), the container interface of
systemd.io, and what Docker, podman, Kubernetes and the CI services document about themselves.
"""

from __future__ import annotations

import re
import sys
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from ._isolated import io, os

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    _Mount = tuple[str, str, frozenset[str], str]

#: each CI service by the variable that only it sets
_CI = {"GITHUB_ACTIONS": "github", "GITLAB_CI": "gitlab", "JENKINS_URL": "jenkins", "CI": "other"}
#: container managers by the names that `container=` and /run/systemd/container give them
_MANAGERS = {
    **{name: name for name in ("docker", "podman", "lxc", "kubernetes")},
    "lxc-libvirt": "lxc",
    "incus": "lxc",
    "systemd-nspawn": "nspawn",
    "containerd": "containerd",
}
#: by what the mount table shows: where Docker, the kubelet and so on keep the files that they mount
_MOUNTS = (
    ("/kubelet/pods/", "kubernetes"),
    ("/libpod/", "podman"),
    ("/containers/storage/", "podman"),
    ("/docker/", "docker"),
    ("fuse.lxcfs", "lxc"),
    ("/containerd/", "containerd"),
)
_SPOKEN = {
    "github": "GitHub Actions",
    "gitlab": "GitLab CI",
    "jenkins": "Jenkins",
    "other": "a CI service",
    "docker": "Docker container",
    "podman": "podman container",
    "kubernetes": "Kubernetes pod",
    "lxc": "LXC container",
    "nspawn": "systemd-nspawn container",
    "containerd": "containerd container",
    "container": "container",
    "linux": "Linux",
    "darwin": "macOS",
    "win32": "Windows",
    "user-scope": "scope of the user's systemd",
    "user-service": "service of the user's systemd",
    "login": "login session",
    "scope": "system scope",
    "service": "system service",
}
_SERVICE_ACCOUNT = "var/run/secrets/kubernetes.io/serviceaccount"


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """Where this process runs. What does not apply, or can't be known, is None.

    Attributes:
        system: as `sys.platform`.
        kernel: the release, as `uname -r`.
        distribution: its own name for itself (os-release(5)).
        libc: ``"glibc"`` or ``"musl"``, the one that this Python has loaded.
        ci: ``"github"``, ``"gitlab"``, ``"jenkins"``, ``"other"``.
        container: ``"docker"``, ``"podman"``, ``"kubernetes"``, ``"lxc"``, ``"nspawn"``, ``"containerd"``, or
            ``"container"`` for one of another kind.
        wsl: 1 or 2, the version of the Windows Subsystem for Linux.
        chroot: whether the root directory is not that of the first process.
        systemd: whether it runs here; ``systemd_version`` its major version.
        session: what systemd started us as: ``"user-scope"`` or ``"user-service"`` (below the user's own manager),
            ``"login"`` (a terminal or ssh), ``"scope"`` or ``"service"`` (of the system); ``unit`` is its name.
        ssh: whether the user came by ssh.
        user_bus: whether the user's own manager can be talked to.
        uid: the effective user.
        seccomp: whether a filter of system calls is in force.
        proc: how /proc differs from what the kernel offers, a phrase each.
    """

    system: str = "linux"
    kernel: str | None = None
    distribution: str | None = None
    libc: str | None = None
    ci: str | None = None
    container: str | None = None
    wsl: int | None = None
    chroot: bool = False
    systemd: bool = False
    systemd_version: int | None = None
    session: str | None = None
    unit: str | None = None
    ssh: bool = False
    user_bus: bool = False
    uid: int | None = None
    seccomp: bool = False
    proc: tuple[str, ...] = ()

    def describe(self) -> str:
        """All of it in one line, the outermost first."""
        parts = [_SPOKEN[self.ci]] if self.ci else []
        if self.container:
            parts.append(_SPOKEN[self.container])
        if self.wsl:
            parts.append(f"WSL{self.wsl}")
        if self.chroot:
            parts.append("chroot")
        if self.systemd:
            parts.append(f"systemd {self.systemd_version}" if self.systemd_version else "systemd")
        elif self.system == "linux" and not self.container:
            parts.append("no systemd")
        if self.session:
            parts.append(f"{'ssh ' if self.ssh and self.session == 'login' else ''}{_SPOKEN[self.session]} {self.unit}")
        if self.distribution:
            parts.append(self.distribution)
        if self.libc == "musl":
            parts.append("musl")
        parts.append(" ".join(filter(None, (_SPOKEN.get(self.system, self.system), self.kernel))))
        if self.uid is not None:
            parts.append("root" if self.uid == 0 else f"uid {self.uid}")
        return ", ".join(parts)

    def to_json(self) -> dict[str, Any]:
        """Every attribute under its name."""
        return {**asdict(self), "proc": list(self.proc)}


def recognise(root: str = "/", environ: Mapping[str, str] | None = None, system: str | None = None) -> Environment:
    """Where a process with these files and variables runs; by default, this one."""
    environ = os.environ if environ is None else environ
    found = Environment(system=system or sys.platform, ci=_ci(environ))
    if found.system != "linux":
        return found
    files = _Files(root)
    mounts = list(_mounts(files.text("proc/self/mountinfo")))
    uid = _uid(files.text("proc/self/status"))
    kernel = files.text("proc/sys/kernel/osrelease").strip()
    container = _container(files, environ, mounts)
    booted = os.path.isdir(files.path("run/systemd/system"))
    session, unit = _session(files.text("proc/self/cgroup")) if booted else (None, None)
    return replace(
        found,
        kernel=kernel or None,
        distribution=_distribution(files),
        libc=_libc(files.text("proc/self/maps")),
        container=container,
        wsl=_wsl(kernel),
        chroot=container is None and _is_chroot(files, mounts),
        systemd=booted,
        systemd_version=_systemd_version(files) if booted else None,
        session=session,
        unit=unit,
        ssh=bool(environ.get("SSH_CONNECTION")),
        user_bus=os.path.exists(files.path(f"run/user/{uid}/bus")),
        uid=uid,
        seccomp=bool(re.search(r"^Seccomp:\s*[12]$", files.text("proc/self/status"), re.MULTILINE)),
        proc=tuple(_proc(files, mounts)),
    )


class _Files:
    def __init__(self, root: str) -> None:
        self.root = root

    def path(self, relative: str) -> str:
        return os.path.join(self.root, relative)

    def exists(self, relative: str) -> bool:
        return os.path.exists(self.path(relative))

    def text(self, relative: str) -> str:
        """Its text; empty if there is no such file or it may not be read."""
        try:
            with io.open(self.path(relative), encoding="utf-8", errors="replace") as f:
                return f.read()
        except OSError:
            return ""


def _ci(environ: Mapping[str, str]) -> str | None:
    return next(
        (name for variable, name in _CI.items() if environ.get(variable, "").lower() not in ("", "false")), None
    )


def _uid(status: str) -> int | None:
    match = re.search(r"^Uid:\s+\d+\s+(\d+)", status, re.MULTILINE)
    return int(match[1]) if match else None


def _mounts(mountinfo: str) -> Iterator[_Mount]:
    """Of each mount: where, the file system's type, the options of both kinds, and the whole line."""
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        fields, rest = left.split(), right.split()
        if len(fields) >= 6 and len(rest) >= 3:
            yield fields[4], rest[0], frozenset((*fields[5].split(","), *rest[2].split(","))), line


def _container(files: _Files, environ: Mapping[str, str], mounts: list[_Mount]) -> str | None:
    """A pod is a pod whatever runs it; after that the managers' own marks, and what the mount table gives away."""
    if environ.get("KUBERNETES_SERVICE_HOST") or files.exists(_SERVICE_ACCOUNT):
        return "kubernetes"
    if files.exists("run/.containerenv"):
        return "podman"
    if files.exists(".dockerenv") and any(point in _FILES_OF_DOCKER for point, *_ in mounts):
        return "docker"
    named = files.text("run/systemd/container").strip() or environ.get("container", "")
    if not named and (match := re.search(r"(?:^|\0)container=([^\0]+)", files.text("proc/1/environ"))):
        named = match[1]
    if named and named != "wsl":
        return _MANAGERS.get(named, "container")
    telling = [line for point, _, _, line in mounts if point in _MOUNTED_BY_MANAGERS]
    return next((name for mark, name in _MOUNTS if any(mark in line for line in telling)), None)


#: Docker mounts these in every container; a virtual machine that was made from an image keeps its /.dockerenv alone
_FILES_OF_DOCKER = ("/etc/hosts", "/etc/hostname", "/etc/resolv.conf")
#: where managers mount what gives them away; Docker's host has mounts of /var/lib/docker, too, but elsewhere
_MOUNTED_BY_MANAGERS = ("/", *_FILES_OF_DOCKER, "/proc/cpuinfo", "/proc/meminfo")


def _wsl(kernel: str) -> int | None:
    if "microsoft" not in kernel.lower():
        return None
    return 1 if kernel.endswith("-Microsoft") else 2


def _is_chroot(files: _Files, mounts: list[_Mount]) -> bool:
    """The first process has another root; where that may not be asked, nothing is mounted on ours."""
    try:
        return not os.path.samefile(files.path("proc/1/root"), files.root)
    except OSError:
        return bool(mounts) and "/" not in (point for point, *_ in mounts)


def _systemd_version(files: _Files) -> int | None:
    """From the name of its own library: ``libsystemd-shared-252.so``, ``libsystemd-shared-255.4-1.fc40.so``."""
    places = ["usr/lib/systemd", "lib/systemd", "usr/lib64/systemd"]
    places += [f"usr/lib/{name}/systemd" for name in _listed(files.path("usr/lib")) if name.endswith("-linux-gnu")]
    names = (name for place in places for name in _listed(files.path(place)))
    return next((int(m[1]) for name in names if (m := re.match(r"libsystemd-shared-(\d+)", name))), None)


def _listed(directory: str) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except OSError:
        return []


def _session(cgroup: str) -> tuple[str | None, str | None]:
    """What systemd's cgroup tree, v2 or its own v1 hierarchy, says that we were started as."""
    match = re.search(r"^\d+:name=systemd:(.*)$|^0::(/.+)$", cgroup, re.MULTILINE)
    path = (match[1] or match[2] or "") if match else ""
    units = [part for part in path.split("/") if part.endswith((".service", ".scope"))]
    if not units:
        return None, None
    kind = "scope" if units[-1].endswith(".scope") else "service"
    if any(re.fullmatch(r"user@\d+\.service", unit) for unit in units[:-1]):
        kind = f"user-{kind}"
    elif re.fullmatch(r"session-.+\.scope", units[-1]):
        kind = "login"
    return kind, units[-1]


def _distribution(files: _Files) -> str | None:
    text = files.text("etc/os-release") or files.text("usr/lib/os-release")
    match = re.search(r"^PRETTY_NAME=[\"']?(.*?)[\"']?$", text, re.MULTILINE)
    return match[1] if match else None


def _libc(maps: str) -> str | None:
    """By what is loaded: a glibc system may have musl installed, too, and calls it libc.so."""
    if re.search(r"/ld-musl-[^/]*$|/libc\.musl-[^/]*$|/libc\.so$", maps, re.MULTILINE):
        return "musl"
    return "glibc" if re.search(r"/libc(\.so\.6|-2\.\d+\.so)$", maps, re.MULTILINE) else None


def _proc(files: _Files, mounts: list[_Mount]) -> Iterator[str]:
    if not files.exists("proc/self"):
        yield "/proc is not mounted: processes can be neither found nor named"
        return
    options = next((options for point, kind, options, _ in reversed(mounts) if (point, kind) == ("/proc", "proc")), ())
    hidden = [
        option for option in options if option.startswith("hidepid=") and option not in ("hidepid=0", "hidepid=off")
    ]
    if hidden:
        yield f"/proc is mounted with {hidden[0]}: processes of other users are not seen"
    if "subset=pid" in options:
        yield "/proc is mounted with subset=pid: it shows processes and nothing else"
    if any(point == "/proc/sys" and "ro" in options for point, _, options, _ in mounts):
        yield "/proc/sys is read-only: sysctls can be set on the host only"
    masked = sorted({point for point, *_ in mounts if point.startswith("/proc/")})
    if masked:
        names = ", ".join(masked[:3]) + (" …" if len(masked) > 3 else "")
        yield f"parts of /proc are mounted over ({names}): without root no new /proc can be mounted, so no pid_ns"
    if not files.exists("proc/thread-self/children"):
        yield "this kernel has no /proc/PID/task/TID/children: the whole process table is read instead"
