"""Mounts of a container, on the real kernel: as root and, through a user namespace, as an ordinary user."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from pytest_cgroup import _syscalls as sc
from pytest_cgroup._namespaces import Namespaces, enter_user_namespace, set_up
from pytest_cgroup.exceptions import ContainerError
from tests.kernel.forked import Who, become_ordinary, forked, mountinfo, namespace, refusal


def test_private_tmp_is_empty_but_for_what_is_kept(who: Who, place: Path) -> None:
    kept, kept_file, gone = place / "kept dir", place / "file", place / "gone"
    for directory in (kept, gone):
        directory.mkdir()
        directory.chmod(0o777)
    kept_file.write_text("before")
    kept_file.chmod(0o666)

    def look() -> tuple[list[str], list[str], int, tuple[int, int]]:
        Path("/tmp/inside").write_text("x")
        (kept / "made inside").write_text("seen outside")
        kept_file.write_text("after")
        top = sorted(os.listdir("/tmp"))
        mode = stat.S_IMODE(os.stat("/tmp").st_mode)
        return top, sorted(os.listdir(place)), mode, (kept.stat().st_ino, kept_file.stat().st_ino)

    keep = (str(kept), str(kept / "nested"), str(kept_file), str(place / "missing"), "/usr")
    found = who.inside(Namespaces(private_tmp=True, keep=keep), look)
    inodes = kept.stat().st_ino, kept_file.stat().st_ino
    assert found == (["inside", place.name], ["file", "kept dir"], 0o1777, inodes)
    assert (kept / "made inside").read_text() == "seen outside"
    assert kept_file.read_text() == "after"
    assert not os.path.exists("/tmp/inside")


def test_a_narrow_umask_does_not_close_the_way_to_what_is_kept(who: Who, place: Path) -> None:
    (place / "kept").mkdir()

    def first() -> tuple[int, int]:
        os.umask(0o077)
        set_up(Namespaces(private_tmp=True, keep=(str(place / "kept"),)))
        return stat.S_IMODE(place.stat().st_mode), os.umask(0)

    assert who.inside(Namespaces(), first) == (0o755, 0o077)


def test_neighbours_are_kept_each(who: Who, place: Path) -> None:
    keep = [place / name for name in ("a", "a-b", "ab")]
    for directory in keep:
        directory.mkdir()
        (directory / "file").touch()
    ns = Namespaces(private_tmp=True, keep=tuple(map(str, keep)))
    assert who.inside(ns, lambda: [(directory / "file").exists() for directory in keep]) == [True] * 3


def test_what_is_kept_through_a_symbolic_link_is_found_by_it(who: Who, place: Path) -> None:
    (place / "real").mkdir()
    (place / "real" / "file").write_text("1")
    (place / "to tmp").symlink_to(place / "real")
    (place / "to usr").symlink_to("/usr")
    keep = (str(place / "to tmp"), str(place / "to usr" / "bin"))

    def look() -> tuple[str, bool]:
        return (place / "to tmp" / "file").read_text(), (place / "to usr" / "bin").is_dir()

    assert who.inside(Namespaces(private_tmp=True, keep=keep), look) == ("1", True)


def test_the_mounts_below_what_is_kept_come_along(place: Path, who: Who) -> None:
    (place / "mnt").mkdir()

    def first() -> str:
        who.enter()
        sc.unshare(sc.CLONE_NEWNS)
        sc.mount(None, "/", None, sc.MS_REC | sc.MS_PRIVATE)
        sc.mount("tmpfs", str(place / "mnt"), "tmpfs")
        (place / "mnt" / "file").write_text("below")
        set_up(Namespaces(private_tmp=True, keep=(str(place),)))
        return (place / "mnt" / "file").read_text()

    assert forked(first) == "below"


@pytest.mark.parametrize("keep", ["/tmp", "/tmp/."])
def test_tmp_itself_can_not_be_kept(who: Who, keep: str) -> None:
    with pytest.raises(ContainerError, match="/tmp itself has to stay visible"):
        who.inside(Namespaces(private_tmp=True, keep=(keep,)), os.getpid)


def test_the_working_directory_stays_or_the_set_up_fails(who: Who, place: Path) -> None:
    def stay(*keep: str) -> tuple[str, bool, int | None]:
        os.chdir(place)
        set_up(Namespaces(private_tmp=True, readonly=keep))
        there = os.stat(".").st_ino == os.stat(place).st_ino
        return os.getcwd(), there, refusal(lambda: Path("new").write_text(""))

    assert who.inside(Namespaces(), lambda: stay(str(place))) == (str(place), True, errno.EROFS)
    with pytest.raises(ContainerError, match="working directory") as caught:
        who.inside(Namespaces(), stay)
    assert (caught.value.errno, caught.value.path) == (errno.ENOENT, str(place))
    assert caught.value.remedy


def test_a_removed_working_directory_is_no_obstacle(who: Who, place: Path) -> None:
    def first() -> list[str]:
        (place / "cwd").mkdir()
        os.chdir(place / "cwd")
        (place / "cwd").rmdir()
        set_up(Namespaces(private_tmp=True))
        return os.listdir("/tmp")

    assert who.inside(Namespaces(), first) == []


@pytest.fixture(params=["mount_setattr", "remount"])
def readonly_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With mount_setattr, and without it, as on kernels before 5.12."""
    if request.param == "remount":

        def no_such_call(target: str) -> None:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), target)

        monkeypatch.setattr(sc, "mount_readonly_recursive", no_such_call)
    return str(request.param)


