"""Arithmetic on ranges of addresses: merge, cut, and back to prefixes. Exact; nothing is ever widened."""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING

from sikkerguard.core.model import Family, Interval, Networks, Prefix

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence


def merge(intervals: Iterable[Interval]) -> list[Interval]:
    """The same addresses as the fewest intervals, ascending; touching intervals become one."""
    merged: list[Interval] = []
    for first, last in sorted(intervals):
        if merged and first <= merged[-1].last + 1:
            if last > merged[-1].last:
                merged[-1] = Interval(merged[-1].first, last)
        else:
            merged.append(Interval(first, last))
    return merged


def to_prefixes(family: Family, interval: Interval) -> Iterator[Prefix]:
    """The fewest prefixes that cover the interval and nothing else, ascending."""
    first, last = interval
    while first <= last:
        # The largest block that may begin here: limited by the alignment of its first address, and by the end.
        aligned = (first & -first).bit_length() - 1 if first else family.bits
        fitting = (last - first + 1).bit_length() - 1
        host_bits = min(aligned, fitting)
        yield Prefix(first, family.bits - host_bits)
        first += 1 << host_bits


def subtract(interval: Interval, holes: Sequence[Interval]) -> list[Interval]:
    """What is left of the interval without the holes; these are ascending and disjoint."""
    left: list[Interval] = []
    start = interval.first
    for hole in holes:
        if hole.last < start or hole.first > interval.last:
            continue
        if hole.first > start:
            left.append(Interval(start, hole.first - 1))
        start = hole.last + 1
    if start <= interval.last:
        left.append(Interval(start, interval.last))
    return left


def canonical(family: Family, singles: Sorter, prefixes: Iterable[Prefix]) -> Networks:
    """Drop what is there twice, join neighbouring ranges, and drop singles that a range covers.

    Single addresses stay single: the kernel finds them with one look-up, whatever their number.
    """
    ranges: list[Prefix] = []
    extra: list[bytes] = []
    for interval in merge(Interval(prefix.first, prefix.last(family)) for prefix in prefixes):
        for prefix in to_prefixes(family, interval):
            if prefix.length == family.bits:
                extra.append(prefix.first.to_bytes(family.size, "big"))
            else:
                ranges.append(prefix)
    if extra:
        singles.add(extra)
    networks = Networks(family, singles.blob(), tuple(ranges))
    covered = [Interval(prefix.first, prefix.last(family)) for prefix in ranges]
    return Networks(family, without_singles(networks, covered), networks.ranges)


class Sorter:
    """Packed addresses in any order, taken in pieces, to one ascending blob with each of them once.

    Each piece is sorted and dealt into one bucket for each first byte (IPv4) or first four bytes (IPv6, where most
    addresses share the first two). So memory holds packed bytes and no million of objects, and no single call into the
    interpreter's core is long: the threads that serve health requests get their turn in between.
    """

    def __init__(self, family: Family) -> None:
        self._family = family
        self._width = 1 if family is Family.V4 else 4
        self._buckets: dict[bytes, bytearray] = {}
        self.count = 0

    def add(self, packed: list[bytes]) -> None:
        """Take a piece of some thousand addresses; the list is sorted in place."""
        packed.sort()
        self.count += len(packed)
        width = self._width
        behind = b"\xff" * (self._family.size - width)
        start = 0
        while start < len(packed):
            head = packed[start][:width]
            end = bisect_right(packed, head + behind, lo=start)
            self._buckets.setdefault(head, bytearray()).extend(b"".join(packed[start:end]))
            start = end

    def blob(self) -> bytes:
        """All of them, ascending, each once."""
        size = self._family.size
        sorted_buckets = []
        for head in sorted(self._buckets):
            bucket = bytes(self._buckets[head])
            addresses = [bucket[at : at + size] for at in range(0, len(bucket), size)]
            addresses.sort()
            sorted_buckets.append(b"".join(dict.fromkeys(addresses)))
        return b"".join(sorted_buckets)


def touched(networks: Networks, holes: Sequence[Interval]) -> int:
    """How many entries share an address with one of the holes (ascending, disjoint)."""
    singles = 0
    for hole in holes:
        low, high = networks.single_positions(hole.first, hole.last)
        singles += high - low
    return singles + len(_overlapping(networks, holes))


def without_singles(networks: Networks, holes: Iterable[Interval]) -> bytes:
    """The singles that lie in none of the holes (ascending, disjoint)."""
    size = networks.family.size
    kept: list[bytes] = []
    start = 0
    for hole in holes:
        low, high = networks.single_positions(hole.first, hole.last)
        if low < high:
            kept.append(networks.singles[start * size : low * size])
            start = high
    if not start:
        return networks.singles
    kept.append(networks.singles[start * size :])
    return b"".join(kept)


def cut(networks: Networks, holes: Iterable[Interval]) -> Networks:
    """The networks without the holes, exactly."""
    family = networks.family
    merged = merge(holes)
    singles = without_singles(networks, merged)
    ranges: list[Prefix] = []
    extra: list[bytes] = []
    touching = _overlapping(networks, merged)
    for position, prefix in enumerate(networks.ranges):
        if position not in touching:
            ranges.append(prefix)
            continue
        for left in subtract(Interval(prefix.first, prefix.last(family)), touching[position]):
            for piece in to_prefixes(family, left):
                if piece.length == family.bits:
                    extra.append(piece.first.to_bytes(family.size, "big"))
                else:
                    ranges.append(piece)
    if extra:
        sorter = Sorter(family)
        for group in Networks(family, singles).single_pieces():
            sorter.add(group)
        sorter.add(extra)
        singles = sorter.blob()
    return Networks(family, singles, tuple(ranges))


def _overlapping(networks: Networks, holes: Sequence[Interval]) -> dict[int, list[Interval]]:
    """For each range that a hole touches: its position, and the holes in it. Both run ascending, so one pass does."""
    touching: dict[int, list[Interval]] = {}
    ranges, family = networks.ranges, networks.family
    position = 0
    for hole in holes:
        while position < len(ranges) and ranges[position].last(family) < hole.first:
            position += 1
        at = position
        while at < len(ranges) and ranges[at].first <= hole.last:
            touching.setdefault(at, []).append(hole)
            at += 1
    return touching
