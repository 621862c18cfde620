"""What was asked of a container: its limits, namespaces, identity and policy. Validated, frozen, and pure.

Theory of operation. The class `Spec` below is the one definition of the fields: each line carries the parser, what is
allowed, the meaning and the kernel's name. From it come the marker's arguments, the text of ``--contained`` and the
ini file, the ``--markers`` text and the table of the docs. Each place a field can be written in gives a dict of parsed
values, a layer; `merge` lays them over each other, field by field, and only then looks for contradictions.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, Literal, NamedTuple

from ._units import Limit, parse_cpuset, parse_flag, percent_of
from ._values import (
    DEADLINE_SECONDS,
    LARGEST_PID,
    PAGE_BYTES,
    RESERVED_FILES,
    RLIMITS,
    choice_of,
    count_from,
    name_like,
    parse_account,
    parse_controls,
    parse_deadline,
    parse_expect,
    parse_grace,
    parse_hidden,
    parse_io,
    parse_paths,
    parse_quota,
    parse_rlimits,
    size_from,
)
from .exceptions import SpecError, shown

__all__ = ["FIELDS", "Field", "Spec", "marker_help", "merge", "parse_kwargs", "parse_text", "spec_table"]


# The fields


class Kind(NamedTuple):
    """How values of a field are read, and what is said to be allowed."""

    name: str
    parse: Callable[[object], object]
    allowed: str


class Field(NamedTuple):
    """One field of `Spec`: ``kind`` in one word, ``parse`` raises ``ValueError``, ``kernel`` is the file or call."""

    name: str
    kind: str
    parse: Callable[[object], object]
    allowed: str
    default: object
    help: str
    kernel: str

    def read(self, value: object, where: str) -> object:
        """``value`` in normal form, or `SpecError`. ``None`` takes back what a lower layer asked."""
        if value is None:
            if self.default is None or self.default == ():
                return self.default
            raise SpecError(self.name, value, "can't be None", where=where, allowed=self.allowed)
        try:
            return self.parse(value)
        except ValueError as error:
            why = str(error)
        except Exception as error:  # the value is the user's: its own methods may raise anything
            why = f"can't be read, {type(value).__name__} raises {type(error).__name__}"
        raise SpecError(self.name, value, why, where=where, allowed=self.allowed)


_SIZE_FORMS = '"256M", "256MiB", "1.5G" (powers of 1024), "50%" of the host, "max"'
_FLAG = Kind("flag", parse_flag, "True or False")
_MEMORY = Kind("size", size_from(PAGE_BYTES), f"bytes from {PAGE_BYTES} as an int, {_SIZE_FORMS}")
_SWAP = Kind("size", size_from(0), f"bytes from 0 as an int, {_SIZE_FORMS}")
_CORES = Kind("cores", parse_quota, 'cores from 0.01: 0.5, "50%", 2')
_WEIGHT = Kind("count", count_from(1, 10_000), "1 to 10000")
_PIDS = Kind("count", count_from(1, LARGEST_PID), f"1 to {LARGEST_PID}")
_CPUSET = Kind("cpus", parse_cpuset, 'CPUs such as "0-1,3"')
_IO = Kind("dict", parse_io, '{"/dev/vda" or "8:0": {"rbps", "wbps": size, "riops", "wiops": number from 1, or "max"}}')
_CONTROLS = Kind("dict", parse_controls, f'{{"memory.low": "64M"}}, any file but {", ".join(RESERVED_FILES)}')
_RLIMITS = Kind(
    "dict", parse_rlimits, f'{{"nofile": 256}}, or a pair (soft, hard), or "unlimited"; names: {", ".join(RLIMITS)}'
)
_DEADLINE = Kind("seconds", parse_deadline, f'seconds above 0 and up to {DEADLINE_SECONDS}: 30, 1.5, "500ms", "2m"')
_GRACE = Kind("seconds", parse_grace, f'seconds from 0 up to {DEADLINE_SECONDS}: 0.5, "500ms"')
_HOSTNAME = Kind(
    "name",
    name_like(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,62}[A-Za-z0-9])?", "is no host name"),
    "1 to 64 ASCII letters, digits, dots and hyphens",
)
_PATHS = Kind("paths", parse_paths, "an absolute path, or a list of them")
_HIDDEN = Kind("paths", parse_hidden, "an absolute path other than /, or a list of them")
_ACCOUNT = Kind("account", parse_account, "a name, or an id from 0 as an int")
_LEAKS = Kind("word", choice_of("fail", "warn", "ignore"), '"fail", "warn" or "ignore"')
_ISOLATION = Kind("word", choice_of("fork", "shared"), '"fork" or "shared"')
_SLICE = Kind(
    "name",
    name_like(r"[A-Za-z0-9]([A-Za-z0-9_-]|\.(?!\.)){0,63}", "is no name of a slice"),
    "1 to 64 ASCII letters, digits, dots, hyphens and underscores",
)
_EXPECT = Kind("word", parse_expect, '"oom", "timeout", "cpu-time", "pids", "signal:SEGV", "exit:3" (0 to 255)')


def _field(kind: Kind, default: object, help: str, kernel: str = "") -> Any:
    return dataclasses.field(default=default, metadata={"kind": kind, "help": help, "kernel": kernel})


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """What one container is asked to be. ``None``, ``()`` and ``False`` mean "not asked".

    Sizes are bytes, ``"max"`` or a share of the host's memory such as ``"50%"`` (see `resolve`); times are seconds.
    Dicts are kept as tuples of pairs, so a spec can be hashed: ``dict(spec.rlimits)``. Make one with `parse` or
    `merge`: the constructor itself checks nothing.
    """

    memory: int | str | None = _field(_MEMORY, None, "most memory, page cache included", "memory.max")
    swap: int | str | None = _field(_SWAP, None, "most swap; 0 where memory is given", "memory.swap.max")
    memory_high: int | str | None = _field(
        _MEMORY, None, "memory above which it is slowed and reclaimed", "memory.high"
    )
    oom_group: bool = _field(_FLAG, True, "one OOM kill ends the whole container", "memory.oom.group")
    cpu: float | None = _field(_CORES, None, "CPU time a second, over all cores together", "cpu.max")
    cpu_weight: int | None = _field(_WEIGHT, None, "share of the CPU against its neighbours", "cpu.weight")
    cpuset: str | None = _field(_CPUSET, None, "the CPUs it may run on", "cpuset.cpus")
    pids: int | None = _field(_PIDS, None, "most processes and threads at once", "pids.max")
    io: tuple[tuple[str, tuple[tuple[str, Limit], ...]], ...] = _field(
        _IO, (), "most bytes or operations a second, by block device", "io.max"
    )
    io_weight: int | None = _field(_WEIGHT, None, "share of the disks against its neighbours", "io.weight")
    controls: tuple[tuple[str, str], ...] = _field(_CONTROLS, (), "any other file of the cgroup, raw", "as named")
    rlimits: tuple[tuple[str, tuple[Limit, Limit]], ...] = _field(
        _RLIMITS, (), "resource limits of each single process", "prlimit(2)"
    )
    timeout: float | None = _field(_DEADLINE, None, "wall time after which it is killed, in seconds")
    cpu_time: float | None = _field(_DEADLINE, None, "CPU time of the whole tree after which it is killed, in seconds")
    pid_ns: bool = _field(_FLAG, False, "its own pids, its own /proc, an init that reaps", "CLONE_NEWPID")
    net_ns: bool = _field(_FLAG, False, "its own network: nothing but loopback, which is up", "CLONE_NEWNET")
    mount_ns: bool = _field(_FLAG, False, "its own mounts", "CLONE_NEWNS")
    ipc_ns: bool = _field(_FLAG, False, "its own System V IPC and POSIX message queues", "CLONE_NEWIPC")
    uts_ns: bool = _field(_FLAG, False, "its own host name", "CLONE_NEWUTS")
    user_ns: bool = _field(_FLAG, False, "its own users; added by itself where privilege is lacking", "CLONE_NEWUSER")
    cgroup_ns: bool = _field(_FLAG, False, "its own cgroup is the root that it sees", "CLONE_NEWCGROUP")
    time_ns: bool = _field(_FLAG, False, "its own monotonic and boot clocks", "CLONE_NEWTIME")
    private_tmp: bool = _field(_FLAG, False, "a fresh and empty /tmp; brings mount_ns", "mount(2)")
    hostname: str | None = _field(_HOSTNAME, None, "its host name; brings uts_ns", "sethostname(2)")
    readonly: tuple[str, ...] = _field(_PATHS, (), "paths that it can't write to; brings mount_ns", "mount(2)")
    hidden: tuple[str, ...] = _field(_HIDDEN, (), "paths hidden by an empty mount; brings mount_ns", "mount(2)")
    user: int | str | None = _field(_ACCOUNT, None, "the user it runs as", "setuid(2)")
    group: int | str | None = _field(
        _ACCOUNT, None, "the group it runs as; follows the user", "setgid(2), setgroups(2)"
    )
    no_new_privs: bool = _field(_FLAG, False, "set-user-ID programs give it nothing", "prctl(2)")
    grace: float = _field(_GRACE, 0.0, "seconds between SIGTERM and SIGKILL for what is left at the end")
    leaks: Literal["fail", "warn", "ignore"] = _field(
        _LEAKS, "fail", "what a process that outlives the test does to it; killed in every case"
    )
    isolation: Literal["fork", "shared"] = _field(_ISOLATION, "fork", "in a forked child, or inside pytest's process")
    slice: str | None = _field(_SLICE, None, "tests of one slice share a parent cgroup", "the hierarchy")
    expect: str | None = _field(_EXPECT, None, "how it is expected to end; it fails if it does not")

    @classmethod
    def parse(cls, kwargs: Mapping[str, object], where: str) -> Spec:
        """The spec of one layer; raises `SpecError` as `parse_kwargs` and `merge` do."""
        return merge(parse_kwargs(kwargs, where), where=where)

    def normalised(self) -> Spec:
        """With what one field implies for another: no swap beside a memory limit, the namespaces that are needed."""
        unlimited = self.memory in (None, "max") or "memory.swap.max" in dict(self.controls)
        return dataclasses.replace(
            self,
            swap=0 if self.swap is None and not unlimited else self.swap,
            mount_ns=self.mount_ns or bool(self.pid_ns or self.private_tmp or self.readonly or self.hidden),
            uts_ns=self.uts_ns or self.hostname is not None,
        )

    def resolve(self, total_memory: int) -> Spec:
        """With every share turned into bytes of ``total_memory``, the host's; raises `SpecError` where they clash."""
        sizes: dict[str, Any] = {
            name: max(percent_of(share, total_memory), PAGE_BYTES)
            for name in ("memory", "swap", "memory_high")
            if isinstance(share := getattr(self, name), str) and share.endswith("%")
        }
        if not sizes:
            return self
        spec = dataclasses.replace(self, **sizes)
        _check_high(spec, f"on a host of {total_memory} bytes")
        return spec

    def to_json(self) -> dict[str, object]:
        """All fields, ready for ``json.dumps``; `from_json` reads them back."""
        values: dict[str, object] = {field.name: getattr(self, field.name) for field in FIELDS}
        values |= {
            "io": {device: dict(limits) for device, limits in self.io},
            "controls": dict(self.controls),
            "rlimits": {name: list(limits) for name, limits in self.rlimits},
            "readonly": list(self.readonly),
            "hidden": list(self.hidden),
        }
        return values

    @classmethod
    def from_json(cls, data: Mapping[str, object], where: str = "JSON") -> Spec:
        """The reverse of `to_json`; everything is checked again, `SpecError` if anything is wrong."""
        return cls.parse(data, where)


