"""Arithmetic on ranges of addresses: merge, cut, and back to prefixes. Exact; nothing is ever widened."""

from __future__ import annotations

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


def canonical(family: Family, singles: Iterable[bytes], prefixes: Iterable[Prefix]) -> Networks:
    """Sort, drop what is there twice, join neighbouring ranges, and drop singles that a range covers.

    `singles` are packed addresses in any order. Single addresses stay single: the kernel finds them with one
    look-up, whatever their number.
    """
    ranges: list[Prefix] = []
    extra: list[bytes] = []
    for interval in merge(Interval(prefix.first, prefix.last(family)) for prefix in prefixes):
        for prefix in to_prefixes(family, interval):
            if prefix.length == family.bits:
                extra.append(prefix.first.to_bytes(family.size, "big"))
            else:
                ranges.append(prefix)
    networks = Networks(family, _sorted_blob(family, singles, extra), tuple(ranges))
    covered = [Interval(prefix.first, prefix.last(family)) for prefix in ranges]
    return Networks(family, without_singles(networks, covered)[0], networks.ranges)


def _sorted_blob(family: Family, *groups: Iterable[bytes]) -> bytes:
    """Packed addresses in any order, as one ascending blob with each of them once.

    They are dealt into one bucket for each first byte (IPv4) or first four bytes (IPv6, where most addresses
    share the first two), so that no single call into the interpreter's core is long: the threads that serve
    health requests get their turn in between.
    """
    buckets: dict[bytes, list[bytes]] = {}
    width = 1 if family is Family.V4 else 4
    for group in groups:
        for packed in group:
            head = packed[:width]
            if head in buckets:
                buckets[head].append(packed)
            else:
                buckets[head] = [packed]
    return b"".join(b"".join(sorted(set(buckets[head]))) for head in sorted(buckets))


def without_singles(networks: Networks, holes: Iterable[Interval]) -> tuple[bytes, int]:
    """The singles that lie in none of the holes (ascending, disjoint), and how many did lie in one."""
    size = networks.family.size
    kept: list[bytes] = []
    start = removed = 0
    for hole in holes:
        low, high = networks.single_positions(hole.first, hole.last)
        if low < high:
            kept.append(networks.singles[start * size : low * size])
            removed += high - low
            start = high
    if not removed:
        return networks.singles, 0
    kept.append(networks.singles[start * size :])
    return b"".join(kept), removed


def cut(networks: Networks, holes: Iterable[Interval]) -> tuple[Networks, int]:
    """The networks without the holes, exactly, and how many entries were dropped or narrowed for it."""
    family = networks.family
    merged = merge(holes)
    singles, removed = without_singles(networks, merged)
    ranges: list[Prefix] = []
    extra: list[bytes] = []
    touching = _overlapping(networks, merged)
    for position, prefix in enumerate(networks.ranges):
        if position not in touching:
            ranges.append(prefix)
            continue
        removed += 1
        for left in subtract(Interval(prefix.first, prefix.last(family)), touching[position]):
            for piece in to_prefixes(family, left):
                if piece.length == family.bits:
                    extra.append(piece.first.to_bytes(family.size, "big"))
                else:
                    ranges.append(piece)
    if extra:
        singles = _sorted_blob(family, Networks(family, singles).packed_singles(), extra)
    return Networks(family, singles, tuple(ranges)), removed


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
