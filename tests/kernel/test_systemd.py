"""A scope of pytest's own, asked of systemd: from wherever it is started, of nobody else, and gone when it ends."""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_cgroup import _systemd
from pytest_cgroup._kernel_text import CgroupMount, cgroup_mounts
from pytest_cgroup._namespaces import unshare_pid
from pytest_cgroup._systemd import Manager, enter_scope, find_manager
from pytest_cgroup.exceptions import NotOffered
from tests.conftest import not_offered
from tests.kernel.contain import Lab, on_cgroup
from tests.kernel.forked import forked

ROOT = os.geteuid() == 0
USER = [] if ROOT else ["--user"]
V2 = CgroupMount(2, frozenset(), "/sys/fs/cgroup", "/", False)

#: says where it stood, what it then had, and where everybody was meanwhile
PROGRAM = """
import json, os, sys
from pytest_cgroup._backends import choose
from pytest_cgroup._host import Host
def where(pid="self"): return open(f"/proc/{pid}/cgroup").read().strip().partition("::")[2]
def shell(): return where(os.getppid())
before = where(), shell()
host = Host(**json.loads(sys.argv[1]))
backend = choose(host).name
missing = {name: [one.reason, one.remedy] for name, one in host.placement.missing.items()}
session = host.placement.session and host.placement.session.path
said = dict(before=before, inside=(where(), shell()), backend=backend, missing=missing, pid=os.getpid(),
            session=session, controllers=sorted(host.placement.controllers))
host.close()
said["after"] = where()
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def manager() -> Manager:
    """The systemd that may be asked here."""
    mounts = [mount for mount in cgroup_mounts(Path("/proc/self/mountinfo").read_text()) if mount.version == 2]
    if len(mounts) != 1 or mounts[0].mount_point != "/sys/fs/cgroup":
        not_offered("systemd", "no pure cgroup v2 here")
    try:
        return find_manager(mounts[0])
    except NotOffered as why:
        not_offered("systemd", str(why))


def terminal(command: list[str], *options: str) -> list[str]:
    """*command* started by a shell in a scope, as in a terminal: the shell stays beside it, nothing is delegated."""
    return ["systemd-run", *USER, "--quiet", "--scope", *options, "sh", "-c", f"{shlex.join(command)}; exit $?"]


def pytest_in_a_terminal(directory: Path, source: str, *options: str) -> str:
    """What a pytest says that runs *source* there; its files are in *directory*."""
    directory.joinpath("pytest.ini").write_text("[pytest]\nasyncio_default_fixture_loop_scope = function\n")
    directory.joinpath("test_it.py").write_text(source)
    run = [sys.executable, "-m", "pytest", "-rs", "-p", "no:cacheprovider", "--rootdir", str(directory), str(directory)]
    done = subprocess.run(terminal([*run, *options]), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout
    return done.stdout


def service(command: list[str], *options: str) -> list[str]:
    """*command* in a service of its own, with a shell beside it."""
    shell = ["sh", "-c", f"{shlex.join(command)}; exit $?"]
    return ["systemd-run", *USER, "--quiet", "--pipe", "--wait", "--collect", *options, *shell]


def login(command: list[str]) -> list[str]:
    """*command* in a login session of an ordinary user, whose cgroup is not the user's to write."""
    return ["su", "-l", "tester", "-c", shlex.join(command)]


def say(how: Callable[[list[str]], list[str]], **asked: object) -> dict[str, Any]:
    """What the program says where *how* puts it."""
    command = how([sys.executable, "-c", PROGRAM, json.dumps(asked)])
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert isinstance(said, dict)
    return said


def in_a_scope(said: dict[str, Any]) -> bool:
    """Whether it has moved to a scope of its own, it alone."""
    (before, shell), (inside, shell_then) = said["before"], said["inside"]
    assert shell == shell_then, "the shell was moved"
    unit = rf"/pytest-cgroup-{said['pid']}-\d+\.scope/pytest-cgroup-{said['pid']}-\d+-\w{{8}}/main"
    found = re.search(unit, inside) is not None
    assert found or inside == before or inside.startswith(before + "/pytest-cgroup-")
    return found


