"""The floors: who may import whom, and what belongs in one module only."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "pytest_cgroup"

# A module imports from the modules before it on its own floor, and from lower floors: the paragraphs, lowest first.
_FLOORS = """
exceptions _units _values _spec _outcome _told

_isolated _trace _syscalls _wire _process _listening _description _kernel_files _kernel_text
_refusal _cgroup_v1 _cgroup _cgroup_usage _ownership _lacking _systemd _placement
_steps _identity _namespaces _veth
_environment _remedies _host _reaper

_origins _exempt _of_many
_orphans _recover _guard_process _guard _backends _doctor _clean _top _entry _left _started _watched _direct_child
_container _forwarder _program _launcher _popen _watcher _run _station _asked _slice _network _ports _events _visit
_forked _spawn _life
_log _supervisor _http_probe ready _instance _policy _upkeep _daemon _daemons
_call _commands _gateway _async_process _library _foreground
_shared _held _belongings _owners

hookspecs _hooks _seam _coverage _output _config _settings _inside _workshop _verdict _report
_judge _child _contained _ahead _frames _runner _fixtures
_elsewhere _leak_report _leak_teller _leaks _github _xdist _session plugin
"""
FLOORS = tuple(tuple(floor.split()) for floor in _FLOORS.split("\n\n"))
# These stand above the library's floors and outside the plugin's: they may import what has no pytest in it.
ENTRANCES = ("__init__", "__main__")

NO_IO = {
    *("asyncio", "ctypes", "fcntl", "io", "mmap", "multiprocessing", "pathlib", "select", "shutil", "socket"),
    *("subprocess", "tempfile", "threading"),
}
NO_IO_CALLS = ("open", "print", "input")
PURE_OF_OS = {"strerror", "fspath", "PathLike", "path"}
CGROUP_FILE = re.compile(r"/sys/fs/cgroup|^/?(cgroup|memory|pids|cpu|cpuacct|cpuset|io|blkio|freezer)\.[a-z_.]+$")
#: what tests replace parts of: it is had from _isolated, but for programs that are executed without the package
REPLACED = {"io", "json", "os", "select", "signal", "socket", "subprocess", "threading", "time"}
PROGRAMS = ("_guard_process", "_http_probe")
KERNEL_CALLS = {
    *("fork", "forkpty", "kill", "killpg", "pidfd_open", "pidfd_send_signal", "prlimit", "setgid", "setgroups"),
    *("setns", "setresgid", "setresuid", "setrlimit", "setuid", "unshare", "waitid"),
}


def floor_of(module: str) -> tuple[int, int] | None:
    """Floor and place on it; None for a module that has none."""
    for floor, modules in enumerate(FLOORS):
        if module in modules:
            return floor, modules.index(module)
    return (2, len(FLOORS[2])) if module in ENTRANCES else None


def imports(tree: ast.AST, package: str) -> Iterator[tuple[str, int]]:
    """Absolute names of all that is imported, wherever in the module, with the line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")
            base = parents[: len(parents) - node.level + 1] if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])])
            # `from . import x` imports modules, `from .x import y` names of one.
            yield from ((f"{name}.{alias.name}" if not node.module else name, node.lineno) for alias in node.names)


def lines_of_modules(tree: ast.AST) -> set[int]:
    """The lines of ``import x``, but for those of a type checker: there the module itself is meant."""
    conditions = [node for node in ast.walk(tree) if isinstance(node, ast.If)]
    typed = [node for node in conditions if ast.unparse(node.test) == "TYPE_CHECKING"]
    of_types = {line for node in typed for line in range(node.lineno, (node.end_lineno or 0) + 1)}
    return {node.lineno for node in ast.walk(tree) if isinstance(node, ast.Import)} - of_types


def docstrings(tree: ast.AST) -> set[int]:
    """Identities of the constants that are docstrings."""
    owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    bodies = [node.body for node in ast.walk(tree) if isinstance(node, owners)]
    return {id(body[0].value) for body in bodies if body and isinstance(body[0], ast.Expr)}


def faults(module: str, source: str, package: str = "pytest_cgroup") -> list[str]:
    """What is wrong with *module* (its name directly below the package), a line each."""
    place = floor_of(module)
    if place is None:
        return [f"{module} stands on no floor: give it a place in FLOORS"]
    floor = place[0]
    tree = ast.parse(source)
    found = []
    executed = lines_of_modules(tree)
    for name, line in imports(tree, package):
        top, *rest = name.split(".")
        if top == "pytest_cgroup":
            target = rest[0] if rest else "__init__"
            there = floor_of(target)
            if there is None:
                found.append(f"{line}: {name} is no module that stands on a floor")
            elif target != module and not there < place:
                found.append(f"{line}: {name} is not below {module}")
            if target == "_seam" != module and len(rest) > 1:
                found.append(f"{line}: {name} is behind the face of _seam")
        if top == "ctypes" and module != "_syscalls":
            found.append(f"{line}: ctypes belongs in _syscalls")
        if top == "_pytest" and module != "_seam":
            found.append(f"{line}: _pytest belongs in _seam")
        if top in ("pytest", "_pytest", "pluggy", "xdist") and floor < 3 and module != "__main__":
            found.append(f"{line}: {top} below floor 3")
        if floor == 0 and (top in NO_IO or top not in {*sys.stdlib_module_names, "pytest_cgroup"}):
            found.append(f"{line}: {top} on the pure floor")
        if floor and top in REPLACED and module not in PROGRAMS and line in executed:
            found.append(f"{line}: {top} is had from _isolated")
        if floor == 3 and rest[:1] == ["_syscalls"]:
            found.append(f"{line}: a system call on floor 3")
    return found + _faults_of_calls(tree, floor) + _faults_of_paths(tree, floor)


