"""The options and their ini twins, read and checked; and whom they, or a mark, ask for.

It is loaded in every run: so what a container can be asked for (`_spec`), and all that comes of it, is not.
"""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from typing import TYPE_CHECKING, Any

import pytest

from ._isolated import os
from ._values import BACKENDS, BELONGINGS, is_backend, parse_grace
from .exceptions import CgroupError

if TYPE_CHECKING:
    from ._spec import Spec

_MISSING = ("skip", "fail", "warn")
_SCOPE = ("auto", "no")
_TAKE_OVER = ("no", "yes")
_LEAKS = ("off", "warn", "fail")
_POOLS = ("keep", "report")


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
    option(
        "--contained-jobs",
        "run up to N contained tests at once, where they need nothing set up outside of them (default: 1; auto: as "
        "many as there are CPUs)",
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
    option("--cgroup-backend", f"how containers are made: {', '.join(BACKENDS)} (default: auto)", metavar="NAME")
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
        jobs: how many contained tests may run at once.
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
        self.backend = _backend(config)
        self.process_leaks = _one_of(config, "process_leaks", _LEAKS)
        self.ignore = (*config.getini("process_leaks_ignore"), *(config.getoption("process_leaks_ignore") or ()))
        self.also = _also(config)
        self.settle_seconds = _settle(config)
        self.keep_pools = _ini_one_of(config, "process_leaks_pools", _POOLS) == "keep"
        self.base = setting(config, "cgroup_base")[0] or None
        self.scope = _one_of(config, "cgroup_scope", _SCOPE) == "auto"
        self.take_over = _one_of(config, "cgroup_take_over", _TAKE_OVER) == "yes"
        self.jobs = _jobs(config)
        self.json, self.json_from = setting(config, "resource_usage_json")
        self.of_a_worker: Spec | None = None
        self.slices: dict[str, Spec] = {}
        self.layers: tuple[tuple[str, dict[str, object]], ...] = ()
        self._read_specs(config)
        if self.base is not None and self.backend not in ("auto", "cgroup"):
            raise pytest.UsageError(
                f"--cgroup-base with --cgroup-backend={self.backend}: that backend makes no cgroups"
            )
        most, where = setting(config, "resource_usage")
        try:
            self.most = _count(most) if most else None
        except argparse.ArgumentTypeError as error:
            raise pytest.UsageError(f"{where}: {error}") from error

    def _read_specs(self, config: pytest.Config) -> None:
        """What is asked in the fields of a spec, where anything is: who asks nothing has no use for those modules."""
        worker, lines = config.getini("contained_worker"), config.getini("contained_slices")
        asked = (("ini contained", config.getini("contained")), ("--contained", config.getoption("contained")))
        texts = [(where, str(text)) for where, text in asked if text is not None]
        if not (worker or lines or texts):
            return
        from ._config import asked_of_all
        from ._of_many import slices, worker_spec

        try:
            self.of_a_worker = worker_spec(worker) if worker else None
            self.slices = slices(lines)
            self.layers = asked_of_all(texts, self.slices)
        except CgroupError as error:
            if (text := config.getoption("contained")) and _is_path(text):
                raise pytest.UsageError(
                    f"--contained took {text!r} for its SPEC, and that is a path: "
                    f"write --contained= {shlex.quote(text)}, or the path before --contained"
                ) from error
            raise pytest.UsageError(str(error)) from error

    @property
    def everything(self) -> bool:
        """Whether every test is contained, marker or not."""
        return bool(self.layers)


def _backend(config: pytest.Config) -> str:
    value, _ = setting(config, "cgroup_backend")
    return value if value is not None and is_backend(value) else _one_of(config, "cgroup_backend", BACKENDS)


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


def _jobs(config: pytest.Config) -> int:
    text, where = setting(config, "contained_jobs")
    if text == "auto":
        return len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1
    if text is not None and not (text.isascii() and text.isdecimal() and int(text)):
        raise pytest.UsageError(f"{where}={text!r}: allowed: a number from 1 on, auto")
    return int(text or 1)


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