def alone(command: list[str]) -> list[str]:
    """*command* in a scope of systemd's, without a shell, and without the controllers that nobody asked for.

    In the slice of others it has what they asked for.
    """
    return ["systemd-run", *USER, "--quiet", "--scope", "--slice=lonely.slice", *command]


def main_process(command: list[str]) -> list[str]:
    """*command* as a service, likewise."""
    return ["systemd-run", *USER, "--quiet", "--pipe", "--wait", "--collect", "--slice=lonely.slice", *command]


@pytest.mark.parametrize("how", [terminal, service, alone, main_process])
def test_from_a_terminal_and_a_service(manager: Manager, how: Callable[[list[str]], list[str]]) -> None:
    said = say(how)
    assert in_a_scope(said)
    assert said["backend"] == "cgroup"
    assert {"memory", "pids"} <= set(said["controllers"])
    assert set(said["controllers"]) == manager.controllers & {"memory", "pids", "cpu", "cpuset", "io"}
    slices = [name for name in said["before"][0].split("/") if name.endswith(".slice")]
    assert [name for name in said["inside"][0].split("/") if name.endswith(".slice")] == slices, "it kept its slice"
    assert said["inside"][0].startswith(said["after"] + "/")
    assert gone(said["after"])


def gone(path: str) -> bool:
    """Whether the scope ends by itself, and nothing of its unit is left."""
    deadline = time.monotonic() + 10
    while os.path.exists(f"/sys/fs/cgroup{path}"):
        assert time.monotonic() < deadline, "the scope outlives pytest"
        time.sleep(0.02)
    command = ["systemctl", *USER, "list-units", "--all", "--no-legend", os.path.basename(path)]
    while subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip():
        assert time.monotonic() < deadline, "its unit stays loaded"
        time.sleep(0.02)
    return True


@pytest.mark.requires("root")
@pytest.mark.usefixtures("manager")
def test_from_a_login_session() -> None:
    """Its cgroup is root's; the control: without a scope there is the process table, and that is all."""
    said = say(login)
    assert re.fullmatch(r"/user\.slice/user-1000\.slice/session-\w+\.scope", said["before"][0])
    assert in_a_scope(said)
    assert "/user@1000.service/app.slice/" in said["inside"][0]
    assert {"memory", "pids", "cpu"} <= set(said["controllers"])
    said = say(login, scope=False)
    assert not in_a_scope(said)
    assert (said["backend"], said["controllers"]) == ("process", [])
    reason, remedy = said["missing"]["cgroup"]
    assert "EACCES" in reason
    assert "--cgroup-scope=no" in remedy


@pytest.mark.skipif(os.environ.get("PYTEST_CGROUP_HOST") != "v2-systemd-user-session", reason="not that host")
def test_this_very_run_has_left_its_login_session() -> None:
    assert re.search(rf"/app\.slice/pytest-cgroup-{os.getpid()}-\d+\.scope/", Path("/proc/self/cgroup").read_text())


@pytest.mark.usefixtures("manager")
def test_the_option_and_its_twin(tmp_path: Path) -> None:
    """And the limits hold: the control is the same run without a scope."""
    source = (
        "import os, pytest, signal\n"
        "@pytest.mark.contained(memory='64M', expect='oom')\n"
        "def test_memory(): bytearray(256 << 20)\n"
        "@pytest.mark.contained(pids=5, leaks='ignore')\n"
        "def test_pids():\n"
        "    with pytest.raises(BlockingIOError):\n"
        "        for _ in range(9):\n"
        "            if not os.fork(): signal.pause()\n"
    )
    for options, passed in ([], True), (["--cgroup-scope=no"], False), (["-o", "cgroup_scope=no"], False):
        said = pytest_in_a_terminal(tmp_path, source, *options)
        assert ("2 passed" in said) == passed, said
        assert ("2 skipped" in said and "--cgroup-scope=no" in said) == (not passed), said