def tree_with_a_mount(place: Path) -> tuple[Path, Path, Path]:
    """A directory, in it a directory that is to be a mount point, and a neighbour; their names are awkward."""
    top, neighbour = place / "top", place / "top and more"
    below = top / "a mount\\point"
    for directory in (top, neighbour, below):
        directory.mkdir()
        directory.chmod(0o777)
    return top, below, neighbour


@pytest.mark.usefixtures("readonly_way")
def test_readonly_refuses_writes_also_on_mounts_below(who: Who, place: Path) -> None:
    top, below, neighbour = tree_with_a_mount(place)
    (top / "file").write_text("x")
    (top / "file").chmod(0o666)

    def first() -> list[int | None]:
        who.enter()
        sc.unshare(sc.CLONE_NEWNS)
        sc.mount(None, "/", None, sc.MS_REC | sc.MS_PRIVATE)
        for point in (below, neighbour):
            sc.mount("tmpfs", str(point), "tmpfs", 0, "mode=777")
        set_up(Namespaces(readonly=(str(top),)))
        return [
            refusal(lambda path=path: path.write_text("y"))  # type: ignore[misc]
            for path in (top / "file", top / "new", below / "new", neighbour / "new")
        ]

    assert forked(first) == [errno.EROFS, errno.EROFS, errno.EROFS, None]
    (top / "new").write_text("the outside is not read-only")


@pytest.mark.usefixtures("user_namespaces")
@pytest.mark.usefixtures("readonly_way")
@pytest.mark.requires("root")
def test_readonly_keeps_the_locked_flags_of_a_user_namespace(place: Path) -> None:
    flags = os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC | os.ST_NOATIME
    _, below, _ = tree_with_a_mount(place)

    def user() -> tuple[int, int | None]:
        become_ordinary()
        enter_user_namespace()
        sc.unshare(sc.CLONE_NEWNS)
        naive = refusal(lambda: sc.mount(None, str(below), None, sc.MS_REMOUNT | sc.MS_BIND | sc.MS_RDONLY))
        set_up(Namespaces(readonly=(str(place),)))
        return os.statvfs(below).f_flag, naive

    def outer() -> tuple[int, int | None]:
        sc.unshare(sc.CLONE_NEWNS)
        sc.mount(None, "/", None, sc.MS_REC | sc.MS_PRIVATE)
        sc.mount("tmpfs", str(below), "tmpfs", sc.MS_NOSUID | sc.MS_NODEV | sc.MS_NOEXEC | sc.MS_NOATIME)
        return forked(user)

    found, naive = forked(outer)
    assert naive == errno.EPERM  # the control: a remount that forgets them is refused
    assert found & (flags | os.ST_RDONLY) == flags | os.ST_RDONLY


@pytest.mark.usefixtures("readonly_way")
def test_readonly_root_leaves_a_private_tmp_and_what_is_kept_writable(who: Who, place: Path) -> None:
    kept, frozen = place / "kept", place / "kept" / "frozen"
    frozen.mkdir(parents=True)
    kept.chmod(0o777)
    frozen.chmod(0o777)

    def look() -> list[int | None]:
        return [
            refusal(lambda path=path: Path(path).touch())  # type: ignore[misc]
            for path in ("/new", "/var/new", "/tmp/new", kept / "new", frozen / "new")
        ]

    ns = Namespaces(private_tmp=True, readonly=("/", str(frozen)), keep=(str(kept),))
    assert who.inside(ns, look) == [errno.EROFS, errno.EROFS, None, None, errno.EROFS]
    assert (kept / "new").exists()


