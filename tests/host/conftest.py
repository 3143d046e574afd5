"""Fixtures of the host tier: a freshly booted guest for each test, on the laboratory's internet."""

from __future__ import annotations

import json
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from sikkerguard.standin.entries import Entry
from sikkerguard.standin.server import DEMO_KEY, Standin
from tests.host.base import base
from tests.host.engine import Engine, engine
from tests.host.guest import CHECKOUT, Guest, guest
from tests.laboratory import (
    API,
    TAG,
    Laboratory,
    Resolver,
    cache,
    clear_after_the_dead,
    command,
    how_the_log_was,
    laboratory,
    locked,
    log_of_all_namespaces,
    wait_for,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True, scope="session")
def _untouched() -> Iterator[None]:
    """The machine is afterwards as it was before, but for the cache."""
    before = _machine()
    yield
    assert _machine() == before


def _machine() -> dict[str, str]:
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
def bookworm(docker: Engine) -> str:
    """The image of Debian 12."""
    return base(docker, "bookworm")


@pytest.fixture
def host(docker: Engine, bookworm: str) -> Iterator[Guest]:
    """A booted Debian 12."""
    # Not beside a test of the kernel tier that overwrites the kernel's log faster than anyone can read it.
    with locked(cache() / "kernel-log-flood.lock", 120), guest(docker, bookworm) as booted:
        yield booted


@pytest.fixture
def lab(host: Guest) -> Iterator[Laboratory]:
    """The laboratory around the guest: its `host` is the guest's network."""
    with laboratory(host.network) as made:
        yield made


@pytest.fixture
def standin(lab: Laboratory) -> Iterator[Standin]:
    """SikkerAPI's stand-in, on the internet of the laboratory, where the name server is too."""
    server = Standin(API, 80, control=True)
    with Resolver(lab.internet):
        lab.internet.inside(server.start)
        yield server
        server.stop()


# The checkout as a service; nobody needs to install anything for it.
UNIT = """\
[Unit]
Description=SikkerGuard, from a checkout

[Service]
Type=notify
ExecStart=/usr/bin/python3 -m sikkerguard run
StateDirectory=sikkerguard
StandardError=journal
"""


@dataclass
class Service:
    """SikkerGuard under systemd in the guest. An error in its log fails the test."""

    host: Guest
    lab: Laboratory
    standin: Standin
    environment: dict[str, str]
    _shown: dict[str, dict[str, Any]] = field(default_factory=dict)

    def start(self, *addresses: str) -> None:
        """Block these, and wait for READY."""
        self.standin.replace(map(Entry, addresses))
        variables = "".join(f"Environment={name}={value}\n" for name, value in self.environment.items())
        self.host.write("/etc/systemd/system/sikkerguard.service", UNIT + variables)
        self.host.run("systemctl", "daemon-reload")
        self.host.run("systemctl", "start", "sikkerguard", check=False)
        assert self.host.run("systemctl", "is-active", "sikkerguard", check=False) == "active\n", self.log()

    def status(self) -> dict[str, Any]:
        """What `sikkerguard status --json` prints in the guest."""
        words = ("python3", "-m", "sikkerguard", "status", "--json")
        found: dict[str, Any] = json.loads(self.host.run(*words, environment=self.environment))
        return found

    def shown(self, text: str) -> list[dict[str, Any]]:
        """The entries of the service with this text that the journal has had until now, also those that it has
        forgotten since an earlier look."""
        for entry in self.host.journal("--unit=sikkerguard"):
            self._shown.setdefault(entry["__CURSOR"], entry)
        return [entry for entry in self._shown.values() if text in entry["MESSAGE"]]

    def log(self) -> str:
        """All that the journal has had of the service and of systemd about it."""
        return "\n".join(str(entry["MESSAGE"]) for entry in self.shown(""))

    def wait_until_shown(self, text: str, seconds: float = 5.0) -> dict[str, Any]:
        """Wait for an entry with this text, and give the first one."""
        try:
            return wait_for(f"{text!r} in the journal", lambda: self.shown(text), seconds)[0]
        except AssertionError as error:
            raise AssertionError(f"{error}:\n{self.log()}") from None

    def dropped(self) -> int:
        """The packets that the kernel has dropped in our chain, as the stock tool prints them."""
        rules = self.host.run("iptables-legacy", "-t", "raw", "-L", "SIKKERGUARD", "-v", "-x", "-n").splitlines()
        (packets,) = [words[0] for rule in rules if (words := rule.split())[2:3] == ["DROP"]]
        return int(packets)


@pytest.fixture
def service(host: Guest, lab: Laboratory, standin: Standin) -> Iterator[Service]:
    """The service, not yet started."""
    environment = {
        "PYTHONPATH": CHECKOUT,
        "PYTHONDONTWRITEBYTECODE": "1",
        "SIKKER_API_URL": f"http://{API}",
        "SIKKER_API_KEY": DEMO_KEY,
        "SIKKER_LOG_SOURCE": "journald",
    }
    made = Service(host, lab, standin, environment)
    yield made
    log = made.log()
    assert not [entry for entry in made.shown("") if int(entry["PRIORITY"]) <= 3], log
    assert "Traceback" not in log
