"""Fixtures of the VM tier: for each suite one machine, which all tests of a module use in turn."""

from __future__ import annotations

import contextlib
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from scripts.laboratory.network import API, TAG, Laboratory, clear_after_the_dead
from scripts.laboratory.resolver import Resolver
from scripts.laboratory.tools import command
from sikkerguard.cli.demo import SAMPLE
from sikkerguard.cli.demo_server import load_list
from tests.host.base import SUITES
from tests.standin.entries import Entry
from tests.standin.server import Standin
from tests.vm.image import disk
from tests.vm.machine import Machine, machine, timed

if TYPE_CHECKING:
    from collections.abc import Iterator

PROJECT = Path(__file__).parents[2]
LISTED, LISTED_V6 = "203.0.113.7", "2001:db8:7::7"


@pytest.fixture(autouse=True, scope="session")
def _untouched() -> Iterator[None]:
    """The machine that this runs on is afterwards as it was before. SIGTERM cleans up as Ctrl-C does."""

    def look() -> list[str]:
        tools = ("iptables-legacy-save", "ip6tables-legacy-save", "iptables-nft-save", "ip6tables-nft-save")
        lines = "".join(command(tool) for tool in tools).splitlines()
        found = [line.partition(" [")[0] for line in lines if line[:1] != "#"] + command("ipset", "save").splitlines()
        links = [line.split()[0].partition("@")[0] for line in command("ip", "-brief", "link").splitlines()]
        return [*found, *links, *(line for line in command("ip", "netns", "list").splitlines() if line.startswith(TAG))]

    clear_after_the_dead()
    former = signal.signal(signal.SIGTERM, signal.default_int_handler)
    before = look()
    yield
    assert look() == before
    signal.signal(signal.SIGTERM, former)


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Debian package of this checkout."""
    with timed("the package is built"):
        built = command(str(PROJECT / "scripts/deb"), str(tmp_path_factory.mktemp("deb")), timeout=600)
    return Path(built.splitlines()[-1])


@pytest.fixture(scope="module", params=SUITES)
def suite(request: pytest.FixtureRequest) -> str:
    """Which Debian the machine is."""
    return str(request.param)


@pytest.fixture(scope="module")
def powered(suite: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Machine, Laboratory]]:
    """A booted machine, and the laboratory around it."""
    with timed(f"the disk of {suite} is there"):
        kept = disk(suite)
    with machine(kept, tmp_path_factory.mktemp(suite)) as (made, lab), Resolver(lab.internet):
        with timed(f"{suite} has booted"):
            made.boot()
            lab.wait_for_host(60)
        yield made, lab


@pytest.fixture(scope="module")
def lab(powered: tuple[Machine, Laboratory]) -> Laboratory:
    """The laboratory: its `host` is the machine."""
    return powered[1]


@pytest.fixture
def vm(powered: tuple[Machine, Laboratory]) -> Machine:
    """The machine, as the tests before have left it."""
    return powered[0]


@pytest.fixture(scope="module")
def standin(lab: Laboratory) -> Iterator[Standin]:
    """SikkerAPI's stand-in with its sample of a real list, and two addresses of ours at the top of it."""
    server = Standin(API, 80)
    server.replace(
        [Entry(LISTED, 100), Entry(LISTED_V6, 100), *(Entry(each.text, each.score) for each in load_list(SAMPLE))]
    )
    lab.internet.inside(server.start)
    yield server
    server.stop()


def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[Any]) -> None:
    """Show what a machine says of a test that has failed."""
    vm = getattr(item, "funcargs", {}).get("vm")
    if call.excinfo is not None and isinstance(vm, Machine):
        with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
            print("\n" + vm.run("journalctl", "--no-pager", "--lines=80", "--output=short-monotonic"))
