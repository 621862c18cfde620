"""The command line of the benchmarks."""

from __future__ import annotations

import argparse

from .cases import CASES, machine


def main() -> None:
    """Run the cases that were asked for, all if none was, and print a table for each."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="What pytest-cgroup costs, in ratios.")
    parser.add_argument(
        "case", nargs="*", choices=[[], *CASES], help=", ".join(f"{n}: {f.__doc__}" for n, f in CASES.items())
    )
    parser.add_argument("--rounds", type=int, default=9, help="rounds of each comparison (default: %(default)s)")
    parser.add_argument("--tests", type=int, help="tests in a run instead of the case's own number")
    options = parser.parse_args()
    print(machine())
    for name in options.case or CASES:
        CASES[name](options.rounds, options.tests)


if __name__ == "__main__":
    main()
