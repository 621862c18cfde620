"""A test's name never becomes a path: whatever the id holds, the container has a directory of its own, and goes."""

from __future__ import annotations

import pytest

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
