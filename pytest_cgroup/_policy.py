"""What is asked of a daemon: `Container.daemon`'s arguments, checked."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from ._isolated import os, signal
from ._units import parse_size
from .exceptions import SpecError
from .ready import Condition

_RESTART = ("permanent", "transient", "temporary")
_DEFAULTS: dict[str, Any] = {
    "restart": "permanent",
    "max_restarts": 3,
    "within": 5.0,
    "backoff": 0.0,
    "ready": None,
    "after": None,
    "stop_signal": signal.SIGTERM,
    "grace": None,
    "exit_status": None,
    "log": None,
    "log_level": logging.INFO,
    "log_prefix": None,
    "log_transform": None,
    "log_limit": "1M",
    "output_window": None,
    "pidfile": None,
}
NAMES = tuple(_DEFAULTS)

Reasons = Mapping[int, str] | Callable[[int], str | None]


class Other(Protocol):
    """Another daemon (`_upkeep`)."""

    def wait_ready(self, timeout: float | None) -> None:
        """Wait until it is ready."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Checked, and as the supervisor needs it. Seconds and bytes, as in `Container.daemon`."""

    restart: str
    max_restarts: int
    within: float
    backoff: float
    ready: tuple[Condition, ...]
    after: tuple[Condition | Other, ...]
    stop_signal: int
    grace: float
    own_grace: bool
    exit_status: Reasons | None
    logger: logging.Logger | None
    log_level: int
    log_prefix: str | None
    log_transform: Callable[[str], str | None] | None
    log_limit: int
    output_window: int | None
    pidfile: str | None

    def reason_of(self, code: int) -> str | None:
        """What the user calls this returncode; None for what it is called by itself."""
        if self.exit_status is None:
            return None
        return self.exit_status.get(code) if isinstance(self.exit_status, Mapping) else self.exit_status(code)

    def prefix(self, name: str) -> str:
        """Of each line that goes to `logging`."""
        return f"{name}: " if self.log_prefix is None else self.log_prefix


def parse_policy(asked: dict[str, Any], *, grace: float, upkeep_of: Callable[[object], Other | None]) -> Policy:
    """The policy; what is about it is taken out of *asked*. *grace*: the container's, unless another is asked for.

    Raises:
        SpecError: a value that can't be right.
    """
    given = {name: asked.pop(name, default) for name, default in _DEFAULTS.items()}

    def wrong(name: str, why: str, allowed: str) -> SpecError:
        return SpecError(name, given[name], why, where="daemon", allowed=allowed)

    if given["restart"] not in _RESTART:
        raise wrong("restart", "is no policy", ", ".join(map(repr, _RESTART)))
    if not isinstance(given["max_restarts"], int) or isinstance(given["max_restarts"], bool):
        raise wrong("max_restarts", "is no number of restarts", "0 or more")
    for name, least in (("max_restarts", 0), ("within", 0), ("backoff", 0), ("grace", 0)):
        value = given[name]
        if value is None and name == "grace":
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not value >= least:
            raise wrong(name, "is too little, or no number", f"{least} or more")
    if given["stop_signal"] not in signal.valid_signals():
        raise wrong("stop_signal", "is no signal", "signal.SIGTERM, signal.SIGINT, …")
    reasons = given["exit_status"]
    if not (reasons is None or isinstance(reasons, Mapping) or callable(reasons)):
        raise wrong("exit_status", "says no reasons", 'a dict {3: "no licence"}, or a function of the returncode')
    ready = _conditions(given["ready"])
    if not all(isinstance(one, Condition) for one in ready):
        raise wrong("ready", "is no condition", "ready.port(…), ready.log(…), …, or a list of these")
    after = tuple(upkeep_of(one) or one for one in _conditions(given["after"]))
    if any(
        not one.before if isinstance(one, Condition) else upkeep_of(other) is None
        for one, other in zip(after, _conditions(given["after"]), strict=True)
    ):
        raise wrong("after", "can't be there before it", "another daemon, ready.port(…), …, or a list of these")
    logger = logging.getLogger(given["log"]) if isinstance(given["log"], str) else given["log"]
    if not (logger is None or isinstance(logger, logging.Logger)):
        raise wrong("log", "is no logger", "a logging.Logger, or its name")
    return Policy(
        restart=given["restart"],
        max_restarts=given["max_restarts"],
        within=given["within"],
        backoff=given["backoff"],
        ready=ready,
        after=after,
        stop_signal=given["stop_signal"],
        grace=grace if given["grace"] is None else given["grace"],
        own_grace=given["grace"] is not None,
        exit_status=reasons,
        logger=logger,
        log_level=given["log_level"],
        log_prefix=given["log_prefix"],
        log_transform=given["log_transform"],
        log_limit=_size("log_limit", given["log_limit"]),
        output_window=None if given["output_window"] is None else _size("output_window", given["output_window"]),
        pidfile=None if given["pidfile"] is None else os.path.abspath(given["pidfile"]),
    )


def _conditions(given: Any) -> tuple[Any, ...]:
    if given is None:
        return ()
    return tuple(given) if isinstance(given, list | tuple) else (given,)


def _size(name: str, value: int | str) -> int:
    try:
        size = parse_size(value)
        if not isinstance(size, int) or size < 1:
            raise ValueError("is no number of bytes from 1 on")
    except ValueError as error:
        raise SpecError(name, value, str(error), where="daemon", allowed='bytes: 65536, "1M"') from error
    return size
