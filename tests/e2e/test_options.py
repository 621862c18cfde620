"""Every option and every field, from each place that it can be written in: command line, ini file, marker."""

from __future__ import annotations

import json
import os
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pytest_cgroup._spec import FIELDS
from tests.as_user import OrdinaryUser
from tests.e2e.inner import Result, command, run
from tests.e2e.test_endings import limited_cgroup


def outcomes(result: Result) -> dict[str, dict[str, Any]]:
    """The JUnit property of each test."""
    found = {}
    for case in ET.parse(result.junit).iter("testcase"):
        for entry in case.iter("property"):
            found[case.get("name") or ""] = json.loads(entry.get("value") or "")
    return found


class Option(NamedTuple):
    """One option: a value, and how its effect is seen on a contained test that passes."""

    value: str
    seen: Callable[[Result, Path], bool]


OPTIONS = {
    "contained": Option("cpu_time=33", lambda result, _: outcomes(result)["test_it"]["limits"]["cpu_time"] == "33 s"),
    "resource-usage": Option("0", lambda result, _: len(result.table) == 2),
    "resource-usage-json": Option(
        "here.json", lambda _, path: (path / "here.json").read_text().startswith('{"nodeid"')
    ),
    "cgroup-backend": Option("process", lambda result, _: "process table, no cgroup" in result.text),
    "cgroup-missing": Option("fail", lambda result, _: "error" in result.counts),
}


@pytest.mark.parametrize("place", ["nowhere", "command line", "ini", "command line over ini"])
@pytest.mark.parametrize(
    "name", [pytest.param(o, marks=pytest.mark.requires("cgroup") if o == "cgroup-backend" else ()) for o in OPTIONS]
)
def test_every_option(pytester: pytest.Pytester, name: str, place: str) -> None:
    option = OPTIONS[name]
    source = f"@contained({'pids=50' if name == 'cgroup-missing' else 'timeout=50'})\ndef test_it(): pass\n"
    twin = name.replace("-", "_")
    opposite = {"contained": "cpu_time=44", "resource-usage": "7", "cgroup-missing": "skip", "cgroup-backend": "auto"}
    if place == "ini":
        pytester.path.joinpath("pytest.ini").write_text(f"[pytest]\n{twin} = {option.value}\n")
    elif place == "command line over ini":
        pytester.path.joinpath("pytest.ini").write_text(f"[pytest]\n{twin} = {opposite.get(name, 'there.json')}\n")
    arguments = [f"--{name}={option.value}"] if place.startswith("command line") else []
    if name == "cgroup-missing":
        arguments.append("--cgroup-backend=process")
    result = run(pytester, source, *arguments, usage_json=False)
    if place == "nowhere":
        with pytest.raises((AssertionError, KeyError, OSError)):
            assert option.seen(result, pytester.path), "as it should be"
    else:
        assert option.seen(result, pytester.path)
    assert not pytester.path.joinpath("there.json").exists()


@pytest.mark.requires("cgroup", "pids")
@pytest.mark.parametrize("place", ["command line", "ini"])
def test_the_base(pytester: pytest.Pytester, place: str) -> None:
    source = "@contained(pids=50)\ndef test_it(): os.abort()\n"
    with limited_cgroup("pids.max", "100") as base:
        name = Path(base).name
        given = (f"--cgroup-base={base}",) if place == "command line" else ("-o", f"cgroup_base={base}")
        result = run(pytester, source, *given)
        (line,) = [line for line in result.text.splitlines() if line.startswith("contained: cgroup")]
        assert f"/{name}/pytest-cgroup-" in line
        assert not [path for path in Path(base).iterdir() if path.is_dir()], "it left nothing there"


@pytest.mark.requires("root", "cgroup")
def test_a_base_that_is_not_writable_is_a_usage_error_with_the_remedy(unprivileged: OrdinaryUser) -> None:
    directory = unprivileged.home / "base"
    directory.mkdir()
    directory.joinpath("test_it.py").write_text("def test_it(): pass\n")
    with limited_cgroup("pids.max", "100") as base:
        os.chmod(base, 0o755)
        argv = command([f"--cgroup-base={base}", "test_it.py"], python=unprivileged.python)
        done = unprivileged.run(argv, cwd=directory)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    text = done.stdout + done.stderr
    assert f"the cgroup base {base} can't be used: " in text
    assert "Permission denied" in text
    assert "Traceback" not in text


# fields

