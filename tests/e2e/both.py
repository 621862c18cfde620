"""The same tests run twice, uncontained and contained: what pytest prints must not differ."""

from __future__ import annotations

import difflib
import re

import pytest

from tests.e2e.inner import command

_OURS = re.compile(r"^contained: (?!.*::).*\n|^-+ contained -+\n(?:.*\n)*?backend: .*\n", re.MULTILINE)
_NOTHING = re.compile(r"(?!)")
_VARIES = {
    re.compile(r"\b\d+\.\d+s\b"): "N s",
    re.compile(r"\b0x[0-9a-f]+\b"): "0xN",
    re.compile(r"={2,} (.*) ={2,}"): r"== \1 ==",  # as long as the time in it is short
}


def printed(pytester: pytest.Pytester, *arguments: str) -> tuple[int, str]:
    """Status and output of an inner run, without what differs between two runs of anything."""
    base = pytester.path / "base"
    done = pytester.run(*command((f"--basetemp={base}", *arguments)), timeout=60)
    text = "\n".join([*done.outlines, *done.errlines, ""])
    for pattern, word in _VARIES.items():
        text = pattern.sub(word, text)
    return int(done.ret), _OURS.sub("", text)


def same(pytester: pytest.Pytester, *arguments: str, unlike: re.Pattern[str] = _NOTHING) -> str:
    """Fail unless both runs say the same, but for what is *unlike*; what they say."""
    status, plain = printed(pytester, *arguments)
    contained_status, contained = printed(pytester, "--contained=", *arguments)
    plain, contained = unlike.sub("", plain), unlike.sub("", contained)
    assert "INTERNALERROR" not in contained
    if plain != contained:
        lines = difflib.unified_diff(
            plain.splitlines(), contained.splitlines(), "uncontained", "contained", lineterm="", n=2
        )
        pytest.fail("\n".join(lines), pytrace=False)
    assert contained_status == status
    return contained
