"""The errors say what, where, why and the remedy, and survive a pipe."""

from __future__ import annotations

import errno
import pickle

import pytest

from pytest_cgroup.exceptions import CgroupError, ContainerError, NotOffered, SpecError, shown


def test_everything_is_said() -> None:
    error = CgroupError(
        "the limit was not taken",
        path="/sys/fs/cgroup/x/memory.max",
        operation="write",
        value="64M",
        errno=errno.EACCES,
        remedy="Ask for a delegated cgroup.",
    )
    assert str(error) == (
        "the limit was not taken (write '64M' /sys/fs/cgroup/x/memory.max): Permission denied [EACCES]. "
        "Ask for a delegated cgroup."
    )


def test_what_does_not_apply_is_left_out() -> None:
    assert str(CgroupError("just this")) == "just this"
    assert str(CgroupError("moved", errno=99999)).endswith("[errno 99999]")


def test_zero_is_a_value() -> None:
    assert str(CgroupError("refused", value=0)) == "refused (0)"


def test_a_spec_error_names_field_value_place_and_what_is_allowed() -> None:
    error = SpecError("pids", -1, "is negative", where="marker", allowed="1 to 9")
    assert str(error) == "contained: pids=-1 (marker): is negative; allowed: 1 to 9"
    assert (error.field, error.value, error.where, error.allowed) == ("pids", -1, "marker", "1 to 9")
    assert isinstance(error, ValueError)
    assert isinstance(error, CgroupError)


def test_a_spec_error_without_anything_allowed() -> None:
    assert str(SpecError("pids", 3, "is odd", where="ini")) == "contained: pids=3 (ini): is odd"


@pytest.mark.parametrize(
    "error",
    [
        CgroupError("what", path="/p", operation="mkdir", value=3, errno=errno.EBUSY, remedy="Wait."),
        ContainerError("what", path="/p", errno=errno.EBUSY),
        NotOffered("what", missing=("memory", "pids"), remedy="Ask."),
        SpecError("pids", "x", "is bad", where="ini", allowed="numbers"),
        SpecError("pids", ["x", {}], "is bad", where="ini"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_pickle_keeps_everything(error: CgroupError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert again.args == error.args
    assert str(again) == str(error).replace("['x', {}]", "\"['x', {}]\"")
    assert {**vars(again), "value": None} == {**vars(error), "value": None}


def test_a_value_that_can_not_be_pickled_travels_as_its_text() -> None:
    error = SpecError("pids", lambda: 3, "is bad", where="marker")
    with pytest.raises((pickle.PicklingError, AttributeError)):
        pickle.dumps(error.value)
    again = pickle.loads(pickle.dumps(error))
    assert again.value == shown(error.value)
    assert again.value.startswith("<function ")


def test_not_offered_names_what_is_missing() -> None:
    assert NotOffered("no controllers", missing=("memory",)).missing == ("memory",)
    assert NotOffered("nothing").missing == ()


class Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError("no")


class TwoLines:
    def __repr__(self) -> str:
        return "one\ntwo"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a", "'a'"),
        ("x" * 500, "'" + "x" * 75 + "...'"),
        (10**5000, "<int that has no repr>"),
        (Unprintable(), "<Unprintable that has no repr>"),
        (TwoLines(), "one two"),
    ],
    ids=["plain", "long", "digits", "raises", "lines"],
)
def test_shown(value: object, text: str) -> None:
    assert shown(value) == text
    assert len(shown(value)) <= 80
    assert text in str(SpecError("pids", value, "is bad", where="marker"))
