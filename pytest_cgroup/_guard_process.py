"""The guard itself: a program that waits for pytest's end. See `_guard`, which starts it, for how and why.

It is executed by its path, without site-packages, and at first nothing is imported but what is named here. What the
cleaning takes follows when the session has lasted a second: so a short one has none of that cost, and a long one's end
is quick. Descriptors: 0 the pipe from pytest, 1 a pidfd of pytest, 2 pytest's own stderr, 3 and on
pidfds of who else must live. ``argv[1]`` is a JSON object: what to clean up; ``argv[2]`` how many the others are.
"""

from __future__ import annotations

import os
import select
import sys

PIPE, OWNER, STDERR, OTHERS = 0, 1, 2, 3
#: how long after pytest's death somebody may still be on the way into a container, in seconds
PATIENCE_SECONDS = 1.0
#: how long the sessions of workers, in their controller's, may take to be ended by their own guards
INNER_SECONDS = 10.0
#: a session that is older gets its guard ready, in milliseconds
_SHORT_SESSION = 1000
DONE = b"done"
#: in bytes; no line that is told is as long
_LONGEST = 100
#: before the identity of what was forked in place
FORK = b"fork"


def main(orders: str, others: int) -> None:
    """Wait; then end the session, and tell."""
    _ask_to_be_spared()
    poll = select.poll()
    for fd in (PIPE, OWNER, *range(OTHERS, OTHERS + others)):
        poll.register(fd, select.POLLIN)
    told: set[bytes] = set()
    rest = b""
    wait: int | None = _SHORT_SESSION
    while True:
        ready = {fd for fd, _ in poll.poll(wait)}
        if not ready:
            wait = None
            get_ready()
        if PIPE in ready:
            text = os.read(PIPE, 65536)
            if not text:  # pytest closed it, by accident: its death is seen all the same
                poll.unregister(PIPE)
            *lines, rest = (rest + text).split(b"\n")
            rest = rest[:_LONGEST]
            told.update(lines)
            if DONE in told:
                return
            if len(told) > 64:
                told = {line for line in told if _is_of_the_living(line)}
        elif ready:  # and the pipe is drained
            break
    clean_up(orders, others, told, rest)


def _is_of_the_living(line: bytes) -> bool:
    return os.path.exists(b"/proc/" + line.removeprefix(FORK + b" ").partition(b" ")[0])


def _ask_to_be_spared() -> None:
    """The OOM killer takes others first, where we may ask for that (proc_pid_oom_score_adj(5))."""
    for score in ("-1000", "0"):
        try:
            with open("/proc/self/oom_score_adj", "w", encoding="ascii") as f:
                f.write(score)
            return
        except OSError:
            continue


def get_ready() -> None:
    """Import what the cleaning takes: our modules, and not what the package itself imports."""
    if "pytest_cgroup" not in sys.modules:
        package = type(sys)("pytest_cgroup")
        package.__path__ = [os.path.dirname(os.path.abspath(__file__))]
        sys.modules["pytest_cgroup"] = package
    import json  # noqa: F401

    import pytest_cgroup._recover  # noqa: F401


def clean_up(orders: str, others: int, told: set[bytes], rest: bytes) -> None:
    """Pytest is dead, or its controller is, and then it ends, too: nobody reads its results any more.

    Its workers have guards of their own, which know what is to be spared, and come first; but those of limited workers
    are killed with them.
    """
    get_ready()
    import contextlib
    import json
    import time

    from pytest_cgroup._cgroup import Cgroup
    from pytest_cgroup._orphans import Cleaned, below, end_processes, end_reapers, in_place
    from pytest_cgroup._ownership import Owner
    from pytest_cgroup._process import ProcessId, send_signal
    from pytest_cgroup._recover import NO_RECOVERY, end_session, end_workers, set_free, trees_of
    from pytest_cgroup.exceptions import CgroupError

    with contextlib.suppress(OSError):
        send_signal(OWNER, 9)
    select.select([OWNER], [], [], PATIENCE_SECONDS)
    asked = json.loads(orders)
    pid, start_time, *namespaces = asked["owner"]
    owner = Owner(ProcessId(pid, start_time), tuple(namespaces))
    session = Cgroup(asked["unified"], asked["controllers"]) if asked["cgroup"] else None
    globs = asked["in_place"]
    cleaned = Cleaned()

    def outlives(pid: int) -> bool:
        from pytest_cgroup._exempt import outlives_pytest

        return outlives_pytest(pid, globs)

    os.set_blocking(PIPE, False)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        roots = [ProcessId(*map(int, line.split())) for line in told if _is_identity(line)]
        forks = [ProcessId(*map(int, line.split()[1:])) for line in told if _is_fork(line)]
        # what was there before pytest is none of its: whoever told that lies
        roots, forks = ([one for one in ones if one.start_time >= start_time] for ones in (roots, forks))
        cleaned.left.clear()
        try:
            if session is not None:
                if globs is not None:
                    set_free(trees_of(session), outlives)
                end_session(trees_of(session), tuple(asked["enabled"]), cleaned, others=False)
            if roots or asked["cookie"]:
                end_processes(lambda: below(roots, owner), cleaned)  # noqa: B023 (it is called at once)
                end_reapers(roots)
            if globs is not None:
                end_processes(lambda: in_place(forks, owner, outlives), cleaned)  # noqa: B023
        except (OSError, CgroupError) as error:  # for want of memory, say: it is tried again, until there is no time
            cleaned.left["/proc"] = str(error)
            if time.monotonic() < deadline:
                time.sleep(0.001)
                continue
        # Whoever pytest had forked holds the pipe, until it is killed: it may just be on the way into a container.
        if not select.select([PIPE], [], [], 0.02)[0]:
            text = b""
        elif not (text := os.read(PIPE, 65536)):
            break
        *lines, rest = (rest + text).split(b"\n")
        told.update(lines)
        if time.monotonic() > deadline:
            break
    who = f"{asked['name']}[{pid}]"
    if cleaned.killed:
        _tell(f"{who} was killed, and left behind, now killed: {cleaned}")
    if session is not None and not others:
        try:
            beside = None if os.environ.get(NO_RECOVERY) else PATIENCE_SECONDS
            workers = end_workers(session, tuple(asked["enabled"]), INNER_SECONDS, beside)
        except (OSError, CgroupError) as error:
            cleaned.left["the sessions of workers"] = str(error)
        else:
            if workers.killed:
                _tell(f"{who} was killed; its workers, or dead runs beside it, left behind, now killed: {workers}")
            for tree in trees_of(session):
                cleaned.left.pop(tree.path, None)  # it was tried again
            cleaned.left.update(workers.left)
    for path, why in cleaned.left.items():
        _tell(f"{who} was killed, and can't be cleaned up after: {path}: {why}")


def _is_identity(line: bytes) -> bool:
    """The pipe is open in contained tests as well: anything may come."""
    return len(line) <= _LONGEST and [word.isdigit() for word in line.split()] == [True, True]


def _is_fork(line: bytes) -> bool:
    first, _, rest = line.partition(b" ")
    return first == FORK and _is_identity(rest)


def _tell(what: str) -> None:
    import contextlib

    with contextlib.suppress(OSError):  # nobody reads
        os.write(STDERR, f"\npytest-cgroup: {what}\n".encode(errors="replace"))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
    os._exit(0)
