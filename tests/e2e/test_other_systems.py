"""macOS and Windows, as far as Python goes: the plugin loads, and says why a contained test does not run there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import pytest_cgroup
from tests.e2e.inner import Result, run

PROGRAMS = Path(__file__).resolve().parents[1] / "programs"
WHY = "contained: this host can't honour everything: tests are contained on Linux only (run them there)"
#: not win32 with workers: there execnet itself asks Windows for pipes in binary mode
both = pytest.mark.parametrize(("system", "workers"), [("darwin", 0), ("darwin", 2), ("win32", 0)], indirect=["system"])

_SOURCE = """
@contained(memory="64M", pid_ns=True)
def test_contained(): open("contained.ran", "w").close()
def test_plain(): open("plain.ran", "w").close()
"""


@pytest.fixture(params=["darwin", "win32"], autouse=True)
def system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("ELSEWHERE", request.param)
    path = [str(PROGRAMS), str(Path(pytest_cgroup.__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))
    return str(request.param)


def there(pytester: pytest.Pytester, source: str, *arguments: str, workers: int = 0) -> Result:
    """A run on that system."""
    return run(pytester, source, "-rs", "--strict-markers", *arguments, workers=workers, before=("elsewhere",))


def ran(pytester: pytest.Pytester) -> set[str]:
    return {path.stem for path in pytester.path.glob("*.ran")}


def test_it_is_another_system(pytester: pytest.Pytester, system: str) -> None:
    """The control: what the other tests here rely on to be away is away, and our own modules do miss it."""
    source = f"""
import importlib
def test_it():
    assert sys.platform == {system!r}
    assert not hasattr(os, "pidfd_open")
    assert hasattr(os, "fork") == (sys.platform == "darwin")
    assert ("fcntl" in sys.modules) == (sys.platform == "darwin")
    with pytest.raises((ImportError, AttributeError)):
        importlib.import_module("pytest_cgroup._runner")
"""
    assert there(pytester, source).counts == {"passed": 1}


@both
def test_skipped_with_the_reason_and_the_rest_runs(pytester: pytest.Pytester, workers: int) -> None:
    result = there(pytester, _SOURCE, workers=workers)
    assert (result.ret, result.counts) == (0, {"passed": 1, "skipped": 1})
    assert f"test_it.py:5: {WHY}" in result.text
    assert ran(pytester) == {"plain"}


@both
def test_failed_where_that_is_asked_for(pytester: pytest.Pytester, workers: int) -> None:
    result = there(pytester, _SOURCE, "--cgroup-missing=fail", workers=workers)
    assert result.counts == {"passed": 1, "error": 1}
    assert result.blocks["ERROR at setup of test_contained"].startswith(WHY)
    assert ran(pytester) == {"plain"}


@both
def test_run_uncontained_with_a_warning_where_that_is_asked_for(pytester: pytest.Pytester, workers: int) -> None:
    result = there(pytester, _SOURCE, "-o", "cgroup_missing=warn", workers=workers)
    assert result.counts == {"passed": 2, "warning": 1}
    assert "ContainedWarning: contained: runs without everything: tests are contained on Linux only" in result.text
    assert ran(pytester) == {"plain", "contained"}


@both
def test_every_test_contained_is_every_test_skipped(pytester: pytest.Pytester, workers: int) -> None:
    spec = "--contained=memory=64M,user=root,readonly=/nowhere"
    result = there(pytester, _SOURCE, spec, "--resource-usage", workers=workers)
    assert result.counts == {"skipped": 2}
    assert result.text.count("contained: on Linux only") == 1


def test_what_is_wrong_is_wrong_everywhere(pytester: pytest.Pytester) -> None:
    """A marker that is refused on Linux is not accepted here, and an option neither."""
    result = there(pytester, "@contained(memroy='64M')\ndef test_it(): pass\n")
    assert result.counts == {"error": 1}
    assert "memroy" in result.blocks["ERROR at setup of test_it"]
    assert there(pytester, "def test_it(): pass\n", "--contained=pids=-1").ret == pytest.ExitCode.USAGE_ERROR


@pytest.mark.parametrize("option", ["--cgroup-backend=cgroup", "--cgroup-base=/sys/fs/cgroup"])
def test_what_is_asked_for_by_name_is_refused_at_once(pytester: pytest.Pytester, option: str) -> None:
    result = there(pytester, _SOURCE, option)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "nothing can be contained: pytest-cgroup contains processes on Linux only" in result.text


def test_the_marker_and_the_options_are_there(pytester: pytest.Pytester) -> None:
    assert "@pytest.mark.contained(" in there(pytester, "", "--markers").text
    assert "--cgroup-missing=" in there(pytester, "", "--help").text


def alone(code: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-W", "error", "-c", f"import elsewhere\n{code}"]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)


def test_the_library_is_imported() -> None:
    done = alone("from pytest_cgroup import *\nimport pytest_cgroup\nprint(*pytest_cgroup.__all__)")
    assert (done.stdout.split(), done.stderr) == (pytest_cgroup.__all__, "")


@pytest.mark.parametrize("arguments", [[], ["--require=pids"], ["--cgroup-backend=process"]])
def test_the_doctor_says_it_in_a_line(arguments: list[str], system: str) -> None:
    done = alone(f"from pytest_cgroup.__main__ import main\nraise SystemExit(main(['doctor', *{arguments}]))")
    assert (done.returncode, done.stderr) == (1, "")
    environment, verdict, *rest = done.stdout.splitlines()
    assert environment == f"environment: {'macOS' if system == 'darwin' else 'Windows'}"
    assert verdict.startswith("contained: nothing can be contained: pytest-cgroup contains processes on Linux only")
    assert ("required, and not here: pids: " in done.stdout) is (arguments == ["--require=pids"])
    assert not any(line.endswith(" yes") for line in rest)
