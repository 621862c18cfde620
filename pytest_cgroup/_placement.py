"""Where this process's containers are made: one session cgroup, below the cgroup that pytest was started in.

::

    base                        pytest's own cgroup, a scope asked of systemd, or --cgroup-base; never removed
    └── pytest-cgroup-PID-T-C   the session: T is the process's start time, so that a dead owner is recognised
        ├── main                pytest itself, where v2 wants it out of the way
        └── 1-test_name         a container

cgroup v2 lets a cgroup give controllers to its children only while no process is in it ("no internal processes"; the
root is exempt). So on v2 pytest steps into ``main`` and the base's and the session's subtree_control are filled. Other
processes in the base (the shell that started pytest) make that EBUSY, and a login session's cgroup is not the user's
to write. Then systemd, where it runs, is asked for a scope of pytest's own (`_systemd`), and that becomes the base.
Without one there are no limits, but where a child cgroup can be made the kill, the leaks and the CPU time are exact all
the same. Nobody else is moved: but for ``--cgroup-take-over``, and that only in a private cgroup namespace, whose
root is a container's and not the host's.
v1 and the empty v2 tree of a hybrid host know no such rule, and pytest stays where it is.
"""

from __future__ import annotations

import contextlib
import errno
from dataclasses import dataclass, field

from . import _lacking
from ._cgroup import PREFIX, Cgroup, remove_quietly
from ._cgroup_v1 import adopt_cpuset
from ._isolated import os, time
from ._kernel_files import mkdir, move_all, read_file, read_words, words, write_file
from ._kernel_text import CgroupMount, cgroup_mounts, membership, own_directory
from ._lacking import Missing as Missing
from ._ownership import LEAF as LEAF
from ._ownership import is_containers, session_name, sign, this_process
from ._process import comm
from ._refusal import refused
from .exceptions import ContainerError, NotOffered

#: the v2 controllers whose limits and numbers we know
CONTROLLERS = ("memory", "pids", "cpu", "cpuset", "io")
_V1_USED = ("memory", "pids", "cpu", "cpuset", "blkio", "cpuacct", "freezer")
#: a process that is about to leave the base keeps it busy for a moment
_BUSY_SECONDS = 0.25


@dataclass(slots=True)
class _Found:
    own: str = "/"  # in the cgroup2 tree
    unified: str | None = None
    mount: CgroupMount | None = None  # of the cgroup2 tree
    controllers: dict[str, str] = field(default_factory=dict)
    missing: dict[str, Missing] = field(default_factory=dict)


