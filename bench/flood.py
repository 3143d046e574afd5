"""What a flood costs, and that it is counted to the last packet.

Run as root: `.venv/bin/python -m bench.flood [PACKETS] [SOURCES] [PORTS]`, 2,000,000, 50,000 and 20 by default.
Everything happens in network namespaces of its own. The real service blocks that many listed sources in a laboratory,
and their packets come as fast as one sender can put them onto the wire. Then the same flood meets rules as others write
them, in turn, so that the ratios mean something.
"""

from __future__ import annotations

import ipaddress
import itertools
import json
import os
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.laboratory.api import KEY, serving
from scripts.laboratory.machine import log_of_all_namespaces
from scripts.laboratory.network import API, Laboratory, laboratory
from scripts.laboratory.packets import ACK, SYN, Wire, crossed, repeated, tcp
from scripts.laboratory.resolver import Resolver
from scripts.laboratory.tools import wait_for

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_FIRST = int(ipaddress.ip_address("5.0.0.0"))
_STEP = 3  # no two sources are neighbours, so that none can be joined to a range
_TICKS = os.sysconf("SC_CLK_TCK")
_ROUNDS = 3
_NOTHING = "everything is dropped at once"
_BLOCKED, _REPLY = (f"SikkerGuard: a {what} that is dropped, counted and shown" for what in ("SYN", "reply"))
_GOOD = "SikkerGuard: a good packet"
_GOOD_SOURCES = [f"198.18.0.{number}" for number in range(1, 255)]
_PEERS = {
    "a set and DROP": (),
    "a set, LOG without a limit, and DROP": ("-j", "LOG", "--log-prefix", "peer "),
    "a set, LOG under hashlimit, and DROP": (
        *("-m", "hashlimit", "--hashlimit-upto", "1/sec", "--hashlimit-burst", "5"),
        *("--hashlimit-mode", "srcip,dstport", "--hashlimit-name", "peer", "-j", "LOG", "--log-prefix", "peer "),
    ),
}


class Process:
    """What the kernel says of a running process."""

    def __init__(self, number: int) -> None:
        self._directory = Path(f"/proc/{number}")

    def processor_seconds(self) -> float:
        """Time on a core so far, its threads and the kernel's work for it included."""
        fields = (self._directory / "stat").read_text("ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def memory(self, name: str) -> float:
        """VmRSS, or VmHWM, its peak, in MiB."""
        status = (self._directory / "status").read_text("ascii")
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(name)) / 1024


def dropped(lab: Laboratory) -> int:
    """The DROP rule's packets, as iptables shows them."""
    listing = lab.host.run("iptables-legacy", "-t", "raw", "-L", "SIKKERGUARD", "-v", "-x", "-n")
    return sum(int(line.split()[0]) for line in listing.splitlines() if line.split()[2:3] == ["DROP"])


def told(log: Path) -> int:
    """The packets on all lines of the log."""
    return sum(int(found) for found in re.findall(r"BLOCKED .* x(\d+)$", log.read_text("utf-8"), re.MULTILINE))


def flood_the_service(
    lab: Laboratory, wire: Wire, directory: Path, packets: int, kinds: Mapping[str, Sequence[bytes]]
) -> dict[str, float]:
    """Seconds that so many packets of each kind took, the good ones included; what became of the first kind is
    printed."""
    frames = next(iter(kinds.values()))
    environment = {**os.environ, "SIKKER_API_URL": f"http://{API}", "SIKKER_API_KEY": KEY}
    environment["SIKKER_ALLOW_HTTP"] = "true"
    environment["SIKKER_STATE_DIR"] = str(directory / "state")
    log = directory / "log"
    words = (sys.executable, "-m", "sikkerguard")
    with log.open("wb") as stream:
        service = lab.host.start((*words, "run"), environment, stderr=stream)
    try:
        wait_for("the list", lambda: "Blocking" in log.read_text("utf-8"), 60)

        def status() -> dict[str, int]:
            found: dict[str, int] = json.loads(lab.host.run(*words, "status", "--json", check=False, env=environment))
            return found

        # Once before what is measured: what only a first packet needs is then in memory.
        wire.send(frames[:1])
        wait_for("the first packet", lambda: status()["droppedPackets"] == 1)
        process = Process(service.pid)
        memory, spent, started = process.memory("VmRSS"), process.processor_seconds(), time.monotonic()
        wire.send(repeated(frames, packets))
        seconds = time.monotonic() - started
        spent = process.processor_seconds() - spent
        wait_for("the count", lambda: status()["droppedPackets"] == packets + 1, 10)
        wait_for("the lines", lambda: told(log) >= packets + 1, 20)
        found = status()
        rows = log.read_text("utf-8").count("BLOCKED")
        print(f"{packets:,} packets in {seconds:.1f} s, {packets / seconds / 1000:.0f} thousand a second")
        print(f"  DROP rule {dropped(lab):,}, status {found['droppedPackets']:,}, {rows} lines with {told(log):,}")
        print(f"  of sources that could not be told: {found['droppedUnnamed']:,}; sources: {found['sources']:,}")
        print(f"  of one core meanwhile: {100 * spent / seconds:.1f} % ({spent:.2f} s)")
        print(
            f"  resident: {memory:.1f} MiB before, {process.memory('VmRSS') - memory:+.1f} afterwards, "
            f"{process.memory('VmHWM') - memory:+.1f} at the peak"
        )
        assert dropped(lab) == found["droppedPackets"] == told(log) == packets + 1, "a packet is not accounted for"
        found_seconds = {name: _best(wire, each, packets) for name, each in kinds.items()}
        # Behind our jump, so that what is not listed goes no further either.
        lab.host.run("iptables-legacy", "-w", "-t", "raw", "-A", "PREROUTING", "-i", "wan", "-j", "DROP")
        found_seconds[_GOOD] = _best(wire, crossed(_GOOD_SOURCES, [443]), packets)
        lab.host.run("iptables-legacy", "-w", "-t", "raw", "-D", "PREROUTING", "-i", "wan", "-j", "DROP")
        return found_seconds
    except AssertionError:
        print("The end of the service's log:", *log.read_text("utf-8").splitlines()[-20:], sep="\n  ")
        raise
    finally:
        service.terminate()
        service.wait(30)


