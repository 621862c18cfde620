"""Fixtures of higher scope than a test, and who tears them down: pytest itself, or the child that runs the test."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest

from .._isolated import os

#: of a forked child: the finalizers that its parent will call
_never_called: list[object] = []


def set_up_higher_scopes(item: pytest.Item) -> None:
    """Set up the fixtures of *item* that live longer than it, in pytest's own order: they come first in its closure.

    One that nobody defines is asked for as well: that is an error, and needs no fork to be found.
    A fixture that is first asked for by `request.getfixturevalue` in the test is not known here.
    """
    request = getattr(item, "_request", None)
    info = getattr(item, "_fixtureinfo", None)
    funcargs = getattr(item, "funcargs", None)
    if not request or info is None or funcargs is None:
        return
    names = list(getattr(item, "fixturenames", ()))
    if hasattr(item, "dtest"):
        names.append("doctest_namespace")  # a doctest asks for it in its set-up
    for name in names:
        definitions = info.name2fixturedefs.get(name)
        if name in funcargs:
            continue
        if not (definitions and definitions[-1].scope == "function"):
            funcargs[name] = request.getfixturevalue(name)
        elif name in definitions[-1].argnames:
            _set_up_overridden(request, name)
    if "tmp_path_factory" in funcargs:
        funcargs["tmp_path_factory"].getbasetemp()  # made once, and not by each child for itself


def needs_nothing_outside(item: pytest.Item, nextitem: pytest.Item | None) -> bool:
    """Whether *item* needs nothing set up or torn down outside of itself: then its whole protocol can run in a child.

    A mark that may keep it from running at all is better judged before there is one.
    """
    return not ends_what_is_above(item, nextitem) and needs_no_set_up(item)


def ends_what_is_above(item: pytest.Item, nextitem: pytest.Item | None) -> bool:
    """Whether something that *item* shares with other tests goes with it."""
    return nextitem is None or nextitem.listchain()[:-1] != item.listchain()[:-1]


def needs_no_set_up(item: pytest.Item) -> bool:
    """Whether all that is above *item* is set up already, so that it needs a child alone."""
    if [*item.session._setupstate.stack] != item.listchain()[:-1]:
        return False
    if any(item.get_closest_marker(name) for name in ("skip", "skipif", "xfail")):
        return False
    info, params = getattr(item, "_fixtureinfo", None), getattr(getattr(item, "callspec", None), "params", {})
    for name in getattr(item, "fixturenames", ()):
        definitions = info.name2fixturedefs.get(name) if info is not None else None
        if not definitions:
            if name != "request":
                return False
        elif definitions[-1].scope != "function" and (name in params or definitions[-1].cached_result is None):
            return False
        elif name in definitions[-1].argnames and any(_is_to_be_set_up(one) for one in definitions[:-1]):
            return False  # an override
    return True


def _is_to_be_set_up(definition: Any) -> bool:
    return definition.scope != "function" and definition.cached_result is None


def _set_up_overridden(request: Any, name: str) -> None:
    """Set up the fixture of higher scope that one of the test's own overrides, and asks for under the same name."""
    found = request._arg2fixturedefs
    everything = definitions = found[name]
    while definitions and definitions[-1].scope == "function" and name in definitions[-1].argnames:
        definitions = definitions[:-1]
    if not definitions or definitions[-1].scope == "function":
        return
    found[name] = definitions
    try:
        request.getfixturevalue(name)
    finally:
        found[name] = everything
        request._fixture_defs.pop(name, None)


def forget_outer_finalizers(item: pytest.Item) -> None:
    """In the forked child: what pytest itself set up is torn down there. What is set up from now on is ours to end.

    So the finalizers of the nodes above *item* are not called, and a teardown goes all the way up, whatever comes next.
    They are kept: a generator that nobody refers to is closed, and runs what it has in `finally` and `with`.
    """
    state = item.session._setupstate
    for node, (finalizers, _) in state.stack.items():
        if node is item:
            finalizers[0] = item.teardown  # it was ours when pytest took it up
        else:
            _never_called.extend(finalizers)
            finalizers.clear()
    info = getattr(item, "_fixtureinfo", None)
    for definitions in info.name2fixturedefs.values() if info is not None else ():
        for definition in definitions:
            if definition.cached_result is not None:
                _never_called.extend(definition._finalizers)
                definition._finalizers.clear()  # of another value, or for a plugin that reruns, pytest may end it early
    state.teardown_exact = lambda nextitem: type(state).teardown_exact(state, None)  # type: ignore[method-assign]


def tear_down_item_alone(item: pytest.Item, nextitem: pytest.Item | None) -> bool:
    """Tear down *item* without pytest's hooks, if nothing above it is to go now; False, and nothing done, if it is."""
    state = item.session._setupstate
    above = [node for node in state.stack if node is not item]
    if nextitem is None or nextitem.listchain()[: len(above)] != above:
        return False
    state.teardown_exact(nextitem)
    os.environ.pop("PYTEST_CURRENT_TEST", None)
    return True


def tear_down_without_hooks(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Tear down what is above an item whose hooks ran in its child only: the run stops before the next item."""
    from _pytest.logging import caplog_records_key

    plugins = item.config.pluginmanager
    capture, logging = plugins.get_plugin("capturemanager"), plugins.get_plugin("logging-plugin")
    with contextlib.ExitStack() as stack:
        if logging is not None:
            item.stash[caplog_records_key] = {}
            stack.enter_context(logging._runtest_for(item, "teardown"))
        if capture is not None:
            stack.enter_context(capture.item_capture("teardown", item))
        item.session._setupstate.teardown_exact(nextitem)


def tear_down_everything(item: pytest.Item) -> None:
    """In the child that is interrupted: tear down what it set up, as pytest does at the end of an interrupted run."""
    item.session._setupstate.teardown_exact(None)
