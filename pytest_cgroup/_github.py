"""GitHub Actions: every leak annotates the line that started it, and has a row in the summary of the step.

The commands are described in "Workflow commands for GitHub Actions". They count wherever they stand at the beginning
of a line of the step's output, so they come at the end, in one piece.
"""

from __future__ import annotations

import dataclasses
import errno
import html
import re
import shlex
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ._isolated import io, os
from ._verdict import counted, leak_line, leaks_told, one_line, plural

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Mapping

    from ._outcome import Leak

_STARTED_AT = re.compile(r"(.+?):(\d+) in ")
#: characters that begin something in Markdown, also within HTML
_MARKDOWN = re.compile(r"[\\`*_\[\]~|@$]")
_LONG = 200
#: a summary of a step may have 1 MiB
_MOST_ROWS = 500


@dataclasses.dataclass(frozen=True, slots=True)
class _Found:
    leak: Leak
    level: str
    file: str | None
    line: int | None


class GitHub:
    """The plugin behind ``GITHUB_ACTIONS=true``, in pytest itself and in xdist's controller."""

    def __init__(self, config: pytest.Config, environ: Mapping[str, str] = os.environ) -> None:
        self._root = config.rootpath
        self._workspace = Path(environ.get("GITHUB_WORKSPACE") or config.rootpath)
        self._summary = environ.get("GITHUB_STEP_SUMMARY")
        self._found: list[_Found] = []
        self._trouble: str | None = None

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "teardown":
            leaks, failed = leaks_told(report)
            self._note(leaks, report.location, failed=failed)

    def add(self, leaks: Iterable[Leak], *, failed: bool) -> None:
        """Leaks that no test's report tells of."""
        self._note(leaks, None, failed=failed)

    def _note(self, leaks: Iterable[Leak], location: tuple[str, int | None, str] | None, *, failed: bool) -> None:
        for leak in leaks:
            file = line = None
            if match := _STARTED_AT.match(leak.started_at or ""):
                file, line = self._in_repository(match[1]), int(match[2])
            if file is None and location is not None:
                file, line = self._in_repository(location[0]), (location[1] or 0) + 1
            level = "error" if failed else "warning"
            self._found.append(_Found(leak, level, file, None if file is None else line))

    def _in_repository(self, path: str) -> str | None:
        """GitHub knows a file by its path below the workspace, and no other file."""
        full = os.path.abspath(self._root / path)
        below = os.path.relpath(full, self._workspace)
        return None if below.startswith("..") else below

    @pytest.hookimpl(wrapper=True, trylast=True)  # before the terminal's summary
    def pytest_sessionfinish(self) -> Generator[None, Any, Any]:
        result = yield
        if self._summary and self._found:
            try:
                with io.open(self._summary, "a", encoding="utf-8", errors="replace", opener=_open_to_append) as f:
                    f.write(step_summary([one.leak for one in self._found]))
            except OSError as error:
                self._trouble = f"GITHUB_STEP_SUMMARY={self._summary}: the leaks can't be added: {error.strerror}"
        return result

    @pytest.hookimpl(trylast=True)
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for one in self._found:
            terminalreporter.write_line(annotation(one.leak, one.level, one.file, one.line))
        if self._trouble is not None:
            terminalreporter.write_line(one_line(self._trouble))


def _open_to_append(path: str, flags: int) -> int:
    """Nothing that a test has put in the file's place: no link to another one, and no pipe that nobody reads."""
    fd = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "it is no file", path)
    return fd


def annotation(leak: Leak, level: str, file: str | None, line: int | None) -> str:
    """One workflow command: ``::error file=…,line=…,title=…::…``."""
    properties = {
        "file": file,
        "line": None if line is None else str(line),
        "title": f"leaked {leak.kind}: {_name(leak)}",
    }
    given = ",".join(f"{name}={_property(value)}" for name, value in properties.items() if value is not None)
    return f"::{level} {given}::" + _data(f"{one_line(leak.owner or '?')} left behind {leak_line(leak)}")


def _name(leak: Leak) -> str:
    if leak.kind != "process":
        return one_line(leak.name or "?")
    return one_line(os.path.basename(leak.argv[0])) if leak.argv else leak.status or "?"


def _what(leak: Leak) -> str:
    return f"pid {leak.pid}: {shlex.join(leak.argv)}" if leak.kind == "process" else f"{leak.kind} {leak.name}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def step_summary(leaks: list[Leak]) -> str:
    """A table in Markdown."""
    rows = [
        f"| {_cell(leak.owner or '?')} | {_cell(_what(leak))} | {_cell(leak.started_at or '')} |"
        for leak in leaks[:_MOST_ROWS]
    ]
    more = [] if len(leaks) <= _MOST_ROWS else ["", f"and {len(leaks) - _MOST_ROWS} more"]
    only = all(leak.kind == "process" for leak in leaks)
    title = f"### {plural(len(leaks), 'leaked process', 'es')}, now killed" if only else f"### {counted(leaks)} leaked"
    head = [f"| left behind by | {'process' if only else 'what'} | started at |", "| --- | --- | --- |"]
    return "\n".join(["", title, "", *head, *rows, *more, "", ""])


def _cell(text: str) -> str:
    text = one_line(text)
    text = text if len(text) <= _LONG else f"{text[: _LONG - 1]}…"
    return _MARKDOWN.sub(lambda match: f"&#{ord(match[0])};", html.escape(text, quote=False))
