"""What a dead session left behind: found, killed, removed.

Theory of operation. The guard calls `end_session` when its pytest has died; `sweep` looks beside a new session, and
`clean` everywhere, for sessions whose owner is dead and whose guard did not live to see it (a reboot clears all by
itself). Each hierarchy is taken by itself, the cgroup2 one first, as that kills what it holds in one act. What is
killed is what was in a container: all in the session's cgroup but the leaf ``main``. There pytest stood, and what it
started outside of any test; that goes back to where pytest came from, as at a clean end. Sessions that live,
also inside of a dead one, stay as they are.

A session is one, in however many hierarchies: a signature in any of them speaks for the directories of that name in
the others, where the owner may have been killed before it signed. The signed are removed last, so that this is still
so when who cleans up is killed. Where it signed none, its name speaks for what is empty: that is all there is then.

Several may do this at once: a cgroup that is gone, and a process that is gone, is what everybody wants.
"""

from __future__ import annotations

import contextlib
import errno
from typing import TYPE_CHECKING

from ._cgroup import PREFIX, Cgroup
from ._isolated import os, time
from ._kernel_files import move_all, read_file, read_words, rmdir, words, write_file
from ._kernel_text import cgroup_mounts, membership, own_directory
from ._orphans import KILL_SECONDS, Cleaned, end_processes, orphans
from ._ownership import (
    LEAF,
    SHARED,
    UNSIGNED,
    UNSIGNED_MODE,
    Signature,
    claimed_for,
    is_session,
    named_owner,
    pointed_to,
    signature,
)
from ._process import comm
from .exceptions import CgroupError, ContainerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator


#: set by tests that run beside tests of recovery: what those leave is not theirs to clean up
NO_RECOVERY = "PYTEST_CGROUP_NO_RECOVERY"
#: how long a cgroup that nobody is in any more may refuse to be removed
_BUSY_SECONDS = 2.0


def trees_of(session: Cgroup) -> list[Cgroup]:
    """*session* in each hierarchy by itself, the cgroup2 tree first."""
    unified = [Cgroup(session.unified)] if session.unified else []
    v1: dict[str, dict[str, str]] = {}
    for name, directory in session.controllers.items():
        v1.setdefault(directory, {})[name] = directory
    return [*unified, *(Cgroup(None, controllers) for controllers in v1.values())]


# one session


def end_session(trees: Iterable[Cgroup], enabled: tuple[str, ...], cleaned: Cleaned, *, others: bool = True) -> None:
    """Kill what is in a dead session's containers, and remove its cgroup.

    Args:
        trees: its cgroup in each hierarchy, the signed ones first.
        enabled: the controllers that it enabled in the cgroup above.
        cleaned: what is done is told there.
        others: also end the other dead sessions that are in it, those of workers in the controller's.
    """
    spared = _may_live if others else _is_signed
    trees = [tree for tree in trees if tree.exists]
    containers = [container for tree in trees for container in _containers(tree, spared, cleaned)]
    for container in containers:  # all of them, before any is waited for
        with contextlib.suppress(OSError, CgroupError):  # gone meanwhile, or else the next step says so
            cleaned.killed.update((pid, comm(pid)) for pid in container.pids())
            container.kill()
    for container in containers:
        if not _is_needed(container):  # to find again what could not be ended
            _end_container(container, cleaned)
    for tree in reversed(trees):
        _end_directory(tree, enabled, spared, cleaned)


def end_workers(
    session: Cgroup, enabled: tuple[str, ...], inner_seconds: float, beside_seconds: float | None
) -> Cleaned:
    """What is left of a dead controller's workers, in its *session* or beside it; at last that session, if it is there.

    Their own guards come first, which know what is to be spared. They may take *inner_seconds* for what is in the
    session, and *beside_seconds* for what is beside it; None: that is left alone.
    """
    deadline = time.monotonic() + inner_seconds
    while _inner_sessions(session) and time.monotonic() < deadline:
        time.sleep(0.01)
    cleaned = Cleaned()
    end_session(trees_of(session), enabled, cleaned)
    if beside_seconds is not None:
        cleaned.killed.update(sweep(session, beside_seconds).killed)
    return cleaned


