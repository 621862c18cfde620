"""Sizes, cores, CPU lists and seconds: what is read, what is refused and why, what is printed."""

from __future__ import annotations

import pytest

from pytest_cgroup._units import (
    format_seconds,
    format_size,
    parse_cores,
    parse_count,
    parse_cpuset,
    parse_flag,
    parse_seconds,
    parse_size,
    percent_of,
)

K, M, G = 1024, 1024**2, 1024**3
NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("value", "size"),
    [
        (0, 0),
        (4096, 4096),
        (2**63 - 1, 2**63 - 1),
        ("4096", 4096),
        ("17B", 17),
        ("256M", 256 * M),
        ("256m", 256 * M),
        ("256MiB", 256 * M),
        ("256Mi", 256 * M),
        (" 256 MiB ", 256 * M),
        ("1.5G", G + G // 2),
        ("0.3K", 307),
        ("1T", 1024 * G),
        ("max", "max"),
        ("MAX", "max"),
        ("50%", "50%"),
        ("050.50 %", "50.5%"),
        ("100%", "100%"),
    ],
)
def test_size(value: object, size: object) -> None:
    assert parse_size(value) == size
    assert parse_size(parse_size(value)) == size


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("256MB", "powers of 1024: write M or MiB"),
        ("1kb", "powers of 1024: write K or KiB"),
        (-1, "negative"),
        ("-1M", "negative"),
        ("-5%", "negative"),
        ("-x", "no size"),
        ("", "no size"),
        ("M", "no size"),
        ("1.G", "no size"),
        (".5G", "no size"),
        ("1,5G", "no size"),
        ("1e9", "no size"),
        ("0x10", "no size"),
        ("4iB", "no size"),
        ("1\u212a", "no size"),  # the Kelvin sign, whose lower case is k
        ("\u0664K", "no size"),  # ARABIC-INDIC DIGIT FOUR
        ("9" * 10_000, "no size"),
        ("1.5", "whole number of bytes"),
        ("1.5B", "whole number of bytes"),
        ("16E", "more than the kernel can count"),
        (2**63, "is more than"),
        ("0%", "between 0% and 100%"),
        ("101%", "between 0% and 100%"),
        ("nan", "no size"),
        ("inf", "no size"),
        (1.5, "whole number"),
        (4096.0, "whole number"),
        (NAN, "whole number"),
        (True, "whole number"),
        (None, "whole number"),
        (b"1M", "whole number"),
    ],
)
def test_bad_size(value: object, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_size(value)


@pytest.mark.parametrize(
    ("share", "total", "size"), [("50%", 4096, 2048), ("12.5%", 8000, 1000), ("100%", 7, 7), ("0.1%", 999, 0)]
)
def test_percent_of(share: str, total: int, size: int) -> None:
    assert percent_of(share, total) == size


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (None, "-"),
        (0, "0B"),
        (1023, "1023B"),
        (1024, "1K"),
        (1536 * M, "1.5G"),
        (256 * M, "256M"),
        (M - 1, "1M"),
        (10 * G + 1, "10G"),
        (2**63 - 1, "8E"),
    ],
)
def test_format_size(size: int | None, text: str) -> None:
    assert format_size(size) == text


