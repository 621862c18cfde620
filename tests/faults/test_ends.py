"""The ways in which a run can end, but for SIGKILL (`e2e/test_guard.py`): what is said, and that nothing is left."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from pytest_cgroup._recover import NO_RECOVERY
from tests.e2e.inner import HEAD, command, run
from tests.e2e.stage import SECONDS, Stage, cgroups_of, guards_of
from tests.e2e.test_endings import limited_cgroup

pytestmark = pytest.mark.usefixtures("no_other_recovery")
backends = pytest.mark.parametrize("backend", [pytest.param("cgroup", marks=pytest.mark.requires("cgroup")), "process"])


@pytest.fixture(autouse=True)
def _with_recovery(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(NO_RECOVERY)


@pytest.fixture
def root(tmp_path: Path) -> Stage:
    return Stage(tmp_path, None)


@contextlib.contextmanager
def _begun(stage: Stage, source: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A run whose test has said that it is there; at the end nothing of it may be left."""
    stage.path.joinpath("test_it.py").write_text(f"{HEAD}\n{source}", encoding="utf-8")
    fifo = stage.path / "ready"
    os.mkfifo(fifo)
    ready = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    process = stage.popen(*arguments)
    try:
        assert select.select([ready], [], [], SECONDS)[0], "the test has not begun"
        yield process
        process.communicate(timeout=SECONDS)
        assert guards_of(process.pid) == []
        assert cgroups_of(process.pid) == []
        assert not [
            one for one in psutil.process_iter(["cmdline"]) if one.info["cmdline"] == ["sleep", str(os.getpid())]
        ]
    finally:
        os.close(ready)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


_STAYS = """
@contained
def test_it():
    subprocess.Popen(["sleep", "%d"], start_new_session=True)
    try:
        with open("ready", "w") as f: f.write("!")
        while True: time.sleep(120)
    finally:
        %s
"""


def _stays(at_the_end: str = "pass") -> str:
    return _STAYS % (os.getpid(), at_the_end)


@backends
def test_ctrl_c_once(root: Stage, backend: str) -> None:
    with _begun(root, _stays("open('torn', 'w').close()"), f"--cgroup-backend={backend}") as process:
        os.killpg(process.pid, signal.SIGINT)
        out, errors = process.communicate(timeout=SECONDS)
        assert process.returncode == pytest.ExitCode.INTERRUPTED
        assert root.path.joinpath("torn").exists()
        assert "KeyboardInterrupt" in out
        assert errors == ""


@backends
def test_ctrl_c_twice(root: Stage, backend: str) -> None:
    """A test that would tear down for ever is given up at the second."""
    forever = "open('ready', 'w').write('!'), [time.sleep(1) for _ in iter(int, 1)]"
    with _begun(root, _stays(forever), f"--cgroup-backend={backend}") as process:
        ready = os.open(root.path / "ready", os.O_RDONLY | os.O_NONBLOCK)
        os.read(ready, 10)
        os.killpg(process.pid, signal.SIGINT)
        assert select.select([ready], [], [], SECONDS)[0], "it does not tear down"
        os.close(ready)
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=SECONDS)
        assert process.returncode == pytest.ExitCode.INTERRUPTED
        assert "Traceback" not in errors


@backends
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_pytest_alone(root: Stage, backend: str, number: int) -> None:
    with _begun(root, _stays(), f"--cgroup-backend={backend}") as process:
        os.kill(process.pid, number)
        _, errors = process.communicate(timeout=SECONDS)
        assert process.returncode == -number
        assert f"pytest[{process.pid}] was killed, and left behind, now killed: 2 processes" in errors


@backends
def test_suspended_and_resumed(root: Stage, backend: str) -> None:
    """As by Ctrl-Z: everybody stops, and goes on. (SIGTSTP itself does nothing to a group that no shell has.)"""
    source = """
@contained
def test_it():
    with open("ready", "w") as f: f.write("!")
    open("go").read()

@contained
def test_after(): pass
"""
    os.mkfifo(root.path / "go")
    with _begun(root, source, f"--cgroup-backend={backend}") as process:
        os.killpg(process.pid, signal.SIGSTOP)
        pid, status = os.waitpid(process.pid, os.WUNTRACED)
        assert (pid, os.WIFSTOPPED(status)) == (process.pid, True)
        os.killpg(process.pid, signal.SIGCONT)
        with open(root.path / "go", "w"):
            pass
        out, errors = process.communicate(timeout=SECONDS)
        assert (process.returncode, errors) == (0, "")
        assert "2 passed" in out