class Placement:
    """The session's cgroup: `open` makes it and places pytest, `close` undoes both.

    Args:
        base: the cgroup to work below; None for pytest's own.
        scope: whether systemd may be asked for a scope, where pytest's own cgroup gives too little.
        take_over: whether other processes in the base are moved into the leaf, in a private cgroup namespace.
        all_ours: they are moved in any case: the base is a container that this process is the first one of. Nothing
            is made in a hierarchy that the container is not in, where nobody would remove it.

    Attributes:
        session: where containers are made; None if that is impossible here.
        missing: for each thing that is not offered, why.
    """

    def __init__(
        self, base: str | None = None, *, scope: bool = True, take_over: bool = False, all_ours: bool = False
    ) -> None:
        self.base = base
        self.session: Cgroup | None = None
        self.missing: dict[str, Missing] = {}
        self._scope = scope
        self._take_over = take_over
        self._all_ours = all_ours
        self._in_private_root = False
        self._owner = os.getpid()
        self._moved_from: str | None = None
        self._leaf = ""
        self._made: list[str] = []
        self._enabled: list[tuple[str, str]] = []
        self._crowded: set[str] = set()

    def open(self) -> None:
        """Make the session's cgroup in every hierarchy where that works, and enable what can be enabled.

        Raises:
            ContainerError: `base` was given, and is no cgroup that this process may use.
        """
        found = self._find_bases()
        self._open_in(found)
        if self._seek_scope(found):
            self.close()
            self._open_in(self._find_bases())

    def _open_in(self, found: _Found) -> None:
        self._made = []
        try:
            self._make_in(found)
        except BaseException:
            for path in self._made:
                remove_quietly(path)
            raise

    def _make_in(self, found: _Found) -> None:
        self.missing, self._enabled, self._crowded = found.missing, [], set()
        name = _free_name([*([found.unified] if found.unified else ()), *found.controllers.values()])
        unified = self._try_make(f"{found.unified}/{name}", "cgroup2") if found.unified else None
        v1: dict[str, str] = {}
        for directory in dict.fromkeys(found.controllers.values()):
            served = [controller for controller, path in found.controllers.items() if path == directory]
            path = self._try_make(f"{directory}/{name}", ",".join(served))
            if path and ("cpuset" not in served or self._usable_cpuset_v1(path)):
                v1.update(dict.fromkeys(served, path))
        if unified and "invalid" in words(f"{unified}/cgroup.type"):
            remove_quietly(unified)
            unified = None
            why = f"{found.unified} is a threaded cgroup: nothing can join its children"
            self.missing["cgroup2"] = self.missing["cgroup"] = Missing(why, _lacking.HOW)
        if unified is None and "freezer" not in v1:  # nothing here could kill a tree whole
            for path in dict.fromkeys(v1.values()):
                remove_quietly(path)
            self.missing.setdefault("cgroup", Missing("no cgroup hierarchy is mounted here", _lacking.HOW))
            return
        self.session = Cgroup(unified, v1)
        if unified and found.unified and found.mount:
            # the kernel's own root has no cgroup.type: what we see as "/" and has one is the root of a container
            self._in_private_root = found.mount.root == "/" and found.unified == found.mount.mount_point
            self._enable(found.unified, unified, found.mount.mount_point)
            sign(unified, self.enabled_above)

    def close(self) -> None:
        """Remove the session's cgroup, and put pytest back where it was. Harmless in a forked child, and repeated.

        Raises:
            ContainerError: a directory can't be removed.
        """
        session, self.session = self.session, None
        if session is None or os.getpid() != self._owner:
            return
        for directory, controller in reversed(self._enabled):
            with contextlib.suppress(OSError):  # gone, or in use by somebody who came later
                write_file(f"{directory}/cgroup.subtree_control", f"-{controller}")
        if self._step_back():
            session.remove()

    @property
    def kind(self) -> str:
        """``"v2"``, ``"hybrid"``, ``"v1"``, or ``"none"``."""
        if self.session is None:
            return "none"
        if self.session.unified is None:
            return "v1"
        return "hybrid" if self.session.controllers else "v2"

    @property
    def enabled_above(self) -> tuple[str, ...]:
        """The controllers that were enabled in the base for this session, and go with it."""
        session = self.session
        return tuple(name for directory, name in self._enabled if session is None or directory != session.unified)

    @property
    def controllers(self) -> frozenset[str]:
        """The v2 names of the controllers that a container gets here."""
        if self.session is None:
            return frozenset()
        v1 = {"io" if name == "blkio" else name for name in self.session.controllers}
        v2 = words(f"{self.session.unified}/cgroup.subtree_control") if self.session.unified else ()
        return frozenset(CONTROLLERS).intersection(v1.union(v2))

    # finding

    def _find_bases(self) -> _Found:
        found = _Found()
        mounts = cgroup_mounts(read_file("/proc/self/mountinfo"))
        own = membership(read_file("/proc/self/cgroup"))
        relative = self._relative_base(mounts)
        found.own = own.get("", "/")
        for mount in mounts:
            keys = sorted(mount.controllers.intersection(_V1_USED)) if mount.version == 1 else [""]
            if not keys or any(key in found.controllers for key in keys) or (keys == [""] and found.unified):
                continue
            directory = own_directory(mount, own.get(keys[0], "/"))
            if relative is not None and os.path.isfile(f"{mount.mount_point}/{relative}/cgroup.procs"):
                directory = os.path.normpath(f"{mount.mount_point}/{relative}")
            if self._all_ours and directory is not None and not is_containers(directory):
                found.missing.update(_lacking.not_in_container(keys))
            elif directory is None:
                found.missing["cgroup"] = _lacking.not_shown(mount)
            elif mount.version == 2:
                found.unified, found.mount = _above_leaf(directory), mount
            else:
                found.controllers.update(dict.fromkeys(keys, directory))
        return found

    def _relative_base(self, mounts: list[CgroupMount]) -> str | None:
        """--cgroup-base as a path inside each hierarchy: it may be given inside one, or relative to all."""
        if self.base is None:
            return None
        path = os.path.realpath(self.base) if os.path.isabs(self.base) else None
        for mount in sorted(mounts, key=lambda m: -len(m.mount_point)):
            root = os.path.realpath(mount.mount_point)
            named = os.path.normpath(f"{root}/{self.base}") if path is None else path
            if (named == root or named.startswith(root + "/")) and os.path.isfile(f"{named}/cgroup.procs"):
                return os.path.relpath(named, root)
        raise ContainerError(
            "the cgroup base is not a cgroup on this host", path=self.base, remedy="name a directory of a cgroup mount"
        )

    def _seek_scope(self, found: _Found) -> bool:
        """Whether pytest now stands in a scope of its own. It is not sought where it would give nothing more."""
        mount = found.mount
        if self.base is not None or mount is None or mount.read_only or found.controllers:
            return False
        lacking = frozenset(CONTROLLERS) - self.controllers
        if not lacking:
            return False
        if not self._scope:
            self._explain(NotOffered("--cgroup-scope=no", remedy=_lacking.SCOPE_OFF))
            return False
        from . import _systemd

        try:
            manager = _systemd.find_manager(mount)
            if self.session is not None and not lacking & manager.controllers:
                return False
            _systemd.enter_scope(manager, found.own)
        except NotOffered as why:
            self._explain(why)
            return False
        return True

    def _explain(self, why: NotOffered) -> None:
        """Add to what is missing that a scope would have given it, and why there is none."""
        for name in ("cgroup", "cgroup2") if self.session is None else self._crowded:
            if (missing := self.missing.get(name)) is None:
                continue
            reason = f"{missing.reason}; and there is no scope of pytest's own: {why.what}"
            remedies = [] if missing.remedy in _lacking.GENERAL else [missing.remedy]
            self.missing[name] = Missing(reason, "; or ".join([*remedies, why.remedy or _lacking.OWN_SCOPE]))

    def _try_make(self, path: str, what: str) -> str | None:
        try:
            mkdir(path, 0o755)
        except OSError as error:
            trouble = refused("cannot make a cgroup", error, path=path, operation="mkdir")
            self.missing[what] = self.missing["cgroup"] = _lacking.from_refusal(trouble, _lacking.HOW)
            return None
        self._made.append(path)
        sign(path)  # at once: who is killed between the two leaves what only its name, and its emptiness, speak for
        return path

    def _usable_cpuset_v1(self, directory: str) -> bool:
        """A v1 cpuset whose parent has no CPUs has none either, and takes no process: then it is given up again."""
        with contextlib.suppress(ContainerError):  # it takes no empty list, and remains empty
            adopt_cpuset(directory)
        if (missing := _lacking.empty_cpuset(directory, ("cpuset.cpus", "cpuset.mems"))) is None:
            return True
        remove_quietly(directory)
        self.missing["cpuset"] = missing
        return False

    # v2: giving controllers to the children

    def _enable(self, base: str, session: str, mount_point: str) -> None:
        given = words(f"{base}/cgroup.subtree_control")
        lacking = [c for c in self._offered_in(base) if c not in given]
        if lacking:
            obstacle = self._clear(base, session)
            if obstacle is None:
                self._enable_in(base, lacking)
            else:
                self._crowded.update(lacking)
                self.missing.update(dict.fromkeys(lacking, obstacle))
            if not words(f"{base}/cgroup.subtree_control"):
                self._step_back()  # it was in vain
        for controller in CONTROLLERS:
            if controller in words(f"{session}/cgroup.controllers"):
                self._enable_in(session, [controller])
            elif not self._offered_by_v1(controller):
                self.missing.setdefault(controller, _lacking.not_delegated(controller, base, mount_point))
        self._check_cpuset(session)

    def _offered_in(self, base: str) -> list[str]:
        try:
            offered = read_words(f"{base}/cgroup.controllers")
        except OSError as error:
            why = _unread(error, f"{base}/cgroup.controllers")
            self.missing.update((name, why) for name in CONTROLLERS if not self._offered_by_v1(name))
            return []
        return [controller for controller in CONTROLLERS if controller in offered]

    def _offered_by_v1(self, controller: str) -> bool:
        v1 = self.session.controllers if self.session else {}
        return ("blkio" if controller == "io" else controller) in v1

    def _clear(self, base: str, session: str) -> Missing | None:
        """Take pytest out of *base*; what else is in the way, None if nothing is.

        Asked before anything is enabled: in a cgroup with processes the kernel refuses memory and io, but takes cpu,
        cpuset and pids, and then makes it a threaded domain, whose children nobody can join ("domain invalid").
        """
        if not os.path.exists(f"{base}/cgroup.type"):
            return None  # the root cgroup, which is exempt
        members = f"{base}/cgroup.procs"
        try:
            here = os.getpid() in _pids(members)
            if here:
                self._step_aside(base, session)
            others = _pids(members)
        except OSError as error:
            return _unread(error, members)
        if others and here and (self._all_ours or (self._take_over and self._in_private_root)):
            others = move_all(base, self._leaf)
        if not others:
            return None
        names = ", ".join(f"{comm(pid)}[{pid}]" for pid in others[:3]) + (" …" if len(others) > 3 else "")
        reason = f"other processes are in pytest's cgroup {base}: {names}"
        if self._take_over:
            why = "they could not be moved" if self._in_private_root else "this is no private cgroup namespace's root"
            return Missing(f"{reason}; --cgroup-take-over: {why}", _lacking.OWN_SCOPE)
        return Missing(reason, _lacking.TAKE_OVER if self._in_private_root else _lacking.OWN_SCOPE)

    def _enable_in(self, directory: str, controllers: list[str]) -> None:
        for controller in controllers:
            try:
                _write_when_free(f"{directory}/cgroup.subtree_control", f"+{controller}")
                self._enabled.append((directory, controller))
            except OSError as error:
                trouble = refused("a controller cannot be enabled", error, path=directory, operation=f"+{controller}")
                self.missing[controller] = _lacking.from_refusal(trouble, _lacking.OWN_SCOPE)
                if error.errno == errno.EBUSY:
                    self._crowded.add(controller)

    def _check_cpuset(self, session: str) -> None:
        """Give cpuset up where it has come out empty, as in some kernels: nobody could join a container."""
        enabled = (session, "cpuset")
        missing = _lacking.empty_cpuset(session, ("cpuset.cpus.effective", "cpuset.mems.effective"))
        if enabled in self._enabled and missing is not None:
            with contextlib.suppress(OSError):
                write_file(f"{session}/cgroup.subtree_control", "-cpuset")
            self._enabled.remove(enabled)
            self.missing["cpuset"] = missing

    def _step_aside(self, base: str, session: str) -> None:
        leaf = f"{session}/{LEAF}"
        with contextlib.suppress(OSError):  # then pytest is what is in the way, and that is said
            mkdir(leaf, 0o755)
            write_file(f"{leaf}/cgroup.procs", "0")
            self._moved_from, self._leaf = base, leaf

    def _step_back(self) -> bool:
        """Leave the leaf, with all that is in it; whether everything is back where it was."""
        if self._moved_from is None:
            return True
        if move_all(self._leaf, self._moved_from):
            return False
        self._moved_from = None
        return True


