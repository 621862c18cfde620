"""Be on another machine: ``machine.py CHANGE… -- COMMAND…`` changes what COMMAND sees, in namespaces of its own.

The host sees none of it. Ends with 77 where this kernel can't play that machine.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys
from pathlib import Path
from typing import NoReturn

from pytest_cgroup import _syscalls as sc
from pytest_cgroup._kernel_text import cgroup_mounts
from pytest_cgroup._namespaces import enter_user_namespace
from pytest_cgroup.exceptions import CgroupError

CANNOT = 77
_UNSHARE = {"x86_64": 272, "aarch64": 97}


def own_mounts() -> None:
    sc.unshare(sc.CLONE_NEWNS)
    sc.mount(None, "/", flags=sc.MS_REC | sc.MS_PRIVATE)


def read_only_cgroups() -> None:
    """As Docker, podman and the kubelet mount them."""
    own_mounts()
    for mount in cgroup_mounts(Path("/proc/self/mountinfo").read_text()):
        sc.mount(None, mount.mount_point, flags=sc.MS_REMOUNT | sc.MS_BIND | sc.MS_RDONLY)


def no_proc() -> None:
    own_mounts()
    sc.umount("/proc", sc.MNT_DETACH)


def new_proc(options: str) -> None:
    own_mounts()
    sc.mount("proc", "/proc", "proc", data=options)


def masked_proc() -> None:
    """As Docker and podman mask it."""
    own_mounts()
    sc.mount("/dev/null", "/proc/interrupts", flags=sc.MS_BIND)
    sc.mount("/proc/sys", "/proc/sys", flags=sc.MS_BIND)
    sc.mount(None, "/proc/sys", flags=sc.MS_REMOUNT | sc.MS_BIND | sc.MS_RDONLY)


def no_user_namespaces() -> None:
    """For an ordinary user: the sysctl is a user namespace's own, and this is a new one."""
    enter_user_namespace()
    Path("/proc/sys/user/max_user_namespaces").write_text("0")
    sc.clear_capabilities()


def no_unshare() -> None:
    """As Docker's filter: unshare(2) is EPERM."""
    if (number := _UNSHARE.get(platform.machine())) is None:
        raise OSError(f"unshare's number is not known for {platform.machine()}")
    load_nr = struct.pack("=HBBI", 0x20, 0, 0, 0)
    if_unshare = struct.pack("=HBBI", 0x15, 0, 1, number)
    refuse = struct.pack("=HBBI", 0x06, 0, 0, 0x00050000 | errno.EPERM)
    allow = struct.pack("=HBBI", 0x06, 0, 0, 0x7FFF0000)
    code = ctypes.create_string_buffer(load_nr + if_unshare + refuse + allow)
    program = ctypes.create_string_buffer(struct.pack("@HP", 4, ctypes.addressof(code)))
    sc.set_no_new_privs()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(22, 2, ctypes.c_void_p(ctypes.addressof(program)), 0, 0) != 0:  # PR_SET_SECCOMP
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_SECCOMP)")


def chroot() -> None:
    """Into another directory with the same things in it."""
    own_mounts()
    sc.mount("tmpfs", "/mnt", "tmpfs")
    root = Path("/mnt/root")
    root.mkdir()
    for path in Path("/").iterdir():
        inside = root / path.name
        if path.is_symlink():
            inside.symlink_to(path.readlink())
        elif path.is_dir() and path.name != "mnt":
            inside.mkdir()
            sc.mount(str(path), str(inside), flags=sc.MS_BIND | sc.MS_REC)
    here = os.getcwd()
    os.chroot(root)
    os.chdir(here)


def become(uid: int) -> None:
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    sc.set_dumpable(True)  # as after an execve


def main(arguments: list[str]) -> NoReturn:
    at = arguments.index("--")
    for change in arguments[:at]:
        name, _, value = change.partition("=")
        try:
            if name == "user":
                become(int(value))
            elif name == "proc":
                new_proc(value)
            else:
                globals()[name]()
        except (OSError, CgroupError) as error:
            sys.stderr.write(f"{change}: {error}\n")
            sys.exit(CANNOT)
    os.execvp(arguments[at + 1], arguments[at + 1 :])


if __name__ == "__main__":
    main(sys.argv[1:])
