"""Namespaces through the marker, as root and, through a user namespace, as an ordinary user."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.as_user import OrdinaryUser
from tests.e2e.inner import HEAD, Result, command, run

# Module level is pytest's own process: what is noted there is what is outside.
_SOURCE = (
    HEAD
    + r"""
import errno, pathlib
KINDS = ("pid", "net", "mnt", "ipc", "uts", "cgroup", "time", "user")
def links(): return {kind: os.readlink(f"/proc/self/ns/{kind}") for kind in KINDS}
OUTSIDE = links()
HOST = socket.gethostname()
UID = os.getuid()
HERE = pathlib.Path(__file__).parent
def new(): return {kind for kind, link in links().items() if link != OUTSIDE[kind]} - {"user"}

def test_control():
    assert new() == set()
    assert socket.gethostname() == HOST

@contained
def test_none_unasked():
    assert links() == OUTSIDE

@contained(pid_ns=True)
def test_pid():
    assert new() == {"pid", "mnt"}
    assert 1 < os.getpid() < 20, "not PID 1"
    assert {int(name) for name in os.listdir("/proc") if name.isdigit()} == {1, os.getpid()}
    reader, writer = os.pipe()
    if not os.fork():
        if not os.fork():
            os.close(reader)
            os.write(writer, b"%d" % os.getpid())
            os._exit(0)
        os._exit(0)
    os.wait()
    os.close(writer)
    orphan = int(os.read(reader, 100))
    assert os.read(reader, 1) == b""
    pidfd = None
    try:
        pidfd = os.pidfd_open(orphan)
    except ProcessLookupError:
        return  # reaped already
    import select
    assert select.select([pidfd], [], [], 30)[0]

@contained(pid_ns=True)
def test_pid_kills_itself():
    os.kill(os.getpid(), signal.SIGKILL)

@contained(pid_ns=True)
def test_pid_leaks():
    subprocess.Popen(["sleep", "1000"], start_new_session=True)

@contained(net_ns=True)
def test_net():
    assert new() == {"net"}
    assert [name for _, name in socket.if_nameindex()] == ["lo"]
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
        pass

@contained(mount_ns=True)
def test_mount():
    assert new() == {"mnt"}

@contained(private_tmp=True)
def test_private_tmp(tmp_path):
    assert new() == {"mnt"}
    assert os.listdir(tmp_path) == []
    tmp_path.joinpath("written").write_text("x")
    assert (HERE / "test_it.py").exists(), "the sources below /tmp are still there"
    assert (HERE / "seen.txt").read_text() == "seen"
    HERE.joinpath("from_private_tmp").write_text("it is the real directory")
    assert not os.path.exists(os.environ["STRANGER"])
    with open("/tmp/pytest-cgroup-private", "x"):
        pass
    import tempfile
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        assert name.startswith("/tmp/")

@contained(readonly=[str(HERE / "kept")])
def test_readonly():
    assert (HERE / "kept/file").read_text() == "kept"
    with pytest.raises(OSError) as caught:
        (HERE / "kept/file").write_text("changed")
    assert caught.value.errno == errno.EROFS

@contained(hidden=[str(HERE / "kept"), str(HERE / "seen.txt")])
def test_hidden():
    assert os.listdir(HERE / "kept") == []
    assert (HERE / "seen.txt").read_text() == ""

@contained(ipc_ns=True)
def test_ipc():
    assert new() == {"ipc"}

@contained(uts_ns=True)
def test_uts():
    assert new() == {"uts"}
    assert socket.gethostname() == HOST

@contained(hostname="inside")
def test_hostname():
    assert new() == {"uts"}
    assert socket.gethostname() == "inside"

@contained(cgroup_ns=True)
def test_cgroup():
    assert new() == {"cgroup"}

@contained(time_ns=True)
def test_time():
    assert new() == {"time"}
    assert subprocess.run(["true"]).returncode == 0

@contained(user_ns=True)
def test_user():
    assert links()["user"] != OUTSIDE["user"]
    assert os.getuid() == UID

