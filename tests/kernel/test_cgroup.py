"""One cgroup of the real kernel: made, joined, looked at, killed, frozen, removed."""

from __future__ import annotations

import errno
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pytest_cgroup._cgroup import Cgroup
from pytest_cgroup._cgroup_usage import cpu_seconds
from pytest_cgroup._host import Host
from pytest_cgroup._kernel_files import read_file, write_file
from pytest_cgroup._kernel_text import flat_keyed
from pytest_cgroup.exceptions import ContainerError
from tests.kernel.contain import DEADLINE_SECONDS, identity
from tests.kernel.forked import forked

pytestmark = pytest.mark.requires("cgroup")


@pytest.fixture
def session(host: Host) -> Cgroup:
    assert host.placement.session is not None
    return host.placement.session


@pytest.fixture
def cgroup(session: Cgroup) -> Iterator[Cgroup]:
    """An empty one."""
    made = session.child("fixture")
    made.make()
    yield made
    assert made.kill_until_empty(DEADLINE_SECONDS)
    made.remove()


def born_in(cgroup: Cgroup, function: Callable[[], object] = signal.pause) -> int:
    """A child that has joined, and then calls *function*."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            cgroup.adopt(0)
            os.write(writer, b"!")
            function()
        finally:
            os._exit(0)
    os.close(writer)
    joined = os.read(reader, 1)
    os.close(reader)
    if joined != b"!":
        os.waitpid(pid, 0)
        pytest.fail("it could not join")
    return pid


def test_made_and_removed(session: Cgroup) -> None:
    cgroup = session.child("one")
    assert not any(os.path.exists(directory) for directory in cgroup.directories)
    cgroup.make()
    assert cgroup.exists
    assert all(os.path.isdir(directory) for directory in cgroup.directories)
    cgroup.remove()
    cgroup.remove()  # what is gone is gone
    assert not any(os.path.exists(directory) for directory in cgroup.directories)


def test_all_of_it_or_nothing(session: Cgroup) -> None:
    """The last hierarchy refuses: the others are given back."""
    cgroup = session.child("one")
    os.mkdir(cgroup.directories[-1])
    try:
        with pytest.raises(ContainerError, match="cannot make a cgroup") as caught:
            cgroup.make()
        assert caught.value.errno == errno.EEXIST
        assert not any(os.path.exists(directory) for directory in cgroup.directories[:-1])
    finally:
        os.rmdir(cgroup.directories[-1])


def test_where_none_can_be_made() -> None:
    with pytest.raises(ContainerError) as caught:
        Cgroup("/proc/self/none").make()
    assert caught.value.errno == errno.ENOENT
    assert caught.value.path == "/proc/self/none"


def test_members(cgroup: Cgroup) -> None:
    assert (cgroup.pids(), cgroup.populated) == ([], False)
    pid = born_in(cgroup)
    assert (cgroup.pids(), cgroup.populated) == ([pid], True)
    inner = cgroup.child("inner")
    inner.make()
    below = born_in(inner)
    assert sorted(cgroup.pids()) == sorted([pid, below])
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert cgroup.pids() == [below]
    cgroup.kill()
    os.waitpid(below, 0)
    assert not cgroup.populated


def test_who_says_that_it_is_gone_is_not_believed(cgroup: Cgroup, monkeypatch: pytest.MonkeyPatch) -> None:
    """ENODEV is what the kernel answers of a cgroup that is gone; nobody else's word makes its members vanish."""
    pid = born_in(cgroup)
    answers = iter([OSError(errno.ENODEV, "gone")])

    def gone(path: str) -> str:
        for answer in answers:
            raise answer
        return read_file(path)

    monkeypatch.setattr("pytest_cgroup._cgroup.read_file", gone)
    assert len(cgroup.pids()) == 1
    answers = (OSError(errno.ENODEV, "gone") for _ in range(100))
    with pytest.raises(OSError, match="gone"):
        cgroup.pids()
    monkeypatch.undo()
    never_made = Cgroup(f"{cgroup.path}/never-made")
    assert never_made.pids() == []
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_a_zombie_is_no_member(cgroup: Cgroup) -> None:
    pid = born_in(cgroup, lambda: None)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert cgroup.wait_empty(DEADLINE_SECONDS)
    assert cgroup.pids() == []
    os.waitpid(pid, 0)


def test_waiting_until_it_is_empty(cgroup: Cgroup) -> None:
    go, let_go = os.pipe()
    pid = born_in(cgroup, lambda: os.read(go, 1))
    assert not cgroup.wait_empty(0.02)
    os.write(let_go, b"!")
    assert cgroup.wait_empty(DEADLINE_SECONDS)
    os.waitpid(pid, 0)
    os.close(go)
    os.close(let_go)


def test_kill_is_of_all_and_of_nobody_else(cgroup: Cgroup, session: Cgroup) -> None:
    other = session.child("other")
    other.make()
    pids = [born_in(cgroup) for _ in range(3)]
    outside = born_in(other)
    assert cgroup.kill_until_empty(DEADLINE_SECONDS)
    for pid in pids:
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert identity(outside).alive
    other.kill()
    os.waitpid(outside, 0)
    other.remove()


