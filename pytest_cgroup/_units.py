"""Sizes, cores, CPU lists, seconds, and the other values a field can hold: read, checked, and put in normal form.

Sizes are powers of 1024 and nothing else.

Every parser raises ``ValueError`` with the plain reason; the caller adds the field, the value and the place. NaN,
infinity, negative numbers and booleans are refused everywhere. Digits are ASCII and few, so no text is slow to read.
"""

from __future__ import annotations

import math
import posixpath
import re
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from os import PathLike
from typing import Any, Final, TypeVar

from .exceptions import shown

Limit = int | str
"""A number, or a word: ``"max"`` or a share such as ``"50%"`` for sizes, ``"unlimited"`` for rlimits."""

PAGE_BYTES: Final = 4096
DEADLINE_SECONDS: Final = 2_000_000  # 23 days: poll(2) counts milliseconds in an int
LARGEST_PID: Final = 2**22  # PID_MAX_LIMIT; the kernel takes no more in pids.max
IO_KEYS: Final = ("rbps", "wbps", "riops", "wiops")
# getrlimit(2); RLIMIT_LOCKS has meant nothing since Linux 2.4.25
RLIMITS: Final = (
    "as", "core", "cpu", "data", "fsize", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss", "rtprio", "rttime",
    "sigpending", "stack",
)  # fmt: skip
# The container lives by these files; written from outside they would break its promises.
RESERVED_FILES: Final = tuple(f"cgroup.{x}" for x in ("procs", "threads", "kill", "freeze", "type", "subtree_control"))

_SUFFIXES: Final = "BKMGTPE"  # the place in this string is the power of 1024
_LARGEST: Final = 2**63 - 1  # what the kernel's counters hold
_LAST_CPU: Final = 65535
_CORES_OF_A_MACHINE: Final = 8192  # CONFIG_NR_CPUS goes no higher

_NUMBER: Final = r"([0-9]{1,19})(?:\.([0-9]{1,12}))?"
_SIZE: Final = re.compile(rf"{_NUMBER}\s*([KMGTPE]?)(iB|i|B)?", re.IGNORECASE | re.ASCII)  # ASCII: U+212A is a K, too
_PERCENT: Final = re.compile(rf"{_NUMBER}\s*%")
_COUNT: Final = re.compile(r"[0-9]{1,19}")
_CPUS: Final = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")
_DECIMAL: Final = r"([0-9]{1,18}(?:\.[0-9]{1,18})?)"
_PLAIN: Final = re.compile(rf"{_DECIMAL}(?:[eE]([+-]?[0-9]{{1,3}}))?")
_DURATION: Final = re.compile(
    # one blank at most between two parts: a run of optional runs of blanks is slow to refuse
    rf"(?:{_DECIMAL} ?h)? ?(?:{_DECIMAL} ?m)? ?(?:{_DECIMAL} ?s)? ?(?:{_DECIMAL} ?ms)? ?(?:{_DECIMAL} ?us)?"
)
_IN_A_SECOND: Final = (1 / 3600, 1 / 60, 1, 1_000, 1_000_000)  # h, m, s, ms, us; division keeps 500 ms exact
_FLAGS: Final = dict.fromkeys(("true", "yes", "on", "1"), True) | dict.fromkeys(("false", "no", "off", "0"), False)


