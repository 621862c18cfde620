"""The cases: what each one runs, and the table that it prints."""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable

from .library import library
from .measure import Contender, own_share, plugin_arguments, print_table, ratio, run, take_turns, verdict

_IMPORT = "import pytest\n\n"


def _empty_tests(count: int, mark: str = "") -> str:
    return _IMPORT + f"pytestmark = [{mark}]\n" + "".join(f"def test_{n}(): pass\n" for n in range(count))


def idle(rounds: int, tests: int | None) -> None:
    """The plugin is loaded and nothing asks for it: whole runs, from start to exit."""
    count = tests or 2000
    source = _empty_tests(count)
    contenders = [
        Contender("-p no:cgroup", source, ["-p", "no:cgroup"]),
        Contender("installed, nothing marked", source, plugin_arguments(), limit=1.01),
    ]
    runs = take_turns(contenders, rounds)
    rows = []
    for contender, ours in zip(contenders, runs, strict=True):
        whole, low, high = ratio([r.wall for r in ours], [r.wall for r in runs[0]])
        tests_only, *_ = ratio([r.loop for r in ours], [r.loop for r in runs[0]])
        cpu, *_ = ratio([r.cpu for r in ours], [r.cpu for r in runs[0]])
        wall = statistics.median(r.wall for r in ours)
        rows.append(
            [
                contender.name,
                f"{wall:.3f} s",
                f"{whole:.3f}",
                f"{low:.3f}-{high:.3f}",
                f"{tests_only:.3f}",
                f"{cpu:.3f}",
                verdict(whole, contender.limit),
            ]
        )
    head = ["", "whole run", "ratio", "quartiles", "tests alone", "CPU time", "limit"]
    print_table(f"Nothing marked, {count} empty tests, {rounds} rounds", head, rows)
    own, share = own_share(contenders[1])
    print(f"\nIn the package and what it calls, by the profiler: {own * 1000:.1f} ms, {share:.2%} of the run")


def fork(rounds: int, tests: int | None) -> None:
    """A test in a forked process: bare, contained, with limits, in a pid namespace. The tests alone are timed."""
    count = tests or 300
    ours = plugin_arguments()
    contained = "pytest.mark.contained({})".format
    contenders = [
        Contender("bare fork", _empty_tests(count), ["-p", "bare_fork"]),
        Contender("contained", _empty_tests(count, contained("")), ours, limit=1.15),
        Contender("memory=, pids=", _empty_tests(count, contained("memory='256M', pids=64")), ours, limit=1.25),
        Contender("pid_ns=True", _empty_tests(count, contained("pid_ns=True")), ours, limit=1.8),
        Contender("not forked", _empty_tests(count), ["-p", "no:cgroup"]),
    ]
    runs = take_turns(contenders, rounds)
    rows = []
    for contender, own in zip(contenders, runs, strict=True):
        median, low, high = ratio([r.loop for r in own], [r.loop for r in runs[0]])
        each = statistics.median(r.loop for r in own) / count
        cpu, *_ = ratio([r.cpu for r in own], [r.cpu for r in runs[0]])
        faults = statistics.median(r.page_faults for r in own) / count
        rows.append(
            [
                contender.name,
                f"{each * 1000:.2f} ms",
                f"{median:.2f}",
                f"{low:.2f}-{high:.2f}",
                f"{cpu:.2f}",
                f"{faults:.0f}",
                verdict(median, contender.limit),
            ]
        )
    head = ["", "a test", "ratio", "quartiles", "CPU time", "page faults", "limit"]
    print_table(f"A forked test, {count} empty tests, {rounds} rounds", head, rows)


_SPAWNING = """
import subprocess
import pytest

@pytest.fixture(scope="session", autouse=SERVED)
def server():
    child = subprocess.Popen(["sleep", "1000"])
    yield
    child.kill()
    child.wait()
"""


