"""Processes that are nobody's leak: what the interpreter starts for itself, pools that are kept, what the user names.

Read from modules that are loaded already, never imported here. What of them is private is looked for, not relied upon:
where it is not, the process is judged like any other.
"""

from __future__ import annotations

import contextlib
import shlex
import sys
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from ._isolated import os
from ._origins import command_line
from ._process import comm, lineage, stat_fields

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# They outlive the test that happened to need them first, and end with the interpreter.
_TRACKERS = (
    "*from multiprocessing.resource_tracker import main*",
    "*resource_tracker import main; main(*",  # loky's
    "*-m loky.backend.resource_tracker*",
)
#: ours, which ends when nobody is left to ask it
_LAUNCHER = "*from pytest_cgroup._launcher import main*"
_INTERPRETERS_OWN = (*_TRACKERS, "*from multiprocessing.forkserver import main*")
#: the module of those who ask it for processes
FORK_SERVER = "multiprocessing.popen_forkserver"
#: what starts helpers of its own by way of these packages
PLUMBING = frozenset(("xdist",))


def own_helper(pid: int) -> bool:
    """Whether the process is a helper of the interpreter's own, a resource tracker or a fork server, or of ours.

    What the fork server forks has the same command line, and is somebody's. What is in a container ends with that.
    """
    if pid in _containers_own():
        return True
    argv = command_line(pid)
    if not runs_helper(argv) or pid in fork_server_children():
        return False
    fields = stat_fields(pid)
    return fields is not None and command_line(int(fields[1])) != argv


def _containers_own() -> set[int]:
    """What lives in the containers of this process, and what starts it there."""
    station = getattr(sys.modules.get("pytest_cgroup._station"), "_station", None)
    return set() if station is None else station.helpers()


def is_launcher(pid: int) -> bool:
    """Whether the process starts programs in containers, for whoever it was that has ended before it."""
    return fnmatchcase(shlex.join(command_line(pid)), _LAUNCHER)


def runs_helper(argv: Sequence[str]) -> bool:
    """Whether that is the command line of such a helper."""
    line = shlex.join(argv)
    return any(fnmatchcase(line, pattern) for pattern in _INTERPRETERS_OWN)


def outlives_pytest(pid: int, globs: Sequence[str]) -> bool:
    """Whether the process is let be when pytest has been killed.

    That is what *globs* name, with its children, and a resource tracker, which tidies up after pytest and ends.
    """
    line = shlex.join(command_line(pid))
    tracker = any(fnmatchcase(line, pattern) for pattern in _TRACKERS)
    return tracker or (bool(globs) and any(named(one, globs) for one in lineage(pid)))


def named(pid: int, globs: Sequence[str]) -> bool:
    """Whether one of *globs* matches the command line as a shell shows it, or the name of the program."""
    return bool(globs) and matches(command_line(pid), comm(pid, gone=""), globs)


def matches(argv: Sequence[str], name: str, globs: Sequence[str]) -> bool:
    """Whether one of *globs* matches a command line, or the name of its program."""
    names = (shlex.join(argv), os.path.basename(argv[0]) if argv else "", name)
    return any(fnmatchcase(name, glob) for glob in globs for name in names if name)


def pool_workers() -> set[int]:
    """The workers of executors that somebody still holds and has not shut down, of concurrent.futures and loky."""
    found: set[int] = set()
    for name, module in list(sys.modules.items()):
        if name == "concurrent.futures.process" or name.endswith("loky.process_executor"):
            for thread in list(getattr(module, "_threads_wakeups", ())):
                found.update(_workers(thread))
    return found


def pool_threads() -> set[Any]:
    """The threads of concurrent.futures' executors: who is shut down ends them."""
    return set(getattr(sys.modules.get("concurrent.futures.thread"), "_threads_queues", ()))


def _workers(thread: Any) -> Iterator[int]:
    with contextlib.suppress(Exception):  # another version's thread may be anything
        executor = thread.executor_reference()
        held = executor is not None and not getattr(executor, "_shutdown_thread", False)
        flags = getattr(executor, "_flags", None)
        if held and not getattr(flags, "shutdown", False):
            yield from list(thread.processes)


def fork_server_children() -> set[int]:
    """The processes that multiprocessing's fork server has started for this one: they are not born where it stands."""
    started = getattr(sys.modules.get("multiprocessing.process"), "_children", None)
    if not started:
        return set()
    popens: list[Any] = [getattr(process, "_popen", None) for process in list(started)]
    return {popen.pid for popen in popens if type(popen).__module__ == FORK_SERVER and popen.returncode is None}
