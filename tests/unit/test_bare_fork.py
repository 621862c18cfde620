"""The yardstick of the benchmarks is worth comparing with: it reports what happened, each test in its own process."""

from __future__ import annotations

from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(BENCHMARKS))


def test_outcomes_come_home(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import os, pytest

        seen = []

        def test_pass(): seen.append(1)
        def test_forked(): assert not seen
        def test_fail(): assert 1 == 2
        def test_skip(): pytest.skip("no")
        @pytest.mark.xfail
        def test_xfail(): assert 0
        @pytest.fixture
        def broken(): assert 0
        def test_error(broken): pass
        def test_crash(): os.abort()
        def test_exit(): os._exit(3)
        def test_quiet_exit(): os._exit(0)
        """
    )
    result = pytester.runpytest_subprocess("-p", "no:cgroup", "-p", "bare_fork")
    result.assert_outcomes(passed=2, failed=4, skipped=1, xfailed=1, errors=1)
    result.stdout.fnmatch_lines(["*assert 1 == 2", "*wait status *"])
