"""Whose packets were dropped, worked out from a pair of sets that the kernel fills: one by source and port, one by
source alone.

Only a backend that counts by such pairs needs this. The rules fill a pair so (`core.firewall.rules`): a packet that has
an entry by port is counted there, any other one by its source, and it then makes an entry by port if its source has few
of them. So

    packets of a source = packets of its entries by port - number of these entries + packets counted by source
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from heapq import nlargest
from itertools import chain
from operator import itemgetter
from typing import TYPE_CHECKING

from sikkerguard.core.ports.protocols import REPLY, TCP
from sikkerguard.core.traffic.sample import UNATTRIBUTED, PacketCount, TrafficSample

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sikkerguard.core.traffic.sample import FlowKey

# Flows of a sample; of more, the largest. Half a megabyte. And as many of replies, so that these keep nothing else from
# being reported.
_MAX_FLOWS = 4096

# An entry by port: packed address, port, protocol, bytes, packets. An entry by source: packed address, bytes, packets.
Hit = tuple[bytes, int, int, int, int]
Source = tuple[bytes, int, int]

# Packets that are counted by their entry by port, and that the next listings' counts by source will contain once more,
# since the kernel's two sets can't be read at one moment: by source, and by UNATTRIBUTED or, for replies, REPLY.
CarryOver = Mapping[tuple[bytes, int], int]


@dataclass(frozen=True, slots=True)
class SetListing:
    """What a pair of sets held; `replies` says that it is the pair that counts replies."""

    by_port: Collection[Hit]
    by_source: Collection[Source]
    replies: bool = False

    def counted(self) -> PacketCount:
        """All packets that the pair counted. Of the packet that made an entry by port both sets have the bytes, and its
        size is not known: the mean of all packets stands for it."""
        by_port, by_source = sum(hit[4] for hit in self.by_port), sum(source[2] for source in self.by_source)
        size = sum(hit[3] for hit in self.by_port) + sum(source[1] for source in self.by_source)
        packets = by_port + by_source - len(self.by_port)
        return PacketCount(packets, size * packets // (by_port + by_source) if packets else 0)


@dataclass(frozen=True, slots=True)
class SourceAddresses(Collection[bytes]):
    """The sources of listings by source, unpacked anew each time one iterates: a hundred thousand of them as objects
    would take megabytes."""

    listings: tuple[Collection[Source], ...]

    def __len__(self) -> int:
        return sum(map(len, self.listings))

    def __iter__(self) -> Iterator[bytes]:
        return (address for address, _, _ in chain.from_iterable(self.listings))

    def __contains__(self, address: object) -> bool:
        return any(address == each for each in self)


def attribute(listings: Sequence[SetListing], carry_over: CarryOver) -> tuple[TrafficSample, CarryOver]:
    """Attribute the packets of all these listings; `carry_over` is what the attribution before left. Returns a sample
    without what the DROP rules counted, and what is left for the next attribution."""
    ports: Counter[tuple[int, int]] = Counter()
    carried: dict[tuple[bytes, int], int] = {}
    begun = _largest([each for each in listings if not each.replies], UNATTRIBUTED, carry_over, ports, carried)
    replies = _largest([each for each in listings if each.replies], REPLY, carry_over, ports, carried)
    sample = TrafficSample(
        attributed=ports.total(),
        replies=sum(packets for (protocol, _), packets in ports.items() if protocol == REPLY),
        flows=(*begun, *replies),
        ports=ports,
        # Every source is among these: the first packet of each entry by port is counted by its source.
        sources=SourceAddresses(tuple(each.by_source for each in listings if each.by_source)),
    )
    return sample, carried


def _largest(
    listings: Sequence[SetListing],
    kind: int,
    carry_over: CarryOver,
    ports: Counter[tuple[int, int]],
    carried: dict[tuple[bytes, int], int],
) -> list[tuple[FlowKey, int]]:
    """The largest flows of listings of one kind, UNATTRIBUTED or REPLY, which stands in the protocol's place where only
    the source is known. All of their packets are added to `ports`, and what is carried over to `carried`."""
    entries: Counter[bytes] = Counter()
    for address, port, protocol, _, packets in chain.from_iterable(each.by_port for each in listings):
        entries[address] += 1
        ports[_protocol_and_port(kind, protocol, port)] += packets

    def flows() -> Iterator[tuple[FlowKey, int]]:
        for address, port, protocol, _, packets in chain.from_iterable(each.by_port for each in listings):
            yield (address, *_protocol_and_port(kind, protocol, port)), packets
        for address, _, packets in chain.from_iterable(each.by_source for each in listings):
            # The first packet of each entry by port was counted by its source as well.
            further = packets - entries.pop(address, 0) - carry_over.get((address, kind), 0)
            if further > 0:
                ports[kind, UNATTRIBUTED] += further
                yield (address, kind, UNATTRIBUTED), further
            elif further < 0:
                carried[address, kind] = -further

    largest = nlargest(_MAX_FLOWS, flows(), key=itemgetter(1))
    for address, number in entries.items():
        carried[address, kind] = number
    return largest


def _protocol_and_port(kind: int, protocol: int, port: int) -> tuple[int, int]:
    if kind != REPLY:
        return protocol, port
    # Behind an extension header there may be something else than TCP.
    return REPLY, port if protocol == TCP else UNATTRIBUTED
