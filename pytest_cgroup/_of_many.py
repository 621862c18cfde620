"""Limits that many tests or containers have together: those of a worker of pytest-xdist, and those of a slice."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from ._isolated import os
from ._spec import FIELDS, Spec, merge, parse_kwargs, parse_text
from .exceptions import SpecError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_LIMITS = (
    *("memory", "swap", "memory_high", "oom_group", "pids", "cpu", "cpu_weight", "cpuset", "io", "io_weight"),
    "controls",
)


def limits_of_many(asked: Mapping[str, Any], where: str) -> Spec:
    """The limits that are asked for.

    Raises:
        SpecError: a bad value, or a field that is a single one's.
    """
    for field in asked:
        if field not in _LIMITS and field in {known.name for known in FIELDS}:
            why = "is for one test or container"
            raise SpecError(field, asked[field], why, where=where, allowed=", ".join(_LIMITS))
    spec = merge(parse_kwargs(asked, where), where=where).resolve(total_memory())
    # v1 has no such thing as oom_group, and nobody but the kernel waits for that of many
    return spec if "oom_group" in asked else dataclasses.replace(spec, oom_group=False)


def worker_spec(text: str) -> Spec:
    """The limits of each worker of pytest-xdist, of the ini ``contained_worker``.

    Raises:
        SpecError: it has something wrong, or what no worker can have.
    """
    where = "ini contained_worker"
    return limits_of_many(parse_text(text, where), where)


def slices(lines: Iterable[str]) -> dict[str, Spec]:
    """The limits of each slice by its name, of the ini ``contained_slices``.

    Raises:
        SpecError: it has something wrong, or what no slice can have.
    """
    where, found = "ini contained_slices", dict[str, Spec]()
    for line in lines:
        name, colon, text = map(str.strip, line.partition(":"))
        if not colon:
            raise SpecError("slice", line, "is no line of it", where=where, allowed="NAME: memory=1G,pids=200")
        parse_kwargs({"slice": name}, where)
        if name in found:
            raise SpecError("slice", name, "is there twice", where=where, allowed="each once")
        found[name] = limits_of_many(parse_text(text, f"{where}, {name}"), f"{where}, {name}")
    return found


def check_slice(name: str | None, known: Mapping[str, Spec], where: str) -> None:
    """Where the ini file has slices, another is a slip of the pen.

    Raises:
        SpecError: *name* is none of them.
    """
    if name is not None and known and name not in known:
        raise SpecError("slice", name, "is none of ini contained_slices", where=where, allowed=", ".join(known))


def total_memory() -> int:
    """The memory of this host, in bytes."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
