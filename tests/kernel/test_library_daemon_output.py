"""What a daemon prints: kept and bounded, for several readers, to `logging`, and with flow control."""

from __future__ import annotations

import logging
import subprocess
import threading
from collections.abc import Iterator

import pytest

from pytest_cgroup import Container, Daemon, _station, ready
from tests.kernel.contain import DEADLINE_SECONDS
from tests.kernel.test_library_daemon import PY, UP, restarted, until

COUNT = "import sys\nfor n in range(int(sys.argv[1])): print('line', n)\n"
STAY = "sys.stdout.flush()\nimport signal\nsignal.pause()\n"


@pytest.fixture(autouse=True)
def _given_back() -> Iterator[None]:
    yield
    _station.close()


class Reader:
    """Reads the lines in a thread."""

    def __init__(self, lines: Iterator[str]) -> None:
        self.found: list[str] = []
        self._thread = threading.Thread(target=lambda: self.found.extend(lines), daemon=True)
        self._thread.start()

    def join(self) -> list[str]:
        self._thread.join(DEADLINE_SECONDS)
        assert not self._thread.is_alive(), "it hangs"
        return self.found


def numbered(count: int) -> list[str]:
    return [f"line {n}" for n in range(count)]


def test_tail_and_replay(backend: str) -> None:
    with Container(backend=backend) as container:
        daemon = container.daemon([PY, "-c", COUNT, "100"], restart="temporary")
        daemon.wait(DEADLINE_SECONDS)
        assert daemon.tail(3) == "line 97\nline 98\nline 99"
        assert len(daemon.tail().splitlines()) == 20
        assert daemon.tail(0) == ""
        assert list(daemon.lines()) == list(daemon.lines(follow=True)) == numbered(100)
        assert daemon.output_bytes == len("\n".join(numbered(100))) + 1


def test_several_readers_follow_each_at_its_own_pace(backend: str) -> None:
    with Container(backend=backend) as container:
        daemon = container.daemon([PY, "-c", COUNT + STAY, "5000"], ready=ready.log("line 4999"))
        slow = daemon.lines(follow=True)
        assert next(slow) == "line 0"
        readers = [Reader(daemon.lines(follow=True)) for _ in range(3)]
        daemon.signal(9)
        restarted(daemon, 1)
        daemon.stop()
        for reader in readers:
            assert reader.join() == numbered(5000) * 2
        assert list(slow) == (numbered(5000) * 2)[1:]


def test_who_follows_no_longer_than_asked_for(backend: str) -> None:
    with Container(backend=backend) as container:
        daemon = container.daemon([PY, "-c", COUNT + STAY, "2"], ready=ready.log("line 1"))
        assert list(daemon.lines(follow=True, timeout=0.05)) == numbered(2)
        assert daemon.running


def test_the_log_is_bounded_and_says_what_is_missing(backend: str) -> None:
    with Container(backend=backend) as container:
        daemon = container.daemon([PY, "-c", COUNT, "200000"], log_limit="64K", restart="temporary")
        daemon.wait(DEADLINE_SECONDS)
        kept = list(daemon.lines())
        left_out = int(kept[0].removeprefix("[").removesuffix(" bytes left out]"))
        assert kept[-1] == "line 199999"
        assert 64 << 10 <= daemon.output_bytes - left_out <= 128 << 10


def test_bytes_that_are_no_text(backend: str) -> None:
    program = "import sys; sys.stdout.buffer.write(b'\\xff\\xfe\\x00 caf\\xc3\\xa9\\r\\n\\xe2\\x82')"
    with Container(backend=backend) as container:
        daemon = container.daemon([PY, "-c", program], restart="temporary", log="tests.daemon")
        daemon.wait(DEADLINE_SECONDS)
        assert list(daemon.lines()) == ["��\x00 café", "�"]
        assert daemon.output_bytes == 13


def test_a_line_without_an_end(backend: str) -> None:
    with Container(backend=backend) as container:
        daemon = container.daemon([PY, "-c", "print('x' * 200000, end='')"], restart="temporary")
        daemon.wait(DEADLINE_SECONDS)
        lines = list(daemon.lines())
        assert "".join(lines) == "x" * 200000
        assert max(map(len, lines)) == 1 << 16


