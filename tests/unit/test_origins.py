"""Where a process was started, and to what a process is traced: without pytest, in this very process."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_cgroup import _exempt, _held, _origins
from pytest_cgroup._origins import Origin, Origins, trace


class _Owner:
    ended = False

    def __init__(self) -> None:
        self.origins = _origins.new_list()


class _Watch:
    def __init__(self) -> None:
        self.owner = _Owner()
        self.heard = Origins(lambda: self.owner, str(Path(__file__).parent))

    @property
    def last(self) -> Origin:
        return self.owner.origins[-1]


@pytest.fixture
def watch() -> Iterator[_Watch]:
    found = _Watch()
    found.heard.start()
    yield found
    found.heard.stop()


def _here(function: str, shift: int = 0) -> str:
    return rf"test_origins\.py:\d+ in {function}(, called at test_origins\.py:\d+ in \w+)?"


def test_a_popen_knows_its_pid(watch: _Watch) -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        assert watch.last.pid == child.pid
        assert watch.last.popen is child
        assert watch.last.argv == ("sleep", "60")
        assert re.fullmatch(_here("test_a_popen_knows_its_pid"), watch.last.place or "")
        assert trace(child.pid, watch.owner.origins) == _origins.Traced(watch.last, deeper=False, sure=True)
        child.kill()


def test_a_forked_child_tells_its_pid(watch: _Watch) -> None:
    reader, writer = os.pipe()
    if not (pid := os.fork()):
        os.read(reader, 1)
        os._exit(0)
    os.read(reader, 0)
    traced = trace(pid, watch.owner.origins)
    os.write(writer, b".")
    os.waitpid(pid, 0)
    os.close(reader)
    os.close(writer)
    assert watch.last.pid == pid
    assert traced is not None
    assert traced.origin is watch.last


def test_a_child_of_what_was_started_is_deeper(watch: _Watch) -> None:
    with subprocess.Popen(["sh", "-c", "sleep 60 & echo $!; wait"], stdout=subprocess.PIPE, text=True) as shell:
        assert shell.stdout is not None
        pid = int(shell.stdout.readline())
        traced = trace(pid, watch.owner.origins)
        os.kill(pid, 9)
    assert traced == _origins.Traced(watch.last, deeper=True, sure=True)


def test_many_forks_reuse_the_page(watch: _Watch) -> None:
    pids = []
    for _ in range(_origins._SLOTS + 10):
        if not (pid := os.fork()):
            os._exit(0)
        os.waitpid(pid, 0)
        pids.append(pid)
    known = [origin.pid for origin in watch.owner.origins]
    assert known == pids[-len(known) :]


def test_nobody_listens_after_the_end(watch: _Watch) -> None:
    watch.heard.stop()
    subprocess.run(["true"], check=True)
    assert list(watch.owner.origins) == []


def test_installed_code_is_told_from_the_users(watch: _Watch, tmp_path: Path) -> None:
    """Code in site-packages is passed over; if there is nothing else, what pytest called of it is named."""
    for place in ("site-packages", "mine"):
        (tmp_path / place).mkdir()
        (tmp_path / place / f"{place[:4]}_module.py").write_text("import os\ndef go(f): f()\n")
    spaces = []
    for place in ("site-packages", "mine"):
        path = tmp_path / place / f"{place[:4]}_module.py"
        space: dict[str, object] = {"__name__": f"{place[:4]}_module"}
        exec(compile(path.read_text(), str(path), "exec"), space)
        spaces.append(space["go"])
    installed, mine = spaces
    frame = sys._getframe()
    mine(lambda: installed(lambda: subprocess.run(["true"], check=True)))  # type: ignore[operator]
    assert watch.last.place is not None
    assert watch.last.place.startswith("test_origins.py:")
    assert frame.f_code.co_name in watch.last.place


def test_a_threads_starts_are_its_starters(watch: _Watch) -> None:
    starter, go = watch.owner, threading.Event()
    thread = threading.Thread(target=lambda: (go.wait(), subprocess.run(["true"], check=True)))
    thread.start()
    watch.heard.threads_belong_to(starter)
    watch.owner = _Owner()
    watch.heard.threads_belong_to(watch.owner)
    go.set()
    thread.join()
    assert (len(starter.origins), len(watch.owner.origins)) == (1, 0)


def test_what_is_held() -> None:
    class Process:
        def __init__(self, pid: int) -> None:
            self.pid = pid

    class Slotted:
        __slots__ = ("inner",)

        def __init__(self, inner: object) -> None:
            self.inner = inner

    def closure() -> object:
        return captured

    captured = [Process(4)]
    loop: list[object] = [Process(1), {"a": Slotted(Process(2))}, closure]
    loop.append(loop)
    assert _held.held_pids([loop]) == {1, 2, 4}
    assert _held.held_pids([sys.modules[__name__], os, "text", None, 5]) == set()
    assert _held.held_pids([[Process(n) for n in range(1, 2 * _held.MOST)]]) == set(), "without end it says nothing"


def test_what_is_named() -> None:
    with subprocess.Popen(["cat", "-u"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(b".\n")
        child.stdin.flush()
        child.stdout.readline()  # it is executed by now, and has its name
        for glob in ("cat", "cat -u", "*at*", "c?t -[tu]"):
            assert _exempt.named(child.pid, [glob]), glob
        for glob in ("-u", "ca", "Cat", ""):
            assert not _exempt.named(child.pid, [glob]), glob
        assert not _exempt.own_helper(child.pid)
        child.kill()


def test_pytest_need_not_run_in_the_main_thread() -> None:
    """Nor does it behind a socket, now and then: what its thread starts is whose time it is, as ever."""
    found: list[_Watch] = []

    def work() -> None:
        watch = _Watch()
        found.append(watch)
        watch.heard.threads_belong_to(_Owner())  # of the session
        watch.heard.heard("os.system", ("true",), sys._getframe())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found[0].last.argv == ("sh", "-c", "true")
