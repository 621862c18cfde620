"""Become another user for good: groups, group, user, in this order, read back, without any capability."""

from __future__ import annotations

import errno
import sys
from dataclasses import dataclass

from . import _syscalls as sc
from ._isolated import os
from ._steps import step
from .exceptions import ContainerError

if sys.platform == "linux":  # the package imports elsewhere, too
    import grp
    import pwd

_LARGEST_ID = 2**32 - 2  # the next one means "unchanged" to the kernel


@dataclass(frozen=True, slots=True)
class Identity:
    """Numeric ids to run with; ``groups`` are the supplementary ones and include ``gid``."""

    uid: int
    gid: int
    groups: tuple[int, ...]


def look_up(user: str | int | None, group: str | int | None = None) -> Identity:
    """The ids of *user* and *group*, names or numbers; groups follow the user where *group* is not given.

    Raises:
        ContainerError: there is no such user or group, or the ids would include group 0 without being told to.
    """
    uid, name, gid = os.getuid(), None, os.getgid()
    if user is not None:
        uid, name, own_gid = _find_user(user)
        if group is None and own_gid is None:
            raise _no_such("user", user, "It has no account to take a group from: give `group` too")
        gid = own_gid if own_gid is not None else gid
    if group is not None:
        gid = _find_group(group)
    groups = tuple(sorted({gid, *os.getgrouplist(name, gid)})) if name is not None else (gid,)
    if user is not None and uid != 0 and 0 in groups and not (group is not None and gid == 0):
        raise ContainerError(
            f"user {user!r} would keep group 0", operation="setgroups", value=groups, remedy="Give another `group`"
        )
    return Identity(uid, gid, groups)


def drop_privileges(user: str | int | None, group: str | int | None = None, no_new_privs: bool = False) -> None:
    """Become *user* and *group* for good, see `look_up`, without any capability; and let no execve gain privileges.

    setgroups(2), setresgid(2), setresuid(2), in this order; afterwards read back, and the way back tried.

    Raises:
        ContainerError: an unknown user or group, no privilege to change, or the kernel did not do as it said.
    """
    if user is not None or group is not None:
        _become(look_up(user, group))
    if no_new_privs:
        with step("can't set no_new_privs", "prctl"):
            sc.set_no_new_privs()
            if not sc.get_no_new_privs():
                raise OSError(errno.EPERM, os.strerror(errno.EPERM))


def _become(who: Identity) -> None:
    remedy = "Run pytest as root, or leave `user` and `group` out"
    if not _is(who):
        with step("can't set the supplementary groups", "setgroups", value=who.groups, remedy=remedy):
            os.setgroups(who.groups)
        with step("can't change the group", "setresgid", value=who.gid, remedy=remedy):
            os.setresgid(who.gid, who.gid, who.gid)
        with step("can't change the user", "setresuid", value=who.uid, remedy=remedy):
            os.setresuid(who.uid, who.uid, who.uid)
    if who.uid != 0:
        with step("can't give up the capabilities", "capset"):
            sc.clear_capabilities()  # in a user namespace they do not go with uid 0
    if not _is(who) or (who.uid != 0 and (sc.effective_capabilities() or _can_be_root())):
        raise ContainerError("the privileges were not given up", operation="setresuid", value=who)


def _is(who: Identity) -> bool:
    groups = {*os.getgroups(), os.getegid()}
    ids = (os.getresuid(), os.getresgid())
    return ids == ((who.uid,) * 3, (who.gid,) * 3) and groups == {*who.groups, who.gid}


def _can_be_root() -> bool:
    try:
        os.setuid(0)
    except OSError:
        return False
    return True


def _find_user(user: str | int) -> tuple[int, str | None, int | None]:
    """uid, name and group of the account; a number without an account has neither name nor group."""
    try:
        entry = pwd.getpwuid(_id(user)) if _is_number(user) else pwd.getpwnam(str(user))
    except KeyError:
        if _is_number(user):
            return _id(user), None, None
        raise _no_such("user", user, "Name an account of this machine, or give a uid") from None
    return entry.pw_uid, entry.pw_name, entry.pw_gid


def _find_group(group: str | int) -> int:
    try:
        return _id(group) if _is_number(group) else grp.getgrnam(str(group)).gr_gid
    except KeyError:
        raise _no_such("group", group, "Name a group of this machine, or give a gid") from None


def _is_number(name: str | int) -> bool:
    return isinstance(name, int) or (name.isascii() and name.isdecimal())


def _id(number: str | int) -> int:
    if not 0 <= int(number) <= _LARGEST_ID:
        raise _no_such("user or group", number, f"Ids go from 0 to {_LARGEST_ID}")
    return int(number)


def _no_such(kind: str, name: str | int, remedy: str) -> ContainerError:
    return ContainerError(f"no such {kind}", operation="look up", value=name, remedy=remedy)
