"""What lies in the sets: loading, exchanging and comparing it.

A set gets its content by a swap with one that was loaded and read back, which takes no time that a packet could notice.
A set that another program lists can't be swapped. Then it is changed entry by entry: what it lacks is added to all sets
of a list before anything is taken out of one, so that what stays listed is blocked in each moment, and what never was
listed in none.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from sikkerguard.core.firewall.names import further_loading, loading
from sikkerguard.core.net.networks import Networks
from sikkerguard.core.net.packed import PIECE, Prefix, Ranges, Runs, divided, pack, records
from sikkerguard.errors import BusyError, FullError, KernelError, as_sentence

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sikkerguard.core.net.family import Family
    from sikkerguard.edges.kernel.ipset_legacy.sets import SetKind, Sets

log = logging.getLogger(__name__)

# Entries of a set that are asked for when it is read back or looked at, some 10 microseconds each.
_SAMPLE = 128


def only_singles(networks: Networks) -> Networks:
    """The part of a list that lies in its set of addresses."""
    return Networks(networks.family, networks.singles)


def only_ranges(networks: Networks) -> Networks:
    """The part of a list that lies in its set of ranges."""
    return Networks(networks.family, ranges=networks.ranges)


class SetContents:
    """Changes what sets hold. Every method raises `KernelError` when the kernel refuses, and `BusyError` where it does
    because of another program; `look` counts the looks, each of which asks for other entries."""

    def __init__(self, sets: Sets) -> None:
        self._sets = sets
        self._said: set[str] = set()
        # Sets that nobody needs any more and that could not be destroyed.
        self._left: set[str] = set()
        self.look = 0

    def load(self, name: str, kind: SetKind, networks: Networks) -> None:
        """Have the set hold just this: by a fresh one in its place, or entry by entry where it is being listed."""
        try:
            self._swap_in(name, kind, networks)
        except BusyError:
            self._say_listed(name)
            if len(networks):
                self.rewrite([(name, networks)])
            else:
                self._sets.flush(name)
        else:
            self._said.discard(name)

    def exchange(self, changes: Sequence[tuple[str, str, Networks]]) -> None:
        """Swap each first set with the second, which holds these networks. A set that is being listed gets them entry
        by entry instead."""
        listed = []
        for name, loaded, networks in changes:
            try:
                self._sets.swap(name, loaded)
            except BusyError:
                self._say_listed(name)
                listed.append((name, networks))
            else:
                self._said.discard(name)
        self.rewrite(listed)

    def rewrite(self, changes: Sequence[tuple[str, Networks]]) -> None:
        """Have each set hold just this, entry by entry: first all that is lacking, then all that is too much."""
        surplus = []
        for name, networks in changes:
            lacking, gone = self._difference(name, networks)
            surplus.append((name, gone))
            try:
                self._sets.add(name, networks.family, lacking.singles, lacking.ranges)
            except FullError as error:
                raise BusyError(
                    f"another program is listing the set {name}, which has no room for what is to be added to it; it "
                    "is changed when that program lets go"
                ) from error
        for name, gone in surplus:
            self._sets.delete(name, gone.family, gone.ranges, gone.singles)
        for name, networks in changes:
            if disagreement := self.disagreement(name, networks):
                raise KernelError(f"set {name} was changed entry by entry but {disagreement}")

    def replace(self, name: str, kind: SetKind, networks: Networks, entries: int) -> None:
        """Put a set of this kind, with this content and room for so many entries, in the place of one of another kind,
        if they are enough alike to be swapped; rules that refer to it, whoever's, go on to refer to the name.

        Raises:
            BusyError: it is being listed.
            KernelError: it is too different.
        """
        self._swap_in(name, kind, networks, entries)

    def _swap_in(self, name: str, kind: SetKind, networks: Networks, entries: int = 0) -> None:
        fresh = self._fresh(name, kind, networks.family, max(entries, len(networks)))
        try:
            self._sets.add(fresh, networks.family, networks.singles, networks.ranges)
            if disagreement := self.disagreement(fresh, networks):
                raise KernelError(f"set {name} was loaded but {disagreement}; it is discarded")
            self._sets.swap(fresh, name)
        finally:
            self.discard(fresh)

    def _fresh(self, name: str, kind: SetKind, family: Family, entries: int) -> str:
        self.tidy()
        for chosen in (loading(name), *further_loading(name)):
            if self._sets.header(chosen) is not None:
                self.discard(chosen)
            if chosen not in self._left:
                self._sets.create(chosen, kind, family, entries)
                return chosen
        raise BusyError(f"another program is listing all that was loaded for the set {name}")

    def discard(self, name: str) -> None:
        """Destroy a set that no rule refers to. One that is being listed is emptied, and destroyed when it is let
        go."""
        if self._sets.header(name) is None:
            return
        try:
            self._sets.destroy(name)
        except BusyError as error:
            log.debug("%s; it is emptied, and destroyed later.", as_sentence(error))
            self._sets.flush(name)
            self._left.add(name)
        else:
            self._left.discard(name)

    def tidy(self) -> None:
        """Destroy what could not be destroyed before, without waiting for it."""
        for name in sorted(self._left):
            try:
                self._sets.destroy(name, 0.0)
            except BusyError:
                continue
            except KernelError as error:
                log.debug("%s; somebody else took it away.", as_sentence(error))
            self._left.discard(name)

    def disagreement(self, name: str, networks: Networks) -> str:
        """How a set differs from what it is to hold, by its count and a sample; empty where it does not."""
        header = self._sets.header(name)
        if header is None:
            return "is not there"
        if header.entries != len(networks):
            return f"holds {header.entries} entries instead of {len(networks)}"
        size, blob = networks.family.size, networks.singles
        step = max(1, len(blob) // size // _SAMPLE)
        sample = [blob[at : at + size] for at in range(self.look % step * size, len(blob), step * size)]
        step = max(1, len(networks.ranges) // _SAMPLE)
        ranges = networks.ranges[self.look % step :: step]
        sample += [prefix.first.to_bytes(size, "big") for prefix in ranges]
        for address in sample:
            if not self._sets.contains(name, networks.family, address):
                return f"lacks {address.hex()}"
        return ""

    def allowed(self, name: str, family: Family) -> tuple[frozenset[Prefix], frozenset[Prefix]]:
        """What a set of ranges matches, and what it excepts from that (`nomatch`)."""
        matching, excepted = set[Prefix](), set[Prefix]()
        for address, length, nomatch in self._sets.prefixes(name, family):
            (excepted if nomatch else matching).add(Prefix(int.from_bytes(address, "big"), length))
        return frozenset(matching), frozenset(excepted)

    def fill(self, name: str, kind: SetKind, family: Family, wanted: frozenset[Prefix]) -> None:
        """Have a small set hold these ranges and no exception: what is new is added first, then what is gone is taken
        out."""
        held, excepted = self.allowed(name, family)
        header = self._sets.header(name)
        if header is not None and len(held | excepted | wanted) > header.limit:
            self.load(name, kind, Networks(family, ranges=Ranges.of(family, sorted(wanted))))
            return
        # To add an entry again takes the exception from it.
        self._sets.add(name, family, ranges=sorted(wanted - held))
        self._sets.delete(name, family, sorted((held | excepted) - wanted))

    def _difference(self, name: str, networks: Networks) -> tuple[Networks, Networks]:
        """What the set lacks of these networks, and what it has besides."""
        family = networks.family
        singles, ranges = Runs(family.size), Runs(family.size + 1)
        excepted: list[Prefix] = []
        few_singles: list[bytes] = []
        few_ranges: list[bytes] = []
        for address, length, nomatch in self._sets.prefixes(name, family):
            if nomatch:
                excepted.append(Prefix(int.from_bytes(address, "big"), length))
            elif networks.singles and length == family.bits:
                few_singles.append(address)
            else:
                few_ranges.append(address + bytes([length]))
            if len(few_singles) + len(few_ranges) >= PIECE:
                singles.add(few_singles)
                ranges.add(few_ranges)
                few_singles, few_ranges = [], []
        singles.add(few_singles)
        ranges.add(few_ranges)
        held = Networks(family, singles.blob(), Ranges(family, ranges.blob()))
        gone = _less(held, networks)
        # To add an entry again takes the exception from it; what is not wanted is taken out.
        unwanted = {pack(family, *each) for each in excepted if networks.find(each.first) != each}
        if unwanted:
            packed = b"".join(sorted({*records(gone.ranges.packed, family.size + 1), *unwanted}))
            gone = Networks(family, gone.singles, Ranges(family, packed))
        return _less(networks, held), gone

    def _say_listed(self, name: str) -> None:
        if name not in self._said:
            self._said.add(name)
            log.warning(
                "Another program is listing the set %s, so that it can't be exchanged at once; it is changed entry by "
                "entry instead.",
                name,
            )


def _less(networks: Networks, others: Networks) -> Networks:
    """Those entries that the others have not."""
    family = networks.family
    singles = divided(networks.singles, others.singles, family.size)[1]
    ranges = divided(networks.ranges.packed, others.ranges.packed, family.size + 1)[1]
    return Networks(family, singles, Ranges(family, ranges))
