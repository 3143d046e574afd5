"""What the kernel sends of connections and routes, taken apart; and what is made of it."""

from __future__ import annotations

import random
import socket
import struct
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sikkerguard.core.host import conntrack, routes, sockets
from sikkerguard.core.host.conntrack import Entry, flows_of, read_entry
from sikkerguard.core.host.flows import Flow, NewlyCovered, newly_dropped, opened_since
from sikkerguard.core.host.netlink import attribute, messages, request
from sikkerguard.core.host.sockets import Socket, read_socket, socket_flow
from sikkerguard.core.net.family import Family
from sikkerguard.core.net.networks import Blocklist, Networks
from sikkerguard.core.net.packed import Prefix, Ranges
from sikkerguard.core.ports.protocols import TCP, UDP
from sikkerguard.edges.host import flows as edge
from tests.unit.core.net.test_intervals import families, gather

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NESTED = 0x8000
OWN, NEAR, FAR, OTHER = (
    bytes([198, 51, 100, 10]),
    bytes([10, 77, 0, 2]),
    bytes([203, 0, 113, 7]),
    bytes([192, 0, 2, 1]),
)
SEEN_REPLY, ASSURED = 2, 4


# Connection tracking


def nested(kind: int, *parts: bytes) -> bytes:
    return attribute(kind | NESTED, b"".join(parts))


def direction(kind: int, protocol: int, source: bytes, target: bytes, ports: bytes, zone: bytes = b"") -> bytes:
    first = 1 if len(source) == 4 else 3
    ip = nested(1, attribute(first, source), attribute(first + 1, target))
    return nested(kind, ip, nested(2, attribute(1, bytes([protocol])), ports), zone)


def of_ports(source: int, target: int) -> bytes:
    return attribute(2, struct.pack(">H", source)) + attribute(3, struct.pack(">H", target))


def written(entry: Entry, zone: bool = False, before: bytes = b"") -> bytes:
    """An entry as the kernel writes it (nf_conntrack_netlink.c, `ctnetlink_fill_info`)."""
    family = Family.V4 if len(entry.source) == 4 else Family.V6
    mark = attribute(3, struct.pack(">H", 5)) if zone else b""
    ports = [of_ports(entry.source_port, entry.target_port), of_ports(entry.answering_port, entry.answered_port)]
    if entry.protocol in (1, 58):
        # Identifier, type and code.
        ports = [attribute(4, bytes(2)) + attribute(5, b"\x08") + attribute(6, b"\0")] * 2
    return b"".join(
        (
            struct.pack("=BBH", family.number, 0, 0),
            direction(1, entry.protocol, entry.source, entry.target, ports[0], mark),
            direction(2, entry.protocol, entry.answering, entry.answered, ports[1]),
            before,
            attribute(3, struct.pack(">I", entry.status)),
            attribute(7, struct.pack(">I", 300)),
        )
    )


def packed(family: Family) -> st.SearchStrategy[bytes]:
    return st.binary(min_size=family.size, max_size=family.size)


ports = st.integers(0, 0xFFFF)
entries = families.flatmap(
    lambda family: st.builds(
        Entry,
        st.integers(0, 0xFFFFFFFF),
        st.sampled_from([TCP, UDP, 132]),
        *(packed(family),) * 2,
        ports,
        ports,
        *(packed(family),) * 2,
        ports,
        ports,
    )
)


@given(entries, st.booleans(), st.sampled_from([b"", attribute(18, bytes(2))]))
def test_an_entry_is_read_whatever_else_it_has(entry: Entry, zone: bool, before: bytes) -> None:
    body = written(entry, zone, before)
    block = b"before" + body + b"behind"
    assert read_entry(block, 6, 6 + len(body)) == entry


@given(entries, st.sampled_from([1, 58]))
def test_what_has_no_ports_has_port_0(entry: Entry, protocol: int) -> None:
    body = written(entry._replace(protocol=protocol))
    wanted = entry._replace(protocol=protocol, source_port=0, target_port=0, answering_port=0, answered_port=0)
    assert read_entry(body, 0, len(body)) == wanted


