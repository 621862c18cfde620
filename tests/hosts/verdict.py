"""What came of each host: counts out of pytest's last line, the verdict, the table."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from .probe import answer_in
from .rig.guest import Result
from .rig.settings import Settings
from .table import Host

NOT_CHECKED: Final = 77  # the exit status that other test harnesses use for "skipped"
WHERE: Final = ("host", "kernel", "cgroup", "init", "user", "place")
NUMBERS: Final = ("passed", "failed", "skipped", "seconds", "status")
_SUMMARY: Final = re.compile(r"=* ?((?:\d+ [a-z]+(?:, )?)+|no tests ran) in \d+\.\d+s(?: \([\d:]+\))? ?=*")
_COLOUR: Final = re.compile(r"\x1b\[[\d;]*m")


class Counts:
    """Watches a guest's output for pytest's closing lines, of which the last one counts, and for the probe's answer."""

    def __init__(self) -> None:
        self.numbers: Mapping[str, int] | None = None
        self.probed: Any = None

    def see(self, line: bytes) -> None:
        text = _COLOUR.sub("", line.decode(errors="replace")).strip()
        self.probed = answer_in(text) or self.probed
        if match := _SUMMARY.fullmatch(text):
            words = (part.split() for part in match[1].split(", ") if part[0].isdigit())
            self.numbers = {word: int(number) for number, word in words}

    def total(self, *words: str) -> int | None:
        return None if self.numbers is None else sum(self.numbers.get(word, 0) for word in words)

    @property
    def passed(self) -> int | None:
        return self.total("passed")

    @property
    def failed(self) -> int | None:
        return self.total("failed", "error", "errors", "xpassed")

    @property
    def skipped(self) -> int | None:
        return self.total("skipped")


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One host's end.  ``result`` is None where it was not checked, for the reason in ``why``."""

    name: str
    settings: Settings
    result: Result | None = None
    counts: Counts = field(default_factory=Counts)
    is_pytest: bool = True
    why: str = ""

    @property
    def checked(self) -> bool:
        return self.result is not None

    @property
    def passed(self) -> bool:
        """Status 0; and with pytest, at least one test passed and none failed: no result is never a pass."""
        if self.result is None or self.result.ended != "exit" or self.result.status != 0:
            return False
        return not self.is_pytest or (bool(self.counts.passed) and not self.counts.failed)

    @property
    def remark(self) -> str:
        """What the table's numbers do not say."""
        if self.result is None:
            return f"not checked: {self.why}"
        if self.result.ended == "deadline":
            return f"stopped at its deadline; the guest's own log: {self.result.log}"
        if self.result.ended == "died":
            return f"the guest ended without a report; its own log: {self.result.log}"
        if self.result.status == 0 and not self.passed:
            return "status 0, but pytest did not say that a test passed"
        return ""

    def row(self) -> list[str]:
        settings, result, counts = self.settings, self.result, self.counts
        numbers = (counts.passed, counts.failed, counts.skipped) if self.is_pytest else (None, None, None)
        return [
            self.name,
            (result and result.kernel) or settings.kernel,
            settings.cgroup,
            settings.init,
            settings.user,
            settings.place,
            *("-" if number is None else str(number) for number in numbers),
            f"{result.seconds:.0f}" if result else "-",
            str(result.status) if result else "not checked",
        ]


def exit_status(verdicts: Iterable[Verdict]) -> int:
    """1 if a host failed; else 77 if one could not be checked; else 0.  No hosts at all is no pass either."""
    verdicts = list(verdicts)
    if any(verdict.checked and not verdict.passed for verdict in verdicts):
        return 1
    return 0 if verdicts and all(verdict.checked for verdict in verdicts) else NOT_CHECKED


def summary(verdicts: Sequence[Verdict]) -> str:
    """The table, and below it what it does not say."""
    remarks = [f"{verdict.name}: {verdict.remark}" for verdict in verdicts if verdict.remark]
    return "\n".join([aligned((*WHERE, *NUMBERS), [verdict.row() for verdict in verdicts]), *remarks])


def hosts_list(hosts: Mapping[str, Host]) -> str:
    """The hosts there are, with what must work on each."""
    columns = [*WHERE, "python", "fast", "must work"]
    rows = []
    for name, host in hosts.items():
        chosen = host.settings
        place = [chosen.kernel, chosen.cgroup, chosen.init, chosen.user, chosen.place, chosen.python]
        rows.append([name, *place, "yes" if host.fast else "", " ".join(host.offers)])
    return aligned(columns, rows)


def aligned(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns side by side, those of numbers to the right."""
    widths = [max(map(len, cells)) for cells in zip(columns, *rows, strict=True)]
    lines = []
    for row in (columns, *rows):
        cells = [
            cell.rjust(width) if column in NUMBERS else cell.ljust(width)
            for column, width, cell in zip(columns, widths, row, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
