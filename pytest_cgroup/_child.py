"""The child of a contained item, seen from pytest's own process: its pipes, what it tells over them, waiting for it.

While the child lives pytest sleeps, and the reports lie in the pipe: see `Child.watch`.
"""

from __future__ import annotations

import contextlib
import sys
import warnings
from typing import TYPE_CHECKING, Any

import pytest

from . import _seam
from ._inside import DOORBELL, DUMP_SIGNAL
from ._isolated import os, signal, time
from ._process import readable, switches
from ._told import check_message
from ._wire import Decoder

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._container import Container
    from ._judge import Judge
    from ._output import Output

#: how long a test may take to tear down after Ctrl-C, in seconds; a second Ctrl-C ends it at once
_INTERRUPT_SECONDS = 5.0
#: what a report's further attributes must not hide
_TAKEN = frozenset(dir(pytest.TestReport))


class Child:
    """What pytest has of a contained item's child, until `close`.

    Args:
        item: the test.
        container: its container, started, and not yet forked into.
        judge: is given the phases' reports.
        output: the files that the child captures into.
        in_step: pytest and the child print on one terminal, and take turns.
    """

    def __init__(self, item: pytest.Item, container: Container, judge: Judge, output: Output, *, in_step: bool) -> None:
        self.item = item
        self.container = container
        self._judge = judge
        self._output = output
        go: int | None = None
        self._go: int | None = None
        self._pipe, pipe, self._stacks, stacks, *go_on = _pipes(3 if in_step else 2)
        if go_on:
            go, self._go = go_on
        #: the child's ends of the pipes, until either process has closed its own: messages, stacks, "go on"
        self.ends: tuple[int, int, int | None] = pipe, stacks, go
        self._ends_open = True
        self._open = True
        self._decoder = Decoder()
        self._pieces: list[bytes] = []
        self._rung = False
        self._stack_text = b""
        self._debugging = False
        self._unreadable = False
        self._subtests: list[pytest.TestReport] = []
        #: why the run must stop, if the child said so
        self.stop: dict[str, Any] | None = None
        #: what it said last of all
        self.end: dict[str, Any] = {}
        #: what a person should know
        self.notes: list[str] = []
        container.before_kill = self._ask_for_stacks

    def forked(self) -> None:
        """In the parent, after the fork, or where there will be none."""
        if self._ends_open:
            self._ends_open = False
            _close(*self.ends)
        os.set_blocking(self._pipe, False)
        os.set_blocking(self._stacks, False)

    def close(self) -> None:
        """Close our ends of the pipes; in the child they are the parent's."""
        if self._open:
            self._open = False
            # Which would keep both of us until the garbage is collected.
            self.container.before_kill = self.container.after_end = _nothing
            self.container.readers = {}
            _close(self._pipe, self._stacks, self._go)

    @property
    def stack(self) -> str | None:
        """The Python stacks that it dumped, if it did."""
        whole_lines = self._stack_text[: self._stack_text.rfind(b"\n") + 1]  # it may have been killed within one
        return whole_lines.decode(errors="replace").strip() or None

    @property
    def family(self) -> dict[int, tuple[str, ...]]:
        """Who started whom, as it told; in a pid namespace of its own it knows other numbers than we do."""
        if self.container.spec.pid_ns:
            return {}
        return {pid: tuple(map(str, above)) for pid, above in self._told_of_pids("family").items()}

    @property
    def untold(self) -> str | None:
        """What it could not find out, and should have told."""
        return str(self.end["untold"]) if "untold" in self.end else None

    @property
    def zombies(self) -> dict[int, str]:
        """The processes that it has not waited for, as it told, by pid the name of the program."""
        return {pid: str(name) for pid, name in self._told_of_pids("zombies").items()}

    def _told_of_pids(self, what: str) -> dict[int, Any]:
        told = self.end.get(what)
        return {int(pid): one for pid, one in told.items() if pid.isdigit()} if isinstance(told, dict) else {}

    def log_subtests(self) -> None:
        """Log the reports that came beside those of the phases."""
        for report in self._subtests:
            _seam.log_beside_capture(self.item, report)

    # waiting

    @property
    def readers(self) -> dict[int, Callable[[], bool]]:
        """What reads of its pipes, by descriptor; False at their end."""
        return {self._pipe: self._read, self._stacks: self._read_stacks}

    def wait_for(self, when: str) -> None:
        """Wait until it has reported *when*, where it waits for us then, or has ended."""
        __tracebackhide__ = True
        if when != "setup":
            self._let_go_on()
        in_turn = self._go is not None and when != "teardown"
        self._watch_or_fail(lambda: in_turn and when in self._judge.reports)
        self.drain()

    def _let_go_on(self) -> None:
        """In step with the child: pytest has printed what there is to print, and now the child may."""
        if self._go is not None:
            with contextlib.suppress(BrokenPipeError):
                os.write(self._go, b".")

    def _watch_or_fail(self, done: Callable[[], bool]) -> None:
        """`_watch`; an alarm of pytest-timeout's, which fails whatever pytest does just then, is the child's end."""
        __tracebackhide__ = True
        try:
            self.watch(done)
        except pytest.fail.Exception as error:
            self.notes.append(str(error))
            self.container.time_out()
            self.watch_end()

    def watch(self, done: Callable[[], bool]) -> None:
        """Wait until the child has ended, or *done*. While it says little pytest sleeps: the reports lie in the pipe.

        Every page that pytest writes while the child lives is copied, so nothing is done now that can be done later.
        """
        __tracebackhide__ = True
        container = self.container
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
                    self._let_tear_down()
                    raise

    def _let_tear_down(self) -> None:
        """After Ctrl-C the test tears down what it set up, as it would without us; after a while it is killed."""
        container, readers = self.container, self.readers
        until = time.monotonic() + _INTERRUPT_SECONDS / 2
        before = self._stirring()
        while not (self._has_stopped() or container.ended):
            container.watch(readers, self._has_stopped, timeout=0.3)
            now = self._stirring()
            if (now is not None and now == before) or time.monotonic() > until:
                container.signal(signal.SIGINT)  # it has not stirred: somebody signalled pytest alone
                break
            before = now
        container.watch(readers, lambda: False, timeout=_INTERRUPT_SECONDS)

    def _stirring(self) -> dict[int, str] | None:
        with contextlib.suppress(OSError):
            return switches(self.container.tree.pids())
        return None

    def _has_stopped(self) -> bool:
        self._take_pieces()
        return self.stop is not None

    def _read(self) -> bool:
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
            self.notes.append(f"unreadable message: {type(error).__name__}: {error}")

    def _read_stacks(self) -> bool:
        try:
            piece = os.read(self._stacks, 1 << 16)
        except BlockingIOError:
            return True
        self._rung = self._rung or DOORBELL in piece
        self._stack_text = (self._stack_text + piece.replace(DOORBELL, b""))[: 1 << 18]
        return bool(piece)

    def drain(self) -> None:
        """The child has ended, and everything that it wrote is in the pipes: take it before anything is decided."""
        for fd, read in self.readers.items():
            while readable(fd) and read():
                pass
        self._take_pieces()

    def _take(self, message: dict[str, Any]) -> None:
        """One message of the child's."""
        config = self.item.config
        check_message(message, is_own=self._is_own, taken=_TAKEN)
        for warning in message.get("warnings") or ():
            _record_warning(self.item, warning)
        _seam.give_junit(self.item, message.get("junit") or {})
        if self._debugging:
            self._set_debugging(False)
        if "report" in message:
            _seam.share(self.item, message["report"])
            report = config.hook.pytest_report_from_serializable(config=config, data=message["report"])
            self._judge.positions = {name: max(0, int(message["positions"][name])) for name in ("out", "err")}
            _seam.restore(report, was_text=bool(message["was_text"]))
            str(report.longreprtext)  # what can't be shown is found here, and not where pytest shows it
            _seam.restore_subtest(report, message["report"])
            _seam.set_failed_subtests(self.item, message["failed_subtests"])
            report.sections = self._output.resolve(report.sections, lazily=self._judge.lazily)
            if replaced := message.get("replaced"):
                text = "\n".join(["not JSON, so it came home as text:", *map(str, replaced)])
                report.sections.append(("contained", text))
            if not isinstance(report, pytest.TestReport):
                raise ValueError(f"a {type(report).__name__} is no test's report")
            if type(report) is pytest.TestReport and report.when not in self._judge.reports:
                self._judge.reports[report.when] = report
            elif self._go is None:
                self._subtests.append(report)
            else:
                _seam.log_beside_capture(self.item, report)
                self._let_go_on()
            _seam.set_terminal_line(config, message.get("line"))
        elif "debugger" in message:
            self._set_debugging(bool(message["debugger"]))
        elif "refused" in message:
            self.container.refused(str(message["refused"]))
        elif message.get("end"):
            self.end = message
        else:
            self.stop = message

    def _is_own(self, nodeid: str) -> bool:
        """A plugin may have given its report another name, as it may without us; but not another test's."""
        item = self.item
        return nodeid == item.nodeid or all(nodeid != one.nodeid for one in item.session.items)

    def _set_debugging(self, debugging: bool) -> None:
        self._debugging = debugging
        if debugging:
            self.container.watched.pause()
        else:
            self.container.watched.resume()

    def _ask_for_stacks(self) -> None:
        """Before a kill at a deadline: where is it? It has half a second to say; no Python needs to run for that."""
        self.container.signal(DUMP_SIGNAL)
        deadline = time.monotonic() + 0.5
        pause = 0.5
        while (left := deadline - time.monotonic()) > 0 and readable(self._stacks, seconds=min(left, pause)):
            before = len(self._stack_text)
            if not self._read_stacks() or len(self._stack_text) == before:
                break
            pause = 0.02 if self._stack_text.endswith(b"\n") else 0.5  # it is talking: the next line comes at once

    def watch_end(self) -> None:
        """Wait until it has ended, for a while."""
        self.container.watch(self.readers, lambda: False, timeout=_INTERRUPT_SECONDS)