@given(entries, st.data())
def test_an_entry_cut_short_or_damaged_is_none_or_another(entry: Entry, data: st.DataObject) -> None:
    body = bytearray(written(entry, data.draw(st.booleans())))
    for _ in range(data.draw(st.integers(0, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    found = read_entry(bytes(body), 0, data.draw(st.integers(0, len(body))))
    assert found is None or len(found.source) == len(found.answered) in (4, 16)


@given(st.binary(max_size=300))
def test_what_is_no_entry_is_none(octets: bytes) -> None:
    for block in (octets, bytes([socket.AF_INET]) + octets, bytes([socket.AF_INET6]) + octets):
        found = read_entry(block, 0, len(block))
        assert found is None or len(found.source) in (4, 16)
        read_socket(block, 0, len(block))
        routes.is_attached(Family.V4, block)


def between(
    source: bytes,
    target: bytes,
    answering: bytes | None = None,
    answered: bytes | None = None,
    protocol: int = TCP,
    status: int = SEEN_REPLY | ASSURED,
) -> Entry:
    return Entry(status, protocol, source, target, 40000, 443, answering or target, answered or source, 8443, 50000)


def who_began(flow: Flow) -> str:
    return "outgoing" if flow.outgoing else "incoming"


def judged(
    entry: Entry, behind: bytes = b"", wanted: Callable[[bytes], bool] = lambda _: True
) -> set[tuple[object, ...]]:
    found = flows_of(entry, {OWN}, wanted, lambda _address, port: port == 22, lambda address: address == behind)
    return {(flow.address, flow.port, who_began(flow), flow.opened_here, flow.established) for flow in found}


@pytest.mark.parametrize(
    ("entry", "behind", "flows"),
    [
        (between(OWN, FAR), b"", {("203.0.113.7", 8443, "outgoing", True, True)}),
        (between(OWN, FAR, status=0), b"", {("203.0.113.7", 8443, "outgoing", True, False)}),
        (between(OWN, OTHER, FAR), b"", {("203.0.113.7", 8443, "outgoing", True, True)}),
        (between(OWN, OTHER, OWN), b"", set()),
        (between(OWN, OWN), b"", set()),
        (between(FAR, OWN), b"", {("203.0.113.7", 443, "incoming", True, True)}),
        # Our one answer proves nothing of a stranger.
        (between(FAR, OWN, status=SEEN_REPLY), b"", {("203.0.113.7", 443, "incoming", True, False)}),
        # A published port: the machine behind it is called by a rule of ours.
        (
            between(FAR, OWN, NEAR),
            b"",
            {("203.0.113.7", 443, "incoming", False, True), ("10.77.0.2", 8443, "outgoing", False, True)},
        ),
        # Passed on for a machine behind us, as it is and under our address.
        (
            between(NEAR, FAR),
            NEAR,
            {("10.77.0.2", 443, "incoming", False, True), ("203.0.113.7", 8443, "outgoing", False, True)},
        ),
        (
            between(NEAR, FAR, answered=OWN),
            b"",
            {("10.77.0.2", 443, "incoming", False, True), ("203.0.113.7", 8443, "outgoing", False, True)},
        ),
        # Passed on for a stranger: he does not choose whom we called.
        (
            between(FAR, OTHER),
            NEAR,
            {("203.0.113.7", 443, "incoming", False, True), ("192.0.2.1", 8443, "incoming", False, True)},
        ),
        # An answer of our server that was tracked first, and of a UDP server likewise, whose port tells nothing.
        (between(OWN, FAR)._replace(source_port=22), b"", {("203.0.113.7", 22, "incoming", True, True)}),
        (
            between(OWN, FAR, protocol=UDP)._replace(source_port=22),
            b"",
            {("203.0.113.7", 8443, "outgoing", True, True)},
        ),
    ],
)
def test_who_sent_first_decides(entry: Entry, behind: bytes, flows: set[tuple[object, ...]]) -> None:
    assert judged(entry, behind) == flows
    assert judged(entry, behind, lambda _: False) == set()
    assert judged(entry, behind, lambda address: address == FAR) == {each for each in flows if each[0] == "203.0.113.7"}


@given(entries, st.booleans())
def test_nobody_whose_packet_came_first_is_outgoing(entry: Entry, behind: bool) -> None:
    found = flows_of(entry, {entry.target}, lambda _: True, lambda _address, _port: False, lambda _: behind)
    source = int.from_bytes(entry.source, "big")
    assert not [flow for flow in found if flow.outgoing and flow.peer == source and entry.source != entry.target]


# Sockets


def diag(family: Family, state: int, local: bytes, remote: bytes, timer: int = 0, retransmissions: int = 0) -> bytes:
    number = 10 if family is Family.V6 else 2
    ends = local.ljust(16, b"\0") + remote.ljust(16, b"\0")
    return struct.pack(">BBBBHH", number, state, timer, retransmissions, 40000, 443) + ends + bytes(32)


def test_a_socket_is_read_and_ipv4_within_ipv6_is_ipv4() -> None:
    mapped = bytes(10) + b"\xff\xff"
    for body in (
        diag(Family.V4, sockets.ESTABLISHED, OWN, FAR),
        diag(Family.V6, sockets.ESTABLISHED, mapped + OWN, mapped + FAR),
    ):
        assert read_socket(b"--" + body, 2, 2 + len(body)) == Socket(1, False, OWN, 40000, FAR, 443)
    far = b"\x20\x01" + bytes(13) + b"\x07"
    assert read_socket(diag(Family.V6, 1, bytes(16), far), 0, 72) == Socket(1, False, sockets.ANYWHERE, 40000, far, 443)
    assert read_socket(diag(Family.V4, 1, OWN, FAR)[:71], 0, 71) is None


@pytest.mark.parametrize(
    ("state", "timer", "retransmissions", "unanswered"),
    [(1, 0, 0, False), (1, 1, 0, False), (1, 1, 2, True), (1, 2, 2, False), (8, 0, 0, False), (2, 1, 0, True)],
)
def test_what_is_sent_again_is_unanswered(state: int, timer: int, retransmissions: int, unanswered: bool) -> None:
    each = read_socket(diag(Family.V4, state, OWN, FAR, timer, retransmissions), 0, 72)
    assert each
    flow = socket_flow(each, TCP, False, range(32768, 61000))
    assert (flow.outgoing, flow.established, flow.unanswered) == (True, state != 2, unanswered)


@pytest.mark.parametrize(
    ("state", "port", "listens", "protocol", "wanted"),
    [
        (sockets.ESTABLISHED, 40000, False, TCP, ("outgoing", 443)),
        (sockets.ESTABLISHED, 40000, True, TCP, ("incoming", 40000)),
        (sockets.ESTABLISHED, 800, False, TCP, ("incoming", 800)),
        (sockets.SYN_SENT, 800, True, TCP, ("outgoing", 443)),
        (sockets.SYN_RECEIVED, 40000, False, TCP, ("incoming", 40000)),
        (sockets.ESTABLISHED, 40000, False, UDP, ("outgoing", 443)),
        (sockets.ESTABLISHED, 40000, True, UDP, ("incoming", 40000)),
    ],
)
def test_who_called_is_told_by_the_state_and_the_port(
    state: int, port: int, listens: bool, protocol: int, wanted: tuple[str, int]
) -> None:
    flow = socket_flow(Socket(state, False, OWN, port, FAR, 443), protocol, listens, range(32768, 61000))
    assert (who_began(flow), flow.port) == wanted
    assert flow.address == "203.0.113.7"


# Routes


@pytest.mark.parametrize(
    ("length", "kind", "extra", "attached"),
    [
        (24, 1, b"", True),
        (32, 1, b"", True),
        (0, 1, b"", False),
        (1, 1, b"", False),  # half of everything, as VPNs have it
        (24, 1, attribute(5, FAR), False),
        (24, 1, attribute(18, bytes(2) + bytes(16)), False),
        (24, 7, b"", False),  # unreachable
    ],
)
def test_what_is_straight_behind_an_interface_is_attached(length: int, kind: int, extra: bytes, attached: bool) -> None:
    body = struct.pack("=BBBBBBBBI", 2, length, 0, 0, 254, 2, 253, kind, 0) + attribute(4, bytes(4)) + extra
    assert routes.is_attached(Family.V4, body) is attached


# What is made of flows


def flow(
    peer: bytes, outgoing: bool = True, *, here: bool = True, established: bool = True, unanswered: bool = False
) -> Flow:
    return Flow(
        Family.V4 if len(peer) == 4 else Family.V6,
        int.from_bytes(peer, "big"),
        UDP,
        53,
        outgoing,
        here,
        established,
        unanswered,
    )


def listed(*singles: bytes, ranges: tuple[Prefix, ...] = ()) -> Blocklist:
    return Blocklist(Networks(Family.V4, b"".join(sorted(singles)), Ranges.of(Family.V4, ranges)))


def test_each_peer_is_newly_dropped_once_and_outgoing_ones_come_first() -> None:
    caller, called, passed, held = (bytes([203, 0, 113, number]) for number in (1, 2, 3, 4))
    flows = [
        flow(caller, False),
        flow(passed, here=False),
        flow(called, False),
        flow(called),
        flow(bytes([203, 0, 113, 9]), established=False),
        flow(held),
        flow(OTHER),
    ]
    everyone = listed(OTHER, ranges=(Prefix(int.from_bytes(caller, "big") & ~0xFF, 24),))
    found = newly_dropped(flows, everyone, listed(held, OTHER))
    assert found == (flow(called), flow(passed, here=False), flow(caller, False))
    assert newly_dropped(flows, everyone, everyone) == ()


def test_opened_is_what_is_new_or_has_no_answer_and_nothing_that_came() -> None:
    old, new, silent, came = (bytes([203, 0, 113, number]) for number in (1, 2, 3, 4))
    before = [flow(old), flow(silent, unanswered=True)]
    now = [flow(old), flow(new), flow(silent, unanswered=True), flow(came, False)]
    assert opened_since(before, now) == (flow(new), flow(silent, unanswered=True))
    # What was seen on the wire counts too, but not against a better witness, then or now.
    sent = [flow(came, established=False, unanswered=True), flow(OTHER, established=False, unanswered=True)]
    assert opened_since(before, now, sent)[0].address == "192.0.2.1"
    assert len(opened_since(before, now, sent)) == 3
    assert len(opened_since([*before, flow(came, False)], now[:-1], sent)) == 3


addresses = st.integers(0, 40) | st.integers(0, (1 << 32) - 1)


@given(
    families,
    st.lists(st.tuples(addresses, st.integers(20, 128)), max_size=12),
    st.lists(addresses, max_size=5),
    st.data(),
)
def test_newly_covered_says_what_the_lists_say(
    family: Family, entries: list[tuple[int, int]], held: list[int], data: st.DataObject
) -> None:
    shift = data.draw(st.sampled_from([0, 32, 64, 90])) if family is Family.V6 else 0
    prefixes = [
        Prefix(address << shift >> family.bits - length << family.bits - length, length)
        for address, length in ((address, min(length, family.bits)) for address, length in entries)
    ]
    lists = []
    for wanted in (prefixes, [Prefix(address << shift, family.bits) for address in held]):
        networks = gather(family, [], wanted)
        lists.append(Blocklist(networks) if family is Family.V4 else Blocklist(v6=networks))
    candidate, committed = lists
    covered = NewlyCovered(candidate, committed)
    asked = [*(prefix.first for prefix in prefixes), *(prefix.last(family) for prefix in prefixes)]
    for address in [*asked, *(each + 1 for each in asked), data.draw(addresses) << shift]:
        address %= 1 << family.bits
        expected = candidate.of(family).find(address) and not committed.of(family).find(address)
        assert covered(family, address) is bool(expected)


# Reading


def test_connection_tracking_that_is_not_in_use_is_not_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # To ask for it would have the kernel load it.
    asked: list[int] = []
    monkeypatch.setattr(edge, "NetlinkReader", lambda protocol, *_: asked.append(protocol))
    count = tmp_path / "nf_conntrack_count"
    monkeypatch.setattr(edge, "_TRACKED", count)
    for text in (None, "0\n"):
        if text is not None:
            count.write_text(text)
        assert edge._Reading(frozenset(), None).read_tracked() is False
    assert asked == []
    count.write_text("1\n")
    with suppress(AttributeError, TypeError):
        edge._Reading(frozenset(), None).read_tracked()
    assert asked == [edge._NETFILTER]


def test_flows_are_bounded_and_strangers_push_out_none_of_ours(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(edge, "_MOST", 5)
    reading = edge._Reading(frozenset({OWN}), None)
    for number in range(20):
        reading._add(flow(bytes([203, 0, 113, number]), False))
    for number in range(3):
        reading._add(flow(bytes([203, 0, 113, number])))
    found = reading.flows()
    assert [each.outgoing for each in found].count(True) == 3
    assert len(found) == 8
    assert "more connections than the 5" in caplog.text


def test_a_hundred_thousand_entries_are_read_in_the_time_of_some_microseconds_each() -> None:
    dice = random.Random(1)
    block = b"".join(request(conntrack.GET, 0, 1, written(between(dice.randbytes(4), OWN))) for _ in range(2_000))
    began = time.process_time()
    for _ in range(10):
        for _kind, _flags, start, end in messages(block, 1):
            entry = read_entry(block, start, end)
            assert entry
            assert not flows_of(entry, {OWN}, lambda _: False, lambda *_: False, lambda _: False)
    # Measured: 1.5 us. A reader that walked all attributes would take twenty.
    assert (time.process_time() - began) / 20_000 < 15e-6
