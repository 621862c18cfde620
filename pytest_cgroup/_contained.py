"""One contained item, seen from pytest's own process: fork, wait, take in what the child tells, destroy.

Theory of operation: see `_runner`. The child is `_inside`; the reports are made by `_judge`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import gc
import os
import select
import signal
import sys
import time
import warnings
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from . import _seam
from ._coverage import merge_coverage
from ._inside import DOORBELL, DUMP_SIGNAL, Inside
from ._judge import Judge
from ._wire import Decoder
from .exceptions import ContainerError

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._container import Container
    from ._spec import Spec
    from ._workshop import Workshop

    Shown = Callable[[pytest.Item, pytest.CallInfo[Any], pytest.TestReport], pytest.TestReport]

#: how long a test may take to tear down after Ctrl-C, in seconds; a second Ctrl-C ends it at once
_INTERRUPT_SECONDS = 5.0


class Contained:
    """One contained item while pytest runs it, seen from pytest's own process. A rerun starts a new container in it."""

    def __init__(
        self, workshop: Workshop, item: pytest.Item, nextitem: pytest.Item | None, spec: Spec, show: Shown
    ) -> None:
        self.workshop = workshop
        self.item = item
        self.nextitem = nextitem
        self.spec = spec
        self._show = show
        self._inside_alone = False
        self._own_setup_show = workshop.config.option.setupshow
        self._reset()

    def _reset(self) -> None:
        lazily = not hasattr(self.workshop.config, "workerinput")
        self._judge = Judge(self.item, self.spec, self.workshop.output, lazily=lazily)
        self.container: Container | None = None
        self._phase = "setup"
        self._decoder = Decoder()
        self._pieces: list[bytes] = []
        self._rung = False
        self._subtests: list[pytest.TestReport] = []
        self._pipe: int | None = None
        self._stacks: int | None = None
        self._go: int | None = None
        self._stack_text = b""
        self._stop: dict[str, Any] | None = None
        self._end: dict[str, Any] = {}
        self._debugging = False
        self._notes: list[str] = []
        self._unreadable = False
        self._refusal: BaseException | None = None

    def take_over(self) -> None:
        self._hooks = _seam.Hooks(self.item)
        self._hooks.pytest_runtest_setup = self._setup_hook
        self.item.setup = self._setup  # type: ignore[method-assign]
        self.item.teardown = self._teardown  # type: ignore[method-assign]

    def give_back(self) -> None:
        for name in ("setup", "teardown"):
            vars(self.item).pop(name, None)
        self._hooks.give_back()
        self._unmute_setup_show()
        self.abort()

    def _unmute_setup_show(self) -> None:
        self.workshop.config.option.setupshow = self._own_setup_show

    # what of the item, and of its hooks, is ours

    def _setup(self) -> None:
        __tracebackhide__ = True
        if self._refusal is not None:
            raise self._refusal
        self.abort()
        self._reset()
        self._straighten_hooks()
        _seam.set_up_higher_scopes(self.item)
        if self._fork():
            self.item.setup()  # the child: the real one
            return
        self._wait_for("setup")

    def _setup_hook(self, *, item: pytest.Item) -> None:
        """Where nothing outside of the item is to be set up, the fork comes first, and pytest calls no hook at all."""
        __tracebackhide__ = True
        setup_hook = self._hooks.as_ever.pytest_runtest_setup
        self._inside_alone = not self.workshop.rerunners and _seam.needs_nothing_outside(item, self.nextitem)
        if not self._inside_alone:
            setup_hook(item=item)
            return
        self.abort()
        self._reset()
        try:
            forked = self._fork()
        except pytest.fail.Exception as error:
            self._refusal = error  # for our `_setup` to raise: plugins that are to see the teardown must see a set-up
            forked = True
        if forked:
            setup_hook(item=item)
            return
        self._wait_for("setup")

    def _bend_hooks(self) -> None:
        """From now on the plugins are called in the child, and once is enough."""
        hooks = self._hooks
        makereport_hook, teardown_hook = hooks.pytest_runtest_makereport, hooks.pytest_runtest_teardown

        def makereport(*, item: pytest.Item, call: pytest.CallInfo[Any]) -> pytest.TestReport:
            if call.excinfo is not None:  # pytest itself failed beside the child, as in a teardown of a higher scope
                own: pytest.TestReport = makereport_hook(item=item, call=call)
                if call.when == "teardown":
                    return self._judge.report(own, None)
                self.abort()
                return own
            own = pytest.TestReport.from_item_and_call(item, call)
            report = self._judge.report(own, None if self.container is None else self.container.so_far)
            return self._show(item, call, report)

        def teardown(*, item: pytest.Item, nextitem: pytest.Item | None) -> None:
            __tracebackhide__ = True
            self._unmute_setup_show()
            self._teardown()
            if not self.workshop.rerunners and _seam.tear_down_item_alone(item, nextitem):
                return
            if self._inside_alone:
                _seam.tear_down_without_hooks(item, nextitem)
            else:
                teardown_hook(item=item, nextitem=nextitem)

        hooks.pytest_runtest_call = self._call
        hooks.pytest_runtest_makereport = makereport
        hooks.pytest_runtest_teardown = teardown

    def _straighten_hooks(self) -> None:
        for name in ("pytest_runtest_call", "pytest_runtest_makereport", "pytest_runtest_teardown"):
            vars(self._hooks).pop(name, None)

    def _call(self, *, item: pytest.Item) -> None:
        __tracebackhide__ = True
        for report in self._subtests:
            self._log_subtest(report)
        self._wait_for("call")

    def _teardown(self) -> None:
        __tracebackhide__ = True
        self._wait_for("teardown")
        self._finish()

    # forking

    def _fork(self) -> bool:
        """Start the container and fork into it; True in the child."""
        __tracebackhide__ = True
        workshop = self.workshop
        workshop.warn_of_threads(self.item)
        container = workshop.new_container(self.item, self.spec)
        try:
            container.start()
        except ContainerError as error:
            raise pytest.fail.Exception(f"contained: {error}", pytrace=False) from None
        self.container = container
        container.before_kill = self._ask_for_stacks
        output = workshop.output
        output.prepare(_seam.pending_output(workshop.config))
        _flush(workshop.config)
        self._pipe, pipe = os.pipe()
        self._stacks, stacks = os.pipe()
        go, self._go = os.pipe() if workshop.in_step else (None, None)
        if _seam.faulthandler_timeout(workshop.config):
            faulthandler.cancel_dump_traceback_later()  # or the child, which has no such thread, would wait for its end
        frozen = gc.get_freeze_count()
        gc.freeze()  # or the child's collections would touch, and so copy, every page of pytest's
        try:
            forked = container.fork()
        except ContainerError as error:
            self.abort()
            _close(pipe, stacks, go)
            raise pytest.fail.Exception(f"contained: {error}", pytrace=False) from None
        if forked:
            self._become_inside(pipe, stacks, go)
            return True
        self._bend_hooks()
        if not frozen:
            gc.unfreeze()
        _close(pipe, stacks, go)
        os.set_blocking(self._pipe, False)
        os.set_blocking(self._stacks, False)
        return False

    def _become_inside(self, pipe: int, stacks: int, go: int | None) -> None:
        for name in ("setup", "teardown"):
            del vars(self.item)[name]
        _close(self._pipe, self._stacks, self._go)
        inside = self.workshop.inside = Inside(self.item, self.workshop.output, pipe, stacks, go, self._hooks)
        try:
            inside.begin()
        except BaseException as error:  # or this would go on as a second pytest
            inside.interrupted(error)

    # waiting

    def _wait_for(self, when: str) -> None:
        """Wait until the child has reported *when*, or has ended, or the run must stop. After the teardown it ends."""
        __tracebackhide__ = True
        self._phase = when
        if when == "setup":
            self.workshop.config.option.setupshow = False  # the child shows the test itself
        container = self.container
        if container is None or self._judge.outcome is not None:
            return
        last = when == "teardown"
        if not container.ended:
            if when != "setup":
                self._let_go_on()
            self._watch_or_fail(container, lambda: self._go is not None and not last and when in self._judge.reports)
            self._drain()
        if self._stop is not None:
            self._raise_stop(container)
        if when not in self._judge.reports or (last and not self._end):
            self._judge.crashed_in = when
            self._finish()

    def _let_go_on(self) -> None:
        """In step with the child: pytest has printed what there is to print, and now the child may."""
        if self._go is not None:
            with contextlib.suppress(BrokenPipeError):
                os.write(self._go, b".")

    def _watch_or_fail(self, container: Container, done: Callable[[], bool]) -> None:
        """`_watch`; an alarm of pytest-timeout's, which fails whatever pytest does just then, is the child's end."""
        __tracebackhide__ = True
        try:
            self._watch(container, done)
        except pytest.fail.Exception as error:
            self._notes.append(str(error))
            container.time_out()
            self._watch_end(container)

    def _watch(self, container: Container, done: Callable[[], bool]) -> None:
        """Wait until the child has ended, or *done*. While it says little pytest sleeps: the reports lie in the pipe.

        Every page that pytest writes while the child lives is copied, so nothing is done now that can be done later.
        """
        __tracebackhide__ = True
        assert self._pipe is not None
        assert self._stacks is not None
        readers = {self._stacks: self._read_stacks}
        while True:
            try:
                container.watch(readers, lambda: self._rung)
                if container.ended:
                    return
                self._read()
                return container.watch({**readers, self._pipe: self._read}, done)
            except KeyboardInterrupt:
                if not self._debugging:  # at the debugger's prompt it is the child's, as the terminal sends it to both
                    self._let_tear_down(container)
                    raise

    def _let_tear_down(self, container: Container) -> None:
        """After Ctrl-C the test tears down what it set up, as it would without us; after a while it is killed."""
        assert self._pipe is not None
        assert self._stacks is not None
        readers = {self._pipe: self._read, self._stacks: self._read_stacks}
        container.watch(readers, self._has_stopped, timeout=0.3)
        if not self._has_stopped() and not container.ended:
            container.signal(signal.SIGINT)  # somebody signalled pytest alone
        container.watch(readers, lambda: False, timeout=_INTERRUPT_SECONDS)

    def _has_stopped(self) -> bool:
        self._take_pieces()
        return self._stop is not None

    def _read(self) -> bool:
        assert self._pipe is not None
        try:
            piece = os.read(self._pipe, 1 << 16)
        except BlockingIOError:
            return True
        self._pieces.append(piece)
        if self._rung:
            self._take_pieces()
        return bool(piece)

    def _take_pieces(self) -> None:
        pieces, self._pieces = self._pieces, []
        if self._unreadable:
            return
        try:
            for message in self._decoder.feed(b"".join(pieces)):
                self._take(message)
        except Exception as error:  # the test may have written anything into the pipe
            self._unreadable = True
            self._notes.append(f"unreadable message: {type(error).__name__}: {error}")

    def _read_stacks(self) -> bool:
        assert self._stacks is not None
        try:
            piece = os.read(self._stacks, 1 << 16)
        except BlockingIOError:
            return True
        self._rung = self._rung or DOORBELL in piece
        self._stack_text = (self._stack_text + piece.replace(DOORBELL, b""))[: 1 << 18]
        return bool(piece)

    def _drain(self) -> None:
        """The child has ended, and everything that it wrote is in the pipes: take it before anything is decided."""
        for fd, read in ((self._pipe, self._read), (self._stacks, self._read_stacks)):
            if fd is not None:
                while select.select([fd], [], [], 0)[0] and read():
                    pass
        self._take_pieces()

    def _take(self, message: dict[str, Any]) -> None:
        """One message of the child's."""
        config = self.workshop.config
        for warning in message.get("warnings") or ():
            _record_warning(self.item, warning)
        _seam.give_junit(self.item, message.get("junit") or {})
        if self._debugging:
            self._set_debugging(False)
        if "report" in message:
            report = config.hook.pytest_report_from_serializable(config=config, data=message["report"])
            self._judge.positions = {name: max(0, int(message["positions"][name])) for name in ("out", "err")}
            _seam.restore(report, was_text=bool(message["was_text"]))
            _seam.restore_subtest(report, message["report"])
            _seam.set_failed_subtests(self.item, message["failed_subtests"])
            report.sections = self.workshop.output.resolve(report.sections, lazily=self._judge.lazily)
            if replaced := message.get("replaced"):
                text = "\n".join(["not JSON, so it came home as text:", *map(str, replaced)])
                report.sections.append(("contained", text))
            if type(report) is pytest.TestReport and report.when not in self._judge.reports:
                self._judge.reports[report.when] = report
            elif self._go is None:
                self._subtests.append(report)
            else:
                self._log_subtest(report)
                self._let_go_on()
            _seam.set_terminal_line(config, message.get("line"))
        elif "debugger" in message:
            self._set_debugging(bool(message["debugger"]))
        elif message.get("end"):
            self._end = message
        else:
            self._stop = message

    def _log_subtest(self, report: pytest.TestReport) -> None:
        _seam.log_beside_capture(self.item, report)

    def _set_debugging(self, debugging: bool) -> None:
        assert self.container is not None
        self._debugging = debugging
        if debugging:
            self.container.pause_deadline()
        else:
            self.container.resume_deadline()

    def _ask_for_stacks(self) -> None:
        """Before a kill at a deadline: where is it? It has half a second to say; no Python needs to run for that."""
        assert self.container is not None
        assert self._stacks is not None
        self.container.signal(DUMP_SIGNAL)
        deadline = time.monotonic() + 0.5
        while (left := deadline - time.monotonic()) > 0 and select.select([self._stacks], [], [], left)[0]:
            before = len(self._stack_text)
            if not self._read_stacks() or len(self._stack_text) == before:
                break
            deadline = min(deadline, time.monotonic() + 0.02)  # it is talking: what follows comes at once

    def _raise_stop(self, container: Container) -> NoReturn:
        """The run stops in the child, so it stops here, in the same way."""
        __tracebackhide__ = True
        stop = self._stop or {}
        self._watch_end(container)
        self.abort()
        if "exit" in stop:
            raise pytest.exit.Exception(str(stop["exit"]), stop.get("returncode"))
        if "internal" in stop:
            raise RuntimeError(f"an error outside of the test, in its container:\n{stop['internal']}")
        raise KeyboardInterrupt

    def _watch_end(self, container: Container) -> None:
        assert self._pipe is not None
        assert self._stacks is not None
        readers = {self._pipe: self._read, self._stacks: self._read_stacks}
        container.watch(readers, lambda: False, timeout=_INTERRUPT_SECONDS)

    # the end

    def _finish(self) -> None:
        """Destroy the container: leaks named, everything killed and measured."""
        container, self.container = self.container, None
        if container is None:
            return
        zombies = {pid: str(name) for pid, name in self._told_of_pids("zombies").items()}
        try:
            outcome = container.destroy(owner=self.item.nodeid, zombies=zombies, family=self._family())
        finally:
            self._drain()
            self._close()
        stack = self._stack_text.decode(errors="replace").strip() or None
        replace = dataclasses.replace(
            outcome, phase=self._judge.crashed_in, stack=stack if self._judge.crashed_in else None
        )
        self._judge.outcome = dataclasses.replace(replace, notes=(*replace.notes, *self._notes))
        if self._end.get("coverage"):
            merge_coverage(self.workshop.output.coverage)
        session = self.item.session
        if isinstance(why := self._end.get("shouldstop"), str):
            session.shouldstop = session.shouldstop or why
        if isinstance(why := self._end.get("shouldfail"), str):
            session.shouldfail = session.shouldfail or why

    def _family(self) -> dict[int, tuple[str, ...]]:
        """Who started whom, as the child told; in a pid namespace of its own it knows other numbers than we do."""
        if self.spec.pid_ns:
            return {}
        return {pid: tuple(map(str, above)) for pid, above in self._told_of_pids("family").items()}

    def _told_of_pids(self, what: str) -> dict[int, Any]:
        told = self._end.get(what)
        return {int(pid): one for pid, one in told.items() if pid.isdigit()} if isinstance(told, dict) else {}

    def abort(self) -> None:
        """Whatever happened: no container outlives its item."""
        container, self.container = self.container, None
        try:
            if container is not None:
                container.destroy(owner=self.item.nodeid)
        finally:
            self._close()

    def _close(self) -> None:
        _close(self._pipe, self._stacks, self._go)
        self._pipe = self._stacks = self._go = None


def _record_warning(item: pytest.Item, data: dict[str, Any]) -> None:
    """A warning raised in the child reaches the summary, as pytest-xdist sends its workers' home."""
    category = getattr(sys.modules.get(data["module"]), data["category"], None)
    if not (isinstance(category, type) and issubclass(category, Warning)):
        category = type(str(data["category"]), (UserWarning,), {})  # of a module that the child alone has imported
    message = UserWarning(data["message"])  # and not of the category: that may have a constructor of its own
    item.ihook.pytest_warning_recorded.call_historic(
        kwargs={
            "warning_message": warnings.WarningMessage(
                message=message, category=category, filename=data["filename"], lineno=data["lineno"]
            ),
            "when": "runtest",
            "nodeid": item.nodeid,
            "location": None,
        }
    )


def _close(*fds: int | None) -> None:
    for fd in fds:
        if fd is not None:
            os.close(fd)


def _flush(config: pytest.Config) -> None:
    """What pytest has buffered would otherwise be printed by the child as well."""
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__, terminal and terminal._tw):
        if stream is not None and not getattr(stream, "closed", False):
            stream.flush()
