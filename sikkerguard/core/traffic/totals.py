"""Totals of all dropped packets: how many there were, of how many the source is known, how many are in the log.

The DROP rules' counters are the whole. Everything else is a part of it, and a packet that is in no part is never lost:
it is the difference.
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
    """What is summed up over all runs.

    `dropped`: packets in all. `day`: the day in UTC, as SikkerAPI's quotas are, in days since 1970-01-01, and
    `dropped_today` what was dropped on it.
    `attributed`: packets whose source is known; `replies`: how many of these are replies.
    `logged`: packets on lines of the log.
    `counters`: the DROP rules' readings up to which all of this is counted.
    """

    dropped: PacketCount = NOTHING
    day: int = 0
    dropped_today: PacketCount = NOTHING
    attributed: int = 0
    logged: int = 0
    counters: Mapping[Family, PacketCount] = field(default_factory=dict)
    replies: int = 0

    def add(self, sample: TrafficSample, now: float) -> Totals:
        """With this sample, taken at `now` (Unix seconds)."""
        new_day = self.is_over(now)
        return replace(
            self,
            dropped=self.dropped.plus(sample.dropped),
            day=day_of(now) if new_day else self.day,
            dropped_today=sample.dropped if new_day else self.dropped_today.plus(sample.dropped),
            attributed=self.attributed + sample.attributed,
            counters=sample.counters or self.counters,
            replies=self.replies + sample.replies,
        )

    def join(self, earlier: Totals) -> Totals:
        """Both together, these having begun without knowing of the earlier ones. Where the counters went on in between,
        they say how much was dropped meanwhile."""
        between = NOTHING
        for family, reading in self.counters.items():
            before = earlier.counters.get(family)
            if before is not None and not reading.is_below(before):
                between = between.plus(reading.minus(before))
        dropped = between if between.packets > self.dropped.packets else self.dropped
        gap = PacketCount(dropped.packets - self.dropped.packets, max(0, dropped.bytes - self.dropped.bytes))
        today, day = self.dropped_today.plus(gap), self.day or earlier.day
        if day == earlier.day:
            today = today.plus(earlier.dropped_today)
        return Totals(
            dropped=earlier.dropped.plus(dropped),
            day=day,
            dropped_today=today,
            attributed=earlier.attributed + self.attributed,
            logged=earlier.logged + self.logged,
            counters={**earlier.counters, **self.counters},
            replies=earlier.replies + self.replies,
        )

    def is_over(self, now: float) -> bool:
        """Whether another day than `day` has begun at `now` (Unix seconds). A clock that is put back over midnight does
        not bring yesterday back; one that was wrong by more than that is put right."""
        return not self.day - 1 <= day_of(now) <= self.day

    def unattributed(self) -> int:
        """Packets of sources that the kernel had no room to remember. Packets that are dropped while the kernel is read
        may be attributed before they are counted as dropped."""
        return max(0, self.dropped.packets - self.attributed)


def day_of(now: float) -> int:
    """The UTC day of this moment (Unix seconds), in days since 1970-01-01."""
    return int(now // _DAY_SECONDS)
