"""The journal of a booted Debian: what is shown in it, what is not believed of it, and what can't get lost."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import pytest

from scripts.laboratory.network import HOST
from scripts.laboratory.tools import wait_for

if TYPE_CHECKING:
    from typing import Self

    from scripts.laboratory.network import Laboratory
    from tests.host.guest import Guest
    from tests.host.service import Service

# Guests hear of all LOG lines of the machine: these sources are no other test's.
LISTED = tuple(f"203.0.113.{number}" for number in range(161, 169))
INNOCENT = "203.0.113.170"
# Lines that claim these were blocked are written by programs; they never send a packet.
FORGED = tuple(f"203.0.113.{number}" for number in range(181, 187))
# In the order of the forgeries: who writes, and with which words; `$1` and `argv[1]` are the line.
FORGERIES = (
    ("nobody", ("sh", "-c", 'logger -t kernel -p kern.warning -- "$1"', "sh")),
    ("nobody", ("sh", "-c", 'systemd-cat -t kernel -p warning echo "$1"', "sh")),
    (
        "nobody",
        (
            "python3",
            "-c",
            "import sys; from systemd import journal\n"
            "journal.send(sys.argv[1], SYSLOG_IDENTIFIER='kernel', SYSLOG_FACILITY='0', _TRANSPORT='kernel', "
            "_KERNEL_SUBSYSTEM='net', PRIORITY='4')",
        ),
    ),
    (
        "nobody",
        (
            "python3",
            "-c",
            "import socket, sys\n"
            "socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(f'<4>kernel: {sys.argv[1]}'.encode(), '/dev/log')",
        ),
    ),
    ("root", ("sh", "-c", 'printf "<4>%s\\n" "$1" >/dev/kmsg', "sh")),
    ("root", ("sh", "-c", 'printf "<4>kernel: %s\\n" "$1" >/dev/kmsg', "sh")),
)
# What an administrator or a timer does to a journal, and what happens to journald in an upgrade of systemd.
DISTURBANCES = (
    ("journalctl", "--rotate"),
    ("journalctl", "--vacuum-size=1K"),
    ("systemctl", "restart", "systemd-journald"),
    ("journalctl", "--rotate", "--vacuum-files=1"),
)
# Each is followed by a new start of journald, which is not refused however many there were. Debian's journal is
# persistent: it is made volatile, which loses what is in it; then its place is taken by another one, which does so too;
# and then it is made persistent again, as administrators do it, which loses nothing.
_ANEW = "systemctl reset-failed systemd-journald; systemctl restart systemd-journald"
_RUN, _VAR = (f"systemd-tmpfiles --create --prefix={root}/log/journal" for root in ("/run", "/var"))
LOSSES = (
    ("sh", "-ec", f"rm -r /var/log/journal; {_ANEW}; {_RUN}"),
    ("sh", "-ec", f"rm -r /run/log/journal; {_ANEW}; {_RUN}"),
)
MOVES = (*LOSSES, ("sh", "-ec", f"mkdir /var/log/journal; {_VAR}; {_ANEW}"))
# Gives all that the service would get to read, in the way it does.
READER = """
import json, select
from sikkerguard.edges.kernel_log.select import open_source
source = open_source("journald")
print(json.dumps([source.name]), flush=True)
while True:
    select.select([source], [], [], 1)
    while messages := source.read():
        print(json.dumps(messages), flush=True)
