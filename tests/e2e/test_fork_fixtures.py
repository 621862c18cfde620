"""Fixtures around the fork: of higher scope in pytest's own process and once, of the test's own inside."""

from __future__ import annotations

import pytest

from tests.e2e.inner import run

# Each fixture notes where it ran: P in pytest's own process, C in a child.
_NOTE = """
PID = os.getpid()
def note(what):
    with open("notes", "a") as file:
        file.write(f"{'P' if os.getpid() == PID else 'C'} {what}\\n")
"""


def notes(pytester: pytest.Pytester) -> list[str]:
    path = pytester.path / "notes"
    lines = path.read_text().splitlines()
    path.unlink()
    return lines


def test_each_scope_once_and_in_its_place(pytester: pytest.Pytester) -> None:
    source = f"""{_NOTE}
@pytest.fixture(scope="session")
def of_session():
    note("session up"); yield []; note("session down")
@pytest.fixture(scope="module")
def of_module(of_session):
    note("module up"); yield; note("module down")
@pytest.fixture(scope="class")
def of_class():
    note("class up"); yield; note("class down")
@pytest.fixture
def of_test(of_session):
    of_session.append(1)
    note("test up"); yield; note("test down")
@contained
class TestA:
    def test_1(self, of_test, of_class, of_module): note("test_1")
    def test_last_in_class(self, of_test, of_class, of_session):
        assert of_session == [1], "what another test did stayed in its process"
        note("test_2")
@contained
def test_last(of_test, of_session): note("test_3")
"""
    result = run(pytester, source)
    assert result.counts == {"passed": 3}
    once = ["C test up", "C test_{}", "C test down"]
    assert notes(pytester) == [
        "P session up",
        "P module up",
        "P class up",
        *(line.format(1) for line in once),
        *(line.format(2) for line in once),
        "P class down",
        *(line.format(3) for line in once),
        "P module down",
        "P session down",
    ]


def test_mixed_with_uncontained_tests(pytester: pytest.Pytester) -> None:
    source = f"""{_NOTE}
@pytest.fixture(scope="module", params=[1, 2])
def number(request):
    note(f"{{request.param}} up"); yield request.param; note(f"{{request.param}} down")
@contained
def test_contained(number): note(f"contained {{number}}")
def test_plain(number): note(f"plain {{number}}")
@contained
def test_fails(number): assert number == 1
"""
    assert run(pytester, source).counts == {"passed": 5, "failed": 1}
    expected = [line.format(n) for n in (1, 2) for line in ("P {} up", "C contained {}", "P plain {}", "P {} down")]
    assert notes(pytester) == expected


def test_first_asked_for_inside_is_torn_down_inside(pytester: pytest.Pytester) -> None:
    source = f"""{_NOTE}
@pytest.fixture(scope="session")
def lazy():
    note("lazy up"); yield 5; note("lazy down")
@contained
def test_1(request): assert request.getfixturevalue("lazy") == 5
@contained
def test_2(request): assert request.getfixturevalue("lazy") == 5
@contained
def test_3(lazy): pass
@contained
def test_4(request): assert request.getfixturevalue("lazy") == 5
"""
    assert run(pytester, source).counts == {"passed": 4}
    inside = ["C lazy up", "C lazy down"]
    assert notes(pytester) == [*inside, *inside, "P lazy up", "P lazy down"]


def test_the_parents_finalizers_never_run_in_the_child(pytester: pytest.Pytester) -> None:
    source = f"""{_NOTE}
import atexit
atexit.register(note, "atexit")
@pytest.fixture(scope="session", autouse=True)
def of_session(request):
    request.addfinalizer(lambda: note("finalizer"))
class TestA:
    @contained
    def test_1(self): os._exit(0)
    @contained
    def test_2(self): sys.exit(0)
    @contained
    def test_3(self): assert 0
"""
    assert run(pytester, source).counts == {"failed": 3}
    assert notes(pytester) == ["P finalizer", "P atexit"]


def test_teardown_of_a_higher_scope_that_fails(pytester: pytest.Pytester) -> None:
    source = """
@pytest.fixture(scope="class")
def bad():
    yield
    raise ValueError("class teardown")
@pytest.fixture
def inner_bad():
    yield
    raise KeyError("own teardown")
class TestPass:
    @contained
    def test_it(self, bad): pass
class TestCrash:
    @contained
    def test_it(self, bad): os.abort()
class TestBoth:
    @contained
    def test_it(self, bad, inner_bad): pass
class TestCrashInTeardown:
    @pytest.fixture
    def crash(self):
        yield
        os.abort()
    @contained
    def test_it(self, bad, crash): pass
"""
    result = run(pytester, source)
    assert result.counts == {"passed": 3, "failed": 1, "error": 4}
    blocks = {name.split()[-1].partition(".")[0]: text for name, text in result.blocks.items() if "teardown" in name}
    assert all("class teardown" in text for text in blocks.values())
    assert "own teardown" in blocks["TestBoth"]
    assert "SIGABRT" in blocks["TestCrashInTeardown"]
    assert "SIGABRT" in result.blocks["TestCrash.test_it"]


