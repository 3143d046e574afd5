"""The frozen values: text to networks and back, and what they find in themselves."""

from __future__ import annotations

import ipaddress
import random
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sikkerguard.core.lists.allowlist import AllowEntry, Allowlist
from sikkerguard.core.net.address import parse_address, parse_prefix, to_text
from sikkerguard.core.net.family import Family
from sikkerguard.core.net.networks import Blocklist, Networks
from sikkerguard.core.net.packed import Prefix
from tests.unit.core.net.test_intervals import (
    ADDRESS,
    NETWORK,
    addresses,
    families,
    gather,
    network,
    packed_singles,
    prefixes,
    some_networks,
)

MAPPED = int(ipaddress.IPv6Address("::ffff:0:0"))


def is_plain(text: str) -> Any:
    """The network that the text stands for by `ipaddress`, or None where it does not, or in a form that we refuse:
    zones, IPv4 within IPv6, netmasks, and lengths not written as a plain number."""
    address, slash, length = text.partition("/")
    if "%" in text or (":" in address and "." in address) or (slash and length not in map(str, range(129))):
        return None
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None


def v6_forms(groups: list[int]) -> st.SearchStrategy[str]:
    """The ways to write these groups, with a run of zeros left out or not, in either case, with zeros before it."""

    def written(start: int, length: int, width: int, upper: bool) -> str:
        texts = [f"{group:0{width}x}" for group in groups]
        zeros = not any(groups[start : start + length])
        text = ":".join(texts)
        if zeros and length:
            text = ":".join(texts[:start]) + "::" + ":".join(texts[start + length :])
        return text.upper() if upper else text

    return st.builds(written, st.integers(0, 8), st.integers(0, 8), st.integers(1, 4), st.booleans())


v6_texts = st.lists(st.one_of(st.just(0), st.integers(0, 0xFFFF)), min_size=8, max_size=8).flatmap(v6_forms)
v4_texts = st.lists(st.integers(0, 300), min_size=4, max_size=4).map(lambda parts: ".".join(map(str, parts)))
lengths = st.one_of(
    st.just(""),
    st.integers(0, 140).map(lambda length: f"/{length}"),
    st.sampled_from(
        ["/", "/08", "/024", "/+8", "/ 8", "/-1", "/255.255.255.0", "/8/8", "/\uff18", "/1_6", "/8\n", "/\0"]
    ),
)


@st.composite
def texts(draw: st.DrawFn) -> str:
    """Addresses and ranges, right in general, with a character or two of them changed at times."""
    text = draw(st.one_of(v4_texts, v6_texts)) + draw(lengths)
    for _ in range(draw(st.sampled_from([0, 0, 1, 2]))):
        at = draw(st.integers(0, len(text)))
        gone = draw(st.integers(0, 1))
        text = (
            text[:at]
            + draw(st.sampled_from([*"0123456789abfgFx:./% -+", "", "::", "\0", "\u0663"]))
            + text[at + gone :]
        )
    return text


