"""Beside other plugins: asynchronous tests, reruns, coverage, workers."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.e2e.inner import HEAD, command, run


def test_pytest_asyncio(pytester: pytest.Pytester) -> None:
    pytest.importorskip("pytest_asyncio")
    source = """
import asyncio, pytest_asyncio
@pytest_asyncio.fixture
async def value():
    await asyncio.sleep(0)
    yield 5
    open("down", "w").close()
@contained
@pytest.mark.asyncio
async def test_it(value):
    child = await asyncio.create_subprocess_exec("true")
    assert await child.wait() == 0 and value == 5
@contained
@pytest.mark.asyncio
async def test_fails(value):
    await asyncio.sleep(0)
    assert value == 6
@contained(leaks="fail")
@pytest.mark.asyncio
async def test_leaks(): await asyncio.create_subprocess_exec("sleep", "1000")
"""
    arguments = ("-p", "pytest_asyncio.plugin", "-o", "asyncio_default_fixture_loop_scope=function")
    result = run(pytester, source, *arguments)
    assert result.counts["failed"] == 1
    assert result.counts["error"] == 1
    assert "assert 5 == 6" in result.blocks["test_fails"]
    assert "sleep 1000" in result.blocks["ERROR at teardown of test_leaks"]
    assert pytester.path.joinpath("down").exists()


@pytest.mark.parametrize("library", ["asyncio", "trio"])
def test_anyio(pytester: pytest.Pytester, library: str) -> None:
    pytest.importorskip("anyio")
    pytest.importorskip(library)
    source = f"""
import anyio
@pytest.fixture
def anyio_backend(): return "{library}"
@pytest.fixture
async def value(anyio_backend):
    yield 5
@contained
@pytest.mark.anyio
async def test_it(value):
    async with anyio.create_task_group() as group:
        group.start_soon(anyio.sleep, 0)
    assert value == 5
@contained
@pytest.mark.anyio
async def test_fails(value): assert value == 6
"""
    result = run(pytester, source, "-p", "anyio.pytest_plugin")
    assert result.counts == {"passed": 1, "failed": 1}


def test_async_fixture_of_a_module(pytester: pytest.Pytester) -> None:
    """Its loop is set up in pytest and used in the child: an event loop lives through a fork, if with care."""
    pytest.importorskip("pytest_asyncio")
    source = """
import asyncio, pytest_asyncio
@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def value():
    await asyncio.sleep(0)
    yield [1]
    open("down", "a").write("x")
@contained(timeout=20)
@pytest.mark.asyncio(loop_scope="module")
async def test_1(value):
    await asyncio.sleep(0.001)
    value.append(2)
@contained(timeout=20)
@pytest.mark.asyncio(loop_scope="module")
async def test_2(value):
    await asyncio.sleep(0.001)
    assert value == [1]
"""
    arguments = ("-p", "pytest_asyncio.plugin", "-o", "asyncio_default_fixture_loop_scope=function")
    assert run(pytester, source, *arguments).counts == {"passed": 2}
    assert pytester.path.joinpath("down").read_text() == "x"


@pytest.mark.parametrize("workers", [0, 2])
def test_reruns_of_some_errors_only(pytester: pytest.Pytester, workers: int) -> None:
    pytest.importorskip("pytest_rerunfailures")
    source = """
@contained
def test_rerun(): raise ValueError("again")
@contained
def test_not_rerun(): raise KeyError("never")
@contained
@pytest.mark.flaky(reruns=3)
def test_marked(): raise ValueError("again")
@contained
@pytest.mark.xfail
def test_xfail(): raise ValueError("again")
"""
    arguments = ("-p", "pytest_rerunfailures", "--reruns=1", "--only-rerun=ValueError: again")
    assert run(pytester, source, *arguments, workers=workers).counts == {"failed": 3, "rerun": 4, "xfailed": 1}


def test_fixtures_of_a_rerun(pytester: pytest.Pytester) -> None:
    pytest.importorskip("pytest_rerunfailures")
    source = """
def note(what): open("notes", "a").write(what + " ")
@pytest.fixture(scope="class")
def of_class():
    note("class")
    yield
    note("class-down")
