"""`Container(path=…)`: a cgroup where it was said beforehand, as sure to be found, ended and removed as any other."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_cgroup import Container, ContainerError, NotOffered, SpecError, _recover, _station
from pytest_cgroup._backends import cgroup as cgroup_backend
from pytest_cgroup._backends import choose
from pytest_cgroup._backends.cgroup import CgroupBackend
from pytest_cgroup._cgroup import Cgroup
from pytest_cgroup._guard import SWITCH
from pytest_cgroup._host import Host
from pytest_cgroup._ownership import UNSIGNED_MODE, base_of, claim, claimed_for, pointed_to, sign, signpost_name
from pytest_cgroup._process import ProcessId
from pytest_cgroup._recover import NO_RECOVERY, sweep
from pytest_cgroup._spec import Spec
from tests.kernel.contain import DEADLINE_SECONDS, MB
from tests.kernel.forked import ChildDied, forked
from tests.kernel.test_recover import named_by

pytestmark = [
    pytest.mark.requires("cgroup"),
    pytest.mark.usefixtures("given_back", "signed", "no_other_recovery"),
]
SLEEP = ["sleep", "1000"]
_numbers = itertools.count()
#: says its pid and that of what it has started in its container, and stays
_OWNER = """
import os, signal, subprocess, sys
from pytest_cgroup import Container
with Container(path=sys.argv[1]) as container:
    print(os.getpid(), container.popen(["sleep", "1000"], stdout=subprocess.DEVNULL).pid, flush=True)
    signal.alarm(120)
    signal.pause()
"""


@pytest.fixture(scope="module")
def signed(host: Host) -> None:
    """Skip where the kernel keeps no attribute on a cgroup for this user."""
    assert host.placement.session is not None
    if not all(sign(directory) for directory in host.placement.session.directories):
        pytest.skip("this kernel keeps no attribute on a cgroup for this user")


@pytest.fixture
def path() -> str:
    """That nobody else uses."""
    return f"path-of-test-{os.getpid()}-{next(_numbers)}"


def cgroup_of(container: Container) -> Cgroup:
    found: Cgroup = container._life.tree.cgroup  # type: ignore[union-attr]
    return found


def at(path: str) -> Cgroup:
    """What is at *path* below the cgroup that this process was started in."""
    host, _ = _station.station().backend("cgroup")
    session = host.placement.session
    assert session is not None
    return Cgroup(
        session.unified and f"{base_of(session.unified)}/{path}",
        {name: f"{base_of(directory)}/{path}" for name, directory in session.controllers.items()},
    )


def signposts() -> list[str]:
    """In this process's session, in all hierarchies."""
    host, _ = _station.station().backend("cgroup")
    session = host.placement.session
    assert session is not None
    return [f"{one}/{name}" for one in session.directories for name in os.listdir(one) if name.startswith("path-")]


@contextlib.contextmanager
def somebody_elses(path: str) -> Iterator[Cgroup]:
    cgroup = at(path)
    cgroup.make()
    try:
        yield cgroup
    finally:
        cgroup.kill_until_empty(5)
        cgroup.remove()


def test_it_stands_where_it_was_said(path: str) -> None:
    with Container(path=path) as container:
        process = container.popen(SLEEP)
        assert cgroup_of(container).directories == at(path).directories
        memberships = Path(f"/proc/{process.pid}/cgroup").read_text().splitlines()
        assert sum(line.endswith(f"/{path}") for line in memberships) >= len(at(path).directories)
        assert [pointed_to(one) for one in signposts()] == [*at(path).directories]
    process.communicate()
    assert not any(map(os.path.exists, at(path).directories))
    assert signposts() == []


@pytest.mark.requires("memory")
def test_its_limits_hold(path: str) -> None:
    with Container(path=path, memory="32M") as container:
        program = "kept = bytearray(200 << 20)"
        done = container.run([sys.executable, "-c", program])
        assert (done.returncode, done.outcome.ended) == (-9, "oom")
        assert container.limits["memory"] == str(32 * MB)


