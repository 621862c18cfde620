"""Spec: every field has good and bad values, every refusal says field, value, place and what is allowed."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import pickle
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

import pytest_cgroup._spec
from pytest_cgroup._spec import FIELDS, Spec, marker_help, merge, parse_kwargs, parse_text, spec_table
from pytest_cgroup._values import RLIMITS
from pytest_cgroup.exceptions import SpecError, shown

M, G = 1024**2, 1024**3
NAN, INF = float("nan"), float("inf")
FLAGS = [field.name for field in FIELDS if field.kind == "flag"]

# field: [(written, in normal form), …]
GOOD: dict[str, list[tuple[object, object]]] = {
    "memory": [(4096, 4096), ("64M", 64 * M), ("50%", "50%"), ("max", "max"), (None, None)],
    "swap": [(0, 0), ("1.5G", G + G // 2), ("10%", "10%"), ("max", "max"), (None, None)],
    "memory_high": [(4096, 4096), ("64MiB", 64 * M), ("max", "max")],
    "cpu": [(0.01, 0.01), ("50%", 0.5), (2, 2.0), (None, None)],
    "cpu_weight": [(1, 1), (10_000, 10_000), ("100", 100)],
    "cpuset": [("0-1,3", "0-1,3"), (0, "0"), ([1, 0], "0-1")],
    "pids": [(1, 1), ("64", 64), (2**22, 2**22)],
    "io": [
        ({"8:0": {"rbps": "10M", "wiops": 100}}, (("8:0", (("rbps", 10 * M), ("wiops", 100))),)),
        ({"/dev/vda": {"wbps": "max", "riops": "max"}}, (("/dev/vda", (("wbps", "max"), ("riops", "max"))),)),
        ({}, ()),
        (None, ()),
    ],
    "io_weight": [(1, 1), (10_000, 10_000)],
    "controls": [
        ({"memory.low": "64M", "cgroup.max.depth": 3}, (("memory.low", "64M"), ("cgroup.max.depth", "3"))),
        ({"hugetlb.2MB.max": 0}, (("hugetlb.2MB.max", "0"),)),
        (None, ()),
    ],
    "rlimits": [
        ({"nofile": 256}, (("nofile", (256, 256)),)),
        ({"RLIMIT_CORE": [0, "unlimited"]}, (("core", (0, "unlimited")),)),
        ({"as": "unlimited"}, (("as", ("unlimited", "unlimited")),)),
    ],
    "timeout": [(30, 30.0), (1e-9, 1e-9), ("500ms", 0.5), (2_000_000, 2_000_000.0), (None, None)],
    "cpu_time": [(30, 30.0), ("2m", 120.0)],
    "hostname": [("box", "box"), ("a.b-c", "a.b-c"), ("a" * 64, "a" * 64)],
    "readonly": [
        ("/etc", ("/etc",)),
        (["/etc/", "//usr/../opt"], ("/etc", "/opt")),
        (pathlib.PurePosixPath("/etc"), ("/etc",)),
        ("/", ("/",)),
        ("/caf\udce9", ("/caf\udce9",)),
        ([], ()),
    ],
    "hidden": [("/etc", ("/etc",)), (("/etc", "/usr"), ("/etc", "/usr"))],
    "user": [("nobody", "nobody"), (0, 0), ("1000", 1000), ("a.b@example.org", "a.b@example.org")],
    "group": [("nogroup", "nogroup"), (65534, 65534)],
    "grace": [(0, 0.0), ("500ms", 0.5)],
    "leaks": [("fail", "fail"), ("warn", "warn"), ("ignore", "ignore")],
    "isolation": [("fork", "fork"), ("shared", "shared")],
    "slice": [("db", "db"), ("a.b_c-1", "a.b_c-1")],
    "expect": [
        ("oom", "oom"),
        ("cpu-time", "cpu-time"),
        ("signal:SEGV", "signal:SEGV"),
        ("signal:sigsegv", "signal:SEGV"),
        ("signal:11", "signal:SEGV"),
        *([("signal:SIGCLD", "signal:CHLD")] if hasattr(signal, "SIGCLD") else []),  # musl has no such name
        ("signal:40", "signal:40"),
        ("exit:3", "exit:3"),
        ("exit:0", "exit:0"),
    ],
    **{flag: [(True, True), (False, False), ("yes", True), ("off", False)] for flag in FLAGS},
}

WEIGHTS: list[tuple[object, str]] = [
    (0, "less than 1"),
    (10_001, "more than 10000"),
    (-1, "negative"),
    (1.5, "whole"),
    (True, "whole"),
    ("x", "whole"),
]
SIZES: list[tuple[object, str]] = [
    (0, "minimum of 4096"),
    (4095, "minimum of 4096"),
    ("1K", "minimum of 4096"),
    (-1, "negative"),
    ("64MB", "powers of 1024"),
    (NAN, "whole"),
    (True, "whole"),
    ("lots", "no size"),
    ([], "whole"),
]
DEADLINES: list[tuple[object, str]] = [
    (0, "zero"),
    ("0s", "zero"),
    (-1, "negative"),
    (NAN, "not a number"),
    (INF, "finite"),
    (2_000_001, "more than 2000000"),
    (True, "no number"),
    ("soon", "no number"),
]
ACCOUNTS: list[tuple[object, str]] = [
    (-1, "negative"),
    ("-1", "negative"),
    (2**32 - 1, "more than"),
    ("", "neither a name"),
    ("a:b", "neither a name"),
    ("../x", "neither a name"),
    ("a\0b", "NUL"),
    (1.0, "no text"),
    (True, "whole"),
]
PATHS: list[tuple[object, str]] = [
    ("etc", "absolute"),
    ("", "absolute"),
    (["/etc", "usr"], "absolute"),
    ("/a\0b", "NUL"),
    ("/a\ud800", "encoded"),
    (3, "no text"),
    (b"/etc", "no text"),
    ([["/etc"]], "no text"),
    (True, "no text"),
]
# field: [(written, a part of the reason), …]
BAD: dict[str, list[tuple[object, str]]] = {
    "memory": SIZES,
    "memory_high": SIZES,
    "swap": [(-1, "negative"), ("1GB", "powers of 1024"), (NAN, "whole"), (True, "whole")],
    "cpu": [
        (0, "minimum of 0.01"),
        (0.0099, "minimum of 0.01"),
        (-1, "negative"),
        (NAN, "not a number"),
        (INF, "finite"),
        (True, "no number"),
        ("all", "no number"),
    ],
    "cpu_weight": WEIGHTS,
    "io_weight": WEIGHTS,
    "cpuset": [("", "names no CPU"), ("1-0", "backwards"), ("x", "no list"), (-1, "negative"), (True, "whole")],
    "pids": [
        (0, "less than 1"),
        (-1, "negative"),
        (2**22 + 1, "more than 4194304"),
        (1.5, "whole"),
        (NAN, "whole"),
        (True, "whole"),
        ("max", "whole"),
    ],
    "io": [
        ("8:0", "is not a dict"),
        ({"sda": {"rbps": 1}}, "'sda' is neither a block device"),
        ({"/etc/passwd": {"rbps": 1}}, "neither a block device"),
        ({"8:0": 3}, "'8:0'=3 is not a dict"),
        ({"8:0": {"bps": 1}}, "'bps', which is none of rbps"),
        ({"8:0": {"rbps": 0}}, "rbps=0 is zero"),
        ({"8:0": {"rbps": "50%"}}, "a device has no whole"),
        ({"8:0": {"rbps": "1MB"}}, "powers of 1024"),
        ({"8:0": {"riops": "1M"}}, "whole"),
        ({"8:0": {"riops": -1}}, "negative"),
        ({3: {}}, "names for keys"),
        ((("8:0", {}), ("8:0", {})), "given twice"),
    ],
    "controls": [
        ("memory.low", "is not a dict"),
        ({"memory": 1}, "no name of a cgroup file"),
        ({"../memory.max": 1}, "no name of a cgroup file"),
        ({"memory.max\n": 1}, "no name of a cgroup file"),
        ({"cgroup.procs": 1}, "the container's own"),
        ({"cgroup.kill": 1}, "the container's own"),
        ({"memory.low": True}, "no text"),
        ({"memory.low": ""}, "empty"),
        ({"memory.low": "a\0"}, "NUL"),
        ({"memory.low": None}, "no text"),
    ],
    "rlimits": [
        (256, "is not a dict"),
        ({"files": 3}, "'files' is no resource limit"),
        ({"nofile": -1}, "negative"),
        ({"nofile": (3, 2)}, "soft limit above the hard"),
        ({"nofile": ("unlimited", 2)}, "soft limit above the hard"),
        ({"nofile": (1, 2, 3)}, "whole"),
        ({"nofile": "many"}, "whole"),
        ({"nofile": True}, "whole"),
        ({"nofile": 1, "RLIMIT_NOFILE": 2}, "nofile is given twice"),
    ],
    "timeout": DEADLINES,
    "cpu_time": DEADLINES,
    "hostname": [
        ("", "no host name"),
        ("a" * 65, "no host name"),
        ("a b", "no host name"),
        ("-a", "no host name"),
        ("é", "no host name"),
        (3, "no host name"),
    ],
    "readonly": PATHS,
    "hidden": [*PATHS, ("/", "root"), ("/etc/..", "root"), ("//", "root")],
    "user": ACCOUNTS,
    "group": ACCOUNTS,
    "grace": [(-1, "negative"), (NAN, "not a number"), (INF, "finite"), (10**9, "more than"), (None, "can't be None")],
    "leaks": [("FAIL", "none of its words"), ("", "none of"), (True, "none of"), (None, "can't be None")],
    "isolation": [("spawn", "none of its words"), (0, "none of"), (None, "can't be None")],
    "slice": [
        ("", "no name"),
        (".", "no name"),
        ("..", "no name"),
        ("a..b", "no name"),
        ("a/b", "no name"),
        ("a\n", "no name"),
        ("a\0", "no name"),
        ("a" * 65, "no name"),
        ("\N{SNOWMAN}", "no name"),
        (3, "no name"),
    ],
    "expect": [
        ("", "no way to end"),
        ("pass", "no way to end"),
        ("signal", "'' is no signal"),
        ("signal:FOO", "'FOO' is no signal"),
        ("signal:0", "less than 1"),
        ("signal:65", "more than 64"),
        ("exit", "whole"),
        ("exit:256", "more than 255"),
        ("exit:-1", "negative"),
        (3, "no way to end"),
    ],
    **{
        flag: [(1, "neither"), (0, "neither"), ("maybe", "neither"), ([], "neither"), (None, "can't")] for flag in FLAGS
    },
}


def cases(table: dict[str, list[tuple[object, Any]]]) -> list[Any]:
    return [
        pytest.param(field, *case, id=ascii(f"{field}-{shown(case[0])}").replace("\\", "_"))
        for field in table
        for case in table[field]
    ]


def test_the_tables_here_cover_every_field() -> None:
    names = {field.name for field in FIELDS}
    assert names == GOOD.keys() == BAD.keys()
    assert names == {field.name for field in dataclasses.fields(Spec)}
    assert all(len(BAD[name]) > 1 for name in names)


@pytest.mark.parametrize(("field", "written", "normal"), cases(GOOD))
def test_good_value(field: str, written: object, normal: object) -> None:
    values = parse_kwargs({field: written}, "marker")
    assert values == {field: normal}
    assert type(values[field]) is type(normal)
    assert parse_kwargs(values, "again") == values


@pytest.mark.parametrize(("field", "written", "reason"), cases(BAD))
def test_bad_value(field: str, written: object, reason: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_kwargs({field: written}, "marker of class TestX")
    error = caught.value
    allowed = next(spec.allowed for spec in FIELDS if spec.name == field)
    assert (error.field, error.where, error.allowed) == (field, "marker of class TestX", allowed)
    assert error.value is written
    text = str(error)
    assert text.startswith(f"contained: {field}={shown(written)} (marker of class TestX): ")
    assert text.endswith(f"; allowed: {allowed}")
    assert reason in text.removesuffix(allowed)
    assert "\n" not in text


class Hostile:
    """Raises whatever is asked of it."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(name)

    def __repr__(self) -> str:
        raise RuntimeError("repr")

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("eq")

    __hash__ = None  # type: ignore[assignment]


