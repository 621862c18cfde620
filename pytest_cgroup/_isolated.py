"""The standard library as it was before the first test: copies of the modules that tests replace parts of.

A test that mocks `os.write`, freezes `time`, or puts a file system of its own in the place of the real one, still has
to be reported, ended, and looked after. So our modules take these modules from here. What is looked up in a copy
is what stood there when this plugin was imported, or, if nobody had imported it by then, when we first asked for it.

The copies have names of their own: some who replace a module look through all others for it, by its name. And what is
Python in `os`, `socket` and `subprocess` calls the copies of others, and not what stands in their modules by now.
"""

from __future__ import annotations

import sys
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import io as io
    import json as json
    import os as os
    import select as select
    import signal as signal
    import socket as socket
    import subprocess as subprocess
    import threading as threading
    import time as time

_NAMES = ("io", "json", "os", "select", "signal", "socket", "subprocess", "threading", "time")
_REBOUND = ("os", "socket", "subprocess")


def _copy(module: ModuleType) -> ModuleType:
    copy = ModuleType(f"{__name__}.{module.__name__}")
    inside = vars(copy)
    inside.update({**vars(module), "__name__": copy.__name__})
    if module.__name__ in _REBOUND:
        inside.update({name: _rebound(value, module, inside) for name, value in inside.items()})
    if isinstance(path := inside.get("path"), ModuleType):
        inside["path"] = _copy(path)
    return copy


def _rebound(value: object, module: ModuleType, inside: dict[str, object]) -> object:
    if isinstance(value, ModuleType) and value.__name__ in _NAMES:
        return _had(value.__name__)
    if isinstance(value, FunctionType) and value.__globals__ is vars(module):
        function = FunctionType(value.__code__, inside, value.__name__, value.__defaults__, value.__closure__)
        function.__kwdefaults__ = value.__kwdefaults__
        return function
    if isinstance(value, type) and (value.__module__, value.__name__) == ("subprocess", "Popen"):
        methods = {name: one for name, one in vars(value).items() if isinstance(one, FunctionType)}
        return type("Popen", (value,), {name: _rebound(one, module, inside) for name, one in methods.items()})
    return value


def are_threads_replaced() -> bool:
    """Whether somebody has put something else in the place of threads."""
    return vars(sys.modules["threading"])["get_ident"] is not _had("threading").get_ident


def _had(name: str) -> ModuleType:
    """The copy, made now if there is none."""
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name not in globals():
        globals()[name] = _copy(__import__(name))
    return globals()[name]  # type: ignore[no-any-return]


for _name in _NAMES:
    if _name in sys.modules:
        _had(_name)
if not TYPE_CHECKING:  # which takes any name for one of a module that has this
    __getattr__ = _had
