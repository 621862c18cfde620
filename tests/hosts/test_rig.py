"""The rig's own logic; and, marked ``hosts``, one guest that boots and one that must not outlive its rig."""

from __future__ import annotations

import io
import os
import select
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from .__main__ import TREE, has_panicked, pytest_command, split
from .packages import requirements
from .rig import debian, guest, image, job, kernels, settings, tools
from .table import HOSTS
from .verdict import NOT_CHECKED, Counts, Verdict, aligned, exit_status

RIG = (sys.executable, "-m", "tests.hosts.rig")
ONE_LINE = "deb-src http://no.example/debian x main\ndeb [signed-by=/k] https://deb.example/debian/ bookworm main\n"
DEB822 = "Types: deb\nURIs: http://deb.example/debian\nSuites: bookworm\n"


# What is asked for


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"kernel": "uml-7.2", "cgroup": "v1"}, "needs the kernel uml-6.1"),
        ({"place": "session"}, "needs systemd"),
        ({"place": "terminal"}, "needs systemd"),
        ({"init": "systemd", "place": "root"}, "systemd keeps the root cgroup"),
        ({"kernel": "uml-6.1", "suite": "trixie", "init": "systemd", "cgroup": "hybrid"}, "no longer starts"),
        ({"init": "systemd", "place": "podman"}, "needs the suite trixie"),
        ({"init": "systemd", "place": "podman-writable", "suite": "trixie"}, "the user tester"),
        ({"init": "systemd", "place": "docker", "suite": "trixie", "user": "tester"}, "the user root"),
        ({"suite": "trixie", "user": "tester", "place": "podman"}, "needs systemd"),
        ({"user": "nobody"}, "must be one of root, tester"),
    ],
)
def test_settings_that_cannot_work_are_refused(wrong: dict[str, str], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        settings.Settings(**wrong)  # type: ignore[arg-type]


def test_the_boot_words_choose_init_and_cgroup_mode() -> None:
    assert settings.Settings(kernel="uml-6.1", cgroup="hybrid").boot_words[1] == "guest.cgroup=hybrid"
    words = settings.Settings(init="systemd").boot_words
    assert words[0] == "init=/sbin/init"
    assert "systemd.unified_cgroup_hierarchy=1" in words


def test_the_kernel_never_writes_to_the_image_or_the_job(tmp_path: Path) -> None:
    words = guest.kernel_arguments(settings.Settings(kernel="uml-7.2"), Path("/image"), tmp_path)
    assert f"ubd0={tmp_path}/changes,/image" in words
    assert f"ubd1r={tmp_path}/job" in words
    assert "seccomp=on" in words


def test_the_hosts_cover_what_the_project_promises() -> None:
    chosen = [host.settings for host in HOSTS.values()]
    assert {host.cgroup for host in chosen} == {"v2", "v1", "hybrid"}
    assert {host.kernel for host in chosen} == set(settings.KERNEL_SUITES)
    assert {host.python for host in chosen} == {"3.11", "3.13"}
    assert {host.place for host in chosen} == {*get_args(settings.Place)} - {"root"}
    assert 2 <= sum(host.fast for host in HOSTS.values()) <= 3


# The job


def test_the_command_arrives_word_for_word(tmp_path: Path) -> None:
    """The script is run here as it will be there."""
    words = ["two words", "quote'", "$HOME", "new\nline", ""]
    asked = job.Job(
        command=[sys.executable, "-c", "import os, sys; print(sys.argv[1:], os.environ['ODD'], os.getcwd())", *words],
        directory=str(tmp_path),
        environment={"ODD": "a 'b' $c"},
    )
    script = tmp_path / "command"
    script.write_text(job.command_script(asked, settings.Settings()))
    run = subprocess.run(["sh", script], check=True, stdout=subprocess.PIPE, text=True)
    assert run.stdout.strip() == f"{words} a 'b' $c {tmp_path}"


def test_a_missing_directory_is_no_success(tmp_path: Path) -> None:
    script = job.command_script(job.Job(command=["true"], directory=str(tmp_path / "none")), settings.Settings())
    assert subprocess.run(["sh", "-c", script], stderr=subprocess.DEVNULL).returncode == 126


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (settings.Settings(place="root"), "exec /run/guest/command\n"),
        (
            settings.Settings(user="tester"),
            "exec setpriv --reuid=1000 --regid=1000 --clear-groups -- /run/guest/command\n",
        ),
        (
            settings.Settings(init="systemd"),
            "exec systemd-run --quiet --scope -p Delegate=yes /run/guest/command\n",
        ),
        (
            settings.Settings(init="systemd", user="tester"),
            "-- systemd-run --user --quiet --scope -p Delegate=yes /run/guest/command\n",
        ),
        (
            settings.Settings(init="systemd", user="tester", place="terminal"),
            "-- systemd-run --user --quiet --scope sh -c '/run/guest/command; exit $?'\n",
        ),
        (
            settings.Settings(init="systemd", user="tester", place="session"),
            "exec su -l tester -c /run/guest/command\n",
        ),
    ],
)
def test_the_command_is_put_in_its_place(where: settings.Settings, expected: str) -> None:
    assert job.place_script(where).endswith(expected)