@pytest.fixture
def of_test():
    note("test")
    yield
    note("test-down")
class TestIt:
    @contained
    def test_it(self, of_class, of_test): assert open("notes").read().count("test ") == 2
    @contained
    def test_last(self, of_class): pass
"""
    assert run(pytester, source, "-p", "pytest_rerunfailures", "--reruns=2").counts == {"passed": 2, "rerun": 1}
    assert pytester.path.joinpath("notes").read_text().split() == [
        "class",
        "test",
        "test-down",
        "test",
        "test-down",
        "class-down",
    ]


_LIBRARY = """
def inside(x):
    if x:
        return 1
    return 2

def outside():
    return 3

def never():
    return 4

def crashed():
    return 5
"""
_COVERED = """
import library
@contained
def test_inside(): assert library.inside(1) == 1
@contained(private_tmp=True)
def test_inside_again(): assert library.inside(0) == 2
def test_outside(): assert library.outside() == 3
"""


@pytest.mark.parametrize("branch", [False, True])
@pytest.mark.parametrize("way", ["pytest --cov", "coverage run", "pytest --cov -n2"])
def test_lines_that_ran_in_the_child_count(pytester: pytest.Pytester, way: str, branch: bool) -> None:
    pytest.importorskip("coverage")
    if "--cov" in way:
        pytest.importorskip("pytest_cov")
    if "-n2" in way:
        pytest.importorskip("xdist")
    pytester.path.joinpath("library.py").write_text(_LIBRARY)
    pytester.path.joinpath("test_it.py").write_text(HEAD + _COVERED)
    pytester.path.joinpath(".coveragerc").write_text(f"[run]\nbranch = {branch}\ninclude = library.py\n")
    argv = command(())
    if way == "coverage run":
        at = argv.index("-m")
        argv[at : at + 2] = ["-m", "coverage", "run", "-m", "pytest"]
    else:
        argv += ["-p", "pytest_cov.plugin", "--cov=.", "--cov-report="]
        argv += ["-p", "xdist.plugin", "-n2"] if "-n2" in way else []
    assert pytester.run(*argv, timeout=60).ret == 0
    assert not list(pytester.path.glob(".coverage.*"))
    assert pytester.run(sys.executable, "-m", "coverage", "json", "-o", "cov.json").ret == 0
    measured = json.loads(Path(pytester.path, "cov.json").read_text())["files"]["library.py"]
    missing = {line for line, text in enumerate(_LIBRARY.splitlines(), 1) if text in ("    return 4", "    return 5")}
    assert set(measured["missing_lines"]) == missing
    if branch:
        assert measured["missing_branches"] == []


def test_same_counts_under_xdist(pytester: pytest.Pytester) -> None:
    pytest.importorskip("xdist")
    source = """
@pytest.fixture(scope="session")
def of_session(): return os.getpid()
@contained
@pytest.mark.parametrize("n", range(20))
def test_it(n, of_session):
    assert os.getpid() != of_session
    print("of", n)
    if n % 5 == 1: assert 0
    if n % 5 == 2: os.abort()
    if n % 5 == 3: pytest.skip("why not")
"""
    alone, together = run(pytester, source), run(pytester, source, workers=2)
    assert alone.counts == together.counts == {"passed": 8, "failed": 8, "skipped": 4}
    for n in (1, 2, 11, 12):
        assert f"of {n}" in together.blocks[f"test_it[{n}]"].splitlines()
    assert set(alone.records) == set(together.records)


def test_pytest_timeout_beside_ours(pytester: pytest.Pytester) -> None:
    pytest.importorskip("pytest_timeout")
    source = """
@contained
@pytest.mark.timeout(0.5)
def test_it(): threading.Event().wait()
@contained
def test_after(): pass
"""
    result = run(pytester, source, "-p", "pytest_timeout")
    assert result.counts == {"passed": 1, "failed": 1}
    assert result.blocks["test_it"].startswith("timeout: killed in call after")
    assert "from pytest-timeout" in result.blocks["test_it"]
    assert "in test_it" in result.blocks["test_it"].partition("the last Python stack")[2]
