"""The races and the odd things that are known to undo a supervisor, each as a test does them."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

import pytest_cgroup
from pytest_cgroup._cgroup import Cgroup
from pytest_cgroup._host import Host
from tests.e2e.inner import Result, run
from tests.e2e.leaving import is_alive

_LEAVES = r"""
import pathlib

def note(pid):
    open("left", "a").write(f"{pid}\n")

def sleeper():
    note(subprocess.Popen(["sleep", "120"], start_new_session=True).pid)

def own_directories():
    found = {}
    own = dict(line.strip().split(":", 2)[1:] for line in open("/proc/self/cgroup"))
    for line in open("/proc/self/mountinfo"):
        before, after = line.split(" - ")
        kind, _, options = after.split()
        point, root = before.split()[4], before.split()[3]
        for controller in ([""] if kind == "cgroup2" else options.split(",") if kind == "cgroup" else []):
            if controller in own or ("name=" + controller) in own:
                found[controller] = point + own[controller].removeprefix(root.rstrip("/"))
    return found
"""


def _left(pytester: pytest.Pytester) -> list[int]:
    """Who of those that were noted lives; they are killed."""
    path = pytester.path / "left"
    pids = [int(line) for line in path.read_text().split()] if path.exists() else []
    found = [pid for pid in pids if is_alive(pid)]
    for pid in found:
        psutil.Process(pid).kill()
    return found


def _play(pytester: pytest.Pytester, source: str, *arguments: str, **more: tuple[str, ...]) -> Result:
    result = run(pytester, _LEAVES + source, *arguments, **more)  # type: ignore[arg-type]
    assert "pytest_cgroup/" not in result.text.replace(str(Path(pytest_cgroup.__file__).parent), ""), result.text
    return result


# fork against cgroup.kill


@pytest.fixture
def cgroup() -> Iterator[Cgroup]:
    host = Host()
    try:
        host.capability("cgroup")
        assert host.placement.session is not None
        made = host.placement.session.child("races")
        made.make()
        yield made
        made.kill_until_empty(5.0)
        made.remove()
    finally:
        host.close()


@pytest.mark.requires("cgroup")
def test_forks_that_slip_through_the_kill(cgroup: Cgroup, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels before the fix let a fork slip through: it is killed again, and again, until nobody is there."""
    kills, slipped = [], []

    def leaky(way: Callable[..., None]) -> Callable[..., None]:
        def kill(self: Cgroup, *number: int) -> None:
            way(self, *number)
            kills.append(1)
            if len(kills) < 4:
                process = subprocess.Popen(["sleep", "120"])
                slipped.append(process)
                self.adopt(process.pid)

        return kill

    monkeypatch.setattr(Cgroup, "kill", leaky(Cgroup.kill))
    monkeypatch.setattr(Cgroup, "signal", leaky(Cgroup.signal))
    cgroup.kill()
    assert cgroup.populated  # the control: once is not enough
    assert cgroup.kill_until_empty(10.0)
    assert len(kills) >= 4
    assert [process.wait() for process in slipped] == [-9, -9, -9]


