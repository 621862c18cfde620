"""What pytest prints of a contained test is what it prints of an uncontained one: compared letter by letter."""

from __future__ import annotations

import json
import re
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tests.e2e.both import same
from tests.e2e.inner import HEAD, run

_ENDINGS = """
import logging, os, subprocess, sys, warnings, pytest

@pytest.fixture(scope="session")
def outer():
    print("outer up")
    logging.warning("outer log")
    yield 1
    print("outer down")
    logging.warning("outer down log")

@pytest.fixture
def inner(outer):
    print("inner up")
    sys.stderr.write("inner err\\n")
    logging.warning("inner log")
    yield 2
    print("inner down")

def test_capture(inner, caplog):
    print("in the test")
    os.write(1, b"raw out\\n")
    os.write(2, b"raw err\\n")
    subprocess.run(["echo", "of a child"])
    logging.error("boom")
    assert [record.getMessage() for record in caplog.get_records("setup")] == ["outer log", "inner log"]
    assert inner == [1, 2, 3]

def test_capfd(capfd):
    os.write(1, b"hello")
    subprocess.run(["echo", "child"])
    assert capfd.readouterr().out == "hellochild\\n"
    print("left over")
    assert 0

def test_capsys(capsys):
    print("x")
    with capsys.disabled():
        print("seen by all")
    assert capsys.readouterr().out == "x\\n"
    assert 0

def test_caplog(caplog):
    caplog.set_level(logging.INFO)
    logging.info("hi")
    assert caplog.messages == ["hi"]
    assert 0

def test_warns():
    warnings.warn("careful")
    warnings.warn(DeprecationWarning("old"))

class OwnError(Exception):
    pass

class OwnWarning(UserWarning):
    def __init__(self, one, two): super().__init__(one, two)

def test_warns_in_its_own_way():
    warnings.warn(OwnWarning("one", "two"))

def deep(n):
    if n:
        deep(n - 1)
    raise OwnError("deep")

def test_chained():
    long = ["x"] * 100
    try:
        deep(3)
    except OwnError as error:
        raise ValueError("outer") from error

def test_recursion():
    def again(): again()
    again()

def test_fixtures(tmp_path, monkeypatch, request, record_property):
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("A", "1")
    assert request.node.name == "test_fixtures"
    record_property("key", 1)
    assert tmp_path is None

@pytest.mark.parametrize("a", [1, 2])
def test_parametrized(a): assert a == 1
@pytest.mark.xfail
def test_xfail(): assert 0
@pytest.mark.xfail(strict=True)
def test_xfail_strict(): pass
@pytest.mark.xfail
def test_xpass(): pass
@pytest.mark.xfail(raises=ValueError)
def test_xfail_raises(): raise ValueError
@pytest.mark.xfail(raises=ValueError)
def test_xfail_raises_another(): raise TypeError
@pytest.mark.xfail(run=False, reason="would kill pytest")
def test_xfail_not_run(): os._exit(3)
def test_xfail_inside(): pytest.xfail("inside")
@pytest.mark.skip(reason="why not")
def test_skip(): pass
@pytest.mark.skipif(True, reason="because")
def test_skipif(): pass
def test_skip_inside(): pytest.skip("inside")
def test_importorskip(): pytest.importorskip("no_such_module")

@pytest.fixture
def bad():
    print("bad up")
    raise RuntimeError("bad set-up")
def test_bad_setup(bad): pass

@pytest.fixture
def bad_end():
    yield
    print("bad down")
    raise RuntimeError("bad teardown")
def test_bad_teardown(bad_end): pass
def test_bad_twice(bad_end): assert 0

@pytest.fixture
def skips(): pytest.skip("in a fixture")
def test_skip_in_setup(skips): pass
def test_exits(): sys.exit(3)
def test_base_exception(): raise BaseException("base")
def test_no_such_fixture(no_such): pass
def test_group(): raise ExceptionGroup("group", [ValueError(1), TypeError(2)])
def test_note():
    error = ValueError("noted")
    error.add_note("a note")
    raise error
def test_long(): assert "a" * 200 + "b" == "a" * 200 + "c"
def test_no_trace(): pytest.fail("no trace", pytrace=False)
"""

