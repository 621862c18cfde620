"""Contained tests that are forked before their turn: so that the next one is ready, or so that several run at once.

Theory of operation. Where all that stands above a test is set up already (`needs_no_set_up`), its whole protocol runs
in its child. So when a test's turn comes, the one that follows it, if it needs no more, is forked as well, steps into
its container, and is held there until its own turn: what a fork and a container cost is paid beside the test before.

With ``--contained-jobs`` those that follow are not held, but run, so many at once. pytest goes on with one test after
the other as ever, but finds each begun, or at its end: its hooks are called and its reports are logged in its turn.
While pytest waits for one test it keeps the others in sight (`Container.beside`), their limits of time too, and ends
each whole as soon as its first process has ended.

What sets up or tears down something that tests share has pytest to itself: nothing is begun beyond it.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest

from . import _seam
from ._config import spec_key

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._contained import Contained
    from ._spec import Spec
    from ._workshop import Workshop

    Make = Callable[[pytest.Item, pytest.Item | None, Spec], Contained]

#: as many for each job may have been begun, and wait for their turn
_MOST_WAITING = 4


def why_not(config: pytest.Config) -> str | None:
    """Why tests are run one after the other in this run, however many are asked for."""
    if hasattr(config, "workerinput") or getattr(config.option, "dist", "no") != "no":
        return "the workers of pytest-xdist run side by side already"
    return _why_none_early(config)


def _why_none_early(config: pytest.Config) -> str | None:
    if config.pluginmanager.has_plugin("cgroup-leaks"):
        return "what pytest itself starts is watched for leaks"
    if _seam.shares_terminal(config):
        return "tests share pytest's terminal (-s, --pdb, --setup-show, live logs)"
    if owners := _seam.protocol_owners(config):
        name = config.pluginmanager.get_name(owners[0])
        return f"the plugin {name} may run a test again (-p no:{name} leaves it out)"
    return None


class Ahead:
    """Those of a run.

    Args:
        workshop: what contained tests share.
        jobs: how many run at once, if they may.
        make: makes the contained item of an item, the next one, and a spec.
    """

    def __init__(self, workshop: Workshop, jobs: int, make: Make) -> None:
        config = workshop.config
        self._workshop = workshop
        self._jobs = jobs if why_not(config) is None else 1
        # What hears of a test may tell the next one, which would have been forked too early for that.
        may_hold = _why_none_early(config) is None and not _seam.suite_listens(config)
        self._most_held = int(self._jobs == 1 and may_hold)
        self._make = make
        self._begun: dict[pytest.Item, Contained] = {}
        self._places: dict[pytest.Item, int] = {}

    def take(self, item: pytest.Item, nextitem: pytest.Item | None, spec: Spec) -> Contained:
        """The contained item of *item*, whose turn it is; it and those that follow are begun.

        The first one of a run is alone: if there is something to warn of, it is with that.
        """
        if (begun := self._begun.get(item)) is not None:
            begun.release()
        if self._jobs + self._most_held > 1 and self._workshop.has_begun:
            self._begin(item, nextitem)
        contained = self._begun.pop(item, None) or self._make(item, nextitem, spec)
        self._show_early()
        return contained

    def _begin(self, item: pytest.Item, nextitem: pytest.Item | None) -> None:
        items = item.session.items
        self._places = self._places or {one: place for place, one in enumerate(items)}
        first = self._places.get(item, len(items))
        most = self._jobs * _MOST_WAITING
        window = items[first : first + most + 1]
        following = [*window[1:], None]
        if window[:1] != [item] or following[0] is not nextitem:  # somebody else decides what comes next
            return
        running = sum(not begun.has_ended for begun in self._begun.values())
        for one, its_next in itertools.islice(zip(window, following, strict=True), most):
            if one in self._begun:
                continue
            spec = one.stash.get(spec_key, None)
            if running >= self._jobs + self._most_held or spec is None or not _seam.needs_no_set_up(one):
                return
            held = self._jobs == 1 and one is not item
            if held and spec.slice is not None:  # it would have a share in the slice's limits
                return
            # By itself such a test has pytest's own hooks called for the teardown.
            if (held or one is item) and _seam.ends_what_is_above(one, its_next):
                return
            contained = self._begun[one] = self._make(one, its_next, spec)  # before it is begun: Ctrl-C may come then
            if not contained.begin_early(held=held):
                del self._begun[one]
                return
            running += 1

    def _show_early(self) -> None:
        """Who runs beside the others; who is held need not be looked after."""
        if self._jobs > 1:
            self._workshop.early[:] = [one.container for one in self._begun.values() if one.container is not None]

    def abort(self) -> None:
        """The run is over: those whose turn has not come are ended, and nobody is told of them."""
        while self._begun:
            self._begun.popitem()[1].give_up()
        self._show_early()
