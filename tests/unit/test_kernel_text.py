"""The kernel's texts, literally, and what is read out of them."""

from __future__ import annotations

import pytest

from pytest_cgroup._kernel_text import (
    CgroupMount,
    cgroup_mounts,
    flat_keyed,
    io_bytes,
    io_bytes_v1,
    membership,
    pressure_total_usec,
)

MEMORY_EVENTS = "low 0\nhigh 12\nmax 3\noom 1\noom_kill 2\noom_group_kill 0\n"
IO_STAT = """\
8:16 rbytes=1459200 wbytes=314773504 rios=192 wios=353 dbytes=0 dios=0
8:0 rbytes=90430464 wbytes=299008000 rios=8950 wios=1252 dbytes=50331648 dios=3021
254:0
"""
IO_SERVICE_BYTES = """\
254:0 Read 221184
254:0 Write 2097152
254:0 Sync 2318336
254:0 Async 0
254:0 Discard 0
254:0 Total 2318336
8:0 Read 1
8:0 Write 2
8:0 Total 3
Total 2318339
"""
PRESSURE = """\
some avg10=0.00 avg60=0.12 avg300=0.00 total=123456
full avg10=0.00 avg60=0.00 avg300=0.00 total=789
"""
HYBRID = """\
24 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 23 0:26 / /sys/fs/cgroup ro,nosuid,nodev,noexec shared:9 - tmpfs tmpfs ro,size=4096k,mode=755
31 30 0:27 / /sys/fs/cgroup/unified rw,nosuid,nodev,noexec,relatime shared:10 - cgroup2 cgroup2 rw,nsdelegate
32 30 0:28 / /sys/fs/cgroup/systemd rw,nosuid - cgroup cgroup rw,xattr,name=systemd
33 30 0:31 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid,nodev,noexec,relatime shared:15 - cgroup cgroup rw,cpu,cpuacct
34 30 0:32 /docker/abc /sys/fs/cgroup/memory ro,nosuid - cgroup cgroup rw,memory
"""


def test_flat_keyed() -> None:
    assert flat_keyed(MEMORY_EVENTS) == {
        "low": 0,
        "high": 12,
        "max": 3,
        "oom": 1,
        "oom_kill": 2,
        "oom_group_kill": 0,
    }
    assert flat_keyed("") == {}
    assert flat_keyed("populated 1\nfrozen 0\n") == {"populated": 1, "frozen": 0}


def test_a_value_that_is_no_number_is_left_out() -> None:
    assert flat_keyed("under_oom 0\nworld peace\nalone\n") == {"under_oom": 0}


def test_io_of_all_devices() -> None:
    assert io_bytes(IO_STAT) == (1459200 + 90430464, 314773504 + 299008000)
    assert io_bytes("") == (0, 0)
    assert io_bytes_v1(IO_SERVICE_BYTES) == (221185, 2097154)


def test_v1_that_says_nothing_has_not_counted() -> None:
    assert io_bytes_v1("Total 0\n") is None
    assert io_bytes_v1("8:0 Read 0\n8:0 Write 0\nTotal 0\n") is None
    assert io_bytes_v1("8:0 Read 0\n8:0 Write 1\nTotal 1\n") == (0, 1)


def test_pressure() -> None:
    assert pressure_total_usec(PRESSURE) == 123456
    assert pressure_total_usec("full avg10=0.00 avg60=0.00 avg300=0.00 total=789\n") is None


def test_membership() -> None:
    assert membership("5:cpu,cpuacct:/a\n1:name=systemd:/b:c\n0::/user.slice\n") == {
        "cpu": "/a",
        "cpuacct": "/a",
        "name=systemd": "/b:c",
        "": "/user.slice",
    }


def test_hybrid_mounts() -> None:
    unified, systemd, cpu, memory = cgroup_mounts(HYBRID)
    assert unified == CgroupMount(2, frozenset(), "/sys/fs/cgroup/unified", "/", False)
    assert (systemd.version, systemd.controllers) == (1, frozenset())
    assert (cpu.controllers, cpu.mount_point) == (frozenset({"cpu", "cpuacct"}), "/sys/fs/cgroup/cpu,cpuacct")
    assert (memory.root, memory.read_only) == ("/docker/abc", True)


@pytest.mark.parametrize("options", ["rw", "rw,nsdelegate,memory_recursiveprot"])
def test_pure_v2(options: str) -> None:
    (mount,) = cgroup_mounts(f"29 23 0:25 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 {options}\n")
    assert (mount.version, mount.mount_point, mount.root, mount.read_only) == (2, "/sys/fs/cgroup", "/", False)


def test_what_lies_over_a_mount_hides_it() -> None:
    over = "40 23 0:99 / /sys/fs/cgroup/unified rw - tmpfs tmpfs rw\n"
    assert len(cgroup_mounts(HYBRID + over)) == 3


def test_a_mount_point_with_a_blank() -> None:
    (mount,) = cgroup_mounts("29 23 0:25 /a\\040b /mnt/c\\134d rw - cgroup2 none ro\n")
    assert (mount.root, mount.mount_point, mount.read_only) == ("/a b", "/mnt/c\\d", True)
