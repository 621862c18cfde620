"""What is told of every step: to a logger, and under PYTEST_CGROUP_DEBUG on stderr."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from tests.e2e.inner import run

both = pytest.mark.parametrize("workers", [0, 2])
_SOURCE = """
@contained(memory="64M", pids=20)
def test_it():
    subprocess.Popen(["sleep", "120"])
    print("of the test")
    assert 0
"""
_LIBRARY = """
import logging, sys
import pytest_cgroup
logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(name)s %(levelname)s %(message)s")
if sys.argv[1] == "log":
    logging.getLogger("pytest_cgroup").setLevel(logging.DEBUG)
with pytest_cgroup.Container(backend=sys.argv[2], name="told") as container:
    container.run(["true"])
"""


def steps(text: str) -> list[str]:
    """What was told, without times."""
    return re.findall(r"^(?:.*? )?pytest-cgroup\[\d+\] \d+\.\d+ (.*)$", text, re.MULTILINE)


def test_what_a_test_logs_is_its_own(pytester: pytest.Pytester) -> None:
    source = """
import logging
@contained
def test_it(caplog, contained):
    contained.run(["true"])
    logging.debug("mine")
    assert caplog.messages == ["mine"]
def test_in_place(caplog):
    subprocess.run(["true"])
    assert caplog.get_records("setup") == caplog.records == []
"""
    result = run(pytester, source, "--log-level=DEBUG", "--process-leaks=fail")
    assert result.counts == {"passed": 2}, result.text


@both
@pytest.mark.requires("cgroup", "memory", "pids")
def test_every_step_of_a_contained_test(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setenv("PYTEST_CGROUP_DEBUG", "1")
    result = run(pytester, _SOURCE, workers=workers)
    assert result.counts == {"failed": 1, "error": 1}, result.text
    told = "\n".join(steps(result.text))
    (cgroup,) = {path for path in re.findall(r"^mkdir (/\S+/1-test_it)$", told, re.MULTILINE) if "/memory" in path} or {
        re.findall(r"^mkdir (/\S+/1-test_it)$", told, re.MULTILINE)[0]
    }
    for step in (
        rf"write {re.escape(cgroup)}/memory\.\S+: 67108864",
        rf"in force {re.escape(cgroup)}/memory\.\S+: 67108864",
        r"write /\S+/1-test_it/pids\.max: 20",
        r"container 1-test_it: made by cgroup, limits in force: {.*'pids': '20'",
        r"fork: pid \d+",
        r"join /\S+/1-test_it/\S+: pid \d+",
        r"(write /\S+/1-test_it/cgroup\.kill: 1|signal 9: pid \d+)",
        r"container 1-test_it: ended: exit",
        rf"rmdir {re.escape(cgroup)}$",
        r"guard: pid \d+ watches pid \d+",
        r"guard: nothing is left to do for pid \d+",
    ):
        assert re.search(f"^{step}", told, re.MULTILINE), step
    first, last = told.index(f"mkdir {cgroup}"), told.index(f"rmdir {cgroup}\n")
    assert first < told.index("\njoin ") < last
    block = result.blocks["test_it"]
    assert "of the test" in block
    assert not steps(block)


@both
def test_nothing_is_told_unasked(pytester: pytest.Pytester, workers: int) -> None:
    result = run(pytester, _SOURCE.replace('memory="64M", pids=20', ""), workers=workers)
    assert result.counts == {"failed": 1, "error": 1}, result.text
    assert "mkdir" not in result.text
    assert not steps(result.text)


@pytest.mark.parametrize("backend", [pytest.param("cgroup", marks=pytest.mark.requires("cgroup")), "process"])
@pytest.mark.parametrize("how", ["log", "stderr", "off"])
def test_the_library_tells_a_logger(how: str, backend: str) -> None:
    environment = {**os.environ, "PYTEST_CGROUP_DEBUG": "1" if how == "stderr" else "0"}
    argv = [sys.executable, "-c", _LIBRARY, how, backend]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, env=environment, timeout=60)
    logged = re.findall(r"^pytest_cgroup DEBUG (.*)", done.stdout, re.MULTILINE)
    assert bool(steps(done.stderr)) == (how == "stderr")
    told = logged if how != "stderr" else steps(done.stderr)
    assert any(re.match(r"container told: made by ", line) for line in told) == (how != "off")
    assert any(re.match(r"container told: ended: ", line) for line in told) == (how != "off")
    if how == "stderr":
        assert any(re.match(r"(fork|spawn): \[b'true'\]: pid \d+", line) for line in told), "the launcher tells, too"


@pytest.mark.requires("cgroup")
def test_the_guard_tells() -> None:
    source = """
import os, signal, pytest_cgroup
container = pytest_cgroup.Container(backend="cgroup", name="told").start()
container.popen(["sleep", "120"])
os.kill(os.getpid(), signal.SIGKILL)
"""
    environment = {**os.environ, "PYTEST_CGROUP_DEBUG": "1"}
    argv = [sys.executable, "-c", source]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, env=environment, timeout=60)
    assert "was killed, and left behind, now killed: 1 process (sleep" in done.stderr
    (guard,) = re.findall(r"guard: pid (\d+) watches", done.stderr)
    assert re.search(rf"^pytest-cgroup\[{guard}\] \S+ rmdir /\S+/own-1-told$", done.stderr, re.MULTILINE), done.stderr
