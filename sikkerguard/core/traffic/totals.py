"""The account of every packet that was dropped: how many there were, of how many the source is known, how many stand on
a line of the log.

The DROP rules' counters are the whole. Everything else is a part of it, and what no part has is never lost: it is the
difference.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from sikkerguard.core.traffic.sample import NOTHING, PacketCount

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sikkerguard.core.net.family import Family
    from sikkerguard.core.traffic.sample import TrafficSample

_DAY_SECONDS = 86400


@dataclass(frozen=True, slots=True)
class Totals:
    """What was dropped in all and on `day` (days since 1970-01-01, in UTC as SikkerAPI's quotas are); packets that
    are `named`, their source being known; packets that are `told` on lines of the log; where the DROP rules' counters
    stood; and of the packets that are named those that are `replies`."""

    dropped: PacketCount = NOTHING
    day: int = 0
    dropped_today: PacketCount = NOTHING
    named: int = 0
    told: int = 0
    counters: Mapping[Family, PacketCount] = field(default_factory=dict)
    replies: int = 0

    def with_drain(self, drain: TrafficSample, named: int, now: float, replies: int = 0) -> Totals:
        """After this drain, of whose packets so many could be named, and so many of these are replies; `now` in Unix
        seconds."""
        turns = self.is_over(now)
        return replace(
            self,
            dropped=_sum(self.dropped, drain.dropped),
            day=day_of(now) if turns else self.day,
            dropped_today=_sum(NOTHING if turns else self.dropped_today, drain.dropped),
            named=self.named + named,
            counters=drain.counters or self.counters,
            replies=self.replies + replies,
        )

    def after(self, earlier: Totals) -> Totals:
        """What both have, this one having begun without knowing of the earlier one. Where the counters went on in
        between, they say how much that was."""
        between = NOTHING
        for family, stands in self.counters.items():
            stood = earlier.counters.get(family)
            if stood is not None and stands.packets >= stood.packets and stands.octets >= stood.octets:
                between = _sum(between, PacketCount(stands.packets - stood.packets, stands.octets - stood.octets))
        dropped = between if between.packets > self.dropped.packets else self.dropped
        gap = PacketCount(dropped.packets - self.dropped.packets, max(0, dropped.octets - self.dropped.octets))
        today, day = _sum(self.dropped_today, gap), self.day or earlier.day
        if day == earlier.day:
            today = _sum(today, earlier.dropped_today)
        return Totals(
            dropped=_sum(earlier.dropped, dropped),
            day=day,
            dropped_today=today,
            named=earlier.named + self.named,
            told=earlier.told + self.told,
            counters={**earlier.counters, **self.counters},
            replies=earlier.replies + self.replies,
        )

    def is_over(self, now: float) -> bool:
        """Whether another day than the ledger's has begun. A clock that is put back over midnight does not bring
        yesterday back; one that was wrong by more than that is put right."""
        return not self.day - 1 <= day_of(now) <= self.day

    def unnamed(self) -> int:
        """Packets of sources that the kernel had no room to remember. Packets that were on their way while it was
        asked are named before they are counted as dropped."""
        return max(0, self.dropped.packets - self.named)


def day_of(now: float) -> int:
    """The UTC day of this moment, in days since 1970-01-01."""
    return int(now // _DAY_SECONDS)


def _sum(one: PacketCount, other: PacketCount) -> PacketCount:
    return PacketCount(one.packets + other.packets, one.octets + other.octets)
