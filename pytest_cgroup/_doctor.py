"""What this host offers a contained test, and how to get the rest: for a person, for a program, for a CI job."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from ._backends import check_base, choose
from ._cgroup import PREFIX
from ._host import LIMIT_FILES, NAMESPACES, TREE_FILES, Capability, Host
from ._isolated import json
from ._spec import Spec
from .exceptions import CgroupError

if TYPE_CHECKING:
    from ._backends import Backend
    from ._environment import Environment

#: all that can be asked for with ``--require``
CAPABILITIES = ("cgroup", *TREE_FILES, *LIMIT_FILES, "privileged", "user_ns", *NAMESPACES)
BACKENDS = ("auto", "cgroup", "process")
SCHEMA = 1
#: the scope that systemd makes for pytest, and what `Placement` says where there is none
_SCOPE = re.compile(rf"/{PREFIX}[^/]*\.scope/")
_NO_SCOPE = "; and there is no scope of pytest's own: "
_OF_CGROUPS = {"cgroup", *TREE_FILES, *LIMIT_FILES}
_EVERY_LIMIT = Spec(
    memory=2**30,
    swap=2**30,
    memory_high=2**30,
    cpu=1.0,
    cpu_weight=100,
    cpuset="0",
    pids=100,
    io=(("8:0", ()),),
    io_weight=100,
)


class Rung(NamedTuple):
    """A rung of the ladder: the one that is taken, or one above it, with the reason why not."""

    name: str
    taken: bool
    reason: str | None


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What was found. ``trouble``: why nothing can be contained at all, where that is so."""

    environment: Environment
    backend: str | None
    description: str | None
    trouble: str | None
    rungs: tuple[Rung, ...]
    capabilities: tuple[Capability, ...]
    not_enforced: tuple[str, ...]

    def missing(self, required: tuple[str, ...]) -> list[Capability]:
        """Those of *required* that are not offered."""
        return [
            capability for capability in self.capabilities if capability.name in required and not capability.offered
        ]

    def text(self, required: tuple[str, ...] = ()) -> str:
        """For a person."""
        lines = [f"environment: {self.environment.describe()}", f"contained: {self.description or self.trouble}"]
        above: dict[str, list[str]] = {}
        for rung in self.rungs:
            if rung.reason is not None:
                above.setdefault(rung.reason, []).append(rung.name)
        lines += [f"not {', not '.join(names)}: {reason}" for reason, names in above.items()]
        lines += ["", "what a container can be asked for:", *self._table(), ""]
        lines += [f"not enforced here: {what}" for what in self.not_enforced]
        lines += [f"note: {what}" for what in self.environment.proc]
        remedies: dict[str, list[str]] = {}
        for capability in self.capabilities:
            if not capability.offered:
                remedies.setdefault(capability.remedy, []).append(capability.name)
        lines += [f"to have {', '.join(names)}: {remedy}" for remedy, names in remedies.items()]
        lines += [f"required, and not here: {c.name}: {c.reason}. Remedy: {c.remedy}" for c in self.missing(required)]
        if required and not self.missing(required):
            lines.append(f"required, and here: {', '.join(required)}")
        return "\n".join(lines)

    def _table(self) -> list[str]:
        """A reason that many have is written out once."""
        said: dict[str, str] = {}
        lines = []
        for capability in self.capabilities:
            verdict = "yes"
            if not capability.offered:
                first = said.setdefault(capability.reason, capability.name)
                verdict = f"no: {capability.reason}" if first == capability.name else f"no: as {first}"
            lines.append(f"  {capability.name:<12} {verdict}")
        return lines

    def to_json(self, required: tuple[str, ...] = ()) -> dict[str, Any]:
        """For a program; every key is in docs/reference/doctor.md."""
        return {
            "schema": SCHEMA,
            "environment": {"description": self.environment.describe(), **self.environment.to_json()},
            "backend": self.backend,
            "description": self.description or self.trouble,
            "rungs": [rung._asdict() for rung in self.rungs],
            "capabilities": {
                c.name: {"offered": c.offered, "reason": c.reason or None, "remedy": c.remedy or None}
                for c in self.capabilities
            },
            "not_enforced": list(self.not_enforced),
            "missing": [capability.name for capability in self.missing(required)],
        }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The doctor's options; those of pytest are called as pytest's."""
    parser.set_defaults(error=parser.error)
    parser.add_argument("--json", action="store_true", help="print a JSON object instead of text")
    parser.add_argument(
        "--require",
        action="append",
        default=[],
        type=_names,
        metavar="NAME,…",
        help=f"exit with 1 unless these are offered; of {', '.join(CAPABILITIES)}",
    )
    parser.add_argument("--cgroup-backend", choices=BACKENDS, default="auto", help="as pytest's option of that name")
    parser.add_argument("--cgroup-base", metavar="PATH", help="as pytest's option of that name")
    parser.add_argument("--cgroup-scope", choices=("auto", "no"), default="auto", help="likewise")
    parser.add_argument("--cgroup-take-over", action="store_true", help="likewise")


def _names(text: str) -> tuple[str, ...]:
    names = tuple(re.findall(r"[^,\s]+", text))
    if unknown := [name for name in names if name not in CAPABILITIES]:
        raise argparse.ArgumentTypeError(f"no such thing: {', '.join(unknown)}; there are {', '.join(CAPABILITIES)}")
    return names


def run(options: argparse.Namespace) -> tuple[int, str]:
    """The exit status, and what to print: 1 if something required is missing, or if nothing can be contained."""
    required = tuple(name for names in options.require for name in names)
    if options.cgroup_base is not None and options.cgroup_backend == "process":
        options.error("--cgroup-base with --cgroup-backend=process: that backend makes no cgroups")
    host = Host(options.cgroup_base, scope=options.cgroup_scope == "auto", take_over=options.cgroup_take_over)
    try:
        found = diagnose(host, options.cgroup_base, options.cgroup_backend)
    finally:
        host.close()
    text = json.dumps(found.to_json(required), indent=2) if options.json else found.text(required)
    return int(found.trouble is not None or bool(found.missing(required))), text


def diagnose(host: Host, base: str | None = None, backend: str = "auto") -> Diagnosis:
    """Try everything."""
    environment = host.environment  # before it is left for a scope of pytest's own
    chosen, trouble = None, None
    try:
        chosen = choose(host, backend)
        if base is not None:
            check_base(host, base)
    except (CgroupError, OSError) as error:
        chosen, trouble = None, str(error)
    return Diagnosis(
        environment=environment,
        backend=chosen.name if chosen else None,
        description=chosen.describe() if chosen else None,
        trouble=trouble,
        rungs=_rungs(host, backend) if chosen else (),
        capabilities=tuple(_capability(host, name, backend) for name in CAPABILITIES),
        not_enforced=_not_enforced(chosen) if chosen else (),
    )


def _capability(host: Host, name: str, backend: str) -> Capability:
    """As the backend that was asked for would offer it."""
    if backend == "process" and name in _OF_CGROUPS:
        return Capability(name, False, "the process backend was asked for", "use --cgroup-backend=auto")
    try:
        return host.capability(name)
    except (CgroupError, OSError) as error:
        return Capability(name, False, str(error), getattr(error, "remedy", None) or "see the reason")


def _rungs(host: Host, backend: str) -> tuple[Rung, ...]:
    kind, scope, limits = "none", False, False
    if backend != "process":
        placement = host.placement
        kind, limits = placement.kind, bool(placement.controllers)
        scope = placement.session is not None and _SCOPE.search(placement.session.path) is not None
    why, _, no_scope = _capability(host, "memory", backend).reason.partition(_NO_SCOPE)
    no_v1 = why
    if kind == "v2":
        no_v1 = "no cgroup v1 hierarchy is mounted here"
        why = why or "pytest's own cgroup gives too little, and systemd has given it a scope"
    elif kind != "none":
        why = "the controllers are mounted as cgroup v1 here" if kind == "hybrid" else "no cgroup2 tree to write in"
    ladder = (
        ("cgroup v2 with controllers", kind == "v2" and limits and not scope, why),
        ("cgroup v2 through systemd", kind == "v2" and limits, no_scope or why),
        ("cgroup v1 or hybrid", kind in ("v1", "hybrid"), no_v1),
        ("cgroup v2 without controllers", kind == "v2", why),
        ("process table", True, None),
    )
    rungs = []
    for name, taken, reason in ladder:
        rungs.append(Rung(name, taken, None if taken else reason))
        if taken:
            break
    return tuple(rungs)


def _not_enforced(backend: Backend) -> tuple[str, ...]:
    fields = ", ".join(field for field, _ in backend.missing(_EVERY_LIMIT))
    return (*((fields,) if fields else ()), *backend.weaker(_EVERY_LIMIT))
