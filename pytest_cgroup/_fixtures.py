"""The fixtures `contained` and `contained_factory`: containers that are made in tests, and end with who asked for them.

Theory of operation. Outside of a contained test they stand beside the tests' own containers, below the session's
cgroup: this process's `_station` is lent pytest's host and backend. In the forked child of a contained test there is
another station (`_station._after_fork`), which finds the test's own container to be where it stands, and nests in it.

`contained_factory` is of session scope, since fixtures of every scope may ask for it, and has to know which one did:
what is made lives as long as that. So whoever asks is given a factory of their own (`FactoryFor`), which is closed when
they are torn down.
"""

from __future__ import annotations

import contextlib
import sys
import warnings
import weakref
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from . import _seam
from ._hooks import tell
from ._isolated import os
from ._spec import NEEDING
from .exceptions import CgroupError, ContainedWarning, ContainerError, NotOffered, SpecError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from ._backends import Backend
    from ._host import Host
    from ._library import Container
    from ._settings import Settings


class Factory:
    """What `contained_factory` is: makes containers that live as long as who asked for it.

    Args:
        containers: makes them.
        name: theirs, unless they are given another.
    """

    def __init__(self, containers: Containers, name: str) -> None:
        self._containers = containers
        self._name = name
        self._made: list[Container] = []
        self._from_child = containers.in_child

    def __repr__(self) -> str:
        return f"<contained_factory of {self._name}>"

    def __call__(self, *, backend: str | None = None, name: str | None = None, **spec: Any) -> Container:
        """A container, started: see `pytest_cgroup.Container` for what can be asked of it."""
        __tracebackhide__ = True
        container = self._containers.start(name or self._name, spec, backend)
        self._made.append(container)
        if self._containers.in_child and not self._from_child:
            self._containers.strays.append(container)
        return container

    def close(self) -> None:
        """End them all, the last one first."""
        __tracebackhide__ = True
        made, self._made = self._made, []
        self._containers.end(made[::-1])


class FactoryFor:
    """Gives whoever asks for `contained_factory` one of their own; registered with the first who does."""

    def __init__(self, containers: Containers) -> None:
        self._containers = containers

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_fixture_setup(self, fixturedef: Any, request: pytest.FixtureRequest) -> Generator[None, object, object]:
        with self._given_to(request, fixturedef.argname, fixturedef.addfinalizer):
            return (yield)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_pyfunc_call(self, pyfuncitem: pytest.Function) -> Generator[None, object, object]:
        item, containers = pyfuncitem, self._containers
        if containers.in_child:
            item.addfinalizer(containers.end_strays)
        if isinstance(item.funcargs.get("contained_factory"), Factory):
            item.funcargs["contained_factory"] = factory = Factory(containers, item.name)
            item.addfinalizer(factory.close)
        if isinstance(request := item.funcargs.get("request"), pytest.FixtureRequest):
            with self._given_to(request, item.name, item.addfinalizer):
                return (yield)
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        if self._containers.in_child:  # what was made in there nobody outside knows of
            self._containers.show_daemons(report)
        return report

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._containers.show_daemons(report)

    @contextlib.contextmanager
    def _given_to(
        self, request: pytest.FixtureRequest, name: str, add_finalizer: Callable[[Callable[[], object]], None]
    ) -> Iterator[None]:
        """Whoever holds *request* gets it by `getfixturevalue`, as pytest itself gets a fixture's arguments."""
        get = request.getfixturevalue

        def getfixturevalue(argname: str) -> Any:
            __tracebackhide__ = True
            value = get(argname)
            if not isinstance(value, Factory):
                return value
            factory = Factory(self._containers, name)
            add_finalizer(factory.close)
            return factory

        request.getfixturevalue = getfixturevalue  # type: ignore[method-assign]
        try:
            yield
        finally:
            vars(request).pop("getfixturevalue", None)


