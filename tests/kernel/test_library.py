"""`Container` without pytest: its life, what can be done with it while it lives, and its one end."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

import pytest_cgroup
from pytest_cgroup import ContainedWarning, Container, ContainerError, NotOffered, SpecError, _station
from tests.as_user import OrdinaryUser
from tests.kernel.contain import DEADLINE_SECONDS, MB, PROGRAMS, descriptors, identity
from tests.kernel.forked import forked

SLEEP = ["sleep", "1000"]
_HOG = f"import time; x = b'x' * {200 * MB}; time.sleep(1000)"
#: says when it no longer dies of SIGTERM
STUBBORN = [sys.executable, "-c", "import signal; signal.signal(15, signal.SIG_IGN); print(flush=True); signal.pause()"]


@pytest.fixture(autouse=True)
def _given_back() -> Iterator[None]:
    """What the containers of this process share, too, is gone before it is looked at what a test has left behind."""
    yield
    _station.close()


@pytest.fixture(params=[pytest.param("cgroup", marks=pytest.mark.requires("cgroup")), "process"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each backend in turn; what the containers of this process share is given back."""
    name: str = request.param
    before = descriptors()
    yield name
    _station.close()
    gc.collect()
    assert {fd for fd in descriptors() if fd not in before} == set(), "descriptors were left open"


def stubborn(container: Container) -> subprocess.Popen[Any]:
    """A process that ignores SIGTERM, ready."""
    process = container.popen(STUBBORN, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline()
    process.stdout.close()
    return process


# what is asked


def test_it_is_a_public_name() -> None:
    assert pytest_cgroup.Container is Container
    with pytest.raises(AttributeError, match="no attribute 'Containers'"):
        _ = pytest_cgroup.Containers


@pytest.mark.parametrize(
    ("asked", "what"),
    [
        ({"memroy": "1M"}, "did you mean memory"),
        ({"memory": "1MB"}, "memory='1MB' (Container)"),
        ({"swap": "1M"}, "swap is limited, but memory is not"),
        ({"isolation": "fork"}, "is about tests"),
        ({"expect": "oom"}, "is about tests"),
        ({"backend": "docker"}, "is no backend"),
    ],
)
def test_a_bad_request(asked: dict[str, Any], what: str) -> None:
    with pytest.raises(SpecError) as raised:
        Container(**asked)
    assert what in str(raised.value)


def test_what_this_backend_can_not_honour() -> None:
    with pytest.raises(NotOffered) as raised, Container(backend="process", pids=4):
        pass
    assert raised.value.missing == ("pids",)
    assert "can't honour pids" in str(raised.value)


@pytest.mark.requires("cgroup", "memory", "pids")
def test_limits_are_in_force() -> None:
    with Container(memory="64M", pids=8) as container:
        assert (container.limits["memory"], container.limits["pids"]) == (str(64 * MB), "8")
        program = "import os\nfor _ in range(9): os.fork() or os._exit(0)"
        assert b"BlockingIOError" in container.run([sys.executable, "-c", program], capture_output=True).stderr
    assert container.outcome is not None
    assert container.outcome.usage.pids_max_hits


@pytest.mark.requires("cgroup", "memory")
def test_a_share_of_the_hosts_memory() -> None:
    with Container(memory="1%") as container:
        assert 0 < int(container.limits["memory"]) <= psutil.virtual_memory().total // 90


# its end


def test_what_is_left_is_ended_and_named_and_fails_nothing(backend: str) -> None:
    with Container(backend=backend) as container:
        process = container.popen(SLEEP)
        assert container.populated
    outcome = container.outcome
    assert outcome is not None
    assert (outcome.ended, [leak.argv for leak in outcome.leaks]) == ("exit", [tuple(SLEEP)])
    assert process.returncode == -signal.SIGTERM
    assert not psutil.pid_exists(process.pid)
    assert outcome.usage.wall_seconds is not None


def test_nothing_left_is_no_leak(backend: str) -> None:
    with Container(backend=backend) as container:
        container.run(["true"])
    assert container.outcome is not None
    assert container.outcome.leaks == ()


def test_who_ignores_sigterm_is_killed_after_the_grace(backend: str) -> None:
    with Container(backend=backend) as container:
        process = stubborn(container)
        begun = time.monotonic()
        container.stop(grace=0.25)
        took = time.monotonic() - begun
    assert process.returncode == -signal.SIGKILL
    assert 0.25 <= took < 2.0


def test_destroy_waits_for_no_grace(backend: str) -> None:
    with Container(backend=backend, grace=60) as container:
        process = container.popen(SLEEP)
        container.destroy()
    assert process.returncode == -signal.SIGKILL


def test_a_grace_that_is_asked_for(backend: str) -> None:
    """With the spec's own 0, nobody is asked to end."""
    with Container(backend=backend, grace=0) as container:
        process = container.popen(SLEEP)
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize("how", ["setsid", "double_fork", "sigterm"])
def test_nothing_survives(backend: str, how: str) -> None:
    with Container(backend=backend, grace=0.1) as container:
        container.run([sys.executable, str(PROGRAMS / "leaker.py"), how, "1"], stdout=subprocess.DEVNULL)
        before = [identity(process.pid) for process in container.processes()]
        assert before  # without a container it survives
        assert all(process.alive for process in before)
    assert not any(process.alive for process in before)
    assert container.outcome is not None
    assert len(container.outcome.leaks) == len(before)


def test_leaks_fail_where_that_is_asked_for(backend: str) -> None:
    with pytest.raises(ContainerError, match="1 left behind"), Container(backend=backend, leaks="fail") as container:
        container.popen(SLEEP)
    assert container.outcome is not None
    # Of what begins its program just now the kernel tells the name before it tells the arguments.
    with pytest.warns(ContainedWarning, match="sleep"), Container(backend=backend, leaks="warn") as container:
        container.popen(SLEEP)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with Container(backend=backend, leaks="fail") as container:
            pass


def test_an_error_inside_is_not_hidden(backend: str) -> None:
    container = Container(backend=backend, leaks="fail")

    def use() -> None:
        with container:
            container.popen(SLEEP)
            raise KeyError

    with pytest.raises(KeyError):
        use()
    assert container.outcome is not None


def test_one_end_for_all_who_ask(backend: str) -> None:
    """From many threads, and with programs being started meanwhile."""
    container = Container(backend=backend).start()
    outcomes, refused = [], []

    def start() -> None:
        try:
            while True:
                container.popen(SLEEP)
        except ContainerError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=start) for _ in range(3)]
    threads += [threading.Thread(target=lambda: outcomes.append(container.destroy())) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_SECONDS)
    assert len(outcomes) == 5
    assert all(outcome is outcomes[0] for outcome in outcomes)
    assert len(refused) == 3
    assert all("has ended" in why for why in refused)