@pytest.mark.requires("cgroup")
def test_who_can_not_be_killed_is_told_in_time(cgroup: Cgroup, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a task in uninterruptible sleep."""
    with subprocess.Popen(["sleep", "120"]) as process:
        cgroup.adopt(process.pid)
        monkeypatch.setattr(Cgroup, "kill", lambda self: None)
        monkeypatch.setattr(Cgroup, "signal", lambda self, number: None)
        begun = time.monotonic()
        assert not cgroup.kill_until_empty(0.2)
        assert time.monotonic() - begun < 5.0
        process.kill()


_STUCK_CHILD = """
    process = subprocess.Popen(["sleep", "120"])
    stick(process.pid)
"""
_STUCK_ITSELF = """
    stick(os.getpid())
    time.sleep(120)
"""


@pytest.mark.requires("cgroup", "root")
@pytest.mark.parametrize(
    ("stuck", "counts"),
    [
        pytest.param(_STUCK_CHILD, {"passed": 2, "error": 1}, id="what it started"),
        pytest.param(_STUCK_ITSELF, {"passed": 1, "failed": 1}, id="itself"),
    ],
)
def test_a_test_that_can_not_be_killed_is_told(pytester: pytest.Pytester, stuck: str, counts: dict[str, int]) -> None:
    """Stuck in a frozen cgroup of v1, which SIGKILL does not reach; a thread of the outer run's lets it go at last."""
    conftest = """
import os, threading, time
from pytest_cgroup import _container
_container.KILL_SECONDS = 0.3

def pytest_unconfigure(config):
    for line in open("stuck"):
        path = line.strip()
        with open(path + "/freezer.state", "w") as f: f.write("THAWED")
        for _ in range(500):
            if not open(path + "/cgroup.procs").read(): break
            time.sleep(0.01)
        os.rmdir(path)
"""
    pytester.path.joinpath("conftest.py").write_text(conftest, encoding="utf-8")
    source = f"""
def stick(pid):
    base = own_directories().get("freezer")
    if base is None:
        pytest.skip("no freezer of v1")
    path = (base.rpartition('/pytest-cgroup-')[0] or base) + "/stuck-" + str(os.getpid())
    os.mkdir(path)
    open("stuck", "w").write(path)
    note(pid)
    open(path + "/cgroup.procs", "w").write(str(pid))
    open(path + "/freezer.state", "w").write("FROZEN")
@contained(timeout=3)
def test_stuck(): {stuck}
@contained
def test_after(): pass
"""
    pytester.path.joinpath("stuck").write_text("", encoding="utf-8")
    result = _play(pytester, source)
    if result.counts.get("skipped"):
        pytest.skip("no freezer of v1")
    assert "still there 0 s after SIGKILL: pids [" in result.text
    assert result.counts == counts
    assert _left(pytester) == []


# a test and its own cgroups


_CGROUPS = """
@contained(timeout=1)
def test_freezes_itself():
    unified = own_directories()[""]
    open(unified + "/cgroup.freeze", "w").write("1")
    time.sleep(60)

@contained
def test_leaves_a_frozen_one():
    inner = own_directories()[""] + "/inner"
    os.mkdir(inner)
    process = subprocess.Popen(["sleep", "120"])
    note(process.pid)
    open(inner + "/cgroup.procs", "w").write(str(process.pid))
    open(inner + "/cgroup.freeze", "w").write("1")

@contained
def test_makes_a_threaded_one():
    inner = own_directories()[""] + "/threads"
    os.mkdir(inner)
    open(inner + "/cgroup.type", "w").write("threaded")
    started = threading.Event()
    thread = threading.Thread(target=lambda: (started.set(), time.sleep(120)), daemon=True)
    thread.start()
    started.wait()
    open(inner + "/cgroup.threads", "w").write(str(thread.native_id))
    sleeper()

@contained
def test_kills_its_own():
    open(own_directories()[""] + "/cgroup.kill", "w").write("1")
    time.sleep(60)

@contained(pid_ns=True)
def test_moves_out_in_a_pid_namespace():
    for path in own_directories().values():
        if "pytest-cgroup-" in path:
            open(path.rpartition("/pytest-cgroup-")[0] + "/cgroup.procs", "w").write("0")
    subprocess.Popen(["sleep", "2718"], start_new_session=True)

@contained
def test_moves_out():
    for path in own_directories().values():
        if "pytest-cgroup-" in path:
            open(path.rpartition("/pytest-cgroup-")[0] + "/cgroup.procs", "w").write("0")

@contained
def test_after(): pass
"""


@pytest.mark.requires("cgroup", "kill", "root", "pid_ns")
def test_a_test_that_meddles_with_its_own_cgroups(pytester: pytest.Pytester) -> None:
    result = _play(pytester, _CGROUPS)
    blocks = result.blocks
    assert "timeout: killed" in blocks["test_freezes_itself"]
    assert "1 process" in blocks["ERROR at teardown of test_leaves_a_frozen_one"]
    assert "1 process" in blocks["ERROR at teardown of test_makes_a_threaded_one"]
    assert "SIGKILL" in blocks["test_kills_its_own"]
    assert "test_moves_out" not in blocks
    assert "test_after" not in blocks
    assert _left(pytester) == []
    assert not [one for one in psutil.process_iter(["cmdline"]) if one.info["cmdline"] == ["sleep", "2718"]]


_MOUNTS = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)

def must(result):
    if result: raise OSError(ctypes.get_errno(), "")

