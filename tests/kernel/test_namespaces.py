"""Namespaces on the real kernel: each kind as root and, through a user namespace, as an ordinary user."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from pytest_cgroup import _namespaces
from pytest_cgroup import _syscalls as sc
from pytest_cgroup._namespaces import (
    Namespaces,
    drop_privileges,
    enter_user_namespace,
    rejoin_pid,
    set_up,
    unshare_pid,
)
from pytest_cgroup._spec import merge
from pytest_cgroup.exceptions import ContainerError
from tests.conftest import not_offered
from tests.kernel.forked import (
    DEADLINE_SECONDS,
    ORDINARY,
    ChildDied,
    Who,
    become_ordinary,
    forked,
    mountinfo,
    namespace,
    refusal,
)

T = TypeVar("T")
"".encode("idna")  # loaded for socket's sake: the ordinary user may not be able to read this Python's library
KINDS = {"mount": "mnt", "net": "net", "ipc": "ipc", "uts": "uts", "cgroup": "cgroup", "time": "time"}


def only(kind: str) -> Namespaces:
    asked: dict[str, Any] = {kind: True}
    return Namespaces(**asked)


# --- each kind ---


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=pytest.mark.requires(f"{kind}_ns")) for kind in KINDS])
def test_only_the_kind_asked_for_is_new(who: Who, kind: str) -> None:
    shorts = [short for short in KINDS.values() if os.path.exists(f"/proc/self/ns/{short}")]
    outside = {short: namespace(short) for short in shorts}
    found = who.inside(only(kind), lambda: {short: namespace(short) for short in shorts})
    assert {short for short in shorts if found[short] != outside[short]} == {KINDS[kind]}


def test_nothing_asked_changes_nothing(who: Who) -> None:
    outside = {short: namespace(short) for short in ("mnt", "net", "ipc", "uts", "cgroup")}
    assert who.inside(Namespaces(), lambda: {short: namespace(short) for short in outside}) == outside


def pids_in_proc() -> list[int]:
    return sorted(int(name) for name in os.listdir("/proc") if name.isdigit())


@pytest.mark.requires("pid_ns")
def test_proc_shows_only_the_inside(who: Who) -> None:
    def look() -> tuple[list[int], int, str]:
        return pids_in_proc(), os.getpid(), os.readlink("/proc/self")

    assert who.inside(Namespaces(pid=True, new_proc=True), look) == ([1, 2], 2, "2")


def test_without_a_new_proc_the_outside_shows(who: Who) -> None:
    """The control of the test above: the pid namespace alone hides nothing."""
    pids, pid = who.inside(Namespaces(pid=True), lambda: (pids_in_proc(), os.getpid()))
    assert os.getpid() in pids
    assert pid == 2


def kill_self() -> None:
    signal.signal(signal.SIGSEGV, signal.SIG_DFL)  # pytest's faulthandler has a handler
    os.kill(os.getpid(), signal.SIGSEGV)


def test_pid_2_can_crash_and_pid_1_can_not(who: Who) -> None:
    def as_pid_1() -> str:
        assert os.getpid() == 1
        kill_self()
        return "survived"

    def as_pid_2() -> int:
        try:
            forked(kill_self)
        except ChildDied as died:
            return os.waitstatus_to_exitcode(died.args[0])
        return 0

    def as_first_child(function: Callable[[], T]) -> T:
        who.enter()
        unshare_pid()
        return forked(function)

    assert forked(lambda: as_first_child(as_pid_1)) == "survived"
    assert forked(lambda: as_first_child(as_pid_2)) == -signal.SIGSEGV


def test_a_second_pid_namespace_needs_the_way_back(who: Who) -> None:
    def first() -> None:
        who.enter()
        unshare_pid()
        unshare_pid()

    with pytest.raises(ContainerError) as caught:
        forked(first)
    assert (caught.value.errno, caught.value.operation) == (errno.EINVAL, "unshare pid")


@pytest.mark.requires("root")
def test_pid_namespaces_one_after_the_other() -> None:
    def first() -> tuple[list[int], bool]:
        seen = []
        for _ in range(3):
            unshare_pid()
            seen.append(forked(os.getpid))
            rejoin_pid()
        return seen, forked(os.getppid) == os.getpid()

    assert forked(first) == ([1, 1, 1], True)


@pytest.mark.usefixtures("user_namespaces")
def test_from_a_user_namespace_there_is_no_way_back() -> None:
    def first() -> None:
        become_ordinary()
        enter_user_namespace()
        unshare_pid()
        rejoin_pid()

    with pytest.raises(ContainerError, match="can't return") as caught:
        forked(first)
    assert caught.value.errno == errno.EPERM


def test_loopback_works_and_is_alone(who: Who) -> None:
    with socket.create_server(("127.0.0.1", 0)) as outside:
        port = outside.getsockname()[1]

        def talk() -> tuple[bytes, list[str], int | None]:
            server = socket.create_server(("127.0.0.1", 0))
            client = socket.create_connection(server.getsockname(), timeout=DEADLINE_SECONDS)
            client.sendall(b"hello")
            heard = server.accept()[0].recv(5)
            names = [
                name for _, name in socket.if_nameindex() if not re.match("(sit|tunl|ip6tnl|gre|ip_vti|erspan)", name)
            ]
            return heard, names, refusal(lambda: socket.create_connection(("127.0.0.1", port), timeout=10))

        assert who.inside(Namespaces(net=True), talk) == (b"hello", ["lo"], errno.ECONNREFUSED)
        assert forked(lambda: refusal(lambda: socket.create_connection(("127.0.0.1", port), timeout=10))) is None


@pytest.mark.requires("uts_ns")
def test_hostname_stays_inside(who: Who) -> None:
    before = socket.gethostname()
    assert who.inside(Namespaces(hostname="inside.example"), socket.gethostname) == "inside.example"
    assert socket.gethostname() == before


@pytest.mark.requires("uts_ns")
def test_a_hostname_too_long_is_refused(who: Who) -> None:
    with pytest.raises(ContainerError, match="sethostname") as caught:
        who.inside(Namespaces(hostname="x" * 65), socket.gethostname)
    assert caught.value.errno == errno.EINVAL


@pytest.fixture
def shared_memory() -> Iterator[int]:
    """The id of a System V shared memory segment."""
    if shutil.which("ipcmk") is None:
        pytest.skip("ipcmk (util-linux) is not installed")
    run = subprocess.run(["ipcmk", "-M", "4096"], capture_output=True, text=True, check=True)
    number = re.findall(r"\d+", run.stdout)[-1]
    yield int(number)
    subprocess.run(["ipcrm", "-m", number], check=True)


def segments() -> list[int]:
    lines = Path("/proc/sysvipc/shm").read_text().splitlines()[1:]
    return [int(line.split()[1]) for line in lines]


@pytest.mark.requires("ipc_ns")
def test_ipc_of_the_outside_is_not_seen(who: Who, shared_memory: int) -> None:
    assert shared_memory in forked(segments)
    assert who.inside(Namespaces(ipc=True), segments) == []


@pytest.fixture
def own_cgroup() -> Iterator[Path | None]:
    """A cgroup below the one that we are in, in any hierarchy; None if none can be made, as for many users."""
    membership = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    for line in mountinfo().splitlines():
        left, _, right = line.partition(" - ")
        root, point = left.split()[3:5]
        kind, _, options = right.split()
        for number, controllers, path in membership:
            if kind == ("cgroup2" if number == "0" else "cgroup") and set(controllers.split(",")) - {""} <= set(
                options.split(",")
            ):
                directory = Path(point, path.removeprefix(root).strip("/"), f"namespace-test-{os.getpid()}")
                try:
                    directory.mkdir()
                except OSError:
                    continue
                yield directory
                directory.rmdir()
                return
    yield None


@pytest.mark.requires("cgroup_ns")
def test_the_own_cgroup_is_the_root_that_is_seen(who: Who, own_cgroup: Path | None) -> None:
    def paths() -> set[str]:
        return {line.split(":", 2)[2] for line in Path("/proc/self/cgroup").read_text().splitlines()}

    def first() -> tuple[set[str], set[str]]:
        if own_cgroup is not None:
            (own_cgroup / "cgroup.procs").write_text("0")
        before = paths()
        who.enter()
        set_up(Namespaces(cgroup=True))
        return before, paths()

    before, after = forked(first)
    if before == {"/"}:
        pytest.skip("pytest is in the root cgroup and may make none below")
    assert after == {"/"}


# --- everything ---


EVERYTHING = Namespaces(
    pid=True, net=True, mount=True, ipc=True, uts=True, cgroup=True, new_proc=True, private_tmp=True, hostname="inside"
)


@pytest.mark.requires("pid_ns", "uts_ns")
def test_everything_at_once_leaves_the_host_as_it_was(who: Who) -> None:
    before = mountinfo(), socket.gethostname(), forked(segments)
    assert who.inside(EVERYTHING, lambda: (os.getpid(), socket.gethostname())) == (2, "inside")
    assert (mountinfo(), socket.gethostname(), forked(segments)) == before


def test_no_descriptor_is_left_open(who: Who, place: Path) -> None:
    def descriptors() -> list[str]:
        return sorted(os.listdir("/proc/self/fd"))

    def first() -> tuple[list[str], list[str]]:
        before = descriptors()
        who.enter()
        if who.is_root:
            enter_user_namespace()
        set_up(Namespaces(net=True, private_tmp=True, hidden=("/etc",), keep=(str(place),)))
        return before, descriptors()

    before, after = forked(first)
    assert before == after


# --- what fails, and what is said then ---


@pytest.mark.usefixtures("user_namespaces")
@pytest.mark.requires("root")
def test_a_masked_proc_is_explained() -> None:
    """A container's /proc has mounts over some of its files: a user namespace may not look behind them."""

    def masked(who: Who) -> list[int]:
        sc.unshare(sc.CLONE_NEWNS)
        sc.mount(None, "/", None, sc.MS_REC | sc.MS_PRIVATE)
        sc.mount("/dev/null", "/proc/uptime", None, sc.MS_BIND)
        return who.inside(Namespaces(pid=True, new_proc=True), pids_in_proc)

    with pytest.raises(ContainerError, match="masked") as caught:
        forked(lambda: masked(Who("user")))
    assert (caught.value.errno, caught.value.path) == (errno.EPERM, "/proc")
    assert forked(lambda: masked(Who("root"))) == [1, 2]


