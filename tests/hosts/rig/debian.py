"""Packages of any Debian suite, from the archive that this machine's own apt uses, in an apt state of our own."""

from __future__ import annotations

import os
import re
from pathlib import Path

from .tools import Unavailable, cache, require, run

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


def archive() -> str:
    """The URL of the Debian archive in apt's sources; ``PYTEST_CGROUP_DEBIAN`` names another one."""
    if chosen := os.environ.get("PYTEST_CGROUP_DEBIAN"):
        return chosen
    etc = Path("/etc/apt")
    for path in (etc / "sources.list", *sorted((etc / "sources.list.d").glob("*"))):
        if path.is_file() and (url := archive_in(path.read_text())):
            return url
    raise Unavailable("no Debian archive in apt's sources; name one in PYTEST_CGROUP_DEBIAN (http://…/debian)")


def archive_in(text: str) -> str | None:
    """The first Debian archive of a sources file, of the one-line or of the deb822 kind."""
    match = re.search(r"^(?:URIs:|deb\s)\s*.*?(\w+://\S+/debian)/?(?:\s|$)", text, re.MULTILINE)
    return match[1] if match else None


def environment(suite: str) -> dict[str, str]:
    """The environment that points apt to our state of this suite, which is made at first use."""
    state = cache() / "apt" / suite
    conf = state / "apt.conf"
    env = {**os.environ, "APT_CONFIG": str(conf)}
    if not conf.exists():
        require("apt-get", "dpkg")
        if not Path(KEYRING).exists():
            raise Unavailable("missing keys; apt-get install --no-install-recommends debian-archive-keyring")
        for part in ("lists/partial", "cache/archives/partial"):
            (state / part).mkdir(parents=True, exist_ok=True)
        (state / "sources.list").write_text(f"deb [signed-by={KEYRING}] {archive()} {suite} main\n")
        conf.write_text(
            f'Dir::Etc::sourcelist "{state}/sources.list";\nDir::Etc::sourceparts "/dev/null";\n'
            f'Dir::State::lists "{state}/lists";\nDir::State::status "/dev/null";\nDir::Cache "{state}/cache";\n'
            'APT::Sandbox::User "root";\nAPT::Install-Recommends "0";\n'
        )
    return env


def download(suite: str, package: str) -> Path:
    """The package's .deb, from the cache or from the archive."""
    directory = cache() / "debs" / suite
    directory.mkdir(parents=True, exist_ok=True)
    if not list(directory.glob(f"{package}_*.deb")):
        env = environment(suite)
        run("apt-get", "-qq", "update", env=env)  # an old list names files that a moving suite no longer has
        run("apt-get", "-qq", "download", package, cwd=directory, env=env)
    return max(directory.glob(f"{package}_*.deb"))


def unpack(deb: Path, to: Path) -> Path:
    run("dpkg", "-x", deb, to)
    return to