@pytest.mark.parametrize("frozen", [False, True])
def test_kill_without_cgroup_kill(cgroup: Cgroup, frozen: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Freeze, kill each, thaw: as on kernels before 5.14, and on v1; also what was frozen before."""
    if cgroup.unified:
        from pytest_cgroup import _cgroup

        write = write_file

        def refuse(path: str, value: str) -> None:
            if path.endswith("/cgroup.kill"):
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
            write(path, value)

        monkeypatch.setattr(_cgroup, "write_file", refuse)
    pids = [born_in(cgroup) for _ in range(70)]  # more than are signalled at once
    if frozen:
        cgroup.freeze()
    assert cgroup.kill_until_empty(DEADLINE_SECONDS)
    for pid in pids:
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def test_frozen_and_thawed(cgroup: Cgroup) -> None:
    """What is frozen does not answer; thawed it does."""
    if cgroup.unified and not os.path.exists(f"{cgroup.unified}/cgroup.freeze"):
        pytest.skip("cgroup.freeze: since Linux 5.2")
    question, ask = os.pipe()
    answered, answer = os.pipe()

    def echo() -> None:
        while byte := os.read(question, 1):
            os.write(answer, byte)

    pid = born_in(cgroup, echo)
    os.write(ask, b"1")
    assert os.read(answered, 1) == b"1"
    cgroup.freeze()
    if cgroup.unified:
        assert flat_keyed(cgroup.read("cgroup.events") or "")["frozen"] == 1
    else:
        assert (cgroup.read("freezer.state") or "").strip() == "FROZEN"
    os.write(ask, b"2")
    os.set_blocking(answered, False)
    with pytest.raises(BlockingIOError):
        os.read(answered, 1)
    os.set_blocking(answered, True)
    cgroup.thaw()
    assert os.read(answered, 1) == b"2"
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    for fd in (question, ask, answered, answer):
        os.close(fd)


def test_inner_cgroups_go_with_it(session: Cgroup) -> None:
    cgroup = session.child("outer")
    cgroup.make()
    for directory in cgroup.directories:
        os.makedirs(f"{directory}/a/b")
        os.makedirs(f"{directory}/c")
    cgroup.remove()
    assert not cgroup.exists


def test_a_busy_cgroup_is_not_removed(cgroup: Cgroup) -> None:
    """Not for ever waited for; and the message says where and why."""
    pid = born_in(cgroup)
    with pytest.raises(ContainerError, match="EBUSY"):
        cgroup.remove(timeout=0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_a_refused_move_says_whom_and_where(cgroup: Cgroup) -> None:
    with pytest.raises(ContainerError) as caught:
        cgroup.adopt(2**22 + 1)
    assert caught.value.errno == errno.ESRCH
    assert caught.value.value == 2**22 + 1
    assert str(caught.value.path).endswith("/cgroup.procs")


def test_joining_by_descriptors(cgroup: Cgroup) -> None:
    """Which were opened before: a child in another mount namespace may not see the files."""
    fds = cgroup.open_procs()

    def function() -> list[int]:
        for fd in fds:
            os.write(fd, b"0")
        return cgroup.pids()

    assert len(forked(function)) == 1
    for fd in fds:
        os.close(fd)


def test_what_is_not_offered_is_none(cgroup: Cgroup) -> None:
    assert cgroup.read("memory.no_such_file") is None
    assert cgroup.events("pids.no_such_file") == {}
    assert not cgroup.offers("cpu.no_such_file")


@pytest.mark.requires("pids")
def test_a_refused_value_is_named(cgroup: Cgroup) -> None:
    with pytest.raises(ContainerError) as caught:
        cgroup.set("pids.max", "many")
    assert (caught.value.errno, caught.value.value, caught.value.operation) == (errno.EINVAL, "many", "write")
    assert "pids.max was not accepted" in str(caught.value)


@pytest.mark.requires("memory")
def test_what_the_kernel_rounds_is_told(cgroup: Cgroup) -> None:
    page = os.sysconf("SC_PAGE_SIZE")
    assert cgroup.set("memory.max", str(100 * page + 1)) == str(100 * page)
    assert cgroup.set("memory.max", "max") == "max"


@pytest.mark.requires("memory", "swap")
def test_swap_beside_memory(cgroup: Cgroup) -> None:
    assert cgroup.set("memory.max", "1048576") == "1048576"
    assert cgroup.set("memory.swap.max", "0") == "0"


def test_a_session_is_named_after_its_owner(session: Cgroup) -> None:
    name = os.path.basename(session.path)
    me = identity(os.getpid())
    assert re.fullmatch(rf"pytest-cgroup-{me.pid}-{me.start_time}-[0-9a-f]{{8}}(-\d+)?", name)


def test_a_long_text_is_read_whole(cgroup: Cgroup, tmp_path: Path) -> None:
    text = "".join(f"{number}\n" for number in range(30_000))
    (tmp_path / "long").write_text(text)
    assert read_file(str(tmp_path / "long")) == text


def test_a_kernel_file_is_read_to_its_end() -> None:
    """Each read ends with a whole line, and so before its page does: 683 pids are one too many for the first."""
    path = "/proc/self/maps"
    whole = Path(path).read_text(encoding="utf-8").splitlines()
    assert len("\n".join(whole)) > 4096
    assert read_file(path).splitlines()[-1] == whole[-1]


def test_cpu_time_grows(cgroup: Cgroup) -> None:
    """The whole tree's, in seconds."""
    before = cpu_seconds(cgroup)
    if before is None:
        pytest.skip("neither cpu.stat nor cpuacct here")

    def burn() -> None:
        until = time.process_time() + 0.1
        while time.process_time() < until:
            pass

    os.waitpid(born_in(cgroup, burn), 0)
    after = cpu_seconds(cgroup)
    assert after is not None
    assert after - before >= 0.08
