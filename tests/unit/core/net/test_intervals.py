"""Arithmetic on ranges against `ipaddress`, which computes slowly and shares no line with it.

The comparison is by the fewest networks that cover the same addresses: there is exactly one such list, so two that
agree cover no address more and none less.
"""

from __future__ import annotations

import ipaddress
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sikkerguard.core.net.address import Interval
from sikkerguard.core.net.family import Family
from sikkerguard.core.net.intervals import (
    canonical,
    cut,
    merge,
    subtract,
    to_prefixes,
    touched,
    without_singles,
)
from sikkerguard.core.net.packed import Prefix, Runs

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sikkerguard.core.net.networks import Networks

ADDRESS: dict[Family, Any] = {Family.V4: ipaddress.IPv4Address, Family.V6: ipaddress.IPv6Address}
NETWORK: dict[Family, Any] = {Family.V4: ipaddress.IPv4Network, Family.V6: ipaddress.IPv6Network}
# Neighbours of these meet, overlap and touch; the ends of the address space are where arithmetic goes wrong.
BASES = {
    Family.V4: [0, int(ipaddress.IPv4Address("198.51.100.0")), (1 << 32) - 64],
    Family.V6: [0, int(ipaddress.IPv6Address("2001:db8::")), (1 << 128) - 64],
}

families = st.sampled_from(Family)
steady = settings(deadline=None, max_examples=80)


def gather(family: Family, singles: Iterable[bytes] = (), ranges: Iterable[Prefix] = ()) -> Networks:
    """The canonical form of these, the singles being packed."""
    sorter = Runs(family.size)
    sorter.add(list(singles))
    return canonical(family, sorter, ranges)


def packed_singles(networks: Networks) -> list[bytes]:
    """Each single by itself."""
    size = networks.family.size
    return [networks.singles[at : at + size] for at in range(0, len(networks.singles), size)]


def network(family: Family, prefix: Prefix) -> Any:
    """As `ipaddress` has it; raises ValueError if a bit behind the prefix length is set."""
    return NETWORK[family]((prefix.first, prefix.length))


def networks_of(family: Family, intervals: Iterable[Interval]) -> list[Any]:
    """The fewest networks that cover the intervals."""
    parts = (
        ipaddress.summarize_address_range(ADDRESS[family](first), ADDRESS[family](last)) for first, last in intervals
    )
    return list(ipaddress.collapse_addresses(net for part in parts for net in part))


def covered(networks: Networks) -> list[Any]:
    """The fewest networks that cover the same addresses."""
    singles = [NETWORK[networks.family](packed) for packed in packed_singles(networks)]
    ranges = [network(networks.family, prefix) for prefix in networks.ranges]
    return list(ipaddress.collapse_addresses([*singles, *ranges]))


def without(networks: Iterable[Any], holes: Iterable[Any]) -> list[Any]:
    """The fewest networks that cover the same addresses but those of the holes."""
    left = list(networks)
    for hole in holes:
        kept: list[Any] = []
        for net in left:
            if not net.overlaps(hole):
                kept.append(net)
            elif not net.subnet_of(hole):
                kept += net.address_exclude(hole)
        left = kept
    return list(ipaddress.collapse_addresses(left))


def assert_well_formed(networks: Networks) -> None:
    """What the docstring of `Networks` promises."""
    family, singles = networks.family, packed_singles(networks)
    assert singles == sorted(set(singles))
    assert all(len(packed) == family.size for packed in singles)
    assert all(prefix.length < family.bits for prefix in networks.ranges)
    for before, behind in pairwise(networks.ranges):
        assert before.last(family) < behind.first
    spans = [network(family, prefix) for prefix in networks.ranges]
    assert not [packed for packed in singles if any(ADDRESS[family](packed) in span for span in spans)]


def addresses(family: Family) -> st.SearchStrategy[int]:
    near = st.builds(lambda base, step: base + step, st.sampled_from(BASES[family]), st.integers(0, 63))
    return st.one_of(near, near, near, st.integers(0, (1 << family.bits) - 1))


