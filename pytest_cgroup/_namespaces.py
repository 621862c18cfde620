"""A freshly forked process steps into namespaces of its own and, at the end, gives up its privileges.

Theory of operation. The order is the kernel's: `enter_user_namespace` first, where privilege is lacking, since it owns
all that follows; then `unshare_pid`, which counts for children only; and in the process that will run the test
`set_up`, which does the rest; `drop_privileges` last. Each step that fails is a ContainerError and leaves the process
half-way in: it must not go on to run a test.

Every mount is made in a mount namespace that propagates nothing, so the host sees none of it.
Sources: namespaces(7), user_namespaces(7), pid_namespaces(7), mount_namespaces(7), mount(2).
"""

from __future__ import annotations

import errno
import re
import stat
import struct
import sys
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import _syscalls as sc
from ._identity import Identity, drop_privileges, look_up
from ._isolated import io, os, socket
from ._kernel_files import write_file
from ._steps import loopback_remedy, namespace_remedy, proc_remedy, step, user_namespace_remedy
from .exceptions import ContainerError

if sys.platform == "linux":  # the package imports elsewhere, too
    import fcntl

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ._spec import Spec

__all__ = [
    "Identity",
    "Namespaces",
    "bring_up",
    "drop_privileges",
    "enter_user_namespace",
    "follow",
    "join_network",
    "look_up",
    "mount_proc",
    "rejoin_pid",
    "set_up",
    "unshare_pid",
]

# What set_up unshares: the kind's name in `Namespaces`, its flag, and its name in /proc/PID/ns and in /proc/sys/user.
_KINDS = (
    ("mount", sc.CLONE_NEWNS, "mnt"),
    ("net", sc.CLONE_NEWNET, "net"),
    ("ipc", sc.CLONE_NEWIPC, "ipc"),
    ("uts", sc.CLONE_NEWUTS, "uts"),
    ("cgroup", sc.CLONE_NEWCGROUP, "cgroup"),
    ("time", sc.CLONE_NEWTIME, "time"),
)
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 0x1  # netdevice(7)
_ST_NOSYMFOLLOW, _ST_RELATIME = 0x2000, 0x1000  # include/linux/statfs.h; Python names only the second, and not always


@dataclass(frozen=True, slots=True, kw_only=True)
class Namespaces:
    """Which namespaces a process gets, and what is different in them."""

    pid: bool = False
    net: bool = False
    mount: bool = False
    ipc: bool = False
    uts: bool = False
    cgroup: bool = False
    time: bool = False
    user: bool = False
    new_proc: bool = False  # mount a /proc of the pid namespace that the process is in
    private_tmp: bool = False
    hostname: str | None = None
    readonly: tuple[str, ...] = ()  # made read-only with all that is mounted below
    hidden: tuple[str, ...] = ()  # a directory becomes empty, a file becomes /dev/null
    keep: tuple[str, ...] = ()  # what stays visible under a private /tmp, and writable

    @classmethod
    def from_spec(cls, spec: Spec, keep: Iterable[str] = ()) -> Namespaces:
        """What *spec* asks for; a pid namespace brings its own /proc."""
        return cls(
            pid=spec.pid_ns,
            net=spec.net_ns,
            mount=spec.mount_ns,
            ipc=spec.ipc_ns,
            uts=spec.uts_ns,
            cgroup=spec.cgroup_ns,
            time=spec.time_ns,
            user=spec.user_ns,
            new_proc=spec.pid_ns,
            private_tmp=spec.private_tmp,
            hostname=spec.hostname,
            readonly=tuple(spec.readonly),
            hidden=tuple(spec.hidden),
            keep=tuple(keep),
        )

    @property
    def clone_flags(self) -> int:
        """The CLONE_NEW flags of every kind asked for, also by implication: nothing is mounted or named outside."""
        flags = sum(flag for name, flag, _ in _KINDS if getattr(self, name))
        flags |= sc.CLONE_NEWPID if self.pid else 0
        flags |= sc.CLONE_NEWUSER if self.user else 0
        if self.new_proc or self.private_tmp or self.readonly or self.hidden:
            flags |= sc.CLONE_NEWNS
        if self.hostname is not None:
            flags |= sc.CLONE_NEWUTS
        return flags

    @property
    def any(self) -> bool:
        """Whether a namespace of any kind is asked for."""
        return self.clone_flags != 0


