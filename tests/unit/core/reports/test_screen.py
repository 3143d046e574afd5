"""What becomes of a source's packets: who is named, who stays at home, and that no packet is lost on the way."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sikkerguard.core.lists.allowlist import AllowEntry
from sikkerguard.core.lists.lookup import Listing
from sikkerguard.core.lists.sources import LOCAL_FILE
from sikkerguard.core.net.address import parse_prefix
from sikkerguard.core.reports.rows import Row, row_of
from sikkerguard.core.reports.screen import Cover, Fate, Leader, Screen, fate_of, source_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sikkerguard.core.reports.screen import Packets

API = "SikkerAPI"
SSH, HTTP, DNS, UNTOLD = (6, 22), (6, 80), (17, 53), (-1, -1)
NETWORK = bytes.fromhex("20010db800000001")
ENTRY = "2001:db8::/48"
KNOWN = Cover("203.0.113.0/24", False)
make_row = partial(row_of, port_map={}, spoofable=False)


def host(number: int) -> bytes:
    return NETWORK + number.to_bytes(8, "big")


def screen(names: Mapping[int, frozenset[str] | None] | None = None, *allowed: str, custom: bool = False) -> Screen:
    """One where hosts are on the API's list but for those that are said to be on others."""
    entries = [AllowEntry(*parse_prefix(text), "SIKKER_WHITELIST") for text in allowed]
    lists = {host(number): each for number, each in (names or {}).items()}

    def listing(address: bytes) -> Listing | None:
        found = lists.get(address, frozenset({API}))
        return None if found is None else Listing(ENTRY, found)

    return Screen(entries, listing, custom=custom)


def fate(
    members: Mapping[int, Packets],
    through: Screen | None = None,
    known: Mapping[int, Cover] | None = None,
    waiting: Mapping[str, Leader] | None = None,
) -> Fate:
    covers = {host(number): cover for number, cover in (known or {}).items()}
    return fate_of(
        {host(number): packets for number, packets in members.items()},
        make_row,
        through or screen(),
        covers.get,
        waiting or {},
    )


def leader(number: int, packets: int) -> Leader:
    return Leader(host(number), packets, Cover(ENTRY, False))


def test_a_source_is_an_address_of_ipv4_and_half_of_one_of_ipv6() -> None:
    assert source_of(bytes([203, 0, 113, 7])) == bytes([203, 0, 113, 7])
    assert source_of(host(7)) == source_of(host(1 << 63)) == NETWORK


# One row


def test_a_network_is_one_row_in_the_name_of_who_sent_most() -> None:
    found = fate({1: {SSH: 5}, 2: {SSH: 4, HTTP: 3}, 3: {SSH: 1}})
    assert found == Fate(Row(host(2), "brute_force", "ssh", 13), leader(2, 7), 0, 0, 0)


def test_of_equals_the_lowest_is_named() -> None:
    found = fate({9: {SSH: 5}, 8: {SSH: 5}, 10: {SSH: 5}})
    assert found.leader == leader(8, 5)


def test_the_category_is_that_of_all_packets_together() -> None:
    assert fate({1: {SSH: 5}, 2: {HTTP: 3}, 3: {HTTP: 3}}).row == Row(host(1), "web_exploit", "http", 11)
    scan = fate({number: {(6, 1000 + number): 1} for number in range(15)})
    assert scan.row == Row(host(0), "port_scan", "tcp", 15)


def test_nobody_is_named_for_what_anyone_can_forge() -> None:
    found = fate({1: {DNS: 1000, UNTOLD: 1000}, 2: {SSH: 1, DNS: 5}, 3: {UNTOLD: 7}})
    assert found == Fate(Row(host(2), "brute_force", "ssh", 1008), leader(2, 1), 0, 1005, 0)
    assert fate({1: {DNS: 5}, 2: {UNTOLD: 7}}) == Fate(None, None, 12, 0, 0)


@pytest.mark.parametrize(
    ("members", "before", "now"),
    [
        ({2: {SSH: 9}}, leader(1, 5), leader(2, 9)),
        ({2: {SSH: 5}}, leader(1, 5), leader(1, 5)),
        ({2: {SSH: 5}}, leader(3, 5), leader(2, 5)),
        ({2: {SSH: 6}, 1: {SSH: 3}}, leader(1, 5), leader(1, 8)),
        ({2: {SSH: 9}, 1: {SSH: 3}}, leader(1, 5), leader(2, 9)),
        ({1: {SSH: 3}}, leader(1, 5), leader(1, 8)),
    ],
)
def test_who_is_named_is_who_sent_most_since_the_row_waits(
    members: dict[int, Packets], before: Leader, now: Leader
) -> None:
    found = fate(members, waiting={"brute_force": before, "web_exploit": leader(7, 1000)})
    assert found.leader == now
    assert found.row is not None
    assert (found.row.address, found.row.packets) == (now.address, sum(sum(each.values()) for each in members.values()))


# Who stays at home


