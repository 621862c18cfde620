"""Layers: precedence, JSON both ways, and no input that raises anything but SpecError."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pytest_cgroup._spec import FIELDS, Spec, merge, parse_kwargs, parse_text
from pytest_cgroup.exceptions import SpecError

# A busy machine is no failure.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

NAMES = [field.name for field in FIELDS]

# Good values that contradict nothing, whatever they are combined with.
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "memory": st.integers(2**20, 2**62) | st.just("max"),
    "memory_high": st.integers(4096, 2**20) | st.just("max") | st.none(),
    "cpu": st.floats(0.01, 100) | st.integers(1, 100),
    "cpu_weight": st.integers(1, 10_000),
    "cpuset": st.sets(st.integers(0, 99), min_size=1),
    "pids": st.integers(1, 2**22) | st.none(),
    "io": st.dictionaries(
        st.sampled_from(["8:0", "/dev/vda"]),
        st.dictionaries(st.sampled_from(["rbps", "wbps", "riops", "wiops"]), st.integers(1, 2**62) | st.just("max")),
    ),
    "rlimits": st.dictionaries(st.sampled_from(["nofile", "core"]), st.integers(0, 2**62) | st.just("unlimited")),
    "controls": st.dictionaries(st.sampled_from(["memory.low", "misc.max"]), st.integers(0, 99)),
    "timeout": st.floats(1e-6, 2e6),
    "pid_ns": st.booleans(),
    "net_ns": st.booleans(),
    "oom_group": st.booleans(),
    "readonly": st.lists(st.from_regex(r"\A/[a-z/.]{0,9}\Z"), max_size=3),
    "user": st.integers(0, 65534) | st.sampled_from(["root", "nobody"]),
    "grace": st.floats(0, 10),
    "leaks": st.sampled_from(["fail", "warn", "ignore"]),
    "slice": st.from_regex(r"\A[a-z][a-z0-9_]{0,9}\Z"),
}
good = st.fixed_dictionaries({}, optional=VALUES)

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=6
)


@unhurried
@given(st.lists(good, max_size=5))
def test_the_last_layer_that_has_a_field_wins(layers: list[dict[str, object]]) -> None:
    spec = merge(*(parse_kwargs(layer, "layer") for layer in layers), where="test")
    for name in VALUES:
        said = [layer[name] for layer in layers if name in layer]
        default = getattr(Spec(), name)
        wanted = parse_kwargs({name: said[-1]}, "test")[name] if said else default
        assert getattr(spec, name) == wanted


@unhurried
@given(st.lists(good, min_size=1, max_size=4))
def test_merging_is_merging_the_dicts(layers: list[dict[str, object]]) -> None:
    parsed = [parse_kwargs(layer, "layer") for layer in layers]
    whole: dict[str, object] = {}
    for layer in parsed:
        whole |= layer
    assert merge(*parsed, where="test") == merge(whole, where="test")
    assert merge(parsed[0], *parsed, where="test") == merge(*parsed[:1], *parsed, where="test")


@unhurried
@given(good)
def test_json_both_ways(kwargs: dict[str, object]) -> None:
    spec = Spec.parse(kwargs, "test")
    assert Spec.from_json(json.loads(json.dumps(spec.to_json(), allow_nan=False))) == spec
    assert spec.normalised() == spec
    assert hash(Spec.from_json(spec.to_json())) == hash(spec)


@unhurried
@given(good)
def test_text_says_the_same_as_keywords(kwargs: dict[str, Any]) -> None:
    kwargs = {name: value for name, value in kwargs.items() if value is not None}
    if "cpuset" in kwargs:
        kwargs["cpuset"] = ",".join(map(str, kwargs["cpuset"]))
    text = ", ".join(
        f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in kwargs.items()
    )
    assert parse_text(text, "ini") == parse_kwargs(kwargs, "marker")


@unhurried
@given(st.dictionaries(st.sampled_from(NAMES) | st.text(), anything, max_size=4), st.text())
def test_keywords_raise_nothing_but_spec_error(kwargs: dict[str, object], where: str) -> None:
    try:
        Spec.parse(kwargs, where)
    except SpecError as error:
        assert f"({where})" in str(error)  # noqa: PT017 (both ways are good)
        assert error.allowed  # noqa: PT017


chunk = st.sampled_from([*NAMES, "=", ",", " ", "\n", "{", "[", '"', "}", "]", "0-3", "1M", "-1", "null", "\0"])


@unhurried
@given(st.text() | st.lists(chunk | st.text(max_size=3), max_size=12).map("".join))
def test_text_raises_nothing_but_spec_error(text: str) -> None:
    try:
        merge(parse_text(text, "ini"), where="ini")
    except SpecError as error:
        assert "(ini)" in str(error)  # noqa: PT017 (both ways are good)
        assert error.allowed  # noqa: PT017


@unhurried
@given(st.floats(0.01, 100), st.integers(2**20, 2**50))
def test_a_share_resolves_to_bytes(share: float, total: int) -> None:
    spec = Spec.parse({"memory": f"{share:.4f}%"}, "test").resolve(total)
    assert isinstance(spec.memory, int)
    assert 4096 <= spec.memory <= total
