"""Messages over a pipe: a length, a newline, a JSON object. JSON, never pickle: the other end may be hostile."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ._isolated import json

#: no honest message is longer: output that is larger stays in a file
MAX_BYTES = 256 * 2**20
#: nor is all that one test has to say
MAX_IN_ALL = 4 * MAX_BYTES


def encode(message: dict[str, Any]) -> bytes:
    """One message; ``TypeError`` or ``ValueError`` where JSON has no word for a part of it."""
    text = json.dumps(message).encode()  # ASCII only, so that a lone surrogate comes through as it is
    return b"%d\n%b" % (len(text), text)


class Decoder:
    """Messages out of the pieces that a pipe delivers."""

    def __init__(self) -> None:
        self._pieces = bytearray()
        self._fed = 0

    def feed(self, piece: bytes) -> Iterator[dict[str, Any]]:
        """The messages that *piece* completes, each as far as what stands before it is one.

        Raises:
            ValueError: this is not what `encode` wrote.
        """
        self._fed += len(piece)
        if self._fed > MAX_IN_ALL:
            raise ValueError(f"more than {MAX_IN_ALL} bytes in all")
        self._pieces += piece
        while (end := self._pieces.find(b"\n", 0, 20)) >= 0:
            length = int(self._pieces[:end])
            if not 0 < length <= MAX_BYTES:
                raise ValueError(f"a message of {length} bytes")
            if len(self._pieces) < end + 1 + length:
                break
            message = json.loads(self._pieces[end + 1 : end + 1 + length])
            del self._pieces[: end + 1 + length]
            if not isinstance(message, dict):
                raise ValueError("a message that is no object")
            yield message
        if self._pieces.find(b"\n", 0, 20) < 0 and len(self._pieces) >= 20:
            raise ValueError("a message without a length")


#: Python's own JSON encoder gives up at about a thousand
_MAX_DEPTH = 200


def sanitise(value: Any) -> tuple[Any, list[str]]:
    """*value* with every part that JSON can't hold replaced by its repr, and what was replaced, by path."""
    replaced: list[str] = []

    def walk(part: Any, path: str, above: tuple[int, ...]) -> Any:
        if len(above) > _MAX_DEPTH:
            replaced.append(f"{path[:200]}…: nested too deeply")
            return "<nested too deeply>"
        if id(part) in above:
            replaced.append(f"{path}: refers to itself")
            return "<circular>"
        if isinstance(part, dict):
            inner = (*above, id(part))
            return {_key(key): walk(one, f"{path}.{_key(key)}", inner) for key, one in part.items()}
        if isinstance(part, list | tuple):
            inner = (*above, id(part))
            return [walk(one, f"{path}[{index}]", inner) for index, one in enumerate(part)]
        if part is None or isinstance(part, bool | int | float | str):
            return part
        try:
            text = repr(part)
        except Exception as error:  # the repr is the user's
            text = f"<unprintable: {type(error).__name__}>"
        replaced.append(f"{path}: {type(part).__name__} is not JSON, kept as text")
        return text[:10_000]

    return walk(value, "report", ()), replaced


def _key(key: Any) -> str:
    return key if isinstance(key, str) else str(key)
