"""`Container.create_subprocess_exec`, compared with asyncio's own."""

from __future__ import annotations

import asyncio
import gc
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator
from subprocess import DEVNULL, PIPE, STDOUT
from typing import Any

import pytest

from pytest_cgroup import Container, ContainerError, _station
from tests.kernel.contain import DEADLINE_SECONDS, MB, descriptors

Create = Callable[..., Awaitable[Any]]
ECHO = [sys.executable, "-c", "import sys; sys.stdout.write(sys.stdin.read()); sys.stderr.write('err')"]


@pytest.fixture(params=[pytest.param("cgroup", marks=pytest.mark.requires("cgroup")), "process"])
def container(request: pytest.FixtureRequest) -> Iterator[Container]:
    before = descriptors()
    with Container(backend=request.param) as found:
        yield found
    _station.close()
    gc.collect()
    assert [fd for fd in descriptors() if fd not in before] == []


def both(container: Container, use: Callable[[Create], Awaitable[Any]]) -> Any:
    """What *use* makes of ours, and of asyncio's own, which has to be the same."""

    async def run(create: Create) -> Any:
        return await asyncio.wait_for(use(create), DEADLINE_SECONDS)

    ours = asyncio.run(run(container.create_subprocess_exec))
    assert ours == asyncio.run(run(asyncio.create_subprocess_exec))
    return ours


def test_communicate(container: Container) -> None:
    async def use(create: Create) -> Any:
        process = await create(*ECHO, stdin=PIPE, stdout=PIPE, stderr=PIPE)
        return await process.communicate(b"x" * MB), process.returncode, await process.wait()

    (out, err), code, again = both(container, use)
    assert (len(out), err, code, again) == (MB, b"err", 0, 0)


def test_who_does_not_read(container: Container) -> None:
    async def use(create: Create) -> Any:
        process = await create("true", stdin=PIPE, stdout=PIPE, stderr=STDOUT)
        return await process.communicate(b"x" * MB), process.returncode

    assert both(container, use) == ((b"", None), 0)


def test_streams_line_by_line(container: Container) -> None:
    async def use(create: Create) -> Any:
        process = await create("cat", stdin=PIPE, stdout=PIPE)
        lines = []
        for word in (b"one\n", b"two\n"):
            process.stdin.write(word)
            await process.stdin.drain()
            lines.append(await process.stdout.readline())
        process.stdin.close()
        await process.stdin.wait_closed()
        return lines, await process.stdout.read(), await process.wait(), process.stderr

    assert both(container, use) == ([b"one\n", b"two\n"], b"", 0, None)


@pytest.mark.parametrize("how", ["kill", "terminate"])
def test_its_end_by_a_signal(container: Container, how: str) -> None:
    async def use(create: Create) -> Any:
        process = await create("sleep", "120", stdout=DEVNULL)
        assert process.returncode is None
        getattr(process, how)()
        return await process.wait()

    assert both(container, use) == -(signal.SIGKILL if how == "kill" else signal.SIGTERM)


def test_errors(container: Container) -> None:
    async def use(create: Create) -> Any:
        found = []
        for program, options in (("no-such-program", {}), ("/etc/passwd", {}), ("true", {"cwd": "/no/such"})):
            with pytest.raises(OSError) as raised:  # noqa: PT011  # compared with asyncio's own
                await create(program, **options)
            found.append((type(raised.value), raised.value.errno, raised.value.filename))
        wrong: tuple[dict[str, Any], ...] = ({"text": True}, {"shell": True}, {"bufsize": 1})
        for more in wrong:
            with pytest.raises(ValueError):  # noqa: PT011  # the words are each their own
                await create("true", **more)
        return found

    both(container, use)


def test_many_at_once_and_cancelled(container: Container) -> None:
    async def use() -> None:
        processes = await asyncio.gather(*(container.create_subprocess_exec("sleep", "120") for _ in range(20)))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(processes[0].wait(), 0.05)
        await asyncio.to_thread(container.kill)
        assert {await process.wait() for process in processes} == {-signal.SIGKILL}
        quick = await asyncio.gather(*(container.create_subprocess_exec("sh", "-c", f"exit {n}") for n in range(20)))
        assert [await process.wait() for process in quick] == list(range(20))

    asyncio.run(asyncio.wait_for(use(), DEADLINE_SECONDS))


def test_it_is_inside(container: Container) -> None:
    async def use() -> None:
        process = await container.create_subprocess_exec("sleep", "120")
        assert [found.pid for found in container.processes()] == [process.pid]
        await asyncio.to_thread(container.destroy)
        assert await process.wait() in (-signal.SIGKILL, -signal.SIGTERM)
        with pytest.raises(ContainerError, match="has ended"):
            await container.create_subprocess_exec("true")

    asyncio.run(use())
