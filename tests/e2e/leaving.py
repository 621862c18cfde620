"""What the inner tests of leak detection in place are made of: ways to leave a process, and what was told of it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import psutil
import pytest

from tests.e2e.inner import Result, run

#: Each ends by itself after two minutes, so that a broken test leaves nothing for ever.
WAYS = r"""
import asyncio, contextlib, multiprocessing, pty, shlex

ARGV = ["sleep", "120"]
kept = []

def note(name, pid):
    open(name + ".pid", "w").write(str(pid))

def popen(name):
    note(name, subprocess.Popen(ARGV).pid)

def setsid(name):
    note(name, subprocess.Popen(ARGV, start_new_session=True).pid)

def fork(name):
    if not (pid := os.fork()):
        os.execvp("sleep", ARGV)
    note(name, pid)

def posix_spawn(name):
    note(name, os.posix_spawnp("sleep", ARGV, os.environ))

def spawn(name):
    note(name, os.spawnvp(os.P_NOWAIT, "sleep", ARGV))

def system(name):
    os.system(f"sleep 120 & echo $! > {shlex.quote(name)}.pid")

def forkpty(name):
    pid, fd = pty.fork()
    if not pid:
        os.execvp("sleep", ARGV)
    note(name, pid)

def double_fork(name):
    reader, writer = os.pipe()
    if not (middle := os.fork()):
        os.setsid()
        if (pid := os.fork()):
            os.write(writer, str(pid).encode())
            os._exit(0)
        os.execvp("sleep", ARGV)
    os.waitpid(middle, 0)
    note(name, os.read(reader, 20).decode())

def below_a_shell(name):
    shell = subprocess.Popen(["sh", "-c", f"sleep 120 & echo $! > {shlex.quote(name)}.pid; echo; wait"],
        stdout=subprocess.PIPE)
    shell.stdout.readline()

def in_asyncio(name):
    async def start():
        return await asyncio.create_subprocess_exec(*ARGV)
    kept.append(asyncio.run(start()))  # or asyncio kills it when its garbage is collected
    note(name, kept[-1].pid)

def in_multiprocessing(name):
    process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(120,))
    process.start()
    note(name, process.pid)

def in_a_thread(name):
    thread = threading.Thread(target=popen, args=(name,))
    thread.start()
    thread.join()
"""
NAMES = re.findall(r"^def (\w+)\(name\):$", WAYS, re.MULTILINE)


def pid_of(pytester: pytest.Pytester, name: str) -> int:
    return int(pytester.path.joinpath(f"{name}.pid").read_text())


def is_alive(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def survivors(pytester: pytest.Pytester) -> dict[str, int]:
    """Those of the processes that were left which live; they are killed now."""
    pids = {path.stem: int(path.read_text()) for path in pytester.path.glob("*.pid")}
    found = {name: pid for name, pid in pids.items() if is_alive(pid)}
    for pid in found.values():
        kill(pid)
    return found


def watch(pytester: pytest.Pytester, source: str | None, *arguments: str, workers: int = 0) -> Result:
    """Run the tests under --process-leaks=fail, if *arguments* say nothing else."""
    settle = ("-o", "process_leaks_settle=50ms")
    return run(
        pytester,
        None if source is None else WAYS + source,
        *settle,
        "--process-leaks=fail",
        *arguments,
        workers=workers,
        usage_json=False,
    )


def leaks(junit: Path) -> list[dict[str, Any]]:
    """Every leak that the JUnit file tells of, with the test whose property it is under ``"test"``."""
    found = []
    for case in ElementTree.parse(junit).getroot().iter("testcase"):
        for one in case.iter("property"):
            if one.get("name") == "process_leaks":
                found += [{**leak, "test": case.get("name")} for leak in json.loads(one.get("value") or "[]")]
    return found


def section(result: Result) -> str:
    """The text of the section at the end; "" without one."""
    match = re.search(r"^=+ process leaks =+\n(.*?)(?=^=)", result.text, re.MULTILINE | re.DOTALL)
    return match[1] if match else ""
