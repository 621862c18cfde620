"""Where containers are made: the session's cgroup comes and goes, and leaves everything as it was."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pytest_cgroup._backends import choose
from pytest_cgroup._cgroup import Cgroup
from pytest_cgroup._host import Host
from pytest_cgroup._kernel_files import write_file
from pytest_cgroup._kernel_text import CgroupMount, membership_path, own_directory
from pytest_cgroup._placement import LEAF, Placement
from pytest_cgroup.exceptions import ContainerError
from tests.kernel.contain import Lab, nothing
from tests.kernel.forked import become_ordinary, forked, on, words


def where() -> str:
    return Path("/proc/self/cgroup").read_text()


@pytest.mark.requires("cgroup")
def test_everything_is_as_it_was(stage: Cgroup) -> None:
    def function() -> tuple[Any, ...]:
        before = where()
        placement = Placement()
        placement.open()
        session = placement.session
        assert session is not None
        inside = where()
        assert session.exists
        placement.close()
        placement.close()
        return before == where(), inside != before, session.exists, placement.session

    restored, moved, exists, session = on(stage, function)
    assert (restored, exists, session) == (True, False, None)
    assert moved == (not stage.controllers and _controllers(stage) != [])
    assert not stage.child(LEAF).exists
    if not stage.controllers:
        assert words(f"{stage.unified}/cgroup.subtree_control") == []


def _controllers(stage: Cgroup) -> list[str]:
    return words(f"{stage.unified}/cgroup.controllers") if stage.unified else []


@pytest.mark.requires("cgroup")
def test_a_container_in_it(stage: Cgroup) -> None:
    def function() -> tuple[Any, ...]:
        host = Host()
        try:
            lab = Lab(host, choose(host, "cgroup"))
            assert lab.run(nothing).ended == "exit"
            return host.placement.kind, sorted(host.placement.controllers), host.placement.missing
        finally:
            host.close()

    kind, controllers, missing = on(stage, function)
    assert kind in ("v1", "hybrid", "v2")
    if not stage.controllers:
        assert set(controllers) == set(_controllers(stage)) & {"memory", "pids", "cpu", "cpuset", "io"}
        assert not set(missing) & set(controllers)


@pytest.mark.requires("cgroup")
@pytest.mark.usefixtures("v2")
def test_a_shell_in_the_same_scope(stage: Cgroup) -> None:
    """No limits, for the reason that is told; but containers all the same, and nobody is moved, nothing enabled."""
    if not _controllers(stage):
        pytest.skip("no controller is delegated here")
    shell = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)

    def function() -> tuple[Any, ...]:
        before = where()
        host = Host(scope=False)
        try:
            lab = Lab(host, choose(host, "cgroup"))
            value, outcome = lab.call(lambda _: os.getpid())
            missing = lab.backend.missing(lab.spec(pids=5, cpu=1))
            return before == where(), value > 0, outcome.ended, outcome.usage.cpu_user_seconds, missing
        finally:
            host.close()

    try:
        stage.adopt(shell.pid)
        here, value, ended, cpu, missing = on(stage, function)
        assert (here, value, ended) == (True, True, "exit")
        assert cpu is not None
        assert {name for name, _ in missing} == {"pids", "cpu"}
        assert any(f"[{shell.pid}]" in why.reason and "scope of its own" in why.remedy for _, why in missing)
        assert words(f"{stage.unified}/cgroup.subtree_control") == []
        assert words(f"{stage.unified}/cgroup.type") == ["domain"]
        assert stage.pids() == [shell.pid]
    finally:
        shell.communicate(b"\n")


@pytest.mark.requires("cgroup")
@pytest.mark.usefixtures("v2")
def test_a_second_pytest_inside_the_leaf(stage: Cgroup) -> None:
    """It makes its session beside the leaf, has every controller that the first one has, and takes none away."""

    def second() -> tuple[Any, ...]:
        before = where()
        host = Host()
        try:
            lab = Lab(host, choose(host, "cgroup"))
            assert host.placement.session is not None
            return (
                str(host.placement.session.unified),
                sorted(host.placement.controllers),
                lab.run(nothing).ended,
                before == where(),
            )
        finally:
            host.close()

    def first() -> tuple[Any, ...]:
        host = Host()
        try:
            assert host.placement.session is not None
            mine = str(host.placement.session.unified)
            answer = forked(second)
            lab = Lab(host, choose(host, "cgroup"))
            return mine, sorted(host.placement.controllers), answer, lab.run(nothing).ended
        finally:
            host.close()

    mine, controllers, (theirs, their_controllers, ended, stayed), afterwards = on(stage, first)
    assert os.path.dirname(theirs) == mine
    assert their_controllers == controllers
    assert (ended, stayed, afterwards) == ("exit", True, "exit")


@pytest.mark.requires("cgroup")
@pytest.mark.usefixtures("v2")
def test_what_pytest_started_goes_back_with_it(stage: Cgroup) -> None:
    """A server that a session fixture left running does not keep the leaf."""

    def function() -> tuple[Any, ...]:
        placement = Placement()
        placement.open()
        server = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        session = placement.session
        placement.close()
        assert session is not None
        found = session.exists, sorted(stage.pids()) == sorted([os.getpid(), server.pid])
        server.communicate(b"\n")
        return found

    assert on(stage, function) == (False, True)


@pytest.mark.requires("cgroup")
@pytest.mark.usefixtures("v2")
def test_a_threaded_cgroup_is_no_place(stage: Cgroup) -> None:
    """Its children can't be joined before they are made threaded, too: the host says so."""
    if "pids" not in _controllers(stage):
        pytest.skip("pids is not delegated here")

    def function() -> tuple[Any, ...]:
        write_file(f"{stage.unified}/cgroup.subtree_control", "+pids")  # with us in it: a threaded domain
        host = Host(scope=False)
        try:
            capability = host.capability("cgroup")
            return capability.offered, capability.reason, choose(host).name
        finally:
            host.close()
            write_file(f"{stage.unified}/cgroup.subtree_control", "-pids")

    offered, reason, name = on(stage, function)
    assert (offered, name) == (False, "process")
    assert "threaded" in reason


