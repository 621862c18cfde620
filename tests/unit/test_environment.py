"""Where we are, recognised on literal machines; and the remedy that fits each of them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from pytest_cgroup import _remedies
from pytest_cgroup._environment import Environment, recognise

ROOT_MOUNT = "27 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n"
OVERLAY = "27 1 0:50 / / rw,relatime - overlay overlay rw,lowerdir=/var/lib/docker/overlay2/l/A,upperdir=/u\n"
PROC = "22 27 0:21 / /proc rw,nosuid,nodev,noexec,relatime - proc proc rw\n"
DOCKER_HOSTS = "40 27 254:0 /var/lib/docker/containers/0a1b/hosts /etc/hosts rw,relatime - ext4 /dev/vda rw\n"
POD_HOSTS = "40 27 254:0 /var/lib/kubelet/pods/6e/etc-hosts /etc/hosts rw,relatime - ext4 /dev/vda rw\n"
PODMAN = "27 1 0:50 / / rw - overlay overlay rw,lowerdir=/home/u/.local/share/containers/storage/overlay/l/A\n"
LXCFS = "90 22 0:60 /proc/meminfo /proc/meminfo rw,nosuid,nodev - fuse.lxcfs lxcfs rw,user_id=0\n"
DOCKERS_HOST = "50 27 0:70 / /var/lib/docker/overlay2/ab/merged rw - overlay overlay rw,lowerdir=/var/lib/docker/l\n"
GLIBC_MAPS = "7f00-7f01 r-xp 00000000 fe:00 131 /usr/lib/x86_64-linux-gnu/libc.so.6\n"
MUSL_MAPS = "7f00-7f01 r-xp 00000000 fe:00 131                 /lib/ld-musl-x86_64.so.1\n"
USER = "/user.slice/user-1000.slice/user@1000.service"
SESSION = "/user.slice/user-1000.slice/session-3.scope"

SYSTEMD = {"run/systemd/system/.keep": "", "usr/lib/x86_64-linux-gnu/systemd/libsystemd-shared-252.so": ""}


def status(uid: int = 1000, seccomp: int = 0) -> str:
    return f"Name:\tpython3\nUid:\t{uid}\t{uid}\t{uid}\t{uid}\nGid:\t0\t0\t0\t0\nNoNewPrivs:\t0\nSeccomp:\t{seccomp}\n"


class Machine:
    """A machine as a directory; a plain one unless *files* say otherwise."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def recognise(self, files: dict[str, str], **environ: str) -> Environment:
        plain = {
            "proc/self/mountinfo": ROOT_MOUNT + PROC,
            "proc/self/status": status(),
            "proc/self/cgroup": "0::/\n",
            "proc/self/maps": GLIBC_MAPS,
            "proc/sys/kernel/osrelease": "6.12.1\n",
            "proc/thread-self/children": "",
            "etc/os-release": 'NAME="Debian"\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n',
        }
        for name, text in {**plain, **files}.items():
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        if not (first := self.root / "proc/1/root").is_symlink():
            first.parent.mkdir(parents=True, exist_ok=True)
            first.symlink_to(self.root)
        return recognise(str(self.root), environ, "linux")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_a_plain_machine(machine: Machine) -> None:
    expected = Environment(
        kernel="6.12.1", distribution="Debian GNU/Linux 12 (bookworm)", libc="glibc", uid=1000, system="linux"
    )
    assert machine.recognise({}) == expected
    assert expected.describe() == "no systemd, Debian GNU/Linux 12 (bookworm), Linux 6.12.1, uid 1000"


def test_an_empty_machine(tmp_path: Path) -> None:
    """Nothing is there, and nothing fails."""
    found = recognise(str(tmp_path), {}, "linux")
    assert found == Environment(proc=("/proc is not mounted: processes can be neither found nor named",))


def test_this_machine_is_recognised_as_what_the_kernel_says_it_is() -> None:
    found = recognise()
    assert (found.uid, found.kernel) == (os.geteuid(), os.uname().release)
    assert found.libc in ("glibc", "musl")
    json.dumps(found.to_json())


