"""The way of everyone: `docker compose up -d` protects the host and what Docker publishes, `down` leaves nothing."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

from scripts.laboratory.tools import wait_for
from tests.docker.host import INNOCENT, LISTED

if TYPE_CHECKING:
    from tests.docker.host import DockerHost

PORT = 8088


def test_up_protects_host_and_published_ports_and_down_leaves_nothing(host: DockerHost) -> None:
    attacker = LISTED[0]
    host.publish("web", PORT)
    before = host.everything()
    others = host.rules_of_others()
    assert host.gets(attacker, PORT)
    assert host.lab.reaches(attacker)

    began = time.monotonic()
    host.up(attacker)
    assert not host.gets(attacker, PORT)
    assert not host.lab.passes(attacker)
    assert host.gets(INNOCENT, PORT)
    assert host.lab.reaches(INNOCENT)
    assert host.rules_of_others() == others

    # The line has the port that was aimed at, and not the one that Docker would have made of it.
    shown = host.logged(rf"BLOCKED {attacker}:{PORT} ")
    assert re.match(rf"[0-9]{{2}}:[0-9]{{2}}:[0-9]{{2}} INFO BLOCKED {attacker}:{PORT} \(\S+\) proto=TCP x\d+$", shown)
    assert host.status()["logSource"] == "kmsg"
    wait_for("health", lambda: host.state("{{.State.Health.Status}}") == "healthy", 30 - (time.monotonic() - began))

    host.compose("down")
    assert host.everything() == before
    assert host.gets(attacker, PORT)
