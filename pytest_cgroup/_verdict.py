"""What becomes of a contained test's reports: crashes, leaks and expectations, added to what the test itself said."""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING, Any

from ._isolated import json
from ._outcome import signal_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import pytest

    from ._outcome import Leak, Outcome

#: the property that carries an `Outcome` as JSON: on the teardown report it crosses xdist and lands in JUnit
PROPERTY = "contained"
#: and the one that carries, as JSON, the leaks that were found in place
LEAKS_PROPERTY = "process_leaks"


def fail(report: pytest.TestReport, text: str, *, xfail_reason: str | None) -> None:
    """Make *report* a failure that says *text*, unless an xfail mark covers it."""
    report.longrepr = text
    if xfail_reason is None:
        report.outcome = "failed"
    else:
        report.outcome = "skipped"
        report.wasxfail = xfail_reason


def add_failure(report: pytest.TestReport, text: str, *, xfail_reason: str | None = None) -> None:
    """Make *report* a failure that says *text*, too: it never replaces the test's own."""
    if report.failed:
        report.longrepr = f"{report.longreprtext}\n\n{text}"
    else:
        fail(report, text, xfail_reason=xfail_reason)


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
    above = f"of its slice {outcome.limits['slice']}" if "slice" in outcome.limits else "set above it"
    limit = outcome.limits.get("pids", above)
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


def one_line(text: str) -> str:
    """A name may hold newlines and escape sequences; what is shown of it is harmless."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def leak_text(leaks: Sequence[Leak]) -> str:
    """What was left behind, one a line: the processes first."""
    processes = [leak for leak in leaks if leak.kind == "process"]
    others = [leak for leak in leaks if leak.kind != "process"]
    lines = []
    if processes:
        names = ", ".join((ascii(leak.argv[0])[1:-1] if leak.argv else leak.status or "?") for leak in processes[:3])
        more = ", …" if len(processes) > 3 else ""
        lines.append(f"left behind, now killed: {counted(processes)} ({names}{more})")
        lines += [f"  {leak_line(leak)}" for leak in processes]
    if others:
        lines += [f"left behind: {counted(others)}", *(f"  {leak_line(leak)}" for leak in others)]
    return "\n".join(lines)


def counted(leaks: Iterable[Leak]) -> str:
    """``"2 processes, 1 thread"``."""
    counts: dict[str, int] = {}
    for leak in leaks:
        counts[leak.kind] = counts.get(leak.kind, 0) + 1
    endings = {"process": "es"}
    return ", ".join(plural(count, kind, endings.get(kind, "s")) for kind, count in counts.items())


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


def as_property(outcome: Outcome, leak_policy: str) -> tuple[str, str]:
    """The outcome as a user property, with what was to become of its leaks: ``"fail"``, ``"warn"``, ``"ignore"``."""
    return PROPERTY, json.dumps({**outcome.to_json(), "leak_policy": leak_policy})


def leaks_as_property(leaks: Iterable[Leak]) -> tuple[str, str]:
    """Leaks that were found in place as a user property."""
    return LEAKS_PROPERTY, json.dumps([leak.to_json() for leak in leaks])


def leaks_in_place(report: pytest.TestReport) -> list[Leak]:
    """The leaks that were found in place and that a report carries."""
    from ._outcome import Leak

    leaks: list[Leak] = []
    for found in _values(report, LEAKS_PROPERTY):
        with contextlib.suppress(ValueError):
            leaks += [Leak.from_json(one) for one in found] if isinstance(found, list) else []
    return leaks


def leaks_told(report: pytest.TestReport) -> tuple[list[Leak], bool]:
    """All leaks that a report carries, the container's too, but for those to be ignored; and whether they fail it."""
    leaks, failing = leaks_in_place(report), report.failed
    outcome = from_properties(report)
    if outcome is not None and outcome.leaks:
        policy = next((one.get("leak_policy") for one in _values(report, PROPERTY)), "fail")
        leaks = [*(outcome.leaks if policy != "ignore" else ()), *leaks]
        failing = failing or (policy == "fail" and not hasattr(report, "wasxfail"))  # a crash failed the call
    return leaks, failing


def from_properties(report: pytest.TestReport) -> Outcome | None:
    """The outcome that a report carries, None if it carries none."""
    from ._outcome import Outcome

    for value in _values(report, PROPERTY):
        with contextlib.suppress(ValueError):
            return Outcome.from_json(value)
    return None


def _values(report: pytest.TestReport, wanted: str) -> Iterator[Any]:
    """The JSON values of a report's properties of one name; a test may record what it likes under it."""
    for name, value in getattr(report, "user_properties", ()):
        if name == wanted and isinstance(value, str):
            with contextlib.suppress(ValueError):
                yield json.loads(value)
