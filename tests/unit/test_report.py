"""The texts that a person reads, from outcomes that are made here."""

from __future__ import annotations

import pytest

from pytest_cgroup._outcome import Leak, Outcome, Usage
from pytest_cgroup._report import section, table
from pytest_cgroup._verdict import crash_text, leak_text, met, users_stack


def outcome(memory: int | None = None, cpu: float | None = None, **more: object) -> Outcome:
    usage = Usage(memory_peak_bytes=memory, cpu_user_seconds=cpu)
    return Outcome(**{"ended": "exit", "backend": "x", "usage": usage, **more})  # type: ignore[arg-type]


def names(lines: list[str]) -> list[str]:
    return [line.split()[-1] for line in lines[1:]]


def test_heaviest_first_by_memory_then_cpu() -> None:
    found = [("a", outcome(1, 5.0)), ("b", outcome(2, 1.0)), ("c", outcome(2, 2.0)), ("d", outcome(None, 9.0))]
    assert names(table(found, 0)) == names(table(found, None)) == ["c", "b", "a", "d"]
    assert names(table(found, 2)) == ["c", "b"]


def test_a_column_in_which_nothing_stands_is_left_out() -> None:
    usage = Usage(memory_peak_bytes=1024, pids_peak=0)
    quiet = table([("a", outcome(usage=usage)), ("b", outcome())], 0)
    assert [line.split() for line in quiet] == [["memory", "tasks", "test"], ["1K", "0", "a"], ["-", "-", "b"]]
    marked = table([("a", outcome(ended="timeout"))], 0)
    assert [line.split() for line in marked] == [["test"], ["TIMEOUT", "a"]]


_LEAK = Leak(pid=7, argv=("a\x1b[31m",), cwd=None, age_seconds=None, rss_bytes=None, owner="t", status=None)


@pytest.mark.parametrize(
    ("given", "mark"),
    [
        (outcome(ended="oom"), "OOM"),
        (outcome(ended="oom-ancestor"), "OOM ABOVE"),
        (outcome(ended="cpu-time"), "CPU TIME"),
        (outcome(ended="signal", signal=11), "SIGSEGV"),
        (outcome(usage=Usage(pids_max_hits=1)), "PIDS"),
        (outcome(leaks=(_LEAK,)), "LEAK"),
        (outcome(ended="oom", leaks=(_LEAK,), usage=Usage(pids_max_hits=1)), "OOM PIDS LEAK"),
    ],
)
def test_marks(given: Outcome, mark: str) -> None:
    assert table([("test", given)], 0)[1].endswith(f"{mark}  test")


@pytest.mark.parametrize("nodeid", ["a\nb", "\x1b[31m", "\0", "x" * 10_000, "\u202e"])
def test_an_id_stays_one_harmless_line(nodeid: str) -> None:
    line = table([(nodeid, outcome())], 0)[1]
    assert line.isprintable()
    assert len(line) < 250


def test_the_section_says_limits_usage_and_what_is_not_enforced() -> None:
    text = section(
        outcome(
            64 << 20,
            0.5,
            limits={"memory": str(64 << 20), "swap": "0", "pids": "5", "timeout": "3 s"},
            usage=Usage(
                wall_seconds=2, cpu_user_seconds=0.5, pids_peak=1, oom_kill=1, pids_max_hits=1, io_write_bytes=2048
            ),
            not_enforced=("memory: watched",),
            notes=("a note",),
        )
    )
    assert text.splitlines() == [
        "note: the pids limit (5) was hit 1 time: fork failed with EAGAIN",
        "note: a note",
        "limits: memory=64M, swap=0B, pids=5, timeout=3 s",
        "used: 2.00 s wall, 500 ms CPU, 1 task at the peak, - read, 2K written, 1 OOM kill",
        "not enforced: memory: watched",
        "backend: x",
    ]


def test_a_stack_ends_where_pytest_called_the_test() -> None:
    stack = """Fatal Python error: Aborted

Thread 0x1 (most recent call first):
  File "/usr/lib/python3.11/threading.py", line 1 in wait
  File "/home/me/test_x.py", line 9 in in_a_thread
  File "/usr/lib/python3.11/threading.py", line 2 in run

Current thread 0x2 (most recent call first):
  File "/home/me/test_x.py", line 3 in helper
  File "/v/_pytest/python_api.py", line 4 in raises
  File "/home/me/test_x.py", line 5 in test_it
  File "/v/_pytest/python.py", line 6 in pytest_pyfunc_call
  File "/v/pluggy/_callers.py", line 7 in _multicall
  File "<frozen runpy>", line 8 in _run_code"""
    shown = users_stack(stack)
    assert "in_a_thread" in shown
    assert "line 2 in run" in shown
    assert shown.endswith("line 5 in test_it")
    assert "raises" in shown


def test_a_stack_of_pytest_alone_is_shown_whole() -> None:
    stack = 'Current thread 0x2 (most recent call first):\n  File "/v/_pytest/python.py", line 6 in pytest_pyfunc_call'
    assert users_stack(stack) == stack


def test_leaks_are_counted_named_and_harmless() -> None:
    one = (_LEAK,)
    assert leak_text(one).splitlines()[0] == "left behind, now killed: 1 process (a\\x1b[31m)"
    many = (_LEAK,) * 5
    assert leak_text(many).splitlines()[0].startswith("left behind, now killed: 5 processes (")
    assert leak_text(many).splitlines()[0].endswith(", …)")
    assert len(leak_text(many).splitlines()) == 6


def test_the_first_line_of_a_crash_says_it_all() -> None:
    crash = outcome(ended="signal", signal=11, phase="call", stack="  File x", leaks=(_LEAK,))
    lines = crash_text(crash, expect=None, leaks=True).splitlines()
    assert lines[0] == "killed by SIGSEGV (signal 11) in call"
    assert lines[-1] == "  File x"
    assert any("left behind" in line for line in lines)
    quiet = crash_text(crash, expect="exit:3", leaks=False)
    assert quiet.startswith("killed by SIGSEGV (signal 11) in call, but was expected to end by exit:3")
    assert "left behind" not in quiet
    refused = outcome(ended="error", message="no mount")
    assert crash_text(refused, expect=None, leaks=True) == "contained: no mount"


@pytest.mark.parametrize(
    ("expect", "given", "is_met"),
    [
        ("oom", outcome(ended="oom"), True),
        ("oom", outcome(ended="oom-ancestor"), True),
        ("oom", outcome(ended="signal", signal=9), False),
        ("oom", outcome(usage=Usage(oom_kill=1)), True),
        ("timeout", outcome(ended="timeout"), True),
        ("timeout", outcome(ended="cpu-time"), False),
        ("cpu-time", outcome(ended="cpu-time"), True),
        ("pids", outcome(usage=Usage(pids_max_hits=2)), True),
        ("pids", outcome(usage=Usage(pids_max_hits=0)), False),
        ("pids", outcome(usage=Usage(pids_max_hits=None)), False),
        ("exit:3", outcome(exit_code=3), True),
        ("exit:3", outcome(exit_code=4), False),
        ("exit:0", outcome(exit_code=0), True),
        ("exit:3", outcome(ended="signal", signal=3), False),
        ("signal:SEGV", outcome(ended="signal", signal=11), True),
        ("signal:SEGV", outcome(ended="signal", signal=6), False),
        ("signal:KILL", outcome(ended="oom", signal=9), False),
    ],
)
def test_whether_an_expectation_is_met(expect: str, given: Outcome, is_met: bool) -> None:
    assert met(expect, given) is is_met
