"""From packets to rows, from rows to requests, from answers to verdicts: what holds for all of them."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sikkerguard.core.lists.allowlist import AllowEntry, Allowlist
from sikkerguard.core.net.family import Family, family_of
from sikkerguard.core.net.packed import Prefix
from sikkerguard.core.ports.lookup import PORT_SCAN_THRESHOLD
from sikkerguard.core.ports.protocols import REPLY
from sikkerguard.core.reports.rows import (
    MAX_BYTES,
    MAX_PROTOCOL,
    MAX_ROWS,
    ReportAnswer,
    Row,
    allow_matcher,
    first_request,
    judge,
    row_of,
)
from sikkerguard.errors import Unanswered
from tests.standin.reports import CATEGORIES

V4 = bytes([203, 0, 113, 7])
V6 = bytes.fromhex("20010db8000000000000000000000007")
TCP, UDP, ICMP, GRE = 6, 17, 1, 47

addresses = st.one_of(st.binary(min_size=4, max_size=4), st.binary(min_size=16, max_size=16))
keys = st.one_of(
    st.just((-1, -1)),
    st.tuples(st.sampled_from([1, 2, 6, 17, 41, 47, 58, 89, 103, 132, 255]), st.integers(-1, 65535)),
)
packets = st.dictionaries(keys, st.integers(0, 1 << 40), max_size=40)
rows = st.builds(Row, addresses, st.sampled_from(sorted(CATEGORIES)), st.text(max_size=MAX_PROTOCOL), st.integers(1))


def made(
    packets: dict[tuple[int, int], int], port_map: dict[int, str] | None = None, *, spoofable: bool = False
) -> Row:
    row = row_of(V4, packets, port_map or {}, spoofable=spoofable)
    assert row is not None
    return row


# Rows


@pytest.mark.parametrize(
    ("packets", "category", "protocol"),
    [
        ({(TCP, 22): 3}, "brute_force", "ssh"),
        ({(TCP, 22): 3, (TCP, 80): 4}, "web_exploit", "http"),
        ({(TCP, 80): 3, (TCP, 22): 3}, "brute_force", "ssh"),
        ({(TCP, 4711): 3}, "port_scan", "tcp"),
        ({(TCP, 4711): 3, (TCP, 23): 2}, "port_scan", "tcp"),
        ({(TCP, 22): 1, (UDP, 53): 1000, (ICMP, 2048): 1000}, "brute_force", "ssh"),
        ({(TCP, 22): 1, (-1, -1): 1000}, "brute_force", "ssh"),
        ({(TCP, 22): 1, (TCP, -1): 1000}, "brute_force", "ssh"),
    ],
)
def test_a_row_is_what_its_tcp_packets_make_it(
    packets: dict[tuple[int, int], int], category: str, protocol: str
) -> None:
    row = made(packets)
    assert (row.category, row.protocol) == (category, protocol)


def test_who_touches_many_ports_is_a_scanner_named_by_what_it_touched_most() -> None:
    ports = {(TCP, 1000 + number): 1 for number in range(PORT_SCAN_THRESHOLD - 1)}
    assert made({**ports, (TCP, 22): 5}) == Row(V4, "port_scan", "ssh", PORT_SCAN_THRESHOLD + 4)


def test_ports_touched_over_what_can_be_forged_make_no_scanner() -> None:
    forged = {(UDP, 1000 + number): 9 for number in range(PORT_SCAN_THRESHOLD)}
    assert made({**forged, (TCP, 22): 1}) == Row(V4, "brute_force", "ssh", 1)
    assert made({**forged, (TCP, 22): 1}, spoofable=True).category == "port_scan"


@pytest.mark.parametrize(
    "packets",
    [{}, {(UDP, 53): 9}, {(ICMP, 2048): 9}, {(GRE, 0): 1}, {(-1, -1): 9}, {(TCP, -1): 9}, {(TCP, 22): 0}],
    ids=str,
)
def test_who_sent_nothing_but_what_can_be_forged_is_withheld(packets: dict[tuple[int, int], int]) -> None:
    assert row_of(V4, packets, {}, spoofable=False) is None


@pytest.mark.parametrize(
    ("packets", "category", "protocol"),
    [
        ({(UDP, 53): 9}, "dns_abuse", "dns"),
        ({(UDP, 4711): 9}, "port_scan", "udp"),
        ({(ICMP, 2048): 9}, "port_scan", "icmp"),
        ({(89, 0): 9}, "port_scan", "ospf"),
        ({(103, 0): 9}, "port_scan", "103"),
        ({(UDP, 53): 9, (TCP, 22): 8}, "dns_abuse", "dns"),
    ],
)
def test_who_wants_it_reports_them_too(packets: dict[tuple[int, int], int], category: str, protocol: str) -> None:
    row = made(packets, spoofable=True)
    assert (row.category, row.protocol) == (category, protocol)


def test_packets_not_told_apart_are_no_reason_for_a_row_even_then() -> None:
    assert row_of(V4, {(-1, -1): 9}, {}, spoofable=True) is None
    assert made({(-1, -1): 9, (UDP, 53): 1}, spoofable=True).packets == 10


@pytest.mark.parametrize("spoofable", [False, True])
def test_replies_alone_make_no_row(spoofable: bool) -> None:
    replies = {(REPLY, 443): 1000, (REPLY, 22): 5, (REPLY, -1): 7}
    assert row_of(V4, replies, {443: "ssh"}, spoofable=spoofable) is None
    assert row_of(V4, replies | {(-1, -1): 9}, {}, spoofable=spoofable) is None


@given(packets, st.dictionaries(st.integers(-1, 65535), st.integers(0, 1 << 40), max_size=40), st.booleans())
def test_replies_change_nothing_in_a_row(
    packets: dict[tuple[int, int], int], replies: dict[int, int], spoofable: bool
) -> None:
    with_replies = packets | {(REPLY, port): count for port, count in replies.items()}
    assert row_of(V4, with_replies, {}, spoofable=spoofable) == row_of(V4, packets, {}, spoofable=spoofable)


def test_the_port_map_names_services_and_their_categories() -> None:
    row = made({(TCP, 2222): 1}, {2222: "ssh"})
    assert (row.category, row.protocol) == ("brute_force", "ssh")


def test_a_label_of_the_hosts_owner_is_never_reported() -> None:
    row = made({(TCP, 2222): 1}, {2222: "secret-project:ssh"})
    assert (row.category, row.protocol) == ("brute_force", "ssh")
    row = made({(TCP, 4711): 1}, {4711: "secret-project"})
    assert (row.category, row.protocol) == ("port_scan", "tcp")


@given(addresses, packets, st.booleans())
def test_any_source_makes_a_row_that_the_service_takes_or_none(
    address: bytes, packets: dict[tuple[int, int], int], spoofable: bool
) -> None:
    row = row_of(address, packets, {}, spoofable=spoofable)
    telling = any(count and port >= 0 and (spoofable or protocol == TCP) for (protocol, port), count in packets.items())
    assert (row is not None) == telling
    if row is not None:
        assert row.category in CATEGORIES
        assert 1 <= len(row.protocol) <= MAX_PROTOCOL
        assert 0 < row.packets <= sum(packets.values())
        assert row.address == address


@given(packets, packets)
def test_what_can_be_forged_changes_nothing_in_a_row(
    packets: dict[tuple[int, int], int], forged: dict[tuple[int, int], int]
) -> None:
    others = {key: count for key, count in forged.items() if key[0] != TCP and key[1] >= 0 and key not in packets}
    assert row_of(V4, packets | others, {}, spoofable=False) == row_of(V4, packets, {}, spoofable=False)


# Who is not reported

prefixes = st.sampled_from(list(Family)).flatmap(
    lambda family: st.tuples(st.just(family), st.integers(0, (1 << family.bits) - 1), st.integers(0, family.bits))
)


@given(st.lists(prefixes, max_size=20), st.lists(addresses, max_size=20))
def test_who_is_allowed_is_whom_an_entry_covers(some: list[tuple[Family, int, int]], others: list[bytes]) -> None:
    entries = []
    for family, number, length in some:
        bits = family.bits - length
        prefix = Prefix(number >> bits << bits, length)
        entries.append(AllowEntry(family, prefix, "SIKKER_WHITELIST"))
        # Its edges, and what is beside them.
        for edge in (prefix.first - 1, prefix.first, prefix.last(family), prefix.last(family) + 1):
            if 0 <= edge < 1 << family.bits:
                others.append(edge.to_bytes(family.size, "big"))
    is_allowed, allowlist = allow_matcher(entries), Allowlist(tuple(entries))
    for address in others:
        covering = allowlist.protector(family_of(address), int.from_bytes(address, "big"))
        assert is_allowed(address) == (covering is not None)


# Requests


def reports(body: bytes) -> list[dict[str, str]]:
    value = json.loads(body)
    assert value.keys() == {"reports"}
    return list(value["reports"])


@given(st.lists(rows, min_size=1, max_size=60), st.integers(1, 3000))
def test_requests_have_every_row_once_in_order_and_keep_their_size(some: list[Row], most: int) -> None:
    left, seen = some, []
    while left:
        count, body = first_request(left, most)
        assert count >= 1
        assert len(body) <= most or count == 1
        if count < len(left):
            assert len(first_request(left[: count + 1], 1 << 30)[1]) > most
        seen += reports(body)
        left = left[count:]
    assert seen == [{"ip": row.ip(), "category": row.category, "protocol": row.protocol} for row in some]


def test_a_request_has_no_more_rows_than_the_service_takes() -> None:
    some = [Row(V6[:12] + number.to_bytes(4, "big"), "brute_force", "ssh", 1) for number in range(MAX_ROWS + 1)]
    count, body = first_request(some)
    assert count == len(reports(body)) == MAX_ROWS


def test_the_longest_rows_that_there_are_keep_the_bytes_bounded() -> None:
    widest = Row(bytes.fromhex("20010db8aaaaaaaaaaaaaaaaaaaaaaaa"), "exploited_host", "x" * MAX_PROTOCOL, 1)
    count, body = first_request([widest] * MAX_ROWS)
    assert count == MAX_ROWS
    assert len(body) <= MAX_BYTES


@pytest.mark.parametrize(
    ("address", "text"),
    [(V4, "203.0.113.7"), (V6, "2001:db8::7"), (bytes.fromhex("00000000000000000000ffffcb007107"), "::ffff:cb00:7107")],
)
def test_an_address_is_written_as_it_is_read_back(address: bytes, text: str) -> None:
    assert Row(address, "other", "tcp", 1).ip() == text
    assert judge([Row(address, "other", "tcp", 1)], ReportAnswer(1, 0, ((text, "no"),), None)).rejected == {
        address: "no"
    }


# Verdicts

SOME = [Row(bytes([203, 0, 113, number]), "brute_force", "ssh", 1) for number in range(4)]


def errors(*pairs: tuple[int, str]) -> tuple[tuple[str, str], ...]:
    return tuple((SOME[number].ip(), reason) for number, reason in pairs)


def test_rejected_rows_are_known_by_their_address() -> None:
    verdict = judge(SOME, ReportAnswer(4, 2, errors((2, "no valid address"), (0, "whitelisted")), None))
    assert verdict.rejected == {SOME[2].address: "no valid address", SOME[0].address: "whitelisted"}
    assert verdict.postponed == frozenset()


@pytest.mark.parametrize(
    "reason",
    [
        "the daily report quota is spent",
        "Daily limit reached",
        "Quota exceeded",
        "report limit",
        "rate limit hit",
        "limit exceeded",
    ],
)
def test_a_row_that_only_the_quota_kept_out_may_come_again(reason: str) -> None:
    verdict = judge(SOME, ReportAnswer(4, 3, errors((1, reason)), None))
    assert verdict.rejected == {}
    assert verdict.postponed == {SOME[1].address}


@pytest.mark.parametrize(
    "reason", ["protocol is longer than 32 characters", "ip is unknown", "limited to public IPs", ""]
)
def test_a_row_that_is_wrong_may_not(reason: str) -> None:
    assert judge(SOME, ReportAnswer(4, 3, errors((1, reason)), None)).rejected == {SOME[1].address: reason}


@pytest.mark.parametrize(
    "answer",
    [
        ReportAnswer(3, 3, (), None),
        ReportAnswer(5, 5, (), None),
        ReportAnswer(4, 3, (), None),
        ReportAnswer(4, 4, errors((0, "no")), None),
        ReportAnswer(4, 3, (("198.51.100.1", "no"),), None),
        ReportAnswer(4, 3, (("", "no"),), None),
        ReportAnswer(4, 3, (("not an address", "no"),), None),
        ReportAnswer(4, 2, errors((0, "no"), (0, "no")), None),
    ],
)
def test_an_answer_that_contradicts_what_was_sent_is_none(answer: ReportAnswer) -> None:
    with pytest.raises(Unanswered, match="SikkerAPI"):
        judge(SOME, answer)


@given(st.lists(st.sampled_from(["accept", "reject", "postpone"]), min_size=4, max_size=4))
def test_each_row_has_one_verdict(fates: list[str]) -> None:
    words = {"reject": "bad", "postpone": "quota"}
    named = errors(*((number, words[fate]) for number, fate in enumerate(fates) if fate != "accept"))
    verdict = judge(SOME, ReportAnswer(4, fates.count("accept"), named, 5))
    assert {row.address for row, fate in zip(SOME, fates, strict=True) if fate == "reject"} == verdict.rejected.keys()
    assert {row.address for row, fate in zip(SOME, fates, strict=True) if fate == "postpone"} == verdict.postponed
