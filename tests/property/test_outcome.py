"""Any outcome survives JSON, and can be described."""

from __future__ import annotations

import json
from typing import Any, get_args

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pytest_cgroup._outcome import Ended, Leak, Outcome, Usage, to_record

# A busy machine is no failure.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

seconds = st.none() | st.floats(0, allow_nan=False, allow_infinity=False)
count = st.none() | st.integers(0, 2**63)
text = st.text(st.characters(codec=None), max_size=20)
texts = st.lists(text, max_size=3).map(tuple)
names = [name for name in Usage.__slots__]  # noqa: C416 (a list of str for the type checker)

usages = st.builds(Usage, **{name: seconds if name.endswith("_seconds") else count for name in names})
leaks = st.builds(
    Leak,
    pid=st.integers(1, 2**22),
    argv=texts,
    cwd=st.none() | text,
    age_seconds=seconds,
    rss_bytes=count,
    owner=st.none() | text,
    parents=texts,
    ports=st.lists(st.integers(0, 65535), max_size=3).map(tuple),
    status=st.none() | st.sampled_from(["running", "zombie"]),
    started_at=st.none() | text,
    ancestor=st.none() | text,
)
outcomes = st.builds(
    Outcome,
    ended=st.sampled_from(get_args(Ended)),
    exit_code=st.none() | st.integers(0, 255),
    signal=st.none() | st.integers(-1, 100),
    usage=usages,
    leaks=st.lists(leaks, max_size=2).map(tuple),
    backend=text,
    not_enforced=texts,
    limits=st.dictionaries(text, text, max_size=3),
    phase=st.none() | text,
    message=st.none() | text,
    stack=st.none() | text,
    notes=texts,
)
junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*names, "pid"]), inner, max_size=3),
    max_leaves=5,
)


@unhurried
@given(outcomes)
def test_json_both_ways(outcome: Outcome) -> None:
    assert Outcome.from_json(json.loads(json.dumps(outcome.to_json(), allow_nan=False))) == outcome


@unhurried
@given(outcomes, text)
def test_the_record_is_one_line_of_json(outcome: Outcome, nodeid: str) -> None:
    line = json.dumps(to_record(nodeid, outcome), allow_nan=False)
    assert "\n" not in line
    assert json.loads(line)["nodeid"] == nodeid


@unhurried
@given(outcomes)
def test_it_can_be_described(outcome: Outcome) -> None:
    assert outcome.describe()
    for leak in outcome.leaks:
        assert leak.describe().isprintable()


@unhurried
@given(outcomes, st.sampled_from(Outcome.__slots__), junk)
def test_bad_json_raises_nothing_but_value_error(outcome: Outcome, name: str, value: object) -> None:
    data: dict[str, Any] = {**outcome.to_json(), name: value}
    try:
        again = Outcome.from_json(data)
    except ValueError as error:
        assert str(error)  # noqa: PT017 (both ways are good)
    else:
        assert isinstance(again.usage, Usage)
        assert all(isinstance(leak, Leak) for leak in again.leaks)
