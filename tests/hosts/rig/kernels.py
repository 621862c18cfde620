"""User-mode Linux kernels out of Debian packages, made to run on any host."""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .debian import download, unpack
from .settings import KERNEL_SUITES, Kernel
from .tools import Unavailable, cache, locked, output, require

LOADER: Final = b"/lib64/ld-linux-x86-64.so.2\0"
LOADER_DESCRIPTOR: Final = 9
MODULES: Final = ("overlay", "fuse", "autofs4", "llc", "stp", "crc-ccitt", "ipv6", "bridge", "veth")
"""What a guest loads, in this order: what another one needs comes first."""
STAMP: Final = json.dumps({"modules": MODULES}) + "\n"
DECOMPRESSORS: Final[dict[str, tuple[str, ...]]] = {".xz": ("xz", "-dc"), ".zst": ("zstd", "-qdc"), ".ko": ("cat",)}


@dataclass(frozen=True, slots=True)
class KernelFiles:
    """A kernel in the cache: the program, the C library it wants, the modules for the guest to load."""

    directory: Path

    @property
    def program(self) -> Path:
        return self.directory / "linux"

    @property
    def library(self) -> Path:
        return self.directory / "lib"

    @property
    def modules(self) -> list[Path]:
        return sorted((self.directory / "mods").glob("*.ko"))


def kernel(name: Kernel) -> KernelFiles:
    """The kernel, downloaded and prepared unless it is in the cache."""
    directory = cache() / "kernel" / name
    with locked():
        stamp = directory / "kernel.json"
        if not stamp.exists() or stamp.read_text() != STAMP:
            prepare(name, directory)
    return KernelFiles(directory)


def prepare(name: Kernel, directory: Path) -> None:
    require("apt-get", "dpkg", "xz", "zstd")
    suite = KERNEL_SUITES[name]
    shutil.rmtree(directory, ignore_errors=True)
    (directory / "lib").mkdir(parents=True)
    (directory / "mods").mkdir()
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        package = unpack(download(suite, "user-mode-linux"), Path(scratch, "kernel"))
        libc = unpack(download(suite, "libc6"), Path(scratch, "libc"))
        libraries = next(path.parent for path in libc.rglob("libc.so.6"))
        shutil.copy(libraries / "libc.so.6", directory / "lib")
        shutil.copy(libraries / "ld-linux-x86-64.so.2", directory / "lib/ld.so")
        (directory / "linux").write_bytes(with_own_loader((package / "usr/bin/linux.uml").read_bytes()))
        (directory / "linux").chmod(0o755)
        for number, module in enumerate(MODULES):
            for path in package.rglob(f"{module}.ko*"):  # none: it is built in
                content = output([*DECOMPRESSORS[path.suffix], path])
                (directory / "mods" / f"{number}-{module}.ko").write_bytes(content)
    (directory / "kernel.json").write_text(STAMP)


def with_own_loader(program: bytes) -> bytes:
    """The program with its ELF interpreter replaced by an inherited descriptor, for hosts whose C library is older.

    Starting it *through* a loader will not do: user-mode Linux derives its memory map from the program break.
    """
    loader = f"/proc/self/fd/{LOADER_DESCRIPTOR}\0".encode().ljust(len(LOADER), b"\0")
    if program.count(LOADER) != 1:
        raise Unavailable("this user-mode Linux names its loader in a way that the rig does not know")
    return program.replace(LOADER, loader)
