"""--process-leaks under pytest-xdist: however the tests are distributed."""

from __future__ import annotations

import pytest

from tests.e2e.leaving import leaks, pid_of, section, survivors, watch

_SOURCE = """
@pytest.fixture(scope="class")
def server(request): popen(request.node.name)
class TestA:
    def test_use(self, server): pass
    def test_leak(self): popen("a")
    def test_clean(self): subprocess.run(["true"])
class TestB:
    def test_leak(self): popen("b")
    def test_clean(self): subprocess.run(["true"])
"""


@pytest.mark.parametrize("dist", ["load", "loadscope", "loadfile", "worksteal"])
@pytest.mark.parametrize("workers", ["-n2", "-n4", "--tx=2*popen"])
def test_the_same_verdicts_however_tests_are_distributed(pytester: pytest.Pytester, dist: str, workers: str) -> None:
    most = ("--maxprocesses=2",) if workers == "-n4" else ()
    result = watch(pytester, _SOURCE, "-pxdist.plugin", workers, *most, f"--dist={dist}")
    assert survivors(pytester) == {}
    assert result.ret == 1
    assert result.counts == {"passed": 5, "error": 3}
    assert result.text.count("= process leaks =") == 1
    told = {leak["pid"]: (leak["owner"], leak["test"]) for leak in leaks(result.junit)}
    assert told == {
        pid_of(pytester, "a"): ("test_it.py::TestA::test_leak", "test_leak"),
        pid_of(pytester, "b"): ("test_it.py::TestB::test_leak", "test_leak"),
        pid_of(pytester, "TestA"): ("fixture:server", "test_use"),
    }
    assert "test_clean" not in section(result)
