"""Makes one call of ours to the kernel fail: the n-th in one process of a run, with an errno of its manual page.

The seams are Python's: `os`, `signal`, `socket`, `builtins.open`, our copies of them, and our own `_syscalls`. Of all
who call these, our modules are counted alone. What a fork starts counts for itself, and is known by its role: pytest
is ``"p"``, the first process that it forks ``"p.1"``, the second ``"p.2"``, the first process of that ``"p.2.1"``. So a
run that does the same again makes the same calls, whoever is faster. The guard, a program of its own, is ``"g"``.

EINTR is here for directories only: elsewhere Python itself calls again (PEP 475), and below that seam strace looks
(`test_strace`).
"""

from __future__ import annotations

import builtins
import errno
import fcntl
import functools
import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

# What the manual pages of section 2 allow, and cgroups(7), by what is worked on. ESRCH: the process has ended.
_MKDIR = ("EACCES", "EAGAIN", "ENODEV", "ENOMEM", "ENOSPC", "EPERM", "EROFS")
_RMDIR = ("EACCES", "EBUSY", "ENOMEM", "EPERM", "EROFS")
_OPEN = {
    "cgroup": ("EACCES", "EMFILE", "ENODEV", "ENOMEM", "EPERM", "EROFS"),
    "proc": ("EACCES", "EMFILE", "ENOMEM", "EPERM"),
    "file": ("EACCES", "EMFILE", "ENOMEM", "ENOSPC", "EROFS"),
}
_READ = {"cgroup": ("EIO", "ENODEV", "ENOMEM"), "proc": ("EIO", "ENOMEM", "ESRCH"), "file": ("EIO",)}
_WRITE = {
    "cgroup": ("EACCES", "EAGAIN", "EBUSY", "EIO", "ENODEV", "ENOMEM", "ENOSPC", "EPERM", "ESRCH"),
    "proc": ("EACCES", "EIO", "ENOMEM", "EPERM"),
    "file": ("EIO", "ENOSPC"),
    "pipe": (),
}
_LIST = {"cgroup": ("EACCES", "EINTR", "EMFILE", "ENODEV", "ENOMEM"), "proc": ("EACCES", "EINTR", "EMFILE", "ENOMEM")}
_STAT = {"cgroup": ("EACCES", "ENOMEM"), "proc": ("EACCES", "ENOMEM"), "file": ()}
_XATTR = {"cgroup": ("EACCES", "ENOMEM", "ENOSPC", "EPERM"), "file": ()}
_ALWAYS = {
    "fork": ("EAGAIN", "ENOMEM"),
    "clone_sibling": ("EAGAIN", "ENOMEM"),
    "posix_spawn": ("EACCES", "EAGAIN", "ENOMEM"),
    "spawn_into_cgroup": ("EACCES", "EAGAIN", "ENOMEM"),
    "pipe": ("EMFILE",),
    "socketpair": ("EMFILE", "ENOMEM"),
    "socket": ("EACCES", "EMFILE", "ENOMEM"),
    "eventfd": ("EMFILE", "ENODEV", "ENOMEM"),
    "pidfd_open": ("EMFILE", "ENODEV", "ENOMEM", "ESRCH"),
    "pidfd_send_signal": ("EPERM", "ESRCH"),
    "kill": ("EPERM", "ESRCH"),
    "dup": ("EMFILE",),
    "dup2": ("EBUSY", "EMFILE"),
    "chdir": ("EACCES", "EIO", "ENOMEM"),
    "chroot": ("EACCES", "EPERM"),
    "sched_setaffinity": ("EPERM", "ESRCH"),
    "setgroups": ("ENOMEM", "EPERM"),
    "setresgid": ("EPERM",),
    "setresuid": ("EAGAIN", "EPERM"),
    "sethostname": ("EPERM",),
    "ioctl": ("EPERM",),
    "unshare": ("ENOMEM", "ENOSPC", "EPERM"),
    "setns": ("ENOMEM", "EPERM", "ESRCH"),
    "mount": ("EACCES", "EBUSY", "ENODEV", "ENOMEM", "EPERM", "EROFS"),
    "umount": ("EAGAIN", "EBUSY", "ENOMEM", "EPERM"),
    "mount_readonly_recursive": ("EACCES", "EBUSY", "EPERM"),
    "set_child_subreaper": ("EPERM",),
    "set_pdeathsig": ("EPERM",),
    "set_no_new_privs": ("EPERM",),
    "clear_capabilities": ("EPERM",),
    "effective_capabilities": ("EPERM",),
}
_OF_DESCRIPTORS: dict[str, dict[str, tuple[str, ...]]] = {"read": _READ, "pread": _READ, "write": _WRITE}
_OF_DESCRIPTORS["ftruncate"] = {"file": ("EIO", "EPERM")}
_OF_PATHS: dict[str, dict[str, tuple[str, ...]]] = {
    "mkdir": {"cgroup": _MKDIR},
    "rmdir": {"cgroup": _RMDIR},
    "open": _OPEN,
    "listdir": _LIST,
    "scandir": _LIST,
    "stat": _STAT,
    "readlink": {"proc": ("EACCES", "EIO", "ENOMEM")},
    "setxattr": _XATTR,
    "getxattr": _XATTR,
}
_MODULES = {
    os: {*_OF_DESCRIPTORS, *_OF_PATHS, *_ALWAYS} - {"socket", "socketpair"},
    signal: {"pidfd_send_signal"},
    socket: {"socketpair", "sethostname"},
    fcntl: {"ioctl"},
}
_OURS = ("pytest_cgroup", "psutil")


