"""What this machine offers is tried; what it does not has a reason and a remedy."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from pytest_cgroup import _isolated
from pytest_cgroup._backends import choose
from pytest_cgroup._host import LIMIT_FILES, NAMESPACES, Host
from pytest_cgroup._process import children
from pytest_cgroup.exceptions import NotOffered
from tests.kernel.contain import Lab, descriptors
from tests.kernel.forked import become_ordinary, forked

EVERYTHING = [*LIMIT_FILES, *NAMESPACES, "cgroup", "kill", "freeze", "pressure", "privileged", "user_ns"]


@pytest.mark.parametrize("name", EVERYTHING)
def test_a_reason_and_a_remedy_where_it_is_not_offered(host: Host, name: str) -> None:
    found = host.capability(name)
    assert found.name == name
    assert bool(found.reason) == bool(found.remedy) == (not found.offered)


def test_there_is_no_such_thing(host: Host) -> None:
    with pytest.raises(KeyError):
        host.capability("no_such_thing")


def test_trying_leaves_nothing() -> None:
    """No process, no descriptor, no cgroup, and this process is where it was and what it was."""

    def function() -> tuple[object, ...]:
        def state() -> tuple[object, ...]:
            namespaces = sorted((name, os.readlink(f"/proc/self/ns/{name}")) for name in os.listdir("/proc/self/ns"))
            return Path("/proc/self/cgroup").read_text(), namespaces, descriptors(), children(), os.getresuid()

        before = state()
        host = Host()
        for name in EVERYTHING:
            host.capability(name)
        host.close()
        return before, state()

    before, after = forked(function)
    assert before == after


def test_nothing_is_tried_before_it_is_asked_for() -> None:
    host = Host()
    assert set(vars(host)) == {"_placed", "_known", "guard"}
    host.close()


@pytest.mark.requires("root", "privileged")
@pytest.mark.parametrize("name", NAMESPACES)
def test_the_privileged_need_no_user_namespace(host: Host, name: str) -> None:
    """Also where the kernel lacks some other kind of namespace."""
    if host.capability(name).offered:
        assert not host.needs_user_namespace(frozenset([name]))
    assert not host.needs_user_namespace(frozenset())


def test_a_uts_namespace_that_can_not_be_named_is_not_offered(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in podman, whose filter of system calls allows the one and not the other."""

    def refuse(name: str) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(_isolated.socket, "sethostname", refuse)
    refused = Host()
    assert not refused.capability("uts_ns").offered
    assert refused.capability("net_ns").offered == host.capability("net_ns").offered


def test_an_ordinary_user_needs_one() -> None:
    def function() -> tuple[object, ...]:
        become_ordinary()
        host = Host()
        try:
            offered = host.capability("user_ns").offered
            return offered, host.capability("privileged").offered, host.needs_user_namespace(frozenset(["net_ns"]))
        finally:
            host.close()

    offered, privileged, needed = forked(function)
    assert (privileged, needed) == (False, True)
    assert offered in (True, False)


def test_the_backend_by_name(host: Host) -> None:
    assert choose(host, "process").name == "process"
    if host.capability("cgroup").offered:
        assert choose(host).name == choose(host, "cgroup").name == "cgroup"
        return
    assert choose(host).name == "process"
    with pytest.raises(NotOffered) as caught:
        choose(host, "cgroup")
    assert caught.value.missing == ("cgroup",)


def test_a_backend_says_what_it_is(lab: Lab) -> None:
    text = lab.backend.describe()
    assert "\n" not in text
    if lab.backend.name == "process":
        assert "pids" in text
        return
    assert lab.host.placement.kind in text
    _, _, said = text.partition("can't enforce: ")
    lacking = {name for name in LIMIT_FILES if name != "oom_group" and not lab.host.capability(name).offered}
    assert {word.strip(" )") for word in said.split(",")} - {""} == lacking


def test_what_is_missing_is_named(lab: Lab) -> None:
    """Exactly the limits that are not offered, each with what to do about it; what is not asked is not missed."""
    assert lab.backend.missing(lab.spec()) == []
    asked = {"memory_high": "64M", "cpuset": "0", "io_weight": 100, "cpu_weight": 50}
    missing = dict(lab.backend.missing(lab.spec(**asked)))
    expected = {name for name in asked if not lab.host.capability(name).offered}
    if lab.backend.name == "process":
        expected = set(asked) - {"cpuset"}
    assert set(missing) == expected
    assert all(why.reason and why.remedy for why in missing.values())
