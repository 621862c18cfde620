"""Runs pytest again and again, each time in a fork of this process, and looks at what a run leaves behind.

The imports are done once, so that a run takes a tenth of a second. This process is the reaper of all that a run
starts: whoever outlives the run, guard and orphans, becomes its child. ``python -m tests.faults.zygote`` takes one JSON
object a line, and answers with one.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from typing import Any, NoReturn

PREFIX = "pytest-cgroup-"
#: how long what is on its way out may take; a guard may wait for a process in uninterruptible sleep for 10 s
_LEAVE_SECONDS = 15.0
#: how long a guard may take that does what it can
_GUARD_SECONDS = 3.0
#: systemd to remove a scope in
_SCOPE_SECONDS = 5.0


def serve() -> None:
    """Answer until nobody asks."""
    _load()
    from pytest_cgroup import _syscalls

    _syscalls.set_child_subreaper(True)
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)


def _load() -> None:
    """What a run imports late, imported once."""
    import importlib
    import pkgutil

    import _pytest.junitxml  # noqa: F401
    import psutil  # noqa: F401
    import pytest  # noqa: F401

    import pytest_cgroup
    import tests.faults.injector  # noqa: F401

    for module in pkgutil.walk_packages(pytest_cgroup.__path__, "pytest_cgroup."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)


def run(asked: dict[str, Any]) -> dict[str, Any]:
    """One run.

    Args:
        asked: ``arguments`` of pytest, ``cwd``, ``fault`` (see the injector; None counts the calls), ``kill``: see
            `Hunt`, ``timeout`` in seconds, ``environment``: what is added to it.

    Returns:
        ``status``, ``text`` of stdout and stderr, ``hung``, ``orphans`` and ``cgroups`` that outlived it, ``cleaned``:
            if it was killed, whether `clean` was called, before it was looked for those, and the ``calls`` that were
            told.
    """
    directory = tempfile.mkdtemp(prefix="faults-")  # no `with`: the child would leave it as well
    os.chmod(directory, 0o755)
    told, output = os.path.join(directory, "told"), os.path.join(directory, "output")
    sys.stdout.flush()
    if (pid := os.fork()) == 0:
        _be_pytest(asked, directory, told, output)
    hunt = Hunt(pid, asked.get("kill") or [])
    status, hung = hunt.follow(asked.get("timeout", 30.0))
    killed = status == -signal.SIGKILL or bool(asked.get("kill"))
    orphans = _children() if hung else _who_stays(_GUARD_SECONDS if killed else _LEAVE_SECONDS)
    cgroups = _cgroups_of(hunt.seen)
    cleaned = False
    if killed and (orphans or cgroups):  # so there was no guard, or it has failed
        cleaned = True
        _clean(output, [*cgroups])
        orphans, cgroups = _who_stays(_GUARD_SECONDS), _cgroups_of(hunt.seen)
    answer = {
        "pid": pid,
        "status": status,
        "hung": hung,
        "orphans": [_described(one) for one in orphans],
        "cgroups": cgroups,
        "cleaned": cleaned,
        "text": _text(output),
        "victims": hunt.victims,
        "calls": [json.loads(line) for line in _text(told).splitlines()],
    }
    _kill_all()
    _remove(cgroups)
    shutil.rmtree(directory)
    return answer


def _be_pytest(asked: dict[str, Any], directory: str, told: str, output: str) -> NoReturn:
    fd = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (fd, 1), (fd, 2)):
        os.dup2(source, target)
    os.closerange(3, 1000)
    os.setsid()
    os.chdir(asked["cwd"])
    os.environ.update(asked.get("environment") or {})
    import pytest

    import pytest_cgroup._guard_process
    from tests.faults.injector import install

    fault = asked.get("fault")
    wrapper = os.path.join(directory, "guard.py")
    real = pytest_cgroup._guard_process.__file__
    with open(wrapper, "w", encoding="utf-8") as f:
        f.write(_GUARD.format(path=sys.path, fault=fault, told=told, real=real))
    pytest_cgroup._guard_process.__file__ = wrapper
    if not asked.get("kill"):
        install(None if fault is None else tuple(fault), told)
    sys.exit(int(pytest.main(asked["arguments"])))


#: the guard, and before it the injector, which takes our modules from where the guard has them
_GUARD = """
import sys
sys.path[:0] = {path!r}
fault = {fault!r}
import pytest_cgroup._guard_process as guard
from tests.faults.injector import install
install(fault and tuple(fault), {told!r}, "g")
guard.main(sys.argv[1], int(sys.argv[2]))
import os
os._exit(0)
"""


class Hunt:
    """Waits for a run's end, and kills who is to be killed meanwhile.

    Args:
        pid: the run's.
        orders: who, and when: ``[["guard", 0.2], ["pytest", 0.4]]``, in seconds after the start.
    """

    def __init__(self, pid: int, orders: list[tuple[str, float]]) -> None:
        self.pid = pid
        self._orders = sorted(orders, key=lambda order: order[1])
        #: everybody who may have a session: pytest, and the workers of pytest-xdist
        self.seen = {pid}
        #: who was killed, and what he was; nobody where there was none of that kind
        self.victims: list[str] = []

    def follow(self, timeout: float) -> tuple[int | None, bool]:
        """The exit code, as subprocess has it, and whether the run hangs."""
        begun = time.monotonic()
        fd = os.pidfd_open(self.pid)
        try:
            for who, after in self._orders:
                while (left := begun + after - time.monotonic()) > 0:
                    if select.select([fd], [], [], min(left, 0.02))[0]:
                        break
                    self._look_around()
                while not self._kill(who) and not select.select([fd], [], [], 0.002)[0]:
                    continue  # until there is one
            if not select.select([fd], [], [], timeout)[0]:
                return None, True
        finally:
            os.close(fd)
        _, status = os.waitpid(self.pid, 0)
        return os.waitstatus_to_exitcode(status), False

    def _look_around(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {"pytest": [self.pid], "worker": [], "guard": [], "init": [], "child": []}
        todo = _children()
        for pid in todo:
            below = _children(pid)
            todo += below
            if (kind := _kind(pid, below)) in found and pid != self.pid:
                found[kind].append(pid)
        self.seen.update(found["worker"])
        return found

    def _kill(self, who: str) -> bool:
        candidates = self._look_around()[who]
        if candidates:
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim := random.choice(candidates), signal.SIGKILL)
                self.victims.append(f"{who} {victim}")
        return bool(candidates)


def _kind(pid: int, below: list[int]) -> str:
    was_spawned = _is_before_exec(pid)  # asked before what it executes is read, and after: it may exec meanwhile
    command = _command(pid)
    if "guard.py" in command or "_guard_process.py" in command:
        return "guard"
    if "exec(eval(" in command:
        if "exec(eval(" not in _command(_parent_and_state(pid)[0]):
            return "worker"
    elif "tests.faults.zygote" not in command:
        return "program"
    if was_spawned or _is_before_exec(pid):
        return "program"
    return "init" if any(_kind(one, []) == "child" for one in below) else "child"


def _is_before_exec(pid: int) -> bool:
    """Whether its parent waits in vfork(2) for its exec: killed now, it has never been a leak."""
    return _parent_and_state(_parent_and_state(pid)[0])[1] == "D"


def _parent_and_state(pid: int) -> tuple[int, str]:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as f:
        state, parent = f.read().rpartition(")")[2].split()[:2]
        return int(parent), state
    return 0, ""


def _children(pid: int | None = None) -> list[int]:
    found = []
    with contextlib.suppress(OSError), open(f"/proc/{pid or os.getpid()}/task/{pid or os.getpid()}/children") as f:
        found = [int(word) for word in f.read().split()]
    return found


def _reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _clean(output: str, cgroups: list[str]) -> None:
    """What a user would do then, or the next session; what it says of *cgroups*, or dies of, is added to *output*."""
    from pytest_cgroup._recover import clean

    if (pid := os.fork()) == 0:
        try:
            with open(output, "a", encoding="utf-8") as f:
                try:
                    left = clean().left
                    f.writelines(f"clean left {path}: {why}\n" for path, why in left.items() if path in cgroups)
                except BaseException:
                    traceback.print_exc(file=f)
        finally:
            os._exit(0)
    os.waitpid(pid, 0)


def _who_stays(seconds: float) -> list[int]:
    """Whoever is still there when everybody has had time to leave."""
    deadline = time.monotonic() + seconds
    while True:
        _reap()
        if not (left := _children()) or time.monotonic() > deadline:
            return left
        time.sleep(0.005)


def _kill_all() -> None:
    """Stopped first, since what is stopped can't fork."""
    while True:
        _reap()
        if not (left := _children()):
            return
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
        time.sleep(0.005)


