"""Whose a session is: what proves that a cgroup, or a process, is ours, and whether its pytest still lives.

Theory of operation. A session's cgroup is called ``pytest-cgroup-PID-STARTTIME-CHECKSUM``, and anybody can give a
directory a name. So pytest signs it, with an extended attribute on the directory itself (``user.*`` on cgroups since
Linux 5.7, ``trusted.*`` for root before that): the proof cannot be lost, lie about another directory or outlive it, and
needs no file anywhere. A directory without it, or of another user, is nobody we know, and is left alone. But for one
that has nothing in it: pytest may have been killed before it signed, and the checksum tells that from an accident.

A pid is a number in one pid namespace, and a start time one of a time namespace: the signature says in which two they
were taken. Who stands in others can say that the owner is dead only from the initial pid namespace, where all processes
are seen, if none of them is in those two and has that pid there: so goes what is left of a container whose init was
killed, and the guard with it. A boot id would tell nothing more, since no cgroup and no process outlives its kernel.

A container with a path of its own (`PATH`) stands outside of the session. So that it is found all the same, an empty
cgroup of the session is its signpost; and so that nobody else's is taken for it, it is signed with the session's name.

The process backend has no directory to sign. There each contained process gets an environment variable, with the same.
"""

from __future__ import annotations

import binascii
import errno
import re
from dataclasses import dataclass

from . import _syscalls
from ._cgroup import PREFIX
from ._isolated import io, json, os
from ._process import ProcessId, living_thread, status_fields

#: in a session's cgroup on v2: where pytest itself stands, and the guard
LEAF = "main"
#: in a session's cgroup: where pytest stands while leaks are looked for in place, and what it then starts
SHARED = "shared"
#: in a session's cgroup: begins the name of what is no container, but holds those of one slice
SLICE = "slice-"
#: in a session's cgroup: begins the name of what is no container, but a signpost to one that has a path of its own
PATH = "path-"
#: stands for a slash there, and in no path
PATH_SLASH = "%"
#: such a container is made with the sticky bit, which means nothing of a cgroup: what else has it is rare, where
#: pytest is killed before it has signed
UNSIGNED_MODE = 0o1700
COOKIE = "PYTEST_CGROUP_SESSION"
#: PROC_PID_INIT_INO of the kernel's include/linux/proc_ns.h
_INITIAL_PID_NS = 0xEFFFFFFC
UNSIGNED = "nothing proves that pytest-cgroup made it"
#: in place, where there is no cgroup: `str(Owner)`, a dot, and the number of a place of its
PLACE = "PYTEST_CGROUP_PLACE"
_NUMBER = "[0-9]{1,20}"  # as long as the kernel's: anybody may write a longer one, and Python refuses to read it
_NAME = re.compile(rf"{PREFIX}({_NUMBER})-({_NUMBER})-([0-9a-f]{{8}})(?:-{_NUMBER})?")
_OWNER = re.compile(rf"({_NUMBER})-({_NUMBER})@({_NUMBER})-({_NUMBER})")
#: getxattr(2): there is none of that name, or the kernel keeps none
_NO_ATTRIBUTE = (errno.ENODATA, errno.ENOTSUP)
_ATTRIBUTES = ("user.pytest-cgroup", "trusted.pytest-cgroup")


