"""The run stops in the child as it stops without one: Ctrl-C, `pytest.exit`, -x, and the debugger on a terminal."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.inner import HEAD, command, run

_FIXTURES = """
def note(what):
    with open("notes", "a") as file: file.write(f"{what}\\n")
@pytest.fixture(scope="module")
def of_module():
    yield
    note("module down")
@pytest.fixture
def of_test():
    yield
    note("test down")
def test_later(): note("later")
"""


def test_exit_stops_the_run_with_its_status(pytester: pytest.Pytester) -> None:
    source = f"""
@contained
def test_it(of_module, of_test): pytest.exit("enough", returncode=7)
{_FIXTURES}
"""
    result = run(pytester, source)
    assert result.ret == 7
    assert "Exit: enough" in result.text
    assert pytester.path.joinpath("notes").read_text() == "test down\nmodule down\n"


@pytest.mark.parametrize("place", ["setup", "teardown"])
def test_exit_from_a_fixture(pytester: pytest.Pytester, place: str) -> None:
    source = f"""
@pytest.fixture
def exits():
    if {place == "setup"}: pytest.exit("enough", 7)
    yield
    pytest.exit("enough", 7)
@contained
def test_it(of_module, of_test, exits): pass
{_FIXTURES}
"""
    assert run(pytester, source).ret == 7
    assert pytester.path.joinpath("notes").read_text() == "test down\nmodule down\n"


def test_keyboard_interrupt_raised_by_the_test(pytester: pytest.Pytester) -> None:
    source = f"@contained\ndef test_it(of_module, of_test): raise KeyboardInterrupt\n{_FIXTURES}"
    result = run(pytester, source)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert "KeyboardInterrupt" in result.text
    assert pytester.path.joinpath("notes").read_text() == "test down\nmodule down\n"


@pytest.mark.parametrize("options", ["-x", "--maxfail=1", "-x -n2"])
def test_stops_at_the_first_failure(pytester: pytest.Pytester, options: str) -> None:
    source = """
@contained
def test_crash(): os.abort()
@contained
@pytest.mark.parametrize("n", range(20))
def test_it(n): open(f"ran{n}", "w").close()
"""
    arguments = [word for word in options.split() if word != "-n2"]
    result = run(pytester, source, *arguments, workers=2 if "-n2" in options else 0)
    assert result.ret in (pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.INTERRUPTED)
    assert "stopping after 1 failures" in result.text
    assert len(list(pytester.path.glob("ran*"))) < 20


def test_session_shouldstop_set_by_the_test(pytester: pytest.Pytester) -> None:
    source = """
@contained
def test_it(request): request.session.shouldstop = "that is enough"
@contained
def test_later(): pass
"""
    result = run(pytester, source)
    assert result.counts == {"passed": 1}
    assert "that is enough" in result.text


_WAITS = f"""
@contained
def test_it(of_module, of_test):
    os.mkfifo("never")
    with open("ready", "w") as fifo: fifo.write("x")
    open("never").read()
{_FIXTURES}
"""


@pytest.mark.parametrize("whom", ["group", "pytest"])
@pytest.mark.parametrize("given", ["", pytest.param("pid_ns=True", marks=pytest.mark.requires("pid_ns"))])
def test_interrupted_from_outside(pytester: pytest.Pytester, whom: str, given: str) -> None:
    pytester.path.joinpath("test_it.py").write_text(HEAD + _WAITS.replace("@contained\n", f"@contained({given})\n"))
    os.mkfifo(pytester.path / "ready")
    ready = os.open(pytester.path / "ready", os.O_RDWR)  # for reading alone it would wait here for a writer
    with open(pytester.path / "out", "w+") as out:
        pytest_ = subprocess.Popen(
            command(()), cwd=pytester.path, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            assert select.select([ready], [], [], 30)[0], "the test has not begun"
            (os.killpg if whom == "group" else os.kill)(pytest_.pid, signal.SIGINT)
            assert pytest_.wait(timeout=30) == pytest.ExitCode.INTERRUPTED
        finally:
            pytest_.kill()
            os.close(ready)
        text = Path(pytester.path, "out").read_text()
    assert "KeyboardInterrupt" in text
    assert pytester.path.joinpath("notes").read_text() == "test down\nmodule down\n"


@pytest.mark.requires("pid_ns")
def test_what_is_sent_to_the_group_comes_once(pytester: pytest.Pytester) -> None:
    """And what is sent to PID 1 is passed on: real-time signals are counted, and come in the order of their numbers."""
    source = """
