"""What a dead session left is ended; what lives, what is another's and what is nobody's we know is not touched."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pytest_cgroup._cgroup import Cgroup
from pytest_cgroup._host import Host
from pytest_cgroup._orphans import Cleaned
from pytest_cgroup._ownership import COOKIE, LEAF, Owner, is_session, owner_of, session_name, sign, this_process
from pytest_cgroup._placement import Placement
from pytest_cgroup._process import ProcessId
from pytest_cgroup._recover import clean, sweep, sweep_processes, trees_of
from tests.kernel.contain import identity
from tests.kernel.forked import ORDINARY, forked

pytestmark = [pytest.mark.requires("cgroup"), pytest.mark.usefixtures("no_other_recovery")]
attributes = pytest.mark.skipif(not hasattr(os, "listxattr"), reason="Python 3.11 has no attributes with musl")
#: no process of this kernel has had it: it is above the highest pid
NOBODY = ProcessId(99999999, 1)


@pytest.fixture
def stage(stage: Cgroup) -> Iterator[Cgroup]:
    """What a test leaves in it ends."""
    yield stage
    stage.kill_until_empty(10)


@pytest.fixture
def signed(host: Host) -> None:
    """Skip where the kernel keeps no attribute on a cgroup for this user."""
    assert host.placement.session is not None
    if not sign(host.placement.session.path):
        pytest.skip("this kernel keeps no attribute on a cgroup (user.* since 5.7)")


def sleeper(cgroup: Cgroup) -> ProcessId:
    """A process in *cgroup*, executed: a forked one would hold the pipes that its parent is waited for by."""
    pid = os.posix_spawn("/bin/sleep", ["sleep", "120"], {})
    cgroup.adopt(pid)
    return identity(pid)


def named_by(process: ProcessId) -> str:
    """The session's name, had it been *process* that gave it."""
    return session_name(Owner(process, this_process().namespaces))


def end(process: ProcessId) -> None:
    """Kill and reap a child of ours."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGKILL)
    os.waitpid(process.pid, 0)


def live_in(stage: Cgroup) -> tuple[Placement, Cgroup, Cgroup, ProcessId]:
    """In a child: a session that is opened in *stage*, its cgroup, a container, and a process in that."""
    stage.adopt(0)
    placement = Placement(scope=False)
    placement.open()
    session = placement.session
    assert session is not None
    container = session.child("1-test")
    container.make()
    return placement, session, container, sleeper(container)


def die_in(stage: Cgroup, prepare: Callable[[Cgroup], object] = lambda container: None) -> tuple[Cgroup, ProcessId]:
    """The session of an owner that died, and a process that it left in a container."""

    def owner() -> tuple[str | None, dict[str, str], ProcessId]:
        _, session, container, left = live_in(stage)
        prepare(container)
        return session.unified, session.controllers, left  # and now it dies, and has closed nothing

    unified, controllers, left = forked(owner)
    return Cgroup(unified, controllers), left


def outside_of_sessions(path: str) -> str:
    """A cgroup beside the outermost session that *path* is in: what lies in a living one is left to that."""
    while any(is_session(name) for name in path.split("/")):
        path = os.path.dirname(path)
    return f"{path}/somewhere-{os.getpid()}"


def swept(stage: Cgroup) -> Cleaned:
    """What a session that comes to *stage* next would do."""
    return sweep(stage.child("the-next"))


@pytest.mark.usefixtures("signed")
def test_a_dead_session_is_ended(stage: Cgroup) -> None:
    session, left = die_in(stage)
    assert (session.exists, left.alive) == (True, True)
    cleaned = swept(stage)
    assert (session.exists, left.alive) == (False, False)
    assert [*cleaned.killed] == [left.pid]
    assert sorted(cleaned.removed) == sorted(session.directories)
    assert cleaned.left == {}
    assert swept(stage) == Cleaned()


@pytest.mark.usefixtures("signed")
def test_with_what_the_test_made_in_it(stage: Cgroup) -> None:
    def prepare(container: Cgroup) -> None:
        inner = container.child("inner")
        inner.make()
        inner.child("empty").make()
        sleeper(inner)
        container.freeze()

    session, left = die_in(stage, prepare)
    cleaned = swept(stage)
    assert len(cleaned.killed) == 2
    assert (session.exists, left.alive, cleaned.left) == (False, False, {})


@pytest.mark.usefixtures("signed")
def test_what_lives_is_not_touched(stage: Cgroup) -> None:
    def owner() -> bool:
        placement, session, container, left = live_in(stage)
        found = forked(lambda: swept(stage)) == Cleaned() and left.alive and session.exists
        end(left)
        container.remove()
        placement.close()
        return found

    assert forked(owner)


@pytest.mark.usefixtures("signed")
def test_what_lives_in_a_dead_one_is_not_touched(stage: Cgroup) -> None:
    """A worker of pytest-xdist makes its session in the controller's on cgroup v2."""
    outer, left = die_in(stage)
    inner = outer.child(session_name(this_process()))
    inner.make()
    for directory in inner.directories:
        sign(directory)
    mine = sleeper(inner)
    cleaned = swept(stage)
    assert (left.alive, mine.alive, inner.exists) == (False, True, True)
    assert set(cleaned.left) == set(outer.directories)
    end(mine)
    inner.remove()
    assert swept(stage).left == {}
    assert not outer.exists