@contained(pid_ns=True, net_ns=True, mount_ns=True, ipc_ns=True, uts_ns=True, cgroup_ns=True, time_ns=True,
           user_ns=True, private_tmp=True, hostname="all", readonly=str(HERE / "kept"), hidden=str(HERE / "seen.txt"))
def test_all(tmp_path):
    assert new() == {*KINDS} - {"user"}
    tmp_path.joinpath("written").write_text("x")
"""
)
_FAILED = {"test_pid_kills_itself"}
_ERRORS = {"ERROR at teardown of test_pid_leaks"}


def check(result: Result, directory: Path) -> None:
    assert set(result.blocks) == _FAILED | _ERRORS, result.text
    assert result.blocks["test_pid_kills_itself"].startswith("killed by SIGKILL (signal 9) in call")
    assert "sleep 1000" in result.blocks["ERROR at teardown of test_pid_leaks"]
    assert result.counts["failed"] == 1
    assert result.counts["error"] == 1
    assert "skipped" not in result.counts
    assert directory.joinpath("from_private_tmp").exists()
    assert directory.joinpath("kept/file").read_text() == "kept"
    assert directory.joinpath("seen.txt").read_text() == "seen"
    assert not Path("/tmp/pytest-cgroup-private").exists()


def prepare(directory: Path) -> None:
    directory.joinpath("kept").mkdir()
    directory.joinpath("kept/file").write_text("kept")
    directory.joinpath("seen.txt").write_text("seen")
    directory.joinpath("test_it.py").write_text(_SOURCE, encoding="utf-8")
    directory.joinpath("pytest.ini").write_text("[pytest]\n")


@pytest.fixture
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Something in /tmp that is neither the test's nor its sources."""
    return tmp_path_factory.mktemp("stranger")


@pytest.mark.requires("root", "pid_ns", "net_ns", "mount_ns", "ipc_ns", "uts_ns", "cgroup_ns", "time_ns", "user_ns")
@pytest.mark.parametrize(("backend", "workers"), [("auto", 0), ("process", 0), ("auto", 2)])
def test_as_root(pytester: pytest.Pytester, stranger: Path, backend: str, workers: int) -> None:
    host = socket.gethostname()
    prepare(pytester.path)
    prefix = ("env", f"STRANGER={stranger}")
    check(run(pytester, None, f"--cgroup-backend={backend}", workers=workers, prefix=prefix), pytester.path)
    assert socket.gethostname() == host


@pytest.fixture
def directory_of(unprivileged: OrdinaryUser) -> Callable[[str], Path]:
    """Makes a directory that the ordinary user owns."""

    def make(name: str) -> Path:
        directory = unprivileged.home / name
        directory.mkdir()
        prepare(directory)
        if os.geteuid() == 0:
            for path in [directory, *directory.rglob("*")]:
                os.chown(path, unprivileged.uid, unprivileged.gid)
        return directory

    return make


@pytest.mark.requires("user_ns", "time_ns")
def test_as_an_ordinary_user(unprivileged: OrdinaryUser, directory_of: Callable[[str], Path], stranger: Path) -> None:
    directory = directory_of("namespaces")
    argv = command(["--basetemp", str(directory / "tmp")], python=unprivileged.python)
    done = unprivileged.run(["env", f"STRANGER={stranger}", *argv], cwd=directory)
    check(Result(done.returncode, done.stdout + done.stderr, [], directory), directory)


_POWERS = (
    HEAD
    + """
import pathlib
def capabilities(): return next(line for line in open("/proc/self/status") if line.startswith("CapEff")).split()[1]
NONE = "0" * 16
@pytest.fixture
def closed(tmp_path):
    path = tmp_path / "closed"
    path.write_text("secret")
    path.chmod(0)
    return path
MARK
def test_it(closed):
    assert os.readlink("/proc/self/ns/user") != OUTSIDE
    assert capabilities() EQUALS NONE
    RAISES
        closed.read_text()
    RAISES
        socket.create_server(("127.0.0.1", 80)).close()
    program = [sys.executable, "-c", f"import socket; socket.create_server(('127.0.0.1', 80))"]
    assert subprocess.run(program, stderr=subprocess.DEVNULL).returncode != 0, "no execve keeps a capability"
OUTSIDE = os.readlink("/proc/self/ns/user")
"""
)


