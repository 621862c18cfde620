"""pytest is killed, and nothing survives it; without the guard it does, until `clean`, or the next run, comes."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from pytest_cgroup._guard import NO_RECOVERY, SWITCH
from tests.as_user import OrdinaryUser
from tests.e2e.inner import HEAD, command

pytestmark = pytest.mark.usefixtures("no_other_recovery")
SECONDS = 30.0  # nothing here is a matter of speed; this is where a test that hangs ends
#: a daemon that left its parent's session, and a child of the test's own that was forked and not executed
_LEAVE = """
def stay(phase):
    daemon = subprocess.Popen(["sleep", "120"], start_new_session=True)
    forked = os.fork()
    if forked == 0:
        signal.alarm(120)
        signal.pause()
    controller = os.environ.get("PYTEST_XDIST_WORKER") and CONTROLLER
    told = [PYTEST, controller or PYTEST, os.getpid(), daemon.pid, forked]
    with os.fdopen(os.open("told", os.O_WRONLY), "w") as f:
        f.write(" ".join(map(str, told)) + "\\n")
    signal.alarm(120)
    while True:
        signal.pause()

PYTEST, CONTROLLER = os.getpid(), os.getppid()

@pytest.fixture
def stays(request):
    if request.param == "setup": stay("setup")
    yield
    if request.param == "teardown": stay("teardown")

@contained
@pytest.mark.parametrize("stays", [PHASE], indirect=True)
def test_it(stays):
    if PHASE == "call": stay("call")
"""


@pytest.fixture(autouse=True)
def _with_recovery(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(NO_RECOVERY)


@dataclasses.dataclass
class Run:
    """An inner pytest whose test stays where it is."""

    process: subprocess.Popen[str]
    pytest: int
    controller: int
    left: list[psutil.Process]

    @property
    def survivors(self) -> list[psutil.Process]:
        return [process for process in self.left if _lives(process)]

    def kill(self, victim: int) -> str:
        """SIGKILL *victim*; what is then said on stderr, until nobody has that open any more."""
        os.kill(victim, signal.SIGKILL)
        return self.process.communicate(timeout=SECONDS)[1]


def _lives(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


def cgroups_of(pid: int) -> list[str]:
    """The cgroups of the session of the process that had *pid*."""
    with open("/proc/self/mountinfo", encoding="utf-8") as f:
        mounts = {line.split(" - ")[0].split()[4] for line in f if line.split(" - ")[1].startswith("cgroup")}
    return [
        str(Path(directory, name))
        for mount in mounts
        for directory, names, _ in os.walk(mount)
        for name in names
        if name.startswith(f"pytest-cgroup-{pid}-") and not name.endswith(".scope")
    ]


class Stage:
    """Where inner runs are started, as root or as an ordinary user."""

    def __init__(self, path: Path, user: OrdinaryUser | None) -> None:
        self.path = path
        self._user = user

    @contextlib.contextmanager
    def run(self, *arguments: str, phase: str = "call", guard: bool = True) -> Iterator[Run]:
        """Run the test until it stays in *phase*; whatever is left at the end is killed."""
        self.path.joinpath("test_it.py").write_text(f"{HEAD}\nPHASE = {phase!r}\n{_LEAVE}", encoding="utf-8")
        told = self.path / "told"
        os.mkfifo(told, 0o666)
        os.chmod(told, 0o666)
        reader = os.open(told, os.O_RDONLY | os.O_NONBLOCK)
        process = self.popen(*arguments, guard=guard)
        left: list[psutil.Process] = []
        try:
            text, deadline = b"", time.monotonic() + SECONDS
            while not text.endswith(b"\n"):
                if process.poll() is not None or time.monotonic() > deadline:
                    process.kill()
                    pytest.fail("\n".join(process.communicate()))
                if select.select([reader], [], [], 0.5)[0]:
                    text += os.read(reader, 1000)
            inner, controller, *pids = map(int, text.split())
            left += map(psutil.Process, pids)
            yield Run(process, inner, controller, left)
        finally:
            os.close(reader)
            told.unlink()
            for one in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()
            process.kill()
            process.communicate()

    def popen(self, *arguments: str, guard: bool = True) -> subprocess.Popen[str]:
        python = self._user.python if self._user else sys.executable
        line = command((*arguments, "test_it.py"), python)
        line[3:3] = [f"{SWITCH}="] if guard else [f"{SWITCH}=1"]
        if self._user is None:
            return subprocess.Popen(
                line, cwd=self.path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
            )
        return self._user.popen(line, cwd=self.path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def clean(self, status: int = 0) -> dict[str, list[dict[str, object]]]:
        """What `python -m pytest_cgroup clean` says of what it did; others' cgroups may be here, too."""
        argv = ["-m", "pytest_cgroup", "clean", "--json"]
        if self._user is not None:
            done = self._user.run([self._user.python, *argv])
        else:
            done = subprocess.run([sys.executable, *argv], capture_output=True, text=True, check=False, timeout=SECONDS)
        assert not done.stderr
        return json.loads(done.stdout)  # type: ignore[no-any-return]