_CLASSES = """
import unittest, pytest

class TestUnit(unittest.TestCase):
    @classmethod
    def setUpClass(cls): print("setUpClass")
    @classmethod
    def tearDownClass(cls): print("tearDownClass")
    def setUp(self): print("setUp")
    def tearDown(self): print("tearDown")
    def test_fail(self): self.assertEqual(1, 2)
    @unittest.skip("why")
    def test_skip(self): pass
    def test_skip_inside(self): self.skipTest("later")
    @unittest.expectedFailure
    def test_xfail(self): assert 0
    @unittest.expectedFailure
    def test_xpass(self): pass

class TestAsync(unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self): print("asyncSetUp")
    async def test_fail(self): self.assertEqual(1, 3)

class TestBadSetUp(unittest.TestCase):
    @classmethod
    def setUpClass(cls): raise RuntimeError("set-up of the class")
    def test_1(self): pass
    def test_2(self): pass

def setup_module(): print("setup_module")
def teardown_module(): print("teardown_module")

class TestXunit:
    @classmethod
    def setup_class(cls):
        print("setup_class")
        cls.x = 1
    @classmethod
    def teardown_class(cls): print("teardown_class")
    def setup_method(self): print("setup_method")
    def teardown_method(self): print("teardown_method")
    def test_1(self): assert self.x == 1
    def test_2(self): assert 0

@pytest.fixture(scope="module", params=["p", "q"])
def of_module(request):
    print("of_module up", request.param)
    yield request.param
    print("of_module down", request.param)
@pytest.fixture
def derived(of_module):
    print("derived", of_module)
    return of_module * 2
def test_derived(derived): assert derived == "pp"
def test_derived_again(derived, of_module): assert derived == "qq"

@pytest.fixture(scope="class")
def of_class():
    print("of_class up")
    yield
    print("of_class down")
class TestClass:
    def test_1(self, of_class): pass
    def test_2(self, of_class): assert 0

@pytest.fixture(scope="session")
def overridden():
    print("overridden up")
    yield 1
    print("overridden down")
class TestOverride:
    @pytest.fixture
    def overridden(self, overridden):
        print("override up")
        yield overridden + 1
        print("override down")
    def test_1(self, overridden): assert overridden == 2
    def test_2(self, overridden): assert overridden == 3

@pytest.fixture(scope="session")
def broken(): raise ValueError("set-up of the session")
def test_broken_1(broken): pass
def test_broken_2(broken): pass

@pytest.fixture(scope="module")
def broken_end():
    yield
    raise ValueError("teardown of the module")
def test_broken_end(broken_end): assert 0

def doubled(x):
    '''
    >>> doubled(2)
    4
    >>> doubled(3)
    7
    '''
    return 2 * x
"""
_SUITES = {"endings": _ENDINGS, "classes": _CLASSES}


@pytest.fixture(params=_SUITES)
def suite(request: pytest.FixtureRequest, pytester: pytest.Pytester) -> str:
    pytester.path.joinpath("test_it.py").write_text(_SUITES[request.param])
    return str(request.param)


@pytest.mark.parametrize(
    "options",
    [
        "-rA --showlocals",
        "-s",
        "--capture=sys --tb=short",
        "--capture=tee-sys",
        "-v --setup-show",
        "-s -v --setup-show --log-cli-level=INFO",
        "-x",
    ],
)
def test_same_as_uncontained(pytester: pytest.Pytester, suite: str, options: str) -> None:
    text = same(pytester, *options.split(), "--doctest-modules")
    assert "failed" in text, "there was something to compare"


@pytest.mark.parametrize(
    "options",
    [
        "-q --no-summary --color=yes",
        "--maxfail=3",
        "-p no:capture",
        "-p no:warnings --show-capture=log",
        "-p no:terminal",
        "--setup-only",
        "--setup-plan",
        "-W error --tb=line",
        "-p no:faulthandler -p no:unraisableexception -p no:threadexception",
    ],
)
def test_same_under_rarer_options(pytester: pytest.Pytester, options: str) -> None:
    pytester.path.joinpath("test_it.py").write_text(_ENDINGS.replace("def test_no_such_fixture(no_such): pass\n", ""))
    same(pytester, *options.split())


