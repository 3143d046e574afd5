"""Which sources were blocked today, and which ports they sent to."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from heapq import nlargest
from itertools import chain
from operator import itemgetter
from typing import TYPE_CHECKING

from sikkerguard.core.ports.protocols import REPLY, WITH_PORTS
from sikkerguard.core.traffic.sample import UNATTRIBUTED

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sikkerguard.core.traffic.sample import TrafficSample

    Port = tuple[int, int]

# Sources that are counted in a day, about a hundred bytes each; and ports that are told apart, the busiest of them.
MAX_SOURCES = 65536
_MAX_PORTS = 4096
# Sources that are kept apart from the others until they are a share of these.
_MIN_RECENT, _RECENT_SHARE = 1024, 8


@dataclass(frozen=True, slots=True)
class SourceSet:
    """Up to MAX_SOURCES distinct sources, packed.

    A value, of which a new one is made each second of a flood. To copy 65,536 sources each time would take 1.5 ms and,
    for a moment, four megabytes; so those that came last are a set of their own, which is small and alone is copied.
    """

    older: frozenset[bytes] = frozenset()
    recent: frozenset[bytes] = frozenset()

    def __len__(self) -> int:
        return len(self.older) + len(self.recent)

    def add(self, sources: Iterable[bytes]) -> tuple[SourceSet, tuple[bytes, ...]]:
        """With these, as far as there is room; and those that are new."""
        older, recent, new, room = self.older, set(self.recent), list[bytes](), MAX_SOURCES - len(self)
        for source in sources:
            if source not in older and source not in recent and len(new) < room:
                recent.add(source)
                new.append(source)
        if not new:
            return self, ()
        if len(recent) > max(_MIN_RECENT, len(older) // _RECENT_SHARE):
            # One by one the table grows to half of what a union would have made it.
            return SourceSet(frozenset(chain(older, recent))), tuple(new)
        return SourceSet(older, frozenset(recent)), tuple(new)


@dataclass(frozen=True, slots=True)
class DaySummary:
    """Distinct sources, and packets by (protocol, port), of one day in UTC; `day` counts from 1970-01-01."""

    day: int = 0
    sources: SourceSet = field(default_factory=SourceSet)
    ports: Mapping[Port, int] = field(default_factory=dict)

    def add(self, sample: TrafficSample) -> tuple[DaySummary, tuple[bytes, ...]]:
        """With this sample; and the sources that are new today."""
        sources, new = self.sources.add(sample.sources)
        if not sample.ports:
            return replace(self, sources=sources), new
        ports = dict(self.ports)
        for (protocol, number), packets in sample.ports.items():
            # Types of ICMP are no ports.
            port = protocol, number if protocol in WITH_PORTS or protocol in (UNATTRIBUTED, REPLY) else 0
            ports[port] = ports.get(port, 0) + packets
        if len(ports) > _MAX_PORTS:
            # To half, so that this is not done again for each that comes.
            ports = dict(_busiest(ports, _MAX_PORTS // 2))
        return DaySummary(self.day, sources, ports), new

    def join(self, day: int, sources: Iterable[bytes], ports: Mapping[Port, int]) -> DaySummary:
        """With what was known before of the same day, or of the day that this one is to be."""
        joined = dict(self.ports)
        for port, packets in ports.items():
            joined[port] = joined.get(port, 0) + packets
        return DaySummary(day, self.sources.add(sources)[0], joined)

    def top_ports(self, most: int) -> tuple[tuple[Port, int], ...]:
        """The ports with most packets, at most so many, the busiest first."""
        return tuple(_busiest(self.ports, most))


def _busiest(ports: Mapping[Port, int], most: int) -> list[tuple[Port, int]]:
    return nlargest(most, ports.items(), key=itemgetter(1))
