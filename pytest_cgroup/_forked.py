"""A fork of this process into a container of the library, and who stands between where that takes somebody.

Where the container is a cgroup and no more, the child is ours, and steps in by itself. Into namespaces steps a process
between, since a pid namespace takes in only children; and without a cgroup the tree has to be held by somebody above
who adopts its orphans. That process is a reaper (`_reaper`): it lives as long as anything below it.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, NoReturn

from . import _entry, _syscalls
from ._isolated import io, json, os, signal
from ._kernel_files import join
from ._process import descendants, fork, send_signal, signal_members
from ._program import take_on
from ._reaper import NOT_ENTERED, become_reaper, no_fork, tell
from ._steps import step
from .exceptions import CgroupError, ContainerError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

#: in /proc/PID/ns; a user namespace comes first, as it gives the right to the others
_KINDS = {
    "user": _syscalls.CLONE_NEWUSER,
    "net": _syscalls.CLONE_NEWNET,
    "ipc": _syscalls.CLONE_NEWIPC,
    "uts": _syscalls.CLONE_NEWUTS,
    "time_for_children": _syscalls.CLONE_NEWTIME,
    "pid_for_children": _syscalls.CLONE_NEWPID,
    "mnt": _syscalls.CLONE_NEWNS,
}


class Forked:
    """A forked child that runs a function.

    Args:
        pid: our own child: the process itself, or who stands above it.
        status: descriptor that the one above tells on; None where there is none.

    Attributes:
        above: whether somebody stands above it, who is not waited for here.
        end: readable when the process has ended.
    """

    def __init__(self, pid: int, status: int | None) -> None:
        self.pid = pid
        self.above = status is not None
        self._status = status
        self._pidfd = os.pidfd_open(pid)
        self.end = self._pidfd if status is None else status
        self._text = b""

    def kill(self) -> None:
        """Kill the process; where somebody stands above it, with all that came of it."""
        if self.above:
            signal_members(lambda: descendants(self.pid), signal.SIGKILL)
        else:
            send_signal(self._pidfd, signal.SIGKILL)

    def wait(self) -> int | None:
        """Its wait status, once it has ended; None if that is not known.

        Raises:
            ContainerError: it could not step into the container.
        """
        if self._status is None:
            os.close(self._pidfd)
            with contextlib.suppress(ChildProcessError):
                return os.waitpid(self.pid, 0)[1]
            return None
        found: dict[str, Any] = {}
        while not {"status", "error"} & found.keys() and (piece := os.read(self._status, 4096)):
            self._text += piece
            *lines, self._text = self._text.split(b"\n")
            for line in lines:
                found |= json.loads(line)
        os.close(self._status)
        os.close(self._pidfd)
        if "error" in found:
            raise ContainerError(found["error"], operation="enter")
        return found.get("status")


def fork_into(
    function: Callable[[], NoReturn],
    *,
    doors: Sequence[int],
    entry: dict[str, Any],
    namespaces_of: int | None,
    reaper: bool,
    announce: Callable[[], None],
) -> Forked:
    """Fork a child that steps into a container and calls *function*.

    Args:
        doors: descriptors to join by.
        entry: what it takes on, see `_program`.
        namespaces_of: the pid of a process that is in the container's namespaces; None if it has none of its own.
        reaper: somebody has to stand above it.
        announce: called in the process above.
    """
    between = reaper or namespaces_of is not None
    _syscalls.load()  # here, once, and not in every child
    status_reader, status = os.pipe()
    try:
        pid = fork()
    except OSError as error:
        os.close(status_reader)
        os.close(status)
        raise no_fork(error) from error
    if pid:
        os.close(status)
        if between:
            return Forked(pid, status_reader)
        return _entered(Forked(pid, None), status_reader)
    try:
        os.close(status_reader)
        if between:
            announce()
            if namespaces_of is not None:
                _follow(namespaces_of)
            become_reaper(status)  # returns in the process itself
        _enter(doors, entry)
    except BaseException as error:
        tell(
            status, error=(str(error) if isinstance(error, CgroupError) else f"{type(error).__name__}: {error}")[:3000]
        )
        os._exit(NOT_ENTERED)
    os.close(status)
    function()


def _entered(forked: Forked, status: int) -> Forked:
    """Until it has closed its end of the pipe it is on its way in."""
    with io.open(status, "rb") as f:
        told = f.read()
    if told:
        forked.wait()
        raise ContainerError(json.loads(told)["error"], operation="enter")
    return forked


def _enter(doors: Sequence[int], entry: dict[str, Any]) -> None:
    for fd in doors:
        join(fd)
    _entry.inside = bool(doors)
    take_on(entry)


def _follow(pid: int) -> None:
    """Step into the namespaces that the children of *pid* are in, all that are not our own."""
    here = os.getcwd()
    with contextlib.ExitStack() as stack, step("can't follow into the namespaces", "setns", f"/proc/{pid}/ns"):
        root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY)
        stack.callback(os.close, root)
        fds = {}
        for kind, flag in _KINDS.items():
            with contextlib.suppress(FileNotFoundError):  # a kernel without that kind
                if os.stat(f"/proc/{pid}/ns/{kind}").st_ino != os.stat(f"/proc/self/ns/{kind}").st_ino:
                    fds[flag] = os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY)
                    stack.callback(os.close, fds[flag])
        outside = _join_outer_network(fds)
        for flag, fd in fds.items():
            if flag != outside:
                _syscalls.setns(fd, flag)
        if _syscalls.CLONE_NEWNS in fds:
            os.chdir(root)
            os.chroot(".")
            with contextlib.suppress(OSError):  # it is not there inside
                os.chdir(here)
    if _syscalls.CLONE_NEWUSER in fds and os.getuid() != 0:
        _syscalls.clear_capabilities()


def _join_outer_network(fds: dict[int, int]) -> int | None:
    """A network that containers share is not of one's own user namespace: it is to be joined before that."""
    if (net := fds.get(_syscalls.CLONE_NEWNET)) is None:
        return None
    try:
        _syscalls.setns(net, _syscalls.CLONE_NEWNET)
    except PermissionError:  # it is, and the right to it comes with that
        return None
    return _syscalls.CLONE_NEWNET
