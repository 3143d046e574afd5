"""How much of the Internet a list covers: what counts for safety is addresses, not entries."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from sikkerguard.core.net.address import Interval
from sikkerguard.core.net.family import Family
from sikkerguard.core.net.intervals import merge

if TYPE_CHECKING:
    from sikkerguard.core.net.networks import Blocklist, Networks

# One customer of IPv6 has at least a /64 (RFC 4291, section 2.5.1): single addresses in it are no measure.
_UNIT_LENGTH = {Family.V4: 32, Family.V6: 64}
# What there is to cover, in these units: all IPv4 addresses, and the /64s of 2000::/3, the global unicast addresses.
UNITS = {Family.V4: 1 << 32, Family.V6: 1 << 61}
# Less is not told apart: it would be written with an exponent soon.
_LEAST_PERCENT = 0.001
_NAMES = {Family.V4: "IPv4", Family.V6: "IPv6"}


class Extent(NamedTuple):
    """The size of a list: its `entries`, the IPv4 addresses that it covers, and the /64s of IPv6 that it touches."""

    entries: int
    v4: int
    v6: int

    def covered(self, family: Family) -> int:
        """Of this family, in addresses or /64s."""
        return self.v4 if family is Family.V4 else self.v6

    def share(self, family: Family) -> float:
        """Of this family, as a part of all there is: from 0 to 1."""
        return self.covered(family) / UNITS[family]


def extent_of(content: Blocklist) -> Extent:
    """The size of this list."""
    return Extent(len(content), _covered(content.v4), _covered(content.v6))


def covered_text(extent: Extent, family: Family) -> str:
    """`86.2% of IPv4`."""
    return f"{percent_text(100 * extent.share(family))} of {_NAMES[family]}"


def percent_text(percent: float) -> str:
    """Three digits of it: `86.2%`, `0.00233%`, and `less than 0.001%` for less than that; `0%` for nothing."""
    return f"{percent:.3g}%" if not percent or percent >= _LEAST_PERCENT else f"less than {_LEAST_PERCENT:g}%"


def _covered(networks: Networks) -> int:
    family = networks.family
    shift = family.bits - _UNIT_LENGTH[family]
    if not shift:
        singles = len(networks.singles) // family.size
        return singles + sum(1 << (family.bits - prefix.length) for prefix in networks.ranges)
    ranges = merge(Interval(prefix.first >> shift, prefix.last(family) >> shift) for prefix in networks.ranges)
    covered = sum(last - first + 1 for first, last in ranges)
    return covered + _units_of_singles(networks, ranges, family.bits - shift >> 3)


def _units_of_singles(networks: Networks, ranges: list[Interval], size: int) -> int:
    """How many units of `size` bytes have a single address in them and are in none of the ranges; both ascend."""
    units, position, before = 0, 0, b""
    for piece in networks.single_pieces():
        for address in piece:
            unit = address[:size]
            if unit == before:
                continue
            before, number = unit, int.from_bytes(unit, "big")
            while position < len(ranges) and ranges[position].last < number:
                position += 1
            units += position == len(ranges) or number < ranges[position].first
    return units
