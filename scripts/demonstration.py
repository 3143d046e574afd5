"""What `scripts/demo` shows: the real service in a laboratory, from the first block to a clean end."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.laboratory.api import KEY, LaboratoryApi, serving
from scripts.laboratory.network import API, GATEWAY, HOST, Laboratory, Namespace, laboratory
from scripts.laboratory.resolver import Resolver
from scripts.laboratory.tools import wait_for
from sikkerguard.cli.demo import SAMPLE
from sikkerguard.cli.demo_server import load_list

if TYPE_CHECKING:
    from collections.abc import Sequence

_PORTS = (22, 23, 3306, 6379, 3389)
_BOLD, _DIM, _PLAIN = ("\033[1m", "\033[2m", "\033[0m") if sys.stdout.isatty() else ("", "", "")


def say(text: str) -> None:
    """A heading of what happens next."""
    print(f"\n{_BOLD}{text}{_PLAIN}", flush=True)


class Shown:
    """A program in the laboratory's host whose lines are shown as they come."""

    def __init__(self, host: Namespace, words: Sequence[str], environment: dict[str, str]) -> None:
        print(f"{_DIM}  $ {' '.join(words)}{_PLAIN}", flush=True)
        self.lines: list[str] = []
        self._process = host.start(words, environment, stderr=subprocess.PIPE, text=True)
        self._reader = threading.Thread(target=self._show)
        self._reader.start()

    def _show(self) -> None:
        for line in self._process.stderr or ():
            self.lines.append(str(line))
            print(f"  | {str(line).rstrip()}", flush=True)

    def wait_for(self, text: str, times: int = 1) -> None:
        """Wait until the program has said this so often."""
        wait_for(repr(text), lambda: sum(text in line for line in self.lines) >= times, seconds=30)

    def end(self) -> None:
        """SIGTERM, and wait."""
        self._process.terminate()
        self._process.wait(10)
        self._reader.join()

    def kill(self) -> None:
        """SIGKILL, if it still runs."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait(10)
            self._reader.join()


def connects(lab: Laboratory, source: str, port: int) -> bool:
    """Whether this source gets an answer from that port of the host: a connection, or the word that it is closed."""

    def attempt() -> bool:
        with socket.socket() as connection:
            connection.settimeout(0.5)
            connection.bind((source, 0))
            try:
                connection.connect((HOST, port))
            except ConnectionRefusedError:
                return True
            except TimeoutError:
                return False
            return True

    lab.own(source)
    return lab.internet.inside(attempt)


def demonstrate(lab: Laboratory, api: LaboratoryApi, state: str, stack: ExitStack) -> None:
    """The whole show."""
    sikkerguard = (sys.executable, "-m", "sikkerguard")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SIKKER_")}
    environment |= {"SIKKER_API_URL": f"http://{API}", "SIKKER_API_KEY": KEY, "SIKKER_STATE_DIR": state}
    environment |= {"SIKKER_REPORT_INTERVAL": "10s", "SIKKER_ALLOW_HTTP": "true"}
    # A rule and a set that are not ours, to see that they stay.
    lab.host.run("iptables-legacy", "-t", "raw", "-A", "PREROUTING", "-s", "192.0.2.66", "-j", "DROP")
    lab.host.run("ip6tables-legacy", "-t", "raw", "-A", "PREROUTING", "-s", "2001:db8::66", "-j", "DROP")
    lab.host.run("ipset", "create", "somebody-elses", "hash:ip")
    before = lab.everything()

    say(f"1. Start: pull {len(api.entries):,} entries of public blocklists from the stand-in, try them, commit them.")
    service = Shown(lab.host, [*sikkerguard, "run"], environment)
    stack.callback(service.kill)
    service.wait_for("Blocking")
    print("  (One entry is wider than SikkerAPI's may be, and two lie inside listed ranges.)", flush=True)

    attackers = [entry.text for entry in api.entries if ":" not in entry.text and "/" not in entry.text][: len(_PORTS)]
    say(f"2. Attack: {len(attackers)} listed sources knock at the host's ports, and one that is not listed.")
    for attacker, port in zip(attackers, _PORTS, strict=True):
        assert not connects(lab, attacker, port), f"{attacker} got through"
    assert connects(lab, "203.0.113.99", 22), "an innocent source was dropped"
    print("  203.0.113.99, which is on no list, got its answer.", flush=True)
    service.wait_for("BLOCKED", times=len(attackers))

    say("3. Ask: why is it blocked?")
    print(_indented(lab.host.run(*sikkerguard, "check", attackers[0], check=False, env=environment)))

    say("4. Report: every ten seconds here, else every half an hour; an address, a category and a protocol.")
    service.wait_for(f"Reported {len(attackers)} blocked IPs")
    for report in api.reports:
        print(f"  The stand-in took {report.ip}, {report.category}, {report.protocol}.", flush=True)

    say("5. Bad answers: a captive portal's page, and a list that tripled overnight. Each is refused.")
    for body in (b"<html>Please log in</html>\n", b"".join(b"203.0.%d.%d\n" % divmod(n, 250) for n in range(3500))):
        api.next_bodies.append(body)
        before_pull = sum(" ERROR " in line for line in service.lines)
        lab.host.run(*sikkerguard, "pull", check=False, env=environment)
        service.wait_for(" ERROR ", times=before_pull + 1)
    assert not connects(lab, attackers[0], 22), "a bad answer let an attacker in"
    print(f"  {attackers[0]} is still blocked.", flush=True)

    say(
        "6. A list that would cut us off from SikkerAPI, with the allowlist switched off on purpose: the trial sees it."
    )
    service.kill()
    print("  (The service was killed with SIGKILL; what it committed goes on blocking, and the next start adopts it.)")
    service = Shown(lab.host, (sys.executable, "-m", "scripts.laboratory.unprotected"), environment)
    stack.callback(service.kill)
    service.wait_for("Blocking", times=2)
    lines = "".join(f"{entry.text}\n" for entry in api.entries) + f"{GATEWAY}\n{API}\n"
    api.next_bodies.append(lines.encode())
    lab.host.run(*sikkerguard, "pull", check=False, env=environment)
    service.wait_for("self-test failed")
    assert connects(lab, GATEWAY, 22), "the gateway is still cut off"
    print(f"  The gateway {GATEWAY} reaches us, and {attackers[0]} is still blocked.", flush=True)

    say("7. Stop: everything of ours goes, everything else stays.")
    service.end()
    assert lab.everything() == before, "something is left, or something is missing"
    print("  iptables-save, ip6tables-save and ipset save are as they were before the start.", flush=True)


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())


def main() -> int:
    """Build the laboratory, show, take it down."""
    started = time.monotonic()
    os.chdir(Path(__file__).parents[1])
    with ExitStack() as stack:
        lab = stack.enter_context(laboratory())
        stack.enter_context(Resolver(lab.internet))
        api = stack.enter_context(serving(lab, load_list(SAMPLE)))
        demonstrate(lab, api, stack.enter_context(tempfile.TemporaryDirectory()), stack)
    say(f"Done in {time.monotonic() - started:.0f} s. This machine's own rules were not touched.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
