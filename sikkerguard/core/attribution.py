"""Whose packets were dropped, from what the kernel's sets counted."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from heapq import nlargest
from itertools import chain
from operator import itemgetter
from typing import TYPE_CHECKING

from sikkerguard.core.model import ANY

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sikkerguard.core.model import Drain, Key

# Sources, protocols and ports that one drain tells apart further on; of more, the largest. Half a megabyte.
_KEYS = 4096


@dataclass(frozen=True, slots=True)
class Named:
    """The packets of a drain whose source is known: how many, the largest by source, protocol and port, how many by
    (protocol, port), and what is owed: packets that this drain's entries of hits include and the next one's counts of
    sources will include again, since the kernel's two sets can't be read at one moment."""

    packets: int
    largest: tuple[tuple[Key, int], ...]
    ports: Mapping[tuple[int, int], int]
    owed: Mapping[bytes, int]


def name(drain: Drain, owed: Mapping[bytes, int]) -> Named:
    """Name a drain's packets; `owed` is what the drain before it left."""
    entries: Counter[bytes] = Counter()
    ports: Counter[tuple[int, int]] = Counter()
    total = 0
    for address, port, protocol, _, packets in chain.from_iterable(drain.hits):
        entries[address] += 1
        ports[protocol, port] += packets
        total += packets
    owing: dict[bytes, int] = {}

    def by_key() -> Iterator[tuple[Key, int]]:
        nonlocal total
        for address, port, protocol, _, packets in chain.from_iterable(drain.hits):
            yield (address, protocol, port), packets
        for address, _, packets in chain.from_iterable(drain.sources):
            # The first packet of each entry of hits was counted by its source as well.
            further = packets - entries.pop(address, 0) - owed.get(address, 0)
            if further > 0:
                total += further
                yield (address, ANY, ANY), further
            elif further < 0:
                owing[address] = -further

    largest = nlargest(_KEYS, by_key(), key=itemgetter(1))
    owing.update(entries)
    if total > sum(ports.values()):
        ports[ANY, ANY] = total - sum(ports.values())
    return Named(total, tuple(largest), ports, owing)