def test_a_container_has_writable_cgroups_only_where_that_is_asked_for() -> None:
    for place, writable in (("podman", False), ("podman-writable", True)):
        where = settings.Settings(suite="trixie", init="systemd", user="tester", place=place)  # type: ignore[arg-type]
        script = job.place_script(where)
        assert script.endswith("--rootfs /var/container /run/guest/command\n")
        assert ("unmask=/sys/fs/cgroup" in script) is writable


def test_docker_is_at_its_default_or_privileged_or_unconfined() -> None:
    for place, privileged in (("docker", False), ("docker-privileged", True), ("docker-unconfined", False)):
        where = settings.Settings(suite="trixie", init="systemd", place=place)  # type: ignore[arg-type]
        script = job.place_script(where)
        assert script.endswith(" guest /run/guest/command\n")
        assert ("--privileged" in script) is privileged
        assert (script.count("=unconfined") == 2) is (place == "docker-unconfined")


def test_an_image_with_an_engine_is_another_one() -> None:
    names = [image.file_name("trixie", engine) for engine in get_args(settings.Engine)]
    assert len({name.rpartition("-")[0] for name in names}) == len(names)


def test_only_a_scope_without_systemd_is_delegated_by_the_rig() -> None:
    assert "chown 1000:1000 $group\n" in job.place_script(settings.Settings(user="tester"))
    assert "chown" not in job.place_script(settings.Settings(place="root"))
    assert "chown" not in job.place_script(settings.Settings(init="systemd"))


