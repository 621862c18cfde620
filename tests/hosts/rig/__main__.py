"""Run one command in a guest: ``python -m tests.hosts.rig run [options] -- COMMAND…``."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from .guest import Fleet, boot
from .image import image
from .job import Copy, Job
from .kernels import kernel
from .settings import Init, Kernel, Mode, Place, Settings, Suite, User
from .tools import Unavailable, end_on_signals, say

NOT_CHECKED = 77


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python -m tests.hosts.rig",
        description=__doc__,
        epilog="Exit status: the command's; 124 deadline; 125 the guest died; 77 this machine cannot make the guest.",
    )
    verbs = top.add_subparsers(dest="verb", required=True)
    build = verbs.add_parser("build", help="fetch kernels and build the image (cached)")
    build.add_argument("--kernel", action="append", choices=get_args(Kernel), default=[], help="may be repeated")
    build.add_argument("--suite", choices=get_args(Suite), default="bookworm")
    run = verbs.add_parser("run", help="boot, run the command with live output, power off")
    for name, kind in (
        ("kernel", Kernel),
        ("suite", Suite),
        ("init", Init),
        ("cgroup", Mode),
        ("user", User),
        ("place", Place),
    ):
        run.add_argument(f"--{name}", choices=get_args(kind), default=Settings.__dataclass_fields__[name].default)
    run.add_argument(
        "--copy", action="append", default=[], metavar="HERE:THERE", help="a file or tree; may be repeated"
    )
    run.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="may be repeated")
    run.add_argument("--cwd", default="/", help="the command's directory")
    run.add_argument("--timeout", type=float, default=300, metavar="SECONDS")
    run.add_argument("command", nargs="+")
    return top


def main(arguments: Sequence[str]) -> int:
    top = parser()
    chosen = top.parse_args(arguments)
    end_on_signals()
    try:
        if chosen.verb == "build":
            for name in chosen.kernel:
                say(f"{name}: {kernel(name).program}")
            say(f"{chosen.suite}: {image(chosen.suite)}")
            return 0
        return run(chosen)
    except ValueError as error:
        top.error(str(error))
    except Unavailable as error:
        say(f"not checked: {error}")
        return NOT_CHECKED


def run(chosen: argparse.Namespace) -> int:
    settings = Settings(
        kernel=chosen.kernel,
        suite=chosen.suite,
        init=chosen.init,
        cgroup=chosen.cgroup,
        user=chosen.user,
        place=chosen.place,
    )
    copies = [(here, there or here) for here, _, there in (pair.partition(":") for pair in chosen.copy)]
    job = Job(
        command=chosen.command,
        directory=chosen.cwd,
        environment=dict(pair.split("=", 1) for pair in chosen.env),
        copies=[Copy(Path(here), there) for here, there in copies],
    )

    def write(line: bytes) -> None:
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()

    with Fleet() as fleet:
        result = boot(settings, job, fleet=fleet, write=write, timeout=chosen.timeout)
    if result.ended != "exit":
        say(f"the guest ended by {result.ended} after {result.seconds:.1f} s; its own log is {result.log}")
    return result.status


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
