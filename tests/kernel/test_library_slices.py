"""Slices: containers that have a parent in common, and the limits of that parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import Any

import pytest

from pytest_cgroup import Container, ContainerError, NotOffered, Slice, SpecError, _station
from tests.as_user import OrdinaryUser
from tests.kernel.contain import DEADLINE_SECONDS, MB
from tests.kernel.forked import forked

SLEEP = ["sleep", "1000"]
#: forks as often as it is told to, and says how often it could
FORKS = """
import os, sys
done = 0
for _ in range(int(sys.argv[1])):
    try:
        if not os.fork():
            os.execvp("sleep", ["sleep", "1000"])
    except OSError:
        break
    done += 1
print(done)
"""
pytestmark = pytest.mark.usefixtures("given_back")
#: takes as many MB as it is told to, keeps them, and says so; where the kernel chooses a victim, its score is added
TAKES = """
import os, sys
with open("/proc/self/oom_score_adj", "w") as f: f.write(sys.argv[2])
kept = bytearray(os.urandom(1 << 20)) * int(sys.argv[1])
print(flush=True)
sys.stdin.read()
"""
needs_memory = pytest.mark.requires("cgroup", "memory")
needs_pids = pytest.mark.requires("cgroup", "pids")


def forks(container: Container, count: int) -> int:
    """How many children a program in *container* could have, of *count*; they live on."""
    done = container.run([sys.executable, "-c", FORKS, str(count)], capture_output=True, text=True)
    return int(done.stdout)


def takes(container: Container, megabytes: int, *, score: int = 0) -> subprocess.Popen[Any]:
    """A program that has taken so much, or was killed for it."""
    argv = [sys.executable, "-c", TAKES, str(megabytes), str(score)]
    program = container.popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert program.stdout is not None
    program.stdout.readline()
    return program


def directories(container: Container) -> tuple[str, ...]:
    """Of its cgroup."""
    found: tuple[str, ...] = container._life.tree.cgroup.directories  # type: ignore[union-attr]
    return found


# what they have together


@needs_pids
def test_a_limit_holds_for_all_of_them_together() -> None:
    with Slice("together", pids=8) as both, Container(slice=both) as one, Container(slice=both) as two:
        assert both.limits == {"pids": "8"}
        assert forks(one, 5) == 5
        assert forks(two, 5) == 2, "five and the program itself are there already"


@needs_pids
def test_without_a_slice_each_has_its_own() -> None:
    """The negative control."""
    with Container(pids=8) as one, Container(pids=8) as two:
        assert forks(one, 5) == forks(two, 5) == 5


@needs_pids
def test_a_hit_is_told_of_the_container_that_hit_it() -> None:
    with Slice("hit", pids=4) as few:
        with Container(slice=few) as innocent:
            assert innocent.run(["true"]).returncode == 0
        with Container(slice=few) as container:
            forks(container, 9)
            container.kill()
        assert innocent.outcome is not None
        assert container.outcome is not None
        assert not innocent.outcome.usage.pids_max_hits
        assert container.outcome.usage.pids_max_hits == 1
        assert container.outcome.limits["slice"] == "hit (pids=4)"
        with Container(slice=few) as later:
            assert later.run(["true"]).returncode == 0
        assert later.outcome is not None
        assert not later.outcome.usage.pids_max_hits


@needs_memory
def test_memory_of_all_of_them_together() -> None:
    """Each is far below its own limit; who takes the last of the slice's is ended, and only that."""
    with (
        Slice("memory", memory="96M") as both,
        Container(slice=both, memory="90M") as one,
        Container(slice=both, memory="90M") as two,
    ):
        assert both.limits["memory"] == str(96 * MB)
        first = takes(one, 50)
        assert first.poll() is None
        program = takes(two, 80, score=1000)
        assert program.wait(DEADLINE_SECONDS) == -signal.SIGKILL
        assert first.poll() is None
        done = two.wait(DEADLINE_SECONDS) if two.outcome is not None else two.destroy()
        first.communicate()
        program.communicate()
    assert done.usage.oom_kill
    assert done.ended == "oom-ancestor"
    assert done.limits["slice"].startswith("memory (memory=96M, ")


@needs_memory
def test_memory_of_one_beside_the_slice() -> None:
    """The negative control: the same two without a slice have enough."""
    with Container(memory="90M") as one, Container(memory="90M") as two:
        programs = takes(one, 50), takes(two, 80)
        assert [program.poll() for program in programs] == [None, None]
        for program in programs:
            program.communicate()


@pytest.mark.requires("cgroup", "cpu", "pids")
def test_whatever_the_slice_limits_holds_inside() -> None:
    """On cgroup v1 a limit holds in one hierarchy: a container that asks for nothing there is in it all the same."""
    with Slice("all", cpu=0.5, pids=100) as limited, Container(slice=limited) as container:
        program = container.popen(SLEEP)
        with open(f"/proc/{program.pid}/cgroup", encoding="utf-8") as f:
            places = {line.split(":")[1]: line.rstrip().split(":", 2)[2] for line in f}
        where = [place for names, place in places.items() if {"cpu", "pids"} & set(names.split(","))] or [places[""]]
        assert all("/slice-all/" in place for place in where), places


