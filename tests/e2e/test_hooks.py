"""The plugin's own hooks: when each is called, with what, and what becomes of one that raises."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.inner import run

both = pytest.mark.parametrize("workers", [0, 2])
each_backend = pytest.mark.parametrize(
    "backend", [pytest.param("cgroup", marks=pytest.mark.requires("cgroup")), "process"]
)
#: writes down each call, with the process that it was made in
_TELLING = """
import json, os
from pathlib import Path
TOLD = Path(__file__).with_name("told")
def tell(hook, **more):
    with TOLD.open("a") as f: print(json.dumps({"hook": hook, "pid": os.getpid(), **more}), file=f)
def pytest_cgroup_backend(name, host):
    tell("backend", name=name, offers=host.capability("cgroup").offered)
def pytest_contained_spec(item, spec):
    tell("spec", item=item.name, timeout=spec.timeout)
    return {"timeout": 55} if spec.timeout is None else None
def pytest_container_started(container, item):
    tell("started", name=container.name, item=item and item.name, timeout=container.spec.timeout,
         limits=dict(container.limits), processes=len(container.processes()), files=len(container.stats()))
def pytest_container_finished(container, item, outcome):
    tell("finished", name=container.name, item=item and item.name, ended=outcome.ended, leaks=len(outcome.leaks),
         wall=outcome.usage.wall_seconds)
def pytest_process_leak(item, leaks):
    tell("leak", item=item.name, argv=[leak.argv for leak in leaks], alive=[alive(leak.pid) for leak in leaks])
def alive(pid):
    try: return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError: return False
"""
#: one that raises in each hook of a container
_RAISING = """
import pytest
def pytest_container_started(item): 1 / 0
def pytest_container_finished(item): pytest.fail("not like this", pytrace=False)
def pytest_process_leak(item): raise KeyError("of the leak")
"""
SLEEP = '["sleep", "120"]'


def told(pytester: pytest.Pytester, hook: str | None = None) -> list[dict[str, Any]]:
    """What the hooks wrote down, of all or of one of them."""
    lines = [json.loads(line) for line in (pytester.path / "told").read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if hook in (None, line["hook"])]


@both
@each_backend
def test_a_contained_test(pytester: pytest.Pytester, backend: str, workers: int) -> None:
    pytester.makeconftest(_TELLING)
    source = f"""
@contained(timeout=50, leaks="warn")
def test_leaving(): subprocess.Popen({SLEEP})
@contained
def test_killed(): os.kill(os.getpid(), 9)
def test_unmarked(): pass
"""
    result = run(pytester, source, f"--cgroup-backend={backend}", workers=workers)
    assert result.counts == {"passed": 2, "failed": 1, "warning": 1}, result.text
    assert {one["name"] for one in told(pytester, "backend")} == {backend}
    assert {one["offers"] for one in told(pytester, "backend")} in (
        [{True}] if backend == "cgroup" else [{True}, {False}]
    )
    asked = {(one["item"], one["timeout"]) for one in told(pytester, "spec")}
    assert asked == {("test_leaving", 50), ("test_killed", None)}
    started = {one["item"]: one for one in told(pytester, "started")}
    assert {name: (one["timeout"], one["limits"]["timeout"]) for name, one in started.items()} == {
        "test_leaving": (50, "50 s"),
        "test_killed": (55, "55 s"),
    }
    assert {one["processes"] for one in started.values()} == {0}
    assert all(bool(one["files"]) == (backend == "cgroup") for one in started.values())
    finished = {one["item"]: one for one in told(pytester, "finished")}
    assert {name: (one["ended"], one["leaks"]) for name, one in finished.items()} == {
        "test_leaving": ("exit", 1),
        "test_killed": ("signal", 0),
    }
    assert all(one["wall"] > 0 and one["name"] == started[name]["name"] for name, one in finished.items())
    assert {one["pid"] for one in finished.values()} == {one["pid"] for one in started.values()}
    (leak,) = told(pytester, "leak")
    assert (leak["item"], leak["argv"], leak["alive"]) == ("test_leaving", [["sleep", "120"]], [False])


@both
def test_containers_of_fixtures(pytester: pytest.Pytester, workers: int) -> None:
    pytester.makeconftest(_TELLING)
    source = f"""
@pytest.fixture(scope="module")
def server(contained_factory): return contained_factory(name="server").popen({SLEEP})
def test_it(server, contained): contained.run(["true"])
@contained
def test_nested(contained_factory): contained_factory(name="inner").destroy()
"""
    result = run(pytester, source, "--dist=loadfile" if workers else "-v", workers=workers)
    assert result.counts == {"passed": 2}, result.text
    started = {one["name"]: one for one in told(pytester, "started")}
    finished = {one["name"]: one for one in told(pytester, "finished")}
    assert started.keys() == finished.keys() >= {"server", "test_it", "inner"}
    assert finished["server"]["leaks"] == 1
    assert {one["item"] for one in finished.values()} == {None, "test_nested"}
    assert {name for name, one in finished.items() if one["pid"] != started["server"]["pid"]} == {"inner"}


@both
def test_leaks_in_place(pytester: pytest.Pytester, workers: int) -> None:
    pytester.makeconftest(_TELLING)
    source = f"""
@pytest.fixture(scope="module")
def leaking():
    subprocess.Popen({SLEEP})
