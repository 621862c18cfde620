"""No result is never a pass: every way in which a test was seen to vanish, or to pass though it failed."""

from __future__ import annotations

import importlib.util
import re

import pytest

from tests.e2e.inner import run

ways = pytest.mark.parametrize(
    "extra",
    [(), ("-n2",), ("--reruns=1",), ("-n2", "--reruns=1")],
    ids=lambda extra: "+".join(extra) or "bare",
)
_PLUGINS = {"-n2": ("-p", "xdist.plugin"), "--reruns=1": ("-p", "pytest_rerunfailures")}

_CRASHES = """
@contained
def test_exit0(): os._exit(0)
@contained
def test_exit5(): os._exit(5)
@contained
def test_kill(): os.kill(os.getpid(), signal.SIGKILL)
@contained
def test_segv(): os.kill(os.getpid(), signal.SIGSEGV)
@contained
def test_term(): os.kill(os.getpid(), signal.SIGTERM)
@contained
def test_sysexit(): sys.exit(0)
@contained
def test_exec(): os.execvp("true", ["true"])
@contained
def test_fails(): assert 0
@pytest.fixture
def crash_in_setup(): os._exit(0)
@contained
def test_setup(crash_in_setup): pass
@pytest.fixture
def crash_in_teardown():
    yield
    os._exit(0)
@contained
def test_teardown(crash_in_teardown): pass
@contained
def test_bare_marker(): assert os.getpid() != PYTEST
PYTEST = os.getpid()
"""
_IN_PID_NS = """
@contained(pid_ns=True)
def test_kill_in_pid_ns(): os.kill(os.getpid(), signal.SIGKILL)
@contained(pid_ns=True)
def test_segv_in_pid_ns(): os.kill(os.getpid(), signal.SIGSEGV)
@contained(pid_ns=True)
def test_exit_in_pid_ns(): os._exit(0)
"""


def crashing(pytester: pytest.Pytester, source: str, extra: tuple[str, ...]) -> tuple[dict[str, int], int]:
    """How many ended how, and of how many there is a record."""
    plugins: list[str] = []
    for option in extra:
        plugins += _PLUGINS[option]
        if importlib.util.find_spec(plugins[-1].partition(".")[0]) is None:
            pytest.skip(f"{plugins[-1]} is not installed")
    result = run(pytester, source, *plugins, *extra)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert ("rerun" in result.counts) == ("--reruns=1" in extra)
    return {name: number for name, number in result.counts.items() if name != "rerun"}, len(result.records)


@ways
def test_crash_exit_and_no_result_are_failures(pytester: pytest.Pytester, extra: tuple[str, ...]) -> None:
    passed = 3 if "--reruns=1" in extra else 2  # the test that crashes in its teardown has passed its call, each time
    assert crashing(pytester, _CRASHES, extra) == ({"failed": 8, "error": 2, "passed": passed}, 11)


@ways
@pytest.mark.requires("pid_ns")
def test_also_in_a_pid_namespace(pytester: pytest.Pytester, extra: tuple[str, ...]) -> None:
    assert crashing(pytester, _IN_PID_NS, extra) == ({"failed": 3}, 3)


def test_rerun_until_it_passes(pytester: pytest.Pytester) -> None:
    pytest.importorskip("pytest_rerunfailures")
    source = """
import pathlib
def attempt(name):
    path = pathlib.Path(name)
    path.write_text(path.read_text() + "x" if path.exists() else "x")
    return len(path.read_text())
@contained
def test_crashes_twice():
    if attempt("crashes") < 3: os.abort()
@contained
def test_fails_twice(): assert attempt("fails") == 3
@pytest.fixture
def shaky(): assert attempt("setup") == 3
@contained
def test_setup_fails_twice(shaky): pass
"""
    result = run(pytester, source, "-p", "pytest_rerunfailures", "--reruns=2")
    assert result.counts == {"passed": 3, "rerun": 6}


def test_xfail_covers_a_crash_as_it_covers_an_assertion(pytester: pytest.Pytester) -> None:
    source = """
@contained
@pytest.mark.xfail(reason="known crash")
def test_covered(): os.abort()
@contained
@pytest.mark.xfail(reason="known failure")
def test_assertion(): assert 0
@contained
@pytest.mark.xfail(strict=True)
def test_strict(): os.abort()
@contained
@pytest.mark.xfail(raises=ValueError)
def test_of_another_kind(): os.abort()
@contained
@pytest.mark.xfail(False, reason="not here")
def test_not_here(): os.abort()
@contained
@pytest.mark.xfail(run=False)
def test_not_run(): open("ran", "w")
@contained
@pytest.mark.xfail(strict=True)
def test_passes(): pass
"""
    result = run(pytester, source)
    assert result.counts == {"xfailed": 4, "failed": 3}
    assert set(result.blocks) == {"test_of_another_kind", "test_not_here", "test_passes"}
    assert result.blocks["test_not_here"].startswith("killed by SIGABRT (signal 6) in call")
    assert "XPASS(strict)" in result.blocks["test_passes"]
    assert result.records["test_covered"]["outcome"] == "xfailed"
    assert not pytester.path.joinpath("ran").exists()
    assert run(pytester, None, "--runxfail").counts == {"failed": 5, "passed": 2}


