"""What a person and a machine read: sections, the usage table, the JUnit property, the file of JSON lines."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.inner import Result, run

_DOCUMENT = Path(__file__).parents[2] / "docs/reference/usage-json.md"
both = pytest.mark.parametrize("workers", [0, 2])

_SOURCE = """
@contained
def test_light(): pass
@contained
def test_heavy():
    block = bytearray(40 << 20)
@contained
def test_middle():
    block = bytearray(20 << 20)
@contained
def test_leak(): subprocess.Popen(["sleep", "1000"])
def test_plain(): pass
"""


def names_in(table: list[str]) -> list[str]:
    return [line.rpartition("::")[2] for line in table[1:] if "::" in line]


@both
def test_the_table_is_aligned_heaviest_first_one_line_a_test(pytester: pytest.Pytester, workers: int) -> None:
    result = run(pytester, _SOURCE, "--resource-usage", workers=workers)
    head, *lines = result.table
    assert [word for word in head.split() if word not in ("tasks", "read", "written")] == [
        "memory",
        "cpu",
        "wall",
        "test",
    ]
    assert names_in(result.table)[:2] == ["test_heavy", "test_middle"]
    assert sorted(names_in(result.table)[2:]) == ["test_leak", "test_light"]
    ends = {match.end() for line in lines for match in [re.match(r" *[\d.]+M", line)] if match}
    assert ends == {head.index("memory") + len("memory")}, "numbers end under their title"
    assert len({line.index("test_it.py::") for line in lines}) == 1
    assert head.index("test") == lines[0].index("test_it.py::")
    assert "LEAK" in next(line for line in lines if line.endswith("test_leak"))
    assert not any("LEAK" in line for line in lines if not line.endswith("test_leak"))
    assert "test_plain" not in "\n".join(result.table)


def test_the_table_is_as_long_as_asked(pytester: pytest.Pytester) -> None:
    result = run(pytester, _SOURCE, "--resource-usage=2")
    assert names_in(result.table) == ["test_heavy", "test_middle"]
    assert result.table[-1] == "2 of 4 contained tests; all with --resource-usage=0"
    for everything in (("--resource-usage=0",), ("-o", "resource_usage=0")):
        result = run(pytester, None, *everything)
        assert len(names_in(result.table)) == 4
        assert "of 4 contained" not in result.text
    assert len(names_in(run(pytester, None, "-o", "resource_usage=0", "--resource-usage=1").table)) == 1


def test_unasked_the_table_shows_what_was_killed_or_leaked(pytester: pytest.Pytester) -> None:
    result = run(pytester, _SOURCE + "\n@contained\ndef test_killed(): os.abort()\n")
    assert set(names_in(result.table)) == {"test_leak", "test_killed"}
    assert "SIGABRT" in next(line for line in result.table if line.endswith("test_killed"))
    assert result.table[-1] == "2 of 5 contained tests; all with --resource-usage=0"


def test_a_table_without_a_contained_test_says_so(pytester: pytest.Pytester) -> None:
    result = run(pytester, "def test_it(): pass\n", "--resource-usage")
    assert result.table == ["no contained test has run"]


@both
def test_the_section_stands_on_failing_reports_only(pytester: pytest.Pytester, workers: int) -> None:
    source = """
