"""From a Debian without SikkerGuard, by apt, and back to it: what was there before is there afterwards, and no more."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from scripts.laboratory.network import API, laboratory
from scripts.laboratory.resolver import Resolver
from scripts.laboratory.tools import wait_for
from tests.host.base import SUITES
from tests.host.installed import install
from tests.host.service import KEY_FILE, SETTINGS_FILE, Service
from tests.standin.server import DEMO_KEY, Standin

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.host.guest import Guest

LISTED, LISTED_V6 = "203.0.113.221", "2001:db8:221::7"
INNOCENT = "203.0.113.229"
# What an administrator has there before, in the tables that SikkerGuard uses and under names like its own.
FOREIGN = (
    ("ipset", "create", "sikkerguardian", "hash:ip"),
    ("ipset", "add", "sikkerguardian", INNOCENT),
    *(
        (tool, "-t", "raw", "-A", "PREROUTING", "-i", "foreign", "-j", "ACCEPT")
        for tool in ("iptables-legacy", "ip6tables-legacy")
    ),
    ("iptables-legacy", "-t", "raw", "-A", "OUTPUT", "-p", "udp", "--dport", "9", "-j", "NOTRACK"),
    ("iptables", "-A", "INPUT", "-p", "tcp", "--dport", "9997", "-j", "DROP"),
)
SAVES = ("iptables-legacy-save", "ip6tables-legacy-save", "iptables-save", "ip6tables-save", "ipset save")


def everything(host: Guest) -> str:
    """All rules and sets as the stock tools print them, but for counters and the moments of printing."""
    texts = [host.run(*words.split()) for words in SAVES]
    lines = [line.partition(" [")[0] for text in texts for line in text.splitlines() if line[:1] != "#"]
    return "\n".join(lines)


@pytest.fixture
def service(bare: Guest) -> Iterator[Service]:
    """The service of a guest that it is yet to be installed on."""
    with laboratory(bare.network) as lab:
        lab.wait_for_host()
        standin = Standin(API, 80)
        with Resolver(lab.internet):
            lab.internet.inside(standin.start)
            yield Service(bare, lab, standin)
            standin.stop()


def ours(host: Guest) -> list[str]:
    """The files of the guest with our name, but for what dpkg and apt note of every package, and the journal's."""
    found = host.run("find", "/", "-xdev", "-name", "*sikker*", "-not", "-path", "/proc/*").splitlines()
    return [path for path in found if not re.match(r"/(var/lib/(dpkg|apt)|var/cache|var/log|sys)/", path)]


@pytest.mark.parametrize("suite", SUITES)
def test_a_purge_leaves_nothing(service: Service, package: Path) -> None:
    host = service.host
    host.run("env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "--yes", "iptables", "ipset", timeout=120)
    for words in FOREIGN:
        host.run(*words)
    before, users = everything(host), host.run("getent", "passwd") + host.run("getent", "group")
    assert ours(host) == []

    install(host, package)
    assert "sikkerguard" in host.run("getent", "passwd")
    service.start(LISTED, LISTED_V6)
    assert not service.lab.passes(LISTED)
    assert service.lab.reaches(INNOCENT)
    # Also where it has died, and so leaves its list in force.
    host.run("systemctl", "kill", "--signal=KILL", "sikkerguard")
    wait_for("its death", lambda: service.property("MainPID") == "0")
    host.run("apt-get", "remove", "--yes", "sikkerguard", timeout=120)
    assert everything(host) == before
    assert service.lab.reaches(LISTED)
    assert host.run("cat", KEY_FILE).strip() == DEMO_KEY
    assert "SIKKER_API_URL" in host.run("cat", SETTINGS_FILE)

    # Installed again, it goes on with what was kept.
    install(host, package)
    service.wait_until_active()
    assert not service.lab.passes(LISTED)
    host.run("apt-get", "purge", "--yes", "sikkerguard", timeout=120)
    assert everything(host) == before
    assert service.lab.reaches(LISTED)
    assert ours(host) == []
    assert host.run("getent", "passwd") + host.run("getent", "group") == users
    assert host.run("stat", "-c", "%a %U %G", "/run/xtables.lock").strip() == "600 root root"
    assert host.run("systemctl", "list-units", "--all", "--no-legend", "--plain", "sikkerguard*") == ""
    assert host.run("systemctl", "--failed", "--no-legend", "--plain") == ""
