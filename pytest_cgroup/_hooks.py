"""Our own hooks (`hookspecs`) called so that one that raises breaks nothing: what it raised comes back as text."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pytest

from ._spec import parse_kwargs

if TYPE_CHECKING:
    import psutil

    from ._container import Container
    from ._outcome import Usage
    from ._spec import Spec

_NOT_THEIRS = ("pluggy", "pytest_cgroup")
_RAISED = (Exception, pytest.fail.Exception, pytest.skip.Exception)  # Ctrl-C goes on
_SPEC = "pytest_contained_spec"


class HookError(Exception):
    """What an implementation raised, as text, where it can't be told later."""


def asked_by_hooks(item: pytest.Item, spec: Spec) -> tuple[str, dict[str, object]] | None:
    """What implementations of `pytest_contained_spec` set over all else: where that is, and the values.

    Raises:
        SpecError: a field is wrong.
        HookError: one raised, or returned something else.
    """
    values: dict[str, object] = {}
    try:
        answers = item.ihook.pytest_contained_spec(item=item, spec=spec)
    except pytest.exit.Exception:
        raise
    except _RAISED as error:
        raise HookError(f"{_SPEC} raised:\n{_text(error)}") from None
    for answer in reversed(answers):
        if not isinstance(answer, Mapping):
            raise HookError(f"{_SPEC} returned {answer!r}: give a dict of the marker's fields, or None")
        values |= parse_kwargs(answer, _SPEC)
    return (_SPEC, values) if values else None


def tell(relay: Any, name: str, /, **arguments: object) -> str | None:
    """Call the hook *name*; what an implementation raised, as text with its traceback, None if none did.

    Args:
        relay: ``item.ihook`` or ``config.hook``.
        name: the hook.
        arguments: its arguments.
    """
    hook = getattr(relay, name)
    try:
        if hook.spec is not None and hook.spec.opts["historic"]:
            hook.call_historic(kwargs=arguments)
        else:
            hook(**arguments)
    except pytest.exit.Exception:
        raise
    except _RAISED as error:
        return f"{name} raised:\n{_text(error)}"
    return None


def _text(error: BaseException) -> str:
    if not getattr(error, "pytrace", True):
        return str(error)
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_globals.get("__name__", "").partition(".")[0] in _NOT_THEIRS:
        trace = trace.tb_next
    return "".join(traceback.format_exception(type(error), error, trace)).rstrip()


class OfTest:
    """A test's own container, as hooks are shown it."""

    def __init__(self, container: Container) -> None:
        self._container = container
        self.name = container.name

    def __repr__(self) -> str:
        return f"<Container {self.name} of a test>"

    @property
    def spec(self) -> Spec:
        """What is asked of it."""
        return self._container.spec

    @property
    def limits(self) -> Mapping[str, str]:
        """Those in force."""
        return self._container.so_far().limits

    def usage(self) -> Usage:
        """What it has used so far."""
        return self._container.so_far().usage

    def processes(self) -> list[psutil.Process]:
        """What lives in it."""
        import psutil

        found = []
        for pid in self._container.tree.pids():
            with contextlib.suppress(psutil.NoSuchProcess):
                found.append(psutil.Process(pid))
        return found

    def stats(self) -> dict[str, str]:
        """The files of its cgroup."""
        cgroup = getattr(self._container.tree, "cgroup", None)
        return {} if cgroup is None or not cgroup.exists else cgroup.files()