@settings(max_examples=1000)
@given(texts())
def test_a_text_is_taken_exactly_if_it_is_plain(text: str) -> None:
    expected = is_plain(text)
    try:
        family, prefix = parse_prefix(text)
    except ValueError:
        assert expected is None
    else:
        assert network(family, prefix) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not an address"),
        ("198.51.100", "not an address"),
        ("198.51.100.7.", "not an address"),
        ("198.51.100.007", "not an address"),
        ("0306.063.0144.07", "not an address"),
        ("3325256711", "not an address"),
        ("0xc6.0x33.0x64.0x07", "not an address"),
        ("198.51.100.256", "not an address"),
        ("198.51.100.7 ", "not an address"),
        ("198.51.100.7\0", "not an address"),
        ("\uff11\uff19\uff18.51.100.7", "not an address"),
        ("attacker.example", "not an address"),
        ("fe80::1%eth0", "not an address"),
        ("2001:db8::1::2", "not an address"),
        ("2001:db8:0:0:0:0:0:0:1", "not an address"),
        ("2001:db8::12345", "not an address"),
        ("[2001:db8::1]", "not an address"),
        ("::ffff:198.51.100.7", "IPv4 written as IPv6"),
        ("64:ff9b::198.51.100.7", "IPv4 written as IPv6"),
        ("198.51.100.0/33", "not a prefix length"),
        ("198.51.100.0/", "not a prefix length"),
        ("198.51.100.0/024", "not a prefix length"),
        ("198.51.100.0/+24", "not a prefix length"),
        ("198.51.100.0/-1", "not a prefix length"),
        ("198.51.100.0/255.255.255.0", "not a prefix length"),
        ("198.51.100.0/\u0662\u0664", "not a prefix length"),
        ("198.51.100.0/24/24", "not a prefix length"),
        ("198.51.100.0/" + "9" * 5000, "not a prefix length"),
        ("2001:db8::/129", "not a prefix length"),
    ],
)
def test_each_kind_of_bad_text_has_its_reason(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=f"^{reason}$"):
        parse_prefix(text)


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("198.51.100.7", "198.51.100.7"),
        ("198.51.100.7/32", "198.51.100.7"),
        ("198.51.100.7/24", "198.51.100.0/24"),
        ("255.255.255.255/0", "0.0.0.0/0"),
        ("2001:DB8:0:0::00A/64", "2001:db8::/64"),
        ("2001:db8::a/128", "2001:db8::a"),
        ("::/0", "::/0"),
    ],
)
def test_bits_behind_the_prefix_length_are_cleared(text: str, written: str) -> None:
    assert to_text(*parse_prefix(text)) == written


@settings(max_examples=300)
@given(families.flatmap(lambda family: st.tuples(st.just(family), prefixes(family))))
@example((Family.V6, Prefix(MAPPED, 96)))
@example((Family.V6, Prefix(MAPPED + 0xC6336407, 128)))
@example((Family.V6, Prefix(0xC6336407, 128)))
def test_what_is_written_can_be_read_again(known: tuple[Family, Prefix]) -> None:
    family, prefix = known
    text = to_text(family, prefix)
    assert NETWORK[family](text) == network(family, prefix)
    assert parse_prefix(text) == (family, prefix)


@settings(deadline=None)
@given(families.flatmap(lambda family: st.tuples(st.just(family), prefixes(family))))
def test_a_prefix_knows_its_last_address(known: tuple[Family, Prefix]) -> None:
    family, prefix = known
    assert prefix.last(family) == int(network(family, prefix).broadcast_address)


@settings(max_examples=200)
@given(st.data(), families)
def test_an_address_is_found_by_the_entry_that_covers_it(data: st.DataObject, family: Family) -> None:
    networks = data.draw(some_networks(family))
    entries = [NETWORK[family](packed) for packed in packed_singles(networks)]
    entries += [network(family, prefix) for prefix in networks.ranges]
    assert len(networks) == len(entries)
    ends = {edge for net in entries for edge in (int(net.network_address), int(net.broadcast_address))}
    asked = {edge + step for edge in ends for step in (-1, 0, 1)} | {data.draw(addresses(family))}
    for address in sorted(number for number in asked if 0 <= number < 1 << family.bits):
        covering = [net for net in entries if ADDRESS[family](address) in net]
        found = networks.find(address)
        assert ([] if found is None else [network(family, found)]) == covering
        assert networks.overlaps(address, address) == bool(covering)


@settings(max_examples=200)
@given(st.data(), families)
def test_a_span_overlaps_if_any_entry_reaches_into_it(data: st.DataObject, family: Family) -> None:
    networks = data.draw(some_networks(family))
    first, last = sorted([data.draw(addresses(family)), data.draw(addresses(family))])
    singles = [int.from_bytes(packed, "big") for packed in packed_singles(networks)]
    inside = [position for position, single in enumerate(singles) if first <= single <= last]
    assert networks.overlaps(first, last) == (
        bool(inside) or any(prefix.first <= last and prefix.last(family) >= first for prefix in networks.ranges)
    )
    low, high = networks.single_positions(first, last)
    assert list(range(low, high)) == inside


@settings(deadline=None)
@given(families.flatmap(some_networks))
def test_the_texts_are_the_singles_and_then_the_ranges(networks: Networks) -> None:
    family = networks.family
    read = [NETWORK[family](text) for text in networks.texts()]
    assert read[: len(networks) - len(networks.ranges)] == [NETWORK[family](each) for each in packed_singles(networks)]
    assert read[len(networks) - len(networks.ranges) :] == [network(family, prefix) for prefix in networks.ranges]