GROUPS, OURS = signal.SIGRTMIN, signal.SIGRTMIN + 1
signal.signal(GROUPS, lambda *_: None)
@contained(pid_ns=True)
def test_it():
    signal.pthread_sigmask(signal.SIG_BLOCK, [GROUPS, OURS])
    with open("ready", "w") as fifo: fifo.write("x")
    assert signal.sigwait([GROUPS]) == GROUPS
    os.kill(1, OURS)
    assert signal.sigwait([GROUPS, OURS]) == OURS
"""
    pytester.path.joinpath("test_it.py").write_text(HEAD + source)
    os.mkfifo(pytester.path / "ready")
    ready = os.open(pytester.path / "ready", os.O_RDWR)
    pytest_ = subprocess.Popen(command(()), cwd=pytester.path, stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert select.select([ready], [], [], 30)[0], "the test has not begun"
        os.killpg(pytest_.pid, signal.SIGRTMIN)
        text = pytest_.communicate(timeout=30)[0].decode()
    finally:
        pytest_.kill()
        os.close(ready)
    assert "1 passed" in text, text


class Terminal:
    """pytest on a terminal of its own."""

    def __init__(self, pid: int, fd: int) -> None:
        self.pid, self.fd, self.text = pid, fd, ""

    def expect(self, pattern: str, *, again: str | None = None) -> str:
        """Read until *pattern* has come; what came before it, and it. While nothing comes *again* is sent again."""
        deadline = time.monotonic() + 30
        while (match := re.search(pattern, self.text)) is None:
            left = deadline - time.monotonic()
            if not select.select([self.fd], [], [], max(0.0, left if again is None else min(1.0, left)))[0]:
                if again is not None and left > 0:
                    self.send(again)
                    continue
                pytest.fail(f"no {pattern!r} in:\n{self.text}", pytrace=False)
            try:
                piece = os.read(self.fd, 65536)
            except OSError:  # EIO: the terminal's other end is closed
                piece = b""
            if not piece:
                pytest.fail(f"ended without {pattern!r}:\n{self.text}", pytrace=False)
            self.text += piece.decode(errors="replace").replace("\r\n", "\n")
        before, self.text = self.text[: match.end()], self.text[match.end() :]
        return before

    def send(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def close(self) -> None:
        """Wait for the end; where that does not come, the test has failed already."""
        with contextlib.suppress(pytest.fail.Exception):
            self.expect("(?!)")
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)
        os.waitpid(self.pid, 0)
        os.close(self.fd)


@contextlib.contextmanager
def on_a_terminal(pytester: pytest.Pytester, source: str, *arguments: str) -> Iterator[Terminal]:
    pytester.path.joinpath("test_it.py").write_text(HEAD + source)
    argv = command(("--no-header", *arguments))
    pid, fd = pty.fork()
    if pid == 0:
        try:
            os.chdir(pytester.path)
            os.execvp(argv[0], argv)
        finally:
            os._exit(127)
    terminal = Terminal(pid, fd)
    try:
        yield terminal
    finally:
        terminal.close()


_FAILS = """
@contained(timeout=3)
def test_it(of_test):
    secret = 6 * 7
    print("printed before")
    assert secret == 0
