"""The backend exec: an outside program that limits and measures what the process backend holds."""

from __future__ import annotations

import errno
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import pytest_cgroup
from pytest_cgroup import Container, ContainerError, NotOffered, SpecError
from pytest_cgroup._backends import containerizer
from pytest_cgroup._ownership import Owner, session_name, this_process
from pytest_cgroup._process import ProcessId

pytestmark = pytest.mark.usefixtures("given_back")
PROGRAM = Path(__file__).with_name("containerizer.py")
ROOT = str(Path(pytest_cgroup.__file__).parent.parent)
#: prints the cgroups that the program has made and the process is in
IN_WHAT = ["grep", "-c", "/of-", "/proc/self/cgroup"]


class Outside:
    """The tests' containerizer, with a state of its own."""

    def __init__(self, state: Path) -> None:
        self.state = state

    def backend(self, offers: str = "pids,memory", program: Path = PROGRAM) -> str:
        """The option's value."""
        return "exec:" + shlex.join([sys.executable, str(program), str(self.state), offers])

    @property
    def asked(self) -> list[tuple[str, dict[str, Any]]]:
        """The verbs and messages so far."""
        return [(verb, message) for verb, message in map(json.loads, (self.state / "log").read_text().splitlines())]

    @property
    def held(self) -> list[str]:
        """The containers that it has."""
        return [one.name for one in self.state.iterdir() if one.is_dir()]


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Outside:
    """The program finds the package that is tested."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([ROOT, os.environ.get("PYTHONPATH", "")]))
    (state := tmp_path / "state").mkdir()
    return Outside(state)


def program(path: Path, text: str) -> Path:
    """Another one; it has ``verb`` and ``message``."""
    head = "import json, sys\nverb, message = sys.argv[-1], json.load(sys.stdin)\n"
    (file := path / "program.py").write_text(head + text)
    return file


def test_what_it_is_asked(outside: Outside) -> None:
    with Container(backend=outside.backend("pids"), pids=30, name="db") as container:
        (name,) = outside.held
        assert container.run(["true"]).outcome.backend == "exec"
        container.update(pids=40)
        assert container.call(os.getpid) != os.getpid()
        assert outside.held == [name]
    assert name == f"{session_name(this_process())}.{name.partition('.')[2]}"
    assert name.endswith("-db")
    verbs = [verb for verb, _ in outside.asked]
    assert [verb for verb in verbs if verb != "usage"] == [
        *("offers", "containers", "launch", "join", "update", "join", "destroy"),
    ]
    messages = dict(outside.asked)
    assert messages["launch"] == {"id": name, "fields": {"pids": 30}}
    assert messages["update"] == {"id": name, "fields": {"pids": 40}}
    assert all(message["id"] == name for verb, message in outside.asked if verb not in ("offers", "containers"))
    assert outside.held == []


@pytest.mark.requires("root", "memory", "pids")
def test_what_is_in_the_container_is_in_the_programs(outside: Outside) -> None:
    with Container(backend=outside.backend(), pids=50, memory="64M") as container:
        assert container.limits == {"pids": "50", "memory": str(64 << 20)}
        assert int(container.run(IN_WHAT, capture_output=True).stdout) > 0
        assert container.call(lambda: "/of-" in Path("/proc/self/cgroup").read_text())
        hog = container.run([sys.executable, "-c", "bytearray(200 << 20)"], capture_output=True)
        assert hog.outcome.ended == "oom"
    usage = container.finish().usage
    assert usage.memory_peak_bytes == 64 << 20
    assert usage.throttled_seconds == 0.5
    with Container(backend="process") as control:
        assert control.run([sys.executable, "-c", "bytearray(200 << 20)"]).returncode == 0
        assert int(control.run(IN_WHAT, capture_output=True).stdout) == 0


@pytest.mark.requires("root", "pids", "pid_ns")
def test_with_namespaces(outside: Outside) -> None:
    with Container(backend=outside.backend(), pids=50, pid_ns=True, net_ns=True) as container:
        assert int(container.run(IN_WHAT, capture_output=True).stdout) > 0
        assert container.call(lambda: "/of-" in Path("/proc/self/cgroup").read_text())


def test_a_leak_is_found_and_killed(outside: Outside) -> None:
    with Container(backend=outside.backend("")) as container:
        container.popen(["sh", "-c", "setsid sleep 1000 &"]).wait()
        outcome = container.destroy()
    assert [leak.argv for leak in outcome.leaks] == [("sleep", "1000")]
    assert outside.held == []


def test_what_it_does_not_take_is_not_offered(outside: Outside) -> None:
    with pytest.raises(NotOffered, match="honour cpu: needs a cgroup: the containerizer does not take it") as raised:
        Container(backend=outside.backend(), cpu=0.5).start()
    assert raised.value.missing == ("cpu",)


def test_it_takes_nobody_in(outside: Outside) -> None:
    (outside.state / "refuse").touch()
    with pytest.raises(ContainerError, match="failed: it is full"):
        Container(backend=outside.backend()).start()
    assert outside.held == []
    (outside.state / "refuse").unlink()
    with Container(backend=outside.backend()) as container:
        (outside.state / "refuse").touch()
        with pytest.raises(ContainerError, match="failed: it is full"):
            container.call(os.getpid)
        (outside.state / "refuse").unlink()
        assert container.call(os.getpid) != os.getpid(), "it is not broken by that"


def test_who_ended_before_it_was_taken_in(outside: Outside) -> None:
    """It has not read the answer that was for it: and that lets nobody else in."""
    with Container(backend=outside.backend("")) as container:
        tree: Any = container._life.tree  # type: ignore[union-attr]
        with subprocess.Popen(["sleep", "1000"]) as other:
            tree.held_by_another(other.pid)
            other.kill()
        (outside.state / "refuse").touch()
        with pytest.raises(ContainerError, match="failed: it is full"):
            container.call(os.getpid)


def test_a_second_one_of_that_name(outside: Outside) -> None:
    ran = containerizer.Containerizer(outside.backend().removeprefix("exec:"))
    ran.ask("launch", {"id": "x", "fields": {}})
    with pytest.raises(ContainerError, match="File exists"):
        ran.ask("launch", {"id": "x", "fields": {}})
    ran.ask("destroy", {"id": "x"})
    ran.ask("destroy", {"id": "x"})


def test_what_a_dead_run_left_with_it(outside: Outside) -> None:
    nobody = Owner(ProcessId(99999999, 1), this_process().namespaces)
    dead, alive = f"{session_name(nobody)}.1-test", f"{session_name(this_process())}.1-test"
    for name in (dead, alive, "somebody-elses", f"{dead[:-7]}x.1-test"):
        (outside.state / name).mkdir()
    containerizer.Containerizer(outside.backend().removeprefix("exec:"))
    assert dead not in outside.held
    assert len(outside.held) == 3


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("sys.exit('no licence')", "failed: no licence"),
        ("sys.exit(3)", "failed: 3"),
        ("print('hello')", "did not answer with a JSON object"),
        ("print('[1]')", "did not answer with a JSON object"),
        ("print('[' * 100000)", "did not answer with a JSON object"),
        ("print('{}')", "it says nothing of 'fields'"),
        ("print('{\"fields\": 1}')", "'int' object is not iterable"),
        ("import time; time.sleep(60)", "gave no answer in 0 s"),
    ],
)
def test_a_program_that_is_none(
    outside: Outside, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, why: str
) -> None:
    monkeypatch.setattr(containerizer, "_ANSWER_SECONDS", 0.3 if "sleep" in text else 30.0)
    backend = outside.backend(program=program(tmp_path, text))
    with pytest.raises(NotOffered) as raised:
        Container(backend=backend).start()
    assert f"--cgroup-backend={backend}: " in str(raised.value)
    assert why in str(raised.value)


@pytest.mark.parametrize(
    ("backend", "why"),
    [("exec:/no/such/program", os.strerror(errno.ENOENT)), ("exec:'", "No closing quotation")],
)
def test_a_program_that_is_not_there(backend: str, why: str) -> None:
    with pytest.raises(NotOffered, match=why):
        Container(backend=backend).start()


@pytest.mark.parametrize("backend", ["exec:", "exec: ", "exec", "execute:x", "", 3])
def test_a_name_that_is_none(backend: Any) -> None:
    with pytest.raises(SpecError, match='allowed: "auto", "cgroup", "process" or "exec:PROGRAM"'):
        Container(backend=backend)


def test_numbers_that_are_none(outside: Outside) -> None:
    """It says "pids_peak" is -1, tells the wall time, and a number that nobody knows."""
    with Container(backend=outside.backend("")) as container:
        container.run(["true"])
    usage = container.finish().usage
    assert (usage.pids_peak, usage.throttled_seconds) == (None, 0.5)
    assert usage.wall_seconds != 5


def test_it_fails_to_measure(outside: Outside, tmp_path: Path) -> None:
    text = 'verb == "usage" and sys.exit("broken"); print(json.dumps({"fields": [], "ids": []}))'
    with Container(backend=outside.backend(program=program(tmp_path, text))) as container:
        outcome = container.run(["true"]).outcome
    assert outcome.usage.cpu_seconds is not None, "what the process backend knows"


def test_its_own_processes_are_nobodys_leak(outside: Outside) -> None:
    """Neither is the program waited for by somebody else, nor does anything of it stay."""
    before = subprocess.run(["pgrep", "-f", str(outside.state)], capture_output=True, text=True, check=False).stdout
    with Container(backend=outside.backend("")) as container:
        container.run(["true"])
    after = subprocess.run(["pgrep", "-f", str(outside.state)], capture_output=True, text=True, check=False).stdout
    assert before == after == ""
