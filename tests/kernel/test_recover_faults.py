"""A call of the recovery's fails: it ends, no living session is touched, what is left is told, and the next ends it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pytest_cgroup._cgroup import Cgroup
from pytest_cgroup._host import Host
from pytest_cgroup._kernel_files import words, write_file
from pytest_cgroup._orphans import Cleaned
from pytest_cgroup._ownership import claim, session_name, sign, signpost_name, this_process
from pytest_cgroup._process import ProcessId
from pytest_cgroup._recover import clean, sweep
from pytest_cgroup.exceptions import CgroupError
from tests.faults.injector import install
from tests.faults.runs import Fault, faults_of, one_of_each
from tests.faults.test_faults import SWITCH_ALL
from tests.kernel.contain import identity
from tests.kernel.forked import forked
from tests.kernel.test_recover import die_in, end, outside_of_sessions, sleeper

pytestmark = [pytest.mark.requires("cgroup"), pytest.mark.usefixtures("no_other_recovery")]
#: so many, where not all are asked for
_MOST = 40
_PATH = "placed"


@pytest.fixture
def place(host: Host) -> Iterator[Cgroup]:
    """A cgroup that is in no session."""
    above = host.placement.session
    assert above is not None
    if not sign(above.path):
        pytest.skip("this kernel keeps no attribute on a cgroup (user.* since 5.7)")
    v1 = {name: outside_of_sessions(path) for name, path in above.controllers.items()}
    somewhere = Cgroup(above.unified and outside_of_sessions(above.unified), v1)
    somewhere.make()
    yield somewhere
    somewhere.kill_until_empty(10)
    somewhere.remove()


@pytest.fixture
def living(place: Cgroup) -> Iterator[tuple[Cgroup, ProcessId]]:
    """A session of this process's, and who is in it."""
    session = place.child(session_name(this_process()))
    session.make()
    for directory in session.directories:
        assert sign(directory)
    pid = os.posix_spawn("/bin/sleep", ["sleep", "3600"], {})  # all faults take minutes
    session.adopt(pid)
    inside = identity(pid)
    yield session, inside
    end(inside)
    session.remove()


def take_back(place: Cgroup) -> None:
    """What *place* gives to its children: nobody else could go there. Taking it back is a call that may have failed."""
    if place.unified:
        for name in words(f"{place.unified}/cgroup.subtree_control"):
            write_file(f"{place.unified}/cgroup.subtree_control", f"-{name}")


def put_beside(container: Cgroup, place: Cgroup) -> None:
    """A container of the same session, with a path of its own and a process in it."""
    session = place.child(os.path.basename(os.path.dirname(container.path)))
    placed = place.child(_PATH)
    for cgroup in (session.child(signpost_name(_PATH)), placed):
        cgroup.make()
    assert all(claim(directory, session.path) for directory in placed.directories)
    sleeper(placed)


def in_place(place: Cgroup, dead: Cgroup) -> bool:
    """Whether anything is left of the session *dead*."""
    return any(map(os.path.exists, (*dead.directories, *place.child(_PATH).directories)))


def recover(how: str, place: Cgroup) -> Cleaned:
    return clean() if how == "clean" else sweep(place.child("the-next"))


def told_by(function: Callable[[], Cleaned], fault: Fault | None, told: Path) -> dict[str, str]:
    """What is left, and why, as *function* says when that call fails; what it raises is told, too."""

    def child() -> dict[str, str]:
        install(None if fault is None else (fault.role, fault.number, fault.which), str(told))
        try:
            return function().left
        except (OSError, CgroupError) as error:  # as whoever calls it does
            return {"raised": str(error)}

    return forked(child)


@pytest.mark.parametrize("how", ["sweep", "clean"])
def test_a_call_that_fails(how: str, place: Cgroup, living: tuple[Cgroup, ProcessId], tmp_path: Path) -> None:
    session, inside = living
    told = tmp_path / "told"

    def die() -> tuple[Cgroup, ProcessId]:
        return die_in(place, lambda container: put_beside(container, place))

    dead, left = die()
    assert not {*dead.directories} & told_by(lambda: recover(how, place), None, told).keys()
    assert (in_place(place, dead), left.alive) == (False, False)
    faults = faults_of([json.loads(line) for line in told.read_text().splitlines()])
    if os.environ.get(SWITCH_ALL) != "all":
        faults = one_of_each(faults)
        faults = faults[:: -(-len(faults) // _MOST)]
    fired = 0
    for fault in faults:
        told.unlink(missing_ok=True)
        dead, left = die()
        said = told_by(lambda: recover(how, place), fault, told)
        fired += bool(told.read_text())
        assert (session.exists, inside.alive) == (True, True), fault
        if in_place(place, dead) or left.alive:
            assert said, f"{fault}: something is left, and not told"
        recover(how, place)
        assert (in_place(place, dead), left.alive) == (False, False), fault
        take_back(place)
    assert fired > len(faults) / 2


def test_whose_it_is_can_not_be_read(place: Cgroup, tmp_path: Path) -> None:
    """A session that lives in a dead one, as a worker's of pytest-xdist does, is no container of that."""
    told = tmp_path / "told"
    outer, _ = die_in(place)
    inner = outer.child(session_name(this_process()))
    inner.make()
    for directory in inner.directories:
        assert sign(directory)
    mine = sleeper(inner)
    try:
        told_by(lambda: recover("sweep", place), None, told)
        faults = faults_of([json.loads(line) for line in told.read_text().splitlines()])
        faults = [
            fault for fault in faults if inner.path in fault.subject or fault.subject == f"/proc/{os.getpid()}/stat"
        ]
        assert {fault.call for fault in faults} >= {"getxattr", "open"}
        for fault in faults:
            told_by(lambda: recover("sweep", place), fault, told)
            assert (inner.exists, mine.alive) == (True, True), fault
    finally:
        end(mine)
        inner.remove()
    assert recover("sweep", place).left == {}
    assert not outer.exists
