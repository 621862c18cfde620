"""What a command writes, without end; and an interpreter inside that is spoken to."""

from __future__ import annotations

import gc
import resource
import sys
import threading
import time
from collections.abc import Iterator

import execnet
import pytest

from pytest_cgroup import Container, ContainerError, SpecError, _station
from pytest_cgroup._run import Kept
from tests.kernel.contain import DEADLINE_SECONDS, MB

FLOOD = "import os\nos.write(1, b'first ')\nfor _ in range(2048): os.write(1, b'x' * (1 << 20))\nos.write(1, b' last')"


@pytest.fixture(params=[pytest.param("cgroup", marks=pytest.mark.requires("cgroup")), "process"])
def container(request: pytest.FixtureRequest) -> Iterator[Container]:
    with Container(backend=request.param) as found:
        yield found
    _station.close()
    gc.collect()


@pytest.mark.parametrize("limit", [2, 3, 10, 1000])
@pytest.mark.parametrize("size", [0, 1, 2, 9, 10, 11, 999, 1000, 1001, 5000, 300_000])
@pytest.mark.parametrize("piece", [1, 7, 70_000])
def test_head_and_tail(limit: int, size: int, piece: int) -> None:
    if piece == 1 and size > 5000:
        piece = 3
    data = bytes(number % 251 for number in range(size))
    kept = Kept(limit)
    for start in range(0, size, piece):
        kept.write(data[start : start + piece])
    head, tail = limit - limit // 2, limit // 2
    left_out = b"\n[%d bytes left out]\n" % (size - limit)
    assert kept.getvalue() == (data if size <= limit else data[:head] + left_out + data[size - tail :])
    assert kept.written == size
    assert len(kept._tail) <= 3 * limit + (1 << 16) + piece


def test_a_flood_of_two_gigabytes(container: Container) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    done = container.run([sys.executable, "-c", FLOOD], capture_output=True, output_limit="64K")
    assert done.stdout.startswith(b"first xxx")
    assert done.stdout.endswith(b"xxx last")
    assert b"\n[%d bytes left out]\n" % (2048 * MB + 11 - 65536) in done.stdout
    assert len(done.stdout) < 65536 + 100
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024  # KiB


def test_a_limit_that_is_not_reached(container: Container) -> None:
    done = container.run(["echo", "hello"], capture_output=True, text=True, output_limit=1000)
    assert done.stdout == "hello\n"
    for wrong in ("1MB", -1, 0, "50%", "max"):
        with pytest.raises(SpecError, match="output_limit"):
            container.run(["true"], output_limit=wrong)


# gateways


def test_a_gateway(container: Container) -> None:
    gateway = container.gateway()
    channel = gateway.remote_exec("import os; channel.send((os.getpid(), os.getppid()))")
    pid, _ = channel.receive(DEADLINE_SECONDS)
    assert [process.pid for process in container.processes()] == [pid]
    assert gateway.remote_exec("channel.send(channel.receive() + 1)") is not None
    channel = gateway.remote_exec("while True: channel.send(channel.receive() + 1)")
    channel.send(41)
    assert channel.receive(DEADLINE_SECONDS) == 42
    with pytest.raises(ValueError, match="started by popen"):
        container.gateway("ssh=localhost")


@pytest.mark.parametrize("end", ["stop", "destroy"])
def test_it_dies_with_the_container_and_is_no_leak(container: Container, end: str) -> None:
    threads = threading.active_count()
    channel = container.gateway().remote_exec(
        "import signal; signal.signal(15, signal.SIG_IGN); channel.send(1)\nsignal.pause()"
    )
    assert channel.receive(DEADLINE_SECONDS) == 1
    other = container.gateway()
    left = other.remote_exec("import subprocess; channel.send(subprocess.Popen(['sleep', '120']).pid)")
    pid = left.receive(DEADLINE_SECONDS)
    begun = time.monotonic()
    outcome = getattr(container, end)()
    assert time.monotonic() - begun < DEADLINE_SECONDS / 3, "nobody waits for its program, which sleeps longer"
    assert [leak.pid for leak in outcome.leaks] == [pid]
    with pytest.raises((EOFError, OSError, execnet.RemoteError)):
        channel.receive(DEADLINE_SECONDS)
    with pytest.raises(ContainerError, match="has ended"):
        container.gateway()
    deadline = time.monotonic() + DEADLINE_SECONDS
    while threading.active_count() > threads and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= threads


def test_a_killed_gateway(container: Container) -> None:
    channel = container.gateway().remote_exec("channel.send(1); channel.receive()")
    assert channel.receive(DEADLINE_SECONDS) == 1
    container.kill()
    with pytest.raises((EOFError, OSError, execnet.RemoteError)):
        channel.receive(DEADLINE_SECONDS)
    assert container.gateway().remote_exec("channel.send(2)").receive(DEADLINE_SECONDS) == 2


@pytest.mark.requires("pid_ns")
def test_a_gateway_in_namespaces() -> None:
    with Container(pid_ns=True) as container:
        assert container.gateway().remote_exec("import os; channel.send(os.getpid())").receive(DEADLINE_SECONDS) < 20
    _station.close()
