"""Whom the host called, by its packets: what the kernel's filter lets through, and what is made of it."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sikkerguard.core.host.openings import Openings, Packet, read_packet
from sikkerguard.core.host.socket_filter import FROM_US, SNAP, TO_US, first_packets
from sikkerguard.core.net.family import Family
from sikkerguard.core.ports.protocols import TCP, UDP

OWN = {Family.V4: socket.inet_aton("198.51.100.10"), Family.V6: socket.inet_pton(socket.AF_INET6, "2001:db8:1::10")}
FAR = {Family.V4: socket.inet_aton("203.0.113.7"), Family.V6: socket.inet_pton(socket.AF_INET6, "2001:db8:7::7")}
SYN, ACK, RST, FIN, PUSH = 0x02, 0x10, 0x04, 0x01, 0x08
ESP, SCTP = 50, 132
WAN, LOOPBACK = 4, 1
BOUND = 53


@dataclass(frozen=True)
class Sent:
    """A packet and the way that it took. Its content is a TCP header, an ICMP type, or two ports."""

    family: Family = Family.V4
    protocol: int = UDP
    ports: tuple[int, int] = (40000, 53)
    flags: int = SYN
    kind: int = FROM_US
    interface: int = WAN
    source: bytes = b""
    target: bytes = b""
    options: int = 0
    fragment: int = 0
    ethertype: int = 0

    def ends(self) -> tuple[bytes, bytes]:
        mine, theirs = OWN[self.family], FAR[self.family]
        usual = (mine, theirs) if self.kind == FROM_US else (theirs, mine)
        return self.source or usual[0], self.target or usual[1]

    def octets(self) -> bytes:
        number = self.protocol
        if self.family is Family.V6 and number == 1:
            number = 58
        body = struct.pack(">HH", *self.ports) + bytes(8) + bytes([0x50, self.flags]) + bytes(6)
        if self.protocol == 1:
            body = bytes([self.flags]) + bytes(7)
        source, target = self.ends()
        if self.family is Family.V6:
            return struct.pack(">IHBB", 6 << 28, len(body), number, 64) + source + target + body
        size = 5 + self.options
        head = struct.pack(">BBHHHBBH", 4 << 4 | size, 0, 4 * size + len(body), 0, self.fragment, 64, number, 0)
        return head + source + target + bytes(4 * self.options) + body


def allowed(program: bytes, sent: Sent) -> int:
    """How much of the packet the program lets through: the kernel's filter machine, as far as we use it."""
    octets, at, a, x = sent.octets(), 0, 0, 0
    memory: dict[int, int] = {}
    ancillary = {
        0xFFFFF000: sent.ethertype or (0x86DD if sent.family is Family.V6 else 0x0800),
        0xFFFFF004: sent.kind,
        0xFFFFF008: sent.interface,
    }
    steps = 0
    while True:
        steps += 1
        assert steps <= 4096
        code, true, false, k = struct.unpack_from("=HBBI", program, 8 * at)
        at += 1
        if code in (0x20, 0x28, 0x30, 0x48, 0x50):
            size = {0x20: 4, 0x28: 2, 0x30: 1, 0x48: 2, 0x50: 1}[code]
            start = k + (x if code in (0x48, 0x50) else 0)
            if k in ancillary:
                a = ancillary[k]
            elif start + size > len(octets):
                return 0
            else:
                a = int.from_bytes(octets[start : start + size], "big")
        elif code == 0xB1:
            x = 4 * (octets[k] & 0x0F)
        elif code == 0x01:
            x = k
        elif code == 0x02:
            memory[k] = a
        elif code == 0x60:
            a = memory[k]
        elif code == 0x54:
            a &= k
        elif code == 0x05:
            at += k
        elif code == 0x15:
            at += true if a == k else false
        elif code == 0x45:
            at += true if a & k else false
        else:
            assert code == 0x06, hex(code)
            return int(k)


