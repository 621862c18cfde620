"""Runs the examples of the documentation: a Python block whose first line names a test file is run by pytest.

``# test_hog.py`` must pass, ``# test_hog.py: fails`` must fail; any other Python block must at least compile.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

_BLOCK = re.compile(r"^(?P<indent> *)```python\n(?P<code>.*?)^ *```$", re.MULTILINE | re.DOTALL)
_TEST_FILE = re.compile(r"# (?P<name>test_\w+\.py)(?P<fails>: fails)?$")


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    """Collect the Markdown files that have Python in them."""
    if file_path.suffix == ".md" and _BLOCK.search(file_path.read_text(encoding="utf-8")):
        document: pytest.Collector = Document.from_parent(parent, path=file_path)
        return document
    return None


class Document(pytest.File):
    """A page of the documentation."""

    def collect(self) -> Iterator[pytest.Item]:
        """One item for each Python block, named after its line."""
        text = self.path.read_text(encoding="utf-8")
        for block in _BLOCK.finditer(text):
            line = text.count("\n", 0, block.start()) + 1
            yield Example.from_parent(self, name=f"line {line}", code=textwrap.dedent(block["code"]), line=line)


class Example(pytest.Item):
    """One Python block of a page."""

    def __init__(self, *, code: str, line: int, **more: object) -> None:
        super().__init__(**more)  # type: ignore[arg-type]
        self.code = code
        self.line = line

    def runtest(self) -> None:
        """Run the block as the page promises; a host without what it asks for skips it."""
        compile(self.code, f"{self.path}:{self.line}", "exec", dont_inherit=True)
        heading = _TEST_FILE.match(self.code.partition("\n")[0])
        if heading is None:
            return
        if not importlib.metadata.entry_points(group="pytest11", name="cgroup"):
            pytest.skip("pytest-cgroup is not installed: nothing would contain the example")
        with tempfile.TemporaryDirectory() as directory:
            Path(directory, heading["name"]).write_text(self.code, encoding="utf-8")
            Path(directory, "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
            run = subprocess.run(
                [sys.executable, "-m", "pytest", "-rs", heading["name"]],
                cwd=directory,
                env={**os.environ, "PYTEST_ADDOPTS": ""},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=120,
                check=False,
            )
        expected = pytest.ExitCode.TESTS_FAILED if heading["fails"] else pytest.ExitCode.OK
        if run.returncode == pytest.ExitCode.OK and " skipped" in run.stdout:
            pytest.skip(re.findall(r"^SKIPPED .*", run.stdout, re.MULTILINE)[0])
        if run.returncode != expected:
            pytest.fail(f"status {run.returncode} instead of {int(expected)}:\n{run.stdout}", pytrace=False)

    def reportinfo(self) -> tuple[Path, int, str]:
        """Where the block stands."""
        return self.path, self.line - 1, self.name
