"""Every way of leaving a process, in the set-up, the teardown and a finalizer of a fixture of every scope."""

from __future__ import annotations

import sys

import pytest

from tests.e2e.inner import run
from tests.e2e.leaving import NAMES, WAYS, leaks, pid_of, section, survivors, watch

_SCOPES = ("function", "class", "module", "package", "session")
_PHASES = ("setup", "teardown", "finalizer")
_MATRIX = f"WAYS = {{name: globals()[name] for name in {NAMES!r}}}\n" + "".join(
    f"""
@pytest.fixture(scope="{scope}", params=sorted(WAYS))
def {scope}_fixture(request):
    way = request.param
    WAYS[way](f"{scope}-setup-{{way}}")
    request.addfinalizer(lambda: WAYS[way](f"{scope}-finalizer-{{way}}"))
    yield
    WAYS[way](f"{scope}-teardown-{{way}}")
class Test{scope}:
    def test_use(self, {scope}_fixture): pass
"""
    for scope in _SCOPES
)
_SETTLE = ("-o", "process_leaks_settle=1ms")  # everything here stays


@pytest.mark.parametrize("backend", ["auto", "process"])
@pytest.mark.parametrize("workers", [0, 2])
def test_every_way_in_every_scope(pytester: pytest.Pytester, backend: str, workers: int) -> None:
    result = watch(pytester, _MATRIX, f"--cgroup-backend={backend}", *_SETTLE, workers=workers)
    assert survivors(pytester) == {}
    assert result.ret == 1
    assert result.counts["passed"] == len(_SCOPES) * len(NAMES)
    told = {leak["pid"]: leak for leak in leaks(result.junit)}
    for scope in _SCOPES:
        for index, way in enumerate(sorted(NAMES)):
            test = f"test_it.py::Test{scope}::test_use[{way}]"
            owner = test if scope == "function" else f"fixture:{scope}_fixture[{index}]"
            for phase in _PHASES:
                leak = told.pop(pid_of(pytester, f"{scope}-{phase}-{way}"), None)
                assert leak, (scope, phase, way, result.text)
                assert (leak["owner"], leak["test"]) == (owner, f"test_use[{way}]"), (phase, leak)
                assert leak["started_at"].startswith("test_it.py:"), leak
    shells = [leak["argv"][0] for leak in told.values()]  # above what they started, and not noted
    assert shells == ["sh"] * len(_SCOPES) * len(_PHASES)


def test_with_the_option_off_all_survive(pytester: pytest.Pytester) -> None:
    """The negative control of the whole matrix, without what Python itself ends, or waits for, at its end."""
    ended = ["in_multiprocessing", *(["in_asyncio"] if sys.version_info >= (3, 12) else [])]
    result = run(pytester, WAYS + _MATRIX, "--process-leaks=off", "-k", " and ".join(f"not {name}" for name in ended))
    assert len(survivors(pytester)) == len(_SCOPES) * len(_PHASES) * (len(NAMES) - len(ended))
    assert result.counts["passed"] == len(_SCOPES) * (len(NAMES) - len(ended))
    assert section(result) == ""
