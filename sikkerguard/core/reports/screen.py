"""Who may be reported, and what becomes of the packets of one source: pure.

A source is an IPv4 address, or all of an IPv6 /64: who has one address of it has them all, and would otherwise have as
many rows as he likes.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sikkerguard.core.lists.lookup import NETWORK_LENGTH, entry_text
from sikkerguard.core.lists.sources import LOCAL_FILE
from sikkerguard.core.net.family import Family, family_of
from sikkerguard.core.net.packed import Prefix
from sikkerguard.core.reports.rows import sparing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from sikkerguard.core.lists.allowlist import AllowEntry
    from sikkerguard.core.lists.lookup import Listing
    from sikkerguard.core.reports.rows import Row

    Packets = Mapping[tuple[int, int], int]
    Decide = Callable[[bytes, Packets], Row | None]

_OWN_LISTS = frozenset({LOCAL_FILE})


@dataclass(frozen=True, slots=True)
class Cover:
    """The entry of a list that covers an address, as in `Listing`, and whether it is this host's `own`: no other list
    than the local file is known to cover the address."""

    entry: str
    own: bool


@dataclass(frozen=True, slots=True)
class Leader:
    """The address in whose name the row of a source is, and how many packets it sent of those in the row."""

    address: bytes
    packets: int
    cover: Cover


@dataclass(frozen=True, slots=True)
class Fate:
    """What becomes of a source's packets: those of `row` are to be reported in the name of `leader`, so many are
    `withheld`, and those `beside` are counted and no more. `allowed` is the number of its addresses that are allowed
    now."""

    row: Row | None
    leader: Leader | None
    withheld: int
    beside: int
    allowed: int


class Screen:
    """Who may be reported at one moment, by what was allowed, listed and set then. `custom` says whether addresses are
    reported that the local file alone has."""

    def __init__(
        self, allowed: Iterable[AllowEntry], listing: Callable[[bytes], Listing | None], *, custom: bool
    ) -> None:
        self.allowed = tuple(allowed)
        self.spares = sparing(self.allowed)
        self._listing = listing
        self._custom = custom

    def cover(self, address: bytes) -> Cover | None:
        """What covers the address by the lists in force; None where none of them does."""
        listing = self._listing(address)
        return None if listing is None else Cover(listing.entry, listing.names <= _OWN_LISTS)

    def withholds(self, cover: Cover) -> bool:
        """Whether an address stays at home because of the list that it is on."""
        return cover.own and not self._custom

    def stops(self, address: bytes, known: Cover) -> bool:
        """Whether a row in the name of this address must not be sent now. Where no list covers it any more, what was
        known of it counts."""
        return self.spares(address) or self.withholds(self.cover(address) or known)

    def still_passes(self, rows: Iterable[Row], allowed: Sequence[AllowEntry]) -> bool:
        """Whether rows that passed may all go by what is allowed a moment later, too."""
        if tuple(allowed) == self.allowed:
            return True
        spares = sparing(allowed)
        return not any(spares(row.address) for row in rows)


def source_of(address: bytes) -> bytes:
    """The source that a packed address belongs to: itself, or the first half of an IPv6 address."""
    return address if family_of(address) is Family.V4 else address[: NETWORK_LENGTH // 8]


def fate_of(
    members: Mapping[bytes, Packets],
    decide: Decide,
    screen: Screen,
    known: Callable[[bytes], Cover | None],
    waiting: Mapping[str, Leader],
) -> Fate:
    """What becomes of the packets of one source, {address: {(protocol, port): count}}.

    `decide` makes a row of packets; it gets those of all addresses that may be reported as one. The row is in the name
    of the one of them that sent most of what rows are made of, of equals the lowest: also counting what is `waiting`,
    which has the leader of the row that waits of this source, by category. `known` says what was known of an address
    that no list covers any more; one of which nothing is known counts as this host's own.
    """
    allowed = withheld = beside = 0
    covers = dict[bytes, Cover]()
    for address, packets in members.items():
        if screen.spares(address):
            allowed, beside = allowed + 1, beside + sum(packets.values())
            continue
        # A list that is no longer in force may have been the local file, or one that did not pass its trial.
        cover = screen.cover(address) or known(address) or Cover(_entry_of_its_own(address), True)
        if screen.withholds(cover):
            withheld += sum(packets.values())
        else:
            covers[address] = cover
    if not covers:
        return Fate(None, None, withheld, beside, allowed)
    together = Counter[tuple[int, int]]()
    for address in covers:
        together.update(members[address])
    whole = together.total()
    row = decide(next(iter(covers)), together)
    if row is None:
        return Fate(None, None, withheld + whole, beside, allowed)
    reported = {address: members[address] for address in covers}
    leader = _leader(row, reported, decide, covers, waiting.get(row.category))
    return Fate(replace(row, address=leader.address), leader, withheld, beside + whole - row.packets, allowed)


def _leader(
    row: Row, members: Mapping[bytes, Packets], decide: Decide, covers: Mapping[bytes, Cover], before: Leader | None
) -> Leader:
    if len(members) == 1:
        sent = {row.address: row.packets}
    else:
        # What makes no row by itself may be forged: nobody is accused by it.
        alone = {address: decide(address, packets) for address, packets in members.items()}
        sent = {address: made.packets for address, made in alone.items() if made is not None}
    if before is not None:
        sent[before.address] = sent.get(before.address, 0) + before.packets
        covers = {before.address: before.cover, **covers}
    address = min(sent, key=lambda each: (-sent[each], each))
    return Leader(address, sent[address], covers[address])


def _entry_of_its_own(address: bytes) -> str:
    family = family_of(address)
    return entry_text(family, Prefix(int.from_bytes(address, "big"), family.bits))
