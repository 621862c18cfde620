"""The doctor: what it says is so, on this host and on hosts made worse; and a run of pytest says the same."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import pytest_cgroup
from pytest_cgroup._doctor import CAPABILITIES
from pytest_cgroup._host import LIMIT_FILES, NAMESPACES, Host
from tests.as_user import OrdinaryUser
from tests.conftest import not_offered
from tests.e2e.inner import HEAD, command, run

MACHINE = Path(__file__).resolve().parents[1] / "programs" / "machine.py"
CANNOT = 77
PACKAGE_IN = str(Path(pytest_cgroup.__file__).parent.parent)
as_root = pytest.mark.requires("root", "privileged")


class Said:
    """What the doctor said, and how it ended."""

    def __init__(self, done: subprocess.CompletedProcess[str]) -> None:
        if done.returncode == CANNOT:
            not_offered("machine", done.stderr)
        assert "Traceback" not in done.stderr
        self.status = done.returncode
        self.text = done.stdout
        self.errors = done.stderr

    @property
    def verdict(self) -> str:
        """The line that the header of a run says, too; the session's own name is another in every run."""
        (line,) = [line for line in self.text.splitlines() if line.startswith("contained: ")]
        return nameless(line)

    @property
    def json(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.text)
        return found


def nameless(line: str) -> str:
    return re.sub(r"pytest-cgroup-\d+-\d+-\w+", "pytest-cgroup-PID-T", line)


