"""``python -m pytest_cgroup run``: one command in a container, in the foreground of whoever started us.

Theory of operation. The command is in our own process group, so a terminal's Ctrl-C and Ctrl-Z reach it, and whatever
it makes of them, without us; and a shell of ours that has job control sees what it would see without us, since we stop
when the command stops. We ourselves have every signal blocked and wait for them one by one: what somebody sent to us
alone is passed on.
"""

from __future__ import annotations

import argparse
import dataclasses
import errno
import shlex
import sys
from typing import TYPE_CHECKING, Any, NoReturn

from ._asked import OF_TESTS
from ._isolated import io, json, os, signal, threading
from ._process import stat_fields
from ._spec import FIELDS
from ._values import BACKENDS, is_backend
from .exceptions import CgroupError

if TYPE_CHECKING:
    from ._library import Container
    from ._outcome import Outcome
    from ._popen import Popen

TIMED_OUT, OWN_FAILURE, NOT_EXECUTABLE, NOT_FOUND = 124, 125, 126, 127
#: the status where the command succeeded, and left something that ``--leaks=fail`` forbids
LEFT_BEHIND = 1
DESCRIPTION = (
    "Run a command in a container: its limits, its namespaces, and one end for all that came of it. What was used is "
    "said on stderr. The exit status is the command's, 128+N for signal N, 124 at the timeout, 125 for a failure of "
    "the container, 126 for a command that can't be executed, 127 for one that is not there."
)
_SI_USER = 0  # siginfo: sent by kill(2) and friends, and not by a terminal
#: fields that say something of tests, or of siblings, which a single command has not
NO_OPTION = (*OF_TESTS, "slice")
_PASSED_ON = ("SIGTERM", "SIGINT", "SIGQUIT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGWINCH", "SIGALRM")
_FOLLOWED = ("SIGCHLD", "SIGTSTP", "SIGCONT")


class Parser(argparse.ArgumentParser):
    """An argument parser of a command."""

    #: what the process ends with if its arguments are wrong
    status = 2

    def error(self, message: str) -> NoReturn:
        """Say so, and end."""
        self.print_usage(sys.stderr)
        self.exit(self.status, f"{self.prog}: error: {message}\n")


def add_arguments(parser: Parser) -> None:
    """The command's options: its own, and one for each field that a container has."""
    parser.status = OWN_FAILURE
    parser.add_argument("--cgroup-backend", type=_backend, default="auto", metavar="NAME", help="as pytest's")
    parser.add_argument("--usage-json", metavar="FILE", help="write what came of it, a JSON object")
    parser.add_argument("-q", "--quiet", action="store_true", help="say nothing on stderr of what was used")
    parser.add_argument(
        "--init",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="with --pid-ns: --no-init makes the command PID 1, which ends by no signal that it has no handler for",
    )
    parser.add_argument("--path", help="of the container's cgroup, below the one that this is called in; none is there")
    group = parser.add_argument_group("the container", "as the arguments of the marker `contained`, see the docs")
    for field in FIELDS:
        if field.name in NO_OPTION:
            continue
        options: dict[str, Any] = {"help": f"{field.help}; {field.allowed}".replace("%", "%%")}
        if field.kind == "flag":
            options |= {"action": argparse.BooleanOptionalAction}
        elif field.kind in ("dict", "paths"):
            options |= {"action": "append", "metavar": "NAME=VALUE" if field.kind == "dict" else "PATH"}
        else:
            options |= {"metavar": field.kind.upper()}
        if field.name == "leaks":
            options["help"] = (
                f'what becomes of what outlives the command, beside its end: "warn" names it (default), "fail" makes '
                f'the status {LEFT_BEHIND} in place of 0, "ignore" says nothing'
            )
        group.add_argument(f"--{field.name.replace('_', '-')}", dest=f"field_{field.name}", **options)
    parser.add_argument("argv", nargs=argparse.REMAINDER, metavar="COMMAND", help="after `--`, with its arguments")
    parser.set_defaults(error=parser.error)


def _backend(name: str) -> str:
    if not is_backend(name):
        raise argparse.ArgumentTypeError(f"{name!r}: allowed: {', '.join(BACKENDS)}")
    return name


def run(options: argparse.Namespace) -> tuple[int, str]:
    """The exit status, and nothing to print."""
    argv = options.argv[1:] if options.argv[:1] == ["--"] else options.argv
    if not argv:
        options.error("the command is missing: … -- COMMAND [ARGUMENT …]")
    try:
        status, outcome = _run(argv, options)
    except CgroupError as error:
        return _fail(OWN_FAILURE, str(error))
    except OSError as error:
        status = NOT_FOUND if error.errno in (errno.ENOENT, errno.ENOTDIR) else NOT_EXECUTABLE
        return _fail(status, f"{error.filename or argv[0]}: {error.strerror}")
    leaks = options.field_leaks or "warn"
    if not options.quiet:
        _tell(_summary(outcome, leaks))
    if options.usage_json:
        try:
            with io.open(options.usage_json, "w", encoding="utf-8") as f:
                json.dump({"schema": 1, "argv": argv, **outcome.to_json()}, f)
                f.write("\n")
        except OSError as error:
            return _fail(OWN_FAILURE, f"--usage-json: {error.filename}: {error.strerror}")
    return (LEFT_BEHIND if leaks == "fail" and outcome.leaks and status == 0 else status), ""


