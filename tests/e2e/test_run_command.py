"""`python -m pytest_cgroup run`: the command's own status, its signals, its terminal, and what is said of it."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from pytest_cgroup import Outcome
from pytest_cgroup._foreground import NO_OPTION
from pytest_cgroup._spec import FIELDS
from tests.as_user import OrdinaryUser

RUN = [sys.executable, "-m", "pytest_cgroup", "run"]
SECONDS = 60.0  # nothing here is a matter of speed; this is where a test that hangs ends
each_backend = pytest.mark.parametrize(
    "backend", [pytest.param("cgroup", marks=pytest.mark.requires("cgroup")), "process"]
)
#: says that it is ready, and every signal that it gets, and ends with SIGTERM
LISTENS = """
import os, signal
NAMES = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2")
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.Signals[name] for name in NAMES])  # none is lost between two waits
print("ready", os.getpid(), flush=True)
number = None
while number != signal.SIGTERM:
    number = signal.sigwait([signal.Signals[name] for name in NAMES])
    print("got", number.name, flush=True)
raise SystemExit(7)
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*RUN, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SECONDS, check=False
    )


@each_backend
@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (("--", "true"), 0),
        (("sh", "-c", "exit 3"), 3),
        (("--", "sh", "-c", "exit 124"), 124),
        (("--", "sh", "-c", "kill -9 $$"), 137),
        (("--", "sh", "-c", "kill -TERM $$"), 143),
        (("--timeout", "0.3", "--", "sleep", "60"), 124),
        (("--timeout=500ms", "--", "sh", "-c", "trap '' TERM; sleep 60; sleep 60"), 124),
        (("--cpu-time", "0.2", "--", sys.executable, "-c", "while True: pass"), 137),
        (("--", "/no/such/program"), 127),
        (("--", "no-such-program"), 127),
        (("--", "/etc/passwd"), 126),
        (("--", "/usr"), 126),
        (("--timeout", "-1", "--", "true"), 125),
        (("--memory", "64MB", "--", "true"), 125),
        (("--memroy", "64M", "--", "true"), 125),
        (("--rlimits", "nofile", "--", "true"), 125),
        (("--rlimits", "nofile=[", "--", "true"), 125),
        (("--rlimits", "{", "--", "true"), 125),
        (("--leaks", "never", "--", "true"), 125),
        (("--user", "nobody-of-this-name", "--", "true"), 125),
        (("--",), 125),
    ],
    ids=str,
)
def test_the_status(backend: str, arguments: tuple[str, ...], status: int) -> None:
    done = run("--cgroup-backend", backend, *arguments)
    assert done.returncode == status, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


def test_no_command_at_all() -> None:
    assert run().returncode == 125


def test_each_field_is_an_option() -> None:
    text = run("--help").stdout
    for field in FIELDS:
        assert (f"--{field.name.replace('_', '-')}" in text) is (field.name not in NO_OPTION), field.name


@pytest.mark.requires("cgroup", "memory", "pids")
def test_limits(tmp_path: Path) -> None:
    path = tmp_path / "usage.json"
    code = "x = b'x' * (200 << 20)"
    done = run("--memory", "64M", "--pids=10", f"--usage-json={path}", "--", sys.executable, "-c", code)
    assert done.returncode == 137
    found = json.loads(path.read_text(encoding="utf-8"))
    outcome = Outcome.from_json(found)
    assert (found["schema"], found["argv"][2]) == (1, code)
    assert (outcome.ended, outcome.signal, outcome.limits["memory"]) == ("oom", 9, str(64 << 20))
    assert outcome.usage.oom_kill
    assert "out of memory" in done.stderr.lower() or "oom" in done.stderr.lower()
    assert run("--memory", "400M", "--", sys.executable, "-c", code).returncode == 0  # the control


@pytest.mark.requires("cgroup", "root")
def test_a_path() -> None:
    name = f"path-of-test-{os.getpid()}"
    done = run("--path", name, "--", "cat", "/proc/self/cgroup")
    assert done.returncode == 0
    assert f"/{name}\n" in done.stdout
    refused = run("--path", f"/{name}", "--", "true")
    assert (refused.returncode, refused.stderr.count("\n")) == (125, 1)
    assert f"path='/{name}' (Container): is no relative path" in refused.stderr


def test_dicts_and_flags() -> None:
    done = run("--rlimits", "nofile=99", "--rlimits", '{"core": 0}', "--", "sh", "-c", "ulimit -n; ulimit -c")
    assert done.stdout.split() == ["99", "0"]


@pytest.mark.requires("pid_ns", "uts_ns")
def test_namespaces() -> None:
    done = run("--pid-ns", "--hostname", "inside", "--", "sh", "-c", "echo $$; uname -n")
    pid, name = done.stdout.split()
    assert (int(pid) < 10, name) == (True, "inside")


def test_what_the_host_can_not_honour() -> None:
    done = run("--cgroup-backend=process", "--pids=4", "--", "true")
    assert done.returncode == 125
    assert "this host can't honour pids" in done.stderr


@each_backend
def test_what_is_left(backend: str) -> None:
    leaves = ("--cgroup-backend", backend, "--", "sh", "-c", "sleep 120 & exec true")
    done = run(*leaves)
    assert (done.returncode, "left behind, now ended: pid" in done.stderr) == (0, True)
    assert run("--leaks=fail", *leaves).returncode == 1
    assert run("--leaks=fail", *leaves[:-1], "sleep 120 & exit 4").returncode == 4
    assert "left behind" not in run("--leaks=ignore", *leaves).stderr
    assert run("--quiet", *leaves).stderr == ""


