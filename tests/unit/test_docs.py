"""What the documentation says in tables is what the code does."""

from __future__ import annotations

import re
from pathlib import Path

from pytest_cgroup._clean import to_json
from pytest_cgroup._doctor import CAPABILITIES, diagnose
from pytest_cgroup._host import Host
from pytest_cgroup._orphans import Cleaned
from pytest_cgroup._outcome import Leak, Outcome, Usage, to_record
from pytest_cgroup._spec import FIELDS, spec_table

DOCS = Path(__file__).resolve().parents[2] / "docs"


def first_column(page: str) -> list[str]:
    """The code words that begin the rows of the tables of *page*."""
    return re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)


def test_every_key_of_the_json_lines_is_documented_and_no_other() -> None:
    page = (DOCS / "reference" / "usage-json.md").read_text(encoding="utf-8")
    leak = Leak(pid=1, argv=(), cwd=None, age_seconds=None, rss_bytes=None, owner=None, status=None)
    outcome = Outcome(
        ended="exit",
        exit_code=0,
        signal=None,
        usage=Usage(),
        leaks=(leak,),
        backend="cgroup",
        limits={},
        phase=None,
        message=None,
        stack=None,
    )
    record = to_record("test_it.py::test", outcome)
    assert set(record) == set(first_column(page))
    assert isinstance(record["leaks"], list)
    assert set(record["leaks"][0]) == set(re.findall(r"`(\w+)`", page.partition("objects with ")[2].partition("|")[0]))


def test_every_field_is_in_the_table_once() -> None:
    assert first_column(spec_table()) == [field.name for field in FIELDS]


def test_every_key_of_the_doctors_json_is_documented_and_no_other() -> None:
    page = (DOCS / "reference" / "doctor.md").read_text(encoding="utf-8")
    host = Host(scope=False)
    try:
        told = diagnose(host).to_json()
    finally:
        host.close()
    found = {*told, *(f"environment.{key}" for key in told["environment"])}
    found |= {f"rungs[].{key}" for key in told["rungs"][0]}
    found |= {f"capabilities.*.{key}" for key in told["capabilities"]["cgroup"]}
    required, _, keys = page.partition("## JSON")
    assert found == set(re.findall(r"^\| `([\w.*\[\]]+)` \|", keys, re.MULTILINE))
    assert [*CAPABILITIES] == re.findall(r"^\| `(\w+)` \|", required, re.MULTILINE) == [*told["capabilities"]]


def test_every_key_of_cleans_json_is_documented_and_no_other() -> None:
    page = (DOCS / "reference" / "clean.md").read_text(encoding="utf-8")
    told = to_json(Cleaned(killed={1: "sleep"}, removed=["/"], left={"/": "why"}))
    found = {*told}
    for name in ("killed", "left"):
        objects = told[name]
        assert isinstance(objects, list)
        found |= {f"{name}[].{key}" for key in objects[0]}
    assert found == set(re.findall(r"^\| `([\w.*\[\]]+)` \|", page.partition("--json` prints")[2], re.MULTILINE))


def test_every_test_of_the_fault_table_is_there() -> None:
    page = (DOCS / "explanation" / "reliability.md").read_text(encoding="utf-8")
    names = re.findall(r"\btest_\w+(?=`)", page.partition("| end |")[2])
    files = [path for kind in ("e2e", "faults", "kernel") for path in (DOCS.parent / "tests" / kind).glob("test_*.py")]
    text = "".join(path.read_text(encoding="utf-8") for path in files)
    assert len(names) > 15
    assert [name for name in names if f"def {name}(" not in text] == []


def test_every_row_of_the_parity_table_names_tests_that_are_there() -> None:
    page = (DOCS / "reference" / "parity.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([PMGLX][\dL-]+) \| ([^|]+) \| ([^|]+) \| ([^|]*) \|$", page, re.MULTILINE)
    assert [name for name, *_ in rows] == [
        *(f"P{n}" for n in range(1, 23)),
        *(f"M{n}" for n in range(1, 22)),
        *(f"G{n}" for n in range(1, 14) if n != 12),
        *("L1-L3", "L4", "L5", "L6", "L7", "L8", "L9", "L10-L11", "L12"),
        *(f"X{n}" for n in range(1, 14)),
    ]
    lost = []
    for name, _, here, shown in rows:
        tests = re.findall(r"`(\w+/test_\w+\.py)::(test_\w+)`", shown)
        assert len(tests) == shown.count("`") / 2, f"{name}: tests alone, as `file::test`"
        assert tests or "**not yet" in here.lower(), f"{name}: no test shows it"
        for file, test in tests:
            path = DOCS.parent / "tests" / file
            if not path.exists() or f"def {test}(" not in path.read_text(encoding="utf-8"):
                lost.append(f"{name}: {file}::{test}")
    assert lost == []
