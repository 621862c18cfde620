"""What outlives a contained test is named, and killed in every case. Killed means: looked for by its pid, and gone."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys

import pytest

from tests.e2e.inner import run
from tests.e2e.leaving import is_alive, pid_of

_LEAVE = """
def leave(name, *argv):
    child = subprocess.Popen(argv or ["sleep", "1000"], start_new_session=True)
    open(f"{name}.pid", "w").write(str(child.pid))
    return child
"""
backends = pytest.mark.parametrize("backend", ["auto", "process"])


_WAYS = """
def popen(): return subprocess.Popen(["sleep", "1000"], start_new_session=True)
def deeper(): subprocess.run("sleep 1000 &", shell=True)
def forked():
    if os.fork() == 0: time.sleep(1000)
def daemon():
    if (pid := os.fork()) == 0:
        os.setsid()
        if os.fork() == 0: time.sleep(1000)
        os._exit(0)
    os.waitpid(pid, 0)
def spawned():
    import multiprocessing
    multiprocessing.get_context("spawn").Process(target=time.sleep, args=(1000,)).start()
"""


@backends
@pytest.mark.parametrize("given", ["", pytest.param("pid_ns=True", marks=pytest.mark.requires("pid_ns"))])
def test_where_it_was_started(pytester: pytest.Pytester, backend: str, given: str) -> None:
    """Also what has lost its parents, and what another program has started."""
    ways = {
        "popen": "Popen(",
        "deeper": "subprocess.run(",
        "forked": "os.fork() == 0: time",
        "daemon": "(pid := os.fork())",
        "spawned": ".start()",
    }
    source = _WAYS + "".join(f"@contained({given})\ndef test_{name}():\n    {name}()\n" for name in ways)
    result = run(pytester, source, f"--cgroup-backend={backend}")
    lines = pytester.path.joinpath("test_it.py").read_text().splitlines()
    assert result.counts == {"passed": 5, "error": 5}
    for name, words in ways.items():
        started, called = (
            next(n for n, line in enumerate(lines, 1) if sign in line) for sign in (words, f"    {name}()")
        )
        place = f"test_it.py:{started} in {name}, called at test_it.py:{called} in test_{name}"
        leaks = result.records[f"test_{name}"]["leaks"]
        assert [leak["started_at"] for leak in leaks] == [place] * (2 if name == "spawned" else 1)  # and its tracker
        assert f"started at {place}" in result.blocks[f"ERROR at teardown of test_{name}"]
    assert "child of `/bin/sh -c 'sleep 1000 &'`" in result.blocks["ERROR at teardown of test_deeper"]


@backends
@pytest.mark.parametrize("workers", [0, 2])
def test_killed_in_every_case_and_told_as_asked(pytester: pytest.Pytester, backend: str, workers: int) -> None:
    source = f"""{_LEAVE}
@contained
def test_fail(): leave("fail")
@contained(leaks="warn")
def test_warn(): leave("warn")
@contained(leaks="ignore")
def test_ignore(): leave("ignore")
def test_control(): leave("control")
"""
    result = run(pytester, source, f"--cgroup-backend={backend}", workers=workers)
    try:
        assert is_alive(pid_of(pytester, "control")), "the negative control: without the marker it survives"
    finally:
        os.kill(pid_of(pytester, "control"), signal.SIGKILL)
    assert not any(is_alive(pid_of(pytester, name)) for name in ("fail", "warn", "ignore"))
    assert result.counts == {"passed": 4, "warning": 1, "error": 1}
    block = result.blocks["ERROR at teardown of test_fail"]
    assert block.startswith("left behind, now killed: 1 process (sleep)")
    assert f"pid {pid_of(pytester, 'fail')}: sleep 1000, sleeping, age " in block
    assert f"in {pytester.path}" in block
    warnings = result.text.partition("warnings summary")[2]
    assert "ContainedWarning" in warnings
    assert f"pid {pid_of(pytester, 'warn')}: sleep 1000" in warnings
    outside_the_table = result.text.replace("\n".join(result.table), "")
    assert "test_ignore" not in outside_the_table
    assert {line.rpartition("::")[2] for line in result.table if "LEAK" in line} == {
        "test_fail",
        "test_warn",
        "test_ignore",
    }
    for name in ("fail", "warn", "ignore"):
        (leak,) = result.records[f"test_{name}"]["leaks"]
        assert leak["pid"] == pid_of(pytester, name)
        assert leak["argv"] == ["sleep", "1000"]
        assert leak["cwd"] == str(pytester.path)
        assert leak["owner"] == f"test_it.py::test_{name}"
        assert leak["rss_bytes"] > 0
        assert 0 <= leak["age_seconds"] < 60


def test_a_leak_is_added_to_the_tests_own_failure(pytester: pytest.Pytester) -> None:
    source = f"""{_LEAVE}
