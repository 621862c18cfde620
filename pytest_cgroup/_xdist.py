"""pytest-xdist's workers: why one was killed, and their limits: ini ``contained_worker = memory=2G,pids=500``.

Theory of operation. The kernel counts whom its OOM killer ends, in a worker's own cgroup where it has a limit, and on
the whole host: so the controller can say, on the test that a killed worker ran, that memory was short.

Where there are limits, xdist starts a worker's interpreter, and asks `pytest_configure_node` before it sends any work
there. Then the controller makes a cgroup below its own session's, limits it, and moves that interpreter in: whatever
the worker starts is born below. The cgroup stays the controller's, so what the kernel counted is there to be read when
the worker has died, and the controller's guard ends all of them if the controller is killed.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest

from ._isolated import os
from ._kernel_files import move_all, read_file
from ._kernel_text import flat_keyed
from ._ownership import LEAF
from .exceptions import CgroupError

if TYPE_CHECKING:
    from ._backends import Backend
    from ._backends.cgroup import CgroupTree
    from ._host import Host
    from ._spec import Spec

#: under this name a controller tells a worker why it has no limit
LACKING = "pytest_cgroup_lacking"


class CrashTeller:
    """The controller's plugin: says of a worker that was killed that it was the OOM killer, or may have been.

    Args:
        limits: those of the workers, where there are any.
    """

    def __init__(self, limits: WorkerLimits | None) -> None:
        self._limits = limits
        self._before = _oom_kills()

    @pytest.hookimpl(optionalhook=True)
    def pytest_handlecrashitem(self, report: Any) -> None:
        if not _was_killed(report.node.gateway):
            return
        before, self._before = self._before, _oom_kills()
        killed = None if before is None or self._before is None else self._before - before
        why = None if self._limits is None else self._limits.oom(report.node.gateway)
        if why is None and killed:
            one = "one process" if killed == 1 else f"{killed} processes"
            why = f"killed by SIGKILL, and the kernel's OOM killer has ended {one} of this host since the last one"
        if why is not None:
            report.longrepr = f"{report.longrepr}: {why}"


def _oom_kills() -> int | None:
    """How many processes of the whole host it has ended so far (proc_vmstat(5), since Linux 4.13)."""
    with contextlib.suppress(OSError):
        return flat_keyed(read_file("/proc/vmstat")).get("oom_kill")
    return None


class WorkerLimits:
    """The controller's plugin, where ``contained_worker`` is set."""

    def __init__(self, spec: Spec, host: Host, backend: Backend) -> None:
        self._spec = spec
        self._host = host
        self._backend = backend
        self._trees: dict[str, CgroupTree] = {}
        self._pid = os.getpid()

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        if (lacking := self._lacking(node.gateway.spec)) is None:
            try:
                self._limit(node.gateway)
            except (CgroupError, OSError) as error:
                lacking = str(error)
        if lacking is not None:
            node.workerinput[LACKING] = f"contained_worker: {lacking}"

    def _lacking(self, spec: Any) -> str | None:
        """Why this worker can have no limit."""
        if not spec.popen or spec.via:
            return f"the worker {spec} is not started by this pytest, which can limit its own only: use --tx popen"
        if self._backend.name != "cgroup":
            return f"limits on a worker need a cgroup, and here is none ({self._backend.describe()})"
        missing = self._backend.missing(self._spec)
        return "; ".join(f"{name}: {why.reason} ({why.remedy})" for name, why in missing) or None

    def _limit(self, gateway: Any) -> None:
        tree: Any = self._backend.create(self._spec, f"worker-{gateway.id}")
        self._trees[gateway.id] = tree
        tree.started(0)
        tree.cgroup.adopt(gateway._rinfo().pid)

    def oom(self, gateway: Any) -> str | None:
        """Whether it was the OOM killer that ended a worker, and at which limit, as far as its cgroup tells."""
        tree = self._trees.get(gateway.id)
        if tree is None or (oom := tree.oom()) is None:
            return None
        limits = ", ".join(f"{name}={value}" for name, value in tree.limits.items())
        own = f"at its own limit (contained_worker: {limits})"
        where = own if oom == "oom" else "not at its own limit: a cgroup above or the host ran out"
        return f"out of memory, killed by the kernel's OOM killer {where}"

    def pytest_unconfigure(self) -> None:
        if os.getpid() != self._pid:
            return
        for tree in self._trees.values():
            for directory in tree.cgroup.directories:
                leaf = f"{os.path.dirname(directory)}/{LEAF}"
                home = leaf if os.path.isdir(leaf) else os.path.dirname(os.path.dirname(directory))
                with contextlib.suppress(OSError):
                    move_all(directory, home)  # who is nobody's leak, and lives on
            with contextlib.suppress(CgroupError):
                tree.remove()
        self._trees.clear()


def _was_killed(gateway: Any) -> bool:
    """Whether the interpreter ended by SIGKILL, as far as execnet lets us know."""
    popen = getattr(getattr(gateway, "_io", None), "popen", None)
    if popen is None:
        return True
    with contextlib.suppress(Exception):  # it has closed its pipe, and may take a moment to be gone
        return bool(popen.wait(5) == -9)
    return False
