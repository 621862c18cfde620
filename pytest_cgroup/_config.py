"""From what was asked of each test, by options, ini and markers, to what is run, and the verdict of this host on it.

Bad input from the command line or the ini file is a usage error before anything runs. Bad input in a marker is kept
until its test is set up, and is an error of that test alone: raised in a hook it would end the run, and under xdist
lose it.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import pytest

from ._hooks import HookError, asked_by_hooks
from ._isolated import os
from ._of_many import check_slice, total_memory
from ._spec import FIELDS, NEEDING, Spec, merge, parse_kwargs, parse_text
from .exceptions import CgroupError, ContainedWarning, SpecError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ._backends import Backend

    Layer = tuple[str, dict[str, object]]

_DEFAULTS = Spec()
#: what a test in place can be asked for; all else would be pytest's own
_IN_PLACE = frozenset(("isolation", "leaks", "grace"))


class Policy(Protocol):
    """What the options say of all tests (`_settings`)."""

    missing: str
    process_leaks: str
    layers: tuple[Layer, ...]
    slices: dict[str, Spec]


@dataclass(frozen=True)
class Trouble:
    """Why an item can't run contained: its marker is wrong, or it does not fit this host."""

    text: str
    on_this_host: bool = False


spec_key = pytest.StashKey[Spec]()
trouble_key = pytest.StashKey[Trouble]()
lacking_key = pytest.StashKey[str]()
#: of a test that is watched in place, and not forked
shared_key = pytest.StashKey[Spec]()


