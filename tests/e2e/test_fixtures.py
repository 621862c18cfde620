"""`contained` and `contained_factory`: where their containers are, how long they live, what becomes of leftovers."""

from __future__ import annotations

import pytest

from tests.as_user import OrdinaryUser
from tests.e2e.inner import HEAD, command, run

both = pytest.mark.parametrize("workers", [0, 2])
each_backend = pytest.mark.parametrize(
    "backend", [pytest.param("cgroup", marks=pytest.mark.requires("cgroup")), "process"]
)
_LEFT = """
MADE = []
def alive(process): return process.poll() is None
SLEEP = ["sleep", "120"]
"""
_SCOPES = (
    _LEFT
    + """
@pytest.fixture(scope="session")
def of_session(contained_factory): return contained_factory(name="of_session").popen(SLEEP)
@pytest.fixture(scope="module")
def of_module(contained_factory):
    container = contained_factory(name="of_module")
    container.popen(SLEEP)
    yield container
    assert container.populated, "it ends after the fixture"
    MADE.append(container)
@pytest.fixture(scope="class")
def of_class(contained_factory):
    return lambda: contained_factory().popen(SLEEP)
@pytest.fixture
def of_function(contained_factory): return contained_factory().popen(SLEEP)
@pytest.fixture
def asks_late(request): return request.getfixturevalue("contained_factory")().popen(SLEEP)

class TestClass:
    def test_first(self, request, of_session, of_module, of_class, of_function, asks_late, contained_factory):
        own, late = contained_factory().popen(SLEEP), request.getfixturevalue("contained_factory")().popen(SLEEP)
        made = of_class()
        assert all(map(alive, [of_session, of_function, asks_late, own, late, made])) and of_module.populated
        type(self).ended, type(self).made = [of_function, asks_late, own, late], made
    def test_second(self, of_session, of_module):
        assert not any(map(alive, self.ended))
        assert alive(of_session) and of_module.populated and alive(self.made)
def test_third(of_session, of_module):
    assert not alive(TestClass.made) and alive(of_session)
"""
)


def one_worker(workers: int) -> tuple[str, ...]:
    """Under xdist, all tests of a file in one worker."""
    return ("--dist=loadfile",) if workers else ()


@each_backend
@pytest.mark.parametrize("how", [(), ("--process-leaks=fail",)], ids=["plain", "process-leaks"])
def test_each_ends_with_who_asked_for_it(pytester: pytest.Pytester, backend: str, how: tuple[str, ...]) -> None:
    result = run(pytester, _SCOPES, f"--cgroup-backend={backend}", *how)
    assert (result.ret, result.counts) == (0, {"passed": 3}), result.text


def test_in_the_workers_of_xdist(pytester: pytest.Pytester) -> None:
    result = run(pytester, _SCOPES, "--process-leaks=fail", "--dist=loadfile", workers=2)
    assert (result.ret, result.counts) == (0, {"passed": 3}), result.text


@both
@each_backend
@pytest.mark.parametrize("mark", ["", "@contained", '@contained(leaks="fail")'], ids=["in-place", "forked", "strict"])
def test_what_is_left_in_one_fails_nothing(pytester: pytest.Pytester, mark: str, backend: str, workers: int) -> None:
    source = f"""
{_LEFT}
{mark}
def test_it(contained, contained_factory):
    contained.popen(SLEEP)
    contained_factory().popen(SLEEP)
{mark}
def test_control(contained): subprocess.Popen(SLEEP)
"""
    result = run(pytester, source, "--process-leaks=fail", f"--cgroup-backend={backend}", workers=workers)
    assert result.counts == {"passed": 2, "error": 1}, result.text
    (name,) = result.blocks
    assert "test_control" in name


def test_the_outcome_names_what_was_left(pytester: pytest.Pytester) -> None:
    source = f"""
{_LEFT}
def test_it(contained):
    contained.popen(SLEEP)
    MADE.append(contained)
def test_after():
    assert [leak.argv for leak in MADE[0].outcome.leaks] == [tuple(SLEEP)]
"""
    assert run(pytester, source).counts == {"passed": 2}


