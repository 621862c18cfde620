"""What a container has to do with the cgroups and processes of others: adopt them, look at them, and no more."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_cgroup import Container, ContainerError, NotOffered, _station
from tests.as_user import OrdinaryUser
from tests.kernel.contain import DEADLINE_SECONDS

pytestmark = pytest.mark.requires("cgroup")
SLEEP = ["sleep", "120"]


@pytest.fixture(autouse=True)
def _given_back() -> Iterator[None]:
    yield
    _station.close()


@pytest.fixture
def outsider() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(SLEEP) as process:
        yield process
        process.kill()


def path_of(container: Container) -> str:
    tree: Any = container._live("test").tree
    return str(tree.cgroup.path)


def test_a_process_is_adopted_and_ends_with_it(outsider: subprocess.Popen[bytes]) -> None:
    with Container() as container:
        assert container.processes() == []
        container.adopt(outsider.pid)
        assert [process.pid for process in container.processes()] == [outsider.pid]
        assert path_of(container).rpartition("/")[2] in Path(f"/proc/{outsider.pid}/cgroup").read_text()
    assert outsider.wait(DEADLINE_SECONDS) == -signal.SIGTERM
    assert container.outcome is not None
    assert len(container.outcome.leaks) == 1


def test_what_is_not_ours_to_move(unprivileged: OrdinaryUser) -> None:
    with Container() as container, subprocess.Popen(["true"]) as gone:
        gone.wait()
        container.run(["true"])
        refused = {os.getpid(): "that asks", os.getppid(): "that asks", gone.pid: "no such process"}
        refused[container._live("test")._spawner.launcher().pid] = "starts the processes"  # type: ignore[union-attr]
        if os.geteuid() == 0:
            stranger = unprivileged.popen(SLEEP)
            refused[stranger.pid] = "belongs to uid"
        for pid, why in refused.items():
            with pytest.raises(ContainerError, match=why):
                container.adopt(pid)
        assert container.processes() == []
        if os.geteuid() == 0:
            stranger.kill()
            stranger.wait()
    with pytest.raises(ContainerError, match="has ended"):
        container.adopt(os.getpid())


def test_no_adoption_without_a_cgroup(outsider: subprocess.Popen[bytes]) -> None:
    with Container(backend="process") as container, pytest.raises(NotOffered, match="takes in nobody"):
        container.adopt(outsider.pid)
    assert outsider.poll() is None


def test_the_kernels_own_files() -> None:
    with Container() as container:
        container.popen(SLEEP)
        stats = container.stats()
        assert {"cgroup.procs", "tasks"}.isdisjoint(stats)
        assert stats.get("pids.current", "1\n") == "1\n"
        assert any(name.startswith(("memory.", "cgroup.")) for name in stats)
    assert container.stats() == {}
    with Container(backend="process") as container:
        assert container.stats() == {}


def test_looking_at_one() -> None:
    with Container() as container:
        process = container.popen(SLEEP)
        with Container.from_path(path_of(container)) as seen:
            assert [found.pid for found in seen.processes()] == [process.pid]
            assert seen.populated
            assert seen.stats()
            assert seen.limits is not None
            assert not seen.wait_empty(0)
            for touch in (seen.kill, seen.stop, seen.destroy, seen.freeze, lambda: seen.signal(signal.SIGTERM)):
                with pytest.raises(ContainerError, match="owned=True"):
                    touch()
            for use in (
                lambda: seen.popen(SLEEP),
                lambda: seen.run(SLEEP),
                lambda: seen.call(int),
                lambda: seen.update(pids=4),
                lambda: seen.adopt(os.getpid()),
            ):
                with pytest.raises(ContainerError, match="only looked at"):
                    use()
        assert process.poll() is None
        container.kill()
        assert seen.wait_empty(DEADLINE_SECONDS)


def test_what_is_owned_can_be_ended_and_stays() -> None:
    with Container() as container:
        process = container.popen(SLEEP)
        path = path_of(container)
        with Container.from_path(path, owned=True) as seen:
            outcome = seen.stop(grace=5)
            assert process.wait(DEADLINE_SECONDS) == -signal.SIGTERM
            assert len(outcome.leaks) == 1
            assert seen.stop() is outcome
        assert os.path.isdir(path)
        assert container.run(["true"]).returncode == 0
    assert not os.path.isdir(path)


def test_what_is_no_cgroup(tmp_path: Path) -> None:
    for path in (tmp_path, "/no/such/path", "/proc"):
        with pytest.raises(ContainerError, match="no cgroup"):
            Container.from_path(path)
