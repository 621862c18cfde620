"""The cache directory, its lock, and outside programs that end with the rig."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Final

PACKAGES: Final[dict[str, str]] = {
    "apt-get": "apt",
    "dpkg": "dpkg",
    "mke2fs": "e2fsprogs",
    "mmdebstrap": "mmdebstrap",
    "setpriv": "util-linux",
    "taskset": "util-linux",
    "unshare": "util-linux",
    "xz": "xz-utils",
    "zstd": "zstd",
}
"""The Debian package of each outside program that the rig calls."""


class Unavailable(Exception):
    """This machine cannot make the guest; the text says why and what to do.  The tests were *not checked*."""


def say(text: str) -> None:
    """Tell the person at the terminal; standard output belongs to the guest."""
    sys.stderr.write(f"hosts: {text}\n")
    sys.stderr.flush()


def end_on_signals() -> None:
    """Make SIGTERM and SIGHUP end the program as SIGINT does: by an exception that cleans up."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))


def require(*tools: str) -> None:
    """Raise Unavailable with the packages to install if a program is missing."""
    missing = sorted({PACKAGES[tool] for tool in tools if which(tool) is None})
    if missing:
        raise Unavailable(f"missing tools; apt-get install --no-install-recommends {' '.join(missing)}")


def which(tool: str) -> str | None:
    """The program's path; an ordinary user's PATH often lacks the sbin directories."""
    return shutil.which(tool, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")


def cache() -> Path:
    """Where kernels, images and installed packages are kept between runs."""
    chosen = os.environ.get("PYTEST_CGROUP_GUESTS")
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    directory = Path(chosen) if chosen else base / "pytest-cgroup-guests"
    directory.mkdir(parents=True, exist_ok=True)
    return directory


@contextlib.contextmanager
def locked() -> Iterator[None]:
    """Only one rig at a time fills the cache."""
    with open(cache() / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def run(
    *command: str | Path,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdout: IO[bytes] | int = subprocess.DEVNULL,
    stderr: IO[bytes] | int | None = None,
) -> None:
    """Run a build step to its end; whatever interrupts the rig ends the step's whole process group first.

    Raises Unavailable if it fails.
    """
    words = [str(word) for word in command]
    words[0] = which(words[0]) or words[0]
    process = subprocess.Popen(words, cwd=cwd, env=env, stdout=stdout, stderr=stderr, start_new_session=True)
    try:
        status = process.wait()
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    if status:
        raise Unavailable(f"{' '.join(words[:3])} … ended with status {status}")


def output(command: Sequence[str | Path]) -> bytes:
    """What a short command prints; raises Unavailable if it fails."""
    try:
        return subprocess.run([str(word) for word in command], check=True, stdout=subprocess.PIPE).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise Unavailable(str(error)) from error
