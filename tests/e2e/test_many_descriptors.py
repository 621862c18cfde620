"""A suite that has more descriptors open than select(2) takes: 1024."""

from __future__ import annotations

import resource

import pytest

from tests.e2e.inner import run

_MANY = 1500
_SOURCE = f"""
MANY = [os.open("/dev/null", os.O_RDONLY) for _ in range({_MANY})]
@contained
def test_pass(): print("x" * 200_000)
@contained
def test_leaks(): subprocess.Popen(["sleep", "119"], start_new_session=True)
@contained(timeout=5)
def test_hangs(): time.sleep(60)
def test_library(contained):
    assert contained.run(["true"]).returncode == 0
    assert contained.call(abs, -1) == 1
    with contained.popen(["sleep", "0.1"]) as process:
        assert process.poll() is None
    assert process.returncode == 0
@contained
def test_last(): pass
"""


@pytest.fixture(autouse=True)
def _room() -> None:
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 2 * _MANY:
        pytest.skip("no process may have as many open here (RLIMIT_NOFILE)")


@pytest.mark.parametrize("backend", [pytest.param("cgroup", marks=pytest.mark.requires("cgroup")), "process"])
@pytest.mark.parametrize("arguments", [(), ("-s",), ("--contained-jobs=2",)], ids=str)
def test_all_is_as_ever(pytester: pytest.Pytester, backend: str, arguments: tuple[str, ...]) -> None:
    limit = ("prlimit", f"--nofile={2 * _MANY}")
    result = run(pytester, _SOURCE, f"--cgroup-backend={backend}", *arguments, prefix=limit)
    assert result.counts == {"passed": 4, "failed": 1, "error": 1}
    assert "timeout: killed in call" in result.text
    assert "test_hangs" in result.text.partition("the last Python stack:")[2]
    assert "left behind, now killed: 1 process (sleep)" in result.text


def test_in_place(pytester: pytest.Pytester) -> None:
    source = _SOURCE.replace("@contained\n", "").replace(
        "@contained(timeout=5)\ndef test_hangs(): time.sleep(60)\n", ""
    )
    result = run(pytester, source, "--process-leaks=fail", prefix=("prlimit", f"--nofile={2 * _MANY}"))
    assert result.counts == {"passed": 4, "error": 1}
    assert "left behind, now killed: 1 process (sleep)" in result.text
