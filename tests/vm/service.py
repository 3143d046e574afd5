"""SikkerGuard as a service of a virtual machine: what is asked of it there, and what is sent to it."""

from __future__ import annotations

import json
import re
import socket
import time
from typing import TYPE_CHECKING, Any

from scripts.laboratory.network import HOST, HOST_V6
from scripts.laboratory.tools import wait_for
from tests.vm.machine import BOOT_SECONDS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scripts.laboratory.network import Laboratory
    from tests.host.pings import Pings
    from tests.vm.machine import Machine

_START_SECONDS = 300.0


def state(vm: Machine, name: str, unit: str = "sikkerguard.service") -> str:
    """A property of a unit, as systemd has it."""
    return vm.run("systemctl", "show", "--property", name, "--value", unit).strip()


def status(vm: Machine) -> dict[str, Any]:
    """What `sikkerguard status --json` prints."""
    found: dict[str, Any] = json.loads(vm.run("sikkerguard", "status", "--json"))
    return found


def log(vm: Machine) -> str:
    """What our units have said since the boot, and systemd about them."""
    return "\n".join(str(entry["MESSAGE"]) for entry in vm.journal("--boot", "--unit=sikkerguard*"))


def wait_until_active(vm: Machine) -> None:
    """Wait until the service blocks, at its first attempt."""

    def active() -> bool:
        found = state(vm, "ActiveState")
        assert (state(vm, "LoadState"), state(vm, "NRestarts")) == ("loaded", "0"), log(vm)
        assert found != "failed", log(vm)
        return found == "active"

    wait_for("the service", active, _START_SECONDS)


def wait_until_shown(vm: Machine, text: str, seconds: float = 60.0) -> None:
    """Wait until the log has this text."""
    wait_for(f"{text!r} in the journal", lambda: text in log(vm), seconds)


def everything(lab: Laboratory) -> str:
    """The rules and sets of the machine, but for counters."""
    return re.sub(r" packets \d+ bytes \d+", "", lab.everything())


def knock(lab: Laboratory, source: str, port: int) -> None:
    """A packet of a source that tries to connect to a port."""

    def attempt() -> None:
        with socket.socket(socket.AF_INET6 if ":" in source else socket.AF_INET) as connection:
            connection.setblocking(False)
            connection.bind((source, 0))
            # The first packet is sent; closing at once keeps the kernel from sending it again.
            connection.connect_ex((HOST_V6 if ":" in source else HOST, port))

    lab.own(source)
    lab.internet.inside(attempt)


def wait_until_silent(pings: Pings, sources: Sequence[str], seconds: float = 3.0) -> None:
    """Wait until none of these sources has had an answer for so long: the machine has gone down."""
    counts = dict.fromkeys(sources, 0)
    last = time.monotonic()

    def silent() -> bool:
        nonlocal counts, last
        found = {source: pings.answers(source) for source in sources}
        if found != counts:
            counts, last = found, time.monotonic()
        return time.monotonic() - last > seconds

    wait_for("silence", silent, BOOT_SECONDS)