def enter_user_namespace(*, uid: int | None = None, gid: int | None = None) -> None:
    """Step into a new user namespace, with every capability in it (user_namespaces(7)).

    A privileged caller sees all ids as they were. Another keeps its own ids alone, as *uid* and *gid* (default: the
    same numbers), every other id shows as the overflow id, and setgroups is off. The process must have one thread.
    The capabilities go with the next execve, or with `_syscalls.clear_capabilities`.

    Raises:
        ContainerError: user namespaces are refused here; the remedy is named.
    """
    own_uid, own_gid = os.geteuid(), os.getegid()
    uid, gid = own_uid if uid is None else uid, own_gid if gid is None else gid
    # A map of more than oneself takes these in the outer namespace; CAP_SETFCAP for id 0 since Linux 5.12.
    privileged = sc.has_capabilities(sc.CAP_SETUID, sc.CAP_SETGID, sc.CAP_SETFCAP)
    if privileged and (uid, gid) == (own_uid, own_gid):
        _enter_with_every_id()
        return
    with step("no user namespace to be had", "unshare user", remedy=user_namespace_remedy):
        sc.unshare(sc.CLONE_NEWUSER)
    with step("can't map this process's ids into its user namespace", "map ids", "/proc/self/uid_map"):
        with suppress(FileNotFoundError):  # before Linux 3.19
            write_file("/proc/self/setgroups", "deny")  # without it an unprivileged gid_map is refused
        write_file("/proc/self/uid_map", f"{uid} {own_uid} 1")
        write_file("/proc/self/gid_map", f"{gid} {own_gid} 1")


def _enter_with_every_id() -> None:
    """A user namespace with all ids mapped to themselves: written by a child that stays in the outer one."""
    maps = {name: _identity_map(name) for name in ("uid_map", "gid_map")}
    self_dir = os.open("/proc/self", os.O_PATH | os.O_DIRECTORY)  # the child can't name us by pid in any pid namespace
    unshared_read, unshared_write = os.pipe()
    answer_read, answer_write = os.pipe()
    child = os.fork()
    if child == 0:
        answer = errno.EIO
        try:
            os.close(unshared_write)
            if os.read(unshared_read, 1):  # else the parent failed or died
                for name, text in maps.items():
                    write_file(name, text, dir_fd=self_dir)
                answer = 0
        except OSError as error:
            answer = error.errno or errno.EIO
        finally:
            try:
                os.write(answer_write, struct.pack("i", answer))
            finally:
                os._exit(0)
    os.close(answer_write)
    try:
        with step("no user namespace to be had", "unshare user", remedy=user_namespace_remedy):
            sc.unshare(sc.CLONE_NEWUSER)
        os.write(unshared_write, b"!")
        with step("can't map all ids into the user namespace", "map ids", "/proc/self/uid_map"):
            answered = os.read(answer_read, 4)
            number = struct.unpack("i", answered)[0] if answered else errno.ECHILD
            if number:
                raise OSError(number, os.strerror(number))
    finally:
        for fd in (self_dir, unshared_read, unshared_write, answer_read):
            os.close(fd)
        with suppress(ChildProcessError):  # SIGCHLD is ignored: the kernel has reaped it
            os.waitpid(child, 0)


def _identity_map(name: str) -> str:
    """This user namespace's ids, each mapped to itself; the outer numbers of a map are our inner ones."""
    with io.open(f"/proc/self/{name}", encoding="utf-8") as f:
        rows = [line.split() for line in f]
    return "".join(f"{inside} {inside} {count}\n" for inside, _, count in rows)


