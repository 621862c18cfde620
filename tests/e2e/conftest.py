"""Where inner runs are started that are to be killed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pytest_cgroup._recover import NO_RECOVERY
from tests.e2e.stage import Stage


@pytest.fixture
def with_recovery(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inner runs clean up after dead ones."""
    monkeypatch.delenv(NO_RECOVERY)


@pytest.fixture(params=[pytest.param("root", marks=pytest.mark.requires("root")), "user"])
def stage(request: pytest.FixtureRequest, tmp_path: Path) -> Stage:
    if request.param == "root":
        return Stage(tmp_path, None)
    user = request.getfixturevalue("unprivileged")
    path = user.home / tmp_path.name
    path.mkdir(exist_ok=True)
    if os.geteuid() == 0:
        os.chown(path, user.uid, user.gid)
    return Stage(path, user)


@pytest.fixture
def root(tmp_path: Path) -> Stage:
    """Whoever runs the tests."""
    return Stage(tmp_path, None)
