"""From what a user wrote to what is run: options, ini, markers, and the verdict of this host on each.

Bad input from the command line or the ini file is a usage error before anything runs. Bad input in a marker is kept
until its test is set up, and is an error of that test alone: raised in a hook it would end the run, and under xdist
lose it.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pytest

from ._hooks import HookError, asked_by_hooks
from ._of_many import check_slice, slices, total_memory, worker_spec
from ._spec import FIELDS, NEEDING, Spec, merge, parse_kwargs, parse_text
from ._values import BELONGINGS, parse_grace
from .exceptions import CgroupError, ContainedWarning, SpecError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ._backends import Backend

    Layer = tuple[str, dict[str, object]]

_DEFAULTS = Spec()
_BACKENDS = ("auto", "cgroup", "process")
_MISSING = ("skip", "fail", "warn")
_SCOPE = ("auto", "no")
_TAKE_OVER = ("no", "yes")
_LEAKS = ("off", "warn", "fail")
_POOLS = ("keep", "report")
#: what a test in place can be asked for; all else would be pytest's own
_IN_PLACE = frozenset(("isolation", "leaks", "grace"))


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


def add_options(parser: pytest.Parser) -> None:
    """The options and their ini twins. The defaults are None, so that they never hide what the ini file says."""
    group = parser.getgroup("cgroup", "contained tests (pytest-cgroup)")

    def option(name: str, help: str, **kwargs: Any) -> None:  # as argparse takes them
        group.addoption(name, default=None, help=help, **kwargs)
        parser.addini(name.lstrip("-").replace("-", "_"), f"as {name}", default=None)

    option(
        "--contained",
        "run every test in a container of its own; SPEC as in 'memory=256M,pids=64,pid_ns' (see --markers)",
        nargs="?",
        const="",
        metavar="SPEC",
    )
    option(
        "--resource-usage",
        "show what the N heaviest contained tests used (10 unless said; 0: all)",
        nargs="?",
        const=10,
        type=_count,
        metavar="N",
    )
    option("--resource-usage-json", "write what each contained test used, a JSON object a line", metavar="FILE")
    option(
        "--process-leaks",
        "name the processes that a test or a fixture leaves behind, and kill them; nothing is forked",
        metavar="{off,warn,fail}",
    )
    group.addoption(
        "--process-leaks-ignore",
        action="append",
        default=None,
        metavar="GLOB",
        help="a process whose command line or program matches is no leak; may be given more than once",
    )
    parser.addini("process_leaks_ignore", "as process-leaks-ignore, one a line", type="linelist", default=[])
    option(
        "--process-leaks-also",
        f"what else is named that a test or a fixture leaves: {', '.join(BELONGINGS)} (default: nothing)",
        metavar="KIND[,KIND…]",
    )
    parser.addini("process_leaks_settle", "how long a process may take to end after its test (default: 100ms)")
    parser.addini(
        "process_leaks_pools",
        "workers of an executor that somebody still holds: keep (default), or report",
    )
    parser.addini(
        "contained_worker", "limits of each worker of pytest-xdist, and of what it starts: memory=2G,pids=500"
    )
    parser.addini(
        "contained_slices",
        "limits that the tests of one slice have together, one slice a line: db: memory=1G,pids=200",
        type="linelist",
        default=[],
    )
    option("--cgroup-backend", f"how containers are made: {', '.join(_BACKENDS)} (default: auto)", metavar="NAME")
    option("--cgroup-base", "make the cgroups below this one (default: the one that pytest is in)", metavar="PATH")
    option(
        "--cgroup-scope",
        "whether systemd is asked for a scope of pytest's own where that gives more: auto (default), no",
        metavar="{auto,no}",
    )
    option(
        "--cgroup-take-over",
        "in the root of a private cgroup namespace, as a container's, move other processes out of the way",
        action="store_const",
        const="yes",
    )
    option(
        "--cgroup-missing",
        "what becomes of a test that asks for what this host can't do: skip it (default), fail it, "
        "or warn and run it without",
        metavar="{skip,fail,warn}",
    )


def _count(text: str) -> int:
    if text.isascii() and text.isdecimal():
        return int(text)
    hint = f"; that is a path: write --resource-usage=N {shlex.quote(text)}" if _is_path(text) else ""
    raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 on{hint}")


def _is_path(text: str) -> bool:
    """Whether *text* can only be meant as what to test, a path or a node id: an option's value need not be given."""
    path, node, _ = text.partition("::")
    return os.path.exists(path) or ("=" not in path and bool(node or os.sep in path or path.endswith(".py")))


def setting(config: pytest.Config, name: str) -> tuple[str | None, str]:
    """An option or else its ini twin, None where neither is given; and which of the two it is, for a message."""
    value = config.getoption(name)
    if value is not None:
        return str(value), "--" + name.replace("_", "-")
    value = config.getini(name)
    return (None if value is None else str(value)), f"ini {name}"


