"""The section "process leaks" at the end of a run, gathered from the tests' reports and from xdist's workers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from . import _seam
from ._outcome import Leak
from ._verdict import counted, leak_line, leaks_as_property, leaks_in_place, one_line

if TYPE_CHECKING:
    from collections.abc import Iterable

_OUTPUT = "cgroup_process_leaks"


class LeakReport:
    """The plugin that tells of leaks at the end of a run, or tells xdist's controller.

    Attributes:
        failed: whether the run is to fail for a leak that is no test's.
        trouble: why leaks were looked for no longer; None if they were to the end.
    """

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._leaks: list[Leak] = []
        self._of_no_test: list[Leak] = []
        self._late: list[tuple[str, tuple[str, int | None, str], str, list[dict[str, object]]]] = []
        self._late_here = False
        self.failed = False
        self.trouble: str | None = None

    def add_told(self, leaks: Iterable[Leak]) -> None:
        """Leaks that a test's report tells of."""
        self._leaks += leaks

    def add(self, leaks: Iterable[Leak], *, failed: bool = False) -> None:
        """Leaks that no test's report tells of."""
        self._of_no_test += leaks
        self.failed = self.failed or failed

    def blame(self, nodeid: str, location: tuple[str, int | None, str], text: str, leaks: Iterable[Leak]) -> None:
        """An error of a test that has had all of its reports. A worker can't make one more: the controller does."""
        if hasattr(self._config, "workerinput"):
            self._late.append((nodeid, location, text, [leak.to_json() for leak in leaks]))
        else:
            leaks = list(leaks)
            self._log(_error(nodeid, location, text, leaks))
            self.add_told(leaks)
            self._late_here = True

    def _log(self, report: pytest.TestReport) -> None:
        self._config.hook.pytest_runtest_logreport(report=report)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        output = getattr(self._config, "workeroutput", None)
        if output is not None:
            leaks = [leak.to_json() for leak in self._of_no_test]
            output[_OUTPUT] = {"leaks": leaks, "failed": self.failed, "late": self._late, "trouble": self.trouble}
            return
        if (self.failed or self.trouble) and session.exitstatus in (
            pytest.ExitCode.OK,
            pytest.ExitCode.NO_TESTS_COLLECTED,
        ):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        if self._of_no_test:
            _seam.add_junit_property(self._config, *leaks_as_property(self._of_no_test))
            if (lines := self._config.pluginmanager.get_plugin("cgroup-json")) is not None:
                lines.add(self._of_no_test)
            if (ci := self._config.pluginmanager.get_plugin("cgroup-github")) is not None:
                ci.add(self._of_no_test, failed=self.failed)
        if self._of_no_test or self._late_here:
            _seam.write_junit_again(self._config)  # it was written before the last fixtures were torn down

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        found = [*self._leaks, *self._of_no_test]
        if not found and self.trouble is None:
            return
        terminalreporter.section("process leaks")
        if self.trouble is not None:
            terminalreporter.write_line(f"not looked for to the end of the run: {one_line(self.trouble)}")
        by_owner: dict[str, list[Leak]] = {}
        for leak in found:
            by_owner.setdefault(leak.owner or "?", []).append(leak)
        for owner, leaks in by_owner.items():
            terminalreporter.write_line(f"{one_line(owner)} left behind {counted(leaks)}:")
            for leak in leaks:
                terminalreporter.write_line(f"  {leak_line(leak)}")


class ControllerLeakReport(LeakReport):
    """The same in xdist's controller, which runs no tests, and sees the reports of all."""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "teardown":
            self.add_told(leaks_in_place(report))

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        told = getattr(node, "workeroutput", {}).get(_OUTPUT)
        if not told:
            return
        self.add(map(Leak.from_json, told["leaks"]), failed=bool(told["failed"]))
        self.trouble = self.trouble or told["trouble"]
        for nodeid, location, text, leaks in told["late"]:
            report = _error(nodeid, tuple(location), text, map(Leak.from_json, leaks))
            report.node = node  # type: ignore[attr-defined]  # xdist does so with its own
            self._log(report)


def _error(nodeid: str, location: tuple[str, int | None, str], text: str, leaks: Iterable[Leak]) -> pytest.TestReport:
    """One more teardown report of a test."""
    return pytest.TestReport(
        nodeid=nodeid,
        location=location,
        keywords={},
        outcome="failed",
        longrepr=text,
        when="teardown",
        user_properties=[leaks_as_property(leaks)],
    )
