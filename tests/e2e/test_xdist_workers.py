"""Limits on a whole worker of pytest-xdist, and the OOM killer that ends one."""

from __future__ import annotations

import pytest

from pytest_cgroup import Container, _station
from tests.e2e.inner import HEAD, LIMIT_ABOVE, Result, command, run

_HOG = """
def hog():
    with open("/proc/self/oom_score_adj", "w") as f: f.write("1000")
    return [bytearray(os.urandom(1)) * (1 << 20) for _ in range(200)]
def test_before(): pass
@pytest.mark.parametrize("by_child", [False, True])
def test_hog(by_child):
    assert limit_of("memory.max", "memory.limit_in_bytes", "memory") == str(64 << 20), "no hog without its limit"
    if not by_child:
        hog()
    elif not (pid := os.fork()):
        hog()
    else:
        assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == 9
def test_after(): pass
"""
_LIMIT = LIMIT_ABOVE + "def limit_of(*names): return limit_above('worker-', *names)\n"


def _run(pytester: pytest.Pytester, source: str, *arguments: str, worker: str = "memory=64M pids=100") -> Result:
    pytester.makeini(f"[pytest]\ncontained_worker = {worker}\n")
    return run(pytester, _LIMIT + source, *arguments, workers=1, usage_json=False)


@pytest.mark.requires("memory")
@pytest.mark.parametrize("leaks", ["off", "fail"])
def test_the_oom_killer_is_told_on_the_test(pytester: pytest.Pytester, leaks: str) -> None:
    """The limit is read back before anything is taken. A child that is killed is the test's own business."""
    result = _run(pytester, _HOG, f"--process-leaks={leaks}", "-Wignore::DeprecationWarning")
    assert result.counts == {"failed": 1, "passed": 3}, result.text
    text = result.blocks["test_it.py"]
    assert "worker 'gw0' crashed while running 'test_it.py::test_hog[False]'" in text
    assert (
        "out of memory, killed by the kernel's OOM killer at its own limit (contained_worker: memory=67108864" in text
    )


@pytest.mark.requires("memory")
def test_another_end_is_not_called_that(pytester: pytest.Pytester) -> None:
    """The negative control."""
    result = _run(pytester, "def test_it(): os.kill(os.getpid(), signal.SIGKILL)\n")
    assert result.counts == {"failed": 1}
    assert "crashed while running" in result.text
    assert "out of memory" not in result.text


@pytest.mark.requires("memory")
@pytest.mark.parametrize("leaks", ["off", "fail"])
def test_the_oom_killer_elsewhere_is_told_of(pytester: pytest.Pytester, leaks: str) -> None:
    """Without limits of the workers: somebody else's, above them, is the reason. The inner run is in a container."""
    pytester.makepyfile(
        test_it=HEAD + _HOG.replace('assert limit_of("memory.max", "memory.limit_in_bytes", "memory") ==', "_ =")
    )
    argv = command(("-pxdist.plugin", "-n1", "test_it.py", f"--process-leaks={leaks}", "-k", "not True"))
    with Container(memory="150M", oom_group=False) as around:
        assert around.limits["memory"] == str(150 << 20)
        text = around.run(argv, capture_output=True, text=True, cwd=pytester.path, timeout=60).stdout
    assert "worker 'gw0' crashed while running 'test_it.py::test_hog[False]'" in text, text
    assert "killed by SIGKILL, and the kernel's OOM killer has ended" in text
    _station.close()


@pytest.mark.requires("pids")
def test_what_a_worker_starts_is_limited_too(pytester: pytest.Pytester) -> None:
    source = """
def test_in_place(): assert limit_of("pids.max", "pids.max", "pids") == "100"
@contained(pids=50)
def test_contained(): assert limit_of("pids.max", "pids.max", "pids") == "100"
def test_child():
    code = "import test_it; print(test_it.limit_of('pids.max', 'pids.max', 'pids'))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "100"
"""
    assert _run(pytester, source).counts == {"passed": 3}


@pytest.mark.parametrize(("missing", "counts"), [("skip", "skipped"), ("fail", "error"), ("warn", "passed")])
def test_where_no_limit_can_be_given(pytester: pytest.Pytester, missing: str, counts: str) -> None:
    arguments = ("--cgroup-backend=process", f"--cgroup-missing={missing}")
    result = _run(pytester, "def test_it(): pass\n", *arguments, "-rs")
    assert result.counts[counts] == 1
    assert "contained_worker: limits on a worker need a cgroup, and here is none" in result.text


@pytest.mark.parametrize("worker", ["memory=lots", "timeout=3", "pids=0"])
def test_what_is_wrong_is_refused(pytester: pytest.Pytester, worker: str) -> None:
    result = _run(pytester, "def test_it(): pass\n", worker=worker)
    assert result.ret == 4
    assert "ini contained_worker" in result.text
