"""What is installed in the guests: the tests' dependencies for the guest's Python, and the package under test."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import shutil
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from .rig.tools import Unavailable, cache, locked, run, say

NAME: Final = "pytest-cgroup"
GROUP: Final = "tests"


def installed_at(python: str) -> str:
    """The directory in the guest for what pip would install there (Debian's name for it)."""
    return f"/usr/local/lib/python{python}/dist-packages"


def requirements(project: Mapping[str, Any], group: str = GROUP) -> list[str]:
    """The requirements of a pyproject.toml's package and of one of its dependency groups (PEP 735), sorted."""
    found = set(project.get("project", {}).get("dependencies", ()))
    waiting, seen = [group], set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        for entry in project["dependency-groups"][name]:
            if isinstance(entry, str):
                found.add(entry)
            else:
                waiting.append(entry["include-group"])
    return sorted(found)


def dependencies(tree: Path, python: str) -> Path:
    """A directory with the tests' dependencies for that Python (``major.minor``), in the cache.

    Only wheels are taken, so that another Python's can be installed from here.
    """
    wanted = requirements(tomllib.loads((tree / "pyproject.toml").read_text()))
    key = hashlib.sha256(repr((wanted, python)).encode()).hexdigest()[:10]
    target = cache() / "packages" / f"{python}-{key}"
    with locked():
        if not target.exists():
            say(f"installing the tests' dependencies for Python {python}")
            target.parent.mkdir(exist_ok=True)
            with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
                pip("install", "--target", f"{scratch}/site", *for_python(python), *wanted)
                shutil.rmtree(f"{scratch}/site/bin", ignore_errors=True)
                Path(scratch, "site").rename(target)
    return target


def for_python(python: str) -> list[str]:
    """pip's options to install for another Python; only our own can be compiled to bytecode."""
    ours = python == f"{sys.version_info[0]}.{sys.version_info[1]}"
    return ["--only-binary=:all:", "--python-version", python, *([] if ours else ["--no-compile"])]


def pip(*words: str | Path) -> None:
    run(sys.executable, "-m", "pip", "--disable-pip-version-check", "-qq", *words)


def package(tree: Path, target: Path) -> Path:
    """The package under test, installed in ``target``: a wheel built of the tree; or, where
    ``PYTEST_CGROUP_TEST_THE_WHEEL`` is set, what is installed beside the running Python, the wheel that tox made."""
    if os.environ.get("PYTEST_CGROUP_TEST_THE_WHEEL"):
        copy_installed(NAME, target)
        return target
    with tempfile.TemporaryDirectory() as scratch:
        pip("wheel", "--no-deps", "--wheel-dir", scratch, tree)
        (wheel,) = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:  # a pure wheel's content is what is installed
            archive.extractall(target)
    return target


def copy_installed(name: str, target: Path) -> None:
    try:
        distribution = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError as error:
        raise Unavailable(f"PYTEST_CGROUP_TEST_THE_WHEEL is set, but {name} is not installed here") from error
    for file in distribution.files or ():
        if ".." in file.parts or file.suffix == ".pyc":
            continue
        path = target / file
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file.locate(), path)
