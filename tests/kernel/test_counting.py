"""Every dropped packet is on a line of the log once, in the status, and in the reports' table, whatever happens."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import sqlite3
import struct
import threading
from typing import TYPE_CHECKING

import pytest

from scripts.laboratory.packets import ACK, FIN, RST, SYN, Wire, crossed, packet, repeated, segment, tcp, udp
from scripts.laboratory.tools import wait_for
from tests.kernel.traffic import Traffic
from tests.records import records_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.kernel.conftest import Guard

FIRST = int(ipaddress.ip_address("203.0.113.0"))
LISTED, LISTED_V6 = "203.0.113.7", "2001:db8:7::7"
_PLACE = re.compile(r"BLOCKED (.+) x(\d+)$")


def begin(guard: Guard, *entries: str, **variables: str) -> Wire:
    """A service that blocks these."""
    guard.serve(*entries)
    guard.start(**variables)
    guard.logged(f"Blocking {len(entries)} IPs$")
    return Wire(guard.lab)


def dropped(guard: Guard) -> int:
    """The DROP rules' packets, both families, as the stock tools show them."""
    total = 0
    for tool in ("iptables-legacy", "ip6tables-legacy"):
        listing = guard.lab.host.run(tool, "-t", "raw", "-L", "SIKKERGUARD", "-v", "-x", "-n")
        total += sum(int(line.split()[0]) for line in listing.splitlines() if line.split()[2:3] == ["DROP"])
    return total


def logged(guard: Guard) -> int:
    """The packets on all lines of the log."""
    return sum(int(match[2]) for line in guard.log().splitlines() if (match := _PLACE.search(line)))


def logged_of(guard: Guard, place: str) -> int:
    """The packets on the lines of one source or place."""
    return sum(
        int(match[2])
        for line in guard.log().splitlines()
        if (match := _PLACE.search(line)) and match[1].startswith(place)
    )


def filed(guard: Guard) -> int:
    """The packets that will be in reports or are withheld, as they lie on disk."""
    queries = (
        "SELECT SUM(packets) FROM blocked",
        "SELECT SUM(packets) FROM outbox",
        "SELECT value FROM totals WHERE name = 'filed_packets_purged'",
    )
    with records_of(guard.state) as connection:
        return sum((connection.execute(query).fetchone() or (0,))[0] or 0 for query in queries)


def settle(guard: Guard, packets: int) -> None:
    """Wait until that many packets are in the status, on lines, and in the reports' table or known to be nameless."""
    wait_for(f"{packets} packets in the status", lambda: guard.status()["droppedPackets"] >= packets, 5)
    wait_for(f"{packets} packets on lines, {logged(guard)} are:\n{guard.log()}", lambda: logged(guard) >= packets, 15)
    status = guard.status()
    assert status["droppedPackets"] == packets
    assert status["droppedPacketsToday"] == packets
    assert logged(guard) == packets, guard.log()
    assert filed(guard) <= packets - status["droppedUnnamed"]


def lines(guard: Guard) -> list[str]:
    """What the log says was blocked, without times."""
    return [line.partition("BLOCKED ")[2] for line in guard.log().splitlines() if "BLOCKED " in line]


