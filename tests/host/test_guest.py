"""What the other tests of this tier rely on: what is in a guest, what is not, and what a reboot leaves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from scripts.laboratory.network import INNER, INNER_V6, laboratory
from scripts.laboratory.tools import wait_for
from tests.host.base import SUITES

if TYPE_CHECKING:
    from tests.host.guest import Guest

SOURCE, SOURCE_V6 = "203.0.113.221", "2001:db8:221::1"


@pytest.mark.parametrize("suite", SUITES)
def test_a_guest_has_nothing_but_its_own_repository(bare: Guest, suite: str) -> None:
    assert f"VERSION_CODENAME={suite}\n" in bare.run("cat", "/etc/os-release")
    assert not bare.run("sh", "-c", "command -v python3 iptables ipset", check=False)
    targets = ("apt-get", "indextargets", "--format", "$(URI)", "Created-By: Packages")
    assert bare.run(*targets).split() == ["file:/srv/packages/./Packages"]
    # Whatever is in there can be had, with all that it needs.
    for packages in (("ufw", "logcheck"), ("firewalld", "iptables-persistent")):
        bare.run("apt-get", "install", "--simulate", "--no-install-recommends", *packages)


@pytest.mark.parametrize("suite", SUITES)
def test_a_reboot_keeps_the_disk_and_the_guest_configures_its_network_again(bare: Guest) -> None:
    with laboratory(bare.network) as lab:
        for boot in range(2):
            lab.wait_for_host()
            for source, inner in ((SOURCE, INNER), (SOURCE_V6, INNER_V6)):
                assert lab.reaches(source)
                assert lab.reaches(source, inner)
            assert len(bare.run("cat", "/root/boots", check=False).split()) == boot
            if not boot:
                bare.write("/root/boots", "one")
                bare.reboot(lab.plug)


@pytest.mark.parametrize("suite", SUITES)
def test_logind_has_a_seat_where_nobody_sits_and_readable_for_everyone(bare: Guest) -> None:
    # By it the service knows logind's empty directory of sessions from one that was made to be mounted.
    wait_for("logind", lambda: bare.run("systemctl", "is-active", "systemd-logind", check=False) == "active\n", 30)
    assert bare.run("ls", "/run/systemd/seats", "/run/systemd/sessions", user="nobody").split() == [
        "/run/systemd/seats:",
        "seat0",
        "/run/systemd/sessions:",
    ]
    assert bare.run("cat", "/run/systemd/seats/seat0", user="nobody")
