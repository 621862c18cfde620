"""The cases of the library: a container is made, used and removed in this very process, beside `subprocess` alone."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable

from .measure import print_table, ratio, verdict

Action = Callable[[], object]

_TRUE = ["true"]
#: processes that do nothing, so many, below a limit that they read back themselves
_SLEEPERS = """
import os, signal, sys
for _ in range(int(sys.argv[1])):
    if os.fork() == 0:
        signal.alarm(100)  # should nobody kill it
        while True:
            signal.pause()
print("there", flush=True)
while True:
    signal.pause()
"""
_GB = 1 << 30


def library(_rounds: int, tests: int | None) -> None:
    """A container of the library: made, used for one short command, measured and removed; against `subprocess`."""
    from pytest_cgroup import Container, NotOffered

    def contained(**asked: object) -> Action:
        def action() -> None:
            with Container(**asked) as container:  # type: ignore[arg-type]
                container.run(_TRUE)

        return action

    count = max(50, tests or 100)
    plain = ("subprocess.run", lambda: subprocess.run(_TRUE, check=True), None)
    ones: list[tuple[str, Action, float | None]] = [
        plain,
        ("a shell that joins", _shell_that_joins, None),
        ("Container().run", contained(), 2.0),
        ("memory=, pids=", contained(memory="64M", pids=20), None),
        ("pid_ns=True", contained(pid_ns=True), 3.0),
        ("by the process table", contained(backend="process"), None),
    ]
    with Container() as living:
        ones.append(("run in one that lives", lambda: living.run(_TRUE), None))
        _compare(f"`true`, {count} times", ones, count)
        held = bytearray(_GB)
        held[::4096] = b"x" * len(held[::4096])
        held_ones = [plain, ("Container().run", contained(), 2.0)]
        _compare(f"`true` while the parent holds 1 GB, {count} times", held_ones, count)
        del held
    try:
        _compare(f"Nothing in it, {count} times", [("made, measured, removed", _bare, None)], count)
        _compare_kills()
    except NotOffered as why:
        print(f"\nnot checked: {why}")
    _many()


def _bare() -> None:
    from pytest_cgroup import Container

    with Container():
        pass


def _shell_that_joins() -> None:
    """What a person would write: directories of one's own, a shell that steps into each, and exec."""
    from pytest_cgroup import _station

    session = _station.station().backend("auto")[0].placement.session
    if session is None:
        subprocess.run(["sh", "-c", "exec true"], check=True)
        return
    directories = session.child("peer", frozenset(("memory", "pids", "blkio"))).directories  # as ours
    for directory in directories:
        os.mkdir(directory)
    steps = " && ".join(f"echo 0 > {directory}/cgroup.procs" for directory in directories)
    subprocess.run(["sh", "-c", f"{steps} && exec true"], check=True)
    for directory in directories:
        os.rmdir(directory)


def _offered(ones: list[tuple[str, Action, float | None]]) -> list[tuple[str, Action, float | None]]:
    """Those that this host has the means for; of the others it is said."""
    from pytest_cgroup import NotOffered

    found = []
    for name, action, limit in ones:
        try:
            action()
        except NotOffered as why:
            print(f"\n{name}: not checked: {why}")
        else:
            found.append((name, action, limit))
    return found


def _compare(title: str, ones: list[tuple[str, Action, float | None]], count: int) -> None:
    """The contenders take turns, one action each."""
    ones = _offered(ones)
    seconds: list[list[float]] = [[] for _ in ones]
    for turn in range(count + 3):
        for step in range(len(ones)):
            place = (turn + step) % len(ones)
            start = time.perf_counter()
            ones[place][1]()
            if turn >= 3:  # those before fill caches
                seconds[place].append(time.perf_counter() - start)
    rows = []
    for (name, _, limit), own in zip(ones, seconds, strict=True):
        median, low, high = ratio(own, seconds[0])
        rows.append(
            [
                name,
                f"{statistics.median(own) * 1000:.2f} ms",
                f"{median:.2f}",
                f"{low:.2f}-{high:.2f}",
                verdict(median, limit),
            ]
        )
    print_table(title, ["", "median", "ratio", "quartiles", "limit"], rows)


def _compare_kills(count: int = 400, rounds: int = 20) -> None:
    """Of that many processes: until nothing lives, by `Container.kill` and by the file alone."""
    from pytest_cgroup import Container

    bare: list[float] = []
    ours: list[float] = []
    for turn in range(2 * rounds):
        with Container(pids=count + 2) as container:
            argv = [sys.executable, "-Ic", _SLEEPERS, str(count)]
            program = container.popen(argv, stdout=subprocess.PIPE)
            assert program.stdout is not None
            if container.limits["pids"] != str(count + 2) or program.stdout.readline() != b"there\n":
                raise RuntimeError(f"{count} processes could not be started below their limit")
            path = container._life.tree.cgroup.unified  # type: ignore[union-attr]
            start = time.perf_counter()
            if turn % 2:
                container.kill()
                ours.append(time.perf_counter() - start)
            elif path is not None:
                with open(f"{path}/cgroup.kill", "w", encoding="ascii") as f:
                    f.write("1")
                container.wait_empty(10)
                bare.append(time.perf_counter() - start)
            program.stdout.close()
    if not bare:
        print("\nnot checked: there is no cgroup.kill here to compare with")
        return
    median, low, high = ratio(ours, bare)
    rows = [
        ["cgroup.kill", f"{statistics.median(bare) * 1000:.1f} ms", "1.00", "", ""],
        [
            "Container.kill",
            f"{statistics.median(ours) * 1000:.1f} ms",
            f"{median:.2f}",
            f"{low:.2f}-{high:.2f}",
            verdict(median, 1.2),
        ],
    ]
    print_table(f"{count} processes killed, {rounds} times", ["", "median", "ratio", "quartiles", "limit"], rows)


def _many(commands: int = 200, threads: int = 20) -> None:
    """Short commands at once: does one fail, is a descriptor left?"""
    from pytest_cgroup import Container, _station

    failed: list[BaseException] = []

    def work() -> None:
        for _ in range(commands // threads):
            try:
                with Container() as container:
                    container.run(_TRUE, check=True)
            except BaseException as error:  # every kind counts
                failed.append(error)

    _station.close()
    before = len(os.listdir("/proc/self/fd"))
    workers = [threading.Thread(target=work) for _ in range(threads)]
    start = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    seconds = time.perf_counter() - start
    _station.close()
    left = len(os.listdir("/proc/self/fd")) - before
    ended = f"{len(failed)} failed, {left} descriptors left"
    print(f"\n{commands} containers from {threads} threads: {seconds:.2f} s, {ended}")
    for error in failed[:3]:
        print(f"  {error!r}")