@pytest.mark.parametrize(
    ("files", "environ", "expected"),
    [
        ({".dockerenv": "", "proc/self/mountinfo": OVERLAY + PROC + DOCKER_HOSTS}, {}, "docker"),
        ({"proc/self/mountinfo": OVERLAY + PROC}, {}, "docker"),
        ({"proc/self/mountinfo": ROOT_MOUNT + PROC + DOCKER_HOSTS}, {}, "docker"),
        ({"run/.containerenv": 'engine="podman-5.4"\n'}, {}, "podman"),
        ({"run/.containerenv": ""}, {}, "podman"),
        ({"proc/self/mountinfo": PODMAN + PROC}, {}, "podman"),
        ({"run/systemd/container": "podman\n"}, {}, "podman"),
        ({}, {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, "kubernetes"),
        ({"var/run/secrets/kubernetes.io/serviceaccount/token": "x"}, {}, "kubernetes"),
        (
            {"proc/self/mountinfo": OVERLAY + POD_HOSTS, ".dockerenv": ""},
            {"KUBERNETES_SERVICE_HOST": "x"},
            "kubernetes",
        ),
        ({"proc/self/mountinfo": ROOT_MOUNT + POD_HOSTS}, {}, "kubernetes"),
        ({"run/systemd/container": "lxc"}, {}, "lxc"),
        ({"proc/1/environ": "PATH=/bin\0container=lxc\0"}, {}, "lxc"),
        ({"proc/self/mountinfo": ROOT_MOUNT + LXCFS}, {}, "lxc"),
        ({}, {"container": "systemd-nspawn"}, "nspawn"),
        ({}, {"container": "flatpak"}, "container"),
        # what is none
        ({".dockerenv": ""}, {}, None),
        ({"proc/self/mountinfo": ROOT_MOUNT + PROC + DOCKERS_HOST}, {}, None),
        ({"run/systemd/container": "wsl"}, {}, None),
    ],
)
def test_containers(machine: Machine, files: dict[str, str], environ: dict[str, str], expected: str | None) -> None:
    assert machine.recognise(files, **environ).container == expected


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"GITHUB_ACTIONS": "true", "CI": "true"}, "github"),
        ({"GITLAB_CI": "true", "CI": "true"}, "gitlab"),
        ({"JENKINS_URL": "https://ci.example/"}, "jenkins"),
        ({"CI": "1"}, "other"),
        ({"CI": "false"}, None),
        ({"CI": ""}, None),
    ],
)
def test_ci(machine: Machine, environ: dict[str, str], expected: str | None) -> None:
    assert machine.recognise({}, **environ).ci == expected
    assert recognise("/nowhere", environ, "darwin").ci == expected


@pytest.mark.parametrize(
    ("cgroup", "session", "unit"),
    [
        (f"0::{USER}/app.slice/vte-spawn-1.scope", "user-scope", "vte-spawn-1.scope"),
        (f"0::{USER}/app.slice/run-r1.scope/pytest-cgroup-8-9/main", "user-scope", "run-r1.scope"),
        (f"0::{USER}/app.slice/code.service", "user-service", "code.service"),
        (f"0::{USER}", "service", "user@1000.service"),
        (f"0::{SESSION}", "login", "session-3.scope"),
        ("0::/user.slice/user-0.slice/session-c2.scope", "login", "session-c2.scope"),
        ("0::/system.slice/run-u7.scope", "scope", "run-u7.scope"),
        ("0::/system.slice/actions.runner.service", "service", "actions.runner.service"),
        ("0::/", None, None),
        ("", None, None),
        # hybrid and v1: systemd's own hierarchy knows
        (f"9:name=systemd:{SESSION}\n4:memory:/user.slice\n0::/", "login", "session-3.scope"),
        (f"4:memory:/\n1:name=systemd:{USER}/app.slice/a.scope", "user-scope", "a.scope"),
    ],
)
def test_sessions(machine: Machine, cgroup: str, session: str | None, unit: str | None) -> None:
    found = machine.recognise({**SYSTEMD, "proc/self/cgroup": cgroup + "\n"})
    assert (found.session, found.unit) == (session, unit)


def test_without_systemd_a_cgroup_of_that_name_says_nothing(machine: Machine) -> None:
    """As in a container that shares the host's cgroup namespace."""
    found = machine.recognise({"proc/self/cgroup": f"0::{SESSION}\n"})
    assert (found.systemd, found.session, found.unit) == (False, None, None)