def test_before_and_after_its_life(backend: str) -> None:
    container = Container(backend=backend)
    with pytest.raises(ContainerError, match="was not started"):
        container.popen(SLEEP)
    with pytest.raises(ContainerError, match="was not started"):
        container.destroy()
    with container, pytest.raises(ContainerError, match="was started already"):
        container.start()
    for use in (container.processes, container.freeze, lambda: container.popen(SLEEP)):
        with pytest.raises(ContainerError, match="has ended"):
            use()
    assert not container.populated
    assert container.wait_empty()
    container.kill()
    assert container.destroy() is container.outcome
    assert container.usage() == container.destroy().usage


def test_a_forked_child_leaves_it_alone(backend: str) -> None:
    with Container(backend=backend) as container:
        process = container.popen(SLEEP)

        def child() -> str:
            try:
                container.kill()
            except ContainerError as error:
                return str(error)
            return "killed"

        assert "made by another process" in str(forked(child))
        assert process.poll() is None


def test_a_forked_child_has_containers_of_its_own(backend: str) -> None:
    with Container(backend=backend) as outer:
        outer.run(["true"])

        def child() -> int:
            with Container(backend=backend) as inner:
                code = inner.run(["sh", "-c", "exit 3"]).returncode
            _station.close()
            return code

        assert forked(child) == 3
        assert outer.run(["sh", "-c", "exit 4"]).returncode == 4


# at a limit


def test_its_deadline(backend: str) -> None:
    with Container(backend=backend, timeout=1.5) as container:
        process = stubborn(container)
        assert process.wait(DEADLINE_SECONDS) == -signal.SIGKILL
        with pytest.raises(ContainerError, match="was killed: timeout"):
            container.popen(SLEEP)
    assert container.outcome is not None
    assert (container.outcome.timed_out, container.outcome.leaks) == (True, ())


def test_its_cpu_time(backend: str) -> None:
    with Container(backend=backend, cpu_time=0.3) as container:
        done = container.run([sys.executable, "-c", "while True: pass"])
    assert (done.returncode, done.outcome.ended) == (-signal.SIGKILL, "cpu-time")
    assert container.outcome is not None
    assert container.outcome.ended == "cpu-time"


