"""Outcome, Usage and Leak: JSON both ways, and words that a person can act on."""

from __future__ import annotations

import dataclasses
import json
import pickle
import signal
from typing import Any

import pytest

from pytest_cgroup._outcome import Leak, Outcome, Usage, signal_name, to_record

LEAK = Leak(
    pid=42,
    argv=("redis-server", "--dir", "/a b"),
    cwd="/srv",
    age_seconds=1.5,
    rss_bytes=5 * 1024**2,
    owner="tests/test_x.py::test_y",
    parents=("sh (41)", "pytest (7)"),
    ports=(6379, 16379),
    status="sleeping",
    started_at="test_x.py:31 in test_a",
)
FULL = Outcome(
    ended="oom",
    exit_code=None,
    signal=9,
    usage=Usage(wall_seconds=1.25, cpu_user_seconds=0.0, memory_peak_bytes=64 * 1024**2, oom_kill=1, pids_max_hits=0),
    leaks=(LEAK,),
    backend="cgroup",
    not_enforced=("io",),
    limits={"memory": "67108864"},
    phase="call",
    message="a message",
    stack="File …",
    notes=("a note",),
)
BARE_LEAK = Leak(pid=1, argv=(), cwd=None, age_seconds=None, rss_bytes=None, owner=None, status=None)


@pytest.mark.parametrize("outcome", [FULL, Outcome(ended="exit", exit_code=0, backend="process")], ids=["full", "bare"])
def test_json_both_ways(outcome: Outcome) -> None:
    assert Outcome.from_json(json.loads(json.dumps(outcome.to_json()))) == outcome
    assert pickle.loads(pickle.dumps(outcome)) == outcome


def test_none_and_zero_stay_apart() -> None:
    usage = Usage(pids_peak=0, oom_kill=None)
    again = Usage.from_json(json.loads(json.dumps(usage.to_json())))
    assert again.pids_peak == 0
    assert again.pids_peak is not None
    assert again.oom_kill is None
    assert set(usage.to_json().values()) == {0, None}


def test_unknown_keys_are_ignored_at_every_depth() -> None:
    data: dict[str, Any] = {**FULL.to_json(), "new": 1}
    data["usage"] = {**data["usage"], "newer": []}
    data["leaks"] = [{**data["leaks"][0], "newest": None}]
    assert Outcome.from_json(data) == FULL


def test_an_int_is_a_good_float_and_comes_back_as_one() -> None:
    assert type(Usage.from_json({"wall_seconds": 3}).wall_seconds) is float


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"ended": "won"}, "Outcome.ended: 'won' is not one of exit, signal"),
        ({"ended": None}, "Outcome.ended"),
        ({"exit_code": "0"}, "Outcome.exit_code: int is expected, not str"),
        ({"exit_code": True}, "Outcome.exit_code: int is expected, not bool"),
        ({"exit_code": 1.0}, "Outcome.exit_code: int is expected, not float"),
        ({"usage": None}, "Usage: an object is expected, not NoneType"),
        ({"usage": {"wall_seconds": "3"}}, "Usage.wall_seconds: float is expected, not str"),
        ({"usage": {"wall_seconds": False}}, "Usage.wall_seconds: float is expected, not bool"),
        ({"usage": {"pids_peak": 1.5}}, "Usage.pids_peak: int is expected"),
        ({"leaks": {}}, "Outcome.leaks: tuple is expected, not dict"),
        ({"leaks": [3]}, "Leak: an object is expected, not int"),
        ({"leaks": [{"pid": 3}]}, "Leak: .*argv"),
        ({"leaks": [{**LEAK.to_json(), "argv": "a"}]}, "Leak.argv: tuple is expected, not str"),
        ({"leaks": [{**LEAK.to_json(), "ports": ["80"]}]}, "Leak.ports: int is expected, not str"),
        ({"backend": None}, "Outcome.backend: str is expected, not NoneType"),
        ({"limits": []}, "Outcome.limits: Mapping is expected, not list"),
        ({"limits": {"memory": 3}}, "Outcome.limits: str is expected, not int"),
        ({"notes": [None]}, "Outcome.notes: str is expected, not NoneType"),
    ],
)
def test_bad_json(change: dict[str, object], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Outcome.from_json({**FULL.to_json(), **change})


def test_a_missing_key_is_named() -> None:
    with pytest.raises(ValueError, match="'backend'"):
        Outcome.from_json({"ended": "exit"})
    with pytest.raises(ValueError, match="an object is expected"):
        Outcome.from_json([])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("ended", "oom_killed", "timed_out", "killed"),
    [
        ("exit", False, False, False),
        ("signal", False, False, True),
        ("oom", True, False, True),
        ("oom-ancestor", True, False, True),
        ("timeout", False, True, True),
        ("cpu-time", False, False, True),
        ("error", False, False, False),
    ],
)
def test_properties(ended: Any, oom_killed: bool, timed_out: bool, killed: bool) -> None:
    outcome = Outcome(ended=ended, backend="cgroup")
    assert (outcome.oom_killed, outcome.timed_out, outcome.killed) == (oom_killed, timed_out, killed)