def prefixes(family: Family) -> st.SearchStrategy[Prefix]:
    def aligned(address: int, length: int) -> Prefix:
        return Prefix(address >> (family.bits - length) << (family.bits - length), length)

    small = st.integers(family.bits - 6, family.bits)
    return st.builds(aligned, addresses(family), st.one_of(small, small, small, st.integers(0, family.bits)))


def intervals(family: Family) -> st.SearchStrategy[Interval]:
    ends = st.tuples(addresses(family), addresses(family)).map(sorted)
    return st.one_of(
        ends.map(lambda pair: Interval(*pair)),
        prefixes(family).map(lambda prefix: Interval(prefix.first, prefix.last(family))),
        addresses(family).map(lambda address: Interval(address, address)),
    )


def packed_addresses(family: Family) -> st.SearchStrategy[bytes]:
    return addresses(family).map(lambda address: address.to_bytes(family.size, "big"))


def some_networks(family: Family) -> st.SearchStrategy[Networks]:
    return st.builds(
        lambda singles, ranges: gather(family, singles, ranges),
        st.lists(packed_addresses(family), max_size=12),
        st.lists(prefixes(family), max_size=8),
    )


@steady
@given(st.data(), families)
def test_merging_keeps_the_addresses_and_leaves_nothing_to_merge(data: st.DataObject, family: Family) -> None:
    given_intervals = data.draw(st.lists(intervals(family), max_size=10))
    merged = merge(given_intervals)
    assert networks_of(family, merged) == networks_of(family, given_intervals)
    assert all(before.last + 1 < behind.first for before, behind in pairwise(merged))


@steady
@given(st.data(), families)
def test_an_interval_becomes_the_fewest_prefixes(data: st.DataObject, family: Family) -> None:
    interval = data.draw(intervals(family))
    first, last = ADDRESS[family](interval.first), ADDRESS[family](interval.last)
    found = [network(family, prefix) for prefix in to_prefixes(family, interval)]
    assert found == list(ipaddress.summarize_address_range(first, last))


@pytest.mark.parametrize("family", Family)
def test_the_whole_address_space_is_one_prefix(family: Family) -> None:
    assert list(to_prefixes(family, Interval(0, (1 << family.bits) - 1))) == [Prefix(0, 0)]


@steady
@given(st.data(), families)
def test_an_interval_without_holes_is_what_they_leave(data: st.DataObject, family: Family) -> None:
    interval = data.draw(intervals(family))
    holes = merge(data.draw(st.lists(intervals(family), max_size=6)))
    left = subtract(interval, holes)
    assert left == merge(left)
    assert networks_of(family, left) == without(networks_of(family, [interval]), networks_of(family, holes))


@steady
@given(st.data(), families)
def test_the_canonical_form_has_the_fewest_ranges_and_every_other_single(data: st.DataObject, family: Family) -> None:
    singles = data.draw(st.lists(packed_addresses(family), max_size=20))
    ranges = data.draw(st.lists(prefixes(family), max_size=10))
    spans = list(ipaddress.collapse_addresses(network(family, prefix) for prefix in ranges))
    wide = [span for span in spans if span.prefixlen < family.bits]
    lone = {span.network_address for span in spans} - {span.network_address for span in wide}
    lone |= {ADDRESS[family](packed) for packed in singles if not any(ADDRESS[family](packed) in net for net in wide)}

    found = gather(family, singles, ranges)

    assert packed_singles(found) == [address.packed for address in sorted(lone)]
    assert [network(family, prefix) for prefix in found.ranges] == wide
    assert_well_formed(found)


