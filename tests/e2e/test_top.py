"""``python -m pytest_cgroup top`` and `containers()`: what runs contained now."""

from __future__ import annotations

import argparse
import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import pytest_cgroup
from pytest_cgroup import Container, ContainerError, _station, _top, containers
from pytest_cgroup._top import Row
from tests.e2e.inner import run

TOP = [sys.executable, "-m", "pytest_cgroup", "top"]
SLEEP = ["sleep", "1000"]


@pytest.fixture(autouse=True)
def _given_back() -> Iterator[None]:
    yield
    _station.close()


def top(*arguments: str) -> str:
    done = subprocess.run([*TOP, *arguments], capture_output=True, text=True, check=True, timeout=60)
    assert not done.stderr
    return done.stdout


def shown(name: str, text: str | None = None) -> list[dict[str, Any]]:
    """The rows of this process's containers that *name* is a part of."""
    rows = json.loads(text or top("--json"))["containers"]
    return [row for row in rows if row["owner"] == os.getpid() and name in row["name"]]


@pytest.mark.requires("cgroup")
def test_it_shows_one_by_its_path() -> None:
    name = f"path-of-test-{os.getpid()}"
    try:
        container = Container(path=name).start()
    except ContainerError as why:  # this kernel keeps no attribute on a cgroup for this user
        pytest.skip(str(why))
    with container, container.popen(SLEEP):
        (row,) = shown(name)
        assert (row["name"], row["tasks"]) == (name, 1)
        container.kill()
    assert not shown(name)


@pytest.mark.requires("cgroup", "memory")
def test_it_shows_a_container_with_its_numbers() -> None:
    with Container(name="shown", memory="64M") as container, Container(name="other"):
        assert [row["tasks"] for row in shown("shown")] == [0]
        with container.popen(SLEEP), container.popen(SLEEP):
            (row,) = shown("shown")
            assert row["tasks"] == 2
            assert 0 < row["memory_bytes"] <= 64 * 2**20
            assert row["cpu_seconds"] > 0
            assert row["cpu_percent"] is None
            assert row["age_seconds"] >= 0
            text = top("--once")
            container.kill()
        assert len(shown("other")) == 1
    assert not shown("shown")
    head, *lines = text.splitlines()
    assert head.split() == ["CONTAINER", "OF", "TASKS", "MEMORY", "CPU%", "CPU", "s", "AGE"]
    (line,) = (line for line in lines if "-shown " in line and f"[{os.getpid()}]" in line)
    assert re.search(rf"-shown +\S+\[{os.getpid()}\] +2 +[\d.]+[KM] +- +[\d.]+ +\d+ s$", line)


@pytest.mark.parametrize("backend", [pytest.param("cgroup", marks=pytest.mark.requires("cgroup")), "process"])
def test_it_shows_a_contained_test_and_what_is_nested_in_it(pytester: pytest.Pytester, backend: str) -> None:
    source = f"""
@contained
def test_it(contained_factory):
    contained_factory(name="nested").popen({SLEEP})
    subprocess.Popen({SLEEP})
    print(subprocess.run({TOP} + ["--json"], capture_output=True, text=True, check=True).stdout)
    assert 0
"""
    result = run(pytester, source, f"--cgroup-backend={backend}", "--assert=plain")
    rows = json.loads(re.findall(r'^{"schema".*', result.text, re.MULTILINE)[0])["containers"]
    names = {re.sub(r"^\S*?\d-", "", row["name"]) for row in rows}
    assert names >= ({"test_it", "nested"} if backend == "cgroup" else {"(no cgroup)"}), rows