@pytest.mark.parametrize(
    ("outcome", "text"),
    [
        (Outcome(ended="exit", exit_code=3, backend="x"), "exited with status 3"),
        (Outcome(ended="exit", backend="x"), "exited"),
        (Outcome(ended="signal", signal=11, backend="x", phase="call"), "killed by SIGSEGV (signal 11) in call"),
        (Outcome(ended="signal", signal=99, backend="x"), "killed by signal 99"),
        (Outcome(ended="signal", backend="x"), "killed by a signal"),
        (Outcome(ended="timeout", backend="x"), "timeout: killed"),
        (Outcome(ended="timeout", backend="x", usage=Usage(wall_seconds=2)), "timeout: killed after 2.00 s"),
        (Outcome(ended="cpu-time", backend="x"), "out of CPU time: killed"),
        (
            Outcome(ended="cpu-time", backend="x", usage=Usage(cpu_user_seconds=1.0, cpu_system_seconds=0.5)),
            "out of CPU time: killed after 1.50 s",
        ),
        (Outcome(ended="error", backend="x", message="fork: EAGAIN"), "could not be run: fork: EAGAIN"),
        (Outcome(ended="oom", backend="x"), "out of memory: killed at its own limit"),
        (FULL, "out of memory: killed in call at its own limit (memory=64M, peak 64M): a message"),
        (
            Outcome(ended="oom", backend="x", limits={"memory": "a watch at 64M"}),
            "out of memory: killed at its own limit (memory=a watch at 64M)",
        ),
    ],
)
def test_described_in_plain_words(outcome: Outcome, text: str) -> None:
    assert outcome.describe() == text


def test_an_ancestors_limit_is_not_blamed_on_the_marker() -> None:
    text = Outcome(ended="oom-ancestor", backend="x", limits={"memory": "64M"}).describe()
    assert "not at its own limit" in text
    assert "64M" not in text


@pytest.mark.parametrize(
    ("number", "name"),
    [
        (9, "SIGKILL"),
        (int(signal.SIGRTMIN), "SIGRTMIN"),
        (int(signal.SIGRTMIN) + 2, "SIGRTMIN+2"),
        (int(signal.SIGRTMAX), "SIGRTMAX"),
        (0, "signal 0"),
        (-3, "signal -3"),
        (999, "signal 999"),
    ],
)
def test_signal_name(number: int, name: str) -> None:
    assert signal_name(number) == name


def test_a_leak_is_one_line_that_a_person_can_act_on() -> None:
    assert LEAK.describe() == (
        "pid 42: redis-server --dir '/a b', sleeping, age 1.50 s, 5M RSS, listening on 6379, 16379, in /srv, "
        "child of sh (41) < pytest (7), started at test_x.py:31 in test_a, by tests/test_x.py::test_y"
    )


def test_what_the_kernel_did_not_tell_is_left_out() -> None:
    assert BARE_LEAK.describe() == "pid 1: (no command line)"
    zombie = dataclasses.replace(BARE_LEAK, argv=("sh",), status="zombie", rss_bytes=0)
    assert zombie.describe() == "pid 1: sh, zombie: exited, but never waited for, 0B RSS"
    assert dataclasses.replace(zombie, argv=("[sh]",)).describe().startswith("pid 1: [sh], zombie")
    assert dataclasses.replace(zombie, argv=("[", "]")).describe().startswith("pid 1: '[' ']', zombie")


@pytest.mark.parametrize("part", ["a\nb", "\x1b[31m", "\u202eabc", "\udcff", "\0"])
def test_a_hostile_argument_does_not_reach_the_terminal(part: str) -> None:
    leak = dataclasses.replace(BARE_LEAK, argv=("x", part), cwd=part, owner=part, parents=(part,))
    assert leak.describe().isprintable()
    leak.describe().encode("utf-8")


def test_the_json_record_has_the_documented_keys() -> None:
    record = json.loads(json.dumps(to_record("test_x.py::test_y", FULL, "failed")))
    leak = record.pop("leaks")
    assert leak == [
        {
            "pid": 42,
            "argv": ["redis-server", "--dir", "/a b"],
            "cwd": "/srv",
            "age_seconds": 1.5,
            "rss_bytes": 5 * 1024**2,
            "owner": "tests/test_x.py::test_y",
            "started_at": "test_x.py:31 in test_a",
            "kind": "process",
            "name": None,
        }
    ]
    assert record == {
        "nodeid": "test_x.py::test_y",
        "outcome": "failed",
        "ended": "oom",
        "exit_code": None,
        "signal": 9,
        "wall_seconds": 1.25,
        "cpu_user_seconds": 0.0,
        "cpu_system_seconds": None,
        "memory_peak_bytes": 64 * 1024**2,
        "pids_peak": None,
        "io_read_bytes": None,
        "io_write_bytes": None,
        "oom_kill": 1,
        "pids_max_hits": 0,
        "backend": "cgroup",
        "not_enforced": ["io"],
    }


def test_the_record_does_not_turn_unknown_into_zero() -> None:
    record = to_record("x", Outcome(ended="exit", exit_code=0, backend="process"))
    assert {key for key, value in record.items() if value is None} == {
        *("outcome", "signal", "wall_seconds", "cpu_user_seconds", "cpu_system_seconds", "memory_peak_bytes"),
        *("pids_peak", "io_read_bytes", "io_write_bytes", "oom_kill", "pids_max_hits"),
    }
    assert (record["exit_code"], record["leaks"], record["not_enforced"]) == (0, [], [])
