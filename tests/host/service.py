"""SikkerGuard as a service of a guest, as its administrator handles it."""

from __future__ import annotations

import json
import re
import socket
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from scripts.laboratory.network import API, HOST, HOST_V6
from scripts.laboratory.tools import wait_for
from tests.standin.entries import Entry
from tests.standin.server import DEMO_KEY

if TYPE_CHECKING:
    from scripts.laboratory.network import Laboratory
    from tests.host.guest import Guest
    from tests.standin.server import Standin

KEY_FILE, SETTINGS_FILE = "/etc/sikkerguard/api-key", "/etc/sikkerguard/sikkerguard.env"
DROP_INS = "/etc/systemd/system/sikkerguard.service.d"


@dataclass
class Service:
    """SikkerGuard under systemd in the guest, installed and without a key. An error in its log that a test did not
    announce fails the test."""

    host: Guest
    lab: Laboratory
    standin: Standin
    settings: dict[str, str] = field(
        default_factory=lambda: {"SIKKER_API_URL": f"http://{API}", "SIKKER_ALLOW_HTTP": "true"}
    )
    expected_errors: list[str] = field(default_factory=list)
    _shown: dict[str, dict[str, Any]] = field(default_factory=dict)

    def serve(self, *addresses: str) -> None:
        """Have SikkerAPI's list be these from now on."""
        self.standin.replace(map(Entry, addresses))

    def configure(self, **settings: str) -> None:
        """Write the settings: these, beside those that each test has."""
        lines = "".join(f"{name}={value}\n" for name, value in (self.settings | settings).items())
        self.host.write(SETTINGS_FILE, lines)

    def start(self, *addresses: str, **settings: str) -> None:
        """Block these with these settings, and wait for READY."""
        self.serve(*addresses)
        self.configure(**settings)
        # With its last file it starts by itself; this waits for it.
        self.host.write(KEY_FILE, DEMO_KEY)
        self.host.run("systemctl", "start", "sikkerguard", check=False)
        assert self.state() == "active", self.log()

    def property(self, name: str, unit: str = "sikkerguard.service") -> str:
        """What systemd has of this name for the unit."""
        return self.host.run("systemctl", "show", "--property", name, "--value", unit).strip()

    def state(self, unit: str = "sikkerguard.service") -> str:
        """The unit's state: active, inactive, failed, ..."""
        return self.property("ActiveState", unit)

    def wait_until_active(self, seconds: float = 30.0) -> None:
        """Wait until the rules are live."""
        try:
            wait_for("the service", lambda: self.state() == "active", seconds)
        except AssertionError as error:
            units = self.host.run("systemctl", "status", "--no-pager", "sikkerguard*", check=False)
            raise AssertionError(f"{error}:\n{self.log()}\n{units}") from None

    def drop_in(self, name: str, text: str) -> None:
        """Have the unit differ by this drop-in, from its next start on."""
        self.host.run("mkdir", "-p", DROP_INS)
        self.host.write(f"{DROP_INS}/{name}", text)
        self.host.run("systemctl", "daemon-reload")

    def status(self) -> dict[str, Any]:
        """What `sikkerguard status --json` prints in the guest."""
        found: dict[str, Any] = json.loads(self.host.run("sikkerguard", "status", "--json", check=False))
        return found

    def reasons(self) -> str:
        """What `sikkerguard status` says is not as it should be; empty when all is well."""
        found = json.loads(
            self.host.run("sikkerguard", "status", "--json", check=False) or '{"reasons": ["no answer"]}'
        )
        return " ".join(found["reasons"])

    def allowed(self) -> set[str]:
        """The addresses of the laboratory's internet that no list can block, as `ipset save` prints them."""
        found = re.findall(r"^add sikkerguard-allow-v4 (203\.0\.113\.\d+) ?$", self.lab.sets(), re.MULTILINE)
        return set(found)

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

    def unexpected_errors(self) -> list[str]:
        """What was logged as an error, and no test announced."""
        return [
            str(entry["MESSAGE"])
            for entry in self.shown("")
            if int(entry["PRIORITY"]) <= 3 or "Traceback" in entry["MESSAGE"]
            if not any(re.search(pattern, entry["MESSAGE"]) for pattern in self.expected_errors)
        ]

    def dropped(self) -> int:
        """The packets that the kernel has dropped in our chains, as the stock tools print them: of both families."""
        packets = 0
        for tool in ("iptables-legacy", "ip6tables-legacy"):
            rules = self.host.run(tool, "-t", "raw", "-L", "SIKKERGUARD", "-v", "-x", "-n").splitlines()
            (dropped,) = [words[0] for rule in rules if (words := rule.split())[2:3] == ["DROP"]]
            packets += int(dropped)
        return packets

    def rules(self) -> str:
        """The rules of table raw, both families, as the stock tools print them."""
        return "".join(self.host.run(tool, "-t", "raw", "-S") for tool in ("iptables-legacy", "ip6tables-legacy"))

    def attack(self, source: str, port: int) -> None:
        """One TCP connection from this source to a port of the host, to which nobody answers."""
        self.lab.own(source)
        family, target = (socket.AF_INET6, HOST_V6) if ":" in source else (socket.AF_INET, HOST)

        def connect() -> None:
            with socket.socket(family, socket.SOCK_STREAM) as attacker:
                attacker.bind((source, 0))
                attacker.settimeout(0.3)
                with suppress(TimeoutError):
                    attacker.connect((target, port))
                    raise AssertionError(f"{source} reached {target}")

        self.lab.internet.inside(connect)
