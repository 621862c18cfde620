"""How a contained test can end: each way is a failure of its own, and `expect` makes each of them a pass."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from pytest_cgroup._host import Host
from tests.e2e.inner import run


class Ending(NamedTuple):
    """A way to end: what the test does, what it is given, and what is then said."""

    does: str
    given: str
    said: str
    ended: str
    expect: str
    stack: bool = False


_NEVER = "threading.Event().wait()"
ENDINGS = {
    "exit": Ending("os._exit(3)", "", "exited with status 3 in call without a result", "exit", "exit:3"),
    "exit0": Ending("os._exit(0)", "", "exited with status 0 in call without a result", "exit", "exit:0"),
    "crash": Ending(
        "signal.raise_signal(11)", "", "killed by SIGSEGV (signal 11) in call", "signal", "signal:SEGV", True
    ),
    "kill": Ending("os.kill(os.getpid(), 9)", "", "killed by SIGKILL (signal 9) in call", "signal", "signal:KILL"),
    "timeout": Ending(_NEVER, "timeout=2", "timeout: killed in call after", "timeout", "timeout", True),
    "cpu-time": Ending(
        "while True: pass", "cpu_time=0.5", "out of CPU time: killed in call after", "cpu-time", "cpu-time", True
    ),
    "oom": Ending(
        "bytearray(100 << 20)",
        'memory="32M"',
        "out of memory: killed in call at its own limit (memory=32M",
        "oom",
        "oom",
    ),
}
ROOMY = {"timeout": "timeout=60", "cpu-time": "cpu_time=60", "pids": "pids=100"}
each = pytest.mark.parametrize(
    "ending",
    [
        pytest.param(e, id=name, marks=pytest.mark.requires("memory") if name == "oom" else ())
        for name, e in ENDINGS.items()
    ],
)


@each
def test_each_way_is_a_failure_of_its_own(pytester: pytest.Pytester, ending: Ending) -> None:
    check_failure(pytester, ending)


@pytest.mark.parametrize("name", ["crash", "timeout"])  # enough to see that xdist changes nothing
def test_a_failure_of_its_own_under_xdist(pytester: pytest.Pytester, name: str) -> None:
    check_failure(pytester, ENDINGS[name], workers=2)


def check_failure(pytester: pytest.Pytester, ending: Ending, *, workers: int = 0) -> None:
    source = f"""
@contained({ending.given})
def test_it():
    print("said before")
    print("complained before", file=sys.stderr)
    {ending.does}
def test_other(): pass
"""
    result = run(pytester, source, workers=workers)
    assert result.ret == 1
    assert result.counts == {"failed": 1, "passed": 1}
    block = result.blocks["test_it"]
    assert block.startswith(ending.said)
    assert "said before" in block.partition("Captured stdout call")[2]
    assert "complained before" in block.partition("Captured stderr call")[2]
    assert "limits: " in block or not ending.given
    assert ('test_it.py", line 9 in test_it' in block) is ending.stack
    assert "_pytest/" not in block
    record = result.record
    assert (record["ended"], record["outcome"]) == (ending.ended, "failed")
    assert (record["exit_code"] is None) is (ending.ended != "exit")
    mark = {"exit": None, "signal": "SIG", "cpu-time": "CPU TIME"}.get(ending.ended, ending.ended.upper())
    if mark is None:
        assert not result.table
    else:
        assert mark in result.table[1]


@each
def test_expect_makes_it_a_pass(pytester: pytest.Pytester, ending: Ending) -> None:
    source = f"""
@contained(expect="{ending.expect}", {ending.given})
def test_it():
    {ending.does}
"""
    result = run(pytester, source)
    assert (result.ret, result.counts) == (0, {"passed": 1})
    assert (result.record["ended"], result.record["outcome"]) == (ending.ended, "passed")


@pytest.mark.requires("memory", "pids")
def test_expect_fails_what_ends_otherwise(pytester: pytest.Pytester) -> None:
    # Limits that no slow machine meets by telling of a failure.
    cases = {**{e.expect: e.given for e in ENDINGS.values()}, **ROOMY}
    source = "".join(
        f"""