def _inner_sessions(session: Cgroup) -> list[str]:
    paths = (f"{tree.path}/{name}" for tree in trees_of(session) for name in _inner(tree.path, Cleaned()))
    return [path for path in paths if _is_signed(path)]


def set_free(trees: Iterable[Cgroup], outlives: Callable[[int], bool]) -> None:
    """Move what pytest started in place, and *outlives* says so of, to where pytest came from, and this process is."""
    for tree in trees:
        with contextlib.suppress(OSError, CgroupError):
            for pid in filter(outlives, tree.child(SHARED).pids()):
                with contextlib.suppress(CgroupError):  # it has ended
                    own_cgroup(v2=tree.unified is not None).adopt(pid)


def own_cgroup(*, v2: bool) -> Cgroup:
    """The cgroup of this process in the cgroup2 tree, or else in the one of v1's freezer."""
    own = membership(read_file("/proc/self/cgroup"))
    key = "" if v2 else "freezer"
    for mount in cgroup_mounts(read_file("/proc/self/mountinfo")):
        if (mount.version == 2) if v2 else (key in mount.controllers):
            directory = own_directory(mount, own.get(key, "/"))
            if directory is not None:
                return Cgroup(directory) if v2 else Cgroup(None, {key: directory})
    raise ContainerError("pytest's own cgroup is not to be seen here: nobody could step back into it")


def _containers(tree: Cgroup, spared: Callable[[str], bool], cleaned: Cleaned) -> list[Cgroup]:
    """Its containers; those with a path of their own first, and after them the signposts to them."""
    names = _inner(tree.path, cleaned)
    inner = [tree.child(name) for name in names if name != LEAF and not spared(f"{tree.path}/{name}")]
    sessions = [one for one in inner if is_session(os.path.basename(one.path))]
    within = [session.child(name) for session in sessions for name in _inner(session.path, cleaned)]
    return [*filter(None, (_placed(one, cleaned) for one in (*inner, *within))), *inner]


def _placed(signpost: Cgroup, cleaned: Cleaned) -> Cgroup | None:
    """The container with a path of its own that *signpost* points to, if there is one of its session's."""
    if (directory := pointed_to(signpost.path)) is None:
        return None
    try:
        if _is_claimed(signpost.path, directory):
            return _like(signpost, directory)
        cleaned.left[directory] = UNSIGNED
    except FileNotFoundError:
        pass
    except OSError as error:
        cleaned.left[directory] = f"whose it is can't be read: {error.strerror}"
    return None


def _is_needed(signpost: Cgroup) -> bool:
    """Whether it points to a container of its session's, as far as can be known."""
    directory = pointed_to(signpost.path)
    try:
        return directory is not None and _is_claimed(signpost.path, directory)
    except FileNotFoundError:
        return False
    except OSError:
        return True


def _is_claimed(signpost: str, directory: str) -> bool:
    """By signature; what its owner had only begun, and has nothing in it, by its mode."""
    if session := claimed_for(directory):
        return session == os.path.basename(os.path.dirname(signpost))
    found = os.stat(directory)
    begun = found.st_uid == os.geteuid() and found.st_mode & 0o7777 == UNSIGNED_MODE
    return begun and not _inner(directory, Cleaned()) and not read_words(f"{directory}/cgroup.procs")


def _may_live(directory: str) -> bool:
    """Whether it is a session whose owner is not known to be dead: a worker's, in the controller's that was killed."""
    return _is_signed(directory, living=True)


def _is_signed(directory: str, *, living: bool = False) -> bool:
    """Whether it is a session, as far as can be known; *living*: and its owner not known to be dead."""
    if not is_session(os.path.basename(directory)):
        return False
    try:
        found = signature(directory)
    except FileNotFoundError:
        return False
    except OSError:  # nobody knows
        return True
    return isinstance(found, Signature) and not (living and found.owner.is_dead)


