"""Listings of sets: read in one go where all entries look alike, one by one where they do not, with the same result.

Entries are written here as the kernel writes them (ip_set_hash_ip.c and ip_set_hash_ipport.c, `*_data_list`, and
ip_set_core.c, `ip_set_put_extensions`).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sikkerguard.core.net.family import Family
from sikkerguard.edges.kernel.ipset_legacy.set_listing import Listing
from tests.unit.core.net.test_intervals import families

if TYPE_CHECKING:
    from collections.abc import Sequence

# Of include/uapi/linux/netfilter/ipset/ip_set.h and include/uapi/linux/netlink.h.
IP, PORT, TIMEOUT, PROTOCOL, BYTES, PACKETS = 1, 4, 6, 7, 24, 25
DATA, NESTED, BIG_ENDIAN = 7, 0x8000, 0x4000
HITS, COUNTS = (IP, PORT, PROTOCOL, BYTES, PACKETS), (IP, BYTES, PACKETS)


def attribute(kind: int, payload: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(payload), kind) + payload + bytes(-len(payload) % 4)


@dataclass(frozen=True)
class Written:
    """An entry as the kernel would list it; `order` is that of its attributes."""

    address: bytes
    port: int = 0
    protocol: int = 0
    octets: int = 0
    packets: int = 0
    timeout: int = 0
    order: tuple[int, ...] = HITS

    def encoded(self) -> bytes:
        kind = 1 if len(self.address) == 4 else 2
        attributes = {
            IP: attribute(IP | NESTED, attribute(kind | BIG_ENDIAN, self.address)),
            PORT: attribute(PORT | BIG_ENDIAN, self.port.to_bytes(2, "big")),
            PROTOCOL: attribute(PROTOCOL, bytes([self.protocol])),
            BYTES: attribute(BYTES | BIG_ENDIAN, self.octets.to_bytes(8, "big")),
            PACKETS: attribute(PACKETS | BIG_ENDIAN, self.packets.to_bytes(8, "big")),
            TIMEOUT: attribute(TIMEOUT | BIG_ENDIAN, self.timeout.to_bytes(4, "big")),
        }
        return attribute(DATA | NESTED, b"".join(attributes[each] for each in self.order))

    def values(self, kinds: tuple[int, ...]) -> tuple[object, ...]:
        """What is to be read of it; 0 stands for what is not there."""
        held = {
            IP: self.address,
            PORT: self.port,
            PROTOCOL: self.protocol,
            BYTES: self.octets,
            PACKETS: self.packets,
        }
        return tuple(held[kind] if kind in self.order else 0 for kind in kinds)


def entries(family: Family, orders: st.SearchStrategy[tuple[int, ...]]) -> st.SearchStrategy[Written]:
    # Small numbers too, so that bytes that differ are the same at times.
    wide = st.integers(0, 3) | st.integers(0, (1 << 64) - 1)
    return st.builds(
        Written,
        st.binary(min_size=family.size, max_size=family.size),
        st.sampled_from([0, 22, 0x0104]) | st.integers(0, 0xFFFF),
        st.integers(0, 255),
        wide,
        wide,
        st.integers(0, 3),
        orders,
    )


def check(written: Sequence[Written], kinds: tuple[int, ...]) -> Listing:
    listing = Listing(b"".join(each.encoded() for each in written), kinds)
    expected = [each.values(kinds) for each in written]
    assert list(listing) == expected
    assert list(listing) == expected, "it can be gone through once more"
    assert len(listing) == len(expected)
    assert bool(listing) == bool(expected)
    assert all(each in listing for each in expected)
    assert (b"another", 1, 2, 3, 4) not in listing
    return listing


def is_quick(listing: Listing) -> bool:
    """Whether all is unpacked at once."""
    return type(iter(listing)).__name__ == "unpack_iterator"


@pytest.mark.parametrize("kinds", [HITS, COUNTS])
def test_a_set_that_is_empty_or_not_there_lists_nothing(kinds: tuple[int, ...]) -> None:
    check([], kinds)


@settings(max_examples=200)
@given(st.data(), families, st.sampled_from([HITS, COUNTS]))
def test_entries_that_look_alike_are_read_at_once(data: st.DataObject, family: Family, kinds: tuple[int, ...]) -> None:
    written = data.draw(st.lists(entries(family, st.just(kinds)), min_size=1, max_size=20))
    assert is_quick(check(written, kinds))


@settings(max_examples=300)
@given(st.data(), families, st.sampled_from([HITS, COUNTS]))
def test_entries_of_any_look_are_read_the_same(data: st.DataObject, family: Family, kinds: tuple[int, ...]) -> None:
    orders = st.sampled_from(
        [kinds, kinds, (*kinds, TIMEOUT), (IP, TIMEOUT, *kinds[1:]), kinds[:-1], (IP, *kinds[:0:-1])]
    )
    check(data.draw(st.lists(entries(family, orders), max_size=12)), kinds)


@settings(deadline=None)
@given(st.data(), st.sampled_from([HITS, COUNTS]))
def test_addresses_of_both_families_are_read_whole(data: st.DataObject, kinds: tuple[int, ...]) -> None:
    either = families.flatmap(lambda family: entries(family, st.just(kinds)))
    check(data.draw(st.lists(either, max_size=8)), kinds)


@pytest.mark.parametrize(
    "order",
    [
        (*HITS, TIMEOUT),  # one attribute more
        HITS[:-1],  # one less
        (IP, PORT, PROTOCOL, PACKETS, BYTES),  # of the same length, in another order
        (IP, PORT, TIMEOUT, BYTES, PACKETS),  # of the same length, and another attribute
    ],
)
@pytest.mark.parametrize("family", Family)
def test_one_entry_of_another_look_is_seen_wherever_it_stands(family: Family, order: tuple[int, ...]) -> None:
    usual = Written(bytes(family.size), 23, 6, 60, 1)
    odd = Written(bytes(family.size), 22, 17, 120, 2, 9, order)
    for at in range(4):
        written = [usual] * 3
        written.insert(at, odd)
        assert not is_quick(check(written, HITS))


@pytest.mark.parametrize("family", Family)
def test_time_limits_that_differ_do_no_harm(family: Family) -> None:
    order = (*HITS, TIMEOUT)
    check([Written(bytes(family.size), 23, 6, 60, number, 600 - number, order) for number in range(3)], HITS)


def test_the_largest_numbers_are_read() -> None:
    most = (1 << 64) - 1
    check([Written(b"\xff" * 4, 0xFFFF, 255, most, most), Written(bytes(4))], HITS)
