"""Arithmetic on ranges of addresses: merge, cut, and back to prefixes. Exact; nothing is ever widened."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING

from sikkerguard.core.net.address import Interval
from sikkerguard.core.net.networks import Networks
from sikkerguard.core.net.packed import PIECE, Prefix, Ranges, Runs, pack, records

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from sikkerguard.core.net.family import Family


def merge(intervals: Iterable[Interval]) -> list[Interval]:
    """The same addresses as the fewest intervals, ascending; touching intervals become one."""
    return list(_joined(sorted(intervals)))


def _joined(ascending: Iterable[Interval]) -> Iterator[Interval]:
    start, end = 0, -2
    for first, last in ascending:
        if first > end + 1:
            if end >= 0:
                yield Interval(start, end)
            start, end = first, last
        elif last > end:
            end = last
    if end >= 0:
        yield Interval(start, end)


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


def canonical(family: Family, singles: Runs, prefixes: Iterable[Prefix]) -> Networks:
    """Drop what is there twice, join neighbouring ranges, and drop singles that a range covers. The prefixes come in
    any order; where there may be many of them, a `Ranges` of them in ascending order, which may then overlap, takes
    the least room.

    Single addresses stay single: the kernel finds them with one look-up, whatever their number.
    """
    ordered = prefixes if isinstance(prefixes, Ranges) else Ranges.of(family, sorted(prefixes))
    ranges = bytearray()
    extra: list[bytes] = []
    for interval in _joined(intervals(family, ordered)):
        for prefix in to_prefixes(family, interval):
            if prefix.length == family.bits:
                extra.append(prefix.first.to_bytes(family.size, "big"))
            else:
                ranges += pack(family, *prefix)
    singles.add(extra)
    networks = Networks(family, singles.blob(), Ranges(family, bytes(ranges)))
    return Networks(family, without_singles(networks, intervals(family, networks.ranges)), networks.ranges)


def intervals(family: Family, prefixes: Iterable[Prefix]) -> Iterator[Interval]:
    """The first and the last address of each."""
    hosts = [(1 << (family.bits - length)) - 1 for length in range(family.bits + 1)]
    return (Interval(first, first | hosts[length]) for first, length in prefixes)


def touched(networks: Networks, holes: Sequence[Interval]) -> int:
    """How many entries share an address with one of the holes (ascending, disjoint)."""
    singles = 0
    for hole in holes:
        low, high = networks.single_positions(hole.first, hole.last)
        singles += high - low
    return singles + sum(1 for _ in _touching(networks, holes))


def without_singles(networks: Networks, holes: Iterable[Interval]) -> bytes:
    """The singles that lie in none of the holes (ascending, disjoint)."""
    size, singles = networks.family.size, networks.singles
    kept: list[bytes] = []
    waiting = iter(holes)
    hole = next(waiting, None)
    for start in range(0, len(singles), PIECE * size):
        piece = singles[start : start + PIECE * size]
        last = int.from_bytes(piece[-size:], "big")
        if hole is None or hole.first > last:
            kept.append(piece)
            continue
        addresses, behind = records(piece, size), 0
        while hole is not None and hole.first <= last:
            low = bisect_left(addresses, hole.first.to_bytes(size, "big"), lo=behind)
            kept.append(piece[behind * size : low * size])
            behind = bisect_right(addresses, hole.last.to_bytes(size, "big"), lo=low)
            if hole.last > last:
                break
            hole = next(waiting, None)
        kept.append(piece[behind * size :])
    # What did not change is not kept twice.
    return b"".join(kept) if sum(map(len, kept)) < len(singles) else singles


def cut(networks: Networks, holes: Iterable[Interval]) -> Networks:
    """The networks without the holes, exactly."""
    family = networks.family
    merged = merge(holes)
    singles = without_singles(networks, merged)
    packed, size = networks.ranges.packed, family.size + 1
    ranges = bytearray()
    extra: list[bytes] = []
    behind = 0
    for position, inside in _touching(networks, merged):
        ranges += packed[behind * size : position * size]
        behind = position + 1
        prefix = networks.ranges[position]
        for left in subtract(Interval(prefix.first, prefix.last(family)), inside):
            for piece in to_prefixes(family, left):
                if piece.length == family.bits:
                    extra.append(piece.first.to_bytes(family.size, "big"))
                else:
                    ranges += pack(family, *piece)
    if not behind:
        return Networks(family, singles, networks.ranges)
    ranges += packed[behind * size :]
    if extra:
        sorter = Runs(family.size)
        sorter.add_row(singles)
        sorter.add(extra)
        singles = sorter.blob()
    return Networks(family, singles, Ranges(family, bytes(ranges)))


def _touching(networks: Networks, holes: Iterable[Interval]) -> Iterator[tuple[int, list[Interval]]]:
    """For each range that a hole touches, ascending: its position, and the holes that touch it."""
    position = -1
    inside: list[Interval] = []
    for hole in holes:
        for at in range(*networks.ranges.span(hole.first, hole.last)):
            if at != position:
                if inside:
                    yield position, inside
                position, inside = at, []
            inside.append(hole)
    if inside:
        yield position, inside
