"""`wait` and `events`: who waits for the end of a container gets its one outcome; what happens is told meanwhile."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from pytest_cgroup import Container, ContainerError, ContainerTimeout, Event, Outcome, _station
from pytest_cgroup._host import Host
from tests.kernel.contain import DEADLINE_SECONDS, PROGRAMS
from tests.kernel.forked import forked

SLEEP = ["sleep", "1000"]
HOG = [sys.executable, str(PROGRAMS / "memory_hog.py"), "64", "1"]
FORKS = [sys.executable, "-c", "import os\nfor _ in range(9): os.fork() or os._exit(0)"]


@pytest.fixture(autouse=True)
def _given_back() -> Iterator[None]:
    yield
    _station.close()


class Aside:
    """Calls a function in a thread."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.value: Any = None
        self._thread = threading.Thread(target=self._call, args=(function, args), daemon=True)
        self._thread.start()

    def _call(self, function: Any, args: tuple[Any, ...]) -> None:
        try:
            self.value = function(*args)
        except ContainerError as error:
            self.value = error

    @property
    def pending(self) -> bool:
        return self._thread.is_alive()

    def join(self) -> Any:
        self._thread.join(DEADLINE_SECONDS)
        assert not self._thread.is_alive(), "it hangs"
        return self.value


def kinds(events: list[Event]) -> list[str]:
    return [event.kind for event in events]


def until(events: Iterator[Event], kind: str) -> Event:
    return next(event for event in events if event.kind == kind)


# wait


def test_all_who_wait_get_the_one_outcome(backend: str) -> None:
    with Container(backend=backend) as container:
        container.popen(SLEEP)
        waiters = [Aside(container.wait, DEADLINE_SECONDS) for _ in range(5)]
        assert all(waiter.pending for waiter in waiters)  # the control
        outcome = container.stop()
        assert all(waiter.join() is outcome for waiter in waiters)
    assert container.wait() is outcome
    assert len(outcome.leaks) == 1


def test_who_waits_no_longer(backend: str) -> None:
    with Container(backend=backend) as container:
        with pytest.raises(ContainerTimeout, match=r"has not ended in 0\.01 s") as raised:
            container.wait(0.01)
        assert isinstance(raised.value, TimeoutError)
        assert container.run(["true"]).returncode == 0


def test_a_limit_is_an_end(backend: str) -> None:
    with Container(backend=backend, timeout=0.05) as container:
        process = container.popen(SLEEP)
        outcome = container.wait(DEADLINE_SECONDS)
    assert outcome.timed_out
    assert process.returncode == -signal.SIGKILL
    assert container.outcome is outcome


def test_of_another_process_or_of_another_maker() -> None:
    with Container(backend="process") as container:

        def attempt() -> None:
            with pytest.raises(ContainerError, match="was made by another process"):
                container.wait(0)

        forked(attempt)


@pytest.mark.requires("cgroup")
def test_the_end_of_another_makers_is_not_waited_for(host: Host) -> None:
    assert host.placement.session is not None
    cgroup = host.placement.session.child("somebodys")
    cgroup.make()
    try:
        visit = Container.from_path(cgroup.path)
        with pytest.raises(ContainerError, match=r"is up to who made it .* use wait_empty"):
            visit.wait(0)
        assert kinds(list(visit.events(timeout=0.01))) == ["started"]
    finally:
        cgroup.remove()


# events


def test_from_the_start_to_the_end(backend: str) -> None:
    with Container(backend=backend) as container:
        events = container.events(DEADLINE_SECONDS)
        assert next(events).kind == "started"
        reader = Aside(list, events)
        container.run(["true"])
        assert reader.pending
        container.destroy()
        found = reader.join()
    assert kinds(found)[-1] == "stopped"
    assert found[-1].detail == {"ended": "exit"}
    assert set(kinds(found)) <= {"populated", "stopped"}
    assert [event.time for event in found] == sorted(event.time for event in found)
    assert kinds(list(container.events())) == ["started", "stopped"]


def test_no_longer_than_asked_for(backend: str) -> None:
    with Container(backend=backend) as container:
        assert kinds(list(container.events(timeout=0.02))) == ["started"]
        assert container.outcome is None


def test_one_that_is_left_in_the_middle_holds_nothing(backend: str) -> None:
    """The descriptors are counted by the fixture."""
    with Container(backend=backend) as container:
        events = container.events(DEADLINE_SECONDS)
        next(events)
        container.popen(SLEEP)
        if backend == "cgroup":
            next(events)
        del events


@pytest.mark.requires("cgroup")
def test_the_first_that_comes_and_the_last_that_goes() -> None:
    with Container(backend="cgroup") as container:
        events = container.events(DEADLINE_SECONDS)
        processes = [container.popen(SLEEP) for _ in range(2)]
        assert until(events, "populated").detail == {"populated": 1}
        reader = Aside(until, events, "populated")
        processes[0].kill()
        processes[0].wait()
        assert reader.pending  # one lives
        processes[1].kill()
        assert reader.join().detail == {"populated": 0}


@pytest.mark.requires("cgroup", "pids")
def test_a_limit_of_pids_that_is_hit() -> None:
    with Container(backend="cgroup", pids=5) as container:
        events = container.events(DEADLINE_SECONDS)
        reader = Aside(until, events, "pids_max")
        container.run(["true"])
        assert reader.pending  # the control: it is not hit
        container.run(FORKS, capture_output=True)
        assert reader.join().detail["max"] != 0
        again = container.events(DEADLINE_SECONDS)
        assert until(again, "pids_max").detail["max"] != 0  # who comes late is told, too


@pytest.mark.requires("memory")
def test_out_of_memory(backend: str) -> None:
    with Container(backend=backend, memory="24M") as container:
        reader = Aside(list, container.events(DEADLINE_SECONDS))
        container.run(["true"])
        assert reader.pending  # the control
        assert container.run(HOG, stdout=subprocess.DEVNULL).returncode == -signal.SIGKILL
    found = reader.join()
    assert kinds(found).count("oom") >= 1
    assert kinds(found)[-1] == "stopped"
    assert "oom" in kinds(list(container.events()))


@pytest.mark.requires("memory_high")
def test_memory_high() -> None:
    with Container(backend="cgroup", memory_high="16M", memory="64M") as container:
        reader = Aside(until, container.events(DEADLINE_SECONDS), "memory_high")
        process = container.popen(
            [sys.executable, str(PROGRAMS / "memory_hog.py"), "32", "1"], stdout=subprocess.DEVNULL
        )
        assert int(reader.join().detail["high"]) >= 1
        process.kill()


@pytest.mark.requires("cgroup", "pids")
def test_what_nobody_has_read_before_the_end_is_told_after_it() -> None:
    with Container(backend="cgroup", pids=5) as container:
        events = container.events()
        assert next(events).kind == "started"
        container.run(FORKS, capture_output=True)
        outcome: Outcome = container.destroy()
    rest = list(events)
    assert kinds(rest) == ["pids_max", "stopped"]
    assert rest[0].detail == {"max": outcome.usage.pids_max_hits}
