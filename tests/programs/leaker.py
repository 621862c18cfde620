"""Leave a process behind and end: ``leaker.py KIND FD``. The pids left behind are written to FD once all is in place.

Each ends by itself after two minutes, so that a test that is broken leaves nothing for ever.
"""

import ctypes
import os
import signal
import socket
import sys
import threading
import time

PTRACE_TRACEME = 0
SECONDS = 120


def stay() -> None:
    signal.alarm(SECONDS)
    while True:
        signal.pause()


def child(*prepare: object) -> int:
    """A child that stays, once each of *prepare* was called in it."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        for function in prepare:
            function()  # type: ignore[operator]
        os.write(writer, b"!")
        os.close(writer)
        stay()
    os.close(writer)
    os.read(reader, 1)
    return pid


def ignore() -> None:
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)


def background() -> list[int]:
    return [child()]


def setsid() -> list[int]:
    return [child(os.setsid)]


def sigterm() -> list[int]:
    return [child(ignore)]


def double_fork() -> list[int]:
    reader, writer = os.pipe()
    middle = os.fork()
    if middle == 0:
        os.setsid()
        os.write(writer, str(child()).encode())
        os._exit(0)
    os.waitpid(middle, 0)
    return [int(os.read(reader, 100))]


def stopped() -> list[int]:
    pid = child()
    os.kill(pid, signal.SIGSTOP)
    os.waitpid(pid, os.WUNTRACED)
    return [pid]


def traced() -> list[int]:
    """The tracer, and the one it traces, which stands still before the signal that it sent itself."""

    def trace() -> None:
        tracee = os.fork()
        if tracee == 0:
            signal.alarm(SECONDS)
            ctypes.CDLL(None, use_errno=True).ptrace(PTRACE_TRACEME, 0, 0, 0)
            os.kill(os.getpid(), signal.SIGUSR1)
            stay()
        os.waitpid(tracee, 0)  # it has stopped
        os.write(writer, str(tracee).encode())

    reader, writer = os.pipe()
    tracer = child(ignore, trace)
    return [tracer, int(os.read(reader, 100))]


def listening() -> list[int]:
    """One that listens on a TCP port, which comes last in the answer."""
    server = socket.create_server(("127.0.0.1", 0))
    return [child(), server.getsockname()[1]]


def leaderless() -> list[int]:
    """One whose first thread, the thread group's leader, ended by pthread_exit(3), and another goes on."""

    def go_on() -> None:
        with open(f"/proc/{os.getpid()}/stat") as stat:
            while stat.read().rpartition(")")[2].split()[0] != "Z":
                time.sleep(0.001)
                stat.seek(0)
        os.write(writer, b"!")
        time.sleep(SECONDS)

    def end_the_first() -> None:
        os.setsid()
        signal.alarm(SECONDS)
        threading.Thread(target=go_on).start()
        ctypes.CDLL(None).pthread_exit(None)

    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        end_the_first()
    os.read(reader, 1)
    return [pid]


def leaderless_server() -> list[int]:
    """The same, with a socket that listens; the inode of that comes last in the answer."""
    server = socket.create_server(("127.0.0.1", 0))
    return [*leaderless(), os.fstat(server.fileno()).st_ino]


def zombie() -> list[int]:
    """A process that stays, and has never waited for its child; the child's pid comes last."""

    def neglect() -> None:
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        os.write(writer, str(pid).encode())

    reader, writer = os.pipe()
    return [child(neglect), int(os.read(reader, 100))]


if __name__ == "__main__":
    pids = globals()[sys.argv[1]]()
    os.write(int(sys.argv[2]), " ".join(map(str, pids)).encode() + b"\n")
