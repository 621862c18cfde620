"""Leak detection in place: the hooks that tell whose time it is.

What becomes of a leak is `_leak_teller`'s. What the session left is said in the section at the end, and fails the run
by its exit status.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import pytest

from . import _seam
from ._config import shared_key, spec_key
from ._leak_teller import FixtureOwner
from ._owners import Owner

if TYPE_CHECKING:
    from collections.abc import Generator

    from ._leak_report import LeakReport
    from ._leak_teller import LeakTeller
    from ._outcome import Leak
    from ._owners import Accounts

    Wrapper = Generator[None, Any, Any]


class LeakWatch:
    """The plugin that is registered where leaks are looked for in place.

    Args:
        book: the accounts.
        policy: of what has no marker: ``"fail"``, ``"warn"``, or None to let it be.
        report: where the session's leaks are told.
        teller: tells of the others.
    """

    def __init__(self, book: Accounts, policy: str | None, report: LeakReport, teller: LeakTeller) -> None:
        self._book = book
        self._policy = policy
        self._report = report
        self._teller = teller
        self._fixtures: dict[Any, FixtureOwner] = {}
        self._test: Owner | None = None
        self._item: pytest.Item | None = None
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
            self._teller.tell_late(item)
        return result

    def _note_use(self, definitions: list[Any]) -> None:
        for definition in definitions:
            if (fixture := self._fixtures.get(definition)) is not None:
                fixture.last = self._item

    def _owner_of(self, item: pytest.Item) -> Owner:
        if shared_key not in item.stash:
            return Owner(item.nodeid, judged=self._policy is not None)
        spec = item.stash[shared_key]
        return Owner(item.nodeid, judged=True, grace=spec.grace)

    def _give_up(self, owner: Owner | None) -> None:
        """The run was interrupted: its fixtures are torn down before what is left of the test is killed."""
        if owner is not None and self._book.here:
            self._book.leave(owner)
            self._others.append(owner)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        if self._test is not None and self._test.ended:  # a rerun
            self._test = self._owner_of(item)
            self._book.enter(self._test)
        if self._book.here:
            _seam.set_up_around(item, self._before_package, self._book.leave)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Wrapper:
        if self._fixtures:
            self._note_use(_seam.used_fixtures(item))
        try:
            return (yield)
        finally:
            if self._test is not None and self._book.here:
                self._teller.of_test(self._book.end(self._test))

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
        self._teller.of_fixture(owner, self._book.end(owner))

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
        if self._teller.tell_late(self._item):
            self._report.failed = True
        self._report.add(leaks, failed=bool(leaks) and self._policy == "fail")

    def pytest_unconfigure(self) -> None:
        if self._book.own:
            self._book.close()