FIELDS: Final = tuple(
    Field(
        name=field.name,
        kind=field.metadata["kind"].name,
        parse=field.metadata["kind"].parse,
        allowed=field.metadata["kind"].allowed,
        default=field.default,
        help=field.metadata["help"],
        kernel=field.metadata["kernel"],
    )
    for field in dataclasses.fields(Spec)
)
_BY_NAME: Final = {field.name: field for field in FIELDS}


# Layers


def parse_kwargs(kwargs: Mapping[str, object], where: str) -> dict[str, object]:
    """The values in normal form, by field; raises `SpecError` for an unknown field or a bad value.

    ``where`` is the place they were written in, for the message: "marker", "ini", "command line".
    """
    return {name: _known(name, value, where).read(value, where) for name, value in kwargs.items()}


def _known(name: object, value: object, where: str) -> Field:
    if isinstance(name, str) and name in _BY_NAME:
        return _BY_NAME[name]
    import difflib  # only for the message

    near = difflib.get_close_matches(str(name)[:80], _BY_NAME, n=1) if isinstance(name, str) else []
    why = f"unknown field, did you mean {near[0]}?" if near else "unknown field"
    raise SpecError(
        name if isinstance(name, str) else shown(name), value, why, where=where, allowed=", ".join(_BY_NAME)
    )