def doctor(*arguments: str, machine: Sequence[str] = (), **environ: str) -> Said:
    """Ask the doctor; on another *machine* if so."""
    path = os.pathsep.join([PACKAGE_IN, os.environ.get("PYTHONPATH", "")])
    argv = [sys.executable, "-W", "error", "-m", "pytest_cgroup", "doctor", *arguments]
    done = subprocess.run(
        [*on(machine), *argv],
        env={**os.environ, "PYTHONPATH": path, **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return Said(done)


def on(machine: Sequence[str]) -> list[str]:
    return [sys.executable, str(MACHINE), *machine, "--"] if machine else []


def run_on(pytester: pytest.Pytester, source: str, *machine: str, arguments: Sequence[str] = ()) -> Any:
    """A run of pytest on that machine."""
    result = run(pytester, source, "-rs", *arguments, prefix=tuple(on(machine)))
    if result.ret == CANNOT:
        not_offered("machine", result.text)
    return result


# on this host


@pytest.fixture(scope="module")
def here() -> Said:
    return doctor()


@pytest.fixture(scope="module")
def offered() -> dict[str, bool]:
    host = Host()
    try:
        return {name: host.capability(name).offered for name in CAPABILITIES}
    finally:
        host.close()


def test_each_capability_is_told_once(here: Said, offered: dict[str, bool]) -> None:
    assert here.status == 0
    said = dict(re.findall(r"^  (\w+) +(yes|no)\b", here.text, re.MULTILINE))
    assert said == {name: "yes" if is_there else "no" for name, is_there in offered.items()}


def test_each_thing_that_is_lacking_has_a_remedy(here: Said, offered: dict[str, bool]) -> None:
    told = re.findall(r"^to have ([\w, ]+): \S", here.text, re.MULTILINE)
    assert sorted(re.findall(r"\w+", " ".join(told))) == sorted(name for name in offered if not offered[name])


def test_text_and_json_say_the_same(here: Said, offered: dict[str, bool]) -> None:
    found = doctor("--json").json
    assert found["schema"] == 1
    assert {name: told["offered"] for name, told in found["capabilities"].items()} == offered
    assert nameless(f"contained: {found['description']}") == here.verdict
    assert f"environment: {found['environment']['description']}\n" in here.text
    for told in found["capabilities"].values():
        assert (told["reason"] is None) == (told["remedy"] is None) == told["offered"]
    assert [rung["name"] for rung in found["rungs"] if rung["taken"]] == [found["rungs"][-1]["name"]]
    assert all(rung["reason"] for rung in found["rungs"][:-1])


def test_the_header_of_a_run_is_the_doctors_verdict(here: Said, pytester: pytest.Pytester) -> None:
    result = run(pytester, "@contained\ndef test_it(): pass\n")
    (line,) = [line for line in result.text.splitlines() if line.startswith("contained: ")]
    assert nameless(line) == here.verdict


def test_required_and_here(offered: dict[str, bool]) -> None:
    there = [name for name in offered if offered[name]]
    if not there:
        pytest.skip("nothing is offered here")
    said = doctor("--require", ",".join(there))
    assert said.status == 0
    assert f"required, and here: {', '.join(there)}" in said.text


def test_required_and_not_here(offered: dict[str, bool]) -> None:
    """A line for each that is missing, with the reason and the remedy; and what is there is not named."""
    said = doctor("--cgroup-backend=process", "--require=memory,pids", "--require", "user_ns")
    assert said.status == 1
    lines = re.findall(r"^required, and not here: (\w+): (.+)\. Remedy: (.+)$", said.text, re.MULTILINE)
    lacking = ["memory", "pids"] + [name for name in ("user_ns",) if not offered[name]]
    assert sorted(name for name, _, _ in lines) == sorted(lacking)
    assert ("memory", "the process backend was asked for", "use --cgroup-backend=auto") in lines
    found = doctor("--cgroup-backend=process", "--require=memory,pids", "--json")
    assert (found.status, found.json["missing"]) == (1, ["memory", "pids"])
    assert doctor("--json").json["missing"] == []


@pytest.mark.parametrize("names", ["memroy", "memory,nonsense", "memory pid-ns"])
def test_required_and_unknown(names: str) -> None:
    said = doctor(f"--require={names}")
    assert (said.status, said.text) == (2, "")
    assert re.search(r"no such thing: (memroy|nonsense|pid-ns); there are ", said.errors)
    assert all(name in said.errors for name in CAPABILITIES)


@pytest.mark.parametrize("backend", ["cgruop", ""])
def test_an_unknown_backend(backend: str) -> None:
    said = doctor(f"--cgroup-backend={backend}")
    assert said.status == 2
    assert "auto" in said.errors


def test_a_base_with_a_backend_that_has_none() -> None:
    """Refused, as pytest refuses it."""
    said = doctor("--cgroup-base=/sys/fs/cgroup", "--cgroup-backend=process")
    assert (said.status, said.text) == (2, "")
    assert "that backend makes no cgroups" in said.errors


@pytest.mark.parametrize("base", ["/nowhere", "/tmp", "no/such/cgroup"])
def test_a_base_that_is_no_cgroup(base: str) -> None:
    said = doctor(f"--cgroup-base={base}", "--require=memory")
    assert said.status == 1
    assert f"the cgroup base is not a cgroup on this host ({base})" in said.verdict


@pytest.mark.requires("cgroup", "root")
def test_a_base_of_ones_own(tmp_path: Path) -> None:
    host = Host()
    try:
        host.capability("cgroup")
        session = host.placement.session
        assert session is not None
        base = session.child("base")
        base.make()
        try:
            said = doctor(f"--cgroup-base={base.path}")
        finally:
            base.remove()
    finally:
        host.close()
    assert said.status == 0
    assert f"{base.path.rpartition('/')[2]}/pytest-cgroup-" in said.verdict


def test_whoever_reads_may_have_read_enough() -> None:
    argv = [sys.executable, "-m", "pytest_cgroup", "doctor"]
    reader, writer = os.pipe()
    os.close(reader)
    environ = {**os.environ, "PYTHONPATH": PACKAGE_IN}
    done = subprocess.run(argv, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60, check=False, env=environ)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_terminal_that_knows_ascii_only(tmp_path: Path) -> None:
    said = doctor("--cgroup-base=/nowhere/…", PYTHONIOENCODING="ascii")
    assert said.status == 1
    assert "\\u2026" in said.text


# on worse hosts


@as_root
def test_a_read_only_cgroup_file_system() -> None:
    """As in Docker, also for root."""
    said = doctor("--require=memory,pid_ns", machine=["read_only_cgroups"])
    assert said.status == 1
    assert re.match(r"contained: process table, no cgroup: .*Read-only file system \[EROFS\]", said.verdict)
    assert "to have cgroup, kill, freeze," in said.text
    assert "--security-opt writable-cgroups=true" in said.text
    assert "not enforced here: swap, memory_high, pids" in said.text
    assert re.findall(r"^required, and not here: (\w+)", said.text, re.MULTILINE) == ["memory"]


@as_root
def test_the_backend_that_was_named_is_not_had() -> None:
    said = doctor("--cgroup-backend=cgroup", machine=["read_only_cgroups"])
    assert said.status == 1
    assert said.verdict.startswith("contained: --cgroup-backend=cgroup: cannot make a cgroup")
    assert doctor("--cgroup-backend=cgroup", "--json", machine=["read_only_cgroups"]).json["backend"] is None


_LEAK = """
@contained
def test_leak(): subprocess.Popen(["sleep", "1000"], start_new_session=True)
@contained(pids=10)
def test_pids(): pass
"""


@as_root
def test_a_run_with_read_only_cgroups(pytester: pytest.Pytester) -> None:
    """The process backend takes over, names the reason in the header, and finds and kills what leaks."""
    result = run_on(pytester, _LEAK, "read_only_cgroups")
    assert result.counts == {"passed": 1, "skipped": 1, "error": 1}
    (line,) = [line for line in result.text.splitlines() if line.startswith("contained: process")]
    assert nameless(line) == doctor(machine=["read_only_cgroups"]).verdict
    assert "left behind, now killed: 1 process (sleep)" in result.text
    assert re.search(r"SKIPPED .*pids: needs a cgroup, .*\[EROFS\] \(have it mounted writable", result.text)


@as_root
@pytest.mark.parametrize(
    ("machine", "note"),
    [
        ("masked_proc", "/proc/sys is read-only"),
        ("masked_proc", "parts of /proc are mounted over (/proc/interrupts, /proc/sys)"),
        ("proc=hidepid=invisible", "hidepid=invisible"),
        ("proc=subset=pid", "subset=pid"),
    ],
)
def test_a_masked_proc_is_noted(machine: str, note: str) -> None:
    said = doctor(machine=[machine])
    assert said.status == 0
    assert re.search(f"^note: .*{re.escape(note)}", said.text, re.MULTILINE)
    assert not re.search(f"^note: .*{re.escape(note)}", doctor().text, re.MULTILINE)


@as_root
@pytest.mark.parametrize("backend", ["auto", "process"])
@pytest.mark.parametrize("machine", ["masked_proc", "proc=hidepid=invisible", "proc=subset=pid"])
def test_a_leak_under_a_masked_proc(pytester: pytest.Pytester, machine: str, backend: str) -> None:
    result = run_on(pytester, _LEAK, machine, arguments=[f"--cgroup-backend={backend}"])
    assert result.counts["error"] == 1
    assert "left behind, now killed: 1 process (sleep)" in result.text


@as_root
@pytest.mark.parametrize("machine", ["masked_proc", "proc=hidepid=invisible", "proc=subset=pid"])
def test_a_users_leak_under_a_masked_proc(machine: str, unprivileged: OrdinaryUser) -> None:
    directory = unprivileged.home / machine
    directory.mkdir(exist_ok=True)
    directory.joinpath("test_it.py").write_text(HEAD + _LEAK)
    argv = [*on([machine, f"user={unprivileged.uid}"]), *command(["-rs", "test_it.py"], python=unprivileged.python)]
    environ = {**unprivileged.environment, "PYTHONPATH": PACKAGE_IN}
    done = subprocess.run(argv, cwd=directory, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert "left behind, now killed: 1 process (sleep)" in done.stdout, done.stdout + done.stderr


@as_root
def test_no_proc_at_all(pytester: pytest.Pytester) -> None:
    said = doctor("--require=user_ns", machine=["no_proc"])
    assert said.status == 1
    assert said.verdict.startswith("contained: nothing can be contained: /proc is not mounted here. mount it: ")
    assert "required, and not here: user_ns: /proc is not mounted here. Remedy: mount it: " in said.text
    result = run_on(pytester, "@contained\ndef test_it(): pass\n", "no_proc")
    assert result.counts == {"error": 1}
    assert "nothing can be contained: /proc is not mounted here" in result.blocks["ERROR at setup of test_it"]


@as_root
def test_a_chroot() -> None:
    """It is told; and what the kernel forbids there, user namespaces, is no fault of a sysctl."""
    found = doctor("--json", machine=["chroot"]).json
    assert found["environment"]["chroot"] is True
    assert not doctor("--json").json["environment"]["chroot"]
    user_ns = found["capabilities"]["user_ns"]
    assert not user_ns["offered"]
    assert "pivot_root" in user_ns["remedy"]


def as_ordinary(unprivileged: OrdinaryUser, machine: Sequence[str], *arguments: str) -> Said:
    python = unprivileged.python
    argv = [python, "-m", "pytest_cgroup", "doctor", *arguments]
    program = unprivileged.home / "machine.py"
    program.write_text(MACHINE.read_text())
    return Said(unprivileged.run([python, str(program), *machine, "--", *argv] if machine else argv))


@pytest.mark.requires("pid_ns")
def test_user_namespaces_that_are_used_up(unprivileged: OrdinaryUser) -> None:
    """The sysctl is set in a user namespace of the test's own, and nowhere else."""
    sysctl = Path("/proc/sys/user/max_user_namespaces")
    before = sysctl.read_text()
    if as_ordinary(unprivileged, [], "--require=user_ns,pid_ns").status != 0:
        not_offered("user_ns", "an ordinary user gets no user namespace here to try this in")
    said = as_ordinary(unprivileged, ["no_user_namespaces"], "--require=user_ns,pid_ns")
    assert said.status == 1
    assert "to have user_ns, pid_ns, net_ns, " in said.text
    assert "Allow more: sysctl user.max_user_namespaces is 0" in said.text
    assert len(re.findall(r"^required, and not here: ", said.text, re.MULTILINE)) == 2
    assert sysctl.read_text() == before


def test_user_namespaces_that_a_filter_forbids(unprivileged: OrdinaryUser) -> None:
    said = as_ordinary(unprivileged, ["no_unshare"], "--json", "--require=user_ns")
    assert (said.status, said.json["missing"]) == (1, ["user_ns"])
    assert said.json["environment"]["seccomp"] is True
    user_ns = said.json["capabilities"]["user_ns"]
    assert user_ns["reason"].endswith("Operation not permitted [EPERM]")
    assert "seccomp" in user_ns["remedy"] or "sysctl" in user_ns["remedy"]


@as_root
def test_root_whom_a_filter_forbids_everything(pytester: pytest.Pytester) -> None:
    """As in Docker without --privileged; limits are not its business."""
    found = doctor("--json", machine=["no_unshare"]).json
    assert not [name for name in (*NAMESPACES, "user_ns", "privileged") if found["capabilities"][name]["offered"]]
    plain = doctor("--json").json
    assert all(found["capabilities"][name] == plain["capabilities"][name] for name in LIMIT_FILES)
    result = run_on(pytester, "@contained(pid_ns=True)\ndef test_it(): pass\n", "no_unshare")
    assert result.counts == {"skipped": 1}
    assert "pid_ns: no user namespace to be had (unshare user): Operation not permitted [EPERM] (" in result.text


_NO_CHILDREN_FILES = """
import re
from pytest_cgroup._isolated import io, os
real_open, real_exists = io.open, os.path.exists
def is_hidden(path):
    hidden = isinstance(path, str) and re.fullmatch("/proc/.*/children", path)
    if hidden:
        real_open("hidden.ran", "w").close()
    return hidden
def open_(path, *more, **options):
    if is_hidden(path):
        raise FileNotFoundError(2, "hidden", path)
    return real_open(path, *more, **options)
io.open = open_
os.path.exists = lambda path: not is_hidden(path) and real_exists(path)
"""


def test_a_kernel_without_children_files(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(_NO_CHILDREN_FILES)
    result = run(pytester, _LEAK, "--cgroup-backend=process")
    assert pytester.path.joinpath("hidden.ran").exists(), "the control"
    assert result.counts == {"passed": 1, "skipped": 1, "error": 1}
    assert "left behind, now killed: 1 process (sleep)" in result.text