def test_a_fork_of_the_test_that_falls_through(pytester: pytest.Pytester) -> None:
    source = """
@contained(leaks="ignore")
def test_falls(): os.fork()
@contained(leaks="ignore")
def test_falls_and_fails():
    assert os.fork()
@contained(leaks="ignore")
def test_falls_and_raises():
    if not os.fork(): raise SystemExit
@contained
def test_after(): pass
"""
    result = run(pytester, source)
    assert result.counts == {"passed": 4}, "each test once, and the fork's own result counts for nothing"
    assert len(result.records) == 4


def test_a_daemon_that_holds_the_pipe_keeps_nobody_waiting(pytester: pytest.Pytester) -> None:
    source = """
@contained(leaks="warn")
def test_it():
    if not os.fork():
        os.setsid()
        if os.fork(): os._exit(0)
        threading.Event().wait()
    os.wait()
@contained(leaks="ignore")
def test_crash():
    if not os.fork():
        threading.Event().wait()
    os._exit(0)
"""
    assert run(pytester, source).counts == {"passed": 1, "failed": 1, "warning": 1}


@pytest.mark.parametrize("what", ["b'garbage'", "b'x' * 300_000", "b'5\\n[[]]x'", "os.urandom(5000)"])
def test_garbage_in_every_descriptor(pytester: pytest.Pytester, what: str) -> None:
    source = f"""
import stat
@contained
def test_writes():
    for name in os.listdir("/proc/self/fd"):
        try:
            if int(name) > 2 and not stat.S_ISREG(os.fstat(int(name)).st_mode):
                os.write(int(name), {what})
        except OSError:
            pass
@contained
def test_closes(): os.closerange(3, 1000)
@contained
def test_after(): pass
def test_plain(): pass
"""
    result = run(pytester, source)
    assert result.counts == {"passed": 2, "failed": 2}
    assert re.search(r"\btest_(after|plain)\b", "".join(result.blocks)) is None
    assert any("test_writes" in name for name in result.blocks), "garbage is no result"


@pytest.mark.parametrize(
    "message", ['{"report": {}}', '{"report": 5}', '{"end": 1}', '{"warnings": [1]}', '{"debugger": 1}']
)
def test_a_forged_message_is_no_pass(pytester: pytest.Pytester, message: str) -> None:
    source = f"""
@contained(timeout=20)
def test_it():
    text = {message!r}.encode()
    for name in os.listdir("/proc/self/fd"):
        try:
            if "pipe:" in os.readlink(f"/proc/self/fd/{{name}}") and int(name) > 2:
                os.write(int(name), b"%d\\n%b" % (len(text), text))
        except OSError:
            pass
    os._exit(0)
def test_after(): pass
"""
    result = run(pytester, source)
    assert result.counts == {"passed": 1, "failed": 1}
    assert "without a result" in result.blocks["test_it"]


def test_nothing_of_pytest_lacking_is_said_in_one_line(pytester: pytest.Pytester) -> None:
    pytester.makeconftest("""
import _pytest.capture
del _pytest.capture.TeeCaptureIO
""")
    result = run(pytester, "@contained\ndef test_it(): pass\ndef test_plain(): pass\n")
    assert result.counts == {"passed": 1, "error": 1}
    said = result.blocks["ERROR at setup of test_it"]
    assert said.startswith("pytest-cgroup can't contain tests under pytest ")
    assert "_pytest.capture.TeeCaptureIO" in said


def test_an_error_of_a_hook_in_the_child_is_not_lost(pytester: pytest.Pytester) -> None:
    pytester.makeconftest("""
import pytest
@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    yield
    if item.name == "test_hook": raise ValueError("of the hook")
def pytest_runtest_logreport(report):
    pass
""")
    result = run(pytester, "@contained\ndef test_hook(): pass\n@contained\ndef test_it(): pass\n")
    assert result.counts == {"passed": 1, "failed": 1}
    assert "of the hook" in result.blocks["test_hook"]