def test_own(): subprocess.Popen(["sleep", "121"])
def test_last(leaking): pass
"""
    result = run(pytester, source, "--process-leaks=fail", *(["--dist=loadfile"] if workers else []), workers=workers)
    assert result.counts == {"passed": 2, "error": 2}, result.text
    leaks = {one["item"]: one["argv"] for one in told(pytester, "leak")}
    assert leaks == {"test_own": [["sleep", "121"]], "test_last": [["sleep", "120"]]}


@both
@each_backend
def test_one_that_raises(pytester: pytest.Pytester, backend: str, workers: int) -> None:
    pytester.makeconftest(_RAISING)
    source = f"""
def leave():
    child = subprocess.Popen({SLEEP})
    with open("left", "a") as f: print(child.pid, file=f)
@contained
def test_leaving(): leave()
@contained
def test_failing():
    leave()
    assert "own" == "failure"
def test_of_fixture(contained): pass
"""
    result = run(pytester, source, f"--cgroup-backend={backend}", workers=workers)
    assert result.counts == {"passed": 2, "failed": 1, "error": 3}, result.text
    assert "own" in result.blocks["test_failing"]
    for name in ("leaving", "failing", "of_fixture"):
        block = result.blocks[f"ERROR at teardown of test_{name}"]
        assert "pytest_container_started raised:" in block
        assert "ZeroDivisionError: division by zero" in block
        assert "conftest.py" in block
        assert "pluggy" not in block
        assert "not like this" in block
        assert ("KeyError: 'of the leak'" in block) == (name != "of_fixture")
    for name in ("leaving", "failing"):
        assert "left behind, now killed: 1 process (sleep)" in result.blocks[f"ERROR at teardown of test_{name}"]
    assert not [pid for pid in (pytester.path / "left").read_text().split() if _lives(int(pid))]
    assert result.records.keys() == {"test_leaving", "test_failing"}


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


@both
def test_one_that_raises_in_place(pytester: pytest.Pytester, workers: int) -> None:
    pytester.makeconftest(_RAISING)
    source = f"def test_own(): subprocess.Popen({SLEEP})"
    result = run(pytester, source, "--process-leaks=warn", workers=workers)
    assert result.counts == {"passed": 1, "error": 1, "warning": 1}, result.text
    assert "KeyError: 'of the leak'" in result.blocks["ERROR at teardown of test_own"]


@both
@pytest.mark.parametrize(
    ("body", "what"),
    [
        ("return {'timeout': 'soon'}", "pytest_contained_spec"),
        ("return {'tmeout': 1}", "did you mean timeout"),
        ("return 60", "pytest_contained_spec returned 60: give a dict of the marker's fields, or None"),
        ("raise LookupError('no such plan')", "LookupError: no such plan"),
        ("return {'isolation': 'shared'} if spec.timeout else None", "isolation"),
    ],
)
def test_a_wrong_answer_is_an_error_of_the_test(pytester: pytest.Pytester, body: str, what: str, workers: int) -> None:
    pytester.makeconftest(f"def pytest_contained_spec(item, spec): {body}")
    result = run(pytester, "@contained(timeout=9)\ndef test_it(): pass\ndef test_other(): pass", workers=workers)
    assert result.counts == {"passed": 1, "error": 1}, result.text
    assert what in result.blocks["ERROR at setup of test_it"]


def test_who_is_called_first_wins(pytester: pytest.Pytester) -> None:
    pytester.makeconftest("""
import pytest
class Second:
    def pytest_contained_spec(self): return {"timeout": 7, "cpu_time": 8}
class First:
    @pytest.hookimpl(tryfirst=True)
    def pytest_contained_spec(self): return {"timeout": 6}
def pytest_configure(config):
    config.pluginmanager.register(First())
    config.pluginmanager.register(Second())
def pytest_container_started(container, item):
    item.own = container.spec
def pytest_container_finished(container, item):
    assert (item.own.timeout, item.own.cpu_time) == (6, 8)
""")
    assert run(pytester, "@contained(timeout=9)\ndef test_it(): pass").counts == {"passed": 1}


@both
def test_a_backend_hook_that_raises_is_a_warning(pytester: pytest.Pytester, workers: int) -> None:
    pytester.makeconftest("def pytest_cgroup_backend(name): raise LookupError(name)")
    result = run(pytester, "@contained\ndef test_it(): pass", workers=workers)
    assert result.counts["passed"] == 1, result.text
    assert "pytest_cgroup_backend raised:" in result.text


def test_a_plugin_that_comes_late_is_told_of_the_backend(pytester: pytest.Pytester) -> None:
    source = """
class Late:
    def pytest_cgroup_backend(self, name): TOLD.append(name)
TOLD = []
@contained
def test_first(): pass
def test_late(pytestconfig):
    assert not TOLD
    pytestconfig.pluginmanager.register(Late())
    assert len(TOLD) == 1
"""
    assert run(pytester, source).counts == {"passed": 2}


@pytest.mark.parametrize("hook", ["pytest_container_started", "pytest_container_finished"])
def test_the_run_can_be_ended_from_a_hook(pytester: pytest.Pytester, hook: str) -> None:
    pytester.makeconftest(f"import pytest\ndef {hook}(item): pytest.exit('enough', 3)")
    source = "@contained\ndef test_first(): pass\n@contained\ndef test_second(): pass"
    result = run(pytester, source)
    assert result.ret == 3
    assert "enough" in result.text
    assert not any(map(os.path.exists, re.findall(r"/sys/fs/cgroup/\S+", result.text)))