def expected(sent: Sent, own: set[bytes], bound: set[int]) -> bool:
    """The same in words."""
    outgoing = sent.kind == FROM_US
    if sent.interface == LOOPBACK or sent.kind not in (FROM_US, TO_US) or sent.ethertype:
        return False
    if outgoing and sent.ends()[0] not in own:
        return False
    if sent.family is Family.V4 and sent.fragment & 0x1FFF:
        return False
    if sent.protocol == UDP:
        return sent.ports[0 if outgoing else 1] not in bound
    if sent.protocol == TCP:
        return outgoing and sent.flags & (SYN | ACK | RST | FIN) == SYN
    if sent.protocol == 1:
        return outgoing and sent.flags == (8 if sent.family is Family.V4 else 128)
    return outgoing and sent.protocol == ESP


port_numbers = st.sampled_from([53, 123, 40000]) | st.integers(0, 0xFFFF)
packets = st.builds(
    Sent,
    st.sampled_from(Family),
    st.sampled_from([UDP, TCP, 1, ESP, SCTP]),
    st.tuples(port_numbers, port_numbers),
    st.sampled_from([SYN, ACK, SYN | ACK, SYN | PUSH, SYN | RST, 8, 128, 0]),
    st.sampled_from([FROM_US, TO_US, 3]),
    st.sampled_from([WAN, LOOPBACK]),
    options=st.integers(0, 10),
    fragment=st.sampled_from([0, 0x4000, 0x2000, 0x2001, 185]),
    ethertype=st.sampled_from([0, 0, 0, 0x0806]),
)
strangers = st.lists(st.binary(min_size=4, max_size=4) | st.binary(min_size=16, max_size=16), max_size=6)


@settings(max_examples=400)
@given(packets, strangers, st.booleans(), st.sets(port_numbers, max_size=8))
def test_the_filter_lets_through_what_may_be_first(
    sent: Sent, others: list[bytes], ours: bool, bound: set[int]
) -> None:
    own = {*others, *(OWN.values() if ours else ())}
    program = first_packets(own, bound)
    assert allowed(program, sent) == (SNAP if expected(sent, own, bound) else 0)


def test_the_filter_is_never_longer_than_the_kernel_takes_it() -> None:
    many = [number.to_bytes(4, "big") for number in range(9_000)] + [bytes(14) + bytes([1, n]) for n in range(100)]
    for own in (many, many[:100] + many[-100:]):
        program = first_packets(own, range(2_000))
        assert len(program) <= 8 * 4096
        sent = Sent(ports=(1_999, 53), source=own[99])
        # More than it can know is let through, and judged later.
        assert allowed(program, sent) == SNAP
        assert allowed(program, Sent(ports=(999, 53), source=own[99])) == 0
    # All that it was told of are known to it.
    known = first_packets(many[:100] + many[-100:], ())
    assert allowed(known, Sent(source=many[99])) == SNAP
    assert allowed(known, Sent(Family.V6, source=many[-1])) == SNAP
    assert allowed(known, Sent(source=many[100])) == 0


@given(packets.filter(lambda sent: sent.ethertype == 0 and not sent.fragment & 0x1FFF))
def test_a_packet_is_read(sent: Sent) -> None:
    found = read_packet(sent.octets()[:SNAP])
    assert found
    source, target = sent.ends()
    ports = sent.ports if sent.protocol in (TCP, UDP) else (0, 0)
    assert found[:3] == (sent.family, source, target)
    assert (found.source_port, found.target_port) == ports
    left = replace(sent, kind=FROM_US, interface=WAN, source=source, target=target)
    assert found.opens == (sent.protocol != UDP and expected(left, {source}, set()))


@given(st.binary(max_size=120))
def test_what_is_no_packet_is_none(octets: bytes) -> None:
    for block in (octets, b"\x45" + octets, b"\x60" + octets):
        found = read_packet(block)
        assert found is None or len(found.source) == found.family.size