def _run(argv: list[str], options: argparse.Namespace) -> tuple[int, Outcome]:
    from ._library import Container  # `doctor` and `clean` have no use for it

    spec = _spec(options)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    watched = {getattr(signal, name) for name in (*_PASSED_ON, *_FOLLOWED)}
    signal.pthread_sigmask(signal.SIG_BLOCK, watched)  # also in the threads that are started from now on
    name = os.path.basename(argv[0]) or "run"
    own = {"backend": options.cgroup_backend, "name": name, "init": options.init, "path": options.path}
    container = Container(**own, **spec).start()
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)  # it is inherited
        try:
            process: Any = container.popen(argv)
        finally:
            signal.pthread_sigmask(signal.SIG_BLOCK, watched)
        _attend(process, watched)
        command = _outcome_of(container, process, shlex.join(argv))
    except BaseException:
        container.destroy()
        raise
    return _status(container.stop(), command)


def _spec(options: argparse.Namespace) -> dict[str, Any]:
    """The fields that were given, as `Container` takes them."""
    spec = {}
    for field in FIELDS:
        value = getattr(options, f"field_{field.name}", None)
        if value is None or field.name == "leaks":
            continue
        spec[field.name] = _dict(options, field.name, value) if field.kind == "dict" else value
    if (leaks := options.field_leaks) not in (None, "warn", "fail", "ignore"):
        options.error(f"--leaks {leaks}: allowed: warn, fail, ignore")
    return spec


def _dict(options: argparse.Namespace, name: str, given: list[str]) -> dict[str, Any]:
    """``["nofile=256"]`` or ``['{"nofile": 256}']``."""
    option = "--" + name.replace("_", "-")

    def from_json(text: str) -> Any:
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            return options.error(f"{option}: {text!r} is not JSON: {error}")

    found: dict[str, Any] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if text.startswith("{"):
            found |= from_json(text)
        elif not equals:
            options.error(f"{option}: {text!r} is neither NAME=VALUE nor a JSON object")
        else:
            found[key] = from_json(value) if value.startswith(("{", "[")) else value
    return found


def _attend(process: Popen, watched: set[int]) -> None:
    """Until *process* has ended: pass signals on, and stop when it stops."""
    ours = process.told is None  # else it is a launcher's child, and how it is we hear when it has ended
    if not ours:
        waiter = threading.Thread(target=_wait, args=(process,), daemon=True)
        waiter.start()
    while process.poll() is None:
        if ours and _has_stopped(process):
            _stop_with(process)  # whoever has job control sees us stop, and has us go on
            continue
        info = signal.sigwaitinfo(watched)
        number, sent = info.si_signo, info.si_code <= _SI_USER
        if number == signal.SIGCHLD:
            continue  # asked above, also of what came before it was waited for
        if number == signal.SIGTSTP and not ours:
            if sent:
                process.send_signal(number)
            _stop_with(process)
        elif number == signal.SIGCONT:
            _have_go_on(process)
        elif sent:
            process.send_signal(number)


def _stop_with(process: Popen) -> None:
    """Stop; when we go on, so does *process*."""
    os.kill(os.getpid(), signal.SIGSTOP)
    _have_go_on(process)


def _have_go_on(process: Popen) -> None:
    """Unless it goes on already, or was stopped again before we came to tell it.

    A shell has both of us go on: told a second time, the process would miss a stop that came in between.
    """
    if (fields := stat_fields(process.pid)) and fields[0] == "T":
        process.send_signal(signal.SIGCONT)
        if signal.SIGTSTP in signal.sigpending():
            process.send_signal(signal.SIGTSTP)


def _has_stopped(process: Popen) -> bool:
    """Whether it has just stopped."""
    try:
        return os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOHANG) is not None
    except ChildProcessError:
        return False


def _wait(process: Popen) -> None:
    process.wait()
    os.kill(os.getpid(), signal.SIGCHLD)


def _outcome_of(container: Container, process: Popen, owner: str) -> Outcome:
    wall = container.usage().wall_seconds or 0.0
    return container._ever("run").outcome_of(process.returncode, wall, [], owner)


def _status(container: Outcome, command: Outcome) -> tuple[int, Outcome]:
    """The status to exit with, and one outcome of both."""
    ended = command.ended if container.ended == "exit" else container.ended
    outcome = dataclasses.replace(container, ended=ended, exit_code=command.exit_code, signal=command.signal)
    if outcome.timed_out:
        return TIMED_OUT, outcome
    return (128 + command.signal if command.signal is not None else command.exit_code or 0), outcome


def _summary(outcome: Outcome, leaks: str) -> str:
    lines = [f"{outcome.describe()}; used: {outcome.usage.describe()}"]
    if leaks != "ignore":
        lines += [f"left behind, now ended: {leak.describe()}" for leak in outcome.leaks]
    lines += [f"not enforced: {what}" for what in outcome.not_enforced]
    return "\n".join([*lines, *outcome.notes])


def _fail(status: int, text: str) -> tuple[int, str]:
    _tell(text)
    return status, ""


def _tell(text: str) -> None:
    for line in text.splitlines():
        try:
            os.write(2, f"pytest-cgroup: {line}\n".encode(errors="backslashreplace"))
        except OSError:  # nobody reads
            return
