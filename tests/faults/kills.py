"""Kills at random: pytest, a worker, the guard, an init, a test, or two of them, at any moment of a run.

``python -m tests.faults.kills [--rounds N] [--jobs N] [--seed N]`` prints what came of it.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path
from typing import Any

from tests.faults.runs import Zygote, zygote
from tests.faults.scenarios import KILLS, Scenario

#: pytest and its guard are both killed in the last
VICTIMS = (("pytest",), ("worker",), ("guard",), ("init",), ("child",), ("guard", "pytest"), ("pytest", "guard"))
#: about how long a run takes, in seconds
_DURATION = {"cgroup": 0.55, "process": 0.5, "cgroup-xdist": 1.6, "process-xdist": 1.6}


def draw(chance: random.Random) -> tuple[Scenario, list[tuple[str, float]]]:
    """A scenario, and who is killed when."""
    scenario = chance.choice([*KILLS.values()])
    possible = [who for who in VICTIMS if "worker" not in who or "xdist" in scenario.name]
    moments = sorted(chance.uniform(0.0, _DURATION[scenario.name]) for _ in range(2))
    return scenario, [*zip(chance.choice(possible), moments, strict=False)]


def one_round(runner: Zygote, scenario: Scenario, kill: list[tuple[str, float]]) -> tuple[list[str], dict[str, Any]]:
    """What is not as it was promised, and the run."""
    run = runner.run(scenario, kill=kill, timeout=60.0)
    found = ["hangs"] if run["hung"] else []
    found += [f"survivor: {one}" for one in run["orphans"]]
    found += [f"cgroup left: {one}" for one in run["cgroups"][:1]]
    victims = [victim.partition(" ")[0] for victim in run["victims"]]
    theirs = bool(victims) and "INTERNALERROR" in run["text"] and "execnet" in run["text"]
    if "pytest" not in victims and not run["hung"] and not theirs:  # a worker that xdist was about to greet
        found += _wrong_verdicts(scenario, run, victims)
    if "pytest_cgroup/" in run["text"].replace("rootdir", ""):
        found.append("a traceback of ours")
    return found, run


def _wrong_verdicts(scenario: Scenario, run: dict[str, Any], victims: list[str]) -> list[str]:
    """A test whose process was killed has failed, and no other; none is lost, and none that fails has passed."""
    wrong, excused = [], sum(victim != "guard" for victim in victims)
    for test, expected in scenario.verdicts.items():
        said = run["verdicts"].get(test, set())
        if said == {expected}:
            continue
        if expected == "passed" and said and excused:
            excused -= 1
            continue
        wrong.append(f"wrong verdict: {test} {', '.join(said) or 'has none'}, not {expected}")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=500)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    options = parser.parse_args()
    chance = random.Random(options.seed)
    todo = [draw(chance) for _ in range(options.rounds)]
    print(f"seed {options.seed}", flush=True)
    seen: Counter[str] = Counter()
    threads = [threading.Thread(target=_work, args=(todo, seen)) for _ in range(options.jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps(seen, indent=1))
    return any(seen[kind] for kind in ("hangs", "survivor", "cgroup left", "wrong verdict", "a traceback of ours"))


def _work(todo: list[tuple[Scenario, list[tuple[str, float]]]], seen: Counter[str]) -> None:
    with tempfile.TemporaryDirectory() as directory, zygote(Path(directory)) as runner:
        while todo:
            scenario, kill = todo.pop()
            found, run = one_round(runner, scenario, kill)
            seen["rounds"] += 1
            seen["rounds in which clean was needed"] += bool(run["cleaned"])
            for victim in run["victims"] or ["nobody (it was not there yet, or no longer)"]:
                seen[f"killed: {victim.rstrip('0123456789 ')}"] += 1
            for complaint in found:
                seen[complaint.partition(":")[0]] += 1
                print(f"{scenario.name} {kill} {run['victims']}: {complaint}", flush=True)
            if found:
                print(run["text"][-3000:], flush=True)


if __name__ == "__main__":
    sys.exit(main())
