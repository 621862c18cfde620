"""The process backend, where no cgroup is writable: a subreaper above the container, and the process table.

The reaper is the container's root: whatever loses its parent in it becomes the reaper's child (prctl(2),
PR_SET_CHILD_SUBREAPER), so nothing leaves the tree by a double fork or setsid(2). What this rung can't do is said by
name: memory is watched, not limited; RLIMIT_NPROC counts all processes of a user and is no limit on a container's.

With an outside program that can (`containerizer`), it is the backend ``exec``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from itertools import filterfalse
from typing import TYPE_CHECKING, NoReturn

from .._isolated import io, os, signal, time
from .._outcome import Usage
from .._ownership import COOKIE, this_process
from .._placement import Missing
from .._process import (
    ProcessId,
    descendants,
    has_ended,
    kill_members,
    living_thread,
    signal_members,
    stat_fields,
    wait_gone,
)
from ..exceptions import NotOffered
from . import missing_identity, missing_namespaces

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from .._host import Host
    from .._spec import Spec
    from .containerizer import Containerizer, Held

_UNENFORCEABLE = ("swap", "memory_high", "pids", "cpu", "cpu_weight", "io", "io_weight", "controls")
_NEEDS = {
    "slice": "needs a cgroup, which its containers share",
    "pids": "needs a cgroup, and RLIMIT_NPROC is no substitute (it counts all processes of the user)",
}
_WATCH_SECONDS = 0.05
#: so often memory is summed up, and so long after each sum, before it is believed to be above the limit
_MOST_SUMS, _SUM_SECONDS = 5, 0.002


class ProcessBackend:
    """Containers as trees of processes below a reaper.

    Args:
        host: what this machine offers.
        by_name: it was asked for.
        outside: the program that gives what this does not.
    """

    needs_reaper = True

    def __init__(self, host: Host, *, by_name: bool = False, outside: Containerizer | None = None) -> None:
        self.host = host
        self.name = "process" if outside is None else "exec"
        self._by_name = by_name
        self._outside = outside

    def _offers(self, field: str) -> bool:
        return self._outside is not None and field in self._outside.offers

    def describe(self) -> str:
        if self._outside is not None:
            lacking = ", ".join(filterfalse(self._offers, _UNENFORCEABLE))
            more = f" (can't enforce: {lacking})" if lacking else ""
            return f"process table, and {self._outside}{more}"
        why = re.sub(r" \(\w+ /[^)]*\)", "", self._why.reason)  # a line can't hold the path, too; the doctor does
        weaker = f"memory is watched, not limited; can't enforce: {', '.join(_UNENFORCEABLE)}"
        return f"process table, no cgroup: {why} ({weaker})"

    @property
    def _why(self) -> Missing:
        """Why there is no cgroup. Who asked for this backend wants none tried."""
        if self._outside is not None:
            return Missing("the containerizer does not take it", "use --cgroup-backend=auto, or another program")
        cgroup = None if self._by_name else self.host.capability("cgroup")
        if cgroup is None or cgroup.offered:
            return Missing("the process backend was asked for", "use --cgroup-backend=auto")
        return Missing(cgroup.reason, cgroup.remedy)

    def missing(self, spec: Spec) -> list[tuple[str, Missing]]:
        lacking = missing_namespaces(self.host, spec) + missing_identity(spec)
        why, remedy = self._why.reason, self._why.remedy
        for field in filterfalse(self._offers, (*_UNENFORCEABLE, "slice")):
            value = getattr(spec, field)
            if value is None or value == () or value == {} or (field == "swap" and value == 0):
                continue
            lacking.append((field, Missing(f"{_NEEDS.get(field, 'needs a cgroup')}: {why}", remedy)))
        if spec.memory is not None and not spec.oom_group and not self._offers("memory"):
            lacking.append(
                ("oom_group", Missing("memory is watched here, and over its limit the whole tree ends", remedy))
            )
        return lacking

    def weaker(self, spec: Spec) -> tuple[str, ...]:
        said = []
        limited = spec.memory not in (None, "max")
        if limited and not self._offers("memory"):
            said.append(f"memory: watched every {_WATCH_SECONDS * 1000:.0f} ms, not limited")
        elif limited and spec.oom_group and not self._offers("oom_group"):
            said.append("oom_group: an OOM kill may leave the rest of the container alive")
        if spec.cpuset is not None and not self._offers("cpuset"):
            said.append("cpuset: set as the affinity of the first process, which can change it")
        return tuple(said)

    def create(self, spec: Spec, name: str, *, nests: bool = False) -> ProcessTree:
        memory = spec.memory if isinstance(spec.memory, int) and not self._offers("memory") else None
        cpuset = None if self._offers("cpuset") else spec.cpuset
        return ProcessTree(memory, cpuset, None if self._outside is None else self._outside.launch(spec, name))

    def create_at(self, path: str, spec: Spec) -> NoReturn:
        what, why = f"this host can't honour path={path!r}", self._why
        raise NotOffered(f"{what}: needs a cgroup: {why.reason}", missing=("path",), remedy=why.remedy)


class ProcessTree:
    """One container as the descendants of its reaper."""

    oom_fd = None

    def __init__(self, memory: int | None, cpuset: str | None, outside: Held | None = None) -> None:
        self._outside = outside
        self.watch_interval = None if memory is None else _WATCH_SECONDS
        self._memory = memory
        self._cpuset = cpuset
        self._root = 0
        self._cookie = str(this_process())  # in the child it is another one
        self._apart: frozenset[int] = frozenset()
        self._others: set[ProcessId] = set()
        self._shares_memory = True
        # A forked test shares pytest's pages until one of the two writes them: those are not what the test uses.
        # The proportional shares of all who share them add up to what there was before the fork, and what is new.
        self._before = _memory_bytes(os.getpid(), 0) if memory else 0
        self._peak: int | None = None
        self._exceeded = False
        self._final: dict[str, float] = {}

    @property
    def limits(self) -> Mapping[str, str]:
        """What is set from outside, and what is watched from here."""
        outside = {} if self._outside is None else self._outside.limits
        return outside if self._memory is None else {**outside, "memory": str(self._memory)}

    def join(self) -> None:
        os.environ[COOKIE] = self._cookie
        if (cpus := self.affinity()) is not None:
            os.sched_setaffinity(0, cpus)

    def admitted(self) -> None:
        if self._outside is not None:
            self._outside.wait()

    def part(self) -> None:
        """There is nothing to make cheaper."""

    def started(self, root: int) -> None:
        first, self._root = not self._root, root  # whoever comes next is below that one
        if self._outside is not None and first:
            self._outside.take_in(root)

    def doors(self) -> list[int]:
        return []

    def birthplace(self) -> None:
        """There is no cgroup."""

    def affinity(self) -> set[int] | None:
        return None if self._cpuset is None else _cpus(self._cpuset)

    def held_by(self, root: int, apart: frozenset[int]) -> None:
        if self._outside is not None:
            self._outside.take_in(root, waits=False)  # it forks nothing before it is asked to
        self._root, self._apart = root, apart
        self._shares_memory, self._before = False, 0

    def held_by_another(self, root: int) -> None:
        if (identity := ProcessId.of(root)) is not None:
            self._others = {one for one in self._others if one.alive} | {identity}
        if self._outside is not None:
            self._outside.take_in(root)

    def _below(self) -> list[int]:
        """Those below whoever holds them."""
        roots = [self._root, *(one.pid for one in self._others if one.alive)]
        return list(dict.fromkeys(pid for root in roots for pid in descendants(root)))

    def ended(self, rusage: dict[str, float]) -> None:
        """What the reaper measured of everything it waited for (getrusage(2), RUSAGE_CHILDREN)."""
        self._final = rusage

    def pids(self) -> list[int]:
        """None only if there is none: who ended while the table was read may have had children, now the reaper's."""
        ended: set[int] = set()
        while True:
            found = [pid for pid in self._below() if pid not in self._apart]
            living = [pid for pid in found if (fields := stat_fields(pid)) and not has_ended(fields)]
            if living or ended.issuperset(found):
                return living
            ended.update(found)

    def signal(self, number: int) -> None:
        signal_members(self.pids, number)

    def settle(self, timeout: float) -> bool:
        deadline = time.monotonic() + timeout
        while pids := self.pids():
            if not wait_gone(pids, deadline - time.monotonic()):
                return not self.pids()
        return True

    def kill(self, timeout: float) -> bool:
        return kill_members(self.pids, timeout)

    def freeze(self) -> None:
        """Until all that there are have been told: who is not stopped yet may fork meanwhile."""
        told: set[int] = set()
        while not told.issuperset(pids := self.pids()):
            self.signal(signal.SIGSTOP)
            told.update(pids)

    def thaw(self) -> None:
        self.signal(signal.SIGCONT)

    def change(self, spec: Spec) -> None:
        if self._outside is not None:
            self._outside.update(spec)
        if spec.memory is not None and (self._outside is None or "memory" not in self._outside.offers):
            self._memory = spec.memory if isinstance(spec.memory, int) else None
            self.watch_interval = None if self._memory is None else _WATCH_SECONDS

    def out_of_memory(self) -> bool:
        return False

    def oom_bell(self) -> None:
        """It is watched, by `over_limit`."""

    def usage(self) -> Usage:
        final = self._final
        peak = self._peak or (
            None if self._memory else final.get("maxrss_bytes")
        )  # 0: it ended before it was looked at
        usage = Usage(
            cpu_user_seconds=final.get("user_seconds"),
            cpu_system_seconds=final.get("system_seconds"),
            memory_peak_bytes=None if peak is None else int(peak),
            io_read_bytes=_int(final.get("read_bytes")),
            io_write_bytes=_int(final.get("write_bytes")),
            oom_kill=int(self._exceeded) if self._memory is not None else None,
        )
        return usage if self._outside is None else dataclasses.replace(usage, **self._outside.usage())

    def cpu_seconds(self) -> float | None:
        """The living, and what they waited for (proc_pid_stat(5), fields 14 to 17), the reaper's included."""
        ticks = 0
        try:
            for pid in (self._root, *(one.pid for one in self._others), *self._below()):
                if fields := stat_fields(pid):
                    ticks += sum(map(int, fields[11:15]))
        except OSError:
            return None
        return ticks / os.sysconf("SC_CLK_TCK")

    def _used_by(self, pids: Collection[int], limit: int) -> int:
        """Bytes; above *limit* only if that is so each time, since processes come and go.

        Who ends meanwhile, or executes a program, was counted, and once more with those he shared pages with; who was
        just started by vfork(2) has his parent's.
        """
        for _ in range(_MOST_SUMS):
            used = max(0, sum(_memory_bytes(pid, self._before) for pid in pids) - self._before)
            if used <= limit:
                break
            time.sleep(_SUM_SECONDS)
        return used

    def over_limit(self) -> bool:
        if self._memory is None:
            return False
        try:
            everybody = set(self.pids())
        except OSError:  # it is asked again soon
            return self._exceeded
        if self._shares_memory:
            everybody |= {os.getpid(), self._root}
        used = self._used_by(everybody, self._memory)
        self._peak = max(self._peak or 0, used)
        self._exceeded = self._exceeded or used > self._memory
        return self._exceeded

    def oom(self) -> str | None:
        outside = self._outside is not None and self._outside.usage().get("oom_kill")
        return "oom" if self._exceeded or outside else None

    def remove(self) -> None:
        if self._outside is not None:
            self._outside.destroy()


def _memory_bytes(pid: int, inherited: int) -> int:
    """PSS of a process (proc_pid_smaps(5)); where it may not be read, how far RSS is above *inherited*; 0 if gone."""
    one = living_thread(pid)
    with contextlib.suppress(OSError), io.open(f"/proc/{one}/smaps_rollup", encoding="utf-8", errors="replace") as f:
        for line in f:
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    with contextlib.suppress(OSError), io.open(f"/proc/{one}/statm", encoding="utf-8") as f:
        return max(0, int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") - inherited)
    return 0


def _cpus(text: str) -> set[int]:
    found: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return found


def _int(value: float | None) -> int | None:
    return None if value is None else int(value)