@contained(mount_ns=True)
def test_mounts_over_cgroups():
    must(libc.mount(b"none", b"/sys/fs/cgroup", b"tmpfs", 0, None))
    assert os.listdir("/sys/fs/cgroup") == []
    sleeper()

@contained(mount_ns=True)
def test_unmounts_proc():
    note(subprocess.Popen(["sleep", "120"], start_new_session=True).pid)
    must(libc.umount2(b"/proc", 2))
    assert not os.path.exists("/proc/self")

@contained
def test_after(): pass
"""


@pytest.mark.requires("cgroup", "root", "mount_ns")
def test_a_test_that_hides_the_kernels_files(pytester: pytest.Pytester) -> None:
    result = _play(pytester, _MOUNTS)
    assert "1 process" in result.blocks["ERROR at teardown of test_mounts_over_cgroups"]
    assert "1 process" in result.blocks["ERROR at teardown of test_unmounts_proc"]
    assert result.counts == {"passed": 3, "error": 2}
    assert _left(pytester) == []


# who holds on to something


_HOLDS = """
@contained
def test_a_daemon_holds_stdout():
    note(subprocess.Popen(["sleep", "120"], start_new_session=True, stdout=sys.__stdout__, stderr=sys.__stderr__).pid)

@contained
def test_a_fork_holds_every_descriptor():
    if (pid := os.fork()) == 0:
        os.setsid()
        time.sleep(120)
        os._exit(0)
    note(pid)

@contained
def test_one_ignores_everything():
    code = "import signal\\nfor n in signal.valid_signals() - {9, 19}: signal.signal(n, signal.SIG_IGN)\\n"
    code += "print('deaf', flush=True)\\nsignal.pause()"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    note(process.pid)
    process.stdout.readline()

@contained
def test_after(): pass
"""


@pytest.mark.parametrize("backend", [pytest.param("cgroup", marks=pytest.mark.requires("cgroup")), "process"])
@pytest.mark.parametrize("option", ["--capture=fd", "-s"])
def test_who_holds_on_does_not_hold_the_run(pytester: pytest.Pytester, backend: str, option: str) -> None:
    begun = time.monotonic()
    result = _play(pytester, _HOLDS, f"--cgroup-backend={backend}", option)
    assert time.monotonic() - begun < 60.0  # the processes stay for 120 s
    assert result.counts == {"passed": 4, "error": 3}
    assert _left(pytester) == []


# pytest is short of something


def test_pytest_has_no_descriptor_left(pytester: pytest.Pytester) -> None:
    source = """
@pytest.fixture(scope="module")
def everything():
    fds = []
    try:
        while True: fds.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        pass
    yield
    for fd in fds: os.close(fd)

@contained
def test_before(): pass

@contained
def test_without(everything): pass

def test_uncontained(everything): pass
"""
    result = _play(pytester, source, prefix=("prlimit", "--nofile=96"))
    assert "Too many open files" in result.blocks["ERROR at setup of test_without"]
    assert result.counts == {"passed": 2, "error": 1}


def test_what_is_ten_thousand_deep_comes_home(pytester: pytest.Pytester) -> None:
    source = """
@contained
def test_recursion():
    sys.setrecursionlimit(12_000)
    def deeper(n):
        return deeper(n - 1) if n else 1 / 0
    deeper(10_000)

@contained
def test_property(record_property):
    nested = []
    for _ in range(10_000): nested = [nested]
    record_property("nested", nested)

@contained
def test_lines():
    for n in range(10_000): print(n)
    assert 0

@contained
def test_after(): pass
"""
    result = _play(pytester, source, "--tb=native")
    assert "ZeroDivisionError" in result.blocks["test_recursion"]
    assert result.counts == {"passed": 2, "failed": 2}


def test_no_clock_that_can_be_set_is_asked() -> None:
    """A step of the wall clock ends no test early, and lets none hang: every deadline is of the monotonic clock."""
    package = Path(pytest_cgroup.__file__).parent
    wall = re.compile(r"\btime\.time(?:_ns)?\(|\bdatetime\b|CLOCK_REALTIME")
    found = {path.name for path in package.rglob("*.py") if wall.search(path.read_text(encoding="utf-8"))}
    assert found <= {"_description.py", "_elsewhere.py"}  # where psutil's ages are of that clock: other systems
