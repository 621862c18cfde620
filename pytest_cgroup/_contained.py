"""One contained item, seen from pytest's own process: fork, wait, destroy.

Theory of operation: see `_runner`. What runs in the child is `_inside`, what is seen of it here is `_child`; the
reports are made by `_judge`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import gc
import sys
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from . import _seam
from ._child import Child
from ._coverage import merge_coverage
from ._hooks import OfTest, tell
from ._inside import Inside
from ._isolated import os
from ._judge import Judge
from ._process import own_pidfd, readable
from .exceptions import ContainedWarning, ContainerError

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._container import Container
    from ._outcome import Outcome
    from ._spec import Spec
    from ._workshop import Workshop

    Shown = Callable[[pytest.Item, pytest.CallInfo[Any], pytest.TestReport], pytest.TestReport]


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
        #: in which process this is, where it was forked before its turn
        self._forked: bool | None = None
        #: the end of a pipe that it is held by
        self._gate: int | None = None
        self._own_setup_show = workshop.config.option.setupshow
        self._output = workshop.lend_output()
        self._reset()

    def _reset(self) -> None:
        lazily = not hasattr(self.workshop.config, "workerinput")
        self._judge = Judge(self.item, self.spec, self._output, lazily=lazily)
        self.container: Container | None = None
        self._child: Child | None = None
        self._shown: OfTest | None = None
        self._refusal: BaseException | None = None

    def take_over(self) -> None:
        self._hooks = _seam.Hooks(self.item)
        self._hooks.pytest_runtest_setup = self._setup_hook
        self.item.setup = self._setup  # type: ignore[method-assign]
        self.item.teardown = self._teardown  # type: ignore[method-assign]

    def give_back(self) -> None:
        self._let_go()
        self._unmute_setup_show()
        self.give_up()

    def give_up(self) -> None:
        """Nobody asks for it any more."""
        self._shut_gate()
        self.abort()
        self.workshop.take_back(self._output)

    def _let_go(self) -> None:
        for name in ("setup", "teardown"):
            vars(self.item).pop(name, None)
        self._hooks.give_back()

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
        self._warn()
        if self._fork(_seam.pending_output(self.workshop.config)):
            self._become_inside()
            self.item.setup()  # the child: the real one
            return
        self._bend_hooks()
        self._wait_for("setup")

    def _setup_hook(self, *, item: pytest.Item) -> None:
        """Where nothing outside of the item is to be set up, the fork comes first, and pytest calls no hook at all."""
        __tracebackhide__ = True
        setup_hook = self._hooks.as_ever.pytest_runtest_setup
        forked, self._forked = self._forked, None
        if forked is None:
            self._inside_alone = not self.workshop.rerunners and _seam.needs_nothing_outside(item, self.nextitem)
            if not self._inside_alone:
                setup_hook(item=item)
                return
            self.abort()
            self._reset()
        try:
            if not forked:
                self._warn()
            if forked is None:
                forked = self._fork(_seam.pending_output(self.workshop.config))
        except pytest.fail.Exception as error:
            self.abort()
            self._refusal = error  # for our `_setup` to raise: plugins that are to see the teardown must see a set-up
            setup_hook(item=item)
            return
        if forked:
            self._become_inside()
            setup_hook(item=item)
            return
        self._bend_hooks()
        self._wait_for("setup")

    # before its turn

    def begin_early(self, *, held: bool) -> bool:
        """Fork before its turn; whether that was possible: it is tried again when its turn comes. No way back in the
        child, which runs the test, *held*: not before `release`.
        """
        self._inside_alone = True
        self.take_over()
        held_by: list[int] = []
        try:
            if held:
                gate, self._gate = os.pipe()
                held_by.append(gate)
                held_by.append(own_pidfd())
            self._forked = self._fork({})
        except (pytest.fail.Exception, OSError):
            self.give_back()
            return False
        finally:
            if not self._forked:  # in the child they are waited for
                for fd in held_by:
                    os.close(fd)
        if self._forked:
            self._run_in_child(*held_by)
        self._let_go()
        container, child = self.container, self._child
        assert container is not None
        assert child is not None
        container.readers, container.after_end = child.readers, self._end_early
        return True

    def release(self) -> None:
        """Its turn has come: if it was held, it begins."""
        if self._gate is not None and self.container is not None:
            self.container.watched.start()
            with contextlib.suppress(BrokenPipeError):  # it has ended, and that will be told
                os.write(self._gate, b"!")
        self._shut_gate()

    def _shut_gate(self) -> None:
        gate, self._gate = self._gate, None
        if gate is not None:
            os.close(gate)

    def _run_in_child(self, *held_by: int) -> NoReturn:
        """The whole protocol, as pytest would begin it; that the test begins is said when its turn comes.

        Args:
            held_by: a pipe that pytest writes into then, and a pidfd of pytest: who stands above this process has the
                pipe's other end as well, and would keep it open for ever.
        """
        item, workshop = self.item, self.workshop
        workshop.begun_early = item
        self._hooks.pytest_runtest_logstart = lambda **_: None
        self._shut_gate()
        try:
            if held_by:
                gate, owner = held_by
                if owner in readable(gate, owner, seconds=None) or not os.read(gate, 1):  # nobody waits for it any more
                    os._exit(0)
                os.close(gate)
                os.close(owner)
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=self.nextitem)
            raise RuntimeError("a plugin has ended the test's protocol without its teardown")
        except BaseException as error:
            if workshop.inside is None:  # before its set-up
                self._be_inside().refuse(error)
            workshop.inside.interrupted(error)

    @property
    def has_ended(self) -> bool:
        """Whether the test has come to its end."""
        return self.container is None or self.container.ended

    def _end_early(self) -> None:
        """It has ended before its turn. What it left ends now, and what came of it is told when its turn comes."""
        container, child = self.container, self._child
        if container is not None and child is not None:
            with contextlib.suppress(Exception):  # it will be tried again
                child.drain()
                self._destroy(container, child)

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
        if self._child is not None:
            self._child.log_subtests()
        self._wait_for("call")

    def _teardown(self) -> None:
        __tracebackhide__ = True
        self._wait_for("teardown")
        self._finish()

    # forking

    def _warn(self) -> None:
        try:
            self.workshop.warn_of_no_guard(self.item)
            self.workshop.warn_of_threads(self.item)
        except ContainedWarning as error:  # -W error
            raise pytest.fail.Exception(f"contained: {error}", pytrace=False) from None

    def _fork(self, pending: dict[str, bytes]) -> bool:
        """Start the container and fork into it; True in the child. *pending* was captured of this test already."""
        workshop = self.workshop
        container = workshop.new_container(self.item, self.spec)
        try:
            container.start()
            self.container = container
            self._tell_started(container)
            forked = self._fork_into(container, pending)
        except (ContainerError, OSError) as error:
            if self._child is not None:
                self._child.forked()
            self.abort()
            raise pytest.fail.Exception(f"contained: {error}", pytrace=False) from None
        return forked

    def _fork_into(self, container: Container, pending: dict[str, bytes]) -> bool:
        workshop = self.workshop
        output = self._output
        output.prepare(pending)
        _flush(workshop.config)
        child = self._child = Child(self.item, container, self._judge, output, in_step=workshop.in_step)
        if _seam.faulthandler_timeout(workshop.config):
            faulthandler.cancel_dump_traceback_later()  # or the child, which has no such thread, would wait for its end
        frozen = gc.get_freeze_count()
        gc.freeze()  # or the child's collections would touch, and so copy, every page of pytest's
        forked = False
        try:
            if not (forked := container.fork()):
                child.forked()
        finally:
            if not (frozen or forked):
                gc.unfreeze()
        if not forked:
            workshop.collect_garbage()
        return forked

    def _become_inside(self) -> None:
        for name in ("setup", "teardown"):
            del vars(self.item)[name]
        inside = self._be_inside()
        try:
            inside.begin()
        except BaseException as error:  # or this would go on as a second pytest
            inside.refuse(error)

    def _be_inside(self) -> Inside:
        container, child = self.container, self._child
        assert container is not None, "it has been started"
        assert child is not None, "it has been forked"
        child.close()
        inside = self.workshop.inside = Inside(self.item, self._output, child.ends, self._hooks)
        inside.part = container.tree.part
        return inside

    # waiting

    def _wait_for(self, when: str) -> None:
        """Wait until the child has reported *when*, or has ended, or the run must stop. After the teardown it ends."""
        __tracebackhide__ = True
        if when == "setup":
            self.workshop.config.option.setupshow = False  # the child shows the test itself
        container, child = self.container, self._child
        if container is None or child is None or self._judge.outcome is not None:
            return
        if not container.ended:
            child.wait_for(when)
        if child.stop is not None:
            self._stop_as_it_did(child, child.stop)
        if when not in self._judge.reports or (when == "teardown" and not child.end):
            self._judge.crashed_in = when
            self._finish()

    def _stop_as_it_did(self, child: Child, stop: dict[str, Any]) -> NoReturn:
        """The run stops in the child, so it stops here, in the same way."""
        __tracebackhide__ = True
        child.watch_end()
        self.abort()
        if "exit" in stop:
            raise pytest.exit.Exception(str(stop["exit"]), stop.get("returncode"))
        if "internal" in stop:
            raise RuntimeError(f"an error outside of the test, in its container:\n{stop['internal']}")
        raise KeyboardInterrupt

    # the end

    def _finish(self) -> None:
        """Destroy the container: leaks named, everything killed and measured."""
        container, self.container = self.container, None
        child = self._child
        if container is None or child is None:
            return
        try:
            outcome = self._destroy(container, child)
        finally:
            child.drain()
            child.close()
        self._judge.untold = container.untold or child.untold
        crashed_in = self._judge.crashed_in
        self._judge.outcome = dataclasses.replace(
            outcome,
            phase=crashed_in,
            stack=child.stack if crashed_in else None,
            notes=(*outcome.notes, *child.notes),
        )
        self._judge.troubles += self._tell_finished(self._judge.outcome)
        if child.end.get("coverage"):
            merge_coverage(self._output.coverage)
        session = self.item.session
        if isinstance(why := child.end.get("shouldstop"), str):
            session.shouldstop = session.shouldstop or why
        if isinstance(why := child.end.get("shouldfail"), str):
            session.shouldfail = session.shouldfail or why

    def _destroy(self, container: Container, child: Child) -> Outcome:
        return container.destroy(
            owner=self.item.nodeid, zombies=child.zombies, family=child.family, started=child.end.get("started", ())
        )

    def abort(self) -> None:
        """Whatever happened: no container outlives its item."""
        container, self.container = self.container, None
        try:
            if container is not None:
                outcome = container.destroy(owner=self.item.nodeid)
                for trouble in self._tell_finished(outcome):
                    with contextlib.suppress(ContainedWarning):  # -W error, and something else went wrong already
                        self.item.warn(ContainedWarning(trouble))
        finally:
            if self._child is not None:
                self._child.close()

    # our hooks

    def _tell_started(self, container: Container) -> None:
        self._shown = shown = OfTest(container)
        trouble = tell(self.item.ihook, "pytest_container_started", container=shown, item=self.item)
        if trouble is not None:
            self._judge.troubles.append(trouble)

    def _tell_finished(self, outcome: Outcome) -> list[str]:
        """What the hooks raised."""
        shown, self._shown = self._shown, None
        if shown is None:
            return []
        relay, item = self.item.ihook, self.item
        told = [tell(relay, "pytest_container_finished", container=shown, item=item, outcome=outcome)]
        if outcome.leaks and self.spec.leaks != "ignore":
            told.append(tell(relay, "pytest_process_leak", item=item, leaks=outcome.leaks))
        return [trouble for trouble in told if trouble is not None]


def _flush(config: pytest.Config) -> None:
    """What pytest has buffered would otherwise be printed by the child as well."""
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__, terminal and terminal._tw):
        if stream is not None and not getattr(stream, "closed", False):
            stream.flush()
