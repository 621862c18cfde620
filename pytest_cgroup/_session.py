"""One run of pytest: its settings, and, from the first contained test on, its host, backend and runner."""

from __future__ import annotations

import contextlib
import sys
from functools import cached_property
from typing import TYPE_CHECKING

import pytest

from ._frames import depth_of_caller
from ._isolated import os
from ._settings import Settings, asks_for_containers, wanting_container
from .exceptions import CgroupError, ContainedWarning

if TYPE_CHECKING:
    from ._backends import Backend
    from ._fixtures import Containers
    from ._host import Host
    from ._leak_report import LeakReport
    from ._owners import Accounts


class Session:
    """What lives from `pytest_configure` to `pytest_unconfigure`."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.settings = Settings(config)
        self._host: Host | None = None
        self._backend: Backend | None = None
        self._said = False
        self._owner = os.getpid()
        if self.settings.json and not hasattr(config, "workerinput") and not config.option.collectonly:
            from ._report import JsonLines

            config.pluginmanager.register(JsonLines(self.settings.json, self.settings.json_from), "cgroup-json")
        if _tells_github() and not hasattr(config, "workerinput") and not config.option.collectonly:
            from ._github import GitHub

            config.pluginmanager.register(GitHub(config), "cgroup-github")
        try:
            self._try_what_was_asked_for()
        except BaseException:  # nobody will ever close what is not made
            self.close()
            raise

    def _try_what_was_asked_for(self) -> None:
        """What was asked for by name is tried at once, so that it is refused at once."""
        if self.settings.base is not None or self.settings.backend == "cgroup":
            try:
                host, _ = self._use()
                if self.settings.base is not None:
                    from ._backends import check_base

                    check_base(host, self.settings.base)
            except CgroupError as error:
                raise pytest.UsageError(str(error)) from error
        if self.settings.process_leaks != "off" and not self.config.option.collectonly:
            self._watch_leaks()

    def header(self) -> str | None:
        """The rung, in one line, where an option says that it will matter."""
        if not self.settings.everything and self._backend is None:
            return None
        return self._say()

    @cached_property
    def containers(self) -> Containers:
        """Those of the fixtures `contained` and `contained_factory`."""
        from ._fixtures import Containers

        return Containers(self.config, self.settings, self._use)

    def prepare(self, items: list[pytest.Item]) -> None:
        """Decide for each item whether and how it is contained; the first one brings the machinery."""
        self._tell_of_lacking_limits(items)
        if contained := wanting_container(items, self.settings):
            self._prepare_contained(contained)
        if not self.config.option.collectonly and any(map(asks_for_containers, items)):
            self.containers.prepare()

    def _prepare_contained(self, contained: list[pytest.Item]) -> None:
        from ._config import Trouble, trouble_key

        plugins = self.config.pluginmanager
        self._tell_trouble()
        if sys.platform != "linux":
            self._decide(contained, None)
            return
        if (why := self._impossible()) is not None:
            for item in contained:
                item.stash[trouble_key] = Trouble(why, on_this_host=True)
            return
        from ._runner import Runner

        host, backend = self._use()
        self._decide(contained, backend)
        if not plugins.has_plugin("cgroup-runner"):
            plugins.register(Runner(self.config, host, backend, self.settings.jobs), "cgroup-runner")

    def _tell_trouble(self) -> None:
        from ._config import TroubleTeller

        plugins = self.config.pluginmanager
        if not plugins.has_plugin("cgroup-trouble"):
            plugins.register(TroubleTeller(), "cgroup-trouble")

    def _tell_of_lacking_limits(self, items: list[pytest.Item]) -> None:
        """In a worker that was to have limits, and has none: what becomes of its tests is --cgroup-missing's matter."""
        lacking = getattr(self.config, "workerinput", {}).get("pytest_cgroup_lacking")
        if lacking is None:
            return
        from ._config import lacks

        self._tell_trouble()
        for item in items:
            lacks(item, self.settings, lacking)

    def _decide(self, contained: list[pytest.Item], backend: Backend | None) -> None:
        from ._config import decide, shared_key

        for item in contained:
            decide(item, self.settings, backend)
        if any(shared_key in item.stash for item in contained):
            self._watch_leaks()

    def _watch_leaks(self) -> None:
        """Look for leaks in place. xdist's controller runs no tests: it only tells what the workers found."""
        plugins = self.config.pluginmanager
        if plugins.has_plugin("cgroup-leak-report"):
            return
        from ._leak_report import ControllerLeakReport, LeakReport

        if self._is_controller:
            report: LeakReport = ControllerLeakReport(self.config)
        else:
            report = LeakReport(self.config)
            self._watch_leaks_here(report)
        plugins.register(report, "cgroup-leak-report")

    @property
    def _is_controller(self) -> bool:
        """Whether this is pytest-xdist's controller, which runs no tests, and sees the reports of all."""
        return not hasattr(self.config, "workerinput") and getattr(self.config.option, "dist", "no") != "no"

    def _watch_leaks_here(self, report: LeakReport) -> None:
        from ._leak_teller import LeakTeller
        from ._leaks import LeakWatch

        policy = None if self.settings.process_leaks == "off" else self.settings.process_leaks
        manager = self.config.pluginmanager
        teller = LeakTeller(policy, report, manager)
        manager.register(LeakWatch(self._accounts(), policy, report, teller), "cgroup-leaks")

    def _accounts(self) -> Accounts:
        """Who owns which process, from now on."""
        settings = self.settings
        if sys.platform != "linux":
            from ._elsewhere import Descendants

            return Descendants(settings.settle_seconds, settings.ignore, keep_pools=settings.keep_pools)
        from ._guard import CONTROLLER, watch_over
        from ._owners import Book
        from ._shared import open_ground

        try:
            host, backend = self._use()
        except (CgroupError, OSError) as error:
            raise pytest.UsageError(f"--process-leaks: {error}") from error
        # before pytest stands where all is killed with it: the guard stands beside it
        controller = getattr(self.config, "workerinput", {}).get(CONTROLLER)
        processes = backend.needs_reaper
        unguarded = watch_over(host, processes=processes, controller=controller, in_place=settings.ignore)
        if unguarded is not None:
            self._warn(unguarded)
        announce = None if host.guard is None else host.guard.announce_fork
        try:
            ground = open_ground(host.placement.session if backend.name == "cgroup" else None, announce)
        except (CgroupError, OSError) as error:
            raise pytest.UsageError(f"--process-leaks: {error}") from error
        return Book(
            ground,
            root=str(self.config.rootpath),
            settle_seconds=settings.settle_seconds,
            ignore=settings.ignore,
            keep_pools=settings.keep_pools,
            also=settings.also,
        )

    def _warn(self, text: str) -> None:
        """Warn while there is no test yet, of whoever called us: no line of our own is of use to who reads it."""
        try:
            self.config.issue_config_time_warning(ContainedWarning(text), stacklevel=depth_of_caller() + 2)
        except ContainedWarning as error:  # -W error
            raise pytest.UsageError(str(error)) from error

    def _impossible(self) -> str | None:
        """Why no test at all can be contained here."""
        from . import _seam

        if (problem := _seam.problems()) is not None:
            return problem
        try:
            self._use()
        except (CgroupError, OSError) as error:
            return f"contained: {error}"
        return None

    def before_workers(self) -> None:
        """On cgroup v2 step aside before pytest-xdist starts its workers: then they stand aside as well.

        Who starts them collects nothing and cannot know whether they will need it; but where this process stays in the
        base, no worker can give a limit.
        """
        self._watch_leaks()  # a mark alone may ask for it, and who sees no mark tells what the workers found
        if sys.platform == "linux" and self._host is None:
            with contextlib.suppress(CgroupError, OSError):  # the workers say what is wrong, on the tests that want it
                self._step_aside()
        from ._xdist import CrashTeller, WorkerLimits

        limits = None
        if (asked := self.settings.of_a_worker) and self._host is not None and self._backend is not None:
            limits = WorkerLimits(asked, self._host, self._backend)
            self.config.pluginmanager.register(limits, "cgroup-workers")
        self.config.pluginmanager.register(CrashTeller(limits), "cgroup-crashes")

    def _step_aside(self) -> None:
        from ._guard import watch_over
        from ._placement import has_to_step_aside

        if not (has_to_step_aside() or self.settings.of_a_worker):
            return
        host, backend = self._use()
        if backend.name == "cgroup":
            watch_over(host, processes=False)

    def prepare_worker(self, workerinput: dict[str, object]) -> None:
        """Tell a worker of pytest-xdist who this is: its guard ends it if we are killed."""
        if sys.platform == "linux" and os.path.exists("/proc/self/stat"):
            from ._guard import CONTROLLER
            from ._ownership import this_process

            with contextlib.suppress(CgroupError):  # then the worker ends as it does without us
                workerinput[CONTROLLER] = str(this_process())

    def after_collection(self) -> str | None:
        """The rung, in one line, once it is known that a contained test was collected."""
        return self._say() if self._backend is not None else None

    def summary(self, reporter: pytest.TerminalReporter) -> None:
        """The table of what was used, and what was killed."""
        if self.settings.most is None and self._backend is None and not self._is_controller:
            return
        from ._report import summary

        summary(reporter, self.settings.most, self._rung_of_workers)

    def _rung_of_workers(self, used: set[str]) -> str | None:
        """The rung, where workers collected, and so no line at the start could know that it would matter."""
        with contextlib.suppress(CgroupError, OSError):
            self._use()
        if self._backend is not None and used == {self._backend.name}:
            return self._say()
        return None if self._said else f"contained: {', '.join(sorted(used))}"  # a worker is another host, perhaps

    def close(self) -> None:
        """Give back what was taken of the host; not in a forked child of ours, which is not the one that took it."""
        if self._host is None or os.getpid() != self._owner:
            return
        try:
            if (station := sys.modules.get("pytest_cgroup._station")) is not None:
                station.close()  # what containers took of the host
            from . import _backends

            _backends.of_this_run = None
            self._host.close()
        except (CgroupError, OSError) as error:  # the run is over, and its verdicts stand
            sys.stderr.write(f"pytest-cgroup: can't clean up after this run: {error}\n")

    def _use(self) -> tuple[Host, Backend]:
        """The host and the backend, chosen on first use.

        Raises:
            CgroupError: what was asked for by name can't be had here.
        """
        if self._host is None or self._backend is None:
            from . import _backends
            from ._host import Host

            settings = self.settings
            self._host = Host(settings.base, scope=settings.scope, take_over=settings.take_over)
            try:
                self._backend = _backends.choose(self._host, settings.backend, settings.slices)
            except BaseException:
                self._host.close()
                raise
            _backends.of_this_run = _backends.Run(
                self._owner, self._host, self._backend, settings.backend, settings.slices
            )
            self._tell_backend(self._host, self._backend)
        return self._host, self._backend

    def _tell_backend(self, host: Host, backend: Backend) -> None:
        from . import _hooks

        trouble = _hooks.tell(self.config.hook, "pytest_cgroup_backend", name=backend.name, host=host)
        if trouble is not None:
            self.config.issue_config_time_warning(ContainedWarning(trouble), stacklevel=2)

    def _say(self) -> str | None:
        if self._said:
            return None
        self._said = True
        if sys.platform != "linux":
            return "contained: on Linux only"
        return self._impossible() or f"contained: {self._use()[1].describe()}{self._say_jobs()}"

    def _say_jobs(self) -> str:
        if self.settings.jobs == 1:
            return ""
        from ._ahead import why_not

        why = why_not(self.config)
        return f"; up to {self.settings.jobs} tests at once" if why is None else f"; one test at a time: {why}"


def _tells_github() -> bool:
    """Whether this is a step of GitHub Actions, and not a pytest that a test of such a step runs."""
    return os.environ.get("GITHUB_ACTIONS") == "true" and "PYTEST_CURRENT_TEST" not in os.environ
