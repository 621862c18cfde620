"""What the fork protocol needs of pytest's private parts: all of it is here, and nowhere else.

`problems` says at start-up, in one line, what a new pytest took away. Tested with the oldest and the newest pytest.
"""

from __future__ import annotations

import contextlib
import copy
import faulthandler
import functools
import inspect
import io
import os
import sys
import types
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable


_NEEDED = (
    ("_pytest.runner", "SetupState.teardown_exact"),
    ("_pytest.runner", "SetupState.setup"),
    ("_pytest.runner", "check_interactive_exception"),
    ("_pytest.capture", "FDCapture.snap"),
    ("_pytest.capture", "SysCapture.snap"),
    ("_pytest.capture", "TeeCaptureIO"),
    ("_pytest.capture", "CaptureManager.is_globally_capturing"),
    ("_pytest._io", "TerminalWriter.width_of_current_line"),
    ("_pytest.junitxml", "LogXML.node_reporter"),
    ("_pytest.junitxml", "LogXML.add_global_property"),
    ("_pytest.skipping", "xfailed_key"),
)


@functools.cache
def problems() -> str | None:
    """One clear line if this pytest lacks something that running a test in a fork needs; None if all is there."""
    import importlib

    lacking = []
    for module, name in _NEEDED:
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


# the hooks of one item


class Hooks:
    """What `item.ihook` is while a contained item runs: the hooks as ever, but for those that are set as attributes.

    pytest asks the session for an item's hooks again and again; this also spares it looking for conftest files.
    """

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
        """Let the session answer for itself again."""
        del vars(self._session)["gethookproxy"]


# plugins that run an item's protocol in pytest's place, as those do that rerun tests


def protocol_owners(config: pytest.Config) -> list[object]:
    """Those plugins. They keep accounts of the phases in hooks of their own, and must hear of them in pytest itself."""
    implementations = config.hook.pytest_runtest_protocol.get_hookimpls()
    return [
        one.plugin for one in implementations if not (one.wrapper or one.hookwrapper) and one.plugin_name != "runner"
    ]


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


# fixtures of higher scope, and who tears them down


def set_up_higher_scopes(item: pytest.Item) -> None:
    """Set up the fixtures of *item* that live longer than it, in pytest's own order: they come first in its closure.

    One that nobody defines is asked for as well: that is an error, and needs no fork to be found.
    A fixture that is first asked for by `request.getfixturevalue` in the test is not known here.
    """
    request = getattr(item, "_request", None)
    info = getattr(item, "_fixtureinfo", None)
    funcargs = getattr(item, "funcargs", None)
    if not request or info is None or funcargs is None:
        return
    names = list(getattr(item, "fixturenames", ()))
    if hasattr(item, "dtest"):
        names.append("doctest_namespace")  # a doctest asks for it in its set-up
    for name in names:
        definitions = info.name2fixturedefs.get(name)
        if name in funcargs:
            continue
        if not (definitions and definitions[-1].scope == "function"):
            funcargs[name] = request.getfixturevalue(name)
        elif name in definitions[-1].argnames:
            _set_up_overridden(request, name)
    if "tmp_path_factory" in funcargs:
        funcargs["tmp_path_factory"].getbasetemp()  # made once, and not by each child for itself


def needs_nothing_outside(item: pytest.Item, nextitem: pytest.Item | None) -> bool:
    """Whether *item* needs nothing set up or torn down outside of itself: then its whole protocol can run in a child.

    A mark that may keep it from running at all is better judged before there is one.
    """
    chain = item.listchain()[:-1]
    if [*item.session._setupstate.stack] != chain or nextitem is None or nextitem.listchain()[:-1] != chain:
        return False
    if any(item.get_closest_marker(name) for name in ("skip", "skipif", "xfail")):
        return False
    info, params = getattr(item, "_fixtureinfo", None), getattr(getattr(item, "callspec", None), "params", {})
    for name in getattr(item, "fixturenames", ()):
        definitions = info.name2fixturedefs.get(name) if info is not None else None
        if not definitions:
            if name != "request":
                return False
        elif definitions[-1].scope != "function" and (name in params or definitions[-1].cached_result is None):
            return False
        elif name in definitions[-1].argnames and any(_is_to_be_set_up(one) for one in definitions[:-1]):
            return False  # an override
    return True


def _is_to_be_set_up(definition: Any) -> bool:
    return definition.scope != "function" and definition.cached_result is None


