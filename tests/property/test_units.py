"""What is printed can be read back; no input raises anything but ``ValueError``."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pytest_cgroup import _units as units
from pytest_cgroup import _values as values

# A busy machine is no failure.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

PARSERS: list[Callable[[object], object]] = [
    units.parse_size,
    units.parse_count,
    units.parse_cores,
    units.parse_cpuset,
    units.parse_seconds,
    units.parse_flag,
    values.parse_quota,
    values.parse_deadline,
    values.parse_grace,
    values.parse_account,
    values.parse_paths,
    values.parse_hidden,
    values.parse_io,
    values.parse_controls,
    values.parse_rlimits,
    values.parse_expect,
]

scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.complex_numbers()
    | st.from_regex(r"\A-?[0-9.]{1,6} ?[a-zA-Z%]{0,3}\Z")
    | st.sampled_from(["8:0", "/dev/x", "rbps", "nofile", "memory.max", "unlimited", "max", "exit:1", "/a/../b"])
)  # fmt: skip
keys = st.text() | st.sampled_from(["8:0", "/dev/x", "rbps", "riops", "nofile", "memory.max"])
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=6,
)


@unhurried
@given(anything)
def test_only_value_error_and_a_normal_form_that_is_its_own(value: object) -> None:
    for parser in PARSERS:
        try:
            normal = parser(value)
        except ValueError as error:
            assert str(error)  # noqa: PT017 (both ways are good)
        else:
            assert parser(normal) == normal
            hash(normal)


@unhurried
@given(st.integers(0, 2**62))
def test_a_printed_size_reads_back_to_within_its_rounding(size: int) -> None:
    text = units.format_size(size)
    again = units.parse_size(text)
    assert isinstance(again, int)
    assert abs(again - size) <= 0.05 * size
    assert units.format_size(again) == text
    assert len(text) <= 7


@unhurried
@given(st.integers(0, 2**53 // 1024**3), st.sampled_from("KMG"), st.sampled_from(["", "i", "iB"]))
def test_a_suffix_is_a_power_of_1024(number: int, suffix: str, tail: str) -> None:
    assert units.parse_size(f"{number}{suffix}{tail}") == number * 1024 ** (1 + "KMG".index(suffix))


@unhurried
@given(st.integers(1, 10_000), st.integers(0, 2**50))
def test_a_share_is_exact(hundredths: int, total: int) -> None:
    share = units.parse_size(f"{hundredths // 100}.{hundredths % 100:02}%")
    assert units.percent_of(str(share), total) == total * hundredths // 10_000


@unhurried
@given(st.floats(0, 1e9, allow_nan=False))
def test_printed_seconds_read_back_to_within_their_rounding(seconds: float) -> None:
    again = units.parse_seconds(units.format_seconds(seconds))
    assert abs(again - seconds) <= max(0.00005001, 0.051 * seconds)


@unhurried
@given(st.floats(0, 8192, allow_nan=False) | st.integers(0, 8192))
def test_cores_are_a_number_or_its_text(cores: float) -> None:
    assert units.parse_cores(cores) == cores
    assert units.parse_cores(f"{cores:.9f}") == pytest.approx(cores, abs=1e-9)


@unhurried
@given(st.sets(st.integers(0, 200), min_size=1))
def test_a_cpu_list_names_the_same_cpus(cpus: set[int]) -> None:
    text = units.parse_cpuset(cpus)
    again: set[int] = set()
    for span in text.split(","):
        first, _, last = span.partition("-")
        again.update(range(int(first), int(last or first) + 1))
    assert again == cpus
    assert units.parse_cpuset(text) == text
