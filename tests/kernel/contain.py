"""Run a function in a container, on the library's own floor, and see what came of it."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import pickle
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

import pytest

from pytest_cgroup import _syscalls
from pytest_cgroup._backends import Backend
from pytest_cgroup._backends.cgroup import CgroupTree
from pytest_cgroup._cgroup import Cgroup
from pytest_cgroup._container import Container
from pytest_cgroup._host import Host
from pytest_cgroup._outcome import Outcome
from pytest_cgroup._process import ProcessId
from pytest_cgroup._spec import Spec

PROGRAMS = Path(__file__).resolve().parents[1] / "programs"
DEADLINE_SECONDS = 90.0  # nothing here is a matter of speed; this is where a test that hangs ends
MB = 1 << 20
on_cgroup = pytest.mark.parametrize(
    "lab", [pytest.param("cgroup", marks=pytest.mark.requires("cgroup"))], indirect=True
)
on_process = pytest.mark.parametrize("lab", ["process"], indirect=True)

Tell: TypeAlias = Callable[[object], None]
Function: TypeAlias = Callable[[Tell], object]


@dataclass
class Live:
    """A container with a function that runs in it."""

    container: Container
    reader: int
    outcome: Outcome | None = None
    _messages: list[Any] = field(default_factory=list)
    _bytes: bytes = b""

    def told(self) -> Any:
        """What the function tells, or at last returns, next; what it raises is raised."""
        self.container.watch({self.reader: self._read}, lambda: bool(self._messages), DEADLINE_SECONDS)
        while not self._messages and self._read():
            pass  # what was written before the end
        if not self._messages:
            raise AssertionError(f"nothing was told: {self.finish()}")
        kind, value = self._messages.pop(0)
        if kind == "raised":
            raise AssertionError(f"in the container:\n{value}")
        return value

    def watch(self) -> None:
        """Wait until the first process has ended."""
        self.container.watch({self.reader: self._read}, lambda: False, DEADLINE_SECONDS)

    def finish(self, zombies: Mapping[int, str] = MappingProxyType({})) -> Outcome:
        """Wait for the end, and destroy the container."""
        if self.outcome is None:
            self.watch()
            self.outcome = self.container.destroy(owner="the test", zombies=zombies)
        return self.outcome

    @property
    def cgroup(self) -> Cgroup:
        tree = self.container.tree
        assert isinstance(tree, CgroupTree)
        return tree.cgroup

    def _read(self) -> bool:
        try:
            piece = os.read(self.reader, 65536)
        except BlockingIOError:
            return False
        self._bytes += piece
        while len(self._bytes) >= 4 and len(self._bytes) >= 4 + (size := int.from_bytes(self._bytes[:4], "big")):
            self._messages.append(pickle.loads(self._bytes[4 : 4 + size]))
            self._bytes = self._bytes[4 + size :]
        return bool(piece)


@dataclass
class Lab:
    """A backend to make containers with."""

    host: Host
    backend: Backend

    def __str__(self) -> str:
        return self.backend.name

    def warm_up(self) -> None:
        """Do what is done once a session, so that it is no difference between before a test and after it."""
        _syscalls.load()
        self.host.needs_user_namespace(frozenset(["pid_ns"]))

    @contextlib.contextmanager
    def live(self, function: Function, **asked: object) -> Iterator[Live]:
        """Start *function* in a container of *asked*; it is destroyed on leaving, whatever happened."""
        name = str(asked.pop("name", "test"))
        container = Container(
            self.spec(**asked), backend=self.backend, host=self.host, name=name, keep=(str(PROGRAMS), sys.prefix)
        )
        container.start()
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        live = Live(container, reader)
        try:
            if container.fork():
                _be_inside(function, writer)
            os.close(writer)
            writer = -1
            yield live
        finally:
            if writer != -1:
                os.close(writer)
            live.outcome = container.destroy(owner="the test")
            os.close(reader)

    def run(self, function: Function, **asked: object) -> Outcome:
        """How *function* ended; what it returns is lost."""
        with self.live(function, **asked) as live:
            return live.finish()

    def call(self, function: Function, **asked: object) -> tuple[Any, Outcome]:
        """What *function* returned, and how it ended."""
        with self.live(function, **asked) as live:
            return live.told(), live.finish()

    def spec(self, **asked: object) -> Spec:
        spec = Spec.parse({"timeout": DEADLINE_SECONDS, **asked}, "test")
        return spec.resolve(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def _be_inside(function: Function, writer: int) -> None:
    def say(kind: str, value: object) -> None:
        data = pickle.dumps((kind, value))
        os.write(writer, len(data).to_bytes(4, "big") + data)

    faulthandler.disable()  # a crash that a test wants is no news
    try:
        try:
            say("value", function(lambda value: say("told", value)))
        except BaseException:
            say("raised", traceback.format_exc())
            os._exit(99)
    finally:
        os._exit(0)


# what runs in containers


def nothing(tell: Tell) -> None:
    """The least there is to do."""


def wait(tell: Tell) -> None:
    """Be there, and say so."""
    tell(os.getpid())
    while True:
        signal.pause()


def burn(cpu_seconds: float) -> None:
    """Use up CPU time in this process."""
    until = time.process_time() + cpu_seconds
    while time.process_time() < until:
        sum(range(1000))


def leak(kind: str) -> list[int]:
    """Leave a process of this kind behind (see tests/programs/leaker.py); what the program says of it."""
    reader, writer = os.pipe()
    subprocess.run([sys.executable, PROGRAMS / "leaker.py", kind, str(writer)], pass_fds=[writer], check=True)
    os.close(writer)
    line = os.read(reader, 4096)
    os.close(reader)
    return [int(word) for word in line.split()]


def identity(pid: int) -> ProcessId:
    found = ProcessId.of(pid)
    assert found is not None, f"{pid} is gone"
    return found


def descriptors() -> dict[str, str]:
    """This process's open files."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found[name] = os.readlink(f"/proc/self/fd/{name}")
    return found
