"""The process table of a kernel that has no /proc/PID/task/TID/children: read whole, with the same answers."""

from __future__ import annotations

import builtins
import os
import re
from typing import Any

import pytest

from pytest_cgroup import _isolated
from pytest_cgroup._process import children, descendants
from tests.kernel.contain import Lab, Tell, leak, on_process
from tests.kernel.forked import forked

CHILDREN = re.compile(r"/proc/(\d+/task/\d+|self/task/\d+|thread-self)/children")


@pytest.fixture
def without_children_files(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Hide the files from this process and those that it forks; the paths that were asked for."""
    asked: list[str] = []
    real_open, real_exists = builtins.open, os.path.exists

    def is_hidden(path: object) -> bool:
        hidden = isinstance(path, str) and CHILDREN.fullmatch(path) is not None
        if hidden:
            asked.append(str(path))
        return hidden

    def open_(path: Any, *more: Any, **options: Any) -> Any:
        if is_hidden(path):
            raise FileNotFoundError(2, "No such file or directory", path)
        return real_open(path, *more, **options)

    monkeypatch.setattr(_isolated.io, "open", open_)
    monkeypatch.setattr(_isolated.os.path, "exists", lambda path: not is_hidden(path) and real_exists(path))
    return asked


def family() -> tuple[list[int], list[int], list[int]]:
    """A process with a child and, behind a double fork, an orphan of its own: what is seen of them, and what is so."""
    reader, writer = os.pipe()
    hold, end = os.pipe()
    child = os.fork()
    if child == 0:
        grandchild = os.fork()
        if grandchild:
            os.write(writer, str(grandchild).encode())
        os.close(end)
        os.read(hold, 1)  # until the first process closes the other end
        if grandchild:
            os.waitpid(grandchild, 0)
        os._exit(0)
    try:
        grandchild = int(os.read(reader, 100))
        return children(), descendants(os.getpid()), [child, grandchild]
    finally:
        os.close(end)
        os.waitpid(child, 0)


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_the_same_family_is_found(without_children_files: list[str]) -> None:
    direct, all_of_them, there = forked(family)
    assert direct == there[:1]
    assert all_of_them == there


def test_the_files_were_hidden(without_children_files: list[str]) -> None:
    """The control: they would have been read, had they been there."""
    children()
    assert re.fullmatch(r"/proc/self/task/\d+/children", without_children_files[0])


def test_a_process_that_is_gone_has_no_children(without_children_files: list[str]) -> None:
    gone = os.fork()
    if gone == 0:
        os._exit(0)
    os.waitpid(gone, 0)
    assert children(gone) == descendants(gone) == []


@on_process
@pytest.mark.parametrize("kind", ["double_fork", "setsid", "sigterm"])
def test_a_leak_is_found_and_killed(lab: Lab, without_children_files: list[str], kind: str) -> None:
    def function(tell: Tell) -> list[int]:
        return leak(kind)

    pids, outcome = lab.call(function)
    assert [found.pid for found in outcome.leaks] == pids
    assert not any(os.path.exists(f"/proc/{pid}") for pid in pids)
    assert without_children_files
