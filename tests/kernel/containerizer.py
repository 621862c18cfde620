"""A containerizer, as the backend ``exec:`` asks for one: ``containerizer.py DIRECTORY OFFERS VERB``.

It keeps what it was asked in DIRECTORY. OFFERS are the fields that it says it takes; "pids" and "memory" it enforces
where it can make cgroups, in whatever hierarchies there are; what it can't do it says and does not.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from pytest_cgroup._kernel_text import cgroup_mounts, membership, own_directory

#: by field: the controller, its file on v2, and on v1
FILES = {
    "memory": ("memory", "memory.max", "memory.limit_in_bytes"),
    "pids": ("pids", "pids.max", "pids.max"),
}
PEAKS = {"memory": ("memory.peak", "memory.max_usage_in_bytes"), "pids": ("pids.peak", None)}


def bases() -> dict[str, tuple[Path, bool]]:
    """Where the cgroup of each controller is made, beside the session's of whoever asks, and whether that is v2."""
    own = membership(Path("/proc/self/cgroup").read_text())
    found = {}
    for mount in cgroup_mounts(Path("/proc/self/mountinfo").read_text()):
        for controller, _, _ in FILES.values():
            if mount.version == 2 or controller in mount.controllers:
                directory = own_directory(mount, own.get("" if mount.version == 2 else controller, "/"))
                if directory is None:
                    continue
                base = Path(directory)
                while base.name.startswith("pytest-cgroup-") or base.parent.name.startswith("pytest-cgroup-"):
                    base = base.parent
                if mount.version == 1 or controller in (base / "cgroup.subtree_control").read_text().split():
                    found[controller] = base, mount.version == 2
    return found


def places(name: str) -> dict[str, tuple[Path, bool]]:
    """By field, its cgroup."""
    found = {field: bases()[controller] for field, (controller, *_) in FILES.items() if controller in bases()}
    made = {field: (base / f"of-{name}", v2) for field, (base, v2) in found.items()}
    return {field: place for field, place in made.items() if place[0].is_dir()}


def limit(name: str, fields: dict[str, Any]) -> dict[str, str]:
    limits = {}
    for field, value in fields.items():
        if field in FILES and field in (here := places(name)):
            directory, v2 = here[field]
            file = directory / FILES[field][1 if v2 else 2]
            file.write_text(str(value))
            limits[field] = file.read_text().strip()
    return limits


def launch(state: Path, message: dict[str, Any]) -> dict[str, Any]:
    name = message["id"]
    (state / name).mkdir()  # a second one of that name fails
    for field in FILES.keys() & message["fields"].keys():
        if (base := bases().get(FILES[field][0])) and os.access(base[0], os.W_OK):
            (base[0] / f"of-{name}").mkdir(exist_ok=True)
    return {"limits": limit(name, message["fields"])}


def join(state: Path, message: dict[str, Any]) -> dict[str, Any]:
    if (state / "refuse").exists():
        sys.exit("it is full")
    for directory in {place for place, _ in places(message["id"]).values()}:
        (directory / "cgroup.procs").write_text(str(message["pid"]))
    return {}


def update(state: Path, message: dict[str, Any]) -> dict[str, Any]:
    return {"limits": limit(message["id"], message["fields"])}


def usage(state: Path, message: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"pids_peak": -1, "wall_seconds": 5, "nobody_knows": 7, "throttled_seconds": 0.5}
    for field, (directory, v2) in places(message["id"]).items():
        if (name := PEAKS[field][0 if v2 else 1]) and (directory / name).exists():
            found[f"{field}_peak{'_bytes' if field == 'memory' else ''}"] = int((directory / name).read_text())
        if field == "memory":
            events = (directory / ("memory.events" if v2 else "memory.oom_control")).read_text().split()
            found["oom_kill"] = int(events[events.index("oom_kill") + 1])
    return found


def destroy(state: Path, message: dict[str, Any]) -> dict[str, Any]:
    for directory in {place for place, _ in places(message["id"]).values()}:
        directory.rmdir()
    if (state / message["id"]).is_dir():
        (state / message["id"]).rmdir()
    return {}


def containers(state: Path, message: dict[str, Any]) -> dict[str, Any]:
    return {"ids": [one.name for one in state.iterdir() if one.is_dir()]}


def main(directory: str, offered: str, verb: str) -> None:
    state, message = Path(directory), json.load(sys.stdin)
    with (state / "log").open("a") as log:
        log.write(json.dumps([verb, message]) + "\n")
    answer = {"fields": [*filter(None, offered.split(",")), "teleportation"]}
    json.dump(answer if verb == "offers" else globals()[verb](state, message), sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