@attributes
@pytest.mark.usefixtures("signed")
@pytest.mark.parametrize("how", ["unsigned", "garbage", "signed"])
def test_a_name_proves_nothing(stage: Cgroup, how: str) -> None:
    """The last one is the negative control: signed, and of this namespace, it goes."""
    made = stage.child(named_by(NOBODY))
    container = made.child("1-test")
    made.make()
    container.make()
    mine = sleeper(container)
    try:
        for directory in made.directories:
            if how != "unsigned":
                assert sign(directory)
                if how != "signed":
                    name = next(name for name in os.listxattr(directory) if name.endswith(".pytest-cgroup"))
                    os.setxattr(directory, name, b"[]\xff")
        told = swept(stage)
        assert made.exists == mine.alive == (how != "signed")
        assert set(told.left) == (set() if how == "signed" else set(made.directories))
        assert how == "signed" or told.left[made.path] == "nothing proves that pytest-cgroup made it"
    finally:
        end(mine)


@pytest.mark.parametrize("what", ["begun", "by accident", "alive", "a child", "a process"])
def test_an_owner_that_died_before_it_signed(stage: Cgroup, what: str) -> None:
    """For what is empty the name is enough, if its checksum is right; for anything else it is not."""
    name = named_by(identity(os.getpid()) if what == "alive" else NOBODY)
    made = stage.child(name if what != "by accident" else f"{name[:-8]}00000000")
    made.make()
    mine = sleeper(made) if what == "a process" else None
    if what == "a child":
        made.child("1-test").make()
    told = swept(stage)
    if what == "begun":
        assert (sorted(told.removed), told.left, made.exists) == (sorted(made.directories), {}, False)
    else:
        assert made.exists
        assert told.left == dict.fromkeys(made.directories, "nothing proves that pytest-cgroup made it")
        if mine:
            assert mine.alive
            end(mine)
        made.remove()


