"""What the contained tests of a run share: the backend, the files they print into, the names of their containers."""

from __future__ import annotations

import gc
import re
import sys
from typing import TYPE_CHECKING

from . import _seam
from ._container import Container
from ._guard import CONTROLLER, watch_over
from ._isolated import os, threading
from ._output import Output
from ._settings import asks_for_containers
from .exceptions import ContainedWarning

if TYPE_CHECKING:
    import pytest

    from ._backends import Backend
    from ._host import Host
    from ._inside import Inside
    from ._spec import Spec

#: containers between two collections of all garbage
COLLECT_EVERY = 500
_IDLE_PLUGINS = ("pytest_cgroup", "execnet", "xdist", "pytest_rerunfailures", "pytest_timeout")


class Workshop:
    """Made with the first contained test of a run."""

    def __init__(self, config: pytest.Config, host: Host, backend: Backend) -> None:
        self.config = config
        self.host = host
        self.backend = backend
        self._unguarded: str | None = None
        if not config.option.collectonly:  # here, where file descriptor 2 is still the one that pytest was started with
            controller = getattr(config, "workerinput", {}).get(CONTROLLER)
            self._unguarded = watch_over(host, processes=backend.needs_reaper, controller=controller)
        #: in a forked child: what it knows of itself
        self.inside: Inside | None = None
        #: in a child that was forked before its test's turn: that test
        self.begun_early: pytest.Item | None = None
        self.in_step = _seam.shares_terminal(config)
        self.rerunners = _seam.protocol_owners(config)
        #: containers that were begun before their turn
        self.early: list[Container] = []
        self._outputs: list[Output] = []
        self._lent: list[Output] = []
        self._count = 0
        self._warned_of_threads = False

    def close(self) -> None:
        """Close what was opened; in a forked child it is the parent's."""
        if self.inside is None:
            for output in (*self._outputs, *self._lent):
                output.close()

    def collect_garbage(self) -> None:
        """Now and then, as Python would: what was frozen is of the oldest generation after it, and was not counted."""
        if self._count % COLLECT_EVERY == 0 and gc.isenabled():
            gc.collect()

    @property
    def has_begun(self) -> bool:
        """Whether there was a container already."""
        return self._count > 0

    def lend_output(self) -> Output:
        """The files that a contained test prints into: one after the other has the same ones."""
        output = self._outputs.pop() if self._outputs else Output()
        self._lent.append(output)
        return output

    def take_back(self, output: Output) -> None:
        """Another one may have these files."""
        if output in self._lent:
            self._lent.remove(output)
            self._outputs.append(output)

    def new_container(self, item: pytest.Item, spec: Spec) -> Container:
        """A container for *item*, its name safe as a directory's whatever the test's id holds."""
        self._count += 1
        keep = (*self._kept_paths(item),) if spec.private_tmp else ()
        name = f"{self._count}-{_safe(item.name)}"
        nests = asks_for_containers(item)
        container = Container(spec, backend=self.backend, host=self.host, name=name, keep=keep, nests=nests)
        container.beside = self.early
        return container

    def _kept_paths(self, item: pytest.Item) -> list[str]:
        """What a test must still see below a private /tmp: its own tmp_path, its sources, the interpreter's files."""
        kept = [str(self.config.rootpath), str(self.config.invocation_params.dir), str(item.path.parent)]
        kept += [sys.prefix, sys.base_prefix, *(path for path in sys.path if path)]
        funcargs = getattr(item, "funcargs", None) or {}
        if "tmp_path_factory" in funcargs:
            kept.append(str(funcargs["tmp_path_factory"].getbasetemp()))
        return [path for path in dict.fromkeys(kept) if os.path.exists(path)]

    def warn_of_no_guard(self, item: pytest.Item) -> None:
        """One promise less holds for this run; said once."""
        why, self._unguarded = self._unguarded, None
        if why is not None:
            item.warn(ContainedWarning(why))

    def warn_of_threads(self, item: pytest.Item) -> None:
        """A thread that holds a lock at the fork leaves it locked in the child for ever; said once, with names."""
        if self._warned_of_threads or threading.active_count() == 1:
            return
        ours = threading.main_thread(), threading.current_thread()
        names = sorted(thread.name for thread in threading.enumerate() if thread not in ours and not _is_idle(thread))
        if names:
            self._warned_of_threads = True
            item.warn(
                ContainedWarning(
                    f"a contained test is forked while other threads live ({', '.join(names[:5])}): they do not run in "
                    "the test, and a lock that one of them holds stays locked there. Stop them before, start them in "
                    "the test, or give the test a timeout"
                )
            )


def _is_idle(thread: threading.Thread) -> bool:
    """A thread that every run with a certain plugin has, and that holds no lock a test could want."""
    modules = (type(thread).__module__, getattr(getattr(thread, "_target", None), "__module__", "") or "")
    return any(module.partition(".")[0] in _IDLE_PLUGINS for module in modules)


def _safe(name: str) -> str:
    """A test's name as a part of a directory's: it may hold slashes, dots, NUL, newlines and 10 kB."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", name)[:60].strip("_") or "test"
