"""The other side of `Container.popen`: a small process of ours that forks what runs in containers, and execs it.

Theory of operation. ``subprocess`` forks a process that is a child of ours, and nothing of Python's may run in it
before its exec: other threads of ours may hold locks. So who steps into cgroups and namespaces in Python has to be
forked by somebody else, a launcher: a process with one thread, started once, that listens at a socket. What it forks
shall be *our* child all the same, so that waitpid(2) and everything else of a real Popen work: clone(2) with
CLONE_PARENT makes it the launcher's sibling. It is born in the container's cgroup, or joins it, in every hierarchy, and
becomes the program (`_program`). What takes one cgroup of v2 and nothing else, a newer C library starts without any
Python in between, and needs no launcher (`_popen`).

A container with namespaces has a launcher of its own, forked by the first one, that has stepped into them; with a pid
namespace its children are born there, and beside it an init, PID 1, adopts and reaps orphans; or, where no init is
wanted, the first program is PID 1. Neither launcher nor init is in the container's cgroup::

    we ─┬─ launcher
        ├─ launcher of a container with namespaces ── init
        ├─ program
        └─ program

Without a cgroup a tree can be held only by somebody above it who adopts its orphans. There a container's own launcher
is that: the programs are *its* children, and it tells how each ended (`_serve`, ``own``). So it is where no init is
wanted: a PID 1 ends only when all others of its namespace have been waited for, which who waits for it need not do.

Whoever speaks here is our own parent, over a socket that nobody else has: a message is marshalled, after its length and
the number of descriptors that come with it.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import marshal
import struct
import sys
from typing import Any, NoReturn

from . import _syscalls
from ._isolated import os, select, signal, socket
from ._program import BIRTHPLACE, TOLD, become, told
from ._trace import trace

if sys.platform == "linux":  # the package imports elsewhere, too
    import resource

_HEADER = struct.Struct("=II")
_INT = struct.Struct("=i")
_MOST_FDS = 250  # SCM_MAX_FD is 253
#: the next program is PID 1 of a new pid namespace, and it is to mount the /proc of that
_pid_1_is_to_come = False


# the wire, for both sides


def send(sock: socket.socket, message: dict[str, Any], fds: list[int] | tuple[int, ...] = ()) -> None:
    """One message, and descriptors with it: in one piece, where that is possible, so that the other side wakes once."""
    text = marshal.dumps(message)
    data = _HEADER.pack(len(text), len(fds)) + text
    sent = socket.send_fds(sock, [data], list(fds[:_MOST_FDS])) if fds else 0
    sock.sendall(data[sent:])
    for first in range(_MOST_FDS, len(fds), _MOST_FDS):
        socket.send_fds(sock, [b"+"], list(fds[first : first + _MOST_FDS]))


def receive(sock: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """One message; None at the end."""
    fds: list[int] = []
    if (header := _read(sock, _HEADER.size, fds)) is None:
        return None
    size, count = _HEADER.unpack(header)
    text = _read(sock, size, fds)
    while text is not None and len(fds) < count:
        if _read(sock, 1, fds) is None:
            return None
    return None if text is None else (marshal.loads(text), fds)


def _read(sock: socket.socket, size: int, fds: list[int]) -> bytes | None:
    """So many bytes, and into *fds* the descriptors that come with them; None at the end."""
    data = bytearray()
    while len(data) < size:
        # socket.recv_fds forgets its flags, and what is not closed on exec would keep Popen waiting for the exec.
        piece, control, _, _ = sock.recvmsg(
            size - len(data), socket.CMSG_SPACE(_MOST_FDS * _INT.size), socket.MSG_CMSG_CLOEXEC
        )
        if not piece:
            return None
        data += piece
        for _level, _kind, received in control:
            fds += [fd for (fd,) in _INT.iter_unpack(received[: len(received) // _INT.size * _INT.size])]
    return bytes(data)


# the launcher


def main() -> NoReturn:
    """The first launcher of a process; ``argv[1]`` is the descriptor of its socket."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)
    _syscalls.load()
    sock = socket.socket(fileno=int(sys.argv[1]))
    sock.set_inheritable(False)
    _serve(sock, own=False)


