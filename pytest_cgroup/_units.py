"""Sizes, cores, CPU lists, seconds, counts and flags: read, checked, put in normal form, and printed.

Sizes are powers of 1024 and nothing else.

Every parser raises ``ValueError`` with the plain reason; the caller adds the field, the value and the place. NaN,
infinity, negative numbers and booleans are refused everywhere. Digits are ASCII and few, so no text is slow to read.
"""

from __future__ import annotations

import math
import re
from typing import Final

Limit = int | str
"""A number, or a word: ``"max"`` or a share such as ``"50%"`` for sizes, ``"unlimited"`` for rlimits."""

_SUFFIXES: Final = "BKMGTPE"  # the place in this string is the power of 1024
_LARGEST: Final = 2**63 - 1  # what the kernel's counters hold
_LAST_CPU: Final = 65535
_CORES_OF_A_MACHINE: Final = 8192  # CONFIG_NR_CPUS goes no higher

# Texts, which re compiles and keeps when they are first used: most runs of pytest use none of them.
_NUMBER: Final = r"([0-9]{1,19})(?:\.([0-9]{1,12}))?"
_SIZE: Final = rf"(?ai){_NUMBER}\s*([KMGTPE]?)(iB|i|B)?"  # ASCII: U+212A is a K, too
_PERCENT: Final = rf"{_NUMBER}\s*%"
_COUNT: Final = r"[0-9]{1,19}"
_CPUS: Final = r"([0-9]{1,5})(?:-([0-9]{1,5}))?"
_DECIMAL: Final = r"([0-9]{1,18}(?:\.[0-9]{1,20})?)"  # repr() gives a float 17 digits after three zeros
_PLAIN: Final = rf"{_DECIMAL}(?:[eE]([+-]?[0-9]{{1,3}}))?"
_DURATION: Final = (
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
        if not re.fullmatch(_COUNT, text):
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
        raise ValueError(
            "is negative" if re.fullmatch(_SIZE, text[1:]) or re.fullmatch(_PERCENT, text[1:]) else "is no size"
        )
    if match := re.fullmatch(_PERCENT, text):
        return _percent(match[1], match[2] or "")
    match = re.fullmatch(_SIZE, text)
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
    match = re.fullmatch(_CPUS, text)
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
        match = re.fullmatch(_DURATION, text)
        if text and match is not None:
            return math.fsum(float(part) / of for part, of in zip(match.groups(), _IN_A_SECOND, strict=True) if part)
    return _number(value, "is no number of seconds")


def _number(value: object, reason: str) -> float:
    """A finite number that is not negative, from an int, a float, or the text of one."""
    if isinstance(value, str):
        text = value.strip()
        if text.startswith("-") and re.fullmatch(_PLAIN, text[1:]):
            raise ValueError("is negative")
        if not re.fullmatch(_PLAIN, text):
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