@contained(pids=50, timeout=60)
def test_fails(): assert 0
@contained(pids=50)
def test_passes(): pass
"""
    result = run(pytester, source, "--cgroup-missing=warn", "-rA", workers=workers)
    section = result.blocks["test_fails"].partition("- contained -")[2]
    assert "used: " in section
    assert " wall, " in section
    assert "limits: " in section
    assert "timeout=60 s" in section
    assert "backend: " in section
    assert result.text.count("- contained -") == 1


def test_what_is_not_enforced_is_said(pytester: pytest.Pytester) -> None:
    source = "@contained(memory='1G')\ndef test_it(): assert 0\n"
    result = run(pytester, source, "--cgroup-backend=process")
    assert "not enforced: memory: watched every" in result.blocks["test_it"]
    assert result.record["not_enforced"][0].startswith("memory: watched every")
    assert result.record["pids_peak"] is None, "what this backend does not measure is null, not 0"


@both
def test_junit_carries_the_outcome(pytester: pytest.Pytester, workers: int) -> None:
    result = run(pytester, _SOURCE, workers=workers)
    found = {}
    for case in ET.parse(result.junit).iter("testcase"):
        for entry in case.iter("property"):
            assert entry.get("name") == "contained"
            found[case.get("name")] = json.loads(entry.get("value") or "")
    assert set(found) == {"test_light", "test_heavy", "test_middle", "test_leak"}
    assert found["test_heavy"]["usage"]["memory_peak_bytes"] > 40 << 20
    assert found["test_leak"]["leaks"][0]["argv"] == ["sleep", "1000"]


def test_the_tests_own_properties_stay(pytester: pytest.Pytester) -> None:
    source = "@contained\ndef test_it(record_property): record_property('mine', 1)\n"
    result = run(pytester, source)
    names = [entry.get("name", "") for entry in ET.parse(result.junit).iter("property")]
    assert sorted(names) == ["contained", "mine"]


# the file of JSON lines, against its documentation

_TYPES: dict[str, Callable[[Any], bool]] = {
    "string": lambda value: isinstance(value, str),
    "integer": lambda value: type(value) is int,
    "number": lambda value: type(value) in (int, float),
    "null": lambda value: value is None,
    "list of strings": lambda value: isinstance(value, list) and all(isinstance(one, str) for one in value),
    "list of objects": lambda value: isinstance(value, list) and all(isinstance(one, dict) for one in value),
}


def documented() -> tuple[dict[str, str], dict[str, str]]:
    """The table of the page: the types by key, of a record and of a leak in it."""
    rows = re.findall(r"^\| `([\w\[\].]+)` \| ([^|]+) \|", _DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)
    leak = {key.removeprefix("leaks[]."): types for key, types in rows if key.startswith("leaks[].")}
    return {key: types for key, types in rows if "." not in key}, leak


def check_against(types: dict[str, str], record: dict[str, Any]) -> None:
    assert list(record) == list(types)
    for key, value in record.items():
        assert any(_TYPES[name](value) for name in types[key].split(" or ")), f"{key}={value!r}: {types[key]}"


@pytest.mark.parametrize("backend", ["auto", "process"])
@both
def test_the_json_lines_are_as_documented(pytester: pytest.Pytester, backend: str, workers: int) -> None:
    source = (
        _SOURCE
        + """
@contained
def test_fails(): assert 0
@contained
def test_crashes(): os.abort()
@contained
def test_skips(): pytest.skip("so")
@contained
@pytest.mark.xfail
def test_xfails(): assert 0
@contained
@pytest.mark.xfail
def test_xpasses(): pass
@contained
def test_error(no_such_fixture): pass
@contained
@pytest.mark.skip
def test_not_run(): pass
"""
    )
    result = run(pytester, source, f"--cgroup-backend={backend}", workers=workers)
    record_types, leak_types = documented()
    for record in result.records.values():
        check_against(record_types, record)
        for leak in record["leaks"]:
            check_against(leak_types, leak)
    assert {name: record["outcome"] for name, record in result.records.items()} == {
        "test_light": "passed",
        "test_heavy": "passed",
        "test_middle": "passed",
        "test_leak": "failed",
        "test_fails": "failed",
        "test_crashes": "failed",
        "test_skips": "skipped",
        "test_xfails": "xfailed",
        "test_xpasses": "xpassed",
    }
    assert len(result.records["test_leak"]["leaks"]) == 1
    words = dict(
        re.findall(r"^\| `(outcome|ended|backend)` \| string \| (.*) \|$", _DOCUMENT.read_text(), re.MULTILINE)
    )
    for record in result.records.values():
        assert all(f"`{record[key]}`" in words[key] for key in words)


def test_the_documented_example_is_as_documented() -> None:
    example = re.search(r"^```json\n(.*?)^```$", _DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert example
    check_against(documented()[0], json.loads(example[1]))


def test_the_json_file_is_emptied_at_the_start_but_not_by_a_mere_collection(pytester: pytest.Pytester) -> None:
    file = pytester.path / "kept.json"
    file.write_text("old\n")
    source = "@contained\ndef test_it(): pass\n"
    run(pytester, source, f"--resource-usage-json={file}", "--collect-only", usage_json=False)
    assert file.read_text() == "old\n"
    run(pytester, None, f"--resource-usage-json={file}", usage_json=False)
    (line,) = file.read_text().splitlines()
    assert json.loads(line)["nodeid"] == "test_it.py::test_it"
    run(pytester, None, "-k", "nothing", f"--resource-usage-json={file}", usage_json=False)
    assert file.read_text() == ""


def test_a_run_that_is_broken_off_keeps_what_had_ended(pytester: pytest.Pytester) -> None:
    source = "@contained\ndef test_a(): pass\ndef test_b(): raise KeyboardInterrupt\n"
    result = run(pytester, source)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert list(result.records) == ["test_a"]


def wall(result: Result) -> float:
    return float(result.record["wall_seconds"])


def test_numbers_are_those_of_the_whole_tree(pytester: pytest.Pytester) -> None:
    """CPU that a reaped grandchild used, and memory that a child had: measured, not guessed."""
    burn = "import time; t = time.process_time()\nwhile time.process_time() - t < 0.3: pass"
    source = f"""
@contained
def test_it():
    subprocess.run([sys.executable, "-c", {burn!r}], check=True)
"""
    result = run(pytester, source)
    assert result.record["cpu_user_seconds"] + result.record["cpu_system_seconds"] >= 0.3
    assert wall(result) >= 0.3 / 2
