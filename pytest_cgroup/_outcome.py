"""What happened in a container: how it ended, what it used, what it left behind. Frozen, JSON both ways."""

from __future__ import annotations

import dataclasses
import functools
import shlex
import signal as _signal
import types
import typing
from collections.abc import Hashable, Iterable, Mapping
from typing import Any, Literal, TypeVar

from ._units import format_seconds, format_size
from .exceptions import shown

__all__ = ["Ended", "Leak", "Outcome", "Usage", "signal_name", "to_record"]


def _plural(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"


Ended = Literal["exit", "signal", "oom", "oom-ancestor", "timeout", "cpu-time", "error"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a container used, the whole tree of processes together.

    Seconds and bytes, as each name says. ``None`` means that the kernel does not offer the number; ``0`` was
    measured and is zero. The kernel's files are described in Documentation/admin-guide/cgroup-v2.rst.
    """

    wall_seconds: float | None = None
    cpu_user_seconds: float | None = None
    cpu_system_seconds: float | None = None
    memory_peak_bytes: int | None = None
    """The peak of everything charged, page cache included (memory.peak; v1 memory.max_usage_in_bytes)."""
    memory_anon_bytes: int | None = None
    memory_file_bytes: int | None = None
    pids_peak: int | None = None
    io_read_bytes: int | None = None
    io_write_bytes: int | None = None
    throttled_seconds: float | None = None
    cpu_pressure_seconds: float | None = None
    memory_pressure_seconds: float | None = None
    io_pressure_seconds: float | None = None
    oom_kill: int | None = None
    pids_max_hits: int | None = None
    memory_high_hits: int | None = None

    @property
    def cpu_seconds(self) -> float | None:
        """User and system time together."""
        if self.cpu_user_seconds is None and self.cpu_system_seconds is None:
            return None
        return (self.cpu_user_seconds or 0.0) + (self.cpu_system_seconds or 0.0)

    def describe(self) -> str:
        """The numbers that are known, in one line."""
        found = [f"{format_seconds(self.wall_seconds)} wall", f"{format_seconds(self.cpu_seconds)} CPU"]
        if self.memory_peak_bytes is not None:
            cache = f" ({format_size(self.memory_file_bytes)} of it page cache)" if self.memory_file_bytes else ""
            found.append(f"{format_size(self.memory_peak_bytes)} memory at the peak{cache}")
        if self.pids_peak is not None:
            found.append(f"{_plural(self.pids_peak, 'task')} at the peak")
        if self.io_read_bytes or self.io_write_bytes:
            found.append(f"{format_size(self.io_read_bytes)} read, {format_size(self.io_write_bytes)} written")
        if self.throttled_seconds:
            found.append(f"{format_seconds(self.throttled_seconds)} throttled")
        if self.oom_kill:
            found.append(_plural(self.oom_kill, "OOM kill"))
        return ", ".join(found)

    def to_json(self) -> dict[str, object]:
        """All fields by name; numbers and ``None`` only."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, object]) -> Usage:
        """The reverse of :meth:`to_json`; unknown keys are ignored, a wrong type raises ``ValueError``."""
        return _from_json(cls, data)


_AT = {"thread": "at", "shared memory segment": "made at"}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Leak:
    """One process that outlived its owner, as it was just before it was killed; or another thing that was left.

    ``kind`` is ``"process"``, ``"zombie"``, ``"thread"``, ``"socket"`` or ``"shared memory segment"``; of all but the
    first, ``name`` says which, ``pid`` who holds it, ``rss_bytes`` its size, and nothing was done to it. ``status`` is
    psutil's word ("running", "sleeping", "zombie", "stopped", …), ``parents`` the chain upwards to the ``ancestor``,
    where there is one, nearest first, ``ports`` the TCP and UDP ports it listens on, ``owner`` the test or fixture
    that started it, ``started_at`` the user's line that did (``"test_x.py:31 in test_a"``), and ``ancestor`` the
    command that was started there, where that is not the leak itself but one that it descends from.
    """

    pid: int
    argv: tuple[str, ...]
    cwd: str | None
    age_seconds: float | None
    rss_bytes: int | None
    owner: str | None
    parents: tuple[str, ...] = ()
    ports: tuple[int, ...] = ()
    status: str | None
    started_at: str | None = None
    ancestor: str | None = None
    kind: str = "process"
    name: str | None = None

    def describe(self) -> str:
        """One line that a person can act on; what the kernel did not tell is left out."""
        parts = [f"pid {self.pid}: {self._command()}" if self.kind == "process" else f"{self.kind} {self.name}"]
        if self.status == "zombie":
            parts.append("zombie: exited, but never waited for")
        elif self.status is not None:
            parts.append(self.status)
        if self.age_seconds is not None:
            parts.append(f"age {format_seconds(self.age_seconds)}")
        if self.rss_bytes is not None:
            parts.append(f"{format_size(self.rss_bytes)}{' RSS' if self.kind == 'process' else ''}")
        if self.ports:
            parts.append(f"listening on {', '.join(map(str, self.ports))}")
        if self.cwd is not None:
            parts.append(f"in {self.cwd}")
        if above := (*self.parents, *([f"`{self.ancestor}`"] if self.ancestor else ())):
            parts.append(f"child of {' < '.join(above)}")
        if self.started_at is not None:
            parts.append(f"{_AT.get(self.kind, 'started at')} {self.started_at}")
        if self.owner is not None:
            parts.append(f"{'by' if self.started_at else 'started by'} {self.owner}")
        # An argument may hold a newline or an escape sequence; the report stays one harmless line.
        return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in ", ".join(parts))

    def _command(self) -> str:
        if len(self.argv) == 1 and self.argv[0].startswith("[") and self.argv[0].endswith("]"):
            return self.argv[0]  # only the program's name is known, put into brackets as ps(1) does
        return shlex.join(self.argv) if self.argv else "(no command line)"

    def to_json(self) -> dict[str, object]:
        """All fields by name; tuples as lists."""
        return _lists(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, data: Mapping[str, object]) -> Leak:
        """The reverse of :meth:`to_json`; unknown keys are ignored, a wrong type raises ``ValueError``."""
        return _from_json(cls, data)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a container ended.

    ``ended`` is the cause, ``exit_code`` and ``signal`` what waitid(2) said of the first process. ``limits`` is what
    was in force as read back from the kernel, or watched from here, ``not_enforced`` the fields that this backend could
    not hold. ``phase`` is the test's phase at the end ("setup", "call", "teardown"), ``stack`` the last Python stack.
    """

    ended: Ended
    exit_code: int | None = None
    signal: int | None = None
    usage: Usage = Usage()
    leaks: tuple[Leak, ...] = ()
    backend: str
    not_enforced: tuple[str, ...] = ()
    limits: Mapping[str, str] = dataclasses.field(default_factory=dict)
    phase: str | None = None
    message: str | None = None
    stack: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def oom_killed(self) -> bool:
        """The kernel's OOM killer ended it, by its own limit or by an ancestor's."""
        return self.ended in ("oom", "oom-ancestor")

    @property
    def timed_out(self) -> bool:
        """It was killed at its deadline of wall time."""
        return self.ended == "timeout"

    @property
    def killed(self) -> bool:
        """It did not end by itself: a signal, the OOM killer, or a limit of time ended it."""
        return self.oom_killed or self.ended in ("signal", "timeout", "cpu-time")

    def describe(self) -> str:
        """How it ended, in plain words."""
        return _describe(self)

    def to_json(self) -> dict[str, object]:
        """A dict that ``json.dumps`` takes as it is."""
        # Not asdict(): it deep-copies, and not every Mapping can be.
        values: dict[str, object] = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        values["usage"] = self.usage.to_json()
        values["leaks"] = [leak.to_json() for leak in self.leaks]
        values["limits"] = dict(self.limits)
        return _lists(values)

    @classmethod
    def from_json(cls, data: Mapping[str, object]) -> Outcome:
        """The reverse of :meth:`to_json`; unknown keys are ignored, a wrong type raises ``ValueError``."""
        return _from_json(cls, data)


def to_record(
    nodeid: str | None, outcome: Outcome | None, verdict: str | None = None, leaks: Iterable[Leak] = ()
) -> dict[str, object]:
    """The JSON object that ``--resource-usage-json`` writes on one line for one test.

    ``verdict`` is pytest's word ("passed", "failed", …) and becomes the key ``outcome``. ``leaks`` are those that were
    found in place, beside the container's; where there was no container ``outcome`` is None.
    """
    usage = Usage() if outcome is None else outcome.usage
    return {
        "nodeid": nodeid,
        "outcome": verdict,
        "ended": outcome and outcome.ended,
        "exit_code": outcome and outcome.exit_code,
        "signal": outcome and outcome.signal,
        "wall_seconds": usage.wall_seconds,
        "cpu_user_seconds": usage.cpu_user_seconds,
        "cpu_system_seconds": usage.cpu_system_seconds,
        "memory_peak_bytes": usage.memory_peak_bytes,
        "pids_peak": usage.pids_peak,
        "io_read_bytes": usage.io_read_bytes,
        "io_write_bytes": usage.io_write_bytes,
        "oom_kill": usage.oom_kill,
        "pids_max_hits": usage.pids_max_hits,
        "leaks": [
            {
                "pid": leak.pid,
                "argv": list(leak.argv),
                "cwd": leak.cwd,
                "age_seconds": leak.age_seconds,
                "rss_bytes": leak.rss_bytes,
                "owner": leak.owner,
                "started_at": leak.started_at,
                "kind": leak.kind,
                "name": leak.name,
            }
            for leak in (*(outcome.leaks if outcome else ()), *leaks)
        ],
        "backend": outcome and outcome.backend,
        "not_enforced": list(outcome.not_enforced) if outcome else [],
    }


def signal_name(number: int) -> str:
    """``"SIGSEGV"`` for 11, ``"SIGRTMIN+2"``, or ``"signal 99"`` for a number without a name; see signal(7)."""
    try:
        return _signal.Signals(number).name
    except ValueError:
        first, last = getattr(_signal, "SIGRTMIN", 0), getattr(_signal, "SIGRTMAX", -1)
        return f"SIGRTMIN+{number - first}" if first < number < last else f"signal {number}"


def _describe(outcome: Outcome) -> str:
    usage, limits = outcome.usage, outcome.limits
    phase = "" if outcome.phase is None else f" in {outcome.phase}"

    def also(*facts: str | None) -> str:
        known = [fact for fact in facts if fact is not None]
        return f" ({', '.join(known)})" if known else ""

    def limit(name: str) -> str | None:
        value = limits.get(name)
        return None if value is None else f"{name}={format_size(int(value)) if value.isdecimal() else value}"

    peak = None if usage.memory_peak_bytes is None else f"peak {format_size(usage.memory_peak_bytes)}"
    match outcome.ended:
        case "oom":
            text = f"out of memory: killed{phase} at its own limit{also(limit('memory'), peak)}"
        case "oom-ancestor":
            above = f"its slice {limits['slice']}, a cgroup above" if "slice" in limits else "a cgroup above"
            text = f"out of memory: killed{phase}, not at its own limit: {above} or the host ran out{also(peak)}"
        case "timeout":
            wall = f" after {format_seconds(usage.wall_seconds)}" if usage.wall_seconds else ""
            text = f"timeout: killed{phase}{wall}{also(limit('timeout'))}"
        case "cpu-time":
            used = (usage.cpu_user_seconds or 0.0) + (usage.cpu_system_seconds or 0.0)
            spent = f" after {format_seconds(used)}" if used else ""
            text = f"out of CPU time: killed{phase}{spent}{also(limit('cpu_time'))}"
        case "error":
            text = f"could not be run{phase}"
        case "signal" if outcome.signal is not None:
            name = signal_name(outcome.signal)
            text = f"killed by {name}{'' if name.startswith('signal ') else f' (signal {outcome.signal})'}{phase}"
        case "signal":
            text = f"killed by a signal{phase}"
        case _:
            text = f"exited{'' if outcome.exit_code is None else f' with status {outcome.exit_code}'}{phase}"
    return text if outcome.message is None else f"{text}: {outcome.message}"


_T = TypeVar("_T")


def _lists(values: dict[str, object]) -> dict[str, object]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


@functools.cache
def _hints(cls: Hashable) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _from_json(cls: type[_T], data: object) -> _T:
    """Build a dataclass from JSON by its own annotations, so that a new field needs no second place."""
    if not isinstance(data, Mapping):
        raise ValueError(f"{cls.__name__}: an object is expected, not {type(data).__name__}")
    values: dict[str, object] = {}
    for name, hint in _hints(typing.cast("Hashable", cls)).items():
        if name in data:
            values[name] = _checked(hint, data[name], f"{cls.__name__}.{name}")
    try:
        return cls(**values)
    except TypeError as error:  # a required one is missing, and the message names it
        raise ValueError(f"{cls.__name__}: {error}") from None


def _checked(hint: Any, value: object, name: str) -> object:
    """``value`` as the annotation ``hint`` wants it, or ``ValueError``. Only the shapes that this module uses."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType or origin is typing.Union:  # always "X | None" here
        return None if value is None else _checked(args[0], value, name)
    if origin is Literal:
        if isinstance(value, str) and value in args:
            return value
        raise ValueError(f"{name}: {shown(value)} is not one of {', '.join(args)}")
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_checked(args[0], element, name) for element in value)
    if origin is Mapping and isinstance(value, Mapping):
        return {_checked(args[0], key, name): _checked(args[1], element, name) for key, element in value.items()}
    if hint in (Usage, Leak):
        return _from_json(hint, value)
    # JSON has one kind of number: 1 is a good float, but True is a number nowhere.
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if origin is None and type(value) is hint:
        return value
    wanted = getattr(origin or hint, "__name__", str(hint))
    raise ValueError(f"{name}: {wanted} is expected, not {type(value).__name__}")
