"""Each limit holds: shown by what happens, which would not happen without it."""

from __future__ import annotations

import errno
import mmap
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from pytest_cgroup._backends.cgroup import CgroupTree
from pytest_cgroup._backends.limits import device_number
from pytest_cgroup._host import Host
from pytest_cgroup.exceptions import ContainerError
from tests.kernel.contain import MB, PROGRAMS, Lab, Tell, burn, on_cgroup, on_process, wait
from tests.kernel.forked import forked

HOG = PROGRAMS / "memory_hog.py"


def hog(megabytes: int) -> int:
    """A child that takes so much memory; its status."""
    return subprocess.run([sys.executable, HOG, str(megabytes)], check=False).returncode


def hog_and_stay(tell: Tell) -> None:
    """A child of it takes too much; it itself would go on."""
    hog(200)
    wait(tell)


# memory


@pytest.mark.requires("memory")
@on_cgroup
def test_memory_within_the_limit(lab: Lab) -> None:
    value, outcome = lab.call(lambda _: hog(40), memory=128 * MB)
    assert (value, outcome.ended, outcome.usage.oom_kill) == (0, "exit", 0)
    assert outcome.limits["memory"] == str(128 * MB)
    assert outcome.usage.memory_peak_bytes is not None
    assert 40 * MB <= outcome.usage.memory_peak_bytes <= 128 * MB


@pytest.mark.requires("memory")
@on_cgroup
def test_memory_above_the_limit(lab: Lab) -> None:
    """A child that hogs ends the container, though it is not the first process: one OOM kill is the end of all."""

    outcome = lab.run(hog_and_stay, memory=64 * MB)
    assert (outcome.ended, outcome.oom_killed) == ("oom", True)
    assert outcome.usage.oom_kill
    assert outcome.usage.memory_peak_bytes is not None
    assert outcome.usage.memory_peak_bytes <= 64 * MB


@pytest.mark.requires("memory")
@on_cgroup
def test_memory_of_the_first_process(lab: Lab) -> None:
    outcome = lab.run(lambda _: bytearray(200 * MB).count(1), memory=64 * MB)
    assert outcome.ended == "oom"


@pytest.mark.requires("memory")
@on_cgroup
def test_without_oom_group_only_the_hog_is_killed(lab: Lab) -> None:
    # More than what this process has, all of which the first one may come to copy: a collection of garbage does that.
    value, outcome = lab.call(lambda _: hog(400), memory=192 * MB, oom_group=False)
    assert (value, outcome.ended, outcome.exit_code) == (-9, "exit", 0)
    assert outcome.usage.oom_kill == 1


@on_process
def test_memory_is_watched_where_no_cgroup_is(lab: Lab) -> None:
    """Over all processes together, and what a fork shares with pytest is not counted."""

    def function(tell: Tell) -> None:
        for _ in range(2):
            reader, writer = os.pipe()
            subprocess.Popen([sys.executable, HOG, "48", str(writer)], pass_fds=[writer])
            os.read(reader, 1)
        wait(tell)

    spec = lab.spec(memory=64 * MB)
    assert any("memory" in words for words in lab.backend.weaker(spec))
    assert lab.backend.missing(spec) == []
    outcome = lab.run(function, memory=64 * MB)
    assert outcome.ended == "oom"
    assert outcome.usage.memory_peak_bytes is not None
    assert outcome.usage.memory_peak_bytes > 64 * MB
    assert outcome.describe().startswith("out of memory: killed at its own limit (memory=64M, peak ")
    with lab.live(lambda _: hog(16), memory=64 * MB) as live:
        live.container.watch({}, lambda: False, 0.2)
        assert live.finish().ended == "exit"


@on_process
def test_who_ends_while_memory_is_summed_up_is_not_counted_twice(lab: Lab) -> None:
    """Pages that a fork shares are in part each one's; when it ends, they are the others' alone.

    There are many, as in a large suite: with one sum for each look, every fourth of these was out of memory.
    Not more, though: in user-mode Linux each page is a mapping of the host's, of which a process has 65,530.
    """
    large = bytearray(os.urandom(MB)) * 160
    ends = [lab.run(lambda _: hog(16), memory=64 * MB).ended for _ in range(30)]
    assert (set(ends), len(large)) == ({"exit"}, 160 * MB)


def _has_swap() -> bool:
    return any(line.split()[1] != "0" for line in Path("/proc/meminfo").read_text().splitlines() if "SwapTotal" in line)


