"""Changes what sets hold, and compares it with what they are to hold.

A set gets its content by a swap with one that was loaded and read back, which takes microseconds. A set that another
program lists can't be swapped. It is changed entry by entry instead: first what is missing is added to all sets of a
list, then what is too much is removed, so that an address that stays listed is blocked at each moment, and one that
never was listed at none.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, NamedTuple

from sikkerguard.core.firewall.names import loading_names, set_names
from sikkerguard.core.net.networks import Networks
from sikkerguard.core.net.packed import PIECE, Prefix, Ranges, Runs, divided, pack, records
from sikkerguard.edges.kernel.ipset_legacy.set_kinds import RANGES, SINGLES
from sikkerguard.errors import BusyError, FullError, KernelError, as_sentence

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sikkerguard.core.net.family import Family
    from sikkerguard.core.net.networks import Blocklist
    from sikkerguard.edges.kernel.ipset_legacy.sets import SetKind, Sets

log = logging.getLogger(__name__)

# Entries of a set that are looked up when it is read back or checked; one takes some 10 microseconds.
_SAMPLE = 128


class Content(NamedTuple):
    """A set, and what it is to hold of a list."""

    name: str
    kind: SetKind
    networks: Networks


def committed_contents(family: Family, blocklist: Blocklist) -> tuple[Content, Content]:
    """The two sets of the committed list, where this is the list."""
    names, networks = set_names(family), blocklist.of(family)
    return (
        Content(names.singles, SINGLES, Networks(family, networks.singles)),
        Content(names.ranges, RANGES, Networks(family, ranges=networks.ranges)),
    )


def candidate_contents(family: Family, blocklist: Blocklist) -> tuple[Content, Content]:
    """The two sets of the candidate, where this is the list."""
    names, (singles, ranges) = set_names(family), committed_contents(family, blocklist)
    return singles._replace(name=names.new_singles), ranges._replace(name=names.new_ranges)


class SetContents:
    """Changes what sets hold. Every method raises `KernelError` when the kernel refuses, and `BusyError` where it does
    because of another program."""

    def __init__(self, sets: Sets) -> None:
        self._sets = sets
        # Sets of which it was said in the log that another program lists them.
        self._said: set[str] = set()
        # Sets that are not needed any more and could not be destroyed yet.
        self._left: set[str] = set()
        self._sample = 0

    def load(self, name: str, kind: SetKind, networks: Networks) -> None:
        """Make the set hold exactly this: by a swap with a new one, or entry by entry where another program lists
        it."""
        try:
            self.replace(name, kind, networks)
        except BusyError:
            self._say_listed(name)
            if len(networks):
                self.rewrite([(name, networks)])
            else:
                self._sets.flush(name)
        else:
            self._said.discard(name)

    def exchange(self, changes: Sequence[tuple[str, str, Networks]]) -> None:
        """Swap each first set with the second, which holds these networks. A set that another program lists gets them
        entry by entry instead."""
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
        """Make each set hold exactly this, entry by entry: first all that is missing is added, then what is too much is
        removed."""
        surplus = []
        for name, networks in changes:
            missing, gone = self._difference(name, networks)
            surplus.append((name, gone))
            try:
                self._sets.add(name, networks.family, missing.singles, missing.ranges)
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

    def replace(self, name: str, kind: SetKind, networks: Networks, entries: int = 0) -> None:
        """Put a set of this kind, with this content and room for at least so many entries, in the place of one that may
        be of another kind. Rules that refer to it, whoever's, go on to refer to the name.

        Raises:
            BusyError: another program is listing it.
            KernelError: the kernel does not swap these two kinds.
        """
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
        for chosen in loading_names(name):
            if self._sets.header(chosen) is not None:
                self.discard(chosen)
            if chosen not in self._left:
                self._sets.create(chosen, kind, family, entries)
                return chosen
        raise BusyError(f"another program is listing all that was loaded for the set {name}")

    def discard(self, name: str) -> None:
        """Destroy a set that no rule refers to. One that another program lists is emptied, and destroyed later."""
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
        """Destroy what could not be destroyed before, without waiting for another program."""
        for name in sorted(self._left):
            try:
                self._sets.destroy(name, 0.0)
            except BusyError:
                continue
            except KernelError as error:
                log.debug("%s; another program destroyed it.", as_sentence(error))
            self._left.discard(name)

    def change_sample(self) -> None:
        """Let `disagreement` look up other entries from now on, so that in the long run it looks up all of them."""
        self._sample += 1

    def disagreement(self, name: str, networks: Networks) -> str:
        """How a set differs from what it is to hold, by its count and a sample of its entries; empty where it does
        not."""
        header = self._sets.header(name)
        if header is None:
            return "is not there"
        if header.entries != len(networks):
            return f"holds {header.entries} entries instead of {len(networks)}"
        size, blob = networks.family.size, networks.singles
        step = max(1, len(blob) // size // _SAMPLE)
        sample = [blob[at : at + size] for at in range(self._sample % step * size, len(blob), step * size)]
        step = max(1, len(networks.ranges) // _SAMPLE)
        ranges = networks.ranges[self._sample % step :: step]
        sample += [prefix.first.to_bytes(size, "big") for prefix in ranges]
        for address in sample:
            if not self._sets.contains(name, networks.family, address):
                return f"has no entry for {address.hex()}"
        return ""

    def allowed(self, name: str, family: Family) -> tuple[frozenset[Prefix], frozenset[Prefix]]:
        """The ranges that a set matches, and those that it excepts (`nomatch`)."""
        matching, excepted = set[Prefix](), set[Prefix]()
        for address, length, nomatch in self._sets.prefixes(name, family):
            (excepted if nomatch else matching).add(Prefix(int.from_bytes(address, "big"), length))
        return frozenset(matching), frozenset(excepted)

    def fill(self, name: str, kind: SetKind, family: Family, wanted: frozenset[Prefix]) -> None:
        """Make a small set hold exactly these ranges, and no exceptions: what is new is added first, then what is gone
        is removed."""
        held, excepted = self.allowed(name, family)
        header = self._sets.header(name)
        if header is not None and len(held | excepted | wanted) > header.limit:
            self.load(name, kind, Networks(family, ranges=Ranges.of(family, sorted(wanted))))
            return
        # Adding an entry again makes it match.
        self._sets.add(name, family, ranges=sorted(wanted - held))
        self._sets.delete(name, family, sorted((held | excepted) - wanted))

    def _difference(self, name: str, networks: Networks) -> tuple[Networks, Networks]:
        """What the set is missing of these networks, and what it has besides."""
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
        # Adding an entry again makes it match; one that is not wanted is removed.
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
    """The entries that are not among the others."""
    family = networks.family
    singles = divided(networks.singles, others.singles, family.size)[1]
    ranges = divided(networks.ranges.packed, others.ranges.packed, family.size + 1)[1]
    return Networks(family, singles, Ranges(family, ranges))
