"""--process-leaks under pytest-xdist: however the tests are distributed, and when a worker dies."""

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


@pytest.mark.parametrize("restarts", [0, 1])
def test_a_worker_that_dies_takes_nobody_elses_leaks_along(pytester: pytest.Pytester, restarts: int) -> None:
    """What it has told is told, and the worker that replaces it looks for leaks as well.

    Without cgroups, since those of a worker that is killed stay.
    """
    source = """
def test_before(): popen("before")
def test_dies(): os.kill(os.getpid(), signal.SIGKILL)
def test_after(): popen("after")
def test_clean(): pass
"""
    result = watch(pytester, source, "--cgroup-backend=process", f"--max-worker-restart={restarts}", workers=1)
    assert survivors(pytester) == {}
    assert result.ret in (1, 2)
    assert "worker 'gw0' crashed while running 'test_it.py::test_dies'" in result.text
    text = section(result)
    assert f"pid {pid_of(pytester, 'before')}: sleep 120" in text
    assert ("test_it.py::test_after left behind 1 process:" in text) == (restarts == 1)
    assert "test_dies" not in text
