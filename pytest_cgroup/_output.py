"""A contained test's output: captured into files that pytest itself can read when the test can not tell any more.

The test's process captures as pytest does, but into files of the session's that nobody writes to between tests, so a
crashed test's output stands under that test. Short output travels in the report, as ever. Long output stays in the
file, and the report says where; the parent keeps it on disk and reads it when somebody looks at it.
"""

from __future__ import annotations

import fcntl
import re
import tempfile
from typing import TYPE_CHECKING, SupportsIndex, cast, overload

from ._isolated import os

if TYPE_CHECKING:
    from collections.abc import Iterator

#: output of one phase and stream that is longer than this stays on disk, in bytes
LONG = 1024 * 1024
_MARK = re.compile(r"\x00pytest-cgroup output (out|err) (\d+) (\d+)\x00")
_TITLES = {"out": "Captured stdout", "err": "Captured stderr"}


def _open_file() -> int:
    try:
        return os.open(tempfile.gettempdir(), os.O_TMPFILE | os.O_RDWR | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except OSError:  # a filesystem without O_TMPFILE
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
        fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND)
        return fd


class Output:
    """The two files of a session, emptied before each test; and a third for the long outputs that are kept."""

    def __init__(self) -> None:
        self.files = {"out": _open_file(), "err": _open_file()}
        #: where a child leaves its coverage data: on a descriptor, for it may have another /tmp, and be another user
        self.coverage = _open_file()
        self._starts = {"out": 0, "err": 0}
        self._kept: int | None = None

    def prepare(self, pending: dict[str, bytes]) -> None:
        """Before a fork: empty files, but for what was captured of this test's set-up already."""
        for name, fd in self.files.items():
            if os.fstat(fd).st_size:
                os.ftruncate(fd, 0)
            if name in pending:
                os.write(fd, pending[name])
            self._starts[name] = 0

    def snap(self, name: str) -> str:
        """In the child: what came since this was last asked, or a mark that says where it is if it is long."""
        fd, start = self.files[name], self._starts[name]
        size = os.fstat(fd).st_size - start
        if size <= 0:
            return ""
        self._starts[name] = start + size
        if size > LONG:
            return f"\x00pytest-cgroup output {name} {start} {size}\x00"
        return os.pread(fd, size, start).decode(errors="replace")

    @property
    def positions(self) -> dict[str, int]:
        """How far each stream has been reported."""
        return dict(self._starts)

    @positions.setter
    def positions(self, value: dict[str, int]) -> None:
        self._starts = {name: value[name] for name in self.files}

    def rest(self, when: str, *, lazily: bool) -> list[tuple[str, str]]:
        """In the parent, of a child that is dead: what it printed and did not report, as report sections."""
        sections = [(f"{_TITLES[name]} {when}", self.snap(name)) for name in self.files]
        return self.resolve([(title, text) for title, text in sections if text], lazily=lazily)

    def resolve(self, sections: list[tuple[str, str]], *, lazily: bool) -> list[tuple[str, str]]:
        """Replace the marks of long output by the output itself; *lazily*: on disk until somebody reads it."""
        if not any(_MARK.fullmatch(text) for _, text in sections):
            return sections
        found: list[tuple[str, str | Kept]] = []
        for title, text in sections:
            if match := _MARK.fullmatch(text):
                kept = self._keep(match[1], int(match[2]), int(match[3]))
                found.append((title, kept if lazily else kept.read()))
            else:
                found.append((title, text))
        return cast("list[tuple[str, str]]", Sections(found))

    def _keep(self, name: str, start: int, size: int) -> Kept:
        if self._kept is None:
            self._kept = _open_file()
        at = os.fstat(self._kept).st_size
        left = size
        while left and (piece := os.pread(self.files[name], min(left, LONG), start + size - left)):
            os.write(self._kept, piece)
            left -= len(piece)
        return Kept(self._kept, at, size - left)

    def close(self) -> None:
        """Close the files; long outputs that nobody has read are gone with them."""
        for fd in (*self.files.values(), self.coverage, *(() if self._kept is None else (self._kept,))):
            os.close(fd)


def has_section(sections: list[tuple[str, str]], title: str) -> bool:
    """Whether one has the *title*; none is read from disk for that."""
    return any(one[0] == title for one in list.__iter__(sections))


def joined(sections: list[tuple[str, str]], more: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """*more* after *sections*, in the section of the same title where there is one: as if one process had said it."""
    if isinstance(sections, Sections) or isinstance(more, Sections):
        return cast("list[tuple[str, str]]", Sections([*list.__iter__(sections), *list.__iter__(more)]))
    found = dict(sections)
    if not more or len(found) < len(sections):
        return [*sections, *more]
    for title, text in more:
        between = "\n" if title.startswith("Captured log") and title in found else ""
        found[title] = found.get(title, "") + between + text
    return list(found.items())


class Kept:
    """A piece of the file of long outputs."""

    __slots__ = ("_fd", "_size", "_start")

    def __init__(self, fd: int, start: int, size: int) -> None:
        self._fd, self._start, self._size = fd, start, size

    def read(self) -> str:
        """The text; bytes that are not UTF-8 are replaced, as pytest's own capture does."""
        pieces = []
        at, left = self._start, self._size
        while left and (piece := os.pread(self._fd, left, at)):
            pieces.append(piece)
            at += len(piece)
            left -= len(piece)
        return b"".join(pieces).decode(errors="replace")


class Sections(list[tuple[str, "str | Kept"]]):
    """Report sections, the long ones read from disk at each look: pytest keeps every report until the run ends."""

    def __iter__(self) -> Iterator[tuple[str, str]]:
        for title, text in super().__iter__():
            yield title, text.read() if isinstance(text, Kept) else text

    @overload  # type: ignore[override]
    def __getitem__(self, index: SupportsIndex) -> tuple[str, str]: ...
    @overload
    def __getitem__(self, index: slice) -> list[tuple[str, str]]: ...
    def __getitem__(self, index: SupportsIndex | slice) -> tuple[str, str] | list[tuple[str, str]]:
        return [*iter(self)][index]