@pytest.mark.usefixtures("user_namespaces")
@pytest.mark.requires("root")
def test_a_new_proc_takes_over_what_a_user_namespace_may_not_change() -> None:
    def outer() -> list[int]:
        sc.unshare(sc.CLONE_NEWNS)
        sc.mount(None, "/", None, sc.MS_REC | sc.MS_PRIVATE)
        sc.mount(None, "/proc", None, sc.MS_REMOUNT | sc.MS_BIND | sc.MS_NOATIME)
        return Who("user").inside(Namespaces(pid=True, new_proc=True), pids_in_proc)

    assert forked(outer) == [1, 2]


def write_sysctl(name: str, value: str) -> None:
    Path("/proc/sys/user", name).write_text(value)


@pytest.fixture
def sysctls() -> None:
    """Skip where nobody may write them, as in a container."""
    if os.statvfs("/proc/sys/user").f_flag & os.ST_RDONLY:
        not_offered("sysctls", "/proc/sys is mounted read-only")


@pytest.mark.usefixtures("user_namespaces", "sysctls")
@pytest.mark.parametrize("uid", [None, 0])
def test_refused_user_namespaces_are_explained(who: Who, uid: int | None) -> None:
    def first() -> None:
        who.enter()
        if who.is_root:
            enter_user_namespace()
        write_sysctl("max_user_namespaces", "0")
        enter_user_namespace(uid=uid, gid=uid)

    with pytest.raises(ContainerError, match=r"user\.max_user_namespaces is 0") as caught:
        forked(first)
    assert (caught.value.errno, caught.value.operation) == (errno.ENOSPC, "unshare user")


