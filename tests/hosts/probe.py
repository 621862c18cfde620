"""What contained tests get on this host, tried: one line of JSON behind ``PROBE``.  Runs in the guest.

Exit status 1 if a test failed, controls among them: then it is a fault that was found, and not what the host offers.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import platform
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import pytest

import pytest_cgroup.__main__

MARK: Final = "PROBE "
CONTROL: Final = "test_daemon_control"
QUIET: Final = ("-W", "ignore::pytest.PytestAssertRewriteWarning")  # the doctor has imported the plugin already
CASES: Final = """
import os, subprocess, sys, time
import pytest

contained = pytest.mark.contained

def hog():
    return bytearray(b"x") * (128 << 20)

def spawn(most):
    children = []
    try:
        for _ in range(most):
            children.append(subprocess.Popen(["sleep", "60"]))
    except BlockingIOError:
        pass
    for child in children:
        child.kill()
        child.wait()

def daemon(name):
    child = subprocess.Popen(["sleep", "60"], start_new_session=True)
    open(f"{name}.pid", "w").write(str(child.pid))

@contained(memory="64M", expect="oom")
def test_memory():
    held = hog()
    time.sleep(30)  # where memory is watched, until the next look

@contained(memory="512M")
def test_memory_control():
    hog()

@contained(pids=8, expect="pids")
def test_pids():
    spawn(20)

@contained(pids=64)
def test_pids_control():
    spawn(20)

@contained(leaks="ignore")
def test_daemon():
    daemon("test_daemon")

def test_daemon_control():
    daemon("test_daemon_control")

@contained
def test_usage():
    hog()

@contained(pid_ns=True)
def test_pid_ns():
    assert os.getpid() == 2
    assert {name for name in os.listdir("/proc") if name.isdigit()} == {"1", "2"}

@contained
def test_pid_ns_control():
    assert len({name for name in os.listdir("/proc") if name.isdigit()}) > 2
"""


def main() -> int:
    """All in this one process: another would be in the way of controllers, as a shell in a terminal is."""
    with contextlib.redirect_stdout(io.StringIO()) as doctor:
        pytest_cgroup.__main__.main(["doctor", "--json"])
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "pytest.ini").write_text("[pytest]\nasyncio_default_fixture_loop_scope = function\n")
        (directory / "test_probe.py").write_text(CASES)
        os.chdir(directory)
        status = pytest.main(["-q", "-rs", "-p", "no:cacheprovider", *QUIET, "--resource-usage-json=usage.json"])
        alive = {path.stem for path in directory.glob("*.pid") if end(int(path.read_text()))}
        lines = (directory / "usage.json").read_text().splitlines()
        os.chdir("/")
    records = {record["nodeid"].partition("::")[2]: record for record in map(json.loads, lines)}
    answer = {
        "python": ".".join(platform.python_version_tuple()[:2]),
        "doctor": json.loads(doctor.getvalue()),
        "tests": records,
        "survived": sorted(alive - {CONTROL}),
    }
    print(f"{MARK}{json.dumps(answer)}", flush=True)
    if CONTROL not in alive:
        print("the control's daemon is gone: nothing is known of what kills the other")
    return status or int(CONTROL not in alive)


def end(pid: int) -> bool:
    """Kill a daemon; False if it was dead already, also if nobody has waited for it, as where PID 1 is no init."""
    with contextlib.suppress(OSError):
        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
            os.kill(pid, signal.SIGKILL)
            return True
    return False


def answer_in(line: str) -> Any:
    """The answer in a line of the probe's output, or None."""
    return json.loads(line.removeprefix(MARK)) if line.startswith(MARK) else None


if __name__ == "__main__":
    sys.exit(main())
