"""Fixtures of the docker tier: the image, built once, and for each test a fresh host with Docker on it."""

from __future__ import annotations

import re
import signal
from typing import TYPE_CHECKING

import pytest

from scripts.laboratory.machine import cache, locked, log_of_all_namespaces
from scripts.laboratory.network import clear_after_the_dead, laboratory
from tests.docker.base import PROJECT, base
from tests.docker.engine import BUILDER, Daemon, running, turn
from tests.docker.host import DockerHost, docker_host
from tests.docker.tools import tools
from tests.host.conftest import machine

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.host.engine import Engine

# All that the building of an image needs of this machine: its network. No file of the project names it.
_OVERRIDE = "services: {sikkerguard: {build: {network: host}}}\n"
_BUILD_SECONDS = 600.0


@pytest.fixture(autouse=True, scope="session")
def _untouched() -> Iterator[None]:
    """The machine is afterwards as it was before, but for the cache."""
    before = machine()
    yield
    assert machine() == before


@pytest.fixture(scope="session")
def built(_untouched: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The directory of an engine that has the image, as `docker compose build` makes it. Whoever ends the tests by
    SIGTERM has everything cleaned up, as by Ctrl-C."""
    former = signal.signal(signal.SIGTERM, signal.default_int_handler)
    clear_after_the_dead()
    override = tmp_path_factory.mktemp("build") / "override.yml"
    override.write_text(_OVERRIDE)
    try:
        with turn() as directory, log_of_all_namespaces():
            with running(Daemon(directory, BUILDER)) as builder:
                base(builder.engine)
                tools(builder.engine)
                files = ("--file", str(PROJECT / "docker-compose.yml"), "--file", str(override))
                builder.engine.docker("compose", *files, "build", "--quiet", timeout=_BUILD_SECONDS)
                builder.engine.docker("image", "prune", "--force")
            yield directory
    finally:
        signal.signal(signal.SIGTERM, former)


@pytest.fixture(scope="session")
def tool_directory(built: Path) -> Path:
    """Where the programs are that the machine's Debian does not have."""
    return built / "tools"


@pytest.fixture(scope="module")
def engine(built: Path) -> Iterator[Engine]:
    """An engine with the image, for tests that need no network."""
    with running(Daemon(built, BUILDER)) as started:
        yield started.engine


@pytest.fixture
def host(built: Path, tmp_path: Path) -> Iterator[DockerHost]:
    """A host with Docker, where SikkerGuard is not up yet. An error in its log fails the test."""
    # Not beside a test of the kernel tier that overwrites the kernel's log faster than anyone can read it.
    with (
        locked(cache() / "kernel-log-flood.lock", 120),
        laboratory() as lab,
        docker_host(built, lab, tmp_path) as made,
    ):
        yield made
        if made.docker("ps", "--all", "--quiet", "--filter=name=sikkerguard"):
            assert not re.search(r"^[0-9:]{8} (ERROR|CRITICAL)|Traceback", made.log(), re.MULTILINE), made.log()
