"""Every error of this package: what happened, where, why, and the remedy, in one readable line."""

from __future__ import annotations

import copyreg
import errno as _errno
import os
from typing import Any

__all__ = [
    "CgroupError",
    "ContainedWarning",
    "ContainerError",
    "ContainerTimeout",
    "DaemonError",
    "NotOffered",
    "SpecError",
]

_SHOWN_CHARACTERS = 80


def shown(value: object) -> str:
    """``repr(value)`` on one line, cut to about 80 characters; never raises, whatever ``__repr__`` does."""
    try:
        text = repr(value)
    except Exception:  # the value is the user's: a broken __repr__ or an int of 5,000 digits must not hide our message
        return f"<{type(value).__name__} that has no repr>"
    text = text.replace("\n", " ")
    if len(text) > _SHOWN_CHARACTERS:
        text = text[: _SHOWN_CHARACTERS - 4] + "..." + text[-1]
    return text


class CgroupError(Exception):
    """The base of all errors of this package.

    ``path`` is the file concerned, ``operation`` what was tried on it ("write", "mkdir", "mount"), ``value`` what
    was written, ``errno`` the kernel's answer (an ``errno(3)`` number), ``remedy`` what the reader can do about it.
    Each is ``None`` where it does not apply. ``str()`` says them all.
    """

    def __init__(
        self,
        what: str,
        *,
        path: str | None = None,
        operation: str | None = None,
        value: object = None,
        errno: int | None = None,
        remedy: str | None = None,
    ) -> None:
        super().__init__(what)
        self.what = what
        self.path = path
        self.operation = operation
        self.value = value
        self.errno = errno
        self.remedy = remedy

    def __str__(self) -> str:
        text = self.what
        where = [] if self.operation is None else [self.operation]
        if self.value is not None:
            where.append(shown(self.value))
        if self.path is not None:
            where.append(self.path)
        if where:
            text += f" ({' '.join(where)})"
        if self.errno is not None:
            name = _errno.errorcode.get(self.errno, f"errno {self.errno}")
            text += f": {os.strerror(self.errno)} [{name}]"
        if self.remedy is not None:
            text += f". {self.remedy}"
        return text

    def __reduce__(self) -> tuple[Any, ...]:
        # The default would call __init__ with ``args`` alone and lose the keywords. A value may be anything at all,
        # a lambda too, so what is not a plain scalar travels as its text.
        state = dict(self.__dict__)
        if type(self.value) not in (str, int, float, bool, type(None)):
            state["value"] = shown(self.value)
        return copyreg.__newobj__, (type(self), *self.args), state  # type: ignore[attr-defined]


class SpecError(CgroupError, ValueError):
    """A request that can't be right: an unknown field, a bad value, or two fields that contradict each other.

    ``where`` says where it was written ("marker", "ini", "command line"), ``allowed`` what would be accepted.
    """

    def __init__(self, field: str, value: object, why: str, *, where: str, allowed: str | None = None) -> None:
        super().__init__(why, value=value)
        self.field = field
        self.why = why
        self.where = where
        self.allowed = allowed

    def __str__(self) -> str:
        field = shown(self.field)[1:-1]  # an unknown field can be any text
        text = f"contained: {field}={shown(self.value)} ({self.where}): {self.why}"
        return text if self.allowed is None else f"{text}; allowed: {self.allowed}"


class NotOffered(CgroupError):
    """A request that this host can't honour; ``missing`` names the fields or features it lacks."""

    def __init__(
        self,
        what: str,
        *,
        missing: tuple[str, ...] = (),
        path: str | None = None,
        operation: str | None = None,
        value: object = None,
        errno: int | None = None,
        remedy: str | None = None,
    ) -> None:
        super().__init__(what, path=path, operation=operation, value=value, errno=errno, remedy=remedy)
        self.missing = missing


class ContainerError(CgroupError):
    """A container could not be made, entered, killed or removed."""


class ContainerTimeout(ContainerError, TimeoutError):
    """What was waited for did not come about in the time that was given."""


class DaemonError(ContainerError):
    """A daemon ended before it was ready, or again and again, or was stopped while somebody waited for it.

    ``daemon`` is its name, ``output`` the last that it printed.
    """

    def __init__(
        self, what: str, *, daemon: str, output: str = "", operation: str | None = None, remedy: str | None = None
    ) -> None:
        super().__init__(what, operation=operation, remedy=remedy)
        self.daemon = daemon
        self.output = output

    def __str__(self) -> str:
        text = super().__str__()
        return f"{text}\nIts last output:\n{self.output}" if self.output else text


class ContainedWarning(UserWarning):
    """A contained test ran with less than it asked for, left something behind, or may not be able to run safely."""