@pytest.mark.parametrize("options", ["--tb=native", "--full-trace"])
def test_whole_tracebacks_have_no_frames_of_ours(pytester: pytest.Pytester, options: str) -> None:
    pytester.path.joinpath("test_it.py").write_text(_ENDINGS)
    text = same(pytester, *options.split(), unlike=_OF_THE_CONTAINED_RUN)
    assert "/pluggy/" in text, "there were frames that are hidden else"
    assert "/pytest_cgroup/" not in text


#: arguments of pytest's own frames: the implementations of a hook, ours among them, and what comes after the item;
#: and how deep the stack was
_OF_THE_CONTAINED_RUN = re.compile(
    r"^(?:methods|hook_impls) = .*|,?\s\bnextitem = .*|\bline repeated \d+", re.MULTILINE
)


def test_frames_of_ours_that_the_test_called_are_shown(pytester: pytest.Pytester) -> None:
    source = "from pytest_cgroup import _units\n@contained\ndef test_it(): _units.parse_size('1Q')\n"
    assert "/pytest_cgroup/_units.py" in run(pytester, source, "--tb=native").blocks["test_it"]


_SUBTESTS = """
import unittest

def test_subtests(subtests):
    for i in range(4):
        with subtests.test("even", i=i, text="a'b"):
            print("sub", i)
            assert i % 2 == 0

def test_kinds(subtests):
    with subtests.test("skips"): pytest.skip("x")
    with subtests.test("xfails"): pytest.xfail("y")
    with subtests.test("passes"): pass

class TestUnit(unittest.TestCase):
    def test_subtests(self):
        for i in range(4):
            with self.subTest(i=i):
                self.assertNotEqual(i % 2, 1)
"""
needs_subtests = pytest.mark.skipif(pytest.version_tuple < (9,), reason="subtests came with pytest 9")


@needs_subtests
@pytest.mark.parametrize("options", ["-v --capture=sys", "-s", "-rA --capture=sys"])
def test_subtests_are_reported_as_ever(pytester: pytest.Pytester, options: str) -> None:
    pytester.path.joinpath("test_it.py").write_text(HEAD + _SUBTESTS)
    text = same(pytester, *options.split())
    assert "SUBFAILED[even] (i=1, text=" in text
    assert "4 failed" in text or "5 failed" in text


@needs_subtests
@pytest.mark.parametrize("workers", [0, 2])
def test_every_failed_subtest_comes_home(pytester: pytest.Pytester, workers: int) -> None:
    result = run(pytester, _SUBTESTS, "--contained=", workers=workers)
    assert len(re.findall(r"^SUBFAILED", result.text, re.MULTILINE)) == 4
    assert result.ret == pytest.ExitCode.TESTS_FAILED


