"""Which lists cover an address: against a search through all entries, one by one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sikkerguard.core.lists.lookup import Listing, Listings
from sikkerguard.core.lists.sources import LOCAL_FILE, ListedSource
from sikkerguard.core.net.address import parse_prefix, to_text
from sikkerguard.core.net.family import Family
from sikkerguard.core.net.networks import Blocklist
from sikkerguard.core.net.packed import Prefix
from tests.unit.core.net.test_intervals import gather

API, OTHER = "SikkerAPI", "another"


def listed(name: str, *entries: str) -> ListedSource:
    """A list of these entries."""
    prefixes = [parse_prefix(entry) for entry in entries]
    v4, v6 = (gather(family, ranges=[each for of, each in prefixes if of is family]) for family in Family)
    return ListedSource(name, Blocklist(v4, v6), 0.0)


def packed(text: str) -> bytes:
    family, prefix = parse_prefix(text)
    return prefix.first.to_bytes(family.size, "big")


def test_the_most_specific_entry_of_all_lists_covers_an_address_and_each_list_is_named() -> None:
    listings = Listings(
        [
            listed(API, "203.0.113.0/24", "198.51.100.7"),
            listed(API, "192.0.2.0/28"),  # a generation that came later
            listed(LOCAL_FILE, "203.0.113.64/26", "198.51.100.0/24"),
        ]
    )
    assert listings.of(packed("203.0.113.1")) == Listing("203.0.113.0/24", frozenset({API}))
    assert listings.of(packed("203.0.113.65")) == Listing("203.0.113.64/26", frozenset({API, LOCAL_FILE}))
    assert listings.of(packed("198.51.100.7")) == Listing("198.51.100.7", frozenset({API, LOCAL_FILE}))
    assert listings.of(packed("198.51.100.8")) == Listing("198.51.100.0/24", frozenset({LOCAL_FILE}))
    assert listings.of(packed("192.0.2.15")) == Listing("192.0.2.0/28", frozenset({API}))
    assert listings.of(packed("192.0.2.16")) is None
    assert listings.of(packed("2001:db8::1")) is None


def test_entries_within_one_ipv6_network_count_as_that_network() -> None:
    listings = Listings([listed(API, "2001:db8:0:1::7", "2001:db8:0:1:8000::/65", "2001:db8:2::/48")])
    for address in ("2001:db8:0:1::7", "2001:db8:0:1:8000::9"):
        assert listings.of(packed(address)) == Listing("2001:db8:0:1::/64", frozenset({API}))
    assert listings.of(packed("2001:db8:0:1::8")) is None
    assert listings.of(packed("2001:db8:2:3::1")) == Listing("2001:db8:2::/48", frozenset({API}))


def test_without_a_list_nothing_is_covered() -> None:
    assert Listings([]).of(packed("192.0.2.1")) is None
    assert Listings([ListedSource(API, Blocklist(), 0.0)]).of(packed("2001:db8::1")) is None


addresses = st.integers(0, 255).map(lambda last: 0xCB007100 | last)
entries = st.builds(
    lambda first, length: Prefix(first >> 32 - length << 32 - length, length), addresses, st.integers(24, 32)
)
generations = st.tuples(st.sampled_from([API, LOCAL_FILE, OTHER]), st.lists(entries, max_size=8))


@given(st.lists(generations, max_size=6), addresses)
def test_what_covers_an_address_is_what_a_search_through_everything_finds(
    some: list[tuple[str, list[Prefix]]], address: int
) -> None:
    sources = [ListedSource(name, Blocklist(gather(Family.V4, ranges=each)), 0.0) for name, each in some]
    found = Listings(sources).of(address.to_bytes(4, "big"))
    names = {name for name, each in some for prefix in each if prefix.first <= address <= prefix.last(Family.V4)}
    if found is None:
        assert not names
        return
    assert found.names == names
    # The lists' own form, in which neighbours are one entry.
    whole = [gather(Family.V4, ranges=[each for of, part in some if of == name for each in part]) for name in names]
    covering = [entry for each in whole if (entry := each.find(address)) is not None]
    assert found.entry == to_text(Family.V4, max(covering, key=lambda prefix: prefix.length))
