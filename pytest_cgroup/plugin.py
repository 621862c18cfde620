"""The pytest plugin: hooks and fixtures, and nothing else.

The path of the data:

    marker kwargs -> Spec (validated) -> Backend (chosen from what the Host offers) -> Container started
    -> the tree runs -> killed whole, measured -> Outcome (Usage + Leaks + how it ended) -> verdict
    -> report -> summary, JUnit, JSON

Everything that costs is imported when the first contained test is found: without one, and without an option, this
module is all there is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from ._isolated import os

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ._library import ContainedFactory, Container
    from ._session import Session

session_key: pytest.StashKey[Session] = pytest.StashKey()


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    from . import hookspecs

    pluginmanager.add_hookspecs(hookspecs)


def pytest_addoption(parser: pytest.Parser) -> None:
    from ._settings import add_options

    if os.environ.get("PYTEST_CGROUP_DEBUG"):
        from . import _trace  # noqa: F401  # while stderr is still the one that pytest was started with
    add_options(parser)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    from ._session import Session

    config.addinivalue_line("markers", _marker_help(config))
    config.stash[session_key] = Session(config)


def _marker_help(config: pytest.Config) -> str:
    """What --markers shows, and without it the name alone."""
    if not config.getoption("markers", False):
        return "contained: run the test in a container of its own"
    from ._spec import marker_help

    return marker_help()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(config: pytest.Config) -> None:
    config.stash[session_key].before_workers()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    node.config.stash[session_key].prepare_worker(node.workerinput)


def pytest_report_header(config: pytest.Config) -> str | None:
    return config.stash[session_key].header()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    config.stash[session_key].prepare(items)


def pytest_report_collectionfinish(config: pytest.Config) -> str | None:
    return config.stash[session_key].after_collection()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    config.stash[session_key].summary(terminalreporter)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    if (session := config.stash.get(session_key, None)) is not None:
        session.close()


@pytest.fixture
def contained(request: pytest.FixtureRequest) -> Iterator[Container]:
    """A container of the test's own, to start programs in: inside the test's, if the test is contained."""
    factory = request.config.stash[session_key].containers.factory_of(request.node.name)
    yield factory()
    factory.close()


@pytest.fixture(scope="session")
def contained_factory(request: pytest.FixtureRequest) -> Iterator[ContainedFactory]:
    """Makes containers, `contained_factory(memory="64M")`, that end with the test or the fixture that asked for it."""
    factory = request.config.stash[session_key].containers.factory()
    yield factory
    factory.close()
