"""Runs pytest on a generated project, one contender after the other in turns, and compares medians.

A figure means something only beside another from the same minutes of the same machine. So the contenders take turns
(A B C A B C …, each round starting with another one), after one round that does not count, and a ratio is the median
of the rounds' ratios: a slow spell that hits one round hits both sides of its ratio.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import pstats
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_PACKAGE = f"{os.sep}pytest_cgroup{os.sep}"


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to run pytest: a name, the text of its test file, its arguments, and the most it may cost."""

    name: str
    source: str
    arguments: Sequence[str] = ()
    limit: float | None = None  # allowed ratio to the first contender


@dataclass(frozen=True, slots=True)
class Run:
    """What one run of pytest took. Times in seconds, of the whole tree where they are CPU times."""

    wall: float
    loop: float
    cpu: float
    page_faults: int
    summary: str
    directory: Mapping[str, str] = field(repr=False)
    probe: Mapping[str, Any] = field(repr=False)


def plugin_arguments() -> list[str]:
    """How pytest is told to load the plugin where nothing is loaded by itself."""
    entries = importlib.metadata.entry_points(group="pytest11", name="cgroup")
    return ["-p", "cgroup"] if entries else ["-p", "pytest_cgroup.plugin"]


def run(contender: Contender, timeout: float = 600, below: Sequence[str] = ()) -> Run:
    """Run *contender* once in a directory of its own; files that the tests write there are kept as texts.

    *below* are options of Python's, with a module that runs another one.

    Raises:
        RuntimeError: pytest did not pass.
    """
    here = Path(__file__).resolve().parent
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        directory = Path(name)
        (directory / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
        (directory / "test_it.py").write_text(contender.source, encoding="utf-8")
        env = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": ""}
        env.pop("PYTHONDONTWRITEBYTECODE", None)  # who installs a package has it compiled
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(here), os.environ.get("PYTHONPATH")]))
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        start = time.perf_counter()
        done = subprocess.run(
            [
                sys.executable,
                *below,
                "-m",
                "pytest",
                "-q",
                "-p",
                "no:cacheprovider",
                "-p",
                "bench_probe",
                *contender.arguments,
            ],
            cwd=directory,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )
        wall = time.perf_counter() - start
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        summary = done.stdout.strip().rpartition("\n")[2]
        if done.returncode != 0 or "skipped" in summary:
            raise RuntimeError(f"{contender.name}: pytest ended with {done.returncode}\n{done.stdout[-4000:]}")
        probe = json.loads((directory / "probe.json").read_text(encoding="utf-8"))
        return Run(
            wall=wall,
            loop=probe["loop_seconds"],
            cpu=after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
            page_faults=after.ru_minflt - before.ru_minflt,
            summary=summary,
            directory={path.name: path.read_text() for path in directory.glob("*.txt")},
            probe=probe,
        )


def own_share(contender: Contender) -> tuple[float, float]:
    """What a run spends in this package and in what that calls, in seconds; and as a share of it all.

    By the profiler (cProfile), which makes many small calls dearer than they are; and what is imported below an import
    is counted twice. So it is the most that it can be, and no other load of the machine is in it.
    """
    with tempfile.NamedTemporaryFile(prefix="bench-", suffix=".prof") as file:
        run(contender, below=("-m", "cProfile", "-o", file.name))
        stats: Any = pstats.Stats(file.name)
    own = sum(
        seconds
        for where, (*_, callers) in stats.stats.items()
        for caller, (*_, seconds) in callers.items()
        if _PACKAGE in where[0] and _PACKAGE not in caller[0]
    )
    return own, own / stats.total_tt


def take_turns(contenders: Sequence[Contender], rounds: int) -> list[list[Run]]:
    """A list of runs for each contender, after a first round for the caches that is thrown away."""
    runs: list[list[Run]] = [[] for _ in contenders]
    for turn in range(rounds + 1):
        for step in range(len(contenders)):
            place = (turn + step) % len(contenders)
            one = run(contenders[place])
            if turn:
                runs[place].append(one)
        print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return runs


def ratio(ones: Sequence[float], others: Sequence[float]) -> tuple[float, float, float]:
    """Median of the rounds' ratios, with the lowest and the highest quarter's bounds."""
    ratios = [one / other for one, other in zip(ones, others, strict=True)]
    low, median, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    return median, low, high


def verdict(value: float, limit: float | None) -> str:
    """Whether *value* keeps to its limit, in words."""
    if limit is None:
        return ""
    return f"≤ {limit:.2f} {'kept' if value <= limit else 'MISSED'}"


def print_table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A Markdown table: the first column left, the others right."""
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    rule = ["-" * (width - 1) + (":" if column else "-") for column, width in enumerate(widths)]
    print(f"\n### {title}\n")
    for first, *others in [head, rule, *rows]:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
        print(f"| {' | '.join(cells)} |")