def test_its_memory(backend: str, request: pytest.FixtureRequest) -> None:
    hog = [sys.executable, "-c", f"import time; x = b'x' * {200 * MB}; time.sleep(1000)"]
    if backend == "process":
        asked: dict[str, Any] = {"memory": "64M"}
    else:
        asked = {"memory": "64M", "swap": None} if not _swap_offered() else {"memory": "64M"}
    with Container(backend=backend, **asked) as container:
        other = container.popen(SLEEP)
        assert container.run(hog).returncode == -signal.SIGKILL
        assert other.wait(DEADLINE_SECONDS) == -signal.SIGKILL  # one OOM kill ends all of it
    assert container.outcome is not None
    assert container.outcome.usage.oom_kill


@pytest.mark.parametrize("how", ["at the start", "later", "later, where another limit is watched"])
def test_out_of_memory_it_has_ended(backend: str, how: str) -> None:
    """Also for who asks nobody in it: nothing begins there any more, and who waits for it is told."""
    asked: dict[str, Any] = {"at the start": {"memory": "64M"}, "later": {}}.get(how, {"timeout": 1000})
    with Container(backend=backend, **asked) as container:
        if how != "at the start":
            container.update(memory="64M")
        other = container.popen(SLEEP)
        container.popen([sys.executable, "-c", _HOG]).wait(DEADLINE_SECONDS)
        assert container.wait(DEADLINE_SECONDS).ended == "oom"
        assert other.wait(DEADLINE_SECONDS) == -signal.SIGKILL
        with pytest.raises(ContainerError, match="has ended"):
            container.popen(SLEEP)


def test_out_of_memory_just_before_the_end(backend: str) -> None:
    with Container(backend=backend, memory="64M") as container:
        assert container.run([sys.executable, "-c", _HOG]).returncode == -signal.SIGKILL
    assert container.outcome is not None
    assert container.outcome.ended == "oom"


@pytest.mark.requires("cgroup", "memory")
def test_out_of_memory_in_one_inside() -> None:
    """That is the inner one's end, and not the outer one's."""

    def inside() -> str:
        with Container(backend="cgroup", memory="64M") as inner:
            assert inner.run([sys.executable, "-c", _HOG]).returncode == -signal.SIGKILL
        _station.close()
        assert inner.outcome is not None
        return inner.outcome.ended

    with Container(backend="cgroup", memory="400M") as container:
        assert container.call(inside) == "oom"
        assert container.run(["true"]).returncode == 0
    assert container.outcome is not None
    assert container.outcome.ended == "exit"


@pytest.mark.requires("cgroup", "memory")
def test_out_of_memory_in_one_inside_just_after_a_limit_was_set() -> None:
    """Who begins to watch a file of v2's is woken once for nothing, and is not to take that for a word of its end."""
    (asked, ask), (told, tell) = os.pipe(), os.pipe()

    def inside() -> str:
        with Container(backend="cgroup", memory="64M") as inner:
            hog = inner.popen([sys.executable, "-c", f"print(flush=True); input(); {_HOG}"], stdin=asked, stdout=tell)
            assert hog.wait(DEADLINE_SECONDS) == -signal.SIGKILL
        _station.close()
        assert inner.outcome is not None
        return inner.outcome.ended

    def let_it_eat() -> None:
        os.read(told, 1)
        container.update(memory="400M")
        os.write(ask, b"\n")

    with Container(backend="cgroup") as container:
        thread = threading.Thread(target=let_it_eat)
        thread.start()
        assert container.call(inside) == "oom"
        thread.join()
        assert container.run(["true"]).returncode == 0
    for fd in (asked, ask, told, tell):
        os.close(fd)
    assert container.outcome is not None
    assert container.outcome.ended == "exit"


@pytest.mark.requires("cgroup", "memory")
def test_without_oom_group_it_goes_on() -> None:
    with Container(memory="64M", oom_group=False) as container:
        other = container.popen(SLEEP)
        assert container.run([sys.executable, "-c", _HOG]).returncode == -signal.SIGKILL
        assert container.run(["true"]).returncode == 0
        assert other.poll() is None
    other.wait(DEADLINE_SECONDS)
    assert container.outcome is not None
    assert container.outcome.ended == "exit"


def _swap_offered() -> bool:
    return _station.station().backend("cgroup")[0].capability("swap").offered


# living with it


def test_its_processes(backend: str) -> None:
    with Container(backend=backend) as container:
        assert container.processes() == []
        assert not container.populated
        process = container.popen(SLEEP)
        assert [found.pid for found in container.processes()] == [process.pid]
        assert isinstance(container.processes()[0], psutil.Process)


def test_a_signal_to_each(backend: str) -> None:
    with Container(backend=backend) as container, Container(backend=backend) as other:
        inside = [container.popen(SLEEP) for _ in range(3)]
        outside = other.popen(SLEEP)
        container.signal(signal.SIGUSR1)
        assert {process.wait(DEADLINE_SECONDS) for process in inside} == {-signal.SIGUSR1}
        assert outside.poll() is None