def test_the_job_disk_holds_the_tree_and_leaves_out_what_can_be_made_again(tmp_path: Path) -> None:
    tree, disk = tmp_path / "tree", tmp_path / "disk"
    for name in ("a.py", ".git/x", "sub/__pycache__/a.pyc", "sub/b.py"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(name)
    tree.chmod(0o700)
    copies = [job.Copy(tree, "/srv/tree"), job.Copy(tree, "/usr/lib/tree", installed=True)]
    asked = job.Job(command=["true"], copies=copies)
    job.write_disk(disk, asked, settings.Settings(user="tester"), token="T")
    with tarfile.open(disk) as tar:
        found = {member.name: member for member in tar}
        conf = tar.extractfile("run/guest/job.conf")
        assert conf is not None
        assert conf.read() == b"TOKEN=T\n"
    assert {name for name in found if name.startswith("srv")} == {
        *("srv/tree", "srv/tree/a.py", "srv/tree/sub", "srv/tree/sub/b.py")
    }
    assert found["srv/tree/a.py"].uid == 1000
    assert "usr/lib/tree/sub/__pycache__/a.pyc" in found
    assert found["usr/lib/tree/a.py"].uid == 0
    assert found["usr/lib/tree"].mode & 0o777 == 0o755


# What comes back


def test_the_report_is_found_in_any_chunks_and_nothing_else_is_lost() -> None:
    stream = b"one\nTOK status=9\npartial\nTOK status=3 uptime=1.25 kernel=6.1.0\nlate"
    for size in (1, 7, len(stream)):
        out = io.BytesIO()
        lines = guest.Lines("TOK", out.write)
        for at in range(0, len(stream), size):
            lines.feed(stream[at : at + size])
        lines.finish()
        assert lines.report == guest.Report(3, 1.25, "6.1.0")
        assert out.getvalue() == b"one\nTOK status=9\npartial\nlate"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("==== 3 failed, 40 passed, 5 skipped, 2 xfailed, 1 warning in 3.21s ====", (40, 3, 5)),
        ("40 passed in 63.21s (0:01:03)", (40, 0, 0)),
        ("\x1b[32m== \x1b[1m7 passed\x1b[0m, 2 errors in 0.10s ==\x1b[0m", (7, 2, 0)),
        ("== no tests ran in 0.01s ==", (0, 0, 0)),
        ("it took 3 passes in 0.01s", (None, None, None)),
    ],
)
def test_counts(line: str, expected: tuple[int | None, ...]) -> None:
    counts = Counts()
    counts.see(b"== 99 passed in 0.01s ==" if expected[0] is not None else b"")  # printed by an inner run
    counts.see(f"{line}\n".encode())
    assert (counts.passed, counts.failed, counts.skipped) == expected


def verdict(
    status: int | None, line: str = "1 passed in 0.01s", ended: str = "exit", is_pytest: bool = True
) -> Verdict:
    counts = Counts()
    counts.see(line.encode())
    result = None
    if status is not None:
        result = guest.Result(status=status, ended=ended, seconds=1, log=Path("log"))  # type: ignore[arg-type]
    return Verdict(name="x", settings=settings.Settings(), result=result, counts=counts, is_pytest=is_pytest)


def test_no_result_is_never_a_pass() -> None:
    assert verdict(0).passed
    assert verdict(0, "", is_pytest=False).passed
    assert not verdict(1).passed
    assert not verdict(0, "").passed
    assert not verdict(0, "5 skipped in 0.01s").passed
    assert not verdict(0, "1 failed, 1 passed in 0.01s").passed
    assert not verdict(0, ended="died").passed


@pytest.mark.parametrize(
    ("ended", "log", "panicked"),
    [
        ("died", b"x\nKernel panic - not syncing: Kernel mode fault at addr 0x40e\n", True),
        ("died", b"x\n", False),
        ("exit", b"Kernel panic - not syncing: Kernel mode fault at addr 0x40e\n", False),
    ],
)
def test_a_guest_whose_kernel_fell_is_known(tmp_path: Path, ended: Any, log: bytes, panicked: bool) -> None:
    tmp_path.joinpath("log").write_bytes(log)
    assert has_panicked(guest.Result(status=125, ended=ended, seconds=1, log=tmp_path / "log")) is panicked


def test_the_exit_status_tells_failed_from_not_checked() -> None:
    assert exit_status([verdict(0), verdict(0)]) == 0
    assert exit_status([verdict(0), verdict(None)]) == NOT_CHECKED
    assert exit_status([verdict(None), verdict(4)]) == 1
    assert exit_status([]) == NOT_CHECKED


def test_the_table_is_aligned() -> None:
    assert (
        aligned(["host", "passed"], [["a", "1"], ["longer", "10"]]) == "host    passed\na            1\nlonger      10"
    )


# What is fetched and installed


@pytest.mark.parametrize("text", [ONE_LINE, DEB822])
def test_the_archive_is_the_one_of_apts_own_sources(text: str) -> None:
    assert debian.archive_in(text) in ("https://deb.example/debian", "http://deb.example/debian")
    assert debian.archive_in(text.replace("/debian", "/debian-security")) is None