@both
def test_leaks_fail_where_that_is_asked_for(pytester: pytest.Pytester, workers: int) -> None:
    source = f"""
{_LEFT}
@pytest.fixture(scope="module")
def strict(contained_factory): return contained_factory(leaks="fail")
def test_own(contained_factory): contained_factory(leaks="fail").popen(SLEEP)
@contained
def test_forked(contained_factory): contained_factory(leaks="fail").popen(SLEEP)
def test_warned(contained_factory): contained_factory(leaks="warn").popen(SLEEP)
def test_of_a_fixture(strict): strict.popen(SLEEP)
"""
    result = run(pytester, source, *one_worker(workers), workers=workers)
    assert result.counts == {"passed": 4, "error": 3, "warning": 1}, result.text
    for name in ("own", "forked", "of_a_fixture"):
        assert "1 left behind, and killed:\n  pid" in result.blocks[f"ERROR at teardown of test_{name}"]
    assert "Traceback" not in result.text


_NESTED = """
FORK = [sys.executable, "-c", "import os\\nfor _ in range(9): os.fork() or os._exit(0)"]
def groups(pid): return open(f"/proc/{pid}/cgroup").read().splitlines()
@pytest.fixture
def stranger(): return subprocess.Popen(["sleep", "120"])  # it is in the way of v2's controllers
@contained(memory="256M", pids=64, leaks="ignore")
def test_it(stranger, contained, contained_factory):
    assert contained.run(FORK, capture_output=True).returncode == 0  # the control
    small = contained_factory(memory="64M", pids=5)
    assert b"BlockingIOError" in small.run(FORK, capture_output=True).stderr
    assert small.limits["memory"] == str(64 << 20)
    inside = small.popen(["sleep", "120"])
    for own, nested in zip(groups("self"), groups(inside.pid), strict=True):
        if "-test_it" in nested:
            assert nested.startswith(own.removesuffix("/main")), (own, nested)
    assert any("/own-" in nested for nested in groups(inside.pid))
    small.kill()
    assert inside.returncode == -9 and contained.run(["true"]).returncode == 0
    contained.popen(["sleep", "120"])
    os.write(2, b"ended by itself")
    if "killed" in sys.argv: os.kill(os.getpid(), 9)
"""


@pytest.mark.requires("cgroup", "memory", "pids")
def test_inside_the_tests_own_container(pytester: pytest.Pytester) -> None:
    result = run(pytester, _NESTED, "-s")
    assert (result.ret, result.counts) == (0, {"passed": 1}), result.text


@pytest.mark.requires("cgroup", "memory", "pids")
def test_a_killed_test_takes_what_is_nested_along(pytester: pytest.Pytester) -> None:
    """What is left would be found by the check that every test here has."""
    result = run(pytester, _NESTED.replace('if "killed" in sys.argv', "if True"), "-s")
    assert result.counts == {"failed": 1}
    assert "SIGKILL" in result.blocks["test_it"]


@pytest.mark.requires("cgroup", "memory", "pid_ns")
def test_nested_in_namespaces(pytester: pytest.Pytester) -> None:
    source = """
@contained(pid_ns=True, memory="256M")
def test_it(contained, contained_factory):
    assert os.getpid() < 10
    assert contained.run(["sh", "-c", "exit 3"]).returncode == 3
    inner = contained_factory(pid_ns=True, memory="64M")
    assert int(inner.run(["sh", "-c", "echo $$"], capture_output=True, text=True).stdout) < 10
"""
    result = run(pytester, source)
    assert (result.ret, result.counts) == (0, {"passed": 1}), result.text


def test_a_closure_of_a_fixture_outside_makes_them_inside(pytester: pytest.Pytester) -> None:
    """What it made in the forked child nobody outside knows of: it ends with the test, and is no leak of that."""
    source = """
@pytest.fixture(scope="module")
def make(contained_factory): return lambda: contained_factory().popen(["sleep", "120"])
@contained(leaks="fail")
def test_it(make): make()
def test_outside(make): make()
"""
    result = run(pytester, source, "--process-leaks=fail")
    assert (result.ret, result.counts) == (0, {"passed": 2}), result.text


def test_one_made_outside_is_left_alone_by_a_forked_test(pytester: pytest.Pytester) -> None:
    source = """
import pytest_cgroup
@pytest.fixture(scope="module")
def server(contained_factory): return contained_factory().popen(["sleep", "120"]), contained_factory()
@contained
def test_it(server):
    with pytest.raises(pytest_cgroup.ContainerError, match="was made by another process"): server[1].kill()
def test_after(server): assert server[0].poll() is None
"""
    result = run(pytester, source)
    assert (result.ret, result.counts) == (0, {"passed": 2}), result.text


