"""``python -m pytest_cgroup top``: what runs contained on this host now, as the kernel counts it.

It reads, and leaves no trace: sessions are known by the names of their cgroups, whoever they belong to. In the process
backend there is no cgroup; what was executed in a contained test bears a mark, and is one row for each run.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import re
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

from ._cgroup import PREFIX, Cgroup
from ._cgroup_usage import cpu_seconds
from ._host import nothing_at_all
from ._isolated import json, os, signal, time
from ._kernel_files import read_file
from ._kernel_text import cgroup_mounts
from ._ownership import LEAF, SHARED, base_of, is_session, is_slice, owner_of, pointed_to
from ._process import comm, has_ended, stat_fields
from ._units import format_size, parse_count
from ._values import parse_grace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_T = TypeVar("_T")
_DELAY_SECONDS = 1.0
_CLEAR = "\x1b[H\x1b[2J"
_MEMORY = ("memory.current", "memory.usage_in_bytes")


@dataclass(frozen=True, slots=True)
class Row:
    """One container at one moment.

    Attributes:
        name: its directory's, or what stands for it.
        owner: the pid of the process that made it.
        tasks: how many processes live in it.
        memory_bytes: in use; None if the kernel does not count it.
        cpu_seconds: used so far by all that lived in it; by the living, where it is no cgroup.
        age_seconds: of its oldest living process; None where none lives.
    """

    name: str
    owner: int
    tasks: int
    memory_bytes: int | None
    cpu_seconds: float | None
    age_seconds: float | None


def look(*, everybody: bool) -> list[Row]:
    """What runs contained now: this user's, or *everybody*'s; the oldest first, what is empty last."""
    found: dict[tuple[str, str], _Place] = {}
    for mount in cgroup_mounts(read_file("/proc/self/mountinfo")):
        for session, path in _containers(mount.mount_point, everybody=everybody):
            place = found.setdefault((session, _shown(path)), _Place())
            path = pointed_to(path) or path
            if mount.version == 2:
                place.unified = path
            else:
                place.controllers.update(dict.fromkeys(mount.controllers, path))
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    rows = [row for (session, name), place in found.items() if (row := _row(session, name, place.cgroup(), now))]
    rows += _without_cgroup(now, everybody=everybody)
    return sorted(rows, key=lambda row: (row.age_seconds is None, -(row.age_seconds or 0.0), row.owner, row.name))


class _Place:
    def __init__(self) -> None:
        self.unified: str | None = None
        self.controllers: dict[str, str] = {}

    def cgroup(self) -> Cgroup:
        return Cgroup(self.unified, self.controllers)


def _containers(top: str, *, everybody: bool) -> Iterator[tuple[str, str]]:
    """The containers below *top*, each after the name of the session that it stands in; nested ones, too."""
    todo = [top]
    for directory in todo:
        session = os.path.basename(os.path.dirname(directory) if is_slice(directory) else directory)
        with contextlib.suppress(OSError), os.scandir(directory) as entries:
            for entry in entries:
                if not entry.is_dir(follow_symlinks=False):
                    continue
                todo.append(entry.path)
                if not is_session(session) or is_session(entry.name) or entry.name in (LEAF, SHARED):
                    continue
                if everybody or entry.stat().st_uid == os.geteuid():
                    yield session, entry.path


def _shown(path: str) -> str:
    """The name of a container; in a slice after the slice's; the path of its own, if it has one."""
    above, name = os.path.split(path)
    if (placed := pointed_to(path)) is not None:
        return os.path.relpath(placed, base_of(above))
    return f"{os.path.basename(above)}/{name}" if is_slice(above) else name


def _row(session: str, name: str, cgroup: Cgroup, now: float) -> Row | None:
    """None if it is gone meanwhile."""
    try:
        pids = cgroup.pids()
        memory = next((text for file in _MEMORY if (text := cgroup.read(file)) is not None), None)
        return Row(
            name=name,
            owner=int(session.removeprefix(PREFIX).split("-")[0]),
            tasks=len(pids),
            memory_bytes=None if memory is None else int(memory),
            cpu_seconds=cpu_seconds(cgroup),
            age_seconds=_age(pids, now),
        )
    except OSError:
        return None


def _age(pids: Iterable[int], now: float) -> float | None:
    ticks = os.sysconf("SC_CLK_TCK")
    starts = [int(fields[19]) / ticks for pid in pids if (fields := stat_fields(pid))]
    return max(0.0, now - min(starts)) if starts else None


def _without_cgroup(now: float, *, everybody: bool) -> list[Row]:
    members: dict[int, list[int]] = {}
    for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
        with contextlib.suppress(OSError):
            if (everybody or os.stat(f"/proc/{pid}").st_uid == os.geteuid()) and (owner := owner_of(pid)) is not None:
                members.setdefault(owner.process.pid, []).append(pid)
    ticks, page = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
    rows = []
    for made_by, pids in members.items():
        living = [fields for pid in pids if (fields := stat_fields(pid)) and not has_ended(fields)]
        if living:
            rows.append(
                Row(
                    name="(no cgroup)",
                    owner=made_by,
                    tasks=len(living),
                    memory_bytes=sum(int(fields[21]) for fields in living) * page,
                    cpu_seconds=sum(int(used) for fields in living for used in fields[11:13]) / ticks,
                    age_seconds=_age(pids, now),
                )
            )
    return rows