@pytest.mark.requires("user_ns", "net_ns", "pid_ns")
@pytest.mark.parametrize("backend", ["auto", "process"])
@pytest.mark.parametrize("given", ["net_ns=True", "net_ns=True, pid_ns=True", "net_ns=True, no_new_privs=True"])
@pytest.mark.parametrize("asked", [False, True], ids=["implied", "asked for"])
def test_a_user_namespace_that_nobody_asked_for_gives_no_power(
    unprivileged: OrdinaryUser, directory_of: Callable[[str], Path], asked: bool, given: str, backend: str
) -> None:
    """An ordinary user's test meets file modes and the ports of root's as it does uncontained."""
    source = _POWERS.replace("MARK", f"@contained({given}, user_ns={asked})").replace("EQUALS", "!=" if asked else "==")
    source = source.replace("RAISES", "if True:" if asked else "with pytest.raises(PermissionError):")
    directory = directory_of(f"powers-{asked}-{given}-{backend}")
    directory.joinpath("test_it.py").write_text(source)
    arguments = ("--basetemp", str(directory / "tmp"), f"--cgroup-backend={backend}")
    done = unprivileged.run(command(arguments, python=unprivileged.python), cwd=directory)
    assert "1 passed" in done.stdout, done.stdout + done.stderr


@pytest.mark.requires("root", "user_ns", "net_ns")
def test_root_stays_root_in_a_user_namespace(pytester: pytest.Pytester) -> None:
    source = _POWERS.removeprefix(HEAD).replace("MARK", "@contained(net_ns=True, user_ns=True)")
    source = source.replace("EQUALS", "!=").replace("RAISES", "if True:").replace("!= 0, ", "== 0, ")
    assert run(pytester, source).counts == {"passed": 1}


@pytest.mark.requires("root")
def test_another_user_really(pytester: pytest.Pytester) -> None:
    source = """
SECRET = open("secret", "w").name
os.chmod(SECRET, 0o600)
@contained(user="nobody")
def test_it():
    import pwd
    nobody = pwd.getpwnam("nobody")
    assert os.getresuid() == (nobody.pw_uid,) * 3
    assert os.getresgid() == (nobody.pw_gid,) * 3
    assert 0 not in os.getgroups()
    with pytest.raises(PermissionError):
        os.setuid(0)
    with pytest.raises(PermissionError):
        open(SECRET)
    status = open("/proc/self/status").read()
    assert "CapEff:\\t0000000000000000" in status
@contained(user="nobody", no_new_privs=True)
def test_no_new_privs():
    assert "NoNewPrivs:\\t1" in open("/proc/self/status").read()
@contained(user=4242, group=4343)
def test_numbers():
    assert (os.getuid(), os.getgid(), os.getgroups()) == (4242, 4343, [4343])
def test_control():
    assert os.getuid() == 0
"""
    assert run(pytester, source).counts == {"passed": 4}


@pytest.mark.requires("mount_ns")
def test_the_set_up_fails_closed(pytester: pytest.Pytester) -> None:
    """A path that is gone when the container is entered: the test does not run, and the step is named."""
    source = """
import shutil
os.mkdir("here")
@pytest.fixture(scope="session")
def removes():
    os.rmdir("here")
@contained(readonly=os.path.abspath("here"))
def test_it(removes):
    open("ran", "w")
"""
    result = run(pytester, source)
    assert result.counts == {"error": 1}
    block = result.blocks["ERROR at setup of test_it"]
    assert block.startswith("contained: ")
    assert "readonly" in block
    assert "No such file or directory" in block
    assert not pytester.path.joinpath("ran").exists()