@each_backend
def test_containers_that_a_test_makes_without_a_fixture(pytester: pytest.Pytester, backend: str) -> None:
    """Also where pytest stands elsewhere in each test; one that is never ended ends with the run."""
    source = f"""
{_LEFT}
from pytest_cgroup import Container
def test_first():
    with Container() as container:
        container.run(["true"])
        container.popen(SLEEP)
def test_second():
    MADE.append(Container().start())
    MADE[0].popen(SLEEP)
def test_third(): assert MADE[0].populated
"""
    result = run(pytester, source, "--process-leaks=fail", f"--cgroup-backend={backend}")
    assert (result.ret, result.counts) == (0, {"passed": 3}), result.text


# where it can't be had

_MISSING = """
def test_it(contained_factory):
    container = contained_factory(pids=4)
    assert "pids" not in container.limits
    open("ran", "w").close()
@pytest.fixture(scope="session")
def limited(contained_factory): return contained_factory(pids=4)
def test_first(limited): pass
def test_second(limited): pass
@contained
def test_forked(contained_factory): contained_factory(pids=4)
def test_other(contained): pass
"""
_REASON = "contained: this host can't honour pids: needs a cgroup, and RLIMIT_NPROC is no substitute"


@both
def test_skipped_unless_said_otherwise(pytester: pytest.Pytester, workers: int) -> None:
    result = run(pytester, _MISSING, "--cgroup-backend=process", "-rs", *one_worker(workers), workers=workers)
    assert (result.ret, result.counts) == (0, {"passed": 1, "skipped": 4}), result.text
    assert f"SKIPPED [1] test_it.py:5: {_REASON}" in result.text
    assert not pytester.path.joinpath("ran").exists()


@both
def test_failed(pytester: pytest.Pytester, workers: int) -> None:
    arguments = ("--cgroup-backend=process", "--cgroup-missing=fail", *one_worker(workers))
    result = run(pytester, _MISSING, *arguments, workers=workers)
    assert result.counts == {"passed": 1, "failed": 2, "error": 2}, result.text
    assert result.blocks["test_it"].startswith(_REASON)
    assert result.blocks["ERROR at setup of test_second"].startswith(_REASON)


def test_run_without_and_warned_of(pytester: pytest.Pytester) -> None:
    result = run(pytester, _MISSING, "--cgroup-backend=process", "--cgroup-missing=warn")
    assert (result.ret, result.counts["passed"]) == (0, 5), result.text
    assert "ContainedWarning: test_it: runs without: pids: needs a cgroup" in result.text
    assert pytester.path.joinpath("ran").exists()


def test_a_wrong_field_is_shown_where_it_was_written(pytester: pytest.Pytester) -> None:
    source = """
def test_it(contained_factory):
    contained_factory(memroy="1M")
"""
    result = run(pytester, source)
    assert "did you mean memory?" in result.blocks["test_it"]
    assert "pytest_cgroup/" not in result.blocks["test_it"]


def test_without_the_plugins_options_nothing_is_loaded(pytester: pytest.Pytester) -> None:
    """Who asks for no container pays for none."""
    source = """
def test_it(): assert not {"pytest_cgroup._fixtures", "pytest_cgroup._library"} & set(sys.modules)
"""
    assert run(pytester, source, usage_json=False).counts == {"passed": 1}


@pytest.mark.parametrize("backend", ["auto", "process"])
def test_as_an_ordinary_user(unprivileged: OrdinaryUser, backend: str) -> None:
    unprivileged.home.joinpath("test_it.py").write_text(HEAD + _SCOPES, encoding="utf-8")
    done = unprivileged.run(
        command(("-q", f"--cgroup-backend={backend}", "--process-leaks=fail", "test_it.py"), unprivileged.python)
    )
    assert "3 passed" in done.stdout, done.stdout + done.stderr


@pytest.mark.requires("cgroup")
@pytest.mark.parametrize("end", ["", "; os._exit(3)"])
def test_what_starts_programs_is_no_leak_of_the_test(pytester: pytest.Pytester, end: str) -> None:
    """It may not even listen yet when the test ends: its interpreter is stopped here before it comes to that."""
    source = f"""
@contained
def test_it(contained):
    from pytest_cgroup import _station
    os.kill(_station.station().launcher().pid, signal.SIGSTOP){end}
"""
    result = run(pytester, source)
    assert result.counts == ({"failed": 1} if end else {"passed": 1}), result.text
    assert "left behind" not in result.text
    assert result.record["leaks"] == []