@contained(expect={expect!r}, {given})
def test_passes_{number}(): pass
@contained(expect={expect!r}, {given})
def test_fails_{number}(): assert not "its own failure"
@contained(expect={expect!r}, {given})
def test_dies_{number}(): os.kill(os.getpid(), signal.SIGBUS)
"""
        for number, (expect, given) in enumerate(cases.items())
    )
    result = run(pytester, source)
    assert result.counts == {"failed": 3 * len(cases)}
    for number, expect in enumerate(cases):
        assert result.blocks[f"test_passes_{number}"].startswith(f"expected to end by {expect}, but it passed")
        failed = result.blocks[f"test_fails_{number}"]
        assert "AssertionError" in failed
        assert f"expected to end by {expect}" in failed
        died = result.blocks[f"test_dies_{number}"]
        assert died.startswith(f"killed by SIGBUS (signal 7) in call, but was expected to end by {expect}")


def test_the_phase_is_named(pytester: pytest.Pytester) -> None:
    source = """
@pytest.fixture
def dies_in_setup():
    print("setting up")
    os._exit(4)
@pytest.fixture
def dies_in_teardown():
    yield
    print("tearing down")
    os._exit(5)
@contained
def test_setup(dies_in_setup): pass
@contained
def test_teardown(dies_in_teardown): print("called")
@contained
def test_after(): pass
"""
    result = run(pytester, source)
    assert result.counts == {"passed": 2, "error": 2}
    in_setup = result.blocks["ERROR at setup of test_setup"]
    assert in_setup.startswith("exited with status 4 in setup")
    assert "setting up" in in_setup.partition("Captured stdout setup")[2]
    in_teardown = result.blocks["ERROR at teardown of test_teardown"]
    assert in_teardown.startswith("exited with status 5 in teardown")
    assert "tearing down" in in_teardown.partition("Captured stdout teardown")[2]
    assert in_teardown.count("- contained -") == 1


_FORKS = """
    started = []
    try:
        for _ in range(12):
            started.append(subprocess.Popen(["sleep", "1000"]))
    {handles}
    finally:
        for process in started:
            process.kill()
            process.wait()
"""


@pytest.mark.requires("pids")
def test_a_hit_pids_limit_is_said_also_when_the_test_passes(pytester: pytest.Pytester) -> None:
    handled = _FORKS.format(handles="except BlockingIOError: pass")
    unhandled = _FORKS.format(handles="")
    source = f"""
@contained(pids=6)
def test_passes():{handled}
@contained(pids=6)
def test_fails():{unhandled}
@contained(pids=6, expect="pids")
def test_expected():{unhandled}
@contained(pids=100)
def test_within():{unhandled}
"""
    result = run(pytester, source)
    assert result.counts == {"passed": 3, "failed": 1}
    assert "note: the pids limit (6) was hit" in result.blocks["test_fails"]
    assert "BlockingIOError" in result.blocks["test_fails"]
    records = result.records
    assert all(records[name]["pids_max_hits"] >= 1 for name in ("test_passes", "test_fails", "test_expected"))
    assert records["test_within"]["pids_max_hits"] == 0
    marked = [line.split()[-1].partition("::")[2] for line in result.table if "PIDS" in line]
    assert sorted(marked) == ["test_expected", "test_fails", "test_passes"]


@contextlib.contextmanager
def limited_cgroup(file: str, value: str) -> Iterator[str]:
    """A cgroup of this test's own with one limit: its directory where that limit is."""
    controller = file.partition(".")[0]
    with contextlib.closing(Host()) as host:
        assert host.placement.session is not None
        cgroup = host.placement.session.child("limited", frozenset({controller}))
        cgroup.make()
        try:
            assert cgroup.set(file, value) == value
            if file == "memory.max" and cgroup.offers("memory.swap.max"):
                cgroup.set("memory.swap.max", "0")
            yield cgroup.controllers.get(controller) or cgroup.path
        finally:
            cgroup.remove()


