"""What v2 refuses to a session: each with the reason, the remedy, and what is left."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from pytest_cgroup import _isolated
from pytest_cgroup import _syscalls as sc
from pytest_cgroup._backends import choose
from pytest_cgroup._cgroup import Cgroup
from pytest_cgroup._host import Host
from pytest_cgroup._kernel_files import read_words, write_file
from pytest_cgroup._lacking import TAKE_OVER, empty_cpuset, not_delegated
from pytest_cgroup._placement import LEAF, Placement
from tests.kernel.contain import Lab, nothing
from tests.kernel.forked import forked, on, refusal, words

T = TypeVar("T")
MOUNT = "/sys/fs/cgroup"


@pytest.fixture
def stage(v2: None, stage: Cgroup) -> Cgroup:
    """On pure v2 only."""
    return stage


@pytest.fixture
def shell(stage: Cgroup) -> Iterator[subprocess.Popen[bytes]]:
    """Somebody else in it."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        stage.adopt(process.pid)
        yield process
    finally:
        process.kill()
        process.communicate()


def placed(**asked: Any) -> dict[str, Any]:
    """What comes of a session that is opened here."""
    host = Host(scope=False, **asked)
    try:
        lab = Lab(host, choose(host))
        session = host.placement.session
        return {
            "backend": lab.backend.name,
            "controllers": sorted(host.placement.controllers),
            "ended": lab.run(nothing).ended,
            "missing": {name: (one.reason, one.remedy) for name, one in host.placement.missing.items()},
            "session": session and session.path,
            "where": Path("/proc/self/cgroup").read_text(),
        }
    finally:
        host.close()


@pytest.fixture
def controllers(stage: Cgroup) -> list[str]:
    """Those that the stage could give: there must be some to have anything refused."""
    found = sorted({*words(f"{stage.unified}/cgroup.controllers")} & {"memory", "pids", "cpu", "cpuset", "io"})
    if not {"memory", "pids"} <= set(found):
        pytest.skip("memory and pids are not delegated here")
    return found


# subtree_control


