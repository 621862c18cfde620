"""``python -m pytest_cgroup clean``: end what killed runs of pytest left behind."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._host import nothing_at_all
from ._isolated import json
from ._orphans import Cleaned
from ._recover import clean

if TYPE_CHECKING:
    import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--json", action="store_true", help="print a JSON object instead of text")


def run(options: argparse.Namespace) -> tuple[int, str]:
    """The exit status, and what to print: 1 if something that is ours, or may be, could not be removed."""
    cleaned = Cleaned() if nothing_at_all() is not None else clean()
    text = json.dumps(to_json(cleaned), indent=2) if options.json else _text(cleaned)
    return int(bool(cleaned.left)), text


def to_json(cleaned: Cleaned) -> dict[str, object]:
    """The object that `--json` prints."""
    return {
        "schema": 1,
        "killed": [{"pid": pid, "name": name} for pid, name in cleaned.killed.items()],
        "removed": cleaned.removed,
        "left": [{"what": what, "reason": reason} for what, reason in cleaned.left.items()],
    }


def _text(cleaned: Cleaned) -> str:
    lines = [f"killed: {name}[{pid}]" for pid, name in cleaned.killed.items()]
    lines += [f"removed: {path}" for path in cleaned.removed]
    lines += [f"left: {what}: {reason}" for what, reason in cleaned.left.items()]
    return "\n".join(lines) or "nothing was left behind"
