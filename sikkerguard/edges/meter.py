"""What our chains dropped, read so that no packet is counted twice and none is left out.

The DROP rules' counters say how many packets there were; two sets say whose they were. The sets are changed for empty
ones before they are read, so that each entry is read once and what is read is small. What the sets do not know, because
they were full, is the difference.

For the thread that owns netfilter only. Every method raises `KernelError`.
"""

from __future__ import annotations

import time
from itertools import chain
from typing import TYPE_CHECKING

from sikkerguard.core.model import NOTHING, Count, Drain, Family
from sikkerguard.core.names import set_names

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from sikkerguard.core.model import Hit, Source
    from sikkerguard.edges.chains import Chains
    from sikkerguard.edges.ipset import Sets

    _Listings = tuple[Sequence[Collection[Hit]], Sequence[Collection[Source]]]

# Seconds after which no packet is at work any more on a set that was changed for another: it takes microseconds.
_IN_FLIGHT_SECONDS = 0.002


class Meter:
    """The counts of these families. What was read is kept here until `drain` has given it away."""

    def __init__(self, sets: Sets, chains: Chains, families: Sequence[Family]) -> None:
        self._sets = sets
        self._chains = chains
        self._families = families
        self._stood = dict.fromkeys(families, NOTHING)
        self._dropped = NOTHING
        self._drains: list[Drain] = []
        # A process before us may have died with sets that it had changed and not read.
        self._unread = True

    def resume(self, counters: Mapping[Family, Count]) -> None:
        """The counters stood there when they were last taken into account."""
        self._stood |= {family: counters[family] for family in self._families if family in counters}

    def rewriting(self, family: Family) -> None:
        """Take what was counted until now: this family's chain is about to be written anew, or someone emptied it."""
        self._collect(anew=True)
        self._stood[family] = NOTHING

    def drain(self) -> list[Drain]:
        """What was dropped since the last time: one drain, or more where the sets were changed in between."""
        self._collect()
        drains, self._drains = self._drains, []
        return drains

    def _collect(self, *, anew: bool = False) -> None:
        # Before the sets: all that these have counted is in the sets by now, if there was room.
        for family in self._families:
            anew |= self._read(family)
        hits, sources = self._read_sets() if self._unread else ((), ())
        if self._dropped.packets or anew:
            if any(sources):
                self._drains.append(Drain(NOTHING, {}, hits, sources))
            hits, sources = self._change_sets()
        if anew:
            # Someone took our rule away, and with it the count of what it dropped since we looked. The sets know.
            self._dropped = max(self._dropped, _in_sets(hits, sources))
        self._drains.append(Drain(self._dropped, dict(self._stood), hits, sources))
        self._dropped = NOTHING

    def _read(self, family: Family) -> bool:
        """Add what the rule dropped since it was read before; says whether its counter began anew meanwhile."""
        found, stood = self._chains.counters(family), self._stood[family]
        if found.packets < stood.packets:
            found = self._chains.counters(family, settled=True)
        began_anew = found.packets < stood.packets
        if began_anew:
            stood = NOTHING
        packets, octets = found.packets - stood.packets, found.octets - stood.octets
        self._dropped = Count(self._dropped.packets + packets, self._dropped.octets + octets)
        self._stood[family] = found
        return began_anew

    def _change_sets(self) -> _Listings:
        """What the sets hold, which are empty afterwards."""
        for family in self._families:
            names = set_names(family)
            if self._sets.header(names.old_sources) is None:
                continue  # our sets are yet to be made
            # In this order, what falls between the two is an entry of hits now and a count of its source later.
            self._unread = True
            self._sets.swap(names.sources, names.old_sources)
            self._sets.swap(names.hits, names.old_hits)
        time.sleep(_IN_FLIGHT_SECONDS)
        return self._read_sets()

    def _read_sets(self) -> _Listings:
        """Read the sets that no packet meets, and empty them for the next time."""
        hits, sources = [], []
        for family in self._families:
            names = set_names(family)
            hits.append(self._sets.hits(names.old_hits, family))
            sources.append(self._sets.counts(names.old_sources, family))
            for name in (names.old_hits, names.old_sources):
                if self._sets.header(name) is not None:
                    self._sets.flush(name)
        self._unread = False
        return hits, sources


def _in_sets(hits: Sequence[Collection[Hit]], sources: Sequence[Collection[Source]]) -> Count:
    """All that the sets counted: a packet that made an entry of hits was counted by its source as well."""
    entries = list(chain.from_iterable(hits))
    packets = sum(entry[4] - 1 for entry in entries) + sum(source[2] for source in chain.from_iterable(sources))
    # Of the bytes that were counted by source alone no one can tell which are in hits too: these are left out.
    return Count(packets, sum(entry[3] for entry in entries))
