"""What runs inside: it times the tests alone, apart from interpreter, imports and collection.

It lies apart from the suites that are made: if code of a suite's own hears of a test's end, the next test is not forked
before that.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Generator
from typing import Any

import pytest

PROBE: dict[str, Any] = {"samples": [], "finished": {}}


def _sample() -> None:
    with open("/proc/self/statm", encoding="ascii") as f:
        rss = int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    PROBE["samples"].append([rss, len(os.listdir("/proc/self/fd"))])


@pytest.hookimpl(wrapper=True)
def pytest_runtestloop() -> Generator[None, object, object]:
    """The loop's seconds, with a sample on either side."""
    _sample()
    start = time.perf_counter()
    result = yield
    PROBE["loop_seconds"] = time.perf_counter() - start
    _sample()
    return result


def pytest_runtest_logfinish(nodeid: str) -> None:
    """When each test was over, and a sample every hundred of them."""
    PROBE["finished"][nodeid] = time.monotonic()
    if len(PROBE["finished"]) % 100 == 0:
        _sample()


def pytest_unconfigure() -> None:
    """Into a file, where the run's caller looks for it."""
    with open("probe.json", "w", encoding="utf-8") as f:
        json.dump(PROBE, f)
