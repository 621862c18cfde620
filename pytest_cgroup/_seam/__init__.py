"""What the fork protocol needs of pytest's private parts: all of it is in here, and nowhere else.

`problems` says at start-up, in one line, what a new pytest took away. Tested with the oldest and the newest pytest.
The rest of the package sees this face only.
"""

from __future__ import annotations

import functools

import pytest

from .hooks import Hooks, protocol_owners, report_hook, suite_listens, with_stand_in
from .junit import add_junit_property, give_junit, take_junit, write_junit_again
from .output import capture_into, pending_output, set_terminal_line, shares_terminal, terminal_line
from .owners import fixture_name, held_by, named_fixtures, set_up_around, used_fixtures
from .reports import (
    expected_failure,
    failed_subtests,
    interact,
    log_beside_capture,
    restore,
    restore_subtest,
    set_failed_subtests,
    share,
    skip,
)
from .scopes import (
    ends_what_is_above,
    forget_outer_finalizers,
    needs_no_set_up,
    needs_nothing_outside,
    set_up_higher_scopes,
    tear_down_everything,
    tear_down_item_alone,
    tear_down_without_hooks,
)
from .stacks import dump_stacks_late, faulthandler_timeout

__all__ = [
    "NEEDED",
    "Hooks",
    "add_junit_property",
    "capture_into",
    "dump_stacks_late",
    "ends_what_is_above",
    "expected_failure",
    "failed_subtests",
    "faulthandler_timeout",
    "fixture_name",
    "forget_outer_finalizers",
    "give_junit",
    "held_by",
    "interact",
    "log_beside_capture",
    "named_fixtures",
    "needs_no_set_up",
    "needs_nothing_outside",
    "pending_output",
    "problems",
    "protocol_owners",
    "report_hook",
    "restore",
    "restore_subtest",
    "set_failed_subtests",
    "set_terminal_line",
    "set_up_around",
    "set_up_higher_scopes",
    "share",
    "shares_terminal",
    "skip",
    "suite_listens",
    "take_junit",
    "tear_down_everything",
    "tear_down_item_alone",
    "tear_down_without_hooks",
    "terminal_line",
    "used_fixtures",
    "with_stand_in",
    "write_junit_again",
]

NEEDED = (
    ("_pytest.runner", "SetupState.teardown_exact"),
    ("_pytest.runner", "SetupState.setup"),
    ("_pytest.runner", "check_interactive_exception"),
    ("_pytest.capture", "FDCapture.snap"),
    ("_pytest.capture", "SysCapture.snap"),
    ("_pytest.capture", "TeeCaptureIO"),
    ("_pytest.capture", "CaptureManager.is_globally_capturing"),
    ("_pytest.capture", "CaptureManager.item_capture"),
    ("_pytest.capture", "CaptureManager.global_and_fixture_disabled"),
    ("_pytest._io", "TerminalWriter.width_of_current_line"),
    ("_pytest.faulthandler", "fault_handler_stderr_fd_key"),
    ("_pytest.junitxml", "xml_key"),
    ("_pytest.junitxml", "LogXML.node_reporter"),
    ("_pytest.junitxml", "LogXML.add_global_property"),
    ("_pytest.logging", "caplog_records_key"),
    ("_pytest.logging", "LoggingPlugin._runtest_for"),
    ("_pytest.logging", "LoggingPlugin._log_cli_enabled"),
    ("_pytest.skipping", "xfailed_key"),
)


@functools.cache
def problems() -> str | None:
    """One clear line if this pytest lacks something that running a test in a fork needs; None if all is there."""
    import importlib

    lacking = []
    for module, name in NEEDED:
        try:
            functools.reduce(getattr, name.split("."), importlib.import_module(module))
        except (ImportError, AttributeError):
            lacking.append(f"{module}.{name}")
    if not lacking:
        return None
    return (
        f"pytest-cgroup can't contain tests under pytest {pytest.__version__}, which has no {', '.join(lacking)}; "
        "upgrade pytest-cgroup, or pin the pytest that it was tested with"
    )
