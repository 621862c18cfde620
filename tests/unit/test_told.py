"""What a contained test's process may say: what it really says passes, and every other shape is refused in one way."""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_cgroup import _told
from pytest_cgroup._told import check_message

_REPORT: dict[str, Any] = {
    "nodeid": "test_it.py::test_it",
    "location": ["test_it.py", 1, "test_it"],
    "keywords": {"test_it": 1},
    "outcome": "failed",
    "longrepr": {
        "reprcrash": {"path": "test_it.py", "lineno": 1, "message": "x"},
        "reprtraceback": {},
        "sections": [],
        "chain": [[{}, {"path": "test_it.py", "lineno": 1, "message": "x"}, None], [{}, None, "why"]],
    },
    "when": "call",
    "user_properties": [["name", {"any": ["thing"]}]],
    "sections": [["Captured stdout call", "text"]],
    "duration": 0.5,
    "start": 1,
    "stop": 1.5,
    "of a plugin": [1],
    "_subtest.context": {"msg": None, "kwargs": {"i": "1"}},
}
_MESSAGES: list[dict[str, Any]] = [
    {
        "report": _REPORT,
        "positions": {"out": 0, "err": 5},
        "warnings": [
            {"module": "m", "category": "C", "message": "", "filename": "f", "lineno": 1, "line": "x"},
        ],
        "was_text": False,
        "failed_subtests": 0,
        "junit": {"properties": [["a b", 5]], "attributes": {"file": "x"}},
    },
    {"debugger": True},
    {"refused": "OSError: no"},
    {"exit": "enough", "returncode": 3},
    {"exit": "enough", "returncode": None},
    {"interrupt": True},
    {"internal": "Traceback"},
    {"end": True, "zombies": {"12": "sh"}, "family": {"12": ["sh[12]"]}, "shouldstop": "why", "warnings": []},
    {"end": True, "started": [[12, "test_it.py:3 in test_it", ["sleep", "9"], 12.5], [0, None, [], 3.0]]},
    {"end": True, "untold": "nobody knows"},
]
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


def check(message: dict[str, Any]) -> None:
    check_message(message, is_own=_REPORT["nodeid"].__eq__, taken={"failed", "nodeid"})


@pytest.mark.parametrize("message", _MESSAGES)
def test_what_it_says_passes(message: dict[str, Any]) -> None:
    check(message)


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, one in inner for place in _places(one, (*path, key)))]


_PLACES = [(number, place) for number, message in enumerate(_MESSAGES) for place in _places(message) if place]


@given(where=st.sampled_from(_PLACES), what=_JSON)
def test_another_shape_passes_or_is_refused(where: tuple[int, tuple[Any, ...]], what: Any) -> None:
    """Never another exception, whatever stands where."""
    number, (*above, last) = where
    message = copy.deepcopy(_MESSAGES[number])
    part: Any = message
    for key in above:
        part = part[key]
    part[last] = what
    with contextlib.suppress(ValueError):
        check(message)


@given(message=st.dictionaries(st.text().filter(lambda key: key not in _told._KINDS), _JSON))
def test_anything_is_refused(message: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="of no kind that is known"):
        check(message)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"nodeid": "test_it.py::test_other"}, "another test's"),
        ({"failed": False}, "pytest's own"),
        ({"outcome": "weird"}, "none of passed, failed, skipped"),
        ({"duration": float("nan")}, "no number that can be"),
        ({"duration": 10**400}, "no number that can be"),
        ({"duration": True}, "no number that can be"),
        ({"outcome": "skipped", "longrepr": "x"}, "no list"),
        ({"location": ["x", "1", "y"]}, "no line"),
        ({"location": ["x", 1]}, "2 and not 3 values"),
    ],
)
def test_why(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        check({**_MESSAGES[0], "report": {**_REPORT, **changes}})
