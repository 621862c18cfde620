"""What is run while something fails: a few tests for each way to contain them, and what becomes of each otherwise."""

from __future__ import annotations

from dataclasses import dataclass

_HEAD = """
import os, signal, subprocess, sys
import pytest
contained = pytest.mark.contained
"""
_CONTAINED = """
@contained(memory="64M")
def test_pass():
    subprocess.run(["true"], check=True)

@contained
def test_leak():
    subprocess.Popen(["sleep", "120"], start_new_session=True)

@contained
def test_fail():
    assert not "this"

@contained(timeout=60)
def test_crash():
    os.kill(os.getpid(), signal.SIGKILL)
"""
_NAMESPACES = """
@contained(pid_ns=True, net_ns=True, hostname="inside", private_tmp=True, readonly=["/usr"])
def test_pass():
    subprocess.run(["true"], check=True)

@contained(pid_ns=True)
def test_leak():
    subprocess.Popen(["sleep", "120"], start_new_session=True)

@contained(mount_ns=True, hidden=["/srv"])
def test_fail():
    assert not "this"
"""
_IN_PLACE = """
def test_pass():
    subprocess.run(["true"], check=True)

def test_leak():
    subprocess.Popen(["sleep", "120"], start_new_session=True)

@pytest.fixture(scope="module")
def server():
    process = subprocess.Popen(["sleep", "120"])
    yield
    process.kill()
    process.wait()

def test_fixture(server):
    pass
"""
_LIBRARY = """
from pytest_cgroup import Container

def test_pass():
    with Container(memory="64M") as c:
        c.run(["true"], check=True)

def test_path():
    with Container(path=f"path-of-pytest-cgroup-{os.getpid()}-test") as c:
        c.run(["true"], check=True)

def test_leak():
    c = Container(leaks="warn").start()
    c.popen(["sleep", "120"])
    assert not c.stop().leaks
"""
_KILLED = """
PYTEST = os.getpid()

@contained
def test_killed():
    subprocess.Popen(["sleep", "120"], start_new_session=True)
    os.kill(PYTEST, signal.SIGKILL)
    os.execvp("sleep", ["sleep", "120"])  # what was not executed has no mark in the process backend
"""
_MANY = """
import time

@contained
@pytest.mark.parametrize("number", range(3))
def test_pass(number):
    subprocess.run(["true"], check=True)
    time.sleep(0.03)

@contained
def test_leak():
    subprocess.Popen(["sleep", "120"], start_new_session=True)

@contained
def test_fail():
    assert not "this"

@contained(pid_ns=True)
def test_pid_ns():
    subprocess.run(["true"], check=True)
    time.sleep(0.03)

@contained(pid_ns=True)
def test_pid_ns_leak():
    subprocess.Popen(["sleep", "120"], start_new_session=True)
"""


@dataclass(frozen=True)
class Scenario:
    """One inner run.

    Attributes:
        name: in reports.
        source: of its only file.
        verdicts: of each test, if nothing fails.
        arguments: of pytest.
        killed: pytest does not live to tell any.
        raises: what is refused is an exception in the test's own code, whose traceback is the test's.
    """

    name: str
    source: str
    verdicts: dict[str, str]
    arguments: tuple[str, ...] = ()
    killed: bool = False
    raises: bool = False

    @property
    def text(self) -> str:
        """The file."""
        return _HEAD + self.source


_ALL = {"test_pass": "passed", "test_leak": "failed", "test_fail": "failed", "test_crash": "failed"}
_THREE = {"test_pass": "passed", "test_leak": "failed", "test_fail": "failed"}
_MANY_VERDICTS = {
    **{f"test_pass[{number}]": "passed" for number in range(3)},
    "test_leak": "failed",
    "test_fail": "failed",
    "test_pid_ns": "passed",
    "test_pid_ns_leak": "failed",
}
_XDIST = ("-pxdist.plugin", "-n2")
_IN_PROCESS = "--cgroup-backend=process"
#: those in which somebody is killed
KILLS = {
    one.name: one
    for one in (
        Scenario("cgroup", _MANY, _MANY_VERDICTS),
        Scenario("process", _MANY, _MANY_VERDICTS, (_IN_PROCESS,)),
        Scenario("cgroup-xdist", _MANY, _MANY_VERDICTS, _XDIST),
        Scenario("process-xdist", _MANY, _MANY_VERDICTS, (_IN_PROCESS, *_XDIST)),
    )
}
SCENARIOS = {
    one.name: one
    for one in (
        Scenario("cgroup", _CONTAINED, _ALL),
        Scenario("process", _CONTAINED, _ALL, ("--cgroup-backend=process",)),
        Scenario("namespaces", _NAMESPACES, _THREE),
        Scenario("namespaces-process", _NAMESPACES, _THREE, ("--cgroup-backend=process",)),
        Scenario(
            "in-place",
            _IN_PLACE,
            {"test_pass": "passed", "test_leak": "failed", "test_fixture": "passed"},
            ("--process-leaks=fail",),
        ),
        Scenario(
            "in-place-process",
            _IN_PLACE,
            {"test_pass": "passed", "test_leak": "failed", "test_fixture": "passed"},
            ("--process-leaks=fail", _IN_PROCESS),
        ),
        Scenario(
            "library",
            _LIBRARY,
            {"test_pass": "passed", "test_path": "passed", "test_leak": "failed"},
            raises=True,
        ),
        Scenario("guard", _KILLED, {}, killed=True),
        Scenario("guard-process", _KILLED, {}, ("--cgroup-backend=process",), killed=True),
    )
}