def _end_container(container: Cgroup, cleaned: Cleaned) -> None:
    deadline = time.monotonic() + KILL_SECONDS
    while container.exists:
        try:
            if not container.kill_until_empty(max(0.0, deadline - time.monotonic())):
                cleaned.left[container.path] = f"still there after SIGKILL: pids {container.pids()}"
                return
            container.remove(0.1)  # somebody may have been on the way in
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENODEV):
                cleaned.left[container.path] = error.strerror or str(error)
                return
        except CgroupError as error:
            if time.monotonic() > deadline:
                cleaned.left[container.path] = str(error)
                return
            time.sleep(0.001)


def _end_directory(tree: Cgroup, enabled: tuple[str, ...], spared: Callable[[str], bool], cleaned: Cleaned) -> None:
    path = tree.path
    inner = _inner(path, cleaned)
    if path in cleaned.left:
        return
    if any(spared(f"{path}/{name}") for name in inner):
        cleaned.left[path] = "a session that lives is in it"
        return
    if tree.unified:
        _vacate(path, enabled)
    deadline, pause = time.monotonic() + _BUSY_SECONDS, 0.0005
    while True:
        try:
            with contextlib.suppress(FileNotFoundError):
                rmdir(f"{path}/{LEAF}")
            rmdir(path)
            cleaned.removed.append(path)
            return
        except FileNotFoundError:
            return  # another was faster
        except OSError as error:
            inside = words(f"{path}/{LEAF}/cgroup.procs")
            if inside or time.monotonic() > deadline:
                names = ", ".join(f"{comm(int(pid))}[{pid}]" for pid in inside)
                cleaned.left[path] = f"in use by {names}" if names else str(error.strerror)
                return
        time.sleep(pause)  # the kernel has no event for "rmdir would work now"
        pause = min(pause * 2, 0.05)


def _vacate(session: str, enabled: tuple[str, ...]) -> None:
    """As `Placement.close` does it: nobody can go back to a cgroup that gives controllers to its children."""
    base, leaf = os.path.dirname(session), f"{session}/{LEAF}"
    for directory, names in ((session, words(f"{session}/cgroup.subtree_control")), (base, enabled)):
        for name in names:
            with contextlib.suppress(OSError):  # gone, or in use by another
                write_file(f"{directory}/cgroup.subtree_control", f"-{name}")
    if os.path.isdir(leaf):
        move_all(leaf, base)


def _inner(directory: str, cleaned: Cleaned) -> list[str]:
    """The directories in a directory; [] if it is gone, or can't be looked at, which is told."""
    try:
        with os.scandir(directory) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        cleaned.left[directory] = f"can't be looked at: {error.strerror}"
    return []


# the sessions that are dead


def sweep(session: Cgroup, patience_seconds: float = 0.0) -> Cleaned:
    """End the dead sessions beside *session*; cheap: it looks in one directory of each hierarchy, or two.

    Their own guards may take *patience_seconds* for that.
    """
    deadline = time.monotonic() + patience_seconds
    while time.monotonic() < deadline and _dead(_beside(session, Cleaned()), Cleaned()):
        time.sleep(0.02)
    cleaned = Cleaned()
    _end_all(_dead(_beside(session, cleaned), cleaned), cleaned)
    return cleaned


def _beside(session: Cgroup, cleaned: Cleaned) -> dict[str, list[Cgroup]]:
    found: dict[str, list[Cgroup]] = {}
    for tree in trees_of(session):
        for directory in _places(os.path.dirname(tree.path), cleaned):
            for name in filter(is_session, _inner(directory, cleaned)):
                found.setdefault(name, []).append(_like(tree, f"{directory}/{name}"))
    return found


def _places(base: str, cleaned: Cleaned) -> Iterator[str]:
    """The base; where that is a session's own cgroup, or a scope of pytest's, those beside it."""
    yield base
    above, name = os.path.split(base)
    if name.startswith(PREFIX):
        yield above
        if name.endswith(".scope"):
            scopes = (one for one in _inner(above, cleaned) if one.startswith(PREFIX) and one.endswith(".scope"))
            yield from (f"{above}/{one}" for one in scopes)


