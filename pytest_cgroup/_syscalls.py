"""The system calls that Python's os module does not have: the project's only ctypes, loaded on first use.

Each function raises OSError with the kernel's errno, the name of the call in ``strerror`` and the path, where there
is one, in ``filename``. Nothing is loaded at import, so the package imports where these calls do not exist.
"""

from __future__ import annotations

import struct
from functools import cache
from typing import TYPE_CHECKING

from ._isolated import os, signal

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from ctypes import CDLL, Array, c_char_p

# clone(2), unshare(2), setns(2); CLONE_NEWTIME since Linux 5.6
CLONE_NEWTIME = 0x00000080
CLONE_PARENT = 0x00008000
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
CLONE_INTO_CGROUP = 0x200000000  # of clone3(2)

# mount(2)
MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_REMOUNT = 0x20
MS_NOSYMFOLLOW = 0x100
MS_NOATIME = 0x400
MS_NODIRATIME = 0x800
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x40000
MS_SHARED = 0x100000
MS_RELATIME = 0x200000
MS_STRICTATIME = 0x1000000
MNT_DETACH = 0x2

# capabilities(7)
CAP_SETGID = 6
CAP_SETUID = 7
CAP_SYS_ADMIN = 21
CAP_SETFCAP = 31

_PR_SET_PDEATHSIG = 1
_PR_GET_DUMPABLE = 3
_PR_SET_DUMPABLE = 4
_PR_SET_CHILD_SUBREAPER = 36
_PR_GET_CHILD_SUBREAPER = 37
_PR_SET_NO_NEW_PRIVS = 38
_PR_GET_NO_NEW_PRIVS = 39
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4

_SYS_MOUNT_SETATTR = 442  # one number on every architecture but alpha
_MOUNT_ATTR_RDONLY = 0x1
_AT_FDCWD = -100
_AT_RECURSIVE = 0x8000
_CAPABILITY_VERSION_3 = 0x20080522  # two 32-bit words a set


@cache
def _libc() -> CDLL:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    number, text, word = ctypes.c_int, ctypes.c_char_p, ctypes.c_ulong
    prototypes = {
        "unshare": [number],
        "setns": [number, number],
        "mount": [text, text, text, word, text],
        "umount2": [text, number],
        "prctl": [number, word, word, word, word],
        "capget": [ctypes.c_void_p, ctypes.c_void_p],
        "capset": [ctypes.c_void_p, ctypes.c_void_p],
        "sigqueue": [number, number, ctypes.c_void_p],
        "setxattr": [text, text, text, ctypes.c_size_t, number],
        "getxattr": [text, text, ctypes.c_void_p, ctypes.c_size_t],
    }
    for name, argtypes in prototypes.items():
        function = getattr(libc, name)
        function.argtypes, function.restype = argtypes, number
    libc.syscall.restype = ctypes.c_long
    return libc


def load() -> None:
    """Load the C library now: in the parent, so that no forked child has to (its file may be hidden from the child)."""
    _libc()


def _check(call: str, result: int, path: str | None = None) -> int:
    if result < 0:
        import ctypes

        error = ctypes.get_errno()
        raise OSError(error, f"{call}: {os.strerror(error)}", path)
    return result


def _prctl(call: str, option: int, *args: int) -> int:
    padded = (*args, 0, 0, 0, 0)[:4]  # the kernel refuses some options with EINVAL unless the rest is zero
    return _check(f"prctl({call})", _libc().prctl(option, *padded))


# --- namespaces and mounts ---


def unshare(flags: int) -> None:
    """Move this process, or its future children for CLONE_NEWPID and CLONE_NEWTIME, to new namespaces (unshare(2))."""
    _check("unshare", _libc().unshare(flags))


def setns(fd: int, nstype: int) -> None:
    """Join the namespace behind *fd*, which must be of the kind *nstype*, a CLONE_NEW flag (setns(2))."""
    _check("setns", _libc().setns(fd, nstype))


def mount(source: str | None, target: str, fstype: str | None = None, flags: int = 0, data: str | None = None) -> None:
    """Mount, bind, remount or change propagation (mount(2)). *flags* are MS_ bits, *data* the file system's options."""
    src, kind, options = (None if text is None else os.fsencode(text) for text in (source, fstype, data))
    _check("mount", _libc().mount(src, os.fsencode(target), kind, flags, options), target)


def umount(target: str, flags: int = 0) -> None:
    """Unmount what is topmost on *target* (umount2(2))."""
    _check("umount2", _libc().umount2(os.fsencode(target), flags), target)


def mount_readonly_recursive(target: str) -> None:
    """Make the mount at *target* and all below it read-only, other flags untouched (mount_setattr(2), Linux 5.12).

    ENOSYS on an older kernel; EPERM also where a seccomp filter does not know the call.
    """
    import ctypes

    attributes = (ctypes.c_uint64 * 4)(_MOUNT_ATTR_RDONLY, 0, 0, 0)  # struct mount_attr: set, clear, propagation, fd
    result = _libc().syscall(
        ctypes.c_long(_SYS_MOUNT_SETATTR),
        ctypes.c_long(_AT_FDCWD),
        ctypes.c_char_p(os.fsencode(target)),
        ctypes.c_long(_AT_RECURSIVE),
        ctypes.byref(attributes),
        ctypes.c_size_t(ctypes.sizeof(attributes)),
    )
    _check("mount_setattr", result, target)


