"""What goes to JUnit's XML past the reports."""

from __future__ import annotations

from typing import Any

import pytest

from .reports import node_key


def take_junit(item: pytest.Item) -> dict[str, Any]:
    """What fixtures told pytest's writer of JUnit's XML, and no report carries: given once, and then forgotten here.

    That is ``record_testsuite_property`` and ``record_xml_attribute``; {} if there is nothing.
    """
    xml = _junit(item.config)
    if xml is None:
        return {}
    properties, attributes = xml.global_properties, xml.node_reporter(node_key(item)).attrs
    taken = {"properties": [*properties], "attributes": {**attributes}}
    properties.clear()
    attributes.clear()
    return taken if any(taken.values()) else {}


def give_junit(item: pytest.Item, taken: dict[str, Any]) -> None:
    """In pytest itself: tell its writer what `take_junit` took in the child."""
    xml = _junit(item.config)
    if xml is None or not taken:
        return
    for name, value in taken["properties"]:
        xml.add_global_property(str(name), str(value))
    for name, value in taken["attributes"].items():
        xml.node_reporter(node_key(item)).add_attribute(name, str(value))


def add_junit_property(config: pytest.Config, name: str, value: str) -> None:
    """One more property of the suite, in the file that is yet to be written."""
    xml = _junit(config)
    if xml is not None:
        xml.add_global_property(name, value)


def write_junit_again(config: pytest.Config) -> None:
    """The file as it is now: pytest writes it before the session's last fixtures are torn down."""
    xml = _junit(config)
    if xml is not None:
        xml.pytest_sessionfinish()


def _junit(config: pytest.Config) -> Any:
    from _pytest.junitxml import xml_key

    return config.stash.get(xml_key, None)
