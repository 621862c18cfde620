"""Names that hold anything: of a test, which never becomes a path, of a mount point, of a process."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from pytest_cgroup._process import comm, status_fields
from tests.e2e.inner import run

_NAMES = r"""
NAMES = [
    "a/b", "/etc/passwd", "..", "../../..", ".", "", " ", "a\0b", "a\nb", "\x1b[31m", "x" * 10_000, "🦊" * 300,
    "é\u202e", "-rf", "$(reboot)", "cgroup.procs", "main", "%n", "::", "[]", "tasks", "a\\b", "con:1",
]
"""
_SOURCE = f"""
import pathlib
{_NAMES}
@contained
@pytest.mark.parametrize("name", NAMES, ids=NAMES)
def test_it(name, tmp_path):
    for line in pathlib.Path("/proc/self/cgroup").read_text().splitlines():
        if "pytest-cgroup-" in line:
            leaf = line.rpartition("/")[2]
            assert leaf.isascii() and leaf.isprintable() and len(leaf) < 100, leaf
            assert line.rpartition("/")[0].rpartition("/")[2].startswith("pytest-cgroup-"), line
            break
    else:
        assert "process" in os.environ["PYTEST_BACKEND"]
    os.abort() if name == "a/b" else None
"""


_CGROUP = pytest.mark.requires("cgroup")


@pytest.mark.parametrize(
    ("backend", "workers"),
    [pytest.param("cgroup", 0, marks=_CGROUP), pytest.param("cgroup", 2, marks=_CGROUP), ("process", 0)],
)
def test_hostile_ids(pytester: pytest.Pytester, backend: str, workers: int) -> None:
    prefix = ("env", f"PYTEST_BACKEND={backend}")
    result = run(pytester, _SOURCE, f"--cgroup-backend={backend}", "--resource-usage=0", workers=workers, prefix=prefix)
    namespace: dict[str, list[str]] = {}
    exec(_NAMES, namespace)
    assert result.counts == {"failed": 1, "passed": len(namespace["NAMES"]) - 1}, result.text
    assert len(result.records) == len(namespace["NAMES"])
    assert all(line.isprintable() and len(line) < 300 for line in result.table), "one harmless line a test"
    assert len(result.table) == len(namespace["NAMES"]) + 1


def test_two_tests_of_one_name(pytester: pytest.Pytester) -> None:
    source = """
class TestA:
    @contained
    def test_it(self): pass
class TestB:
    @contained
    def test_it(self): pass
"""
    assert run(pytester, source).counts == {"passed": 2}


_MOUNTED = r"""d=$(printf ".\377"); mkdir "$d"; mount -t tmpfs none "$d"; exec "$@" """


@pytest.mark.requires("root", "mount_ns")
@pytest.mark.parametrize("backend", [pytest.param("cgroup", marks=_CGROUP), "process"])
def test_a_mount_point_may_be_any_bytes(pytester: pytest.Pytester, backend: str) -> None:
    """The mount table is read to find the cgroups, whatever else is in it."""
    source = """
@contained(pid_ns=True, private_tmp=True)
def test_it(): assert b".\\xff" in open("/proc/self/mountinfo", "rb").read()
"""
    prefix = ("unshare", "--mount", "sh", "-c", _MOUNTED, "sh")
    result = run(pytester, source, f"--cgroup-backend={backend}", "--process-leaks=fail", prefix=prefix)
    assert result.counts == {"passed": 1}


def test_a_process_may_have_any_name(tmp_path: Path) -> None:
    """What is shown of it does nothing to a terminal."""
    program = os.path.join(os.fsencode(tmp_path), b"\xff\x1b[31m\n")
    shutil.copy(os.fsencode(shutil.which("sleep") or ""), program)
    with subprocess.Popen([program, "1000"]) as process:
        try:
            while comm(process.pid) == comm(os.getpid()):  # it executes in a moment
                time.sleep(0.001)
            assert status_fields(process.pid)["Tgid"] == str(process.pid)
            shown = comm(process.pid)
            assert shown.isprintable()
            assert "[31m" in shown
        finally:
            process.kill()
