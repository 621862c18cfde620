"""macOS and Windows, as far as Python goes: the plugin loads, finds what is left behind by psutil, and says why a
contained test does not run there.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import pytest_cgroup
from tests.e2e.inner import Result, run
from tests.e2e.leaving import NAMES, WAYS, leaks, pid_of, section, survivors

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


# Leaks of processes. Those that have lost their parent by the end of the test are not found:
ORPHANED = ("double_fork", "system")
_LEAVE = """
def leave(name, *argv, **kwargs):
    process = subprocess.Popen(argv or ["sleep", "120"], **kwargs)
    open(name + ".pid", "w").write(str(process.pid))
    return process
"""
_SERVER = """
@pytest.fixture(scope="session")
def server():
    yield leave("server")
def test_first(server): pass
def test_second(): pass
def test_last(server): assert server.poll() is None
"""


def watch(pytester: pytest.Pytester, source: str, *arguments: str, workers: int = 0) -> Result:
    """A run there under --process-leaks=fail, if *arguments* say nothing else."""
    options = ("-o", "process_leaks_settle=50ms", "--process-leaks=fail", *(("--dist=loadfile",) if workers else ()))
    return there(pytester, source, *options, *arguments, workers=workers)


@both
def test_a_leak_is_named_and_killed(pytester: pytest.Pytester, workers: int) -> None:
    source = _LEAVE + "def test_it(): leave('it')\ndef test_other(): subprocess.run(['true'], check=True)\n"
    result = watch(pytester, source, workers=workers)
    assert survivors(pytester) == {}
    assert (result.ret, result.counts) == (1, {"passed": 2, "error": 1})
    line = rf"pid {pid_of(pytester, 'it')}: sleep 120, sleeping, age [\d.]+ m?s, [\d.]+[KM] RSS, in {pytester.path}$"
    text = result.blocks["ERROR at teardown of test_it"]
    assert text.startswith("left behind, now killed: 1 process (sleep)\n")
    assert re.search(line, text, re.MULTILINE)
    assert section(result).startswith("test_it.py::test_it left behind 1 process:\n")
    assert re.search(line, section(result), re.MULTILINE)
    assert [leak["test"] for leak in leaks(result.junit)] == ["test_it"]
    if not workers:
        assert "process leaks: fail, found by psutil among pytest's descendants" in result.text


@both
@pytest.mark.parametrize("option", ["--process-leaks=off", None])
def test_with_the_option_off_it_survives(pytester: pytest.Pytester, workers: int, option: str | None) -> None:
    source = _LEAVE + "def test_it(): leave('it')\ndef test_other(): pass\n"
    result = there(pytester, source, *([option] if option else []), workers=workers)
    assert list(survivors(pytester)) == ["it"]
    assert (result.ret, result.counts) == (0, {"passed": 2})
    assert section(result) == ""
    assert "process leaks" not in result.text


@both
def test_warn_names_kills_and_passes(pytester: pytest.Pytester, workers: int) -> None:
    result = watch(pytester, _LEAVE + "def test_it(): leave('it')\n" + _SERVER, "--process-leaks=warn", workers=workers)
    assert survivors(pytester) == {}
    assert (result.ret, result.counts) == (0, {"passed": 4, "warning": 2})
    assert "ContainedWarning: test_it.py::test_it left behind, now killed: 1 process (sleep)" in result.text
    assert f"pid {pid_of(pytester, 'server')}: " in section(result)


@both
def test_a_fixtures_process_is_judged_when_its_scope_is_over(pytester: pytest.Pytester, workers: int) -> None:
    result = watch(pytester, _LEAVE + _SERVER, workers=workers)
    assert survivors(pytester) == {}
    assert result.counts == {"passed": 3, "error": 1}  # the server lived in the last test
    text = result.blocks["ERROR at teardown of test_last"]
    assert re.match(r"session fixture 'server' of test_it\.py:\d+ left behind, now killed: 1 process", text)
    assert "fixture:server left behind 1 process:" in section(result)


@both
def test_a_fixture_that_stops_its_process_leaves_none(pytester: pytest.Pytester, workers: int) -> None:
    stopped = "    process = leave('server')\n    yield process\n    os.kill(process.pid, 9)\n    process.wait()\n"
    source = _LEAVE + _SERVER.replace('    yield leave("server")\n', stopped)
    result = watch(pytester, source, workers=workers)
    assert survivors(pytester) == {}
    assert (result.ret, result.counts, section(result)) == (0, {"passed": 3}, "")


def test_what_a_fixtures_process_starts_is_the_fixtures(pytester: pytest.Pytester) -> None:
    """Its parent's, whose time it ever is; and what it holds, whose child it ever is."""
    source = """
STARTED = []
@pytest.fixture(scope="module")
def server():
    code = "import subprocess, sys; sys.stdin.read(1); print(subprocess.Popen(['sleep', '120']).pid); input()"
    STARTED.append(leave("server", sys.executable, "-uc", code, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
    yield  # so it does not hold the server
@pytest.fixture(scope="module")
def pool(): yield []
def test_asks(server, pool):
    STARTED[0].stdin.write(b".")
    STARTED[0].stdin.flush()
    open("worker.pid", "wb").write(STARTED[0].stdout.readline())
    pool.append(leave("pooled"))
def test_next(server, pool): assert pool[0].poll() is None
"""
    result = watch(pytester, _LEAVE + source)
    assert survivors(pytester) == {}
    assert result.counts == {"passed": 2, "error": 1}  # both of the same test
    owners = {leak["pid"]: (leak["owner"], leak["test"]) for leak in leaks(result.junit)}
    whose = {name: owners[pid_of(pytester, name)] for name in ("server", "worker", "pooled")}
    assert whose["server"] == whose["worker"] == ("fixture:server", "test_next")
    assert whose["pooled"] == ("fixture:pool", "test_next")