@pytest.mark.parametrize(
    ("value", "cores"),
    [(2, 2.0), (0.5, 0.5), ("0.5", 0.5), ("50%", 0.5), ("200 %", 2.0), (" 4 ", 4.0), ("1e-1", 0.1), (8192, 8192.0)],
)
def test_cores(value: object, cores: float) -> None:
    assert parse_cores(value) == cores


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (-1, "negative"),
        ("-50%", "negative"),
        (NAN, "not a number"),
        (INF, "not finite"),
        (-INF, "negative"),
        ("nan", "no number of cores"),
        ("inf", "no number of cores"),
        ("1e999", "not finite"),
        ("", "no number of cores"),
        ("%", "no number of cores"),
        ("max", "no number of cores"),
        (True, "no number of cores"),
        (None, "no number of cores"),
        ([1], "no number of cores"),
        (10**400, "too large"),
        (8193, "more than 8192 cores"),
    ],
)
def test_bad_cores(value: object, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_cores(value)


@pytest.mark.parametrize(
    ("value", "cpus"),
    [
        ("0", "0"),
        (0, "0"),
        ("0-1,3", "0-1,3"),
        ("3,0-1", "0-1,3"),
        ("0,1,2", "0-2"),
        ("0-3,2-5", "0-5"),
        (" 0 , 2 ", "0,2"),
        ([3, 1, 0], "0-1,3"),
        ((1,), "1"),
        ({0, 2}, "0,2"),
        ("00-01", "0-1"),
    ],
)
def test_cpuset(value: object, cpus: str) -> None:
    assert parse_cpuset(value) == cpus


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("", "names no CPU"),
        ([], "names no CPU"),
        ("0,", "names no CPU"),
        (",", "names no CPU"),
        ("1-0", "runs backwards"),
        ("0-", "no list of CPUs"),
        ("-1", "no list of CPUs"),
        ("0-1-2", "no list of CPUs"),
        ("a", "no list of CPUs"),
        ("0-99999", "more than CPU 65535"),
        ([65536], "more than 65535"),
        (-1, "negative"),
        (True, "whole number"),
        (1.0, "whole number"),
        (None, "whole number"),
        ([True], "whole number"),
        (["a"], "whole number"),
    ],
)
def test_bad_cpuset(value: object, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_cpuset(value)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (30, 30.0),
        (0, 0.0),
        (1.5, 1.5),
        ("30", 30.0),
        ("1.5", 1.5),
        ("1e-3", 0.001),
        ("30s", 30.0),
        ("500ms", 0.5),
        ("500 ms", 0.5),
        ("250us", 0.00025),
        ("2m", 120.0),
        ("2m30s", 150.0),
        ("2 m 03 s", 123.0),
        ("1h 30m", 5400.0),
        ("1 h 02 m", 3720.0),
        (" 1s ", 1.0),
        ("0.00012345678901234567", 0.00012345678901234567),
    ],
)
def test_seconds(value: object, seconds: float) -> None:
    assert parse_seconds(value) == seconds


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (-1, "negative"),
        ("-1", "negative"),
        (NAN, "not a number"),
        (INF, "not finite"),
        ("nan", "no number of seconds"),
        ("inf", "no number of seconds"),
        ("", "no number of seconds"),
        ("   ", "no number of seconds"),
        ("s", "no number of seconds"),
        ("3 weeks", "no number of seconds"),
        ("3s2m", "no number of seconds"),
        ("1m 1m", "no number of seconds"),
        ("1 2", "no number of seconds"),
        ("1h" + " " * 10_000 + "x", "no number of seconds"),
        (True, "no number of seconds"),
        (None, "no number of seconds"),
        ({}, "no number of seconds"),
    ],
)
def test_bad_seconds(value: object, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_seconds(value)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (NAN, "-"),
        (INF, "-"),
        (0, "0 ms"),
        (0.0004, "0.4 ms"),
        (0.00996, "10 ms"),
        (0.012, "12 ms"),
        (0.9994, "999 ms"),
        (0.9996, "1.00 s"),
        (1.2, "1.20 s"),
        (59.994, "59.99 s"),
        (59.996, "1 m 00 s"),
        (123, "2 m 03 s"),
        (3599.6, "1 h 00 m"),
        (3720, "1 h 02 m"),
        (360_000, "100 h 00 m"),
    ],
)
def test_format_seconds(seconds: float | None, text: str) -> None:
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("value", "number"), [(3, 3), ("3", 3), (" 003 ", 3), (0, 0), (2**63 - 1, 2**63 - 1), ("1", 1)]
)
def test_count(value: object, number: int) -> None:
    assert parse_count(value) == number


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (1, "is less than 2"),
        (2, ""),
        (4, ""),
        (5, "is more than 4"),
        ("5", "is more than 4"),
        (-1, "negative"),
        ("-1", "negative"),
        ("1.0", "whole number"),
        ("", "whole number"),
        (3.0, "whole number"),
        (True, "whole number"),
        ("9" * 10_000, "whole number"),
        ("-" + "9" * 10_000, "negative"),
    ],
)
def test_count_within_bounds(value: object, reason: str) -> None:
    if not reason:
        assert parse_count(value, 2, 4) == value
        return
    with pytest.raises(ValueError, match=reason):
        parse_count(value, 2, 4)


@pytest.mark.parametrize(
    ("value", "flag"),
    [
        (True, True),
        (False, False),
        ("true", True),
        ("Yes", True),
        ("on", True),
        ("1", True),
        ("no", False),
        ("0", False),
    ],
)
def test_flag(value: object, flag: bool) -> None:
    assert parse_flag(value) is flag


@pytest.mark.parametrize("value", [1, 0, 2, None, "", "maybe", 1.0, []])
def test_bad_flag(value: object) -> None:
    with pytest.raises(ValueError, match="neither true nor false"):
        parse_flag(value)
