"""A step on the way into a container that the kernel refused: which one, why, and what can be done about it."""

from __future__ import annotations

import errno
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ._isolated import io, os
from ._trace import trace
from .exceptions import ContainerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextmanager
def step(
    what: str,
    operation: str,
    path: str | None = None,
    remedy: str | Callable[[int], str] | None = None,
    *,
    value: object = None,
) -> Iterator[None]:
    """Turn the OSError of a step into a ContainerError that says which step it was and what can be done."""
    trace("%s %s %s", operation, path or "", "" if value is None else value)
    try:
        yield
    except OSError as error:
        number = error.errno or errno.EIO
        if isinstance(error.filename, str) and os.path.isabs(error.filename):
            path = error.filename
        if callable(remedy):
            remedy = remedy(number)
        raise ContainerError(what, operation=operation, path=path, value=value, errno=number, remedy=remedy) from error


def _sysctl(name: str) -> str | None:
    try:
        with io.open(f"/proc/sys/{name}", encoding="utf-8") as f:
            return f.read().strip()
    except OSError:
        return None


def user_namespace_remedy(number: int) -> str:
    if _sysctl("kernel/unprivileged_userns_clone") == "0":
        return "Allow them: sysctl kernel.unprivileged_userns_clone=1"
    if number in (errno.ENOSPC, errno.EUSERS):
        return f"Allow more: sysctl user.max_user_namespaces is {_sysctl('user/max_user_namespaces')}"
    if number == errno.EINVAL:
        return "It takes a process with one thread and a kernel with CONFIG_USER_NS"
    return _apparmor_remedy() or (
        "A seccomp filter (Docker's default), a security module or a chroot forbids them: allow unshare, or run as root"
    )


def _apparmor_remedy() -> str | None:
    if _sysctl("kernel/apparmor_restrict_unprivileged_userns") == "1":
        return (
            "AppArmor allows user namespaces to listed programs only: "
            "sysctl kernel.apparmor_restrict_unprivileged_userns=0, or a profile with `userns,` for this Python"
        )
    return None


def namespace_remedy(short: str) -> Callable[[int], str]:
    def remedy(number: int) -> str:
        if number in (errno.ENOSPC, errno.EUSERS):
            name = f"user/max_{short}_namespaces"
            return f"Allow more: sysctl {name.replace('/', '.')} is {_sysctl(name)}"
        if number == errno.EINVAL:
            return f"This kernel has no {short} namespaces (see /proc/self/ns), or one was unshared already"
        return _apparmor_remedy() or "It takes root (CAP_SYS_ADMIN) or a user namespace"

    return remedy


def proc_remedy(number: int) -> str:
    if number == errno.EPERM:
        return (
            "Parts of /proc are masked here, as in a container, so a user namespace may mount no new one: "
            "unmask them (docker run --security-opt systempaths=unconfined, podman --security-opt unmask=ALL), "
            "run as root, or leave `pid_ns` out"
        )
    return _apparmor_remedy() or "A security module forbids mounts: allow them there, or leave `pid_ns` out"


def loopback_remedy(number: int) -> str:
    return _apparmor_remedy() or "It takes CAP_NET_ADMIN: add it, or ask for a user namespace with `user_ns`"