class EqualToAll:
    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


class Path:
    def __fspath__(self) -> str:
        raise OSError("no path today")


# Made by functions: pytest itself asks a parameter for its __class__.
HOSTILE: dict[str, Callable[[], object]] = {
    "raises": Hostile,
    "equal to all": EqualToAll,
    "path": Path,
    "class": lambda: object,
    "digits": lambda: 10**5000,
    "inside a dict": lambda: {"8:0": Hostile()},
    "inside a list": lambda: [Hostile()],
}


@pytest.mark.parametrize("field", [field.name for field in FIELDS])
@pytest.mark.parametrize("make", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_value_is_a_spec_error(field: str, make: Callable[[], object]) -> None:
    with pytest.raises(SpecError) as caught:
        parse_kwargs({field: make()}, "marker")
    assert f"contained: {field}=" in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))).startswith(f"contained: {field}=")


@pytest.mark.parametrize(
    ("name", "hint"),
    [("memry", "did you mean memory?"), ("pid", "did you mean pids?"), ("zzz", "unknown field;"), ("", "unknown")],
)
def test_unknown_field(name: str, hint: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_kwargs({name: 3}, "marker")
    assert str(caught.value).startswith(f"contained: {name}=3 (marker): unknown field")
    assert hint in str(caught.value)
    assert "memory, swap," in str(caught.value)
    with pytest.raises(SpecError, match="unknown field"):
        merge({name: 3}, where="marker")


def test_an_unknown_field_of_10_kb_does_not_flood_the_terminal() -> None:
    with pytest.raises(SpecError) as caught:
        parse_kwargs({"x\n" * 5000: "y" * 10_000}, "marker")
    assert len(str(caught.value)) < 1000
    assert "\n" not in str(caught.value)


# Text


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("", {}),
        (" ,\n\t, ", {}),
        ("memory=256M,pids=64 pid_ns", {"memory": 256 * M, "pids": 64, "pid_ns": True}),
        ("memory=256M\npids = 64\n\n", {"memory": 256 * M, "pids": 64}),
        ("cpuset=0-1,3 pids=1", {"cpuset": "0-1,3", "pids": 1}),
        ("cpuset=3,1,0,pid_ns", {"cpuset": "0-1,3", "pid_ns": True}),
        ("oom_group=no,pid_ns=true", {"oom_group": False, "pid_ns": True}),
        ("memory=50% cpu=50%", {"memory": "50%", "cpu": 0.5}),
        ("timeout=500ms expect=timeout", {"timeout": 0.5, "expect": "timeout"}),
        (
            'io={"8:0": {"rbps": "1K", "wiops": 3}}, pids=1',
            {"io": (("8:0", (("rbps", 1024), ("wiops", 3))),), "pids": 1},
        ),
        ('readonly=["/a b", "/c,d"],pids=1', {"readonly": ("/a b", "/c,d"), "pids": 1}),
        ('readonly="/a b"', {"readonly": ("/a b",)}),
        ("readonly=/etc", {"readonly": ("/etc",)}),
        ('rlimits={"nofile": [1, 2]}', {"rlimits": (("nofile", (1, 2)),)}),
    ],
)
def test_text(text: str, values: dict[str, object]) -> None:
    assert parse_text(text, "ini") == values


