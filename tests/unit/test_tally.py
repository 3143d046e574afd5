"""Counts to lines: every packet is on some line once, and no attack can make more than a few lines."""

from __future__ import annotations

import ipaddress
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sikkerguard.core.model import Family, Hits
from sikkerguard.core.tally import WINDOW_SECONDS, Blocked, Tally

# At most so many new sources and so many sums in a window, and one line for the rest.
LINES = 20


def hit(source: str, packets: int, port: int = 23, protocol: int = 6) -> Hits:
    address = ipaddress.ip_address(source)
    family = Family.V4 if address.version == 4 else Family.V6
    return Hits(family, address.packed, protocol, port, packets, packets * 60)


def tally() -> Tally:
    return Tally({})


@pytest.mark.parametrize(
    ("source", "protocol", "port", "line"),
    [
        ("198.51.100.7", 6, 23, "BLOCKED 198.51.100.7:23 (telnet) proto=TCP x47"),
        ("198.51.100.7", 17, 53, "BLOCKED 198.51.100.7:53 (dns) proto=UDP x47"),
        ("2001:db8::7", 6, 22, "BLOCKED [2001:db8::7]:22 (ssh) proto=TCP x47"),
        ("198.51.100.7", 6, 2222, "BLOCKED 198.51.100.7:2222 (mysql) proto=TCP x47"),
        ("198.51.100.7", 6, 64999, "BLOCKED 198.51.100.7:64999 (unknown) proto=TCP x47"),
        ("198.51.100.7", 132, 0, "BLOCKED 198.51.100.7:0 (unknown) proto=SCTP x47"),
        ("198.51.100.7", 1, 8 << 8, "BLOCKED 198.51.100.7 (type 8 code 0) proto=ICMP x47"),
        ("198.51.100.7", 1, 3 << 8 | 13, "BLOCKED 198.51.100.7 (type 3 code 13) proto=ICMP x47"),
        ("2001:db8::7", 58, 128 << 8, "BLOCKED 2001:db8::7 (type 128 code 0) proto=ICMPv6 x47"),
        ("198.51.100.7", 33, 5, "BLOCKED 198.51.100.7:5 (unknown) proto=DCCP x47"),
        ("198.51.100.7", 136, 5, "BLOCKED 198.51.100.7:5 (unknown) proto=UDPLite x47"),
        ("198.51.100.7", 2, 0, "BLOCKED 198.51.100.7 proto=IGMP x47"),
        ("198.51.100.7", 41, 0, "BLOCKED 198.51.100.7 proto=IPv6 x47"),
        ("198.51.100.7", 47, 0, "BLOCKED 198.51.100.7 proto=GRE x47"),
        ("198.51.100.7", 50, 0, "BLOCKED 198.51.100.7 proto=ESP x47"),
        ("2001:db8::7", 51, 0, "BLOCKED 2001:db8::7 proto=AH x47"),
        ("2001:db8::7", 89, 0, "BLOCKED 2001:db8::7 proto=OSPF x47"),
        ("198.51.100.7", 99, 0, "BLOCKED 198.51.100.7 proto=99 x47"),
    ],
)
def test_a_line_in_the_words_of_the_product(source: str, protocol: int, port: int, line: str) -> None:
    known = hit(source, 47, port, protocol)
    # A name that the port map gives goes before the table.
    blocked = Blocked(known.family, known.address, protocol, port, 47)
    assert blocked.line({2222: "mysql"}) == line
    assert Tally({2222: "mysql"}).take([known], 0.0) == [line]


def test_a_new_source_shows_at_once_and_what_follows_when_its_window_ends() -> None:
    counts = tally()
    assert counts.take([hit("198.51.100.7", 1)], 100.0) == ["BLOCKED 198.51.100.7:23 (telnet) proto=TCP x1"]
    assert counts.take([hit("198.51.100.7", 40)], 101.0) == []
    assert counts.take([hit("198.51.100.7", 48)], 100.0 + WINDOW_SECONDS - 0.01) == []
    assert counts.due(100.0 + WINDOW_SECONDS) == ["BLOCKED 198.51.100.7:23 (telnet) proto=TCP x47"]
    assert counts.due(1e9) == []


def test_another_port_or_protocol_of_a_source_is_news() -> None:
    counts = tally()
    counts.take([hit("198.51.100.7", 1)], 0.0)
    lines = counts.take([hit("198.51.100.7", 1), hit("198.51.100.7", 1, 22), hit("198.51.100.7", 1, 23, 17)], 1.0)
    assert [line.split()[1] for line in lines] == ["198.51.100.7:22", "198.51.100.7:23"]


