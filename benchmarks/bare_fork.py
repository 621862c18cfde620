"""The least that runs each test in a process of its own: the yardstick for what pytest-cgroup adds to a fork."""

from __future__ import annotations

import json
import os

import pytest
from _pytest.runner import runtestprotocol


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> bool:
    """Fork, run the whole protocol in the child, pipe its reports home as JSON, wait."""
    hook, config = item.ihook, item.config
    hook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        status = 1
        try:
            with os.fdopen(write, "w", encoding="utf-8") as f:
                for report in runtestprotocol(item, log=False, nextitem=None):
                    f.write(json.dumps(config.hook.pytest_report_to_serializable(config=config, report=report)) + "\n")
            status = 0
        finally:
            os._exit(status)
    os.close(write)
    with os.fdopen(read, encoding="utf-8") as f:
        reports = [json.loads(line) for line in f.read().splitlines()]
    _, status = os.waitpid(child, 0)
    for data in reports:
        report = config.hook.pytest_report_from_serializable(config=config, data=data)
        hook.pytest_runtest_logreport(report=report)
    if status != 0 or not reports:
        call = pytest.CallInfo.from_call(lambda: pytest.fail(f"wait status {status}", pytrace=False), "call")
        hook.pytest_runtest_logreport(report=pytest.TestReport.from_item_and_call(item, call))
    hook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True