@pytest.mark.parametrize(
    ("text", "field", "reason"),
    [
        ("memory", "memory", "needs a value, memory=…"),
        ("memory=", "memory", "no size"),
        ("memory=,pids=1", "memory", "no size"),
        ("memory= pids=1", "memory", "no size"),
        ("memory=1MB", "memory", "powers of 1024"),
        ("memry=1M", "memry", "did you mean memory?"),
        ("memry", "memry", "did you mean memory?"),
        ("pids=1,pids=2", "pids", "given twice"),
        ("pid_ns pid_ns=no", "pid_ns", "given twice"),
        ("pids=1,3", "3", "unknown field"),
        ("cpuset=0,x", "x", "unknown field"),
        ("cpuset=0,3-1", "cpuset", "backwards"),
        ("=3", "text", "value without a name"),
        ("pids==3", "pids", "whole number"),
        ('io={"8:0"', "io", "not JSON"),
        ('io={"8:0":{}}x', "io", "something follows"),
        ("readonly=" + "[" * 100_000, "readonly", "not JSON"),
        ('memory={"a":1}', "memory", "whole number"),
        ('timeout="NaN"', "timeout", "no number"),
        ("rlimits=nofile", "rlimits", "not a dict"),
        ("zzz={", "zzz", "not JSON"),
        ("pid_ns=2", "pid_ns", "neither true nor false"),
    ],
)
def test_bad_text(text: str, field: str, reason: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_text(text, "command line")
    assert caught.value.field == field
    assert f"contained: {field}=" in str(caught.value)
    assert "(command line)" in str(caught.value)
    assert "; allowed: " in str(caught.value)
    assert reason in str(caught.value)


@pytest.mark.parametrize("value", [True, False])
@pytest.mark.parametrize("field", FLAGS)
def test_a_flag_as_text(field: str, value: bool) -> None:
    assert parse_text(f"{field}={value}", "ini") == {field: value}
    assert parse_text(field, "ini") == {field: True}


# Merging


def parse(**kwargs: object) -> Spec:
    return Spec.parse(kwargs, "marker")


def test_nothing_asked() -> None:
    assert merge(where="marker") == merge({}, {}, where="marker") == Spec() == parse()
    assert Spec().oom_group
    assert (Spec().grace, Spec().leaks, Spec().isolation) == (0.0, "fail", "fork")


def test_a_later_layer_wins_field_by_field() -> None:
    layers: list[dict[str, object]] = [
        parse_text("memory=1G pids=5 leaks=warn", "ini"),
        parse_kwargs({"memory": "2G"}, "m"),
        {"leaks": "fail"},
    ]
    spec = merge(*layers, where="marker")
    assert (spec.memory, spec.pids, spec.leaks) == (2 * G, 5, "fail")


def test_none_takes_back_what_a_lower_layer_asked() -> None:
    low = parse_kwargs({"memory": "1G", "io": {"8:0": {"rbps": 1}}}, "ini")
    assert merge(low, parse_kwargs({"memory": None, "io": None}, "marker"), where="marker") == Spec()


def test_what_is_implied() -> None:
    assert parse(memory="1G").swap == 0
    assert parse(memory="50%").swap == 0
    assert parse(memory="max").swap is None
    assert parse(memory="1G", swap="1G").swap == G
    assert parse(memory="1G", controls={"memory.swap.max": "1G"}).swap is None
    assert parse(hostname="box").uts_ns
    for needing in ({"pid_ns": True}, {"private_tmp": True}, {"readonly": "/etc"}, {"hidden": "/etc"}):
        assert Spec.parse(needing, "marker").mount_ns
    assert not parse(net_ns=True).mount_ns


CONTRADICTIONS: list[tuple[dict[str, object], str, str]] = [
    ({"memory": "1M", "memory_high": M + 1}, "memory_high", "above memory=1048576"),
    ({"memory": "10%", "memory_high": "10.1%"}, "memory_high", "above memory=10%"),
    ({"swap": 0}, "swap", "memory is not"),
    ({"hostname": "box", "uts_ns": False}, "hostname", "needs uts_ns"),
    ({"private_tmp": True, "mount_ns": False}, "private_tmp", "needs mount_ns"),
    ({"readonly": "/etc", "mount_ns": False}, "readonly", "needs mount_ns"),
    ({"hidden": "/etc", "mount_ns": False}, "hidden", "needs mount_ns"),
    ({"pid_ns": True, "mount_ns": False}, "pid_ns", "needs mount_ns"),
    ({"memory": "1M", "controls": {"memory.max": "1M"}}, "controls", "so does memory"),
    ({"pids": 3, "controls": {"pids.max": 3}}, "controls", "so does pids"),
    ({"oom_group": False, "controls": {"memory.oom.group": 1}}, "controls", "so does oom_group"),
    ({"expect": "timeout"}, "expect", "timeout is not given"),
    ({"expect": "cpu-time"}, "expect", "cpu_time is not given"),
    ({"expect": "pids"}, "expect", "pids is not given"),
    ({"expect": "oom"}, "expect", "memory is not given"),
    *(({"isolation": "shared", flag: True}, flag, "inside pytest's") for flag in FLAGS if flag.endswith("_ns")),
    ({"isolation": "shared", "private_tmp": True}, "private_tmp", "inside pytest's"),
    ({"isolation": "shared", "hostname": "box"}, "hostname", "inside pytest's"),
    ({"isolation": "shared", "readonly": "/etc"}, "readonly", "inside pytest's"),
    ({"isolation": "shared", "hidden": "/etc"}, "hidden", "inside pytest's"),
    ({"isolation": "shared", "user": 0}, "user", "inside pytest's"),
    ({"isolation": "shared", "group": 0}, "group", "inside pytest's"),
    ({"isolation": "shared", "no_new_privs": True}, "no_new_privs", "inside pytest's"),
    ({"isolation": "shared", "rlimits": {"nofile": 1}}, "rlimits", "inside pytest's"),
    ({"isolation": "shared", "expect": "exit:3"}, "expect", "end pytest itself"),
    ({"isolation": "shared", "expect": "signal:SEGV"}, "expect", "end pytest itself"),
]


@pytest.mark.parametrize(("kwargs", "field", "reason"), CONTRADICTIONS, ids=lambda x: x if isinstance(x, str) else "")
def test_contradiction(kwargs: dict[str, object], field: str, reason: str) -> None:
    with pytest.raises(SpecError) as caught:
        Spec.parse(kwargs, "marker")
    assert caught.value.field == field
    assert reason in str(caught.value)
    assert "(marker)" in str(caught.value)
    assert caught.value.allowed
    # each half alone is fine, so it is the pair that is refused
    if len(kwargs) == 2:
        assert any(merge(parse_kwargs({name: value}, "m"), where="m") for name, value in kwargs.items())


@pytest.mark.parametrize(
    "kwargs",
    [
        {"memory": "1M", "memory_high": "1M"},
        {"memory": "1M", "memory_high": "50%"},
        {"memory": "max", "memory_high": "1M"},
        {"memory_high": "1M"},
        {"memory": "1M", "memory_high": "max"},
        {"swap": 0, "controls": {"memory.max": "1M"}},
        {"memory": "1M", "controls": {"memory.oom.group": "0"}},
        {"mount_ns": False, "uts_ns": False},
        {"expect": "oom", "memory": "1M"},
        {"expect": "oom", "slice": "db"},
        {"expect": "oom", "controls": {"memory.max": "1M"}},
        {"expect": "pids", "controls": {"pids.max": 3}},
        {"expect": "exit:3"},
        {"isolation": "shared", "memory": "1M", "pid_ns": False, "leaks": "warn"},
    ],
    ids=str,
)
def test_no_contradiction(kwargs: dict[str, object]) -> None:
    spec = Spec.parse(kwargs, "marker")
    assert Spec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    assert isinstance(hash(spec), int)


def test_resolve_turns_shares_into_bytes() -> None:
    spec = parse(memory="50%", memory_high="12.5%", swap="100%").resolve(8 * G)
    assert (spec.memory, spec.memory_high, spec.swap) == (4 * G, G, 8 * G)
    assert parse(memory="1M").resolve(8 * G) == parse(memory="1M")
    assert parse(memory="max").resolve(8 * G).memory == "max"
    assert parse(memory="0.000001%").resolve(G).memory == 4096


def test_resolve_finds_what_contradicts_only_on_this_host() -> None:
    spec = parse(memory="1G", memory_high="50%")
    assert spec.resolve(2 * G).memory_high == G
    with pytest.raises(SpecError, match=r"memory_high=.* is above memory"):
        spec.resolve(2 * G + 2)


def test_json_is_checked_again() -> None:
    with pytest.raises(SpecError, match="contained: pids=0 "):
        Spec.from_json({"pids": 0})
    assert json.loads(json.dumps(Spec().to_json())).keys() == {field.name for field in FIELDS}


# Texts


def test_the_marker_is_explained() -> None:
    first, *lines = marker_help().splitlines()
    assert first.startswith("contained(")
    assert [line.split()[0] for line in lines] == [field.name for field in FIELDS]


def test_the_table_has_a_row_for_each_field() -> None:
    head, line, *rows = spec_table().splitlines()
    assert [row.split("`")[1] for row in rows] == [field.name for field in FIELDS]
    assert {row.replace("\\|", "").count("|") for row in (head, line, *rows)} == {6}


def test_importing_it_is_light() -> None:
    package = os.path.dirname(pytest_cgroup._spec.__file__)
    # A bare package stands for ours: what its __init__ imports beside these is not the question here.
    code = f"""
import sys, types
package = types.ModuleType("pytest_cgroup")
package.__path__ = [{package!r}]
sys.modules["pytest_cgroup"] = package
import pytest_cgroup._spec, pytest_cgroup._outcome
heavy = {{"psutil", "ctypes", "json", "difflib", "pytest", "hypothesis", "resource"}}
print(*sorted(heavy & sys.modules.keys()))
"""
    run = subprocess.run([sys.executable, "-S", "-E", "-c", code], capture_output=True, text=True, check=True, env={})
    assert run.stdout.strip() == ""


def test_the_rlimits_are_those_of_python() -> None:
    known = {name.removeprefix("RLIMIT_").lower() for name in dir(resource) if name.startswith("RLIMIT_")}
    assert set(RLIMITS) == known - {"ofile"}  # OFILE is the BSD spelling of NOFILE