# --- processes ---

_SYS_CLONE3 = 435  # on every architecture
_SYS_CLONE = {"x86_64": 56, "aarch64": 220, "riscv64": 220, "loongarch64": 220}  # every other architecture: 120


def sigqueue(pid: int, number: int) -> None:
    """Signal one process, in a way that tells it that no group was meant: ``si_code`` is SI_QUEUE (sigqueue(3))."""
    _check("sigqueue", _libc().sigqueue(pid, number, None))


def clone_sibling(cgroup: int | None = None) -> int:
    """Fork a process whose parent is this one's parent (clone(2), CLONE_PARENT); 0 in the new process.

    For a process with one thread, and for a child that is about to execute: nothing of what Python and the C library
    do after a fork is done in it. It is born in *cgroup*, an open directory of a cgroup2 tree, where one is given
    (CLONE_INTO_CGROUP, Linux 5.7); ENOSYS where the kernel, or a seccomp filter, knows no clone3(2).
    """
    import ctypes

    if cgroup is not None:
        # struct clone_args: with CLONE_PARENT its exit_signal has to be 0, and is the caller's
        words = [CLONE_PARENT | CLONE_INTO_CGROUP, *[0] * 9, cgroup]
        arguments = (ctypes.c_uint64 * len(words))(*words)
        syscall = ctypes.PyDLL(None, use_errno=True).syscall
        syscall.restype = ctypes.c_long
        return _check("clone3", syscall(ctypes.c_long(_SYS_CLONE3), arguments, ctypes.c_size_t(8 * len(words))))
    flags = CLONE_PARENT | signal.SIGCHLD
    machine = os.uname().machine
    number = _SYS_CLONE.get(machine, 120) if struct.calcsize("P") == 8 else 120
    words = [flags, 0] if machine != "s390x" else [0, flags]
    syscall = ctypes.PyDLL(None, use_errno=True).syscall  # unlike CDLL it keeps the interpreter's lock, in both
    syscall.restype = ctypes.c_long
    result: int = syscall(ctypes.c_long(number), *map(ctypes.c_long, [*words, 0, 0, 0]))
    return _check("clone", result)


# posix_spawn(3): flags, and room for glibc's structures: 336, 80 and 128 bytes on 64-bit machines
_POSIX_SPAWN_SETPGROUP = 0x02
_POSIX_SPAWN_SETSIGDEF = 0x04
_POSIX_SPAWN_SETSID = 0x80
_POSIX_SPAWN_SETCGROUP = 0x100
_ROOM = 1024


def _vector(words: Sequence[bytes]) -> Array[c_char_p]:
    """As execve(2) takes them."""
    import ctypes

    return (ctypes.c_char_p * (len(words) + 1))(*words, None)


def can_spawn_into_cgroup() -> bool:
    """Whether the C library can start a program in a cgroup: glibc can from 2.39 on, musl can't."""
    return hasattr(_libc(), "posix_spawnattr_setcgroup_np")


def spawn_into_cgroup(
    cgroup: int,
    executable: bytes,
    argv: Sequence[bytes],
    env: Sequence[bytes] | None,
    *,
    fds: Mapping[int, int],
    cwd: bytes | None,
    setsid: bool,
    pgid: int,
    restored: Iterable[int],
) -> int:
    """Start a program in *cgroup*, an open directory of a cgroup2 tree, from any process; its pid (posix_spawn(3)).

    Like vfork(2) it copies no page tables, and nothing of Python runs before the exec.

    Args:
        env: None for this process's, as execv(3) takes it.
        fds: for 0, 1 and 2 what they shall be, put in place in the order given; they alone are inherited.
        cwd: None for this process's.
        pgid: its process group, 0 for one of its own, -1 for this process's.
        restored: signals that are ignored here and not there.

    Raises:
        OSError: one step failed, the exec among them; nothing was started.
    """
    import ctypes

    def call(name: str, *arguments: object) -> None:
        if error := getattr(_libc(), name)(*arguments):
            raise OSError(error, f"{name}: {os.strerror(error)}", executable)

    attributes, actions, signals, pid = *(ctypes.create_string_buffer(_ROOM) for _ in range(3)), ctypes.c_int()
    words = _vector(argv)
    variables = ctypes.c_void_p.in_dll(_libc(), "environ") if env is None else _vector(env)
    flags = _POSIX_SPAWN_SETCGROUP | _POSIX_SPAWN_SETSIGDEF
    call("posix_spawnattr_init", attributes)
    call("posix_spawn_file_actions_init", actions)
    try:
        call("posix_spawnattr_setcgroup_np", attributes, cgroup)
        call("sigemptyset", signals)
        for number in restored:
            call("sigaddset", signals, number)
        call("posix_spawnattr_setsigdefault", attributes, signals)
        if setsid:
            flags |= _POSIX_SPAWN_SETSID
        if pgid >= 0:
            flags |= _POSIX_SPAWN_SETPGROUP
            call("posix_spawnattr_setpgroup", attributes, pgid)
        call("posix_spawnattr_setflags", attributes, ctypes.c_short(flags))
        for target, fd in fds.items():
            call("posix_spawn_file_actions_adddup2", actions, fd, target)
        call("posix_spawn_file_actions_addclosefrom_np", actions, 3)
        if cwd is not None:
            call("posix_spawn_file_actions_addchdir_np", actions, cwd)
        call("posix_spawn", ctypes.byref(pid), executable, actions, attributes, words, variables)
    finally:
        call("posix_spawn_file_actions_destroy", actions)
        call("posix_spawnattr_destroy", attributes)
    return pid.value


