"""Reads what our chains dropped, so that no packet is counted twice and none is left out, and attributes it.

The DROP rules' counters say how many packets there were; sets say whose they were, one pair for packets that begin
something and one for replies. The sets are swapped for empty ones before they are read, so that each entry is read once
and what is read is small. Packets that the sets do not know, because they were full, are the difference. Where another
program sets a counter back, the sets say what was dropped (`core.traffic.counter_resets`).

For the thread that owns netfilter only. Methods that read the kernel raise `KernelError`; nothing is lost then.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sikkerguard.core.firewall.names import CountingSets, set_names
from sikkerguard.core.traffic.attribution import CarryOver, Hit, SetListing, Source, attribute
from sikkerguard.core.traffic.counter_resets import CounterResets
from sikkerguard.core.traffic.sample import NOTHING, PacketCount, TrafficSample
from sikkerguard.errors import BusyError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from sikkerguard.core.net.family import Family
    from sikkerguard.edges.kernel.ipset_legacy.chains import Chains
    from sikkerguard.edges.kernel.ipset_legacy.sets import Sets

# Seconds after which no packet is at work any more on a set that was changed for another: it takes microseconds.
_IN_FLIGHT_SECONDS = 0.002
# A program that changes the table sets its counters to zero, and adds them again a moment later. One that takes another
# lock than we do is given this pause for it, so many times.
_RESET_PAUSE_SECONDS, _RESET_PAUSES = 0.02, 3
# Sets are read every second, so no longer than this is waited for a program that lists one.
_SWAP_SECONDS = 0.3


@dataclass(frozen=True, slots=True)
class _Reading:
    """What was read at one time, and is yet to be attributed: for full sets that takes a tenth of a second, too
    long for a repair, which collects too, to wait."""

    dropped: PacketCount
    counters: Mapping[Family, PacketCount]
    listings: tuple[SetListing, ...]


class CounterReader:
    """The counts of these families. What was read is kept here until `read` has given it away."""

    def __init__(
        self, sets: Sets, chains: Chains, families: Sequence[Family], sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._sets = sets
        self._chains = chains
        self._sleep = sleep
        self._resets = {family: CounterResets() for family in families}
        self._dropped = NOTHING
        self._listings: list[SetListing] = []
        self._readings: list[_Reading] = []
        self._carry_over: CarryOver = {}
        # A process before us may have died with sets that it had swapped and not read.
        self._unread = True
        # Families of which not every packet since the last reading is in a listing.
        self._gaps = set(families)
        self._held = False

    def hold(self) -> None:
        """Wait for `resume` before anything is settled; what is read until then is not lost."""
        self._held = True
        for resets in self._resets.values():
            resets.hold()

    def resume(self, counters: Mapping[Family, PacketCount]) -> None:
        """Go on from these readings, up to which everything is reported already. A counter without one starts at its
        present value: what it counted before, years of packets perhaps, is not ours to report."""
        if not self._held:
            self.hold()
        self._held = False
        for family, resets in self._resets.items():
            resets.resume(counters.get(family))

    def reading(self, family: Family) -> PacketCount:
        """What this family's counter read last: a rule that is made anew goes on from there."""
        return self._resets[family].reading()

    def read(self) -> tuple[TrafficSample, ...]:
        """What was dropped since the last time: one sample, or more where `collect` was called in between. None while
        `hold` waits for `resume`."""
        self.collect()
        if self._held:
            return ()
        readings, self._readings = self._readings, []
        return tuple(self._attribute(reading) for reading in readings)

    def collect(self) -> None:
        """Read what was dropped, and keep it for the next `read`."""
        # Before the sets: all that these counters have counted is in the sets by now, if there was room.
        for family in self._resets:
            self._read_counter(family)
        if self._unread:
            self._gaps.update(self._resets)
            self._read_sets()
        if self._listings:
            # What could not be read before, by us or by a process that died.
            self._keep(NOTHING, {})
        if any(not resets.is_settled() or self._has_entries(family) for family, resets in self._resets.items()):
            self._swap_sets()
            if not self._held:
                self._settle()
        elif not self._held:
            for resets in self._resets.values():
                resets.confirm_idle()
            self._gaps.clear()
        self._keep(self._dropped, {family: resets.reading() for family, resets in self._resets.items()})
        self._dropped = NOTHING

    def _keep(self, dropped: PacketCount, counters: Mapping[Family, PacketCount]) -> None:
        self._readings.append(_Reading(dropped, counters, tuple(self._listings)))
        self._listings = []

    def _attribute(self, reading: _Reading) -> TrafficSample:
        sample, self._carry_over = attribute(reading.listings, self._carry_over)
        return replace(sample, dropped=reading.dropped, counters=reading.counters)

    def _read_counter(self, family: Family) -> None:
        resets = self._resets[family]
        found = self._chains.counters(family)
        if resets.went_back(found):
            found = self._read_again(family, resets)
        resets.read(found)

    def _has_entries(self, family: Family) -> bool:
        """Whether packets were dropped that the counter does not show: it may have been set back to where it was."""
        headers = [self._sets.header(counting.by_source) for counting in _counting_sets(family)]
        return any(header is not None and header.entries > 0 for header in headers)

    def _read_again(self, family: Family, resets: CounterResets) -> PacketCount | None:
        """Read a counter that went back, once the program that changes the table is through."""
        found = self._chains.counters(family, settled=True)
        for _ in range(_RESET_PAUSES):
            if not resets.went_back(found):
                break
            self._sleep(_RESET_PAUSE_SECONDS)
            found = self._chains.counters(family)
        return found

    def _settle(self) -> None:
        later = {
            family: self._chains.counters(family) if resets.is_behind() else resets.reading()
            for family, resets in self._resets.items()
        }
        for family, resets in self._resets.items():
            self._dropped = self._dropped.plus(resets.settle(later[family], complete=family not in self._gaps))
        self._gaps.clear()

    def _swap_sets(self) -> None:
        """Take what the sets hold, which are empty afterwards."""
        for family in self._resets:
            for counting in _counting_sets(family):
                if any(self._sets.header(name) is None for name in counting.all()):
                    self._gaps.add(family)
                    continue  # our sets are yet to be made, or were taken away
                self._unread = True
                try:
                    # In this order, a packet between the two adds its entry by port to this reading, and its source's
                    # count to the next one.
                    self._sets.swap(counting.by_source, counting.old_by_source, _SWAP_SECONDS)
                    self._sets.swap(counting.by_port, counting.old_by_port, _SWAP_SECONDS)
                except BusyError:
                    self._read_in_place(family, counting)
        self._sleep(_IN_FLIGHT_SECONDS)
        self._read_sets()

    def _read_sets(self) -> None:
        """Read the sets that no packet meets, and empty them for the next time."""
        for family in self._resets:
            for counting in _counting_sets(family):
                self._read_pair(family, counting)
        self._unread = False

    def _read_pair(self, family: Family, counting: CountingSets) -> None:
        by_port, by_source = self._sets.header(counting.old_by_port), self._sets.header(counting.old_by_source)
        if by_port is None or by_source is None or not (by_port.entries or by_source.entries):
            return
        if not by_port.entries:
            # The swap broke off between the two: whose packets these are is in the other set.
            try:
                self._sets.swap(counting.by_port, counting.old_by_port, _SWAP_SECONDS)
            except BusyError:
                self._read_in_place(family, counting)
                return
            self._sleep(_IN_FLIGHT_SECONDS)
        hits = self._sets.hits(counting.old_by_port)
        sources = self._sets.counts(counting.old_by_source)
        self._sets.flush(counting.old_by_port)
        self._sets.flush(counting.old_by_source)
        self._take(family, counting, hits, sources)
        if by_source.entries >= by_source.limit:
            self._gaps.add(family)

    def _read_in_place(self, family: Family, counting: CountingSets) -> None:
        """Read and empty sets that another program lists, so that they can't be swapped. Packets that come in between
        are counted by the rule alone: whose they were is not known."""
        self._gaps.add(family)
        hits: list[Hit] = []
        sources: list[Source] = []
        for by_port in (counting.by_port, counting.old_by_port):
            hits += self._sets.hits(by_port)
        for by_source in (counting.by_source, counting.old_by_source):
            sources += self._sets.counts(by_source)
        for name in counting.all():
            self._sets.flush(name)
        self._take(family, counting, hits, sources)

    def _take(self, family: Family, counting: CountingSets, hits: Collection[Hit], sources: Collection[Source]) -> None:
        listing = SetListing(hits, sources, replies=counting == set_names(family).counting_replies())
        self._listings.append(listing)
        self._resets[family].add_attributed(listing.counted())


def _counting_sets(family: Family) -> tuple[CountingSets, CountingSets]:
    names = set_names(family)
    return names.counting_begun(), names.counting_replies()