def _faults_of_calls(tree: ast.AST, floor: int) -> list[str]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            whose, what = node.value.id, node.attr
            if floor == 3 and whose in ("os", "signal", "resource") and what in KERNEL_CALLS:
                found.append(f"{node.lineno}: {whose}.{what} on floor 3")
            if floor == 0 and whose == "os" and what not in PURE_OF_OS:
                found.append(f"{node.lineno}: os.{what} on the pure floor")
        if floor == 0 and isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            found += [f"{node.lineno}: {word}() on the pure floor" for word in NO_IO_CALLS if word == node.func.id]
    return found


def _faults_of_paths(tree: ast.AST, floor: int) -> list[str]:
    if floor != 3:
        return []
    exempt = docstrings(tree)
    return [
        f"{node.lineno}: {node.value!r} is a matter of the kernel"
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in exempt
        if CGROUP_FILE.search(node.value)
    ]


def modules() -> list[tuple[str, Path]]:
    """Every source file with the name that it has, or the package that it lies in has, on the floors."""
    return [(path.relative_to(PACKAGE).with_suffix("").parts[0], path) for path in sorted(PACKAGE.rglob("*.py"))]


@pytest.mark.parametrize(
    ("module", "path"), [pytest.param(*pair, id=str(pair[1].relative_to(PACKAGE))) for pair in modules()]
)
def test_module_keeps_to_its_floor(module: str, path: Path) -> None:
    package = ".".join(path.relative_to(PACKAGE.parent).parts[:-1])
    assert faults(module, path.read_text(encoding="utf-8"), package) == []


def test_there_are_modules_to_check() -> None:
    assert PACKAGE.joinpath("__init__.py").is_file()


@pytest.mark.parametrize(
    ("module", "source", "fault"),
    [
        ("_novel", "", "stands on no floor"),
        ("_units", "from ._cgroup import Cgroup", "not below"),
        ("_process", "import os", "had from _isolated"),
        ("_process", "def f():\n    import time", "had from _isolated"),
        ("_units", "def f():\n    from pytest_cgroup import _spec", "not below"),
        ("exceptions", "from . import _units", "not below"),
        ("_cgroup", "from pytest_cgroup import Container", "not below"),
        ("_cgroup", "import pytest_cgroup.plugin", "not below"),
        ("_cgroup", "from .nowhere import x", "no module that stands on a floor"),
        ("_namespaces", "def f():\n    import ctypes", "ctypes belongs"),
        ("plugin", "from _pytest.runner import runtestprotocol", "_pytest belongs"),
        ("plugin", "from ._seam.junit import give_junit", "behind the face"),
        ("plugin", "import pytest_cgroup._seam.junit", "behind the face"),
        ("_container", "import pytest", "below floor 3"),
        ("__init__", "from .plugin import pytest_configure", "not below"),
        ("_spec", "import psutil", "on the pure floor"),
        ("_spec", "import subprocess", "on the pure floor"),
        ("_spec", "import os\nos.listdir('.')", "os.listdir on the pure floor"),
        ("_spec", "open('x')", "open() on the pure floor"),
        ("_runner", "from pytest_cgroup._syscalls import unshare", "system call"),
        ("_runner", "import os\nos.fork()", "os.fork on floor 3"),
        ("_report", "x = '/sys/fs/cgroup'", "matter of the kernel"),
        ("_report", "x = 'memory.max'", "matter of the kernel"),
    ],
)
def test_a_breach_is_found(module: str, source: str, fault: str) -> None:
    assert [line for line in faults(module, source) if fault in line]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("_container", "from ._cgroup import Cgroup\nfrom ._backends import choose"),
        ("_syscalls", "import ctypes"),
        ("_seam", "from _pytest.runner import runtestprotocol\nimport pytest"),
        ("__init__", "from ._container import Container"),
        ("_report", '"""Docstrings may speak of memory.max in /sys/fs/cgroup."""'),
        ("exceptions", "import os\nos.strerror(2)"),
    ],
)
def test_what_is_allowed_is_not_a_breach(module: str, source: str) -> None:
    assert faults(module, source) == []


def test_relative_import_in_a_subpackage() -> None:
    assert faults("_backends", "from .._cgroup import Cgroup\nfrom .process import X", "pytest_cgroup._backends") == []
    assert faults("_backends", "from .._container import Container", "pytest_cgroup._backends")
    assert faults("_seam", "from _pytest.runner import x\nfrom .reports import y", "pytest_cgroup._seam") == []
