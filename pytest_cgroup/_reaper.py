"""The process above a contained one: PID 1 of its pid namespace, or its subreaper.

PID 1 ignores every signal it has no handler for, even its own crash: a test that ran as PID 1 and killed itself would
pass. So the reaper is PID 1 and the test is its child. The reaper adopts and reaps orphans, passes on signals that
somebody sent it, tells what it waited for, and ends with the last of its children. It stands outside the container's
cgroup, so that it is neither charged nor counted there.
"""

from __future__ import annotations

import contextlib
import sys
from typing import NoReturn

from . import _syscalls
from ._isolated import json, os, signal
from ._namespaces import enter_user_namespace, unshare_pid
from ._process import fork
from .exceptions import CgroupError, ContainerError

if sys.platform == "linux":  # the package imports elsewhere, too
    import resource

#: the exit status of a process that could not enter the container
NOT_ENTERED = 125
_SI_USER = 0  # siginfo's si_code: sent by kill(2) or killpg(2); by sigqueue(3) below, by the kernel above


def no_fork(error: OSError) -> ContainerError:
    """The host is short of processes: fork(2) says EAGAIN or ENOMEM."""
    return ContainerError(
        "no process could be forked for the container",
        operation="fork",
        errno=error.errno,
        remedy="the host, or the cgroup that pytest runs in, is short of processes or memory, or pytest of descriptors",
    )


def become_reaper(status: int) -> int:
    """In the process between: become the reaper, and fork the first process, in which this returns 0."""
    signals = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    on_child = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # where it is ignored, nothing is left to wait for
    _syscalls.set_child_subreaper(True)
    reaper = os.getpid()
    try:
        child = fork()
    except OSError as error:
        refuse(status, no_fork(error))
    if child == 0:
        _syscalls.set_pdeathsig(signal.SIGKILL)  # it shall not outlive the reaper, which holds what it starts
        if os.getppid() not in (reaper, 0):  # 0: the reaper stands outside of the pid namespace that this one is in
            os._exit(NOT_ENTERED)
        if on_child is not None:
            signal.signal(signal.SIGCHLD, on_child)
        signal.pthread_sigmask(signal.SIG_SETMASK, signals)
        return 0
    # It stays in the group of who forked it: from another one, the end of a child whose group is otherwise orphaned, as
    # CI's often is, would have the kernel hang up the whole group if anybody in it is stopped (kill_orphaned_pgrp).
    reap(child, status)


def keep_namespaces(status: int) -> int:
    """In the process between, without privilege: make the user and pid namespaces, and fork the reaper into them."""
    try:
        enter_user_namespace(uid=os.getuid(), gid=os.getgid())
        unshare_pid()
        reaper = fork()
    except OSError as error:
        refuse(status, no_fork(error))
    if reaper == 0:
        return become_reaper(status)
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    tell(status, reaper=reaper)
    with contextlib.suppress(ChildProcessError):  # it is waited for all the same
        os.waitpid(reaper, 0)
    os._exit(0)


def reap(child: int, status: int) -> NoReturn:
    """Reap until no child is left; messages on the descriptor *status*, a JSON object a line.

    ``{"status": N}`` is *child*'s wait status, ``{"rusage": …}`` comes last (getrusage(2), RUSAGE_CHILDREN).
    All signals must be blocked.
    """
    everything = signal.valid_signals()
    waiting = {child}
    while _reap_ended(waiting, status):
        info = signal.sigwaitinfo(everything)
        if info.si_signo != signal.SIGCHLD and waiting and not _has_it_too(child, info):  # else its pid is anybody's
            os.kill(child, info.si_signo)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    tell(
        status,
        rusage={
            "user_seconds": used.ru_utime,
            "system_seconds": used.ru_stime,
            "maxrss_bytes": used.ru_maxrss * 1024,
            "read_bytes": used.ru_inblock * 512,
            "write_bytes": used.ru_oublock * 512,
        },
    )
    os._exit(0)


def _has_it_too(child: int, info: signal.struct_siginfo) -> bool:
    """Whether *child* got the signal itself, too: the terminal and killpg(2) send it to all of a group.

    kill(2) of PID 1 alone looks as killpg(2) of both, but for a sender in the pid namespace: others have no pid there,
    and 0 stands for it. Who means PID 1 alone from outside uses sigqueue(3).
    """
    if info.si_code == _SI_USER and not (os.getpid() == 1 and info.si_pid):
        return os.getpgid(child) == os.getpgrp()
    return info.si_code > _SI_USER


def _reap_ended(waiting: set[int], status: int) -> bool:
    """Reap what has ended, and tell of what is in *waiting*; whether children are left."""
    while True:
        try:
            pid, wait_status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return False
        if pid == 0:
            return True
        if pid in waiting:
            waiting.remove(pid)
            tell(status, status=wait_status)


def refuse(status: int, error: BaseException) -> NoReturn:
    """In a process that can't become what it was forked for: tell why, and end."""
    what = str(error) if isinstance(error, CgroupError) else f"{type(error).__name__}: {error}"
    tell(status, error=what[:3000])
    os._exit(NOT_ENTERED)


def tell(fd: int, **message: object) -> None:
    """One JSON object on a line of its own, in one write: shorter than PIPE_BUF, so it never mixes with another's."""
    with contextlib.suppress(BrokenPipeError):  # whoever asked is gone; the guard of the session cleans up
        os.write(fd, json.dumps(message).encode() + b"\n")
