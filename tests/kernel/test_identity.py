"""Another user, on the real kernel: privileges are gone for good, and groups are the user's own."""

from __future__ import annotations

import errno
import os
import pwd
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from pytest_cgroup import _syscalls as sc
from pytest_cgroup._identity import Identity, drop_privileges, look_up
from pytest_cgroup._namespaces import enter_user_namespace
from pytest_cgroup.exceptions import ContainerError
from tests.kernel.forked import ORDINARY, become_ordinary, forked, refusal

T = TypeVar("T")


@pytest.fixture
def etc() -> Iterator[Path]:
    """A directory for files that lie over those of /etc."""
    with tempfile.TemporaryDirectory(prefix="identity-", dir="/tmp") as name:
        os.chmod(name, 0o755)
        yield Path(name)


def status_lines(*names: str) -> dict[str, str]:
    lines = (line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {name: value.strip() for name, value in lines if name in names}


@pytest.mark.requires("root")
def test_privileges_are_gone_for_good() -> None:
    nobody = pwd.getpwnam("nobody")

    def first() -> tuple[object, ...]:
        os.setgroups([0, 1, 2])
        drop_privileges("nobody", None, no_new_privs=True)
        back = [refusal(lambda: os.setuid(0)), refusal(lambda: os.setgid(0)), refusal(lambda: os.setgroups([0]))]
        lines = status_lines("NoNewPrivs", "CapEff", "CapPrm", "Uid", "Gid", "Groups")
        return lines, back, refusal(lambda: Path("/etc/new").touch())

    lines, back, writing = forked(first)
    uid, gid = "\t".join([str(nobody.pw_uid)] * 4), "\t".join([str(nobody.pw_gid)] * 4)
    assert lines == {
        "NoNewPrivs": "1",
        "CapEff": "0" * 16,
        "CapPrm": "0" * 16,
        "Uid": uid,
        "Gid": gid,
        "Groups": str(nobody.pw_gid),
    }
    assert back == [errno.EPERM] * 3
    assert writing in (errno.EACCES, errno.EROFS)


def test_no_new_privs_alone_changes_no_id() -> None:
    def first() -> tuple[bool, tuple[int, int, int], bool]:
        before = sc.get_no_new_privs()
        drop_privileges(None, None, no_new_privs=True)
        return before, os.getresuid(), sc.get_no_new_privs()

    assert forked(first) == (False, os.getresuid(), True)


def with_accounts(etc: Path, function: Callable[[], T]) -> T:
    """Run *function* in a child that sees accounts of our own; the host's stay as they are."""
    files = {
        "passwd": "root:x:0:0::/:/bin/sh\nmember:x:70001:70002::/:/bin/sh\nrooty:x:70003:0::/:/bin/sh\n"
        "wheely:x:70004:70002::/:/bin/sh\n",
        "group": "root:x:0:wheely\nown:x:70002:\nextra:x:70005:member\nother:x:70006:\n",
        "nsswitch.conf": "passwd: files\ngroup: files\n",
    }

    def first() -> T:
        sc.unshare(sc.CLONE_NEWNS)
        sc.mount(None, "/", None, sc.MS_REC | sc.MS_PRIVATE)
        for name, text in files.items():
            (etc / name).write_text(text)
            if os.path.exists(f"/etc/{name}"):
                sc.mount(str(etc / name), f"/etc/{name}", None, sc.MS_BIND)
        return function()

    return forked(first)


@pytest.mark.requires("root")
@pytest.mark.parametrize(
    ("user", "group", "expected"),
    [
        ("member", None, Identity(70001, 70002, (70002, 70005))),
        (70001, None, Identity(70001, 70002, (70002, 70005))),
        ("70001", None, Identity(70001, 70002, (70002, 70005))),
        ("member", "other", Identity(70001, 70006, (70005, 70006))),
        ("member", 70009, Identity(70001, 70009, (70005, 70009))),
        (70010, 70009, Identity(70010, 70009, (70009,))),
        (None, "other", Identity(0, 70006, (70006,))),
        ("root", None, Identity(0, 0, (0,))),
        ("rooty", "other", Identity(70003, 70006, (70006,))),
        ("rooty", "root", Identity(70003, 0, (0,))),
    ],
)
def test_groups_follow_the_user_unless_said(
    etc: Path, user: str | int | None, group: str | int | None, expected: Identity
) -> None:
    def become() -> tuple[Identity, Identity]:
        found = look_up(user, group)
        drop_privileges(user, group)
        return found, Identity(os.getuid(), os.getgid(), tuple(sorted({os.getgid(), *os.getgroups()})))

    assert with_accounts(etc, become) == (expected, expected)


@pytest.mark.requires("root")
@pytest.mark.parametrize(
    ("user", "group", "message"),
    [
        ("nobody at all", None, "no such user"),
        ("member", "no such group", "no such group"),
        (70010, None, "give `group` too"),
        ("rooty", None, "would keep group 0"),
        ("wheely", None, "would keep group 0"),
        (-1, 70009, "no such user"),
        (2**32 - 1, 70009, "no such user"),
        ("", None, "no such user"),
    ],
)
def test_what_is_no_identity_is_refused_and_changes_nothing(
    etc: Path, user: str | int, group: str | int | None, message: str
) -> None:
    def become() -> tuple[ContainerError, Any]:
        before = os.getresuid(), os.getresgid(), os.getgroups()
        with pytest.raises(ContainerError) as caught:
            drop_privileges(user, group)
        return caught.value, (os.getresuid(), os.getresgid(), os.getgroups()) == before

    error, unchanged = with_accounts(etc, become)
    assert message in str(error)
    assert unchanged


def test_a_user_can_stay_who_they_are_and_become_no_other() -> None:
    def first() -> tuple[ContainerError, int]:
        become_ordinary()
        drop_privileges(os.getuid(), os.getgid())
        with pytest.raises(ContainerError) as caught:
            drop_privileges(os.getuid() + 1, os.getgid())
        return caught.value, os.getuid()

    if os.geteuid() != 0 and set(os.getgroups()) - {os.getgid()}:
        pytest.skip("this user has supplementary groups, which only root can drop")
    error, uid = forked(first)
    assert error.errno == errno.EPERM
    assert "root" in str(error)
    assert uid == (ORDINARY if os.geteuid() == 0 else os.geteuid())


@pytest.mark.usefixtures("user_namespaces")
def test_the_capabilities_of_a_user_namespace_go_too() -> None:
    def first() -> tuple[bool, int]:
        become_ordinary()
        enter_user_namespace()
        had = sc.has_capabilities(sc.CAP_SYS_ADMIN)
        drop_privileges(os.getuid(), os.getgid())
        return had, sc.effective_capabilities()

    if os.geteuid() != 0 and set(os.getgroups()) - {os.getgid()}:
        pytest.skip("this user has supplementary groups, which only root can drop")
    assert forked(first) == (True, 0)
