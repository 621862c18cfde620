"""--process-leaks under pytest-xdist: however the tests are distributed."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import pytest_cgroup
from pytest_cgroup._recover import NO_RECOVERY
from tests.conftest import not_offered
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


@pytest.fixture
def ssh_server(tmp_path: Path) -> Iterator[str]:
    """How ssh(1) reaches a server of ours, and is let in as who we are."""
    package = Path(pytest_cgroup.__file__).parent
    sshd = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
    if sshd is None or os.geteuid() != 0:
        not_offered("ssh", "there is no sshd" if sshd is None else "not run as root")
    for key in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / key], check=True)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    server = {
        "ListenAddress": f"127.0.0.1:{port}",
        "HostKey": tmp_path / "host",
        "AuthorizedKeysFile": tmp_path / "user.pub",
        "PidFile": "none",
        "UsePAM": "no",
        "StrictModes": "no",
        "PermitRootLogin": "yes",
        # Nothing of our environment comes along, and it is not to clean up after the dead sessions of other tests.
        "SetEnv": f"{NO_RECOVERY}=1 PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 PYTHONPATH={package.parent}",
    }
    client = {
        "HostName": "127.0.0.1",
        "Port": port,
        "User": "root",
        "IdentityFile": tmp_path / "user",
        "StrictHostKeyChecking": "no",
        "UserKnownHostsFile": "/dev/null",
        "LogLevel": "ERROR",
    }
    for name, options in (("sshd_config", server), ("ssh_config", {"Host": "loopback", **client})):
        (tmp_path / name).write_text("".join(f"{key} {value}\n" for key, value in options.items()))
    os.makedirs("/run/sshd", mode=0o755, exist_ok=True)  # where it locks itself in; else made with its service
    command = [sshd, "-D", "-e", "-f", str(tmp_path / "sshd_config")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "listening" in (line := process.stderr.readline()), line + process.stderr.read()
        try:
            yield f"-F {tmp_path / 'ssh_config'} loopback"
        finally:
            process.kill()


@pytest.mark.parametrize("way", ["socket", "ssh"])
def test_a_worker_elsewhere_says_the_same(pytester: pytest.Pytester, request: pytest.FixtureRequest, way: str) -> None:
    """As on another host: it has a session of its own there."""
    address = request.getfixturevalue(f"{way}_server")
    python = f"//python={sys.executable}" if way == "ssh" else ""
    tx = f"--tx={way}={address}{python}//chdir={pytester.path}"
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
