"""A scope of pytest's own, asked of systemd: the way to limits from a terminal, an ssh login or a plain service.

Theory of operation. In a terminal the shell shares pytest's cgroup, so no controller can be enabled in it; the cgroup
of an ssh session is not the user's to write. The user's systemd manager (for root the system's) may make a transient
scope of a process that runs already: StartTransientUnit with ``PIDs=`` our own pid alone and ``Delegate=yes``
(org.freedesktop.systemd1(5), systemd.scope(5)). The scope ends by itself with its last process.

The call is made by busctl(1). It comes with systemd, so it is there where it can be of use; a D-Bus library would be
one more dependency for one call a session; `systemd-run --scope` can't take a process that runs already.

A pid is a number in one pid namespace, and the manager would move whoever has that number in *its* namespace. So it is
asked only where the kernel says that we share it: SO_PEERCRED of the manager's own socket (unix(7)) is its pid as we
see it, 0 from outside.

A scope is an escape from the cgroup that pytest was started in. So pytest stays in the slice, whose limits go on
holding; where what it would leave has limits, it is not left; and a pytest inside a contained test stays inside.
"""

from __future__ import annotations

import itertools
import shutil
import struct
from dataclasses import dataclass

from ._cgroup import PREFIX
from ._isolated import os, socket, subprocess, time
from ._kernel_files import read_file, read_words, words
from ._kernel_text import CgroupMount, membership, own_directory
from ._process import ProcessId, status_fields
from .exceptions import NotOffered

TIMEOUT_SECONDS = 10.0
_BUS_NAME = "org.freedesktop.systemd1"
_OBJECT = "/org/freedesktop/systemd1"
_INFINITY = str(2**64 - 1)
_LIMITS = ("memory.max", "memory.high", "memory.swap.max", "cpu.max")
_BY_HAND = "start pytest by `systemd-run {}--scope -p Delegate=yes pytest`"
_number = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Manager:
    """A running systemd that takes our orders.

    Attributes:
        address: of its bus.
        root: the cgroup below which it makes its units, as in /proc/PID/cgroup.
        mount: where that is seen.
    """

    address: str
    root: str
    mount: CgroupMount

    @property
    def controllers(self) -> frozenset[str]:
        """What it can give to a scope."""
        return frozenset(words(f"{own_directory(self.mount, self.root)}/cgroup.controllers"))


def find_manager(mount: CgroupMount) -> Manager:
    """The user's manager; for root the system's, which has every controller to give.

    Raises:
        NotOffered: there is none, or none that would know us by our pid.
    """
    if not os.path.isdir("/run/systemd/system"):  # sd_booted(3)
        raise NotOffered("systemd does not run here", remedy="start pytest in a writable cgroup that it has for itself")
    uid = os.geteuid()
    runtime = f"/run/user/{uid}"  # XDG_RUNTIME_DIR, which su and cron do not set, or leave as another user's
    private, bus, remedy = (
        (f"{runtime}/systemd/private", f"{runtime}/bus", f"`loginctl enable-linger {uid}`, and dbus-user-session")
        if uid
        else ("/run/systemd/private", "/run/dbus/system_bus_socket", "run pytest where PID 1 is systemd, with D-Bus")
    )
    try:
        pid = _listener(private)
        os.stat(bus)
        known = membership(read_file(f"/proc/{pid}/cgroup")) if pid and _numbers_agree(pid) else None
    except OSError as error:
        what = f"no systemd manager is to be reached ({error.filename or private}: {error.strerror})"
        raise NotOffered(what, remedy=remedy) from error
    if known is None:
        raise NotOffered(
            "systemd's manager is in another pid namespace, and would take pytest for somebody else",
            remedy=f"outside of that namespace, {_BY_HAND.format('--user ' if uid else '')}",
        )
    root = os.path.dirname(known.get("", "/"))  # it stands in init.scope
    if own_directory(mount, root) is None:
        raise NotOffered(
            f"{mount.mount_point} does not show the cgroups that systemd makes",
            remedy="run pytest outside of this container, or in the host's cgroup namespace",
        )
    return Manager(f"unix:path={bus}", root, mount)