@pytest.mark.parametrize(
    ("library", "version"),
    [
        ("usr/lib/x86_64-linux-gnu/systemd/libsystemd-shared-252.so", 252),
        ("usr/lib/systemd/libsystemd-shared-255.4-1.fc40.so", 255),
        ("lib/systemd/libsystemd-shared-249.so", 249),
        ("usr/lib/systemd/systemd", None),
    ],
)
def test_systemd_version(machine: Machine, library: str, version: int | None) -> None:
    found = machine.recognise({"run/systemd/system/.keep": "", library: ""})
    assert (found.systemd, found.systemd_version) == (True, version)
    assert (f"systemd {version}" if version else "systemd,") in found.describe()


def test_systemd_that_is_installed_and_not_run(machine: Machine) -> None:
    assert not machine.recognise({"usr/lib/systemd/libsystemd-shared-255.so": ""}).systemd


def test_ssh_and_the_users_bus(machine: Machine) -> None:
    files = {**SYSTEMD, "proc/self/cgroup": f"0::{SESSION}\n", "run/user/1000/bus": ""}
    found = machine.recognise(files, SSH_CONNECTION="10.0.0.2 5000 10.0.0.1 22")
    assert (found.ssh, found.user_bus) == (True, True)
    assert "systemd 252, ssh login session session-3.scope, " in found.describe()
    (machine.root / "run/user/1000/bus").unlink()
    assert not machine.recognise(SYSTEMD).user_bus


@pytest.mark.parametrize(
    ("release", "wsl"),
    [("5.15.167.4-microsoft-standard-WSL2", 2), ("4.4.0-19041-Microsoft", 1), ("6.8.0-azure", None)],
)
def test_wsl(machine: Machine, release: str, wsl: int | None) -> None:
    found = machine.recognise({"proc/sys/kernel/osrelease": f"{release}\n"})
    assert found.wsl == wsl
    assert (f"WSL{wsl}" in found.describe()) is (wsl is not None)


def test_musl_is_what_is_loaded_not_what_is_installed(machine: Machine) -> None:
    alpine = {"etc/os-release": 'PRETTY_NAME="Alpine Linux v3.20"\n', "proc/self/maps": MUSL_MAPS}
    assert machine.recognise(alpine).describe() == "no systemd, Alpine Linux v3.20, musl, Linux 6.12.1, uid 1000"
    another = {"proc/self/maps": MUSL_MAPS.replace("/lib/ld-musl-x86_64.so.1", "/usr/lib/x86_64-linux-musl/libc.so")}
    assert machine.recognise(another).libc == "musl"
    installed = {"lib/ld-musl-x86_64.so.1": "", "proc/self/maps": GLIBC_MAPS}
    assert machine.recognise(installed).libc == "glibc"
    assert machine.recognise({"proc/self/maps": ""}).libc is None


