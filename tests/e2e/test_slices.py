"""Tests of one slice: the marker's field ``slice``, and the limits of the ini ``contained_slices``."""

from __future__ import annotations

import pytest

from tests.e2e.inner import LIMIT_ABOVE, Result, run

# A limit is read back before anything goes beyond it.
_HEAD = (
    LIMIT_ABOVE
    + r"""
def hog(megabytes):
    assert limit_above("slice-db", "memory.max", "memory.limit_in_bytes", "memory") == str(64 << 20)
    with open("/proc/self/oom_score_adj", "w") as f: f.write("1000")
    return [bytearray(os.urandom(1)) * (1 << 20) for _ in range(megabytes)]
def fork():
    if not (pid := os.fork()):
        signal.pause()
    return pid
"""
)
_DB = "db: memory=64M pids=20"


def _run(
    pytester: pytest.Pytester, source: str, *arguments: str, slices: tuple[str, ...] = (_DB,), workers: int = 0
) -> Result:
    lines = "".join(f"\n    {line}" for line in slices)
    pytester.makeini(f"[pytest]\ncontained_slices ={lines}\n")
    return run(pytester, _HEAD + source, *arguments, workers=workers)


@pytest.mark.requires("cgroup", "memory", "pids")
@pytest.mark.parametrize("workers", [0, 2])
def test_the_limits_of_a_slice(pytester: pytest.Pytester, workers: int) -> None:
    source = """
@contained(slice="db")
def test_hog(): hog(200)
@contained(slice="db", memory="40M")
def test_own_limit(): hog(200)
@contained(slice="db")
def test_enough(): hog(8)
@contained(memory="400M")
def test_elsewhere(): [bytearray(os.urandom(1)) * (1 << 20) for _ in range(100)]
@contained(slice="db", expect="oom")
def test_expected(): hog(200)
"""
    result = _run(pytester, source, workers=workers)
    assert result.counts == {"failed": 2, "passed": 3}, result.text
    assert "not at its own limit: its slice db (memory=64M, swap=0B, pids=20)" in result.blocks["test_hog"]
    assert "at its own limit (memory=40M" in result.blocks["test_own_limit"]
    assert {name: record["ended"] for name, record in result.records.items()} == {
        "test_hog": "oom-ancestor",
        "test_own_limit": "oom",
        "test_enough": "exit",
        "test_elsewhere": "exit",
        "test_expected": "oom-ancestor",
    }


@pytest.mark.requires("cgroup", "pids")
def test_the_tasks_of_a_slice(pytester: pytest.Pytester) -> None:
    source = """
@contained(slice="db")
def test_forks():
    assert limit_above("slice-db", "pids.max", "pids.max", "pids") == "20"
    pids = []
    with pytest.raises(BlockingIOError):
        for _ in range(40): pids.append(fork())
    for pid in pids: os.kill(pid, 9), os.waitpid(pid, 0)
@contained(slice="db", expect="pids")
def test_expected(): test_forks()
@contained(slice="db")
def test_none(): os.waitpid(os.fork() or os._exit(0), 0)
"""
    result = _run(pytester, source, slices=("db: pids=20",))
    assert result.counts == {"passed": 3}, result.text
    assert {name: record["pids_max_hits"] for name, record in result.records.items()} == {
        "test_forks": 1,
        "test_expected": 1,
        "test_none": 0,
    }


@pytest.mark.requires("cgroup", "pids")
def test_containers_of_fixtures_beside_the_tests(pytester: pytest.Pytester) -> None:
    """They have what they have together with the tests; in a contained test there is a slice of its own."""
    source = """
@pytest.fixture(scope="module")
def server(contained_factory): return contained_factory(slice="db")
def in_it(container):
    with container.popen(["sleep", "1000"]) as program:
        text = open(f"/proc/{program.pid}/cgroup").read()
        program.kill()
    return text.split("/slice-db/")
def test_it(server): assert len(in_it(server)) > 1
@contained(slice="db")
def test_inside(contained, contained_factory):
    assert len(in_it(contained_factory(slice="db"))) > 1
    assert contained_factory(slice="db").limits["slice"] == "db (pids=20)"
"""
    result = _run(pytester, source, slices=("db: pids=20",))
    assert result.counts == {"passed": 2}, result.text


@pytest.mark.requires("cgroup")
def test_a_slice_without_limits(pytester: pytest.Pytester) -> None:
    result = run(pytester, _HEAD + "@contained(slice='any')\ndef test_it(): pass\n")
    assert result.counts == {"passed": 1}, result.text


@pytest.mark.parametrize("workers", [0, 2])
def test_a_slip_of_the_pen(pytester: pytest.Pytester, workers: int) -> None:
    source = "@contained(slice='bd')\ndef test_it(): pass\ndef test_other(): pass\n"
    result = _run(pytester, source, "--cgroup-missing=warn", workers=workers)
    assert result.counts == {"error": 1, "passed": 1}, result.text
    text = result.blocks["ERROR at setup of test_it"]
    assert "slice='bd'" in text
    assert "is none of ini contained_slices" in text
    assert "allowed: db" in text


def test_a_slip_of_the_pen_for_all_tests(pytester: pytest.Pytester) -> None:
    result = _run(pytester, "def test_it(): pass\n", "--contained=slice=bd")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "slice='bd' (--contained): is none of ini contained_slices; allowed: db" in result.text


@pytest.mark.parametrize(
    ("slices", "said"),
    [
        (("db memory=64M",), ["'db memory=64M'", "is no line of it", "NAME: memory=1G,pids=200"]),
        (("a/b: memory=64M",), ["slice='a/b'", "is no name of a slice"]),
        (("db: memory=64MB",), ["memory='64MB'", "ini contained_slices, db"]),
        (("db: timeout=3",), ["timeout=3.0", "is for one test or container"]),
        (("db: pids=3", "db: pids=4"), ["slice='db'", "is there twice"]),
    ],
)
def test_a_bad_line(pytester: pytest.Pytester, slices: tuple[str, ...], said: list[str]) -> None:
    result = _run(pytester, "def test_it(): pass\n", slices=slices)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    for words in said:
        assert words in result.text


def test_without_a_cgroup(pytester: pytest.Pytester) -> None:
    source = "@contained(slice='db')\ndef test_it(): pass\n"
    result = _run(pytester, source, "--cgroup-backend=process", "-rs")
    assert result.counts == {"skipped": 1}
    assert "this host can't honour slice: needs a cgroup, which its containers share" in result.text
    assert _run(pytester, source, "--cgroup-backend=process", "--cgroup-missing=fail").counts == {"error": 1}
    assert _run(pytester, source, "--cgroup-backend=process", "--cgroup-missing=warn").counts["passed"] == 1


def test_in_place_there_is_none(pytester: pytest.Pytester) -> None:
    result = _run(pytester, "@contained(isolation='shared', slice='db')\ndef test_it(): pass\n")
    assert result.counts == {"error": 1}
    assert "would hold for pytest itself" in result.text