class _State:
    role = "p"
    calls = 0
    forks = 0
    fault: tuple[str, int, int] | None = None
    told = -1
    told_path = ""
    depth = 0


def install(fault: tuple[str, int, int] | None, told: str, role: str = "p") -> None:
    """From now on count, and tell each call in the file *told*, a JSON line each.

    Args:
        fault: role, number and which of the errnos: that call fails; None: every call is told, and none fails.
        role: this process's.
    """
    _State.role, _State.fault, _State.told_path = role, fault, told
    _State.told = os.open(told, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    from pytest_cgroup import _isolated, _syscalls

    for module, names in _MODULES.items():
        for name in names:
            if hasattr(module, name):
                counted = _counted(name, getattr(module, name))
                setattr(module, name, counted)  # psutil calls it there, and our modules call their own
                setattr(getattr(_isolated, module.__name__, module), name, counted)
    builtins.open = _isolated.io.open = _counted("open", builtins.open)

    for name in _ALWAYS:
        if hasattr(_syscalls, name):
            setattr(_syscalls, name, _counted(name, getattr(_syscalls, name)))


def _counted(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(real)
    def call(*args: Any, **kwargs: Any) -> Any:
        module = sys._getframe(1).f_globals.get("__name__") or ""
        if module.partition(".")[0] not in _OURS or _State.depth:
            return real(*args, **kwargs)
        _State.depth += 1
        try:
            subject = _subject(name, args, kwargs)
            allowed = _allowed(name, subject, args)
            if allowed:
                _count(name, subject, allowed)
        finally:
            _State.depth -= 1
        result = real(*args, **kwargs)
        if name in ("fork", "clone_sibling"):
            _State.forks += 1
            if result == 0:
                _State.role = f"{_State.role}.{_State.forks}"
                _State.calls = _State.forks = 0
        return result

    return call


def _subject(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """What the call is about: a path, as far as there is one."""
    if name in _OF_DESCRIPTORS:
        return _path_of(args[0])
    if name not in _OF_PATHS or not args:
        return str(args[0]) if args else ""
    path = args[0]
    if isinstance(path, int):
        return _path_of(path)
    if (dir_fd := kwargs.get("dir_fd")) is not None:
        return f"{_path_of(dir_fd)}/{path}"
    return os.fsdecode(path)


def _path_of(fd: int) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return "?"


def _allowed(name: str, subject: str, args: tuple[Any, ...]) -> tuple[str, ...]:
    if (by_kind := _OF_DESCRIPTORS.get(name) or _OF_PATHS.get(name)) is None:
        allowed = _ALWAYS[name]
        return tuple(one for one in allowed if one != "ESRCH") if _is_own_child(name, args) else allowed
    return by_kind.get(_kind(subject), ())


def _kind(subject: str) -> str:
    if subject.startswith("/sys/fs/cgroup"):
        return "cgroup"
    if subject.startswith("/proc"):
        return "proc"
    return "pipe" if subject.startswith(("pipe:", "socket:", "anon_inode:")) else "file"


def _is_own_child(name: str, args: tuple[Any, ...]) -> bool:
    """Nobody is told that a child of his own has ended before he has waited for it."""
    if name not in ("pidfd_open", "kill"):
        return False
    try:
        return os.waitid(os.P_PID, args[0], os.WEXITED | os.WNOHANG | os.WNOWAIT) is None or True
    except ChildProcessError:
        return False


def _count(name: str, subject: str, allowed: tuple[str, ...]) -> None:
    number, _State.calls = _State.calls, _State.calls + 1
    if _State.fault is None:
        _tell([_State.role, number, name, subject, allowed])
        return
    role, wanted, which = _State.fault
    if (role, wanted) == (_State.role, number) and which < len(allowed):
        _tell([_State.role, number, name, subject, allowed[which]])
        failure = getattr(errno, allowed[which])
        raise OSError(failure, os.strerror(failure), subject if subject.startswith("/") else None)


def _tell(line: list[Any]) -> None:
    text = json.dumps(line).encode() + b"\n"
    try:
        os.write(_State.told, text)
    except OSError:  # on the way to the guard everything is closed
        fd = os.open(_State.told_path, os.O_WRONLY | os.O_APPEND)
        os.write(fd, text)
        os.close(fd)
