"""What our chains dropped, read so that no packet is counted twice and none is left out.

The DROP rules' counters say how many packets there were; two sets say whose they were. The sets are changed for empty
ones before they are read, so that each entry is read once and what is read is small. What the sets do not know, because
they were full, is the difference.

For the thread that owns netfilter only. Every method raises `KernelError`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sikkerguard.core.model import NOTHING, Count, Drain, Family
from sikkerguard.core.names import set_names

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from sikkerguard.core.model import Hit, Source
    from sikkerguard.edges.chains import Chains
    from sikkerguard.edges.ipset import Sets

# Seconds after which no packet is at work any more on a set that was changed for another: it takes microseconds.
_IN_FLIGHT_SECONDS = 0.002


class Meter:
    """The counts of these families. What was read is kept here until `drain` has given it away."""

    def __init__(self, sets: Sets, chains: Chains, families: Sequence[Family]) -> None:
        self._sets = sets
        self._chains = chains
        self._families = families
        self._stood = dict.fromkeys(families, NOTHING)
        self._dropped = dict.fromkeys(families, NOTHING)
        self._listings: list[_Listing] = []
        self._drains: list[Drain] = []
        # A process before us may have died with sets that it had changed and not read.
        self._unread = True

    def resume(self, counters: Mapping[Family, Count]) -> None:
        """The counters stood there when they were last taken into account."""
        self._stood |= {family: counters[family] for family in self._families if family in counters}

    def rewriting(self, family: Family) -> None:
        """Take what was counted until now: this family's chain is about to be written anew, or someone emptied it."""
        self._collect(anew={family})
        self._stood[family] = NOTHING

    def drain(self) -> list[Drain]:
        """What was dropped since the last time: one drain, or more where the sets were changed in between."""
        self._collect(anew=set())
        drains, self._drains = self._drains, []
        return drains

    def _collect(self, anew: set[Family]) -> None:
        """Add a drain; `anew` are families whose counters began anew, and say too little of what was dropped."""
        # Before the sets: all that these have counted is in the sets by now, if there was room.
        anew = anew | {family for family in self._families if self._read(family, settled=family in anew)}
        if self._unread:
            self._read_sets()
        if self._listings:
            # What could not be read before, by us or by a process that died.
            self._drains.append(self._drain({}))
        if anew or any(dropped.packets for dropped in self._dropped.values()):
            self._change_sets()
        for listing in self._listings:
            if listing.family in anew:
                # Someone took our rule away, and with it the count of what it dropped. The sets know.
                self._dropped[listing.family] = max(self._dropped[listing.family], listing.counted())
        drain = self._drain(dict(self._stood))
        dropped = self._dropped.values()
        total = Count(sum(count.packets for count in dropped), sum(count.octets for count in dropped))
        self._drains.append(replace(drain, dropped=total))
        self._dropped = dict.fromkeys(self._families, NOTHING)

    def _read(self, family: Family, *, settled: bool) -> bool:
        """Add what the rule dropped since it was read before; says whether its counter began anew meanwhile."""
        found, stood = self._chains.counters(family, settled=settled), self._stood[family]
        if found is None or found.packets < stood.packets:
            found = self._chains.counters(family, settled=True)
        began_anew = found is None or found.packets < stood.packets
        if began_anew:
            stood = NOTHING
        found = found or NOTHING
        dropped = self._dropped[family]
        self._dropped[family] = Count(
            dropped.packets + found.packets - stood.packets, dropped.octets + found.octets - stood.octets
        )
        self._stood[family] = found
        return began_anew

    def _change_sets(self) -> None:
        """Take what the sets hold, which are empty afterwards."""
        for family in self._families:
            names = set_names(family)
            if self._sets.header(names.old_sources) is None:
                continue  # our sets are yet to be made
            # In this order, what falls between the two is an entry of hits now and a count of its source later.
            self._unread = True
            self._sets.swap(names.sources, names.old_sources)
            self._sets.swap(names.hits, names.old_hits)
        time.sleep(_IN_FLIGHT_SECONDS)
        self._read_sets()

    def _read_sets(self) -> None:
        """Read the sets that no packet meets, and empty them for the next time."""
        for family in self._families:
            names = set_names(family)
            held = [self._sets.header(name) for name in (names.old_hits, names.old_sources)]
            if held[0] is None or held[1] is None or not (held[0].entries or held[1].entries):
                continue
            if not held[0].entries:
                # The change broke off between the two: whose packets these are, the other half knows.
                self._sets.swap(names.hits, names.old_hits)
                time.sleep(_IN_FLIGHT_SECONDS)
            listing = _Listing(
                family, self._sets.hits(names.old_hits, family), self._sets.counts(names.old_sources, family)
            )
            self._sets.flush(names.old_hits)
            self._sets.flush(names.old_sources)
            self._listings.append(listing)
        self._unread = False

    def _drain(self, counters: Mapping[Family, Count]) -> Drain:
        listings, self._listings = self._listings, []
        return Drain(
            NOTHING,
            counters,
            tuple(listing.hits for listing in listings),
            tuple(listing.sources for listing in listings),
        )


@dataclass(frozen=True, slots=True)
class _Listing:
    """What the two sets of a family held."""

    family: Family
    hits: Collection[Hit]
    sources: Collection[Source]

    def counted(self) -> Count:
        """All that the sets counted: a packet that made an entry of hits was counted by its source as well. Of the
        bytes that were counted by source alone no one can tell which are in hits too: these are left out."""
        packets = sum(hit[4] - 1 for hit in self.hits) + sum(source[2] for source in self.sources)
        return Count(packets, sum(hit[3] for hit in self.hits))
