"""Every fault of every scenario: ``python -m tests.faults [SCENARIO…] [--jobs N] [--most N] [--only TEXT]``."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from queue import Empty, Queue

from tests.faults.runs import Fault, complaints, faults_of, happened, some_of, zygote
from tests.faults.scenarios import SCENARIOS, Scenario


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenarios", nargs="*", default=[*SCENARIOS])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--most", type=int, default=10**9, help="so many of those that are alike (see `Fault.kind`)")
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--only", default="", help="faults whose description has this text")
    parser.add_argument("--verbose", action="store_true", help="the whole output of each run that is complained of")
    options = parser.parse_args()
    wrong = 0
    for name in options.scenarios:
        wrong += _all_of(SCENARIOS[name], options)
    return bool(wrong)


def _all_of(scenario: Scenario, options: argparse.Namespace) -> int:
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as directory, zygote(Path(directory)) as one:
        counted = one.run(scenario)
        if found := complaints(scenario, counted, None):
            print(f"{scenario.name}: without a fault: {found}\n{counted['text']}")
            return 1
    faults = some_of(faults_of(counted["calls"]), options.most)
    faults = [fault for fault in faults if options.only in str(fault)][:: options.every]
    todo: Queue[Fault] = Queue()
    for fault in faults:
        todo.put(fault)
    seen: Counter[str] = Counter()
    threads = [threading.Thread(target=_work, args=(scenario, todo, seen, options)) for _ in range(options.jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wrong = sum(seen[kind] for kind in seen if kind not in ("fired", "missed"))
    print(f"{scenario.name}: {len(faults)} faults, {time.monotonic() - begun:.0f} s: {json.dumps(seen)}", flush=True)
    return wrong


def _work(scenario: Scenario, todo: Queue[Fault], seen: Counter[str], options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as directory, zygote(Path(directory)) as one:
        while True:
            try:
                fault = todo.get_nowait()
            except Empty:
                return
            run = one.run(scenario, fault)
            seen["fired" if run["calls"] else "missed"] += 1
            for complaint in complaints(scenario, run, fault):
                seen[complaint.partition(":")[0]] += 1
                print(f"{scenario.name}: {happened(run, fault)}: {complaint}", flush=True)
                if options.verbose:
                    print(run["text"])


if __name__ == "__main__":
    sys.exit(main())