def shared(rounds: int, tests: int | None) -> None:
    """Leak detection in place, against pytest alone: empty tests, and tests that start a process each."""
    count = tests or 2000
    empty = _empty_tests(count)
    head = _SPAWNING.replace("SERVED", "False")
    spawning = head + "".join(f"def test_{n}(): subprocess.run(['true'], check=True)\n" for n in range(count // 10))
    served = _SPAWNING.replace("SERVED", "True") + empty
    watched = [*plugin_arguments(), "--process-leaks=warn"]
    for title, source, size, (most, most_by_table) in (
        ("empty tests", empty, count, (1.6, 2.0)),
        ("empty tests beside a session's server", served, count, (1.6, None)),
        ("tests that start `true`", spawning, count // 10, (1.05, None)),
    ):
        contenders = [
            Contender("-p no:cgroup", source, ["-p", "no:cgroup"]),
            Contender("--process-leaks=warn", source, watched, limit=most),
            Contender("by the process table", source, [*watched, "--cgroup-backend=process"], limit=most_by_table),
        ]
        runs = take_turns(contenders, rounds)
        rows = []
        for contender, own in zip(contenders, runs, strict=True):
            median, low, high = ratio([r.loop for r in own], [r.loop for r in runs[0]])
            each = statistics.median(r.loop for r in own) / size
            more = statistics.median(r.loop - plain.loop for r, plain in zip(own, runs[0], strict=True)) / size
            cpu, *_ = ratio([r.cpu for r in own], [r.cpu for r in runs[0]])
            rows.append(
                [
                    contender.name,
                    f"{each * 1000:.3f} ms",
                    f"{more * 1000:.3f} ms",
                    f"{median:.3f}",
                    f"{low:.3f}-{high:.3f}",
                    f"{cpu:.3f}",
                    verdict(median, contender.limit),
                ]
            )
        print_table(
            f"Leaks looked for in place, {size} {title}, {rounds} rounds",
            ["", "a test", "more", "ratio", "quartiles", "CPU time", "limit"],
            rows,
        )


def turns(rounds: int, tests: int | None) -> None:
    """The same by turns within one run, four tests with it and four without: what whole runs are too far apart for."""
    count = tests or 2000
    head = _SPAWNING.replace("SERVED", "False")
    spawning = head + "".join(f"def test_{n}(): subprocess.run(['true'], check=True)\n" for n in range(count))
    arguments = [*plugin_arguments(), "-p", "by_turns", "--process-leaks=warn"]
    rows = []
    for name, source, limit in (("empty", _empty_tests(count), 1.6), ("start `true`", spawning, 1.05)):
        for _ in range(rounds):
            seconds = json.loads(run(Contender(name, source, arguments)).directory["turns.txt"])
            plain, ours = (statistics.quantiles(one, n=4) for one in seconds)
            figures = []
            for quartile in (1, 0):
                watched, alone = ours[quartile], plain[quartile]
                figures += [f"{(watched - alone) * 1000:.3f} ms", f"{watched / alone:.3f}"]
            rows.append([name, f"{plain[1] * 1000:.3f} ms", *figures, verdict(ours[1] / plain[1], limit)])
    print_table(
        f"Leaks looked for in place, by turns in one run, {count} tests, {rounds} runs",
        ["", "a test, median", "more", "ratio", "of the quick quarter, more", "ratio", "limit"],
        rows,
    )


def flat(_rounds: int, tests: int | None) -> None:
    """Many contained tests in one session: does pytest grow, and is a cgroup left?"""
    count = tests or 1000
    before = _cgroups()
    rows = []
    for contender in (
        Contender("not contained", _empty_tests(count), ["-p", "no:cgroup"]),
        Contender("contained", _empty_tests(count, "pytest.mark.contained"), plugin_arguments()),
    ):
        samples = run(contender).probe["samples"]
        # The first hundred fill caches: what grows without end grows after them, too.
        (first_rss, first_fds), (last_rss, last_fds) = samples[min(1, len(samples) - 1)], samples[-1]
        growth = (last_rss - first_rss) / max(count - 100, 1)
        rows.append(
            [
                contender.name,
                f"{first_rss / 2**20:.1f}",
                f"{last_rss / 2**20:.1f}",
                f"{growth:.0f}",
                str(first_fds),
                str(max(fds for _, fds in samples[1:])),
                str(last_fds),
            ]
        )
    head = ["", "RSS after 100, MiB", "at the end", "bytes a test", "descriptors after 100", "most", "at the end"]
    print_table(f"{count} tests in one session", head, rows)
    print(f"\ncgroups left: {', '.join(_cgroups() - before) or 'none'}")


_BOMB_IMPORT = """
import os, signal, subprocess, time
import pytest
"""
_PIDS_LIMIT = r"""
def pids_limit():
    with open("/proc/self/cgroup") as f:
        lines = [line.rstrip("\n").split(":", 2) for line in f]
    paths = {controller: path for _, names, path in lines for controller in names.split(",")}
    with open("/proc/self/mountinfo") as f:
        mounts = [line.split() for line in f]
    for fields in mounts:
        kind, options = fields[fields.index("-") + 1], fields[-1].split(",")
        v1 = kind == "cgroup" and "pids" in options
        if v1 or (kind == "cgroup2" and "pids" not in paths):
            path = paths["pids" if v1 else ""]
            below = path[len(fields[3]):] if fields[3] != "/" else path
            with open(fields[4] + below + "/pids.max") as f:
                return f.read().strip()
"""
_BOMB = (
    _PIDS_LIMIT
    + r"""
def explode(processes):
    # Every process forks on until all tokens are spent; then all of them wait for ever.
    tokens, spend = os.pipe()
    alive, report = os.pipe()
    os.write(spend, b"." * processes)
    os.close(spend)  # no writer is left: an empty pipe reads as the end
    if os.fork() == 0:
        os.setsid()
        while os.read(tokens, 1):
            try:
                os.fork()
            except BlockingIOError:
                pass
            os.write(report, b".")
        signal.alarm(100)  # should nobody kill it
        os.close(report)
        while True:
            signal.pause()
    os.close(report)
    while os.read(alive, 4096):
        pass

@CONTAINED
def test_bomb():
    if LIMIT is not None:
        assert pids_limit() == LIMIT, "no bomb without its limit"
    explode(398)  # with the test, and the first of them, 400
    with open("exploded.txt", "w") as f:
        f.write(repr(time.monotonic()))

def test_pytest_still_forks():
    subprocess.run(["true"], check=True)
"""
)


def bomb(_rounds: int, _tests: int | None) -> None:
    """A fork bomb of 400 processes that flees with setsid: how long until the container is empty?"""
    rows = []
    for name, fields, limit in [
        ("under pids=50", "pids=50, leaks='ignore', timeout=60", "50"),
        ("exactly 400", "leaks='ignore', timeout=60", None),
        ("exactly 400, pid_ns", "leaks='ignore', timeout=60, pid_ns=True", None),
    ]:
        source = f"{_BOMB_IMPORT}CONTAINED = pytest.mark.contained({fields})\nLIMIT = {limit!r}\n{_BOMB}"
        one = run(Contender(name, source, plugin_arguments()), timeout=120)
        seconds = one.probe["finished"]["test_it.py::test_bomb"] - float(one.directory["exploded.txt"])
        rows.append([name, f"{seconds * 1000:.0f} ms", f"< 2 s {'kept' if seconds < 2 else 'MISSED'}", one.summary])
    print_table(
        "A 400-process fork bomb, from the test's end to an empty container", ["", "emptied", "limit", ""], rows
    )


_CROWD = (
    _PIDS_LIMIT
    + r"""
import os, signal, sys
count = int(sys.argv[1])
assert pids_limit() == str(count + 2), "no crowd without its limit"
for _ in range(count):
    if os.fork() == 0:
        signal.alarm(900)  # should nobody kill it
        while True:
            signal.pause()
print("there", flush=True)
sys.stdin.read()
"""
)


def crowd(rounds: int, tests: int | None) -> None:
    """Leak detection in place on a host with 5,000 idle processes more, and without them."""
    from pytest_cgroup import Container

    count, idle = tests or 1000, 5000
    empty = _empty_tests(count)
    spawning = _SPAWNING.replace("SERVED", "False")
    spawning += "".join(f"def test_{n}(): subprocess.run(['true'], check=True)\n" for n in range(count // 10))
    contenders = [
        Contender(f"{kind}{name}", source, arguments)
        for kind, source in (("empty, ", empty), ("`true`, ", spawning))
        for name, arguments in (
            ("-p no:cgroup", ["-p", "no:cgroup"]),
            ("--process-leaks=warn", [*plugin_arguments(), "--process-leaks=warn"]),
            ("by the process table", [*plugin_arguments(), "--process-leaks=warn", "--cgroup-backend=process"]),
        )
    ]
    runs = [take_turns(contenders, rounds)]
    with Container(pids=idle + 2) as container:
        command = [sys.executable, "-Ic", _CROWD, str(idle)]
        process = container.popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdout is not None
        if process.stdout.readline() != b"there\n":
            raise RuntimeError(f"{idle} processes could not be started below a limit of {idle + 2}")
        runs.append(take_turns(contenders, rounds))
        there = len(container.processes())
    rows = []
    for place, contender in enumerate(contenders):
        size = count if contender.name.startswith("empty") else count // 10
        plain = place // 3 * 3
        more = [
            statistics.median(
                (own.loop - other.loop) / size * 1000 for own, other in zip(turn[place], turn[plain], strict=True)
            )
            for turn in runs
        ]
        each = [statistics.median(own.loop for own in turn[place]) / size * 1000 for turn in runs]
        rows.append([contender.name, *(f"{ms:.3f} ms" for ms in (each[0], each[1], more[0], more[1]))])
    print_table(
        f"{there} idle processes more, {count} tests, {rounds} rounds",
        ["", "a test", "in the crowd", "more than plain", "in the crowd"],
        rows,
    )


def _cgroups() -> set[str]:
    """Every cgroup that bears our name, in whatever hierarchy."""
    with open("/proc/self/mountinfo", encoding="utf-8") as f:
        mounts = [line.split()[4] for line in f if " - cgroup" in line]
    walks = (os.walk(mount) for mount in mounts)
    return {f"{at}/{name}" for walk in walks for at, names, _ in walk for name in names if "pytest-cgroup-" in name}


def machine() -> str:
    """What was measured on, in a line."""
    import pytest

    commit = "unknown"
    with contextlib.suppress(OSError):  # no git
        git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
        commit = git.stdout.strip() or commit
    python = ".".join(map(str, sys.version_info[:3]))
    uname = os.uname()
    return (
        f"{uname.sysname} {uname.release} {uname.machine}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}; "
        f"Python {python}, pytest {pytest.__version__}, commit {commit}"
    )


CASES: dict[str, Callable[[int, int | None], None]] = {
    "idle": idle,
    "fork": fork,
    "shared": shared,
    "turns": turns,
    "crowd": crowd,
    "flat": flat,
    "bomb": bomb,
    "library": library,
}