def test_nothing_may_be_there(path: str) -> None:
    with somebody_elses(path) as cgroup:
        sleeper = subprocess.Popen(SLEEP)
        cgroup.adopt(sleeper.pid)
        with pytest.raises(ContainerError, match="take another name") as refusal:
            Container(path=path).start()
        assert path in str(refusal.value)
        assert sleeper.poll() is None
        assert cgroup.exists
        assert signposts() == []
        sleeper.kill()
        sleeper.wait()


def test_two_at_one_path(path: str) -> None:
    with Container(path=path) as first:
        with pytest.raises(ContainerError, match="take another name"):
            Container(path=path).start()
        assert first.run(["true"]).returncode == 0
    with Container(path=path) as after:
        assert after.run(["true"]).returncode == 0


def test_what_is_above_stays(path: str) -> None:
    with pytest.raises(ContainerError, match=f"{path} is not there: make it first"):
        Container(path=f"{path}/inner").start()
    with somebody_elses(path) as above:
        with Container(path=f"{path}/inner") as container:
            assert container.run(["true"]).returncode == 0
            assert above.child("inner").exists
        assert above.exists
        assert not os.path.exists(f"{above.path}/inner")
    assert signposts() == []


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("/absolute", "is no relative path"),
        ("", "is no relative path"),
        ("a//b", "is no relative path"),
        ("../a", "is no relative path"),
        ("a/.", "is no relative path"),
        ("a%b", "is no relative path"),
        ("a\nb", "is no relative path"),
        ("x" * 251, "is too long"),
        ("a/pytest-cgroup-1", "is a session's"),
        (7, "is no text"),
        ("a\0b", "holds a NUL"),
        ("\ud800", "can't be encoded"),
    ],
)
def test_a_wrong_path(path: str, why: str) -> None:
    with pytest.raises(SpecError, match=why):
        Container(path=path)


def test_it_is_in_no_slice() -> None:
    with pytest.raises(SpecError, match="and slice= each say where"):
        Container(path="a", slice="b")


def test_there_have_to_be_cgroups(path: str) -> None:
    with pytest.raises(NotOffered, match="needs a cgroup") as refusal:
        Container(path=path, backend="process").start()
    assert refusal.value.missing == ("path",)


def test_containers_inside(path: str) -> None:
    """Made by a process that is in it, they stand in it, in each hierarchy."""

    def inside() -> tuple[str, ...]:
        with Container(backend="cgroup") as inner:
            assert inner.run(["true"]).returncode == 0
            found = cgroup_of(inner).directories
        _station.close()
        return found

    with Container(path=path) as container:
        assert [one for one in container.call(inside) if f"/{path}/pytest-cgroup-" not in one] == []


def test_of_a_worker(stage: Cgroup, path: str) -> None:
    """Its session is in its controller's, and the path is not."""

    def controller() -> str:
        stage.adopt(0)
        _station.station().backend("cgroup")

        def worker() -> str:
            with Container(path=path) as container:
                found = cgroup_of(container).path
            _station.close()
            return found

        try:
            return forked(worker)
        finally:
            _station.close()

    assert forked(controller) == f"{stage.path}/{path}"


@pytest.mark.parametrize("by", ["guard", "clean", "next run", "nobody"])
def test_its_owner_is_killed(path: str, by: str) -> None:
    """What ends any other container ends this one; without any of that it survives."""
    environment = {**os.environ, SWITCH: "" if by == "guard" else "1"}
    argv = [sys.executable, "-c", _OWNER, path]
    owner = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)
    assert owner.stdout is not None
    _, pid = map(int, owner.stdout.readline().split())
    left = ProcessId.of(pid)
    assert left is not None
    try:
        owner.kill()
        owner.communicate()
        if by == "nobody":
            time.sleep(0.3)
            assert left.alive
            assert at(path).exists
        if by != "guard":
            environment.pop(NO_RECOVERY, None)
            command = "clean" if by != "next run" else "run"
            argv = [sys.executable, "-m", "pytest_cgroup", command, *(("--", "true") if command == "run" else ())]
            assert subprocess.run(argv, check=False, capture_output=True, env=environment).returncode == 0
        deadline = time.monotonic() + DEADLINE_SECONDS
        while (left.alive or any(map(os.path.exists, at(path).directories))) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not left.alive
        assert not any(map(os.path.exists, at(path).directories))
    finally:
        with contextlib.suppress(OSError):
            os.kill(pid, 9)


