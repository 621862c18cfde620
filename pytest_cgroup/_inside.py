"""The forked child of a contained test: it goes on where pytest forked, and tells what it finds.

Nothing of pytest's own flow is rebuilt here. The child returns from the item's set-up and runs through the same hooks,
fixtures and reports as ever; what differs is that a report goes over a pipe as soon as it is made, and that the
process ends when the teardown's has gone.
"""

from __future__ import annotations

import contextlib
import faulthandler
import linecache
import sys
import warnings
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from . import _seam
from ._coverage import save_coverage
from ._isolated import os, select, signal
from ._process import family, own_zombies
from ._reaper import NOT_ENTERED
from ._started import Starts
from ._wire import encode, sanitise

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._output import Output

#: the parent asks for the Python stacks with this signal before it kills; a test has no use for it
DUMP_SIGNAL = getattr(signal, "SIGRTMAX", 64) - 1


#: on the pipe of the stacks: "read the other pipe now"
DOORBELL = b"\x07"
#: as often it is looked who is left, if looking fails
_LOOKS = 3


class Inside:
    """What the child knows of itself.

    Args:
        item: the test.
        output: the files to capture into.
        ends: descriptors: one that messages are written to; one that Python stacks are written to, by faulthandler;
            and one that has a byte when the child may go on after a report, None: it need not wait.
        hooks: the item's, to be bent to the child's ends.
    """

    def __init__(
        self, item: pytest.Item, output: Output, ends: tuple[int, int, int | None], hooks: _seam.Hooks
    ) -> None:
        self.item = item
        self._hooks = hooks
        self._in_call = False
        self._output = output
        self._pipe, self._stacks, self._go = ends
        self._line = _seam.terminal_line(item.config)
        self._pid = os.getpid()
        self._told: list[pytest.TestReport] = []
        self._warned = 0
        self._warnings: list[warnings.WarningMessage] | None = None
        self._starts: Starts | None = None
        #: called when everything is told
        self.part: Callable[[], None] = lambda: None

    def begin(self) -> None:
        """Part with what is the parent's: its finalizers, capture files, warnings, and those who listen to reports."""
        item, config = self.item, self.item.config
        os.set_blocking(self._pipe, False)  # a test that writes into what it does not know gets an error, and no hang
        _seam.forget_outer_finalizers(item)
        _seam.take_junit(item)  # it is told already
        _seam.capture_into(config, self._output.files, self._output.snap)
        faulthandler.enable(file=self._stacks, all_threads=True)
        faulthandler.register(DUMP_SIGNAL, file=self._stacks, all_threads=True, chain=False)
        _seam.dump_stacks_late(config)
        self._starts = Starts(str(config.rootpath))
        if config.pluginmanager.has_plugin("warnings"):
            self._warnings = warnings.catch_warnings(record=True).__enter__()
        self._bend_hooks(self._hooks)

    def _bend_hooks(self, hooks: _seam.Hooks) -> None:
        """Nobody in the child listens to reports but us; a phase's own report is the one made outside of its hook."""
        call_hook, makereport_hook = hooks.pytest_runtest_call, hooks.pytest_runtest_makereport

        def call(*, item: pytest.Item) -> None:
            self._in_call = True
            try:
                call_hook(item=item)
            finally:
                self._in_call = False

        def makereport(*, item: pytest.Item, call: pytest.CallInfo[Any]) -> pytest.TestReport:
            report: pytest.TestReport = makereport_hook(item=item, call=call)
            if not (self._in_call and call.when == "call"):  # or it is a subtest's, which is logged by itself
                self.phase_reported(call, report)
            return report

        hooks.pytest_runtest_call = call
        hooks.pytest_runtest_makereport = makereport
        hooks.pytest_runtest_logreport = self.tell_report

    def tell_report(self, report: pytest.TestReport) -> None:
        """Every report that pytest logs in the child goes home: the phases', and each subtest's."""
        if any(report is told for told in self._told):
            return
        self._told.append(report)
        self.flush()
        config = self.item.config
        message = {
            "report": config.hook.pytest_report_to_serializable(config=config, report=report),
            "positions": self._output.positions,
            "warnings": self._new_warnings(),
            "was_text": isinstance(report.longrepr, str),
            "failed_subtests": _seam.failed_subtests(self.item),
        }
        if self._go is None:
            self.tell(**message)
            return
        before, self._line = self._line, _seam.terminal_line(config)
        self.tell(urgent=True, line=None if self._line == before else self._line, **message)
        if report.when == "teardown":
            return  # the last one
        with contextlib.suppress(OSError):  # a test that closed it has lost the order of the lines, and nothing else
            os.read(self._go, 1)

    def tell(self, *, urgent: bool = False, **message: Any) -> None:
        """Send a message; what JSON can't hold is replaced by its text, and that is said."""
        if os.getpid() != self._pid:  # the test forked, and its child came back up to here
            os.write(2, b"pytest-cgroup: a process that the test forked returned into pytest; it was ended\n")
            os._exit(70)
        if junit := _seam.take_junit(self.item):
            message["junit"] = junit
        try:
            data = encode(message)
        except (TypeError, ValueError, RecursionError):
            message, replaced = sanitise(message)
            data = encode({**message, "replaced": replaced})
        try:
            self._write(data, urgent=urgent)
        except OSError as error:
            os.write(2, f"pytest-cgroup: the test's report can't be sent, its pipe is gone: {error}\n".encode())
            os._exit(70)

    def _write(self, data: bytes, *, urgent: bool) -> None:
        """The parent sleeps while the pipe holds what is told. It is woken if it does not, or if there is haste."""
        if urgent:
            os.write(self._stacks, DOORBELL)
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._pipe, view) :]
            except BlockingIOError:
                os.write(self._stacks, DOORBELL)
                poll = select.poll()
                poll.register(self._pipe, select.POLLOUT)
                poll.poll()

    def _new_warnings(self) -> list[dict[str, Any]]:
        recorded = self._warnings or []
        new, self._warned = recorded[self._warned :], len(recorded)
        return [
            {
                "module": warning.category.__module__,
                "category": warning.category.__qualname__,
                "message": str(warning.message),
                "filename": warning.filename,
                "lineno": warning.lineno,
                "line": warning.line or linecache.getline(warning.filename, warning.lineno),
            }
            for warning in new
        ]

    def phase_reported(self, call: pytest.CallInfo[Any], report: pytest.TestReport) -> None:
        """A phase is over and its report made; after the last one the process ends."""
        self.tell_report(report)
        if call.when == "teardown":
            _seam.interact(self.item, call, report)
            self.end()

    def refuse(self, error: BaseException) -> NoReturn:
        """It could not become what it was forked for."""
        self.tell(refused=f"{type(error).__name__}: {error}"[:3000])
        os._exit(NOT_ENTERED)

    def interrupted(self, error: BaseException) -> NoReturn:
        """Ctrl-C, `pytest.exit`, or an error of a hook: tell it, tear down what was set up, end."""
        if isinstance(error, pytest.exit.Exception):
            self.tell(exit=error.msg, returncode=error.returncode)
        elif isinstance(error, KeyboardInterrupt):
            self.tell(interrupt=True)
        else:
            import traceback

            self.tell(internal="".join(traceback.format_exception(error))[-20_000:])
        try:
            _seam.tear_down_everything(self.item)
        except BaseException as second:  # the run stops, and says why already
            os.write(2, f"pytest-cgroup: {type(second).__name__} in a teardown after the interrupt\n".encode())
        self.end()

    def end(self) -> NoReturn:
        """The end of the process: no atexit, no second flush of what pytest had buffered, but coverage is kept."""
        session = self.item.session
        coverage = save_coverage(self._output.coverage)
        if (station := sys.modules.get("pytest_cgroup._station")) is not None:
            station.leave()  # what starts programs in containers
        self.flush()
        self.tell(
            end=True,
            **self._left_behind(),
            warnings=self._new_warnings(),
            coverage=coverage,
            shouldstop=session.shouldstop if isinstance(session.shouldstop, str) else None,
            shouldfail=session.shouldfail if isinstance(session.shouldfail, str) else None,
        )
        self.part()
        os._exit(0)

    def _left_behind(self) -> dict[str, Any]:
        """What only this process can tell of what it leaves: its zombies, and who started whom."""
        trouble: OSError | None = None
        for _ in range(_LOOKS):
            try:
                told = {"started": self._starts.told()} if self._starts is not None and self._starts.origins else {}
                return {"zombies": own_zombies(), "family": family(), **told}
            except OSError as error:
                trouble = error
        return {"untold": f"what is left behind can't be told: {trouble}"}

    def flush(self) -> None:
        """Bring out what the test printed: under -s it must stand before what pytest says next."""
        terminal = self.item.config.pluginmanager.get_plugin("terminalreporter")
        streams: tuple[Any, ...] = (sys.stdout, sys.stderr, terminal and terminal._tw)
        for stream in streams:
            with contextlib.suppress(Exception):  # the test may have put anything in their place
                stream.flush()
