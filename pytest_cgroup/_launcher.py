"""The other side of `Container.popen`: a small process of ours that forks what runs in containers, and execs it.

Theory of operation. ``subprocess`` forks a process that is a child of ours, and nothing of Python's may run in it
before its exec: other threads of ours may hold locks. So who steps into cgroups and namespaces in Python has to be
forked by somebody else, a launcher: a process with one thread, started once, that listens at a socket. What it forks
shall be *our* child all the same, so that waitpid(2) and everything else of a real Popen work: clone(2) with
CLONE_PARENT makes it the launcher's sibling. It joins the container's cgroup in every hierarchy, does what Popen was
asked for in the order that ``_posixsubprocess`` does it, and execs; what fails is told through Popen's own pipe, in its
own words, so that Python's own errors come of it.

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
import dataclasses
import errno
import marshal
import os
import select
import signal
import socket
import struct
import sys
from typing import Any, NoReturn

from . import _syscalls
from ._kernel_files import join
from ._trace import trace

if sys.platform == "linux":  # the package imports elsewhere, too
    import fcntl
    import resource

_HEADER = struct.Struct("=II")
_INT = struct.Struct("=i")
_MOST_FDS = 250  # SCM_MAX_FD is 253
#: the next program is PID 1 of a new pid namespace, and it is to mount the /proc of that
_pid_1_is_to_come = False
#: what a descriptor is for, where it is not the number that it gets in the program
DOOR, ERRORS, TOLD, CWD = -1, -2, -3, -4


# the wire, for both sides


def send(sock: socket.socket, message: dict[str, Any], fds: list[int] | tuple[int, ...] = ()) -> None:
    """One message, and descriptors with it."""
    data = marshal.dumps(message)
    sock.sendall(_HEADER.pack(len(data), len(fds)))
    for first in range(0, len(fds), _MOST_FDS):
        socket.send_fds(sock, [b"+"], list(fds[first : first + _MOST_FDS]))
    sock.sendall(data)


def receive(sock: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """One message; None at the end."""
    header = _read(sock, _HEADER.size)
    if header is None:
        return None
    size, count = _HEADER.unpack(header)
    fds: list[int] = []
    while len(fds) < count:
        # socket.recv_fds forgets its flags, and what is not closed on exec would keep Popen waiting for the exec.
        more, control, _, _ = sock.recvmsg(1, socket.CMSG_SPACE(_MOST_FDS * _INT.size), socket.MSG_CMSG_CLOEXEC)
        if not more:
            return None
        for _level, _kind, data in control:
            fds += [fd for (fd,) in _INT.iter_unpack(data[: len(data) // _INT.size * _INT.size])]
    text = _read(sock, size)
    return None if text is None else (marshal.loads(text), fds)


def _read(sock: socket.socket, size: int) -> bytes | None:
    data = bytearray()
    while len(data) < size:
        if not (piece := sock.recv(size - len(data))):
            return None
        data += piece
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
    told: dict[int, int] = {}
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
                _tell_ended(told)
                continue
            if (asked := receive(sock)) is None:
                if own:
                    _end_all()
                os._exit(0)
            message, fds = asked
            try:
                answer = _answer(message, fds, sock, told if own else None)
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
    message: dict[str, Any], fds: list[int], sock: socket.socket, told: dict[int, int] | None
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
    global _pid_1_is_to_come
    pid = os.fork() if told is not None else _syscalls.clone_sibling()
    if pid == 0:
        _become(message, fds, own=told is not None)
    _pid_1_is_to_come = False
    trace("fork: %s: pid %d", message["argv"], pid)
    if told is not None:
        told[pid] = os.dup(fds[message["targets"].index(TOLD)])
    return {"pid": pid}


def _import_what_is_needed(message: dict[str, Any]) -> None:
    """Here, once, and not in every process that is forked, which may see other files."""
    if "namespaces" in message or message.get("entry"):
        from . import _identity, _namespaces, _process  # noqa: F401
    if "forward" in message:
        from . import _forwarder  # noqa: F401


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


def _tell_ended(told: dict[int, int]) -> None:
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            if (fd := told.pop(pid, None)) is not None:
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
        send(sock, {"error": _text(error)})
        os._exit(0)
    send(sock, {"init": init})
    _serve(sock, own=message["own"])


def _enter(message: dict[str, Any]) -> int | None:
    """Step into all the namespaces that are asked for; the pid of the init, where there is one."""
    from ._namespaces import Namespaces, enter_user_namespace, join_network, set_up, unshare_pid

    global _pid_1_is_to_come
    shares_user_ns = message["network_of"] is not None and join_network(message["network_of"])
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
            os.write(writer, _text(error).encode())
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


# the program


def _become(message: dict[str, Any], fds: list[int], *, own: bool) -> NoReturn:
    """In the forked process: join, arrange everything as ``_posixsubprocess`` does, and execute. No way back."""
    errors = -1
    try:
        targets: list[int] = message["targets"]
        floor = max(10, *targets) + 1
        copies = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, floor) for fd in fds]
        moved = list(zip(targets, copies, strict=True))
        errors = next(fd for target, fd in moved if target == ERRORS)
        doors = [fd for target, fd in moved if target == DOOR]
        try:
            for fd in doors:
                join(fd)
            for limit, pair in message["rlimits"].items():  # ours as they are now
                if resource.getrlimit(limit) != pair:
                    resource.setrlimit(limit, pair)
            if _pid_1_is_to_come:
                from ._namespaces import mount_proc  # it is imported already

                mount_proc()
            if own:
                _syscalls.set_pdeathsig(signal.SIGKILL)  # its launcher holds the tree, and shall not end before it
            take_on(message.get("entry") or {})
            if own:
                _syscalls.set_pdeathsig(signal.SIGKILL)  # a change of credentials has cleared it
        except BaseException as error:
            os.write(errors, b"SubprocessError:0:" + NOT_ENTERED.encode() + _text(error).encode())
            os._exit(255)
        step = b"noexec"  # the words that `subprocess` tells a failed exec by from what comes before it
        try:
            _place(moved)
            step = message["chdir"]
            os.chdir(next((fd for target, fd in moved if target == CWD), message["cwd"]))
            step = b"noexec"
            _arrange(message)
            step = b""
            _execute(message)
        except OSError as error:
            os.write(errors, b"OSError:%x:%s" % (error.errno or errno.EIO, step))
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.write(errors, b"SubprocessError:0:" + _text(error).encode())
    finally:
        os._exit(255)


#: begins the message of an error that is ours and not the program's
NOT_ENTERED = "pytest-cgroup: "


def take_on(entry: dict[str, Any]) -> None:
    """What the container's spec asks of each process."""
    if not entry:
        return
    from ._identity import drop_privileges
    from ._process import set_rlimits

    if "affinity" in entry:
        os.sched_setaffinity(0, entry["affinity"])
    if entry.get("cgroup_ns"):
        _syscalls.unshare(_syscalls.CLONE_NEWCGROUP)
    set_rlimits(entry.get("rlimits", {}))
    if entry.get("user") is not None or entry.get("group") is not None or entry.get("no_new_privs"):
        drop_privileges(entry.get("user"), entry.get("group"), bool(entry.get("no_new_privs")))