@pytest.mark.usefixtures("manager")
def test_one_scope_for_all_workers(tmp_path: Path) -> None:
    source = (
        "import os, pathlib, pytest\n"
        "@pytest.mark.contained(pids=20)\n"
        "@pytest.mark.parametrize('x', range(8))\n"
        "def test_it(x):\n"
        "    worker = os.environ['PYTEST_XDIST_WORKER']\n"
        f"    pathlib.Path({str(tmp_path)!r}, f'{{worker}}-{{x}}').write_text(open('/proc/self/cgroup').read())\n"
    )
    said = pytest_in_a_terminal(tmp_path, source, "-n2")
    assert "8 passed" in said, said
    texts = {path.name.partition("-")[0]: path.read_text() for path in tmp_path.glob("gw*")}
    scopes = {re.findall(r"[^/]+\.scope", text)[-1] for text in texts.values()}
    assert len(texts) == 2, "both workers had a test"
    assert len(scopes) == 1


@pytest.mark.usefixtures("manager")
def test_limits_that_somebody_set_are_not_escaped() -> None:
    said = say(lambda command: terminal(command, "-p", "MemoryMax=600M"))
    assert not in_a_scope(said)
    reason, remedy = said["missing"]["memory"]
    assert f"memory.max {600 << 20}, from which a scope would escape" in reason
    assert "Delegate=yes" in remedy


@on_cgroup
@pytest.mark.usefixtures("manager")
def test_a_pytest_inside_a_test_stays_inside(lab: Lab) -> None:
    said, _ = lab.call(lambda tell: say(lambda command: ["sh", "-c", f"{shlex.join(command)}; exit $?"]))
    assert not in_a_scope(said)
    assert "stays there" in said["missing"]["memory"][0]


@pytest.mark.requires("cgroup")
@pytest.mark.usefixtures("manager")
def test_where_nothing_is_lacking_none_is_asked_for() -> None:
    def delegated(command: list[str]) -> list[str]:
        return ["systemd-run", *USER, "--quiet", "--scope", "-p", "Delegate=yes", *command]

    assert not in_a_scope(say(delegated))


@pytest.mark.requires("root")
def test_a_manager_of_another_pid_namespace_is_not_asked(manager: Manager) -> None:
    """Our number is somebody else's there."""

    def ask() -> str:
        try:
            return find_manager(V2).address
        except NotOffered as why:
            return why.what

    def inside() -> str:
        unshare_pid()
        return forked(ask)

    assert forked(ask) == manager.address
    assert "another pid namespace" in forked(inside)


@pytest.mark.requires("root", "pid_ns")
def test_who_listens(tmp_path: Path) -> None:
    """Our own pid namespace is told from one above and from one below."""
    ours, below = str(tmp_path / "ours"), str(tmp_path / "below")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(ours)
        server.listen()
        assert _systemd._listener(ours) == os.getpid()
        assert _systemd._numbers_agree(os.getpid())

        def inside() -> int:
            unshare_pid()
            return forked(lambda: _systemd._listener(ours))

        assert forked(inside) == 0
    listen = f"import socket; s = socket.socket(socket.AF_UNIX); s.bind({below!r}); s.listen(); print(); input()"
    command = ["unshare", "--pid", "--fork", "--kill-child", sys.executable, "-uc", listen]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        pid = _systemd._listener(below)
        agree = _systemd._numbers_agree(pid)
        process.communicate(b"\n")
    assert pid > 0
    assert not agree


# what may go wrong with the call: a busctl that is not there, refuses, hangs, lies


@pytest.fixture
def elsewhere() -> Manager:
    """A manager that is not there."""
    return Manager("unix:path=/no/such/bus", "/user.slice/user@7.service", V2)


def busctl(directory: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    program = directory / "busctl"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo Call failed: no such thing >&2; exit 1", "systemd refused a scope: Call failed: no such thing"),
        ("exit 3", "busctl ended with 3"),
        ("exec sleep 1000", "gave no scope in 0.2 s"),
        ('[ $2 = call ] || exec sleep 1000; echo "o \\"/job/1\\""', "gave no scope in 0.2 s"),
        ("[ $2 = call ] || exit 1", "did not move pytest there"),
        ('[ $2 = call ] || exit 1; echo "o \\"/job/1\\""', "did not move pytest there"),
    ],
)
def test_every_failure_is_a_reason(
    elsewhere: Manager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, said: str
) -> None:
    busctl(tmp_path, monkeypatch, script)
    if "0.2 s" in said:
        monkeypatch.setattr(_systemd, "TIMEOUT_SECONDS", 0.2)
    with pytest.raises(NotOffered) as caught:
        enter_scope(elsewhere, "/user.slice/term.scope")
    assert said in caught.value.what
    assert "systemd-run" in (caught.value.remedy or "")


