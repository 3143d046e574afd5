"""What was counted and is not on disk yet: most often of one second, and bounded where the disk takes nothing for days.

Pure: no I/O.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sikkerguard.core.traffic.sample import FlowKey

# Sources, protocols and ports that are told apart, some 200 bytes each; of more the smaller half only counts as packets
# of sources that are known.
_MOST_KEYS = 16_384


@dataclass(slots=True)
class Unsaved:
    """`blocked` is what will be reported. `unfiled` are packets of sources that are known and that it has no room for.
    `fresh` are the day's sources that the disk does not know; with `new_day` it is to forget all others."""

    blocked: Counter[FlowKey] = field(default_factory=Counter)
    unfiled: int = 0
    fresh: list[bytes] = field(default_factory=list)
    new_day: bool = False

    def add(self, largest: Iterable[tuple[FlowKey, int]], unfiled: int, fresh: Iterable[bytes]) -> None:
        """So much more was counted."""
        for key, packets in largest:
            self.blocked[key] += packets
        self.unfiled += unfiled
        self.fresh += fresh
        if len(self.blocked) > _MOST_KEYS:
            kept = Counter(dict(self.blocked.most_common(_MOST_KEYS // 2)))
            self.unfiled += self.blocked.total() - kept.total()
            self.blocked = kept

    def turn_over(self) -> None:
        """Another day has begun: its sources are counted anew."""
        self.fresh, self.new_day = [], True

    def take(self, most_fresh: int) -> Unsaved:
        """What is to be written now, with so many fresh sources; it is no longer here."""
        taken = Unsaved(self.blocked, self.unfiled, self.fresh[:most_fresh], self.new_day)
        self.blocked, self.unfiled, self.new_day = Counter(), 0, False
        self.fresh = self.fresh[most_fresh:]
        return taken

    def give_back(self, taken: Unsaved) -> None:
        """It was not written."""
        later, fresh = self.blocked, self.fresh
        if not self.new_day:
            self.fresh, self.new_day = taken.fresh + fresh, taken.new_day
        self.blocked = taken.blocked
        self.add(later.items(), taken.unfiled, ())
