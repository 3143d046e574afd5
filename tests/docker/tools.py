"""Programs that this tier needs and the machine's Debian does not have: kept in the cache, and not installed."""

from __future__ import annotations

import hashlib
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.laboratory.tools import command
from tests.docker.base import base

if TYPE_CHECKING:
    from tests.host.engine import Engine

# Of Debian 13, which the image's base is.
_PACKAGES = ("docker-compose", "podman")
_COMPOSE = "usr/libexec/docker/cli-plugins/docker-compose"
# Which of their many files are kept.
_PATTERNS = (f"./{_COMPOSE}", "./usr/libexec/podman/quadlet")
# The schemas of Kubernetes, and a program that compares with them.
_SCHEMAS = "kubernetes-validate==1.37.0"


def tools(engine: Engine) -> Path:
    """The directory in which they are. The Docker client finds Compose from now on."""
    directory = engine.directory / "tools"
    recipe = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    made = directory / "recipe"
    if not made.exists() or made.read_text() != recipe:
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        _unpack(engine, directory)
        command(
            sys.executable, "-m", "pip", "install", "-q", "--target", str(directory / "python"), _SCHEMAS, timeout=300
        )
        made.write_text(recipe)
    plugins = engine.directory / "client/cli-plugins"
    plugins.mkdir(parents=True, exist_ok=True)
    (plugins / "docker-compose").unlink(missing_ok=True)
    (plugins / "docker-compose").symlink_to(directory / _COMPOSE)
    return directory


def quadlet(tools: Path, units: Path) -> str:
    """What Podman makes of the units in this directory; an error where it can't."""
    program = str(tools / "usr/libexec/podman/quadlet")
    return command(program, "-dryrun", "-no-kmsg-log", env={"QUADLET_UNIT_DIRS": str(units)})


def kubernetes(tools: Path, manifest: Path, version: str) -> str:
    """What is said of the resources in this file, by the schemas of this version; an error where one is not valid."""
    libraries = tools / "python"
    words = ("bin/kubernetes-validate", "--strict", "--kubernetes-version", version, str(manifest))
    return command(sys.executable, str(libraries / words[0]), *words[1:], env={"PYTHONPATH": str(libraries)})


def _unpack(engine: Engine, directory: Path) -> None:
    # By the apt of that Debian, which knows the keys of its own packages.
    script = f"apt-get update -qq && cd /srv && apt-get -o APT::Sandbox::User=root download {' '.join(_PACKAGES)}"
    run = ("run", "--rm", "--network=host", f"--volume={directory}:/srv")
    engine.docker(*run, base(engine), "sh", "-ec", script, timeout=300)
    for package in directory.glob("*.deb"):
        archive = directory / "archive.tar"
        command("sh", "-c", 'dpkg --fsys-tarfile "$1" >"$2"', "sh", str(package), str(archive))
        command("tar", "-C", str(directory), "-xf", str(archive), "--wildcards", *_PATTERNS, check=False)
        archive.unlink()
        package.unlink()
