"""Which sources were blocked today, and which ports they were after."""

from __future__ import annotations

from heapq import nlargest
from itertools import chain
from operator import itemgetter
from typing import TYPE_CHECKING

from sikkerguard.core.services.protocols import REPLY, WITH_PORTS
from sikkerguard.core.traffic.sample import UNATTRIBUTED

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sikkerguard.core.traffic.sample import TrafficSample

    Port = tuple[int, int]

# Sources that are counted in a day, about a hundred bytes each; and ports that are told apart, the busiest of them.
MOST_SOURCES = 65536
_MOST_PORTS = 4096


class DaySummary:
    """Distinct sources, and packets by (protocol, port), of one UTC day. Begins with what is known of it already."""

    def __init__(self, day: int, sources: Iterable[bytes] = (), ports: Mapping[Port, int] | None = None) -> None:
        self.day = day
        self._sources = set(sources)
        self._ports = dict(ports or {})

    @property
    def sources(self) -> int:
        """How many sources there were, as far as they are counted."""
        return len(self._sources)

    def add(self, drain: TrafficSample, ports: Mapping[Port, int]) -> list[bytes]:
        """Add what was dropped; the sources that are new today."""
        fresh = []
        known = self._sources
        # Every source is in these listings: the first packet of each entry by port is counted there.
        for address, _, _ in chain.from_iterable((*drain.sources, *drain.repliers)):
            if address not in known and len(known) < MOST_SOURCES:
                known.add(address)
                fresh.append(address)
        for (protocol, number), packets in ports.items():
            # Types of ICMP are no ports.
            port = protocol, number if protocol in WITH_PORTS or protocol in (UNATTRIBUTED, REPLY) else 0
            self._ports[port] = self._ports.get(port, 0) + packets
        if len(self._ports) > _MOST_PORTS:
            self._ports = dict(self.top_ports(_MOST_PORTS // 2))
        return fresh

    def join(self, sources: Iterable[bytes], ports: Mapping[Port, int]) -> None:
        """Add what was known of this day before."""
        for source in sources:
            if len(self._sources) < MOST_SOURCES:
                self._sources.add(source)
        for port, packets in ports.items():
            self._ports[port] = self._ports.get(port, 0) + packets

    def top_ports(self, most: int) -> list[tuple[Port, int]]:
        """The ports that most packets were for, the busiest first."""
        return nlargest(most, self._ports.items(), key=itemgetter(1))
