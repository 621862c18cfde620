"""A program in a container for asyncio: what `asyncio.create_subprocess_exec` gives, by asyncio's public means.

asyncio's own starts its processes itself, and waits for children of ours, which on the process backend they are not.
Here a Popen of ours is started in a thread, its pipes are connected to the loop, and the loop waits for its end.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from typing import TYPE_CHECKING, Any

from ._isolated import os
from ._process import pidfd_open

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._popen import Popen


class AsyncProcess:
    """A program that runs; as `asyncio.subprocess.Process`.

    Attributes:
        stdin, stdout, stderr: streams of asyncio, None where no pipe was asked for.
    """

    def __init__(self, process: Popen) -> None:
        self._process = process
        self._ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.stdin: asyncio.StreamWriter | None = None
        self.stdout: asyncio.StreamReader | None = None
        self.stderr: asyncio.StreamReader | None = None

    def __repr__(self) -> str:
        return f"<AsyncProcess {self.pid} ({'running' if self.returncode is None else self.returncode})>"

    @property
    def pid(self) -> int:
        """The program's."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """None as long as it has not been noticed to end."""
        return self._process.returncode

    async def wait(self) -> int:
        """Its returncode, once it has ended."""
        return await asyncio.shield(self._ended)

    async def communicate(self, input: bytes | None = None) -> tuple[bytes | None, bytes | None]:
        """Write *input*, read to the end, wait."""
        feed = [self._feed(input)] if self.stdin is not None else []
        readers = [_read(self.stdout), _read(self.stderr)]
        out, err, *_ = await asyncio.gather(*readers, *feed)
        await self.wait()
        return out, err

    async def _feed(self, given: bytes | None) -> None:
        assert self.stdin is not None
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it need not read
            self.stdin.write(given or b"")
            await self.stdin.drain()
        self.stdin.close()

    def send_signal(self, number: int) -> None:
        """Signal the program alone."""
        self._process.send_signal(number)

    def terminate(self) -> None:
        """SIGTERM."""
        self._process.terminate()

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()

    async def connect(self) -> None:
        """Hand its pipes, and its end, to the loop."""
        loop, process = asyncio.get_running_loop(), self._process
        self._listen(loop)
        if process.stdin is not None:
            protocol = asyncio.StreamReaderProtocol(asyncio.StreamReader())
            transport, _ = await loop.connect_write_pipe(lambda: protocol, process.stdin)
            self.stdin = asyncio.StreamWriter(transport, protocol, None, loop)
        for name in ("stdout", "stderr"):
            if (pipe := getattr(process, name)) is not None:
                reader = asyncio.StreamReader()
                setattr(self, name, reader)
                await loop.connect_read_pipe(functools.partial(asyncio.StreamReaderProtocol, reader), pipe)

    def _listen(self, loop: asyncio.AbstractEventLoop) -> None:
        """Until it has ended; by whoever tells of it, see `Popen.told`."""
        process = self._process
        end = None
        if process.poll() is None:
            # A thread that waits for it closes its own descriptor; ours is at its end, then.
            end = pidfd_open(process.pid) if process.told is None else os.dup(process.told)
        if end is None:
            self._ended.set_result(process.wait())
            return

        def ended() -> None:
            loop.remove_reader(end)
            os.close(end)
            if not self._ended.done():
                self._ended.set_result(process.wait())

        loop.add_reader(end, ended)


async def _read(stream: asyncio.StreamReader | None) -> bytes | None:
    return None if stream is None else await stream.read()


async def start(
    start_process: Callable[[Any, dict[str, Any]], Popen], argv: list[Any], options: dict[str, Any]
) -> AsyncProcess:
    """Start *argv*; *options* are Popen's, but for text, which asyncio has not.

    Raises:
        ValueError: one of them is about text, or buffering.
    """
    for name in ("text", "universal_newlines", "encoding", "errors"):
        if options.pop(name, None):
            raise ValueError(f"{name} is not to be had with asyncio: its streams are of bytes")
    if options.pop("bufsize", 0) != 0 or options.pop("shell", False):
        raise ValueError("bufsize must be 0, and shell False, as with asyncio.create_subprocess_exec")
    process = await asyncio.to_thread(start_process, argv, {**options, "bufsize": 0})
    found = AsyncProcess(process)
    await found.connect()
    return found