def test_no_busctl(elsewhere: Manager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotOffered, match="no busctl") as caught:
        enter_scope(elsewhere, "/user.slice/term.scope")
    assert "install it" in (caught.value.remedy or "")


def test_it_asks_for_itself_alone(elsewhere: Manager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = tmp_path / "said"
    busctl(tmp_path, monkeypatch, f'echo "$*" >>{said}; exit 1')
    with pytest.raises(NotOffered):
        enter_scope(elsewhere, "/user.slice/term.scope")
    (line,) = said.read_text().splitlines()
    assert f" PIDs au 1 {os.getpid()} Delegate b true " in line
    assert re.search(rf" pytest-cgroup-{os.getpid()}-\d+(-\d+)?\.scope fail 6 ", line)
    assert "CollectMode s inactive-or-failed" in line


# what it leaves, and where it goes: literal trees


@pytest.mark.parametrize(
    ("root", "own", "expected"),
    [
        ("/", "/user.slice/user-0.slice/session-1.scope", "user-0.slice"),
        ("/", "/system.slice/a.service", "system.slice"),
        ("/", "/", "system.slice"),
        ("/", "/user.slice/user-7.slice/user@7.service/app.slice/term.scope", "user-7.slice"),
        ("/u.slice/user@7.service", "/u.slice/user@7.service/app.slice/app-x.slice/term.scope", "app-x.slice"),
        ("/u.slice/user@7.service", "/u.slice/session-1.scope", "app.slice"),
    ],
)
def test_it_stays_in_its_slice(root: str, own: str, expected: str) -> None:
    assert _systemd._slice(Manager("", root, V2), own) == expected


@pytest.mark.parametrize(
    ("limited", "free"),
    [
        (None, True),
        ("u.slice/session-1.scope", False),
        ("u.slice/session-1.scope/sub", False),
        ("u.slice", True),  # where it goes, this holds on
    ],
)
@pytest.mark.parametrize(("file", "value"), [("memory.max", "1000000"), ("cpu.max", "50000 100000")])
def test_which_limits_it_would_leave(tmp_path: Path, limited: str | None, free: bool, file: str, value: str) -> None:
    own = "/u.slice/session-1.scope/sub"
    Path(f"{tmp_path}{own}").mkdir(parents=True)
    for directory in ("u.slice", "u.slice/session-1.scope", "u.slice/session-1.scope/sub"):
        for name in ("memory.max", "cpu.max"):
            ours = directory == limited and name == file
            tmp_path.joinpath(directory, name).write_text(f"{value if ours else 'max'}\n")
    manager = Manager("", "/u.slice/user@7.service", CgroupMount(2, frozenset(), str(tmp_path), "/", False))
    if free:
        _systemd._check_leaving(manager, own)
        return
    with pytest.raises(NotOffered, match=rf"{file} {value}, from which a scope would escape"):
        _systemd._check_leaving(manager, own)


def test_a_limit_that_can_not_be_read_may_be_one(tmp_path: Path) -> None:
    own = "/u.slice/session-1.scope"
    tmp_path.joinpath(f"{own[1:]}/memory.max").mkdir(parents=True)
    manager = Manager("", "/u.slice/user@7.service", CgroupMount(2, frozenset(), str(tmp_path), "/", False))
    with pytest.raises(NotOffered, match=r"can't be known: .*/session-1.scope/memory.max: Is a directory"):
        _systemd._check_leaving(manager, own)


@pytest.mark.parametrize(
    ("own", "free"),
    [
        ("/u.slice/pytest-cgroup-1-2.scope", True),
        ("/u.slice/pytest-cgroup-1-2.scope/pytest-cgroup-1-2/main", False),
        ("/u.slice/term.scope/pytest-cgroup-1-2/1-test", False),
    ],
)
def test_no_container_of_ours_is_left(own: str, free: bool) -> None:
    manager = Manager("", "/u.slice/user@7.service", CgroupMount(2, frozenset(), "/nowhere", "/", False))
    if free:
        _systemd._check_leaving(manager, own)
        return
    with pytest.raises(NotOffered, match="stays there"):
        _systemd._check_leaving(manager, own)
