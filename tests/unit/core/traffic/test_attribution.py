"""Whose packets were dropped, against a kernel that counts while its sets are being changed for empty ones."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st

from sikkerguard.core.firewall.names import CountingSets, set_names
from sikkerguard.core.net.family import Family
from sikkerguard.core.services.protocols import REPLY
from sikkerguard.core.traffic.attribution import Attribution, attribute
from sikkerguard.core.traffic.sample import UNATTRIBUTED, FlowKey, Hit, Source, TrafficSample
from tests.unit.core.firewall.netfilter import OCTETS, PORTS, Netfilter, Packet

if TYPE_CHECKING:
    from collections.abc import Iterator

# What a drain tells apart further on.
KEYS = 4096
NAMES = set_names(Family.V4)


def address(number: int) -> bytes:
    return number.to_bytes(4, "big")


def hit(source: int, port: int, packets: int, protocol: int = 6) -> Hit:
    return address(source), port, protocol, packets * OCTETS, packets


def count(source: int, packets: int) -> Source:
    return address(source), packets * OCTETS, packets


def drain(hits: list[Hit], sources: list[Source]) -> TrafficSample:
    return TrafficSample(hits=[hits], sources=[sources])


def listed(netfilter: Netfilter) -> TrafficSample:
    """What lies in the sets that were changed for others, which are emptied."""
    begun, replies = (_listed(netfilter, each) for each in (NAMES.counting_begun(), NAMES.counting_replies()))
    return TrafficSample(hits=[begun[0]], sources=[begun[1]], replies=[replies[0]], repliers=[replies[1]])


def _listed(netfilter: Netfilter, counting: CountingSets) -> tuple[list[Hit], list[Source]]:
    by_port, by_source = netfilter.sets[counting.old_by_port], netfilter.sets[counting.old_by_source]
    found = (
        [hit(each[0], each[1], packets) for each, packets in by_port.items() if isinstance(each, tuple)],
        [count(each, packets) for each, packets in by_source.items() if isinstance(each, int)],
    )
    by_port.clear()
    by_source.clear()
    return found


def test_a_packet_that_made_an_entry_is_named_by_it_alone() -> None:
    named = attribute(drain([hit(1, 23, 47), hit(1, 22, 3), hit(2, 53, 2, 17)], [count(1, 2), count(2, 1)]), {})
    assert named == Attribution(
        packets=52,
        largest=(((address(1), 6, 23), 47), ((address(1), 6, 22), 3), ((address(2), 17, 53), 2)),
        ports={(6, 23): 47, (6, 22): 3, (17, 53): 2},
        owed={},
    )


def test_packets_that_have_no_entry_are_named_by_their_source() -> None:
    named = attribute(drain([hit(1, 23, 5)], [count(1, 1001), count(2, 7)]), {})
    assert named == Attribution(
        packets=1012,
        largest=(
            ((address(1), UNATTRIBUTED, UNATTRIBUTED), 1000),
            ((address(2), UNATTRIBUTED, UNATTRIBUTED), 7),
            ((address(1), 6, 23), 5),
        ),
        ports={(6, 23): 5, (UNATTRIBUTED, UNATTRIBUTED): 1007},
        owed={},
    )


def test_entries_whose_sources_are_counted_later_are_owed_and_settled() -> None:
    # As when packets come between the changes of the two sets.
    first = attribute(drain([hit(1, 23, 5), hit(1, 22, 1), hit(2, 23, 1)], [count(1, 1)]), {})
    assert first.packets == 7
    assert first.owed == {(address(1), UNATTRIBUTED): 1, (address(2), UNATTRIBUTED): 1}
    second = attribute(drain([hit(2, 23, 4)], [count(1, 3), count(2, 2)]), first.owed)
    assert (second.packets, second.owed) == (6, {})
    assert second.largest == (((address(2), 6, 23), 4), ((address(1), UNATTRIBUTED, UNATTRIBUTED), 2))


def test_nothing_is_named_of_nothing() -> None:
    nothing = Attribution(packets=0, largest=(), ports={}, owed={})
    assert attribute(TrafficSample(), {}) == attribute(drain([], []), {}) == nothing


def test_both_families_are_named() -> None:
    v6 = bytes(15) + b"\1"
    both = TrafficSample(hits=[[hit(1, 23, 2)], [(v6, 22, 6, 80, 1)]], sources=[[count(1, 1)], [(v6, 80, 1)]])
    named = attribute(both, {})
    assert (named.packets, named.owed) == (3, {})
    assert dict(named.largest) == {(address(1), 6, 23): 2, (v6, 6, 22): 1}


def test_of_more_than_are_told_apart_the_largest_are_and_all_are_counted() -> None:
    hits = [hit(source, 23, 1 + source % 3) for source in range(3 * KEYS)]
    named = attribute(drain(hits, [count(source, 1) for source in range(3 * KEYS)]), {})
    assert len(named.largest) == KEYS
    assert {packets for _, packets in named.largest} == {3}
    assert named.packets == sum(packets for *_, packets in hits) == named.ports[6, 23]
    assert named.owed == {}


def test_replies_are_named_apart_from_what_their_source_began() -> None:
    both = TrafficSample(
        hits=[[hit(1, 23, 5)]],
        sources=[[count(1, 8)]],
        replies=[[hit(1, 443, 40), hit(1, 53, 6, 17)]],
        repliers=[[count(1, 3), count(2, 9)]],
    )
    named = attribute(both, {})
    assert set(named.largest) == {
        ((address(1), 6, 23), 5),
        ((address(1), UNATTRIBUTED, UNATTRIBUTED), 7),
        ((address(1), REPLY, 443), 40),
        # What is behind an extension header need not be TCP, and its port is not told.
        ((address(1), REPLY, UNATTRIBUTED), 6),
        ((address(1), REPLY, UNATTRIBUTED), 1),
        ((address(2), REPLY, UNATTRIBUTED), 9),
    }
    assert sum(packets for _, packets in named.largest) == named.packets == 68
    assert named.ports == {(6, 23): 5, (UNATTRIBUTED, UNATTRIBUTED): 7, (REPLY, 443): 40, (REPLY, UNATTRIBUTED): 16}
    assert (named.replies(), named.owed) == (56, {})


def test_what_is_owed_of_replies_is_owed_of_nothing_else() -> None:
    first = attribute(TrafficSample(hits=[[hit(1, 23, 2)]], replies=[[hit(1, 443, 4)]]), {})
    assert first.owed == {(address(1), UNATTRIBUTED): 1, (address(1), REPLY): 1}
    second = attribute(TrafficSample(sources=[[count(1, 3)]], repliers=[[count(1, 1)]]), first.owed)
    assert (second.largest, second.owed) == ((((address(1), UNATTRIBUTED, UNATTRIBUTED), 2),), {})


def test_replies_take_no_place_from_what_may_be_reported() -> None:
    flood = [hit(source, 443, 1000) for source in range(2 * KEYS)]
    named = attribute(TrafficSample(hits=[[hit(1, 23, 1)]], sources=[[count(1, 1)]], replies=[flood]), {})
    assert ((address(1), 6, 23), 1) in named.largest
    assert len(named.largest) == KEYS + 1


# Packets from one source to some ports in a row, None being such that name none, or replies.
scans = st.tuples(st.integers(1, 5), st.none() | st.integers(0, 4), st.integers(1, PORTS + 6), st.booleans())
# A packet that is on its way when a set is changed, and after how many steps.
caught = st.none() | st.tuples(st.integers(1, 5), st.none() | st.integers(0, 9), st.integers(1, 24), st.booleans())
# A reading: packets before it, a packet caught by the first change, packets between the two, one caught by the second.
readings = st.tuples(st.lists(scans, max_size=4), caught, st.lists(scans, max_size=3), caught)
Scan = tuple[int, int | None, int, bool]
Reading = tuple[list[Scan], Scan | None, list[Scan], Scan | None]


class Sender:
    """Sends packets into a kernel, and knows how many of each kind, and how many of them its sets counted."""

    def __init__(self, netfilter: Netfilter) -> None:
        self.netfilter = netfilter
        self.sent: Counter[FlowKey] = Counter()
        self.counted = 0

    def send(self, drawn: list[Scan]) -> None:
        for source, first, number, reply in drawn:
            for further in range(number):
                self._one(Packet(source, None if first is None else first + further, reply))

    def _one(self, packet: Packet) -> None:
        before = self.netfilter.named()
        self.netfilter.run(packet)
        self.counted += self.netfilter.named() - before
        self._remember(packet)

    def _remember(self, packet: Packet) -> None:
        place = (REPLY if packet.reply else UNATTRIBUTED, UNATTRIBUTED)
        if packet.port is not None:
            place = (REPLY if packet.reply else 6, packet.port)
        self.sent[address(packet.source), *place] += 1

    def swap(self, one: str, other: str, on_its_way: Scan | None) -> None:
        """Change a set for another, while that packet is on its way."""
        held = self._held()
        steps: Iterator[None] = iter(())
        if on_its_way:
            source, port, number, reply = on_its_way
            packet = Packet(source, port, reply)
            self._remember(packet)
            steps = self.netfilter.steps(packet)
            for _ in range(number):
                next(steps, None)
        self.netfilter.swap(one, other)
        for _ in steps:
            pass
        self.counted += self._held() - held

    def _held(self) -> int:
        """What the sets and those that were changed for them know together."""
        total = 0
        for counting in (NAMES.counting_begun(), NAMES.counting_replies()):
            by_port, by_source, old_by_port, old_by_source = (self.netfilter.sets[each] for each in counting.all())
            entries = [*by_port.values(), *old_by_port.values()]
            total += sum(entries) + sum(by_source.values()) + sum(old_by_source.values()) - len(entries)
        return total


def check_all_named(names: list[Attribution], sender: Sender) -> None:
    assert names[-1].owed == {}
    assert sum(named.packets for named in names) == sender.counted
    told: Counter[FlowKey] = Counter()
    for named in names:
        assert named.packets == sum(named.ports.values()) == sum(packets for _, packets in named.largest)
        assert all(packets > 0 for _, packets in named.largest)
        told.update(dict(named.largest))
    sources: Counter[tuple[bytes, bool]] = Counter()
    for (source, protocol, _), packets in sender.sent.items():
        sources[source, protocol == REPLY] += packets
    for (source, protocol, port), packets in told.items():
        most = sources[source, protocol == REPLY] if port == UNATTRIBUTED else sender.sent[source, protocol, port]
        assert packets <= most
    of_source: Counter[tuple[bytes, bool]] = Counter()
    for (source, protocol, _), packets in told.items():
        of_source[source, protocol == REPLY] += packets
    assert all(packets <= sources[each] for each, packets in of_source.items())
    assert sum(named.replies() for named in names) == sum(told[key] for key in told if key[1] == REPLY)
    # No packet is named that was not dropped, and where there was room every one is.
    assert sender.counted <= sender.netfilter.dropped


@settings(deadline=None, max_examples=300)
@given(st.lists(readings, max_size=6), st.sampled_from([0, 2, 70, 1000]), st.sampled_from([1, 3, 1000]))
def test_every_packet_that_the_sets_counted_is_named_once(
    drawn: list[Reading], hits_room: int, sources_room: int
) -> None:
    rooms = {NAMES.hits: hits_room, NAMES.sources: sources_room}
    rooms |= {NAMES.replies: hits_room, NAMES.repliers: sources_room}
    sender = Sender(Netfilter(Family.V4, frozenset({NAMES.singles}), rooms))
    names, owed = list[Attribution](), dict[tuple[bytes, int], int]()
    for before, first, between, second in [*drawn, ([], None, [], None), ([], None, [], None)]:
        sender.send(before)
        # As the meter does it.
        for counting in (NAMES.counting_begun(), NAMES.counting_replies()):
            sender.swap(counting.by_source, counting.old_by_source, first)
            sender.send(between)
            sender.swap(counting.by_port, counting.old_by_port, second)
        names.append(attribute(listed(sender.netfilter), owed))
        owed = dict(names[-1].owed)
    check_all_named(names, sender)
    if sources_room == 1000:
        assert sender.counted == sender.netfilter.dropped == sum(sender.sent.values())


def test_listings_are_only_gone_through() -> None:
    # A listing need not be a list: a hundred thousand entries are not made into objects.
    hits, sources = {hit(1, 23, 5): None}.keys(), {count(1, 1): None}.keys()
    named = attribute(TrafficSample(hits=[hits], sources=[sources]), {})
    assert (named.packets, named.owed) == (5, {})