@pytest.mark.usefixtures("user_namespaces", "sysctls")
@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.requires(f"{kind}_ns")) for kind in ("pid", *KINDS)]
)
def test_a_refused_namespace_is_named(who: Who, kind: str) -> None:
    short = KINDS.get(kind, kind)

    def first() -> None:
        who.enter()
        if who.is_root:
            enter_user_namespace()
        write_sysctl(f"max_{short}_namespaces", "0")
        if kind == "pid":
            unshare_pid()
        else:
            set_up(only(kind))

    with pytest.raises(ContainerError, match=rf"user\.max_{short}_namespaces is 0") as caught:
        forked(first)
    assert (caught.value.errno, caught.value.operation) == (errno.ENOSPC, f"unshare {kind}")


@pytest.mark.parametrize("ns", [Namespaces(net=True), Namespaces(private_tmp=True), Namespaces(hostname="x")])
def test_without_privilege_the_way_out_is_named(ns: Namespaces) -> None:
    def first() -> None:
        become_ordinary()
        set_up(ns)

    with pytest.raises(ContainerError, match="root") as caught:
        forked(first)
    assert caught.value.errno == errno.EPERM


@pytest.mark.requires("root")
def test_a_loopback_that_stays_down_is_an_error() -> None:
    """CAP_SYS_ADMIN unshares, CAP_NET_ADMIN is needed too: what `docker run --cap-add SYS_ADMIN` does not give."""
    if shutil.which("setpriv") is None:
        pytest.skip("setpriv (util-linux) is not installed")
    code = "from pytest_cgroup._namespaces import Namespaces, set_up; set_up(Namespaces(net=True))"
    package = str(Path(_namespaces.__file__).parents[1])
    argv = ["setpriv", "--bounding-set=-net_admin", sys.executable, "-c", code]
    run = subprocess.run(argv, env={"PYTHONPATH": package}, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert "ContainerError: can't bring up the loopback device (SIOCSIFFLAGS lo)" in run.stderr
    assert "[EPERM]. It takes CAP_NET_ADMIN" in run.stderr


# --- the user namespace ---


@pytest.mark.usefixtures("user_namespaces")
@pytest.mark.requires("root")
@pytest.mark.parametrize("sigchld", [signal.SIG_DFL, signal.SIG_IGN])
def test_root_keeps_every_id_in_a_user_namespace(sigchld: signal.Handlers) -> None:
    def first() -> tuple[object, ...]:
        signal.signal(signal.SIGCHLD, sigchld)
        before = Path("/proc/self/uid_map").read_text().split(), namespace("user"), os.getresuid()
        enter_user_namespace()
        after = Path("/proc/self/uid_map").read_text().split(), namespace("user"), os.getresuid()
        os.setgroups([ORDINARY])
        drop_privileges(ORDINARY, ORDINARY)
        return before, after, os.getresuid(), os.getgroups(), sc.effective_capabilities()

    before, after, ids, groups, capabilities = forked(first)
    assert before[0][2] == after[0][2]  # type: ignore[index]
    assert before[1] != after[1]  # type: ignore[index]
    assert before[2] == after[2] == (0, 0, 0)  # type: ignore[index]
    assert (ids, groups, capabilities) == ((ORDINARY,) * 3, [ORDINARY], 0)


@pytest.mark.usefixtures("user_namespaces")
def test_a_user_keeps_the_own_id_alone_and_can_give_up_the_capabilities(place: Path) -> None:
    unreadable = place / "unreadable"

    def first() -> tuple[object, ...]:
        become_ordinary()
        unreadable.write_text("x")
        unreadable.chmod(0)
        ids = os.getuid(), os.getgid()
        enter_user_namespace()
        after = os.getuid(), os.getgid()
        uid_map = Path("/proc/self/uid_map").read_text().split()
        powerful = sc.has_capabilities(sc.CAP_SYS_ADMIN), refusal(unreadable.read_text)
        sc.clear_capabilities()
        return ids == after, uid_map == [str(ids[0]), str(ids[0]), "1"], powerful, refusal(unreadable.read_text)

    assert forked(first) == (True, True, (True, None), errno.EACCES)


@pytest.mark.usefixtures("user_namespaces")
def test_a_user_can_be_root_in_a_user_namespace() -> None:
    def first() -> tuple[int, int]:
        become_ordinary()
        enter_user_namespace(uid=0, gid=0)
        return os.getuid(), os.getgid()

    assert forked(first) == (0, 0)


# --- what is asked ---


def test_what_is_asked_brings_what_it_needs() -> None:
    assert Namespaces().any is False
    assert Namespaces(keep=("/tmp/x",)).any is False
    for ns in (Namespaces(new_proc=True), Namespaces(private_tmp=True), Namespaces(readonly=("/",))):
        assert ns.clone_flags == sc.CLONE_NEWNS
    assert Namespaces(hostname="x").clone_flags == sc.CLONE_NEWUTS
    assert Namespaces(pid=True, user=True).clone_flags == sc.CLONE_NEWPID | sc.CLONE_NEWUSER


def test_from_spec() -> None:
    spec = merge({"pid_ns": True, "hostname": "x", "readonly": ("/usr",), "private_tmp": True}, where="here")
    ns = Namespaces.from_spec(spec, keep=["/tmp/x"])
    assert (ns.pid, ns.new_proc, ns.mount, ns.uts, ns.net) == (True, True, True, True, False)
    assert (ns.readonly, ns.keep, ns.hostname) == (("/usr",), ("/tmp/x",), "x")
    assert _namespaces.Namespaces.from_spec(merge(where="here")).any is False
