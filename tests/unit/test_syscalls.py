"""The system calls, made: each does what it says, and each failure says which call it was."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_cgroup import _syscalls as sc
from tests.kernel.forked import forked


def status(name: str) -> str:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(line.split()[1] for line in lines if line.startswith(f"{name}:"))


def test_importing_loads_nothing() -> None:
    package = "package = types.ModuleType('pytest_cgroup'); sys.modules['pytest_cgroup'] = package"
    path = f"package.__path__ = [{str(Path(sc.__file__).parent)!r}]"
    code = f"import sys, types; {package}; {path}; import pytest_cgroup._syscalls; assert 'ctypes' not in sys.modules"
    subprocess.run([sys.executable, "-I", "-c", code], check=True)


def test_the_constants_are_pythons() -> None:
    """Where Python (3.12 on) has them."""
    known = [name for name in vars(sc) if name.startswith("CLONE_") and hasattr(os, name)]
    assert [name for name in known if getattr(os, name) != getattr(sc, name)] == []
    assert known or sys.version_info < (3, 12)
    same = ("RDONLY", "NOSUID", "NODEV", "NOEXEC", "NOATIME", "NODIRATIME")  # statvfs says these with mount's bits
    assert [name for name in same if getattr(os, f"ST_{name}") != getattr(sc, f"MS_{name}")] == []


#: of the C library of Alpine, which has no wrapper for many a system call that glibc has one for
OF_MUSL = {
    "unshare",
    "setns",
    "mount",
    "umount",
    "umount2",
    "prctl",
    "capget",
    "capset",
    "syscall",
    "clone",
    "ptrace",
} | {"sigqueue", "setxattr", "getxattr"}


def test_only_functions_that_musl_has_are_used() -> None:
    """`_libc` looks all of them up when it is first called, so that one that is not there would fail them all."""
    source = Path(sc.__file__).read_text(encoding="utf-8")
    declared = set(re.findall(r'^        "(\w+)": \[', source, re.MULTILINE))
    used = set(re.findall(r"\b_?libc(?:\(\))?\.(\w+)", source))
    assert {"unshare", "mount"} <= declared
    assert used <= declared | {"syscall"}
    assert declared <= OF_MUSL
    assert re.findall(r"\bCDLL\(.*\)", source) == ["CDLL(None, use_errno=True)"], "libc.so.6 is glibc's name for it"


MISSING = "/no such place"


@pytest.mark.parametrize(
    ("call", "name", "number", "path"),
    [
        (lambda: sc.unshare(0x1), "unshare", errno.EINVAL, None),
        (lambda: sc.setns(-1, 0), "setns", errno.EBADF, None),
        (lambda: sc.sigqueue(os.getpid(), 1000), "sigqueue", errno.EINVAL, None),
        (lambda: sc.set_pdeathsig(1000), "prctl(PR_SET_PDEATHSIG)", errno.EINVAL, None),
    ],
)
def test_a_failure_names_the_call(call: Callable[[], None], name: str, number: int, path: str | None) -> None:
    with pytest.raises(OSError, match=f"{os.strerror(number)}") as caught:
        call()
    assert (caught.value.errno, caught.value.filename) == (number, path)
    assert str(caught.value.strerror).startswith(f"{name}: ")


@pytest.mark.requires("root")
@pytest.mark.parametrize("path", [MISSING, "/not \udcff utf-8"])
@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("mount", lambda path: sc.mount("none", path, "tmpfs")),
        ("umount2", sc.umount),
        ("mount_setattr", sc.mount_readonly_recursive),
    ],
)
def test_a_failure_names_the_path(name: str, call: Callable[[str], None], path: str) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        call(path)
    assert caught.value.filename == path
    assert str(caught.value.strerror).startswith(f"{name}: ")


def test_subreaper_is_set_read_and_unset() -> None:
    def child() -> str:
        return repr([sc.set_child_subreaper(True), sc.get_child_subreaper(), sc.set_child_subreaper(False)])

    assert forked(child) == "[False, True, True]"
    assert sc.get_child_subreaper() is False


@pytest.mark.parametrize("on", [True, False])
def test_a_subreaper_gets_the_orphans(on: bool) -> None:
    """A grandchild that outlives its parent is ours to wait for, and without the call it is not."""

    def child() -> str:
        sc.set_child_subreaper(on)
        hold_read, hold_write = os.pipe()
        parent = os.fork()
        if parent == 0:
            if os.fork() == 0:
                os.close(hold_write)
                os.read(hold_read, 1)  # until all who hold the other end are gone, or close it
            os._exit(0)
        os.waitpid(parent, 0)
        os.close(hold_write)
        try:
            os.wait()
        except ChildProcessError:
            return "no child"
        return "an orphan"

    assert forked(child) == ("an orphan" if on else "no child")


def test_the_death_signal_comes_with_the_parents_end() -> None:
    def child() -> str:
        sc.set_child_subreaper(True)  # to see how the orphan ended
        ready_read, ready_write = os.pipe()
        parent = os.fork()
        if parent == 0:
            orphan = os.fork()
            if orphan == 0:
                sc.set_pdeathsig(signal.SIGKILL)
                os.write(ready_write, b"!")
                while True:
                    signal.pause()
            os.read(ready_read, 1)
            os._exit(0)
        os.waitpid(parent, 0)
        return str(os.waitstatus_to_exitcode(os.wait()[1]))

    assert forked(child) == str(-signal.SIGKILL)


def test_no_new_privs_is_there_to_stay() -> None:
    def child() -> str:
        before = sc.get_no_new_privs()
        sc.set_no_new_privs()
        return repr([before, sc.get_no_new_privs(), status("NoNewPrivs")])

    assert forked(child) == "[False, True, '1']"


def test_dumpable() -> None:
    def child() -> str:
        sc.set_dumpable(False)
        off = sc.get_dumpable()
        sc.set_dumpable(True)
        return repr([off, sc.get_dumpable()])

    assert forked(child) == "[False, True]"


def test_capabilities_are_the_kernels() -> None:
    effective = int(status("CapEff"), 16)
    assert sc.effective_capabilities() == effective
    assert sc.has_capabilities() is True
    assert sc.has_capabilities(sc.CAP_SYS_ADMIN) is bool(effective >> 21 & 1)


@pytest.mark.requires("root")
def test_cleared_capabilities_are_gone() -> None:
    def child() -> str:
        had = sc.has_capabilities(sc.CAP_SETUID, sc.CAP_SETGID)
        sc.clear_capabilities()
        return repr([had, sc.effective_capabilities(), *(int(status(f"Cap{x}"), 16) for x in ("Eff", "Prm", "Inh"))])

    assert forked(child) == "[True, 0, 0, 0, 0]"


@pytest.mark.parametrize("python_has_them", [True, False])
def test_attributes(python_has_them: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python 3.11 has none with musl."""
    if not python_has_them:
        monkeypatch.delattr(os, "setxattr", raising=False)
        monkeypatch.delattr(os, "getxattr", raising=False)
    path = tmp_path / "Stra\xdfe"
    path.touch()
    try:
        sc.setxattr(str(path), "user.pytest-cgroup", b"one\0two")
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            pytest.skip("this file system keeps no attributes")
        raise
    sc.setxattr(str(path), "user.pytest-cgroup", b"[1, 2]")
    assert sc.getxattr(str(path), "user.pytest-cgroup") == b"[1, 2]"
    with pytest.raises(OSError, match=os.strerror(errno.ENODATA)) as caught:
        sc.getxattr(str(path), "user.another")
    assert (caught.value.errno, caught.value.filename) == (errno.ENODATA, str(path))
    with pytest.raises(FileNotFoundError):
        sc.setxattr(str(tmp_path / "nothing"), "user.pytest-cgroup", b"")
