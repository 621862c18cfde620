"""Run something in a process of its own, which may change itself as it likes, and bring home what it says."""

from __future__ import annotations

import faulthandler
import os
import pickle
import select
import signal
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TypeVar

from pytest_cgroup import _syscalls as sc
from pytest_cgroup._cgroup import Cgroup
from pytest_cgroup._namespaces import Namespaces, enter_user_namespace, set_up, unshare_pid

T = TypeVar("T")
ORDINARY = 61_235  # no account, and not 65534, which in a user namespace also stands for "not mapped"
DEADLINE_SECONDS = 60.0
_PARTS = 6  # of it: a machine that stands still for a while takes one


class ChildDied(Exception):
    """The child ended without an answer; the argument is its wait status."""


def forked(function: Callable[[], T]) -> T:
    """What *function* returns, or raises, in a forked child; nests, so that a child can have an init as its parent."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _answer(function, writer)
    os.close(writer)
    try:
        text, waited = b"", 0
        while waited < _PARTS:
            if not select.select([reader], [], [], DEADLINE_SECONDS / _PARTS)[0]:
                waited += 1
            elif chunk := os.read(reader, 65536):
                text += chunk
            else:
                break
        else:
            where = _python_stack(child, reader)
            os.kill(child, signal.SIGKILL)
            said = f"no answer within {DEADLINE_SECONDS:g} s, but {text!r}, and here it was:\n{where}"
            text = pickle.dumps((False, TimeoutError(said), ""))
    finally:
        os.close(reader)
        _, status = os.waitpid(child, 0)
    if not text:
        raise ChildDied(status)
    ok, value, trace = pickle.loads(text)
    if not ok:
        value.add_note(trace)
        raise value
    return value  # type: ignore[no-any-return]


def _python_stack(child: int, reader: int) -> str:
    os.kill(child, signal.SIGRTMAX)
    said = b""
    while select.select([reader], [], [], 1.0)[0] and (chunk := os.read(reader, 65536)):
        said += chunk
    return said.decode(errors="replace") or "it does not say"


def on(cgroup: Cgroup, function: Callable[[], T]) -> T:
    """What *function* returns, or raises, in a child whose cgroup *cgroup* is."""

    def first() -> T:
        cgroup.adopt(0)
        return function()

    return forked(first)


def _answer(function: Callable[[], object], writer: int) -> NoReturn:
    try:
        sc.set_pdeathsig(signal.SIGKILL)  # a parent that gave up takes all below with it
        faulthandler.register(signal.SIGRTMAX, writer)
        os.chdir("/")  # where pytest runs may be root's alone, or lie below a /tmp that is to become private
        try:
            text = pickle.dumps((True, function(), ""))
        except BaseException as error:
            text = pickle.dumps((False, error, traceback.format_exc()))
        while text:
            text = text[os.write(writer, text) :]
    finally:
        os._exit(0)


def become_ordinary() -> None:
    """Be a user without privilege, as one who logged in would be."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(ORDINARY, ORDINARY, ORDINARY)
        os.setresuid(ORDINARY, ORDINARY, ORDINARY)
        sc.set_dumpable(True)  # as after an execve


def refusal(function: Callable[[], object]) -> int | None:
    """The errno with which *function* is refused, None if it is not."""
    try:
        function()
    except OSError as error:
        return error.errno
    return None


class Who:
    """Root, or an ordinary user who needs a user namespace for everything."""

    def __init__(self, name: str) -> None:
        self.is_root = name == "root"

    def enter(self) -> None:
        """In a child: come to where namespaces can be unshared."""
        if not self.is_root:
            become_ordinary()
            enter_user_namespace()

    def inside(self, ns: Namespaces, function: Callable[[], T]) -> T:
        """Run *function* in *ns*; with a pid namespace as its PID 2, below an init."""

        def run() -> T:
            set_up(ns)
            return function()

        def first() -> T:
            self.enter()
            if not ns.pid:
                return run()
            unshare_pid()
            return forked(lambda: forked(run))

        return forked(first)


def namespace(short: str) -> str:
    return os.readlink(f"/proc/self/ns/{short}")


def words(path: str) -> list[str]:
    """What a file of the kernel's lists."""
    return Path(path).read_text().split()


def mountinfo() -> str:
    return Path("/proc/self/mountinfo").read_text()