def _set_up_overridden(request: Any, name: str) -> None:
    """Set up the fixture of higher scope that one of the test's own overrides, and asks for under the same name."""
    found = request._arg2fixturedefs
    everything = definitions = found[name]
    while definitions and definitions[-1].scope == "function" and name in definitions[-1].argnames:
        definitions = definitions[:-1]
    if not definitions or definitions[-1].scope == "function":
        return
    found[name] = definitions
    try:
        request.getfixturevalue(name)
    finally:
        found[name] = everything
        request._fixture_defs.pop(name, None)


def forget_outer_finalizers(item: pytest.Item) -> None:
    """In the forked child: what pytest itself set up is torn down there. What is set up from now on is ours to end.

    So the finalizers of the nodes above *item* are dropped, and a teardown goes all the way up, whatever comes next.
    """
    state = item.session._setupstate
    for node, (finalizers, _) in state.stack.items():
        if node is item:
            finalizers[0] = item.teardown  # it was ours when pytest took it up
        else:
            finalizers.clear()
    info = getattr(item, "_fixtureinfo", None)
    for definitions in info.name2fixturedefs.values() if info is not None else ():
        for definition in definitions:
            if definition.cached_result is not None:
                definition._finalizers.clear()  # of another value, or for a plugin that reruns, pytest may end it early
    state.teardown_exact = lambda nextitem: type(state).teardown_exact(state, None)  # type: ignore[method-assign]


def tear_down_item_alone(item: pytest.Item, nextitem: pytest.Item | None) -> bool:
    """Tear down *item* without pytest's hooks, if nothing above it is to go now; False, and nothing done, if it is."""
    state = item.session._setupstate
    above = [node for node in state.stack if node is not item]
    if nextitem is None or nextitem.listchain()[: len(above)] != above:
        return False
    state.teardown_exact(nextitem)
    os.environ.pop("PYTEST_CURRENT_TEST", None)
    return True


