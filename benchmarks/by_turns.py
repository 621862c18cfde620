"""A plugin that runs the tests of one session by turns with and without leak detection in place.

Two runs of the same tests may differ by a fifth on a virtual machine, for where their memory lies and for what else the
host does. Two tests of one run, a millisecond apart, have all that in common.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from pytest_cgroup import _origins

#: so many tests with, so many without; the first of each turn is not counted, nor are the first turns
_TURN = 4
_WARM_UP = 50 * _TURN


class _Switch:
    """Takes leak detection out of a session, and puts it back; the audit hook itself stays, and hears nothing."""

    def __init__(self, manager: pytest.PytestPluginManager) -> None:
        self._manager = manager
        self._watch = manager.get_plugin("cgroup-leaks")
        self._listeners = list(_origins._listeners)

    def turn(self, *, on: bool) -> None:
        """On or off."""
        if on:
            self._manager.register(self._watch, "cgroup-leaks")
            _origins._listeners[:] = self._listeners
        else:
            self._manager.unregister(self._watch)
            _origins._listeners.clear()


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool:
    """Run them all, and leave ``turns.txt``: the seconds of each test without and with it."""
    switch = _Switch(session.config.pluginmanager)
    seconds: tuple[list[float], list[float]] = ([], [])
    watched = True
    for number, item in enumerate(session.items):
        if number % _TURN == 0 and number:
            watched = not watched
            switch.turn(on=watched)
        following = session.items[number + 1] if number + 1 < len(session.items) else None
        begun = time.perf_counter()
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        if number >= _WARM_UP and number % _TURN:
            seconds[watched].append(time.perf_counter() - begun)
    if not watched:
        switch.turn(on=True)
    Path("turns.txt").write_text(json.dumps(seconds), encoding="utf-8")
    return True
