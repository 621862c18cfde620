"""Run Python as an ordinary user, really: no uid 0, no group, no capability, no entry in /etc/passwd.

    python tests/as_user.py -m pytest tests/kernel

The user gets a virtual environment with a copy of the installed packages, and a copy of this project, since both may
lie where only root may enter, and an interpreter of the same version that a user may execute.
Started by anyone but root, it runs the command as who it is.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_FIRST_UID = 61_234  # not 65534: inside a user namespace that number also stands for "not mapped"
_PROJECT = Path(__file__).resolve().parent.parent
_NOT_NEEDED = ("pip", "setuptools", "mypy", "mypyc", "ruff*", "sphinx", "babel")
_NOT_PROJECT = (".git", ".tox", ".venv", ".*_cache", ".cache", ".hypothesis", "__pycache__", "_build")
_INHERITED = ("LANG", "LC_ALL", "TERM", "COLUMNS", "CI")


class NoInterpreterError(Exception):
    """No Python of this version may be executed by an ordinary user."""


@dataclass(frozen=True, slots=True)
class OrdinaryUser:
    """Somebody without privilege, with a home directory that is writable and removed afterwards."""

    uid: int
    gid: int
    home: Path
    python: str
    environment: Mapping[str, str] = field(repr=False)

    def popen(self, argv: Sequence[str | os.PathLike[str]], **options: Any) -> subprocess.Popen[str]:
        """Start *argv* as this user in their home; *options* are those of `subprocess.Popen`, text unless said."""
        if os.geteuid() == 0:
            options = {"user": self.uid, "group": self.gid, "extra_groups": [], **options}
        env = {**self.environment, **options.pop("env", {})}
        return subprocess.Popen(argv, **{"text": True, "cwd": self.home, **options}, env=env)

    def run(
        self,
        argv: Sequence[str | os.PathLike[str]],
        *,
        timeout: float | None = 120,
        **options: Any,
    ) -> subprocess.CompletedProcess[str]:
        """Run *argv* as this user, output captured unless said otherwise."""
        options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        with self.popen(argv, **options) as process:
            try:
                stdout, stderr = process.communicate(timeout=timeout)
            except BaseException:
                process.kill()
                raise
        return subprocess.CompletedProcess(argv, process.returncode, stdout, stderr)


@contextlib.contextmanager
def ordinary_user() -> Iterator[OrdinaryUser]:
    """An ordinary user with a virtual environment in which the packages of this one are.

    Raises:
        NoInterpreterError: there is no Python that the user may execute.
    """
    environment = {key: os.environ[key] for key in _INHERITED if key in os.environ}
    with tempfile.TemporaryDirectory(prefix="ordinary-user-", dir="/tmp", ignore_cleanup_errors=True) as name:
        home = Path(name)
        environment |= {"HOME": name, "TMPDIR": name, "PATH": "/usr/local/bin:/usr/bin:/bin", "PYTHONSAFEPATH": "1"}
        if os.geteuid() != 0:
            environment["PYTHONPATH"] = os.environ.get("PYTHONPATH", "")
            yield OrdinaryUser(os.geteuid(), os.getegid(), home, sys.executable, environment)
            return
        uid = _free_uid()
        python = _make_venv(home / "venv", _python_for(uid))
        os.chown(home, uid, uid)
        yield OrdinaryUser(uid, uid, home, str(python), environment)


def _free_uid() -> int:
    uid = _FIRST_UID
    with contextlib.suppress(KeyError):
        while pwd.getpwuid(uid):
            uid += 1
    return uid


def _python_for(uid: int) -> str:
    """The interpreter, outside of any virtual environment, that this user may execute."""
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    tried = [f"{place}/python{version}" for place in (f"{sys.base_prefix}/bin", "/usr/local/bin", "/usr/bin")]
    for python in tried:
        with contextlib.suppress(OSError):
            run = subprocess.run([python, "-c", ""], user=uid, group=uid, extra_groups=[], cwd="/", check=False)
            if run.returncode == 0:
                return python
    raise NoInterpreterError(f"no Python {version} that uid {uid} may execute; tried {', '.join(tried)}")


def _make_venv(venv: Path, python: str) -> Path:
    """As `python -m venv` does it, filled with a copy of what is installed for this interpreter."""
    packages = venv / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    shutil.copytree(sysconfig.get_path("purelib"), packages, ignore=shutil.ignore_patterns(*_NOT_NEEDED))
    spec = importlib.util.find_spec("pytest_cgroup")
    if spec is not None and spec.origin and not (packages / "pytest_cgroup").exists():  # not installed, or "editable"
        source = Path(spec.origin).parent
        shutil.copytree(source, packages / "pytest_cgroup", ignore=shutil.ignore_patterns("__pycache__"))
    (venv / "pyvenv.cfg").write_text(f"home = {os.path.dirname(python)}\ninclude-system-site-packages = false\n")
    executable = venv / "bin" / "python"
    executable.parent.mkdir()
    executable.symlink_to(python)
    return executable


def _copy_project(user: OrdinaryUser) -> Path:
    project = user.home / "project"
    shutil.copytree(_PROJECT, project, ignore=shutil.ignore_patterns(*_NOT_PROJECT))
    if os.geteuid() == 0:
        for path in [project, *project.rglob("*")]:
            os.chown(path, user.uid, user.gid, follow_symlinks=False)
    return project


def main(arguments: Sequence[str]) -> int:
    """Run ``python ARGUMENTS`` as an ordinary user in a copy of the project; its exit status is ours."""
    with ordinary_user() as user:
        passed_on = {key: value for key, value in os.environ.items() if key.startswith("PYTEST_CGROUP_")}
        # What must work for root need not work for a user: that is said apart.
        passed_on["PYTEST_CGROUP_MUST_WORK"] = passed_on.pop("PYTEST_CGROUP_MUST_WORK_AS_USER", "")
        command = [user.python, *arguments]
        with user.popen(command, cwd=_copy_project(user), env=passed_on) as process:
            return process.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
