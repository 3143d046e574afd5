"""What earlier runs have counted, as it comes back from disk."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sikkerguard.core.traffic.totals import Totals

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class SavedTraffic:
    """The totals and, of their day, the distinct sources, packed, and the packets of the busiest ports by (protocol,
    port)."""

    totals: Totals = field(default_factory=Totals)
    sources: frozenset[bytes] = frozenset()
    ports: Mapping[tuple[int, int], int] = field(default_factory=dict)
