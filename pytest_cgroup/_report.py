"""What a person and a machine read of contained tests: sections, the usage table, JSON lines."""

from __future__ import annotations

from typing import TYPE_CHECKING, TextIO

import pytest

from ._isolated import io, json
from ._outcome import signal_name, to_record
from ._units import format_seconds, format_size
from ._verdict import from_properties, leaks_in_place, notes, one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ._outcome import Leak, Outcome

_SIZES = ("memory", "swap", "memory_high")


def section(outcome: Outcome) -> str:
    """The section "contained" of a failing report: limits in force, what was used, what was not enforced."""
    lines = [f"note: {note}" for note in notes(outcome)]
    if outcome.limits:
        lines.append("limits: " + ", ".join(f"{name}={_limit(name, value)}" for name, value in outcome.limits.items()))
    lines.append(f"used: {outcome.usage.describe()}")
    lines += [f"not enforced: {what}" for what in outcome.not_enforced]
    return "\n".join([*lines, f"backend: {outcome.backend}"])


def _limit(name: str, value: str) -> str:
    return format_size(int(value)) if name in _SIZES and value.isdigit() else value


# the table at the end

_LONG_ID = 120
_HEAD = ("memory", "cpu", "wall", "tasks", "read", "written", "", "test")


def _row(nodeid: str, outcome: Outcome) -> tuple[str, ...]:
    usage = outcome.usage
    return (
        format_size(usage.memory_peak_bytes),
        format_seconds(usage.cpu_seconds),
        format_seconds(usage.wall_seconds),
        "-" if usage.pids_peak is None else str(usage.pids_peak),
        format_size(usage.io_read_bytes),
        format_size(usage.io_write_bytes),
        _mark(outcome),
        _one_line(nodeid),
    )


def _one_line(nodeid: str) -> str:
    """A test's id may hold newlines, escape sequences and 10 kB."""
    text = nodeid if len(nodeid) <= _LONG_ID else nodeid[: _LONG_ID - 1] + "…"
    return one_line(text)


def _mark(outcome: Outcome) -> str:
    marks = []
    if outcome.ended == "signal":
        marks.append(signal_name(outcome.signal or 0))
    elif outcome.killed:
        marks.append({"oom-ancestor": "OOM ABOVE", "cpu-time": "CPU TIME"}.get(outcome.ended, outcome.ended.upper()))
    if outcome.usage.pids_max_hits:
        marks.append("PIDS")
    if outcome.leaks:
        marks.append("LEAK")
    return " ".join(marks)


def table(found: list[tuple[str, Outcome]], most: int | None) -> list[str]:
    """The *most* heaviest tests, heaviest first, a line each, and a head; all for 0 or None. No empty columns."""

    def weight(one: tuple[str, Outcome]) -> tuple[int, float]:
        return one[1].usage.memory_peak_bytes or 0, one[1].usage.cpu_seconds or 0.0

    heaviest = sorted(found, key=weight, reverse=True)[: most or None]
    rows = [_HEAD, *(_row(nodeid, outcome) for nodeid, outcome in heaviest)]
    used = [column for column in range(len(_HEAD)) if any(row[column] not in ("", "-") for row in rows[1:])]
    widths = {column: max(len(row[column]) for row in rows) for column in used}
    last = len(_HEAD) - 1
    return [
        "  ".join(
            row[column] if column == last else
            row[column].ljust(widths[column]) if column == last - 1 else
            row[column].rjust(widths[column])
            for column in used
        ).rstrip()
        for row in rows
    ]  # fmt: skip


def summary(reporter: pytest.TerminalReporter, asked: int | None, rung: Callable[[set[str]], str | None]) -> None:
    """The table, where it was asked for, or of those contained tests that were killed, hit a limit, or leaked.

    ``rung`` is given the names of the backends that were used, and says what no header has said of them.
    """
    found = [
        (report.nodeid, outcome)
        for reports in reporter.stats.values()
        for report in reports
        if getattr(report, "when", None) == "teardown" and (outcome := from_properties(report)) is not None
    ]
    chosen = found if asked is not None else [one for one in found if _mark(one[1])]
    backends = {outcome.backend for _, outcome in found}
    line = rung(backends) if backends else None
    if asked is None and not chosen and line is None:
        return
    reporter.section(f"contained tests ({', '.join(sorted(backends))})" if backends else "contained tests")
    if not found:
        reporter.write_line("no contained test has run")
        return
    if line is not None:
        reporter.write_line(line)
    if asked is None and not chosen:
        return
    lines = table(chosen, asked)
    for line in lines:
        reporter.write_line(line)
    if len(lines) - 1 < len(found):
        reporter.write_line(f"{len(lines) - 1} of {len(found)} contained tests; all with --resource-usage=0")


class JsonLines:
    """The plugin behind ``--resource-usage-json=FILE``: an object a line as each test ends: a lost run keeps them."""

    def __init__(self, path: str, asked_by: str) -> None:
        self._path = path
        self._asked_by = asked_by
        self._file: TextIO | None = None
        self._outcomes: dict[str, str] = {}

    def pytest_sessionstart(self) -> None:
        try:
            self._file = io.open(self._path, "w", encoding="utf-8")  # closed by pytest_unconfigure
        except OSError as error:
            raise pytest.UsageError(f"{self._asked_by}={self._path}: can't be written: {error.strerror}") from error

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        worst = self._outcomes.get(report.nodeid)
        if report.when == "call" or report.outcome != "passed":
            said = _verdict_word(report)
            self._outcomes[report.nodeid] = "failed" if worst == "failed" else said
        if report.when != "teardown":
            return
        word = self._outcomes.pop(report.nodeid, "passed")
        outcome, leaks = from_properties(report), leaks_in_place(report)
        if outcome is not None or leaks:
            self._write(to_record(report.nodeid, outcome, word, leaks))

    def add(self, leaks: Iterable[Leak]) -> None:
        """Leaks that no test's report tells of."""
        self._write(to_record(None, None, None, leaks))

    def _write(self, record: dict[str, object]) -> None:
        if self._file is not None:
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()

    def pytest_unconfigure(self) -> None:
        if self._file is not None:
            self._file.close()


def _verdict_word(report: pytest.TestReport) -> str:
    if hasattr(report, "wasxfail"):
        return "xfailed" if report.skipped else "xpassed"
    return report.outcome