def enter_scope(manager: Manager, own: str) -> None:
    """Move this process, and no other, into a new scope; it is delegated, and goes when its last process ends.

    Args:
        manager: who is asked.
        own: the cgroup that pytest was started in, as in /proc/PID/cgroup.

    Raises:
        NotOffered: systemd refused, did not answer in time, or may not be asked.
    """
    by_hand = _BY_HAND.format("--user " if os.geteuid() else "")
    _check_leaving(manager, own)
    if (busctl := shutil.which("busctl")) is None:
        raise NotOffered("there is no busctl, by which systemd is asked", remedy=f"install it, or {by_hand}")
    unit = _unit_name()
    properties = (
        *("PIDs", "au", "1", str(os.getpid()), "Delegate", "b", "true", "Slice", "s", _slice(manager, own)),
        *("CollectMode", "s", "inactive-or-failed", "TasksMax", "t", _INFINITY, "Description", "s", "pytest-cgroup"),
    )
    start = ("StartTransientUnit", "ssa(sv)a(sa(sv))", unit, "fail", "6", *properties, "0")
    deadline = time.monotonic() + TIMEOUT_SECONDS
    command = [busctl, f"--address={manager.address}"]
    try:
        answer = _run([*command, "call", _BUS_NAME, _OBJECT, f"{_BUS_NAME}.Manager", *start], deadline)
        if answer.returncode != 0:
            why = " ".join(answer.stderr.split()) or f"busctl ended with {answer.returncode}"
            raise NotOffered(f"systemd refused a scope: {why}", remedy=by_hand)
        job = answer.stdout.rpartition(" ")[2].strip().strip('"')  # o "/org/freedesktop/systemd1/job/20"
        # There is no event to wait for short of a connection of our own; the job is nearly always gone at once.
        while _run([*command, "get-property", _BUS_NAME, job, f"{_BUS_NAME}.Job", "State"], deadline).returncode == 0:
            time.sleep(0.02)
    except subprocess.TimeoutExpired as error:
        if not _is_in(unit):
            raise NotOffered(f"systemd gave no scope in {TIMEOUT_SECONDS:g} s", remedy=by_hand) from error
    except OSError as error:
        raise NotOffered(f"{busctl} can't be run: {error.strerror}", remedy=by_hand) from error
    if not _is_in(unit):
        raise NotOffered(f"systemd started {unit}, but did not move pytest there", remedy=by_hand)


def _run(command: list[str], deadline: float) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        env={"LC_ALL": "C", "PATH": os.environ.get("PATH", os.defpath)},
        timeout=max(0.0, deadline - time.monotonic()),
        check=False,
    )


def _listener(path: str) -> int:
    """The pid of the process that listens at *path*, in our namespace; 0 if it has none there."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(TIMEOUT_SECONDS)
        connection.connect(path)
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[0])


def _numbers_agree(pid: int) -> bool:
    """Whether it is not in a pid namespace below ours: one number each in NSpid (proc_pid_status(5))."""
    return all(_depth(one) == 1 for one in (pid, "self"))


def _depth(pid: int | str) -> int:
    try:
        return len(status_fields(pid).get("NSpid", "").split())
    except FileNotFoundError:
        return 0


def _check_leaving(manager: Manager, own: str) -> None:
    """Refuse to leave a container of ours, and limits that somebody else has set."""
    if any(name.startswith(PREFIX) and not name.endswith(".scope") for name in own.split("/")):
        raise NotOffered(
            "pytest was started inside a test's container or by another pytest, and stays there",
            remedy="give it a cgroup there that it has for itself",
        )
    kept = os.path.commonpath([own, _slice_path(manager, own)])
    left = own
    while left != kept:
        for name in _LIMITS:
            if (value := _limit(f"{own_directory(manager.mount, left)}/{name}")) is not None:
                raise NotOffered(
                    f"pytest's cgroup {left} has {name} {value}, from which a scope would escape",
                    remedy=f"have Delegate=yes set for {os.path.basename(left)}, and start nothing else in it",
                )
        left = os.path.dirname(left)


def _limit(path: str) -> str | None:
    try:
        value = " ".join(read_words(path))
    except OSError as error:
        why = f"whether a scope would escape from a limit can't be known: {path}: {error.strerror}"
        raise NotOffered(why, remedy="run pytest again") from error
    return None if not value or value.startswith("max") else value


def _slices(manager: Manager, own: str) -> list[str]:
    """The manager's slices that *own* is in, the outermost first; a user's session is in none of the user's own."""
    root = manager.root.rstrip("/") + "/"
    inside = own[len(root) :].split("/") if own.startswith(root) else []
    return list(itertools.takewhile(lambda name: name.endswith(".slice"), inside))


def _slice(manager: Manager, own: str) -> str:
    default = "system.slice" if manager.root == "/" else "app.slice"
    return (_slices(manager, own) or [default])[-1]


def _slice_path(manager: Manager, own: str) -> str:
    return os.path.join(manager.root, *_slices(manager, own))


def _unit_name() -> str:
    """Unique on this host, also for the second one of a process."""
    me = ProcessId.own()
    number = next(_number)
    return f"{PREFIX}{me.pid}-{me.start_time}{f'-{number}' if number > 1 else ''}.scope"


def _is_in(unit: str) -> bool:
    return os.path.basename(membership(read_file("/proc/self/cgroup")).get("", "")) == unit
