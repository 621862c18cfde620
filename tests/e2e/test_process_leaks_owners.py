"""Whose leak it is: the fixture's of higher scope that started it, and only after its teardown."""

from __future__ import annotations

import pytest

from tests.e2e.leaving import is_alive, leaks, pid_of, section, survivors, watch

backends = pytest.mark.parametrize("backend", ["auto", "process"])
_SCOPES = ("class", "module", "package", "session")

_MATRIX = f"""
SCOPES = {_SCOPES!r}
def leave_later(name):
    time.sleep(0.01)
    popen(name)
""" + "".join(
    f"""
@pytest.fixture(scope="{scope}")
def {scope}_setup():
    popen("{scope}_setup")
@pytest.fixture(scope="{scope}")
def {scope}_finalizer():
    yield
    popen("{scope}_finalizer")
@pytest.fixture(scope="{scope}")
def {scope}_addfinalizer(request):
    request.addfinalizer(lambda: setsid("{scope}_addfinalizer"))
@pytest.fixture(scope="{scope}")
def {scope}_thread():
    go = threading.Event()
    thread = threading.Thread(target=lambda: (go.wait(), popen("{scope}_thread")))
    thread.start()
    yield lambda: (go.set(), thread.join())
@pytest.fixture(scope="{scope}")
def {scope}_daemon():
    double_fork("{scope}_daemon")
@pytest.fixture(scope="{scope}")
def {scope}_asked_for():
    popen("{scope}_asked_for")
@pytest.fixture(scope="{scope}")
def {scope}_stops():
    child = subprocess.Popen(ARGV)
    yield child
    child.kill()
    child.wait()
class Test{scope}:
    def test_use(self, {scope}_setup, {scope}_finalizer, {scope}_addfinalizer, {scope}_daemon, {scope}_stops):
        pass
    def test_thread(self, {scope}_thread):
        {scope}_thread()
    def test_asked_for(self, request):
        popen("{scope}-before")
        request.getfixturevalue("{scope}_asked_for")
        popen("{scope}-after")
    def test_again(self, {scope}_setup, {scope}_stops):
        assert {scope}_stops.poll() is None
        for kind in ("setup", "daemon", "thread", "asked_for"):
            os.kill(int(open("{scope}_" + kind + ".pid").read()), 0)
    def test_last(self): pass
"""
    for scope in _SCOPES
)
_KINDS = {
    "setup": "test_again",
    "finalizer": "test_use",
    "addfinalizer": "test_use",
    "thread": "test_thread",
    "daemon": "test_use",
    "asked_for": "test_asked_for",
}


@backends
@pytest.mark.parametrize("workers", [0, 2])
def test_every_scope(pytester: pytest.Pytester, backend: str, workers: int) -> None:
    """Named is the fixture, its scope and place, and the error is on the last test that used it."""
    distribution = ("--dist=loadfile",) if workers else ()
    result = watch(pytester, _MATRIX, f"--cgroup-backend={backend}", *distribution, workers=workers)
    assert survivors(pytester) == {}
    fixtures, tests = len(_SCOPES) * len(_KINDS), len(_SCOPES)
    assert result.ret == 1
    told = {leak["pid"]: leak for leak in leaks(result.junit)}
    lines = pytester.path.joinpath("test_it.py").read_text().splitlines()
    for scope in _SCOPES:
        for kind, last in _KINDS.items():
            name = f"{scope}_{kind}"
            leak = told.pop(pid_of(pytester, name), None)
            assert leak, (name, result.text)
            assert (leak["owner"], leak["test"]) == (f"fixture:{name}", last), (name, result.text)
            assert leak["started_at"].startswith("test_it.py:")
            line = lines.index(f"def {name}():" if kind != "addfinalizer" else f"def {name}(request):")
            assert f"{scope} fixture '{name}' of test_it.py:{line} left behind, now killed: 1 process" in result.text
        for when in ("before", "after"):
            leak = told.pop(pid_of(pytester, f"{scope}-{when}"))
            assert leak["owner"] == f"test_it.py::Test{scope}::test_asked_for"
    assert told == {}
    assert result.counts["passed"] == 5 * len(_SCOPES)
    assert result.counts["error"] <= fixtures + tests
    assert "_stops" not in section(result)


