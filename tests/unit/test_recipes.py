"""The recipes of docs/how-to/hosts.md: each parses as what it is, and its doctor is a command line that runs."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import pytest_cgroup
from pytest_cgroup import __main__ as command_line
from tests.e2e.inner import run

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "how-to" / "hosts.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
SECTIONS = re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]
EVERY_PAGE = [DOCS.parent / "README.md", *sorted(DOCS.rglob("*.md"))]
DOCTOR = re.compile(r"python -m pytest_cgroup (doctor(?: [-\w=,]+)*)(?=\s*(?:$|&&|['\"`|]|\\))", re.MULTILINE)


def doctors(text: str) -> list[str]:
    return [match.strip() for match in DOCTOR.findall(text)]


COMMANDS = sorted({found for page in EVERY_PAGE for found in doctors(page.read_text(encoding="utf-8"))})


def of_kind(kind: str) -> list[str]:
    return [text for found, text in BLOCKS if found == kind]


def test_every_block_is_of_a_kind_that_is_checked() -> None:
    assert {kind for kind, _ in BLOCKS} == {"sh", "yaml", "toml", "groovy"}


@pytest.mark.parametrize("section", SECTIONS, ids=lambda text: text.partition("\n")[0])
def test_each_recipe_ends_in_a_check(section: str) -> None:
    assert any("--require" in found for found in doctors(section))


@pytest.mark.parametrize("text", of_kind("yaml"))
def test_yaml(text: str) -> None:
    document = importlib.import_module("yaml").safe_load(text)
    assert isinstance(document, dict)
    said = str(document)
    assert doctors(text), "what is checked below"
    assert all(found in said for found in doctors(text)), "folded as it was meant"


@pytest.mark.parametrize("text", of_kind("toml"))
def test_toml(text: str) -> None:
    assert tomllib.loads(text)["runners"][0]["docker"]["security_opt"] == ["writable-cgroups=true"]


@pytest.mark.parametrize("text", of_kind("sh"))
def test_shell(text: str) -> None:
    subprocess.run(["sh", "-n"], input=text, text=True, check=True, timeout=10)


@pytest.mark.parametrize("text", of_kind("groovy"))
def test_groovy(text: str) -> None:
    """As far as that goes without Groovy: what is opened is closed."""
    assert text.count("{") == text.count("}")
    assert all(line.count("'") % 2 == 0 for line in text.splitlines())


def test_there_are_commands_to_check() -> None:
    assert "doctor --cgroup-take-over --require memory,pids" in COMMANDS
    assert len(COMMANDS) >= 6


@pytest.mark.parametrize("command", COMMANDS)
def test_the_doctor_takes_it(command: str) -> None:
    assert command_line.parser().parse_args(shlex.split(command)).command == "doctor"


@pytest.mark.parametrize("command", COMMANDS)
def test_the_doctor_runs(command: str) -> None:
    """Nothing is taken over here: this is not a container's root, or else it is ours to leave alone."""
    words = [word for word in shlex.split(command) if word != "--cgroup-take-over"]
    environ = {**os.environ, "PYTHONPATH": str(Path(pytest_cgroup.__file__).parent.parent)}
    done = subprocess.run(
        [sys.executable, "-m", "pytest_cgroup", *words],
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode in (0, 1), done.stderr
    assert done.stdout.startswith("environment: ")
    assert done.stderr == ""


def test_the_options_of_pytest_are_those_there_are(pytester: pytest.Pytester) -> None:
    used = set(re.findall(r"(?<=\s)--(?:cgroup|contained|resource)[\w-]*", PAGE))
    assert used
    text = run(pytester, "", "--help").text
    assert [option for option in used if f"{option}" not in text] == []
