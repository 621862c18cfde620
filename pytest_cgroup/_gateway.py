"""execnet gateways whose interpreter lives in a container: execnet's own, but for who starts the process."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import execnet

from ._isolated import subprocess

if TYPE_CHECKING:
    from collections.abc import Callable


class Inside(execnet.Group):
    """The gateways of one container.

    Args:
        popen: starts a process in it.
    """

    def __init__(self, popen: Callable[..., subprocess.Popen[Any]]) -> None:
        self._popen = popen
        super().__init__()

    @property
    def execmodel(self) -> Any:
        """As ever, but that its ``subprocess`` starts processes in the container."""
        return _Starting(super().execmodel, self._popen)


class _Starting:
    def __init__(self, model: Any, popen: Callable[..., subprocess.Popen[Any]]) -> None:
        self._model = model
        self.subprocess = SimpleNamespace(PIPE=subprocess.PIPE, Popen=popen)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)