def tear_down_without_hooks(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Tear down what is above an item whose hooks ran in its child only: the run stops before the next item."""
    from _pytest.logging import caplog_records_key

    plugins = item.config.pluginmanager
    capture, logging = plugins.get_plugin("capturemanager"), plugins.get_plugin("logging-plugin")
    with contextlib.ExitStack() as stack:
        if logging is not None:
            item.stash[caplog_records_key] = {}
            stack.enter_context(logging._runtest_for(item, "teardown"))
        if capture is not None:
            stack.enter_context(capture.item_capture("teardown", item))
        item.session._setupstate.teardown_exact(nextitem)


def tear_down_everything(item: pytest.Item) -> None:
    """In the child that is interrupted: tear down what it set up, as pytest does at the end of an interrupted run."""
    item.session._setupstate.teardown_exact(None)


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


# reports


def interact(item: pytest.Item, call: pytest.CallInfo[Any], report: pytest.TestReport) -> None:
    """The post-mortem debugger, where pytest would enter it."""
    from _pytest.runner import check_interactive_exception

    if check_interactive_exception(call, report):
        item.ihook.pytest_exception_interact(node=item, call=call, report=report)


def expected_failure(item: pytest.Item) -> str | None:
    """The reason of an xfail mark that covers a crash, None without one. A crash is no exception of any type."""
    from _pytest.skipping import xfailed_key

    xfailed = item.stash.get(xfailed_key, None)
    if xfailed is None or xfailed.raises is not None or item.config.option.runxfail:
        return None
    return xfailed.reason or ""


def failed_subtests(item: pytest.Item) -> int:
    """How many subtests of *item* have failed: pytest counts some of them where they run."""
    counts = _failed_subtests(item.config)
    return counts[_node_key(item)] if counts is not None else 0


def set_failed_subtests(item: pytest.Item, count: int) -> None:
    """Set `failed_subtests` where pytest reads it: where it reports, a test that passed fails by its subtests."""
    counts = _failed_subtests(item.config)
    if counts is not None and count:
        counts[_node_key(item)] = count


def _failed_subtests(config: pytest.Config) -> dict[object, int] | None:
    try:
        from _pytest.subtests import failed_subtests_key
    except ImportError:  # before pytest 9
        return None
    counts: dict[object, int] | None = config.stash.get(failed_subtests_key, None)  # type: ignore[assignment]
    return counts


def _node_key(item: pytest.Item) -> object:
    return getattr(item, "id", item.nodeid)


def log_beside_capture(item: pytest.Item, report: pytest.TestReport) -> None:
    """Log a report that is made within a hook, as a subtest's is: on the terminal, not into captured output."""
    manager = item.config.pluginmanager.get_plugin("capturemanager")
    with manager.global_and_fixture_disabled() if manager is not None else contextlib.nullcontext():
        item.ihook.pytest_runtest_logreport(report=report)


def restore_subtest(report: pytest.TestReport, data: dict[str, Any]) -> None:
    """The values that a subtest was given came home as texts, and pytest has put the texts into quotes."""
    context = getattr(report, "context", None)
    if context is not None and "_subtest.context" in data:
        object.__setattr__(context, "kwargs", data["_subtest.context"]["kwargs"])


class _Told:
    """What a fixture that is not there, or a doctest, says of itself: by now a text, but not of pytest's summary."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __str__(self) -> str:
        return self._text

    def toterminal(self, tw: Any) -> None:
        tw.line(self._text)


def restore(report: pytest.TestReport, *, was_text: bool) -> None:
    """JSON has lists only; pytest and its plugins expect tuples here. Most of what describes an error became text."""
    report.sections = [(str(name), str(content)) for name, content in report.sections]
    report.user_properties = [(str(name), value) for name, value in report.user_properties]
    report.location = tuple(report.location)  # type: ignore[assignment]
    longrepr: Any = report.longrepr
    if isinstance(longrepr, list):
        report.longrepr = tuple(longrepr)
    elif isinstance(longrepr, str) and not was_text:
        report.longrepr = _Told(longrepr)  # type: ignore[assignment]


# what goes to JUnit's XML past the reports


def take_junit(item: pytest.Item) -> dict[str, Any]:
    """What fixtures told pytest's writer of JUnit's XML, and no report carries: given once, and then forgotten here.

    That is ``record_testsuite_property`` and ``record_xml_attribute``; {} if there is nothing.
    """
    xml = _junit(item.config)
    if xml is None:
        return {}
    properties, attributes = xml.global_properties, xml.node_reporter(_node_key(item)).attrs
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
        xml.node_reporter(_node_key(item)).add_attribute(name, str(value))


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


# the terminal


def shares_terminal(config: pytest.Config) -> bool:
    """Whether a test prints where pytest prints: then their lines must come in the order of an uncontained run."""
    from _pytest.capture import TeeCaptureIO

    captures = _captures(config).values()
    if not captures or any(isinstance(capture.tmpfile, TeeCaptureIO) for capture in captures):
        return True
    logging = config.pluginmanager.get_plugin("logging-plugin")
    return bool(config.option.setupshow or config.option.usepdb or (logging is not None and logging._log_cli_enabled()))


def terminal_line(config: pytest.Config) -> str | None:
    """What pytest has printed on the terminal's current line: where it goes on depends on that."""
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    return None if terminal is None else terminal._tw._current_line


def set_terminal_line(config: pytest.Config, line: object) -> None:
    """Take over `terminal_line` from another process that prints on the same terminal."""
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    if terminal is not None and isinstance(line, str):
        terminal._tw._current_line = line


# captured output


def pending_output(config: pytest.Config) -> dict[str, bytes]:
    """What pytest has captured of the set-up so far and not yet read: a fork must not lose it, nor show it twice."""
    pending = {}
    for name, capture in _captures(config).items():
        tmpfile = capture.tmpfile
        if isinstance(tmpfile, io.TextIOWrapper) and (file := _descriptor(tmpfile)) is not None:
            if size := os.fstat(file).st_size:
                pending[name] = os.pread(file, size, 0)
        elif text := tmpfile.getvalue():
            pending[name] = text.encode(errors="replace")
    return pending


def capture_into(config: pytest.Config, files: dict[str, int], snap: Callable[[str], str]) -> None:
    """In the forked child: capture into *files* (``{"out": fd, "err": fd}``) instead of what is shared with pytest.

    ``snap(name)`` then gives what came since it was last asked. pytest's own capture goes on as before.
    """
    from _pytest.capture import FDCapture, TeeCaptureIO

    for name, capture in _captures(config).items():
        fd = files[name]
        resumed = capture._state in ("started", "resumed") and capture._state != "suspended"
        if isinstance(capture, FDCapture):
            os.dup2(fd, capture.tmpfile.fileno(), inheritable=False)
            if resumed:
                os.dup2(fd, capture.targetfd)
        else:
            tee = capture.tmpfile._other if isinstance(capture.tmpfile, TeeCaptureIO) else None
            capture.tmpfile = _TextFile(fd, tee)
            if resumed:
                setattr(sys, capture.name, capture.tmpfile)
        capture.snap = functools.partial(snap, name)


class _TextFile(io.TextIOWrapper):
    """Text straight into a descriptor, and to the terminal as well under ``--capture=tee-sys``."""

    def __init__(self, fd: int, tee: Any) -> None:
        super().__init__(
            io.FileIO(os.dup(fd), "w"),
            encoding="utf-8",
            errors="replace",
            newline="",
            write_through=True,
        )
        self._tee = tee

    def write(self, text: str) -> int:
        if self._tee is not None:
            self._tee.write(text)
            self._tee.flush()  # or a crash would take it along
        return super().write(text)


def _captures(config: pytest.Config) -> dict[str, Any]:
    """pytest's own captures of stdout and stderr, by "out" and "err"; none under ``-s``."""
    manager = config.pluginmanager.get_plugin("capturemanager")
    if manager is None or not manager.is_globally_capturing():
        return {}
    capturing = manager._global_capturing
    found = {"out": capturing.out, "err": capturing.err}
    return {name: capture for name, capture in found.items() if hasattr(capture, "tmpfile")}


def _descriptor(file: io.TextIOWrapper) -> int | None:
    try:
        return file.fileno()
    except (OSError, ValueError):
        return None


# who sets up and tears down what, for leak detection in place

_MADE_BY_PYTEST = (
    ("_xunit_setup_module_fixture_", "setup_module"),
    ("_xunit_setup_class_fixture_", "setup_class"),
    ("_unittest_setUpClass_fixture_", "setUpClass"),
)


def used_fixtures(item: pytest.Item) -> list[Any]:
    """The definitions of all fixtures that *item* has asked for so far, those that fixtures asked for, too."""
    return list(getattr(getattr(item, "_request", None), "_fixture_defs", {}).values())


def named_fixtures(item: pytest.Item) -> list[Any]:
    """The definitions of the fixtures that *item* names, it or one of those, before it is set up."""
    info = getattr(item, "_fixtureinfo", None)
    return [definitions[-1] for definitions in info.name2fixturedefs.values() if definitions] if info else []


def held_by(definition: Any) -> list[object]:
    """The value of a fixture that is set up, its generator, which has its variables, and its finalizers."""
    result = definition.cached_result
    found: list[object] = [] if result is None else [result[0]]
    for finalizer in definition._finalizers:
        if isinstance(finalizer, functools.partial):
            found += [arg for arg in finalizer.args if isinstance(arg, types.GeneratorType | types.AsyncGeneratorType)]
        else:
            found.append(finalizer)
    return found


def fixture_name(definition: Any, request: Any) -> tuple[str, str]:
    """A fixture's name as its user knows it, and where it is defined: ``"db[pg]"``, ``"tests/conftest.py:12"``."""
    name, where = definition.argname, ""
    for prefix, word in _MADE_BY_PYTEST:
        if name.startswith(prefix):
            return word, request.node.nodeid
    code = getattr(inspect.unwrap(definition.func), "__code__", None)
    if code is not None:
        root = f"{request.config.rootpath}{os.sep}"
        where = f"{code.co_filename.removeprefix(root)}:{code.co_firstlineno}"
    index = getattr(request, "param_index", 0)
    return (f"{name}[{index}]" if hasattr(request, "param") else name), where


def set_up_around(item: pytest.Item, before: Callable[[pytest.Collector], Any], after: Callable[[Any], None]) -> None:
    """Call *before* and *after* round the set-up of those collectors above *item* that do something in it.

    A package's does: it calls the setup_module of its __init__.py, and that is no fixture.
    """
    active = item.session._setupstate.stack
    for node in item.listchain()[:-1]:
        if node not in active and type(node).setup is not pytest.Item.setup and isinstance(node, pytest.Collector):
            _wrap_setup(node, before, after)


def _wrap_setup(
    node: pytest.Collector, before: Callable[[pytest.Collector], Any], after: Callable[[Any], None]
) -> None:
    def setup() -> None:
        del vars(node)["setup"]
        token = before(node)
        try:
            node.setup()
        finally:
            after(token)

    vars(node)["setup"] = setup


# skipping from a fixture


def skip(reason: str) -> NoReturn:
    """Skip the test that is set up or runs, and say so of its own place and not of ours."""
    __tracebackhide__ = True
    raise pytest.skip.Exception(reason, _use_item_location=True)
