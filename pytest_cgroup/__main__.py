"""The command line: ``python -m pytest_cgroup doctor`` says what this host offers a contained test.

``clean`` ends what killed runs of pytest left behind; ``run`` runs a command in a container; ``top`` shows what runs
contained now.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from . import _clean, _doctor, _foreground, _top
from ._isolated import io, os

if TYPE_CHECKING:
    from collections.abc import Sequence


def parser() -> _foreground.Parser:
    """All commands; each sets ``run``, which returns an exit status and what to print."""
    top = _foreground.Parser(prog="python -m pytest_cgroup", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True, parser_class=_foreground.Parser)
    doctor = commands.add_parser("doctor", help="what this host offers, and how to get the rest")
    _doctor.add_arguments(doctor)
    doctor.set_defaults(run=_doctor.run)
    clean = commands.add_parser("clean", help="end what killed runs of pytest left behind")
    _clean.add_arguments(clean)
    clean.set_defaults(run=_clean.run)
    command = commands.add_parser(
        "run",
        help="run a command in a container",
        usage="%(prog)s [options] -- COMMAND [ARGUMENT …]",
        description=_foreground.DESCRIPTION,
    )
    _foreground.add_arguments(command)
    command.set_defaults(run=_foreground.run)
    shown = commands.add_parser("top", help="what runs contained now")
    _top.add_arguments(shown)
    shown.set_defaults(run=_top.run)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; its exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    top = parser()
    if arguments[:1] == ["run"]:
        top.status = _foreground.OWN_FAILURE
    options = top.parse_args(arguments)
    status, text = options.run(options)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a path may be any bytes, and the terminal ASCII
    try:
        print(text, end="\n" if text else "", flush=True)
    except BrokenPipeError:  # whoever reads has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