def parse_text(text: str, where: str) -> dict[str, object]:
    """`parse_kwargs` for text: ``"memory=256M, pids=64 pid_ns"``; ``""`` gives ``{}``.

    Commas, blanks and newlines separate. A flag alone means True. A value that starts with ``{``, ``[`` or ``"`` is
    JSON. A chunk of digits after ``cpuset`` continues its list: ``cpuset=0-1,3``.
    """
    raw: dict[str, object] = {}
    last = ""
    for name, value in _chunks(text, where):
        if value is None and last == "cpuset" and re.fullmatch(r"[0-9-]+", name):
            raw[last] = f"{raw[last]},{name}"
            continue
        field = _known(name, value, where)
        if value is None and field.kind != "flag":
            raise SpecError(name, "", f"needs a value, {name}=…", where=where, allowed=field.allowed)
        if name in raw:
            raise SpecError(name, value, "is given twice", where=where, allowed="each field once")
        raw[name] = True if value is None else value
        last = name
    return parse_kwargs(raw, where)


def _chunks(text: str, where: str) -> Iterator[tuple[str, object]]:
    """The name and value of each chunk; the value is ``None`` where there is no ``=``."""
    position = 0
    while position < len(text):
        if text[position] == "," or text[position].isspace():
            position += 1
            continue
        match = re.compile(_CHUNK).match(text, position)
        if match is None:
            raise SpecError("text", text[position:], "has a value without a name", where=where, allowed=_TEXT_FORM)
        position = match.end()
        name, equals = match[1], match[2]
        if not equals:
            yield name, None
        elif text[position : position + 1] in ("{", "[", '"'):
            value, position = _json_value(text, position, name, where)
            yield name, value
        else:
            plain = re.compile(r"[^,\s]*").match(text, position)
            value = plain[0] if plain else ""
            position += len(value)
            yield name, value