def test_packets_of_every_kind_are_counted_and_read_well(guard: Guard) -> None:
    wire = begin(guard, LISTED, LISTED_V6)
    echo = struct.pack("!BBHHH", 8, 0, 0, 7, 1)
    echo_v6 = struct.pack("!BBHHH", 128, 0, 0, 7, 1)
    sent = [
        *[tcp(LISTED, 23)] * 47,
        *[udp(LISTED, 53)] * 3,
        *[packet(LISTED, 1, echo)] * 5,
        *[packet(LISTED, 47, bytes(8))] * 2,
        *[tcp(LISTED_V6, 22)] * 6,
        *[packet(LISTED_V6, 58, echo_v6)] * 4,
        *[packet(LISTED_V6, 99, bytes(8))] * 1,
    ]
    wire.send(sent)
    # A fragment names no port: its source is known all the same.
    wire.send([packet("203.0.113.7", 17, bytes(64), fragment=100)])
    assert dropped(guard) == len(sent) + 1
    settle(guard, len(sent) + 1)
    assert filed(guard) == len(sent) + 1
    for place, packets in {
        f"{LISTED}:23 (telnet) proto=TCP": 47,
        f"{LISTED}:53 (dns) proto=UDP": 3,
        f"{LISTED} (type 8 code 0) proto=ICMP": 5,
        f"{LISTED} proto=GRE": 2,
        f"{LISTED} (further ports) proto=any": 1,
        f"[{LISTED_V6}]:22 (ssh) proto=TCP": 6,
        f"{LISTED_V6} (type 128 code 0) proto=ICMPv6": 4,
        f"{LISTED_V6} proto=99": 1,
    }.items():
        assert logged_of(guard, place) == packets, place
    status = guard.status()
    assert status["sources"] == 2
    assert status["topPorts"][0] == {"protocol": "TCP", "port": 23, "service": "telnet", "packets": 47}


def test_one_line_for_a_source_and_port_in_a_window(guard: Guard) -> None:
    wire = begin(guard, LISTED)
    wire.send([tcp(LISTED, 23)])
    guard.logged(r"BLOCKED 203.0.113.7:23 \(telnet\) proto=TCP x1$", seconds=1.5)
    for _ in range(5):
        wire.send([tcp(LISTED, 23)] * 9)
    guard.logged(r"BLOCKED 203.0.113.7:23 \(telnet\) proto=TCP x45$", seconds=12)
    assert len(lines(guard)) == 2


def test_a_scan_by_one_source_hides_no_other(guard: Guard) -> None:
    wire = begin(guard, LISTED, "203.0.113.8")
    scan = crossed([LISTED], range(1, 60_001))
    wire.send([*scan[:40_000], tcp("203.0.113.8", 22), *scan[40_000:]])
    guard.logged(r"BLOCKED 203.0.113.8:22 \(ssh\) proto=TCP x1$", seconds=2)
    assert dropped(guard) == 60_001
    settle(guard, 60_001)
    assert guard.status()["droppedUnnamed"] == 0
    assert logged_of(guard, f"{LISTED} (further ports)") > 50_000
    assert len(lines(guard)) < 45


def test_a_flood_of_everything_is_counted_to_the_last_packet_and_replies_apart(guard: Guard) -> None:
    sources = [str(ipaddress.ip_address(FIRST + number)) for number in range(50)]
    sources_v6 = [f"2001:db8:7::{number:x}" for number in range(1, 51)]
    wire = begin(guard, *sources, *sources_v6)
    before_tcp = bytes([socket.IPPROTO_TCP, 0]) + bytes(6)
    begun, replies = list[bytes](), list[bytes]()
    for number, source in enumerate((*sources, *sources_v6)):
        begun += [tcp(source, 22), tcp(source, 1000 + number), udp(source, 53), packet(source, 47, bytes(8))]
        replies += [tcp(source, 22, ACK), tcp(source, 22, SYN | ACK, origin=443), tcp(source, number, RST, origin=80)]
        replies += [tcp(source, 22, FIN), tcp(source, 22, 0), tcp(source, 22, SYN | RST)]
        # What is cut off in the middle of its header: the kernel's own match of TCP would drop it uncounted.
        replies += [packet(source, socket.IPPROTO_TCP, segment(22)[:length]) for length in (0, 4, 13)]
        begun += [packet(source, socket.IPPROTO_UDP, bytes(4))]
        if ":" in source:
            # Extension headers: whole, cut off, and a fragment that is not the first.
            replies += [packet(source, header, before_tcp + segment(22)) for header in (0, 43, 60)]
            replies += [packet(source, 60, before_tcp[:1]), packet(source, 44, before_tcp[:1])]
            replies += [packet(source, 44, struct.pack("!BBHI", 60, 0, 8, 1) + bytes(24))]
        else:
            replies += [packet(source, socket.IPPROTO_TCP, bytes(24), fragment=fragment) for fragment in (1, 100)]
            begun += [packet(source, socket.IPPROTO_UDP, bytes(24), fragment=fragment) for fragment in (1, 100)]
    frames = [frame for pair in zip(begun * 3, replies * 2, strict=False) for frame in pair]
    apart = set(replies)
    wanted = sum(frame in apart for frame in frames)
    rounds = 100
    sent = wire.send(repeated(frames, rounds * len(frames)))
    assert dropped(guard) == sent == rounds * len(frames)
    settle(guard, sent)
    status = guard.status()
    assert status["droppedUnnamed"] == 0
    assert status["droppedReplies"] == rounds * wanted
    assert status["sources"] == 100
    assert filed(guard) == sent