def test_chroot(machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> None:
    (machine.root / "proc/1").mkdir(parents=True)
    (machine.root / "proc/1/root").symlink_to(tmp_path_factory.mktemp("outside"))
    assert machine.recognise({}).chroot
    assert not machine.recognise({"run/.containerenv": ""}).chroot, "a container has another root, too"


def test_chroot_that_may_not_look_outside(machine: Machine) -> None:
    (machine.root / "proc/1").mkdir(parents=True)
    (machine.root / "proc/1/root").symlink_to("/no such place")
    assert not machine.recognise({}).chroot
    assert machine.recognise({"proc/self/mountinfo": PROC}).chroot, "nothing is mounted on what is / here"


@pytest.mark.parametrize(
    ("mounts", "said"),
    [
        ("22 27 0:21 / /proc rw - proc proc rw,hidepid=invisible", "hidepid=invisible"),
        ("22 27 0:21 / /proc rw - proc proc rw,hidepid=2", "hidepid=2"),
        ("22 27 0:21 / /proc rw - proc proc rw,subset=pid", "subset=pid"),
        (f"{PROC}23 22 0:21 /sys /proc/sys ro,relatime - proc proc rw", "/proc/sys is read-only"),
        (f"{PROC}23 22 0:6 /null /proc/kcore rw - tmpfs tmpfs rw", "mounted over (/proc/kcore)"),
    ],
)
def test_proc(machine: Machine, mounts: str, said: str) -> None:
    (found, *_) = machine.recognise({"proc/self/mountinfo": f"{ROOT_MOUNT}{mounts}\n"}).proc
    assert said in found


def test_proc_without_children(machine: Machine) -> None:
    assert machine.recognise({}).proc == ()
    (machine.root / "proc/thread-self/children").rename(machine.root / "proc/elsewhere")
    (found,) = recognise(str(machine.root), {}, "linux").proc
    assert "the whole process table is read" in found


def test_elsewhere() -> None:
    assert recognise("/", {}, "darwin") == Environment(system="darwin")
    assert recognise("/", {}, "win32").describe() == "Windows"


# the remedy that fits

EROFS = "cannot make a cgroup (mkdir /sys/fs/cgroup/x): Read-only file system [EROFS]"
EACCES = "cannot make a cgroup (mkdir /sys/fs/cgroup/x): Permission denied [EACCES]"
ON_SYSTEMD: dict[str, Any] = {"systemd": True, "uid": 1000}


@pytest.mark.parametrize(
    ("where", "reason", "said"),
    [
        ({"container": "docker"}, EROFS, "`docker run --security-opt writable-cgroups=true`"),
        ({"container": "docker", "uid": 1000}, EACCES, "as root in the container"),
        (
            {"container": "docker", "ci": "github"},
            EROFS,
            "`container: {options: --security-opt writable-cgroups=true}`",
        ),
        ({"container": "docker", "ci": "gitlab"}, EROFS, '`security_opt = ["writable-cgroups=true"]`'),
        ({"container": "docker", "ci": "jenkins"}, EROFS, "args '--security-opt writable-cgroups=true'"),
        ({"container": "podman"}, EROFS, "`podman run --security-opt unmask=/sys/fs/cgroup`"),
        ({"container": "containerd"}, EROFS, "nerdctl run --security-opt writable-cgroups=true"),
        ({"container": "kubernetes", "ci": "gitlab"}, EROFS, 'cgroup2-mount-hierarchy-rw: "true"`'),
        ({"container": "kubernetes"}, EROFS, "`cgroup_writable = true`"),
        ({"container": "lxc"}, EROFS, "security.nesting=true"),
        ({"container": "nspawn"}, EROFS, "systemd-nspawn --boot"),
        ({"container": "container"}, EROFS, "mount /sys/fs/cgroup writable"),
        ({"chroot": True}, "no cgroup hierarchy is mounted here", "mount --rbind /sys/fs/cgroup"),
        ({"wsl": 1}, EACCES, "--set-version"),
        ({"wsl": 2, "uid": 1000}, EACCES, "systemd=true"),
        ({"uid": 0}, EROFS, "mount -o remount,rw"),
        ({"uid": 0}, "no cgroup hierarchy is mounted here", "`mount -t cgroup2 cgroup2 /sys/fs/cgroup`"),
        ({"uid": 1000}, EACCES, "run pytest as root"),
        ({**ON_SYSTEMD, "session": "service", "unit": "a.service"}, EROFS, "ProtectControlGroups=no"),
    ],
)
def test_the_way_to_a_cgroup(where: dict[str, Any], reason: str, said: str) -> None:
    remedy = _remedies.for_cgroup(Environment(**where), reason)
    assert remedy is not None
    assert said in remedy
    assert "\n" not in remedy


def test_a_particular_remedy_is_kept_outside_of_containers() -> None:
    assert _remedies.for_cgroup(Environment(**ON_SYSTEMD), EACCES) is None
    assert _remedies.for_cgroup(Environment(container="docker"), EROFS) is not None


@pytest.mark.parametrize(
    ("where", "masked_proc", "said"),
    [
        ({"container": "docker", "seccomp": True}, False, "--security-opt seccomp=unconfined`, or with a profile"),
        ({"container": "docker"}, True, "--security-opt systempaths=unconfined"),
        ({"container": "docker", "ci": "gitlab"}, True, '["seccomp=unconfined", "systempaths=unconfined"]'),
        ({"container": "podman"}, True, "unmask=ALL"),
        ({"container": "podman", "seccomp": True}, False, "seccomp=unconfined"),
        ({"container": "kubernetes", "seccomp": True}, False, "hostUsers: false"),
        ({"container": "lxc", "seccomp": True}, False, "security.nesting"),
        ({"chroot": True}, False, "pivot_root"),
        ({"container": "docker"}, False, None),
        ({"seccomp": True}, False, None),
        ({}, True, None),
    ],
)
def test_the_way_to_namespaces(where: dict[str, Any], masked_proc: bool, said: str | None) -> None:
    remedy = _remedies.for_namespaces(Environment(**where), masked_proc=masked_proc)
    assert (remedy is None) if said is None else (remedy is not None and said in remedy)
