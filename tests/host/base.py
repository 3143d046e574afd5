"""The Debian that guests boot: made once by debootstrap, then kept as an image of the tests' Docker Engine.

It is as small as a server gets, and has no network to install anything by: what SikkerGuard needs, and the programs it
gets along with, lie in a repository of its own. So whatever a test installs was declared to be needed.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.laboratory.machine import cache
from scripts.laboratory.tools import command
from tests import debian
from tests.debian import as_image, debootstrap, run_contained
from tests.host import network

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.debian import Origin
    from tests.host.engine import Engine

SUITES = ("bookworm", "trixie")

# A server before anything is installed on it: in particular no Python, no iptables and no ipset.
_PACKAGES = (
    *("systemd", "systemd-sysv", "dbus", "procps", "util-linux", "iproute2", "iputils-ping", "ca-certificates"),
)
# The directory of the image's own repository.
_REPOSITORY = "srv/packages"
# What the repository is for, each with all that it needs; some of these can't be installed beside each other.
_SERVED = (
    (
        *("python3-iptables", "python3-pyroute2", "python3-httpx", "python3-h11", "python3-systemd"),
        *("python3-sdnotify", "iptables", "ipset"),
    ),
    ("--no-install-recommends", "ufw"),
    ("--no-install-recommends", "iptables-persistent"),
    ("--no-install-recommends", "firewalld"),
    ("--no-install-recommends", "logcheck"),
)


def base(engine: Engine, suite: str) -> str:
    """The name of the suite's image, which is made first if it is not there, or was made by another recipe."""
    recipe = hashlib.sha256()
    for module in (__file__, network.__file__, debian.__file__):
        recipe.update(Path(module).read_bytes())
    name = f"sikkerguard-guest-{suite}:{recipe.hexdigest()[:16]}"
    if not engine.has_only(name):
        for unfinished in cache().glob("base-*"):
            shutil.rmtree(unfinished, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix="base-", dir=cache(), ignore_cleanup_errors=True) as directory:
            root = Path(directory) / "root"
            bootstrap(suite, root)
            network.configure(root)
            as_image(engine, root, name)
    return name


def bootstrap(suite: str, root: Path, extra: Sequence[str] = ()) -> None:
    """Make a directory with a Debian in it, with these packages too, and with the repository for what comes later."""
    _serve(suite, root, debootstrap(suite, root, (*_PACKAGES, *extra)))
    _clear(root)


def _serve(suite: str, root: Path, origin: Origin) -> None:
    """Fill the image's repository, and make it the only one that its apt knows."""
    packages, sources = root / _REPOSITORY, root / "etc/apt/sources.list"
    (packages / "partial").mkdir(parents=True)
    sources.write_text(f"deb {origin.mirror} {suite} main\n")
    options = ("-o", f"Acquire::http::Proxy={origin.proxy}") * bool(origin.proxy)
    # Its own apt looks for its own suite, and knows the keys of that.
    apt = ("chroot", str(root), "apt-get", "-o", "Acquire::Languages=none", *options)
    run_contained(*apt, "update")
    for wanted in _SERVED:
        run_contained(
            *apt, "-o", f"Dir::Cache::archives=/{_REPOSITORY}", "--yes", "--download-only", "install", *wanted
        )
    shutil.rmtree(packages / "partial")
    (packages / "lock").unlink()
    shutil.rmtree(root / "var/lib/apt/lists")
    (packages / "Packages").write_text(command("env", "-C", str(packages), "dpkg-scanpackages", "--multiversion", "."))
    sources.write_text(f"deb [trusted=yes] file:/{_REPOSITORY} ./\n")
    run_contained(*apt, "update")


def _clear(root: Path) -> None:
    """Leave nothing of the machine that the image is made on, and nothing that makes two guests the same machine."""
    for package in (root / "var/cache/apt/archives").glob("*.deb"):
        package.unlink()
    for name in ("etc/resolv.conf", "etc/hostname", "var/log/bootstrap.log", "var/lib/dbus/machine-id"):
        (root / name).unlink(missing_ok=True)
    (root / "etc/machine-id").write_text("")