def _place(moved: list[tuple[int, int]]) -> None:
    """Each descriptor to the number that the program knows it by."""
    for number in (0, 1, 2):
        if all(target != number for target, _ in moved):
            with contextlib.suppress(OSError):
                os.close(number)
    for target, fd in moved:
        if target >= 0:
            os.dup2(fd, target, inheritable=True)


def _arrange(message: dict[str, Any]) -> None:
    if message["umask"] >= 0:
        os.umask(message["umask"])
    for number in message["ignored"]:
        signal.signal(number, signal.SIG_IGN)
    if message["setsid"]:
        os.setsid()
    if message["pgid"] >= 0:
        os.setpgid(0, message["pgid"])
    if message["gids"] is not None:
        os.setgroups(message["gids"])
    if message["gid"] is not None:
        os.setregid(message["gid"], message["gid"])
    if message["uid"] is not None:
        os.setreuid(message["uid"], message["uid"])
    signal.pthread_sigmask(signal.SIG_SETMASK, message["mask"])


def _execute(message: dict[str, Any]) -> NoReturn:
    """The first that can be executed; of the errors the first that is not merely "not there", as execvp(3) has it."""
    env = dict(entry.split(b"=", 1) for entry in message["env"])
    first: OSError | None = None
    last: OSError | None = None
    for executable in message["executables"]:
        try:
            os.execve(executable, message["argv"], env)
        except OSError as error:
            last = error
            if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                first = first or error
    raise first or last or FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))


def _text(error: BaseException) -> str:
    from .exceptions import CgroupError

    return (str(error) if isinstance(error, CgroupError) else f"{type(error).__name__}: {error}")[:3000]
