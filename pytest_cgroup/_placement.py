"""Where this process's containers are made: one session cgroup, below the cgroup that pytest was started in.

::

    base                      pytest's own cgroup, or --cgroup-base; never removed, never ours
    └── pytest-cgroup-PID-T   the session: T is the process's start time, so that a dead owner is recognised
        ├── main              pytest itself, where v2 wants it out of the way
        └── 1-test_name       a container

cgroup v2 lets a cgroup give controllers to its children only while no process is in it ("no internal processes"; the
root is exempt). So on v2 pytest steps into ``main`` and the base's and the session's subtree_control are filled. Other
processes in the base (the shell that started pytest) make that EBUSY: then there are no limits here, but the kill, the
leaks and the CPU time of the children's cgroups are exact all the same. Nobody else is ever moved.
v1 and the empty v2 tree of a hybrid host know no such rule, and pytest stays where it is.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field

from ._cgroup import PREFIX, Cgroup, refused
from ._cgroup_v1 import adopt_cpuset
from ._kernel_files import read_file, write_file
from ._kernel_text import CgroupMount, cgroup_mounts, membership
from ._process import ProcessId
from .exceptions import ContainerError

LEAF = "main"
#: the v2 controllers whose limits and numbers we know
CONTROLLERS = ("memory", "pids", "cpu", "cpuset", "io")
_V1_USED = ("memory", "pids", "cpu", "cpuset", "blkio", "cpuacct", "freezer")


@dataclass(frozen=True, slots=True)
class Missing:
    """Something that this host does not offer: why, and what would change that."""

    reason: str
    remedy: str


@dataclass(slots=True)
class _Found:
    unified: str | None = None
    controllers: dict[str, str] = field(default_factory=dict)
    missing: dict[str, Missing] = field(default_factory=dict)


class Placement:
    """The session's cgroup: `open` makes it and places pytest, `close` undoes both.

    Attributes:
        session: where containers are made; None if that is impossible here.
        missing: for each thing that is not offered, why.
    """

    def __init__(self, base: str | None = None) -> None:
        self.base = base
        self.session: Cgroup | None = None
        self.missing: dict[str, Missing] = {}
        self._owner = os.getpid()
        self._moved_from: str | None = None
        self._leaf = ""
        self._enabled: list[tuple[str, str]] = []

    def open(self) -> None:
        """Make the session's cgroup in every hierarchy where that works, and enable what can be enabled.

        Raises:
            ContainerError: `base` was given, and is no cgroup that this process may use.
        """
        found = self._find_bases()
        self.missing = found.missing
        name = _free_name([*([found.unified] if found.unified else ()), *found.controllers.values()])
        unified = self._try_make(f"{found.unified}/{name}", "cgroup2") if found.unified else None
        v1 = {}
        for directory in dict.fromkeys(found.controllers.values()):
            served = [controller for controller, path in found.controllers.items() if path == directory]
            if path := self._try_make(f"{directory}/{name}", ",".join(served)):
                v1.update(dict.fromkeys(served, path))
        if unified and "invalid" in _words(f"{unified}/cgroup.type"):
            os.rmdir(unified)
            unified = None
            why = f"{found.unified} is a threaded cgroup: nothing can join its children"
            self.missing["cgroup2"] = self.missing["cgroup"] = Missing(why, _HOW)
        if unified is None and "freezer" not in v1:  # nothing here could kill a tree whole
            for path in dict.fromkeys(v1.values()):
                os.rmdir(path)
            self.missing.setdefault("cgroup", Missing("no cgroup hierarchy is mounted here", _HOW))
            return
        self.session = Cgroup(unified, v1)
        if "cpuset" in v1:
            adopt_cpuset(v1["cpuset"])
        if unified and found.unified:
            self._enable(found.unified, unified)

    def close(self) -> None:
        """Remove the session's cgroup, and put pytest back where it was. Harmless in a forked child, and repeated."""
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
    def controllers(self) -> frozenset[str]:
        """The v2 names of the controllers that a container gets here."""
        if self.session is None:
            return frozenset()
        v1 = {"io" if name == "blkio" else name for name in self.session.controllers}
        v2 = read_file(f"{self.session.unified}/cgroup.subtree_control").split() if self.session.unified else ()
        return frozenset(CONTROLLERS).intersection(v1.union(v2))

    # finding

    def _find_bases(self) -> _Found:
        found = _Found()
        mounts = cgroup_mounts(read_file("/proc/self/mountinfo"))
        own = membership(read_file("/proc/self/cgroup"))
        relative = self._relative_base(mounts)
        for mount in mounts:
            keys = sorted(mount.controllers.intersection(_V1_USED)) if mount.version == 1 else [""]
            if not keys or any(key in found.controllers for key in keys) or (keys == [""] and found.unified):
                continue
            directory = own_directory(mount, own.get(keys[0], "/"))
            if relative is not None and os.path.isdir(f"{mount.mount_point}/{relative}"):
                directory = os.path.normpath(f"{mount.mount_point}/{relative}")
            if directory is None:
                found.missing["cgroup"] = Missing(f"pytest's cgroup is outside what {mount.mount_point} shows", _HOW)
            elif mount.version == 2:
                found.unified = _above_leaf(directory)
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
            if path is None:
                if os.path.isdir(f"{root}/{self.base}"):
                    return self.base
            elif (path == root or path.startswith(root + "/")) and os.path.isfile(f"{path}/cgroup.procs"):
                return os.path.relpath(path, root)
        raise ContainerError(
            "the cgroup base is not a cgroup on this host", path=self.base, remedy="name a directory of a cgroup mount"
        )

    def _try_make(self, path: str, what: str) -> str | None:
        try:
            os.mkdir(path, 0o755)
        except OSError as error:
            trouble = refused("cannot make a cgroup", error, path=path, operation="mkdir")
            self.missing[what] = self.missing["cgroup"] = Missing(str(trouble), trouble.remedy or _HOW)
            return None
        return path

    # v2: giving controllers to the children

    def _enable(self, base: str, session: str) -> None:
        given = _words(f"{base}/cgroup.subtree_control")
        lacking = [c for c in CONTROLLERS if c in _words(f"{base}/cgroup.controllers") and c not in given]
        if lacking:
            obstacle = self._clear(base, session)
            if obstacle is None:
                self._enable_in(base, lacking)
            else:
                self.missing.update(dict.fromkeys(lacking, Missing(obstacle, _OWN_SCOPE)))
            if not _words(f"{base}/cgroup.subtree_control"):
                self._step_back()  # it was in vain
        for controller in CONTROLLERS:
            if controller in _words(f"{session}/cgroup.controllers"):
                self._enable_in(session, [controller])
            elif not self._offered_by_v1(controller):
                reason = f"the {controller} controller is not delegated to {base}"
                self.missing.setdefault(controller, Missing(reason, _DELEGATE.format(controller)))

    def _offered_by_v1(self, controller: str) -> bool:
        v1 = self.session.controllers if self.session else {}
        return ("blkio" if controller == "io" else controller) in v1

    def _clear(self, base: str, session: str) -> str | None:
        """Take pytest out of *base*; what else is in the way, None if nothing is.

        Asked before anything is enabled: in a cgroup with processes the kernel refuses memory and io, but takes cpu,
        cpuset and pids, and then makes it a threaded domain, whose children nobody can join ("domain invalid").
        """
        if not os.path.exists(f"{base}/cgroup.type"):
            return None  # the root cgroup, which is exempt
        if _is_here(base):
            self._step_aside(base, session)
        if others := _pids(f"{base}/cgroup.procs"):
            names = ", ".join(f"{_name(pid)}[{pid}]" for pid in others[:3]) + (" …" if len(others) > 3 else "")
            return f"other processes are in pytest's cgroup {base}: {names}"
        return None

    def _enable_in(self, directory: str, controllers: list[str]) -> None:
        for controller in controllers:
            try:
                write_file(f"{directory}/cgroup.subtree_control", f"+{controller}")
                self._enabled.append((directory, controller))
            except OSError as error:
                trouble = refused("a controller cannot be enabled", error, path=directory, operation=f"+{controller}")
                self.missing[controller] = Missing(str(trouble), _OWN_SCOPE)

    def _step_aside(self, base: str, session: str) -> None:
        leaf = f"{session}/{LEAF}"
        with contextlib.suppress(OSError):  # then pytest is what is in the way, and that is said
            os.mkdir(leaf, 0o755)
            write_file(f"{leaf}/cgroup.procs", "0")
            self._moved_from, self._leaf = base, leaf

    def _step_back(self) -> bool:
        """Leave the leaf, with all that pytest started there; whether pytest is back where it was."""
        if self._moved_from is None:
            return True
        try:
            while pids := _pids(f"{self._leaf}/cgroup.procs"):  # one may fork meanwhile
                for pid in pids:
                    with contextlib.suppress(ProcessLookupError):
                        write_file(f"{self._moved_from}/cgroup.procs", str(pid))
        except OSError:
            return False
        self._moved_from = None
        return True


