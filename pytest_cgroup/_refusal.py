"""What the kernel refuses in the cgroup filesystem, in our words, with the remedy."""

from __future__ import annotations

import errno

from ._isolated import os
from ._kernel_files import read_file, words
from ._kernel_text import flat_keyed
from .exceptions import ContainerError

_REMEDY = {
    errno.EACCES: "the directory is not delegated to this user; see `python -m pytest_cgroup doctor`",
    errno.EPERM: "the directory is not delegated to this user; see `python -m pytest_cgroup doctor`",
    errno.EROFS: "the cgroup filesystem is mounted read-only here, as containers do",
    errno.EBUSY: "other processes are in this cgroup; run pytest in a scope of its own",
    errno.EEXIST: "it is there already, and may be in use: take another name",
    errno.EINVAL: "the kernel does not take this value",
    errno.ENOENT: "this kernel, or this cgroup's parent, does not offer the file",
    errno.ENOSPC: "a cpuset above it has no CPUs or memory nodes: set up cpuset.cpus and cpuset.mems there",
    errno.ERANGE: "the value is outside what the kernel takes",
    errno.EAGAIN: "the parent's limit leaves no room",
}


def refused(what: str, error: OSError, *, path: str, operation: str, value: object = None) -> ContainerError:
    """The kernel's refusal of an operation on a cgroup, in our words."""
    remedy = _REMEDY.get(error.errno or 0)
    if operation == "mkdir" and error.errno == errno.EAGAIN:
        remedy = _no_room(path)
    if operation == "mkdir" and error.errno == errno.ENOENT:
        remedy = f"{os.path.dirname(path)} is not there: make it first, or take a path without it"
    return ContainerError(
        what,
        path=path,
        operation=operation,
        value=value,
        errno=error.errno,
        remedy=remedy,
    )


def _no_room(path: str) -> str:
    """Which ancestor's limit refuses the new cgroup *path* with EAGAIN, and what to do about it."""
    ancestor, depth = os.path.dirname(path), 1
    while os.path.exists(f"{ancestor}/cgroup.stat"):
        descendants = flat_keyed(read_file(f"{ancestor}/cgroup.stat")).get("nr_descendants", 0)
        for file, wanted in (("cgroup.max.descendants", descendants + 1), ("cgroup.max.depth", depth)):
            limit = words(f"{ancestor}/{file}") or ["max"]  # the root has none
            if limit[0].isdecimal() and wanted > int(limit[0]):
                return f"{file} of {ancestor} is {limit[0]}: raise it, or remove cgroups below it"
        ancestor, depth = os.path.dirname(ancestor), depth + 1
    return "raise cgroup.max.descendants or cgroup.max.depth of a cgroup above it"
