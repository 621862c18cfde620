"""--process-leaks-also: zombies, threads, listening sockets and shared memory, each by a switch of its own."""

from __future__ import annotations

import ctypes
import os
import re
from pathlib import Path

import pytest

from tests.e2e.inner import run
from tests.e2e.leaving import leaks, section, survivors, watch

KINDS = {"zombies": "zombie", "threads": "thread", "sockets": "socket", "shared_memory": "shared memory segment"}
#: each leaves one thing of its kind, kept by a global
_LEAVE = """
import ctypes
from multiprocessing import resource_tracker, shared_memory
KEPT, GO = [], threading.Event()
def zombies(name):
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    KEPT.append(child)
def threads(name):
    KEPT.append(threading.Thread(target=GO.wait, name=name))
    KEPT[-1].start()
def sockets(name):
    KEPT.append(socket.create_server(("127.0.0.1", 0)))
def unix_sockets(name):
    KEPT.append(socket.socket(socket.AF_UNIX))
    KEPT[-1].bind(name + ".socket")
    KEPT[-1].listen()
def shared_memory_(name):
    memory = shared_memory.SharedMemory(create=True, size=4096)
    resource_tracker.unregister(memory._name, "shared_memory")
    memory.close()
    with open("posix", "a") as f: print(memory.name, file=f)
def system_v(name):
    with open("sysv", "a") as f: print(ctypes.CDLL(None).shmget(0, 4096, 0o1600), file=f)
WAYS = {"zombies": [zombies], "threads": [threads], "sockets": [sockets, unix_sockets],
        "shared_memory": [shared_memory_, system_v]}
@pytest.fixture(scope="module", params=sorted(WAYS))
def way(request): return WAYS[request.param]
@pytest.fixture(scope="module")
def of_module(way):
    for one in way: one("module-fixture")
@pytest.fixture
def of_test(way):
    yield
    for one in way: one("teardown")
def test_call(way):
    for one in way: one("call")
def test_teardown(of_test): pass
def test_fixture(of_module): pass
def test_fixture_again(of_module): pass
def test_tidy():
    subprocess.run(["true"])
    thread = threading.Thread(target=time.sleep, args=(0.01,))
    thread.start()
    memory = shared_memory.SharedMemory(create=True, size=4096)
    memory.close()
    memory.unlink()
    with socket.create_server(("127.0.0.1", 0)): pass
@pytest.fixture(scope="session", autouse=True)
def end_threads():
    yield
    GO.set()
"""
_OWNERS = {"test_it.py::test_call", "test_it.py::test_teardown", "fixture:of_module"}


def _tidy_up(pytester: pytest.Pytester) -> None:
    for path in pytester.path.glob("*.socket"):
        path.unlink()
    for name in _words(pytester, "posix"):
        Path("/dev/shm", name).unlink(missing_ok=True)
    for number in _words(pytester, "sysv"):
        ctypes.CDLL(None).shmctl(int(number), 0, None)


def _words(pytester: pytest.Pytester, file: str) -> list[str]:
    path = pytester.path / file
    words = path.read_text().split() if path.exists() else []
    path.unlink(missing_ok=True)
    return words


_ALL = ",".join(KINDS)


@pytest.mark.parametrize(
    ("also", "backend", "workers"),
    [*((kind, "auto", 0) for kind in KINDS), *((_ALL, backend, n) for backend in ("auto", "process") for n in (0, 2))],
)
def test_each_is_named_with_its_owner(pytester: pytest.Pytester, backend: str, workers: int, also: str) -> None:
    options = (f"--process-leaks-also={also}", f"--cgroup-backend={backend}", "--dist=loadfile")
    result = watch(pytester, _LEAVE, *options[: 3 if workers else 2], workers=workers)
    _tidy_up(pytester)
    found = leaks(result.junit)
    for option, kind in KINDS.items():
        told = {(leak["owner"].partition("[")[0]) for leak in found if leak["kind"] == kind}
        assert told == (_OWNERS if option in also.split(",") else set()), (option, result.text)
    assert "process" not in {leak["kind"] for leak in found}
    assert "test_tidy" not in section(result)
    assert result.ret == 1
    asked = len(also.split(","))
    assert result.counts == {"passed": 17, "error": 3 * asked}
    if "threads" in also:
        assert re.search(
            r"^  thread call, at test_it.py:\d+ in <?\w+>?$|^  thread call$", section(result), re.MULTILINE
        )
    if "sockets" in also:
        assert re.search(r"^  socket tcp 127\.0\.0\.1:\d+$", section(result), re.MULTILINE)
        assert "  socket unix call.socket" in section(result)
    if "shared_memory" in also:
        assert re.search(
            r"^  shared memory segment /dev/shm/\w+, 4K, made at test_it.py:\d+ in shared_memory_",
            section(result),
            re.M,
        )
        assert "left behind: 2 shared memory segments" in result.text
    if "zombies" in also:
        assert re.search(r"^  zombie true\[\d+\], started at test_it.py:\d+ in zombies", section(result), re.MULTILINE)


def test_off_unless_asked_for(pytester: pytest.Pytester) -> None:
    """The negative control, and the ini twin."""
    result = watch(pytester, _LEAVE)
    _tidy_up(pytester)
    assert (result.ret, result.counts, section(result)) == (0, {"passed": 17}, "")
    result = watch(pytester, _LEAVE, "-o", "process_leaks_also=threads sockets", "--process-leaks=warn")
    _tidy_up(pytester)
    assert result.ret == 0
    assert {leak["kind"] for leak in leaks(result.junit)} == {"thread", "socket"}


def test_beside_processes(pytester: pytest.Pytester) -> None:
    """One report; what was killed is no zombie, and a pool's threads are kept as its processes are."""
    source = """
import concurrent.futures
GO, POOL = threading.Event(), concurrent.futures.ThreadPoolExecutor()
def test_both():
    popen("it")
    subprocess.Popen(ARGV, start_new_session=True)
    threading.Thread(target=GO.wait).start()
def test_pool(): POOL.submit(int).result()
def test_next(): pass
def test_end(): GO.set()
"""
    result = watch(pytester, source, "--process-leaks-also=threads,zombies")
    assert survivors(pytester) == {}
    assert result.counts == {"passed": 4, "error": 1}
    text = result.blocks["ERROR at teardown of test_both"]
    assert "left behind, now killed: 2 processes (sleep, sleep)" in text
    assert "left behind: 1 thread" in text
    assert "test_both left behind 2 processes, 1 thread:" in section(result)
    result = watch(pytester, source, "--process-leaks-also=threads", "-o", "process_leaks_pools=report")
    assert "test_pool left behind 1 thread:" in section(result)


@pytest.mark.parametrize("given", [["--process-leaks-also=ports"], ["-o", "process_leaks_also=threads ports"]])
def test_what_is_wrong_is_refused(pytester: pytest.Pytester, given: list[str]) -> None:
    result = run(pytester, "def test_it(): pass\n", "--process-leaks=warn", *given)
    assert result.ret == 4
    assert "'ports': allowed: zombies, threads, sockets, shared_memory" in result.text


def test_who_else_makes_shared_memory_is_not_blamed(pytester: pytest.Pytester) -> None:
    """What another process made at the time is not pytest's."""
    name = f"pytest-cgroup-{os.getpid()}-other"
    source = f"""
def test_it():
    subprocess.run(["touch", "/dev/shm/{name}"], check=True)
"""
    try:
        result = watch(pytester, source, "--process-leaks-also=shared_memory")
    finally:
        Path("/dev/shm", name).unlink(missing_ok=True)
    assert result.counts == {"passed": 1}
