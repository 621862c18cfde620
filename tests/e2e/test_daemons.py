"""Daemons in tests: their output stands with the test that fails, their failure is the test's, they never collide."""

from __future__ import annotations

import pytest

from tests.e2e.inner import run

both = pytest.mark.parametrize("workers", [0, 2])
each_backend = pytest.mark.parametrize(
    "backend", [pytest.param("cgroup", marks=pytest.mark.requires("cgroup")), "process"]
)
_HEAD = """
from pytest_cgroup import ready
SERVER = ["sh", "-c", "echo $0 is up; exec sleep 120"]
UP = ready.log("up")
@pytest.fixture(scope="module")
def of_module(contained_factory):
    return contained_factory(name="of_module").daemon([*SERVER, "db"], name="db", ready=UP)
"""
_OUTPUT = (
    _HEAD
    + """
def test_good(contained, of_module): contained.daemon([*SERVER, "web"], ready=UP)
def test_bad(contained, of_module):
    contained.daemon([*SERVER, "web"], name="web", ready=UP)
    assert False
@contained
def test_forked(contained, of_module):
    contained.daemon([*SERVER, "inner"], name="inner", ready=UP)
    assert False
"""
)


@both
@each_backend
def test_the_output_stands_with_the_test_that_fails(pytester: pytest.Pytester, backend: str, workers: int) -> None:
    dist = ("--dist=loadfile",) if workers else ()
    result = run(pytester, _OUTPUT, f"--cgroup-backend={backend}", "--process-leaks=fail", *dist, workers=workers)
    assert result.counts == {"passed": 1, "failed": 2}, result.text
    bad, forked = result.blocks["test_bad"], result.blocks["test_forked"]
    assert "- daemon web of test_bad -" in bad
    assert "- daemon db of of_module -" in bad
    assert "- daemon inner of test_forked -" in forked
    assert "- daemon db of of_module -" in forked
    assert "db is up" in bad
    assert "web is up" in bad
    assert "inner is up" in forked
    assert (bad.count("db is up"), forked.count("db is up"), result.text.count("daemon web of")) == (1, 1, 1)


_FAILS = """
def fails(container, **more):
    daemon = container.daemon(["sh", "-c", "echo no licence; exit 3"], max_restarts=0, **more)
    while daemon.state != "failed": time.sleep(0.01)
def test_unseen(contained): fails(contained)
@pytest.mark.contained
def test_forked(contained): fails(contained)
def test_seen(contained):
    with pytest.raises(pytest_cgroup.DaemonError): contained.daemon(["false"], ready=pytest_cgroup.ready.port(1))
@pytest.fixture
def server(contained_factory):
    return contained_factory().daemon(["sh", "-c", "echo bad port; exit 4"], ready=pytest_cgroup.ready.port(1))
def test_never_up(server): pass
"""


@both
@each_backend
def test_a_daemon_that_fails_is_the_tests_failure(pytester: pytest.Pytester, backend: str, workers: int) -> None:
    result = run(pytester, "import pytest_cgroup\n" + _FAILS, f"--cgroup-backend={backend}", workers=workers)
    assert result.counts == {"passed": 3, "error": 3}, result.text
    for name in ("unseen", "forked"):
        block = result.blocks[f"ERROR at teardown of test_{name}"]
        assert "daemon sh ended again after 0 restarts within 5 s: exit 3" in block
        assert "no licence" in block
    assert "bad port" in result.blocks["ERROR at setup of test_never_up"]


@each_backend
def test_daemons_of_the_same_name_never_collide(pytester: pytest.Pytester, backend: str) -> None:
    source = (
        _HEAD
        + """
@pytest.mark.parametrize("n", range(6))
def test_it(contained, contained_factory, n):
    daemons = [c.daemon([*SERVER, "x"], name="web", ready=UP) for c in (contained, contained_factory())]
    assert daemons[0].pid != daemons[1].pid
    daemons[0].stop()
    assert daemons[1].running
"""
    )
    result = run(pytester, source, f"--cgroup-backend={backend}", "--process-leaks=fail", workers=2)
    assert (result.ret, result.counts) == (0, {"passed": 6}), result.text
