"""What our chains dropped, read so that no packet is counted twice and none is left out.

The DROP rules' counters say how many packets there were; sets say whose they were, two of what sources may have begun
and two of replies. They are changed for empty
ones before they are read, so that each entry is read once and what is read is small. What the sets do not know, because
they were full, is the difference. Where someone sets a counter back, the sets know better (`core.account`).

For the thread that owns netfilter only. Every method raises `KernelError`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sikkerguard.core.firewall.names import CountingSets, set_names
from sikkerguard.core.traffic.counter_resets import CounterResets
from sikkerguard.core.traffic.sample import NOTHING, PacketCount, TrafficSample
from sikkerguard.errors import BusyError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from sikkerguard.core.net.family import Family
    from sikkerguard.core.traffic.sample import Hit, Source
    from sikkerguard.edges.kernel.ipset_legacy.chains import Chains
    from sikkerguard.edges.kernel.ipset_legacy.sets import Sets

# Seconds after which no packet is at work any more on a set that was changed for another: it takes microseconds.
_IN_FLIGHT_SECONDS = 0.002
# A program that changes the table sets its counters back, and adds them again a moment later. One that takes another
# lock than we do is given so much time for it, so many times.
_MOMENT_SECONDS, _MOMENTS = 0.02, 3
# Sets are read every second: so long is waited for a program that lists one.
_LISTED_SECONDS = 0.3


class CounterReader:
    """The counts of these families. What was read is kept here until `drain` has given it away."""

    def __init__(
        self, sets: Sets, chains: Chains, families: Sequence[Family], sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._sets = sets
        self._chains = chains
        self._sleep = sleep
        self._accounts = {family: CounterResets() for family in families}
        self._dropped = NOTHING
        self._listings: list[_Listing] = []
        self._drains: list[TrafficSample] = []
        # A process before us may have died with sets that it had changed and not read.
        self._unread = True
        # Families of which not every packet since the last drain is in a listing.
        self._gaps = set(families)
        self._awaited = False

    def await_resume(self) -> None:
        """It will be told where the counters stood, by `resume` and before the first `drain`; but what is read until
        then is not lost."""
        self._awaited = True
        for account in self._accounts.values():
            account.stood = None

    def resume(self, counters: Mapping[Family, PacketCount]) -> None:
        """The counters stood there when they were last taken into account. One of which nobody knows where it stood is
        taken from the first reading on: what it says is of years, perhaps, and was told by those who counted it."""
        if not self._awaited:
            self.await_resume()
        self._awaited = False
        for family, account in self._accounts.items():
            account.resume(counters.get(family))

    def stood(self, family: Family) -> PacketCount:
        """Where this family's counter stood when it was last read: a rule that is made anew goes on from there."""
        return self._accounts[family].standing()

    def drain(self) -> list[TrafficSample]:
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
            if not self._awaited:
                self._settle()
        elif not self._awaited:
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
        headers = [self._sets.header(counting.by_source) for counting in _counting(family)]
        return any(header is not None and header.entries > 0 for header in headers)

    def _read_again(self, family: Family, account: CounterResets) -> PacketCount | None:
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
            self._dropped = PacketCount(self._dropped.packets + dropped.packets, self._dropped.octets + dropped.octets)
        self._gaps.clear()

    def _change_sets(self) -> None:
        """Take what the sets hold, which are empty afterwards."""
        for family in self._accounts:
            for counting in _counting(family):
                if any(self._sets.header(name) is None for name in counting.all()):
                    self._gaps.add(family)
                    continue  # our sets are yet to be made, or were taken away
                self._unread = True
                try:
                    # In this order, what falls between the two is an entry by port now and a count of its source later.
                    self._sets.swap(counting.by_source, counting.old_by_source, _LISTED_SECONDS)
                    self._sets.swap(counting.by_port, counting.old_by_port, _LISTED_SECONDS)
                except BusyError:
                    self._read_in_place(family, counting)
        self._sleep(_IN_FLIGHT_SECONDS)
        self._read_sets()

    def _read_sets(self) -> None:
        """Read the sets that no packet meets, and empty them for the next time."""
        for family in self._accounts:
            for counting in _counting(family):
                self._read_counting(family, counting)
        self._unread = False

    def _read_counting(self, family: Family, counting: CountingSets) -> None:
        by_port, by_source = self._sets.header(counting.old_by_port), self._sets.header(counting.old_by_source)
        if by_port is None or by_source is None or not (by_port.entries or by_source.entries):
            return
        if not by_port.entries:
            # The change broke off between the two: whose packets these are, the other half knows.
            try:
                self._sets.swap(counting.by_port, counting.old_by_port, _LISTED_SECONDS)
            except BusyError:
                self._read_in_place(family, counting)
                return
            self._sleep(_IN_FLIGHT_SECONDS)
        hits = self._sets.hits(counting.old_by_port, family)
        sources = self._sets.counts(counting.old_by_source, family)
        self._sets.flush(counting.old_by_port)
        self._sets.flush(counting.old_by_source)
        self._take(family, counting, hits, sources)
        if by_source.entries >= by_source.limit:
            self._gaps.add(family)

    def _read_in_place(self, family: Family, counting: CountingSets) -> None:
        """Read and empty sets that another program lists, so that they can't be changed for others. Packets that come
        in between are counted by the rule alone: whose they were is not known."""
        self._gaps.add(family)
        hits: list[Hit] = []
        sources: list[Source] = []
        for by_port in (counting.by_port, counting.old_by_port):
            hits += self._sets.hits(by_port, family)
        for by_source in (counting.by_source, counting.old_by_source):
            sources += self._sets.counts(by_source, family)
        for name in counting.all():
            self._sets.flush(name)
        self._take(family, counting, hits, sources)

    def _take(self, family: Family, counting: CountingSets, hits: Collection[Hit], sources: Collection[Source]) -> None:
        listing = _Listing(hits, sources, replies=counting == set_names(family).counting_replies())
        self._listings.append(listing)
        self._accounts[family].name(listing.counted())

    def _drain(self, counters: Mapping[Family, PacketCount]) -> TrafficSample:
        listings, self._listings = self._listings, []
        return TrafficSample(
            NOTHING,
            counters,
            hits=tuple(listing.by_port for listing in listings if not listing.replies),
            sources=tuple(listing.by_source for listing in listings if not listing.replies),
            replies=tuple(listing.by_port for listing in listings if listing.replies),
            repliers=tuple(listing.by_source for listing in listings if listing.replies),
        )


def _counting(family: Family) -> tuple[CountingSets, CountingSets]:
    names = set_names(family)
    return names.counting_begun(), names.counting_replies()


@dataclass(frozen=True, slots=True)
class _Listing:
    """What two sets of a family held."""

    by_port: Collection[Hit]
    by_source: Collection[Source]
    replies: bool

    def counted(self) -> PacketCount:
        """All that the sets counted: a packet that made an entry by port was counted by its source as well. Which of
        them that was, and so how many bytes both have, no one can tell: the mean stands for it."""
        by_port, by_source = sum(hit[4] for hit in self.by_port), sum(source[2] for source in self.by_source)
        octets = sum(hit[3] for hit in self.by_port) + sum(source[1] for source in self.by_source)
        packets = by_port + by_source - len(self.by_port)
        return PacketCount(packets, octets * packets // (by_port + by_source) if packets else 0)
