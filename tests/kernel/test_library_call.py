"""`Container.call`: a function in a forked child inside, what comes of it, and where it runs."""

from __future__ import annotations

import gc
import os
import pwd
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from pytest_cgroup import Container, ContainerError, _station
from tests.as_user import OrdinaryUser
from tests.kernel.contain import DEADLINE_SECONDS, MB, descriptors

#: with a container of which each call is made
ASKED: list[Any] = [
    pytest.param({"backend": "cgroup"}, marks=pytest.mark.requires("cgroup"), id="cgroup"),
    pytest.param({"backend": "process"}, id="process"),
    pytest.param({"backend": "cgroup", "pid_ns": True}, marks=pytest.mark.requires("cgroup", "pid_ns"), id="pid_ns"),
    pytest.param({"backend": "process", "pid_ns": True}, marks=pytest.mark.requires("pid_ns"), id="process-pid_ns"),
]


@pytest.fixture(params=ASKED)
def container(request: pytest.FixtureRequest) -> Iterator[Container]:
    """A container; nothing of it stays open."""
    before = descriptors()
    with Container(**request.param) as found:
        yield found
    _station.close()
    gc.collect()
    assert [fd for fd in descriptors() if fd not in before] == []


class UnpicklableError(Exception):
    """Pickled, and not to be had back."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def test_a_value(container: Container) -> None:
    large = os.urandom(3 * MB)
    assert container.call(lambda *args, **kwargs: (args, kwargs), 1, [2], x=large) == ((1, [2]), {"x": large})
    assert container.call(os.getpid) != os.getpid()
    assert container.call(lambda: None) is None


def test_an_exception(container: Container) -> None:
    def fails() -> None:
        raise KeyError("this and that")

    with pytest.raises(KeyError, match="this and that") as raised:
        container.call(fails)
    (note,) = raised.value.__notes__
    assert note.startswith("raised in a container:\nTraceback (most recent call last)")
    assert "in fails" in note
    assert "pytest_cgroup/_call.py" not in note
    with pytest.raises(SystemExit):
        container.call(sys.exit, 3)


def test_what_can_not_be_pickled_is_told_as_text(container: Container) -> None:
    def fails() -> None:
        raise UnpicklableError(1, 2)

    with pytest.raises(ContainerError, match=r"UnpicklableError: 1 and 2\nTraceback(.|\n)*in fails"):
        container.call(fails)
    with pytest.raises(ContainerError, match=r"returned <unlocked _thread.lock.*can't be pickled"):
        container.call(threading.Lock)


@pytest.mark.parametrize(
    ("end", "how"),
    [
        (lambda: os._exit(3), "exited with status 3"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "was killed by SIGKILL"),
        (lambda: os.kill(os.getpid(), signal.SIGXCPU), "was killed by SIGXCPU"),
    ],
)
def test_an_end_before_the_function_returns(container: Container, end: Any, how: str) -> None:
    with pytest.raises(ContainerError, match=f"did not return: its process {how}"):
        container.call(end)
    assert container.call(lambda: 5) == 5


def test_nothing_is_printed_twice_and_no_atexit_runs(container: Container, capfd: pytest.CaptureFixture[str]) -> None:
    sys.stdout.write("before ")
    container.call(sys.stdout.write, "inside ")
    sys.stdout.write("after\n")
    sys.stdout.flush()
    assert capfd.readouterr().out == "before inside after\n"


def test_what_it_leaves_lives_on_in_the_container(container: Container) -> None:
    """An orphan, too; and while it holds the pipe the call returns all the same."""

    def leave() -> None:
        for _ in range(2):
            if (between := os.fork()) == 0:
                if os.fork() == 0:
                    os.setsid()
                    signal.signal(signal.SIGTERM, signal.SIG_IGN)
                    signal.alarm(120)
                    signal.pause()
                os._exit(0)
            os.waitpid(between, 0)
        subprocess.Popen(["sleep", "120"])

    container.call(leave)
    left = container.processes()
    assert len(left) == 3
    outcome = container.stop(grace=0.1)
    assert len(outcome.leaks) == 3
    assert not any(process.is_running() and process.status() != "zombie" for process in left)


def test_it_is_inside(container: Container) -> None:
    seen: list[int] = []
    reader, writer = os.pipe()

    def wait() -> int:
        return len(os.read(reader, 1))

    thread = threading.Thread(target=lambda: seen.append(container.call(wait)))
    thread.start()
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not (inside := container.processes()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(inside) == 1
    os.write(writer, b"x")
    thread.join(DEADLINE_SECONDS)
    assert seen == [1]
    assert not container.processes()
    os.close(reader)
    os.close(writer)


def test_the_containers_end_is_its_end(container: Container) -> None:
    raised: list[str] = []

    def call() -> None:
        try:
            container.call(time.sleep, 120)
        except ContainerError as error:
            raised.append(str(error))

    thread = threading.Thread(target=call)
    thread.start()
    assert not container.wait_empty(0) or not container.processes()
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not container.processes() and time.monotonic() < deadline:
        time.sleep(0.01)
    container.destroy()
    thread.join(DEADLINE_SECONDS)
    assert "did not return: its process was killed by SIGKILL" in raised[0]
    with pytest.raises(ContainerError, match="has ended"):
        container.call(int)


def test_an_interrupt_ends_it(container: Container) -> None:
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        container.call(time.sleep, 120)
    assert container.wait_empty(DEADLINE_SECONDS)
    assert container.call(int) == 0


@pytest.mark.requires("cgroup", "memory")
def test_its_memory_is_limited() -> None:
    with Container(memory="64M") as container:
        assert container.call(lambda: len(bytearray(1 * MB))) == MB  # the control
        with pytest.raises(ContainerError, match="was killed by SIGKILL"):
            container.call(lambda: len(b"x" * (200 * MB)))
        assert container.outcome is None or container.outcome.ended == "oom"
    assert container.outcome is not None
    assert container.outcome.usage.oom_kill
    _station.close()


@pytest.mark.requires("pid_ns")
def test_namespaces() -> None:
    with Container(pid_ns=True, hostname="inside") as container:
        pid, name, seen = container.call(lambda: (os.getpid(), os.uname().nodename, len(psutil.pids())))
        assert pid < 20
        assert name == "inside"
        assert seen <= 3
        other = container.popen(["sleep", "120"])
        assert container.call(lambda: [p.name() for p in psutil.process_iter() if p.name() == "sleep"]) == ["sleep"]
        other.kill()
    _station.close()


def test_rlimits(container: Container) -> None:
    with Container(backend=container._backend_name, rlimits={"nofile": 100}) as limited:
        assert limited.call(resource.getrlimit, resource.RLIMIT_NOFILE) == (100, 100)


@pytest.mark.requires("root")
def test_another_user(container: Container) -> None:
    with Container(backend=container._backend_name, user="nobody") as other:
        nobody = pwd.getpwnam("nobody")
        assert other.call(os.getresuid) == (nobody.pw_uid,) * 3
        assert other.call(os.getresgid) == (nobody.pw_gid,) * 3
        assert 0 not in other.call(os.getgroups)


def test_usage_counts_it(container: Container) -> None:
    def burn() -> None:
        while time.process_time() < 0.3:
            pass

    container.call(burn)
    usage = container.stop().usage
    assert 0.15 < (usage.cpu_user_seconds or 0) + (usage.cpu_system_seconds or 0) < 3.0


@pytest.mark.parametrize("asked", ["backend='auto'", "backend='process'", "pid_ns=True"])
def test_as_an_ordinary_user(unprivileged: OrdinaryUser, asked: str) -> None:
    program = f"""
import os, pytest_cgroup
try:
    with pytest_cgroup.Container({asked}) as c:
        assert c.call(lambda: os.getuid()) == os.getuid()
        assert c.call(lambda: open("/proc/self/status").read().split("CapEff:\\t")[1][:16]) == "0" * 16
        c.call(lambda: os.spawnlp(os.P_NOWAIT, "sleep", "sleep", "120"))
    print(len(c.outcome.leaks))
except pytest_cgroup.NotOffered as why:
    print("1", why)
"""
    done = unprivileged.run([unprivileged.python, "-c", program])
    assert (done.stdout[:1], done.stderr) == ("1", "")
