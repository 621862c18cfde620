"""The page of hosts: a row for every host, and words that follow from what the probe found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from .__main__ import TREE, main
from .report import BEGIN, COLUMNS, END, FIGURES, LIMITS, NAMESPACES, Cell, Found, table, write_table
from .table import HOSTS

PAGE = TREE / "docs" / "reference" / "hosts.md"
REMADE = "python -m tests.hosts --table docs/reference/hosts.md"


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_page_has_a_row_for_every_host_and_no_other() -> None:
    made = PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    head, _, *rows = (cells(line) for line in made.splitlines() if line.startswith("|"))
    assert head == list(COLUMNS)
    assert [row[0] for row in rows] == [f"`{name}`" for name in HOSTS], f"make the table again: {REMADE}"
    assert all(len(row) == len(COLUMNS) and all(row) for row in rows)


def answer(*, missing: tuple[str, ...] = (), tests: dict[str, dict[str, Any]] | None = None) -> dict[str, Any]:
    """What the probe finds where everything is there but what is *missing*; *tests* change the records."""
    record: dict[str, Any] = {"backend": "cgroup", "ended": "exit", "leaks": [], **dict.fromkeys(FIGURES, 1)}
    found: dict[str, Any] = {
        "test_memory": {**record, "ended": "oom"},
        "test_pids": record,
        "test_daemon": {**record, "leaks": [{"argv": ["sleep", "60"]}]},
        "test_usage": record,
        "test_pid_ns": record,
    }
    found |= {name: {**found[name], **change} for name, change in (tests or {}).items()}
    names = ("kill", *LIMITS, *NAMESPACES)
    return {
        "python": "3.11",
        "doctor": {
            "environment": {"kernel": "6.1", "systemd_version": None, "container": None, "session": None, "uid": 0},
            "rungs": [{"name": "the rung"}],
            "capabilities": {name: {"offered": name not in missing} for name in names},
            "not_enforced": [],
        },
        "tests": found,
        "survived": [],
    }


def test_where_everything_is_there() -> None:
    found = Found(answer())
    words = ["6.1", "-", "3.11", "root, no systemd", "the rung", *["yes"] * 5]
    assert found.row() == [Cell(word) for word in words]


def test_what_is_missing_is_noted() -> None:
    assert Found(answer(missing=("cpuset", "io_weight"))).limits() == Cell("yes", "without `cpuset`, `io_weight`")
    assert Found(answer(missing=("time_ns",))).namespaces() == Cell("yes", "without `time_ns`")
    assert Found(answer(missing=("kill",))).kill().word == "weaker"
    null = {"test_usage": {"pids_peak": None}}
    assert Found(answer(tests=null)).usage() == Cell("weaker", "without `pids_peak`")


def test_a_yes_takes_the_kernel_at_work() -> None:
    """Whatever the doctor offers."""
    lost = answer(tests={"test_memory": {"ended": "exit"}, "test_daemon": {"leaks": []}})
    lost["survived"] = ["test_daemon"]
    found = Found(lost)
    assert (found.limits().word, found.kill().word, found.leaks().word) == ("no", "no", "no")
    assert Found(answer(tests={"test_pids": {"pids_max_hits": 0}})).limits().word == "weaker"
    watched = answer(missing=LIMITS, tests={"test_memory": {"backend": "process"}})
    watched["doctor"]["not_enforced"] = ["pids, cpu", "memory: watched"]
    assert Found(watched).limits().word == "weaker"
    assert Found(watched).limits().note.startswith("memory: watched; without `swap`,")


def test_a_skipped_test_is_no_yes() -> None:
    skipped = answer(missing=("user_ns", "net_ns"))
    skipped["tests"] = {}
    assert [cell.word for cell in Found(skipped).row()[-5:]] == ["no"] * 5
    masked = answer(missing=("pid_ns",))
    del masked["tests"]["test_pid_ns"]
    assert Found(masked).namespaces() == Cell("weaker", "without `pid_ns`")


def test_a_note_stands_once() -> None:
    made = table({"a": answer(missing=("cpuset",)), "b": answer(missing=("cpuset", "time_ns"))})
    assert made.count("yes [^1]") == 2
    assert made.count("yes [^2]") == 1
    assert made.endswith("[^1]: without `cpuset`\n[^2]: without `time_ns`")


def test_only_what_is_between_the_marks_is_written(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n\n{BEGIN}\nold\n{END}\n\nafter\n")
    write_table(page, {"a": answer()})
    text = page.read_text()
    assert text.startswith(f"before\n\n{BEGIN}\n\n| host |")
    assert text.endswith(f"{END}\n\nafter\n")
    assert "old" not in text
    page.write_text("no marks\n")
    with pytest.raises(ValueError, match="no place for the table"):
        write_table(page, {"a": answer()})


@pytest.mark.parametrize("more", [["v1-root"], ["--fast"], ["--command", "true"], ["--", "-q"]])
def test_the_table_is_of_all_hosts(more: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--table", "no-page.md", *more])
    assert "of all hosts" in capsys.readouterr().err
