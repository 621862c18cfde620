"""The same below Python's seams: strace has the kernel itself refuse or interrupt a call, in any process of a run."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.inner import Result, run
from tests.e2e.stage import cgroups_of

_SOURCE = """
@contained
def test_pass():
    subprocess.run(["true"], check=True)

@contained
def test_leak():
    subprocess.Popen(["sleep", "120"], start_new_session=True)

@contained(pid_ns=True)
def test_pid_ns():
    subprocess.run(["true"], check=True)
"""


@pytest.fixture(scope="module")
def strace() -> str:
    """Where it is, and may trace."""
    if (path := shutil.which("strace")) is None:
        pytest.skip("strace is not installed")
    done = subprocess.run([path, "-f", "-o", "/dev/null", "true"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"strace may not trace here: {done.stderr.strip()}")
    return path


# What is hidden from Python: it calls again after EINTR (the dynamic loader, which reads, does not). And what the C
# library and CPython call by themselves.
_INJECT = {
    "interrupted": ("write,poll,wait4,waitid", "error=EINTR:when=3+5"),
    "rmdir is busy": ("rmdir", "error=EBUSY:when=1..6"),
    "rmdir, once": ("rmdir", "error=ENOMEM:when=3"),
    "mkdir": ("mkdir", "error=ENOSPC:when=2+5"),
    "fork": ("clone,clone3,fork,vfork", "error=EAGAIN:when=1"),
    "pidfd": ("pidfd_open", "error=EMFILE:when=2"),
    "pidfd of everybody": ("pidfd_open", "error=ENODEV:when=1+2"),
    "pipe": ("pipe2", "error=EMFILE:when=4"),
    "namespaces": ("unshare", "error=ENOSPC:when=1"),
    "no way back from a namespace": ("setns", "error=ENOMEM:when=1"),
    "attributes": ("setxattr", "error=ENOSPC:when=1+1"),
}


@pytest.mark.requires("cgroup", "pid_ns")
@pytest.mark.parametrize("what", _INJECT)
def test_the_kernel_refuses(pytester: pytest.Pytester, strace: str, what: str) -> None:
    result, told = _injected(pytester, strace, *_INJECT[what], "--seccomp-bpf")
    assert "(INJECTED)" in told, "nothing was refused: the test says nothing"
    assert "pytest_cgroup/" not in re.sub(r"rootdir.*|plugins.*", "", result.text), result.text
    assert _judged(result.junit) == {"test_pass", "test_leak", "test_pid_ns"}, result.text
    assert "test_leak" not in _passed(result.junit), result.text
    assert cgroups_of(int(told.split()[0])) == []


@pytest.mark.requires("cgroup")
@pytest.mark.usefixtures("no_other_recovery")
def test_killed_before_it_signs_what_it_made(pytester: pytest.Pytester, strace: str) -> None:
    _, told = _injected(pytester, strace, "setxattr", "signal=KILL:when=1")  # no signal comes with --seccomp-bpf
    pid = int(told.split()[0])
    assert len(cgroups_of(pid)) == 1
    subprocess.run([sys.executable, "-m", "pytest_cgroup", "clean"], check=False, capture_output=True)
    assert cgroups_of(pid) == []


def _injected(pytester: pytest.Pytester, strace: str, calls: str, how: str, *more: str) -> tuple[Result, str]:
    """A run in which that is done to those calls, and what strace tells of them."""
    log = pytester.path / "strace.log"
    # what is refused shall be ours, and no bytecode's
    options = ("-f", "-E", "PYTHONDONTWRITEBYTECODE=1", *more, "-qq", "-o", str(log))
    prefix = (strace, *options, "-e", f"trace={calls}", "-e", f"inject={calls}:{how}")
    result = run(pytester, _SOURCE, prefix=prefix)
    return result, log.read_text(encoding="utf-8", errors="replace")


def _cases(junit: Path) -> list[tuple[str, bool]]:
    from xml.etree import ElementTree

    return [
        (case.get("name") or "?", len(case.findall("*")) > len(case.findall("properties")))
        for case in ElementTree.parse(junit).iter("testcase")
    ]


def _judged(junit: Path) -> set[str]:
    return {name for name, _ in _cases(junit)}


def _passed(junit: Path) -> set[str]:
    return {name for name, said in _cases(junit) if not said}
