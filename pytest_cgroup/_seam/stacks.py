"""The stacks that pytest's faulthandler shows of a test that takes long."""

from __future__ import annotations

import faulthandler

import pytest


def faulthandler_timeout(config: pytest.Config) -> float:
    """pytest's `faulthandler_timeout`, in seconds; 0 without one."""
    if not config.pluginmanager.has_plugin("faulthandler"):
        return 0.0
    return float(config.getini("faulthandler_timeout") or 0.0)


def dump_stacks_late(config: pytest.Config) -> None:
    """In the child: start pytest's timer for the stacks once more. It is a thread, and so did not come along."""
    from _pytest.faulthandler import fault_handler_stderr_fd_key

    if timeout := faulthandler_timeout(config):
        faulthandler.dump_traceback_later(timeout, file=config.stash[fault_handler_stderr_fd_key])
