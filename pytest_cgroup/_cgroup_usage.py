"""What a cgroup has used, out of the files of its kernel: v2's, or v1's where a controller is there."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from . import _cgroup_v1 as v1
from ._kernel_files import read_record
from ._kernel_text import flat_keyed, io_bytes, io_bytes_v1, pressure_total_usec
from ._outcome import Usage

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ._cgroup import Cgroup


def usage(cgroup: Cgroup, before: Usage | None = None) -> Usage:
    """What the whole tree used so far, reaped grandchildren included; None for what the kernel does not count.

    Times in seconds, sizes in bytes. ``memory_peak_bytes`` includes page cache. *before* is an earlier answer: it still
    holds as long as nobody has run, which v2 tells to the microsecond.
    """
    cpu = _cpu_usec(cgroup)
    times = user, system = _seconds(cpu.get("user_usec")), _seconds(cpu.get("system_usec"))
    if before and cgroup.unified and any(times) and times == (before.cpu_user_seconds, before.cpu_system_seconds):
        return before
    anon, file = _memory(cgroup)
    io = _io(cgroup)
    events = _oom_and_high(cgroup)
    return Usage(
        cpu_user_seconds=user,
        cpu_system_seconds=system,
        memory_peak_bytes=_peak(cgroup),
        memory_anon_bytes=anon,
        memory_file_bytes=file,
        pids_peak=_integer(cgroup.read("pids.peak")),
        io_read_bytes=io[0] if io else None,
        io_write_bytes=io[1] if io else None,
        throttled_seconds=_seconds(_throttled_usec(cgroup, cpu)),
        cpu_pressure_seconds=_pressure(cgroup, "cpu"),
        memory_pressure_seconds=_pressure(cgroup, "memory"),
        io_pressure_seconds=_pressure(cgroup, "io"),
        oom_kill=events.get("oom_kill"),
        memory_high_hits=events.get("high"),
        pids_max_hits=cgroup.events("pids.events").get("max"),
    )


def cpu_seconds(cgroup: Cgroup) -> float | None:
    """CPU time of the whole tree so far, user and system, in seconds; None where the kernel does not tell."""
    cpu = _cpu_usec(cgroup)
    return (cpu["user_usec"] + cpu["system_usec"]) / 1e6 if "system_usec" in cpu else None


def _oom_and_high(cgroup: Cgroup) -> Mapping[str, int]:
    """What `usage` tells of ``memory.events``; v1 counts more, in files of its own."""
    if directory := cgroup.controllers.get("memory"):
        return v1.oom_kills(directory)
    return cgroup.events("memory.events")


def _cpu_usec(cgroup: Cgroup) -> dict[str, int]:
    if cgroup.unified:
        with contextlib.suppress(OSError):
            return flat_keyed(read_record(f"{cgroup.unified}/cpu.stat"))
        return {}
    return v1.cpu_usec(cgroup.controllers)


def _throttled_usec(cgroup: Cgroup, cpu: Mapping[str, int]) -> int | None:
    if "cpu" in cgroup.controllers:
        nanoseconds = flat_keyed(cgroup.read("cpu.stat") or "").get("throttled_time")
        return None if nanoseconds is None else nanoseconds // 1000
    return cpu.get("throttled_usec")


def _peak(cgroup: Cgroup) -> int | None:
    name = "memory.max_usage_in_bytes" if "memory" in cgroup.controllers else "memory.peak"
    return _integer(cgroup.read(name))


def _memory(cgroup: Cgroup) -> tuple[int | None, int | None]:
    """Anonymous and of files, in bytes."""
    stat = flat_keyed(cgroup.read("memory.stat") or "")
    if "memory" in cgroup.controllers:
        return stat.get("total_rss"), stat.get("total_cache")
    return stat.get("anon"), stat.get("file")


def _io(cgroup: Cgroup) -> tuple[int, int] | None:
    """Read and written, in bytes."""
    if "blkio" in cgroup.controllers:
        text = cgroup.read("blkio.throttle.io_service_bytes_recursive")
        return None if text is None else io_bytes_v1(text)
    text = cgroup.read("io.stat")
    return None if text is None else io_bytes(text)


def _pressure(cgroup: Cgroup, kind: str) -> float | None:
    if cgroup.unified is None:
        return None
    try:
        return _seconds(pressure_total_usec(read_record(f"{cgroup.unified}/{kind}.pressure")))
    except OSError:  # built without PSI, or psi=0: the file is absent, or says EOPNOTSUPP
        return None


def _seconds(usec: int | None) -> float | None:
    return None if usec is None else usec / 1e6


def _integer(text: str | None) -> int | None:
    return int(text) if text and text.strip().isdecimal() else None