# The chains, and what their counters said, as the version before replies were told apart left them.
_EARLIER = """\
*raw
:SIKKERGUARD - [0:0]
:SIKKERGUARD-NEW - [0:0]
-F SIKKERGUARD
-F SIKKERGUARD-COUNT
-F SIKKERGUARD-NEW
-F SIKKERGUARD-REPLIES
-X SIKKERGUARD-COUNT
-X SIKKERGUARD-REPLIES
[0:0] -A SIKKERGUARD -m set ! --match-set sikkerguard-v4 src -m set ! --match-set sikkerguard-v4-net src \
-m set ! --match-set sikkerguard-trial-v4 src -j RETURN
[0:0] -A SIKKERGUARD -m set ! --match-set sikkerguard-v4 src ! --update-counters \
-m set ! --match-set sikkerguard-v4-net src ! --update-counters \
-m set ! --match-set sikkerguard-new-v4 src ! --update-counters \
-m set ! --match-set sikkerguard-new-v4-net src ! --update-counters -j RETURN
[0:0] -A SIKKERGUARD -m set --match-set sikkerguard-allow-v4 src -j RETURN
[0:0] -A SIKKERGUARD -m set ! --match-set sikkerguard-hits-v4 src,dst -j SIKKERGUARD-NEW
[{packets}:{octets}] -A SIKKERGUARD -j DROP
[0:0] -A SIKKERGUARD-NEW -m set ! --match-set sikkerguard-sources-v4 src -j SET --add-set sikkerguard-sources-v4 src
[0:0] -A SIKKERGUARD-NEW -m set --match-set sikkerguard-sources-v4 src ! --update-counters --packets-lt 6 \
-m limit --limit 10/sec --limit-burst 50 -j LOG --log-prefix "SIKKERGUARD "
[0:0] -A SIKKERGUARD-NEW -m set --match-set sikkerguard-sources-v4 src ! --update-counters --packets-lt 65 \
-j SET --add-set sikkerguard-hits-v4 src,dst
COMMIT
"""


def put_back(guard: Guard) -> None:
    """Leave what an earlier version left when it was killed: its chains, and no sets and no record of replies."""
    counter = dropped(guard)
    text = _EARLIER.format(packets=counter, octets=40 * counter)
    guard.lab.host.run("iptables-legacy-restore", "--noflush", "-c", text=text)
    for name in ("replies", "repliers", "oldreplies", "oldrepliers"):
        guard.lab.host.run("ipset", "destroy", f"sikkerguard-{name}-v4")
    connection = sqlite3.connect(guard.state / "records.sqlite3")
    with connection:
        connection.execute("DELETE FROM totals WHERE name = 'replies'")
    connection.close()


