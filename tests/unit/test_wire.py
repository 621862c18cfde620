"""Messages over a pipe: whole in, whole out, however they are cut; what is no message is refused."""

from __future__ import annotations

import contextlib
import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_cgroup import _wire
from pytest_cgroup._wire import MAX_BYTES, Decoder, encode, sanitise

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)
_MESSAGES = st.lists(st.dictionaries(st.text(), _JSON), max_size=5)


def decoded(*pieces: bytes) -> list[dict[str, Any]]:
    decoder = Decoder()
    return [message for piece in pieces for message in decoder.feed(piece)]


@given(messages=_MESSAGES, cuts=st.lists(st.integers(0, 2000)))
def test_whole_however_it_is_cut(messages: list[dict[str, Any]], cuts: list[int]) -> None:
    data = b"".join(map(encode, messages))
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    assert decoded(*(data[a:b] for a, b in itertools.pairwise(places))) == messages


def test_a_lone_surrogate_comes_through() -> None:
    assert decoded(encode({"text": "\udc80"})) == [{"text": "\udc80"}]


def test_a_half_message_is_none_yet() -> None:
    data = encode({"a": 1}) + encode({"b": 2})
    assert decoded(data[:-1]) == [{"a": 1}]


@pytest.mark.parametrize(
    "garbage",
    [b"garbage", b"garbage\n", b"x" * 100, b"-5\n{}", b"0\n", b"2\n[]", b"1\n5", b"2\nxx", b"%d\n" % (MAX_BYTES + 1)],
)
def test_garbage_is_refused_and_what_came_before_it_is_not_lost(garbage: bytes) -> None:
    found: list[dict[str, Any]] = []
    decoder = Decoder()
    if garbage == b"garbage":  # it may be the beginning of something
        assert decoded(garbage) == []
        garbage += b"x" * 20
    with pytest.raises(ValueError, match=r"."):
        found.extend(decoder.feed(encode({"a": 1}) + garbage))
    assert found == [{"a": 1}]


@given(data=st.binary())
def test_whatever_is_fed_it_is_a_message_or_a_value_error(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        assert all(isinstance(message, dict) for message in decoded(data))


class Hostile:
    def __repr__(self) -> str:
        raise RuntimeError("no repr")


def test_what_is_not_json_is_replaced_and_that_is_said() -> None:
    loop: list[object] = []
    loop.append(loop)
    value = {"good": [1, "x", None, 2.5, True], "set": {1}, 3: "key", "hostile": Hostile(), "loop": loop, "tuple": (1,)}
    clean, replaced = sanitise(value)
    assert clean == {
        "good": [1, "x", None, 2.5, True],
        "set": "{1}",
        "3": "key",
        "hostile": "<unprintable: RuntimeError>",
        "loop": ["<circular>"],
        "tuple": [1],
    }
    assert [line.partition(":")[0] for line in replaced] == ["report.set", "report.hostile", "report.loop[0]"]
    json.dumps(clean)


def test_the_same_value_twice_is_no_circle() -> None:
    shared = [object()]
    clean, _ = sanitise([shared, shared])
    assert clean[0] == clean[1] != "<circular>"


def test_too_deep_is_cut() -> None:
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    clean, replaced = sanitise({"deep": deep})
    assert len(replaced) == 1
    assert "nested too deeply" in replaced[0]
    json.dumps(clean)


def test_long_texts_of_objects_are_cut() -> None:
    class Long:
        def __repr__(self) -> str:
            return "x" * 10_000_000

    clean, _ = sanitise([Long()])
    assert len(clean[0]) == 10_000


@given(value=_JSON)
def test_what_is_json_stays_as_it_is(value: object) -> None:
    assert sanitise(value) == (value, [])


def test_all_that_one_test_says_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_wire, "MAX_IN_ALL", 100)
    decoder = Decoder()
    for _ in range(20):
        assert list(decoder.feed(encode({}))) == [{}]
    list(decoder.feed(encode({}) * 5))
    with pytest.raises(ValueError, match="more than 100 bytes in all"):
        list(decoder.feed(b" "))
