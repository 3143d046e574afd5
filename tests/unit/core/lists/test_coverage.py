"""How much a list covers, against counting with `ipaddress`."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sikkerguard.core.lists.coverage import UNITS, Extent, covered_text, extent_of, percent_text
from sikkerguard.core.net.family import Family
from sikkerguard.core.net.networks import Blocklist, Networks
from tests.unit.core.lists.test_admission import listing
from tests.unit.core.net.test_intervals import covered, gather, prefixes, some_networks


def test_there_are_so_many_to_cover() -> None:
    assert UNITS[Family.V4] == ipaddress.ip_network("0.0.0.0/0").num_addresses
    assert (
        UNITS[Family.V6]
        == ipaddress.ip_network("2000::/3").num_addresses // ipaddress.ip_network("::/64").num_addresses
    )


def test_addresses_count_for_ipv4_and_64s_for_ipv6() -> None:
    found = extent_of(
        listing("203.0.113.7", "198.51.100.0/24", "2001:db8::1", "2001:db8::2", "2001:db8:0:2::/63", "2001:db8:7::/120")
    )
    assert found == Extent(entries=6, v4=257, v6=1 + 2 + 1)


def test_223_eighths_are_most_of_ipv4() -> None:
    extent = extent_of(listing(*(f"{first}.0.0.0/8" for first in range(1, 224))))
    assert extent.share(Family.V4) == 223 / 256
    assert covered_text(extent, Family.V4) == "87.1% of IPv4"
    assert covered_text(extent, Family.V6) == "0% of IPv6"


@pytest.mark.parametrize(
    ("percent", "text"),
    [
        (0.0, "0%"),
        (1e-300, "less than 0.001%"),
        (4.25e-05, "less than 0.001%"),
        (0.000999, "less than 0.001%"),
        (0.001, "0.001%"),
        (0.00233, "0.00233%"),
        (2.0, "2%"),
        (87.109375, "87.1%"),
        (99.99, "100%"),
        (100.0, "100%"),
    ],
)
def test_no_percentage_needs_an_exponent(percent: float, text: str) -> None:
    assert percent_text(percent) == text


@settings(max_examples=200)
@given(some_networks(Family.V4), some_networks(Family.V6))
def test_what_is_covered_is_what_counting_gives(v4: Networks, v6: Networks) -> None:
    found = extent_of(Blocklist(v4, v6))
    assert found.entries == len(v4) + len(v6)
    assert found.v4 == sum(net.num_addresses for net in covered(v4))
    wide = {net.supernet(new_prefix=64) if net.prefixlen > 64 else net for net in covered(v6)}
    assert found.v6 == sum(1 << 64 - net.prefixlen for net in ipaddress.collapse_addresses(wide))


@settings(max_examples=150)
@given(st.lists(st.integers(0, 40), max_size=12), st.lists(prefixes(Family.V6), max_size=3))
def test_single_addresses_of_a_64_count_once_however_they_lie(numbers: list[int], ranges: list[object]) -> None:
    base = 0x20010DB8 << 96
    packed = [(base + (number // 4 << 64) + number % 4).to_bytes(16, "big") for number in numbers]
    networks = gather(Family.V6, packed, ranges)  # type: ignore[arg-type]
    wide = {net.supernet(new_prefix=64) if net.prefixlen > 64 else net for net in covered(networks)}
    expected = sum(1 << 64 - net.prefixlen for net in ipaddress.collapse_addresses(wide))
    assert extent_of(Blocklist(v6=networks)).v6 == expected
