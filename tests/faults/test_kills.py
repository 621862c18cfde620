"""Somebody of a run is killed at a random moment, or two are. After that nothing is left, and no verdict is wrong.

A few rounds; ``python -m tests.faults.kills`` is for many.
"""

from __future__ import annotations

import os
import random

import pytest

from tests.faults.kills import draw, one_round
from tests.faults.runs import zygote

#: a seed of one's own, to see again what went wrong
SEED = "PYTEST_CGROUP_SEED"
_ROUNDS = 8


@pytest.mark.usefixtures("no_other_recovery")
@pytest.mark.requires("cgroup", "pid_ns")
@pytest.mark.parametrize("part", range(2))
def test_random_kills(tmp_path_factory: pytest.TempPathFactory, part: int) -> None:
    seed = int(os.environ.get(SEED) or random.SystemRandom().randrange(10**6)) + part
    print(f"{SEED}={seed - part}")
    chance = random.Random(seed)
    wrong, victims = [], []
    with zygote(tmp_path_factory.mktemp("kills")) as runner:
        for _ in range(_ROUNDS):
            scenario, kill = draw(chance)
            found, run = one_round(runner, scenario, kill)
            victims += run["victims"]
            if found:
                wrong.append("\n".join([f"{scenario.name} {kill} {run['victims']}", *found, run["text"]]))
    if wrong:
        pytest.fail(f"{SEED}={seed - part}\n" + "\n\n".join(wrong), pytrace=False)
    assert victims