@pytest.fixture
def failing():
    yield
    raise ValueError("of the teardown")
@contained
def test_call():
    leave("call")
    assert not "its own failure"
@contained
def test_teardown(failing):
    leave("teardown")
"""
    result = run(pytester, source)
    assert result.counts == {"failed": 1, "passed": 1, "error": 2}
    assert "its own failure" in result.blocks["test_call"]
    assert "left behind, now killed: 1 process" in result.blocks["ERROR at teardown of test_call"]
    both = result.blocks["ERROR at teardown of test_teardown"]
    assert both.index("ValueError: of the teardown") < both.index("left behind, now killed: 1 process")
    assert not any(is_alive(pid_of(pytester, name)) for name in ("call", "teardown"))


def test_what_the_test_or_its_fixture_ended_is_no_leak(pytester: pytest.Pytester) -> None:
    source = f"""{_LEAVE}
@pytest.fixture
def stopped():
    child = leave("stopped")
    yield
    child.kill()
    child.wait()
@contained
def test_fixture(stopped): pass
@contained
def test_waited(): subprocess.run(["true"])
"""
    result = run(pytester, source)
    assert result.counts == {"passed": 2}
    assert all(record["leaks"] == [] for record in result.records.values())


def test_it_is_named_in_full(pytester: pytest.Pytester) -> None:
    """A port that it listens on, and whose child it is."""
    source = """
@contained
def test_it():
    reader, writer = os.pipe()
    if not os.fork():
        if (child := os.fork()):
            signal.pause()
        server = socket.create_server(("127.0.0.1", 0))
        os.write(writer, b"%d %d" % (server.getsockname()[1], os.getpid()))
        signal.pause()
    open("told", "wb").write(os.read(reader, 100))
"""
    result = run(pytester, source)
    port, pid = pytester.path.joinpath("told").read_text().split()
    block = result.blocks["ERROR at teardown of test_it"]
    (line,) = [line for line in block.splitlines() if f"pid {pid}: " in line]
    assert f"listening on {port}" in line
    other = next(leak["pid"] for leak in result.record["leaks"] if leak["pid"] != int(pid))
    assert f"[{other}]" in line.partition("child of")[2]
    assert block.startswith("left behind, now killed: 2 processes")


def test_it_is_named_with_its_parents(pytester: pytest.Pytester) -> None:
    source = """
@contained
def test_it():
    shell = subprocess.Popen(["sh", "-c", "sh -c 'sleep 1000 & echo; wait' & wait"], stdout=subprocess.PIPE)
    shell.stdout.readline()
"""
    text = run(pytester, source).blocks["ERROR at teardown of test_it"]
    assert re.search(r"^  pid \d+: sleep 1000, .* child of sh\[\d+\] < `sh -c .*`, started at ", text, re.MULTILINE), (
        text
    )


@backends
@pytest.mark.parametrize("given", ["", pytest.param("pid_ns=True", marks=pytest.mark.requires("pid_ns"))])
def test_a_zombie_is_named_as_such(pytester: pytest.Pytester, backend: str, given: str) -> None:
    source = f"""
@contained({given})
def test_left():
    pid = os.posix_spawn("/bin/true", ["true"], {{}})
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    open("left.pid", "w").write(str(pid))
@contained
def test_reaped():
    os.waitpid(os.posix_spawn("/bin/true", ["true"], {{}}), 0)
"""
    result = run(pytester, source, f"--cgroup-backend={backend}")
    assert result.counts == {"passed": 2, "error": 1}
    block = result.blocks["ERROR at teardown of test_left"]
    pid = pid_of(pytester, "left")
    assert (
        f"left behind, now killed: 1 process ([true])\n  pid {pid}: [true], zombie: exited, but never waited" in block
    )


def test_grace_asks_before_it_kills(pytester: pytest.Pytester) -> None:
    script = 'trap "echo asked > $0.asked; exit" TERM; echo > $0.ready; while :; do sleep 1000 & wait; done'
    source = f"""{_LEAVE}
def leave_a_listener(name):
    os.mkfifo(f"{{name}}.ready")
    leave(name, "sh", "-c", {script!r}, name)
    open(f"{{name}}.ready").read()