@dataclass
class Watched:
    """What a host with one address of each family and one bound port sent and got."""

    openings: Openings = field(default_factory=lambda: Openings(set(OWN.values()), {BOUND}))

    def left(self, **changed: object) -> Watched:
        self.openings.left(self._read(Sent(kind=FROM_US, **changed)))  # type: ignore[arg-type]
        return self

    def came(self, **changed: object) -> Watched:
        self.openings.came(self._read(Sent(kind=TO_US, **changed)))  # type: ignore[arg-type]
        return self

    def missed(self) -> Watched:
        self.openings.missed()
        return self

    @staticmethod
    def _read(sent: Sent) -> Packet:
        packet = read_packet(sent.octets())
        assert packet
        return packet

    def called(self) -> set[tuple[str, int, int]]:
        found = self.openings.called()
        assert all(each.outgoing and each.opened_here and each.unanswered and not each.established for each in found)
        return {(each.address, each.protocol, each.port) for each in found}


@pytest.mark.parametrize(
    ("watched", "called"),
    [
        (Watched().left(), {("203.0.113.7", UDP, 53)}),
        (Watched().left(family=Family.V6), {("2001:db8:7::7", UDP, 53)}),
        (Watched().left().came(ports=(53, 40000)).left(), {("203.0.113.7", UDP, 53)}),
        # Whoever sent first was answered.
        (Watched().came(ports=(5000, 40000)).left(ports=(40000, 5000)), set()),
        (Watched().came(ports=(5000, 69)).left(ports=(40000, 5001)), set()),
        (Watched().left(ports=(BOUND, 5000)), set()),
        (Watched().missed().left(), set()),
        (Watched().left().missed(), {("203.0.113.7", UDP, 53)}),
        # TCP, pings and tunnels tell by themselves.
        (Watched().missed().left(protocol=TCP, ports=(40000, 443)), {("203.0.113.7", TCP, 443)}),
        (Watched().left(protocol=TCP, flags=SYN | ACK), set()),
        (Watched().left(protocol=TCP, flags=RST), set()),
        (Watched().left(protocol=TCP, flags=ACK), set()),
        (Watched().left(protocol=1, flags=8), {("203.0.113.7", 1, 0)}),
        (Watched().left(protocol=1, flags=0), set()),
        (Watched().left(protocol=1, flags=3), set()),
        (Watched().left(protocol=ESP), {("203.0.113.7", ESP, 0)}),
        (Watched().left(protocol=SCTP), set()),
        # Passed on, and to ourselves.
        (Watched().left(source=socket.inet_aton("10.77.0.2")), set()),
        (Watched().left(target=OWN[Family.V4]), set()),
        (Watched().came(protocol=TCP), set()),
    ],
)
def test_only_whom_we_called_first_counts(watched: Watched, called: set[tuple[str, int, int]]) -> None:
    assert watched.called() == called


@given(st.lists(st.tuples(st.booleans(), st.sampled_from([UDP, TCP]), st.integers(1, 4)), max_size=30))
def test_no_order_of_packets_makes_a_peer_called_who_sent_first(steps: list[tuple[bool, int, int]]) -> None:
    watched = Watched()
    first: dict[tuple[bytes, int], bool] = {}
    for outgoing, protocol, number in steps:
        peer = bytes([203, 0, 113, number])
        first.setdefault((peer, protocol), outgoing)
        if outgoing:
            watched.left(protocol=protocol, flags=SYN if first[peer, protocol] else SYN | ACK, target=peer)
        else:
            watched.came(protocol=protocol, source=peer)
    wanted = {(socket.inet_ntoa(peer), protocol, 53) for (peer, protocol), ours in first.items() if ours}
    assert watched.called() == wanted


def test_a_flood_costs_a_bounded_memory_and_no_certainty() -> None:
    watched = Watched().left()
    for number in range(20_000):
        watched.came(source=number.to_bytes(4, "big"))
    # Of the last it is not known that they sent first: nobody is taken for called from now on.
    assert watched.left(target=(19_999).to_bytes(4, "big")).called() == {("203.0.113.7", UDP, 53)}
    for number in range(5_000):
        watched.left(protocol=TCP, target=(1 << 24 | number).to_bytes(4, "big"))
    assert len(watched.called()) == 4096
