"""The Debian that the image is built on: made by debootstrap as Docker's own slim one is, under the very name that
the Dockerfile begins with, since a registry need not be within reach."""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.laboratory.machine import cache
from tests import debian
from tests.debian import as_image, debootstrap

if TYPE_CHECKING:
    from tests.host.engine import Engine

PROJECT = Path(__file__).parents[2]
# What is made by one recipe is not taken for what another one makes.
_RECIPE = "sikkerguard.recipe"
# What a slim image of Debian leaves out, and has dpkg leave out of all that is installed later.
_UNNEEDED = ("doc", "info", "lintian/overrides", "locale", "man", "groff")


def name() -> str:
    """The name in the Dockerfile, such as `debian:trixie-20260918-slim`."""
    (found,) = re.findall(r"^ARG BASE=(\S+)$", (PROJECT / "Dockerfile").read_text(), re.MULTILINE)
    return str(found)


def base(engine: Engine) -> str:
    """The name of the image, which is made first if it is not there, or was made by another recipe."""
    image = name()
    recipe = hashlib.sha256(Path(__file__).read_bytes() + Path(debian.__file__).read_bytes()).hexdigest()[:16]
    label = f'{{{{index .Config.Labels "{_RECIPE}"}}}}'
    if engine.docker("image", "inspect", "--format", label, image, check=False).strip() != recipe:
        for unfinished in cache().glob("slim-*"):
            shutil.rmtree(unfinished, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix="slim-", dir=cache(), ignore_cleanup_errors=True) as directory:
            root = Path(directory) / "root"
            _bootstrap(image.partition(":")[2].partition("-")[0], root)
            as_image(engine, root, image, f"LABEL {_RECIPE}={recipe}", 'CMD ["bash"]')
    return image


def _bootstrap(suite: str, root: Path) -> None:
    origin = debootstrap(suite, root)
    (root / "etc/apt/sources.list").write_text(f"deb {origin.mirror} {suite} main\n")
    if origin.proxy:
        (root / "etc/apt/apt.conf.d/proxy").write_text(f'Acquire::http::Proxy "{origin.proxy}";\n')
    _slim(root)


def _slim(root: Path) -> None:
    share = root / "usr/share"
    lines = [f"path-exclude /usr/share/{directory}/*" for directory in _UNNEEDED]
    lines.insert(1, "path-include /usr/share/doc/*/copyright")
    (root / "etc/dpkg/dpkg.cfg.d/docker").write_text("\n".join(lines) + "\n")
    for path in [path for directory in _UNNEEDED for path in (share / directory).glob("**/*")]:
        if (path.is_symlink() or path.is_file()) and path.name != "copyright":
            path.unlink()
    for pattern in ("var/cache/apt/archives/*.deb", "var/lib/apt/lists/*_*", "var/log/*.log", "etc/resolv.conf"):
        for path in root.glob(pattern):
            path.unlink()
