"""Many sessions of pytest at once, with tests that pass, leak, fail and crash: every verdict right, and nothing left.

``python -m tests.faults.load [--sessions N] [--seconds N]``; ``--tests N`` instead runs N contained tests in one
session, and prints what it holds as it goes: descriptors, memory, files, and cgroups that are dying. With ``--plain``
they are not contained: the control, as pytest itself keeps every report until its end.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import pytest_cgroup
from tests.e2e.inner import HEAD, command

_EIGHT = """
@pytest.mark.parametrize("n", range(4))
class TestAll:
    @contained(memory="64M")
    def test_passes(self, n): subprocess.run(["true"], check=True)

    @contained
    def test_leaks(self, n): subprocess.Popen(["sleep", "271"], start_new_session=True)

    @contained
    def test_fails(self, n): assert 0

    @contained
    def test_crashes(self, n): os.kill(os.getpid(), 9)

    @contained(pid_ns=True)
    def test_in_a_pid_namespace(self, n): subprocess.Popen(["sleep", "271"])
"""
_FAILED = {"test_passes": False, "test_leaks": True, "test_fails": True, "test_crashes": True}
_FAILED["test_in_a_pid_namespace"] = True
_MANY = """
import json, pathlib, resource

def inside(text, name):
    return next((int(line.split()[1]) for line in text.splitlines() if line.startswith(name)), None)

def measure(n):
    status = pathlib.Path("/proc/self/status").read_text()
    stats = [f"{path}/cgroup.stat" for path, _, names in os.walk("/sys/fs/cgroup") if "cgroup.stat" in names
        and f"/pytest-cgroup-{os.getpid()}-" in path]
    dying = [inside(pathlib.Path(path).read_text(), "nr_dying_descendants") for path in stats]
    rows = [line.split() for line in pathlib.Path("/proc/cgroups").read_text().splitlines()]
    disk = os.statvfs("/tmp")
    row = {"tests": n, "descriptors": len(os.listdir("/proc/self/fd")), "rss_kb": inside(status, "VmRSS:"),
        "inodes": disk.f_files - disk.f_ffree, "dying": sum(filter(None, dying)),
        "memory_cgroups": next((int(row[2]) for row in rows if row[0] == "memory"), None)}
    with open("measured", "a") as f: f.write(json.dumps(row) + "\\n")

@MARK
@pytest.mark.parametrize("n", range(COUNT))
def test_it(n): pass

class Measure:
    count = 0
    def pytest_runtest_logfinish(self, nodeid):
        if self.count % (COUNT // 10) == 0: measure(self.count)
        self.count += 1

@pytest.fixture(scope="session", autouse=True)
def plugin(request):
    request.config.pluginmanager.register(Measure())
"""


def session(directory: Path) -> tuple[int, list[str]]:
    """One session in *directory*: how many verdicts it gave, and which of them are wrong."""
    directory.joinpath("test_it.py").write_text(HEAD + _EIGHT, encoding="utf-8")
    junit = directory / "junit.xml"
    line = command([f"--junitxml={junit}", "-ojunit_family=xunit1", "test_it.py"])
    done = subprocess.run(line, cwd=directory, capture_output=True, text=True, check=False, timeout=300)
    if done.returncode != 1 or not junit.exists():
        return 0, [f"status {done.returncode}: {done.stdout[-2000:]}{done.stderr[-2000:]}"]
    said: dict[str, bool] = {}
    for case in ElementTree.parse(junit).iter("testcase"):
        bad = case.find("failure") is not None or case.find("error") is not None or case.find("skipped") is not None
        name = case.get("name") or "?"
        said[name] = said.get(name, False) or bad
    expected = {f"{name}[{n}]": failed for name, failed in _FAILED.items() for n in range(4)}
    wrong = [f"{name}: {said.get(name)}" for name, failed in expected.items() if said.get(name) is not failed]
    return len(said), [*wrong, *([done.stderr] if done.stderr else [])]


def together(sessions: int, seconds: float) -> tuple[Counter[str], list[str]]:
    """So many sessions at once, each begun anew until the time is up: what came of them, and what was wrong."""
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    until = time.monotonic() + seconds

    def work() -> None:
        with tempfile.TemporaryDirectory(prefix="load-") as name:
            while time.monotonic() < until or not counts["sessions"]:
                verdicts, found = session(Path(name))
                counts.update(sessions=1, verdicts=verdicts, wrong=len(found))
                wrong.extend(found)

    threads = [threading.Thread(target=work) for _ in range(sessions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return counts, wrong


def survivors() -> list[int]:
    """The leaks of such sessions that live."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            if Path(f"/proc/{name}/cmdline").read_bytes() == b"sleep\x00271\x00":
                found.append(int(name))
        except OSError:
            continue
    return found


def one_long(tests: int, *, plain: bool = False) -> str:
    """So many contained, or *plain*, tests in one session: what was measured, a line each tenth."""
    with tempfile.TemporaryDirectory(prefix="load-") as name:
        mark = "pytest.mark.filterwarnings" if plain else "contained"
        source = HEAD + _MANY.replace("COUNT", str(tests)).replace("MARK", mark)
        Path(name, "test_it.py").write_text(source, encoding="utf-8")
        done = subprocess.run(command(["-q", "test_it.py"]), cwd=name, capture_output=True, text=True, check=False)
        return Path(name, "measured").read_text(encoding="utf-8") + "\n".join(done.stdout.splitlines()[-2:])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sessions", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--tests", type=int, default=0)
    parser.add_argument("--plain", action="store_true")
    options = parser.parse_args()
    print(f"pytest_cgroup {pytest_cgroup.__version__}", flush=True)
    if options.tests:
        print(one_long(options.tests, plain=options.plain))
        return 0
    counts, wrong = together(options.sessions, options.seconds)
    print(dict(counts), *wrong[:20], f"survivors: {survivors()}", sep="\n")
    return bool(wrong or survivors())


if __name__ == "__main__":
    sys.exit(main())