def parse_flag(value: object) -> bool:
    """A boolean, or one of the words true, yes, on, 1, false, no, off, 0."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip().lower() in _FLAGS:
        return _FLAGS[value.strip().lower()]
    raise ValueError("is neither true nor false")


def parse_count(value: object, low: int = 0, high: int = _LARGEST) -> int:
    """A whole number between ``low`` and ``high``, both included: an int, or its digits."""
    if isinstance(value, str):
        text = value.strip()
        if re.fullmatch(r"-[0-9]+", text):
            raise ValueError("is negative")
        if not _COUNT.fullmatch(text):
            raise ValueError("is not a whole number")
        number = int(text)
    elif isinstance(value, int) and not isinstance(value, bool):
        number = int(value)
    else:
        raise ValueError("is not a whole number")
    if number < 0:
        raise ValueError("is negative")
    if number < low:
        raise ValueError(f"is less than {low}")
    if number > high:
        raise ValueError(f"is more than {high}")
    return number


def parse_size(value: object) -> int | str:
    """Bytes, or ``"max"``, or a share of the host such as ``"50%"`` (normalised; see :func:`percent_of`).

    Takes an int, ``"4096"``, ``"256M"``, ``"256MiB"``, ``"1.5G"``, in either case. A broken byte is dropped. ``"MB"``
    is refused: to some it is 1000² and to others 1024², and a limit that is 5 % off is hard to find.
    """
    if not isinstance(value, str):
        return parse_count(value)
    text: str = value.strip()
    if text.lower() == "max":
        return "max"
    if text.startswith("-"):
        raise ValueError("is negative" if _SIZE.fullmatch(text[1:]) or _PERCENT.fullmatch(text[1:]) else "is no size")
    if match := _PERCENT.fullmatch(text):
        return _percent(match[1], match[2] or "")
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError("is no size")
    whole, broken, suffix, tail = match[1], match[2] or "", match[3].upper(), (match[4] or "").lower()
    if suffix and tail == "b":
        raise ValueError(
            f"{suffix}B can mean powers of 1000; sizes here are powers of 1024: write {suffix} or {suffix}iB"
        )
    if not suffix and tail.startswith("i"):
        raise ValueError("is no size")
    if broken and not suffix:
        raise ValueError("is not a whole number of bytes")
    size = (int(whole + broken) << 10 * _SUFFIXES.index(suffix or "B")) // int("1" + "0" * len(broken))
    if size > _LARGEST:
        raise ValueError(f"is more than the kernel can count ({_LARGEST} bytes)")
    return size


def _percent(whole: str, broken: str) -> str:
    broken = broken.rstrip("0")
    text = f"{int(whole)}.{broken}" if broken else f"{int(whole)}"
    if not 0 < float(text) <= 100:
        raise ValueError("is not a share between 0% and 100%")
    return f"{text}%"


def percent_of(share: str, total: int) -> int:
    """``percent_of("50%", 4096)`` is 2048: bytes, rounded down. ``share`` is as :func:`parse_size` gives it."""
    whole, _, broken = share.removesuffix("%").partition(".")
    return total * int(whole + broken) // int("100" + "0" * len(broken))


def format_size(size: int | None) -> str:
    """``"1.5G"``, ``"256M"``, ``"17B"``: at most one decimal, so as wide as a table can bear. ``"-"`` for ``None``.

    :func:`parse_size` reads it back, to within the rounding.
    """
    if size is None:
        return "-"
    number, power = float(size), 0
    # 1023.96 would be printed as 1024.0: what rounds up to the next unit belongs to it.
    while round(number, 1) >= 1024 and power < len(_SUFFIXES) - 1:
        number /= 1024
        power += 1
    return f"{number:.1f}".removesuffix(".0") + _SUFFIXES[power]


def parse_cores(value: object) -> float:
    """Cores of CPU time in each second of wall time: ``0.5``, ``"50%"`` (half a core), ``2``, ``"200%"``."""
    if isinstance(value, str) and value.strip().endswith("%"):
        cores = _number(value.strip()[:-1].rstrip(), "is no number of cores") / 100
    else:
        cores = _number(value, "is no number of cores")
    if cores > _CORES_OF_A_MACHINE:
        raise ValueError(f"is more than {_CORES_OF_A_MACHINE} cores")
    return cores


def parse_cpuset(value: object) -> str:
    """A list of CPUs in the kernel's own form, sorted and merged: ``"3,0-1"`` gives ``"0-1,3"``; see cpuset(7).

    Takes the text, one CPU as an int, or a list, tuple or set of ints.
    """
    if isinstance(value, list | tuple | set | frozenset):
        spans = [(cpu, cpu) for cpu in (parse_count(element, 0, _LAST_CPU) for element in value)]
    elif isinstance(value, str):
        spans = [_span(part.strip()) for part in value.strip().split(",")]
    else:
        cpu = parse_count(value, 0, _LAST_CPU)
        spans = [(cpu, cpu)]
    if not spans:
        raise ValueError("names no CPU")
    merged: list[tuple[int, int]] = []
    for first, last in sorted(spans):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], last))
        else:
            merged.append((first, last))
    return ",".join(f"{first}" if first == last else f"{first}-{last}" for first, last in merged)


def _span(text: str) -> tuple[int, int]:
    match = _CPUS.fullmatch(text)
    if match is None:
        raise ValueError("names no CPU" if not text else "is no list of CPUs")
    first, last = int(match[1]), int(match[2] or match[1])
    if first > last:
        raise ValueError(f"the range {text} runs backwards")
    if last > _LAST_CPU:
        raise ValueError(f"is more than CPU {_LAST_CPU}")
    return first, last


def parse_seconds(value: object) -> float:
    """Seconds: ``30``, ``1.5``, ``"500ms"``, ``"2m"``, ``"1h 30m"``, and what :func:`format_seconds` prints."""
    if isinstance(value, str):
        text = value.strip()
        match = _DURATION.fullmatch(text)
        if text and match is not None:
            return math.fsum(float(part) / of for part, of in zip(match.groups(), _IN_A_SECOND, strict=True) if part)
    return _number(value, "is no number of seconds")


def _number(value: object, reason: str) -> float:
    """A finite number that is not negative, from an int, a float, or the text of one."""
    if isinstance(value, str):
        text = value.strip()
        if text.startswith("-") and _PLAIN.fullmatch(text[1:]):
            raise ValueError("is negative")
        if not _PLAIN.fullmatch(text):
            raise ValueError(reason)
        number = float(text)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            raise ValueError("is too large") from None
    else:
        raise ValueError(reason)
    if math.isnan(number):
        raise ValueError("is not a number")
    if number < 0:
        raise ValueError("is negative")
    if math.isinf(number):
        raise ValueError("is not finite")
    return number


def format_seconds(seconds: float | None) -> str:
    """``"0.4 ms"``, ``"12 ms"``, ``"1.20 s"``, ``"2 m 03 s"``, ``"1 h 02 m"``; ``"-"`` for ``None``, NaN, infinity."""
    if seconds is None or not math.isfinite(seconds):
        return "-"
    # The bounds lie where rounding goes on to the next unit, so that no line says "1000 ms" or "60.00 s".
    if seconds < 0.00995:
        return f"{seconds * 1000:.1f} ms".replace(".0 ", " ")
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.995:
        return f"{seconds:.2f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} m {rest:02} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02} m"


# The values of single fields. Each parser takes its own normal form, too, so that JSON can be read back.


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
    compiled = re.compile(pattern, re.ASCII)

    def parse(value: object) -> str:
        if isinstance(value, str) and compiled.fullmatch(value):
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
    return _account_name(_text(value))


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
    text = _text(value.__fspath__() if isinstance(value, PathLike) else value)
    if not text.startswith("/"):
        raise ValueError("is not an absolute path")
    return posixpath.normpath("/" + text.lstrip("/"))  # POSIX keeps two leading slashes, mount(2) does not


def _text(value: object) -> str:
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
    if not _text(value).strip():
        raise ValueError("is empty")
    return _text(value)


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