@pytest.mark.requires("cgroup")
def test_a_base_of_ones_own(stage: Cgroup) -> None:
    def function() -> tuple[Any, ...]:
        before = where()
        host = Host(stage.path)
        try:
            lab = Lab(host, choose(host, "cgroup"))
            session = host.placement.session
            assert session is not None
            below = all(
                path.startswith(directory + "/")
                for path, directory in zip(session.directories[:1], stage.directories[:1], strict=True)
            )
            return below, lab.run(nothing).ended, before == where()
        finally:
            host.close()

    assert forked(function) == (True, "exit", True)


@pytest.mark.parametrize("base", ["/tmp", "/no/such/place", "no-such-cgroup"])
def test_a_base_that_is_none(base: str) -> None:
    with pytest.raises(ContainerError, match="not a cgroup on this host"):
        Placement(base).open()


@pytest.mark.requires("cgroup")
def test_two_sessions_of_one_process(stage: Cgroup) -> None:
    def function() -> tuple[Any, ...]:
        one, two = Placement(), Placement()
        one.open()
        two.open()
        assert one.session is not None
        assert two.session is not None
        different = one.session.path != two.session.path
        both = one.session.exists and two.session.exists
        two.close()
        one.close()
        return different, both, stage.pids() == [os.getpid()]

    assert on(stage, function) == (True, True, True)


@pytest.mark.requires("cgroup")
def test_a_forked_child_closes_nothing(stage: Cgroup) -> None:
    def function() -> bool:
        placement = Placement()
        placement.open()
        session = placement.session
        assert session is not None
        forked(placement.close)
        still = session.exists
        placement.close()
        return still

    assert on(stage, function)


@pytest.mark.requires("root", "cgroup")
def test_an_ordinary_user_without_a_cgroup() -> None:
    """Every refusal has its reason and remedy, and the process backend is what is left."""

    def function() -> tuple[Any, ...]:
        become_ordinary()
        host = Host(scope=False)
        try:
            found = [host.capability(name) for name in ("cgroup", "memory", "pids", "cpu")]
            return choose(host).name, [(one.offered, one.reason, one.remedy) for one in found]
        finally:
            host.close()

    name, found = forked(function)
    assert name == "process"
    for offered, reason, remedy in found:
        assert not offered
        assert "EACCES" in reason
        assert remedy


@pytest.mark.requires("root", "cgroup")
def test_an_ordinary_user_with_a_delegated_cgroup(stage: Cgroup) -> None:
    """As systemd delegates: the directory and cgroup.procs, subtree_control and threads belong to the user."""
    for directory in stage.directories:
        for name in ("", "/cgroup.procs", "/cgroup.subtree_control", "/cgroup.threads", "/tasks"):
            if os.path.exists(directory + name):
                os.chown(directory + name, 61_235, 61_235)

    def function() -> tuple[Any, ...]:
        become_ordinary()
        host = Host()
        try:
            lab = Lab(host, choose(host, "cgroup"))
            outcome = lab.run(nothing, **({"pids": 9} if host.capability("pids").offered else {}))
            return outcome.ended, outcome.limits.get("pids"), host.capability("pids").offered
        finally:
            host.close()

    ended, pids, offered = on(stage, function)
    assert ended == "exit"
    assert pids == ("9" if offered else None)


@pytest.mark.parametrize(
    ("root", "path", "expected"),
    [
        ("/", "/", "/sys/fs/cgroup"),
        ("/", "/user.slice/a b.scope", "/sys/fs/cgroup/user.slice/a b.scope"),
        ("/docker/abc", "/docker/abc/sub", "/sys/fs/cgroup/sub"),
        ("/docker/abc", "/docker/abcdef", None),
        ("/docker/abc", "/", None),
        ("/", "/../outside", None),
    ],
)
def test_where_a_mount_shows_a_cgroup(root: str, path: str, expected: str | None) -> None:
    mount = CgroupMount(2, frozenset(), "/sys/fs/cgroup", root, False)
    assert own_directory(mount, path) == expected
    assert expected is None or membership_path(mount, expected) == path


def test_what_a_mount_does_not_show() -> None:
    assert membership_path(CgroupMount(2, frozenset(), "/sys/fs/cgroup", "/", False), "/sys/fs/cgroups/a") is None
