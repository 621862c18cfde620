"""--process-leaks: every way of leaving a process, in every phase, found in place, named and killed."""

from __future__ import annotations

import os
import re

import pytest

from tests.e2e.inner import run
from tests.e2e.leaving import NAMES, WAYS, is_alive, kill, leaks, pid_of, section, survivors, watch
from tests.kernel.contain import PROGRAMS

backends = pytest.mark.parametrize("backend", ["auto", "process"])

_MATRIX = f"""
WAYS = {{name: globals()[name] for name in {NAMES!r}}}
@pytest.fixture(params=sorted(WAYS))
def way(request):
    return request.param
@pytest.fixture
def in_setup(way):
    WAYS[way](f"setup-{{way}}")
@pytest.fixture
def in_teardown(way):
    yield
    WAYS[way](f"teardown-{{way}}")
def test_setup(in_setup): pass
def test_call(way): WAYS[way](f"call-{{way}}")
def test_teardown(in_teardown): pass
def test_nothing(): pass
"""


@backends
@pytest.mark.parametrize("workers", [0, 2])
def test_every_way_in_every_phase(pytester: pytest.Pytester, backend: str, workers: int) -> None:
    result = watch(pytester, _MATRIX, f"--cgroup-backend={backend}", workers=workers)
    assert survivors(pytester) == {}
    count = 3 * len(NAMES)
    assert result.ret == 1
    counts = {word: number for word, number in result.counts.items() if word != "warning"}  # of forks, in Python 3.12
    assert counts == {"passed": count + 1, "error": count}
    told = {leak["pid"]: leak for leak in leaks(result.junit)}
    for phase in ("setup", "call", "teardown"):
        for way in NAMES:
            leak = told[pid_of(pytester, f"{phase}-{way}")]
            assert (leak["test"], leak["owner"]) == (f"test_{phase}[{way}]", f"test_it.py::test_{phase}[{way}]")
            caller = "" if way == "in_a_thread" else rf", called at test_it\.py:\d+ in (in|test)_{phase}"
            assert re.fullmatch(rf"test_it\.py:\d+ in \w+{caller}", leak["started_at"]), leak
    assert "test_nothing" not in section(result)


def test_with_the_option_off_the_leak_survives(pytester: pytest.Pytester) -> None:
    source = WAYS + "def test_it(): popen('it')\ndef test_other(): pass\n"
    result = run(pytester, source, "--process-leaks=off")
    try:
        assert is_alive(pid_of(pytester, "it"))
    finally:
        assert list(survivors(pytester)) == ["it"]
    assert result.counts == {"passed": 2}
    assert section(result) == ""


@backends
@pytest.mark.parametrize("mode", ["off", "fail"])
def test_one_whose_first_thread_has_ended(pytester: pytest.Pytester, backend: str, mode: str) -> None:
    """A zombie by its state: it is none, and its arguments and its directory are another thread's to tell."""
    source = f"""
def test_it():
    argv = [sys.executable, {str(PROGRAMS / "leaker.py")!r}, "leaderless", "1"]
    with open("it.pid", "w") as told:
        subprocess.run(argv, stdout=told, check=True)
def test_other(): pass
"""
    result = watch(pytester, source, f"--cgroup-backend={backend}", f"--process-leaks={mode}")
    pid = pid_of(pytester, "it")
    lived = len(os.listdir(f"/proc/{pid}/task")) > 1 if os.path.exists(f"/proc/{pid}") else False
    if lived:
        kill(pid)
    assert lived == (mode == "off")
    if mode == "fail":
        (leak,) = leaks(result.junit)
        assert leak["pid"] == pid
        assert leak["argv"][1:3] == [str(PROGRAMS / "leaker.py"), "leaderless"]
        assert leak["cwd"] == str(pytester.path)
        assert f"pid {pid}: " in section(result)


