"""What fixtures tell JUnit's XML past the reports comes home from a contained test, as from an uncontained one."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from tests.e2e.inner import run

_TOLD = """
@pytest.fixture
def late(record_xml_attribute, record_testsuite_property):
    record_xml_attribute("setup", 1)
    record_testsuite_property("order", "setup")
    yield
    record_xml_attribute("teardown", "<&\\x00>")
    record_testsuite_property("order", "teardown")
def test_it(late, record_xml_attribute, record_testsuite_property):
    record_xml_attribute("assertions", 3)
    record_xml_attribute("classname", "renamed")
    record_testsuite_property("order", "call")
    record_testsuite_property("text", "\\udc80 \\x00 \u00e9")
@pytest.fixture(scope="module", autouse=True)
def outside(record_testsuite_property):
    record_testsuite_property("order", "module")
    yield
    record_testsuite_property("order", "module down")
@pytest.mark.parametrize("n", range(2))
def test_each(n, record_testsuite_property, record_xml_attribute):
    record_testsuite_property("each", n)
    record_xml_attribute("n", n)
    assert n
def test_silent(): pass
"""
_STOPS = """
def test_stops(record_testsuite_property):
    record_testsuite_property("before", "the end")
    pytest.exit("enough", 0)
"""


def _told(pytester: pytest.Pytester, *arguments: str) -> tuple[list[tuple[str | None, str | None]], list[object]]:
    """The properties of the suite in their order, and the attributes of each case."""
    suite = next(ET.parse(run(pytester, None, *arguments).junit).iter("testsuite"))
    properties = [(entry.get("name"), entry.get("value")) for entry in suite.iterfind("properties/property")]
    cases = [{name: value for name, value in case.items() if name != "time"} for case in suite.iter("testcase")]
    return properties, list(cases)


@pytest.mark.parametrize("family", ["xunit1", "xunit2", "legacy"])
def test_same_as_uncontained(pytester: pytest.Pytester, family: str) -> None:
    options = ("-o", f"junit_family={family}")
    run(pytester, _TOLD)
    plain = _told(pytester, *options)
    assert [value for name, value in plain[0] if name == "order"] == [
        "module", "setup", "call", "teardown", "module down"
    ], "there was something to compare"  # fmt: skip
    assert _told(pytester, "--contained=", *options) == plain


def test_what_was_told_before_the_run_stopped(pytester: pytest.Pytester) -> None:
    run(pytester, _STOPS)
    assert _told(pytester)[0] == [("before", "the end")]
    assert _told(pytester, "--contained=")[0] == [("before", "the end")]


def test_a_crash_costs_its_own_phase_alone(pytester: pytest.Pytester) -> None:
    source = """
@pytest.fixture
def early(record_testsuite_property): record_testsuite_property("early", "kept")
@contained
def test_it(early, record_testsuite_property):
    record_testsuite_property("late", "lost")
    os.abort()
"""
    run(pytester, source)
    assert _told(pytester)[0] == [("early", "kept")]


def test_without_junit_nothing_is_amiss(pytester: pytest.Pytester) -> None:
    source = """
@contained
def test_it(record_testsuite_property, record_xml_attribute):
    record_testsuite_property("a", "b")
    record_xml_attribute("c", "d")
"""
    assert run(pytester, source, "--junitxml=").counts["passed"] == 1
