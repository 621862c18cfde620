"""How a daemon is kept up: the state that it is in, and what comes next.

Theory of operation. There is a state, a lock with a condition, and one `Instance` at the most, which is the program as
it runs now. Three threads meet there: who uses the daemon; the supervisor (`_supervisor`), which reads the output,
notices the end, and decides by the policy; and who brings it up, which is whoever asked for it, or for a restart that
has to become ready, a thread as long as that takes. Whoever waits does so on the condition, so an end, and a stop, are
noticed at once::

    waiting ──> starting ──> ready ──> ended
       after=      ready=      │  ^       restart="temporary", or a normal end, or stop()
                               v  │
                            restarting ──> failed     too often, or not ready the first time
"""

from __future__ import annotations

import collections
import contextlib
from typing import TYPE_CHECKING, Any, Literal

from . import _supervisor
from ._instance import Instance, Scene, claim_pidfile, remove_pidfile, write_pidfile
from ._isolated import threading, time
from ._log import Log, ToLogging
from ._outcome import signal_name
from .exceptions import CgroupError, ContainerError, ContainerTimeout, DaemonError
from .ready import Condition

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._life import Life
    from ._policy import Other, Policy

State = Literal["waiting", "starting", "ready", "restarting", "stopping", "ended", "failed"]
OVER = ("ended", "failed")
#: of its output, in an error
TAIL_LINES = 20
_NORMAL = ("normal", "shutdown")
_KILL_SECONDS = 10.0
#: for a condition to be looked at for the last time; one of the user's may take longer, and is left to itself
_JOIN_SECONDS = 1.0
#: of the pause before a restart
_MOST_DOUBLINGS = 10
_LOOK_SECONDS = 0.01
_LOOK_SECONDS_AT_MOST = 0.1