@backends
def test_xunit_style_has_owners_too(pytester: pytest.Pytester, backend: str) -> None:
    pytester.mkpydir("package")
    pytester.path.joinpath("package/__init__.py").write_text(
        "import subprocess\n"
        "def setup_module():\n"
        "    open('package.pid', 'w').write(str(subprocess.Popen(['sleep', '120']).pid))\n"
    )
    pytester.path.joinpath("package/test_inner.py").write_text(
        "import os\ndef test_one(): pass\ndef test_two(): os.kill(int(open('package.pid').read()), 0)\n"
    )
    source = """
import unittest
def setup_module(): popen("module")
def teardown_module(): popen("teardown")
class TestIt:
    def setup_class(self): popen("class")
    def setup_method(self): popen("method")
    def test_it(self): pass
    def test_more(self): os.kill(int(open("class.pid").read()), 0)
class TestUnit(unittest.TestCase):
    @classmethod
    def setUpClass(cls): popen("unit")
    def setUp(self): popen("unit-test")
    def test_unit(self): pass
"""
    result = watch(pytester, source, f"--cgroup-backend={backend}")
    assert survivors(pytester) == {}
    assert result.ret == 1
    owners = {leak["pid"]: leak["owner"] for leak in leaks(result.junit)}
    found = {name: owners.get(pid_of(pytester, name)) for name in ("module", "teardown", "class", "unit", "package")}
    assert found == {
        "module": "fixture:setup_module",
        "teardown": "fixture:setup_module",
        "class": "fixture:setup_class",
        "unit": "fixture:setUpClass",
        "package": "fixture:setup_module",
    }
    assert owners[pid_of(pytester, "method")] == "test_it.py::TestIt::test_more"
    assert owners[pid_of(pytester, "unit-test")] == "test_it.py::TestUnit::test_unit"
    assert "package fixture 'setup_module' of package" in result.text


@backends
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("policy", ["fail", "warn"])
def test_what_belongs_to_no_test(pytester: pytest.Pytester, backend: str, workers: int, policy: str) -> None:
    """The start of the session, and the collection of a file: told at the end, and the run fails by its status."""
    leave = "open('{}.pid', 'w').write(str(subprocess.Popen(['sleep', '120']).pid))"
    pytester.makeconftest(
        "import subprocess\n"
        "def pytest_sessionstart(session):\n"
        f"    if {workers} == 0 or getattr(session.config, 'workerinput', {{}}).get('workerid') == 'gw0':\n"
        f"        {leave.format('session')}\n"
    )
    imported = f"if {workers} == 0 or os.environ.get('PYTEST_XDIST_WORKER') == 'gw0':\n    popen('collection')\n"
    arguments = (f"--cgroup-backend={backend}", f"--process-leaks={policy}")
    result = watch(pytester, imported + "def test_it(): pass\ndef test_other(): pass\n", *arguments, workers=workers)
    left = survivors(pytester)
    text = section(result)
    assert "collection of test_it.py left behind 1 process:" in text
    assert "session left behind 1 process:" in text
    assert f"pid {pid_of(pytester, 'collection')}: sleep 120" in text
    assert left == {}
    assert result.counts == {"passed": 2}
    assert result.ret == (1 if policy == "fail" else 0)


@backends
def test_between_two_tests_it_is_the_sessions(pytester: pytest.Pytester, backend: str) -> None:
    """A plugin's hook starts it there, also by way of a shell that leaves a daemon which nothing leads back to."""
    pytester.makeconftest(
        "import subprocess\n"
        "def pytest_runtest_logfinish(nodeid):\n"
        "    if nodeid.endswith('first'):\n"
        "        open('popen.pid', 'w').write(str(subprocess.Popen(['sleep', '120']).pid))\n"
        "        subprocess.run(['sh', '-c', '(setsid sleep 120 & echo $!) > daemon.pid'], check=True)\n"
    )
    source = "def test_first(): pass\ndef test_second(): pass\ndef test_third(): pass\n"
    result = watch(pytester, source, f"--cgroup-backend={backend}")
    text = section(result)
    assert survivors(pytester) == {}
    assert "session left behind 2 processes:" in text
    assert all(f"pid {pid_of(pytester, name)}: sleep 120" in text for name in ("popen", "daemon"))
    assert (result.ret, result.counts) == (1, {"passed": 3})


@backends
def test_a_child_belongs_to_its_parents_owner(pytester: pytest.Pytester, backend: str) -> None:
    """A server of a session's fixture that starts workers and daemons while tests run keeps them while it lives."""
    server = (
        "import os, subprocess, sys\n"
        "for line in sys.stdin:\n"
        "    if line.strip() == 'daemon':\n"
        "        if os.fork() == 0:\n"
        "            os.setsid()\n"
        "            child = subprocess.Popen(['sleep', '120'], stdout=subprocess.DEVNULL)\n"
        "            print(child.pid, flush=True)\n"
        "            os._exit(0)\n"
        "        os.wait()\n"
        "    else:\n"
        "        print(subprocess.Popen(['sleep', '120'], stdout=subprocess.DEVNULL).pid, flush=True)\n"
    )
    pytester.path.joinpath("server.py").write_text(server)
    source = """
@pytest.fixture(scope="session")
def server():
    child = subprocess.Popen([sys.executable, "server.py"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    yield child
    child.kill()
    child.communicate()
def ask(server, what):
    server.stdin.write(what + "\\n")
    server.stdin.flush()
    note(what, int(server.stdout.readline()))
def test_worker(server): ask(server, "worker")
def test_daemon(server): ask(server, "daemon")
def test_they_live(server):
    for name in ("worker", "daemon"):
        os.kill(int(open(name + ".pid").read()), 0)
"""
    result = watch(pytester, source, f"--cgroup-backend={backend}")
    assert survivors(pytester) == {}
    assert result.counts == {"passed": 3, "error": 1}
    assert {leak["owner"] for leak in leaks(result.junit)} == {"fixture:server"}
    assert {leak["pid"] for leak in leaks(result.junit)} == {pid_of(pytester, name) for name in ("worker", "daemon")}