def _serve(sock: socket.socket, *, own: bool) -> NoReturn:
    """Do what is asked until nobody is left to ask. *own*: the programs are this process's children."""
    told_of: dict[int, int] = {}
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    ended = _ended_children() if own else None
    if ended is not None:
        poll.register(ended, select.POLLIN)
    while True:
        for fd, _ in poll.poll():
            if fd == ended:
                with contextlib.suppress(BlockingIOError):
                    os.read(fd, 4096)
                _tell_ended(told_of)
                continue
            if (asked := receive(sock)) is None:
                if own:
                    _end_all()
                os._exit(0)
            message, fds = asked
            try:
                answer = _answer(message, fds, sock, told_of if own else None)
            except OSError as error:
                answer = {"errno": error.errno or errno.EIO}
            for received in fds:
                os.close(received)
            try:
                send(sock, answer)
            except BrokenPipeError:
                os._exit(0)


def _end_all() -> None:
    """Nobody is there who asks, and nobody else holds what is below: without its end none of that would be found."""
    from ._process import SIGKILL, descendants, signal_members, wait_gone

    me = os.getpid()
    while pids := descendants(me):
        signal_members(lambda: descendants(me), signal.SIGSTOP)  # what is stopped can't fork
        signal_members(lambda: descendants(me), SIGKILL)
        wait_gone(pids, 0.1)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def _answer(
    message: dict[str, Any], fds: list[int], sock: socket.socket, told_of: dict[int, int] | None
) -> dict[str, Any]:
    if "rusage" in message:
        return _rusage()
    _import_what_is_needed(message)
    if "namespaces" in message:
        if (pid := _syscalls.clone_sibling()) == 0:
            sock.close()
            _be_a_containers(message, socket.socket(fileno=fds[0]))
        trace("fork: a launcher for namespaces %s: pid %d", message["namespaces"], pid)
        return {"pid": pid}
    if "forward" in message:
        if (pid := _syscalls.clone_sibling()) == 0:
            sock.close()
            _forward(message, fds)
        trace("fork: a forwarder of ports %s: pid %d", message["forward"], pid)
        return {"pid": pid}
    if "bridge" in message:
        return {"refused": _refused_bridge()}
    return _fork_program(message, fds, told_of)


def _fork_program(message: dict[str, Any], fds: list[int], told_of: dict[int, int] | None) -> dict[str, Any]:
    global _pid_1_is_to_come
    message["rlimits"] = {limit: pair for limit, pair in message["rlimits"].items() if _own_rlimit(limit) != pair}
    targets = message["targets"]
    pid, stillborn = _give_birth(fds[targets.index(BIRTHPLACE)]) if BIRTHPLACE in targets else (None, None)
    born_inside = pid is not None
    if pid is None:
        pid = os.fork() if told_of is not None else _syscalls.clone_sibling()
    if pid == 0:
        become(message, fds, own=told_of is not None, born_inside=born_inside, first=_pid_1_is_to_come)
    _pid_1_is_to_come = False
    trace("fork: %s: pid %d", message["argv"], pid)
    if told_of is not None:
        told_of[pid] = os.dup(fds[targets.index(TOLD)])
    return {"pid": pid, "stillborn": stillborn}


@functools.cache
def _own_rlimit(limit: int) -> tuple[int, int]:
    """A launcher's own, which stays as it was."""
    return resource.getrlimit(limit)


def _give_birth(cgroup: int) -> tuple[int | None, int | None]:
    """Fork a sibling that is in *cgroup* of v2 already, which takes no wait as joining does; else who died of it.

    Kernels from 6.14 on compare how often the cgroup of the child was killed with how often that of its parent was
    (cgroup_css_set_fork, kill_seq): where these differ it is killed before its first step. So it has to take that.
    """
    reader, writer = os.pipe()
    try:
        pid = _syscalls.clone_sibling(cgroup)
    except OSError:  # no such call, or not there: who joins is told why
        os.close(reader)
        os.close(writer)
        return None, None
    if pid == 0:
        os.write(writer, b"!")
    os.close(writer)
    lives = pid == 0 or bool(os.read(reader, 1))
    os.close(reader)
    return (pid, None) if lives else (None, pid)