@pytest.fixture(params=[pytest.param("root", marks=pytest.mark.requires("root")), "user"])
def stage(request: pytest.FixtureRequest, tmp_path: Path) -> Stage:
    if request.param == "root":
        return Stage(tmp_path, None)
    user = request.getfixturevalue("unprivileged")
    path = user.home / tmp_path.name
    path.mkdir(exist_ok=True)
    if os.geteuid() == 0:
        os.chown(path, user.uid, user.gid)
    return Stage(path, user)


@pytest.fixture
def root(tmp_path: Path) -> Stage:
    """Whoever runs the tests."""
    return Stage(tmp_path, None)


backends = pytest.mark.parametrize("backend", ["auto", "process"])


@backends
@pytest.mark.parametrize("phase", ["setup", "call", "teardown"])
def test_nothing_survives_pytest(stage: Stage, backend: str, phase: str) -> None:
    with stage.run(f"--cgroup-backend={backend}", phase=phase) as run:
        said = run.kill(run.pytest)
        assert run.survivors == []
        assert cgroups_of(run.pytest) == []
        assert f"pytest[{run.pytest}] was killed, and left behind, now killed: 3 processes" in said
        assert f"sleep[{run.left[1].pid}]" in said


@backends
def test_without_the_guard_it_survives_until_it_is_cleaned(stage: Stage, backend: str) -> None:
    """The negative control. What was forked, and not executed, has no mark in the process backend but its parent."""
    with stage.run(f"--cgroup-backend={backend}", guard=False) as run:
        os.kill(run.pytest, signal.SIGKILL)
        run.process.wait(SECONDS)
        cgroups = cgroups_of(run.pytest)
        daemon = run.left[1]
        assert _lives(daemon)
        told = stage.clean()
        assert daemon.pid in [one["pid"] for one in told["killed"]]
        assert not _lives(daemon)
        assert cgroups_of(run.pytest) == []
        assert set(cgroups) <= set(map(str, told["removed"]))
        if cgroups:
            assert run.survivors == []


@backends
def test_the_next_run_cleans_up_as_well(root: Stage, tmp_path: Path, backend: str) -> None:
    with root.run(f"--cgroup-backend={backend}", guard=False) as run:
        os.kill(run.pytest, signal.SIGKILL)
        run.process.wait(SECONDS)
        assert _lives(run.left[1])
        other = tmp_path / "other"
        other.mkdir()
        other.joinpath("test_it.py").write_text(f"{HEAD}\n@contained\ndef test_it(): pass\n", encoding="utf-8")
        process = Stage(other, None).popen(f"--cgroup-backend={backend}")
        assert process.communicate(timeout=SECONDS)[1] == ""
        assert process.returncode == 0
        assert not _lives(run.left[1])
        assert cgroups_of(run.pytest) == []


@backends
@pytest.mark.parametrize("victim", ["worker", "controller"])
def test_nothing_survives_xdist(stage: Stage, backend: str, victim: str) -> None:
    arguments = ("-p", "xdist.plugin", "-n2", "--max-worker-restart=0", f"--cgroup-backend={backend}")
    with stage.run(*arguments) as run:
        assert run.controller == run.process.pid
        worker = psutil.Process(run.pytest)
        said = run.kill(run.pytest if victim == "worker" else run.controller)
        assert run.survivors == []
        assert not _lives(worker)
        assert cgroups_of(run.pytest) == cgroups_of(run.controller) == []
        assert f"pytest[{run.pytest}] was killed" in said


