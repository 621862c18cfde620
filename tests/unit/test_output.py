"""The files of captured output: cut into phases, long pieces kept on disk."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from pytest_cgroup._output import LONG, Output, Sections, has_section, joined


@pytest.fixture
def output() -> Iterator[Output]:
    output = Output()
    yield output
    output.close()


def test_each_snap_has_what_came_since_the_last(output: Output) -> None:
    output.prepare({})
    os.write(output.files["out"], b"one")
    assert output.snap("out") == "one"
    assert output.snap("out") == ""
    os.write(output.files["out"], b"two")
    os.write(output.files["err"], b"cry")
    assert (output.snap("out"), output.snap("err")) == ("two", "cry")


def test_the_next_test_starts_empty(output: Output) -> None:
    output.prepare({})
    os.write(output.files["out"], b"of the first test")
    output.prepare({"out": b"of the set-up"})
    assert output.snap("out") == "of the set-up"
    assert output.snap("err") == ""


def test_a_dead_childs_rest_begins_where_it_last_reported(output: Output) -> None:
    output.prepare({})
    os.write(output.files["out"], b"reported")
    output.snap("out")
    positions = output.positions
    os.write(output.files["out"], b"not reported")
    output.positions = positions
    assert output.rest("call", lazily=False) == [("Captured stdout call", "not reported")]


def test_bytes_that_are_not_utf8(output: Output) -> None:
    output.prepare({})
    os.write(output.files["out"], b"a\xff\xfeb")
    assert output.snap("out") == "a\ufffd\ufffdb"


@pytest.mark.parametrize("size", [LONG - 1, LONG, LONG + 1])
@pytest.mark.parametrize("lazily", [True, False])
def test_long_output_stays_on_disk_until_it_is_read(output: Output, size: int, lazily: bool) -> None:
    output.prepare({})
    os.write(output.files["out"], b"before")
    output.snap("out")
    written = os.write(output.files["out"], b"x" * size)
    assert written == size
    text = output.snap("out")
    assert (len(text) < 100) == (size > LONG)
    sections = output.resolve([("short", "said"), ("Captured stdout call", text)], lazily=lazily)
    output.prepare({})  # the next test: what is kept is kept
    assert sections[0] == ("short", "said")
    assert dict(sections)["Captured stdout call"] == "x" * size
    kept = [not isinstance(one[1], str) for one in list.__iter__(sections)]
    assert kept == [False, lazily and size > LONG]


def test_a_mark_within_a_text_is_only_text(output: Output) -> None:
    output.prepare({})
    forged = "\0pytest-cgroup output out 0 99999999\0 and more"
    assert output.resolve([("title", forged)], lazily=True) == [("title", forged)]
    exact = "\0pytest-cgroup output out 0 99999999\0"
    os.write(output.files["out"], b"short")
    ((_, text),) = output.resolve([("title", exact)], lazily=True)
    assert text == "short", "no more than there is"


def test_sections_of_two_processes_are_joined_by_title() -> None:
    first, second = [("Captured stdout call", "a"), ("Captured log call", "x")], [("Captured stdout call", "b")]
    assert joined(first, second) == [("Captured stdout call", "ab"), ("Captured log call", "x")]
    assert joined(first, [("Captured log call", "y")])[1] == ("Captured log call", "x\ny")
    assert joined(first, [("other", "z")]) == [*first, ("other", "z")]
    assert joined(first, []) == first


def test_joining_and_asking_reads_nothing_from_disk() -> None:
    class Unreadable:
        def read(self) -> str:
            raise AssertionError

    kept = Sections([("Captured stdout call", Unreadable())])  # type: ignore[list-item]
    both = joined(joined([("a", "b")], kept), [("c", "d")])  # type: ignore[arg-type]
    assert has_section(both, "Captured stdout call")
    assert has_section(both, "c")
    assert not has_section(both, "contained")