@contextlib.contextmanager
def another_pid_namespace() -> Iterator[tuple[int, int]]:
    """Its inode, and the pid that a process of it has there; when this is left, nobody is in it."""
    user = () if os.geteuid() == 0 else ("--user",)
    command = ["unshare", *user, "--pid", "--fork", "--kill-child", "sh", "-c", "sleep 120 & echo $!; wait"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as outer:
        assert outer.stdout is not None
        inner = int(outer.stdout.readline())
        init = int(Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text())
        yield os.stat(f"/proc/{init}/ns/pid").st_ino, inner
        os.kill(init, signal.SIGKILL)


@pytest.mark.requires("pid_ns")
@attributes
@pytest.mark.usefixtures("signed")
def test_an_owner_in_another_pid_namespace(stage: Cgroup) -> None:
    """It may live as long as a process has its number there; with its init it is dead, and so is its guard."""
    _, time_ns = this_process().namespaces
    sees_all = os.stat("/proc/self/ns/pid").st_ino == 0xEFFFFFFC  # PROC_PID_INIT_INO
    with another_pid_namespace() as (pid_ns, inner):
        made = stage.child(named_by(ProcessId(inner, 1)))
        made.make()
        container = made.child("1-test")
        container.make()
        left = sleeper(container)
        for directory in made.directories:
            assert sign(directory)
            name = next(name for name in os.listxattr(directory) if name.endswith(".pytest-cgroup"))
            os.setxattr(directory, name, json.dumps({"namespaces": [pid_ns, time_ns], "enabled": []}).encode())
        why = "its owner is in another pid or time namespace, and may live"
        assert swept(stage).left == dict.fromkeys(made.directories, why)
        assert left.alive
        assert Owner(ProcessId(inner + 1, 1), (pid_ns, time_ns)).is_dead is (True if sees_all else None)
    if sees_all:
        assert swept(stage).left == {}
    assert (made.exists, left.alive) == (not sees_all, not sees_all)
    end(left)


@attributes
@pytest.mark.usefixtures("signed")
@pytest.mark.parametrize("proven", [True, False])
def test_a_signature_speaks_for_all_hierarchies(stage: Cgroup, proven: bool) -> None:
    """Pytest, or who recovered, was killed between two of them."""
    session, left = die_in(stage)
    if len(session.directories) == 1:
        pytest.skip("a matter of several hierarchies; this host has one")
    for directory in session.directories[proven:]:
        for name in os.listxattr(directory):
            os.removexattr(directory, name)
    cleaned = swept(stage)
    assert (session.exists, left.alive) == (not proven, not proven)
    assert {*cleaned.left} == (set() if proven else {*session.directories})
    if not proven:
        assert sign(session.path)
        assert swept(stage).left == {}
    assert not session.exists


@pytest.mark.usefixtures("signed")
def test_an_unsigned_one_of_a_session_that_lives(stage: Cgroup) -> None:
    me = session_name(this_process())
    made = stage.child(me)
    made.make()
    try:
        assert sign(made.path)
        assert swept(stage) == Cleaned()
        assert made.exists
    finally:
        made.remove()


@pytest.mark.usefixtures("signed")
def test_what_is_signed_goes_last(stage: Cgroup) -> None:
    """So that it is still known whose the rest is if who cleans up is killed as well."""
    session, _ = die_in(stage)
    assert swept(stage).removed == [*reversed(session.directories)]


@pytest.mark.requires("root")
@pytest.mark.usefixtures("signed")
def test_another_users_is_left_and_reported(stage: Cgroup) -> None:
    session, left = die_in(stage)
    for directory in session.directories:
        os.chown(directory, ORDINARY, ORDINARY)
    assert swept(stage).left == dict.fromkeys(session.directories, f"it belongs to uid {ORDINARY}")
    assert left.alive
    for directory in session.directories:
        os.chown(directory, 0, 0)
    assert swept(stage).left == {}
    assert not left.alive


@pytest.mark.usefixtures("signed")
def test_two_at_once(stage: Cgroup) -> None:
    for _ in range(10):
        session, left = die_in(stage)
        reader, writer = os.pipe()
        pids = []
        for _ in range(4):
            if (pid := os.fork()) == 0:
                status = 1
                try:
                    os.close(writer)
                    os.read(reader, 1)  # the end of file starts them all
                    assert swept(stage).left == {}
                    status = 0
                except BaseException:
                    os.write(2, traceback.format_exc().encode())
                finally:
                    os._exit(status)
            pids.append(pid)
        os.close(reader)
        os.close(writer)
        assert [os.waitpid(pid, 0)[1] for pid in pids] == [0, 0, 0, 0]
        assert (session.exists, left.alive) == (False, False)


@pytest.mark.usefixtures("signed", "v2")
def test_what_no_test_started_goes_back(stage: Cgroup) -> None:
    """On cgroup v2 pytest stands in a leaf of its session, with what it starts: that is not in any container."""
    server = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        session, left = die_in(
            stage, lambda container: Cgroup(f"{Path(container.path).parent}/{LEAF}").adopt(server.pid)
        )
        assert server.pid in session.child(LEAF).pids()
        enabled = Path(f"{stage.path}/cgroup.subtree_control")
        assert enabled.read_text().split() != []
        cleaned = swept(stage)
        assert (session.exists, left.alive, cleaned.left) == (False, False, {})
        assert stage.pids() == [server.pid]
        assert enabled.read_text().split() == []
    finally:
        server.communicate(b"\n")


@pytest.mark.usefixtures("signed")
def test_clean_finds_it_wherever_it_is(stage: Cgroup, host: Host) -> None:
    above = host.placement.session
    assert above is not None
    somewhere = Cgroup(
        above.unified and outside_of_sessions(above.unified),
        {name: outside_of_sessions(path) for name, path in above.controllers.items()},
    )
    somewhere.make()
    try:
        session, left = die_in(somewhere)
        assert swept(stage) == Cleaned()
        cleaned = clean()
        assert left.pid in cleaned.killed
        assert set(session.directories) <= set(cleaned.removed)
        assert (session.exists, left.alive) == (False, False)
    finally:
        somewhere.kill_until_empty(10)
        somewhere.remove()


def test_each_hierarchy_by_itself(host: Host) -> None:
    session = host.placement.session
    assert session is not None
    assert [tree.path for tree in trees_of(session)] == [*session.directories]


@pytest.mark.parametrize("whose", ["dead", "mine", "none"])
def test_processes_without_a_cgroup(whose: str) -> None:
    """Only what was executed in the container of an owner that is dead for certain."""
    me = this_process()
    nobody = ProcessId(99_999_999, 1)
    owner = {
        "dead": str(Owner(nobody, me.namespaces)),
        "mine": str(me),
        "none": "1-1@x",
    }[whose]
    code = "import os; os.fork(); input()"
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, env={**os.environ, COOKIE: owner}, start_new_session=True
    )
    try:
        while len(children := Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()) != 1:
            os.sched_yield()
        assert str(owner_of(child.pid)) == (owner if whose != "none" else "None")
        cleaned = sweep_processes()
        killed = {child.pid, int(children[0])}
        assert killed & cleaned.killed.keys() == (killed if whose == "dead" else set())
        assert (child.poll() is None) == (whose != "dead")
    finally:
        child.kill()
        child.communicate()
        for pid in children:
            if (still := ProcessId.of(int(pid))) and still.alive:
                os.kill(still.pid, signal.SIGKILL)