@dataclass(frozen=True, slots=True)
class Owner:
    """The pytest that a session belongs to.

    Attributes:
        process: its pid and start time.
        namespaces: where these were taken: the inodes of its pid and its time namespace.
    """

    process: ProcessId
    namespaces: tuple[int, int]

    @property
    def is_dead(self) -> bool | None:
        """Whether it has ended, for certain; None where that can't be known from here."""
        own = _own_namespaces()
        if self.namespaces == own:
            lives = self.process.lives
            return None if lives is None else not lives
        return True if own[0] == _INITIAL_PID_NS and not self._may_be_elsewhere() else None

    @property
    def is_here(self) -> bool:
        """Whether its numbers are those of this process's namespaces."""
        return self.namespaces == _own_namespaces()

    def _may_be_elsewhere(self) -> bool:
        """Whether a process has that pid in these namespaces, or in some that we may not see."""
        nested = self.namespaces[0] != _INITIAL_PID_NS
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                numbers = numbers_of(pid)
                may_be = numbers[-1:] == [self.process.pid] and (len(numbers) > 1) == nested
                if may_be and _namespaces_of(pid) == self.namespaces:
                    return True
            except (FileNotFoundError, ProcessLookupError):  # it has ended
                continue
            except OSError:  # not for us to see, as of a process with more capabilities; or no descriptor to be had
                return True
        return False

    @classmethod
    def parse(cls, text: str) -> Owner | None:
        """What `str` made; None if it did not make that."""
        found = _OWNER.fullmatch(text)
        return None if found is None else cls(ProcessId(int(found[1]), int(found[2])), (int(found[3]), int(found[4])))

    def __str__(self) -> str:
        return "{}-{}@{}-{}".format(self.process.pid, self.process.start_time, *self.namespaces)


@dataclass(frozen=True, slots=True)
class Signature:
    """What pytest wrote on its session's cgroup: whose it is, and which controllers it enabled above it."""

    owner: Owner
    enabled: tuple[str, ...] = ()


def this_process() -> Owner:
    """The owner of what this process makes.

    Raises:
        ContainerError: /proc does not say.
    """
    return Owner(ProcessId.own(), _own_namespaces())


def session_name(owner: Owner) -> str:
    """What the session of *owner* is called; its second one has a ``-2`` behind that."""
    checksum = binascii.crc32(str(owner).encode())
    return f"{PREFIX}{owner.process.pid}-{owner.process.start_time}-{checksum:08x}"


def named_owner(directory: str) -> Owner | None:
    """Whose the session's cgroup *directory* is by its name alone; None where that was not given in our namespaces."""
    if (name := _NAME.fullmatch(os.path.basename(directory))) is None:
        return None
    owner = Owner(ProcessId(int(name[1]), int(name[2])), _own_namespaces())
    return owner if session_name(owner).endswith(name[3]) else None


def sign(directory: str, enabled: tuple[str, ...] = ()) -> bool:
    """Sign a cgroup's directory, or sign it anew; whether the kernel keeps such things here."""
    return _write_on(directory, json.dumps({"namespaces": _own_namespaces(), "enabled": enabled}))


def _write_on(directory: str, text: str) -> bool:
    for attribute in _ATTRIBUTES:
        try:
            _syscalls.setxattr(directory, attribute, text.encode())
        except OSError:  # ENOTSUP, EPERM, ENOSPC; then the guard cleans up, but no later session does
            continue
        return True
    return False


def signature(directory: str) -> Signature | str:
    """The signature of the session's cgroup *directory*; where it is not one of ours, why.

    Raises:
        FileNotFoundError: it is gone.
        OSError: it can't be read for another reason, as for want of memory: it is not taken for unsigned.
    """
    name = _NAME.fullmatch(os.path.basename(directory))
    if name is None:
        return "its name is none of ours"
    if (uid := os.stat(directory).st_uid) != os.geteuid():
        return f"it belongs to uid {uid}"
    for attribute in _ATTRIBUTES:
        try:
            told = json.loads(_syscalls.getxattr(directory, attribute))
            pid_ns, time_ns = map(int, told["namespaces"])
            enabled = tuple(word for word in told["enabled"] if re.fullmatch("[a-z]+", word))
        except OSError as error:
            if error.errno in _NO_ATTRIBUTE:
                continue
            raise
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            continue
        return Signature(Owner(ProcessId(int(name[1]), int(name[2])), (pid_ns, time_ns)), enabled)
    return UNSIGNED


def base_of(session: str) -> str:
    """The cgroup that pytest was started in: above *session*, and above that of a controller whose worker it is."""
    above = os.path.dirname(session)
    while is_session(os.path.basename(above)):
        above = os.path.dirname(above)
    return above


