"""Who asks for namespaces, where they may put files, and the cgroups that a test plays in."""

from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_cgroup import _station
from pytest_cgroup._backends import choose
from pytest_cgroup._cgroup import Cgroup
from pytest_cgroup._host import Host
from pytest_cgroup._namespaces import enter_user_namespace
from pytest_cgroup.exceptions import ContainerError
from tests.conftest import not_offered
from tests.kernel.contain import Lab, descriptors
from tests.kernel.forked import Who, become_ordinary, forked


@pytest.fixture(scope="session")
def user_namespaces() -> None:
    """Skip where an ordinary user gets no user namespace, whatever root gets."""

    def attempt() -> None:
        become_ordinary()
        enter_user_namespace()

    try:
        forked(attempt)
    except ContainerError as error:
        not_offered("user_ns", str(error))


@pytest.fixture(params=[pytest.param("root", marks=pytest.mark.requires("root")), "user"])
def who(request: pytest.FixtureRequest) -> Who:
    """Root, then an ordinary user."""
    if request.param == "user":
        request.getfixturevalue("user_namespaces")
    return Who(request.param)


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory below /tmp that everybody may reach and write."""
    with tempfile.TemporaryDirectory(prefix="namespaces-", dir="/tmp") as name:
        os.chmod(name, 0o777)
        yield Path(name)


@pytest.fixture(scope="session")
def host() -> Iterator[Host]:
    """This machine, tried once for all tests; its cgroup is there before the first of them."""
    found = Host()
    found.capability("cgroup")
    yield found
    found.close()


@pytest.fixture
def v2(host: Host) -> None:
    """Skip where it is not cgroup v2 alone."""
    if host.placement.kind != "v2":
        pytest.skip(f"a matter of pure cgroup v2; this host is {host.placement.kind}")


@pytest.fixture
def stage(host: Host) -> Iterator[Cgroup]:
    """A cgroup that stands for the scope, service or login session that pytest is started in, with all there is."""
    assert host.placement.session is not None
    made = host.placement.session.child("stage")
    made.make()
    yield made
    made.remove()


@pytest.fixture
def given_back() -> Iterator[None]:
    """What the containers of this process share is given back at the end, and nothing stays open."""
    before = descriptors()
    yield
    _station.close()
    gc.collect()
    assert {fd for fd in descriptors() if fd not in before} == set(), "descriptors were left open"


@pytest.fixture(params=[pytest.param("cgroup", marks=pytest.mark.requires("cgroup")), "process"])
def backend(request: pytest.FixtureRequest, given_back: None) -> str:
    """Each backend in turn, for containers of the library."""
    name: str = request.param
    return name


@pytest.fixture(params=[pytest.param("cgroup", marks=pytest.mark.requires("cgroup")), "process"])
def lab(request: pytest.FixtureRequest, host: Host) -> Iterator[Lab]:
    """Each backend in turn; nothing of it may stay open in this process."""
    found = Lab(host, choose(host, request.param))
    found.warm_up()
    before = descriptors()
    yield found
    assert descriptors() == before, "descriptors were left open"