class Upkeep:
    """Of one daemon.

    Attributes:
        changed: notified of each change of what follows.
        state, instance, returncode, reason, restarts: see `Daemon`.
        error: why it has failed.
        told: whether somebody has been told so.
        logs: its output; stderr apart where that is a pipe of its own.
    """

    def __init__(self, life: Life, argv: Any, options: dict[str, Any], policy: Policy, name: str) -> None:
        self.name = name
        self._life = life
        self._argv = argv
        self._options = options
        self._policy = policy
        self.changed = threading.Condition(threading.RLock())
        self.state: State = "waiting"
        self.instance: Instance | None = None
        self._supervisor: _supervisor.Supervisor | None = None
        self._last_supervisor: _supervisor.Supervisor | None = None
        self._timer: _supervisor.Timer | None = None
        self._restarts_at: collections.deque[float] = collections.deque()
        self.restarts = 0
        self._thread: threading.Thread | None = None
        self._by_hand = False
        self._cancelled = False
        self._was_ready = False
        self.returncode: int | None = None
        self.reason: str | None = None
        self.error: DaemonError | None = None
        self.told = False
        self._to_logging = [
            ToLogging(policy.logger, policy.log_level, policy.prefix(name), policy.log_transform)
            for _ in range(2 if policy.logger is not None else 0)
            if policy.logger is not None
        ]
        self.logs = self._make_log(0), self._make_log(1)

    def _make_log(self, which: int) -> Log:
        def written(piece: bytes) -> None:
            if self._to_logging:
                self._to_logging[which].write(piece)
            if self.state == "starting":
                with self.changed:
                    self.changed.notify_all()

        log = Log(self._policy.log_limit, self._policy.output_window, written)
        log.resume = self._read_on
        return log

    def check(self) -> None:
        """See `Daemon.check`."""
        __tracebackhide__ = True
        with self.changed:
            if self.error is not None:
                self.told = True
                raise self.error.with_traceback(None)

    def wait_ready(self, timeout: float | None) -> None:
        """See `Daemon.wait_ready`."""
        __tracebackhide__ = True
        with self.changed:
            if not self.changed.wait_for(lambda: self.state in ("ready", "stopping", *OVER), timeout):
                raise ContainerTimeout(f"daemon {self.name} is {self.state}, and not ready", operation="wait_ready")
            if self.state != "ready":
                self.check()
                raise self._stopped()

    # its end

    def restart(self) -> None:
        """See `Daemon.restart`."""
        with self.changed:
            if self.state in ("waiting", "starting", "stopping"):
                raise ContainerError(
                    f"daemon {self.name} is {self.state}", operation="restart", remedy="wait_ready() first"
                )
            self._by_hand = True
            self._cancel_timer()
            self.state = "restarting"
            instance = self.instance
            if instance is not None:
                instance.signal(self._policy.stop_signal)
        try:
            self._await_end(instance, time.monotonic() + self._policy.grace)
            with self.changed:
                if self.state != "restarting":
                    raise self._stopped()
                self.error, self.told, self._was_ready = None, False, False
                self._restarts_at.clear()
                self._enter("waiting")
        finally:
            with self.changed:
                self._by_hand = False
        self.bring_up()

    def stop(self, grace: float | None) -> None:
        """See `Daemon.stop`."""
        self.begin_stop()
        self.finish_stop(time.monotonic() + (self._policy.grace if grace is None else grace))

    def begin_stop(self, *, gently: bool = True) -> None:
        """The first half of `stop`, which waits for nobody; not *gently*, somebody else kills it."""
        with self.changed:
            self._cancel_timer()
            if self.state in ("stopping", *OVER):  # one signal, whoever asks
                return
            self.state = "stopping"
            if self.instance is None:
                self._conclude("ended")
            elif gently:
                self.instance.signal(self._policy.stop_signal)
            self.changed.notify_all()

    def finish_stop(self, deadline: float) -> None:
        """The other half."""
        self._await_end(self.instance, deadline)
        with self.changed:
            self.changed.wait_for(lambda: self.state in OVER, _KILL_SECONDS)
        if self._last_supervisor is not None:
            _supervisor.rest(self._last_supervisor)

    def _await_end(self, instance: Instance | None, deadline: float) -> None:
        if instance is None:
            return

        def gone() -> bool:
            return self.instance is not instance

        with self.changed:
            if self.changed.wait_for(gone, max(0.0, deadline - time.monotonic())):
                return
        instance.kill()
        with self.changed:
            if not self.changed.wait_for(gone, _KILL_SECONDS):
                what = f"daemon {self.name}: pid {instance.pid} is still there {_KILL_SECONDS:.0f} s after SIGKILL"
                raise ContainerError(what, operation="stop")

    @property
    def own_grace(self) -> float:
        """What was asked for it, in seconds, whatever its container's is."""
        return self._policy.grace if self._policy.own_grace else 0.0

    def family(self) -> list[int]:
        """The pids of the program and of what came of it."""
        instance = self.instance
        return [] if instance is None else instance.family()

    def tail(self, lines: int) -> str:
        """The last that it has printed."""
        return "\n".join(filter(None, (log.tail(lines) for log in self.logs)))

    # bringing it up

    def bring_up(self) -> None:
        """Wait for what it is to be after, start it, and wait until it is ready.

        Raises:
            DaemonError: it ended before, or its deadline passed, or it was stopped.
            ContainerError, OSError: it could not be started.
        """
        try:
            with self.changed:
                self._check_wanted(None)
                self._enter("waiting")
            for wanted in self._policy.after:
                if isinstance(wanted, Condition):
                    self._await(wanted, None)
                else:
                    self._await_daemon(wanted)
            instance = self._launch()
            self._become_ready(instance)
        except BaseException as error:
            self._give_up(error)
            self.told = self.told or threading.current_thread() is not self._thread
            raise

    def bring_up_behind(self) -> None:
        """The same in a thread of its own; what went wrong is told to who asks, or at the container's end."""
        self._start_thread(self._bring_up_behind)

    def _start_thread(self, function: Callable[[], object]) -> None:
        self._thread = threading.Thread(target=function, name=f"pytest-cgroup ready {self.name}", daemon=True)
        self._thread.start()

    def join(self) -> None:
        """Everything in its container is gone: be done."""
        self.finish_stop(time.monotonic())
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(_JOIN_SECONDS)

    def _bring_up_behind(self) -> None:
        try:
            self.bring_up()
        except (CgroupError, OSError) as error:
            with self.changed:
                if self.error is None and not self._cancelled:
                    self.error = self._failure(f"can't be started: {error}", None)
                    self.state = "failed"
                self.changed.notify_all()

    def _give_up(self, error: BaseException) -> None:
        """Who brings it up is interrupted, or told that it will not be: nothing of it goes on."""
        with self.changed:
            self._cancelled = self.state in ("stopping", "ended")
            if isinstance(error, DaemonError) and self.error is None and not self._cancelled:
                self.error = error
        self.begin_stop()
        self.finish_stop(time.monotonic())

    def _await_daemon(self, other: Other) -> None:
        """It is ready, or we are stopped meanwhile."""
        while True:
            self._check_wanted(None)
            with contextlib.suppress(ContainerTimeout):
                return other.wait_ready(_LOOK_SECONDS_AT_MOST)

    def _launch(self) -> Instance:
        policy = self._policy
        if policy.pidfile is not None and self.instance is None:
            claim_pidfile(policy.pidfile, self.name)
        with self.changed:
            self._check_wanted(None)
            supervisor = self._enter("starting")
            self.instance = instance = Instance(
                self._argv,
                dict(self._options),
                start=self._life.start_process,
                pids=self._life.pids,
                supervisor=supervisor,
                logs=self.logs,
                ended=self._ended,
            )
            self._life.daemon_pids.add(instance.pid)
            if policy.pidfile is not None:
                write_pidfile(policy.pidfile, instance.pid)
            if not policy.ready:
                self._is_ready()
            return instance

    def _become_ready(self, instance: Instance) -> None:
        for condition in self._policy.ready:
            self._await(condition, instance)
        if self._policy.ready:
            with self.changed:
                self._check_wanted(instance)
                self._is_ready()

    def _is_ready(self) -> None:
        self.state, self._was_ready = "ready", True
        self.changed.notify_all()

    def _await(self, condition: Condition, instance: Instance | None) -> None:
        deadline = time.monotonic() + condition.timeout
        pause = _LOOK_SECONDS
        with contextlib.ExitStack() as stack:
            look = condition.begin(Scene(self._life, instance, self.logs[0]), stack)
            while True:
                self._check_wanted(instance)
                if (why := look()) is None:
                    return
                if (left := deadline - time.monotonic()) <= 0:
                    break
                with self.changed:
                    self._check_wanted(instance)
                    self.changed.wait(min(pause, left))
                pause = min(2 * pause, _LOOK_SECONDS_AT_MOST)
        self._check_wanted(instance)
        what = "is not ready" if instance is not None else "was not started: it waits for"
        raise self._failure(f"{what} {condition!r} after {condition.timeout:g} s: {why}", instance)

    def _check_wanted(self, instance: Instance | None) -> None:
        """Whoever brings it up is to go on.

        Raises:
            DaemonError: it has ended, or was stopped.
        """
        with self.changed:
            if self.error is not None:
                raise self.error
            if self.state in ("stopping", *OVER):
                raise self._stopped()
            if instance is not None and self.instance is not instance:
                raise self._failure(f"ended before it was ready: {self.reason}", None)

    def _stopped(self) -> DaemonError:
        how = "" if self.reason is None else f", and ended before: {self.reason}"
        return self._failure(f"was stopped before it was ready{how}", None)

    def _failure(self, what: str, instance: Instance | None, remedy: str | None = None) -> DaemonError:
        since = 0 if instance is None else instance.log_from
        output = "\n".join(filter(None, (log.tail(TAIL_LINES, since) for log in self.logs)))
        return DaemonError(f"daemon {self.name} {what}", daemon=self.name, output=output, remedy=remedy)

    # in the supervisor's thread

    def _ended(self, instance: Instance, code: int) -> None:
        for log in self._to_logging:
            log.flush()
        if self._policy.pidfile is not None:
            remove_pidfile(self._policy.pidfile, instance.pid)
        with self.changed:
            self.returncode, self.reason = code, instance.doomed or self._reason_of(code)
            self.instance = None
            if self.state == "stopping":
                self._conclude("ended")
            elif not self._by_hand:
                self._what_next(instance)
            self.changed.notify_all()

    def _reason_of(self, code: int) -> str:
        try:
            if (said := self._policy.reason_of(code)) is not None:
                return said
        except Exception as error:  # it is the user's
            return f"exit_status({code}): {type(error).__name__}: {error}"
        return "normal" if code == 0 else f"exit {code}" if code > 0 else signal_name(-code)

    def _what_next(self, instance: Instance | None) -> None:
        """It has ended, and nobody wanted that."""
        policy, now = self._policy, time.monotonic()
        if not self._was_ready:
            return self._fail(self._failure(f"ended before it was ready: {self.reason}", instance))
        if self._life.is_ending or policy.restart == "temporary":
            return self._conclude("ended")
        if policy.restart == "transient" and self.reason in _NORMAL:
            return self._conclude("ended")
        while self._restarts_at and self._restarts_at[0] <= now - policy.within:
            self._restarts_at.popleft()
        if len(self._restarts_at) >= policy.max_restarts:
            what = f"ended again after {len(self._restarts_at)} restarts within {policy.within:g} s: {self.reason}"
            return self._fail(self._failure(what, None, "see its output; max_restarts= and within= allow for more"))
        self._restarts_at.append(now)
        self.state = "restarting"
        assert self._supervisor is not None, "it has run"
        pause = policy.backoff * 2 ** min(len(self._restarts_at) - 1, _MOST_DOUBLINGS)
        self._timer = self._supervisor.call_later(pause, self._start_again)

    def _start_again(self) -> None:
        with self.changed:
            if self.state != "restarting" or self._by_hand or self.instance is not None:
                return
            try:
                instance = self._launch()
            except (CgroupError, OSError) as error:
                self.reason = f"can't be started: {error}"
                self._what_next(None)
                self.changed.notify_all()
                return
            self.restarts += 1
        if self._policy.ready:
            self._start_thread(lambda: self._watch_ready(instance))

    def _watch_ready(self, instance: Instance) -> None:
        try:
            self._become_ready(instance)
        except (CgroupError, OSError):  # it has ended meanwhile, or is late
            instance.kill("not ready in time")

    def _read_on(self) -> None:
        with self.changed:
            if self._supervisor is not None and self.instance is not None:
                self._supervisor.call(self.instance.read_on)

    # its beginning and its end

    def _enter(self, state: State) -> _supervisor.Supervisor:
        self.state = state
        if self._supervisor is None:
            self._supervisor = self._last_supervisor = _supervisor.enter()
            for log in self.logs:
                log.reopen()
        return self._supervisor

    def _fail(self, error: DaemonError) -> None:
        self.error = error
        self._conclude("failed")

    def _conclude(self, state: State) -> None:
        self.state = state if self.error is None else "failed"
        for log in self.logs:
            log.close()
        supervisor, self._supervisor = self._supervisor, None
        if supervisor is not None:
            _supervisor.leave(supervisor)
        self.changed.notify_all()

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