def test_streams_and_arguments_are_the_commands_own() -> None:
    done = subprocess.run([*RUN, "-q", "cat", "-u", "--"], input=b"\0\xff in", capture_output=True, timeout=SECONDS)
    assert (done.stdout, done.stderr, done.returncode) == (b"\0\xff in", b"", 0)


def lines(process: subprocess.Popen[str]) -> Callable[[], str]:
    def line() -> str:
        assert process.stdout is not None
        assert select.select([process.stdout], [], [], SECONDS)[0], "it says nothing"
        return process.stdout.readline().strip()

    return line


@each_backend
def test_signals_are_passed_on(backend: str) -> None:
    argv = [*RUN, "-q", "--cgroup-backend", backend, "--", sys.executable, "-u", "-c", LISTENS]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, start_new_session=True, bufsize=1) as process:
        line = lines(process)
        inside = int(line().split()[1])
        for name in ("SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGTERM"):
            process.send_signal(getattr(signal, name))
            assert line() == f"got {name}"
        assert process.wait(SECONDS) == 7
    assert not psutil.pid_exists(inside)


# a terminal


class Terminal:
    """A shell with job control on a terminal of its own."""

    def __init__(self, shell: str) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.environ.update(PS1="PROMPT ", TERM="dumb", HISTFILE="/dev/null")
            os.execvp(shell, [shell, *(["--norc", "--noprofile"] if shell == "bash" else []), "-i"])
        self.text = ""

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def until(self, pattern: str) -> re.Match[str]:
        """Read until *pattern* has come; what came before is no longer looked at."""
        deadline = time.monotonic() + SECONDS
        while not (found := re.search(pattern, self.text)):
            assert time.monotonic() < deadline, f"no {pattern!r} in {self.text!r}"
            if select.select([self.fd], [], [], 0.2)[0]:
                self.text += os.read(self.fd, 4096).decode(errors="replace")
        self.text = self.text[found.end() :]
        return found


@pytest.fixture(params=["bash", "sh"])
def terminal(request: pytest.FixtureRequest) -> Iterator[Terminal]:
    if shutil.which(request.param) is None:
        pytest.skip(f"no {request.param} here")
    terminal = Terminal(request.param)
    yield terminal
    os.close(terminal.fd)
    for process in psutil.Process(terminal.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    os.kill(terminal.pid, signal.SIGKILL)
    os.waitpid(terminal.pid, 0)


def until_it_is(process: psutil.Process, *, stopped: bool) -> None:
    deadline = time.monotonic() + SECONDS
    while (process.status() == psutil.STATUS_STOPPED) is not stopped:
        assert time.monotonic() < deadline, process.status()
        time.sleep(0.01)


@each_backend
def test_job_control(terminal: Terminal, backend: str, tmp_path: Path) -> None:
    """Ctrl-Z stops it and us, fg goes on, Ctrl-C arrives once, and the status is the command's."""
    tmp_path.joinpath("listens.py").write_text(LISTENS, encoding="utf-8")
    argv = [*RUN, "-q", "--cgroup-backend", backend, "--", sys.executable, "-u", str(tmp_path / "listens.py")]
    terminal.until("PROMPT ")
    terminal.type(" ".join(argv) + "\n")
    inside = psutil.Process(int(terminal.until(r"ready (\d+)")[1]))
    for _ in range(2):
        terminal.type("\x1a")
        terminal.until(r"(?i)stopped(.|\n)*PROMPT ")
        until_it_is(inside, stopped=True)
        terminal.type("fg\n")
        terminal.until(r"pytest_cgroup")
        until_it_is(inside, stopped=False)
        terminal.type("\x03")
        terminal.until("got SIGINT")
    terminal.type("\x03")
    terminal.until("got SIGINT")
    os.kill(inside.pid, signal.SIGTERM)
    assert "SIGINT" not in terminal.until(r"(.|\n)*got SIGTERM(.|\n)*PROMPT ")[0]
    terminal.type("echo status $?\n")
    terminal.until(r"status 7\s")


@pytest.mark.requires("cgroup")
def test_it_stops_with_the_command_and_takes_it_along() -> None:
    """Without a terminal, too, whose shell would have both go on."""
    argv = [*RUN, "-q", "--", sys.executable, "-u", "-c", LISTENS]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, start_new_session=True, bufsize=1) as process:
        line = lines(process)
        inside, outside = psutil.Process(int(line().split()[1])), psutil.Process(process.pid)
        for _ in range(2):
            inside.send_signal(signal.SIGSTOP)
            until_it_is(outside, stopped=True)
            outside.send_signal(signal.SIGCONT)
            until_it_is(inside, stopped=False)
        process.send_signal(signal.SIGTERM)
        assert line() == "got SIGTERM"
        assert process.wait(SECONDS) == 7


@pytest.mark.requires("cgroup")
def test_an_interactive_program_has_the_terminal(terminal: Terminal) -> None:
    terminal.until("PROMPT ")
    terminal.type(
        " ".join([*RUN, "-q", "--", "sh", "-c", "'test -t 0 && read line && echo read $line && stty -a'"]) + "\n"
    )
    terminal.until("\n")
    terminal.type("what is typed\n")
    terminal.until("read what is typed")
    terminal.until("speed")


def test_as_an_ordinary_user(unprivileged: OrdinaryUser) -> None:
    argv = [
        unprivileged.python,
        "-m",
        "pytest_cgroup",
        "run",
        "--timeout",
        "30",
        "--",
        "sh",
        "-c",
        "sleep 120 & exit 5",
    ]
    done = unprivileged.run(argv)
    assert (done.returncode, "left behind, now ended" in done.stderr) == (5, True)