@contained(grace=20, leaks="ignore")
def test_asked(): leave_a_listener("asked")
@contained(leaks="ignore")
def test_not_asked(): leave_a_listener("not")
"""
    result = run(pytester, source)
    assert result.counts == {"passed": 2}
    assert pytester.path.joinpath("asked.asked").exists()
    assert not pytester.path.joinpath("not.asked").exists()
    assert not any(is_alive(pid_of(pytester, name)) for name in ("asked", "not"))


def test_an_error_for_warnings_makes_it_a_failure_of_the_test(pytester: pytest.Pytester) -> None:
    source = f"""{_LEAVE}
@contained(leaks="warn")
def test_it(): leave("it")
def test_other(): pass
"""
    result = run(pytester, source, "-Werror::pytest_cgroup.ContainedWarning")
    assert result.counts == {"passed": 2, "error": 1}
    assert "left behind, now killed: 1 process" in result.blocks["ERROR at teardown of test_it"]
    assert not is_alive(pid_of(pytester, "it"))


def test_the_warning_can_be_silenced_by_its_name(pytester: pytest.Pytester) -> None:
    source = f"""{_LEAVE}
@contained(leaks="warn")
def test_it(): leave("it")
"""
    result = run(pytester, source, "-Wignore::pytest_cgroup.ContainedWarning")
    assert result.counts == {"passed": 1}


def test_what_is_left_by_a_test_that_died_is_killed_and_named_too(pytester: pytest.Pytester) -> None:
    source = f"""{_LEAVE}
@contained
def test_it():
    leave("it")
    os.abort()
@contained(leaks="ignore")
def test_ignored():
    leave("ignored")
    os.abort()
"""
    result = run(pytester, source)
    assert result.blocks["test_it"].startswith("killed by SIGABRT (signal 6) in call")
    assert "left behind, now killed: 1 process (sleep)" in result.blocks["test_it"]
    assert "left behind" not in result.blocks["test_ignored"]
    assert not any(is_alive(pid_of(pytester, name)) for name in ("it", "ignored"))


@pytest.mark.requires("cgroup", "kill", "privileged")
@pytest.mark.parametrize("reaps", [True, False])
def test_as_pid_1_pytest_waits_for_those_that_were_killed(pytester: pytest.Pytester, reaps: bool) -> None:
    """As in a container of Docker's that was started for it: orphans become its children, and it is to reap them."""
    pytester.makeconftest(f"""
import os
from pytest_cgroup._backends import cgroup
if not {reaps}:
    cgroup.gets_orphans = lambda: False
def pytest_sessionfinish():
    assert os.getpid() == 1
    stats = [open(f"/proc/{{pid}}/stat").read() for pid in os.listdir("/proc") if pid.isdigit()]
    print("zombies:", sum(") Z " in stat for stat in stats))
""")
    source = """
import pytest_cgroup
def leave(): subprocess.run(["sh", "-c", "setsid sleep 1000 & exit 0"])
@contained(leaks="ignore")
def test_it(): leave()
@contained(timeout=1, expect="timeout")
def test_until_the_end(): leave(); time.sleep(1000)
def test_library():
    with pytest_cgroup.Container() as container:
        container.run(["sh", "-c", "setsid sleep 1000 & exit 0"])
"""
    result = run(pytester, source, "-s", prefix=("unshare", "--pid", "--fork", "--mount-proc"))
    assert result.counts == {"passed": 3}
    (zombies,) = re.findall(r"zombies: (\d+)$", result.text, re.MULTILINE)
    assert (int(zombies) == 0) is reaps


@pytest.mark.usefixtures("no_other_recovery")
def test_what_is_left_below_a_killed_reaper_can_not_be_told(pytester: pytest.Pytester) -> None:
    """Without a cgroup all hangs on the process above the test: where that is killed before the look, it is no pass.

    What is left outlives the run; `clean`, or whichever run of pytest is next, knows it by its mark.
    """
    source = """
@contained
def test_it():
    script = f"while kill -0 {os.getpid()} 2>/dev/null; do :; done; kill -9 {os.getppid()}; exec sleep 1000"
    child = subprocess.Popen(["sh", "-c", script], start_new_session=True)
    open("child.pid", "w").write(str(child.pid))
"""
    result = run(pytester, source, "--cgroup-backend=process")
    # Its status tells of others' sessions, too, of which nobody here can know whether they live.
    subprocess.run([sys.executable, "-m", "pytest_cgroup", "clean"], check=False, capture_output=True)
    assert not is_alive(pid_of(pytester, "child"))
    assert result.counts == {"passed": 1, "error": 1}
    assert "the process above it was killed: what it left behind can't be told" in result.text