@needs_pids
def test_limits_of_a_living_slice() -> None:
    with Slice("changing", pids=4) as some, Container(slice=some) as container:
        assert forks(container, 9) == 3
        some.update(pids=20)
        assert some.limits["pids"] == "20"
        assert forks(container, 9) == 9
        with pytest.raises(SpecError, match="can't be changed later"):
            some.update(pid_ns=True)


@needs_memory
def test_memory_of_a_living_slice() -> None:
    """The descriptors are counted by the fixture."""
    with Slice("growing") as some, Container(slice=some) as container:
        some.update(memory="64M")
        assert some.limits["memory"] == str(64 * MB)
        program = takes(container, 200)
        assert program.wait(DEADLINE_SECONDS) == -signal.SIGKILL
        program.communicate()


@pytest.mark.requires("cgroup")
def test_usage_of_all_that_were_in_it() -> None:
    with Slice("used") as used:
        for _ in range(2):
            with Container(slice=used) as container:
                container.run([sys.executable, "-c", "x = sum(range(2_000_000))"])
        spent = used.usage().cpu_seconds
        assert container.outcome is not None
        assert spent is not None
        assert container.outcome.usage.cpu_seconds is not None
        assert spent > container.outcome.usage.cpu_seconds > 0


# its life


@pytest.mark.requires("cgroup")
def test_a_name_is_enough() -> None:
    with Container(slice="named") as one, Container(slice="named") as two, Container(slice="other") as three:
        parents = [{os.path.dirname(path) for path in directories(container)} for container in (one, two, three)]
        assert parents[0] & parents[1]
        assert not parents[0] & parents[2]
        assert all(path.endswith("/slice-named") for path in parents[0])
        assert one.limits == {"slice": "named"}


@pytest.mark.requires("cgroup")
def test_one_slice_whatever_the_backend_was_called() -> None:
    with Slice("once") as once, Container(slice=once, backend="cgroup") as one, Container(slice=once) as two:
        assert {*map(os.path.dirname, directories(one))} == {*map(os.path.dirname, directories(two))}


@pytest.mark.requires("cgroup")
def test_it_goes_with_its_last_user() -> None:
    with Slice("short") as short:
        with Container(slice=short) as container:
            above = [os.path.dirname(path) for path in directories(container)]
        assert all(map(os.path.isdir, above)), "it stays for the next one"
    assert not any(map(os.path.exists, above))
    with pytest.raises(ContainerError, match="slice short is not live"):
        Container(slice=short).start()
    with short, Container(slice=short) as again:
        assert again.run(["true"]).returncode == 0


@pytest.mark.requires("cgroup")
def test_who_is_still_in_it_stays_in_it() -> None:
    slow = Slice("slow").start()
    container = Container(slice=slow).start()
    program = container.popen(SLEEP)
    slow.close()
    slow.close()
    assert program.poll() is None
    above = [os.path.dirname(path) for path in directories(container)]
    container.destroy()
    assert program.wait(DEADLINE_SECONDS) == -signal.SIGKILL
    _station.close()
    assert not any(map(os.path.exists, above))


@pytest.mark.requires("cgroup")
def test_one_of_a_name() -> None:
    with Slice("only"), pytest.raises(ContainerError, match="there is a slice only already"):
        Slice("only").start()
    with Slice("only") as only, pytest.raises(ContainerError, match="started already"):
        only.start()


@pytest.mark.requires("cgroup")
def test_another_process_has_none_of_it() -> None:
    with Slice("ours") as ours:

        def use() -> str:
            with pytest.raises(ContainerError) as raised:
                Container(slice=ours).start()
            ours.close()
            return str(raised.value)

        assert "was made by another process" in forked(use)
        with Container(slice=ours) as container:
            assert container.run(["true"]).returncode == 0


@pytest.mark.parametrize(
    ("asked", "what"),
    [
        ({"name": "a/b"}, "is no name of a slice"),
        ({"name": "../x"}, "is no name of a slice"),
        ({"name": "ok", "timeout": 3}, "is for one test or container"),
        ({"name": "ok", "pid_ns": True}, "is for one test or container"),
        ({"name": "ok", "memroy": "1M"}, "did you mean memory"),
        ({"name": "ok", "memory": "1MB"}, "memory='1MB' (Slice ok)"),
    ],
)
def test_a_bad_request(asked: dict[str, Any], what: str) -> None:
    with pytest.raises(SpecError) as raised:
        Slice(**asked)
    assert what in str(raised.value)


def test_without_a_cgroup_there_is_none() -> None:
    with pytest.raises(NotOffered) as raised:
        Container(backend="process", slice="db").start()
    assert raised.value.missing == ("slice",)
    assert "which its containers share" in str(raised.value)


def test_as_a_user(unprivileged: OrdinaryUser) -> None:
    """With a cgroup of one's own it works; without one it says so."""
    code = """
import pytest_cgroup
try:
    with pytest_cgroup.Slice("mine") as mine, pytest_cgroup.Container(slice=mine) as one:
        print(one.run(["true"]).returncode, one.limits)
except pytest_cgroup.NotOffered as why:
    print("not offered", *why.missing, "slice mine: this host can't honour slice" in str(why))
"""
    said = unprivileged.run([unprivileged.python, "-c", code]).stdout
    assert said in ("0 {'slice': 'mine'}\n", "not offered slice True\n")