@pytest.mark.requires("memory", "swap")
@on_cgroup
def test_swap_is_none_beside_a_memory_limit(lab: Lab) -> None:
    with lab.live(wait, memory=64 * MB) as live:
        live.told()
        assert live.container.tree.limits["swap"] == "0"
        name = "memory.memsw.limit_in_bytes" if live.cgroup.controllers else "memory.swap.max"
        assert (live.cgroup.read(name) or "").strip() == (str(64 * MB) if live.cgroup.controllers else "0")
        live.container.signal(9)
    outcome = lab.run(lambda _: hog(100), memory=64 * MB, swap=200 * MB)
    assert outcome.ended == ("exit" if _has_swap() else "oom")


@pytest.mark.requires("memory_high")
@on_cgroup
def test_memory_high_slows_and_does_not_kill(lab: Lab) -> None:
    """How much it is slowed differs by the hundred between kernels, so this does not wait for its end."""
    with lab.live(lambda _: hog(40), memory_high=16 * MB) as live:
        while not live.container.so_far().usage.memory_high_hits and not live.container.ended:
            live.container.watch({}, lambda: False, timeout=0.01)
        usage = live.container.so_far().usage
    assert usage.memory_high_hits
    assert usage.oom_kill == 0
    _, control = lab.call(lambda _: hog(40))
    assert control.usage.memory_high_hits == 0


@pytest.mark.requires("memory")
@on_cgroup
@pytest.mark.parametrize(
    "asked", [{"controls": {"memory.max": "64M"}}, {"memory": 64 * MB, "oom_group": False}], ids=str
)
def test_however_it_was_limited_it_is_its_own_limit(lab: Lab, asked: dict[str, object]) -> None:
    assert lab.run(lambda _: bytearray(200 * MB), **asked).ended == "oom"


@pytest.mark.requires("memory")
@on_cgroup
def test_an_ancestors_limit_is_not_its_own(lab: Lab) -> None:
    """The parent cgroup has the limit, and runs out of memory."""
    parent = lab.backend.create(lab.spec(memory=64 * MB), "parent")
    assert isinstance(parent, CgroupTree)
    base = parent.cgroup.directories[0] if not parent.cgroup.controllers else parent.cgroup.controllers["memory"]

    def function() -> tuple[object, ...]:
        host = Host(base)
        try:
            inner = Lab(host, type(lab.backend)(host))  # type: ignore[call-arg]
            own = inner.run(lambda _: bytearray(200 * MB).count(1), memory=48 * MB)
            outcome = inner.run(lambda _: bytearray(200 * MB).count(1))
            with_a_wider_one = inner.run(lambda _: bytearray(200 * MB).count(1), memory=128 * MB)
            by_a_child = inner.run(hog_and_stay, memory=128 * MB)
            return own.ended, outcome.ended, with_a_wider_one.ended, by_a_child.ended, bool(outcome.usage.oom_kill)
        finally:
            host.close()

    try:
        assert forked(function) == ("oom", *["oom-ancestor"] * 3, True)
    finally:
        parent.remove()


def gives_up_pages(path: Path) -> bool:
    """Whether what is written below *path* is cache: a file in memory stays."""
    mounts = {part.mountpoint: part.fstype for part in psutil.disk_partitions(all=True)}
    return next(mounts[str(one)] for one in (path, *path.parents) if str(one) in mounts) not in ("tmpfs", "ramfs")


@pytest.mark.requires("memory")
@on_cgroup
def test_a_limit_that_was_hit_before_is_not_blamed_for_an_ancestors(lab: Lab, tmp_path: Path) -> None:
    """Page cache filled it up to its own limit, and was given up; then a neighbour takes what the parent has."""
    if not gives_up_pages(tmp_path):
        pytest.skip("tmp_path is on a file system in memory")
    parent = lab.backend.create(lab.spec(memory=128 * MB), "parent")
    assert isinstance(parent, CgroupTree)
    base = parent.cgroup.directories[0] if not parent.cgroup.controllers else parent.cgroup.controllers["memory"]
    reader, writer = os.pipe()

    def neighbour(tell: Tell) -> None:
        mine = bytearray(90 * MB)
        wait(tell)
        del mine

    def victim(tell: Tell) -> None:
        Path("/proc/self/oom_score_adj").write_text("1000")
        with open(tmp_path / "file", "wb") as file:
            for _ in range(80):
                file.write(bytes(MB))
            file.flush()
            os.fsync(file.fileno())
        first = bytearray(30 * MB)
        tell("hit, and lived on")
        os.read(reader, 1)
        second = bytearray(12 * MB)
        del first, second

    def function() -> tuple[object, ...]:
        host = Host(base)
        try:
            inner = Lab(host, type(lab.backend)(host))  # type: ignore[call-arg]
            with inner.live(victim, memory=48 * MB, name="victim") as live:
                live.told()
                hit = live.cgroup.events("memory.events").get("max")
                with inner.live(neighbour, name="neighbour") as other:
                    other.told()
                    os.write(writer, b"!")
                    ended = live.finish().ended
            return hit, ended
        finally:
            host.close()

    try:
        hit, ended = forked(function)
    finally:
        os.close(reader)
        os.close(writer)
        parent.remove()
    assert hit, "or there was no temptation"
    assert ended == "oom-ancestor"