def _import_what_is_needed(message: dict[str, Any]) -> None:
    """Here, once, and not in every process that is forked, which may see other files."""
    if "namespaces" in message or message.get("entry"):
        from . import _identity, _namespaces, _process  # noqa: F401
    if message.get("network") or "bridge" in message:
        from . import _veth  # noqa: F401
    if "forward" in message:
        from . import _forwarder  # noqa: F401


def _refused_bridge() -> str | None:
    """Make this launcher's network one in which each container has an address; why there is none."""
    from ._veth import make_bridge
    from .exceptions import ContainerError

    try:
        make_bridge()
    except ContainerError as error:
        return told(error)
    return None


def _forward(message: dict[str, Any], fds: list[int]) -> NoReturn:
    """In the new forwarder."""
    from ._forwarder import run

    owner, *listeners = (socket.socket(fileno=fd) for fd in fds)
    run(owner, list(zip(listeners, message["forward"], strict=True)), message["network_of"])


def _ended_children() -> int:
    """A descriptor that has something to read when a child has ended."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
    return reader


def _tell_ended(told_of: dict[int, int]) -> None:
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            if (fd := told_of.pop(pid, None)) is not None:
                with contextlib.suppress(BrokenPipeError):  # nobody waits for it
                    os.write(fd, struct.pack("=i", status))
                os.close(fd)


def _rusage() -> dict[str, Any]:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "user_seconds": used.ru_utime,
        "system_seconds": used.ru_stime,
        "maxrss_bytes": used.ru_maxrss * 1024,
        "read_bytes": used.ru_inblock * 512,
        "write_bytes": used.ru_oublock * 512,
    }


# a container's own launcher


def _be_a_containers(message: dict[str, Any], sock: socket.socket) -> NoReturn:
    """In the new launcher: step into the namespaces, say so, and serve."""
    try:
        if message["own"]:
            _syscalls.set_child_subreaper(True)
        init = _enter(message)
    except BaseException as error:
        send(sock, {"error": told(error)})
        os._exit(0)
    send(sock, {"init": init})
    _serve(sock, own=message["own"])


def _enter(message: dict[str, Any]) -> int | None:
    """Step into all the namespaces that are asked for; the pid of the init, where there is one."""
    import dataclasses

    from ._namespaces import Namespaces, enter_user_namespace, set_up, unshare_pid

    global _pid_1_is_to_come
    shares_user_ns = message["network"] is not None and _enter_network(*message["network"])
    if message["user_ns"] and not shares_user_ns:
        enter_user_namespace(uid=os.getuid(), gid=os.getgid())
    namespaces = Namespaces(**message["namespaces"])
    if not namespaces.pid:
        if namespaces.any:
            set_up(namespaces)
        return None
    unshare_pid()
    if message["init"]:
        return _fork_init(namespaces)
    set_up(dataclasses.replace(namespaces, new_proc=False))
    _pid_1_is_to_come = True
    return None


def _enter_network(pid: int, number: int | None) -> bool:
    """Step into the network of *pid*, with a device of that number there; whether a user namespace came along."""
    from ._namespaces import join_network
    from ._veth import attach

    shares_user_ns = join_network(pid)
    if number is not None:
        attach(number)
    return shares_user_ns


def _fork_init(namespaces: Any) -> int:
    """Fork the PID 1 of the new pid namespace, which sets up the others, and follow it into these."""
    from ._namespaces import follow, set_up
    from .exceptions import ContainerError

    reader, writer = os.pipe()
    if (init := os.fork()) == 0:
        _syscalls.set_pdeathsig(signal.SIGKILL)
        try:
            set_up(namespaces)
        except BaseException as error:
            os.write(writer, told(error).encode())
            os._exit(1)
        os.close(writer)
        _reap_for_ever()
    os.close(writer)
    with open(reader, "rb") as f:
        refused = f.read()
    if refused:
        os.waitpid(init, 0)
        raise ContainerError(refused.decode())
    follow(init, namespaces)
    return init


def _reap_for_ever() -> NoReturn:
    """The init: whatever it is sent from inside it ignores, and it ends with its launcher."""
    os.closerange(3, 256)
    while True:
        signal.sigwaitinfo([signal.SIGCHLD])
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