def test_readonly_below_a_private_tmp_stays_visible(who: Who, place: Path) -> None:
    (place / "data").write_text("x")
    (place / "data").chmod(0o666)
    ns = Namespaces(private_tmp=True, readonly=(str(place),))

    def look() -> tuple[str, int | None]:
        return (place / "data").read_text(), refusal(lambda: (place / "data").write_text("y"))

    assert who.inside(ns, look) == ("x", errno.EROFS)


def test_hidden_directories_are_empty_and_hidden_files_too(who: Who, place: Path) -> None:
    directory, file = place / "a directory", place / "file"
    directory.mkdir()
    directory.chmod(0o777)
    (directory / "secret").write_text("1")
    file.write_text("2")
    (place / "link").symlink_to(file)

    def look() -> tuple[list[str], str, int | None]:
        return os.listdir(directory), file.read_text(), refusal(lambda: (directory / "new").touch())

    assert who.inside(Namespaces(hidden=(str(directory), str(place / "link"))), look) == ([], "", errno.EROFS)
    assert (directory / "secret").read_text() + file.read_text() == "12"


def test_what_a_private_tmp_hides_may_be_hidden_twice(who: Who, place: Path) -> None:
    assert who.inside(Namespaces(private_tmp=True, hidden=(str(place),)), place.exists) is False


def test_relative_paths_count_from_the_working_directory(who: Who, place: Path) -> None:
    (place / "data").mkdir(mode=0o777)

    def first() -> int | None:
        os.chdir(place)
        set_up(Namespaces(readonly=("data",)))
        return refusal(lambda: Path("data/new").touch())

    assert who.inside(Namespaces(), first) == errno.EROFS


@pytest.mark.requires("pid_ns")
def test_no_mount_ever_reaches_the_outside(who: Who, place: Path) -> None:
    """Below a mount namespace that shares its mounts, as systemd's hosts do."""
    shown = place / "shown"
    shown.mkdir()
    ns = Namespaces(pid=True, new_proc=True, private_tmp=True, readonly=("/usr",), hidden=("/etc",), keep=(str(place),))

    def careless() -> None:
        sc.unshare(sc.CLONE_NEWNS)
        sc.mount("tmpfs", str(shown), "tmpfs")

    def outer() -> tuple[bool, bool]:
        if not who.is_root:
            who.enter()
        sc.unshare(sc.CLONE_NEWNS)
        sc.mount(None, "/", None, sc.MS_REC | sc.MS_PRIVATE)
        sc.mount("/", "/", None, sc.MS_BIND | sc.MS_REC)
        sc.mount(None, "/", None, sc.MS_REC | sc.MS_SHARED)
        before = mountinfo()
        Who("root").inside(ns, os.getpid)
        unseen = mountinfo() == before
        forked(careless)
        return unseen, mountinfo() == before

    host = mountinfo()
    assert forked(outer) == (True, False)  # the second is the control: without our care it would be seen
    assert mountinfo() == host


# --- what fails, and what is said then ---


@pytest.mark.parametrize("field", ["readonly", "hidden"])
def test_a_missing_path_is_named(who: Who, place: Path, field: str) -> None:
    missing = str(place / "no such")
    before = namespace("mnt")

    def first() -> tuple[ContainerError, str]:
        with pytest.raises(ContainerError) as caught:
            set_up(Namespaces(**{field: (missing,)}))  # type: ignore[arg-type]
        return caught.value, namespace("mnt")

    error, after = who.inside(Namespaces(), first)
    assert (error.errno, error.path, error.operation) == (errno.ENOENT, missing, field)
    assert error.remedy is not None
    assert field in error.remedy
    assert after == before  # found before anything was changed


def test_the_root_can_not_be_hidden(who: Who) -> None:
    with pytest.raises(ContainerError, match="can't be hidden"):
        who.inside(Namespaces(hidden=("/",)), os.getpid)


@pytest.mark.requires("root")
def test_a_chroot_that_is_no_mount_point_is_explained(place: Path) -> None:
    def first() -> None:
        os.chroot(place)
        set_up(Namespaces(mount=True))

    with pytest.raises(ContainerError, match="chroot") as caught:
        forked(first)
    assert (caught.value.errno, caught.value.path) == (errno.EINVAL, "/")
