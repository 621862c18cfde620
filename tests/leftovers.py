"""What a test left behind: processes, however far they fled, and cgroups.

A process of the test is found in three ways, since each has its blind spot: it descends from pytest (an orphan does
not); it was executed with the test's cookie in its environment (a fork without exec was not, and an environment can be
cleared); it holds the write end of the test's pipe, which every fork inherits and every exec closes.
A cgroup is ours by its name, and left behind when no living process owns it (`pytest-cgroup-PID-STARTTIME-CHECKSUM`).
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import re
import select
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

COOKIE = "PYTEST_CGROUP_TEST_COOKIE"
PREFIX = "pytest-cgroup-"
PATIENCE_SECONDS = 5.0  # a killed process is not gone at once; no test that leaves nothing waits

# Started by the interpreter for itself, to stay until it ends: nobody's leftovers.
_INTERPRETERS_OWN = ("multiprocessing.resource_tracker", "multiprocessing.forkserver")
_serial = itertools.count()


@contextlib.contextmanager
def one_recovery() -> Iterator[None]:
    """Of the tests that leave a dead session behind, or clean up after one, one at a time: cleaning up is host-wide."""
    path = os.path.join(tempfile.gettempdir(), f"pytest-cgroup-tests-{os.geteuid()}.lock")
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


class Watch:
    """What was there before the test, to be compared with what is there after it."""

    def __init__(self) -> None:
        self._cookie = f"{os.getpid()}.{next(_serial)}"
        self._previous = os.environ.get(COOKIE)
        os.environ[COOKIE] = self._cookie
        self._before = _pids()
        self._cgroups = set(_cgroups())
        self._read, self._write = os.pipe()
        self._pipe = os.stat(self._write).st_ino

    def finish(self) -> list[str]:
        """A line for each thing that is left behind; what still runs is killed, so that it troubles no other test."""
        os.close(self._write)
        if self._previous is None:
            os.environ.pop(COOKIE, None)
        else:
            os.environ[COOKIE] = self._previous
        try:
            deadline = time.monotonic() + PATIENCE_SECONDS
            while True:
                processes, cgroups = self._processes(), self._new_cgroups()
                if not processes and not cgroups:
                    return []
                if time.monotonic() > deadline:
                    break
                time.sleep(0.02)
            with one_recovery():  # a test beside this one may have left a dead session on purpose, for a moment
                processes, cgroups = self._processes(), self._new_cgroups()
            lines = [_describe(process) for process in processes] + [f"cgroup {path}" for path in cgroups]
            for process in processes:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            return lines
        finally:
            os.close(self._read)

    def _processes(self) -> list[psutil.Process]:
        held = not select.select([self._read], [], [], 0)[0]  # no end of file: somebody holds the write end
        found = []
        for pid in _pids() - self._before:
            with contextlib.suppress(OSError, psutil.Error):
                process = psutil.Process(pid)
                if os.getpid() == 1 and process.status() == psutil.STATUS_ZOMBIE:
                    continue  # an orphan that died: in a container without an init nobody waits for it
                if (
                    _descends_from_us(process)
                    or f"{COOKIE}={self._cookie}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                    or (held and _has_open(pid, f"pipe:[{self._pipe}]"))
                ) and not _is_interpreters_own(process):
                    found.append(process)
        return found

    def _new_cgroups(self) -> list[str]:
        return sorted(path for path in _cgroups() if path not in self._cgroups and not _is_owned(path))


def _pids() -> set[int]:
    return {int(name) for name in os.listdir("/proc") if name.isdecimal()}


def _descends_from_us(process: psutil.Process) -> bool:
    return any(ancestor.pid == os.getpid() for ancestor in process.parents())


def _has_open(pid: int, target: str) -> bool:
    return any(_link(f"/proc/{pid}/fd/{descriptor}") == target for descriptor in os.listdir(f"/proc/{pid}/fd"))


def _link(path: str) -> str | None:
    with contextlib.suppress(OSError):
        return os.readlink(path)
    return None


def _is_interpreters_own(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return any(word in " ".join(process.cmdline()) for word in _INTERPRETERS_OWN)
    return False


def _describe(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error), process.oneshot():
        return f"process {process.pid} ({process.status()}, child of {process.ppid()}): {process.cmdline()}"
    return f"process {process.pid} (gone meanwhile)"


def _cgroups() -> list[str]:
    """The directories of the cgroup filesystems that bear our prefix, and what is in our own session's."""
    with open("/proc/self/mountinfo", encoding="utf-8") as f:
        lines = f.read().splitlines()
    mounts = [fields[0].split()[4] for line in lines if (fields := line.split(" - "))[1].startswith("cgroup")]
    own = f"{PREFIX}{os.getpid()}-"
    found = []
    for mount in dict.fromkeys(mounts):
        for directory, names, _files in os.walk(mount):
            ours = [name for name in names if name.startswith(PREFIX)]
            found += [os.path.join(directory, name) for name in ours]
            if own in directory:
                found += [os.path.join(directory, name) for name in names if name != "main"]
            names[:] = [name for name in names if not name.startswith(PREFIX) or name.startswith(own)]
    return found


def _is_owned(path: str) -> bool:
    """Whether the process that the name tells of lives: then the cgroup is a session's, and goes with it."""
    name = re.fullmatch(rf"{PREFIX}(\d+)-(\d+)(?:-[0-9a-f]{{8}})?(-\d+)?(\.scope)?", os.path.basename(path))
    if name is None or (name[3] and name[1] == str(os.getpid())):  # a second one in this process is a test's
        return False
    try:
        with open(f"/proc/{name[1]}/stat", encoding="utf-8", errors="replace") as f:
            return f.read().rpartition(")")[2].split()[19] == name[2]
    except OSError:
        return False
