"""``--contained-jobs``: several contained tests at once, and nothing else is different."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import textwrap
import time
from typing import Any

import pytest

from tests.e2e.inner import HEAD, Result, command, run
from tests.e2e.leaving import is_alive

#: what several tests tell each other by, and it is there before each of them
MEET = """
from pathlib import Path
pytestmark = contained
HERE, PYTEST = Path(__file__).parent, os.getpid()
def until(condition, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.01)
def test_first(): pass
"""


@pytest.fixture(params=[pytest.param("cgroup", marks=pytest.mark.requires("cgroup")), "process"])
def backend(request: pytest.FixtureRequest) -> str:
    return f"--cgroup-backend={request.param}"


def jobs(pytester: pytest.Pytester, source: str, *arguments: str, at_once: int | str = 4, **options: Any) -> Result:
    return run(pytester, MEET + textwrap.dedent(source), f"--contained-jobs={at_once}", *arguments, **options)


TOGETHER = """
@pytest.mark.parametrize("number", range(8))
def test_together(number):
    (HERE / f"{number}.here").touch()
    until(lambda: len(list(HERE.glob("*.here"))) >= 4, SECONDS)
"""


def test_several_at_once(pytester: pytest.Pytester, backend: str) -> None:
    assert jobs(pytester, TOGETHER.replace("SECONDS", "60"), backend).counts == {"passed": 9}


def test_one_at_once(pytester: pytest.Pytester) -> None:
    """The negative control."""
    source = TOGETHER.replace("SECONDS", "0.3")
    assert jobs(pytester, source, at_once=1).counts == {"failed": 3, "passed": 6}


def test_as_many_as_were_said(pytester: pytest.Pytester, backend: str) -> None:
    source = """
    @pytest.mark.parametrize("number", range(12))
    def test_few(number):
        mine = HERE / f"{number}.here"
        mine.touch()
        deadline = time.monotonic() + 0.3
        while time.monotonic() < deadline:
            seen = len(list(HERE.glob("*.here")))
            assert seen <= 3
            time.sleep(0.01)
        mine.unlink()
    """
    assert jobs(pytester, source, backend, at_once=3).counts == {"passed": 13}


ALL_ENDS = """
import warnings
def daemon():
    subprocess.Popen(["sh", "-c", "sleep 120"], start_new_session=True, stdout=subprocess.DEVNULL)

def test_passes(record_property):
    record_property("colour", "green")
    print("passes")
def test_fails():
    print("fails")
    assert 1 == 2
def test_is_skipped(): pytest.skip("not today")
@pytest.mark.xfail
def test_is_expected_to_fail(): assert 0
def test_exits():
    print("exits", flush=True)
    os._exit(3)
def test_is_killed(): os.kill(os.getpid(), signal.SIGKILL)
@contained(timeout=5)
def test_hangs():
    print("hangs", flush=True)
    time.sleep(120)
def test_leaks(): daemon()
def test_prints_much(): print("much\\n" * 300_000)
def test_warns(): warnings.warn("look out")
@contained(expect="exit:5")
def test_exits_as_expected(): os._exit(5)
class TestOfAClass:
    def test_one(self, tmp_path): assert tmp_path.exists()
    def test_two(self, tmp_path): assert not list(tmp_path.iterdir())
    def test_three(self, caplog, capfd, monkeypatch):
        monkeypatch.setenv("A", "b")
        os.system("echo $A")
        assert capfd.readouterr().out == "b\\n"
    def test_four(self):
        print("four")
        assert 0
@pytest.fixture(scope="module")
def shared():
    yield 5
    print("shared is over")