def unshare_pid() -> None:
    """Give the children of this thread a new pid namespace; the first one is its PID 1 (pid_namespaces(7)).

    PID 1 gets no signal that it has no handler for, not even its own SIGSEGV, and when it ends the kernel kills the
    rest: make it an init. Until `rejoin_pid` this thread can start no thread and no second pid namespace.
    """
    with step("no pid namespace to be had", "unshare pid", remedy=namespace_remedy("pid")):
        sc.unshare(sc.CLONE_NEWPID)


def rejoin_pid() -> None:
    """Undo `unshare_pid` for the children that are still to come: they are born where this process lives.

    It takes CAP_SYS_ADMIN over that outer namespace: after `enter_user_namespace` there is no way back.
    """
    with step("can't return to this process's own pid namespace", "setns", "/proc/self/ns/pid"):
        _setns("/proc/self/ns/pid", sc.CLONE_NEWPID)


def set_up(ns: Namespaces) -> None:
    """Step into all of *ns* but its pid and user namespaces, and arrange what is in them.

    For a process with one thread and CAP_SYS_ADMIN in its user namespace. Relative paths count from the working
    directory, which stays the same path, seen through the new mounts.

    Raises:
        ContainerError: a step failed; it names the step, the path, the kernel's errno and the remedy.
    """
    readonly = [_resolve(path, "readonly") for path in ns.readonly]
    hidden = [_resolve(path, "hidden") for path in ns.hidden]
    cwd = _working_directory()
    flags = ns.clone_flags
    for name, flag, short in _KINDS:
        if flags & flag:
            with step(f"no {name} namespace to be had", f"unshare {name}", remedy=namespace_remedy(short)):
                sc.unshare(flag)
    if flags & sc.CLONE_NEWNS:
        _arrange_mounts(ns, readonly, hidden, cwd)
    if ns.hostname is not None:
        with step(f"can't set the host name to {ns.hostname!r}", "sethostname"):
            socket.sethostname(ns.hostname)
    if ns.net:
        with step("can't bring up the loopback device", "SIOCSIFFLAGS", "lo", loopback_remedy):
            bring_up("lo")
    if ns.time:  # unshare moves only children to a new time namespace
        with step("can't enter the new time namespace", "setns", "/proc/self/ns/time_for_children"):
            _setns("/proc/self/ns/time_for_children", sc.CLONE_NEWTIME)


def follow(pid: int, ns: Namespaces) -> None:
    """Step into those of *ns* that the child *pid* has set up, all but its pid and user namespaces.

    For a process with one thread and CAP_SYS_ADMIN over them, as the parent of *pid* in one user namespace has. It
    keeps the root directory that *pid* has, and loses its working directory.

    Raises:
        ContainerError: the kernel refused one.
    """
    flags = ns.clone_flags
    with ExitStack() as stack, step("can't follow into the namespaces", "setns", f"/proc/{pid}/ns"):
        root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY)
        stack.callback(os.close, root)
        kinds = {flag: os.open(f"/proc/{pid}/ns/{short}", os.O_RDONLY) for _, flag, short in _KINDS if flags & flag}
        for fd in kinds.values():
            stack.callback(os.close, fd)
        for flag, fd in kinds.items():
            sc.setns(fd, flag)
        if flags & sc.CLONE_NEWNS:
            os.chdir(root)
            os.chroot(".")  # setns took us to the root of the mounts, which is not ours in a chroot


def join_network(pid: int) -> bool:
    """Step into the network namespace of *pid*, through its user namespace where that is another; whether it is.

    For a process with one thread. The user namespace gives the right to the other, and is kept.

    Raises:
        ContainerError: the kernel refused it, or the process is gone.
    """
    with ExitStack() as stack, step("can't join the network of a container", "setns", f"/proc/{pid}/ns/net"):
        kinds = {"user": sc.CLONE_NEWUSER, "net": sc.CLONE_NEWNET}
        fds = {name: os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY) for name in kinds}
        for fd in fds.values():
            stack.callback(os.close, fd)
        foreign = os.fstat(fds["user"]).st_ino != os.stat("/proc/self/ns/user").st_ino
        for name, flag in kinds.items():
            if name == "net" or foreign:
                sc.setns(fds[name], flag)
        return foreign