@backends
def test_killed_while_suspended(root: Stage, backend: str) -> None:
    with _begun(root, _stays(), f"--cgroup-backend={backend}") as process:
        os.killpg(process.pid, signal.SIGSTOP)
        os.kill(process.pid, signal.SIGKILL)
        _, errors = process.communicate(timeout=SECONDS)
        assert "was killed, and left behind, now killed: 2 processes" in errors


@pytest.mark.requires("cgroup", "memory", "root")
def test_pytest_runs_out_of_memory(root: Stage) -> None:
    """The OOM killer takes pytest; not the guard, which asked to be spared, though it stands in the same cgroup."""
    source = f"""
@contained
def test_leaves():
    subprocess.Popen(["sleep", "{os.getpid()}"], start_new_session=True)
    with open("ready", "w") as f: f.write("!")
    time.sleep(0.2)
    os.kill(os.getppid(), signal.SIGUSR1)
    time.sleep(120)

def hog(*_):
    held = []
    while True: held.append(bytearray(os.urandom(1 << 20)))
signal.signal(signal.SIGUSR1, hog)
"""
    with limited_cgroup("memory.max", str(128 * 2**20)) as inside:
        root.path.joinpath("test_it.py").write_text(f"{HEAD}\n{source}", encoding="utf-8")
        argv = ["sh", "-c", f'echo 0 > {inside}/cgroup.procs && exec "$@"', "sh", *command(["test_it.py"])]
        done = subprocess.run(argv, cwd=root.path, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL)
    assert "was killed, and left behind, now killed: 2 processes" in done.stderr


_NO_ROOM = ("unshare", "-m", "sh", "-c", 'mount -t tmpfs -o size=64k none "$TMPDIR" && exec "$@"', "sh")


@pytest.mark.requires("root", "mount_ns")
@backends
def test_a_full_disk(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    """What a test prints is cut off where the disk ends, as under pytest alone; every verdict comes home."""
    full = pytester.mkdir("full")
    monkeypatch.setenv("TMPDIR", str(full))
    source = """
@contained
def test_prints():
    sys.stdout.write("x" * 1_000_000)
    assert not os.statvfs(os.environ["TMPDIR"]).f_bavail

@contained
def test_crashes():
    sys.stdout.write("y" * 1_000_000)
    os.abort()

@contained
def test_after(): print("a little")
"""
    result = run(pytester, source, f"--cgroup-backend={backend}", prefix=_NO_ROOM)
    assert "SIGABRT" in result.blocks["test_crashes"]
    assert result.counts == {"passed": 2, "failed": 1}


@backends
@pytest.mark.parametrize("how", ["closed", "gone", "full"])
def test_nobody_to_print_to(root: Stage, backend: str, how: str) -> None:
    """Then pytest itself may give up; nothing of ours survives that."""
    source = f"""
@contained
def test_it():
    subprocess.Popen(["sleep", "{os.getpid()}"], start_new_session=True)

@contained
def test_other(): pass
"""
    root.path.joinpath("test_it.py").write_text(f"{HEAD}\n{source}", encoding="utf-8")
    line = [*command([f"--cgroup-backend={backend}", "-s", "test_it.py"])]
    shell = {"closed": 'exec "$@" >&-', "gone": '"$@" | true', "full": 'exec "$@" >/dev/full'}[how]
    begun = time.monotonic()
    process = subprocess.Popen(
        ["sh", "-c", shell, "sh", *line], cwd=root.path, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    _, errors = process.communicate(timeout=SECONDS)
    assert time.monotonic() - begun < SECONDS
    assert "pytest_cgroup/" not in errors
    assert cgroups_of(process.pid) == []
    assert guards_of(process.pid) == []
    assert not [one for one in psutil.process_iter(["cmdline"]) if one.info["cmdline"] == ["sleep", str(os.getpid())]]
