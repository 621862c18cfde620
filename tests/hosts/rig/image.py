"""The guest's root disk: a minimal Debian with systemd, an ordinary user, and Python without packages."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Final

from .debian import archive
from .settings import UIDS, Engine, Suite
from .tools import Unavailable, cache, locked, require, run, say

SIZE_MIB: Final = 1500  # sparse
LEFT_OUT: Final = ("man", "doc", "locale", "info")

FILES: Final = Path(__file__).parent / "files"
PACKAGES: Final = (FILES / "packages").read_text().split()
ENGINE_PACKAGES: Final[dict[Engine, list[str]]] = {
    "": [],
    "podman": ["podman", "crun"],
    "docker": ["docker.io", "docker-cli"],
}
MASKED: Final = (FILES / "masked-units").read_text().split()  # they only cost time in a guest that lives for a command
PROGRAMS: Final = {"init": "usr/local/sbin/guest-init", "guest-job": "usr/local/sbin/guest-job"}
UNITS: Final = {
    "guest.target": "etc/systemd/system/guest.target",
    "guest.service": "etc/systemd/system/guest.service",
    "delegate.conf": "etc/systemd/system/user@.service.d/delegate.conf",
}
TEXTS: Final = {
    "etc/machine-id": "0123456789abcdef0123456789abcdef\n",
    "etc/hostname": "guest\n",
    "etc/hosts": "127.0.0.1 localhost guest\n",
    "etc/fstab": "",
    "var/lib/systemd/linger/tester": "",
}


def image(suite: Suite, engine: Engine = "") -> Path:
    """The suite's image, with a container engine or without, built (about 45 s, as root) unless it is in the cache."""
    path = cache() / file_name(suite, engine)
    with locked():
        if not path.exists():
            build(suite, engine, path)
    return path


def file_name(suite: Suite, engine: Engine = "") -> str:
    """It stands for everything that goes into the image: another recipe, another file."""
    ours = [(FILES / name).read_text() for name in (*PROGRAMS, *UNITS)]
    recipe = repr((suite, PACKAGES + ENGINE_PACKAGES[engine], LEFT_OUT, MASKED, TEXTS, ours))
    return f"image-{_kind(suite, engine)}-{hashlib.sha256(recipe.encode()).hexdigest()[:10]}.ext4"


def _kind(suite: Suite, engine: Engine) -> str:
    return f"{suite}+{engine}" if engine else suite


def build(suite: Suite, engine: Engine, path: Path) -> None:
    require("mmdebstrap", "mke2fs")
    if os.geteuid() != 0:
        raise Unavailable(f"the {suite} image is not built yet, and building it needs root (once)")
    say(f"building {path.name}")
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="root-", dir=cache()) as scratch:
        root = Path(scratch, "root")
        log = path.with_suffix(".log")
        with open(log, "wb") as stream:
            try:
                run(
                    "mmdebstrap",
                    "--variant=minbase",
                    *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in LEFT_OUT),
                    '--aptopt=APT::Install-Recommends "0"',
                    f"--include={','.join(PACKAGES + ENGINE_PACKAGES[engine])}",
                    suite,
                    root,
                    archive(),
                    stdout=stream,
                    stderr=stream,
                )
            except Unavailable as error:
                raise Unavailable(f"{error}; see {log}") from None
        run("chroot", root, "useradd", "-m", "-u", str(UIDS["tester"]), "-s", "/bin/bash", "tester")
        furnish(root)
        disk = Path(scratch, "disk")
        with open(disk, "wb") as stream:
            stream.truncate(SIZE_MIB << 20)
        options = ["-O", "^has_journal,^metadata_csum", "-E", "lazy_itable_init=1"]
        run("mke2fs", "-q", "-t", "ext4", *options, "-d", root, disk)
        for old in cache().glob(f"image-{_kind(suite, engine)}-*.ext4"):
            old.unlink()  # a guest that runs from it keeps its open file
        disk.rename(path)
    say(f"built in {time.monotonic() - started:.0f} s")


def furnish(root: Path) -> None:
    """Our own files, into the unpacked system."""
    for name, target in {**PROGRAMS, **UNITS}.items():
        place(root / target, (FILES / name).read_text())
    for target in PROGRAMS.values():
        (root / target).chmod(0o755)
    for target, text in TEXTS.items():
        place(root / target, text)
    for unit in MASKED:
        link = root / "etc/systemd/system" / unit
        link.unlink(missing_ok=True)
        link.symlink_to("/dev/null")
    for directory in ("var/lib/apt/lists", "var/cache/apt"):
        shutil.rmtree(root / directory, ignore_errors=True)


def place(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