@pytest.mark.parametrize("given", ["ini", "command line"])
def test_warn_names_kills_and_passes(pytester: pytest.Pytester, given: str) -> None:
    source = WAYS + "def test_it(): popen('it')\n"
    if given == "ini":
        pytester.makeini("[pytest]\nprocess_leaks = warn\n")
    result = run(pytester, source, *(["--process-leaks=warn"] if given != "ini" else []), usage_json=False)
    assert survivors(pytester) == {}
    assert (result.ret, result.counts) == (0, {"passed": 1, "warning": 1})
    assert "process leaks: warn, found " in result.text
    assert "ContainedWarning: test_it.py::test_it left behind, now killed: 1 process (sleep)" in result.text
    assert f"pid {pid_of(pytester, 'it')}: sleep 120" in section(result)
    assert len(leaks(result.junit)) == 1


def test_the_report_names_line_and_function(pytester: pytest.Pytester) -> None:
    source = """
def helper():
    return subprocess.Popen(ARGV)
class TestIt:
    def test_it(self):
        note("it", helper().pid)
    def test_shell(self):
        below_a_shell("shell")
"""
    result = watch(pytester, source)
    assert survivors(pytester) == {}
    lines = pytester.path.joinpath("test_it.py").read_text().splitlines()
    line = 1 + lines.index("    return subprocess.Popen(ARGV)")
    assert f"started at test_it.py:{line} in helper" in result.blocks["ERROR at teardown of TestIt.test_it"]
    text = result.blocks["ERROR at teardown of TestIt.test_shell"]
    (deep,) = [one for one in text.splitlines() if f"pid {pid_of(pytester, 'shell')}: " in one]
    assert re.search(
        r"child of `sh -c .*`, started at test_it\.py:\d+ in below_a_shell, called at .* in test_shell$", deep
    )


def test_a_leak_is_added_to_the_tests_own_failure(pytester: pytest.Pytester) -> None:
    source = """
@pytest.fixture
def failing():
    yield
    raise ValueError("of the teardown")
def test_call():
    popen("call")
    assert not "its own failure"
def test_teardown(failing):
    popen("teardown")
@pytest.mark.xfail(reason="known")
def test_xfail():
    popen("xfail")
    assert False
"""
    result = watch(pytester, source)
    assert survivors(pytester) == {}
    assert result.counts == {"failed": 1, "passed": 1, "error": 2, "xfailed": 2}
    both = result.blocks["ERROR at teardown of test_teardown"]
    assert both.index("ValueError: of the teardown") < both.index("left behind, now killed: 1 process")


def test_what_ends_by_itself_in_time_is_no_leak(pytester: pytest.Pytester) -> None:
    """Event-driven: the wait ends with the process, so a long one costs nothing."""
    source = """
def test_exiting():
    note("it", subprocess.Popen(["sleep", "0.2"]).pid)
def test_next():
    assert not os.path.exists(f"/proc/{open('it.pid').read()}/fd/0")
"""
    result = watch(pytester, source, "-o", "process_leaks_settle=20s")
    assert result.counts == {"passed": 2}
    result = watch(pytester, source, "-o", "process_leaks_settle=0.001", "-k", "exiting")
    assert result.counts == {"passed": 1, "error": 1, "deselected": 1}


def test_the_next_test_does_not_see_the_end_of_what_was_killed(pytester: pytest.Pytester) -> None:
    source = """
HELD = []
def test_popen(): HELD.append(subprocess.Popen(ARGV))
def test_forgotten(): subprocess.Popen(ARGV)
def test_fork(): fork("it")
def test_multiprocessing():
    process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(120,))
    process.start()
    HELD.append(process)
def test_no_child_is_left_to_wait_for():
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
    assert HELD[0].poll() == -9
    assert HELD[1].exitcode == -9
    assert not HELD[1].is_alive()
"""
    for backend in ("auto", "process"):
        result = watch(pytester, source, f"--cgroup-backend={backend}")
        assert result.counts == {"passed": 5, "error": 4}, result.text
        assert survivors(pytester) == {}


