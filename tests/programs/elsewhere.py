"""Importing this makes the interpreter look like one on macOS or Windows: ``ELSEWHERE=darwin`` or ``win32``.

What this project uses and Python does not have there is taken away: modules, functions, constants. As a plugin of
pytest's (``-p elsewhere``, before ours) it leaves alone what pytest itself has imported by then.

psutil is the real platform's: it is imported before anything is taken away, and keeps the modules as they are now.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import io
import os
import select
import signal
import sys
import time
from collections.abc import Sequence
from types import ModuleType

import psutil

SYSTEM = os.environ["ELSEWHERE"]

#: on macOS, and on Windows all the more
NOT_ON_MACOS: dict[ModuleType, tuple[str, ...]] = {
    os: (
        *("eventfd", "getresuid", "memfd_create", "P_ALL", "P_PID", "P_PIDFD", "pidfd_open", "pipe2"),
        *("sched_setaffinity", "setns", "setresgid", "setresuid", "unshare", "waitid", "WEXITED", "WNOWAIT"),
    ),
    signal: ("pidfd_send_signal", "sigtimedwait", "sigwaitinfo", "SIGRTMAX", "SIGRTMIN"),
    select: ("epoll",),
    time: ("CLOCK_BOOTTIME",),
}
NOT_ON_WINDOWS: dict[ModuleType, tuple[str, ...]] = {
    os: (
        *("fork", "forkpty", "getegid", "geteuid", "getgid", "getgrouplist", "getgroups", "getuid", "killpg"),
        *("O_CLOEXEC", "O_NONBLOCK", "pread", "register_at_fork", "setgid", "setgroups", "setsid", "setuid"),
        *("statvfs", "sysconf", "uname", "wait", "WNOHANG", "WUNTRACED"),
    ),
    signal: (
        *("alarm", "pause", "pthread_sigmask", "setitimer", "sigwait"),
        *("SIGALRM", "SIGCHLD", "SIGCONT", "SIGHUP", "SIGKILL", "SIGQUIT", "SIGSTOP", "SIGUSR1", "SIGUSR2"),
    ),
    select: ("poll",),
}
MODULES_NOT_ON_WINDOWS = ("fcntl", "grp", "pty", "pwd", "resource", "termios", "tty")


class Absent(importlib.abc.MetaPathFinder):
    """Finds that some modules are not there."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name in self.names:
            raise ModuleNotFoundError(f"No module named {name!r} on {SYSTEM}", name=name)
        return None


def take_away(names: dict[ModuleType, tuple[str, ...]]) -> None:
    for module, attributes in names.items():
        for attribute in attributes:
            if hasattr(module, attribute):
                delattr(module, attribute)


def keep_for(package: str, modules: Sequence[ModuleType]) -> None:
    """Give what is imported of *package* copies of *modules*, which nothing is taken from."""
    copies = {module: ModuleType(module.__name__) for module in modules}
    for module, copy in copies.items():
        vars(copy).update(vars(module))
    for name, user in list(sys.modules.items()):
        if name.partition(".")[0] == package:
            for module, copy in copies.items():
                if vars(user).get(module.__name__) is module:
                    setattr(user, module.__name__, copy)


keep_for(psutil.__name__, list(NOT_ON_MACOS))
take_away(NOT_ON_MACOS)
absent = ["pytest_cgroup._runner"]  # what runs contained tests must not even be looked for
if SYSTEM == "win32":
    take_away(NOT_ON_WINDOWS)
    absent += MODULES_NOT_ON_WINDOWS
    io._WindowsConsoleIO = type("_WindowsConsoleIO", (), {})  # type: ignore[attr-defined]  # pytest looks for it there
for module_name in absent:
    sys.modules.pop(module_name, None)
sys.meta_path.insert(0, Absent(absent))
sys.platform = SYSTEM
