"""What our chains dropped, read so that no packet is counted twice and none is left out.

The DROP rules' counters say how many packets there were; two sets say whose they were. The sets are changed for empty
ones before they are read, so that each entry is read once and what is read is small. What the sets do not know, because
they were full, is the difference. Where someone sets a counter back, the sets know better (`core.account`).

For the thread that owns netfilter only. Every method raises `KernelError`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sikkerguard.core.account import Account
from sikkerguard.core.model import NOTHING, Count, Drain, Family
from sikkerguard.core.names import set_names

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from sikkerguard.core.model import Hit, Source
    from sikkerguard.edges.chains import Chains
    from sikkerguard.edges.ipset import Sets

# Seconds after which no packet is at work any more on a set that was changed for another: it takes microseconds.
_IN_FLIGHT_SECONDS = 0.002
# A program that changes the table sets its counters back, and adds them again a moment later. One that takes another
# lock than we do is given so much time for it, so many times.
_MOMENT_SECONDS, _MOMENTS = 0.02, 3


class Meter:
    """The counts of these families. What was read is kept here until `drain` has given it away."""

    def __init__(
        self, sets: Sets, chains: Chains, families: Sequence[Family], sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._sets = sets
        self._chains = chains
        self._sleep = sleep
        self._accounts = {family: Account() for family in families}
        self._dropped = NOTHING
        self._listings: list[_Listing] = []
        self._drains: list[Drain] = []
        # A process before us may have died with sets that it had changed and not read.
        self._unread = True
        # Families of which not every packet since the last drain is in a listing.
        self._gaps = set(families)

    def resume(self, counters: Mapping[Family, Count]) -> None:
        """The counters stood there when they were last taken into account. One of which nobody knows where it stood is
        taken from now on: what it says is of years, perhaps, and was told by those who counted it."""
        for family, account in self._accounts.items():
            account.stood = counters.get(family)

    def stood(self, family: Family) -> Count:
        """Where this family's counter stood when it was last read: a rule that is made anew goes on from there."""
        return self._accounts[family].standing()

    def drain(self) -> list[Drain]:
        """What was dropped since the last time: one drain, or more where `collect` was called in between."""
        self.collect()
        drains, self._drains = self._drains, []
        return drains

    def collect(self) -> None:
        """Read what was dropped, and keep it for the next drain."""
        # Before the sets: all that these have counted is in the sets by now, if there was room.
        for family in self._accounts:
            self._read(family)
        if self._unread:
            self._gaps.update(self._accounts)
            self._read_sets()
        if self._listings:
            # What could not be read before, by us or by a process that died.
            self._drains.append(self._drain({}))
        if any(not account.is_settled() or self._filled(family) for family, account in self._accounts.items()):
            self._change_sets()
            self._settle()
        else:
            for account in self._accounts.values():
                account.rest()
            self._gaps.clear()
        drain = self._drain({family: account.standing() for family, account in self._accounts.items()})
        self._drains.append(replace(drain, dropped=self._dropped))
        self._dropped = NOTHING

    def _read(self, family: Family) -> None:
        account = self._accounts[family]
        found = self._chains.counters(family)
        if account.went_back(found):
            found = self._read_again(family, account)
        account.read(found)

    def _filled(self, family: Family) -> bool:
        """Whether packets were dropped of which the counter does not tell: it may have been set back to where it
        stood."""
        header = self._sets.header(set_names(family).sources)
        return header is not None and header.entries > 0

    def _read_again(self, family: Family, account: Account) -> Count | None:
        """A counter went back: read it when whoever changes the table has done so."""
        found = self._chains.counters(family, settled=True)
        for _ in range(_MOMENTS):
            if not account.went_back(found):
                break
            self._sleep(_MOMENT_SECONDS)
            found = self._chains.counters(family)
        return found

    def _settle(self) -> None:
        later = {
            family: self._chains.counters(family) if account.is_behind() else account.standing()
            for family, account in self._accounts.items()
        }
        for family, account in self._accounts.items():
            dropped = account.settle(later[family], complete=family not in self._gaps)
            self._dropped = Count(self._dropped.packets + dropped.packets, self._dropped.octets + dropped.octets)
        self._gaps.clear()

    def _change_sets(self) -> None:
        """Take what the sets hold, which are empty afterwards."""
        for family in self._accounts:
            names = set_names(family)
            if any(self._sets.header(name) is None for name in names.counting()):
                self._gaps.add(family)
                continue  # our sets are yet to be made, or were taken away
            # In this order, what falls between the two is an entry of hits now and a count of its source later.
            self._unread = True
            self._sets.swap(names.sources, names.old_sources)
            self._sets.swap(names.hits, names.old_hits)
        self._sleep(_IN_FLIGHT_SECONDS)
        self._read_sets()

    def _read_sets(self) -> None:
        """Read the sets that no packet meets, and empty them for the next time."""
        for family in self._accounts:
            names = set_names(family)
            held = [self._sets.header(name) for name in (names.old_hits, names.old_sources)]
            if held[0] is None or held[1] is None or not (held[0].entries or held[1].entries):
                continue
            if not held[0].entries:
                # The change broke off between the two: whose packets these are, the other half knows.
                self._sets.swap(names.hits, names.old_hits)
                self._sleep(_IN_FLIGHT_SECONDS)
            listing = _Listing(self._sets.hits(names.old_hits, family), self._sets.counts(names.old_sources, family))
            self._sets.flush(names.old_hits)
            self._sets.flush(names.old_sources)
            self._listings.append(listing)
            self._accounts[family].name(listing.counted())
            if held[1].entries >= held[1].limit:
                self._gaps.add(family)
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

    hits: Collection[Hit]
    sources: Collection[Source]

    def counted(self) -> Count:
        """All that the sets counted: a packet that made an entry of hits was counted by its source as well. Which of
        them that was, and so how many bytes both have, no one can tell: the mean stands for it."""
        by_port, by_source = sum(hit[4] for hit in self.hits), sum(source[2] for source in self.sources)
        octets = sum(hit[3] for hit in self.hits) + sum(source[1] for source in self.sources)
        packets = by_port + by_source - len(self.hits)
        return Count(packets, octets * packets // (by_port + by_source) if packets else 0)
