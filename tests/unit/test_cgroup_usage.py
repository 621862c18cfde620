"""What a cgroup has used, read from files that a test wrote."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_cgroup._cgroup import Cgroup
from pytest_cgroup._cgroup_usage import usage


def used(cgroup: Path, *, usec: int, peak: int) -> None:
    (cgroup / "cpu.stat").write_text(f"usage_usec {usec}\nuser_usec {usec}\nsystem_usec 0\n")
    (cgroup / "pids.peak").write_text(f"{peak}\n")


def test_an_earlier_answer_holds_as_long_as_nobody_has_run(tmp_path: Path) -> None:
    used(tmp_path, usec=5, peak=1)
    before = usage(Cgroup(str(tmp_path)))
    used(tmp_path, usec=5, peak=2)
    assert usage(Cgroup(str(tmp_path)), before) is before
    used(tmp_path, usec=6, peak=2)
    assert usage(Cgroup(str(tmp_path)), before).pids_peak == 2


@pytest.mark.parametrize("cpu", ["usage_usec 0\nuser_usec 0\nsystem_usec 0\n", ""], ids=["zero", "none"])
def test_where_no_time_is_counted_no_answer_holds(tmp_path: Path, cpu: str) -> None:
    used(tmp_path, usec=0, peak=1)
    (tmp_path / "cpu.stat").write_text(cpu)
    before = usage(Cgroup(str(tmp_path)))
    (tmp_path / "pids.peak").write_text("2\n")
    assert usage(Cgroup(str(tmp_path)), before).pids_peak == 2