@backends
def test_what_survives_xdist_without_the_guard(root: Stage, backend: str) -> None:
    with root.run("-p", "xdist.plugin", "-n2", f"--cgroup-backend={backend}", guard=False) as run:
        worker = psutil.Process(run.pytest)
        os.kill(run.controller, signal.SIGKILL)
        run.process.wait(SECONDS)
        assert run.survivors == run.left
        if _lives(worker):  # for it learns of it by itself, and ends in its own time
            worker.kill()
            worker.wait(SECONDS)
        assert _lives(run.left[1])
        root.clean()
        assert not _lives(run.left[1])
        assert cgroups_of(run.pytest) == cgroups_of(run.controller) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_other_ends_of_the_whole_group(root: Stage, number: int) -> None:
    """As from a CI service, or a terminal that closes: pytest handles none of them; the guard is not reached."""
    with root.run() as run:
        os.killpg(run.process.pid, number)
        said = run.process.communicate(timeout=SECONDS)[1]
        assert run.process.returncode == -number
        assert run.survivors == []
        assert cgroups_of(run.pytest) == []
        assert "was killed, and left behind" in said


ENDS = {
    "pass": ("", "", 0),
    "-x": ("assert 0", "-x", 1),
    "exit": ("pytest.exit('enough', 3)", "", 3),
    "ctrl-c": ("raise KeyboardInterrupt", "", 2),
    "collect-only": ("", "--collect-only", 0),
}


@backends
@pytest.mark.parametrize("end", ENDS)
def test_a_clean_end_is_the_guards_too(root: Stage, backend: str, end: str) -> None:
    does, option, status = ENDS[end]
    source = f"{HEAD}\n@contained\ndef test_it():\n    {does or 'pass'}\n@contained\ndef test_other(): pass\n"
    root.path.joinpath("test_it.py").write_text(source, encoding="utf-8")
    process = root.popen(f"--cgroup-backend={backend}", *filter(None, [option]))
    _, errors = process.communicate(timeout=SECONDS)
    assert (process.returncode, errors) == (status, "")
    assert guards_of(process.pid) == []
    assert cgroups_of(process.pid) == []


@pytest.mark.parametrize(
    ("hook", "status"),
    [("raise RuntimeError('elsewhere')", 3), ("os._exit(7)", 7)],
    ids=["internal-error", "os._exit"],
)
def test_an_end_in_a_hook(root: Stage, hook: str, status: int) -> None:
    source = f"import os\ndef pytest_runtest_logfinish(nodeid):\n    {hook}\n"
    root.path.joinpath("conftest.py").write_text(source, encoding="utf-8")
    root.path.joinpath("test_it.py").write_text(f"{HEAD}\n@contained\ndef test_it(): pass\n", encoding="utf-8")
    process = root.popen()
    _, errors = process.communicate(timeout=SECONDS)  # the guard has it open as long as it lives
    assert process.returncode == status
    assert "pytest-cgroup:" not in errors
    assert guards_of(process.pid) == []
    assert cgroups_of(process.pid) == []


def guards_of(pid: int) -> list[int]:
    """The guards of the process that had *pid*."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            line = process.cmdline()
            if any(word.endswith("_guard_process.py") for word in line) and f'"owner": [{pid}, ' in " ".join(line):
                found.append(process.pid)
    return found


def test_the_guard_is_beside_the_tests(root: Stage) -> None:
    """In a session of its own, nobody's child, in pytest's cgroup, with no descriptor of the test's, and deaf."""
    with root.run() as run:
        (pid,) = guards_of(run.pytest)
        guard = psutil.Process(pid)
        assert pid not in [child.pid for child in psutil.Process(run.pytest).children(recursive=True)]
        assert os.getsid(pid) != os.getsid(run.pytest)
        assert Path(f"/proc/{pid}/cgroup").read_text() == Path(f"/proc/{run.pytest}/cgroup").read_text()
        assert guard.num_fds() == 3
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            guard.send_signal(number)
        assert f"pytest[{run.pytest}] was killed" in run.kill(run.pytest)
        assert run.survivors == []


def test_the_guard_is_killed_first(root: Stage) -> None:
    """Then there is nobody to clean up; pytest, while it lives, does not notice."""
    with root.run() as run:
        (pid,) = guards_of(run.pytest)
        os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + SECONDS
        while guards_of(run.pytest) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert run.survivors == run.left
        os.kill(run.pytest, signal.SIGKILL)
        run.process.wait(SECONDS)
        assert _lives(run.left[1])
        root.clean()
        assert not _lives(run.left[1])


def test_no_guard_without_a_contained_test(root: Stage) -> None:
    source = f"""{HEAD}
def test_it():
    os.kill(os.getpid(), signal.SIGSTOP)
"""
    root.path.joinpath("test_it.py").write_text(source, encoding="utf-8")
    process = root.popen()
    os.waitpid(process.pid, os.WUNTRACED)
    assert guards_of(process.pid) == []
    process.send_signal(signal.SIGCONT)
    assert process.communicate(timeout=SECONDS)[1] == ""
    assert process.returncode == 0
