"""A test that puts something else in the place of what the standard library has is reported, ended and looked after."""

from __future__ import annotations

import pytest

from tests.e2e.inner import run

backends = pytest.mark.parametrize(
    "backend", [pytest.param("cgroup", marks=pytest.mark.requires("cgroup")), "process"], ids=str
)
#: what unittest.mock, freezegun, pytest-socket and pyfakefs do, each in its way
_HEAD = """
from unittest import mock
FUNCTIONS = ["os.write", "os.read", "os.close", "os.open", "os.getpid", "os.kill", "os.fork", "os.waitpid", "os._exit",
             "os.listdir", "os.path.exists", "os.stat", "time.time", "time.sleep", "json.dumps", "json.loads",
             "select.poll", "signal.signal", "builtins.open", "io.open"]
@pytest.fixture
def mocked():
    import contextlib, json, select, io
    with contextlib.ExitStack() as stack:
        for name in FUNCTIONS: stack.enter_context(mock.patch(name))
        yield
@pytest.fixture(scope="module")
def frozen():
    with mock.patch("time.monotonic", return_value=0.0), mock.patch("time.time", return_value=0.0): yield
@pytest.fixture
def no_socket():
    def refuse(*_, **__): raise RuntimeError("no socket here")
    with mock.patch("socket.socket", refuse): yield
@pytest.fixture
def other_modules():
    "As a file system in memory: in every module that has it, os is another one."
    import io
    class Fake:
        path = None
        def __getattr__(self, name): raise RuntimeError(f"fake: {name}")
    fakes = {id(real): Fake() for real in (os, io, time, signal, subprocess)}
    ours = [module for name, module in sys.modules.items() if name.startswith("pytest_cgroup")]
    kept = [(vars(one), name, value) for one in ours for name, value in vars(one).items()
            if id(value) in fakes or getattr(value, "__name__", None) in ("os", "io", "time")]
    for names, name, value in kept: names[name] = fakes.get(id(value)) or Fake()
    yield
    for names, name, value in kept: names[name] = value
def leak(): subprocess.Popen(["sleep", "117"], start_new_session=True)
"""


@backends
def test_in_a_contained_test(pytester: pytest.Pytester, backend: str) -> None:
    source = """
pytestmark = contained
def test_mocked(mocked): pass
def test_fails(mocked): print("printed"); assert [1] == [2]
@contained(timeout=1)
def test_hangs(mocked):
    while True: pass
def test_leaks(other_modules): leak()
def test_for_ever():
    "Until its process ends."
    import json
    os.write = os._exit = os.close = os.fork = json.dumps = time.monotonic = None
def test_frozen(frozen): assert time.monotonic() == 0
@contained(timeout=1)
def test_frozen_hangs(frozen):
    while True: pass
def test_no_socket(no_socket): pass
"""
    result = run(pytester, _HEAD + source, f"--cgroup-backend={backend}")
    assert result.counts == {"passed": 5, "failed": 3, "error": 1}
    assert "assert [1] == [2]" in result.blocks["test_fails"]
    assert "printed" in result.blocks["test_fails"]
    for name in ("test_hangs", "test_frozen_hangs"):
        assert "timeout: killed in call after" in result.blocks[name]
    assert "left behind, now killed: 1 process (sleep)" in result.text
    assert "unreadable" not in result.text


@backends
def test_in_place(pytester: pytest.Pytester, backend: str) -> None:
    """What a fixture of higher scope replaces is replaced when leaks are looked for."""
    source = """
@pytest.fixture(scope="module")
def replaced():
    import json
    with mock.patch("os.kill"), mock.patch("os.open"), mock.patch("time.sleep"), mock.patch("json.loads"): yield
def test_leaks(replaced, frozen): leak()
def test_ok(replaced, frozen): pass
def test_mocked(mocked): pass
"""
    result = run(pytester, _HEAD + source, f"--cgroup-backend={backend}", "--process-leaks=fail")
    assert result.counts == {"passed": 3, "error": 1}
    assert "left behind, now killed: 1 process (sleep)" in result.text


@backends
def test_of_the_library(pytester: pytest.Pytester, backend: str) -> None:
    source = """
def test_frozen(frozen, contained):
    assert contained.run(["true"], timeout=60).returncode == 0
    with pytest.raises(subprocess.TimeoutExpired): contained.run(["sleep", "60"], timeout=0.3)
def test_no_socket(no_socket, contained):
    assert contained.run(["true"]).returncode == 0
    assert contained.call(abs, -1) == 1
def test_no_popen(contained):
    with mock.patch("subprocess.Popen"), mock.patch("os.path.exists"), mock.patch("builtins.open"):
        assert contained.run(["true"]).returncode == 0
def test_other_modules(other_modules, contained): assert contained.run(["true"]).returncode == 0
"""
    assert run(pytester, _HEAD + source, f"--cgroup-backend={backend}").counts == {"passed": 4}


_FAKED = """
pytestmark = contained
def test_fake(fs):
    fs.create_file("/of/nobody", contents="a")
    assert open("/of/nobody").read() == "a" and not os.path.exists("/proc/self")
def test_fails(fs): assert os.path.exists("/of/nobody")
@contained(timeout=5)
def test_hangs(fs):
    while True: pass
def test_leaks(fs):
    fs.pause()
    leak()
    fs.resume()
"""


@backends
def test_pyfakefs(pytester: pytest.Pytester, backend: str) -> None:
    pytest.importorskip("pyfakefs")
    result = run(pytester, _HEAD + _FAKED, f"--cgroup-backend={backend}", "-ppyfakefs.pytest_plugin")
    assert result.counts == {"passed": 2, "failed": 2, "error": 1}
    assert "timeout: killed in call after" in result.text
    assert "left behind, now killed: 1 process (sleep)" in result.text


_GREEN = """
from gevent import monkey; monkey.patch_all()
@contained
def test_green():
    import gevent
    assert gevent.spawn(lambda: 3).get() == 3
@contained
def test_leaks(): subprocess.Popen(["sleep", "117"], start_new_session=True)
def test_library(contained):
    assert contained.run(["true"]).returncode == 0
    assert contained.call(abs, -1) == 1
    with contained.popen(["sleep", "0.1"]) as process: pass
    assert process.returncode == 0
def test_daemon(contained):
    with pytest.raises(pytest_cgroup.ContainerError, match="threads are greenlets"): contained.daemon(["sleep", "60"])
"""


@backends
def test_gevent(pytester: pytest.Pytester, backend: str) -> None:
    pytest.importorskip("gevent")
    result = run(pytester, "import pytest_cgroup" + _GREEN, f"--cgroup-backend={backend}")
    assert result.counts == {"passed": 4, "error": 1}
    assert "left behind, now killed: 1 process (sleep)" in result.text
