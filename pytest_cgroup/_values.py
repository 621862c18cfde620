"""The values of single fields, each read by a parser of its own: limits with their bounds, paths, names, and dicts.

As in `_units` a parser raises ``ValueError`` with the plain reason. Each takes its own normal form, too, so that JSON
can be read back.
"""

from __future__ import annotations

import posixpath
import re
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from os import PathLike
from typing import Any, Final, TypeVar

from ._units import Limit, parse_cores, parse_count, parse_seconds, parse_size
from .exceptions import shown

PAGE_BYTES: Final = 4096
DEADLINE_SECONDS: Final = 2_000_000  # 23 days: poll(2) counts milliseconds in an int
LARGEST_PID: Final = 2**22  # PID_MAX_LIMIT; the kernel takes no more in pids.max
IO_KEYS: Final = ("rbps", "wbps", "riops", "wiops")
# getrlimit(2); RLIMIT_LOCKS has meant nothing since Linux 2.4.25
RLIMITS: Final = (
    "as", "core", "cpu", "data", "fsize", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss", "rtprio", "rttime",
    "sigpending", "stack",
)  # fmt: skip
#: begins the name of the backend that an outside program is part of
EXEC: Final = "exec:"
#: what containers can be made by
BACKENDS: Final = ("auto", "cgroup", "process", f"{EXEC}PROGRAM")
#: what --process-leaks-also can ask for
BELONGINGS: Final = ("zombies", "threads", "sockets", "shared_memory")
# The container lives by these files; written from outside they would break its promises.
RESERVED_FILES: Final = tuple(f"cgroup.{x}" for x in ("procs", "threads", "kill", "freeze", "type", "subtree_control"))


def is_backend(name: object) -> bool:
    """Whether a backend is called that, or can be."""
    if isinstance(name, str) and name.startswith(EXEC):
        return bool(name.removeprefix(EXEC).strip())
    return name in BACKENDS


def size_from(low: int) -> Callable[[object], Limit]:
    """A parser as `parse_size`, of sizes from ``low`` bytes on."""

    def parse(value: object) -> Limit:
        size = parse_size(value)
        if isinstance(size, int) and size < low:
            raise ValueError(f"is below the kernel's minimum of {low} bytes (a page)")
        return size

    return parse


def count_from(low: int, high: int) -> Callable[[object], int]:
    """A parser as `parse_count`, between ``low`` and ``high``."""
    return lambda value: parse_count(value, low, high)


def choice_of(*words: str) -> Callable[[object], str]:
    """A parser that takes one of ``words`` and nothing else."""

    def parse(value: object) -> str:
        if isinstance(value, str) and value in words:
            return value
        raise ValueError("is none of its words")

    return parse


def name_like(pattern: str, reason: str) -> Callable[[object], str]:
    """A parser of text that the whole ``pattern`` matches, in ASCII; refuses the rest with ``reason``."""

    def parse(value: object) -> str:
        if isinstance(value, str) and re.fullmatch(pattern, value, re.ASCII):
            return value
        raise ValueError(reason)

    return parse


def parse_quota(value: object) -> float:
    """Cores as in `parse_cores`, as many as cpu.max takes."""
    cores = parse_cores(value)
    if cores < 0.01:
        raise ValueError("is below the kernel's minimum of 0.01 (cpu.max takes no quota under 1000 usec)")
    return cores


def parse_deadline(value: object) -> float:
    """Seconds as in `parse_seconds`, more than none and as many as can be waited for."""
    seconds = parse_seconds(value)
    if seconds == 0:
        raise ValueError("is zero")
    if seconds > DEADLINE_SECONDS:
        raise ValueError(f"is more than {DEADLINE_SECONDS} seconds")
    return seconds


def parse_grace(value: object) -> float:
    """Seconds as in `parse_deadline`, or none."""
    seconds = parse_seconds(value)
    return seconds if seconds == 0 else parse_deadline(seconds)


_account_name = name_like(r"[^\s:/\0-][^\s:/\0]{0,254}", "is neither a name nor an id")
_control_name = name_like(r"[a-z0-9_]+(\.[A-Za-z0-9_-]+)+", "is no name of a cgroup file")


def parse_account(value: object) -> Limit:
    """The name of a user or group, or its id. Whether it exists is not asked here."""
    if isinstance(value, int) or (isinstance(value, str) and re.fullmatch(r"-?[0-9]+", value)):
        return parse_count(value, 0, 2**32 - 2)  # 2**32 - 1 means "leave as it is" to setuid(2)
    return _account_name(parse_text(value))


def parse_paths(value: object) -> tuple[str, ...]:
    """One absolute path, or a list of them, without ``..`` and double slashes. Whether they exist is not asked here."""
    return tuple(map(_path, value if isinstance(value, list | tuple) else (value,)))


def parse_hidden(value: object) -> tuple[str, ...]:
    """Paths as in `parse_paths`, but not the root."""
    paths = parse_paths(value)
    if "/" in paths:
        raise ValueError("the root can't be hidden")
    return paths


def _path(value: object) -> str:
    text = parse_text(value.__fspath__() if isinstance(value, PathLike) else value)
    if not text.startswith("/"):
        raise ValueError("is not an absolute path")
    return posixpath.normpath("/" + text.lstrip("/"))  # POSIX keeps two leading slashes, mount(2) does not


def parse_text(value: object) -> str:
    """Text that a system call takes: no NUL, and no half of a surrogate pair that stands for nothing."""
    if not isinstance(value, str):
        raise ValueError("is no text")
    if "\0" in value:
        raise ValueError("holds a NUL")
    try:
        value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise ValueError("can't be encoded") from None
    return value