class Containers:
    """The containers of fixtures of one run.

    Args:
        config: pytest's.
        settings: the options.
        use: this host, and the backend that was chosen.
    """

    def __init__(self, config: pytest.Config, settings: Settings, use: Callable[[], tuple[Host, Backend]]) -> None:
        self._config = config
        self._settings = settings
        self._use = use
        #: made in a forked child for somebody who lives outside of it: they end with the child
        self.strays: list[Container] = []
        #: those that live, and were made in this process
        self._living: weakref.WeakSet[Container] = weakref.WeakSet()
        self._pid = os.getpid()
        self._troubles: dict[Container, list[str]] = {}

    @property
    def in_child(self) -> bool:
        """Whether this is the forked child of a contained test."""
        entry = sys.modules.get("pytest_cgroup._entry")  # with the first contained test
        return entry is not None and entry.inside

    def prepare(self) -> None:
        """Be ready for who asks. Here file descriptor 2 is still the one that pytest was started with."""
        self._watch_who_asks()
        if sys.platform == "linux":
            with contextlib.suppress(CgroupError, OSError):  # said to who asks
                self._lend()

    def factory(self) -> Factory:
        """The one of the session; who asks by name gets one of their own."""
        self._watch_who_asks()
        return Factory(self, "contained_factory")

    def factory_of(self, name: str) -> Factory:
        """One for a single asker."""
        return Factory(self, name)

    def _watch_who_asks(self) -> None:
        if not self._config.pluginmanager.has_plugin("cgroup-fixtures"):
            self._config.pluginmanager.register(FactoryFor(self), "cgroup-fixtures")

    def start(self, name: str, asked: dict[str, Any], backend: str | None) -> Container:
        """A container that lives; where it can't be had the test is skipped, or fails, as ``--cgroup-missing`` says."""
        __tracebackhide__ = True
        if sys.platform != "linux":
            self._refuse("everything: tests are contained on Linux only (run them there)")
        from ._library import Container

        try:
            if not self.in_child:
                self._lend()
            container = Container(name=name, backend=backend or self._settings.backend, **asked).start()
        except SpecError as error:
            raise error.with_traceback(None) from None  # the line that is wrong is its user's
        except NotOffered as why:
            lacking = {*why.missing, *(needing for field in why.missing for needing in NEEDING.get(field, ()))}
            if self._settings.missing == "warn" and lacking & asked.keys():
                warnings.warn(ContainedWarning(f"{name}: runs without: {_bare(why)}"), stacklevel=3)
                rest = {field: value for field, value in asked.items() if field not in lacking}
                return self.start(name, rest, backend)
            self._refuse(_bare(why))
        except OSError as error:
            pytest.fail(f"contained: {error}", pytrace=False)
        if self._pid != os.getpid():  # in the forked child of a contained test the others are the parent's
            self._pid, self._living = os.getpid(), weakref.WeakSet()
        self._living.add(container)
        self._troubles[container] = self._tell("pytest_container_started", container)
        return container

    def show_daemons(self, report: pytest.TestReport) -> None:
        """On the report of a failure, the last that the daemons have printed that live, here and now."""
        if report.outcome != "failed" or self._pid != os.getpid():
            return
        for container in sorted(self._living, key=lambda container: container.name):
            daemons = None if container._life is None or container.outcome is not None else container._life.daemons
            for title, text in [] if daemons is None else daemons.sections():
                report.sections.append((f"{title} of {container.name}", text))

    def _refuse(self, why: str) -> NoReturn:
        __tracebackhide__ = True
        text = why if why.startswith("nothing can be contained") else f"this host can't honour {why}"
        if self._settings.missing == "fail":
            pytest.fail(f"contained: {text}", pytrace=False)
        _seam.skip(f"contained: {text}")

    def _lend(self) -> None:
        """Containers of this process are pytest's: of its host, its backend, and guarded with it."""
        from . import _station
        from ._guard import CONTROLLER, watch_over

        host, backend = self._use()
        if host.guard is None:
            controller = getattr(self._config, "workerinput", {}).get(CONTROLLER)
            watch_over(host, processes=backend.needs_reaper, controller=controller)
        _station.station().lend(host, backend, asked=self._settings.backend)

    def end_strays(self) -> None:
        """In the child: nobody else will end them."""
        __tracebackhide__ = True
        strays, self.strays = self.strays, []
        self.end(strays[::-1])

    def end(self, containers: list[Container]) -> None:
        """End *containers*. What was left in one is no failure, unless that was asked of it; what a hook raises is."""
        __tracebackhide__ = True
        failed = []
        for container in containers:
            try:
                container.finish()
            except ContainerError as error:
                failed.append(str(error))
            failed += self._troubles.pop(container, ())
            failed += self._tell("pytest_container_finished", container, outcome=container.outcome)
        if failed:
            pytest.fail("\n".join(failed), pytrace=False)

    def _tell(self, hook: str, container: Container, **arguments: object) -> list[str]:
        trouble = tell(self._config.hook, hook, container=container, item=None, **arguments)
        return [] if trouble is None else [trouble]


def _bare(why: NotOffered) -> str:
    """What can't be honoured, reason and remedy, without the words that `Container` says it with."""
    return str(why).removeprefix("contained: this host can't honour ")