"""


def attack(lab: Laboratory, source: str, port: int, packets: int = 1) -> float:
    """Exactly so many packets of a source that knocks at a port of the host; gives when the first was sent."""
    lab.own(source)

    def knock() -> float:
        began = time.time()
        for _ in range(packets):
            with socket.socket() as connection:
                connection.setblocking(False)
                connection.bind((source, 0))
                # The first packet is sent; closing at once keeps the kernel from sending it again.
                connection.connect_ex((HOST, port))
        return began

    return lab.internet.inside(knock)


def forge(host: Guest) -> None:
    """Write a line for each forged source, in every way there is, and see that journald has taken each."""
    for source, (user, forgery) in zip(FORGED, FORGERIES, strict=True):
        host.run(*forgery, line_of(source), user=user)
    wait_for(
        "the forged lines in the journal",
        lambda: all(any(f" SRC={source} " in _text(entry) for entry in host.journal()) for source in FORGED),
    )


def line_of(source: str) -> str:
    """What the kernel would write of a packet of this source."""
    return (
        "SIKKERGUARD IN=wan OUT= MAC=02:00:00:00:00:0b:02:00:00:00:00:0a:08:00 "
        f"SRC={source} DST={HOST} LEN=60 TOS=0x00 PREC=0x00 TTL=64 ID=4660 DF PROTO=TCP SPT=1 DPT=22 WINDOW=64240 "
        "RES=0x00 SYN URGP=0 "
    )


def test_a_blocked_source_shows_at_once_and_each_packet_counts(service: Service) -> None:
    lab, source = service.lab, LISTED[0]
    for tool in ("iptables-legacy", "ip6tables-legacy"):
        lab.host.run(tool, "-t", "raw", "-L")  # has the kernel make the empty table, which is not taken away again
    before = lab.everything()
    service.start(*LISTED)
    assert service.host.journal("--dmesg", "--lines=1")
    wait_for("the journal as the source", lambda: service.status()["logSource"] == "journald")
    assert lab.reaches(INNOCENT)
    assert service.dropped() == 0

    attack(lab, source, 22, packets=3)
    entry = service.wait_until_shown(f"BLOCKED {source}:22 (ssh) proto=TCP x")
    assert entry["PRIORITY"] == "6"
    assert wait_for(
        "the kernel's line", lambda: [e for e in service.host.journal("--dmesg") if f" SRC={source} " in _text(e)]
    )
    assert service.dropped() == 3
    wait_for("the status", lambda: service.status()["droppedPackets"] == 3)
    assert lab.reaches(INNOCENT)

    service.host.run("systemctl", "stop", "sikkerguard")
    assert service.host.run("systemctl", "show", "-P", "Result", "sikkerguard") == "success\n"
    assert lab.everything() == before


@pytest.mark.parametrize(
    ("choice", "source"),
    [
        ("auto", "journald"),
        # Which the unit may not read: here the counters alone tell.
        ("kmsg", "counters"),
    ],
)
def test_the_first_hit_of_a_new_source_shows_within_a_second(service: Service, choice: str, source: str) -> None:
    service.start(*LISTED, SIKKER_LOG_SOURCE=choice)
    wait_for("the source", lambda: service.status()["logSource"] == source)
    seconds = []
    for attacker in LISTED:
        sent = attack(service.lab, attacker, 22)
        entry = service.wait_until_shown(f"BLOCKED {attacker}:22 (ssh) proto=TCP x1")
        # When journald had it, to a microsecond: not when we saw it.
        seconds.append(int(entry["__REALTIME_TIMESTAMP"]) / 1e6 - sent)
    print(f"{choice}: from a packet to its line in the journal", *(f"{each:.3f} s" for each in sorted(seconds)))
    # A busy machine has half a second to itself, and may once have another half.
    assert sorted(seconds)[-2] < 1.5
    assert max(seconds) < 2


def test_a_forged_line_counts_nowhere(service: Service) -> None:
    # The forged are listed: all that speaks against the lines is who wrote them.
    service.start(*LISTED, *FORGED)
    attack(service.lab, LISTED[0], 22)
    service.wait_until_shown(f"BLOCKED {LISTED[0]}:22 ")
    wait_for("the status", lambda: service.status()["droppedPackets"] == 1)
    before = service.status()
    forge(service.host)
    # The same source again: it is shown with all that is summed up for later, and its own lines of the kernel come
    # later in the journal than those that were forged.
    attack(service.lab, LISTED[0], 22, packets=2)
    service.wait_until_shown(f"BLOCKED {LISTED[0]}:22 (ssh) proto=TCP x2", 15)
    wait_for("the status", lambda: service.status()["droppedPackets"] != 1)

    assert service.dropped() == 3
    after = service.status()
    assert after["droppedPackets"] == 3
    for name, value in before.items():
        if isinstance(value, int) and name != "uptimeSeconds" and not name.startswith("dropped"):
            assert (name, after[name]) == (name, value)
    assert not [entry for source in FORGED for entry in service.shown(source)]


def test_what_happens_to_the_journal_hides_and_repeats_nothing(service: Service) -> None:
    service.start(*LISTED)
    wait_for("the journal as the source", lambda: service.status()["logSource"] == "journald")
    sources = iter(LISTED)
    told = []
    # Beside the service, whose hints nobody sees: the same reader, with the same rights.
    with Reading(service.host, user="sikkerguard") as reading:
        for disturbance in (("true",), *DISTURBANCES, *MOVES):
            service.shown("")  # before they are deleted
            service.host.run(*disturbance)
            source = next(sources)
            attack(service.lab, source, 22)
            service.wait_until_shown(f"BLOCKED {source}:22 (ssh) proto=TCP x1")
            told.append(source)
            # The journal itself is followed throughout, not the counters in its stead.
            wait_for(f"the kernel's line after {disturbance}", partial(reading.ports, source))
            wait_for(f"the service at the journal after {disturbance}", lambda: follows(service))
    # When what is summed up for later is due, it is these packets and none of those before.
    attack(service.lab, told[0], 22, packets=2)
    service.wait_until_shown(f"BLOCKED {told[0]}:22 (ssh) proto=TCP x2", 15)
    # What journald copies as it moves has another cursor there, and the same time.
    shown = {(entry["__MONOTONIC_TIMESTAMP"], entry["MESSAGE"]) for entry in service.shown("BLOCKED 203.0.113.")}
    lines = Counter(message for _, message in shown)
    assert lines == {
        f"BLOCKED {source}:22 (ssh) proto=TCP x{n}": 1 for source, n in [(told[0], 2), *((s, 1) for s in told)]
    }
    assert service.dropped() == len(told) + 2
    assert service.status()["logSource"] == "journald"
    assert "can't be read" not in service.log()


def follows(service: Service) -> bool:
    """Whether the service has the file open to which journald writes now."""
    written = service.host.run("find", "/run/log/journal", "/var/log/journal", "-name", "system.journal", check=False)
    held = service.host.run("sh", "-c", f"readlink /proc/{service.property('MainPID')}/fd/*").splitlines()
    return bool(written) and set(written.splitlines()) <= set(held)


class Reading:
    """The journal's reader, running in the guest, and what it has given so far."""

    def __init__(self, host: Guest, user: str = "root") -> None:
        self._process = host.start(("python3", "-c", READER), user=user)
        self._thread = threading.Thread(target=self._read)
        self.messages: list[str] = []

    def __enter__(self) -> Self:
        self._thread.start()
        wait_for("the reader", lambda: self.messages)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._thread.join()
        complaints = self._process.communicate()[1]
        assert not complaints, complaints

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.messages += json.loads(line)

    def await_port(self, source: str, port: int) -> None:
        """Wait for a line of this port, or a later one."""
        wait_for(f"a line of port {port}", lambda: max(self.ports(source), default=0) >= port)

    def ports(self, source: str) -> list[int]:
        """The source ports of this source's packets, in the order that their lines came."""
        return [int(found[1]) for text in self.messages if (found := re.search(rf" SRC={source} .* SPT=(\d+) ", text))]


