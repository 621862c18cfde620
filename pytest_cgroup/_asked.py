"""What is asked of a container of the library: the marker's fields, but for those that are about tests."""

from __future__ import annotations

import re
from typing import Any

from ._cgroup import PREFIX
from ._host import LIMIT_FILES
from ._isolated import os
from ._of_many import total_memory
from ._ownership import PATH, PATH_SLASH
from ._spec import FIELDS, Spec, parse_kwargs
from ._units import parse_size
from ._values import is_backend, parse_text
from .exceptions import SpecError

_WHERE = "Container"
#: in bytes: a directory's name, NAME_MAX, has to hold it
_PATH_MAX = 255 - len(PATH)
_PATHS = f'a name, or "PARENT/NAME", below the cgroup that pytest was started in; no "{PATH_SLASH}"'
#: fields that say something of tests
OF_TESTS = ("isolation", "expect")
#: limits that a living container can be given
CHANGEABLE = tuple(field for field in LIMIT_FILES if field != "oom_group")


def parse(asked: dict[str, Any]) -> Spec:
    """The spec of a new container.

    Raises:
        SpecError: an unknown field, a bad value, or two that contradict each other.
    """
    for field in OF_TESTS:
        if field in asked:
            allowed = ", ".join(known.name for known in FIELDS if known.name not in OF_TESTS)
            raise SpecError(field, asked[field], "is about tests, and no container's", where=_WHERE, allowed=allowed)
    return _resolved(asked, _WHERE)


def parse_change(asked: dict[str, Any], limits: dict[str, Any]) -> tuple[Spec, Spec]:
    """The spec of a container of which *asked* was asked, and now *limits*; and the spec of what is to be set for it.

    Raises:
        SpecError: a bad value, or a field that can be had at the start only.
    """
    for field in limits:
        if field not in CHANGEABLE and field in {known.name for known in FIELDS}:
            raise SpecError(
                field, limits[field], "can't be changed later", where="update", allowed=", ".join(CHANGEABLE)
            )
    parse_kwargs(limits, "update")
    pair = {"memory", "swap"} if {"memory", "swap"} & limits.keys() else set()  # each counts with the other
    beside = {name: value for name, value in asked.items() if name in pair}
    return _resolved({**asked, **limits}, "update"), _resolved({**beside, **limits}, "update")


def _resolved(asked: dict[str, Any], where: str) -> Spec:
    return Spec.parse(asked, where).resolve(total_memory()) if asked else Spec()


def parse_output_limit(value: int | str | None) -> int | None:
    """How many bytes of a command's output are kept; None for all.

    Raises:
        SpecError: it is no size.
    """
    if value is None:
        return None
    try:
        size = parse_size(value)
        if not isinstance(size, int) or size < 2:
            raise ValueError("is no number of bytes from 2 on")
    except ValueError as error:
        raise SpecError("output_limit", value, str(error), where="run", allowed='bytes: 65536, "1M"') from error
    return size


def known_backend(name: str) -> str:
    """*name*, if it is one.

    Raises:
        SpecError: it is none.
    """
    if not is_backend(name):
        allowed = '"auto", "cgroup", "process" or "exec:PROGRAM"'
        raise SpecError("backend", name, "is no backend", where=_WHERE, allowed=allowed)
    return name


def parse_init(value: bool, spec: Spec) -> bool:
    """Whether the pid namespace of *spec* has an init.

    Raises:
        SpecError: it is no flag, or there is no pid namespace.
    """
    if not isinstance(value, bool):
        raise SpecError("init", value, "is no flag", where=_WHERE, allowed="True or False")
    if not value and not spec.pid_ns:
        raise SpecError("init", value, "is about pid_ns, which is not asked for", where=_WHERE, allowed="with pid_ns")
    return value


def parse_path(path: object, spec: Spec) -> str:
    """The *path* of a container's cgroup.

    Raises:
        SpecError: it is none, or *spec* has it elsewhere.
    """
    try:
        text = parse_text(path)
        names = text.split("/")
        if spec.slice is not None:
            raise ValueError("and slice= each say where the container stands")
        if not all(names) or {".", ".."}.intersection(names) or "\n" in text or PATH_SLASH in text:
            raise ValueError("is no relative path")
        if len(os.fsencode(text)) > _PATH_MAX:
            raise ValueError("is too long")
        if any(name.startswith(PREFIX) for name in names):
            raise ValueError(f"is a session's: {PREFIX}…")
    except ValueError as error:
        raise SpecError("path", path, str(error), where=_WHERE, allowed=_PATHS) from error
    return text


def safe_name(name: str) -> str:
    """Part of a directory's name, whatever *name* holds."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", name)[:60].strip("_") or "container"
