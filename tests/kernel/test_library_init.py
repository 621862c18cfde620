"""Without an init the first program is PID 1 of the container's pid namespace, and all hangs on it."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import IO, Any

import pytest

from pytest_cgroup import Container, ContainerError, SpecError, _station
from tests.as_user import OrdinaryUser
from tests.kernel.contain import DEADLINE_SECONDS, descriptors

pytestmark = pytest.mark.requires("pid_ns")
#: says who it is, and ends by the signal that it is sent, if that ends it, or when its stdin is closed
FIRST = """
import os, subprocess, sys
orphan = subprocess.Popen(["sh", "-c", "sleep 0.01 & exit"])
orphan.wait()
os.wait()  # whoever loses its parent in here is ours
names = sorted(int(name) for name in os.listdir("/proc") if name.isdigit())
print(os.getpid(), names, flush=True)
sys.stdin.read()
sys.exit(3)
"""
_OVER = "PID 1 of the container has ended"


@pytest.fixture(params=[pytest.param("cgroup", marks=pytest.mark.requires("cgroup")), "process"])
def container(request: pytest.FixtureRequest) -> Iterator[Container]:
    """A container without an init, on each backend."""
    before = descriptors()
    with Container(backend=request.param, pid_ns=True, init=False) as made:
        yield made
    _station.close()
    gc.collect()
    assert {fd for fd in descriptors() if fd not in before} == set(), "descriptors were left open"


def start_first(container: Container) -> subprocess.Popen[Any]:
    argv = [sys.executable, "-c", FIRST]
    return container.popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def stdout(program: subprocess.Popen[Any]) -> IO[str]:
    assert program.stdout is not None
    return program.stdout


def test_the_first_program_is_pid_1(container: Container) -> None:
    with start_first(container) as first:
        assert stdout(first).readline() == "1 [1]\n"
        said = container.run(
            ["sh", "-c", "cat /proc/1/cmdline | tr '\\0' ' '; echo $$"], capture_output=True, text=True
        )
        assert said.stdout.startswith(f"{sys.executable} -c")
        assert int(said.stdout.split()[-1]) > 1
        assert container.call(os.getpid) > 1
        assert first.pid in container
        assert first.pid > 1, "out here it has another number"
        with container.popen(["sleep", "1000"]) as beside:
            first.stdin.close()  # type: ignore[union-attr]
            assert first.wait(DEADLINE_SECONDS) == 3
            assert beside.wait(DEADLINE_SECONDS) == -signal.SIGKILL, "it goes with PID 1"
    assert container.wait_empty(DEADLINE_SECONDS)


def test_with_an_init_it_is_not() -> None:
    """The negative control."""
    with Container(pid_ns=True) as container:
        said = container.run(["sh", "-c", "echo $$"], capture_output=True, text=True).stdout
        assert int(said) > 1
        assert container.run(["true"]).returncode == 0
    _station.close()


def test_nothing_begins_after_its_end(container: Container) -> None:
    assert container.run(["true"]).returncode == 0
    for begin in (lambda: container.popen(["true"]), lambda: container.call(os.getpid)):
        with pytest.raises(ContainerError, match=_OVER):
            begin()


def test_a_first_program_that_is_not_there(container: Container) -> None:
    with pytest.raises(FileNotFoundError):
        container.popen(["/no/such/program"])
    with pytest.raises(ContainerError, match=_OVER):
        container.popen(["true"])


def test_a_function_is_no_first_program(container: Container) -> None:
    with pytest.raises(ContainerError, match="start a program first"):
        container.call(os.getpid)
    with start_first(container) as first:
        assert stdout(first).readline() == "1 [1]\n"
        assert container.call(os.getpid) > 1
        container.kill()


def test_it_ends_by_sigkill_alone(container: Container) -> None:
    with start_first(container) as first:
        assert stdout(first).readline() == "1 [1]\n"
        first.terminate()
        with pytest.raises(subprocess.TimeoutExpired):
            first.wait(0.2)
        assert container.stop(grace=0.1).leaks
        assert first.wait(DEADLINE_SECONDS) == -signal.SIGKILL


@pytest.mark.parametrize(
    ("asked", "what"),
    [
        ({"init": False}, "init=False (Container): is about pid_ns"),
        ({"init": "no", "pid_ns": True}, "init='no' (Container): is no flag"),
    ],
)
def test_a_bad_request(asked: dict[str, Any], what: str) -> None:
    with pytest.raises(SpecError) as raised:
        Container(**asked)
    assert what in str(raised.value)


@pytest.mark.parametrize("backend", ["auto", "process"])
def test_as_a_user(unprivileged: OrdinaryUser, user_namespaces: None, backend: str) -> None:
    code = """
import sys, pytest_cgroup
with pytest_cgroup.Container(backend=sys.argv[1], pid_ns=True, init=False, private_tmp=True) as one:
    print(one.run(["sh", "-c", "echo $$; ls /proc | grep -c '^[0-9]'; ls -A /tmp"], capture_output=True).stdout)
"""
    said = unprivileged.run([unprivileged.python, "-c", code, backend])
    assert said.stdout.startswith("b'1\\n"), said.stderr
