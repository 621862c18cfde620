"""One test in a container: pytest forks inside the item's set-up, and takes the child's reports for its own.

Theory of operation. A contained item's `setup` is replaced while it runs: it sets up the fixtures of higher scope,
forks, and waits; where nothing outside of the item is to be set up, the fork comes before any hook. The fork returns
in both processes, so the child goes on through the very same hooks (`_inside`). In pytest itself the rest of the
protocol, its own or the one of a plugin that reruns tests, runs on and notices nothing; but the hooks it then calls
for this item do not reach the plugins, which have been called in the child: the call looks whether the child has
reported one, the teardown destroys the container, and each phase's report is the child's (`_contained`, `_judge`).

What ended without a report gets one. No result is never a pass.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from . import _seam
from ._ahead import Ahead
from ._config import spec_key
from ._contained import Contained
from ._frames import leave_out_own_frames
from ._workshop import Workshop

if TYPE_CHECKING:
    from collections.abc import Generator

    from ._backends import Backend
    from ._host import Host
    from ._spec import Spec


class Runner:
    """The plugin that runs contained items; registered when there are any."""

    def __init__(self, config: pytest.Config, host: Host, backend: Backend, jobs: int) -> None:
        self._workshop = Workshop(config, host, backend)
        self._ahead = Ahead(self._workshop, jobs, self._contained)
        self._report_hook = _seam.report_hook(config, [self, *self._workshop.rerunners])
        self._ready: pytest.TestReport | None = None

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(
        self, item: pytest.Item, nextitem: pytest.Item | None
    ) -> Generator[None, object, object]:
        spec = item.stash.get(spec_key, None)
        if spec is None or item.config.option.setupplan or item is self._workshop.begun_early:
            return (yield)
        contained = self._ahead.take(item, nextitem, spec)
        contained.take_over()
        try:
            return (yield)
        except BaseException as error:
            if self._workshop.inside is not None:
                self._workshop.inside.interrupted(error)
            raise
        finally:
            contained.give_back()

    def _contained(self, item: pytest.Item, nextitem: pytest.Item | None, spec: Spec) -> Contained:
        return Contained(self._workshop, item, nextitem, spec, self._show_to_rerunners)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_makereport(self, call: pytest.CallInfo[Any]) -> pytest.TestReport | None:
        leave_out_own_frames(call)
        report, self._ready = self._ready, None
        return report

    def _show_to_rerunners(
        self, item: pytest.Item, call: pytest.CallInfo[Any], report: pytest.TestReport
    ) -> pytest.TestReport:
        """Let the plugins that run the protocol in pytest's place see the child's report as if it was made here."""
        if not self._workshop.rerunners:
            return report
        self._ready = report
        seen: pytest.TestReport = self._report_hook(item=item, call=_seam.with_stand_in(call, report))
        return seen

    def pytest_enter_pdb(self) -> None:
        if self._workshop.inside is not None:
            self._workshop.inside.tell(urgent=True, debugger=True)

    def pytest_leave_pdb(self) -> None:
        if self._workshop.inside is not None:
            self._workshop.inside.tell(urgent=True, debugger=False)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self) -> None:
        self._ahead.abort()

    def pytest_unconfigure(self) -> None:
        self._workshop.close()
