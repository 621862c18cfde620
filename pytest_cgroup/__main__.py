"""``python -m pytest_cgroup doctor``: what this host offers a contained test, and how to get the rest."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; its exit status."""
    parser = argparse.ArgumentParser(prog="python -m pytest_cgroup", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    told = commands.add_parser("doctor", help="what this host offers, and how to get the rest")
    told.add_argument("--cgroup-base", metavar="PATH", help="as pytest's option of that name")
    options = parser.parse_args(arguments)
    return doctor(options.cgroup_base)


def doctor(base: str | None = None) -> int:
    """Print each capability of this host, with reason and remedy where it is lacking; 0 if a test can be contained."""
    from ._backends import choose
    from ._host import LIMIT_FILES, NAMESPACES, TREE_FILES, Host
    from .exceptions import CgroupError

    host = Host(base)
    try:
        backend = choose(host)
        print(f"backend: {backend.describe()}")
        remedies: dict[str, list[str]] = {}
        for name in ("cgroup", *TREE_FILES, *LIMIT_FILES, "privileged", "user_ns", *NAMESPACES):
            capability = host.capability(name)
            print(f"  {name:<12} {'yes' if capability.offered else 'no: ' + capability.reason}")
            if not capability.offered:
                remedies.setdefault(capability.remedy, []).append(name)
        for remedy, names in remedies.items():
            print(f"for {', '.join(names)}: {remedy}")
    except CgroupError as error:
        print(error)
        return 1
    finally:
        host.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
