"""Sphinx: MyST and Furo; the tables of the reference come from the code that they describe."""

from __future__ import annotations

import importlib.metadata

import pytest_cgroup
from pytest_cgroup._spec import marker_help, spec_table

project = "pytest-cgroup"
author = "The pytest-cgroup contributors"
copyright = "2026, the pytest-cgroup contributors"
release = version = importlib.metadata.version("pytest-cgroup")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "news"]
html_theme = "furo"
html_title = f"{project} {release}"

myst_enable_extensions = ["colon_fence", "deflist", "substitution"]
myst_heading_anchors = 3
myst_substitutions = {"spec_table": spec_table(), "marker_help": f"```text\n{marker_help()}\n```"}

autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
nitpicky = True
# Every reference to our own names must resolve. Those to Python's and pytest's would need the network to build.
nitpick_ignore_regex = [(r"py:.*", r"(?!pytest_cgroup\b).*")]

# The public names are documented where they are public, not where they happen to be written.
for _name in pytest_cgroup.__all__:
    _object = getattr(pytest_cgroup, _name)
    if getattr(_object, "__module__", "").startswith("pytest_cgroup."):
        _object.__module__ = "pytest_cgroup"
