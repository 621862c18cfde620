"""The copies of the standard library's modules, of which nothing is replaced with the originals."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pytest_cgroup import _isolated


@pytest.mark.parametrize("name", ["io", "json", "os", "select", "signal", "socket", "subprocess", "threading", "time"])
def test_a_copy_has_all_that_the_module_has_and_another_name(name: str) -> None:
    copy = getattr(_isolated, name)
    assert vars(copy).keys() >= vars(sys.modules[name]).keys()
    assert copy.__name__ == f"pytest_cgroup._isolated.{name}"
    assert getattr(_isolated, name) is copy


def test_what_is_replaced_is_not_in_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("it was called")

    for module, name in ((os, "mkdir"), (os, "scandir"), (time, "monotonic"), (select, "poll"), (socket, "socket")):
        monkeypatch.setattr(module, name, refuse)
    monkeypatch.setattr(os.path, "isdir", refuse)
    _isolated.os.makedirs(tmp_path / "a" / "b")  # Python's own, which calls mkdir
    assert [directories for _, directories, _ in _isolated.os.walk(tmp_path)] == [["a"], ["b"], []]
    assert _isolated.os.path.isdir(tmp_path / "a")
    assert _isolated.time.monotonic() > 0
    assert _isolated.select.poll().poll(0) == []
    ours, theirs = _isolated.socket.socketpair()  # Python's own, which makes sockets
    with ours, theirs:
        ours.sendall(b"a")
        assert theirs.recv(2) == b"a"


def test_a_popen_is_pythons_and_calls_the_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "_fork_exec", None, raising=False)
    monkeypatch.setattr(os, "pipe", None)
    with _isolated.subprocess.Popen(["echo", "a"], stdout=subprocess.DEVNULL) as process:
        assert isinstance(process, subprocess.Popen)
    assert process.returncode == 0


def test_what_nobody_has_imported_is_copied_when_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    known = _isolated.json
    monkeypatch.delitem(vars(_isolated), "json")
    assert _isolated.json is not known
    assert _isolated.json.loads("[1]") == [1]
    with pytest.raises(AttributeError, match="no attribute 'antigravity'"):
        _ = _isolated.antigravity  # type: ignore[attr-defined]


def test_threads_that_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not _isolated.are_threads_replaced()
    monkeypatch.setattr(threading, "get_ident", lambda: 1)
    assert _isolated.are_threads_replaced()