# --- mounts ---


def _arrange_mounts(ns: Namespaces, readonly: list[str], hidden: list[str], cwd: str | None) -> None:
    remedy = "In a chroot, the new root has to be a mount point: mount --bind DIR DIR before it"
    with step("can't cut the mounts off from the host's", "mount --make-rprivate", "/", remedy):
        sc.mount(None, "/", None, sc.MS_REC | sc.MS_PRIVATE)
    if ns.new_proc:
        mount_proc()
    writable = _private_tmp((*ns.keep, *readonly)) if ns.private_tmp else []
    _make_readonly(readonly, writable)
    for path in hidden:
        _hide(path, may_be_gone=ns.private_tmp)
    if cwd is not None and (ns.private_tmp or readonly or hidden):
        # The working directory is still the one below the new mounts, visible and writable: enter what lies on top.
        remedy = "Start pytest in another directory, or do not hide this one"
        with step("the working directory can't be entered through the new mounts", "chdir", cwd, remedy):
            os.chdir(cwd)


def mount_proc() -> None:
    """Cover /proc by one of the pid namespace that this process is in; its mounts have to be its own already.

    Raises:
        ContainerError: the kernel refused it.
    """
    with step("can't mount a /proc of the new pid namespace", "mount proc", "/proc", proc_remedy):
        # In a user namespace a new /proc may be no laxer than the one that it covers.
        flags = _mount_flags("/proc") | sc.MS_NOSUID | sc.MS_NODEV | sc.MS_NOEXEC
        sc.mount("proc", "/proc", "proc", flags)


def _private_tmp(keep: Iterable[str]) -> list[str]:
    """Mount an empty /tmp and bind what is kept back into it; returns the mount points, all of them writable."""
    tmp = os.path.realpath("/tmp")
    real = {path: os.path.realpath(path) for path in map(os.path.abspath, keep)}
    kept: list[str] = []
    for path in sorted(set(real.values())):  # outer ones first: what lies in them comes with them
        if _within(path, tmp) and not any(_within(path, outer) for outer in kept):
            kept.append(path)
    if tmp in kept:
        remedy = "Put the tests, or what is read-only, into a directory below it"
        raise ContainerError("/tmp itself has to stay visible", operation="private_tmp", path=tmp, remedy=remedy)
    with ExitStack() as stack, step("can't make a private /tmp", "private_tmp", tmp):
        originals: dict[str, int] = {}
        for path in kept:
            with suppress(FileNotFoundError):  # nothing to keep
                originals[path] = os.open(path, os.O_PATH)
                stack.callback(os.close, originals[path])
        sc.mount("tmpfs", tmp, "tmpfs", sc.MS_NOSUID | sc.MS_NODEV, "mode=1777")
        stack.callback(os.umask, os.umask(0o022))  # the way to what is kept is open to whom it was
        for path, fd in originals.items():
            if stat.S_ISDIR(os.fstat(fd).st_mode):
                os.makedirs(path)
            else:
                os.makedirs(os.path.dirname(path), exist_ok=True)
                os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
            sc.mount(f"/proc/self/fd/{fd}", path, None, sc.MS_BIND | sc.MS_REC)
        for path, target in real.items():  # what was reached through a symbolic link in /tmp still is
            if path != target and _within(path, tmp) and not os.path.lexists(path):
                os.makedirs(os.path.dirname(path), exist_ok=True)
                os.symlink(target, path)
    return [tmp, *originals]