# showing it


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--all", action="store_true", help="other users' containers, too")
    parser.add_argument("--json", action="store_true", help="print a JSON object for each table")
    parser.add_argument("--once", dest="times", action="store_const", const=1, help="print one table, and end")
    times = _checked(functools.partial(parse_count, low=1))
    parser.add_argument("-n", dest="times", type=times, metavar="N", help="print N tables, and end")
    parser.add_argument(
        "-d",
        dest="delay",
        type=_checked(parse_grace),
        default=_DELAY_SECONDS,
        metavar="SECONDS",
        help="between two tables (default %(default)g)",
    )


def _checked(parse: Callable[[str], _T]) -> Callable[[str], _T]:
    """*parse* as argparse takes it, which says nothing of what a ValueError says."""

    def checked(text: str) -> _T:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text!r} {error}") from None

    return checked


class Watcher(Protocol):
    """Where the tables go."""

    def isatty(self) -> bool:
        """Whether a person looks at it, and it can be cleared."""

    def write(self, text: str, /) -> object:
        """Show *text*."""

    def flush(self) -> object:
        """Now."""


def run(options: argparse.Namespace) -> tuple[int, str]:
    """The exit status, and what is still to be printed."""
    if (nothing := nothing_at_all()) is not None:
        return 1, f"nothing can be contained: {nothing.reason}"
    times = options.times if options.times is not None else None if sys.stdout.isatty() else 1
    try:
        return 0, show(sys.stdout, options, times, lambda: look(everybody=options.all))
    except KeyboardInterrupt:
        return 0, ""


def show(out: Watcher, options: argparse.Namespace, times: int | None, rows: Callable[[], list[Row]]) -> str:
    """Write all tables but the last to *out*, and return that; None *times* is until Ctrl-C."""
    clear = _CLEAR if out.isatty() and not options.json else ""
    before: dict[tuple[int, str], float] = {}
    at, count = 0.0, 0
    while True:
        count += 1
        taken, now = rows(), time.monotonic()
        shares = {
            (row.owner, row.name): max(0.0, (row.cpu_seconds - before[row.owner, row.name]) / (now - at) * 100)
            for row in taken
            if row.cpu_seconds is not None and (row.owner, row.name) in before and now > at
        }
        text = to_json(taken, shares) if options.json else table(taken, shares)
        if times is not None and count >= times:
            return clear + text
        out.write(f"{clear}{text}\n" + ("" if clear or options.json else "\n"))
        out.flush()
        before = {(row.owner, row.name): row.cpu_seconds for row in taken if row.cpu_seconds is not None}
        at = now
        _sleep(options.delay)


def _sleep(seconds: float) -> None:
    """As `time.sleep`, which sleeps over a Ctrl-C that comes in the moment before."""
    ctrl_c = {signal.SIGINT} if signal.getsignal(signal.SIGINT) is signal.default_int_handler else set()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ctrl_c)
    try:
        if signal.sigtimedwait(ctrl_c, seconds) is not None:
            raise KeyboardInterrupt
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def to_json(rows: list[Row], shares: dict[tuple[int, str], float]) -> str:
    """The object that `--json` prints, on one line."""
    containers = [
        {
            "name": row.name,
            "owner": row.owner,
            "tasks": row.tasks,
            "memory_bytes": row.memory_bytes,
            "cpu_percent": shares.get((row.owner, row.name)),
            "cpu_seconds": row.cpu_seconds,
            "age_seconds": row.age_seconds,
        }
        for row in rows
    ]
    return json.dumps({"schema": 1, "containers": containers})


def table(rows: list[Row], shares: dict[tuple[int, str], float]) -> str:
    """The rows for a person; *shares* are percents of one core, by owner and name."""
    lines = [("CONTAINER", "OF", "TASKS", "MEMORY", "CPU%", "CPU s", "AGE")]
    for row in rows:
        share = shares.get((row.owner, row.name))
        lines.append(
            (
                row.name,
                f"{re.sub(r'[^ -~]', '?', comm(row.owner))}[{row.owner}]",
                str(row.tasks),
                format_size(row.memory_bytes),
                "-" if share is None else f"{share:.1f}",
                "-" if row.cpu_seconds is None else f"{row.cpu_seconds:.2f}",
                _duration(row.age_seconds),
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            word.ljust(width) if place < 2 else word.rjust(width)
            for place, (word, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _duration(seconds: float | None) -> str:
    """``"7 s"``, ``"3:20"``, ``"1:02:03"``."""
    if seconds is None:
        return "-"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02}:{rest:02}"
    return f"{minutes}:{rest:02}" if minutes else f"{rest} s"