def test_what_was_there_before_is_known(pytester: pytest.Pytester) -> None:
    pytester.makeconftest("import subprocess\n" + _LEAVE + "leave('before')")
    result = watch(pytester, _LEAVE + "def test_it(): leave('it')\n")
    assert list(survivors(pytester)) == ["before"]
    assert result.counts == {"passed": 1, "error": 1}


def test_what_no_test_started_is_told_at_the_end(pytester: pytest.Pytester) -> None:
    result = watch(pytester, _LEAVE + "leave('imported')\ndef test_it(): pass\n")
    assert survivors(pytester) == {}
    assert (result.ret, result.counts) == (1, {"passed": 1})
    assert section(result).startswith("collection of test_it.py left behind 1 process:")


def test_what_is_named_or_ends_by_itself_is_no_leak(pytester: pytest.Pytester) -> None:
    source = """
def test_named(): leave("named", "sh", "-c", "sleep 118 & echo $! > child.pid; echo; wait", stdout=-1).stdout.readline()
def test_ends(): leave("ends", "sleep", "0.2")
def test_it(): leave("it")
"""
    options = ("--process-leaks-ignore=sh -c *sleep 118*", "-o", "process_leaks_settle=2s")
    result = watch(pytester, _LEAVE + source, *options)
    assert sorted(survivors(pytester)) == ["child", "named"]
    assert result.counts == {"passed": 3, "error": 1}
    assert [leak["test"] for leak in leaks(result.junit)] == ["test_it"]


def test_a_mark_says_otherwise(pytester: pytest.Pytester) -> None:
    """What is about leaks alone needs no container: it is honoured, and the rest skipped."""
    source = """
@contained(leaks="ignore")
def test_ignored(): leave("ignored")
@contained(isolation="shared", grace="10s")
def test_graceful():
    code = "import os, signal, sys; signal.signal(15, lambda *_: (open('asked', 'w'), sys.exit())); print(); input()"
    leave("graceful", sys.executable, "-uc", code, stdin=-1, stdout=-1).stdout.readline()
@contained(leaks="fail", pids=9)
def test_contained(): pass
"""
    result = watch(pytester, _LEAVE + source)
    assert survivors(pytester) == {}
    assert result.counts == {"passed": 2, "skipped": 1, "error": 1}
    assert [leak["test"] for leak in leaks(result.junit)] == ["test_graceful"]
    assert pytester.path.joinpath("asked").exists()
    pytester.path.joinpath("ignored.pid").unlink()
    marked = watch(pytester, _LEAVE + source, "--process-leaks=off")
    assert list(survivors(pytester)) == []
    assert marked.counts == {"passed": 1, "skipped": 2, "error": 1}  # in place by its own word


