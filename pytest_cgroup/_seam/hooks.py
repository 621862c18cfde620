"""The hooks of one item, and of the plugins that run an item's protocol in pytest's place, as those do that rerun."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


class Hooks:
    """What `item.ihook` is while a contained item runs: the hooks as ever, but for those that are set as attributes.

    pytest asks the session for an item's hooks again and again; this also spares it looking for conftest files.
    """

    pytest_runtest_logstart: Any
    pytest_runtest_setup: Any
    pytest_runtest_call: Any
    pytest_runtest_teardown: Any
    pytest_runtest_makereport: Any
    pytest_runtest_logreport: Any

    def __init__(self, item: pytest.Item) -> None:
        self.as_ever = item.ihook
        self._session = item.session
        proxy, path = item.session.gethookproxy, item.path
        item.session.gethookproxy = (  # type: ignore[method-assign]
            lambda fspath: self if fspath == path else proxy(fspath)  # type: ignore[return-value, assignment]
        )

    def __getattr__(self, name: str) -> Any:
        hook = getattr(self.as_ever, name)
        setattr(self, name, hook)
        return hook

    def give_back(self) -> None:
        """Let the session answer for itself again, and let go of what stood in for its hooks: it refers to us."""
        del vars(self._session)["gethookproxy"]
        for name in [name for name in vars(self) if name.startswith("pytest_")]:
            delattr(self, name)


def protocol_owners(config: pytest.Config) -> list[object]:
    """Those plugins. They keep accounts of the phases in hooks of their own, and must hear of them in pytest itself."""
    implementations = config.hook.pytest_runtest_protocol.get_hookimpls()
    return [
        one.plugin for one in implementations if not (one.wrapper or one.hookwrapper) and one.plugin_name != "runner"
    ]


def suite_listens(config: pytest.Config) -> bool:
    """Whether code of the suite's own, as a conftest.py, is told in pytest's process how a test goes."""
    told = ("pytest_runtest_logstart", "pytest_runtest_logreport", "pytest_runtest_logfinish")
    plugins = [one.plugin for name in told for one in getattr(config.hook, name).get_hookimpls()]
    modules = [one if isinstance(one, ModuleType) else sys.modules.get(type(one).__module__) for one in plugins]
    paths = [Path(getattr(module, "__file__", None) or "") for module in modules]
    return any(path.is_relative_to(config.rootpath) and "site-packages" not in path.parts for path in paths)


def report_hook(config: pytest.Config, plugins: list[object]) -> Any:
    """`pytest_runtest_makereport` of the *plugins* alone."""
    others = [one.plugin for one in config.hook.pytest_runtest_makereport.get_hookimpls() if one.plugin not in plugins]
    return config.pluginmanager.subset_hook_caller("pytest_runtest_makereport", others)


def with_stand_in(call: pytest.CallInfo[Any], report: pytest.TestReport) -> pytest.CallInfo[Any]:
    """*call* as those plugins want to see it: with an exception, of which no more came home than name and text."""
    crash = getattr(report.longrepr, "reprcrash", None)
    if not report.failed or crash is None:
        return call
    name, _, text = str(crash.message).partition(": ")
    call = copy.copy(call)
    error = type(name.rpartition(".")[2], (Exception,), {})(text)
    call.excinfo = pytest.ExceptionInfo.from_exc_info((type(error), error, None))  # type: ignore[arg-type]
    return call
