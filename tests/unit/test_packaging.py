"""What is installed is what was meant to be: the wheel, whole, with its metadata."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import pytest_cgroup

ROOT = Path(__file__).resolve().parents[2]
INSTALLED_IN = Path(pytest_cgroup.__file__).resolve().parent


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    with open(ROOT / "pyproject.toml", "rb") as f:
        table: dict[str, Any] = tomllib.load(f)["project"]
    return table


@pytest.fixture(scope="module")
def distribution() -> importlib.metadata.Distribution:
    try:
        return importlib.metadata.distribution("pytest-cgroup")
    except importlib.metadata.PackageNotFoundError:
        if "PYTEST_CGROUP_TEST_THE_WHEEL" in os.environ:
            raise
        pytest.skip("pytest-cgroup is not installed here")


@pytest.mark.skipif("PYTEST_CGROUP_TEST_THE_WHEEL" not in os.environ, reason="not told to test an installed wheel")
def test_the_wheel_is_tested_and_not_the_tree() -> None:
    assert INSTALLED_IN != ROOT / "pytest_cgroup"
    assert INSTALLED_IN.parent.name in ("site-packages", "dist-packages")


def test_every_file_is_installed() -> None:
    def files(package: Path) -> set[str]:
        found = (path.relative_to(package) for path in package.rglob("*") if path.is_file())
        return {str(path) for path in found if path.suffix != ".pyc"}

    assert files(INSTALLED_IN) == files(ROOT / "pytest_cgroup")
    assert (INSTALLED_IN / "py.typed").is_file()


def test_dependencies_are_these_four(distribution: importlib.metadata.Distribution) -> None:
    names = {re.split(r"[^\w-]", requirement)[0] for requirement in distribution.requires or []}
    assert names == {"execnet", "pluggy", "psutil", "pytest"}


def test_metadata(distribution: importlib.metadata.Distribution, project: dict[str, Any]) -> None:
    assert distribution.version == pytest_cgroup.__version__
    assert distribution.metadata["Requires-Python"] == project["requires-python"] == ">=3.11"
    assert distribution.metadata["License-Expression"] == "MIT"
    (entry,) = distribution.entry_points
    assert (entry.group, entry.name, entry.value) == ("pytest11", "cgroup", "pytest_cgroup.plugin")


@pytest.mark.parametrize("module", ["pytest_cgroup", "pytest_cgroup._container"])
def test_the_library_does_not_import_pytest(module: str) -> None:
    code = f"import sys, {module}; sys.exit(bool({{'pytest', '_pytest', 'xdist'}} & set(sys.modules)))"
    subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=ROOT, check=True, timeout=60)


def test_every_public_name_is_there() -> None:
    assert sorted(set(pytest_cgroup.__all__)) == sorted(pytest_cgroup.__all__)
    assert [name for name in pytest_cgroup.__all__ if not hasattr(pytest_cgroup, name)] == []


def test_pytest_loads_the_plugin_by_its_entry_point(
    pytester: pytest.Pytester, distribution: importlib.metadata.Distribution
) -> None:
    pytester.makepyfile("def test(pytestconfig): assert pytestconfig.pluginmanager.has_plugin('cgroup')")
    pytester.runpytest_subprocess().assert_outcomes(passed=1)
    pytester.runpytest_subprocess("-p", "no:cgroup").assert_outcomes(failed=1)


def test_subpackages_are_packages() -> None:
    directories = {path.parent for path in INSTALLED_IN.rglob("*.py")}
    assert [path for path in directories if not (path / "__init__.py").is_file()] == []
