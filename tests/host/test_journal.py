"""The journal of a booted Debian: what is shown in it, what is not believed of it, and what can't get lost."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING

from tests.laboratory import HOST, wait_for

if TYPE_CHECKING:
    from typing import Self

    from tests.host.guest import Guest
    from tests.host.service import Service
    from tests.laboratory import Laboratory

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
# Gives all that the service would get to read, in the way it does.
READER = """
import json, select
from sikkerguard.edges.kernlog import open_source
source = open_source("journald")
print(json.dumps([source.name]), flush=True)
while True:
    select.select([source], [], [], 1)
    while messages := source.read():
        print(json.dumps(messages), flush=True)
"""


def attack(lab: Laboratory, source: str, port: int, packets: int = 1) -> None:
    """Exactly so many packets of a source that knocks at a port of the host."""

    def knock() -> None:
        for _ in range(packets):
            with socket.socket() as connection:
                connection.setblocking(False)
                connection.bind((lab.own(source), 0))
                # The first packet is sent; closing at once keeps the kernel from sending it again.
                connection.connect_ex((HOST, port))

    lab.internet.inside(knock)


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

    sent = time.time()
    attack(lab, source, 22, packets=3)
    entry = service.wait_until_shown(f"BLOCKED {source}:22 (ssh) proto=TCP x")
    seconds = int(entry["__REALTIME_TIMESTAMP"]) / 1e6 - sent
    print(f"{seconds:.3f} s from the first packet to its line in the journal")
    assert seconds < 5
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
        if isinstance(value, int) and name != "uptime" and not name.startswith("dropped"):
            assert (name, after[name]) == (name, value)
    assert not [entry for source in FORGED for entry in service.shown(source)]


def test_what_happens_to_the_journal_hides_and_repeats_nothing(service: Service) -> None:
    service.start(*LISTED)
    sources = iter(LISTED)
    told = []
    for disturbance in (("true",), *DISTURBANCES):
        service.shown("")  # before they are deleted
        service.host.run(*disturbance)
        source = next(sources)
        attack(service.lab, source, 22)
        service.wait_until_shown(f"BLOCKED {source}:22 (ssh) proto=TCP x1")
        told.append(source)
    # When what is summed up for later is due, it is these packets and none of those before.
    attack(service.lab, told[0], 22, packets=2)
    service.wait_until_shown(f"BLOCKED {told[0]}:22 (ssh) proto=TCP x2", 15)
    lines = Counter(entry["MESSAGE"] for entry in service.shown("BLOCKED 203.0.113."))
    assert lines == {
        f"BLOCKED {source}:22 (ssh) proto=TCP x{n}": 1 for source, n in [(told[0], 2), *((s, 1) for s in told)]
    }
    assert service.dropped() == len(told) + 2
    # The journal itself was followed throughout, not the counters in its stead.
    assert service.status()["logSource"] == "journald"
    assert "can't be read" not in service.log()


class Reading:
    """The journal's reader, running in the guest, and what it has given so far."""

    def __init__(self, host: Guest) -> None:
        self._process = host.start(("python3", "-c", READER))
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

    def ports(self, source: str) -> list[int]:
        """The source ports of this source's packets, in the order that their lines came."""
        return [int(found[1]) for text in self.messages if (found := re.search(rf" SRC={source} .* SPT=(\d+) ", text))]


def test_each_line_of_the_kernel_is_read_once_whatever_happens_to_the_journal(host: Guest, lab: Laboratory) -> None:
    source, first, port = LISTED[0], 20_000, 9
    lab.own(source)
    lab.host.run(
        *f"iptables-legacy -t raw -A PREROUTING -i wan -p udp --dport {port} -j LOG".split(),
        "--log-prefix",
        "SIKKERGUARD ",
    )
    stopped = threading.Event()
    sent: list[int] = []

    def send() -> None:
        while not stopped.wait(0.005):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                sender.bind((source, first + len(sent)))
                sender.sendto(b"", (HOST, port))
            sent.append(first + len(sent))

    def more() -> None:
        reached = len(sent) + 20
        wait_for("more packets", lambda: len(sent) > reached)

    with Reading(host) as reading:
        assert reading.messages == ["journald"]
        sending = threading.Thread(target=lambda: lab.internet.inside(send))
        sending.start()
        try:
            for disturbance in (*DISTURBANCES, *DISTURBANCES):
                more()
                host.run(*disturbance)
            forge(host)
            more()
        finally:
            stopped.set()
            sending.join()
        wait_for("the last line", lambda: sent[-1] in reading.ports(source))
        assert reading.ports(source) == sent
        assert not [text for forged in FORGED for text in reading.messages if forged in text]


def _text(entry: dict[str, object]) -> str:
    """The message; where it is no plain text, journalctl gives a list of its bytes."""
    return str(entry.get("MESSAGE", ""))
