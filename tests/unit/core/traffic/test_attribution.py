"""Whose packets were dropped, against a kernel that counts while its sets are being swapped for empty ones."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sikkerguard.core.firewall.names import CountingSets, set_names
from sikkerguard.core.net.family import Family
from sikkerguard.core.ports.protocols import REPLY
from sikkerguard.core.traffic.attribution import (
    CarryOver,
    Hit,
    SetListing,
    Source,
    SourceAddresses,
    attribute,
)
from sikkerguard.core.traffic.sample import UNATTRIBUTED, FlowKey, PacketCount, TrafficSample
from tests.unit.core.firewall.netfilter import OCTETS, PORTS, Netfilter, Packet

if TYPE_CHECKING:
    from collections.abc import Iterator

# Flows of a sample.
FLOWS = 4096
NAMES = set_names(Family.V4)


def address(number: int) -> bytes:
    return number.to_bytes(4, "big")


def hit(source: int, port: int, packets: int, protocol: int = 6) -> Hit:
    return address(source), port, protocol, packets * OCTETS, packets


def count(source: int, packets: int) -> Source:
    return address(source), packets * OCTETS, packets


def begun(hits: list[Hit], sources: list[Source]) -> SetListing:
    return SetListing(hits, sources)


def replied(hits: list[Hit], sources: list[Source]) -> SetListing:
    return SetListing(hits, sources, replies=True)


def sources_of(*listings: list[Source]) -> SourceAddresses:
    return SourceAddresses(listings)


def listed(netfilter: Netfilter) -> list[SetListing]:
    """What lies in the sets that were swapped for others, which are emptied."""
    return [begun(*_listed(netfilter, NAMES.counting_begun())), replied(*_listed(netfilter, NAMES.counting_replies()))]


def _listed(netfilter: Netfilter, counting: CountingSets) -> tuple[list[Hit], list[Source]]:
    by_port, by_source = netfilter.sets[counting.old_by_port], netfilter.sets[counting.old_by_source]
    found = (
        [hit(each[0], each[1], packets) for each, packets in by_port.items() if isinstance(each, tuple)],
        [count(each, packets) for each, packets in by_source.items() if isinstance(each, int)],
    )
    by_port.clear()
    by_source.clear()
    return found


def test_a_packet_that_made_an_entry_is_counted_by_it_alone() -> None:
    sources = [count(1, 2), count(2, 1)]
    found, carry_over = attribute([begun([hit(1, 23, 47), hit(1, 22, 3), hit(2, 53, 2, 17)], sources)], {})
    assert found == TrafficSample(
        attributed=52,
        replies=0,
        flows=(((address(1), 6, 23), 47), ((address(1), 6, 22), 3), ((address(2), 17, 53), 2)),
        ports={(6, 23): 47, (6, 22): 3, (17, 53): 2},
        sources=sources_of(sources),
    )
    assert carry_over == {}


def test_packets_that_have_no_entry_are_counted_by_their_source() -> None:
    sources = [count(1, 1001), count(2, 7)]
    found, carry_over = attribute([begun([hit(1, 23, 5)], sources)], {})
    assert found == TrafficSample(
        attributed=1012,
        replies=0,
        flows=(
            ((address(1), UNATTRIBUTED, UNATTRIBUTED), 1000),
            ((address(2), UNATTRIBUTED, UNATTRIBUTED), 7),
            ((address(1), 6, 23), 5),
        ),
        ports={(6, 23): 5, (UNATTRIBUTED, UNATTRIBUTED): 1007},
        sources=sources_of(sources),
    )
    assert carry_over == {}


def test_entries_whose_sources_are_counted_later_are_carried_over() -> None:
    # As when packets come between the swaps of the two sets.
    first, carry_over = attribute([begun([hit(1, 23, 5), hit(1, 22, 1), hit(2, 23, 1)], [count(1, 1)])], {})
    assert first.attributed == 7
    assert carry_over == {(address(1), UNATTRIBUTED): 1, (address(2), UNATTRIBUTED): 1}
    second, left = attribute([begun([hit(2, 23, 4)], [count(1, 3), count(2, 2)])], carry_over)
    assert (second.attributed, left) == (6, {})
    assert second.flows == (((address(2), 6, 23), 4), ((address(1), UNATTRIBUTED, UNATTRIBUTED), 2))


def test_of_nothing_nothing_is_attributed() -> None:
    assert attribute([], {}) == attribute([begun([], [])], {}) == (TrafficSample(sources=sources_of()), {})


def test_both_families_are_attributed() -> None:
    v6 = bytes(15) + b"\1"
    both = [begun([hit(1, 23, 2)], [count(1, 1)]), begun([(v6, 22, 6, 80, 1)], [(v6, 80, 1)])]
    found, carry_over = attribute(both, {})
    assert (found.attributed, carry_over) == (3, {})
    assert dict(found.flows) == {(address(1), 6, 23): 2, (v6, 6, 22): 1}
    assert list(found.sources) == [address(1), v6]
    assert len(found.sources) == 2
    assert v6 in found.sources
    assert address(2) not in found.sources


def test_of_more_than_are_told_apart_the_largest_are_and_all_are_counted() -> None:
    hits = [hit(source, 23, 1 + source % 3) for source in range(3 * FLOWS)]
    found, carry_over = attribute([begun(hits, [count(source, 1) for source in range(3 * FLOWS)])], {})
    assert len(found.flows) == FLOWS
    assert {packets for _, packets in found.flows} == {3}
    assert found.attributed == sum(packets for *_, packets in hits) == found.ports[6, 23]
    assert carry_over == {}


def test_replies_are_attributed_apart_from_what_their_source_began() -> None:
    both = [
        begun([hit(1, 23, 5)], [count(1, 8)]),
        replied([hit(1, 443, 40), hit(1, 53, 6, 17)], [count(1, 3), count(2, 9)]),
    ]
    found, carry_over = attribute(both, {})
    assert set(found.flows) == {
        ((address(1), 6, 23), 5),
        ((address(1), UNATTRIBUTED, UNATTRIBUTED), 7),
        ((address(1), REPLY, 443), 40),
        # What is behind an extension header need not be TCP, and its port is not summed.
        ((address(1), REPLY, UNATTRIBUTED), 6),
        ((address(1), REPLY, UNATTRIBUTED), 1),
        ((address(2), REPLY, UNATTRIBUTED), 9),
    }
    assert sum(packets for _, packets in found.flows) == found.attributed == 68
    assert found.ports == {(6, 23): 5, (UNATTRIBUTED, UNATTRIBUTED): 7, (REPLY, 443): 40, (REPLY, UNATTRIBUTED): 16}
    assert (found.replies, carry_over) == (56, {})
    assert set(found.sources) == {address(1), address(2)}


def test_what_is_carried_over_of_replies_is_of_nothing_else() -> None:
    _, carry_over = attribute([begun([hit(1, 23, 2)], []), replied([hit(1, 443, 4)], [])], {})
    assert carry_over == {(address(1), UNATTRIBUTED): 1, (address(1), REPLY): 1}
    second, left = attribute([begun([], [count(1, 3)]), replied([], [count(1, 1)])], carry_over)
    assert (second.flows, left) == ((((address(1), UNATTRIBUTED, UNATTRIBUTED), 2),), {})


def test_replies_take_no_place_from_what_may_be_reported() -> None:
    flood = [hit(source, 443, 1000) for source in range(2 * FLOWS)]
    found, _ = attribute([begun([hit(1, 23, 1)], [count(1, 1)]), replied(flood, [])], {})
    assert ((address(1), 6, 23), 1) in found.flows
    assert len(found.flows) == FLOWS + 1


def test_a_listing_has_the_packets_of_both_of_its_sets_and_their_mean_size() -> None:
    assert begun([], []).counted() == PacketCount(0, 0)
    assert begun([hit(1, 23, 5), hit(2, 23, 1)], [count(1, 3), count(2, 1)]).counted() == PacketCount(8, 8 * OCTETS)
    # The packet that made the entry is in both sets, whatever its size was.
    mixed = begun([(address(1), 23, 6, 300, 2)], [(address(1), 1500, 1)])
    assert mixed.counted() == PacketCount(2, 1200)


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
        """Swap a set for another, while that packet is on its way."""
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
        """What the sets and those that were swapped for them know together."""
        total = 0
        for counting in (NAMES.counting_begun(), NAMES.counting_replies()):
            by_port, by_source, old_by_port, old_by_source = (self.netfilter.sets[each] for each in counting.all())
            entries = [*by_port.values(), *old_by_port.values()]
            total += sum(entries) + sum(by_source.values()) + sum(old_by_source.values()) - len(entries)
        return total


def check_all_attributed(every: list[TrafficSample], sender: Sender) -> None:
    assert sum(found.attributed for found in every) == sender.counted
    summed: Counter[FlowKey] = Counter()
    for found in every:
        assert found.attributed == sum(found.ports.values()) == sum(packets for _, packets in found.flows)
        assert all(packets > 0 for _, packets in found.flows)
        summed.update(dict(found.flows))
    sources: Counter[tuple[bytes, bool]] = Counter()
    for (source, protocol, _), packets in sender.sent.items():
        sources[source, protocol == REPLY] += packets
    for (source, protocol, port), packets in summed.items():
        most = sources[source, protocol == REPLY] if port == UNATTRIBUTED else sender.sent[source, protocol, port]
        assert packets <= most
    of_source: Counter[tuple[bytes, bool]] = Counter()
    for (source, protocol, _), packets in summed.items():
        of_source[source, protocol == REPLY] += packets
    assert all(packets <= sources[each] for each, packets in of_source.items())
    assert {source for found in every for source in found.sources} == {source for source, _ in of_source}
    assert sum(found.replies for found in every) == sum(summed[key] for key in summed if key[1] == REPLY)
    # No packet is attributed that was not dropped, and where there was room every one is.
    assert sender.counted <= sender.netfilter.dropped


@pytest.mark.slow
@settings(max_examples=300)
@given(st.lists(readings, max_size=6), st.sampled_from([0, 2, 70, 1000]), st.sampled_from([1, 3, 1000]))
def test_every_packet_that_the_sets_counted_is_attributed_once(
    drawn: list[Reading], hits_room: int, sources_room: int
) -> None:
    rooms = {NAMES.hits: hits_room, NAMES.sources: sources_room}
    rooms |= {NAMES.replies: hits_room, NAMES.repliers: sources_room}
    sender = Sender(Netfilter(Family.V4, frozenset({NAMES.singles}), rooms))
    every = list[TrafficSample]()
    carry_over: CarryOver = {}
    for before, first, between, second in [*drawn, ([], None, [], None), ([], None, [], None)]:
        sender.send(before)
        # As the counter reader does it.
        for counting in (NAMES.counting_begun(), NAMES.counting_replies()):
            sender.swap(counting.by_source, counting.old_by_source, first)
            sender.send(between)
            sender.swap(counting.by_port, counting.old_by_port, second)
        found, carry_over = attribute(listed(sender.netfilter), carry_over)
        every.append(found)
    assert carry_over == {}
    check_all_attributed(every, sender)
    if sources_room == 1000:
        assert sender.counted == sender.netfilter.dropped == sum(sender.sent.values())


def test_listings_are_only_gone_through() -> None:
    # A listing need not be a list: a hundred thousand entries are not made into objects.
    hits, sources = {hit(1, 23, 5): None}.keys(), {count(1, 1): None}.keys()
    found, carry_over = attribute([SetListing(hits, sources)], {})
    assert (found.attributed, carry_over) == (5, {})