def test_counts_from_before_are_no_news() -> None:
    counts = tally()
    counts.begin([hit("198.51.100.7", 1000)])
    assert counts.take([hit("198.51.100.7", 1000)], 0.0) == []
    assert counts.due(1e9) == []
    counts.take([hit("198.51.100.7", 1003)], 1e9)
    assert counts.due(2e9) == ["BLOCKED 198.51.100.7:23 (telnet) proto=TCP x3"]


def test_an_entry_that_the_kernel_forgot_counts_from_the_beginning() -> None:
    counts = tally()
    counts.begin([hit("198.51.100.7", 1000)])
    counts.take([hit("198.51.100.7", 5)], 0.0)
    assert counts.due(WINDOW_SECONDS) == ["BLOCKED 198.51.100.7:23 (telnet) proto=TCP x5"]
    assert counts.take([], 20.0) == []
    assert counts.take([hit("198.51.100.7", 6)], 21.0) == ["BLOCKED 198.51.100.7:23 (telnet) proto=TCP x6"]


def test_a_source_that_fell_silent_is_not_told_again() -> None:
    counts = tally()
    counts.take([hit("198.51.100.7", 3)], 0.0)
    for second in range(1, 60):
        assert counts.take([hit("198.51.100.7", 3)], float(second)) == []


def test_the_largest_come_first_and_the_rest_is_one_line() -> None:
    counts = tally()
    sources = [f"198.51.100.{number}" for number in range(1, 51)]
    counts.begin([hit(source, 0) for source in sources])
    assert counts.take([hit(source, number * 10) for number, source in enumerate(sources, 1)], 0.0) == []
    lines = counts.due(WINDOW_SECONDS)
    assert len(lines) == LINES + 1
    assert [int(line.rpartition(" x")[2]) for line in lines[:-1]] == list(range(500, 300, -10))
    assert lines[-1] == f"BLOCKED 30 more sources x{sum(range(10, 310, 10))}"


def test_a_flood_of_new_sources_does_not_flood_the_log() -> None:
    counts, lines = tally(), []
    for second in range(10):
        # Spoofed sources that are new in every look.
        lines += counts.take(
            [hit(str(ipaddress.IPv6Address("2001:db8::") + second * 1000 + n), 1) for n in range(1000)], float(second)
        )
    assert len(lines) == LINES
    rest = counts.due(WINDOW_SECONDS)
    assert len(rest) == LINES + 1
    assert rest[-1] == f"BLOCKED {10_000 - 2 * LINES} more sources x{10_000 - 2 * LINES}"


def test_a_new_window_shows_new_sources_at_once_again() -> None:
    counts = tally()
    first = [hit(f"198.51.100.{number}", 1) for number in range(30)]
    assert len(counts.take(first, 0.0)) == LINES
    late = [hit(f"203.0.113.{number}", 1) for number in range(30)]
    lines = counts.take([*first, *late], WINDOW_SECONDS + 1)
    # What is left of the first window, and then as many new ones as before.
    assert len(lines) == 10 + LINES
    assert lines[-1] == f"BLOCKED 203.0.113.{LINES - 1}:23 (telnet) proto=TCP x1"


def test_a_port_map_read_anew_is_used() -> None:
    counts = tally()
    counts.port_map = {23: "ssh"}
    assert counts.take([hit("198.51.100.7", 1)], 0.0) == ["BLOCKED 198.51.100.7:23 (ssh) proto=TCP x1"]


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(st.floats(0, 9), st.dictionaries(st.integers(1, 60), st.integers(1, 50))), max_size=15))
def test_every_packet_is_told_once(looks: list[tuple[float, dict[int, int]]]) -> None:
    counts, held, now, sent = tally(), dict[int, int](), 0.0, 0
    windows: list[list[str]] = []
    for pause, more in looks:
        now += pause
        for source, packets in more.items():
            held[source] = held.get(source, 0) + packets
            sent += packets
        windows.append(counts.take([hit(f"198.51.100.{source}", packets) for source, packets in held.items()], now))
        # One look has at most the end of a window and the beginning of the next.
        assert len(windows[-1]) <= 2 * LINES + 1
    windows.append(counts.due(now + WINDOW_SECONDS))
    told = [re.fullmatch(r"BLOCKED .* x(\d+)", line) for lines in windows for line in lines]
    assert sum(int(match[1]) for match in told if match) == sent
    assert all(told)
