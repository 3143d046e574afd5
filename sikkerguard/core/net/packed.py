"""Records of one size in a row of bytes: addresses, and ranges as a first address and a byte of prefix length.

Big-endian, so that records sort as the bytes do. A million addresses are four megabytes this way and forty as objects,
and a million ranges five instead of two hundred; what is done with them is done to some thousand at a time.
"""

from __future__ import annotations

import struct
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import islice
from operator import eq
from typing import TYPE_CHECKING, NamedTuple, overload

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sikkerguard.core.net.family import Family

# Records that are objects at the same time: enough to make the work on each worth it, little enough for the threads
# that serve health requests to get their turn in between.
PIECE = 16384
# A run of sorted records is looked at in such steps to find out how all of them are spread.
_STEP = 256


class Prefix(NamedTuple):
    """A range of addresses: its first address as a number, and its prefix length."""

    first: int
    length: int

    def last(self, family: Family) -> int:
        """The number of the last address that the prefix covers."""
        return self.first | ((1 << (family.bits - self.length)) - 1)


def pieces(blob: bytes, size: int) -> Iterator[list[bytes]]:
    """The records, each by itself, in lists of some thousand."""
    for start in range(0, len(blob), PIECE * size):
        yield records(blob[start : start + PIECE * size], size)


def records(blob: bytes, size: int) -> list[bytes]:
    """The records, each by itself."""
    return [blob[at : at + size] for at in range(0, len(blob), size)]


