"""The hooks of the plugin: what a conftest.py, or another plugin, is told of containers, and may have a say in.

They are called where the container is: under pytest-xdist in the worker, and for the containers that a contained test
makes in its fixtures, in that test's own process. Implementations take the arguments they use, by name. Without any,
none of this costs anything.

A hook that raises is an error of the test that it was called for, told in its teardown's report with the traceback;
the container is killed, measured and reported all the same, and so is what the test itself had to say.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import pytest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import psutil

    from pytest_cgroup import Leak, Outcome, Spec, Usage


class Lacking(Protocol):
    """Whether one thing is offered; where it is not, why, and what helps."""

    @property
    def offered(self) -> bool:
        """Whether it works here: it was tried."""

    @property
    def reason(self) -> str:
        """Why it does not; empty where it does."""

    @property
    def remedy(self) -> str:
        """What helps."""


class Offers(Protocol):
    """What this machine offers, as `pytest_cgroup_backend` is given it."""

    def capability(self, name: str) -> Lacking:
        """Of the doctor's list: ``"memory"``, ``"pids"``, ``"net_ns"``, …"""


class AnyContainer(Protocol):
    """What is the same of a test's own container, and of one that was made by a fixture."""

    @property
    def name(self) -> str:
        """Part of its directory's name."""

    @property
    def spec(self) -> Spec:
        """What is asked of it."""

    @property
    def limits(self) -> Mapping[str, str]:
        """The limits in force: as read back from the kernel, or watched from here."""

    def usage(self) -> Usage:
        """What it has used so far; times in seconds, sizes in bytes."""

    def processes(self) -> list[psutil.Process]:
        """What lives in it."""

    def stats(self) -> dict[str, str]:
        """The files of its cgroup, by the kernel's names; none where there is none, and after its end."""


@pytest.hookspec
def pytest_contained_spec(item: pytest.Item, spec: Spec) -> Mapping[str, Any] | None:
    """Called at collection for each test that is to be contained: fields to be set, over all that was written.

    Args:
        item: the test.
        spec: what marker, command line and ini file say together.

    Returns:
        Fields as the marker takes them, ``{"timeout": 60}``, or None. Where several answer, the one that is called
        first wins, field by field. A wrong one is an error of the test.

    Example::

        def pytest_contained_spec(item, spec):
            if "slow" not in item.keywords and spec.timeout is None:
                return {"timeout": 60}
    """


@pytest.hookspec
def pytest_container_started(container: AnyContainer, item: pytest.Item | None) -> None:
    """Called when a container was made, its limits in force, and nobody is in it yet.

    A test's may be made while the test before still runs.

    Args:
        container: of a test, or of `contained` or `contained_factory`; then it is a `pytest_cgroup.Container`.
        item: the test whose own container it is; None for one that a fixture has made.

    Example::

        def pytest_container_started(container):
            log.info("%s: %s", container.name, container.limits)
    """


@pytest.hookspec
def pytest_container_finished(container: AnyContainer, item: pytest.Item | None, outcome: Outcome) -> None:
    """Called when a container was killed whole, measured and removed. Of a fixture's, when that is torn down.

    Args:
        container: the same object that `pytest_container_started` was given.
        item: as there.
        outcome: what came of it.

    Example::

        def pytest_container_finished(item, outcome):
            if item is not None and (outcome.usage.pids_peak or 0) > 100:
                pytest.fail("a test of ours has no business with a hundred processes")
    """


@pytest.hookspec
def pytest_process_leak(item: pytest.Item, leaks: Sequence[Leak]) -> None:
    """Called when a test has left processes behind, before that is reported; they are dead by now.

    It is called whatever ``leaks`` of the test says, but ``"ignore"``. What fixtures of higher scope leave is told to
    the test that is said to have left it: the last one that used them.

    Args:
        item: the test.
        leaks: what it left, with command line, parents and owner.

    Example::

        def pytest_process_leak(item, leaks):
            for leak in leaks:
                statistics[leak.argv[0]] += 1
    """


@pytest.hookspec(historic=True)
def pytest_cgroup_backend(name: str, host: Offers) -> None:
    """Called when it was chosen how containers are made in this process: with the first that is needed.

    A plugin that is registered later is told then. What it raises is a warning: no test is there to take it.

    Args:
        name: ``"cgroup"``, ``"process"`` or ``"exec"``.
        host: what this machine offers, each thing tried when it is asked for.

    Example::

        def pytest_cgroup_backend(name, host):
            if "CI" in os.environ and not host.capability("memory").offered:
                pytest.exit("this runner can't limit memory")
    """
