"""Admission against `ipaddress` and against the special-purpose ranges written down a second time; the guards."""

from __future__ import annotations

import ipaddress
from collections import Counter
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sikkerguard.core.model import AllowEntry, Allowlist, Blocklist, Family, Networks, Prefix, parse_prefix
from sikkerguard.core.policy import (
    Baseline,
    HeldBackError,
    admit,
    allowed_though_listed,
    always_allowed,
    describe_removed,
    guard,
)
from sikkerguard.errors import ListError
from tests.unit.test_ranges import (
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


@settings(deadline=None, max_examples=150)
@given(blocklists, allowlists)
def test_what_is_admitted_is_the_list_without_special_and_allowed_addresses(
    listed: Blocklist, allowlist: Allowlist
) -> None:
    admitted = admit(listed, allowlist).blocklist
    for family in Family:
        allowed = [network(family, entry.prefix) for entry in allowlist.entries if entry.family is family]
        assert_well_formed(admitted.of(family))
        assert covered(admitted.of(family)) == without(covered(listed.of(family)), [*NEVER[family], *allowed])


@settings(deadline=None, max_examples=150)
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


@settings(deadline=None, max_examples=300)
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


def test_the_always_allowed_ranges_are_those_of_the_design() -> None:
    assert {str(network(entry.family, entry.prefix)) for entry in always_allowed()} == {
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
    allowlist = Allowlist((*always_allowed(), *allowing(allowed).entries))
    sentences = allowed_though_listed(listing(listed), allowlist)
    assert len(sentences) == told
    assert all(allowed in sentence and "resolver" in sentence for sentence in sentences)


BASELINE = Baseline(size=1000, fingerprint="same", terminated=True)


def check(
    size: int,
    baseline: Baseline | None = BASELINE,
    *,
    fingerprint: str = "same",
    terminated: bool = True,
    max_growth: float = 2.0,
    accept: bool = False,
) -> None:
    guard(size, fingerprint, terminated, baseline, max_growth=max_growth, accept=accept)


def held(*signs: str, terminated: bool = True) -> Baseline:
    return Baseline(BASELINE.size, BASELINE.fingerprint, terminated, frozenset(signs))


def signs_of(size: int, baseline: Baseline, *, terminated: bool = True) -> frozenset[str]:
    with pytest.raises(HeldBackError) as refused:
        check(size, baseline, terminated=terminated)
    assert "--accept" in str(refused.value)
    assert refused.value.signs
    return refused.value.signs


@pytest.mark.parametrize("baseline", [None, BASELINE, Baseline(0, "same", True)])
@pytest.mark.parametrize("accept", [False, True])
def test_an_empty_list_is_never_taken(baseline: Baseline | None, accept: bool) -> None:
    with pytest.raises(ListError) as refused:
        check(0, baseline, fingerprint="other", accept=accept)
    assert not isinstance(refused.value, HeldBackError)


@pytest.mark.parametrize("size", [100, 999, 1000, 1001, 2000])
def test_a_list_of_a_likely_size_is_taken(size: int) -> None:
    check(size)


def test_growth_beyond_belief_is_refused_however_often_it_comes() -> None:
    seen = signs_of(99, BASELINE) | signs_of(1000, BASELINE, terminated=False)
    with pytest.raises(ListError, match=r"1000 to 2001 .*--accept.*SIKKER_MAX_GROWTH") as refused:
        check(2001, held(*seen), terminated=False)
    assert not isinstance(refused.value, HeldBackError)


@pytest.mark.parametrize("growth", [1.5, 2.0, 3.0, 10.0])
@settings(deadline=None)
@given(size=st.integers(1, 10**7), before=st.integers(1, 10**6))
def test_growth_is_measured_against_the_limit(size: int, before: int, growth: float) -> None:
    grown = size > before * Fraction(growth)
    shrunk = size < Fraction(before, 10)
    try:
        check(size, Baseline(before, "same", True), max_growth=growth)
    except HeldBackError:
        assert shrunk
    except ListError:
        assert grown
    else:
        assert not grown
        assert not shrunk


def test_a_list_that_shrank_is_held_back_and_then_believed() -> None:
    signs = signs_of(99, BASELINE)
    check(99, held(*signs))
    check(42, held(*signs))


def test_a_list_that_was_cut_off_is_held_back_and_then_believed() -> None:
    signs = signs_of(1000, BASELINE, terminated=False)
    check(1000, held(*signs), terminated=False)


def test_a_list_that_never_ended_with_a_newline_is_not_cut_off() -> None:
    check(1000, held(terminated=False), terminated=False)


def test_only_a_sign_that_was_seen_is_believed() -> None:
    shrunk, cut_off = signs_of(99, BASELINE), signs_of(1000, BASELINE, terminated=False)
    assert not shrunk & cut_off
    assert signs_of(99, held(*cut_off)) == shrunk
    assert signs_of(1000, held(*shrunk), terminated=False) == cut_off
    # What shows both is believed when both were seen; one of them alone is then no news either.
    both = signs_of(99, BASELINE, terminated=False)
    assert both == shrunk | cut_off
    assert signs_of(99, held(*shrunk), terminated=False) == both
    assert signs_of(99, held(*cut_off), terminated=False) == both
    check(99, held(*both))
    check(1000, held(*both), terminated=False)


def test_a_refusal_says_all_that_is_wrong() -> None:
    with pytest.raises(HeldBackError, match=r"shrank from 1000 to 99 .*middle of a line"):
        check(99, terminated=False)


@settings(deadline=None)
@given(size=st.integers(1, 2000), terminated=st.booleans(), before=st.booleans())
def test_the_same_held_back_list_is_believed_by_its_second_pull(size: int, terminated: bool, before: bool) -> None:
    try:
        check(size, held(terminated=before), terminated=terminated)
    except HeldBackError as refused:
        check(size, held(*refused.signs, terminated=before), terminated=terminated)


@pytest.mark.parametrize("size", [1, 99, 2001, 10**6])
@pytest.mark.parametrize("terminated", [False, True])
def test_what_can_not_be_compared_or_is_accepted_is_taken(size: int, terminated: bool) -> None:
    check(size, None, terminated=terminated)
    check(size, Baseline(0, "same", True), terminated=terminated)
    check(size, fingerprint="changed", terminated=terminated)
    check(size, accept=True, terminated=terminated)