def position(blob: bytes, size: int, record: bytes, low: int = 0, *, behind: bool = False) -> int:
    """Where the record is in an ascending row, or would be; with `behind`, the first position behind it. What stands
    before position `low` is known to be smaller."""
    search = bisect_right if behind else bisect_left
    return search(range(len(blob) // size), record, lo=low, key=lambda at: blob[at * size : at * size + size])


def divided(blob: bytes, known: bytes, size: int) -> tuple[bytes, bytes]:
    """What of one ascending row is in another one, and what is not."""
    kept: list[bytes] = []
    left: list[bytes] = []
    low = 0
    for piece in pieces(blob, size):
        low = position(known, size, piece[0], low)
        high = position(known, size, piece[-1], low, behind=True)
        wanted, found = set(piece), set[bytes]()
        # Between the first and the last of a piece there may be any number of others.
        for group in pieces(known[low * size : high * size], size):
            found |= wanted.intersection(group)
        if len(found) == len(piece):
            kept.append(b"".join(piece))
            continue
        kept.append(b"".join([record for record in piece if record in found]))
        left.append(b"".join([record for record in piece if record not in found]))
    # What did not change is not kept twice.
    if not any(left):
        return blob, b""
    if not any(kept):
        return b"", blob
    return b"".join(kept), b"".join(left)


class Runs:
    """Records in any order, to one ascending row with each of them once.

    They are sorted some thousand at a time, and these runs are then merged, a narrow span of them after the other:
    whatever the records and their order, there are never more than some ten thousand objects at once, and no single
    call into the interpreter's core is long.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._pending: list[bytes] = []
        self._runs: list[bytes] = []
        self.count = 0

    def add(self, packed: list[bytes]) -> None:
        """Take some records."""
        self.count += len(packed)
        self._pending += packed
        if len(self._pending) >= PIECE:
            self._seal()

    def add_row(self, row: bytes) -> None:
        """Take an ascending row in which each record is once."""
        if row:
            self.count += len(row) // self._size
            self._runs.append(row)

    def blob(self) -> bytes:
        """All of them, ascending, each once."""
        self._seal()
        if len(self._runs) == 1:
            return self._runs[0]
        size, starts = self._size, [0] * len(self._runs)
        merged = []
        for border in [*self._borders(), None]:
            span: list[bytes] = []
            for number, run in enumerate(self._runs):
                start = starts[number]
                end = len(run) // size if border is None else position(run, size, border, start)
                starts[number] = end
                span += records(run[start * size : end * size], size)
            merged.append(_row(span))
        self._runs = [b"".join(merged)]
        return self._runs[0]

    def _seal(self) -> None:
        if self._pending:
            self._runs.append(_row(self._pending))
            self._pending = []

    def _borders(self) -> list[bytes]:
        """Records between which there are about as many as in one piece."""
        size, samples = self._size, []
        for run in self._runs:
            samples += [run[at : at + size] for at in range(0, len(run), size * _STEP)]
        samples.sort()
        return samples[PIECE // _STEP :: PIECE // _STEP]


def _row(unsorted: list[bytes]) -> bytes:
    unsorted.sort()
    # To look for twins takes half as long as to be rid of them.
    twins = any(map(eq, unsorted, islice(unsorted, 1, None)))
    return b"".join(dict.fromkeys(unsorted) if twins else unsorted)


class Ranges(Sequence[Prefix]):
    """Ranges of addresses of one family, ascending: a sequence of `Prefix` that never changes, and that takes the bytes
    of an address and one more for each. `packed` is these bytes, each range its first address in network byte order and
    the prefix length."""

    __slots__ = ("_family", "packed")

    def __init__(self, family: Family, packed: bytes = b"") -> None:
        """Raises:
        ValueError: the bytes are no whole number of ranges.
        """
        if len(packed) % (family.size + 1):
            raise ValueError(f"{len(packed)} bytes are no whole number of ranges")
        self._family = family
        self.packed = packed

    @classmethod
    def of(cls, family: Family, prefixes: Iterable[Prefix]) -> Ranges:
        """These, which are ascending."""
        if isinstance(prefixes, cls):
            return prefixes
        return cls(family, b"".join(pack(family, *prefix) for prefix in prefixes))

    @overload
    def __getitem__(self, at: int) -> Prefix: ...
    @overload
    def __getitem__(self, at: slice) -> Ranges: ...
    def __getitem__(self, at: int | slice) -> Prefix | Ranges:
        size = self._family.size + 1
        if isinstance(at, slice):
            start, stop, step = at.indices(len(self))
            if step == 1:
                return Ranges(self._family, self.packed[start * size : stop * size])
            chosen = (self.packed[each * size : each * size + size] for each in range(start, stop, step))
            return Ranges(self._family, b"".join(chosen))
        start = range(len(self))[at] * size
        return Prefix(int.from_bytes(self.packed[start : start + size - 1], "big"), self.packed[start + size - 1])

    def __len__(self) -> int:
        return len(self.packed) // (self._family.size + 1)

    def __iter__(self) -> Iterator[Prefix]:
        if self._family.size == 4:
            return map(Prefix._make, struct.iter_unpack(">IB", self.packed))
        return (Prefix(high << 64 | low, length) for high, low, length in struct.iter_unpack(">QQB", self.packed))

    def __eq__(self, other: object) -> bool:
        """A tuple of the same prefixes is equal to it."""
        if isinstance(other, Ranges):
            return self.packed == other.packed and (self._family is other._family or not self.packed)
        return tuple(self) == other if isinstance(other, tuple) else NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return f"Ranges({self._family}, {self.packed!r})"

    def span(self, first: int, last: int) -> tuple[int, int]:
        """The half-open span of positions of those that cover an address from `first` to `last`. They are disjoint."""
        family, size = self._family, self._family.size + 1
        low = position(self.packed, size, pack(family, first, 0xFF), behind=True)
        if low and self[low - 1].last(family) >= first:
            low -= 1
        return low, position(self.packed, size, pack(family, last, 0xFF), low, behind=True)

    def by_length(self) -> dict[int, bytes]:
        """For each prefix length the packed first addresses of the ranges that have it, in a row."""
        found: dict[int, bytearray] = {}
        for address, length in struct.iter_unpack(f"{self._family.size}sB", self.packed):
            found.setdefault(length, bytearray()).extend(address)
        return {length: bytes(addresses) for length, addresses in found.items()}


def pack(family: Family, first: int, length: int) -> bytes:
    """A range as it stands in `Ranges.packed`."""
    return (first << 8 | length).to_bytes(family.size + 1, "big")
