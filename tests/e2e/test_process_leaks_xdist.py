"""--process-leaks under pytest-xdist: however the tests are distributed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import pytest_cgroup
from tests.e2e.leaving import leaks, pid_of, section, survivors, watch

_SOURCE = """
@pytest.fixture(scope="class")
def server(request): popen(request.node.name)
class TestA:
    def test_use(self, server): pass
    def test_leak(self): popen("a")
    def test_clean(self): subprocess.run(["true"])
class TestB:
    def test_leak(self): popen("b")
    def test_clean(self): subprocess.run(["true"])
"""


@pytest.mark.parametrize("dist", ["load", "loadscope", "loadfile", "worksteal"])
@pytest.mark.parametrize("workers", ["-n2", "-n4", "--tx=2*popen"])
def test_the_same_verdicts_however_tests_are_distributed(pytester: pytest.Pytester, dist: str, workers: str) -> None:
    most = ("--maxprocesses=2",) if workers == "-n4" else ()
    result = watch(pytester, _SOURCE, "-pxdist.plugin", workers, *most, f"--dist={dist}")
    assert survivors(pytester) == {}
    assert result.ret == 1
    assert result.counts == {"passed": 5, "error": 3}
    assert result.text.count("= process leaks =") == 1
    told = {leak["pid"]: (leak["owner"], leak["test"]) for leak in leaks(result.junit)}
    assert told == {
        pid_of(pytester, "a"): ("test_it.py::TestA::test_leak", "test_leak"),
        pid_of(pytester, "b"): ("test_it.py::TestB::test_leak", "test_leak"),
        pid_of(pytester, "TestA"): ("fixture:server", "test_use"),
    }
    assert "test_clean" not in section(result)


@pytest.fixture
def socket_server(tmp_path: Path) -> Iterator[str]:
    """The address of an execnet socket server, in a process of its own."""
    path = os.pathsep.join([str(Path(pytest_cgroup.__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    with subprocess.Popen(
        [sys.executable, "-um", "execnet.script.socketserver", "127.0.0.1:0"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        text = ""
        while not (found := re.search(r"\('127\.0\.0\.1', (\d+)\)", text)):
            line = process.stdout.readline()
            assert line, text
            text += line
        try:
            yield f"127.0.0.1:{found[1]}"
        finally:
            process.kill()


def test_a_worker_behind_a_socket_says_the_same(pytester: pytest.Pytester, socket_server: str) -> None:
    """As on another host: it has a session of its own there."""
    tx = f"--tx=socket={socket_server}//chdir={pytester.path}"
    result = watch(pytester, _SOURCE, "-pxdist.plugin", tx, "--dist=load")
    assert survivors(pytester) == {}
    assert result.ret == 1, result.text
    assert result.counts == {"passed": 5, "error": 3}
    owners = {"test_it.py::TestA::test_leak", "test_it.py::TestB::test_leak", "fixture:server"}
    assert {leak["owner"] for leak in leaks(result.junit)} == owners


def test_a_worker_behind_a_socket_has_no_limit(pytester: pytest.Pytester, socket_server: str) -> None:
    """It is another's child: that is said, and its tests are skipped as --cgroup-missing has it."""
    pytester.makeini("[pytest]\ncontained_worker = pids=100\n")
    tx = f"--tx=socket={socket_server}//chdir={pytester.path}"
    result = watch(pytester, "def test_it(): pass\n", "-pxdist.plugin", tx, "--dist=load", "-rs")
    assert result.counts == {"skipped": 1}
    assert "is not started by this pytest, which can limit its own only" in result.text