_HOW = "run pytest where it may write a cgroup: " + "`systemd-run --user --scope -p Delegate=yes pytest`, or as root"
_OWN_SCOPE = "start pytest in a scope of its own: `systemd-run --user --scope -p Delegate=yes pytest`"
_DELEGATE = "have it delegated: `Delegate={}` in a drop-in of user@.service, or run as root"


def own_directory(mount: CgroupMount, path: str) -> str | None:
    """Where the cgroup *path* (of /proc/self/cgroup) is seen under *mount*; None if the mount does not show it.

    Bind mounts and containers without a cgroup namespace show a part of the tree only (`root`); what lies outside of
    the reader's cgroup namespace begins with ``/..`` (cgroup_namespaces(7)).
    """
    root = mount.root.rstrip("/")
    if (path == root or path.startswith(root + "/")) and ".." not in path.split("/"):
        return os.path.normpath(f"{mount.mount_point}/{path[len(root) :]}")
    return None


def _free_name(bases: list[str]) -> str:
    """The session's name; with a number behind it if this process has made one here already."""
    me = ProcessId.of(os.getpid())
    assert me is not None, "/proc/self is there"
    name = first = f"{PREFIX}{me.pid}-{me.start_time}"
    number = 1
    while any(os.path.exists(f"{base}/{name}") for base in bases):
        number += 1
        name = f"{first}-{number}"
    return name


def _above_leaf(directory: str) -> str:
    """A pytest started by a placed one (an xdist worker, say) stands in its leaf: ours is made beside that."""
    parent, name = os.path.split(directory)
    return parent if name == LEAF and os.path.basename(parent).startswith(PREFIX) else directory


def _is_here(directory: str) -> bool:
    return os.getpid() in _pids(f"{directory}/cgroup.procs")


def _pids(path: str) -> list[int]:
    """0 is a process of another pid namespace: it is there, but has no number here."""
    return [int(word) for word in _words(path)]


def _words(path: str) -> list[str]:
    try:
        return read_file(path).split()
    except OSError:  # cgroup.type before 4.14, and in the root; cgroup.procs of a threaded cgroup
        return []


def _name(pid: int) -> str:
    try:
        return read_file(f"/proc/{pid}/comm").strip()
    except OSError:
        return "?"
