"""A few seconds of what ``python -m tests.faults.load`` does for minutes."""

from __future__ import annotations

import json

import pytest

from tests.faults.load import one_long, survivors, together

pytestmark = pytest.mark.requires("cgroup", "memory", "pid_ns")


def test_sessions_at_once() -> None:
    counts, wrong = together(4, 5.0)
    assert wrong == []
    assert counts["verdicts"] == 20 * counts["sessions"]
    assert survivors() == []


def test_a_session_holds_no_more_as_it_goes() -> None:
    """Descriptors, that is: what else it holds is measured by benchmarks."""
    rows = [json.loads(line) for line in one_long(200).splitlines() if line.startswith("{")]
    assert len(rows) >= 9
    assert len({row["descriptors"] for row in rows[1:]}) == 1