# --- this process ---


def set_child_subreaper(on: bool) -> bool:
    """Make this process, or no longer, the reaper of its orphaned descendants (PR_SET_CHILD_SUBREAPER(2const)).

    Returns what it was before. The setting is not inherited by children and survives execve.
    """
    previous = get_child_subreaper()
    _prctl("PR_SET_CHILD_SUBREAPER", _PR_SET_CHILD_SUBREAPER, int(on))
    return previous


def get_child_subreaper() -> bool:
    """Whether orphaned descendants of this process become its children (PR_GET_CHILD_SUBREAPER(2const))."""
    import ctypes

    value = ctypes.c_int()
    _prctl("PR_GET_CHILD_SUBREAPER", _PR_GET_CHILD_SUBREAPER, ctypes.addressof(value))
    return bool(value.value)


def set_no_new_privs() -> None:
    """From now on no execve gains privileges; there is no way back (PR_SET_NO_NEW_PRIVS(2const))."""
    _prctl("PR_SET_NO_NEW_PRIVS", _PR_SET_NO_NEW_PRIVS, 1)


def get_no_new_privs() -> bool:
    """Whether execve can no longer grant privileges to this process (PR_GET_NO_NEW_PRIVS(2const))."""
    return bool(_prctl("PR_GET_NO_NEW_PRIVS", _PR_GET_NO_NEW_PRIVS))


def set_pdeathsig(number: int) -> None:
    """Have the kernel send signal *number* to this process when its parent *thread* ends, 0 for none.

    A parent that has ended already sends nothing: compare getppid() afterwards. Cleared by fork, by a set-user-ID
    execve and by a change of credentials, so set it last (PR_SET_PDEATHSIG(2const)).
    """
    _prctl("PR_SET_PDEATHSIG", _PR_SET_PDEATHSIG, number)


def set_dumpable(on: bool) -> None:
    """Let processes of the same user trace this one, and let the user own its /proc files (PR_SET_DUMPABLE(2const)).

    The kernel turns it off when a process changes its user without an execve.
    """
    _prctl("PR_SET_DUMPABLE", _PR_SET_DUMPABLE, int(on))


def get_dumpable() -> bool:
    """Whether this process's /proc files belong to its user (PR_GET_DUMPABLE(2const))."""
    return _prctl("PR_GET_DUMPABLE", _PR_GET_DUMPABLE) == 1


def effective_capabilities() -> int:
    """The effective capabilities of this thread, one bit each, within its user namespace (capget(2))."""
    import ctypes

    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable: the low words, then the high words
    _check("capget", _libc().capget(header, sets))
    return sets[0] | sets[3] << 32


def has_capabilities(*numbers: int) -> bool:
    """Whether this thread has all the capabilities *numbers* (CAP_ constants) in effect."""
    effective = effective_capabilities()
    return all(effective >> number & 1 for number in numbers)


def clear_capabilities() -> None:
    """Give up every capability of this thread: effective, permitted, inheritable and ambient (capset(2)).

    The bounding set stays: a set-user-ID program can still gain what the user namespace allows it.
    """
    import ctypes

    _prctl("PR_CAP_AMBIENT", _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    _check("capset", _libc().capset(header, (ctypes.c_uint32 * 6)()))


# --- extended attributes: Python before 3.12 has them with glibc only ---

_XATTR_SIZE_MAX = 65536


def setxattr(path: str, attribute: str, value: bytes) -> None:
    """Give a file an extended attribute, or another value of it (setxattr(2))."""
    if hasattr(os, "setxattr"):
        os.setxattr(path, attribute, value)
    else:
        _check("setxattr", _libc().setxattr(os.fsencode(path), attribute.encode(), value, len(value), 0), path)


def getxattr(path: str, attribute: str) -> bytes:
    """The value of an extended attribute (getxattr(2))."""
    if hasattr(os, "getxattr"):
        return os.getxattr(path, attribute)
    import ctypes

    value = ctypes.create_string_buffer(_XATTR_SIZE_MAX)
    size = _check("getxattr", _libc().getxattr(os.fsencode(path), attribute.encode(), value, _XATTR_SIZE_MAX), path)
    return value.raw[:size]