@contextlib.contextmanager
def marked(mark: str, *argv: str) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A process that was executed with the *mark* of a session, and the pids that it told of."""
    env = {**os.environ, COOKIE: mark}
    command = [sys.executable, "-c", *argv]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
    told: list[int] = []
    try:
        assert child.stdout is not None
        told += map(int, child.stdout.readline().split())
        yield child, told
    finally:
        for pid in [child.pid, *told]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        child.communicate()


@pytest.mark.parametrize("mark", ["9" * 5000 + "-1@1-1", f"{99_999_999}-1@1-" + "9" * 5000, "\u0661-1@1-1"])
def test_a_mark_that_no_session_makes(mark: str) -> None:
    """Anybody can give himself one; who reads them all is not to stumble over it."""
    with marked(mark, "print(); input()") as (child, _):
        assert owner_of(child.pid) is None
        assert child.pid not in sweep_processes().killed
        assert child.poll() is None


_ABOVE = """
import os, signal, sys
child = os.fork()
if child == 0:
    os.execve("/bin/sleep", ["sleep", "120"], {})
print(child, flush=True)
if sys.argv[1] != "0":
    os.setgroups([])
    os.setresgid(*[int(sys.argv[1])] * 3)
    os.setresuid(*[int(sys.argv[1])] * 3)
if sys.argv[2] == "executed":
    os.execv("/bin/sleep", ["sleep", "120"])
signal.pause()
"""


@pytest.mark.requires("root")
@pytest.mark.parametrize("how", ["executed", "undumpable"])
@pytest.mark.parametrize("uid", [0, ORDINARY])
def test_a_mark_speaks_for_its_own_user(uid: int, how: str) -> None:
    """A user may stand above who is not his to kill: as a subreaper above what sudo(8) started.

    The mark itself is as good as a dead session's own, which had a test run as that user. The control is root's.
    """
    dead = str(Owner(ProcessId(99_999_999, 1), this_process().namespaces))
    with marked(dead, _ABOVE, str(uid), how) as (child, [below]):
        name = "sleep" if how == "executed" else "python"
        deadline = time.monotonic() + 30
        while not (sleeps(child.pid, name) and sleeps(below, "sleep")):
            assert time.monotonic() < deadline
            os.sched_yield()
        inner = identity(below)
        cleaned = sweep_processes()
        assert child.pid in cleaned.killed
        assert (below in cleaned.killed) == (not inner.alive) == (uid == 0)


def sleeps(pid: int, name: str) -> bool:
    """Whether it has come to where it stays, under that name."""
    text = Path(f"/proc/{pid}/stat").read_text()
    return f"({name}" in text and text.rpartition(")")[2].split()[0] == "S"


def test_a_name_is_shown_as_it_may_be() -> None:
    """A name may hold what a terminal, or a CI, takes for a command."""
    dead = str(Owner(ProcessId(99_999_999, 1), this_process().namespaces))
    code = "open('/proc/self/comm', 'w').write('x\\n::error::y'); print(flush=True); input()"
    with marked(dead, code) as (child, _):
        cleaned = sweep_processes()
        assert cleaned.killed[child.pid] == "x\\n::error::y"