@pytest.mark.parametrize("family", Family)
def test_a_great_many_singles_are_sorted_and_each_is_there_once(family: Family) -> None:
    # A multiplier that is prime to the size of the space: all different, and in no order at all.
    step = 0x9E3779B97F4A7C15F39CC0605CEDC835 % (1 << family.bits) | 1
    singles = [(n * step % (1 << family.bits)).to_bytes(family.size, "big") for n in range(40_000)]
    sorter = Runs(family.size)
    for start in range(0, len(singles), 7_000):
        sorter.add(singles[start : start + 7_000])
        sorter.add(singles[start : start + 9_000])
    found = canonical(family, sorter, [])
    assert packed_singles(found) == sorted(singles)
    assert [packed for piece in found.single_pieces() for packed in piece] == sorted(singles)
    # A hole of one address makes all of them be sorted anew, with what is left of the range around it.
    hole = Interval(BASES[family][1], BASES[family][1])
    around = gather(family, packed_singles(found), [Prefix(hole.first, family.bits - 1)])
    left = cut(around, [hole])
    assert packed_singles(left) == sorted([*singles, (hole.first + 1).to_bytes(family.size, "big")])
    assert left.ranges == ()


@settings(max_examples=150)
@given(st.data(), families)
def test_cutting_takes_exactly_the_holes(data: st.DataObject, family: Family) -> None:
    whole = data.draw(some_networks(family))
    holes = data.draw(st.lists(intervals(family), max_size=8))
    away = networks_of(family, holes)

    left = cut(whole, holes)

    assert_well_formed(left)
    assert covered(left) == without(covered(whole), away)
    ranges = [network(family, prefix) for prefix in whole.ranges]
    # What no hole touches stays the entry that it was.
    untouched = {prefix for prefix, net in zip(whole.ranges, ranges, strict=True) if not any(map(net.overlaps, away))}
    assert untouched <= set(left.ranges)


@pytest.mark.parametrize(
    ("family", "inside", "hole", "left"),
    [
        (Family.V4, "198.51.100.0/24", "198.51.100.0/24", ""),
        (Family.V4, "198.51.100.0/30", "198.51.100.0/32", "198.51.100.1/32 198.51.100.2/31"),
        (Family.V4, "198.51.100.0/30", "198.51.100.3/32", "198.51.100.0/31 198.51.100.2/32"),
        (Family.V4, "198.51.100.0/31", "198.51.100.1/32", "198.51.100.0/32"),
        (Family.V4, "0.0.0.0/0", "0.0.0.0/1", "128.0.0.0/1"),
        (Family.V4, "255.255.255.254/31", "255.255.255.255/32", "255.255.255.254/32"),
        (Family.V4, "198.51.100.7/32", "198.51.100.0/24", ""),
        (Family.V4, "198.51.100.7/32", "198.51.100.8/29", "198.51.100.7/32"),
        (Family.V6, "2001:db8::/126", "2001:db8::2/128", "2001:db8::/127 2001:db8::3/128"),
        (Family.V6, "::/0", "8000::/1", "::/1"),
    ],
)
def test_a_hole_at_each_edge(family: Family, inside: str, hole: str, left: str) -> None:
    given_network, gone = NETWORK[family](inside), NETWORK[family](hole)
    entry = Prefix(int(given_network.network_address), given_network.prefixlen)
    found = cut(gather(family, ranges=[entry]), [Interval(int(gone.network_address), int(gone.broadcast_address))])
    assert [str(net) for net in covered(found)] == left.split()


@steady
@given(st.data(), families)
def test_singles_in_holes_are_gone(data: st.DataObject, family: Family) -> None:
    singles = data.draw(st.lists(packed_addresses(family), max_size=30))
    holes = merge(data.draw(st.lists(intervals(family), max_size=8)))
    listed = gather(family, singles)
    kept = [
        packed
        for packed in sorted(set(singles))
        if not any(first <= int.from_bytes(packed, "big") <= last for first, last in holes)
    ]
    assert without_singles(listed, holes) == b"".join(kept)


@steady
@given(st.data(), families)
def test_an_entry_is_touched_once_however_many_holes_it_has(data: st.DataObject, family: Family) -> None:
    listed = data.draw(some_networks(family))
    holes = merge(data.draw(st.lists(intervals(family), max_size=8)))
    away = networks_of(family, holes)
    entries = [NETWORK[family](packed) for packed in packed_singles(listed)]
    entries += [network(family, prefix) for prefix in listed.ranges]
    assert touched(listed, holes) == sum(1 for net in entries if any(net.overlaps(hole) for hole in away))