@pytest.mark.parametrize("family", Family)
def test_a_list_of_many_singles_comes_apart_whole(family: Family) -> None:
    chance = random.Random(4)
    singles = sorted({chance.randbytes(family.size) for _ in range(40_000)})
    networks = Networks(family, b"".join(singles))
    assert [packed for piece in networks.single_pieces() for packed in piece] == singles
    assert [ADDRESS[family](text).packed for text in networks.texts()] == singles


def test_a_blocklist_counts_and_gives_both_families() -> None:
    v4 = gather(Family.V4, [b"\xc6\x33\x64\x07"], [Prefix(0xCB007100, 24)])
    v6 = gather(Family.V6, ranges=[Prefix(0x20010DB8 << 96, 32)])
    blocklist = Blocklist(v4, v6)
    assert (len(blocklist), len(Blocklist())) == (3, 0)
    assert (blocklist.of(Family.V4), blocklist.of(Family.V6)) == (v4, v6)


def entry(text: str, reason: str) -> AllowEntry:
    return AllowEntry(*parse_prefix(text), reason)


ALLOWLIST = Allowlist(
    (
        entry("198.51.100.64/26", "SIKKER_WHITELIST"),
        entry("198.51.100.65", "default gateway"),
        entry("198.51.100.65", "resolver"),
        entry("2001:db8::/32", "SIKKER_WHITELIST"),
        entry("2001:db8::53", "resolver"),
        entry("2001:db9::1", "own address"),
    )
)


@pytest.mark.parametrize(
    ("address", "protector"),
    [
        ("198.51.100.65", "198.51.100.65 (default gateway)"),
        ("198.51.100.64", "198.51.100.64/26 (SIKKER_WHITELIST)"),
        ("198.51.100.127", "198.51.100.64/26 (SIKKER_WHITELIST)"),
        ("198.51.100.128", None),
        ("198.51.100.63", None),
        ("2001:db8::53", "2001:db8::53 (resolver)"),
        ("2001:db8::54", "2001:db8::/32 (SIKKER_WHITELIST)"),
        # The same number as an IPv4 address that is allowed.
        ("::c633:6441", None),
    ],
)
def test_the_most_specific_entry_protects(address: str, protector: str | None) -> None:
    family, prefix = parse_prefix(address)
    found = ALLOWLIST.protector(family, prefix.first)
    assert (found and str(found)) == protector


def test_an_allowlist_counts_each_range_once() -> None:
    assert ALLOWLIST.summary() == "3 IPs + 2 CIDR ranges"


def test_what_a_range_of_the_allowlist_covers_takes_no_entry_of_its_own() -> None:
    assert {to_text(Family.V4, prefix) for prefix in ALLOWLIST.prefixes(Family.V4)} == {"198.51.100.64/26"}
    assert {to_text(Family.V6, prefix) for prefix in ALLOWLIST.prefixes(Family.V6)} == {"2001:db8::/32", "2001:db9::1"}


@given(families.flatmap(lambda family: st.tuples(st.just(family), st.lists(prefixes(family), max_size=30))))
def test_the_ranges_that_are_left_cover_the_same_and_no_address_twice(case: tuple[Family, list[Prefix]]) -> None:
    family, wanted = case
    left = Allowlist(tuple(AllowEntry(family, prefix, "any") for prefix in wanted)).prefixes(family)
    assert left <= set(wanted)
    networks = [network(family, prefix) for prefix in left]
    for prefix in wanted:
        assert sum(network(family, prefix).subnet_of(each) for each in networks) == 1


@pytest.mark.parametrize(
    "text", ["203.0.113.0/24", "203.0.113.7/32", "0.0.0.0/0", "2001:db8::/32", "name", "", "1.2.3"]
)
def test_one_address_is_no_range(text: str) -> None:
    with pytest.raises(ValueError, match="not "):
        parse_address(text)


def test_one_address_is_a_number() -> None:
    assert parse_address("203.0.113.7") == (Family.V4, 0xCB007107)
    assert parse_address("2001:db8::7") == (Family.V6, 0x20010DB8 << 96 | 7)