def test_kill_ends_all_and_it_lives_on(backend: str) -> None:
    with Container(backend=backend) as container:
        first = stubborn(container)
        container.kill()
        assert first.returncode == -signal.SIGKILL
        assert container.run(["true"]).returncode == 0


def test_waiting_until_it_is_empty(backend: str) -> None:
    with Container(backend=backend) as container:
        assert container.wait_empty(0)
        process = container.popen(["cat"], stdin=subprocess.PIPE)
        assert not container.wait_empty(0.05)
        assert process.stdin is not None
        process.stdin.close()
        assert container.wait_empty(DEADLINE_SECONDS)
        assert process.wait(DEADLINE_SECONDS) == 0


def test_whether_a_process_is_in_it(backend: str) -> None:
    container = Container(backend=backend)
    assert 1 not in container
    with container, container.popen(SLEEP) as process:
        assert process.pid in container
        assert os.getpid() not in container
        container.kill()
        assert process.pid not in container
    assert process.pid not in container


def test_freeze_and_thaw(backend: str) -> None:
    """What is frozen says nothing; then it does."""
    with Container(backend=backend) as container:
        process = container.popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"1")
        assert process.stdout.read(1) == b"1"
        container.freeze()
        with pytest.raises(ContainerError, match="is frozen"):
            container.popen(["true"])
        os.set_blocking(process.stdout.fileno(), False)
        process.stdin.write(b"2")
        time.sleep(0.05)  # the negative can't be waited for
        assert process.stdout.read(1) is None
        container.thaw()
        os.set_blocking(process.stdout.fileno(), True)
        assert process.stdout.read(1) == b"2"
        process.stdin.close()
        process.stdout.close()
        process.wait(DEADLINE_SECONDS)


@pytest.mark.parametrize("end", ["kill", "stop", "destroy"])
def test_what_is_frozen_can_be_ended(backend: str, end: str) -> None:
    with Container(backend=backend) as container:
        process = stubborn(container)
        container.freeze()
        getattr(container, end)()
        assert process.returncode == -signal.SIGKILL


def test_usage_grows(backend: str) -> None:
    with Container(backend=backend) as container:
        container.run([sys.executable, "-c", "while __import__('time').process_time() < 0.2: pass"])
        live = container.usage()
        assert (live.cpu_user_seconds or 0) + (live.cpu_system_seconds or 0) >= 0.15
        assert live.wall_seconds is not None
        assert live.wall_seconds < (container.stop().usage.wall_seconds or 0)


@pytest.mark.requires("cgroup", "memory", "pids")
def test_limits_of_a_living_container() -> None:
    with Container(memory="64M", pids=8, timeout=DEADLINE_SECONDS) as container:
        container.update(memory="128M")
        container.update(pids=16)
        container.update(memory="32M")
        assert (container.limits["memory"], container.limits["pids"]) == (str(32 * MB), "16")
        with pytest.raises(SpecError, match="can't be changed later"):
            container.update(pid_ns=True)
        with pytest.raises(SpecError, match="unknown field"):
            container.update(memmory="1M")
        with pytest.raises(SpecError, match="1MB"):
            container.update(memory="1MB")
        assert container.limits["memory"] == str(32 * MB)
        held = container.popen(SLEEP)
        assert held.poll() is None


# beside it


@pytest.mark.parametrize("backend_name", ["auto", "process"])
def test_an_ordinary_user(unprivileged: OrdinaryUser, backend_name: str) -> None:
    program = f"""
import pytest_cgroup, subprocess
with pytest_cgroup.Container(backend={backend_name!r}) as c:
    p = c.popen(["sleep", "1000"])
    done = c.run(["sh", "-c", "sleep 1000 & echo hello; exit 7"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (7, "hello\\n"), done
    try:
        c.popen(["no-such-program"])
    except FileNotFoundError:
        pass
    else:
        raise AssertionError
print(len(c.outcome.leaks), p.returncode)
"""
    done = unprivileged.run([unprivileged.python, "-c", program])
    assert (done.stdout, done.stderr) == ("2 -15\n", "")


def test_nothing_is_left_when_its_owner_ends_without_a_word(unprivileged: OrdinaryUser) -> None:
    """The launcher ends with who talks to it."""
    program = (
        "import os, pytest_cgroup\nwith pytest_cgroup.Container(backend='process') as c:\n"
        "    c.run(['true'])\n    print(c._life._spawner.launcher().pid, flush=True)\n    os._exit(0)"
    )
    done = unprivileged.run([unprivileged.python, "-c", program])
    launcher = int(done.stdout)
    deadline = time.monotonic() + DEADLINE_SECONDS
    while psutil.pid_exists(launcher) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not psutil.pid_exists(launcher)
