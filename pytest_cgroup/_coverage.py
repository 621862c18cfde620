"""Lines that ran in a forked child count: its coverage data goes home through a file, and is merged into pytest's own.

No configuration of the user's is needed, and no second `coverage combine`: this works under pytest-cov and under
`coverage run -m pytest` alike.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import warnings
from typing import Any

from ._isolated import io, os


def _current() -> Any:
    coverage = sys.modules.get("coverage")
    return coverage.Coverage.current() if coverage is not None else None


def save_coverage(fd: int) -> bool:
    """In the child: write what was covered there to *fd*; whether anything was."""
    if (current := _current()) is None:
        return False
    import coverage

    current.stop()
    with tempfile.TemporaryDirectory(prefix="pytest-cgroup-") as directory:
        # A database of its own: the one inherited belongs to the parent, which has it open.
        data = coverage.CoverageData(os.path.join(directory, "coverage"))
        current._data = data
        current._collector.covdata = data
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a test that covers nothing is no news
            current.get_data()
        data.close()
        if not os.path.exists(data.data_filename()):
            return False
        with io.open(data.data_filename(), "rb") as saved, io.open(fd, "wb", closefd=False) as file:
            file.truncate(0)
            shutil.copyfileobj(saved, file)
    return True


def merge_coverage(fd: int) -> None:
    """In the parent: take in the data that a child wrote to *fd*."""
    import coverage

    if (current := _current()) is None:
        return
    with tempfile.NamedTemporaryFile(prefix="pytest-cgroup-coverage-") as file:
        os.lseek(fd, 0, os.SEEK_SET)
        with io.open(fd, "rb", closefd=False) as saved:
            shutil.copyfileobj(saved, file)
        file.flush()
        data = coverage.CoverageData(file.name)
        data.read()
        current.get_data().update(data)
        data.close()
