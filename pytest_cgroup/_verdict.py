"""What becomes of a contained test's reports: crashes, leaks and expectations, added to what the test itself said."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from ._outcome import signal_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pytest

    from ._outcome import Leak, Outcome

#: the property that carries an `Outcome` as JSON: on the teardown report it crosses xdist and lands in JUnit
PROPERTY = "contained"


def fail(report: pytest.TestReport, text: str, *, xfail_reason: str | None) -> None:
    """Make *report* a failure that says *text*, unless an xfail mark covers it."""
    report.longrepr = text
    if xfail_reason is None:
        report.outcome = "failed"
    else:
        report.outcome = "skipped"
        report.wasxfail = xfail_reason


def crash_text(outcome: Outcome, *, expect: str | None, leaks: bool) -> str:
    """The failure of a test whose process ended without a report of its own."""
    first = _how(outcome) if expect is None else f"{_how(outcome)}, but was expected to end by {expect}"
    lines = [first, *(f"note: {note}" for note in notes(outcome))]
    if outcome.leaks and leaks:
        lines += ["", leak_text(outcome.leaks)]
    if outcome.stack:
        lines += ["", "the last Python stack:", users_stack(outcome.stack)]
    return "\n".join(lines)


def _how(outcome: Outcome) -> str:
    if outcome.ended == "error":
        return f"contained: {outcome.message or 'the container could not be entered'}"
    if outcome.ended == "exit":
        return f"{outcome.describe()} without a result, and no result is no pass"
    return outcome.describe()


def notes(outcome: Outcome) -> list[str]:
    """What a person should know beside how it ended."""
    hits = outcome.usage.pids_max_hits
    limit = outcome.limits.get("pids", "set above it")
    return [
        *([f"the pids limit ({limit}) was hit {plural(hits, 'time')}: fork failed with EAGAIN"] if hits else ()),
        *outcome.notes,
    ]


_PYTESTS_OWN = re.compile(r'^  File ".*/(?:_pytest/(?:python|fixtures|runner|unittest)|pluggy/\w+)\.py"')


def users_stack(stack: str) -> str:
    """A stack as faulthandler prints it, most recent call first, each thread's up to where pytest called the test."""
    lines: list[str] = []
    within = False
    for line in stack.splitlines():
        if not line.startswith("  File "):
            within = False
        elif not within and _PYTESTS_OWN.match(line) and lines and lines[-1].startswith("  File "):
            within = True
        if not within:
            lines.append(line)
    return "\n".join(lines)


def plural(count: int, what: str, ending: str = "s") -> str:
    """``"1 task"``, ``"2 tasks"``."""
    return f"{count} {what}{'' if count == 1 else ending}"


def leak_text(leaks: Sequence[Leak]) -> str:
    """The processes that were left behind, one a line."""
    names = ", ".join((ascii(leak.argv[0])[1:-1] if leak.argv else leak.status or "?") for leak in leaks[:3])
    first = f"left behind, now killed: {plural(len(leaks), 'process', 'es')} ({names}{', …' if len(leaks) > 3 else ''})"
    return "\n".join([first, *(f"  {leak_line(leak)}" for leak in leaks)])


def leak_line(leak: Leak) -> str:
    """One leak, without its owner: it stands in its owner's report."""
    import dataclasses

    return dataclasses.replace(leak, owner=None).describe()


def met(expect: str, outcome: Outcome) -> bool:
    """Whether the container ended as `expect` says."""
    what, _, which = expect.partition(":")
    if what == "oom":
        return outcome.oom_killed or bool(outcome.usage.oom_kill)
    if what == "pids":
        return bool(outcome.usage.pids_max_hits)
    if what == "signal":
        name = signal_name(outcome.signal or 0).removeprefix("SIG")
        return outcome.ended == "signal" and name in (which, f"signal {which}")
    if what == "exit":
        return outcome.ended == "exit" and outcome.exit_code == int(which)
    return outcome.ended == what


def as_property(outcome: Outcome) -> tuple[str, str]:
    """The outcome as a user property."""
    return PROPERTY, json.dumps(outcome.to_json())


def from_properties(report: pytest.TestReport) -> Outcome | None:
    """The outcome that a report carries, None if it carries none."""
    from ._outcome import Outcome

    for name, value in getattr(report, "user_properties", ()):
        if name == PROPERTY and isinstance(value, str):
            try:
                return Outcome.from_json(json.loads(value))
            except ValueError:
                return None
    return None