# processes


@pytest.mark.requires("pids")
@on_cgroup
def test_pids(lab: Lab) -> None:
    def function(tell: Tell) -> tuple[int, int | None]:
        born = []
        reader, writer = os.pipe()
        try:
            while True:
                if (pid := os.fork()) == 0:
                    os.close(writer)
                    os.read(reader, 1)
                    os._exit(0)
                born.append(pid)
        except OSError as error:
            os.close(writer)
            for pid in born:
                os.waitpid(pid, 0)
            return len(born) + 1, error.errno

    value, outcome = lab.call(function, pids=12)
    assert value == (12, errno.EAGAIN)
    assert (outcome.ended, outcome.limits["pids"], outcome.usage.pids_max_hits) == ("exit", "12", 1)
    assert outcome.usage.pids_peak in (12, None)


# CPU


@pytest.mark.requires("cpu")
@on_cgroup
def test_cpu(lab: Lab) -> None:
    """A tenth of a core: to burn so much takes ten times as long, most of it throttled."""

    def function(tell: Tell) -> float:
        start = time.monotonic()
        burn(0.15)
        return time.monotonic() - start

    elapsed, outcome = lab.call(function, cpu=0.1)
    assert outcome.limits["cpu"] == "10000 100000"
    assert outcome.usage.throttled_seconds is not None
    assert outcome.usage.throttled_seconds > 0
    assert elapsed > 0.6  # at most 0.01 s in each 0.1 s, and the first period may have begun long ago
    _, control = lab.call(lambda _: burn(0.05), cpu=2)
    assert control.usage.throttled_seconds == 0


@pytest.mark.requires("cpu_weight")
@on_cgroup
@pytest.mark.parametrize("weight", [1, 100, 250, 10_000])
def test_cpu_weight(lab: Lab, weight: int) -> None:
    """v1's cpu.shares are coarser at the low end, and are told as what they are."""
    outcome = lab.run(lambda _: None, cpu_weight=weight)
    assert int(outcome.limits["cpu_weight"]) == pytest.approx(weight, abs=1)


def test_cpuset(lab: Lab) -> None:
    cpu = max(os.sched_getaffinity(0))
    if lab.backend.name == "cgroup" and not lab.host.capability("cpuset").offered:
        pytest.skip(lab.host.capability("cpuset").reason)
    value, _ = lab.call(lambda _: os.sched_getaffinity(0), cpuset=str(cpu))
    assert value == {cpu}
    assert cpu in os.sched_getaffinity(0)


@pytest.mark.requires("cpuset")
@on_cgroup
def test_cpuset_can_not_be_left(lab: Lab) -> None:
    cpus = os.sched_getaffinity(0)
    if len(cpus) < 2:
        pytest.skip("there is one CPU only")

    def function(tell: Tell) -> object:
        try:
            os.sched_setaffinity(0, {max(cpus)})
        except OSError as error:
            return error.errno
        return os.sched_getaffinity(0)

    value, _ = lab.call(function, cpuset=str(min(cpus)))
    assert value == errno.EINVAL


# I/O


def _disk(path: Path) -> str | None:
    """MAJOR:MINOR of the whole disk that *path* lies on; None where it is on none, as on a tmpfs."""
    device = os.stat(path).st_dev
    if os.major(device) == 0:
        return None
    place = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve()
    return (place.parent if (place / "partition").exists() else place).joinpath("dev").read_text().strip()


