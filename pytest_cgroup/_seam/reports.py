"""What a report of a phase says and does in pytest itself: failures that are expected, subtests, what JSON lost."""

from __future__ import annotations

import contextlib
import sys
from typing import Any, NoReturn

import pytest


def interact(item: pytest.Item, call: pytest.CallInfo[Any], report: pytest.TestReport) -> None:
    """The post-mortem debugger, where pytest would enter it."""
    from _pytest.runner import check_interactive_exception

    if check_interactive_exception(call, report):
        item.ihook.pytest_exception_interact(node=item, call=call, report=report)


def expected_failure(item: pytest.Item) -> str | None:
    """The reason of an xfail mark that covers a crash, None without one. A crash is no exception of any type."""
    from _pytest.skipping import xfailed_key

    xfailed = item.stash.get(xfailed_key, None)
    if xfailed is None or xfailed.raises is not None or item.config.option.runxfail:
        return None
    return xfailed.reason or ""


def failed_subtests(item: pytest.Item) -> int:
    """How many subtests of *item* have failed: pytest counts some of them where they run."""
    counts = _failed_subtests(item.config)
    return counts[node_key(item)] if counts is not None else 0


def set_failed_subtests(item: pytest.Item, count: int) -> None:
    """Set `failed_subtests` where pytest reads it: where it reports, a test that passed fails by its subtests."""
    counts = _failed_subtests(item.config)
    if counts is not None and count:
        counts[node_key(item)] = count


def _failed_subtests(config: pytest.Config) -> dict[object, int] | None:
    try:
        from _pytest.subtests import failed_subtests_key
    except ImportError:  # before pytest 9
        return None
    counts: dict[object, int] | None = config.stash.get(failed_subtests_key, None)  # type: ignore[assignment]
    return counts


def node_key(item: pytest.Item) -> object:
    return getattr(item, "id", item.nodeid)


def log_beside_capture(item: pytest.Item, report: pytest.TestReport) -> None:
    """Log a report that is made within a hook, as a subtest's is: on the terminal, not into captured output."""
    manager = item.config.pluginmanager.get_plugin("capturemanager")
    with manager.global_and_fixture_disabled() if manager is not None else contextlib.nullcontext():
        item.ihook.pytest_runtest_logreport(report=report)


def restore_subtest(report: pytest.TestReport, data: dict[str, Any]) -> None:
    """The values that a subtest was given came home as texts, and pytest has put the texts into quotes."""
    context = getattr(report, "context", None)
    if context is not None and "_subtest.context" in data:
        object.__setattr__(context, "kwargs", data["_subtest.context"]["kwargs"])


class _Told:
    """What a fixture that is not there, or a doctest, says of itself: by now a text, but not of pytest's summary."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __str__(self) -> str:
        return self._text

    def toterminal(self, tw: Any) -> None:
        tw.line(self._text)


def share(item: pytest.Item, data: dict[str, Any]) -> None:
    """Put the item's own objects in the place of their copies: pytest keeps each report to the end of the run."""
    if data["nodeid"] == item.nodeid:
        data["nodeid"] = node_key(item)
    if data["location"] == [*item.location]:
        data["location"] = item.location
    own = {name: name for name in item.keywords}
    data["keywords"] = {own.get(name, name): value for name, value in data["keywords"].items()}
    data.update((name, sys.intern(data[name])) for name in ("outcome", "when"))


def restore(report: pytest.TestReport, *, was_text: bool) -> None:
    """JSON has lists only; pytest and its plugins expect tuples here. Most of what describes an error became text."""
    report.sections = [(str(name), str(content)) for name, content in report.sections]
    report.user_properties = [(str(name), value) for name, value in report.user_properties]
    report.location = tuple(report.location)  # type: ignore[assignment]
    longrepr: Any = report.longrepr
    if isinstance(longrepr, list):
        report.longrepr = tuple(longrepr)
    elif isinstance(longrepr, str) and not was_text:
        report.longrepr = _Told(longrepr)  # type: ignore[assignment]


def skip(reason: str) -> NoReturn:
    """Skip the test that is set up or runs, and say so of its own place and not of ours."""
    __tracebackhide__ = True
    raise pytest.skip.Exception(reason, _use_item_location=True)