@needs_subtests
def test_subtests_before_a_crash_come_home(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
@contained
def test_it(subtests):
    with subtests.test("one"): assert 0
    with subtests.test("two"): os._exit(0)
""",
    )
    assert re.search(r"^SUBFAILED\[one\]", result.text, re.MULTILINE)
    assert "exited with status 0 in call" in result.blocks["test_it"]


def test_last_failed_and_durations(pytester: pytest.Pytester) -> None:
    source = """
@contained
def test_good(): pass
@contained
def test_bad(): assert os.path.exists("mended")
@contained
def test_crash(): os.path.exists("mended") or os.abort()
"""
    cached = ("-p", "cacheprovider", "-Wignore::pytest.PytestAssertRewriteWarning", "--lf", "--durations=0", "-vv")
    first = run(pytester, source, *cached)
    assert first.counts == {"failed": 2, "passed": 1}
    assert set(re.findall(r"s (setup|call|teardown) +test_it.py::test_bad", first.text)) == {
        "setup",
        "call",
        "teardown",
    }
    Path(pytester.path, "mended").touch()
    assert run(pytester, None, *cached).counts["passed"] == 2


@pytest.mark.parametrize("workers", [0, 2])
def test_properties_and_warnings_come_home(pytester: pytest.Pytester, workers: int) -> None:
    source = """
import warnings
class Odd:
    def __repr__(self): return "odd one"
class Hostile:
    def __repr__(self): raise ValueError
@contained
def test_it(record_property):
    record_property("plain", "kept")
    record_property("odd", Odd())
    record_property("hostile", Hostile())
    record_property("path", __import__("pathlib").Path("/p"))
    record_property(3, {4: (5, {6})})
    loop = []; loop.append(loop)
    record_property("loop", loop)
    record_property("nan", float("nan"))
    warnings.warn("from the test")
    assert 0
"""
    result = run(pytester, source, workers=workers)
    case = next(ET.parse(result.junit).iter("testcase"))
    properties = {entry.get("name"): entry.get("value") or "" for entry in case.iter("property")}
    json.loads(properties.pop("contained"))
    assert properties["plain"] == "kept"
    assert properties["odd"] == "odd one"
    assert properties["path"].startswith(("PosixPath", "/p"))
    assert {"hostile", "3", "loop", "nan"} <= properties.keys()
    assert "Odd is not JSON, kept as text" in result.blocks["test_it"]
    assert result.text.count("UserWarning: from the test") == 1
    assert len(list(case.iter("failure"))) == 1, "the report itself is not lost"


def test_warnings_of_a_passed_test_count_once(pytester: pytest.Pytester) -> None:
    source = """
import warnings
@pytest.fixture
def late():
    yield
    warnings.warn("in the teardown")
@contained
def test_it(late): warnings.warn("in the call")
"""
    assert run(pytester, source).counts == {"passed": 1, "warning": 2}
    assert run(pytester, None, "-Werror").counts == {"failed": 1, "error": 1}


def test_a_deep_report_costs_itself_alone(pytester: pytest.Pytester) -> None:
    source = """
@contained
def test_deep(record_property):
    deep = []
    for _ in range(10_000): deep = [deep]
    record_property("deep", deep)
@contained
def test_wide(record_property):
    record_property("wide", ["x" * 100] * 100_000)
    assert 0
@contained
def test_after(): pass
"""
    result = run(pytester, source)
    assert result.counts == {"passed": 2, "failed": 1}, "what is unreadable of a property is no failure of the test"


def test_hooks_of_a_conftest_see_the_item_as_it_was(pytester: pytest.Pytester) -> None:
    pytester.makeconftest("""
import pytest

@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    report.sections.append(("seen", f"{call.when} {sorted(item.funcargs)} {call.excinfo is not None}"))
    return report

@pytest.fixture
def local(): return 1
""")
    source = "@contained\ndef test_it(local, request): assert request.node.funcargs['local'] == 2\n"
    block = run(pytester, source).blocks["test_it"]
    assert "call ['local', 'request'] True" in block


@pytest.mark.skipif(sys.version_info < (3, 12), reason="Python 3.12 warns of a fork beside threads")
def test_no_warning_of_the_interpreters_own(pytester: pytest.Pytester) -> None:
    source = """
def test_thread():
    threading.Thread(target=threading.Event().wait, daemon=True, name="waiting").start()
@contained
def test_it(): pass
"""
    assert run(pytester, source, "-Werror", "-Wdefault::pytest_cgroup.ContainedWarning").counts == {
        "passed": 2,
        "warning": 1,
    }


def test_threads_alive_at_the_fork_are_named_once(pytester: pytest.Pytester) -> None:
    source = """
def test_threads():
    for name in ("one", "two"):
        threading.Thread(target=threading.Event().wait, daemon=True, name=name).start()
@contained
def test_a(): pass
@contained
def test_b(): pass
"""
    result = run(pytester, source)
    assert result.counts == {"passed": 3, "warning": 1}
    assert "forked while other threads live (one, two): they do not run in the test" in result.text
    assert "isolation=" in result.text or "timeout" in result.text, "the remedy"
