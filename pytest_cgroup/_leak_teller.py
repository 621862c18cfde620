"""What becomes of a leak that was found in place.

A test's leaks are added to its teardown report. A fixture's are known only once it is torn down, which may be long
after the last test that used it: they are an error of that test all the same, by a report of their own if it has had
all of its.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import pytest

from . import _seam, _verdict
from ._config import shared_key
from ._hooks import tell
from ._owners import Owner
from .exceptions import ContainedWarning

if TYPE_CHECKING:
    from collections.abc import Generator

    from ._leak_report import LeakReport
    from ._outcome import Leak


class FixtureOwner(Owner):
    """A fixture of higher scope, or a package's set-up.

    Attributes:
        title: what a person reads of it.
        last: the last test that used it.
    """

    __slots__ = ("file", "last", "line", "title")

    def __init__(self, name: str, scope: str, where: str, last: pytest.Item | None, *, judged: bool) -> None:
        super().__init__(f"fixture:{name}", judged=judged)
        self.title = f"{scope} fixture {name!r}" + (f" of {where}" if where else "")
        self.file, _, line = where.partition("::")[0].rpartition(":")
        self.line = int(line) if line.isdigit() else 1
        self.last = last


class LeakTeller:
    """The plugin that adds leaks to reports; it is registered only while there are some, so that others cost nothing.

    Args:
        policy: of what has no marker: ``"fail"``, ``"warn"``, or None to let it be.
        report: where the session's leaks are told.
        manager: where it registers itself.
    """

    def __init__(self, policy: str | None, report: LeakReport, manager: pytest.PytestPluginManager) -> None:
        self._policy = policy
        self._report = report
        self._manager = manager
        self._found: list[Leak] = []
        self._of_fixtures: list[tuple[FixtureOwner, list[Leak]]] = []
        self._listens = False

    def of_test(self, leaks: list[Leak]) -> None:
        """The test that is being torn down has left these: its report is still to come."""
        self._found = leaks
        if leaks:
            self._listen()

    def of_fixture(self, owner: FixtureOwner, leaks: list[Leak]) -> None:
        """A fixture has left these."""
        if not leaks:
            return
        if self._policy == "warn" and self._warn(owner, leaks):
            self._report.add(leaks)
        else:
            self._of_fixtures.append((owner, leaks))
            self._listen()

    def _listen(self) -> None:
        if not self._listens:
            self._manager.register(self, "cgroup-leak-teller")
            self._listens = True

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[Any]) -> Generator[None, Any, Any]:
        report: pytest.TestReport = yield
        if call.when != "teardown":
            return report
        found, self._found = self._found, []
        troubles: list[str | None] = []
        if found and self._policy_of(item) not in ("ignore", None):
            troubles.append(tell(item.ihook, "pytest_process_leak", item=item, leaks=tuple(found)))
        if found and self._policy_of(item) != "ignore":
            self._blame(report, item, found)
        for owner, leaks in [pair for pair in self._of_fixtures if pair[0].last is item]:
            self._of_fixtures.remove((owner, leaks))
            troubles.append(tell(item.ihook, "pytest_process_leak", item=item, leaks=tuple(leaks)))
            _verdict.add_failure(report, f"{owner.title} {_verdict.leak_text(leaks)}")
            self._add_to(report, leaks)
        for trouble in filter(None, troubles):
            _verdict.add_failure(report, trouble)
        return report

    def _blame(self, report: pytest.TestReport, item: pytest.Item, leaks: list[Leak]) -> None:
        text = _verdict.leak_text(leaks)
        if self._policy_of(item) == "warn":
            try:
                item.warn(ContainedWarning(f"{item.nodeid} {text}"))
            except ContainedWarning:  # -W error
                pass
            else:
                self._add_to(report, leaks)
                return
        _verdict.add_failure(report, text, xfail_reason=_seam.expected_failure(item))
        self._add_to(report, leaks)

    def _add_to(self, report: pytest.TestReport, leaks: list[Leak]) -> None:
        report.user_properties.append(_verdict.leaks_as_property(leaks))
        self._report.add_told(leaks)

    def _warn(self, owner: FixtureOwner, leaks: list[Leak]) -> bool:
        """Warn of a fixture; False where warnings are errors."""
        text = f"{owner.title} {_verdict.leak_text(leaks)}"
        try:
            warnings.warn_explicit(ContainedWarning(text), None, filename=owner.file or "pytest", lineno=owner.line)
        except ContainedWarning:
            return False
        return True

    def tell_late(self, item: pytest.Item | None) -> bool:
        """Tell of the fixtures whose last test has had its reports, *item* if there is none; whether there were any."""
        told, self._of_fixtures = self._of_fixtures, []
        for owner, leaks in told:
            if (last := owner.last or item) is not None:
                text = f"{owner.title} {_verdict.leak_text(leaks)}"
                trouble = tell(last.ihook, "pytest_process_leak", item=last, leaks=tuple(leaks))
                text = text if trouble is None else f"{text}\n\n{trouble}"
                self._report.blame(last.nodeid, last.location, text, leaks)
        if self._listens:
            self._manager.unregister(self)
            self._listens = False
        return bool(told)

    def _policy_of(self, item: pytest.Item) -> str | None:
        """``"fail"``, ``"warn"``, ``"ignore"``: killed in every case; or None to let it be."""
        spec = item.stash.get(shared_key, None)
        return self._policy if spec is None else spec.leaks
