"""An inner pytest that stays where it is, to be killed there: as root, or as an ordinary user."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from pytest_cgroup._guard import SWITCH
from tests.as_user import OrdinaryUser
from tests.e2e.inner import HEAD, command

SECONDS = 30.0  # nothing here is a matter of speed; this is where a test that hangs ends


@dataclasses.dataclass
class Run:
    """An inner pytest whose test stays where it is."""

    process: subprocess.Popen[str]
    pytest: int
    controller: int
    left: list[psutil.Process]

    @property
    def survivors(self) -> list[psutil.Process]:
        return [process for process in self.left if lives(process)]

    def kill(self, victim: int) -> str:
        """SIGKILL *victim*; what is then said on stderr, until nobody has that open any more."""
        os.kill(victim, signal.SIGKILL)
        return self.process.communicate(timeout=SECONDS)[1]


def lives(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


def cgroups_of(pid: int) -> list[str]:
    """The cgroups of the session of the process that had *pid*."""
    with open("/proc/self/mountinfo", encoding="utf-8") as f:
        mounts = {line.split(" - ")[0].split()[4] for line in f if line.split(" - ")[1].startswith("cgroup")}
    return [
        str(Path(directory, name))
        for mount in mounts
        for directory, names, _ in os.walk(mount)
        for name in names
        if name.startswith(f"pytest-cgroup-{pid}-") and not name.endswith(".scope")
    ]


class Stage:
    """Where inner runs are started, as root or as an ordinary user."""

    def __init__(self, path: Path, user: OrdinaryUser | None) -> None:
        self.path = path
        self._user = user

    @contextlib.contextmanager
    def run(self, *arguments: str, source: str, guard: bool = True) -> Iterator[Run]:
        """Run the tests of *source* until one tells that it stays; whatever is left at the end is killed.

        It writes into ``told``: its pytest's pid, that one's controller's, and the pids of what is left.
        """
        self.path.joinpath("test_it.py").write_text(f"{HEAD}\n{source}", encoding="utf-8")
        told = self.path / "told"
        os.mkfifo(told, 0o666)
        os.chmod(told, 0o666)
        reader = os.open(told, os.O_RDONLY | os.O_NONBLOCK)
        process = self.popen(*arguments, guard=guard)
        left: list[psutil.Process] = []
        try:
            text, deadline = b"", time.monotonic() + SECONDS
            while not text.endswith(b"\n"):
                if process.poll() is not None or time.monotonic() > deadline:
                    process.kill()
                    pytest.fail("\n".join(process.communicate()))
                if select.select([reader], [], [], 0.5)[0]:
                    text += os.read(reader, 1000)
            inner, controller, *pids = map(int, text.split())
            left += map(psutil.Process, pids)
            yield Run(process, inner, controller, left)
        finally:
            os.close(reader)
            told.unlink()
            for one in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()
            process.kill()
            process.communicate()

    def popen(self, *arguments: str, guard: bool = True) -> subprocess.Popen[str]:
        python = self._user.python if self._user else sys.executable
        line = ["env", f"{SWITCH}={'' if guard else 1}", *command((*arguments, "test_it.py"), python)]
        if self._user is None:
            return subprocess.Popen(
                line, cwd=self.path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
            )
        return self._user.popen(line, cwd=self.path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def clean(self, status: int = 0) -> dict[str, list[dict[str, object]]]:
        """What `python -m pytest_cgroup clean` says of what it did; others' cgroups may be here, too."""
        argv = ["-m", "pytest_cgroup", "clean", "--json"]
        if self._user is not None:
            done = self._user.run([self._user.python, *argv])
        else:
            done = subprocess.run([sys.executable, *argv], capture_output=True, text=True, check=False, timeout=SECONDS)
        assert not done.stderr
        return json.loads(done.stdout)  # type: ignore[no-any-return]


def guards_of(pid: int) -> list[int]:
    """The guards of the process that had *pid*."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            line = process.cmdline()
            if any(word.endswith("_guard_process.py") for word in line) and f'"owner": [{pid}, ' in " ".join(line):
                found.append(process.pid)
    return found