@pytest.mark.requires("cgroup")
def test_it_ends_by_ctrl_c() -> None:
    """On a terminal it goes on until then, and clears what it showed before."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen([*TOP, "-d", "1000"], stdout=theirs, stderr=subprocess.PIPE)
    os.close(theirs)
    text = b""
    while b"AGE" not in text:
        text += os.read(ours, 65536)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    os.close(ours)
    assert (process.returncode, err) == (0, b"")
    assert text.startswith(b"\x1b[H\x1b[2J")


@pytest.mark.requires("cgroup")
def test_ctrl_c_before_the_pause_is_not_slept_over() -> None:
    """It may come when Python looks for signals no more, and the kernel does not wait yet."""
    program = f"""
import os, signal
from pytest_cgroup import __main__
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
os.kill(os.getpid(), signal.SIGINT)
raise SystemExit(__main__.main({[*TOP[3:], "-n2", "-d1000"]}))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("CONTAINER") == 1


@pytest.mark.requires("cgroup")
def test_who_ignores_ctrl_c_goes_on() -> None:
    program = f"""
import os, signal
from pytest_cgroup import __main__, _top
signal.signal(signal.SIGINT, signal.SIG_IGN)
look = _top.look
_top.look = lambda **options: os.kill(os.getpid(), signal.SIGINT) or look(**options)
raise SystemExit(__main__.main({[*TOP[3:], "-n3", "-d10ms"]}))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.count("CONTAINER") == 3


@pytest.mark.parametrize("option", ["-d-1", "-dnan", "-dinf", "-d1e30", "-dsoon", "-n0", "-n-1", "-n1.5"])
def test_a_wrong_number_is_a_usage_error(option: str) -> None:
    done = subprocess.run([*TOP, option], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"error: argument {option[:2]}: '{option[2:]}' is" in done.stderr


def test_elsewhere_it_prints_as_many_tables_as_it_is_told() -> None:
    assert top().count("CONTAINER") == 1
    text = top("-n", "3", "-d", "0.01")
    assert text.count("CONTAINER") == 3
    assert "\x1b" not in text
    assert len(top("-n2", "-d0.01", "--json").splitlines()) == 2


class Screen:
    """A terminal that is looked at."""

    def __init__(self) -> None:
        self.text = ""

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> None:
        self.text += text

    def flush(self) -> None:
        pass


def test_the_share_of_the_cpu_is_of_the_time_between() -> None:
    tables = iter([[Row("1-a", 1, 1, None, 2.0, 3700.0), Row("2-b", 1, 0, 2048, None, None)], []] * 2)
    options, screen = argparse.Namespace(json=False, delay=0.0), Screen()
    last = _top.show(screen, options, 2, lambda: next(tables))
    assert "1:01:40" in screen.text
    assert re.search(r"2-b +\S+\[1\] +0 +2K +- +- +-$", screen.text, re.MULTILINE)
    assert last.startswith("\x1b[H\x1b[2J")
    assert _top.table([Row("1-a", 1, 1, None, 2.0, 61.0)], {(1, "1-a"): 12.34}).splitlines()[1].split()[-3:] == [
        "12.3", "2.00", "1:01",
    ]  # fmt: skip


def test_every_key_of_the_json_is_documented_and_no_other() -> None:
    page = Path(__file__).resolve().parents[2].joinpath("docs/reference/top.md").read_text(encoding="utf-8")
    told = json.loads(_top.to_json([Row("1-a", 1, 1, 1, 1.0, 1.0)], {}))
    keys = {*told, *(f"containers[].{key}" for key in told["containers"][0])}
    assert keys == set(re.findall(r"^\| `([\w.*\[\]]+)` \|", page.partition("--json` prints")[2], re.MULTILINE))


# containers()


@pytest.mark.parametrize("backend", [pytest.param("cgroup", marks=pytest.mark.requires("cgroup")), "process"])
def test_the_containers_of_this_process(backend: str) -> None:
    assert pytest_cgroup.containers is containers
    assert containers() == []
    with Container(backend=backend) as one, Container(backend=backend) as two:
        assert containers() == [one, two]
        assert one.call(lambda: len(containers())) == 0, "they are not a forked child's"
        one.destroy()
        assert containers() == [two]
    assert containers() == []
