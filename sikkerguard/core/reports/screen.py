"""Which sources may be reported, and what becomes of the packets of one source. Pure.

A source is an IPv4 address, or a whole IPv6 /64: whoever has one address of it has them all, and could otherwise have
any number of rows.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sikkerguard.core.lists.lookup import NETWORK_LENGTH, entry_text
from sikkerguard.core.lists.sources import LOCAL_FILE
from sikkerguard.core.net.family import Family, family_of
from sikkerguard.core.net.packed import Prefix
from sikkerguard.core.reports.rows import allow_matcher

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from sikkerguard.core.lists.allowlist import AllowEntry
    from sikkerguard.core.lists.lookup import Listing
    from sikkerguard.core.reports.rows import Row

    Packets = Mapping[tuple[int, int], int]
    MakeRow = Callable[[bytes, Packets], Row | None]

_OWN_LISTS = frozenset({LOCAL_FILE})


@dataclass(frozen=True, slots=True)
class Cover:
    """The entry of a list that covers an address, as in `Listing`. `own`: no other list than the host's local file is
    known to cover the address."""

    entry: str
    own: bool


@dataclass(frozen=True, slots=True)
class Leader:
    """The address that the row of a source names, and how many of the row's packets it sent itself."""

    address: bytes
    packets: int
    cover: Cover


@dataclass(frozen=True, slots=True)
class Fate:
    """What becomes of a source's packets: those of `row`, which names the address of `leader`, are reported; so many
    are `withheld`; so many `beside` are counted only. `allowed`: how many of its addresses are on the allowlist now."""

    row: Row | None
    leader: Leader | None
    withheld: int
    beside: int
    allowed: int


class Screen:
    """Decides at one moment who may be reported: nobody of the `allowed`, and by the lists, of which `listing` gives
    the entry that covers a packed address. `custom`: addresses that only the local file has are reported too."""

    def __init__(
        self, allowed: Iterable[AllowEntry], listing: Callable[[bytes], Listing | None], *, custom: bool
    ) -> None:
        self.allowed = tuple(allowed)
        self.is_allowed = allow_matcher(self.allowed)
        self._listing = listing
        self._custom = custom

    def cover(self, address: bytes) -> Cover | None:
        """The entry of the lists in force that covers the address; None where there is none."""
        listing = self._listing(address)
        return None if listing is None else Cover(listing.entry, listing.names <= _OWN_LISTS)

    def withholds(self, cover: Cover) -> bool:
        """Whether an address is not reported because of the list that it is on."""
        return cover.own and not self._custom

    def stops(self, address: bytes, known: Cover) -> bool:
        """Whether a row that names this address must not be sent now. Where no list covers it any more, `known`, its
        last entry, decides."""
        return self.is_allowed(address) or self.withholds(self.cover(address) or known)

    def still_passes(self, rows: Iterable[Row], allowed: Sequence[AllowEntry]) -> bool:
        """Whether rows that passed this screen may still be sent when these entries are allowed."""
        if tuple(allowed) == self.allowed:
            return True
        is_allowed = allow_matcher(allowed)
        return not any(is_allowed(row.address) for row in rows)


def source_of(address: bytes) -> bytes:
    """The source of a packed address: an IPv4 address itself, the first 8 bytes of an IPv6 address."""
    return address if family_of(address) is Family.V4 else address[: NETWORK_LENGTH // 8]


def fate_of(
    members: Mapping[bytes, Packets],
    make_row: MakeRow,
    screen: Screen,
    known: Callable[[bytes], Cover | None],
    waiting: Mapping[str, Leader],
) -> Fate:
    """Decide on the packets of one source, `members`: {packed address: {(IP protocol, port): count}}.

    `make_row` makes a row of packets; the addresses that may be reported get one row together. It names the one of them
    that sent most of what rows are made of, and of equals the lowest. `waiting` has the leader of the row of this
    source that waits already, by category, whose packets count too. `known` returns the last entry of an address that
    no list covers any more; without one it counts as this host's own.
    """
    allowed = withheld = beside = 0
    covers = dict[bytes, Cover]()
    for address, packets in members.items():
        if screen.is_allowed(address):
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
    row = make_row(next(iter(covers)), together)
    if row is None:
        return Fate(None, None, withheld + whole, beside, allowed)
    reported = {address: members[address] for address in covers}
    leader = _leader(row, reported, make_row, covers, waiting.get(row.category))
    return Fate(replace(row, address=leader.address), leader, withheld, beside + whole - row.packets, allowed)


def _leader(
    row: Row, members: Mapping[bytes, Packets], make_row: MakeRow, covers: Mapping[bytes, Cover], before: Leader | None
) -> Leader:
    if len(members) == 1:
        sent = {row.address: row.packets}
    else:
        # What makes no row by itself may be forged: nobody is accused by it.
        alone = {address: make_row(address, packets) for address, packets in members.items()}
        sent = {address: made.packets for address, made in alone.items() if made is not None}
    if before is not None:
        sent[before.address] = sent.get(before.address, 0) + before.packets
        covers = {before.address: before.cover, **covers}
    address = min(sent, key=lambda each: (-sent[each], each))
    return Leader(address, sent[address], covers[address])


def _entry_of_its_own(address: bytes) -> str:
    family = family_of(address)
    return entry_text(family, Prefix(int.from_bytes(address, "big"), family.bits))
