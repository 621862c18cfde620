"""What every test has: skips with the host's own reason, an ordinary user, and a check that nothing is left behind."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from typing import NoReturn

import pytest

from pytest_cgroup._host import Host
from pytest_cgroup._recover import NO_RECOVERY
from tests.as_user import NoInterpreterError, OrdinaryUser, ordinary_user
from tests.leftovers import Watch, one_recovery

# Where it is known what the host offers (CI), a skip for the lack of it is a failure: a comma list, or "all".
MUST_WORK = frozenset(re.findall(r"[^,\s]+", os.environ.get("PYTEST_CGROUP_MUST_WORK", "")))

_host = pytest.StashKey[Host]()


def not_offered(name: str, why: str) -> NoReturn:
    """Skip the test for want of *name*, or fail it where *name* must work."""
    if MUST_WORK & {name, "all"}:
        pytest.fail(f"{name} must work here (PYTEST_CGROUP_MUST_WORK) and does not: {why}", pytrace=False)
    pytest.skip(f"{name}: {why}")


def pytest_configure(config: pytest.Config) -> None:
    """Step into a leaf, where cgroup v2 wants that: then the runs of pytest that the tests start have limits, too.

    A shell that starts us in the background has us, and what we start, ignore Ctrl-C: the tests send it on purpose.
    """
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    os.environ.setdefault(NO_RECOVERY, "1")  # or the runs that the tests start clean up after each other's dead ones
    host = config.stash[_host] = Host()
    config.add_cleanup(host.close)
    host.capability("cgroup")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test that requires what this host does not offer."""
    for mark in item.iter_markers("requires"):
        for name in mark.args:
            if name == "root" and os.geteuid() != 0:
                not_offered(name, "not run as root")
            # Root of a rootless container may not do what root may.
            capability = item.config.stash[_host].capability("privileged" if name == "root" else name)
            if not capability.offered:
                remedy = f"; {capability.remedy}" if capability.remedy not in capability.reason else ""
                not_offered(name, capability.reason + remedy)


@pytest.fixture(autouse=True)
def _nothing_left_behind() -> Iterator[None]:
    """Fail any test that leaves a process or a cgroup behind."""
    watch = Watch()
    try:
        yield
    finally:
        left = watch.finish()
    if left:
        pytest.fail("left behind by this test:\n  " + "\n  ".join(left), pytrace=False)


@pytest.fixture
def no_other_recovery() -> Iterator[None]:
    """For the tests that leave a dead session behind, or clean up after one."""
    with one_recovery():
        yield


@pytest.fixture(scope="session")
def unprivileged() -> Iterator[OrdinaryUser]:
    """An ordinary user: `.run(argv)`, `.popen(argv)`, `.python`, `.home`; packages and Python are readable to them."""
    try:
        with ordinary_user() as user:
            yield user
    except NoInterpreterError as error:
        not_offered("unprivileged", str(error))
