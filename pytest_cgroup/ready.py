"""When a daemon is ready: what `Container.daemon` can be asked to wait for, as ``ready=ready.port(6379)``.

Each condition has a deadline of its own, *timeout*, in seconds from the start of the program. Several in a list are
waited for one after the other. The same conditions serve as ``after=``, for what has to be there before the program
is started.

`port` and `unix` read from the kernel's tables who listens, also in a network namespace of the container's own, and
connect to nobody: a server that takes one client only is not disturbed. What listens must be the daemon, or a process
that came of it; another program at the same port is no sign of readiness.
"""

from __future__ import annotations

import builtins
import contextlib
import re
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from ._http_probe import ask
from ._isolated import os, subprocess
from ._listening import hold, tcp_listeners, unix_listeners
from .exceptions import SpecError

if TYPE_CHECKING:
    from ._log import Log

__all__ = ["Condition", "callable", "http", "log", "port", "unix"]

_TIMEOUT_SECONDS = 30.0
#: says what is missing, None once nothing is
Look = Callable[[], str | None]


class Scene(Protocol):
    """Where a condition is looked at."""

    @property
    def network_of(self) -> int | str:
        """A process in the network that is looked at."""

    @property
    def own_network(self) -> bool:
        """Whether that is another network than ours."""

    def family(self) -> list[int] | None:
        """The daemon's processes; None before it is started."""

    @property
    def log(self) -> Log:
        """The daemon's output."""

    @property
    def log_from(self) -> int:
        """Where in that this run of it begins."""

    def helper(self, argv: list[str], options: dict[str, Any]) -> subprocess.Popen[Any]:
        """A process of ours in the container, that is nobody's leak."""


class Condition:
    """Something to wait for; made by the functions of this module.

    Attributes:
        timeout: after so many seconds it is given up.
        before: whether it can be asked for before the daemon is started, as ``after=``.
    """

    def __init__(
        self,
        what: str,
        begin: Any,
        timeout: float,
        *,
        before: bool = True,
    ) -> None:
        if not timeout > 0:
            raise SpecError("timeout", timeout, "no time to wait", where=what, allowed="seconds above 0")
        self.timeout = timeout
        self.before = before
        self.begin: Callable[[Scene, contextlib.ExitStack], Look] = begin
        self._what = what

    def __repr__(self) -> str:
        return f"ready.{self._what}"


def port(number: int, *, timeout: float = _TIMEOUT_SECONDS) -> Condition:
    """A TCP port on which the daemon listens, whatever the address."""
    if not 0 < number < 1 << 16:
        raise SpecError("port", number, "is no TCP port", where="ready.port", allowed="1 to 65535")

    def begin(scene: Scene, stack: contextlib.ExitStack) -> Look:
        return lambda: _held(scene, tcp_listeners(scene.network_of, number), f"on port {number}")

    return Condition(f"port({number})", begin, timeout)


def unix(path: str | os.PathLike[str], *, timeout: float = _TIMEOUT_SECONDS) -> Condition:
    """A Unix socket on which the daemon listens, or that it has bound for datagrams; ``"@name"`` for an abstract one.

    The name is compared with the one that the daemon gave to bind(2), symbolic links and all.
    """
    name = os.fspath(path)
    if not name.startswith("@"):
        name = os.path.abspath(name)

    def begin(scene: Scene, stack: contextlib.ExitStack) -> Look:
        return lambda: _held(scene, unix_listeners(scene.network_of, name), f"at {name}")

    return Condition(f"unix({name!r})", begin, timeout)


def _held(scene: Scene, inodes: set[str], where: str) -> str | None:
    if not inodes:
        return f"nobody listens {where}"
    family = scene.family()
    if family is None or hold(family, inodes) is not False:
        return None
    return f"another process listens {where}, and not the daemon"


def log(pattern: str | re.Pattern[str], *, timeout: float = _TIMEOUT_SECONDS) -> Condition:
    """A regular expression that is found (`re.search`) in what the daemon has printed since it was started.

    ``^`` and ``$`` stand for the ends of lines. The output goes to the readers all the same.
    """
    wanted = re.compile(pattern, re.MULTILINE) if isinstance(pattern, str) else pattern

    def begin(scene: Scene, stack: contextlib.ExitStack) -> Look:
        seen, at = b"", scene.log_from

        def look() -> str | None:
            nonlocal seen, at
            piece, at = scene.log.since(at)
            seen += piece
            if wanted.search(seen.decode(errors="replace")):
                return None
            return f"nothing that it printed matches {wanted.pattern!r}"

        return look

    return Condition(f"log({wanted.pattern!r})", begin, timeout, before=False)


def http(url: str, *, status: int | None = None, timeout: float = _TIMEOUT_SECONDS) -> Condition:
    """A URL that is answered with *status*, or with any below 400. Redirections are not followed, certificates not
    looked at.

    Where the container has a network of its own, a small Python in it does the asking: it counts with its limits.
    """
    if not url.startswith(("http://", "https://")):
        raise SpecError("url", url, "is no URL of HTTP", where="ready.http", allowed="http://… or https://…")

    def begin(scene: Scene, stack: contextlib.ExitStack) -> Look:
        if not scene.own_network:
            return lambda: ask(url, status)
        return _ask_inside(scene, stack, url, status)

    return Condition(f"http({url!r})", begin, timeout)


def _ask_inside(scene: Scene, stack: contextlib.ExitStack, url: str, status: int | None) -> Look:
    script = os.path.join(os.path.dirname(__file__), "_http_probe.py")
    argv = [sys.executable, "-I", "-S", script, url, str(status or 0)]
    helper = scene.helper(
        argv, {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "bufsize": 0}
    )
    assert helper.stdout is not None
    stdout = helper.stdout
    stack.callback(stdout.close)
    stack.callback(helper.wait)
    stack.callback(helper.kill)
    os.set_blocking(stdout.fileno(), False)
    said = "it was not asked yet"

    def look() -> str | None:
        nonlocal said
        code = helper.poll()
        with contextlib.suppress(BlockingIOError):
            if text := os.read(stdout.fileno(), 1 << 16).decode(errors="replace").strip():
                said = text.splitlines()[-1]
        if code is None:
            return said
        return None if code == 0 else f"it can't be asked from inside (status {code}): {said}"

    return look


def callable(function: Callable[[], object], *, timeout: float = _TIMEOUT_SECONDS) -> Condition:
    """A function that returns something true. It is called again and again; an exception means "not yet"."""
    if not builtins.callable(function):
        raise SpecError("function", function, "can't be called", where="ready.callable", allowed="a function")
    name = getattr(function, "__name__", "?")

    def look() -> str | None:
        try:
            return None if function() else f"{name}() is not true"
        except Exception as error:  # whatever it is, it is not ready
            return f"{name}(): {type(error).__name__}: {error}"

    return Condition(f"callable({name})", lambda scene, stack: look, timeout)
