"""Where pytest itself stands: stepping on, who is beside it, and that nothing is left behind of it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pytest_cgroup._host import Host
from pytest_cgroup._kernel_text import membership
from pytest_cgroup._process import ProcessId
from pytest_cgroup._shared import Ground, open_ground, settle
from pytest_cgroup._shared.process import ProcessGround
from tests.kernel.contain import DEADLINE_SECONDS
from tests.kernel.forked import forked

LEAKER = Path(__file__).resolve().parents[1] / "programs" / "leaker.py"


def on_ground(kind: str, check: Callable[[Ground], object]) -> object:
    """Call *check* in a forked child that stands on a ground of its own: pytest itself is not moved about."""

    def inside() -> object:
        host = Host()
        ground = open_ground(host.placement.session if kind == "cgroup" else None)
        try:
            assert ground.name == kind
            return check(ground)
        finally:
            ground.leave()
            host.close()

    return forked(inside)


@pytest.fixture(params=[pytest.param("cgroup", marks=pytest.mark.requires("cgroup")), "process"])
def kind(request: pytest.FixtureRequest) -> str:
    """Each ground in turn."""
    return str(request.param)


@contextlib.contextmanager
def left_behind(how: str) -> Iterator[list[int]]:
    """What ``leaker.py`` leaves behind; killed in every case."""
    import sys

    reader, writer = os.pipe()
    with subprocess.Popen([sys.executable, str(LEAKER), how, str(writer)], pass_fds=(writer,)):
        os.close(writer)
        text = b""
        while not text.endswith(b"\n"):
            text += os.read(reader, 100)
    os.close(reader)
    pids = [int(word) for word in text.split()]
    identities = [ProcessId.of(pid) for pid in pids]
    try:
        yield pids
    finally:
        for identity in identities:
            if identity is not None and identity.alive:
                os.kill(identity.pid, 9)


def test_alone_is_not_crowded(kind: str) -> None:
    def check(ground: Ground) -> object:
        return [ground.crowded(), ground.others()]

    assert on_ground(kind, check) == [False, []]


@pytest.mark.parametrize("how", ["background", "setsid", "sigterm", "double_fork", "stopped", "traced"])
def test_who_is_left_behind_is_seen_handed_over_and_killed(kind: str, how: str) -> None:
    def check(ground: Ground) -> object:
        with left_behind(how) as pids:
            seen = ground.crowded() and set(pids) == set(ground.others())
            place = ground.hand_over()
            alone = not ground.crowded() and ground.others() == []
            handed = set(place.pids()) == set(pids)
            killed = place.kill(10)
            empty = place.pids()
            place.give_back()
            return [seen, alone, handed, killed, empty, [one for one in map(ProcessId.of, pids) if one and one.alive]]

    assert on_ground(kind, check) == [True, True, True, True, [], []]


def test_children_are_born_where_their_parents_are(kind: str) -> None:
    """A shell that was handed over starts a child later: it is the place's, not pytest's new one's."""

    def check(ground: Ground) -> object:
        shell = subprocess.Popen(
            ["sh", "-c", "while read line; do sleep 120 >&- & echo $!; done"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert shell.stdin is not None
        assert shell.stdout is not None
        place = ground.hand_over()
        print(file=shell.stdin, flush=True)
        child = int(shell.stdout.readline())
        found = [ground.crowded() and bool(ground.others()), sorted(place.pids()) == sorted([shell.pid, child])]
        place.kill(10)
        shell.communicate()
        place.give_back()
        return found

    assert on_ground(kind, check) == [False, True]


def test_one_can_be_moved_and_the_others_killed(kind: str) -> None:
    def check(ground: Ground) -> object:
        first, second = (subprocess.Popen(["sleep", "120"]) for _ in range(2))
        place, other = ground.hand_over(), ground.new_place()
        other.take_in(first.pid)
        place.kill(10)
        alive = [first.poll() is None, second.wait(DEADLINE_SECONDS)]
        where = [place.pids(), other.pids() == [first.pid]]
        other.kill(10)
        first.wait(DEADLINE_SECONDS)
        return [alive, where]

    assert on_ground(kind, check) == [[True, -9], [[], True]]


def test_who_is_still_there_at_the_end_lives_on(kind: str) -> None:
    """The negative control: nobody asked for a kill. That no cgroup is left is looked at after each test."""

    def check(ground: Ground) -> object:
        child = subprocess.Popen(["sleep", "120"])
        place = ground.hand_over()
        assert place.pids() == [child.pid]
        ground.leave()
        alive = child.poll() is None
        child.kill()
        child.wait()
        return alive

    assert on_ground(kind, check) is True


@pytest.mark.requires("cgroup")
def test_all_threads_step_and_come_back() -> None:
    def check(ground: Ground) -> object:
        def here() -> set[str]:
            texts = [Path(path, "cgroup").read_text() for path in Path("/proc/self/task").iterdir()]
            return {str(sorted(membership(text).items())) for text in texts}

        done = threading.Event()
        threads = [threading.Thread(target=done.wait) for _ in range(5)]
        for thread in threads:
            thread.start()
        before = here()
        place = ground.hand_over()
        after = here()
        ground.leave()
        home = here()
        done.set()
        for thread in threads:
            thread.join()
        assert place.pids() == []
        return [len(before), len(after), before != after, home not in (before, after), len(home)]

    assert on_ground("cgroup", check) == [1, 1, True, True, 1]


@pytest.mark.requires("cgroup")
def test_a_cgroup_made_by_what_was_started_is_seen() -> None:
    """A process that moved into a cgroup below is still here."""

    def check(ground: Ground) -> object:
        from pytest_cgroup._shared.cgroup import CgroupGround

        assert isinstance(ground, CgroupGround)
        child = subprocess.Popen(["sleep", "120"])
        path = f"{ground._here.path}/below"
        os.mkdir(path)
        Path(path, "cgroup.procs").write_text(str(child.pid))
        seen = ground.crowded() and ground.others() == [child.pid]
        place = ground.hand_over()
        place.kill(10)
        child.wait()
        place.give_back()
        return [seen, os.path.exists(path)]

    assert on_ground("cgroup", check) == [True, False]


@pytest.mark.requires("cgroup")
def test_an_empty_place_serves_again() -> None:
    def check(ground: Ground) -> object:
        from pytest_cgroup._shared.cgroup import CgroupGround

        assert isinstance(ground, CgroupGround)
        for _ in range(20):
            child = subprocess.Popen(["sleep", "120"])
            place = ground.hand_over()
            place.kill(10)
            child.wait()
            place.give_back()
        return len([path for path in Path(ground._top.path).iterdir() if path.is_dir()])

    assert on_ground("cgroup", check) <= 3  # type: ignore[operator]


def test_settling_ends_with_the_last_one() -> None:
    with subprocess.Popen(["sleep", "0.1"]) as child:
        assert settle(lambda: [child.pid] if child.poll() is None else [], 30) == []
    with subprocess.Popen(["sleep", "120"]) as child:
        assert settle(lambda: [child.pid], 0.01) == [child.pid]
        child.kill()


def test_the_process_ground_puts_everything_back() -> None:
    def check() -> object:
        from pytest_cgroup import _syscalls

        before = [_syscalls.get_child_subreaper(), dict(os.environ)]
        ground = ProcessGround()
        during = _syscalls.get_child_subreaper()
        ground.leave()
        return [during, before == [_syscalls.get_child_subreaper(), dict(os.environ)]]

    assert forked(check) == [True, True]