def test_later(): note("later")
""" + _FIXTURES.replace('def test_later(): note("later")\n', "")


def test_post_mortem_in_the_child_while_the_clock_stands_still(pytester: pytest.Pytester) -> None:
    with on_a_terminal(pytester, _FAILS, "--pdb") as terminal:
        shown = terminal.expect(r"\(Pdb\) ")
        assert "entering PDB" in shown
        assert "printed before" in shown
        terminal.send("p secret * 1000 + 1, open('/proc/self/cgroup').read().count('pytest-cgroup-') > 0\n")
        terminal.expect(r"\(42001, (True|False)\)")
        terminal.send("import time; time.sleep(3.1); print('sl' + 'ept')\n")  # past the timeout, and not killed by it
        terminal.expect(r"slept\s+\(Pdb\) ")
        terminal.send("\x03")  # Ctrl-C at the prompt is the prompt's
        # Between the prompt and the wait for a key Python notes a signal and does not see to it before the next one.
        terminal.expect(r"KeyboardInterrupt[^()]*\(Pdb\) ", again="\x03")
        terminal.send("p 'still ' + 'here'\n")
        terminal.expect("'still here'")
        terminal.send("c\n")
        assert "1 failed, 1 passed" in terminal.expect(r"=+ .* in [\d.]+s.* =+")
    assert pytester.path.joinpath("notes").read_text() == "test down\nlater\n"


def test_quitting_the_debugger_stops_the_run(pytester: pytest.Pytester) -> None:
    with on_a_terminal(pytester, _FAILS, "--pdb") as terminal:
        terminal.expect(r"\(Pdb\) ")
        terminal.send("q\n")
        assert "Exit: Quitting debugger" in terminal.expect(r"=+ .* in [\d.]+s.* =+")
    assert pytester.path.joinpath("notes").read_text() == "test down\n"


def test_set_trace_and_capture_afterwards(pytester: pytest.Pytester) -> None:
    source = _FAILS.replace("    assert secret", "    breakpoint()\n    print('printed after')\n    assert secret")
    with on_a_terminal(pytester, source) as terminal:
        assert "IO-capturing turned off" in terminal.expect(r"\(Pdb\) ")
        terminal.send("p secret\n")
        terminal.expect("42")
        terminal.send("import time; time.sleep(3.1); print('sl' + 'ept')\n")
        terminal.expect(r"slept\s+\(Pdb\) ")
        terminal.send("c\n")
        shown = terminal.expect(r"=+ .* in [\d.]+s.* =+")
        assert "1 failed, 1 passed" in shown
        assert "printed after" in shown


def test_trace(pytester: pytest.Pytester) -> None:
    with on_a_terminal(pytester, _FAILS, "--trace", "test_it.py::test_it") as terminal:
        shown = terminal.expect(r"\(Pdb\) ")
        assert "runcall" in shown
        terminal.send("n\nn\np secret + 1\n")
        terminal.expect("43")
        terminal.send("c\n")
        terminal.expect(r"1 failed.* in [\d.]+s")


def test_deadline_goes_on_after_the_debugger(pytester: pytest.Pytester) -> None:
    source = _FAILS.replace("    assert secret", "    breakpoint()\n    threading.Event().wait()\n    assert secret")
    with on_a_terminal(pytester, source, "test_it.py::test_it") as terminal:
        terminal.expect(r"\(Pdb\) ")
        terminal.send("c\n")
        assert "timeout: killed" in terminal.expect(r"=+ .* in [\d.]+s.* =+")


def test_faulthandler_timeout_of_pytest_reaches_into_the_child(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\nfaulthandler_timeout = 0.1\n")
    source = """
@contained(timeout=30)
def test_it():
    deadline = time.monotonic() + 20
    while not os.path.exists("dumped") and time.monotonic() < deadline: threading.Event().wait(0.05)
"""
    with open(pytester.path / "out", "wb") as out:
        inner = pytester.path / "test_it.py"
        inner.write_text(HEAD + source)
        process = subprocess.Popen(command(()), cwd=pytester.path, stdout=out, stderr=subprocess.STDOUT)
        try:
            deadline = time.monotonic() + 30
            while b"most recent call first" not in Path(pytester.path, "out").read_bytes():
                assert time.monotonic() < deadline, "no stack was dumped"
                select.select([], [], [], 0.05)
            Path(pytester.path, "dumped").touch()
            assert process.wait(timeout=30) == 0
        finally:
            process.kill()
            process.wait()
    assert "in test_it" in Path(pytester.path, "out").read_text()


@pytest.mark.parametrize("number", range(1, 5))
@pytest.mark.parametrize("backend", [pytest.param("cgroup", marks=pytest.mark.requires("cgroup")), "process"])
def test_ctrl_c_in_a_fork(pytester: pytest.Pytester, backend: str, number: int) -> None:
    """What is raised by a function that os.fork() calls is dropped by Python; so it may not come there."""
    source = f"""
PYTEST, forks = os.getpid(), []
def interrupt():
    forks.append(os.getpid())
    if len(forks) == {number} and forks[-1] == PYTEST: os.kill(PYTEST, signal.SIGINT)
os.register_at_fork(after_in_parent=interrupt)
pytestmark = contained
def test_a(): time.sleep(0.2)
def test_b(): time.sleep(0.2)
def test_c(): time.sleep(0.2)
def test_d(): time.sleep(0.2)
"""
    result = run(pytester, source, f"--cgroup-backend={backend}")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert "KeyboardInterrupt" in result.text
    assert "Exception ignored" not in result.text