_CHECKS = """
KINDS = ("pid", "net", "mnt", "ipc", "uts", "cgroup", "time", "user")
def links(): return {kind: os.readlink(f"/proc/self/ns/{kind}") for kind in KINDS}
OUTSIDE = links()
MARK
def test_it():
    import resource
    inside = links()
    assert all(inside[kind] != OUTSIDE[kind] for kind in KINDS), "every namespace is new"
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (200, 300)
    assert socket.gethostname() == "inside"
    assert not os.access("/usr/lib", os.W_OK) and os.statvfs("/usr/lib").f_flag & os.ST_RDONLY
    assert os.listdir("/usr/share") == []
    assert "NoNewPrivs:\\t1" in open("/proc/self/status").read()
    assert not os.path.exists(os.environ["STRANGER"])
    assert (os.getuid(), os.getgid()) == (4242, 4343)
    subprocess.Popen(["sh", "-c", 'trap "exit" TERM; sleep 1000'], start_new_session=True)
"""
#: what is given, and what is then in force, as read back
_GIVEN: dict[str, tuple[object, str | None]] = {
    "memory": ("256M", str(256 << 20)),
    "swap": (0, "0"),
    "cpu": (1.5, "150000 100000"),
    "cpu_weight": (50, None),
    "cpuset": ("0", "0"),
    "pids": (64, "64"),
    "rlimits": ({"nofile": [200, 300]}, None),
    "timeout": (50, "50 s"),
    "cpu_time": (40, "40 s"),
    "pid_ns": (True, None),
    "net_ns": (True, None),
    "mount_ns": (True, None),
    "ipc_ns": (True, None),
    "uts_ns": (True, None),
    "user_ns": (True, None),
    "cgroup_ns": (True, None),
    "time_ns": (True, None),
    "private_tmp": (True, None),
    "hostname": ("inside", None),
    "readonly": (["/usr/lib"], None),
    "hidden": (["/usr/share"], None),
    "user": (4242, None),
    "group": (4343, None),
    "no_new_privs": (True, None),
    "oom_group": (True, None),
    "grace": (0.5, None),
    "leaks": ("ignore", None),
}
#: those that have tests of their own: a device, a kernel with v2, an end, or a later day
_ELSEWHERE = {"controls", "io", "io_weight", "memory_high", "expect", "isolation", "slice"}


def as_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def test_no_field_is_forgotten() -> None:
    assert {*_GIVEN, *_ELSEWHERE} == {field.name for field in FIELDS}


@pytest.mark.requires("root", "memory", "swap", "cpu", "cpuset", "pids", "user_ns", "time_ns")
@pytest.mark.parametrize("place", ["command line", "ini", "marker"])
def test_every_field(pytester: pytest.Pytester, tmp_path_factory: pytest.TempPathFactory, place: str) -> None:
    given = {name: value for name, (value, _) in _GIVEN.items()}
    text = " ".join(f"{name}={as_text(value)}" for name, value in given.items())
    mark, arguments = "", []
    if place == "marker":
        mark = f"@contained(**{given!r})"
    elif place == "command line":
        arguments = [f"--contained={text}"]
    else:
        pytester.path.joinpath("pytest.ini").write_text(
            "[pytest]\ncontained =\n    " + text.replace(" ", "\n    ") + "\n"
        )
    prefix = ("env", f"STRANGER={tmp_path_factory.mktemp('stranger')}")
    result = run(pytester, _CHECKS.replace("MARK", mark), *arguments, prefix=prefix)
    assert result.counts == {"passed": 1}, result.text
    limits = outcomes(result)["test_it"]["limits"]
    expected = {name: wanted for name, (_, wanted) in _GIVEN.items() if wanted is not None}
    assert {name: limits.get(name) for name in expected} == expected
    assert len(result.record["leaks"]) >= 1


@pytest.mark.requires("memory", "pids", "cpu")
def test_field_by_field_the_nearer_place_wins(pytester: pytest.Pytester) -> None:
    pytester.path.joinpath("pytest.ini").write_text(
        "[pytest]\ncontained = timeout=11 cpu_time=11 pids=11 memory=11M cpu=1\n"
    )
    source = """
pytestmark = contained(pids=33, memory="33M")
@contained(memory="44M")
class TestIt:
    @contained(cpu=2)
    @pytest.mark.parametrize("x", [1, pytest.param(2, marks=contained(cpu=3, memory=None))])
    def test_it(self, x): pass
def test_other(): pass
"""
    result = run(pytester, source, "--contained=cpu_time=22,pids=22", "--cgroup-missing=fail")
    found = outcomes(result)
    mega = {name: int(one["limits"].get("memory", 0)) >> 20 for name, one in found.items()}
    assert mega == {"test_it[1]": 44, "test_it[2]": 0, "test_other": 33}
    assert {name: one["limits"]["cpu"].split()[0] for name, one in found.items()} == {
        "test_it[1]": "200000",
        "test_it[2]": "300000",
        "test_other": "100000",
    }
    for one in found.values():
        assert (one["limits"]["timeout"], one["limits"]["cpu_time"], one["limits"]["pids"]) == ("11 s", "22 s", "33")


def test_a_marker_added_while_collecting_counts(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(
        """
import pytest
def pytest_collection_modifyitems(items):
    for item in items:
        item.add_marker(pytest.mark.contained(timeout=77))
"""
    )
    result = run(pytester, "def test_it(): pass\n")
    assert outcomes(result)["test_it"]["limits"]["timeout"] == "77 s"


def test_help_and_markers_read_well(pytester: pytest.Pytester) -> None:
    text = run(pytester, None, "--help").text
    group = text.partition("contained tests (pytest-cgroup):")[2].partition("\n\n")[0]
    for name in (*OPTIONS, "cgroup-base", "cgroup-scope", "cgroup-take-over"):
        assert f"--{name}{'' if name == 'cgroup-take-over' else '='}" in group
        assert f"{name.replace('-', '_')} (string)" in text
    text = run(pytester, None, "--markers").text.partition("@pytest.mark.contained(")[2].partition("@pytest.mark.")[0]
    assert all(f"\n    {field.name} " in text for field in FIELDS)


def test_without_marker_and_option_nothing_is_imported(pytester: pytest.Pytester) -> None:
    source = """
def test_it():
    ours = {name.removeprefix("pytest_cgroup.") for name in sys.modules}
    assert not ours & {"_runner", "_host", "_cgroup", "_container", "_report", "_spec", "_config"}
"""
    assert run(pytester, source, usage_json=False).counts == {"passed": 1}
