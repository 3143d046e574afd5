"""What is given to the records on disk, and what comes back from them. Pure: no I/O."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from sikkerguard.core.traffic.totals import Totals

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sikkerguard.core.traffic.sample import FlowKey

# Flows that are told apart, some 200 bytes each; of more, the smaller half counts only as packets of known sources.
_MAX_PENDING_FLOWS = 16_384


@dataclass(frozen=True, slots=True)
class SavedTraffic:
    """What earlier runs have counted: the totals and, of their day, the distinct sources, packed, and the packets of
    the busiest ports by (protocol, port)."""

    totals: Totals = field(default_factory=Totals)
    sources: frozenset[bytes] = frozenset()
    ports: Mapping[tuple[int, int], int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PendingTraffic:
    """What was counted and is to be added to the records: most often of one second, and bounded where the disk takes
    nothing for days.

    `flows`: packets by flow, of which reports are made. `overflow`: attributed packets that `flows` has no room for.
    `sources`: the day's sources, packed, that the records do not have; with `new_day` these are to forget all others.
    `totals` and `ports`, the day's busiest with their packets, replace what the records have. They are filled in at the
    moment at which all of this is handed over.
    """

    flows: Mapping[FlowKey, int] = field(default_factory=dict)
    overflow: int = 0
    sources: tuple[bytes, ...] = ()
    new_day: bool = False
    totals: Totals = field(default_factory=Totals)
    ports: tuple[tuple[tuple[int, int], int], ...] = ()

    def add(self, flows: Iterable[tuple[FlowKey, int]], overflow: int, sources: Iterable[bytes]) -> PendingTraffic:
        """With so much more that was counted."""
        summed, overflow = Counter(self.flows), self.overflow + overflow
        for key, packets in flows:
            summed[key] += packets
        if len(summed) > _MAX_PENDING_FLOWS:
            kept = Counter(dict(summed.most_common(_MAX_PENDING_FLOWS // 2)))
            overflow += summed.total() - kept.total()
            summed = kept
        return replace(self, flows=summed, overflow=overflow, sources=(*self.sources, *sources))

    def begin_day(self) -> PendingTraffic:
        """Another day has begun: its sources are counted anew."""
        return replace(self, sources=(), new_day=True)

    def split(self, most_sources: int) -> tuple[PendingTraffic, PendingTraffic]:
        """What is to be written now, with so many sources at most; and what is left for the next time."""
        batch = replace(self, sources=self.sources[:most_sources])
        return batch, PendingTraffic(sources=self.sources[most_sources:])

    def restore(self, batch: PendingTraffic) -> PendingTraffic:
        """With a batch from before this that was not written after all."""
        sources, new_day = self.sources, self.new_day
        if not new_day:
            sources, new_day = (*batch.sources, *sources), batch.new_day
        summed = batch.add(self.flows.items(), self.overflow, ())
        return replace(self, flows=summed.flows, overflow=summed.overflow, sources=sources, new_day=new_day)
