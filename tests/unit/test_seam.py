"""The start-up check covers all that is used of pytest's private parts, and finds all of it in the pytest at hand."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from pytest_cgroup import _seam

ROOMS = sorted(Path(_seam.__file__).parent.glob("*.py"))


def private_imports(node: ast.AST) -> Iterator[str]:
    """``"_pytest.runner.SetupState"`` for each, but for what may be missing: where an ImportError is met, it may."""
    if isinstance(node, ast.Try) and any(map(_meets_import_error, node.handlers)):
        return
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "_pytest")
    elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "_pytest":
        yield from (f"{node.module}.{alias.name}" for alias in node.names)
    for child in ast.iter_child_nodes(node):
        yield from private_imports(child)


def _meets_import_error(handler: ast.ExceptHandler) -> bool:
    return isinstance(handler.type, ast.Name) and handler.type.id == "ImportError"


def unchecked(source: str) -> list[str]:
    """What *source* imports and the check does not ask for, neither itself nor a part of it."""
    asked = [f"{module}.{name}." for module, name in _seam.NEEDED]
    return [name for name in private_imports(ast.parse(source)) if not any(one.startswith(f"{name}.") for one in asked)]


def test_what_is_imported_is_checked_at_start_up() -> None:
    assert {path.name: names for path in ROOMS if (names := unchecked(path.read_text(encoding="utf-8")))} == {}


def test_what_is_not_checked_is_found() -> None:
    source = "def f():\n    from _pytest.runner import SetupState, collect_one_node\n    import _pytest.nodes"
    assert unchecked(source) == ["_pytest.runner.collect_one_node", "_pytest.nodes"]
    assert unchecked(f"try:\n    {source.splitlines()[1]}\nexcept ImportError:\n    pass") == []


def test_nothing_is_missing_here() -> None:
    assert _seam.problems() is None
