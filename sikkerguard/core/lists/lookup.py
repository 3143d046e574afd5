"""Which lists cover an address, and by which entry. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sikkerguard.core.lists.parse import merge_content
from sikkerguard.core.net.address import to_text
from sikkerguard.core.net.family import Family, family_of
from sikkerguard.core.net.packed import Prefix

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sikkerguard.core.lists.sources import ListedSource
    from sikkerguard.core.net.networks import Blocklist

# Whoever has one IPv6 address has 2^64 of them: interface identifiers are 64 bits long (RFC 4291, 2.5.1).
NETWORK_LENGTH = 64


@dataclass(frozen=True, slots=True)
class Listing:
    """What covers an address: the most specific entry that any list has for it, as text (`192.0.2.0/24`), and the names
    of all lists that cover it. An IPv6 entry longer than a /64 is given as that /64."""

    entry: str
    names: frozenset[str]


class Listings:
    """The lists in force, for many questions. What one list has in several generations is merged first, which for a
    million entries takes about a second; an answer then takes a few microseconds a list."""

    def __init__(self, sources: Iterable[ListedSource]) -> None:
        contents: dict[str, list[Blocklist]] = {}
        for source in sources:
            contents.setdefault(source.name, []).append(source.content)
        self._lists = {name: merge_content(parts) for name, parts in contents.items()}

    def of(self, address: bytes) -> Listing | None:
        """What covers this packed address; None where no list does."""
        family, number = family_of(address), int.from_bytes(address, "big")
        found = {name: entry for name, each in self._lists.items() if (entry := each.of(family).find(number))}
        if not found:
            return None
        entry = max(found.values(), key=lambda prefix: prefix.length)
        return Listing(entry_text(family, entry), frozenset(found))


def entry_text(family: Family, prefix: Prefix) -> str:
    """An entry as `Listing` has it."""
    if family is Family.V6 and prefix.length > NETWORK_LENGTH:
        host_bits = family.bits - NETWORK_LENGTH
        prefix = Prefix(prefix.first >> host_bits << host_bits, NETWORK_LENGTH)
    return to_text(family, prefix)