@dataclass
class Sending:
    """Packets of a source, 200 a second, each with a source port of its own."""

    lab: Laboratory
    source: str
    port: int
    sent: list[int] = field(default_factory=list)
    _stopped: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        self.lab.own(self.source)
        self._thread = threading.Thread(target=lambda: self.lab.internet.inside(self._send))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def more(self) -> int:
        """Wait until some more were sent, and give the last one's source port."""
        reached = len(self.sent) + 20
        wait_for("more packets", lambda: len(self.sent) > reached)
        return self.sent[-1]

    def _send(self) -> None:
        while not self._stopped.wait(0.005):
            number = 20_000 + len(self.sent)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                sender.bind((self.source, number))
                sender.sendto(b"", (HOST, self.port))
            self.sent.append(number)


def test_each_line_of_the_kernel_is_read_once_whatever_happens_to_the_journal(host: Guest, lab: Laboratory) -> None:
    source, port = LISTED[0], 9
    rule = f"iptables-legacy -t raw -A PREROUTING -i wan -p udp --dport {port} -j LOG --log-prefix"
    lab.host.run(*rule.split(), "SIKKERGUARD ")
    lost = set[int]()
    with Reading(host) as reading:
        assert reading.messages == ["journald"]
        with Sending(lab, source, port) as sending:
            for disturbance in (*DISTURBANCES, *MOVES, *DISTURBANCES, *MOVES):
                reached = sending.more()
                if disturbance in LOSSES:
                    reading.await_port(source, reached)
                host.run(*disturbance)
                after = sending.more()
                if disturbance in LOSSES:
                    # What the journal had, or did not get, while it was moved.
                    lost.update(range(reached + 1, after))
                reading.await_port(source, after)
            forge(host)
            sending.more()
        wait_for("the last line", lambda: sending.sent[-1] in reading.ports(source))
        given = reading.ports(source)
        print(f"{len(sending.sent)} lines, {len(set(sending.sent) - set(given))} lost with the journal")
        assert given == sorted(set(given))
        assert set(sending.sent) - set(given) <= lost
        assert set(given) <= set(sending.sent)
        assert not [text for forged in FORGED for text in reading.messages if forged in text]


def _text(entry: dict[str, object]) -> str:
    """The message; where it is no plain text, journalctl gives a list of its bytes."""
    return str(entry.get("MESSAGE", ""))
