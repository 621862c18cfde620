"""Leak detection in place: the hooks that tell whose time it is, and what becomes of a leak.

A test's leaks are added to its teardown report. A fixture's are known only once it is torn down, which may be long
after the last test that used it: they are an error of that test all the same, by a report of their own if it has had
all of its. What the session left is said in the section at the end, and fails the run by its exit status.
"""

from __future__ import annotations

import functools
import warnings
from typing import TYPE_CHECKING, Any

import pytest

from . import _seam, _verdict
from ._config import shared_key, spec_key
from ._hooks import tell
from ._owners import Owner
from .exceptions import ContainedWarning

if TYPE_CHECKING:
    from collections.abc import Generator

    from ._leak_report import LeakReport
    from ._outcome import Leak
    from ._owners import Accounts

    Wrapper = Generator[None, Any, Any]


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


class LeakWatch:
    """The plugin that is registered where leaks are looked for in place.

    Args:
        book: the accounts.
        policy: of what has no marker: ``"fail"``, ``"warn"``, or None to let it be.
        report: where the session's leaks are told.
    """

    def __init__(self, book: Accounts, policy: str | None, report: LeakReport) -> None:
        self._book = book
        self._policy = policy
        self._report = report
        self._fixtures: dict[Any, FixtureOwner] = {}
        self._test: Owner | None = None
        self._item: pytest.Item | None = None
        self._found: list[Leak] = []
        self._of_fixtures: list[tuple[FixtureOwner, list[Leak]]] = []
        self._others: list[Owner] = []
        book.session.judged = policy is not None
        book.holders = lambda: [(owner, _seam.held_by(made)) for made, owner in self._fixtures.items()]

    def pytest_report_header(self) -> str:
        what = "those of marked tests" if self._policy is None else self._policy
        return f"process leaks: {what}, found {self._book.described}"

    # whose time it is

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_make_collect_report(self, collector: pytest.Collector) -> Wrapper:
        owner = Owner(f"collection of {collector.nodeid}", judged=self._policy is not None)
        self._book.enter(owner)
        try:
            return (yield)
        finally:
            self._book.leave(owner)
            if self._book.has_left(owner):
                self._others.append(owner)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Wrapper:
        self._item = item
        contained = spec_key in item.stash  # what it starts is in a container of its own
        self._test = owner = None if contained else self._owner_of(item)
        if owner is not None:
            self._book.enter(owner)
        else:
            self._note_use(_seam.named_fixtures(item))  # its teardown is not told here
        try:
            result = yield
        except BaseException:
            self._give_up(owner)
            raise
        if self._book.here:
            if owner is not None and not owner.ended:
                self._book.end(owner)
            self._tell_of_fixtures()
        return result

    def _note_use(self, definitions: list[Any]) -> None:
        for definition in definitions if self._fixtures else ():
            if (fixture := self._fixtures.get(definition)) is not None:
                fixture.last = self._item

    def _owner_of(self, item: pytest.Item) -> Owner:
        spec = item.stash.get(shared_key, None)
        policy = self._policy_of(item)
        return Owner(item.nodeid, judged=policy is not None, grace=0.0 if spec is None else spec.grace)

    def _policy_of(self, item: pytest.Item) -> str | None:
        """``"fail"``, ``"warn"``, ``"ignore"``: killed in every case; or None to let it be."""
        spec = item.stash.get(shared_key, None)
        return self._policy if spec is None else spec.leaks

    def _give_up(self, owner: Owner | None) -> None:
        """The run was interrupted: its fixtures are torn down before what is left of the test is killed."""
        if owner is not None and self._book.here:
            self._book.leave(owner)
            self._others.append(owner)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Wrapper:
        if self._test is not None and self._test.ended:  # a rerun
            self._test = self._owner_of(item)
            self._book.enter(self._test)
        if self._book.here:
            _seam.set_up_around(item, self._before_package, self._book.leave)
        return (yield)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Wrapper:
        self._note_use(_seam.used_fixtures(item))
        try:
            return (yield)
        finally:
            if self._test is not None and self._book.here:
                self._found = self._book.end(self._test)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_fixture_setup(self, fixturedef: Any, request: Any) -> Wrapper:
        if fixturedef.scope == "function" or not self._book.here:
            return (yield)
        name, where = _seam.fixture_name(fixturedef, request)
        owner = FixtureOwner(name, fixturedef.scope, where, self._item, judged=self._policy is not None)
        self._fixtures[fixturedef] = owner
        self._book.enter(owner)
        try:
            return (yield)
        finally:
            self._book.leave(owner)
            fixturedef.addfinalizer(functools.partial(self._again, owner))  # the first of them to run

    def pytest_fixture_post_finalizer(self, fixturedef: Any) -> None:
        owner = self._fixtures.pop(fixturedef, None)
        if owner is not None:
            self._end_fixture(owner)

    def _before_package(self, node: pytest.Collector) -> FixtureOwner:
        owner = FixtureOwner("setup_module", "package", node.nodeid, self._item, judged=self._policy is not None)
        node.addfinalizer(functools.partial(self._end_fixture, owner))
        node.addfinalizer(functools.partial(self._again, owner))
        self._book.enter(owner)
        return owner

    def _again(self, owner: FixtureOwner) -> None:
        """It is torn down: what that starts is its own."""
        if self._book.here:
            self._book.enter(owner)

    def _end_fixture(self, owner: FixtureOwner) -> None:
        if not self._book.here:
            return
        leaks = self._book.end(owner)
        if not leaks:
            return
        if self._policy == "warn" and self._warn(owner, leaks):
            self._report.add(leaks)
        else:
            self._of_fixtures.append((owner, leaks))

    # what becomes of a leak

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[Any]) -> Wrapper:
        report: pytest.TestReport = yield
        if call.when != "teardown" or not self._book.here:
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
            _add(report, f"{owner.title} {_verdict.leak_text(leaks)}", leaks, xfail_reason=None)
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
                report.user_properties.append(_verdict.leaks_as_property(leaks))
                return
        _add(report, text, leaks, xfail_reason=_seam.expected_failure(item))

    def _warn(self, owner: FixtureOwner, leaks: list[Leak]) -> bool:
        """Warn of a fixture; False where warnings are errors."""
        text = f"{owner.title} {_verdict.leak_text(leaks)}"
        try:
            warnings.warn_explicit(ContainedWarning(text), None, filename=owner.file or "pytest", lineno=owner.line)
        except ContainedWarning:
            return False
        return True

    def _tell_of_fixtures(self) -> None:
        """Those whose last test has had its reports."""
        told, self._of_fixtures = self._of_fixtures, []
        for owner, leaks in told:
            if (item := owner.last or self._item) is not None:
                text = f"{owner.title} {_verdict.leak_text(leaks)}"
                trouble = tell(item.ihook, "pytest_process_leak", item=item, leaks=tuple(leaks))
                text = text if trouble is None else f"{text}\n\n{trouble}"
                self._report.blame(item.nodeid, item.location, text, leaks)

    # the end

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self) -> None:
        if self._book.trouble is not None:
            self._report.trouble = self._book.trouble
        if not self._book.here:
            return
        leaks: list[Leak] = []
        for owner in (*self._fixtures.values(), *self._others, self._book.session):
            found = self._book.end(owner)
            if owner.name.startswith(("collection of ", "session")):
                leaks += found
        if self._of_fixtures:
            self._tell_of_fixtures()
            self._report.failed = True
        self._report.add(leaks, failed=bool(leaks) and self._policy == "fail")

    def pytest_unconfigure(self) -> None:
        if self._book.own:
            self._book.close()


def _add(report: pytest.TestReport, text: str, leaks: list[Leak], *, xfail_reason: str | None) -> None:
    """A leak is added to the test's own failure and never replaces it."""
    _verdict.add_failure(report, text, xfail_reason=xfail_reason)
    report.user_properties.append(_verdict.leaks_as_property(leaks))
