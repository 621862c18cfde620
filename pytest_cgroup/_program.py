"""A freshly forked process becomes a program in a container: it joins, arranges everything, and executes.

It was forked by a launcher, has one thread, and tells what fails through Popen's own pipe, in the words of
``_posixsubprocess``, so that Python's own errors come of it.
"""

from __future__ import annotations

import contextlib
import errno
import sys
from typing import Any, NoReturn

from . import _syscalls
from ._isolated import os, signal
from ._kernel_files import join

if sys.platform == "linux":  # the package imports elsewhere, too
    import fcntl
    import resource

    #: what that wraps: it would make an enum of each signal that was blocked, of all there are
    _set_mask = getattr(signal.pthread_sigmask, "__wrapped__", signal.pthread_sigmask)

#: what a descriptor is for, where it is not the number that it gets in the program
DOOR, ERRORS, TOLD, CWD, BIRTHPLACE = -1, -2, -3, -4, -5
#: begins the message of an error that is ours and not the program's
NOT_ENTERED = "pytest-cgroup: "


def become(message: dict[str, Any], fds: list[int], *, own: bool, born_inside: bool, first: bool) -> NoReturn:
    """In the forked process: join, arrange everything as ``_posixsubprocess`` does, and execute. No way back.

    Args:
        message: what the launcher was asked for.
        fds: descriptors that came with it.
        own: the launcher holds the tree.
        born_inside: the first door is not to be gone through.
        first: it is PID 1 of a new pid namespace, and is to mount the /proc of that.
    """
    errors = -1
    try:
        targets: list[int] = message["targets"]
        received = list(zip(targets, fds, strict=True))
        doors = [fd for target, fd in received if target == DOOR]
        floor = max(10, *targets) + 1  # out of the way of those that get a number of the program's
        moved = [
            (target, fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, floor))
            for target, fd in received
            if target >= 0 or target in (ERRORS, CWD)
        ]
        errors = next(fd for target, fd in moved if target == ERRORS)
        try:
            for fd in doors[born_inside:]:
                join(fd)
            for limit, pair in message["rlimits"].items():  # ours as they are now, where the launcher has another
                resource.setrlimit(limit, pair)
            if first:
                from ._namespaces import mount_proc  # it is imported already

                mount_proc()
            if own:
                _syscalls.set_pdeathsig(signal.SIGKILL)  # its launcher holds the tree, and shall not end before it
            take_on(message.get("entry") or {})
            if own:
                _syscalls.set_pdeathsig(signal.SIGKILL)  # a change of credentials has cleared it
        except BaseException as error:
            os.write(errors, b"SubprocessError:0:" + NOT_ENTERED.encode() + told(error).encode())
            os._exit(255)
        step = b"noexec"  # the words that `subprocess` tells a failed exec by from what comes before it
        try:
            _place(moved)
            step = message["chdir"]
            os.chdir(next((fd for target, fd in moved if target == CWD), message["cwd"]))
            step = b"noexec"
            _arrange(message)
            step = b""
            _execute(message)
        except OSError as error:
            os.write(errors, b"OSError:%x:%s" % (error.errno or errno.EIO, step))
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.write(errors, b"SubprocessError:0:" + told(error).encode())
    finally:
        os._exit(255)


def take_on(entry: dict[str, Any]) -> None:
    """What the container's spec asks of each process."""
    if not entry:
        return
    from ._identity import drop_privileges
    from ._process import set_rlimits

    if "affinity" in entry:
        os.sched_setaffinity(0, entry["affinity"])
    if entry.get("cgroup_ns"):
        _syscalls.unshare(_syscalls.CLONE_NEWCGROUP)
    set_rlimits(entry.get("rlimits", {}))
    if entry.get("user") is not None or entry.get("group") is not None or entry.get("no_new_privs"):
        drop_privileges(entry.get("user"), entry.get("group"), bool(entry.get("no_new_privs")))


def _place(moved: list[tuple[int, int]]) -> None:
    """Each descriptor to the number that the program knows it by."""
    for number in (0, 1, 2):
        if all(target != number for target, _ in moved):
            with contextlib.suppress(OSError):
                os.close(number)
    for target, fd in moved:
        if target >= 0:
            os.dup2(fd, target, inheritable=True)


def _arrange(message: dict[str, Any]) -> None:
    if message["umask"] >= 0:
        os.umask(message["umask"])
    for number in message["ignored"]:
        signal.signal(number, signal.SIG_IGN)
    if message["setsid"]:
        os.setsid()
    if message["pgid"] >= 0:
        os.setpgid(0, message["pgid"])
    if message["gids"] is not None:
        os.setgroups(message["gids"])
    if message["gid"] is not None:
        os.setregid(message["gid"], message["gid"])
    if message["uid"] is not None:
        os.setreuid(message["uid"], message["uid"])
    _set_mask(signal.SIG_SETMASK, message["mask"])


def _execute(message: dict[str, Any]) -> NoReturn:
    """The first that can be executed; of the errors the first that is not merely "not there", as execvp(3) has it."""
    env = dict(entry.split(b"=", 1) for entry in message["env"])
    first: OSError | None = None
    last: OSError | None = None
    for executable in message["executables"]:
        try:
            os.stat(executable)  # execve takes ten times as long to find that it is not there
            os.execve(executable, message["argv"], env)
        except OSError as error:
            last = error
            if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                first = first or error
    raise first or last or FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))


def told(error: BaseException) -> str:
    """What is said of an error, in a few lines."""
    from .exceptions import CgroupError

    return (str(error) if isinstance(error, CgroupError) else f"{type(error).__name__}: {error}")[:3000]
