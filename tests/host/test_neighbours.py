"""Beside other firewalls of Debian, which load, flush and save rules of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scripts.laboratory.tools import wait_for
from tests.kernel.traffic import Traffic

if TYPE_CHECKING:
    from tests.host.guest import Guest
    from tests.host.service import Service

LISTED, LISTED_V6 = "203.0.113.241", "2001:db8:241::7"
INNOCENT, INNOCENT_V6 = "203.0.113.249", "2001:db8:249::9"
SAVED = "/etc/iptables/rules.v4"


def install(host: Guest, *packages: str) -> None:
    """Install these from the guest's repository, as they come."""
    words = ("apt-get", "install", "--yes", "--no-install-recommends", *packages)
    host.run("env", "DEBIAN_FRONTEND=noninteractive", *words, timeout=120)


def blocks(service: Service) -> bool:
    """Whether listed sources are blocked and others are not, both families."""
    lab = service.lab
    return not (lab.passes(LISTED) or lab.passes(LISTED_V6)) and lab.reaches(INNOCENT) and lab.reaches(INNOCENT_V6)


def test_ufw_and_firewalld_change_nothing(service: Service) -> None:
    host = service.host
    install(host, "ufw", "firewalld")
    host.run("systemctl", "stop", "firewalld")
    service.start(LISTED, LISTED_V6)
    with Traffic(service.lab, innocent=(), listed=(LISTED, LISTED_V6)) as traffic:
        host.run("ufw", "default", "allow")
        for words in (("ufw", "--force", "enable"), ("ufw", "reload"), ("ufw", "--force", "reset"), ("ufw", "disable")):
            host.run(*words)
        host.run("systemctl", "start", "firewalld")
        host.run("firewall-cmd", "--set-default-zone=trusted")
        for option in ("--reload", "--complete-reload"):
            host.run("firewall-cmd", option)
        assert blocks(service)
        host.run("systemctl", "stop", "firewalld")
        assert not traffic.leaked()
    assert blocks(service)


def test_rules_that_were_saved_with_ours_load_at_the_next_boot(service: Service) -> None:
    host = service.host
    install(host, "iptables-persistent")
    # Where iptables is the legacy one, what it saves has our rules in it.
    for tool in ("iptables", "ip6tables"):
        host.run("update-alternatives", "--set", tool, f"/usr/sbin/{tool}-legacy")
    host.run("iptables", "-A", "INPUT", "-p", "tcp", "--dport", "9997", "-j", "DROP")
    service.start(LISTED, LISTED_V6)
    host.run("netfilter-persistent", "save")
    assert "SIKKERGUARD" in host.run("cat", SAVED)
    host.run("netfilter-persistent", "reload")
    wait_for("the repair", lambda: blocks(service), 15)

    host.reboot(service.lab.plug)
    service.lab.wait_for_host()
    assert service.state("netfilter-persistent.service") == "active"
    assert "--dport 9997 -j DROP" in host.run("iptables", "-S", "INPUT")
    service.wait_until_active()
    wait_for("that it blocks", lambda: blocks(service), 15)
    jumps = [
        line for line in host.run("iptables", "-t", "raw", "-S", "PREROUTING").splitlines() if "SIKKERGUARD" in line
    ]
    assert len(jumps) == 1
    # Without our sets that file would load no more, and whoever removes us is told so.
    told = host.run("sh", "-c", "apt-get remove --yes sikkerguard 2>&1", timeout=120)
    assert f"{SAVED} was saved with SikkerGuard's rules in it" in told