_CHUNK: Final = r"([^=,\s]+)(?:[ \t]*(=)[ \t]*)?"
_TEXT_FORM: Final = "field=value, separated by commas or blanks"


def _json_value(text: str, position: int, name: str, where: str) -> tuple[object, int]:
    import json  # pytest has it loaded; the library without text need not

    try:
        value, end = json.JSONDecoder().raw_decode(text, position)
    except (ValueError, RecursionError) as error:
        why = f"is not JSON ({error})"
    else:
        if end == len(text) or text[end] == "," or text[end].isspace():
            return value, end
        why = "is not JSON alone, something follows it"
    allowed = _BY_NAME[name].allowed if name in _BY_NAME else _TEXT_FORM
    raise SpecError(name, text[position:], why, where=where, allowed=allowed)


def merge(*layers: Mapping[str, object], where: str) -> Spec:
    """One spec out of layers of parsed values; a later layer wins, field by field.

    Fields that contradict each other raise `SpecError`; what is implied is set (see `Spec.normalised`).
    """
    values: dict[str, Any] = {}
    for layer in layers:
        values |= layer
    for name in values:
        _known(name, values[name], where)
    spec = Spec(**values)
    _check(spec, {name for name, value in values.items() if value is False}, where)
    return spec.normalised()


def _check(spec: Spec, refused: set[str], where: str) -> None:
    """Raise `SpecError` for fields that contradict each other. ``refused`` are the flags that were set to False."""

    def clash(field: str, why: str, allowed: str) -> SpecError:
        return SpecError(field, getattr(spec, field), why, where=where, allowed=allowed)

    def asked(names: tuple[str, ...]) -> Iterator[str]:
        return (name for name in names if getattr(spec, name) != _BY_NAME[name].default)

    controls = {name for name, _ in spec.controls}
    _check_high(spec, where)
    if spec.swap is not None and spec.memory is None and "memory.max" not in controls:
        raise clash("swap", "swap is limited, but memory is not", "swap together with memory")
    for name in asked(tuple(_BY_NAME)):
        if (file := _BY_NAME[name].kernel) in controls:
            raise clash("controls", f"sets {file}, and so does {name}", "one of the two")
    for namespace, needing in NEEDING.items():
        if namespace in refused:
            for name in asked(needing):
                raise clash(name, f"needs {namespace}, which is False", f"{name} with {namespace}=True or without it")
    if spec.isolation == "shared":
        for name in asked(_FORK_ONLY):
            raise clash(name, "can't be had inside pytest's own process", 'isolation="fork"')
        if spec.expect is not None and spec.expect.startswith(("signal:", "exit:")):
            raise clash("expect", "would end pytest itself", 'isolation="fork"')
    for word, fields, control in _EXPECTED:
        if spec.expect == word and control not in controls and not any(asked(fields)):
            raise clash("expect", f"can't happen: {fields[0]} is not given", f"expect={word!r} with {fields[0]}")


