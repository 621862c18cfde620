"""What the process of a contained test says of itself, looked at before anybody acts on it.

The test is in that process, too, and may write into the pipe whatever it likes, or have its reports say it. What it
says may cost that test its verdict, and nothing else: pytest trusts a report, and one of a wrong shape ends the whole
run where it is shown. So shapes are checked here, the parts that pytest, its terminal and its XML rely on.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable, Container

_KINDS = ("report", "debugger", "refused", "end", "exit", "interrupt", "internal")
#: what a report is made with; whatever else it carries is a plugin's
_OWN = frozenset(
    [
        *("nodeid", "location", "keywords", "outcome", "longrepr", "when", "sections", "user_properties"),
        *("duration", "start", "stop"),
    ]
)
_PID = re.compile(r"[0-9]{1,10}")
#: far beyond all seconds, lines and sizes, and yet a float
_MOST = 2**62
_XML_NAME = re.compile(r"[A-Za-z_:][\w:.-]*")


def check_message(message: dict[str, Any], *, is_own: Callable[[str], bool], taken: Container[str]) -> None:
    """Raise if *message* is not one that `_inside` makes.

    Args:
        is_own: whether a report of that node's id is the test's to make.
        taken: what a report's attributes must not be called, as pytest itself calls something so.

    Raises:
        ValueError: it is not; what is wrong, and where.
    """
    kind = next((name for name in _KINDS if name in message), None)
    if kind is None:
        _refuse("message", "of no kind that is known")
    for warning in _list(message.get("warnings") or [], "warnings"):
        _check_warning(warning)
    _check_junit(message.get("junit") or {})
    if kind == "report":
        _check_report(message["report"], is_own, taken)
        for name in ("out", "err"):
            _number(_dict(message.get("positions"), "positions").get(name), f"positions.{name}")
        _natural(message.get("failed_subtests"), "failed_subtests")
    elif kind == "end":
        _check_end(message)
    elif kind == "exit":
        _text(message["exit"], "exit")
        if message.get("returncode") is not None:
            _number(message["returncode"], "returncode")


def _check_report(report: Any, is_own: Callable[[str], bool], taken: Container[str]) -> None:
    data = _dict(report, "report")
    if not is_own(_text(data.get("nodeid"), "report.nodeid")):
        _refuse("report.nodeid", "another test's")
    for name in data:
        if name not in _OWN and name in taken:
            _refuse(f"report.{name[:80]}", "pytest's own")
    _one_of(data.get("outcome"), ("passed", "failed", "skipped"), "report.outcome")
    _one_of(data.get("when"), ("setup", "call", "teardown"), "report.when")
    for name in ("duration", "start", "stop"):
        _number(data.get(name, 0), f"report.{name}")
    file, line, domain = _row(data.get("location"), 3, "report.location")
    _text(file, "report.location[0]")
    _line(line, "report.location[1]")
    _text(domain, "report.location[2]")
    _dict(data.get("keywords"), "report.keywords")
    for section in _list(data.get("sections", []), "report.sections"):
        title, text = _row(section, 2, "report.sections")
        _text(title, "report.sections")
        _text(text, "report.sections")
    for pair in _list(data.get("user_properties", []), "report.user_properties"):
        _row(pair, 2, "report.user_properties")
    if "wasxfail" in data:
        _text(data["wasxfail"], "report.wasxfail")
    _check_longrepr(data.get("longrepr"), skipped=data["outcome"] == "skipped" and "wasxfail" not in data)
    if "_subtest.context" in data:
        context = _dict(data["_subtest.context"], "report.context")
        _dict(context.get("kwargs"), "report.context.kwargs")
        if context.get("msg") is not None:
            _text(context["msg"], "report.context.msg")


def _check_longrepr(longrepr: Any, *, skipped: bool) -> None:
    """A skip is a place and a reason; what describes an error has a crash's place, and is tried by showing it."""
    where = "report.longrepr"
    if skipped or isinstance(longrepr, list):
        file, line, reason = _row(longrepr, 3, where)
        _text(file, where)
        _line(line, where)
        _text(reason, where)
    elif isinstance(longrepr, dict):
        crashes = [longrepr.get("reprcrash")]
        crashes += [_row(one, 3, where)[1] for one in _list(longrepr.get("chain") or [], where)]
        for crash in filter(None, crashes):
            _text(_dict(crash, where).get("path"), where)
            _line(crash.get("lineno"), where)
            _text(crash.get("message"), where)
    elif longrepr is not None:
        _text(longrepr, where)


def _check_warning(warning: Any) -> None:
    data = _dict(warning, "warnings")
    for name in ("module", "category", "message", "filename"):
        _text(data.get(name), f"warnings.{name}")
    _line(data.get("lineno"), "warnings.lineno")
    if data.get("line") is not None:
        _text(data["line"], "warnings.line")


def _check_junit(junit: Any) -> None:
    """One name that XML does not allow, and nobody can read the whole file."""
    data = _dict(junit, "junit")
    for pair in _list(data.get("properties", []), "junit.properties"):
        _row(pair, 2, "junit.properties")
    for name in _dict(data.get("attributes", {}), "junit.attributes"):
        if not _XML_NAME.fullmatch(name):
            _refuse("junit.attributes", "no name of an attribute in XML")


def _check_end(end: dict[str, Any]) -> None:
    for what in ("zombies", "family"):
        for pid, told in _dict(end.get(what, {}), what).items():
            if not _PID.fullmatch(pid):
                _refuse(what, "no pid")
            for name in [told] if what == "zombies" else _list(told, what):
                _text(name, what)
    for start in _list(end.get("started", []), "started"):
        pid, place, argv, boottime = _row(start, 4, "started")
        _natural(pid, "started")
        _text(place or "", "started")
        for word in _list(argv, "started"):
            _text(word, "started")
        _number(boottime, "started")
    for what in ("untold", "shouldstop", "shouldfail"):
        if end.get(what) is not None:
            _text(end[what], what)


def _refuse(where: str, what: str) -> NoReturn:
    raise ValueError(f"{where}: {what}")


def _dict(value: Any, where: str) -> dict[str, Any]:
    return value if isinstance(value, dict) else _refuse(where, f"{type(value).__name__} is no object")


def _list(value: Any, where: str) -> list[Any]:
    return value if isinstance(value, list) else _refuse(where, f"{type(value).__name__} is no list")


def _row(value: Any, length: int, where: str) -> list[Any]:
    row = _list(value, where)
    return row if len(row) == length else _refuse(where, f"{len(row)} and not {length} values")


def _text(value: Any, where: str) -> str:
    return value if isinstance(value, str) else _refuse(where, f"{type(value).__name__} is no text")


def _one_of(value: Any, allowed: tuple[str, ...], where: str) -> None:
    if _text(value, where) not in allowed:
        _refuse(where, f"{value[:80]!r} is none of {', '.join(allowed)}")


def _number(value: Any, where: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not -_MOST < value < _MOST:
        _refuse(where, "no number that can be")


def _natural(value: Any, where: str) -> None:
    if type(value) is not int or not 0 <= value < _MOST:
        _refuse(where, "no count")


def _line(value: Any, where: str) -> None:
    if value is not None and (type(value) is not int or not -_MOST < value < _MOST):
        _refuse(where, f"{type(value).__name__} is no line")
