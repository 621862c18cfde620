"""Whoever has containers of the library is killed: a pytest with fixtures, a program, `run`. Nothing survives it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from pytest_cgroup._guard import SWITCH
from pytest_cgroup._recover import NO_RECOVERY
from tests.as_user import OrdinaryUser
from tests.e2e.inner import HEAD, command
from tests.e2e.stage import cgroups_of

pytestmark = pytest.mark.usefixtures("no_other_recovery")
SECONDS = 30.0  # nothing here is a matter of speed; this is where a test that hangs ends
_STAY = """
import os, signal, sys, time
#: one that ends with us, one that left its session and its parent, and one that was forked and not executed
LEAVE = [sys.executable, "-c", '''
import os, signal, subprocess
daemon = subprocess.Popen(["sleep", "120"], start_new_session=True)
forked = os.fork()
if forked == 0:
    signal.alarm(120)
    signal.pause()
print(os.getpid(), daemon.pid, forked, flush=True)
''']
def stay(container):
    first = container.popen(["sleep", "120"])
    told = container.run(LEAVE, capture_output=True, text=True).stdout
    container.call(lambda: os.spawnlp(os.P_NOWAIT, "sleep", "sleep", "121"))
    called = None
    while called is None:  # it may not have been executed yet
        called = next((process.pid for process in container.processes() if process.cmdline()[-1:] == ["121"]), None)
    told = f"{os.getpid()} {first.pid} {called} {told.split(maxsplit=1)[1]}"
    with open("told.new", "w") as f: f.write(told)
    os.rename("told.new", "told")
    signal.alarm(120)
    while True: signal.pause()
"""
_FIXTURE = """
@pytest.fixture(scope="session")
def server(contained_factory): return contained_factory(name="server")
def test_it(server): stay(server)
"""
_PROGRAM = """
import pytest_cgroup
asked = {"slice": "db"} if sys.argv[1] == "cgroup" else {}
with pytest_cgroup.Container(backend=sys.argv[1], **asked) as container: stay(container)
"""


def argv_of(who: str, python: str, backend: str) -> list[str]:
    if who == "fixture":
        return command((f"--cgroup-backend={backend}", "test_it.py"), python)
    return [python, "program.py", backend]


class Stage:
    """Where somebody is started who has a container, and killed."""

    def __init__(self, path: Path, user: OrdinaryUser | None) -> None:
        self.path = path
        self._user = user

    @contextlib.contextmanager
    def started(self, who: str, backend: str, *, guard: bool) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
        self.path.joinpath("test_it.py").write_text(HEAD + _STAY + _FIXTURE, encoding="utf-8")
        self.path.joinpath("program.py").write_text(_STAY + _PROGRAM, encoding="utf-8")
        argv = argv_of(who, self._user.python if self._user else sys.executable, backend)
        argv = ["env", f"{SWITCH}={'' if guard else 1}", *argv]
        options = {"cwd": self.path, "text": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
        popen = self._user.popen if self._user else subprocess.Popen
        process = popen(argv, start_new_session=True, **options)  # type: ignore[call-overload]
        told, pids = self.path / "told", list[int]()
        try:
            deadline = time.monotonic() + SECONDS
            while not told.exists():
                if process.poll() is not None or time.monotonic() > deadline:
                    process.kill()
                    pytest.fail(process.communicate()[1])
                time.sleep(0.02)
            pids = [int(word) for word in told.read_text(encoding="utf-8").split()]
            yield process, pids
        finally:
            told.unlink(missing_ok=True)
            for pid in pids[1:]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.kill()
            process.communicate()


@pytest.fixture
def stage(request: pytest.FixtureRequest, tmp_path: Path) -> Stage:
    if getattr(request, "param", "root") == "user":
        user: OrdinaryUser = request.getfixturevalue("unprivileged")
        return Stage(user.home, user)
    return Stage(tmp_path, None)


def living(pids: list[int]) -> list[int]:
    found = []
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                found.append(pid)
    return found


def left(pids: list[int], *, after: float = SECONDS) -> tuple[list[int], list[str]]:
    """Who lives, and the cgroups in all hierarchies, at the latest *after* seconds after the first one was killed."""
    deadline = time.monotonic() + after
    while (living(pids) or cgroups_of(pids[0])) and time.monotonic() < deadline:
        time.sleep(0.02)
    return living(pids), cgroups_of(pids[0])


each_owner = pytest.mark.parametrize("who", ["fixture", "program"])
each_stage = pytest.mark.parametrize("stage", ["root", "user"], indirect=True)


@each_owner
@each_stage
@pytest.mark.parametrize("backend", ["auto", "process"])
def test_nothing_survives(stage: Stage, who: str, backend: str) -> None:
    with stage.started(who, backend, guard=True) as (_, pids):
        assert len(living(pids)) == 5
        os.kill(pids[0], signal.SIGKILL)
        assert left(pids) == ([], [])


@each_owner
@pytest.mark.requires("cgroup")
def test_without_the_guard_they_do(stage: Stage, who: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control. What is left the next run removes, or `clean`."""
    with stage.started(who, "cgroup", guard=False) as (_, pids):
        os.kill(pids[0], signal.SIGKILL)
        assert left(pids, after=1.0)[0] == pids[1:]
        assert cgroups_of(pids[0])
        monkeypatch.delenv(NO_RECOVERY)
        subprocess.run([sys.executable, "-m", "pytest_cgroup", "clean"], check=False, capture_output=True)
        assert left(pids) == ([], [])


@each_owner
def test_the_process_above_a_tree_ends_it_without_a_guard(stage: Stage, who: str) -> None:
    """But for what a function that was called has left, which has another above it: that is the guard's."""
    with stage.started(who, "process", guard=False) as (_, pids):
        os.kill(pids[0], signal.SIGKILL)
        assert left(pids, after=1.0)[0] == [pids[2]]


@pytest.mark.requires("cgroup")
@pytest.mark.parametrize("guard", [True, False], ids=["guard", "control"])
def test_a_command_in_the_foreground(tmp_path: Path, guard: bool) -> None:
    argv = ["env", f"{SWITCH}={'' if guard else 1}", sys.executable, "-m", "pytest_cgroup", "run", "--"]
    program = ["sh", "-c", "setsid sleep 120 & echo $! $$; exec sleep 120"]
    with subprocess.Popen([*argv, *program], stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout is not None
        pids = [process.pid, *map(int, process.stdout.readline().split())]
        process.kill()
        process.wait()
        found = left(pids, after=SECONDS if guard else 1.0)
        for pid in living(pids[1:]):
            os.kill(pid, signal.SIGKILL)
    if guard:
        assert found == ([], [])
    else:
        assert len(found[0]) == 2
        assert found[1]
        env = {name: value for name, value in os.environ.items() if name != NO_RECOVERY}
        subprocess.run([sys.executable, "-m", "pytest_cgroup", "clean"], check=False, capture_output=True, env=env)
        assert cgroups_of(pids[0]) == []