def test_a_package_that_forks_waits_for_its_own(pytester: pytest.Pytester) -> None:
    """As ptyprocess does, whose object complains where somebody else has waited."""
    pytester.path.joinpath("site-packages").mkdir()
    pytester.path.joinpath("site-packages/forker.py").write_text(
        "import os\n"
        "class Forked:\n"
        "    def __init__(self):\n"
        "        self.child = os.fork()\n"
        "        if not self.child:\n"
        "            os.execvp('sleep', ['sleep', '120'])\n"
        "    def wait(self):\n"
        "        return os.waitpid(self.child, 0)\n"
    )
    source = """
sys.path.insert(0, "site-packages")
import forker
HELD = []
def test_fork():
    HELD.append(forker.Forked())
    note("it", HELD[0].child)
def test_wait(): assert os.WTERMSIG(HELD[0].wait()[1]) == 9
"""
    result = watch(pytester, source)
    assert survivors(pytester) == {}
    assert result.counts == {"passed": 2, "error": 1}


@backends
def test_what_was_there_before_is_nobodys(pytester: pytest.Pytester, backend: str) -> None:
    pytester.path.joinpath("before.py").write_text(
        "import subprocess, sys, os\n"
        "child = subprocess.Popen(['sleep', '120'])\n"
        "open('before.pid', 'w').write(str(child.pid))\n"
        "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])\n"
    )
    pytester.path.joinpath("test_it.py").write_text("def test_it(): pass\n")
    import sys

    from tests.e2e.inner import command

    line = command(("--process-leaks=fail", f"--cgroup-backend={backend}"))
    at = line.index(sys.executable)
    done = pytester.run(*line[: at + 1], "before.py", *line[at + 1 :], timeout=60)
    assert done.ret == 0
    assert list(survivors(pytester)) == ["before"]


def test_grace_asks_before_it_kills(pytester: pytest.Pytester) -> None:
    script = 'trap "echo asked > $0.asked; exit" TERM; echo > $0.ready; while :; do sleep 120 & wait; done'
    source = f"""
def leave_a_listener(name):
    os.mkfifo(name + ".ready")
    note(name, subprocess.Popen(["sh", "-c", {script!r}, name]).pid)
    open(name + ".ready").read()
@contained(isolation="shared", grace=20)
def test_asked(): leave_a_listener("asked")
def test_not_asked(): leave_a_listener("not")
"""
    result = watch(pytester, source)
    assert result.counts == {"passed": 2, "error": 2}
    assert survivors(pytester) == {}
    assert pytester.path.joinpath("asked.asked").exists()
    assert not pytester.path.joinpath("not.asked").exists()


def test_marker_against_option(pytester: pytest.Pytester) -> None:
    """A marker that speaks of leaks alone forks nothing. What is ignored is killed in silence."""
    source = """
PID = os.getpid()
@contained(leaks="ignore")
def test_ignore():
    assert os.getpid() == PID
    popen("ignore")
@contained(leaks="warn")
def test_warn():
    assert os.getpid() == PID
    popen("warn")
def test_plain(): popen("plain")
@contained
def test_forked():
    assert os.getpid() != PID
    popen("forked")
"""
    result = watch(pytester, source)
    assert survivors(pytester) == {}
    assert result.counts == {"passed": 4, "warning": 1, "error": 2}
    text = section(result)
    assert "test_ignore" not in text
    assert "test_forked" not in text, "its container has told of it, and once is enough"
    assert result.blocks["ERROR at teardown of test_forked"].startswith("left behind, now killed: 1 process (sleep)")


@backends
def test_ignore_is_silent_and_ignored_by_name_is_left_alone(pytester: pytest.Pytester, backend: str) -> None:
    source = """
@contained(isolation="shared", leaks="ignore")
def test_ignore():
    popen("killed")
    note("named", subprocess.Popen(["sleep", "123"]).pid)
"""
    ignore = ("--process-leaks-ignore=sleep 123", "--process-leaks=off", f"--cgroup-backend={backend}")
    for arguments in (ignore, ignore[:1]):
        result = watch(pytester, source, *arguments)
        assert list(survivors(pytester)) == ["named"]
        assert result.counts == {"passed": 1}
        assert section(result) == ""
        assert leaks(result.junit) == []