@pytest.mark.requires("memory")
def test_an_ancestors_limit_is_not_blamed_on_the_tests_own(pytester: pytest.Pytester) -> None:
    source = """
@contained(memory="1G")
def test_it():
    bytearray(200 << 20)
@contained(memory="1G", expect="oom")
def test_expected():
    bytearray(200 << 20)
@contained(memory="16M")
def test_own():
    bytearray(200 << 20)
"""
    with limited_cgroup("memory.max", str(64 << 20)) as base:
        result = run(pytester, source, f"--cgroup-base={base}")
    assert result.counts == {"failed": 2, "passed": 1}
    assert result.blocks["test_it"].startswith("out of memory: killed in call, not at its own limit")
    assert result.blocks["test_own"].startswith("out of memory: killed in call at its own limit (memory=16M")
    ended = {name: record["ended"] for name, record in result.records.items()}
    assert ended == {"test_it": "oom-ancestor", "test_expected": "oom-ancestor", "test_own": "oom"}
    assert any("OOM ABOVE" in line and line.endswith("::test_it") for line in result.table)


@pytest.mark.requires("pids")
def test_a_host_without_a_process_to_give_is_an_error_of_the_test(pytester: pytest.Pytester) -> None:
    """Here the host is a cgroup that allows pytest itself and no other process."""
    source = """
@contained
def test_it(): pass
def test_uncontained(): pass
"""
    with limited_cgroup("pids.max", "1") as directory:
        script = 'echo $$ > "$0"/cgroup.procs && exec "$@"'
        result = run(pytester, source, prefix=("sh", "-c", script, directory))
    assert result.counts == {"passed": 1, "error": 1, "warning": 1}
    assert "there is no guard" in result.text  # which could not be started either
    block = result.blocks["ERROR at setup of test_it"]
    assert block.startswith("contained: no process could be forked for the container")
    assert "EAGAIN" in block
    assert "Traceback" not in block


_NO_INTERPRETER = "import sys\nsys.executable = '/none'\n"


@pytest.mark.parametrize("backend", ["auto", "process"])
@pytest.mark.parametrize("arguments", [("--process-leaks=fail",), ()], ids=["configured", "collected"])
def test_the_warning_of_no_guard_points_to_no_line_of_ours(
    pytester: pytest.Pytester, backend: str, arguments: tuple[str, ...]
) -> None:
    pytester.makeconftest(_NO_INTERPRETER)
    source = "@contained(isolation='shared', leaks='fail')\ndef test_it(): pass\n"
    result = run(pytester, source, f"--cgroup-backend={backend}", *arguments)
    assert result.counts == {"passed": 1, "warning": 1}
    assert "ContainedWarning: there is no guard, and if pytest is killed" in result.text
    assert not re.search(r"pytest_cgroup/\w+\.py", result.text)


@pytest.mark.parametrize("backend", ["auto", "process"])
def test_no_guard_where_warnings_are_errors(pytester: pytest.Pytester, backend: str) -> None:
    """One line, and no cgroup is left of a session that was never begun."""
    pytester.makeconftest(_NO_INTERPRETER)
    arguments = (f"--cgroup-backend={backend}", "--process-leaks=fail", "-Werror", "-p", "no:terminal")
    result = run(pytester, "def test_it(): pass\n", *arguments, usage_json=False)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert result.text.strip().startswith("ERROR: there is no guard")
    assert len(result.text.strip().splitlines()) == 1


def test_a_thread_has_a_stack_too(pytester: pytest.Pytester) -> None:
    source = """
def in_a_thread(): threading.Event().wait()
@contained(timeout=2)
def test_it():
    threading.Thread(target=in_a_thread).start()
    threading.Event().wait()
"""
    block = run(pytester, source).blocks["test_it"]
    assert "in in_a_thread" in block
    assert "line 9 in test_it" in block


def test_the_python_of_a_c_extensions_exit_is_not_asked(pytester: pytest.Pytester) -> None:
    """A process that ends itself in C leaves no stack and no report; a pass it is not."""
    source = """
import ctypes
@contained
def test_it(): ctypes.CDLL(None)._exit(0)
"""
    result = run(pytester, source)
    assert result.counts == {"failed": 1}
    assert "the last Python stack" not in result.blocks["test_it"]


def test_nothing_is_said_to_have_ended_that_has_not(pytester: pytest.Pytester) -> None:
    """The control: the same tests without an end of their own pass, and no table comes unasked."""
    source = "\n".join(f"@contained({e.given})\ndef test_{i}(): pass" for i, e in enumerate(ENDINGS.values()))
    result = run(pytester, source)
    assert result.counts == {"passed": len(ENDINGS)}
    assert not result.table
    assert {record["ended"] for record in result.records.values()} == {"exit"}
