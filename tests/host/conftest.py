"""Fixtures of the host tier: a freshly booted guest for each test, on the laboratory's internet.

A test is about Debian 12, and about others where it says so: `@pytest.mark.parametrize("suite", SUITES)`. With
`--suite trixie` all tests are about that one.
"""

from __future__ import annotations

import contextlib
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from scripts.laboratory.machine import cache, how_the_log_was, locked, log_of_all_namespaces
from scripts.laboratory.network import API, TAG, Laboratory, clear_after_the_dead, laboratory
from scripts.laboratory.resolver import Resolver
from scripts.laboratory.tools import command
from tests.host.base import SUITES, base
from tests.host.engine import Engine, engine
from tests.host.guest import Guest, guest
from tests.host.installed import installed
from tests.host.service import Service
from tests.standin.server import Standin

if TYPE_CHECKING:
    from collections.abc import Iterator

PROJECT = Path(__file__).parents[2]


@pytest.fixture(autouse=True, scope="session")
def _untouched() -> Iterator[None]:
    """The machine is afterwards as it was before, but for the cache."""
    before = machine()
    yield
    assert machine() == before


def machine() -> dict[str, str]:
    """What a Docker Engine, a booting systemd or a test of ours could have changed."""
    rules = ("iptables-legacy-save", "ip6tables-legacy-save", "iptables-nft-save", "ip6tables-nft-save")
    found = {words: command(*words.split()) for words in (*rules, "ipset save")}
    found = {
        name: "\n".join(line.partition(" [")[0] for line in text.splitlines() if line[:1] != "#")
        for name, text in found.items()
    }
    links = command("ip", "-brief", "link").splitlines()
    namespaces = command("ip", "netns", "list").splitlines()
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    settings = ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding")
    return found | {
        "links": "\n".join(line.split("@")[0].split()[0] for line in links),
        "namespaces": "\n".join(name for name in namespaces if name.startswith(TAG)),
        "mounts": "\n".join(line for line in mounts if "cgroup" in line or TAG in line or str(cache()) in line),
        "settings": "\n".join(f"{name}={Path('/proc/sys', name).read_text()}" for name in settings),
        "log switch": how_the_log_was(),
    }


@pytest.fixture(scope="session")
def docker(_untouched: None) -> Iterator[Engine]:
    """A Docker Engine of our own. Whoever ends the tests by SIGTERM has everything cleaned up, as by Ctrl-C."""
    former = signal.signal(signal.SIGTERM, signal.default_int_handler)
    clear_after_the_dead()
    try:
        with engine() as started, log_of_all_namespaces():
            yield started
    finally:
        signal.signal(signal.SIGTERM, former)


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Debian package of this checkout."""
    built = command(str(PROJECT / "scripts/deb"), str(tmp_path_factory.mktemp("deb")), timeout=300)
    return Path(built.splitlines()[-1])


def pytest_addoption(parser: pytest.Parser) -> None:
    """On the command line: which Debian."""
    parser.addoption("--suite", choices=SUITES, default=SUITES[0], help="the Debian that guests are")


@pytest.fixture
def suite(request: pytest.FixtureRequest) -> str:
    """Which Debian the guest is."""
    chosen: str = request.config.getoption("--suite")
    return chosen


@pytest.fixture
def bare(docker: Engine, suite: str) -> Iterator[Guest]:
    """A booted Debian, as it is before SikkerGuard is installed."""
    with _booted(docker, base(docker, suite)) as booted:
        yield booted


@pytest.fixture
def host(docker: Engine, suite: str, package: Path) -> Iterator[Guest]:
    """A booted Debian where SikkerGuard is installed, and waits for its key."""
    with _booted(docker, installed(docker, base(docker, suite), package)) as booted:
        yield booted


@contextlib.contextmanager
def _booted(docker: Engine, image: str) -> Iterator[Guest]:
    # Not beside a test of the kernel tier that overwrites the kernel's log faster than anyone can read it.
    with locked(cache() / "kernel-log-flood.lock", 120), guest(docker, image) as booted:
        yield booted


@pytest.fixture
def lab(host: Guest) -> Iterator[Laboratory]:
    """The laboratory around the guest, which has configured its network: this is the laboratory's `host`."""
    with laboratory(host.network) as made:
        made.wait_for_host()
        yield made


@pytest.fixture
def standin(lab: Laboratory) -> Iterator[Standin]:
    """SikkerAPI's stand-in, on the internet of the laboratory, where the name server is too."""
    server = Standin(API, 80)
    with Resolver(lab.internet):
        lab.internet.inside(server.start)
        yield server
        server.stop()


@pytest.fixture
def service(host: Guest, lab: Laboratory, standin: Standin) -> Iterator[Service]:
    """The service, not yet started."""
    made = Service(host, lab, standin)
    yield made
    assert not made.unexpected_errors(), made.log()