@contextlib.contextmanager
def left_by_the_dead(stage: Cgroup, path: str) -> Iterator[tuple[Cgroup, Cgroup, subprocess.Popen[bytes]]]:
    """The session of a dead owner with a signpost, and a process at *path*, which nobody has signed."""
    session = stage.child(named_by(ProcessId(99999999, 1)))
    placed = stage.child(path)
    for cgroup in (session, session.child(signpost_name(path)), placed):
        cgroup.make()
    assert all(map(sign, session.directories))
    sleeper = subprocess.Popen(SLEEP)
    placed.adopt(sleeper.pid)
    try:
        yield session, placed, sleeper
    finally:
        sleeper.kill()
        sleeper.wait()
        placed.kill_until_empty(5)
        if placed.exists:
            placed.remove()


@pytest.mark.parametrize("mode", [UNSIGNED_MODE, 0o700])
def test_its_owner_is_killed_before_it_signs(stage: Cgroup, path: str, mode: int) -> None:
    """The control: what has another mode is nobody's we know."""

    def owner() -> None:
        def killed(directory: str, session: str) -> bool:
            os.kill(os.getpid(), 9)
            return False

        stage.adopt(0)
        backend = choose(Host(scope=False), "cgroup")
        assert isinstance(backend, CgroupBackend)
        patch = pytest.MonkeyPatch()
        patch.setattr(cgroup_backend, "claim", killed)
        patch.setattr(cgroup_backend, "UNSIGNED_MODE", mode)
        backend.create_at(path, Spec())

    with pytest.raises(ChildDied):
        forked(owner)
    placed = stage.child(path)
    assert os.path.exists(placed.path)
    cleaned = sweep(stage.child("the-next"))
    assert (cleaned.left == {}) == (mode == UNSIGNED_MODE)
    assert os.path.exists(placed.path) == (mode != UNSIGNED_MODE)
    placed.remove()


@pytest.mark.parametrize("whose", ["its own", "another's", "nobody's"])
def test_a_signpost_alone_proves_nothing(stage: Cgroup, path: str, whose: str) -> None:
    """It is followed to what is signed with the name of the session that it is in, and to nothing else."""
    with left_by_the_dead(stage, path) as (session, placed, sleeper):
        if whose != "nobody's":
            for directory in placed.directories:
                assert claim(directory, session.path if whose == "its own" else f"{session.path}-2")
        cleaned = sweep(stage.child("the-next"))
        assert not any(map(os.path.exists, session.directories))
        assert (sleeper.poll() is None) == (whose != "its own")
        assert placed.exists == (whose != "its own")
        assert set(cleaned.left) == (set() if whose == "its own" else {*placed.directories})


def test_a_signpost_stays_while_nobody_can_say(stage: Cgroup, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it can't be read whose it is, that is no proof against it; the next one finds it again."""

    def unread(directory: str) -> str:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM), directory)

    with left_by_the_dead(stage, path) as (session, placed, sleeper):
        for directory in placed.directories:
            assert claim(directory, session.path)
        with monkeypatch.context() as patch:
            patch.setattr(_recover, "claimed_for", unread)
            cleaned = sweep(stage.child("the-next"))
        assert {*placed.directories} <= cleaned.left.keys()
        assert (sleeper.poll(), placed.exists, session.exists) == (None, True, True)
        assert sweep(stage.child("the-next")).left == {}
        assert sleeper.wait(DEADLINE_SECONDS) == -9
        assert not any(map(os.path.exists, (*session.directories, *placed.directories)))


def test_who_claims(stage: Cgroup) -> None:
    assert claimed_for(stage.path) == ""
    assert claim(stage.path, "/no/session")
    assert claimed_for(stage.path) == ""
    with pytest.raises(FileNotFoundError):
        claimed_for(f"{stage.path}/none")
