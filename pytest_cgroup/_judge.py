"""The reports of a contained test: the child's, what is known of a child that made none, and what leaks add."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import _report, _seam, _verdict
from ._output import has_section, joined
from .exceptions import ContainedWarning

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

    from ._outcome import Outcome
    from ._output import Output
    from ._spec import Spec


class Judge:
    """Makes pytest's reports of one contained test out of what came home and how the container ended."""

    def __init__(self, item: pytest.Item, spec: Spec, output: Output, *, lazily: bool) -> None:
        self.item = item
        self.spec = spec
        self.output = output
        self.lazily = lazily
        #: the phases' reports that came home
        self.reports: dict[str, pytest.TestReport] = {}
        #: how far the child has reported its output
        self.positions = {"out": 0, "err": 0}
        #: the phase that it never reported
        self.crashed_in: str | None = None
        #: what should be known of what it left, and is not
        self.untold: str | None = None
        #: what hooks raised
        self.troubles: list[str] = []
        #: how it ended, once it has
        self.outcome: Outcome | None = None

    def report(self, own: pytest.TestReport, so_far: Callable[[], Outcome] | None) -> pytest.TestReport:
        """The report of a phase: the child's, or what is known of a child that made none.

        Args:
            own: what pytest itself, where nothing ran, would report.
            so_far: the numbers of a container that has not been destroyed yet.
        """
        if own.when == "teardown":
            torn_down = self._teardown_report(own)
            for trouble in self.troubles:
                _verdict.add_failure(torn_down, trouble)
            return torn_down
        report = self.reports.get(own.when)
        if report is None:
            report = self._crash_report(own)
        elif report.failed and so_far is not None:
            report.sections.append(("contained", _report.section(so_far())))
        if own.when == "call":
            self._judge_expectation(report, so_far)
        return report

    def _crash_report(self, own: pytest.TestReport) -> pytest.TestReport:
        """For a phase that the child never reported: it ended in it, or before."""
        outcome = self.outcome
        outer = self._outer_sections(own)
        own.sections = [*self._earlier_sections()]
        if outcome is None or self.crashed_in != own.when:
            own.sections = joined(own.sections, outer)
            return own  # an expected end came in an earlier phase: this one has nothing to add
        if own.when == "teardown" and self._is_expected(outcome):
            return own
        self.output.positions = self.positions
        rest = self.output.rest(self.crashed_in, lazily=self.lazily)
        own.sections = joined(joined(own.sections, rest), outer)
        own.sections.append(("contained", _report.section(outcome)))
        if not self._is_expected(outcome):
            reason = _seam.expected_failure(self.item) if outcome.ended != "error" else None
            text = _verdict.crash_text(outcome, expect=self.spec.expect, leaks=self.spec.leaks != "ignore")
            _verdict.fail(own, text, xfail_reason=reason)
        return own

    def _earlier_sections(self) -> list[tuple[str, str]]:
        latest = self.reports.get("call") or self.reports.get("setup")
        return [] if latest is None else joined(latest.sections, [])

    def _is_expected(self, outcome: Outcome) -> bool:
        return self.spec.expect is not None and _verdict.met(self.spec.expect, outcome)

    def _judge_expectation(self, report: pytest.TestReport, so_far: Callable[[], Outcome] | None) -> None:
        """A test that should have ended otherwise, and passed, has failed; one that ended so has passed."""
        expect = self.spec.expect
        if expect is None or (self.outcome is not None and self.crashed_in != "call"):
            return
        outcome = self.outcome or (so_far and so_far())
        if outcome is None:
            return
        if _verdict.met(expect, outcome):
            if report.failed:
                report.outcome, report.longrepr = "passed", None
        elif report.passed and not hasattr(report, "wasxfail"):
            _verdict.fail(report, f"expected to end by {expect}, but it passed", xfail_reason=None)
            report.sections.append(("contained", _report.section(outcome)))
        elif report.failed and self.outcome is None:
            report.sections.append(("contained", f"expected to end by {expect}"))

    def _teardown_report(self, own: pytest.TestReport) -> pytest.TestReport:
        """The child's teardown report and what happened to its container, with what pytest's own teardown added."""
        theirs = self.reports.get("teardown")
        outcome = self.outcome
        if outcome is None:
            return own  # there was no child
        if theirs is None:
            outside = own.longrepr
            report = self._crash_report(own)
            if outside and report.longrepr is not outside:
                report.longrepr = _both(report.longreprtext, str(outside))
        elif own.failed and theirs.failed:
            report = theirs
            report.longrepr = _both(theirs.longreprtext, own.longreprtext)
        elif own.failed:
            report = own
            report.sections = joined(theirs.sections, self._outer_sections(own))
        else:
            report = theirs
            report.start, report.stop, report.duration = own.start, own.stop, own.duration
        if theirs is not None and report is theirs:
            report.sections = joined(report.sections, self._outer_sections(own))
        if self.untold is not None and self.spec.leaks != "ignore":
            self._report_untold(report, self.untold)
        if theirs is not None and self.crashed_in == "teardown" and not self._is_expected(outcome):
            self._report_no_end(report, outcome)
        elif outcome.leaks and self.crashed_in is None:
            self._report_leaks(report, outcome)
        elif report.failed and not has_section(report.sections, "contained"):
            report.sections.append(("contained", _report.section(outcome)))
        if theirs is not None:
            report.user_properties = [one for one in theirs.user_properties if one[0] != _verdict.PROPERTY]
        report.user_properties.append(_verdict.as_property(outcome, self.spec.leaks))
        return report

    @staticmethod
    def _outer_sections(own: pytest.TestReport) -> list[tuple[str, str]]:
        """What the teardown of higher scopes printed: the only output of pytest's own that no child has reported."""
        return [(title, text) for title, text in own.sections if title.endswith(" teardown")]

    def _report_no_end(self, report: pytest.TestReport, outcome: Outcome) -> None:
        """It has told of every phase, and then ended without its last word: what came of it meanwhile nobody knows."""
        text = _verdict.crash_text(outcome, expect=self.spec.expect, leaks=self.spec.leaks != "ignore")
        _verdict.add_failure(report, text, xfail_reason=_seam.expected_failure(self.item))
        report.sections.append(("contained", _report.section(outcome)))

    def _report_untold(self, report: pytest.TestReport, untold: str) -> None:
        """A test of which nobody can say what it left has not passed."""
        _verdict.add_failure(report, f"contained: {untold}")

    def _report_leaks(self, report: pytest.TestReport, outcome: Outcome) -> None:
        """A leak is added to the test's own failure and never replaces it."""
        text = _verdict.leak_text(outcome.leaks)
        policy = self.spec.leaks
        if policy == "warn":
            try:
                self.item.warn(ContainedWarning(text))
            except ContainedWarning:  # -W error
                policy = "fail"
        if policy == "fail":
            _verdict.add_failure(report, text, xfail_reason=_seam.expected_failure(self.item))
            report.sections.append(("contained", _report.section(outcome)))


def _both(inside: str, outside: str) -> str:
    what = "errors in the test's teardown and, outside of its container, in that of a higher scope"
    return f"{what}\n\n{inside}\n\n{outside}"