def _command(pid: int) -> str:
    return f"{pid} {_text(f'/proc/{pid}/cmdline')[:200]!r}"


def _described(pid: int) -> str:
    """With what it does: its state, and where in the kernel it waits."""
    return f"{_command(pid)} {_parent_and_state(pid)[1]} {_text(f'/proc/{pid}/wchan')}"


def _cgroups_of(pids: set[int]) -> list[str]:
    """The cgroups of the sessions of *pids*, in every hierarchy, inner ones last.

    A scope systemd removes, when the guard has left it, which cleans up where pytest could not.
    """
    deadline = time.monotonic() + _SCOPE_SECONDS
    while (found := _found(pids)) and found[0].endswith(".scope") and time.monotonic() < deadline:
        time.sleep(0.02)
    return found


def _found(pids: set[int]) -> list[str]:
    with open("/proc/self/mountinfo", encoding="utf-8") as f:
        rows = [line.split(" - ") for line in f]
    mounts = dict.fromkeys(row[0].split()[4] for row in rows if row[1].startswith("cgroup"))
    marks = [f"{PREFIX}{pid}-" for pid in pids]
    return [
        f"{directory}/{name}"
        for mount in mounts
        for directory, names, _ in os.walk(mount)
        for name in names
        if any(mark in f"{directory}/{name}" for mark in marks)
    ]


def _remove(cgroups: list[str]) -> None:
    for path in reversed(cgroups):
        for _ in range(100):
            try:
                os.rmdir(path)
            except FileNotFoundError:
                break
            except OSError:
                _out_of(path)
                continue
            break


def _out_of(path: str) -> None:
    """Who is stuck in it is killed: it is a run's of ours."""
    with contextlib.suppress(OSError), open(f"{path}/cgroup.procs", encoding="ascii") as f:
        for word in f.read().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(word), signal.SIGKILL)
    time.sleep(0.01)


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as f:
            return f.read()
    except OSError:
        return ""


if __name__ == "__main__":
    serve()