class TroubleTeller:
    """Says in its set-up why an item can't run contained. No wrapper: what the wrappers began, they can end."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """A wrong marker is wrong, whatever the other marks of the test say."""
        trouble = item.stash.get(trouble_key, None)
        if trouble is not None and not trouble.on_this_host:
            pytest.fail(trouble.text, pytrace=False)

    @pytest.hookimpl(specname="pytest_runtest_setup")
    def pytest_after_skip_marks(self, item: pytest.Item) -> None:
        """A test that is skipped on this host may ask for what is not on this host."""
        if (trouble := item.stash.get(trouble_key, None)) is not None:
            pytest.fail(trouble.text, pytrace=False)
        if (lacking := item.stash.get(lacking_key, None)) is not None:
            item.warn(ContainedWarning(f"contained: runs without {lacking}"))


def asked_of_all(texts: Iterable[tuple[str, str]], known_slices: Mapping[str, Spec]) -> tuple[Layer, ...]:
    """What is asked of every test, by where it was written.

    Raises:
        CgroupError: there is something wrong with it.
    """
    layers = tuple((where, parse_text(text, where)) for where, text in texts)
    spec = merged(layers)
    check_slice(spec.slice, known_slices, _where("slice", layers))
    if sys.platform == "linux":
        check_here(spec, layers)
    return layers


def marker_layers(item: pytest.Item) -> list[Layer]:
    """What the markers of *item* ask, the weaker first: module, class, function, and then the parameters' own.

    Raises:
        SpecError: a marker is wrong.
    """
    marks = list(item.iter_markers_with_node("contained"))[::-1]
    own = [id(mark) for mark in getattr(getattr(item, "callspec", None), "marks", ())]
    marks.sort(
        key=lambda found: id(found[1]) in own
    )  # for pytest those of a pytest.param are weaker than the function's
    layers = []
    for node, mark in marks:
        where = f"@pytest.mark.contained on {getattr(node, 'originalname', None) or node.name or node.nodeid}"
        if mark.args:
            raise SpecError("arguments", mark.args, "are not by keyword", where=where, allowed="memory=…, pids=…, …")
        layers.append((where, parse_kwargs(mark.kwargs, where)))
    return layers


def merged(layers: tuple[Layer, ...]) -> Spec:
    """The spec that *layers* say together: a later one wins, field by field.

    Raises:
        SpecError: they contradict each other.
    """
    spec = merge(*(values for _, values in layers), where=" and ".join(where for where, _ in layers))
    if spec.isolation == "shared":
        for field in FIELDS:
            value = getattr(spec, field.name)
            if field.name not in _IN_PLACE and value != field.default and value != "max":
                why = 'would hold for pytest itself: in place (isolation="shared") a test is only watched'
                allowed = f'isolation="fork", or no {field.name}'
                raise SpecError(field.name, value, why, where=_where(field.name, layers), allowed=allowed)
    return spec


def _where(field: str, layers: tuple[Layer, ...]) -> str:
    """Where *field* was written."""
    return next((where for where, values in reversed(layers) if field in values), "implied")


def check_here(spec: Spec, layers: tuple[Layer, ...]) -> None:
    """What can be known to be wrong on this host before a container is made: paths and accounts.

    Raises:
        SpecError: there is no such path or account.
    """
    for field in ("readonly", "hidden"):
        for path in getattr(spec, field):
            if not os.path.lexists(path):
                raise SpecError(field, path, "no such path", where=_where(field, layers), allowed="paths that exist")
    for field, who in (("group", (None, spec.group)), ("user", (spec.user, spec.group))):
        if getattr(spec, field) is None:
            continue
        from ._namespaces import look_up

        try:
            look_up(*who)
        except CgroupError as error:
            why = error.what if error.remedy is None else f"{error.what}. {error.remedy}"
            raise SpecError(field, getattr(spec, field), why, where=_where(field, layers)) from error


def decide(item: pytest.Item, settings: Policy, backend: Backend | None) -> None:
    """Stash what *item* is to run with, or why it can't. No *backend*: this is not Linux."""
    try:
        layers = (*settings.layers, *marker_layers(item))
        spec = merged(layers)
        if (asked := asked_by_hooks(item, spec)) is not None:
            layers = (*layers, asked)
            spec = merged(layers)
        check_slice(spec.slice, settings.slices, _where("slice", layers))
    except (SpecError, HookError) as error:
        item.stash[trouble_key] = Trouble(str(error))
        return
    if spec.isolation == "shared" or _only_of_leaks(settings, layers):
        item.stash[shared_key] = _with_policy(spec, settings, layers)
        return
    if backend is None:
        lacks(item, settings, "everything: tests are contained on Linux only (run them there)")
        return
    try:
        spec = spec.resolve(total_memory())
        check_here(spec, layers)
    except CgroupError as error:
        item.stash[trouble_key] = Trouble(str(error), on_this_host=True)
        return
    if lacking := backend.missing(spec):
        if not lacks(item, settings, "; ".join(f"{name}: {why.reason} ({why.remedy})" for name, why in lacking)):
            return
        spec = _without(spec, [field for field, _ in lacking])
    item.stash[spec_key] = spec


def _only_of_leaks(settings: Policy, layers: tuple[Layer, ...]) -> bool:
    """Under --process-leaks, a marker that speaks of leaks alone is about those, and asks for no process of its own."""
    asked = {field for _, values in layers for field in values}
    return settings.process_leaks != "off" and bool(asked) and asked <= {"leaks", "grace"}


def _with_policy(spec: Spec, settings: Policy, layers: tuple[Layer, ...]) -> Spec:
    """In place the option says what a leak does, unless a marker does."""
    if settings.process_leaks == "off" or any("leaks" in values for _, values in layers):
        return spec
    return replace(spec, leaks="warn" if settings.process_leaks == "warn" else "fail")


def lacks(item: pytest.Item, settings: Policy, what: str) -> bool:
    """This host can't honour *what*: skip or fail *item*, or True if it is to run without, with a warning."""
    if settings.missing == "warn":
        item.stash[lacking_key] = what
        return True
    text = f"contained: this host can't honour {what}"
    if settings.missing == "skip":
        item.add_marker(pytest.mark.skip(reason=text))
    else:
        item.stash[trouble_key] = Trouble(text, on_this_host=True)
    return False


def _without(spec: Spec, fields: list[str]) -> Spec:
    """*spec* without *fields*, and without what needs them."""
    dropped = {*fields, *(needing for field in fields for needing in NEEDING.get(field, ()))}
    return replace(spec, **{field: getattr(_DEFAULTS, field) for field in dropped})