def test_set_up_that_fails_outside_starts_no_container(pytester: pytest.Pytester) -> None:
    source = """
@pytest.fixture(scope="session")
def broken(): raise ValueError("broken")
@pytest.fixture(scope="module")
def skips(): pytest.skip("of the module")
@contained
def test_1(broken): pass
@contained
def test_2(skips): pass
@contained
def test_3(no_such): pass
@contained
def test_4(): pass
"""
    result = run(pytester, source)
    assert result.counts == {"passed": 1, "skipped": 1, "error": 2}
    assert set(result.records) == {"test_4"}


def test_temporary_directories(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\ntmp_path_retention_policy = failed\ntmp_path_retention_count = 2\n")
    source = """
@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    path = tmp_path_factory.mktemp("shared")
    (path / "of_pytest").write_text("x")
    return path
@contained
def test_writes(tmp_path, shared):
    (tmp_path / "kept").write_text("x")
    (shared / "of_the_test").write_text("y")
    assert 0
@contained
def test_reads(shared, tmp_path): assert sorted(path.name for path in shared.iterdir()) == ["of_pytest", "of_the_test"]
@contained
def test_another(tmp_path): assert not list(tmp_path.iterdir())
"""
    base = pytester.path / "base"
    assert run(pytester, source, f"--basetemp={base}").counts == {"passed": 2, "failed": 1}
    kept = [path.name for path in base.iterdir() if path.is_dir() and not path.is_symlink()]
    assert "test_writes0" in kept, "of the failed test"
    assert "test_reads0" not in kept, "of the test that passed"


def test_what_a_test_changes_stays_in_it(pytester: pytest.Pytester) -> None:
    source = """
import logging, warnings
STATE = []
def state():
    return (os.getcwd(), os.environ.get("LEFT"), tuple(sys.path), STATE[:], os.umask(os.umask(0)),
            signal.getsignal(signal.SIGTERM), logging.getLogger().level, sys.getrecursionlimit())
BEFORE = state()
@contained
def test_changes(tmp_path):
    os.chdir(tmp_path); os.environ["LEFT"] = "1"; sys.path.append("x"); STATE.append(1); os.umask(0o777)
    signal.signal(signal.SIGTERM, signal.SIG_IGN); logging.getLogger().setLevel(1); sys.setrecursionlimit(5000)
    assert state() != BEFORE
def test_untouched(): assert state() == BEFORE
"""
    assert run(pytester, source).counts == {"passed": 2}


@pytest.mark.parametrize("every", [3, 10**9])
def test_pytests_garbage_is_collected(pytester: pytest.Pytester, every: int) -> None:
    """What is frozen for the fork is never looked at again by Python itself: with the switch off it stays."""
    source = f"""
import gc, weakref
from pytest_cgroup import _workshop
_workshop.COLLECT_EVERY = {every}
class Cycle:
    def __init__(self):
        self.me = self
dead = []
@pytest.fixture(scope="module", autouse=True)
def make():
    gc.set_threshold(10**9)  # or Python itself may look at it, before it is frozen
    one = Cycle()
    dead.append(weakref.ref(one))
@contained
@pytest.mark.parametrize("number", range(8))
def test_it(number): pass
def test_here():
    assert (dead[0]() is None) == {every == 3}
"""
    assert run(pytester, source).counts == {"passed": 9}


def test_a_container_leaves_no_garbage(pytester: pytest.Pytester) -> None:
    """Of no class of ours: it would grow with the tests until somebody collects it."""
    source = """
import gc
def ours():
    return sorted(type(one).__name__ for one in gc.garbage if type(one).__module__.startswith("pytest_cgroup"))
def test_before():
    gc.collect()
    gc.set_debug(gc.DEBUG_SAVEALL)
@contained
@pytest.mark.parametrize("number", range(3))
def test_it(number): pass
def test_after():
    gc.collect()
    gc.set_debug(0)
    assert ours() == []
"""
    assert run(pytester, source).counts == {"passed": 5}