def _record_warning(item: pytest.Item, data: dict[str, Any]) -> None:
    """A warning raised in the child reaches the summary, as pytest-xdist sends its workers' home."""
    category = getattr(sys.modules.get(data["module"]), "__dict__", {}).get(data["category"])  # no code of the module's
    if not (isinstance(category, type) and issubclass(category, Warning)):
        category = type(str(data["category"]), (UserWarning,), {})  # of a module that the child alone has imported
    message = UserWarning(data["message"])  # and not of the category: that may have a constructor of its own
    item.ihook.pytest_warning_recorded.call_historic(
        kwargs={
            "warning_message": warnings.WarningMessage(
                message=message,
                category=category,
                filename=data["filename"],
                lineno=data["lineno"] or 0,
                line=data.get("line") or "",  # or it would be read here, of any file that pytest may read
            ),
            "when": "runtest",
            "nodeid": item.nodeid,
            "location": None,
        }
    )


def _nothing() -> None: ...


def _pipes(count: int) -> list[int]:
    """The two ends of so many pipes, or none."""
    fds: list[int] = []
    try:
        for _ in range(count):
            fds += os.pipe()
    except OSError:
        _close(*fds)
        raise
    return fds


def _close(*fds: int | None) -> None:
    for fd in fds:
        if fd is not None:
            os.close(fd)
