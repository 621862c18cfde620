"""Each call to the kernel fails in its turn: no hang, no orphan, no cgroup, no lost verdict, and a message says why.

Here one of each kind of call, see CONTRIBUTING for all of them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from pytest_cgroup._guard import SWITCH
from tests.faults.runs import Zygote, complaints, faults_of, one_of_each, zygote
from tests.faults.scenarios import SCENARIOS, Scenario

#: "all" for every call, with every errno
SWITCH_ALL = "PYTEST_CGROUP_FAULTS"
#: so many of each scenario's, elsewhere
_MOST = 16

_IN_A_CGROUP = pytest.mark.requires("cgroup", "memory")
_IN_NAMESPACES = pytest.mark.requires("pid_ns", "net_ns", "mount_ns", "uts_ns")
_MARKS = {
    "cgroup": [_IN_A_CGROUP],
    "namespaces": [_IN_A_CGROUP, _IN_NAMESPACES],
    "namespaces-process": [_IN_NAMESPACES],
    "library": [_IN_A_CGROUP],
    "guard": [_IN_A_CGROUP],
}
_EACH = [pytest.param(one, id=name, marks=_MARKS.get(name, [])) for name, one in SCENARIOS.items()]


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    with zygote(tmp_path_factory.mktemp("faults")) as one:
        yield one


@pytest.mark.parametrize("scenario", _EACH)
def test_a_call_that_fails(runner: Zygote, scenario: Scenario, request: pytest.FixtureRequest) -> None:
    if scenario.name.startswith("guard"):  # where it fails, `clean` comes, and that is host-wide
        request.getfixturevalue("no_other_recovery")
    counted = runner.run(scenario)
    assert complaints(scenario, counted, None) == [], counted["text"]
    faults = faults_of(counted["calls"])
    if os.environ.get(SWITCH_ALL) != "all":
        faults = one_of_each(faults)
        faults = faults[:: -(-len(faults) // _MOST)]
    wrong, fired = [], 0
    for fault in faults:
        run = runner.run(scenario, fault)
        fired += bool(run["calls"])
        if found := complaints(scenario, run, fault):
            wrong.append("\n".join([str(fault), *found, run["text"]]))
    if wrong:
        pytest.fail("\n\n".join(wrong), pytrace=False)
    assert fired > len(faults) / 2


# the controls: what is complained of is seen


def _complaints_of(runner: Zygote, source: str, **more: Any) -> list[str]:
    scenario = Scenario("control", source, {"test_it": "passed"})
    return complaints(scenario, runner.run(scenario, **more), None)


def test_an_orphan_is_seen(runner: Zygote) -> None:
    source = "def test_it():\n    subprocess.Popen(['sleep', '120'], start_new_session=True)\n"
    (found,) = _complaints_of(runner, source)
    assert found.startswith("orphan: ")
    assert "sleep" in found


@pytest.mark.requires("cgroup")
def test_a_cgroup_is_seen(runner: Zygote) -> None:
    source = "from pytest_cgroup._placement import Placement\ndef test_it():\n    Placement().open()\n"
    (found,) = _complaints_of(runner, source)
    assert found.startswith("cgroup left: ")


def test_a_hang_and_a_lost_verdict_are_seen(runner: Zygote) -> None:
    found = _complaints_of(runner, "def test_it():\n    signal.pause()\n", timeout=2.0)
    assert found == ["hangs", "test_it: no verdict"]


def test_a_wrong_verdict_is_seen(runner: Zygote) -> None:
    assert _complaints_of(runner, "def test_it():\n    assert 0\n") == ["test_it: failed instead of passed"]


@pytest.mark.usefixtures("no_other_recovery")
@pytest.mark.requires("cgroup")
def test_what_no_guard_cleans_is_seen(runner: Zygote) -> None:
    run = runner.run(SCENARIOS["guard"], environment={SWITCH: "1"})
    assert complaints(SCENARIOS["guard"], run, None) == ["was to be cleaned"], run