def test_what_an_earlier_version_left_is_taken_over_without_a_gap_and_without_losing_a_count(guard: Guard) -> None:
    wire = begin(guard, LISTED)
    total = wire.send([tcp(LISTED, 23)] * 1000)
    settle(guard, total)
    guard.kill()
    put_back(guard)
    assert "SIKKERGUARD-REPLIES" not in guard.lab.host.run("iptables-legacy-save")
    assert "replies-v4" not in guard.lab.sets()
    # Counted by the earlier rules, while nobody is there.
    total += wire.send([tcp(LISTED, 23)] * 500)
    assert dropped(guard) == total
    with Traffic(guard.lab, innocent=("203.0.113.99",), listed=()) as traffic:
        stop = threading.Event()
        sent = list[int]()

        def flood() -> None:
            while not stop.is_set():
                sent.append(wire.send([tcp(LISTED, 22, ACK), tcp(LISTED, 22)] * 50))

        sender = threading.Thread(target=flood)
        sender.start()
        try:
            guard.start()
            guard.logged("Blocking 1 IPs", times=2)
        finally:
            stop.set()
            sender.join()
        traffic.check()
    replies = wire.send([tcp(LISTED, 22, ACK)] * 70)
    total += sum(sent) + replies
    # Each was dropped, also while the chain was replaced: none got past it, and none is forgotten.
    settle(guard, total)
    status = guard.status()
    assert status["droppedUnnamed"] == 0
    assert replies <= status["droppedReplies"] <= replies + sum(sent) // 2
    assert "create sikkerguard-replies-v4" in guard.lab.sets()


def test_a_flood_of_more_sources_than_can_be_remembered_is_counted_as_others(guard: Guard) -> None:
    sources = range(FIRST, FIRST + 100_000)
    guard.serve(*(f"{ipaddress.ip_address(FIRST + 2**12 * number)}/20" for number in range(26)))
    guard.start()
    guard.logged("Blocking [0-9]+ IPs$")
    wire = Wire(guard.lab)
    packets = crossed(sources, [23, 22, 80])
    wire.send(packets)
    assert dropped(guard) == len(packets)
    settle(guard, len(packets))
    status = guard.status()
    assert 0 < status["droppedUnnamed"] < len(packets) / 2
    assert status["sources"] == 65_536
    assert re.search(r"\d+ more sources and others that were not told apart x\d+$", "\n".join(lines(guard)))
    assert len(lines(guard)) < 45


def test_counts_hold_across_list_swaps_and_while_others_change_the_table(guard: Guard) -> None:
    sources = [str(ipaddress.ip_address(FIRST + number)) for number in range(200)]
    wire = begin(guard, *sources, "192.0.2.1")
    done = threading.Event()

    def meddle() -> None:
        while not done.is_set():
            for change in ("-A", "-D"):
                guard.lab.host.run(
                    "iptables-legacy", "-w", "-t", "raw", change, "OUTPUT", "-d", "192.0.2.9", "-j", "ACCEPT"
                )

    meddler = threading.Thread(target=meddle)
    meddler.start()
    try:
        sent = 0
        for number in range(2, 5):
            sender = threading.Thread(target=wire.send, args=(repeated(crossed(sources, range(10)), 300_000),))
            sender.start()
            guard.serve(*sources, *(f"192.0.2.{each}" for each in range(number)))
            assert guard.cli("pull").returncode == 0
            sender.join()
            sent += 300_000
    finally:
        done.set()
        meddler.join()
    # No moment of an update let one through.
    assert dropped(guard) == sent
    settle(guard, sent)
    assert guard.status()["droppedUnnamed"] == 0


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_counts_hold_across_a_restart(guard: Guard, end: str) -> None:
    wire = begin(guard, LISTED, LISTED_V6)
    first: Sequence[bytes] = [tcp(LISTED, 23)] * 1000 + [tcp(LISTED_V6, 22)] * 500
    wire.send(first)
    total = len(first) + 70
    if end == "stop":
        guard.stop()
        # Also what was dropped in the last moment, with its line.
        assert logged(guard) == len(first)
    else:
        guard.kill()
        # Nobody is there to count: the kernel does.
        total += wire.send(first)
    guard.start()
    guard.logged("Blocking 2 IPs", times=2)
    wire.send([tcp(LISTED, 3306)] * 70)
    # A rule that is made anew begins at nothing: it blocks before the records are read. The account goes on.
    assert dropped(guard) == (70 if end == "stop" else total)
    settle(guard, total)
    assert filed(guard) == total
    assert guard.status()["droppedUnnamed"] == 0
    assert logged_of(guard, f"{LISTED}:3306 (mysql)") == 70