def test_stderr_apart_or_not_at_all(backend: str) -> None:
    argv = ["sh", "-c", "echo out; echo err >&2"]
    with Container(backend=backend) as container:
        apart = container.daemon(argv, stderr=subprocess.PIPE, restart="temporary")
        silent = container.daemon(argv, stderr=subprocess.DEVNULL, restart="temporary")
        for daemon in (apart, silent):
            daemon.wait(DEADLINE_SECONDS)
        assert (list(apart.lines()), list(apart.lines(stderr=True))) == (["out"], ["err"])
        assert apart.tail() == "out\nerr"
        assert silent.tail() == "out"


# logging


def test_to_logging(backend: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG), Container(backend=backend) as container:
        daemon = container.daemon(
            ["sh", "-c", "echo one; echo two; printf rest"],
            name="web",
            restart="temporary",
            log="tests.daemon",
            log_level=logging.WARNING,
            log_transform=lambda line: None if line == "two" else line.upper(),
        )
        daemon.wait(DEADLINE_SECONDS)
        quiet = container.daemon(["echo", "three"], restart="temporary", log=logging.getLogger("q"), log_prefix="")
        quiet.wait(DEADLINE_SECONDS)
    assert caplog.record_tuples == [
        ("tests.daemon", logging.WARNING, "web: ONE"),
        ("tests.daemon", logging.WARNING, "web: REST"),
        ("q", logging.INFO, "three"),
    ]


def test_a_transform_that_fails_harms_nobody(backend: str, caplog: pytest.LogCaptureFixture) -> None:
    def broken(line: str) -> str:
        raise ValueError("no")

    with caplog.at_level(logging.INFO), Container(backend=backend) as container:
        daemon = container.daemon(["echo", "one"], restart="temporary", log="tests.daemon", log_transform=broken)
        assert daemon.wait(DEADLINE_SECONDS) == "normal"
    assert caplog.messages == ["echo: one [log_transform: ValueError: no]"]


# flow control

FLOOD = "import sys\nfor n in range(100000): print('line', n)\nprint('done', flush=True)\n"


def blocked(daemon: Daemon, window: int) -> int:
    """What it has printed when the window is full, and it sleeps in write(2)."""

    def sleeps() -> bool:
        with open(f"/proc/{daemon.pid}/stat", encoding="utf-8") as f:
            return f.read().rpartition(")")[2].split()[0] == "S"

    until(lambda: daemon.output_bytes >= window and sleeps(), "it is blocked")
    return daemon.output_bytes


def test_a_window_blocks_who_prints_faster_and_loses_nothing(backend: str) -> None:
    window = 8192
    with Container(backend=backend) as container:
        daemon = container.daemon([PY, "-c", FLOOD], output_window=window, log_limit=1000, restart="temporary")
        assert blocked(daemon, window) < window + (1 << 16)  # nobody reads: no more than one piece beyond
        assert daemon.running
        lines = daemon.lines(follow=True)
        first = [next(lines) for _ in range(1000)]
        assert daemon.running  # it has 100,000
        assert first + list(lines) == [*numbered(100000), "done"]
        assert daemon.reason == "normal"


def test_without_a_window_it_goes_on(backend: str) -> None:
    """The control."""
    with Container(backend=backend) as container:
        daemon = container.daemon([PY, "-c", FLOOD], log_limit=1000, restart="temporary")
        assert daemon.wait(DEADLINE_SECONDS) == "normal"
        assert daemon.tail(1) == "done"


def test_a_blocked_daemon_ends_all_the_same(backend: str) -> None:
    with Container(backend=backend) as container:
        daemon = container.daemon([PY, "-c", FLOOD], output_window=4096)
        blocked(daemon, 4096)
        assert daemon.stop(grace=DEADLINE_SECONDS) == "SIGTERM"
        lines = list(daemon.lines())
        assert lines[:100] == numbered(100)
        assert sum(len(line) + 1 for line in lines) >= daemon.output_bytes


def test_the_slower_of_two_readers_sets_the_pace(backend: str) -> None:
    with Container(backend=backend) as container:
        daemon = container.daemon([PY, "-c", FLOOD], output_window=4096, restart="temporary")
        slow = daemon.lines(follow=True)
        assert next(slow) == "line 0"
        fast = Reader(daemon.lines(follow=True))
        assert blocked(daemon, 4096) < 4096 + (1 << 16)
        assert list(slow)[-1] == "done"
        assert fast.join() == [*numbered(100000), "done"]


def test_its_output_outlives_it(backend: str) -> None:
    with Container(backend=backend) as container:
        daemon = container.daemon(["sh", "-c", "echo up; exec sleep 1000"], ready=UP)
    assert (daemon.tail(), list(daemon.lines(follow=True))) == ("up", ["up"])