def _make_readonly(paths: list[str], writable: list[str]) -> None:
    """Make each path read-only with all mounts below it, but for *writable* mounts: what is named more exactly wins."""
    restore = {p: _mount_flags(p) for p in writable if p not in paths and any(_within(p, path) for path in paths)}
    for path in sorted(paths):  # outer ones first
        with step("can't make the path read-only", "readonly", path):
            if path != "/":  # a mount on / would not be seen from here; / is a mount of our own already
                sc.mount(path, path, None, sc.MS_BIND | sc.MS_REC)
            try:
                sc.mount_readonly_recursive(path)
            except OSError as error:
                if error.errno not in (errno.ENOSYS, errno.EPERM):
                    raise
                remount_readonly(path)
    for path, flags in restore.items():
        with step("can't keep the path writable", "readonly", path):
            sc.mount(None, path, None, sc.MS_REMOUNT | sc.MS_BIND | flags)


def remount_readonly(path: str) -> None:
    """What `_syscalls.mount_readonly_recursive` does, mount by mount, where the kernel is older than Linux 5.12."""
    with io.open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as f:
        points = dict.fromkeys(_unescape(line.split(" ", 5)[4]) for line in f)
    for point in points:
        if _within(point, path):
            with suppress(FileNotFoundError):  # below another mount, out of reach
                # All flags anew: the kernel drops what is not repeated, and refuses to drop a locked one.
                sc.mount(None, point, None, sc.MS_REMOUNT | sc.MS_BIND | sc.MS_RDONLY | _mount_flags(point))


def _hide(path: str, *, may_be_gone: bool) -> None:
    if path == "/":
        raise ContainerError("/ can't be hidden", operation="hidden", path=path, remedy="Name directories below it")
    if may_be_gone and not os.path.exists(path):
        return  # the private /tmp hides it
    with step("can't hide the path", "hidden", path):
        if os.path.isdir(path):
            flags = sc.MS_RDONLY | sc.MS_NOSUID | sc.MS_NODEV | sc.MS_NOEXEC
            sc.mount("tmpfs", path, "tmpfs", flags, "mode=0555")
        else:
            sc.mount("/dev/null", path, None, sc.MS_BIND)


def _mount_flags(path: str) -> int:
    """The flags of the mount that *path* lies on, as MS_ bits (statvfs(3))."""
    found = os.statvfs(path).f_flag
    flags = found & (sc.MS_RDONLY | sc.MS_NOSUID | sc.MS_NODEV | sc.MS_NOEXEC | sc.MS_NOATIME | sc.MS_NODIRATIME)
    if found & _ST_NOSYMFOLLOW:
        flags |= sc.MS_NOSYMFOLLOW
    if found & _ST_RELATIME:
        flags |= sc.MS_RELATIME
    elif not found & sc.MS_NOATIME:
        flags |= sc.MS_STRICTATIME
    return flags


def _within(path: str, outer: str) -> bool:
    """Whether *path* is *outer* or lies below it; both absolute and without symbolic links."""
    return path == outer or path.startswith(outer.rstrip("/") + "/")


def _unescape(path: str) -> str:
    """A path of /proc/PID/mountinfo, whose spaces and backslashes are octal (proc_pid_mountinfo(5))."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), path)


def _resolve(path: str, field: str) -> str:
    remedy = f"Give `{field}` paths that exist and can be reached"
    with step(f"`{field}` names a path that can't be had", field, path, remedy):
        return os.path.realpath(path, strict=True)


def _working_directory() -> str | None:
    try:
        return os.getcwd()
    except FileNotFoundError:  # removed meanwhile: nothing to come back to
        return None


def bring_up(device: str) -> None:
    """What `ip link set DEVICE up` does; with "lo" IPv4 and IPv6 addresses come with it (netdevice(7))."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        request = struct.pack("16sH22x", device.encode(), 0)  # struct ifreq
        (flags,) = struct.unpack_from("H", fcntl.ioctl(s, _SIOCGIFFLAGS, request), 16)
        fcntl.ioctl(s, _SIOCSIFFLAGS, struct.pack("16sH22x", device.encode(), flags | _IFF_UP))


def _setns(path: str, kind: int) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        sc.setns(fd, kind)
    finally:
        os.close(fd)
