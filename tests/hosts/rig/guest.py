"""A running guest: started, its output passed on, its report read, and ended whole."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import secrets
import select
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, Literal, Self

from .image import image
from .job import Job, write_disk
from .kernels import LOADER_DESCRIPTOR, KernelFiles, kernel
from .settings import Settings
from .tools import Unavailable, cache, require

Write = Callable[[bytes], object]

DEADLINE_STATUS: Final = 124
DIED_STATUS: Final = 125
LAUNCH: Final = f'library=$1; shift; LD_LIBRARY_PATH=$library "$@" {LOADER_DESCRIPTOR}<"$library/ld.so"; exit $?'
"""PID 1 of the guest's namespace is a shell and not the guest's kernel: PID 1 cannot end itself by a signal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """How a guest ended.  ``status`` is the command's own, or 124 (deadline) or 125 (the guest died): see ``ended``."""

    status: int
    ended: Literal["exit", "deadline", "died"]
    seconds: float
    log: Path
    kernel: str | None = None
    uptime_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """The guest's last line."""

    status: int
    uptime_seconds: float
    kernel: str


class Lines:
    """Passes a guest's output on line by line, except for its report, which is kept."""

    def __init__(self, token: str, write: Write) -> None:
        self.report: Report | None = None
        self._pattern = re.compile(rb"%s status=(\d+) uptime=([\d.]+) kernel=(\S+)" % token.encode())
        self._write = write
        self._rest = b""

    def feed(self, chunk: bytes) -> None:
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            self._take(line + b"\n")

    def finish(self) -> None:
        if self._rest:
            self._take(self._rest)
            self._rest = b""

    def _take(self, line: bytes) -> None:
        if match := self._pattern.match(line):
            self.report = Report(int(match[1]), float(match[2]), match[3].decode())
        else:
            self._write(line)


class Fleet:
    """The guests that live now.  Leaving it kills them all, and no other may start."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._guests: dict[subprocess.Popen[bytes], int] = {}
        self._closed = False
        cpus = sorted(os.sched_getaffinity(0))
        shift = os.getpid() % len(cpus)  # rigs side by side should not all choose the first one
        self._cpus = cpus[shift:] + cpus[:shift]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._closed = True
            for process in self._guests:
                kill(process)

    @contextlib.contextmanager
    def launched(
        self, files: KernelFiles, arguments: Sequence[str], log: IO[bytes]
    ) -> Iterator[subprocess.Popen[bytes]]:
        """Start a kernel on the least used CPU (one is faster than two for it); it is dead and gone at the end."""
        with self._lock:
            if self._closed:
                raise Unavailable("the rig is ending")
            cpu = min(self._cpus, key=list(self._guests.values()).count)
            command = [*containment(cpu), LAUNCH, "guest", str(files.library), str(files.program), *arguments]
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, start_new_session=True
            )
            self._guests[process] = cpu
        try:
            yield process
        finally:
            kill(process)
            assert process.stdout is not None
            while process.stdout.read(65536):  # its end means that no process of the guest is left to write to it
                pass
            process.stdout.close()
            process.wait()
            with self._lock:
                del self._guests[process]


def kill(process: subprocess.Popen[bytes]) -> None:
    """End the namespace's owner; the kernel ends everything in the namespace."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def containment(cpu: int) -> list[str]:
    """The words before a shell script that make it PID 1 of a namespace, which dies when the rig's thread does."""
    words = ["setpriv", "--pdeathsig", "KILL", "taskset", "--cpu-list", str(cpu)]
    return [*words, "unshare", *namespace_flags(), "--fork", "--kill-child", "sh", "-c"]


@functools.cache
def namespace_flags() -> tuple[str, ...]:
    """What it takes to get a PID namespace here; raises Unavailable if there is no way."""
    require("setpriv", "taskset", "unshare")
    for flags in (("--pid",), ("--user", "--map-root-user", "--pid")):
        if not subprocess.run(["unshare", *flags, "--fork", "true"], stderr=subprocess.DEVNULL).returncode:
            return flags
    raise Unavailable("no PID namespace can be made here; run as root, or allow unprivileged user namespaces")


def kernel_arguments(settings: Settings, disk: Path, scratch: Path) -> list[str]:
    """The command line of a user-mode Linux whose files lie in ``scratch``."""
    return [
        f"mem={settings.memory_mib}M",
        f"ubd0={scratch}/changes,{disk}",  # a copy-on-write file over the image
        f"ubd1r={scratch}/job",
        "root=/dev/ubda",
        "rw",
        "quiet",
        "con=null",
        "con0=null,fd:2",
        "con1=null,fd:1",
        "umid=guest",
        f"uml_dir={scratch}/uml",
        *(["seccomp=on"] if settings.kernel == "uml-7.2" else []),  # faster than ptrace, and the guest is trusted
        *settings.boot_words,
    ]


def boot(
    settings: Settings, job: Job, *, fleet: Fleet, write: Write, timeout: float, log: Path | None = None
) -> Result:
    """Boot a guest, run the job, pass its output to ``write`` (whole lines).  ``timeout`` counts seconds of wall time.

    Raises Unavailable if this machine cannot.
    """
    files, disk = kernel(settings.kernel), image(settings.suite, settings.engine)
    log = log or cache() / "last-boot.log"
    token = f"GUEST-{secrets.token_hex(8)}"
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="guest-", ignore_cleanup_errors=True) as name:
        scratch = Path(name)
        write_disk(scratch / "job", job, settings, token=token, modules=files.modules)
        lines = Lines(token, write)
        with (
            open(log, "wb") as stream,
            fleet.launched(files, kernel_arguments(settings, disk, scratch), stream) as process,
        ):
            in_time = follow(process, lines, started + timeout)
    seconds = time.monotonic() - started
    if report := lines.report:
        return Result(
            status=report.status,
            ended="exit",
            seconds=seconds,
            log=log,
            kernel=report.kernel,
            uptime_seconds=report.uptime_seconds,
        )
    if in_time:
        return Result(status=DIED_STATUS, ended="died", seconds=seconds, log=log)
    return Result(status=DEADLINE_STATUS, ended="deadline", seconds=seconds, log=log)


def follow(process: subprocess.Popen[bytes], lines: Lines, deadline: float) -> bool:
    """Pass the output on until its end; False if the deadline (on the monotonic clock) came first."""
    assert process.stdout is not None
    descriptor = process.stdout.fileno()
    while True:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([descriptor], [], [], left)[0]:
            lines.finish()
            return False
        chunk = os.read(descriptor, 65536)
        if not chunk:
            lines.finish()
            return True
        lines.feed(chunk)
