"""Debian in a directory, by debootstrap, from where this machine gets its own packages; and as an image of Docker's."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.laboratory.tools import command

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.host.engine import Engine

# For a machine that knows no mirror for itself; what everyone is redirected from.
_EVERYONES = "http://deb.debian.org/debian"


@dataclass(frozen=True)
class Origin:
    """Where packages come from: a mirror's address, and a proxy's or nothing."""

    mirror: str
    proxy: str


def debootstrap(suite: str, root: Path, packages: Sequence[str] = ()) -> Origin:
    """Make a directory with a minimal Debian and these packages in it."""
    settings = command("apt-config", "shell", "proxy", "Acquire::http::Proxy")
    origin = Origin(_mirror_of(suite), settings.partition("'")[2].rpartition("'")[0])
    run_contained(
        *("env", f"http_proxy={origin.proxy}") * bool(origin.proxy),
        *("debootstrap", "--variant=minbase"),
        *(f"--include={','.join(packages)}",) * bool(packages),
        *(suite, str(root), origin.mirror),
    )
    return origin


def run_contained(*words: str) -> None:
    """Run a program; what it mounts and starts is gone with it, also when it is killed."""
    contained = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "slave", "--")
    done = subprocess.run(
        (*contained, *words), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=900, check=False
    )
    if done.returncode:
        raise AssertionError(f"{' '.join(words)} ended with {done.returncode}:\n{(done.stdout + done.stderr)[-4000:]}")


def as_image(engine: Engine, root: Path, name: str, *changes: str) -> None:
    """Import the directory as an image, with these instructions of a Dockerfile."""
    options = [word for change in changes for word in ("--change", change)]
    with subprocess.Popen(("tar", "-C", str(root), "-c", "."), stdout=subprocess.PIPE) as archive:
        words = (*engine.client, "import", *options, "-", name)
        subprocess.run(words, stdin=archive.stdout, capture_output=True, timeout=300, check=True)
    assert archive.returncode == 0


def _mirror_of(suite: str) -> str:
    """Where this machine gets its own packages, if that is a mirror of Debian by HTTP; it has the other suites too."""
    targets = command(
        "apt-get", "indextargets", "--format", "$(RELEASE) $(COMPONENT) $(REPO_URI)", "Created-By: Packages"
    )
    found: dict[str, str] = {}
    for line in targets.splitlines():
        release, component, address = line.split(maxsplit=2)
        if component == "main" and address.startswith("http"):
            found.setdefault(release, address)
    if suite in found:
        return found[suite]
    is_debian = "\nID=debian\n" in "\n" + Path("/etc/os-release").read_text()
    # Other suites of the same mirror: not those of updates, which have an archive of their own.
    return next((address for release, address in found.items() if is_debian and "-" not in release), _EVERYONES)
