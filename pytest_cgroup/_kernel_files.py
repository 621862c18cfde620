"""The kernel's files, in /sys/fs/cgroup and /proc: one open, unbuffered.

A path or a name in one of them may be any bytes: what is no UTF-8 comes as `os.fsdecode` has it.
"""

from __future__ import annotations

import contextlib
import errno
import itertools

from ._isolated import os
from ._trace import listens, target, trace


def read_file(path: str) -> str:
    """The whole text of a kernel file (a pseudo file has no size to trust)."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        text = b""
        while more := os.read(fd, 65536):  # a seq_file hands out as many whole lines as a page holds: seldom all 4096
            text += more
    finally:
        os.close(fd)
    return os.fsdecode(text)


def read_record(path: str) -> str:
    """The text of a file that is one record, as a controller's is, and no list: all of it comes in one read."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.fsdecode(os.read(fd, 65536))
    finally:
        os.close(fd)


def write_file(path: str, value: str, dir_fd: int | None = None) -> None:
    """One unbuffered write: buffered I/O would report a refusal at close, or never, and an id map goes whole or not."""
    trace("write %s: %s", path, value)
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)


def mkdir(path: str, mode: int) -> None:
    """Make a cgroup."""
    os.mkdir(path, mode)
    trace("mkdir %s", path)


def rmdir(path: str) -> None:
    """Remove a cgroup."""
    os.rmdir(path)
    trace("rmdir %s", path)


def join(procs: int) -> None:
    """Step into the cgroup whose cgroup.procs, or ``tasks``, is open as *procs*."""
    os.write(procs, b"0")
    if listens():
        trace("join %s: pid %d", target(procs), os.getpid())


def words(path: str) -> list[str]:
    """The words of a cgroup file; none where it is not there or can't be read."""
    with contextlib.suppress(OSError):
        return read_words(path)
    return []


def read_words(path: str) -> list[str]:
    """The words of a cgroup file; none where it offers none: cgroup.type of the root, cgroup.procs of a threaded one.

    Raises:
        OSError: there are some, and they can't be read.
    """
    try:
        return read_file(path).split()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EOPNOTSUPP):
            return []
        raise


def move_all(source: str, target: str) -> list[int]:
    """Move every process of the cgroup *source* to *target*, those that fork meanwhile too; who could not be moved.

    0 is a process of another pid namespace: it is there, but has no number here. v2 lists a process where its first
    thread is, or has ended, wherever the others were moved since: whether all are gone is known by the threads.
    """
    living = "cgroup.threads" if os.path.exists(f"{source}/cgroup.threads") else "cgroup.procs"
    for listed in itertools.chain(("cgroup.procs",), itertools.repeat(living)):
        pids = [int(word) for word in words(f"{source}/{listed}")]
        if not pids and listed == living:
            break
        if not all(pids):  # writing 0 would move us
            return pids
        try:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    write_file(f"{target}/cgroup.procs", str(pid))
        except OSError:
            return pids
    return []