def test_the_marker_alone(pytester: pytest.Pytester) -> None:
    """isolation="shared" without the option: the marked tests are watched, and nothing else is touched."""
    source = f"""{WAYS}
PID = os.getpid()
@contained(isolation="shared")
def test_marked():
    assert os.getpid() == PID
    popen("marked")
def test_unmarked(): popen("unmarked")
@pytest.fixture(scope="module")
def fixture(): popen("fixture")
def test_fixture(fixture): pass
"""
    result = run(pytester, source)
    assert sorted(survivors(pytester)) == ["fixture", "unmarked"]
    assert result.counts == {"passed": 3, "error": 1}


@pytest.mark.parametrize("field", ["memory='64M'", "pids=5", "timeout=5", "pid_ns=True", "expect='oom', memory='1G'"])
def test_limits_are_refused_in_place(pytester: pytest.Pytester, field: str) -> None:
    source = f"@contained(isolation='shared', {field})\ndef test_it(): pass\ndef test_other(): pass\n"
    result = run(pytester, source)
    assert result.counts == {"passed": 1, "error": 1}
    assert "pytest" in result.blocks["ERROR at setup of test_it"]
    assert "fork" in result.blocks["ERROR at setup of test_it"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--process-leaks=yes"], "--process-leaks='yes': allowed: off, warn, fail"),
        (["-o", "process_leaks=yes"], "ini process_leaks='yes': allowed: off, warn, fail"),
        (["-o", "process_leaks_settle=soon"], "ini process_leaks_settle='soon'"),
        (["-o", "process_leaks_pools=drop"], "ini process_leaks_pools='drop': allowed: keep, report"),
    ],
)
def test_what_is_wrong_is_refused(pytester: pytest.Pytester, arguments: list[str], said: str) -> None:
    result = run(pytester, "def test_it(): pass\n", *arguments)
    assert result.ret == 4
    assert said in result.text


def test_ctrl_c_kills_in_silence(pytester: pytest.Pytester) -> None:
    source = """
@pytest.fixture(scope="session")
def server():
    child = subprocess.Popen(ARGV)
    yield child
    child.kill()
    child.wait()
def test_it(server):
    popen("it")
    raise KeyboardInterrupt
"""
    result = watch(pytester, source)
    assert result.ret == 2
    assert survivors(pytester) == {}
    assert section(result) == ""


def test_a_rerun_is_judged_by_itself(pytester: pytest.Pytester) -> None:
    pytest.importorskip("pytest_rerunfailures")
    source = """
@pytest.mark.flaky(reruns=1)
def test_it():
    if not os.path.exists("it.pid"):
        popen("it")
        assert False
"""
    result = watch(pytester, source, "-p", "rerunfailures")
    assert survivors(pytester) == {}
    assert (result.ret, result.counts["passed"]) == (0, 1)
    assert "test_it left behind 1 process" in section(result)


@pytest.mark.requires("root", "kill")
@pytest.mark.parametrize("workers", [0, 1])
def test_without_ground_the_run_says_so_and_fails(pytester: pytest.Pytester, workers: int) -> None:
    """The cgroup that pytest stands in is taken away: no traceback of ours, and no silent pass."""
    source = """
def test_it():
    with open("/proc/self/cgroup") as f:
        own = next(line for line in f if line.startswith("0::")).strip().partition("::")[2]
    mount = next(line.split()[4] for line in open("/proc/self/mountinfo") if " - cgroup2 " in line)
    open(f"{mount}/cgroup.procs", "w").write("0")
    os.rmdir(mount + own)
def test_other(): pass
"""
    result = watch(pytester, source, workers=workers)
    assert result.counts == {"passed": 2}
    assert result.ret == 1
    assert "not looked for to the end of the run: OSError: " in section(result)