def test_with_what_is_shared(shared): assert shared == 5
def test_with_it_again(shared): assert shared == 6
"""


def seen(result: Result) -> dict[str, Any]:
    """What of a run does not hang on how long anything took."""
    ends = {name: (record["ended"], record["outcome"]) for name, record in result.records.items()}
    cut = {name: re.split("-+ contained -+", text)[0] for name, text in result.blocks.items()}
    blocks = {name: re.sub(r"0x[0-9a-f]+|\d[\d.]*( ms| s)?", "N", text) for name, text in cut.items()}
    return {"counts": result.counts, "ends": ends, "order": [*result.records], "blocks": blocks, "status": result.ret}


def test_nothing_else_is_different(pytester: pytest.Pytester, backend: str) -> None:
    """Not the order, nor what is printed where."""
    one = seen(jobs(pytester, ALL_ENDS, backend, "-rA", at_once=1))
    assert one["counts"] == {"failed": 6, "passed": 10, "skipped": 1, "xfailed": 1, "error": 1, "warning": 1}
    assert seen(jobs(pytester, ALL_ENDS, backend, "-rA")) == one


def test_what_is_shared_is_set_up_and_torn_down_by_itself(pytester: pytest.Pytester) -> None:
    """No test runs beside a fixture of higher scope that begins or ends."""
    source = """
    def log(*words):
        with open(HERE / "log", "a") as f:
            print(*words, file=f)
    def test_a():
        log("begin", "a"); time.sleep(0.2); log("end", "a")
    def test_b():
        log("begin", "b"); time.sleep(0.4); log("end", "b")
    @pytest.fixture(scope="module")
    def server():
        log("begin", "server"); time.sleep(0.1); log("end", "server")
        yield
        log("begin", "teardown"); time.sleep(0.1); log("end", "teardown")
    def test_c(server):
        log("begin", "c"); time.sleep(0.2); log("end", "c")
    def test_d(server):
        log("begin", "d"); time.sleep(1.0); log("end", "d")
    def test_e(server):
        log("begin", "e"); time.sleep(0.4); log("end", "e")
    """
    assert jobs(pytester, source).counts == {"passed": 6}
    lines = [tuple(line.split()) for line in (pytester.path / "log").read_text().splitlines()]
    for alone in ("server", "teardown"):
        assert lines[lines.index(("begin", alone)) + 1] == ("end", alone)
        before = lines[: lines.index(("begin", alone))]
        assert sum(word == "begin" for word, _ in before) == sum(word == "end" for word, _ in before)
    together = lines.index(("begin", "e")) < lines.index(("end", "d"))
    assert together, lines  # or all this shows nothing


def test_what_it_left_is_killed_before_its_turn(pytester: pytest.Pytester, backend: str) -> None:
    """And is told of in its turn."""
    source = """
    def test_waits():
        until((HERE / "pid").exists)
        pid = int((HERE / "pid").read_text())
        def gone():
            try: return ") Z " in (Path("/proc") / str(pid) / "stat").read_text()  # where PID 1 reaps nobody
            except OSError: return True
        until(gone)
    def test_leaks():
        child = subprocess.Popen(["sleep", "119"], start_new_session=True, stdout=subprocess.DEVNULL)
        (HERE / "new").write_text(str(child.pid))
        (HERE / "new").rename(HERE / "pid")
    def test_last(): pass
    """
    result = jobs(pytester, source, backend)
    assert result.counts == {"passed": 4, "error": 1}
    assert "sleep 119" in result.blocks["ERROR at teardown of test_leaks"]


def test_limits_hold_before_its_turn(pytester: pytest.Pytester, backend: str) -> None:
    source = """
    def test_takes_its_time(): time.sleep(9)
    @contained(timeout=4)
    def test_hangs(): time.sleep(120)
    def test_last(): pass
    """
    result = jobs(pytester, source, backend)
    assert result.counts == {"passed": 3, "failed": 1}
    assert result.records["test_hangs"]["ended"] == "timeout"
    assert result.records["test_hangs"]["wall_seconds"] < 8.9


@pytest.mark.requires("memory")
def test_memory_of_its_own(pytester: pytest.Pytester) -> None:
    """Who runs out of memory beside another is not that one."""
    source = """
    def test_takes_its_time(): time.sleep(1.5)
    @contained(memory="64M")
    def test_hog():
        kept = bytearray(256 << 20)
    @contained(memory="64M")
    def test_last(): time.sleep(0.5)
    """
    result = jobs(pytester, source, "--cgroup-backend=cgroup")
    assert result.counts == {"passed": 3, "failed": 1}
    assert result.records["test_hog"]["ended"] == "oom"


def test_after_the_first_failure(pytester: pytest.Pytester, backend: str) -> None:
    """Those that were begun are ended, and nobody is told of them."""
    source = """
    def test_fails():
        until((HERE / "begun").exists)
        assert 0
    def test_begun():
        (HERE / "begun").touch()
        time.sleep(120)
    def test_begun_too(): pass
    def test_last(): pass
    """
    result = jobs(pytester, source, "-x", backend)
    assert result.counts == {"failed": 1, "passed": 1}
    assert list(result.records) == ["test_first", "test_fails"]


@pytest.mark.parametrize("how", ["pytest.exit('enough', 7)", "os.kill(PYTEST, signal.SIGINT)"])
def test_the_end_of_the_run(pytester: pytest.Pytester, how: str) -> None:
    """By a test before its turn, or by Ctrl-C."""
    source = f"""
    def test_takes_its_time(): time.sleep(1)
    def test_ends_it():
        {how}
        time.sleep(60)
    def test_last(): time.sleep(60)
    """
    result = jobs(pytester, source, "--cgroup-backend=auto")
    assert result.ret == (7 if "exit" in how else 2)
    assert "INTERNALERROR" not in result.text


def test_many_small_messages(pytester: pytest.Pytester) -> None:
    """More than a pipe holds, from those that nobody reads just now."""
    source = """
    @pytest.mark.parametrize("number", range(6))
    def test_subtests(subtests, number):
        for i in range(150):
            with subtests.test("x" * 300, i=i): pass
    """
    result = jobs(pytester, source)
    assert result.counts["passed"] == 7


def test_a_plugin_that_fails_in_the_child_alone(pytester: pytest.Pytester) -> None:
    """Before the set-up, where pytest itself knows nothing of the test yet."""
    pytester.makeconftest(
        """
        import os, pytest
        PYTEST = os.getpid()
        @pytest.hookimpl(wrapper=True)
        def pytest_runtest_protocol(item):
            if os.getpid() != PYTEST and item.name == "test_b":
                raise RuntimeError("not in this process")
            return (yield)
        """
    )
    result = jobs(pytester, "def test_a(): pass\ndef test_b(): pass\ndef test_c(): pass")
    assert result.counts == {"passed": 3, "error": 1}
    assert "not in this process" in result.text


WHY_NOT = [
    ((), None, "; up to 4 tests at once"),
    (("-s",), None, "; one test at a time: tests share pytest's terminal"),
    (("--process-leaks=warn",), None, "; one test at a time: what pytest itself starts is watched for leaks"),
    (
        ("-pof_reruns",),
        "of_reruns",
        "; one test at a time: the plugin of_reruns may run a test again",
    ),
    (("-pxdist.plugin", "-n2"), None, "; one test at a time: the workers of pytest-xdist run side by side already"),
]


@pytest.mark.parametrize(("arguments", "plugin", "said"), WHY_NOT, ids=[said[-30:] for *_, said in WHY_NOT])
def test_it_is_said(pytester: pytest.Pytester, arguments: tuple[str, ...], plugin: str | None, said: str) -> None:
    if plugin is not None:
        pytester.makepyfile(**{plugin: "def pytest_runtest_protocol(item): return None"})
        pytester.syspathinsert()
    result = jobs(pytester, TOGETHER.replace("SECONDS", "0"), *arguments)
    (line,) = [line for line in result.text.splitlines() if line.startswith("contained: ")]
    assert said in line


@pytest.mark.parametrize("value", ["0", "-1", "many", "1.5", "", "²"])
def test_wrong_numbers(pytester: pytest.Pytester, value: str) -> None:
    result = jobs(pytester, "", at_once=value)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert f"--contained-jobs={value!r}: allowed: a number from 1 on, auto" in result.text


def test_by_the_ini_file(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\ncontained_jobs = auto\n")
    result = run(pytester, MEET)
    cpus = len(os.sched_getaffinity(0))
    assert ("tests at once" in result.text) == (cpus > 1)


@pytest.mark.parametrize("at_once", [1, 4])
def test_a_warning_that_is_an_error(pytester: pytest.Pytester, at_once: int) -> None:
    """It is one of the test whose turn it is, and of nothing else."""
    pytester.makeconftest(
        """
        import os, threading, time
        PYTEST = os.getpid()
        def pytest_runtest_logfinish(nodeid):
            if "first" in nodeid and os.getpid() == PYTEST:
                threading.Thread(target=time.sleep, args=(2,), name="mine", daemon=True).start()
        """
    )
    source = "def test_a(): pass\ndef test_b(): pass\ndef test_c(): pass"
    result = jobs(pytester, source, "-Werror::pytest_cgroup.ContainedWarning", at_once=at_once)
    assert result.counts == {"passed": 3, "error": 1}
    assert "other threads live (mine)" in result.blocks["ERROR at setup of test_a"]


@pytest.mark.usefixtures("with_recovery")
def test_pytest_is_killed(pytester: pytest.Pytester) -> None:
    """The guard ends those that were begun, as any other."""
    source = """
    @pytest.mark.parametrize("number", range(4))
    def test_sleeps(number):
        (HERE / f"{number}.pid").write_text(str(os.getpid()))
        time.sleep(120)
    """
    pytester.path.joinpath("test_it.py").write_text(HEAD + MEET + textwrap.dedent(source))
    done = subprocess.Popen(command(["--contained-jobs=4"]), cwd=pytester.path, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(files := list(pytester.path.glob("*.pid"))) < 4:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    pids = [int(file.read_text() or 0) for file in files]
    done.send_signal(signal.SIGKILL)
    done.wait()
    while any(map(is_alive, filter(None, pids))) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(is_alive, filter(None, pids)))
