"""What the C library starts in a cgroup by itself, and what is left to the launcher.

That it all is as `subprocess` has it is shown in test_library_popen.py, which takes this way where there is one.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_cgroup import Container, _popen, _station, _syscalls
from pytest_cgroup._process import stat_fields
from tests.kernel.contain import DEADLINE_SECONDS, descriptors

#: where it is, the leader of what, and what it writes to two descriptors
TOLD = """
import os, sys
print(open("/proc/self/cgroup").read().strip().rpartition("/")[2], os.getcwd(), os.environ.get("NAME"))
print(os.getsid(0) == os.getpid(), os.getpgid(0) == os.getpid(), file=sys.stderr)
"""


@pytest.fixture
def container(v2: None) -> Iterator[Container]:
    """A container of one cgroup; nothing of it stays open."""
    if not _syscalls.can_spawn_into_cgroup():
        pytest.skip("the C library can't spawn into a cgroup: glibc before 2.39")
    before = descriptors()
    with Container(backend="cgroup") as found:
        yield found
    _station.close()
    assert [fd for fd in descriptors() if fd not in before] == []


@pytest.fixture
def spawned(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What the C library was asked to start."""
    asked: list[bytes] = []

    def spawn(cgroup: int, executable: bytes, **options: Any) -> int:
        asked.append(executable)
        return original(cgroup, executable, **options)

    original = _syscalls.spawn_into_cgroup
    monkeypatch.setattr(_syscalls, "spawn_into_cgroup", spawn)
    return asked


def name_of(container: Container) -> str:
    path: str = container._life.tree.cgroup.unified  # type: ignore[union-attr]
    return path.rpartition("/")[2]


@pytest.mark.requires("cgroup")
def test_no_launcher_is_needed(container: Container, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_popen.Launcher, "start", lambda: pytest.fail("a launcher was started"))
    done = container.run(
        [sys.executable, "-c", TOLD],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"NAME": "value"},
        start_new_session=True,
    )
    assert done.stdout.split() == [name_of(container), str(tmp_path), "value"]
    assert done.stderr.split() == ["True", "True"]
    monkeypatch.setenv("NAME", "inherited")
    done = container.run([sys.executable, "-c", TOLD], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert sorted(done.stdout.split()) == sorted(["False", "False", name_of(container), os.getcwd(), "inherited"])
    assert container.run("exit 7", shell=True).returncode == 7
    assert container.run(["true"], input=b"x").returncode == 0


@pytest.mark.requires("cgroup")
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"umask": 0o27}, id="umask"),
        pytest.param({"close_fds": False}, id="close_fds"),
        pytest.param({"user": os.geteuid()}, id="user"),
        pytest.param({"group": os.getegid()}, id="group"),
        pytest.param({"stdout": 2, "stderr": 1}, id="crossed"),
    ],
)
def test_what_it_can_not_do_the_launcher_does(
    container: Container, spawned: list[bytes], options: dict[str, Any]
) -> None:
    assert container.run(["true"], **options).returncode == 0
    assert not spawned
    assert container.run(["true"]).returncode == 0
    assert spawned


@pytest.mark.requires("cgroup")
def test_descriptors_that_are_passed_on(container: Container, spawned: list[bytes]) -> None:
    reader, writer = os.pipe()
    with open(reader, "rb") as f:
        container.run([sys.executable, "-c", f"import os; os.write({writer}, b'here')"], pass_fds=[writer], check=True)
        os.close(writer)
        assert f.read() == b"here"
    assert not spawned


@pytest.mark.requires("cgroup")
def test_two_that_are_crossed(container: Container, tmp_path: Path) -> None:
    """What this process calls 1 is the program's 2, and the other way round."""
    program = f"""
import sys, pytest_cgroup
with pytest_cgroup.Container() as container:
    for start in container.popen, __import__("subprocess").Popen:
        start({["sh", "-c", "echo out; echo err >&2"]}, stdout=2, stderr=1).wait()
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=DEADLINE_SECONDS, check=True
    )
    assert (done.stdout, done.stderr) == ("err\n" * 2, "out\n" * 2)


@pytest.mark.requires("cgroup")
def test_what_is_refused_is_tried_by_the_launcher(container: Container, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> int:
        raise OSError(38, "no such call")

    monkeypatch.setattr(_syscalls, "spawn_into_cgroup", refuse)
    done = container.run([sys.executable, "-c", TOLD], capture_output=True, text=True)
    assert done.stdout.split()[0] == name_of(container)


@pytest.mark.requires("cgroup")
def test_who_is_born_dead_is_born_again(container: Container, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the kernel kills who is born in a cgroup that was killed before: here it ends itself before its exec."""
    waited: list[int] = []

    def kill_before_exec(cgroup: int, executable: bytes, **options: Any) -> int:
        if (pid := os.fork()) == 0:
            os.kill(os.getpid(), 9)
        waited.append(pid)
        return pid

    monkeypatch.setattr(_syscalls, "spawn_into_cgroup", kill_before_exec)
    assert container.run(["sh", "-c", "exit 5"]).returncode == 5
    assert container.run(["true"]).returncode == 0
    assert len(waited) == 1, "it joins from now on"
    with pytest.raises(ChildProcessError):
        os.waitpid(waited[0], 0)


@pytest.mark.requires("cgroup")
def test_a_program_that_has_just_begun_is_not_born_dead(container: Container, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel lets who spawned it go on before it has taken back that nothing was executed yet."""

    def still_before_exec(pid: int) -> list[str] | None:
        fields = stat_fields(pid)
        if fields and not seen:
            fields[6] = str(int(fields[6]) | 0x40)
        seen.append(pid)
        return fields

    seen: list[int] = []
    monkeypatch.setattr(_popen, "stat_fields", still_before_exec)
    process = container.popen(["cat"], stdin=subprocess.PIPE)
    assert seen == [process.pid] * 2
    assert process.communicate(timeout=DEADLINE_SECONDS) == (None, None)
    assert not process.was_stillborn  # type: ignore[attr-defined]


@pytest.mark.requires("cgroup")
def test_the_search_is_python_s(container: Container, tmp_path: Path, spawned: list[bytes]) -> None:
    for name, mode in (("first", 0o644), ("second", 0o755)):
        directory = tmp_path / name
        directory.mkdir()
        program = directory / "program"
        program.write_text(f"#!/bin/sh\necho {name}\n")
        program.chmod(mode)
    search = {"PATH": f"{tmp_path}/none:{tmp_path}/first:{tmp_path}/second"}

    def said(start: Callable[..., subprocess.Popen[bytes]], argv: list[str], **options: Any) -> bytes:
        return start(argv, stdout=subprocess.PIPE, **options).communicate(timeout=DEADLINE_SECONDS)[0]

    for argv, options in (
        (["program"], {"env": search}),
        (["./program"], {"cwd": tmp_path / "second"}),
        (["second/program"], {"cwd": tmp_path}),
    ):
        assert said(container.popen, argv, **options) == said(subprocess.Popen, argv, **options) == b"second\n"
    assert spawned
