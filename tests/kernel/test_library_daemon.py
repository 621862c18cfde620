"""`Container.daemon`: a program that is kept up: its restarts, its one end, and who is told when it fails."""

from __future__ import annotations

import functools
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from pytest_cgroup import Container, ContainerError, ContainerTimeout, Daemon, DaemonError, SpecError, _station, ready
from pytest_cgroup._process import ProcessId
from tests.as_user import OrdinaryUser
from tests.e2e.stage import cgroups_of
from tests.kernel.contain import DEADLINE_SECONDS
from tests.kernel.forked import forked

SLEEP = ["sleep", "1000"]
UP = ready.log("^up")
PY = sys.executable
#: says "up", and what it is told by SIGTERM
SERVER = ["sh", "-c", "trap 'echo asked; exit 0' TERM; echo up; while :; do sleep 1000 & wait $!; done"]
STUBBORN = [PY, "-c", "import signal; signal.signal(15, signal.SIG_IGN); print('up', flush=True); signal.pause()"]


@pytest.fixture(autouse=True)
def _given_back() -> Iterator[None]:
    yield
    _station.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("pytest-cgroup")]


def until(condition: Callable[[], object], what: str | Callable[[], str]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"never: {what if isinstance(what, str) else what()}"
        time.sleep(0.005)


def restarted(daemon: Daemon, count: int) -> None:
    until(lambda: daemon.restarts == count and daemon.state == "ready", lambda: f"{count} restarts of {daemon!r}")


def failed(daemon: Daemon) -> None:
    until(lambda: daemon.state == "failed", lambda: f"it fails: {daemon!r}")


class Raised:
    """What a call in a thread raises."""

    def __init__(self, function: Callable[..., object], *args: Any, **kwargs: Any) -> None:
        self.error: BaseException | None = None
        self._call = functools.partial(function, *args, **kwargs)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._call()
        except BaseException as error:
            self.error = error

    def join(self) -> BaseException | None:
        self._thread.join(DEADLINE_SECONDS)
        assert not self._thread.is_alive(), "it hangs"
        return self.error


# what is asked


@pytest.mark.parametrize(
    ("asked", "what"),
    [
        ({"restart": "always"}, "restart='always' (daemon): is no policy; allowed: 'permanent', 'transient'"),
        ({"max_restarts": -1}, "max_restarts=-1 (daemon): is too little"),
        ({"max_restarts": "3"}, "is no number of restarts"),
        ({"within": "5"}, "within='5' (daemon)"),
        ({"backoff": -0.1}, "backoff=-0.1 (daemon)"),
        ({"grace": -1}, "grace=-1 (daemon)"),
        ({"stop_signal": 0}, "stop_signal=0 (daemon): is no signal"),
        ({"exit_status": 3}, "exit_status=3 (daemon): says no reasons"),
        ({"ready": 6379}, "ready=6379 (daemon): is no condition"),
        ({"after": UP}, "can't be there before it"),
        ({"after": "db"}, "can't be there before it"),
        ({"log": 1}, "log=1 (daemon): is no logger"),
        ({"log_limit": "1MB"}, "log_limit='1MB' (daemon)"),
        ({"output_window": 0}, "output_window=0 (daemon)"),
    ],
)
def test_a_bad_request(asked: dict[str, Any], what: str) -> None:
    with Container(backend="process") as container:
        with pytest.raises(SpecError) as raised:
            container.daemon(SLEEP, **asked)
        assert what in str(raised.value)
        assert not container.populated


def test_a_program_that_is_not_there(backend: str) -> None:
    with Container(backend=backend) as container:
        with pytest.raises(FileNotFoundError):
            container.daemon(["/no/such/program"])
        with pytest.raises(ValueError, match="preexec_fn"):
            container.daemon(SLEEP, preexec_fn=print)
        with pytest.raises(ValueError, match="text: the output of a daemon"):
            container.daemon(SLEEP, text=True)


def test_popens_options_are_had(backend: str, tmp_path: Path) -> None:
    with Container(backend=backend) as container:
        daemon = container.daemon(
            ["sh", "-c", "pwd; echo $WORD"], cwd=tmp_path, env={"WORD": "hi"}, restart="temporary"
        )
        daemon.wait(DEADLINE_SECONDS)
        assert daemon.tail().splitlines() == [str(tmp_path), "hi"]


# its end


def test_it_ends_with_its_container_and_is_no_leak(backend: str) -> None:
    with Container(backend=backend, leaks="fail", grace=DEADLINE_SECONDS) as container:
        daemon = container.daemon(SERVER, ready=UP)
        pid = daemon.pid
        assert daemon.running
        assert pid in [process.pid for process in container.processes()]
    assert (daemon.state, daemon.pid, daemon.running, daemon.reason) == ("ended", None, False, "normal")
    assert daemon.tail() == "up\nasked"
    assert container.outcome is not None
    assert container.outcome.leaks == ()
    assert not psutil.pid_exists(pid or 0)


def test_destroyed_it_is_not_asked(backend: str) -> None:
    with Container(backend=backend) as container:
        daemon = container.daemon(SERVER, ready=UP)
        outcome = container.destroy()
    assert (daemon.state, daemon.reason, daemon.tail()) == ("ended", "SIGKILL", "up")
    assert outcome.leaks == ()


def test_what_a_daemon_starts_at_the_last_moment_is_no_leak(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its family is asked for first; here that is before it has started anything."""
    with Container(backend=backend, leaks="fail") as container:
        daemon = container.daemon(["sh", "-c", "read word; sleep 1000"], stdin=subprocess.PIPE)
        family = daemon._upkeep.family

        def then_start() -> list[int]:
            found = family()
            assert daemon._upkeep.instance is not None
            stdin = daemon._upkeep.instance.process.stdin
            assert stdin is not None
            stdin.write(b"go\n")
            stdin.close()
            while len(container.processes()) < 2:
                time.sleep(0.001)
            return found

        monkeypatch.setattr(daemon._upkeep, "family", then_start)
        outcome = container.destroy()
    assert outcome.leaks == ()


def test_stop_is_gentle_and_final(backend: str) -> None:
    with Container(backend=backend) as container:
        daemon = container.daemon(SERVER, ready=UP, grace=DEADLINE_SECONDS)
        assert daemon.stop() == "normal"
        assert daemon.stop() == "normal"
        assert (daemon.state, daemon.restarts, daemon.returncode) == ("ended", 0, 0)
        assert daemon.wait(0) == "normal"
        assert not container.populated


def test_who_ignores_the_stop_signal_is_killed(backend: str) -> None:
    with Container(backend=backend) as container:
        daemon = container.daemon(STUBBORN, ready=UP)
        daemon.signal(signal.SIGTERM)
        assert daemon.running  # the control
        assert daemon.stop(grace=0.05) == "SIGKILL"
        assert not container.populated


def test_another_stop_signal(backend: str) -> None:
    with Container(backend=backend) as container:
        daemon = container.daemon(
            ["sh", "-c", "trap 'exit 7' HUP; echo up; while :; do sleep 1000 & wait $!; done"],
            ready=UP,
            stop_signal=signal.SIGHUP,
            grace=DEADLINE_SECONDS,
            exit_status={7: "hung up"},
        )
        assert daemon.stop() == "hung up"


def test_the_longer_grace_of_the_two_holds(backend: str) -> None:
    """With the container's alone it would be killed before it has ended by itself."""
    slow = "trap 'sleep 0.3; echo done; exit 0' TERM; echo up; while :; do sleep 1000 & wait $!; done"
    with Container(backend=backend, grace=0.01) as container:
        patient = container.daemon(["sh", "-c", slow], ready=UP, grace=DEADLINE_SECONDS)
        hasty = container.daemon(["sh", "-c", slow], ready=UP)
        container.stop()
    assert (patient.reason, patient.tail()) == ("normal", "up\ndone")
    assert hasty.reason == "SIGKILL"  # the control


_CHILD = "sleep 1000 & echo child $!; echo up; wait"
_FLED = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        print("child", os.getpid(), flush=True); print("up", flush=True)
        os.execlp("sleep", "sleep", "1000")
    os._exit(0)
os.wait()
time.sleep(1000)
"""


def child_of(daemon: Daemon) -> int:
    return int(next(line for line in daemon.lines() if line.startswith("child")).split()[1])


def test_what_came_of_it_ends_with_it(backend: str) -> None:
    """One that fled from its session, and from its parent, is found by the end of the container only."""
    with Container(backend=backend) as container:
        daemon = container.daemon(["sh", "-c", _CHILD], ready=UP, restart="temporary")
        child = child_of(daemon)
        daemon.signal(signal.SIGKILL)
        daemon.wait(DEADLINE_SECONDS)
        assert child not in [process.pid for process in container.processes()]

        fled = container.daemon([PY, "-c", _FLED], ready=UP, restart="temporary")
        child = child_of(fled)
        fled.signal(signal.SIGKILL)
        fled.wait(DEADLINE_SECONDS)
        assert child in [process.pid for process in container.processes()]  # the control, and what is not promised
    identity = ProcessId.of(child)
    assert identity is None or not identity.alive  # whoever it belongs to now has yet to reap it


def test_of_a_container_that_is_frozen(backend: str) -> None:
    with Container(backend=backend) as container:
        daemon = container.daemon(SLEEP)
        container.freeze()
    assert daemon.state == "ended"


# restarts


def test_permanent_is_started_again_whatever_the_end(backend: str) -> None:
    with Container(backend=backend) as container:
        daemon = container.daemon(["sh", "-c", "echo up; exec sleep 1000"], ready=UP, max_restarts=9)
        first = daemon.pid
        daemon.signal(signal.SIGKILL)
        restarted(daemon, 1)
        assert daemon.pid != first
        assert (daemon.returncode, daemon.reason) == (-signal.SIGKILL, "SIGKILL")
        assert list(daemon.lines()) == ["up", "up"]


@pytest.mark.parametrize(("status", "again"), [(0, False), (3, True), (4, False)])
def test_transient_is_started_again_unless_it_ended_normally(backend: str, status: int, again: bool) -> None:
    with Container(backend=backend) as container:
        daemon = container.daemon(
            ["sh", "-c", f"echo up; sleep 0.01; test -e gone && exec sleep 1000; exit {status}"],
            restart="transient",
            exit_status={4: "shutdown"},
            max_restarts=1,
        )
        if again:
            with pytest.raises(DaemonError, match="ended again after 1 restarts within 5 s: exit 3"):
                daemon.wait(DEADLINE_SECONDS)
        else:
            assert daemon.wait(DEADLINE_SECONDS) == {0: "normal", 4: "shutdown"}[status]
        assert daemon.restarts == int(again)


def test_temporary_is_never_started_again(backend: str) -> None:
    with Container(backend=backend) as container:
        daemon = container.daemon(["sh", "-c", "exit 3"], restart="temporary", exit_status=lambda code: f"code {code}")
        assert daemon.wait(DEADLINE_SECONDS) == "code 3"
        assert (daemon.state, daemon.restarts) == ("ended", 0)


@pytest.mark.parametrize("most", [0, 2])
def test_too_often_is_an_error_of_who_waits(backend: str, most: int) -> None:
    with Container(backend=backend) as container:
        daemon = container.daemon(["sh", "-c", "echo going down; exit 3"], max_restarts=most)
        with pytest.raises(
            DaemonError, match=f"daemon sh ended again after {most} restarts within 5 s: exit 3"
        ) as raised:
            daemon.wait(DEADLINE_SECONDS)
        assert (raised.value.daemon, raised.value.output) == ("sh", "\n".join(["going down"] * (most + 1)))
        assert "going down" in str(raised.value)
        assert (daemon.state, daemon.restarts) == ("failed", most)
        with pytest.raises(DaemonError):
            daemon.check()


def test_too_often_is_an_error_of_the_containers_end_if_nobody_was_told(backend: str) -> None:
    def run() -> Container:
        container = Container(backend=backend).start()
        for name in ("one", "two"):
            failed(container.daemon(["sh", "-c", "exit 3"], max_restarts=0, name=name))
        return container

    container = run()
    with pytest.raises(DaemonError, match="daemon one ended again") as raised, container:
        pass
    assert "daemon two ended again" in raised.value.__notes__[0]
    assert container.finish() is container.outcome  # it is said once
    container = run()
    with pytest.raises(KeyError), container:  # and hides no other error
        raise KeyError


def test_restarts_that_are_long_ago_do_not_count(backend: str) -> None:
    with Container(backend=backend) as container:
        daemon = container.daemon(["sh", "-c", "echo up; sleep 0.05; exit 3"], ready=UP, max_restarts=1, within=0.001)
        until(lambda: daemon.restarts >= 4, "it is restarted on")
        assert daemon.state != "failed"
        daemon.stop()


def test_each_pause_is_twice_as_long_as_the_one_before(backend: str) -> None:
    """It is the least that the kernel's clock says between the runs."""
    program = [PY, "-c", "import time; print(time.monotonic())"]
    with Container(backend=backend) as container:
        daemon = container.daemon(program, max_restarts=3, within=DEADLINE_SECONDS, backoff=0.05)
        with pytest.raises(DaemonError, match="after 3 restarts"):
            daemon.wait(DEADLINE_SECONDS)
        at = list(map(float, daemon.lines()))
        assert all(later - before >= least for before, later, least in zip(at, at[1:], (0.05, 0.1, 0.2), strict=False))


def test_a_pending_restart_is_cancelled(backend: str) -> None:
    with Container(backend=backend) as container:
        daemon = container.daemon(["sh", "-c", "exit 3"], backoff=DEADLINE_SECONDS)
        until(lambda: daemon.state == "restarting", "it is to be restarted")
        assert not daemon.running
        with pytest.raises(ContainerTimeout, match="is restarting, and not ready"):
            daemon.wait_ready(0)
        assert daemon.stop() == "exit 3"
        assert daemon.restarts == 0
        another = container.daemon(["sh", "-c", "exit 3"], backoff=DEADLINE_SECONDS)
        until(lambda: another.state == "restarting", "it is to be restarted")
    assert (another.state, another.restarts) == ("ended", 0)


def test_a_program_that_is_gone_when_it_is_to_be_restarted(backend: str, tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\necho up\nexec sleep 1000\n")
    program.chmod(0o755)
    with Container(backend=backend) as container:
        daemon = container.daemon([program], ready=UP, max_restarts=2)
        program.unlink()
        daemon.signal(signal.SIGKILL)
        with pytest.raises(DaemonError, match=r"after 2 restarts within 5 s: can't be started: .*No such file"):
            daemon.wait(DEADLINE_SECONDS)
        assert daemon.restarts == 0


def test_one_that_is_not_ready_again_in_time_counts_as_ended(backend: str, tmp_path: Path) -> None:
    once = f"mkdir {tmp_path}/once 2>/dev/null && echo up; exec sleep 1000"
    with Container(backend=backend) as container:
        daemon = container.daemon(["sh", "-c", once], ready=ready.log("up", timeout=2), max_restarts=1)
        daemon.signal(signal.SIGKILL)
        with pytest.raises(DaemonError, match="after 1 restarts within 5 s: not ready in time"):
            daemon.wait(DEADLINE_SECONDS)


def test_by_hand(backend: str) -> None:
    with Container(backend=backend) as container:
        daemon = container.daemon(SERVER, ready=UP, max_restarts=0, grace=DEADLINE_SECONDS)
        pids = [daemon.pid]
        for _ in range(3):
            daemon.restart()
            pids.append(daemon.pid)
            assert daemon.state == "ready"
        assert len(set(pids)) == 4
        assert daemon.restarts == 0
        assert daemon.tail() == "\n".join(["up", "asked"] * 3 + ["up"])
        daemon.stop()
        daemon.restart()
        assert daemon.running
        daemon.signal(signal.SIGKILL)
        with pytest.raises(DaemonError, match="after 0 restarts"):
            daemon.wait(DEADLINE_SECONDS)
        daemon.restart()
        daemon.check()


def test_all_are_kept_up_by_one_thread(backend: str) -> None:
    with Container(backend=backend) as one, Container(backend=backend) as two:
        daemons = [container.daemon(SERVER, ready=UP) for container in (one, two, one, two)]
        names = [thread.name for thread in threading.enumerate() if thread.name.startswith("pytest-cgroup")]
        assert names == ["pytest-cgroup supervisor"]
        for daemon in daemons:
            daemon.signal(signal.SIGKILL)
        for daemon in daemons:
            restarted(daemon, 1)
        one.destroy()
        assert [daemon.state for daemon in daemons] == ["ended", "ready"] * 2


def test_a_killed_container_starts_none_again(backend: str) -> None:
    with Container(backend=backend, timeout=0.5) as container:
        daemon = container.daemon(SLEEP)
        outcome = container.wait(DEADLINE_SECONDS)
    assert outcome.timed_out
    assert (daemon.state, daemon.restarts) == ("ended", 0)


def test_killed_by_kill_it_is_started_again(backend: str) -> None:
    with Container(backend=backend) as container:
        daemon = container.daemon(SERVER, ready=UP)
        container.kill()
        restarted(daemon, 1)
        assert container.populated


# names, and the file that says its pid


def test_names(backend: str) -> None:
    with Container(backend=backend) as container, Container(backend=backend) as other:
        assert [container.daemon(SLEEP).name for _ in range(3)] == ["sleep", "sleep-2", "sleep-3"]
        mine = container.daemon(SLEEP, name="db")
        with pytest.raises(ContainerError, match="has a daemon db already"):
            container.daemon(SLEEP, name="db")
        assert other.daemon(SLEEP, name="db").name == "db"
        mine.stop()
        assert container.daemon(SLEEP, name="db").running


def test_its_pidfile(backend: str, tmp_path: Path) -> None:
    path = tmp_path / "pid"
    path.write_text("999999999\n")  # left behind
    with Container(backend=backend) as container:
        daemon = container.daemon(SERVER, ready=UP, pidfile=path)
        assert path.read_text() == f"{daemon.pid}\n"
        with pytest.raises(DaemonError, match=r"process \d+ lives, says .*/pid"):
            container.daemon(SLEEP, pidfile=path)
        assert path.read_text() == f"{daemon.pid}\n"
        daemon.signal(signal.SIGKILL)
        restarted(daemon, 1)
        assert path.read_text() == f"{daemon.pid}\n"
        daemon.stop()
        assert not path.exists()
        container.daemon(SLEEP, pidfile=path)
        assert path.exists()
    assert list(tmp_path.iterdir()) == []


# who may use it


def test_a_forked_child_may_not(backend: str) -> None:
    with Container(backend=backend) as container:
        daemon = container.daemon(SLEEP)

        def attempt() -> None:
            for use in (daemon.stop, daemon.restart, daemon.tail, daemon.wait):
                with pytest.raises(ContainerError, match="was made by another process"):
                    use()

        forked(attempt)
        assert daemon.running


def test_many_threads_stop_it_at_once(backend: str) -> None:
    with Container(backend=backend) as container:
        daemon = container.daemon(SERVER, ready=UP, grace=DEADLINE_SECONDS)
        calls = [Raised(daemon.stop) for _ in range(8)] + [Raised(container.stop)]
        assert [call.join() for call in calls] == [None] * 9
    assert daemon.tail() == "up\nasked"


def test_a_stop_and_a_restart_at_once(backend: str) -> None:
    """Whoever comes first: it ends, and nothing hangs."""
    with Container(backend=backend) as container:
        for _ in range(10):
            daemon = container.daemon(SERVER, ready=UP)
            again, ended = Raised(daemon.restart), Raised(daemon.stop)
            ended.join()
            again.join()
            daemon.stop()
            assert daemon.state == "ended"
        assert not container.populated


@pytest.mark.usefixtures("no_other_recovery")
def test_it_is_killed_with_its_owner(backend: str) -> None:
    program = f"""
import os, sys
from pytest_cgroup import Container, ready
container = Container(backend={backend!r}).start()
daemon = container.daemon(["sh", "-c", "echo up; exec sleep 1000"], ready=ready.log("up"))
print(daemon.pid, flush=True)
sys.stdin.read()
"""
    owner = subprocess.Popen([PY, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert owner.stdin is not None
    assert owner.stdout is not None
    with owner:
        pid = int(owner.stdout.readline())
        assert psutil.pid_exists(pid)  # the control
        owner.kill()
    until(lambda: not psutil.pid_exists(pid), "the guard ends it")
    until(lambda: not cgroups_of(owner.pid), "and removes its cgroups")


@pytest.mark.parametrize("backend", ["auto", "process"])
def test_as_an_ordinary_user(unprivileged: OrdinaryUser, backend: str) -> None:
    program = f"""
import os
from pytest_cgroup import Container, ready
with Container(backend={backend!r}) as container:
    daemon = container.daemon({SERVER!r}, ready=ready.log("up"), grace={DEADLINE_SECONDS})
    first = daemon.pid
    daemon.signal(9)
    while daemon.pid in (first, None):
        pass
    daemon.wait_ready()
    print(os.getuid(), daemon.restarts, daemon.stop(), daemon.tail().split())
"""
    done = unprivileged.run([unprivileged.python, "-c", program])
    assert done.stdout == f"{unprivileged.uid} 1 normal ['up', 'up', 'asked']\n", done.stdout + done.stderr
