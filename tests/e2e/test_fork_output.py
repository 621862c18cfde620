"""Output of a contained test: whole, under that test, and never in pytest's memory."""

from __future__ import annotations

import re

import pytest

from tests.e2e.inner import HEAD, command, run

captures = pytest.mark.parametrize("capture", ["fd", "sys", "tee-sys", "no"])


@captures
def test_output_of_a_crash_stands_under_it(pytester: pytest.Pytester, capture: str) -> None:
    source = """
@pytest.fixture
def prepared(): print("said in set-up", flush=True)
@contained
def test_crash(prepared):
    print("said by the crash", flush=True)
    sys.stderr.write("cried by the crash")
    sys.stderr.flush()
    os.abort()
@contained
def test_next():
    print("said by the next")
    assert 0
def test_plain():
    print("said by the plain")
    assert 0
"""
    result = run(pytester, source, f"--capture={capture}")
    assert result.counts == {"failed": 3}
    for text in ("said in set-up", "said by the crash", "cried by the crash"):
        found = [name for name, block in result.blocks.items() if re.search(f"^{text}", block, re.MULTILINE)]
        assert found == ([] if capture == "no" else ["test_crash"]), text
        assert len(re.findall(f"^(?:.* )?{text}$", result.text, re.MULTILINE)) == (2 if capture == "tee-sys" else 1), (
            text
        )
    for text, test in (("next", "test_next"), ("plain", "test_plain")):
        found = [
            name for name, block in result.blocks.items() if re.search(f"^said by the {text}", block, re.MULTILINE)
        ]
        assert found == ([] if capture == "no" else [test])


def test_bytes_that_are_not_utf8_come_home(pytester: pytest.Pytester) -> None:
    source = r"""
@contained
def test_fail():
    os.write(1, b"before \xff\xfe\x00 after\n")
    print("lone \udc80 surrogate") if sys.stdout.errors else None
    assert 0
@contained
def test_crash():
    os.write(2, b"before \xff\xfe after\n")
    os.abort()
"""
    result = run(pytester, source, "--show-capture=stdout")
    assert result.counts == {"failed": 2}
    assert re.search("before \ufffd\ufffd.? after", result.blocks["test_fail"])


_MUCH = """
import resource
def rss(): return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() >> 20
BEFORE = []
def test_before(): BEFORE.append(rss())
@contained
def test_much():
    line = b"x" * 1023 + b"\\n"
    for _ in range(100):
        os.write(1, line * 1024)
    os.write(2, b"and this, last")
    {end}
def test_after(): assert rss() - BEFORE[0] < 20, "pytest holds the output in memory"
"""


@pytest.mark.parametrize("end", ["pass", "os.abort()", "assert 0"])
def test_much_output_and_little_memory(pytester: pytest.Pytester, end: str) -> None:
    result = run(pytester, _MUCH.format(end=end), "--show-capture=stderr", "-o", "junit_logging=no")
    assert result.counts == ({"passed": 3} if end == "pass" else {"passed": 2, "failed": 1})
    assert end == "pass" or "and this, last" in result.blocks["test_much"]


@pytest.mark.parametrize("end", ["os.abort()", "assert 0"])
def test_much_output_comes_home_whole(pytester: pytest.Pytester, end: str) -> None:
    pytester.path.joinpath("test_it.py").write_text(HEAD + _MUCH.format(end=end))
    pytester.makeconftest("""
def pytest_runtest_logreport(report):
    if report.when == "call" and "test_much" in report.nodeid:
        sizes = {title: len(text) for title, text in report.sections if title.startswith("Captured")}
        print("sizes", sizes, dict(report.sections)["Captured stdout call"].count("\\n"))
""")
    done = pytester.run(
        *command(("-s", "-k", "test_much", "--capture=fd", "--show-capture=no", "-rN", "--tb=no")), timeout=60
    )
    said = next(line for line in done.outlines if "sizes" in line)
    assert f"'Captured stdout call': {100 << 20}, 'Captured stderr call': 14}} {100 << 10}" in said


@captures
@pytest.mark.parametrize("backend", ["auto", "process"])
def test_a_test_that_spoils_its_own_streams(pytester: pytest.Pytester, capture: str, backend: str) -> None:
    source = """
@contained
def test_closes():
    os.close(1); os.close(2)
    assert 0, "closed"
@contained
def test_replaces():
    sys.stdout = sys.stderr = sys.__stdout__ = sys.__stderr__ = None
    assert 0, "replaced"
@contained
def test_closes_objects():
    sys.stdout.close(); sys.stderr.close()
    assert 0, "objects"
@contained
def test_redirects():
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1); os.dup2(null, 2)
    assert 0, "redirected"
@contained
def test_after():
    print("all is well")
    assert 0, "after"
"""
    result = run(pytester, source, f"--capture={capture}", f"--cgroup-backend={backend}")
    assert result.counts["failed"] == 5
    for name, word in {"replaces": "replaced", "redirects": "redirected", "after": "after"}.items():
        assert f"AssertionError: {word}" in result.blocks[f"test_{name}"]
    assert "all is well" in (result.text if capture == "no" else result.blocks["test_after"])