def set_to_zero(guard: Guard, done: threading.Event) -> None:
    while not done.wait(0.7):
        guard.lab.host.run("iptables-legacy", "-w", "-t", "raw", "-Z")


def add_to_our_chain(guard: Guard, done: threading.Event) -> None:
    while not done.wait(0.7):
        guard.lab.host.run(
            *["iptables-legacy", "-w", "-t", "raw", "-A", "SIKKERGUARD", "-s", "192.0.2.9", "-j", "ACCEPT"]
        )


def restore_old_counters(guard: Guard, done: threading.Event) -> None:
    saved = guard.lab.host.run("iptables-legacy-save", "-c", "-t", "raw")
    while not done.wait(0.7):
        guard.lab.host.run("iptables-legacy-restore", "-w", "-c", "-T", "raw", text=saved)


def change_without_our_lock(guard: Guard, done: threading.Event) -> None:
    environment = {**os.environ, "XTABLES_LOCKFILE": str(guard.directory / "another-lock")}
    while not done.is_set():
        for change in ("-A", "-D"):
            words = f"iptables-legacy -w -t raw {change} OUTPUT -d 192.0.2.9 -j ACCEPT"
            guard.lab.host.run(*words.split(), env=environment)


@pytest.mark.parametrize(
    "meddle",
    [set_to_zero, add_to_our_chain, restore_old_counters, change_without_our_lock],
    ids=lambda each: each.__name__,
)
def test_counts_hold_whatever_others_do_to_counters_in_a_flood(
    guard: Guard, meddle: Callable[[Guard, threading.Event], None]
) -> None:
    sources = [str(ipaddress.ip_address(FIRST + number)) for number in range(100)]
    wire = begin(guard, *sources)
    packets = wire.send(repeated(crossed(sources, range(10)), 100_000))
    wait_for("the counters to be worth setting back", lambda: guard.status()["droppedPackets"] == packets)
    done = threading.Event()
    meddler = threading.Thread(target=meddle, args=(guard, done))
    meddler.start()
    try:
        packets += wire.send(repeated(crossed(sources, range(10)), 1_500_000))
    finally:
        done.set()
        meddler.join()
    settle(guard, packets)
    assert guard.status()["droppedUnnamed"] == 0
    # To the last packet, also from where they were set back to.
    packets += wire.send([tcp(sources[0], 23)] * 7)
    wait_for("seven more", lambda: guard.status()["droppedPackets"] == packets)


def test_what_a_removed_rule_had_counted_is_counted(guard: Guard) -> None:
    wire = begin(guard, LISTED)
    guard.logged("Blocking")
    for number in range(1, 4):
        # In one go, so that nobody has looked in between.
        wire.send([tcp(LISTED, 23)] * 1000)
        guard.lab.host.run("iptables-legacy", "-w", "-t", "raw", "-F")
        guard.logged("Another program changed our rules", times=number)
    wire.send([tcp(LISTED, 23)] * 10)
    settle(guard, 3010)


def test_a_stop_while_packets_come_loses_none(guard: Guard) -> None:
    wire = begin(guard, LISTED)
    sender = threading.Thread(target=wire.send, args=(repeated([tcp(LISTED, 23)], 1_500_000),))
    sender.start()
    wait_for("packets", lambda: dropped(guard) > 200_000)
    guard.stop()
    sender.join()
    connection = sqlite3.connect(guard.state / "records.sqlite3")
    held = dict(connection.execute("SELECT name, value FROM totals"))
    connection.close()
    assert held["dropped_packets"] == held["attributed"] == held["logged"] == logged(guard) == filed(guard)