class Settings:
    """The options and ini values of a run, checked.

    Attributes:
        layers: what the ini file and the command line ask of every test, the weaker first; empty if nothing.
        most: how many lines the table of usage may have, 0 for all; None if it was not asked for.
        base: the cgroup to work below, None for pytest's own.
        scope: whether systemd may be asked for a scope.
        take_over: whether other processes may be moved, in a private cgroup namespace.
        json: the file to write usage to, None for none.
        process_leaks: ``"off"``, ``"warn"`` or ``"fail"``: of tests that run in place.
        ignore: globs of processes that are no leaks.
        also: what else is looked for, of `_values.BELONGINGS`.
        of_a_worker: the limits of each worker of pytest-xdist, None for none.
        slices: the limits of each slice that is known, by its name.
        settle_seconds: how long they may take to end.
        keep_pools: whether the workers of a pool that is still held are no leaks.

    Raises:
        pytest.UsageError: one of them is wrong; the message says which, where, and what is allowed.
    """

    def __init__(self, config: pytest.Config) -> None:
        self.missing = _one_of(config, "cgroup_missing", _MISSING)
        self.backend = _one_of(config, "cgroup_backend", _BACKENDS)
        self.process_leaks = _one_of(config, "process_leaks", _LEAKS)
        self.ignore = (*config.getini("process_leaks_ignore"), *(config.getoption("process_leaks_ignore") or ()))
        self.also = _also(config)
        self.settle_seconds = _settle(config)
        self.keep_pools = _ini_one_of(config, "process_leaks_pools", _POOLS) == "keep"
        self.base = setting(config, "cgroup_base")[0] or None
        self.scope = _one_of(config, "cgroup_scope", _SCOPE) == "auto"
        self.take_over = _one_of(config, "cgroup_take_over", _TAKE_OVER) == "yes"
        self.json, self.json_from = setting(config, "resource_usage_json")
        try:
            self.of_a_worker = worker_spec(text) if (text := config.getini("contained_worker")) else None
            self.slices = slices(config.getini("contained_slices"))
        except SpecError as error:
            raise pytest.UsageError(str(error)) from error
        self.layers = _layers(config, self.slices)
        if self.base is not None and self.backend == "process":
            raise pytest.UsageError("--cgroup-base with --cgroup-backend=process: that backend makes no cgroups")
        most, where = setting(config, "resource_usage")
        try:
            self.most = _count(most) if most else None
        except argparse.ArgumentTypeError as error:
            raise pytest.UsageError(f"{where}: {error}") from error

    @property
    def everything(self) -> bool:
        """Whether every test is contained, marker or not."""
        return bool(self.layers)


def _one_of(config: pytest.Config, name: str, allowed: tuple[str, ...]) -> str:
    value, where = setting(config, name)
    if value is None:
        return allowed[0]
    if value not in allowed:
        raise pytest.UsageError(f"{where}={value!r}: allowed: {', '.join(allowed)}")
    return value


def _ini_one_of(config: pytest.Config, name: str, allowed: tuple[str, ...]) -> str:
    value = str(config.getini(name) or allowed[0])
    if value not in allowed:
        raise pytest.UsageError(f"ini {name}={value!r}: allowed: {', '.join(allowed)}")
    return value


def _also(config: pytest.Config) -> tuple[str, ...]:
    text, where = setting(config, "process_leaks_also")
    kinds = tuple(re.findall(r"[^\s,]+", text or ""))
    if wrong := [kind for kind in kinds if kind not in BELONGINGS]:
        raise pytest.UsageError(f"{where}={text!r}: {wrong[0]!r}: allowed: {', '.join(BELONGINGS)}")
    if kinds and sys.platform != "linux":
        raise pytest.UsageError(f"{where}={text!r}: on Linux only; leave it out here")
    return kinds


def _settle(config: pytest.Config) -> float:
    text = config.getini("process_leaks_settle")
    try:
        return parse_grace(text) if text else 0.1
    except ValueError as error:
        raise pytest.UsageError(f"ini process_leaks_settle={text!r}: {error}") from error


def _layers(config: pytest.Config, known_slices: Mapping[str, Spec]) -> tuple[Layer, ...]:
    asked = (("ini contained", config.getini("contained")), ("--contained", config.getoption("contained")))
    try:
        layers = tuple((where, parse_text(str(text), where)) for where, text in asked if text is not None)
        spec = merged(layers)
        check_slice(spec.slice, known_slices, _where("slice", layers))
        if sys.platform == "linux":
            check_here(spec, layers)
    except CgroupError as error:
        if (text := config.getoption("contained")) and _is_path(text):
            raise pytest.UsageError(
                f"--contained took {text!r} for its SPEC, and that is a path: "
                f"write --contained= {shlex.quote(text)}, or the path before --contained"
            ) from error
        raise pytest.UsageError(str(error)) from error
    return layers


def wanting_container(items: list[pytest.Item], settings: Settings) -> list[pytest.Item]:
    """Those of *items* that are to run contained. Each parent is looked at once, for whoever marks no test."""
    if settings.everything:
        return items
    known: dict[pytest.Collector, bool] = {}

    def marked(node: pytest.Item | pytest.Collector) -> bool:
        if node.own_markers and any(mark.name == "contained" for mark in node.own_markers):
            return True
        if (parent := node.parent) is None:
            return False
        if parent not in known:
            known[parent] = marked(parent)
        return known[parent]

    return [item for item in items if marked(item)]


def asks_for_containers(item: pytest.Item) -> bool:
    """Whether *item*, or a fixture of it, names one of the fixtures that make containers."""
    names = getattr(item, "fixturenames", ())
    return "contained" in names or "contained_factory" in names


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


def decide(item: pytest.Item, settings: Settings, backend: Backend | None) -> None:
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


def _only_of_leaks(settings: Settings, layers: tuple[Layer, ...]) -> bool:
    """Under --process-leaks, a marker that speaks of leaks alone is about those, and asks for no process of its own."""
    asked = {field for _, values in layers for field in values}
    return settings.process_leaks != "off" and bool(asked) and asked <= {"leaks", "grace"}


def _with_policy(spec: Spec, settings: Settings, layers: tuple[Layer, ...]) -> Spec:
    """In place the option says what a leak does, unless a marker does."""
    if settings.process_leaks == "off" or any("leaks" in values for _, values in layers):
        return spec
    return replace(spec, leaks="warn" if settings.process_leaks == "warn" else "fail")


def lacks(item: pytest.Item, settings: Settings, what: str) -> bool:
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
