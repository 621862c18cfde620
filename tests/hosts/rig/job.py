"""The job disk: one tar with the command, the script that puts it in its cgroup, and the copied trees."""

from __future__ import annotations

import io
import shlex
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final

from .image import FILES
from .settings import Settings

CACHES: Final = frozenset({".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis", "__pycache__"})
SKIPPED: Final = CACHES | {".git", ".tox", ".nox", ".venv", "build", "dist"}
RUNTIME: Final = "/run/user/1000"
DELEGATE: Final = """\
for root in /sys/fs/cgroup /sys/fs/cgroup/*; do
    [ -e $root/cgroup.procs ] || continue
    group=$root/guest.scope
    mkdir $group
    for file in cpuset.cpus cpuset.mems; do # v1: empty in a new cgroup, and then nobody may enter
        [ -e $group/$file ] && [ -e $root/$file ] && cat $root/$file >$group/$file
    done
    for file in cgroup.procs cgroup.threads cgroup.subtree_control tasks; do
        [ -e $group/$file ] && chown {uid}:{uid} $group/$file
    done
    chown {uid}:{uid} $group
    echo 0 >$group/cgroup.procs
done
"""
"""What a manager does who delegates: the directory and these files belong to the user, the limits do not."""
CONTAINER: Final = """\
export HOME=/home/{user} USER={user} LOGNAME={user}
mkdir /var/container && cd /var/container || exit 126
mkdir -p dev etc home/{user} proc root run srv sys tmp usr var
for name in bin sbin lib lib64; do ln -s usr/$name $name; done
chown -h {uid}:{uid} . * home/*
cd /
"""
"""An empty root for a container, which needs no registry: the guest's own directories are bound into it."""
DOCKER: Final = """\
touch /etc/resolv.conf # Docker mounts its own over it
echo '{"bridge": "none", "iptables": false, "ip6tables": false, "storage-driver": "vfs"}' >/etc/docker/daemon.json
systemctl start docker || exit 126
tar -C /var/container -c . | docker import - guest >/dev/null || exit 126
"""
"""A daemon that asks nothing of the kernel that these have not, and an image of the empty root."""
BOUND: Final = ("/etc:/etc:ro", "/run/guest:/run/guest:ro", "/srv:/srv", "/usr:/usr:ro")
TMPFS: Final = {"podman": ["--tmpfs=/tmp"], "docker": ["--tmpfs=/tmp:exec"]}
MORE: Final = {
    "podman-writable": ["--security-opt=unmask=/sys/fs/cgroup"],
    "docker-privileged": ["--privileged"],
    "docker-unconfined": ["--security-opt=seccomp=unconfined", "--security-opt=systempaths=unconfined"],
}
"""What is not an engine's default."""


@dataclass(frozen=True, slots=True)
class Copy:
    """A file or tree of this machine and where it goes in the guest.  It will belong to the guest's user, without what
    can be made again; what is ``installed`` is copied whole and belongs to root."""

    source: Path
    target: str
    installed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What the guest shall do.  ``command`` runs in ``directory``, with ``environment`` added to the user's own."""

    command: Sequence[str]
    directory: str = "/"
    environment: Mapping[str, str] = field(default_factory=dict)
    copies: Sequence[Copy] = ()


def command_script(job: Job, settings: Settings) -> str:
    """The command itself, in whatever environment its place gives."""
    home = "/root" if settings.user == "root" else f"/home/{settings.user}"
    values = {"HOME": home, "USER": settings.user, "LOGNAME": settings.user, "LANG": "C.UTF-8", **job.environment}
    exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in values.items())
    return f"#!/bin/sh\n{exports}cd {shlex.quote(job.directory)} || exit 126\nexec {shlex.join(job.command)}\n"


def place_script(settings: Settings) -> str:
    """Run by root: become the user, in the cgroup where the command shall stand.  Each step replaces the one before,
    so that the command is alone in a scope of its own."""
    uid, command = settings.uid, "/run/guest/command"
    as_user = f"setpriv --reuid={uid} --regid={uid} --clear-groups -- " if uid else ""
    bus = f"export XDG_RUNTIME_DIR={RUNTIME} DBUS_SESSION_BUS_ADDRESS=unix:path={RUNTIME}/bus\n"
    before = ""
    if settings.place == "session":
        start = f"su -l {settings.user} -c {command}"
    elif settings.place in ("scope", "terminal") and settings.init == "systemd":
        if uid:
            before = bus
        manager = "--user " if uid else ""
        what = f"-p Delegate=yes {command}" if settings.place == "scope" else f"sh -c '{command}; exit $?'"
        start = f"{as_user}systemd-run {manager}--quiet --scope {what}"
    elif settings.engine:
        volumes = [f"--volume={volume}" for volume in BOUND]
        words = [
            settings.engine,
            "run",
            "--rm",
            "--network=none",
            "--log-driver=none",
            *TMPFS[settings.engine],
            *volumes,
        ]
        words += MORE.get(settings.place, [])
        before = CONTAINER.format(uid=uid, user=settings.user)
        if settings.engine == "podman":
            before = bus + before
            start = f"{as_user}{' '.join(words)} --rootfs /var/container {command}"
        else:
            before += DOCKER
            start = f"{' '.join(words)} guest {command}"
    else:
        if settings.place == "scope":
            before = DELEGATE.format(uid=uid)
        start = f"{as_user}{command}"
    return f"#!/bin/sh\n{before}exec {start}\n"


def write_disk(path: Path, job: Job, settings: Settings, *, token: str, modules: Sequence[Path] = ()) -> None:
    """Write the tar; the guest reads it raw from its second disk."""
    with tarfile.open(path, "w") as tar:
        add_text(tar, "run/guest/job.conf", f"TOKEN={token}\n")
        add_text(tar, "run/guest/main", (FILES / "main").read_text())
        add_text(tar, "run/guest/place", place_script(settings))
        add_text(tar, "run/guest/command", command_script(job, settings))
        for module in modules:
            tar.add(module, f"run/guest/modules/{module.name}")
        for copy in job.copies:
            add_tree(tar, copy, settings.uid)


def add_text(tar: tarfile.TarFile, name: str, text: str) -> None:
    content = text.encode()
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), 0o755
    tar.addfile(info, io.BytesIO(content))


def add_tree(tar: tarfile.TarFile, copy: Copy, uid: int) -> None:
    skipped = frozenset() if copy.installed else SKIPPED
    owner = 0 if copy.installed else uid
    target = copy.target.lstrip("/")

    def chosen(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
        if info.name != target and PurePosixPath(info.name).name in skipped:
            return None
        info.uid = info.gid = owner
        info.uname = info.gname = ""
        info.mode |= 0o555 if info.mode & 0o100 else 0o444  # a temporary directory here is closed to others
        return info

    tar.add(copy.source, target, filter=chosen)