_T = TypeVar("_T")


def _pairs(value: object) -> Iterator[tuple[str, Any]]:
    """The items of a mapping, or of our own normal form, a tuple of pairs."""
    items = list(value.items()) if isinstance(value, Mapping) else value
    if not isinstance(items, list | tuple):
        raise ValueError("is not a dict")
    for item in items:
        if not (isinstance(item, list | tuple) and len(item) == 2 and isinstance(item[0], str)):
            raise ValueError("is not a dict with names for keys")
        yield item[0], item[1]


def _once(pairs: Iterable[tuple[str, _T]]) -> tuple[tuple[str, _T], ...]:
    """The pairs as a tuple; no key twice, also not in two spellings."""
    seen: dict[str, _T] = {}
    for key, value in pairs:
        if key in seen:
            raise ValueError(f"{key} is given twice")
        seen[key] = value
    return tuple(seen.items())


def _inside(parse: Callable[[object], _T], value: object, name: str) -> _T:
    """Parse one value of a dict, and let the reason name its key."""
    try:
        return parse(value)
    except ValueError as error:
        raise ValueError(f"{name}={shown(value)} {error}") from None


def parse_io(value: object) -> tuple[tuple[str, tuple[tuple[str, Limit], ...]], ...]:
    """``{"8:0": {"rbps": "10M"}}`` gives ``(("8:0", (("rbps", 10485760),)),)``: bytes and operations a second."""
    return _once((_device(device), _inside(_io_limits, limits, shown(device))) for device, limits in _pairs(value))


def _device(text: str) -> str:
    if re.fullmatch(r"[0-9]{1,4}:[0-9]{1,7}", text) or re.fullmatch(r"/dev/[^\s\0]+", text):
        return text
    raise ValueError(f"{shown(text)} is neither a block device under /dev nor major:minor")


def _io_limits(value: object) -> tuple[tuple[str, Limit], ...]:
    return _once((key, _io_limit(key, limit)) for key, limit in _pairs(value))


def _io_limit(key: str, value: object) -> Limit:
    if key not in IO_KEYS:
        raise ValueError(f"has {shown(key)}, which is none of {', '.join(IO_KEYS)}")
    if isinstance(value, str) and value == "max":
        return "max"
    limit = _inside(parse_size if key.endswith("bps") else parse_count, value, key)
    if isinstance(limit, str) and limit.endswith("%"):
        raise ValueError(f"{key}={limit} is a share, and a device has no whole")
    if limit == 0:
        raise ValueError(f"{key}={shown(value)} is zero")
    return limit


def parse_controls(value: object) -> tuple[tuple[str, str], ...]:
    """``{"memory.low": "64M"}``: names of cgroup files, but not those that a container lives by, and raw text."""
    controls = _once(
        (_inside(_control_name, file, "the key"), _inside(_control, text, shown(file))) for file, text in _pairs(value)
    )
    if reserved := [file for file, _ in controls if file in RESERVED_FILES]:
        raise ValueError(f"{reserved[0]} is the container's own")
    return controls


def _control(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not parse_text(value).strip():
        raise ValueError("is empty")
    return parse_text(value)


def parse_rlimits(value: object) -> tuple[tuple[str, tuple[Limit, Limit]], ...]:
    """``{"nofile": 256}`` gives ``(("nofile", (256, 256)),)``: soft and hard; ``"unlimited"`` stays a word."""
    return _once((_rlimit_name(name), _inside(_rlimit, limits, shown(name))) for name, limits in _pairs(value))


def _rlimit_name(text: str) -> str:
    name = text.lower().removeprefix("rlimit_")
    if name not in RLIMITS:
        raise ValueError(f"{shown(text)} is no resource limit")
    return name


def _rlimit(value: object) -> tuple[Limit, Limit]:
    soft, hard = value if isinstance(value, list | tuple) and len(value) == 2 else (value, value)
    soft, hard = _rlimit_number(soft), _rlimit_number(hard)
    if isinstance(hard, int) and (isinstance(soft, str) or soft > hard):
        raise ValueError("has a soft limit above the hard one")
    return soft, hard


def _rlimit_number(value: object) -> Limit:
    return "unlimited" if isinstance(value, str) and value == "unlimited" else parse_count(value)


def parse_expect(value: object) -> str:
    """How a test may be expected to end: ``"oom"``, ``"signal:SEGV"`` (also ``"signal:11"``), ``"exit:3"``, …"""
    if isinstance(value, str):
        what, _, which = value.partition(":")
        if value in ("oom", "timeout", "cpu-time", "pids"):
            return value
        if what == "exit":
            return f"exit:{parse_count(which, 0, 255)}"
        if what == "signal":
            return f"signal:{_signal(which)}"
    raise ValueError("is no way to end")


def _signal(text: str) -> str:
    """``"SEGV"`` from ``"SEGV"``, ``"SIGSEGV"`` or ``"11"``; a real-time signal without a name stays a number."""
    if re.fullmatch(r"[0-9]+", text):
        number = parse_count(text, 1, 64)
        names = [member.name for member in signal.Signals if member == number]
        return names[0].removeprefix("SIG") if names else str(number)
    name = f"SIG{text.upper().removeprefix('SIG')}"
    if name not in signal.Signals.__members__:
        raise ValueError(f"{shown(text)} is no signal")
    return signal.Signals[name].name.removeprefix("SIG")  # an alias such as CLD becomes CHLD
