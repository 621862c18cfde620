"""A fixture of higher scope is ended once, by pytest itself: not by each child that is forked while it lives."""

from __future__ import annotations

import pytest

from tests.e2e.inner import run

_SOURCE = """
import contextlib, tempfile
from pathlib import Path
LOG = Path(__file__).with_name("log")
def note(what):
    with LOG.open("a") as file: file.write(f"{what} {os.getpid() == PYTEST}\\n")
PYTEST = os.getpid()

class Held:
    def __del__(self): note("del")

@contextlib.contextmanager
def server():
    process = subprocess.Popen(["sleep", "121"])
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        note("server")

def make(scope):
    @pytest.fixture(scope=scope)
    def fixture(tmp_path_factory):
        with server() as process, tempfile.TemporaryDirectory() as directory:
            try:
                yield process, directory, Held()
            finally:
                note(scope)
    return fixture
of_session, of_package, of_module, of_class = map(make, ("session", "package", "module", "class"))

@pytest.fixture(scope="module")
def by_finalizer(request):
    with contextlib.ExitStack() as stack:
        stack.callback(note, "stack")
        request.addfinalizer(stack.pop_all().close)
    return Held()

@pytest.fixture(scope="module", params=["a", "b"])
def with_params(request, of_session):
    try: yield Held()
    finally: note(request.param)

@pytest.fixture
def of_function():
    try: yield
    finally: note("function")

@pytest.fixture(autouse=True, scope="module")
def on_its_own():
    try: yield
    finally: note("autouse")
"""
_TESTS = """
class TestIt:
    @contained
    @pytest.mark.parametrize("number", range(3))
    def test_it(self, of_session, of_package, of_module, of_class, by_finalizer, with_params, of_function, number):
        import gc
        gc.collect()
        for process, directory, _ in (of_session, of_package, of_module, of_class):
            assert Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
            assert os.path.isdir(directory)
        assert not LOG.exists() or not [line for line in LOG.read_text().splitlines() if line in UNTIMELY]
    @contained
    def test_asks_late(self, request):
        assert os.path.isdir(request.getfixturevalue("of_session")[1])
@contained
def test_of_module(of_module, with_params): os.kill(of_module[0].pid, 0)
def test_last(of_module, of_session): os.kill(of_module[0].pid, 0)
UNTIMELY = [f"{what} False" for what in
            ("session", "package", "module", "class", "a", "b", "autouse", "server", "stack", "del")]
"""


@pytest.mark.parametrize("backend", [pytest.param("cgroup", marks=pytest.mark.requires("cgroup")), "process"])
@pytest.mark.parametrize("arguments", [(), ("-s",), ("--contained-jobs=2",), ("--process-leaks=warn",)], ids=str)
def test_ended_once(pytester: pytest.Pytester, backend: str, arguments: tuple[str, ...]) -> None:
    assert run(pytester, _SOURCE + _TESTS.replace("@contained", "")).counts == {"passed": 10}
    log = pytester.path / "log"
    expected = [line for line in log.read_text().splitlines() if line not in ("function True", "del True")]
    assert expected.count("session True") == 1
    log.unlink()
    assert run(pytester, _SOURCE + _TESTS, f"--cgroup-backend={backend}", *arguments).counts == {"passed": 10}
    told = log.read_text().splitlines()
    assert [line for line in told if line not in ("function False", "del True")] == expected
    assert told.count("function False") == 6


def test_it_ends_what_it_has_set_up_itself(pytester: pytest.Pytester) -> None:
    """Once more, and in the child: what is first asked for there is torn down there."""
    source = """
@contained
def test_it(request): request.getfixturevalue("of_module")
"""
    assert run(pytester, _SOURCE + source).counts == {"passed": 1}
    told = (pytester.path / "log").read_text().splitlines()
    assert sorted(told) == ["autouse True", "del False", "module False", "server False"]