@backends
def test_what_a_fixture_holds_is_the_fixtures(pytester: pytest.Pytester, backend: str) -> None:
    """Started in a test's time, but kept in the fixture's value, in a variable of it, or in that of its finalizer."""
    source = """
class Pool:
    def __init__(self): self.workers = []
    def grow(self): self.workers.append(subprocess.Popen(ARGV))
@pytest.fixture(scope="session")
def pool():
    pool = Pool()
    yield pool
    for worker in pool.workers:
        worker.kill()
        worker.wait()
@pytest.fixture(scope="module")
def make(request):
    made = []
    def make():
        made.append(subprocess.Popen(ARGV))
        return made[-1].pid
    def unmake():
        for one in made:
            one.kill()
            one.wait()
    request.addfinalizer(unmake)
    return make
@pytest.fixture(scope="module")
def variable():
    forks = {}
    class Fork:
        def __init__(self, pid): self.pid = pid
    def put(pid): forks[len(forks)] = [Fork(pid)]
    yield put
    note("forgotten", forks[0][0].pid)
def test_grow(pool): pool.grow()
def test_make(make): note("made", make())
def test_variable(variable): variable(os.posix_spawnp("sleep", ARGV, os.environ))
def test_own(pool): popen("own")
def test_they_live(pool):
    assert pool.workers[0].poll() is None
    os.kill(int(open("made.pid").read()), 0)
    pool.workers[0].kill()
    pool.grow()
"""
    result = watch(pytester, source, f"--cgroup-backend={backend}")
    assert survivors(pytester) == {}
    assert {leak["pid"]: leak["owner"] for leak in leaks(result.junit)} == {
        pid_of(pytester, "own"): "test_it.py::test_own",
        pid_of(pytester, "forgotten"): "fixture:variable",
    }, result.text
    assert result.counts == {"passed": 5, "error": 2}


def test_a_fixture_is_told_when_the_run_stops_early(pytester: pytest.Pytester) -> None:
    """Its teardown comes after the last report: the status tells, and one more error on the test that used it."""
    source = """
@pytest.fixture(scope="session")
def server(): popen("server")
def test_use(server): pass
def test_stop(): assert False
def test_never(): pass
"""
    result = watch(pytester, source, "-x")
    assert survivors(pytester) == {}
    assert result.counts == {"failed": 1, "passed": 1, "error": 1}
    assert "session fixture 'server'" in result.blocks["ERROR at teardown of test_use"]


def test_a_fixture_under_warn(pytester: pytest.Pytester) -> None:
    source = """
@pytest.fixture(scope="module", params=["a", "b"])
def server(request): popen("server-" + request.param)
def test_use(server): pass
"""
    result = watch(pytester, source, "--process-leaks=warn")
    assert survivors(pytester) == {}
    assert (result.ret, result.counts) == (0, {"passed": 2, "warning": 2})
    assert "fixture:server[0] left behind 1 process:" in section(result)
    assert "fixture:server[1] left behind 1 process:" in section(result)


def test_a_fixture_of_forked_tests(pytester: pytest.Pytester) -> None:
    """Set up outside of their containers, it is watched there, and told once."""
    source = """
@pytest.fixture(scope="module")
def server(): popen("server")
@contained
def test_one(server): pass
@contained
def test_two(server): os.kill(int(open("server.pid").read()), 0)
@contained
def test_three(): pass
"""
    result = watch(pytester, source)
    assert survivors(pytester) == {}
    assert result.counts == {"passed": 3, "error": 1}
    assert [(leak["owner"], leak["test"]) for leak in leaks(result.junit)] == [("fixture:server", "test_two")]


def test_a_living_fixture_keeps_what_it_owns(pytester: pytest.Pytester) -> None:
    """A test's leak is killed, and nothing of the fixture's beside it."""
    source = """
@pytest.fixture(scope="session")
def server():
    child = subprocess.Popen(ARGV)
    yield child
    assert child.poll() is None
    child.kill()
    child.wait()
def test_leak(server): popen("leak")
def test_alive(server): assert server.poll() is None
"""
    for backend in ("auto", "process"):
        result = watch(pytester, source, f"--cgroup-backend={backend}")
        assert result.counts == {"passed": 2, "error": 1}
        assert not is_alive(pid_of(pytester, "leak"))
