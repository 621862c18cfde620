"""What a container used: the whole tree of it, what has ended included; None for what is not counted here."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import pytest

from pytest_cgroup._outcome import Usage
from tests.kernel.contain import MB, PROGRAMS, Lab, Tell, burn, nothing, on_cgroup, on_process


def test_cpu_time_of_grandchildren_that_have_ended(lab: Lab) -> None:
    def function(tell: Tell) -> None:
        """A grandchild burns, orphaned, and is reaped by whoever adopted it: none of our children ever counted it."""
        reader, writer = os.pipe()
        if (pid := os.fork()) == 0:
            if os.fork() == 0:
                burn(0.3)
                os.write(writer, b"!")
            os._exit(0)
        os.waitpid(pid, 0)
        os.close(writer)
        os.read(reader, 1)
        os.read(reader, 1)  # end of file: it has gone

    usage = lab.run(function).usage
    assert usage.cpu_user_seconds is not None
    assert usage.cpu_system_seconds is not None
    assert usage.cpu_user_seconds + usage.cpu_system_seconds >= 0.25


def test_little_is_little(lab: Lab) -> None:
    """What pytest itself used before is not the container's."""
    burn(1.0)
    usage = lab.run(nothing).usage
    assert (usage.cpu_user_seconds or 0) + (usage.cpu_system_seconds or 0) < 1.0


@pytest.mark.requires("memory")
@on_cgroup
def test_memory_peak(lab: Lab) -> None:
    """Of a child that has ended; and of what a test shares with pytest nothing is charged to it."""
    usage = lab.run(lambda _: subprocess.run([sys.executable, PROGRAMS / "memory_hog.py", "50"], check=True)).usage
    if usage.memory_peak_bytes is None:
        pytest.skip("memory.peak: since Linux 5.19")
    assert 50 * MB < usage.memory_peak_bytes < 200 * MB
    assert (lab.run(nothing).usage.memory_peak_bytes or 0) < 40 * MB


@on_process
def test_memory_peak_by_rusage(lab: Lab) -> None:
    usage = lab.run(lambda _: subprocess.run([sys.executable, PROGRAMS / "memory_hog.py", "50"], check=True)).usage
    assert usage.memory_peak_bytes is not None
    assert usage.memory_peak_bytes > 50 * MB


@pytest.mark.requires("pids")
@on_cgroup
def test_pids_peak(lab: Lab) -> None:
    def function(tell: Tell) -> None:
        reader, writer = os.pipe()
        for _ in range(5):
            if os.fork() == 0:
                os.close(writer)
                os.read(reader, 1)
                os._exit(0)

    usage = lab.run(function).usage
    if usage.pids_peak is None:
        pytest.skip("pids.peak: since Linux 6.1")
    assert usage.pids_peak == 6
    assert usage.pids_max_hits == 0


def test_none_is_not_zero(lab: Lab) -> None:
    """What this backend counts is a number, what it does not is None."""
    usage = lab.run(nothing).usage
    counted = {field.name for field in dataclasses.fields(Usage) if getattr(usage, field.name) is not None}
    assert {"wall_seconds", "cpu_user_seconds", "cpu_system_seconds"} <= counted
    if lab.backend.name == "process":
        assert not counted & {"pids_peak", "pids_max_hits", "throttled_seconds", "oom_kill", "memory_high_hits"}
        return
    offered = {
        "oom_kill": "memory",
        "pids_max_hits": "pids",
        "memory_high_hits": "memory_high",
        "cpu_pressure_seconds": "pressure",
    }
    if lab.host.placement.kind == "v2":  # v1 tells nothing before there was I/O
        offered["io_read_bytes"] = "io"
    for name, capability in offered.items():
        assert (name in counted) == lab.host.capability(capability).offered, name


def test_usage_of_a_living_container(lab: Lab) -> None:
    def function(tell: Tell) -> None:
        held = bytearray(os.urandom(1)) * (20 * MB)
        tell(len(held))
        os.read(go, 1)

    go, let_go = os.pipe()
    try:
        with lab.live(function) as live:
            live.told()
            so_far = live.container.so_far()
            os.write(let_go, b"!")
            live.finish()
        assert so_far.usage.wall_seconds
        assert so_far.leaks == ()
        if so_far.usage.memory_anon_bytes is not None:
            assert so_far.usage.memory_anon_bytes > 10 * MB
    finally:
        os.close(go)
        os.close(let_go)
