"""cgroup v1 said in v2's words: the one place where its files and units are known.

Source: Documentation/admin-guide/cgroup-v1/*.rst.
"""

from __future__ import annotations

import contextlib
import errno
from typing import TYPE_CHECKING

from ._isolated import os, time
from ._kernel_files import read_file, read_record, write_file
from ._kernel_text import flat_keyed
from ._refusal import refused
from ._trace import trace
from .exceptions import ContainerError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Directories = Mapping[str, str]

#: what cgroup v1 reports for "no limit": PAGE_COUNTER_MAX in bytes, whatever the page size
_UNLIMITED = 0x7FFFFFFFFFFF0000
_IO_FILES = {
    "rbps": "blkio.throttle.read_bps_device",
    "wbps": "blkio.throttle.write_bps_device",
    "riops": "blkio.throttle.read_iops_device",
    "wiops": "blkio.throttle.write_iops_device",
}


def _write(path: str, value: str) -> str:
    """One unbuffered write, and what the file then says."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            trace("write %s: %s", path, value)
            os.write(fd, value.encode())
            trace("in force %s: %s", path, in_force := os.pread(fd, 65536, 0).decode().strip())
            return in_force
        finally:
            os.close(fd)
    except OSError as error:
        raise ContainerError(
            f"{os.path.basename(path)} was not accepted",
            path=path,
            operation="write",
            value=value,
            errno=error.errno,
            remedy="this kernel does not offer the file" if error.errno == errno.ENOENT else None,
        ) from error


def _size(text: str) -> str:
    return "max" if int(text) >= _UNLIMITED else text


def _memory_max(directories: Directories, value: str) -> str:
    directory = directories["memory"]
    path, value = f"{directory}/memory.limit_in_bytes", "-1" if value == "max" else value
    try:
        return _size(_write(path, value))
    except ContainerError as error:
        if error.errno != errno.EINVAL:
            raise
    _make_room_above(directory, value)
    return _size(_write(path, value))


def _make_room_above(directory: str, value: str) -> None:
    """memory.memsw is never below memory.max: where that is raised above it, it goes up first, by as much."""
    with contextlib.suppress(OSError):  # without swap accounting there is none
        memory, both = (int(read_file(f"{directory}/memory.{kind}limit_in_bytes")) for kind in ("", "memsw."))
        room = value if value == "-1" else str(int(value) + both - memory)
        _write(f"{directory}/memory.memsw.limit_in_bytes", room)


def _memory_swap_max(directories: Directories, value: str) -> str:
    """v1 limits memory and swap together (memory.memsw), so memory.max must be set first."""
    directory = directories["memory"]
    if value == "max":
        return _size(_write(f"{directory}/memory.memsw.limit_in_bytes", "-1"))
    memory = int(read_file(f"{directory}/memory.limit_in_bytes"))
    both = int(_write(f"{directory}/memory.memsw.limit_in_bytes", str(memory + int(value))))
    return str(both - memory)


def _cpu_max(directories: Directories, value: str) -> str:
    directory = directories["cpu"]
    quota, _, period = value.partition(" ")
    if period:
        _write(f"{directory}/cpu.cfs_period_us", period)
    in_force = _write(f"{directory}/cpu.cfs_quota_us", "-1" if quota == "max" else quota)
    return f"{'max' if in_force == '-1' else in_force} {read_file(f'{directory}/cpu.cfs_period_us').strip()}"


def _cpu_weight(directories: Directories, value: str) -> str:
    """cpu.shares is 1024 where cpu.weight is 100 (kernel/sched/core.c, sched_weight_from_cgroup)."""
    shares = _write(f"{directories['cpu']}/cpu.shares", str(max(2, round(int(value) * 1024 / 100))))
    return str(round(int(shares) * 100 / 1024))


def _cpuset(directories: Directories, value: str) -> str:
    return _write(f"{directories['cpuset']}/cpuset.cpus", value)


def adopt_cpuset(directory: str) -> None:
    """Give a new v1 cpuset its parent's CPUs and memory nodes: it is made with none, and then takes no task.

    Raises:
        ContainerError: the kernel refused it.
    """
    for name in ("cpuset.mems", "cpuset.cpus"):
        path = f"{directory}/{name}"
        try:
            if not read_file(path).strip():
                _write(path, read_file(f"{os.path.dirname(directory)}/{name}").strip())
        except OSError as error:
            raise refused("can't take over the cpuset above", error, path=path, operation="read") from error


def _io_max(directories: Directories, value: str) -> str:
    """``"8:0 rbps=1048576 wiops=100"``: one v1 file for each key."""
    device, *limits = value.split()
    in_force = [device]
    for limit in limits:
        key, _, number = limit.partition("=")
        path = f"{directories['blkio']}/{_IO_FILES[key]}"
        said = _write(path, f"{device} {0 if number == 'max' else number}")
        found = dict(line.split() for line in said.splitlines())
        in_force.append(f"{key}={found.get(device, 'max')}")
    return " ".join(in_force)


def _io_weight(directories: Directories, value: str) -> str:
    """blkio.bfq.weight, 1..1000, where the BFQ scheduler is there."""
    weight = value.rpartition(" ")[2]
    return _write(f"{directories['blkio']}/blkio.bfq.weight", str(min(1000, int(weight))))


WRITERS: dict[str, Callable[[Directories, str], str]] = {
    "memory.max": _memory_max,
    "memory.swap.max": _memory_swap_max,
    "cpu.max": _cpu_max,
    "cpu.weight": _cpu_weight,
    "cpuset.cpus": _cpuset,
    "io.max": _io_max,
    "io.weight": _io_weight,
}

_FILES = {
    "memory.max": "memory.limit_in_bytes",
    "memory.swap.max": "memory.memsw.limit_in_bytes",
    "cpu.max": "cpu.cfs_quota_us",
    "cpu.weight": "cpu.shares",
    "cpuset.cpus": "cpuset.cpus",
    "io.max": "blkio.throttle.read_bps_device",
    "io.weight": "blkio.bfq.weight",
}


def controller_of(name: str) -> str:
    """The v1 controller that has what v2 calls *name*: ``io`` is ``blkio`` there."""
    controller = name.partition(".")[0]
    return "blkio" if controller == "io" else controller


def offers(directories: Directories, name: str) -> bool:
    """Whether the v1 file behind a v2 name is there (it is not in a root cgroup, so ask below one)."""
    directory = directories.get(controller_of(name))
    return directory is not None and os.path.exists(f"{directory}/{_FILES[name]}")


def memory_events(directory: str) -> dict[str, int]:
    """``oom_kill`` (memory.oom_control, since 4.13), and ``max``: how often the cgroup's own limits were hit.

    Memory and swap together are charged first, so where no swap is allowed it is that limit which is hit.
    """
    found = {"max": int(read_file(f"{directory}/memory.failcnt"))}
    with contextlib.suppress(OSError):  # no swap accounting
        found["max"] += int(read_file(f"{directory}/memory.memsw.failcnt"))
    if not found["max"]:  # 6.18 has been seen to leave both at 0: then the peak says whether the limit was reached
        limit, peak = (int(read_file(f"{directory}/memory.{name}_in_bytes")) for name in ("limit", "max_usage"))
        found["max"] = int(peak >= limit)
    return found | oom_kills(directory)


def oom_kills(directory: str) -> dict[str, int]:
    """``{"oom_kill": 1}``, of this cgroup and not of those below it (memory.oom_control, since 4.13)."""
    with contextlib.suppress(OSError):
        control = flat_keyed(read_record(f"{directory}/memory.oom_control"))
        return {"oom_kill": control["oom_kill"]} if "oom_kill" in control else {}
    return {}


def oom_eventfd(directory: str) -> int | None:
    """An eventfd that becomes readable when this cgroup runs out of memory; None where v1 has no notifications.

    v1 has no memory.oom.group: who wants one OOM kill to end the container must be told of it (memory.rst, section 10).
    """
    try:
        fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    except OSError:
        return None
    try:
        control = os.open(f"{directory}/memory.oom_control", os.O_RDONLY | os.O_CLOEXEC)
        try:
            write_file(f"{directory}/cgroup.event_control", f"{fd} {control}")
        finally:
            os.close(control)
    except OSError:
        os.close(fd)
        return None
    return fd


def cpu_usec(directories: Directories) -> dict[str, int]:
    """cpuacct's user and system time, in microseconds, under cpu.stat's names."""
    if not (directory := directories.get("cpuacct")):
        return {}
    with contextlib.suppress(OSError):
        return {
            "user_usec": int(read_file(f"{directory}/cpuacct.usage_user")) // 1000,
            "system_usec": int(read_file(f"{directory}/cpuacct.usage_sys")) // 1000,
        }
    return {}


def set_frozen(directory: str, frozen: bool) -> None:
    """The v1 freezer: FREEZING until every task has stopped; asking again helps (freezer-subsystem.rst)."""
    path = f"{directory}/freezer.state"
    if not frozen:
        _write(path, "THAWED")
        return
    deadline = time.monotonic() + 0.5
    while _write(path, "FROZEN") != "FROZEN" and time.monotonic() < deadline:
        time.sleep(0.001)  # the v1 freezer has no event