@pytest.mark.requires("cgroup", "memory")
def test_one_who_is_about_to_leave_is_waited_for(
    stage: Cgroup, shell: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    control = f"{stage.unified}/cgroup.subtree_control"
    assert refusal(lambda: write_file(control, "+memory")) == errno.EBUSY
    pauses = []

    def leave(seconds: float) -> None:
        pauses.append(seconds)
        shell.kill()
        shell.wait()

    monkeypatch.setattr(_isolated.time, "sleep", leave)
    placement = Placement()
    placement._enable_in(stage.path, ["memory"])
    assert len(pauses) == 1
    assert placement.missing == {}
    assert words(control) == ["memory"]
    write_file(control, "-memory")


@pytest.mark.requires("cgroup", "memory")
@pytest.mark.usefixtures("shell")
def test_one_who_stays_is_not(stage: Cgroup) -> None:
    control = f"{stage.unified}/cgroup.subtree_control"
    placement = Placement()
    placement._enable_in(stage.path, ["memory"])
    assert "EBUSY" in placement.missing["memory"].reason
    assert words(control) == []


@pytest.mark.requires("cgroup", "memory")
@pytest.mark.parametrize("name", ["cgroup.controllers", "cgroup.procs"])
def test_what_can_not_be_read_is_told(
    stage: Cgroup, controllers: list[str], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not taken for a controller that is not delegated, nor for a cgroup in which nobody is."""
    path = f"{stage.unified}/{name}"

    def unread(asked: str) -> list[str]:
        if asked == path:
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        return read_words(asked)

    assert on(stage, placed)["controllers"] == controllers
    monkeypatch.setattr("pytest_cgroup._placement.read_words", unread)
    said = on(stage, placed)
    assert said["controllers"] == []
    reason, _ = said["missing"]["memory"]
    assert path in reason
    assert "EIO" in reason


@pytest.mark.requires("cgroup")
def test_a_controller_that_is_not_passed_on(stage: Cgroup, controllers: list[str]) -> None:
    """As io for an ordinary user: the reason names who has it, and the others are there all the same."""
    control, inner = f"{stage.unified}/cgroup.subtree_control", stage.child("inner")
    for controller in controllers:
        if controller != "memory":
            write_file(control, f"+{controller}")
    inner.make()
    try:
        said = on(inner, placed)
    finally:
        inner.remove()
        for controller in words(control):
            write_file(control, f"-{controller}")
    assert said["controllers"] == [name for name in controllers if name != "memory"]
    reason, remedy = said["missing"]["memory"]
    assert reason.endswith(f"not delegated to {inner.path}: {stage.path} has it, and does not pass it on")
    assert remedy


@pytest.mark.parametrize(
    ("base", "remedy"),
    [
        ("u.slice/user@7.service/app.slice/a.scope", "/etc/systemd/system/user@.service.d/delegate.conf"),
        ("u.slice/user@7.service", "/etc/systemd/system/user@.service.d/delegate.conf"),
        ("system.slice/ci.service", "/etc/systemd/system/ci.service.d/delegate.conf"),
        ("system.slice/ci.service/sub", "/etc/systemd/system/ci.service.d/delegate.conf"),
        ("u.slice/session-1.scope", "-p Delegate=yes"),
    ],
)
def test_the_remedy_names_the_file(tmp_path: Path, base: str, remedy: str) -> None:
    tmp_path.joinpath(base).mkdir(parents=True)
    tmp_path.joinpath("cgroup.controllers").write_text("cpu io memory\n")
    tmp_path.joinpath(base.partition("/")[0], "cgroup.controllers").write_text("cpu io memory\n")
    tmp_path.joinpath(base, "cgroup.controllers").write_text("memory\n")
    missing = not_delegated("io", f"{tmp_path}/{base}", str(tmp_path))
    assert f"{tmp_path / base.partition('/')[0]} has it, and does not pass it on" in missing.reason
    assert remedy in missing.remedy
    assert ("Delegate=cpu cpuset io memory pids" in missing.remedy) == ("delegate.conf" in remedy)


@pytest.mark.parametrize(("kind", "said"), [(None, "this kernel's cgroup v2"), ("domain", "this container")])
def test_a_controller_that_nobody_has(tmp_path: Path, kind: str | None, said: str) -> None:
    """The root has no cgroup.type, but for the root of a container."""
    (tmp_path / "a").mkdir()
    if kind:
        tmp_path.joinpath("cgroup.type").write_text(kind)
    assert said in not_delegated("memory", f"{tmp_path}/a", str(tmp_path)).reason


@pytest.mark.requires("cgroup", "memory")
def test_without_a_limit_of_swap(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on kernels that do not account for it: memory is limited all the same, swap is said to be missing."""
    offered = host._offered_files
    monkeypatch.setitem(host.__dict__, "_offered_files", offered - {"memory.swap.max"})
    monkeypatch.setattr(host, "_known", {})
    lab = Lab(host, choose(host, "cgroup"))
    lacking = dict(lab.backend.missing(lab.spec(memory="64M", swap="8M")))
    assert set(lacking) == {"swap"}
    assert "swapaccount=1" in lacking["swap"].remedy
    assert lab.backend.missing(lab.spec(memory="64M")) == []
    outcome = lab.run(nothing, memory="64M")
    assert (outcome.ended, outcome.limits.get("memory"), "swap" in outcome.limits) == ("exit", str(64 << 20), False)


# cpuset


@pytest.mark.parametrize("empty", [None, "cpuset.cpus.effective", "cpuset.mems.effective"])
def test_a_cpuset_that_came_out_empty_is_given_up(tmp_path: Path, empty: str | None) -> None:
    """A literal tree: no kernel at hand has the fault."""
    for name in ("cpuset.cpus.effective", "cpuset.mems.effective"):
        tmp_path.joinpath(name).write_text("\n" if name == empty else "0\n")
    control = tmp_path / "cgroup.subtree_control"
    control.write_text("")
    placement = Placement()
    placement._enabled = [("/elsewhere", "cpuset"), (str(tmp_path), "cpuset")]
    placement._check_cpuset(str(tmp_path))
    if empty is None:
        assert (placement.missing, len(placement._enabled), control.read_text()) == ({}, 2, "")
        return
    assert empty in placement.missing["cpuset"].reason
    assert str(tmp_path.parent) in placement.missing["cpuset"].remedy
    assert placement._enabled == [("/elsewhere", "cpuset")]
    assert control.read_text() == "-cpuset"


def test_no_cpuset_is_no_empty_one(tmp_path: Path) -> None:
    assert empty_cpuset(str(tmp_path), ("cpuset.cpus.effective",)) is None


@pytest.mark.requires("root", "cgroup", "cpuset")
def test_below_an_empty_cpuset_of_v1(host: Host) -> None:
    """A cpuset is made empty, and whoever joins it, or one below it, is refused; the other controllers are there."""
    session = host.placement.session
    assert session is not None
    if "cpuset" not in session.controllers:
        pytest.skip("a matter of cgroup v1")
    base = f"{session.controllers['cpuset']}/empty"
    os.mkdir(base)
    try:
        assert forked(lambda: refusal(lambda: write_file(f"{base}/cgroup.procs", "0"))) == errno.ENOSPC

        def function() -> tuple[Any, ...]:
            found = Host(base)
            try:
                lab = Lab(found, choose(found, "cgroup"))
                outcome = lab.run(nothing, pids=9)
                return found.capability("cpuset").reason, found.placement.controllers, outcome.limits.get("pids")
            finally:
                found.close()

        reason, offered, pids = forked(function)
    finally:
        os.rmdir(base)
    assert "cpuset.cpus is empty" in reason
    assert "pids" in offered
    assert "cpuset" not in offered
    assert pids == "9"


# threaded cgroups, and limits on cgroups


@pytest.mark.requires("cgroup")
def test_a_threaded_member_of_a_threaded_domain(stage: Cgroup) -> None:
    """Not only the domain's root: also where pytest's own thread stands below it."""
    inner = f"{stage.unified}/inner"
    os.mkdir(inner)
    write_file(f"{inner}/cgroup.type", "threaded")
    assert words(f"{stage.unified}/cgroup.type") == ["domain", "threaded"]

    def function() -> dict[str, Any]:
        write_file(f"{inner}/cgroup.threads", "0")
        return placed()

    try:
        said = on(stage, function)
    finally:
        os.rmdir(inner)
    assert said["backend"] == "process"
    reason, remedy = said["missing"]["cgroup"]
    assert f"{inner} is a threaded cgroup" in reason
    assert "scope of its own" in remedy


@pytest.mark.requires("cgroup")
@pytest.mark.parametrize("file", ["cgroup.max.descendants", "cgroup.max.depth"])
@pytest.mark.parametrize("above", [False, True])
def test_no_more_cgroups_may_be_made(stage: Cgroup, file: str, above: bool) -> None:
    """The reason names the file that forbids it, in whichever cgroup it is; the control: with room they are made."""
    inner = stage.child("inner")
    inner.make()
    base = inner if above else stage

    def attempt(limit: int) -> dict[str, Any]:
        write_file(f"{stage.unified}/{file}", str(limit))
        return on(base, placed)

    try:
        if not above and file == "cgroup.max.descendants":
            inner.remove()
        said = attempt(1 if above else 0)
        assert said["backend"] == "process"
        reason, remedy = said["missing"]["cgroup"]
        assert "EAGAIN" in reason
        assert remedy.startswith(f"{file} of {stage.path} is {1 if above else 0}: raise it")
        assert attempt(9)["backend"] == "cgroup"
    finally:
        write_file(f"{stage.unified}/{file}", "max")
        if inner.exists:
            inner.remove()


# cgroup namespaces


def in_namespace(function: Callable[[], T], *, mounted: bool = True) -> T:
    """What *function* returns in a cgroup namespace whose root is this process's cgroup, as a container has it.

    *mounted*: with a cgroup filesystem of that namespace, or that of the host as it was.
    """
    sc.unshare(sc.CLONE_NEWCGROUP | sc.CLONE_NEWNS)
    sc.mount(None, "/", None, sc.MS_REC | sc.MS_PRIVATE)
    if mounted:
        sc.umount(MOUNT, sc.MNT_DETACH)
        sc.mount("none", MOUNT, "cgroup2")
    return function()


@pytest.mark.requires("root", "cgroup", "cgroup_ns", "mount_ns", "privileged")
def test_in_a_cgroup_namespace(stage: Cgroup, controllers: list[str]) -> None:
    said = on(stage, lambda: in_namespace(placed))
    assert said["where"].startswith("0::/pytest-cgroup-")
    assert (said["controllers"], said["ended"]) == (controllers, "exit")
    assert os.path.dirname(said["session"]) == MOUNT
    assert not stage.child(LEAF).exists


@pytest.mark.requires("root", "cgroup", "cgroup_ns", "mount_ns", "privileged")
def test_in_a_cgroup_namespace_with_the_mount_of_another(stage: Cgroup) -> None:
    said = on(stage, lambda: in_namespace(placed, mounted=False))
    assert said["backend"] == "process"
    reason, remedy = said["missing"]["cgroup"]
    assert "mounted in another cgroup namespace" in reason
    assert f"mount -t cgroup2 none {MOUNT}" in remedy


# --cgroup-take-over


@pytest.mark.requires("root", "cgroup", "cgroup_ns", "mount_ns", "privileged")
def test_others_in_a_containers_root_are_moved_when_that_is_asked(
    stage: Cgroup, controllers: list[str], shell: subprocess.Popen[bytes]
) -> None:
    def function() -> tuple[Any, ...]:
        def ask() -> tuple[Any, ...]:
            without = placed()
            found = Host(take_over=True, scope=False)
            session = found.placement.session
            assert session is not None
            during = Path(f"/proc/{shell.pid}/cgroup").read_text(), sorted(words(f"{session.path}/{LEAF}/cgroup.procs"))
            found.close()
            return without, during, placed(take_over=True), os.getpid()

        return in_namespace(ask)

    without, (moved, leaf), taken, pid = on(stage, function)
    reason, remedy = without["missing"]["memory"]
    assert f"other processes are in pytest's cgroup {MOUNT}: " in reason
    assert f"[{shell.pid}]" in reason
    assert remedy.startswith(TAKE_OVER)
    assert without["controllers"] == []
    assert moved.strip().endswith(f"/{LEAF}")
    assert leaf == sorted([str(pid), str(shell.pid)])
    assert (taken["controllers"], taken["ended"]) == (controllers, "exit")
    assert stage.pids() == [shell.pid], "they were put back"
    assert words(f"{stage.unified}/cgroup.subtree_control") == []


@pytest.mark.requires("root", "cgroup", "cgroup_ns", "mount_ns", "privileged")
@pytest.mark.usefixtures("controllers", "shell")
def test_the_option_and_its_twin(stage: Cgroup, tmp_path: Path) -> None:
    tmp_path.joinpath("pytest.ini").write_text("[pytest]\nasyncio_default_fixture_loop_scope = function\n")
    source = "import pytest\n@pytest.mark.contained(pids=20)\ndef test_it(): pass\n"
    tmp_path.joinpath("test_it.py").write_text(source)

    def run(*options: str) -> str:
        command = [sys.executable, "-m", "pytest", "-rs", "-p", "no:cacheprovider", *options, "--cgroup-scope=no"]
        command += ["--rootdir", str(tmp_path), str(tmp_path)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stdout

    def function() -> list[str]:
        return [run(), run("--cgroup-take-over"), run("-o", "cgroup_take_over=yes")]

    without, option, twin = on(stage, lambda: in_namespace(function))
    assert "1 skipped" in without
    assert TAKE_OVER in without
    assert "1 passed" in option
    assert "1 passed" in twin


@pytest.mark.requires("cgroup")
@pytest.mark.usefixtures("controllers")
def test_they_are_not_moved_on_a_host(stage: Cgroup, shell: subprocess.Popen[bytes]) -> None:
    """There it could be the user's shell, or a service."""
    said = on(stage, lambda: placed(take_over=True))
    assert said["controllers"] == []
    assert "--cgroup-take-over: this is no private cgroup namespace's root" in said["missing"]["memory"][0]
    assert stage.pids() == [shell.pid]


@pytest.mark.requires("root", "cgroup", "cgroup_ns", "mount_ns", "privileged", "pid_ns")
def test_one_without_a_number_here_is_not_moved(stage: Cgroup, shell: subprocess.Popen[bytes]) -> None:
    """A process of the host's that entered the container's cgroup has pid 0 there: writing that would move pytest."""

    def init() -> dict[str, Any]:
        sc.mount("proc", "/proc", "proc")
        return forked(lambda: placed(take_over=True))

    def function() -> dict[str, Any]:
        sc.unshare(sc.CLONE_NEWPID)
        return forked(init)

    said = on(stage, lambda: in_namespace(function))
    assert said["controllers"] == []
    assert "--cgroup-take-over: they could not be moved" in said["missing"]["memory"][0]
    assert stage.pids() == [shell.pid]
