"""Networks in canonical form, of one family and of both.

Addresses travel packed, in network byte order: a million of them is four megabytes, sorts as bytes do, and is
what the kernel wants to be sent.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from itertools import repeat
from typing import TYPE_CHECKING

from sikkerguard.core.net.address import to_text
from sikkerguard.core.net.family import Family
from sikkerguard.core.net.packed import Prefix, Ranges, pieces, position

if TYPE_CHECKING:
    from collections.abc import Iterator


_NO_RANGES = Ranges(Family.V4)


@dataclass(frozen=True, slots=True)
class Networks:
    """Addresses of one family, in canonical form: `singles` are packed addresses, ascending, each once; `ranges`
    are ascending and disjoint, and cover none of the singles. Its length is the number of entries."""

    family: Family
    singles: bytes = b""
    ranges: Ranges = _NO_RANGES

    def __len__(self) -> int:
        return len(self.singles) // self.family.size + len(self.ranges)

    def single_pieces(self) -> Iterator[list[bytes]]:
        """The single addresses, each packed, in lists of some thousand: as objects they take ten times the room."""
        return pieces(self.singles, self.family.size)

    def single_positions(self, first: int, last: int) -> tuple[int, int]:
        """The half-open span of positions of the singles from address `first` to address `last`."""
        size, singles = self.family.size, self.singles
        low = position(singles, size, first.to_bytes(size, "big"))
        return low, position(singles, size, last.to_bytes(size, "big"), low, behind=True)

    def find(self, address: int) -> Prefix | None:
        """The entry that covers this address, or None."""
        size, singles = self.family.size, self.singles
        packed = address.to_bytes(size, "big")
        at = size * position(singles, size, packed)
        if singles[at : at + size] == packed:
            return Prefix(address, self.family.bits)
        low, high = self.ranges.span(address, address)
        return self.ranges[low] if low < high else None

    def overlaps(self, first: int, last: int) -> bool:
        """Whether any entry covers an address from `first` to `last`."""
        return any(low < high for low, high in (self.single_positions(first, last), self.ranges.span(first, last)))

    def texts(self) -> Iterator[str]:
        """Every entry as text: the singles, then the ranges."""
        for piece in self.single_pieces():
            yield from map(socket.inet_ntop, repeat(self.family.number), piece)
        for prefix in self.ranges:
            yield to_text(self.family, prefix)


@dataclass(frozen=True, slots=True)
class Blocklist:
    """Both families of one list; its length is the number of entries."""

    v4: Networks = field(default_factory=lambda: Networks(Family.V4))
    v6: Networks = field(default_factory=lambda: Networks(Family.V6))

    def __len__(self) -> int:
        return len(self.v4) + len(self.v6)

    def of(self, family: Family) -> Networks:
        """The networks of one family."""
        return self.v4 if family is Family.V4 else self.v6

    def has(self, family: Family, address: int) -> bool:
        """Whether an entry covers this address."""
        return self.of(family).find(address) is not None
