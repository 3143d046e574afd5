"""A guest on which the Debian package was installed once by apt: kept as an image, so that each test boots at once."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from tests.host.guest import guest

if TYPE_CHECKING:
    from pathlib import Path

    from tests.host.engine import Engine
    from tests.host.guest import Guest


def install(host: Guest, package: Path) -> None:
    """Install the package by apt, with what it declares to need and nothing else."""
    path = f"/root/{package.name}"
    host.copy(package, path)
    words = ("apt-get", "install", "--yes", "--no-install-recommends", path)
    host.run(*words, environment={"DEBIAN_FRONTEND": "noninteractive"}, timeout=180)
    host.run("rm", path)


def installed(engine: Engine, image: str, package: Path) -> str:
    """The name of the image of this guest with this package, which is made first if it is not there."""
    recipe = hashlib.sha256(image.encode() + package.read_bytes()).hexdigest()[:16]
    name = f"{image.partition(':')[0]}-installed:{recipe}"
    if not engine.has_only(name):
        with guest(engine, image) as host:
            install(host, package)
            # Those that boot from it are machines of their own, without a past.
            host.run("journalctl", "--relinquish-var")
            host.run("sh", "-c", "rm -rf /var/log/journal/* /var/lib/dbus/machine-id && : >/etc/machine-id")
            engine.docker("stop", host.container)
            engine.docker("commit", host.container, name, timeout=120)
    return name
