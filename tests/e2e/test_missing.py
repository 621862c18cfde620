"""What this host can't honour is never silently dropped: skipped with reason and remedy, failed, or warned of."""

from __future__ import annotations

import re

import pytest

from tests.as_user import OrdinaryUser
from tests.e2e.inner import HEAD, command, run

_SOURCE = """
@contained(pids=10)
def test_it(): open("it.ran", "w").close()
@contained
def test_other(): open("other.ran", "w").close()
@contained(pids=10)
@pytest.mark.xfail(reason="for another reason")
def test_xfail(): assert 0
"""
_REASON = "pids: needs a cgroup, and RLIMIT_NPROC is no substitute"
each_way = pytest.mark.parametrize(
    "given", [("--cgroup-missing={}",), ("-o", "cgroup_missing={}")], ids=["option", "ini"]
)
both = pytest.mark.parametrize("workers", [0, 2])


def ran(pytester: pytest.Pytester) -> set[str]:
    return {path.stem for path in pytester.path.glob("*.ran")}


def test_skipped_unless_said_otherwise(pytester: pytest.Pytester) -> None:
    result = run(pytester, _SOURCE, "--cgroup-backend=process", "-rs")
    assert (result.ret, result.counts) == (0, {"passed": 1, "skipped": 2})
    assert f"SKIPPED [1] test_it.py:5: contained: this host can't honour {_REASON}" in result.text
    assert re.search(r"use --cgroup-backend=auto|run pytest where|delegated|doctor", result.text), "the remedy"
    assert ran(pytester) == {"other"}


@both
@each_way
def test_failed(pytester: pytest.Pytester, given: tuple[str, ...], workers: int) -> None:
    words = (word.format("fail") for word in given)
    result = run(pytester, _SOURCE, "--cgroup-backend=process", *words, workers=workers)
    assert result.counts["error"] == 1
    block = result.blocks["ERROR at setup of test_it"]
    assert block.startswith(f"contained: this host can't honour {_REASON}")
    assert ran(pytester) == {"other"}


@both
@each_way
def test_run_without_and_warned_of(pytester: pytest.Pytester, given: tuple[str, ...], workers: int) -> None:
    words = (word.format("warn") for word in given)
    result = run(pytester, _SOURCE, "--cgroup-backend=process", *words, workers=workers)
    assert result.counts == {"passed": 2, "xfailed": 1, "warning": 2}
    assert f"ContainedWarning: contained: runs without {_REASON}" in result.text
    assert ran(pytester) == {"it", "other"}


def test_a_warning_that_is_an_error_fails_its_test_alone(pytester: pytest.Pytester) -> None:
    arguments = ("--cgroup-backend=process", "--cgroup-missing=warn", "-Werror::pytest_cgroup.ContainedWarning")
    result = run(pytester, _SOURCE, *arguments)
    assert result.counts["error"] == 1
    assert ran(pytester) == {"other"}


def test_what_needs_the_missing_goes_with_it(pytester: pytest.Pytester) -> None:
    """A user namespace may be refused, and with it the mounts and all that needs them."""
    source = """
@contained(private_tmp=True, readonly="/etc", hostname="x", pid_ns=True)
def test_it(): pass
"""
    pytester.makeconftest(
        """
from pytest_cgroup import _host
from pytest_cgroup._placement import Missing
_host.Host._namespaces = {name: Missing("refused", "allow it") for name in _host.NAMESPACES}
"""
    )
    assert run(pytester, source, "--cgroup-missing=warn").counts == {"passed": 1, "warning": 1}
    assert run(pytester, None).counts == {"skipped": 1}


@pytest.mark.parametrize("backend", ["auto", "process"])
def test_the_header_names_the_rung_once(pytester: pytest.Pytester, backend: str) -> None:
    arguments = () if backend == "auto" else (f"--cgroup-backend={backend}",)
    result = run(pytester, "@contained\ndef test_a(): pass\n@contained\ndef test_b(): pass\n", *arguments)
    (line,) = [line for line in result.text.splitlines() if line.startswith("contained: ")]
    if backend == "process":
        assert "process table, no cgroup" in line
        assert "can't enforce: swap, memory_high, pids, cpu" in line
    else:
        assert line.startswith(("contained: cgroup ", "contained: process table, no cgroup: "))
    assert len(re.sub(r" at /\S+", "", line)) < 300, "it reads at a glance, however deep the cgroup is"


@both
def test_without_a_contained_test_there_is_no_header(pytester: pytest.Pytester, workers: int) -> None:
    result = run(pytester, "def test_it(): pass\n", workers=workers)
    assert "contained:" not in result.text
    assert "contained tests" not in result.text


@pytest.mark.parametrize("source", ["def test_it(): pass", "def test_it(): os.abort()", "def test_it(): assert 0"])
def test_under_xdist_the_summary_names_the_rung_once(pytester: pytest.Pytester, source: str) -> None:
    """Who prints collects nothing, and at the start does not know that a test will be contained."""
    source = f"@contained\n{source}\n@contained\ndef test_other(): pass\n"
    result = run(pytester, source, "--cgroup-backend=process", workers=2)
    (line,) = [line for line in result.text.splitlines() if line.startswith("contained: process")]
    assert "can't enforce: swap, memory_high, pids, cpu" in line
    assert "= contained tests (process) =" in result.text
    assert bool(result.table) == ("abort" in source), "there is a table only where there was one before"


def test_under_xdist_a_worker_that_is_another_host_is_named(pytester: pytest.Pytester) -> None:
    pytester.makeconftest("""
def pytest_configure(config):
    if hasattr(config, "workerinput"):
        from pytest_cgroup import _session, plugin
        config.stash[plugin.session_key].settings.backend = "process"
    else:
        from pytest_cgroup import _backends
        _backends.choose = lambda host, name, slices: type("Other", (), {"name": "other"})()
""")
    result = run(pytester, "@contained\ndef test_it(): pass\n", workers=2)
    assert [line for line in result.text.splitlines() if line.startswith("contained: ")] == ["contained: process"]


def test_with_every_test_contained_the_header_stands_at_the_top_also_under_xdist(pytester: pytest.Pytester) -> None:
    for workers in (0, 2):
        result = run(pytester, "def test_it(): pass\n", "--contained", workers=workers)
        assert result.text.count("contained: ") == 1


def test_an_unprivileged_user_can_not_be_somebody_else(unprivileged: OrdinaryUser) -> None:
    directory = unprivileged.home / "missing"
    directory.mkdir()
    directory.joinpath("test_it.py").write_text(HEAD + "@contained(user='root')\ndef test_it(): pass\n")
    argv = command(["-rs", "test_it.py"], python=unprivileged.python)
    done = unprivileged.run(argv, cwd=directory)
    assert "1 skipped" in done.stdout, done.stdout + done.stderr
    assert "user: only root may run a test as somebody else (run pytest as root)" in done.stdout