def flood_the_peers(
    lab: Laboratory, wire: Wire, sources: Sequence[str], packets: int, frames: Sequence[bytes]
) -> dict[str, float]:
    """Seconds that the same packets took with rules as others write them, and where nothing was looked up."""
    entries = "".join(f"add peer {source}\n" for source in sources)
    lab.host.run("ipset", "restore", text=f"create peer hash:ip hashsize 32768 maxelem 131072\n{entries}")
    iptables = ("iptables-legacy", "-w", "-t", "raw")
    # What the sender and the reception cost: nothing is looked up, and nothing goes further.
    lab.host.run(*iptables, "-A", "PREROUTING", "-i", "wan", "-j", "DROP")
    found = {_NOTHING: _best(wire, frames, packets)}
    lab.host.run(*iptables, "-F")
    for name, log_rule in _PEERS.items():
        lab.host.run(*iptables, "-N", "PEER")
        if log_rule:
            lab.host.run(*iptables, "-A", "PEER", *log_rule)
        lab.host.run(*iptables, "-A", "PEER", "-j", "DROP")
        lab.host.run(*iptables, "-A", "PREROUTING", "-m", "set", "--match-set", "peer", "src", "-j", "PEER")
        found[name] = _best(wire, frames, packets)
        lab.host.run(*iptables, "-F")
        lab.host.run(*iptables, "-X")
    return found


def _best(wire: Wire, frames: Sequence[bytes], packets: int) -> float:
    return min(_timed(wire, frames, packets) for _ in range(_ROUNDS))


def _timed(wire: Wire, frames: Sequence[bytes], packets: int) -> float:
    started = time.monotonic()
    wire.send(repeated(frames, packets))
    return time.monotonic() - started


def main() -> int:
    """Flood, and print what became of it."""
    given = [int(word) for word in sys.argv[1:]]
    packets, number, ports = (*given, *(2_000_000, 50_000, 20)[len(given) :])
    sources = [str(ipaddress.ip_address(_FIRST + _STEP * each)) for each in range(number)]
    frames = crossed(sources, range(1, ports + 1))
    print(f"{os.cpu_count()} cores; Python {sys.version.split()[0]}; {number:,} sources, {ports} ports", flush=True)
    # Lines of namespaces other than the first are logged only where this says so, and they cost time.
    with (
        log_of_all_namespaces(),
        laboratory() as lab,
        Resolver(lab.internet),
        serving(lab) as api,
        tempfile.TemporaryDirectory() as directory,
    ):
        api.body = "".join(f"{source}\n" for source in sources).encode()
        wire = Wire(lab)
        places = itertools.product(range(1, ports + 1), sources)
        replies = [tcp(source, 50_000, SYN | ACK, origin=port) for port, source in places]
        kinds = {_BLOCKED: frames, _REPLY: replies}
        ours = flood_the_service(lab, wire, Path(directory), packets, kinds)
        found = flood_the_peers(lab, wire, sources, packets // 10, frames)
    share = packets // 10
    nothing = found.pop(_NOTHING) / share
    print(f"the sender and the reception alone need {nothing * 1e9:.0f} ns a packet; beyond that one costs")
    costs = {name: seconds / packets for name, seconds in ours.items()}
    for name, cost in (costs | {name: seconds / share for name, seconds in found.items()}).items():
        print(f"  {(cost - nothing) * 1e9:6.0f} ns  {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