def has_to_step_aside() -> bool:
    """Whether pytest has to leave its cgroup before it starts others, for any of them to give a limit: pure v2."""
    mounts = cgroup_mounts(read_file("/proc/self/mountinfo"))
    return any(mount.version == 2 for mount in mounts) and not any(mount.controllers & {*_V1_USED} for mount in mounts)


def _write_when_free(path: str, value: str) -> None:
    """Write, and again for a moment where that is EBUSY: the kernel has no event for "it would work now"."""
    deadline, pause = time.monotonic() + _BUSY_SECONDS, 0.001
    while True:
        try:
            write_file(path, value)
            return
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise
        time.sleep(pause)
        pause *= 2


def _free_name(bases: list[str]) -> str:
    """The session's name; with a number behind it if this process has made one here already."""
    name = first = session_name(this_process())
    number = 1
    while any(os.path.exists(f"{base}/{name}") for base in bases):
        number += 1
        name = f"{first}-{number}"
    return name


def _above_leaf(directory: str) -> str:
    """A pytest started by a placed one (an xdist worker, say) stands in its leaf: ours is made beside that."""
    parent, name = os.path.split(directory)
    return parent if name == LEAF and os.path.basename(parent).startswith(PREFIX) else directory


def _pids(path: str) -> list[int]:
    """0 is a process of another pid namespace: it is there, but has no number here."""
    return [int(word) for word in read_words(path)]


def _unread(error: OSError, path: str) -> Missing:
    return _lacking.from_refusal(refused("it can't be read", error, path=path, operation="read"), _lacking.HOW)
