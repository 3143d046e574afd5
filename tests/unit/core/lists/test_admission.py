"""Admission against `ipaddress` and against the special-purpose ranges written down a second time; the guards."""

from __future__ import annotations

import ipaddress
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sikkerguard.core.lists.admission import admit, allowed_though_listed, describe_removed
from sikkerguard.core.lists.allowlist import ALWAYS_ALLOWED, AllowEntry, Allowlist
from sikkerguard.core.lists.sources import LeftOut
from sikkerguard.core.net.address import parse_prefix
from sikkerguard.core.net.family import Family
from sikkerguard.core.net.networks import Blocklist, Networks
from sikkerguard.core.net.packed import Prefix
from tests.unit.core.net.test_intervals import (
    ADDRESS,
    NETWORK,
    addresses,
    assert_well_formed,
    covered,
    families,
    gather,
    network,
    packed_singles,
    prefixes,
    without,
)

# By reason, and in the order of the RFCs that set them aside: 791, 1918 and 6598, 1122, 3927, 6890, 2544, 1112.
SPECIAL: dict[Family, dict[str, list[str]]] = {
    Family.V4: {
        "unspecified": ["0.0.0.0/8"],
        "private": ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10"],
        "loopback": ["127.0.0.0/8"],
        "link-local": ["169.254.0.0/16"],
        "reserved": ["192.0.0.0/24", "198.18.0.0/15", "240.0.0.0/4"],
        "multicast": ["224.0.0.0/4"],
    },
    Family.V6: {
        "unspecified": ["::/128"],
        "loopback": ["::1/128"],
        "private": ["fc00::/7", "fec0::/10"],
        "link-local": ["fe80::/10"],
        "multicast": ["ff00::/8"],
        # All that is not global unicast, 2000::/3; what the lines above name of it is theirs.
        "reserved": ["::/3", "4000::/2", "8000::/1"],
    },
}
NEVER = {family: [NETWORK[family](text) for texts in SPECIAL[family].values() for text in texts] for family in Family}
EDGES = {
    family: sorted(
        {
            edge
            for net in NEVER[family]
            for end in (int(net.network_address), int(net.broadcast_address))
            for edge in (end - 1, end, end + 1)
            if 0 <= edge < 1 << family.bits
        }
    )
    for family in Family
}


def listing(*texts: str) -> Blocklist:
    read = [parse_prefix(text) for text in texts]
    of = {family: gather(family, ranges=[prefix for which, prefix in read if which is family]) for family in Family}
    return Blocklist(of[Family.V4], of[Family.V6])


def allowing(*texts: str) -> Allowlist:
    return Allowlist(tuple(AllowEntry(*parse_prefix(text), "resolver") for text in texts))


def listed_addresses(family: Family) -> st.SearchStrategy[int]:
    return st.one_of(st.sampled_from(EDGES[family]), addresses(family))


def listed_prefixes(family: Family) -> st.SearchStrategy[Prefix]:
    """Prefixes that begin at, end at or lie across the edges of the special ranges too."""

    def around(address: int, length: int) -> Prefix:
        return Prefix(address >> (family.bits - length) << (family.bits - length), length)

    across = st.builds(around, st.sampled_from(EDGES[family]), st.integers(0, family.bits))
    return st.one_of(across, prefixes(family))


def listed_networks(family: Family) -> st.SearchStrategy[Networks]:
    packed = listed_addresses(family).map(lambda address: address.to_bytes(family.size, "big"))
    return st.builds(
        lambda singles, ranges: gather(family, singles, ranges),
        st.lists(packed, max_size=10),
        st.lists(listed_prefixes(family), max_size=5),
    )


blocklists = st.builds(Blocklist, listed_networks(Family.V4), listed_networks(Family.V6))
allowlists = st.lists(
    families.flatmap(
        lambda family: st.builds(AllowEntry, st.just(family), listed_prefixes(family), st.just("resolver"))
    ),
    max_size=5,
).map(lambda entries: Allowlist(tuple(entries)))


@settings(max_examples=150)
@given(blocklists, allowlists)
def test_what_is_admitted_is_the_list_without_special_and_allowed_addresses(
    listed: Blocklist, allowlist: Allowlist
) -> None:
    admitted = admit(listed, allowlist).blocklist
    for family in Family:
        allowed = [network(family, entry.prefix) for entry in allowlist.entries if entry.family is family]
        assert_well_formed(admitted.of(family))
        assert covered(admitted.of(family)) == without(covered(listed.of(family)), [*NEVER[family], *allowed])


@settings(max_examples=150)
@given(blocklists, allowlists)
def test_each_entry_is_counted_once_for_each_reason_that_touches_it(listed: Blocklist, allowlist: Allowlist) -> None:
    expected: Counter[str] = Counter()
    for family in Family:
        allowed = [network(family, entry.prefix) for entry in allowlist.entries if entry.family is family]
        special = {reason: [NETWORK[family](text) for text in texts] for reason, texts in SPECIAL[family].items()}
        entries: list[Any] = [NETWORK[family](packed) for packed in packed_singles(listed.of(family))]
        entries += [network(family, prefix) for prefix in listed.of(family).ranges]
        for entry in entries:
            left = [entry]
            for reason, holes in [*special.items(), ("allowlisted", allowed)]:
                expected[reason] += any(net.overlaps(hole) for net in left for hole in holes)
                left = without(left, holes)
    assert admit(listed, allowlist).removed == +expected