@pytest.fixture
def on_disk(tmp_path: Path) -> Iterator[Path]:
    """A directory on a block device."""
    for place in (tmp_path, Path("/var/tmp"), Path.home()):
        if os.access(place, os.W_OK) and _disk(place):
            with tempfile.TemporaryDirectory(prefix="io-", dir=place) as name:
                yield Path(name)
            return
    pytest.skip("no block device to write to")


@pytest.mark.requires("io")
@on_cgroup
def test_io(lab: Lab, on_disk: Path) -> None:
    """Two megabytes at a megabyte a second, past the page cache; the same without a limit is the control."""
    file = on_disk / "data"
    disk = _disk(on_disk)
    assert disk is not None

    def write(tell: Tell) -> float:
        block = mmap.mmap(-1, MB // 4)  # page-aligned, as O_DIRECT wants it
        block.write(os.urandom(MB // 4))
        fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_DIRECT)
        start = time.monotonic()
        for _ in range(8):
            os.write(fd, block)
        return time.monotonic() - start

    limited, outcome = lab.call(write, io={disk: {"wbps": MB}})
    free, control = lab.call(write)
    assert f"wbps={MB}" in outcome.limits["io"]
    assert outcome.limits["io"].startswith(disk)
    assert limited > 1.0
    assert limited > free
    assert (outcome.usage.io_write_bytes or 0) >= 2 * MB
    if control.usage.io_write_bytes is not None or lab.host.placement.kind == "v2":  # v1 need not count without a limit
        assert (control.usage.io_write_bytes or 0) >= 2 * MB


@pytest.mark.requires("io_weight")
@on_cgroup
def test_io_weight(lab: Lab) -> None:
    assert "200" in lab.run(lambda _: None, io_weight=200).limits["io_weight"]


def test_a_device_is_named_by_number_or_path() -> None:
    assert device_number("8:0") == "8:0"
    with pytest.raises(ContainerError, match="not a block device"):
        device_number("/dev/null")
    with pytest.raises(ContainerError, match="ENOENT"):
        device_number("/dev/no-such-disk")
    disks = [path for path in Path("/sys/block").iterdir() if Path("/dev", path.name).is_block_device()]
    for disk in disks:
        number = (disk / "dev").read_text().strip()
        assert device_number(f"/dev/{disk.name}") == number
        for partition in disk.glob(f"{disk.name}*/partition"):
            assert device_number(f"/dev/{partition.parent.name}") == number


# raw, and refused


@pytest.mark.requires("memory")
@on_cgroup
def test_controls_are_written_as_they_are(lab: Lab) -> None:
    v1 = "memory" in lab.host.placement.session.controllers  # type: ignore[union-attr]
    name = "memory.soft_limit_in_bytes" if v1 else "memory.low"
    outcome = lab.run(lambda _: None, controls={name: str(16 * MB)})
    assert outcome.limits[name] == str(16 * MB)


@on_cgroup
def test_a_control_that_is_not_there(lab: Lab) -> None:
    with pytest.raises(ContainerError, match=r"memory\.nonsense was not accepted") as caught:
        lab.backend.create(lab.spec(controls={"memory.nonsense": "1"}), "test")
    assert caught.value.errno in (errno.ENOENT, errno.EACCES)
    assert caught.value.value == "1"


@on_cgroup
@pytest.mark.requires("cpuset")
def test_a_value_that_the_kernel_refuses(lab: Lab) -> None:
    """And nothing of the container is left."""
    with pytest.raises(ContainerError) as caught:
        lab.backend.create(lab.spec(cpuset="4095"), "test")
    assert caught.value.value == "4095"


@on_cgroup
@pytest.mark.requires("memory", "pids")
def test_what_is_in_force_is_what_the_kernel_says(lab: Lab) -> None:
    outcome = lab.run(lambda _: None, memory=64 * MB + 100, pids=7, timeout=5)
    assert outcome.limits == {"memory": str(64 * MB), "swap": "0", "pids": "7", "timeout": "5 s"} | (
        {} if lab.host.capability("swap").offered else {"swap": None}
    )


@on_process
def test_what_takes_a_cgroup_is_refused_by_name(lab: Lab) -> None:
    spec = lab.spec(pids=5, cpu=1, io={"8:0": {"rbps": 1}}, controls={"x.y": "1"}, memory=MB, memory_high=MB)
    missing = dict(lab.backend.missing(spec))
    assert set(missing) == {"pids", "cpu", "io", "controls", "memory_high"}
    assert "RLIMIT_NPROC" in missing["pids"].reason
    assert all(found.reason and found.remedy for found in missing.values())
