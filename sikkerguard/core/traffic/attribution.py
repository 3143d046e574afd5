"""Whose packets were dropped, from what the kernel's sets counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from heapq import nlargest
from itertools import chain
from operator import itemgetter
from typing import TYPE_CHECKING

from sikkerguard.core.services.protocols import REPLY, TCP
from sikkerguard.core.traffic.sample import UNATTRIBUTED

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from sikkerguard.core.traffic.sample import FlowKey, Hit, Source, TrafficSample

# Sources, protocols and ports that one drain tells apart further on; of more, the largest. Half a megabyte. And as many
# of replies, so that these keep nothing else from being reported.
_KEYS = 4096

# By source and ANY or REPLY.
CarriedOver = Mapping[tuple[bytes, int], int]


@dataclass(frozen=True, slots=True)
class Attribution:
    """The packets of a drain whose source is known: how many, the largest by source, protocol and port, how many by
    (protocol, port), and what is owed: packets that this drain's entries by port include and the next one's counts by
    source will include again, since the kernel's two sets can't be read at one moment."""

    packets: int
    largest: tuple[tuple[FlowKey, int], ...]
    ports: Mapping[tuple[int, int], int]
    owed: CarriedOver

    def replies(self) -> int:
        """How many of the packets are replies."""
        return sum(packets for (protocol, _), packets in self.ports.items() if protocol == REPLY)


def attribute(drain: TrafficSample, owed: CarriedOver) -> Attribution:
    """Name a drain's packets; `owed` is what the drain before it left."""
    ports: Counter[tuple[int, int]] = Counter()
    owing: dict[tuple[bytes, int], int] = {}
    begun = _largest(drain.hits, drain.sources, UNATTRIBUTED, owed, ports, owing)
    replies = _largest(drain.replies, drain.repliers, REPLY, owed, ports, owing)
    return Attribution(ports.total(), (*begun, *replies), ports, owing)


def _largest(
    by_port: Sequence[Collection[Hit]],
    by_source: Sequence[Collection[Source]],
    kind: int,
    owed: CarriedOver,
    ports: Counter[tuple[int, int]],
    owing: dict[tuple[bytes, int], int],
) -> list[tuple[FlowKey, int]]:
    """The largest of what two kinds of listings have, whose packets are added to `ports`, and what they owe to `owing`.
    `kind` stands in the place of the protocol where no more than the source is known."""
    entries: Counter[bytes] = Counter()
    for address, port, protocol, _, packets in chain.from_iterable(by_port):
        entries[address] += 1
        ports[_place(kind, protocol, port)] += packets

    def by_key() -> Iterator[tuple[FlowKey, int]]:
        for address, port, protocol, _, packets in chain.from_iterable(by_port):
            yield (address, *_place(kind, protocol, port)), packets
        for address, _, packets in chain.from_iterable(by_source):
            # The first packet of each entry by port was counted by its source as well.
            further = packets - entries.pop(address, 0) - owed.get((address, kind), 0)
            if further > 0:
                ports[kind, UNATTRIBUTED] += further
                yield (address, kind, UNATTRIBUTED), further
            elif further < 0:
                owing[address, kind] = -further

    largest = nlargest(_KEYS, by_key(), key=itemgetter(1))
    for address, owes in entries.items():
        owing[address, kind] = owes
    return largest


def _place(kind: int, protocol: int, port: int) -> tuple[int, int]:
    if kind != REPLY:
        return protocol, port
    # Behind an extension header there may be something else than TCP.
    return REPLY, port if protocol == TCP else UNATTRIBUTED
