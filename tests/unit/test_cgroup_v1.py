"""v1 said in v2's words, over files with what a kernel said."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from pytest_cgroup import _cgroup_usage
from pytest_cgroup import _cgroup_v1 as v1
from pytest_cgroup._cgroup import Cgroup
from pytest_cgroup.exceptions import ContainerError


def files(directory: Path, **texts: str) -> dict[str, str]:
    """A v1 directory of each controller that a name begins with: ``memory__failcnt="3"`` is memory.failcnt."""
    found = {}
    for name, text in texts.items():
        controller, _, rest = name.partition("__")
        place = directory / controller
        place.mkdir(exist_ok=True)
        (place / f"{controller}.{rest}").write_text(text)
        found[controller] = str(place)
    return found


def test_memory_events(tmp_path: Path) -> None:
    (directory,) = files(
        tmp_path, memory__oom_control="oom_kill_disable 0\nunder_oom 0\noom_kill 2\n", memory__failcnt="17\n"
    ).values()
    assert v1.memory_events(directory) == {"max": 17, "oom_kill": 2}
    Path(directory, "memory.memsw.failcnt").write_text("3\n")
    assert v1.memory_events(directory)["max"] == 20


@pytest.mark.parametrize(("peak", "hits"), [("8191", 0), ("8192", 1)])
def test_oom_kill_is_missing_before_4_13(tmp_path: Path, peak: str, hits: int) -> None:
    """And without counts of failed charges the peak says whether the limit was hit."""
    (directory,) = files(
        tmp_path,
        memory__oom_control="oom_kill_disable 0\nunder_oom 0\n",
        memory__failcnt="0\n",
        memory__limit_in_bytes="8192\n",
        memory__max_usage_in_bytes=peak,
    ).values()
    assert v1.memory_events(directory) == {"max": hits}


def test_cpu_time(tmp_path: Path) -> None:
    directories = files(tmp_path, cpuacct__usage_user="1234567\n", cpuacct__usage_sys="89000\n")
    assert v1.cpu_usec(directories) == {"user_usec": 1234, "system_usec": 89}
    assert v1.cpu_usec({}) == {}


@pytest.mark.parametrize(
    ("value", "written", "in_force"),
    [("50000 100000", "50000", "50000 100000"), ("max 100000", "-1", "max 100000")],
)
def test_cpu_max(tmp_path: Path, value: str, written: str, in_force: str) -> None:
    directories = files(tmp_path, cpu__cfs_quota_us="", cpu__cfs_period_us="")
    assert v1.WRITERS["cpu.max"](directories, value) == in_force
    assert (tmp_path / "cpu" / "cpu.cfs_quota_us").read_text() == written


@pytest.mark.parametrize(("weight", "shares"), [(1, "10"), (100, "1024"), (10_000, "102400")])
def test_cpu_weight(tmp_path: Path, weight: int, shares: str) -> None:
    directories = files(tmp_path, cpu__shares="")
    assert v1.WRITERS["cpu.weight"](directories, str(weight)) == str(weight)
    assert (tmp_path / "cpu" / "cpu.shares").read_text() == shares


def test_swap_is_what_is_above_memory(tmp_path: Path) -> None:
    directories = files(tmp_path, memory__limit_in_bytes="", **{"memory__memsw.limit_in_bytes": ""})
    assert v1.WRITERS["memory.max"](directories, "1048576") == "1048576"
    assert v1.WRITERS["memory.swap.max"](directories, "4096") == "4096"
    assert (tmp_path / "memory" / "memory.memsw.limit_in_bytes").read_text() == "1052672"


def test_no_limit_is_max(tmp_path: Path) -> None:
    (directory,) = files(tmp_path, memory__failcnt="0").values()
    os.mkfifo(f"{directory}/memory.limit_in_bytes")  # not a file that keeps what is written: as the kernel's
    with pytest.raises(ContainerError) as caught:
        v1.WRITERS["memory.max"]({"memory": directory}, "max")
    assert caught.value.errno == errno.ESPIPE
    assert v1._size("9223372036854771712") == "max"
    assert v1._size("1099511627776") == "1099511627776"


def test_io_max_is_four_files(tmp_path: Path) -> None:
    names = ["read_bps_device", "write_bps_device", "read_iops_device", "write_iops_device"]
    directories = files(tmp_path, **{f"blkio__throttle.{name}": "" for name in names})
    assert v1.WRITERS["io.max"](directories, "8:0 rbps=1024 wiops=10") == "8:0 rbps=1024 wiops=10"
    assert (tmp_path / "blkio" / "blkio.throttle.read_bps_device").read_text() == "8:0 1024"
    assert (tmp_path / "blkio" / "blkio.throttle.write_iops_device").read_text() == "8:0 10"
    assert (tmp_path / "blkio" / "blkio.throttle.write_bps_device").read_text() == ""


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    directories = files(tmp_path, cpu__shares="")
    with pytest.raises(ContainerError, match=r"cpu\.cfs_period_us was not accepted"):
        v1.WRITERS["cpu.max"](directories, "1000 100000")
    assert not v1.offers(directories, "cpu.max")
    assert v1.offers(directories, "cpu.weight")


@pytest.mark.parametrize(
    ("name", "controller"), [("io.max", "blkio"), ("memory.max", "memory"), ("cgroup.kill", "cgroup")]
)
def test_controllers_by_v2_name(name: str, controller: str) -> None:
    assert v1.controller_of(name) == controller


def test_what_is_not_counted_is_none(tmp_path: Path) -> None:
    """No file, no number; a file that says 0 is 0."""
    directories = files(
        tmp_path,
        memory__oom_control="oom_kill 0\n",
        memory__failcnt="0",
        memory__max_usage_in_bytes="0\n",
        **{
            "memory__limit_in_bytes": "8192\n",
            "pids__events": "max 0\n",
            "blkio__throttle.io_service_bytes_recursive": "Total 0\n",
        },
    )
    usage = _cgroup_usage.usage(Cgroup(None, directories))
    assert (usage.memory_peak_bytes, usage.oom_kill, usage.pids_max_hits) == (0, 0, 0)
    assert usage.pids_peak is None
    assert usage.cpu_user_seconds is None
    assert usage.throttled_seconds is None
    assert usage.io_read_bytes is None
    assert usage.cpu_pressure_seconds is None
    assert usage.memory_high_hits is None