def test_an_address_that_the_custom_list_alone_has_is_in_no_row_unless_that_is_wanted() -> None:
    own = {1: frozenset({LOCAL_FILE}), 2: frozenset({LOCAL_FILE, API})}
    members: dict[int, Packets] = {1: {SSH: 50}, 2: {HTTP: 3}}
    assert fate(members, screen(own)) == Fate(Row(host(2), "web_exploit", "http", 3), leader(2, 3), 50, 0, 0)
    found = fate(members, screen(own, custom=True))
    assert found == Fate(Row(host(1), "brute_force", "ssh", 53), Leader(host(1), 50, Cover(ENTRY, True)), 0, 0, 0)


def test_where_no_list_covers_an_address_what_was_known_of_it_counts_and_else_it_stays_at_home() -> None:
    none = screen({1: None})
    assert fate({1: {SSH: 5}}, none) == Fate(None, None, 5, 0, 0)
    assert fate({1: {SSH: 5}}, none, {1: Cover(ENTRY, True)}) == Fate(None, None, 5, 0, 0)
    assert fate({1: {SSH: 5}}, none, {1: KNOWN}).leader == Leader(host(1), 5, KNOWN)
    # What is known now goes before what was known.
    assert fate({1: {SSH: 5}}, screen({1: frozenset({LOCAL_FILE})}), {1: KNOWN}).row is None
    assert fate({1: {SSH: 5}}, known={1: Cover(ENTRY, True)}).leader == leader(1, 5)
    # Where everything is wanted, it has an entry of its own, which is remembered as this host's own.
    found = fate({1: {SSH: 5}}, screen({1: None}, custom=True))
    assert found.leader == Leader(host(1), 5, Cover("2001:db8:0:1::/64", True))


def test_who_is_allowed_is_in_no_row_and_its_packets_are_counted() -> None:
    found = fate({1: {SSH: 50}, 2: {SSH: 3}, 3: {DNS: 4}}, screen(None, "2001:db8:0:1::1", "2001:db8:0:1::3"))
    assert found == Fate(Row(host(2), "brute_force", "ssh", 3), leader(2, 3), 0, 54, 2)
    assert fate({1: {SSH: 50}}, screen(None, "2001:db8::/32")) == Fate(None, None, 0, 50, 1)


# A moment later


def test_a_row_is_stopped_by_what_is_allowed_listed_and_set_now() -> None:
    address, own = host(1), Cover(ENTRY, True)
    assert not screen().stops(address, own)
    assert screen(None, "2001:db8:0:1::1").stops(address, KNOWN)
    assert screen({1: frozenset({LOCAL_FILE})}).stops(address, KNOWN)
    assert not screen({1: frozenset({LOCAL_FILE})}, custom=True).stops(address, KNOWN)
    assert screen({1: None}).stops(address, own)
    assert not screen({1: None}).stops(address, KNOWN)


def test_rows_that_passed_may_go_unless_one_of_them_is_allowed_meanwhile() -> None:
    rows = [Row(host(number), "brute_force", "ssh", 1) for number in (1, 2)]
    passed = screen(None, "2001:db8:0:1::3")
    assert passed.still_passes(rows, passed.allowed)
    assert passed.still_passes(rows, ())
    assert not passed.still_passes(rows, [*passed.allowed, AllowEntry(*parse_prefix("2001:db8:0:1::2"), "ssh")])


keys = st.sampled_from([SSH, HTTP, DNS, UNTOLD, (6, 4711), (1, 2048)])
members = st.dictionaries(st.integers(0, 9), st.dictionaries(keys, st.integers(1, 9), min_size=1), min_size=1)
names = st.sampled_from([None, frozenset({API}), frozenset({LOCAL_FILE}), frozenset({API, LOCAL_FILE})])


@given(members, st.dictionaries(st.integers(0, 9), names), st.sets(st.integers(0, 9)), st.booleans())
def test_every_packet_has_one_fate_and_nobody_is_named_who_must_not_be(
    some: dict[int, Packets], lists: dict[int, frozenset[str] | None], allowed: set[int], custom: bool
) -> None:
    through = screen(lists, *(f"2001:db8:0:1::{number}" for number in allowed), custom=custom)
    found = fate(some, through)
    reported = 0 if found.row is None else found.row.packets
    assert reported + found.withheld + found.beside == sum(sum(each.values()) for each in some.values())
    assert found.allowed == len(allowed & some.keys())
    free = {
        number
        for number in some.keys() - allowed
        if custom or API in (lists.get(number, frozenset({API})) or frozenset())
    }
    telling = {
        number: sum(count for key, count in some[number].items() if key[0] == 6 or key == UNTOLD)
        for number in free
        if any(key[0] == 6 for key in some[number])
    }
    assert (found.row is not None) == bool(telling)
    if found.row is not None:
        assert found.leader is not None
        first = min(telling, key=lambda number: (-telling[number], number))
        assert found.row.address == found.leader.address == host(first)
        assert found.leader.packets == telling[first]