def signpost_name(path: str) -> str:
    """What the signpost to the container at *path* is called, in a session's cgroup."""
    return PATH + path.replace("/", PATH_SLASH)


def pointed_to(directory: str) -> str | None:
    """Where the container stands, or stood, that the signpost *directory* points to; None if it is no signpost."""
    session, name = os.path.split(directory)
    if not (name.startswith(PATH) and is_session(os.path.basename(session))):
        return None
    return f"{base_of(session)}/{name.removeprefix(PATH).replace(PATH_SLASH, '/')}"


def claim(directory: str, session: str) -> bool:
    """Sign the directory of a container with a path of its own; whether the kernel keeps such things here."""
    return _write_on(directory, os.path.basename(session))


def claimed_for(directory: str) -> str:
    """The name of the session whose container with a path of its own *directory* is; "" if it is none of ours.

    Raises:
        FileNotFoundError: it is gone, or has never been there.
        OSError: it can't be read for another reason.
    """
    if os.stat(directory).st_uid == os.geteuid():
        for attribute in _ATTRIBUTES:
            try:
                name = _syscalls.getxattr(directory, attribute).decode(errors="replace")
            except OSError as error:
                if error.errno not in _NO_ATTRIBUTE:
                    raise
            else:
                return name if is_session(name) else ""
    return ""


def is_session(name: str) -> bool:
    """Whether a directory of this name can be a session's."""
    return _NAME.fullmatch(name) is not None


def is_slice(directory: str) -> bool:
    """Whether it can be a slice's, in a session's."""
    above, name = os.path.split(directory)
    return name.startswith(SLICE) and is_session(os.path.basename(above))


def is_containers(directory: str) -> bool:
    """Whether it can be a container's: in a session's or in a slice of it, or with a path of its own."""
    above = os.path.dirname(directory)
    if is_session(os.path.basename(above)) or is_slice(above):
        return True
    try:
        return claimed_for(directory) != ""
    except OSError:
        return False


def owner_of(pid: int) -> Owner | None:
    """Whose contained process *pid* was executed as, by its environment; None if nobody's, or another user's.

    Raises:
        OSError: it can't be read for another reason, as for want of a descriptor.
    """
    return Owner.parse(executed_with(pid, COOKIE) or "")


def owner_in_place(pid: int) -> Owner | None:
    """Whose process *pid* was executed as, without a container, by one that looks for leaks in place."""
    return Owner.parse((executed_with(pid, PLACE) or "").rpartition(".")[0])


def executed_with(pid: int, variable: str) -> str | None:
    """The value of an environment variable when *pid* was executed (proc_pid_environ(5)); None without it.

    Raises:
        OSError: as `owner_of`.
    """
    prefix = variable.encode() + b"="
    text = _environment(pid)
    if not text and (thread := living_thread(pid)) != pid:  # its first thread has ended
        text = _environment(thread)
    words = text.split(b"\0")
    return next((word[len(prefix) :].decode(errors="replace") for word in words if word.startswith(prefix)), None)


def _environment(pid: int) -> bytes:
    """Nothing of who is gone, or another user's, as what has ended is root's."""
    try:
        with io.open(f"/proc/{pid}/environ", "rb") as f:
            return f.read()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return b""


def _own_namespaces() -> tuple[int, int]:
    return _inode("/proc/self/ns/pid"), _inode("/proc/self/ns/time")


def _namespaces_of(pid: str) -> tuple[int, int]:
    return os.stat(f"/proc/{pid}/ns/pid").st_ino, _inode(f"/proc/{pid}/ns/time")


def numbers_of(pid: int | str) -> list[int]:
    """Its numbers in our pid namespace and in each one below, its own last (NSpid, proc_pid_status(5))."""
    return [int(number) for number in status_fields(pid).get("NSpid", "").split()]


def _inode(path: str) -> int:
    try:
        return os.stat(path).st_ino
    except OSError:  # a kernel without that kind
        return 0
