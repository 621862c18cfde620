"""What opens the missing rung in this very environment: the command, the key or the setting, a line each."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._environment import Environment

_WRITABLE = "writable-cgroups=true"
_PODMAN = "start the container with `podman run --security-opt"


def for_cgroup(where: Environment, reason: str) -> str | None:
    """How to be given a cgroup to write in, which was refused for *reason*.

    None where the remedy that came with the reason is the better one: systemd was asked for a scope, and said why not.
    """
    if where.container is not None:
        root_only = "EACCES" in reason and where.uid != 0
        return "run pytest as root in the container: the cgroup is root's" if root_only else _in_container(where)
    if where.chroot:
        return "make the host's cgroups visible in the chroot: `mount --rbind /sys/fs/cgroup CHROOT/sys/fs/cgroup`"
    if where.wsl == 1:
        return "WSL1 has no cgroups: `wsl --set-version DISTRIBUTION 2`, in Windows"
    if "EROFS" in reason:
        if where.session == "service":
            return f"`ProtectControlGroups=no`, `Delegate=yes` in the unit: `systemctl edit {where.unit}`"
        return (
            f"have it mounted writable: `mount -o remount,rw`; in Docker `--security-opt {_WRITABLE}`, "
            "in podman `--security-opt unmask=/sys/fs/cgroup`"
        )
    if "no cgroup hierarchy is mounted" in reason:
        return "mount one, as root: `mount -t cgroup2 cgroup2 /sys/fs/cgroup`"
    if where.wsl and not where.systemd:
        return "run as root, or have systemd: `[boot]`, `systemd=true` in /etc/wsl.conf, then `wsl --shutdown`"
    if "EACCES" in reason and not where.systemd:
        return "run pytest as root, or in a cgroup whose directory root has given to this user"
    return None


def _in_container(where: Environment) -> str:
    match where.container:
        case "docker":
            return f"{_docker(where, _WRITABLE)} (Docker 28)"
        case "podman":
            return f"{_PODMAN} unmask=/sys/fs/cgroup`"
        case "containerd":
            return f"start the container with `nerdctl run --security-opt {_WRITABLE}` (nerdctl 2.1)"
        case "kubernetes":
            return (
                'CRI-O: the pod\'s annotation `io.kubernetes.cri-o.cgroup2-mount-hierarchy-rw: "true"`, which the '
                "runtime's allowed_annotations must name; containerd 2.1: a RuntimeClass whose runtime has "
                "`cgroup_writable = true`"
            )
        case "lxc":
            return "LXD, Incus: `lxc config set NAME security.nesting=true`; LXC: `lxc.mount.auto = cgroup:rw`"
        case "nspawn":
            return "boot the container: `systemd-nspawn --boot`, and run pytest in a service with `Delegate=yes`"
    return "have the container's manager mount /sys/fs/cgroup writable, in a cgroup namespace of its own"


def _docker(where: Environment, *options: str) -> str:
    """Docker's security options, where they are written in this CI."""
    words = " ".join(f"--security-opt {option}" for option in options)
    match where.ci:
        case "github":
            return f"in the workflow: `container: {{options: {words}}}`"
        case "gitlab":
            quoted = ", ".join(f'"{option}"' for option in options)
            return f"in the runner's config.toml: `[runners.docker]`, `security_opt = [{quoted}]`"
        case "jenkins":
            return f"in the pipeline: `agent {{ docker {{ args '{words}' }} }}`"
    return f"start the container with `docker run {words}`"


def for_namespaces(where: Environment, *, masked_proc: bool) -> str | None:
    """How a container or chroot may have namespaces of its own; None where it is not that which forbids them."""
    if where.chroot and not masked_proc:
        return (
            "the kernel has no user namespaces in a chroot: enter it by pivot_root(2), as bwrap and systemd-nspawn do"
        )
    if not masked_proc and not where.seccomp:
        return None
    match where.container:
        case "docker" if masked_proc:
            return _docker(where, "seccomp=unconfined", "systempaths=unconfined")
        case "docker":
            return f"{_docker(where, 'seccomp=unconfined')}, or with a profile that allows unshare"
        case "podman" if masked_proc:
            return f"{_PODMAN} unmask=ALL`"
        case "podman":
            return f"{_PODMAN} seccomp=unconfined`"
        case "kubernetes":
            return (
                "in the pod `hostUsers: false`, and in the container's securityContext "
                "`seccompProfile: {type: Unconfined}`, `procMount: Unmasked`"
            )
        case "lxc":
            return "LXD, Incus: `lxc config set NAME security.nesting=true`"
    return None
