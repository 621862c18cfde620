"""No false alarms: helpers of the interpreter's own, pools that are kept, and what the user names."""

from __future__ import annotations

import pytest

from tests.e2e.leaving import leaks, pid_of, section, survivors, watch

backends = pytest.mark.parametrize("backend", ["auto", "process"])

_HELPERS = """
from multiprocessing import resource_tracker, shared_memory
def test_resource_tracker():
    memory = shared_memory.SharedMemory(create=True, size=10)
    memory.close()
    memory.unlink()
    note("tracker", resource_tracker._resource_tracker._pid)
def test_fork_server():
    process = multiprocessing.get_context("forkserver").Process(target=int)
    process.start()
    process.join()
    from multiprocessing import forkserver
    note("server", forkserver._forkserver._forkserver_pid)
def test_they_live():
    for name in ("tracker", "server"):
        os.kill(int(open(name + ".pid").read()), 0)
"""


@backends
def test_the_interpreters_own_helpers(pytester: pytest.Pytester, backend: str) -> None:
    result = watch(pytester, _HELPERS, f"--cgroup-backend={backend}")
    survivors(pytester)
    assert result.counts == {"passed": 3}, result.text
    assert section(result) == ""


@backends
def test_what_the_fork_server_started_is_a_leak(pytester: pytest.Pytester, backend: str) -> None:
    """It is born where the server stands, which was started by an earlier test."""
    source = """
def start(name):
    process = multiprocessing.get_context("forkserver").Process(target=time.sleep, args=(120,))
    process.start()
    note(name, process.pid)
    return process
def test_first():
    process = start("joined")
    process.kill()
    process.join()
def test_leak(): start("leak")
def test_next():
    process = start("next")
    process.kill()
    process.join()
"""
    result = watch(pytester, source, f"--cgroup-backend={backend}")
    assert survivors(pytester) == {}
    assert result.counts == {"passed": 3, "error": 1}, result.text
    (leak,) = leaks(result.junit)
    assert (leak["pid"], leak["test"]) == (pid_of(pytester, "leak"), "test_leak")


_POOL = """
from concurrent.futures import ProcessPoolExecutor
POOL = None
def work():
    return os.getpid()
@pytest.fixture(scope="session")
def pool():
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
        yield pool
def test_kept_by_a_global():
    global POOL
    POOL = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork"))
    note("kept", POOL.submit(work).result())
def test_grown_in_a_test(pool): note("grown", pool.submit(work).result())
def test_they_work_on(pool):
    assert POOL.submit(work).result() == int(open("kept.pid").read())
    assert pool.submit(work).result() == int(open("grown.pid").read())
"""


@backends
def test_a_pool_that_is_kept(pytester: pytest.Pytester, backend: str) -> None:
    result = watch(pytester, _POOL, f"--cgroup-backend={backend}")
    assert survivors(pytester) == {}, "pytest's own exit has shut it down"
    assert (result.ret, section(result)) == (0, ""), result.text
    assert result.counts["passed"] == 3


def test_a_pool_is_reported_where_that_is_asked_for(pytester: pytest.Pytester) -> None:
    source = _POOL.partition("def test_they_work_on")[0] + "def test_last(pool): pass\n"
    result = watch(pytester, source, "-o", "process_leaks_pools=report")
    assert survivors(pytester) == {}
    assert {leak["test"] for leak in leaks(result.junit)} == {"test_kept_by_a_global"}, "the other one is a fixture's"


def test_a_pool_that_was_shut_down_leaves_nothing(pytester: pytest.Pytester) -> None:
    source = (
        _POOL.partition("POOL = None")[0]
        + """
def test_it():
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")) as pool:
        note("it", pool.submit(os.getpid).result())
def test_not_waited_for():
    pool = ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork"))
    pool.submit(os.getpid).result()
    pool.shutdown(wait=False)
"""
    )
    result = watch(pytester, source, "-o", "process_leaks_settle=10s")
    assert result.counts == {"passed": 2}, result.text


@backends
@pytest.mark.parametrize("given", ["ini", "command line"])
@pytest.mark.parametrize("glob", ["sleep", "sleep 12?", "*eep 12*"])
def test_what_is_named_is_left_alone(pytester: pytest.Pytester, backend: str, given: str, glob: str) -> None:
    source = """
def test_named(): popen("named")
def test_child():
    shell = subprocess.Popen(["sh", "-c", "sleep 119 & echo $! > child.pid; echo; wait"], stdout=subprocess.PIPE)
    shell.stdout.readline()
    note("shell", shell.pid)
"""
    arguments = [f"--process-leaks-ignore={glob}", "--process-leaks-ignore=nothing"]
    if given == "ini":
        arguments = []
        pytester.makeini(f"[pytest]\nprocess_leaks_ignore =\n    nothing\n    {glob}\n")
    result = watch(pytester, source, f"--cgroup-backend={backend}", *arguments)
    left = survivors(pytester)
    assert "named" in left
    assert "shell" not in left
    assert ("child" in left) == (glob == "sleep")
    assert result.counts == {"passed": 2, "error": 1}


def test_the_children_of_what_is_named_go_with_it(pytester: pytest.Pytester) -> None:
    source = """
def test_it():
    shell = subprocess.Popen(["sh", "-c", "sleep 120 & echo $! > child.pid; echo; wait"], stdout=subprocess.PIPE)
    shell.stdout.readline()
    note("shell", shell.pid)
"""
    result = watch(pytester, source, "--process-leaks-ignore=sh")
    assert sorted(survivors(pytester)) == ["child", "shell"]
    assert result.counts == {"passed": 1}


def test_a_pytest_in_a_test(pytester: pytest.Pytester) -> None:
    """It watches for itself, below where it stands, and leaves nothing there."""
    source = """
def test_inner():
    open("test_sub.py", "w").write(
        "import subprocess\\n"
        "def test_sub(): open('sub.pid', 'w').write(str(subprocess.Popen(['sleep', '120']).pid))\\n")
    done = subprocess.run([sys.executable, "-m", "pytest", "-p", "pytest_cgroup.plugin", "-p", "no:cacheprovider",
        "--process-leaks=fail", "test_sub.py"], stdout=subprocess.PIPE, text=True)
    assert "1 passed, 1 error" in done.stdout
def test_next(): pass
"""
    result = watch(pytester, source)
    assert survivors(pytester) == {}
    assert result.counts == {"passed": 2}, result.text


def test_loky(pytester: pytest.Pytester) -> None:
    pytest.importorskip("joblib")
    source = """
import joblib
def test_it(): assert joblib.Parallel(2)(joblib.delayed(abs)(n) for n in range(4)) == [0, 1, 2, 3]
def test_again(): assert joblib.Parallel(2)(joblib.delayed(abs)(n) for n in range(4)) == [0, 1, 2, 3]
"""
    result = watch(pytester, source)
    assert result.counts == {"passed": 2}, result.text
