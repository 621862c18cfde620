"""Run the project's tests on the named hosts: ``python -m tests.hosts [HOST…] [options] [-- PYTEST-ARGUMENT…]``."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .packages import dependencies, installed_at, package
from .report import write_table
from .rig.guest import Fleet, Result, boot, namespace_flags
from .rig.image import image
from .rig.job import Copy, Job
from .rig.kernels import kernel
from .rig.tools import Unavailable, cache, end_on_signals, say
from .table import HOSTS, Host
from .verdict import Counts, Verdict, exit_status, hosts_list, summary

TREE: Final = Path(__file__).resolve().parents[2]
DEFAULT_TESTS: Final = ("tests/unit", "tests/kernel", "tests/e2e")
GUEST_TREE: Final = "/srv/pytest-cgroup"


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python -m tests.hosts",
        usage="%(prog)s [HOST…] [options] [-- PYTEST-ARGUMENT…]",
        description=__doc__,
        epilog="Exit status: 0 every host passed; 1 a host failed; 77 a host could not be checked on this machine.",
    )
    top.add_argument("hosts", nargs="*", metavar="HOST", help="which ones (default: all)")
    top.add_argument("--fast", action="store_true", help="only the few that every run of the CI takes")
    top.add_argument("--list", action="store_true", help="say which hosts there are")
    cpus = len(os.sched_getaffinity(0))
    top.add_argument("--jobs", type=int, default=cpus, metavar="N", help="guests side by side (default: a CPU each)")
    top.add_argument("--timeout", type=float, default=7200, metavar="SECONDS", help="for each host (%(default)s)")
    top.add_argument("--command", metavar="SHELL", help="run this in the guests instead of the tests")
    top.add_argument("--table", type=Path, metavar="FILE", help="try what all hosts offer, and write it into this page")
    top.add_argument("--tree", type=Path, default=TREE, help="the source tree to test (default: this one)")
    return top


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What every chosen host shall run."""

    tree: Path
    installed: Path
    command: Sequence[str]
    is_pytest: bool
    timeout: float


def main(arguments: Sequence[str]) -> int:
    ours, theirs = split(arguments)
    top = parser()
    chosen = top.parse_args(ours)
    if unknown := [name for name in chosen.hosts if name not in HOSTS]:
        top.error(f"no such host: {', '.join(unknown)}; there are {', '.join(HOSTS)}")
    if chosen.jobs < 1:
        top.error("--jobs must be at least 1")
    if chosen.table and (chosen.hosts or chosen.fast or chosen.command or theirs):
        top.error("--table is of all hosts, and runs a command of its own")
    hosts = {name: HOSTS[name] for name in chosen.hosts or HOSTS if HOSTS[name].fast or not chosen.fast}
    if chosen.list:
        print(hosts_list(hosts))
        return 0
    end_on_signals()
    with tempfile.TemporaryDirectory(prefix="hosts-") as scratch:
        work = Work(
            tree=chosen.tree.resolve(),
            installed=Path(scratch),
            command=guest_command(chosen, theirs),
            is_pytest=not (chosen.command or chosen.table),
            timeout=chosen.timeout,
        )
        verdicts = check_all(hosts, work, chosen.jobs)
    print(f"\n{summary(verdicts)}")
    status = exit_status(verdicts)
    if chosen.table and status == 0:
        write_table(chosen.table, {verdict.name: verdict.counts.probed for verdict in verdicts})
    elif chosen.table:
        say(f"{chosen.table} is as it was: a table takes an answer of every host")
    return status


def guest_command(chosen: argparse.Namespace, theirs: Sequence[str]) -> list[str]:
    """What to run in each guest."""
    if chosen.table:
        return ["python3", "tests/hosts/probe.py"]
    return ["sh", "-c", chosen.command] if chosen.command else pytest_command(theirs, chosen.tree)


def split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The rig's own arguments, and what follows the first ``--``."""
    words = list(arguments)
    if "--" not in words:
        return words, []
    at = words.index("--")
    return words[:at], words[at + 1 :]


def pytest_command(arguments: Sequence[str], tree: Path) -> list[str]:
    """pytest with these arguments, over the default tests unless they name some."""
    named = any((tree / argument.split("::")[0]).exists() for argument in arguments if not argument.startswith("-"))
    tests = () if named else DEFAULT_TESTS
    return ["python3", "-m", "pytest", "-p", "no:cacheprovider", "-m", "not hosts", *arguments, *tests]


def check_all(hosts: dict[str, Host], work: Work, jobs: int) -> list[Verdict]:
    """Prepare everything first, then boot; nothing of it outlives this call, whatever ends it."""
    ready, unready = [], {}
    try:
        namespace_flags()
        package(work.tree, work.installed)
        problem = ""
    except Unavailable as error:
        problem = str(error)
    for name, host in hosts.items():
        try:
            if problem:
                raise Unavailable(problem)
            kernel(host.settings.kernel)
            image(host.settings.suite, host.settings.engine)
            dependencies(work.tree, host.settings.python)
            ready.append(name)
        except Unavailable as error:
            unready[name] = Verdict(name=name, settings=host.settings, why=str(error))
    output = threading.Lock()
    with ThreadPoolExecutor(jobs) as pool, Fleet() as fleet:  # left from the right: the guests end, then the threads
        futures = {name: pool.submit(check, name, hosts[name], work, fleet, output, jobs > 1) for name in ready}
        try:
            return [unready[name] if name in unready else futures[name].result() for name in hosts]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # those that wait for their turn must not have it
            raise


def check(name: str, host: Host, work: Work, fleet: Fleet, output: threading.Lock, prefixed: bool) -> Verdict:
    """Run the work on one host, with live output."""
    settings = host.settings
    repository, python_packages = GUEST_TREE, installed_at(settings.python)
    job = Job(
        command=work.command,
        directory=repository,
        environment={
            "PYTHONSAFEPATH": "1",  # the installed package is tested, not the tree beside the tests
            "PYTEST_CGROUP_TEST_THE_WHEEL": "1",
            "PYTEST_CGROUP_MUST_WORK": ",".join(host.offers),
            "PYTEST_CGROUP_HOST": name,
        },
        copies=[
            Copy(work.tree, repository),
            Copy(dependencies(work.tree, settings.python), python_packages, installed=True),
            Copy(work.installed, python_packages, installed=True),
        ],
    )
    say(f"{name}: {settings.kernel}, {settings.cgroup}, {settings.init}, {settings.user}, {settings.place}")
    for again in (True, False):
        counts = Counts()
        write = writer(f"{name}: ".encode() if prefixed else b"", output, counts)
        try:
            result = boot(settings, job, fleet=fleet, write=write, timeout=work.timeout, log=cache() / f"{name}.log")
        except Unavailable as error:
            return Verdict(name=name, settings=settings, why=str(error))
        if not (again and has_panicked(result)):
            break
        say(f"{name}: the guest's kernel panicked, which is not ours to mend: once more")
    return Verdict(name=name, settings=settings, result=result, counts=counts, is_pytest=work.is_pytest)


def has_panicked(result: Result) -> bool:
    """Whether user-mode Linux has fallen over a bug of its own, as that of 6.12 does where a fork is interrupted."""
    return result.ended == "died" and b"panic - not syncing: Kernel mode fault" in result.log.read_bytes()


def writer(prefix: bytes, lock: threading.Lock, counts: Counts) -> Callable[[bytes], None]:
    """Passes whole lines to the terminal, as they come."""

    def write(line: bytes) -> None:
        counts.see(line)
        with lock:
            sys.stdout.buffer.write(prefix + line)
            sys.stdout.buffer.flush()

    return write


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