def test_only_the_loaders_name_changes_in_a_kernel() -> None:
    program = b"\x7fELF" + kernels.LOADER + b"rest"
    changed = kernels.with_own_loader(program)
    assert changed == b"\x7fELF/proc/self/fd/9\0".ljust(len(program) - 4, b"\0") + b"rest"
    with pytest.raises(tools.Unavailable):
        kernels.with_own_loader(program + kernels.LOADER)


def test_requirements_follow_included_groups() -> None:
    project = {
        "project": {"dependencies": ["pytest>=8"]},
        "dependency-groups": {"tests": ["b", {"include-group": "more"}], "more": ["a", {"include-group": "tests"}]},
    }
    assert requirements(project) == ["a", "b", "pytest>=8"]


def test_arguments_after_the_dashes_are_pytests() -> None:
    assert split(["v1-root", "--", "-k", "--"]) == (["v1-root"], ["-k", "--"])
    assert pytest_command(["-k", "x"], TREE)[-5:] == ["-k", "x", "tests/unit", "tests/kernel", "tests/e2e"]
    assert pytest_command(["tests/hosts/test_rig.py::test_counts"], TREE)[-1] == "tests/hosts/test_rig.py::test_counts"


def test_a_machine_without_the_tools_says_what_to_install(tmp_path: Path) -> None:
    env = {**os.environ, "PYTEST_CGROUP_GUESTS": str(tmp_path), "PATH": str(tmp_path), "PYTHONPATH": str(TREE)}
    run = subprocess.run([*RIG, "build"], cwd=TREE, env=env, stderr=subprocess.PIPE, text=True)
    assert run.returncode == NOT_CHECKED
    assert "apt-get install --no-install-recommends" in run.stderr
    assert "mmdebstrap" in run.stderr


# Guests


@pytest.fixture
def _built() -> None:
    chosen = settings.Settings()
    try:
        guest.namespace_flags()
    except tools.Unavailable as error:
        pytest.skip(str(error))
    disk = tools.cache() / image.file_name(chosen.suite)
    stamp = tools.cache() / "kernel" / chosen.kernel / "kernel.json"
    if not (disk.exists() and stamp.exists()):
        pytest.skip(f"not in the cache; {' '.join(RIG[1:])} build --kernel {chosen.kernel}")


@pytest.mark.hosts
@pytest.mark.usefixtures("_built")
def test_a_guest_passes_on_output_and_exit_status() -> None:
    command = ["sh", "-c", "uname -r; cat /proc/self/cgroup; id -un; exit 3"]
    options = ["--kernel", settings.Settings().kernel, "--user", "tester"]
    run = subprocess.run([*RIG, "run", *options, "--", *command], cwd=TREE, stdout=subprocess.PIPE, text=True)
    assert run.returncode == 3
    release, cgroup, user = run.stdout.split()
    assert release.startswith(settings.Settings().kernel.removeprefix("uml-"))
    assert (cgroup, user) == ("0::/guest.scope", "tester")


@pytest.mark.hosts
@pytest.mark.usefixtures("_built")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_no_guest_outlives_its_rig(number: signal.Signals, tmp_path: Path) -> None:
    env = {**os.environ, "TMPDIR": str(tmp_path)}  # it stands in every word that names the guest's files
    command = [*RIG, "run", "--", "sh", "-c", "echo up; sleep 1000"]
    with subprocess.Popen(command, cwd=TREE, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as rig:
        assert rig.stdout is not None
        assert rig.stdout.readline() == b"up\n"
        guests = {pid: os.pidfd_open(pid) for pid in processes_that_name(tmp_path)}
        assert len(guests) > 1  # the namespace's shell, the kernel, and helpers of its own
        rig.send_signal(number)
        rig.wait()
    for pid, descriptor in guests.items():
        gone, _, _ = select.select([descriptor], [], [], 10)
        assert gone, f"process {pid} outlives the rig"
        os.close(descriptor)
    assert not list(processes_that_name(tmp_path))
    if number != signal.SIGKILL:
        assert not list(tmp_path.iterdir())


def processes_that_name(path: Path) -> Iterator[int]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                words = (entry / "cmdline").read_bytes()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if os.fsencode(path) in words:
                yield int(entry.name)
