"""The way into a container: the processes on it, and what the first one does before anything else."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, NamedTuple

from . import _syscalls
from ._backends import namespaces_asked
from ._isolated import os, signal
from ._namespaces import Namespaces, drop_privileges, enter_user_namespace, rejoin_pid, set_up, unshare_pid
from ._process import fork, set_rlimits
from ._reaper import become_reaper, keep_namespaces, refuse
from .exceptions import ContainerError

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._backends import Backend
    from ._host import Host
    from ._spec import Spec


#: as often the way back to this process's own pid namespace is tried again
_MOST_REFUSALS = 5
#: whether this process is the first one of a container
inside = False


class Shape(NamedTuple):
    """Which processes stand above a container's first one: what must be known before it is forked, and no more."""

    reaper: bool
    #: the reaper is PID 1 of a namespace of its own
    pid_ns: bool
    #: without privilege: in a user namespace
    user_ns: bool

    @classmethod
    def of(cls, spec: Spec, backend: Backend, host: Host) -> Shape:
        """What *spec* takes on this host."""
        return cls(
            reaper=backend.needs_reaper or bool(spec.pid_ns),
            pid_ns=bool(spec.pid_ns),
            user_ns=bool(spec.user_ns) or host.needs_user_namespace(namespaces_asked(spec)),
        )


def fork_first(shape: Shape, status: int, announce: Callable[[], None]) -> int:
    """Fork what *shape* says; 0 in the first process, elsewhere the direct child's pid.

    Args:
        shape: the processes between.
        status: descriptor that these tell on what becomes of the first process.
        announce: called in the direct child, where it stands above the container.

    Raises:
        OSError: the host has no process to give.
    """
    if not shape.reaper:
        return fork()
    if not shape.pid_ns or shape.user_ns:
        pid = fork()
    else:
        unshare_pid()  # for the children to come of this thread alone, until it is undone
        pid = -1
        try:
            pid = fork()
        finally:
            if pid:
                _rejoin(pid)
    if pid:
        return pid
    try:
        announce()
        return keep_namespaces(status) if shape.pid_ns and shape.user_ns else become_reaper(status)
    except BaseException as error:
        refuse(status, error)


def _rejoin(child: int) -> None:
    """Where there is no way back, what was forked is the last of this process's children: and it is to go, too."""
    for _ in range(_MOST_REFUSALS):
        with contextlib.suppress(ContainerError):
            return rejoin_pid()
    try:
        rejoin_pid()
    except ContainerError:
        if child > 0:
            os.kill(child, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(child, 0)
        raise


def enter(spec: Spec, shape: Shape, join: Callable[[], None], *, keep: tuple[str, ...], status: int) -> None:
    """In the first process, before anything else: all of it, or exit. Fails closed.

    Args:
        spec: what is asked of the container.
        shape: how this process was forked.
        join: steps into the container's tree.
        keep: paths that stay visible where a private /tmp would hide them.
        status: descriptor to tell on what went wrong; closed.
    """
    global inside
    inside = True
    try:
        join()
        if shape.user_ns and not shape.pid_ns:
            enter_user_namespace(uid=os.getuid(), gid=os.getgid())
        namespaces = Namespaces.from_spec(spec, keep=keep)
        if namespaces.any:
            set_up(namespaces)
        set_rlimits(dict(spec.rlimits))
        if spec.user is not None or spec.group is not None or spec.no_new_privs:
            drop_privileges(spec.user, spec.group, bool(spec.no_new_privs))
            if shape.reaper:
                _syscalls.set_pdeathsig(signal.SIGKILL)  # a change of credentials has cleared it
        if shape.user_ns and not spec.user_ns and os.getuid() != 0:
            _syscalls.clear_capabilities()  # nobody asked for those of the user namespace, and no execve keeps them
    except BaseException as error:
        refuse(status, error)
    os.close(status)
