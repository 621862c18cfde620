"""Layers of what was asked, and what is refused before a container is made."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from pytest_cgroup._config import _without, check_here, merged
from pytest_cgroup._settings import _count
from pytest_cgroup._spec import Spec
from pytest_cgroup.exceptions import SpecError


def test_without_a_layer_nothing_is_asked() -> None:
    assert merged(()) == Spec()


def test_a_later_layer_wins() -> None:
    spec = merged((("ini", {"pids": 1, "cpu": 1.0}), ("--contained", {"pids": 2}), ("marker", {"timeout": 3.0})))
    assert (spec.pids, spec.cpu, spec.timeout) == (2, 1.0, 3.0)


def test_a_contradiction_names_every_place() -> None:
    with pytest.raises(SpecError) as caught:
        merged((("ini", {"memory": 4096}), ("marker", {"memory_high": 8192})))
    assert caught.value.where == "ini and marker"


def test_paths_and_accounts_are_looked_for(tmp_path: Path) -> None:
    there, gone = str(tmp_path), str(tmp_path / "gone")
    check_here(Spec(readonly=(there,), hidden=(there,)), ())
    for field in ("readonly", "hidden"):
        with pytest.raises(SpecError, match="no such path") as caught:
            check_here(Spec(**{field: (there, gone)}), (("ini", {}), ("marker", {field: (there, gone)})))  # type: ignore[arg-type]
        assert (caught.value.field, caught.value.value, caught.value.where) == (field, gone, "marker")
    for field in ("user", "group"):
        with pytest.raises(SpecError, match=f"no such {field}") as caught:
            check_here(Spec(**{field: "nobody-such"}), (("ini", {field: "nobody-such"}),))  # type: ignore[arg-type]
        assert (caught.value.field, caught.value.where) == (field, "ini")


def test_a_dangling_link_is_a_path_that_exists(tmp_path: Path) -> None:
    """What becomes of it is said where the container is entered."""
    tmp_path.joinpath("link").symlink_to("nowhere")
    check_here(Spec(readonly=(str(tmp_path / "link"),)), ())


def test_what_needs_a_missing_field_goes_with_it() -> None:
    spec = merged((("marker", {"private_tmp": True, "hostname": "x", "readonly": ("/",), "pids": 5, "pid_ns": True}),))
    assert _without(spec, ["mount_ns", "uts_ns"]) == Spec(pids=5)
    assert _without(spec, ["pids"]).private_tmp


@pytest.mark.parametrize(("text", "number"), [("0", 0), ("10", 10), ("007", 7)])
def test_a_count(text: str, number: int) -> None:
    assert _count(text) == number


@pytest.mark.parametrize("text", ["", "-1", "1.5", "x", "\u0661", " 1", "1e3"])
def test_no_count(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is no number from 0 on"):
        _count(text)