@pytest.mark.parametrize(
    ("entry", "allowed", "removed"),
    [
        ("198.51.100.7", "", {}),
        ("198.51.100.7", "198.51.100.7", {"allowlisted": 1}),
        ("198.51.100.7", "198.51.100.0/24", {"allowlisted": 1}),
        ("198.51.100.0/24", "198.51.100.7", {"allowlisted": 1}),
        ("198.51.100.0/24", "198.51.100.7 198.51.100.9", {"allowlisted": 1}),
        # What is special is so whether it is allowed or not.
        ("10.1.2.3", "10.0.0.0/8", {"private": 1}),
        ("10.0.0.0/7", "", {"private": 1}),
        ("192.0.0.0/8", "", {"private": 1, "reserved": 1}),
        ("100.0.0.0/8", "100.0.0.0/8", {"private": 1, "allowlisted": 1}),
        ("::/16", "", {"unspecified": 1, "loopback": 1, "reserved": 1}),
        ("2001:db8::/32", "2001:db8::1", {"allowlisted": 1}),
    ],
)
def test_removals_are_counted_by_reason(entry: str, allowed: str, removed: dict[str, int]) -> None:
    assert admit(listing(entry), allowing(*allowed.split())).removed == removed


@pytest.mark.parametrize(
    ("family", "reason", "text"),
    [
        (family, reason, text)
        for family in Family
        for reason, texts in SPECIAL[family].items()
        for text in texts
        if text != "::/3"  # two of its addresses have reasons of their own
    ],
)
def test_special_ranges_are_cut_to_their_last_address_and_no_further(family: Family, reason: str, text: str) -> None:
    net = NETWORK[family](text)
    first, last = int(net.network_address), int(net.broadcast_address)
    for inside in {first, last, (first + last) // 2}:
        special = next(
            why
            for why, texts in SPECIAL[family].items()
            if any(ADDRESS[family](inside) in NETWORK[family](each) for each in texts)
        )
        found = admit(listing(str(ADDRESS[family](inside))), Allowlist())
        assert (len(found.blocklist), found.removed) == (0, {special: 1})
        assert special == reason or family is Family.V6
    for outside in {first - 1, last + 1} & set(EDGES[family]):
        if not any(ADDRESS[family](outside) in other for other in NEVER[family]):
            found = admit(listing(str(ADDRESS[family](outside))), Allowlist())
            assert (len(found.blocklist), found.removed) == (1, {})


@settings(max_examples=300)
@given(st.one_of(st.sampled_from(EDGES[Family.V4]), st.integers(0, (1 << 32) - 1)))
def test_no_address_that_python_knows_to_be_special_is_blocked(number: int) -> None:
    address = ipaddress.IPv4Address(number)
    documentation = any(
        address in ipaddress.IPv4Network(net) for net in ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24")
    )
    blocked = len(admit(listing(str(address)), Allowlist()).blocklist)
    if documentation or (address.is_global and not address.is_multicast and address.packed[:3] != b"\xc0\0\0"):
        assert blocked
    else:
        assert not blocked


def test_what_is_left_out_is_cut_out_exactly_and_counted() -> None:
    left_out = (LeftOut(Family.V4, 0xC6336407, "DNS"), LeftOut(Family.V6, 0x20010DB8 << 96, "API"))
    found = admit(listing("198.51.100.0/29", "198.51.100.77", "2001:db8::"), Allowlist(), left_out)
    assert covered(found.blocklist.v4) == [
        *map(NETWORK[Family.V4], ("198.51.100.0/30", "198.51.100.4/31", "198.51.100.6/32", "198.51.100.77/32"))
    ]
    assert len(found.blocklist.v6) == 0
    assert found.removed == {"left out after a failed self-test": 2}


def test_the_always_allowed_ranges_are_those_of_the_design() -> None:
    assert {str(network(entry.family, entry.prefix)) for entry in ALWAYS_ALLOWED} == {
        "127.0.0.0/8",
        "::1/128",
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "169.254.0.0/16",
        "fe80::/10",
        "fc00::/7",
    }


def test_removals_are_described_with_the_most_frequent_first() -> None:
    assert describe_removed({"loopback": 1, "private": 3, "allowlisted": 1}) == "3 private, 1 allowlisted, 1 loopback"
    assert describe_removed({}) == ""


@pytest.mark.parametrize(
    ("listed", "allowed", "told"),
    [
        ("198.51.100.7", "198.51.100.7", True),
        ("198.51.100.0/24", "198.51.100.7", True),
        ("198.51.100.7", "198.51.100.0/24", True),
        ("2001:db8::/32", "2001:db8::53", True),
        ("198.51.100.8", "198.51.100.7", False),
        ("198.51.100.6", "198.51.100.7", False),
        # The same number in the other family is another address.
        ("::c633:6407", "198.51.100.7", False),
        # That a private range is allowed is no news.
        ("10.0.0.0/8", "10.0.0.0/8", False),
    ],
)
def test_an_own_connection_on_the_list_is_told(listed: str, allowed: str, told: bool) -> None:
    allowlist = Allowlist((*ALWAYS_ALLOWED, *allowing(allowed).entries))
    sentences = allowed_though_listed(listing(listed), allowlist)
    assert len(sentences) == told
    assert all(allowed in sentence and "resolver" in sentence for sentence in sentences)
    # Of a range it may be one address only.
    single = "/" not in allowed
    assert all(("is on the list" in sentence) is single for sentence in sentences)