@pytest.mark.parametrize("system", ["darwin"], indirect=True)
@pytest.mark.parametrize("phase", ["call", "teardown"])
def test_every_way_but_that_of_an_orphan(pytester: pytest.Pytester, phase: str) -> None:
    source = f"""
@pytest.mark.parametrize("way", {NAMES!r})
def test_call(way): globals()[way](way)
@pytest.fixture(params={NAMES!r})
def way(request):
    yield
    globals()[request.param](request.param)
def test_teardown(way): pass
"""
    result = watch(pytester, WAYS + source, f"test_it.py::test_{phase}")
    assert sorted(survivors(pytester)) == sorted(ORPHANED)
    assert result.counts == {"passed": len(NAMES), "error": len(NAMES) - len(ORPHANED)}
    told = {leak["pid"]: leak["test"] for leak in leaks(result.junit)}
    for name in set(NAMES) - {*ORPHANED}:
        assert told[pid_of(pytester, name)] == f"test_{phase}[{name}]"


@pytest.mark.parametrize("system", ["darwin"], indirect=True)
def test_an_orphan_that_was_seen_before_is_kept_in_mind(pytester: pytest.Pytester) -> None:
    source = """
@pytest.fixture(scope="module")
def shell():
    command = "sleep 120 >/dev/null & echo $! > child.pid; echo; read go"
    yield leave("shell", "sh", "-c", command, stdin=-1, stdout=-1)
def test_first(shell): shell.stdout.readline()
def test_second(shell): shell.communicate(b"go\\n")
"""
    result = watch(pytester, _LEAVE + source)
    assert survivors(pytester) == {}
    assert [leak["owner"] for leak in leaks(result.junit)] == ["fixture:shell"]


@pytest.mark.parametrize("system", ["darwin"], indirect=True)
def test_multiprocessings_helpers_are_nobodys(pytester: pytest.Pytester) -> None:
    """But what the fork server forks is the test's."""
    source = """
import multiprocessing, psutil
from multiprocessing import forkserver, reduction, resource_tracker
reduction.ACKNOWLEDGE = False  # the server is a Linux one, and sends none
def test_starts():
    process = multiprocessing.get_context("forkserver").Process(target=time.sleep, args=(120,))
    process.start()
    open("forked.pid", "w").write(str(process.pid))
def test_next():
    for helper in (forkserver._forkserver._forkserver_pid, resource_tracker._resource_tracker._pid):
        assert psutil.Process(helper).status() != "zombie"
    multiprocessing.get_context("forkserver").Process(target=time.sleep, args=(0,)).start()
"""
    result = watch(pytester, source, "-o", "process_leaks_settle=2s")
    assert survivors(pytester) == {}
    assert result.counts == {"passed": 2, "error": 1}
    assert [leak["pid"] for leak in leaks(result.junit)] == [pid_of(pytester, "forked")]


def test_what_psutil_may_not_see_is_said(pytester: pytest.Pytester) -> None:
    """What was found until then is told, and nobody may take the rest for clean."""
    source = """
import psutil
def test_it(): leave("it")
def test_other():
    def denied(*args, **kwargs): raise psutil.AccessDenied(1)
    psutil.Process.children = denied
def test_last(): leave("last")
"""
    result = watch(pytester, _LEAVE + source)
    assert list(survivors(pytester)) == ["last"]
    assert (result.ret, result.counts) == (1, {"passed": 3, "error": 1})
    assert section(result).startswith("not looked for to the end of the run: AccessDenied: ")


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
