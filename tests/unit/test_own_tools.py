"""The tests' own tools: the check for leftovers finds them, and the ordinary user is one."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import leftovers
from tests.as_user import OrdinaryUser

WAIT_FOR_END_OF_FILE = "import os, sys; os.setsid(); os.write(1, b'.'); sys.stdin.read()"


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> leftovers.Watch:
    monkeypatch.setattr(leftovers, "PATIENCE_SECONDS", 0.2)
    return leftovers.Watch()


def test_nothing_is_found_where_nothing_is_left(watch: leftovers.Watch) -> None:
    subprocess.run([sys.executable, "-c", ""], check=True)
    assert watch.finish() == []


def test_a_child_is_found_and_killed(watch: leftovers.Watch) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        (line,) = watch.finish()
        assert f"process {child.pid} " in line
        assert child.wait() == -signal.SIGKILL


@contextlib.contextmanager
def orphan(env: dict[str, str] | None) -> Iterator[None]:
    """A process that nobody is the parent of; forked only where *env* is None, else executed with it."""
    said, ready = os.pipe()
    silence, end = os.pipe()
    if (child := os.fork()) == 0:
        os.setsid()
        if os.fork() == 0:
            if env is not None:
                os.dup2(silence, 0)
                os.dup2(ready, 1)
                os.execve(sys.executable, [sys.executable, "-c", WAIT_FOR_END_OF_FILE], env)
            os.close(end)
            os.write(ready, b".")
            os.read(silence, 1)
        os._exit(0)
    os.waitpid(child, 0)
    os.close(ready)
    os.close(silence)
    assert os.read(said, 1) == b"."
    try:
        yield
    finally:
        os.close(end)
        os.close(said)


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
@pytest.mark.parametrize("execs", [True, False])
def test_an_orphan_is_found(watch: leftovers.Watch, execs: bool) -> None:
    with orphan(dict(os.environ) if execs else None):
        (line,) = watch.finish()
    assert line.startswith("process ")


def test_a_cgroup_is_found(tmp_path: Path, watch: leftovers.Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    # The naming rule is what is checked; a real cgroup that stays behind would be this test's own leftover.
    owned = f"pytest-cgroup-{os.getpid()}-{Path('/proc/self/stat').read_text().rpartition(')')[2].split()[19]}-0badcafe"
    unowned = ["pytest-cgroup-1-1", f"pytest-cgroup-{os.getpid()}-1", "pytest-cgroup-x", f"{owned}-2"]
    monkeypatch.setattr(leftovers, "_cgroups", lambda: [f"/cg/{name}" for name in [owned, *unowned]])
    assert watch.finish() == sorted(f"cgroup /cg/{name}" for name in unowned)


def test_an_ordinary_user_has_nothing_of_roots(unprivileged: OrdinaryUser) -> None:
    code = (
        "import os, re; status = open('/proc/self/status').read();"
        "print(os.getresuid(), os.getresgid(), os.getgroups(), re.findall(r'Cap(?:Prm|Eff|Amb):\\s*(\\w+)', status))"
    )
    run = unprivileged.run([unprivileged.python, "-c", code])
    uid, gid = unprivileged.uid, unprivileged.gid
    groups = [] if os.geteuid() == 0 else os.getgroups()
    assert run.stdout.strip() == f"{(uid,) * 3} {(gid,) * 3} {groups} {['0' * 16] * 3}", run.stderr
    assert uid != 0


def test_an_ordinary_user_can_import_what_is_tested(unprivileged: OrdinaryUser) -> None:
    run = unprivileged.run([unprivileged.python, "-c", "import pytest, psutil, pytest_cgroup"])
    assert (run.returncode, run.stderr) == (0, "")