def _like(tree: Cgroup, path: str) -> Cgroup:
    return Cgroup(path) if tree.unified else Cgroup(None, dict.fromkeys(tree.controllers, path))


def sweep_processes() -> Cleaned:
    """The same where there is no cgroup: the process table is read."""
    cleaned = Cleaned()
    end_processes(orphans, cleaned)
    return cleaned


def clean() -> Cleaned:
    """End every dead session of this user: in all hierarchies that are mounted here, and in the process table."""
    cleaned = Cleaned()
    found: dict[str, list[Cgroup]] = {}
    mounts = cgroup_mounts(read_file("/proc/self/mountinfo"))
    for mount in sorted(mounts, key=lambda mount: -mount.version):
        controllers = mount.controllers or frozenset(("",))  # a named hierarchy, of no controller, holds none of ours
        for path in _walk(mount.mount_point, cleaned):
            tree = Cgroup(path) if mount.version == 2 else Cgroup(None, dict.fromkeys(controllers, path))
            found.setdefault(os.path.basename(path), []).append(tree)
    _end_all(_dead(found, cleaned), cleaned)
    end_processes(orphans, cleaned)
    return cleaned


def _walk(top: str, cleaned: Cleaned) -> Iterator[str]:
    """The sessions below *top*, outer ones first; in a session only its inner ones are looked for."""
    todo = [top]
    for directory in todo:
        inside = is_session(os.path.basename(directory))
        if inside:
            yield directory
        todo += [f"{directory}/{name}" for name in _inner(directory, cleaned) if not inside or is_session(name)]


def _end_all(sessions: Iterable[tuple[list[Cgroup], tuple[str, ...]]], cleaned: Cleaned) -> None:
    for trees, enabled in sessions:
        end_session(trees, enabled, cleaned)


def _dead(found: dict[str, list[Cgroup]], cleaned: Cleaned) -> list[tuple[list[Cgroup], tuple[str, ...]]]:
    """For `end_session`, of those *found*; why others are not is told."""
    sessions: list[tuple[list[Cgroup], tuple[str, ...]]] = []
    for trees in reversed(found.values()):  # inner ones first
        signed, unsigned = _by_signature(trees, cleaned)
        dead = []
        for tree, told in signed:
            is_dead = told.owner.is_dead
            if is_dead:
                dead.append((tree, told))
            elif is_dead is None:
                where = "can't be looked at" if told.owner.is_here else "is in another pid or time namespace"
                cleaned.left[tree.path] = f"its owner {where}, and may live"
        if not signed:
            begun = [tree for tree in unsigned if _is_only_begun(tree, cleaned)]
            sessions += [(begun, ())] if begun else []
            cleaned.left.update((tree.path, UNSIGNED) for tree in unsigned if tree not in begun)
        elif len(dead) == len(signed):
            enabled = next((told.enabled for _, told in dead if told.enabled), ())
            sessions.append(([*(tree for tree, _ in dead), *unsigned], enabled))
    return sessions


def _by_signature(trees: list[Cgroup], cleaned: Cleaned) -> tuple[list[tuple[Cgroup, Signature]], list[Cgroup]]:
    """Those of *trees* that are signed, and those that could be the same session's; why others are not is told."""
    signed: list[tuple[Cgroup, Signature]] = []
    unsigned: list[Cgroup] = []
    for tree in trees:
        try:
            told = signature(tree.path)
        except FileNotFoundError:  # gone meanwhile
            continue
        except OSError as error:
            cleaned.left[tree.path] = f"whose it is can't be read: {error.strerror}"
            continue
        if isinstance(told, Signature):
            signed.append((tree, told))
        elif told == UNSIGNED:
            unsigned.append(tree)
        else:
            cleaned.left[tree.path] = told
    return signed, unsigned


def _is_only_begun(tree: Cgroup, cleaned: Cleaned) -> bool:
    """Whether its owner died before signing it: so its name says, and there is nothing in it to say otherwise."""
    owner = named_owner(tree.path)
    return bool(owner and owner.is_dead and not _inner(tree.path, cleaned) and not words(f"{tree.path}/cgroup.procs"))