#: what can't be had without a certain namespace
NEEDING: Final = {"mount_ns": ("private_tmp", "readonly", "hidden", "pid_ns"), "uts_ns": ("hostname",)}
# What can't be undone in a process that goes on to the next test
_FORK_ONLY: Final = (
    *(name for name in _BY_NAME if name.endswith("_ns")),
    "private_tmp", "hostname", "readonly", "hidden", "user", "group", "no_new_privs", "rlimits",
)  # fmt: skip
# How it is expected to end, what must be asked for that, and the file that does as well. A slice may carry the limit.
_EXPECTED: Final = (
    ("timeout", ("timeout",), ""),
    ("cpu-time", ("cpu_time",), ""),
    ("pids", ("pids", "slice"), "pids.max"),
    ("oom", ("memory", "slice"), "memory.max"),
)


def _check_high(spec: Spec, where: str) -> None:
    high, memory = spec.memory_high, spec.memory
    if isinstance(high, int) and isinstance(memory, int):
        above = high > memory
    else:  # two shares can be compared, a share and a number only once the host is known
        above = str(high).endswith("%") and str(memory).endswith("%") and _share(high) > _share(memory)
    if above:
        raise SpecError("memory_high", high, f"is above memory={memory}", where=where, allowed="at most memory")


def _share(limit: Limit | None) -> float:
    return float(str(limit).removesuffix("%"))


# Texts made from the fields


def marker_help() -> str:
    """What ``pytest --markers`` shows: one line, then one line a field."""
    width = max(len(field.name) for field in FIELDS)
    lines = [
        "contained(memory=, pids=, timeout=, ...): run the test in a container of its own: a cgroup, and the "
        "namespaces asked for. When it ends, whatever it started is killed, measured and named. Arguments by keyword:"
    ]
    lines += [f"    {field.name:<{width}}  {field.help}. Takes {field.allowed}{_default(field)}" for field in FIELDS]
    return "\n".join(lines)


def _default(field: Field) -> str:
    return "" if field.default in (None, ()) or field.default is False else f" (default {field.default!r})"


def spec_table() -> str:
    """The fields as a Markdown table: name, meaning, what is allowed, default, kernel."""
    rows = ["| field | means | takes | default | kernel |", "|---|---|---|---|---|"]
    for field in FIELDS:
        default = "" if field.default in (None, ()) else f"`{field.default!r}`"
        kernel = f"`{field.kernel}`" if field.kernel else ""
        cells = (f"`{field.name}`", field.help, field.allowed, default, kernel)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows) + "\n"
