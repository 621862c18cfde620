"""Who sets up and tears down what, for leak detection in place."""

from __future__ import annotations

import functools
import inspect
import types
from typing import TYPE_CHECKING, Any

import pytest

from .._isolated import os

if TYPE_CHECKING:
    from collections.abc import Callable


_MADE_BY_PYTEST = (
    ("_xunit_setup_module_fixture_", "setup_module"),
    ("_xunit_setup_class_fixture_", "setup_class"),
    ("_unittest_setUpClass_fixture_", "setUpClass"),
)


def used_fixtures(item: pytest.Item) -> list[Any]:
    """The definitions of all fixtures that *item* has asked for so far, those that fixtures asked for, too."""
    return list(getattr(getattr(item, "_request", None), "_fixture_defs", {}).values())


def named_fixtures(item: pytest.Item) -> list[Any]:
    """The definitions of the fixtures that *item* names, it or one of those, before it is set up."""
    info = getattr(item, "_fixtureinfo", None)
    return [definitions[-1] for definitions in info.name2fixturedefs.values() if definitions] if info else []


def held_by(definition: Any) -> list[object]:
    """The value of a fixture that is set up, its generator, which has its variables, and its finalizers."""
    result = definition.cached_result
    found: list[object] = [] if result is None else [result[0]]
    for finalizer in definition._finalizers:
        if isinstance(finalizer, functools.partial):
            found += [arg for arg in finalizer.args if isinstance(arg, types.GeneratorType | types.AsyncGeneratorType)]
        else:
            found.append(finalizer)
    return found


def fixture_name(definition: Any, request: Any) -> tuple[str, str]:
    """A fixture's name as its user knows it, and where it is defined: ``"db[pg]"``, ``"tests/conftest.py:12"``."""
    name, where = definition.argname, ""
    for prefix, word in _MADE_BY_PYTEST:
        if name.startswith(prefix):
            return word, request.node.nodeid
    code = getattr(inspect.unwrap(definition.func), "__code__", None)
    if code is not None:
        root = f"{request.config.rootpath}{os.sep}"
        where = f"{code.co_filename.removeprefix(root)}:{code.co_firstlineno}"
    index = getattr(request, "param_index", 0)
    return (f"{name}[{index}]" if hasattr(request, "param") else name), where


def set_up_around(item: pytest.Item, before: Callable[[pytest.Collector], Any], after: Callable[[Any], None]) -> None:
    """Call *before* and *after* round the set-up of those collectors above *item* that do something in it.

    A package's does: it calls the setup_module of its __init__.py, and that is no fixture.
    """
    active = item.session._setupstate.stack
    if item.parent in active:  # and so is who stands above
        return
    for node in item.listchain()[:-1]:
        if node not in active and type(node).setup is not pytest.Item.setup and isinstance(node, pytest.Collector):
            _wrap_setup(node, before, after)


def _wrap_setup(
    node: pytest.Collector, before: Callable[[pytest.Collector], Any], after: Callable[[Any], None]
) -> None:
    def setup() -> None:
        del vars(node)["setup"]
        token = before(node)
        try:
            node.setup()
        finally:
            after(token)

    vars(node)["setup"] = setup
