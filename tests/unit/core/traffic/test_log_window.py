"""Counts to lines: every packet is on some line once, and no attack can make more than a few lines."""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sikkerguard.core.ports.protocols import REPLY
from sikkerguard.core.traffic.log_window import WINDOW_SECONDS, Line, LogWindow, in_fields, in_words
from sikkerguard.core.traffic.sample import UNATTRIBUTED

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sikkerguard.core.traffic.sample import FlowKey

# At most so many lines at once and so many sums in a window, one line for the rest, so many at once of a source, and of
# all sources so many at once that are not the first of theirs.
LINES, LINES_PER_SOURCE, FURTHER_LINES = 20, 3, 10
# What a window tells apart at most, and what is remembered as no news for so many seconds.
FLOWS, LOGGED_FLOWS, NEWS_SECONDS = 8192, 4096, 60.0


def key(source: str | int, port: int = 23, protocol: int = 6) -> FlowKey:
    address = ipaddress.ip_address(source) if isinstance(source, str) else ipaddress.IPv4Address("10.0.0.0") + source
    return address.packed, protocol, port


def rest_of(source: str | int) -> FlowKey:
    """Of a source's packets those that were not told apart."""
    return key(source, UNATTRIBUTED, UNATTRIBUTED)


class Log:
    """A window, and the lines that it gives. What `take` gets is dropped, and all of it is attributed."""

    def __init__(self, logged: int = 0) -> None:
        self.window = LogWindow(logged)
        self.dropped = logged
        self.port_map: dict[int, str] = {}

    def take(self, flows: Iterable[tuple[FlowKey, int]], now: float) -> list[Line]:
        pairs = list(flows)
        return self.take_beside(pairs, self.dropped + sum(packets for _, packets in pairs), now)

    def take_beside(self, flows: list[tuple[FlowKey, int]], dropped: int, now: float) -> list[Line]:
        """With so many packets dropped in all."""
        self.dropped = dropped
        self.window, lines = self.window.take(flows, dropped, now, self.port_map)
        return list(lines)

    def texts(self, flows: Iterable[tuple[FlowKey, int]], now: float) -> list[str]:
        return [line.text for line in self.take(flows, now)]

    def finish(self, dropped: int | None = None) -> list[Line]:
        self.window, lines = self.window.finish(self.dropped if dropped is None else dropped, self.port_map)
        return list(lines)


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
        # The kernel's sets have no port for it.
        ("198.51.100.7", 33, 0, "BLOCKED 198.51.100.7 proto=DCCP x47"),
        ("198.51.100.7", 136, 5, "BLOCKED 198.51.100.7:5 (unknown) proto=UDPLite x47"),
        ("198.51.100.7", 2, 0, "BLOCKED 198.51.100.7 proto=IGMP x47"),
        ("198.51.100.7", 41, 0, "BLOCKED 198.51.100.7 proto=IPv6 x47"),
        ("198.51.100.7", 47, 0, "BLOCKED 198.51.100.7 proto=GRE x47"),
        ("198.51.100.7", 50, 0, "BLOCKED 198.51.100.7 proto=ESP x47"),
        ("2001:db8::7", 51, 0, "BLOCKED 2001:db8::7 proto=AH x47"),
        ("2001:db8::7", 89, 0, "BLOCKED 2001:db8::7 proto=OSPF x47"),
        ("198.51.100.7", 99, 0, "BLOCKED 198.51.100.7 proto=99 x47"),
        # No packet has it: these sets don't take it in IPv4, and in IPv6 it is no protocol. It is not ANY either.
        ("198.51.100.7", 0, 0, "BLOCKED 198.51.100.7 proto=0 x47"),
        ("198.51.100.7", UNATTRIBUTED, UNATTRIBUTED, "BLOCKED 198.51.100.7 (further ports) proto=any x47"),
        ("2001:db8::7", UNATTRIBUTED, UNATTRIBUTED, "BLOCKED 2001:db8::7 (further ports) proto=any x47"),
        # The port map is of ports here, not of those that replies come from.
        ("198.51.100.7", REPLY, 2222, "BLOCKED 198.51.100.7 (reply from port 2222) proto=TCP x47"),
        ("2001:db8::7", REPLY, 443, "BLOCKED 2001:db8::7 (reply from port 443) proto=TCP x47"),
        ("198.51.100.7", REPLY, UNATTRIBUTED, "BLOCKED 198.51.100.7 (further replies) proto=any x47"),
    ],
)
def test_a_line_in_the_words_of_the_product(source: str, protocol: int, port: int, line: str) -> None:
    place = key(source, port, protocol)
    # A name that the port map gives goes before the table.
    assert in_words(place, 47, {2222: "mysql"}) == line
    window, lines = LogWindow().take([(place, 47)], 47, 0.0, {2222: "mysql"})
    assert lines == (Line(line, 47, place),)
    assert window.logged == 47


def test_the_parts_of_a_line_are_fields_of_the_journal() -> None:
    line = Line("...", 47, key("198.51.100.7", 2222, 6))
    assert in_fields(line, {2222: "mysql"}) == {
        "SIKKER_SRC": "198.51.100.7",
        "SIKKER_DPT": "2222",
        "SIKKER_PROTO": "TCP",
        "SIKKER_SERVICE": "mysql",
        "SIKKER_PACKETS": "47",
    }
    assert in_fields(Line("...", 5, key("2001:db8::7", 128 << 8, 58)), {}) == {
        "SIKKER_SRC": "2001:db8::7",
        "SIKKER_PROTO": "ICMPv6",
        "SIKKER_PACKETS": "5",
    }
    for protocol, name in ((33, "DCCP"), (0, "0"), (UNATTRIBUTED, "any")):
        assert in_fields(Line("...", 5, key("198.51.100.7", min(protocol, 0), protocol)), {}) == {
            "SIKKER_SRC": "198.51.100.7",
            "SIKKER_PROTO": name,
            "SIKKER_PACKETS": "5",
        }
    assert in_fields(Line("BLOCKED 30 more sources x9", 9), {}) == {"SIKKER_PACKETS": "9"}


def test_replies_are_fields_of_the_journal_with_the_port_they_came_from() -> None:
    assert in_fields(Line("...", 3, key("198.51.100.7", 2222, REPLY)), {2222: "mysql"}) == {
        "SIKKER_SRC": "198.51.100.7",
        "SIKKER_SPT": "2222",
        "SIKKER_PROTO": "TCP",
        "SIKKER_SERVICE": "reply",
        "SIKKER_PACKETS": "3",
    }
    assert in_fields(Line("...", 3, key("2001:db8::7", UNATTRIBUTED, REPLY)), {}) == {
        "SIKKER_SRC": "2001:db8::7",
        "SIKKER_PROTO": "any",
        "SIKKER_SERVICE": "reply",
        "SIKKER_PACKETS": "3",
    }


def test_a_new_source_shows_at_once_and_what_follows_when_its_window_ends() -> None:
    log = Log()
    assert log.texts([(key("198.51.100.7"), 1)], 100.0) == ["BLOCKED 198.51.100.7:23 (telnet) proto=TCP x1"]
    assert log.take([(key("198.51.100.7"), 39)], 101.0) == []
    assert log.take([(key("198.51.100.7"), 8)], 100.0 + WINDOW_SECONDS - 0.01) == []
    assert log.texts([], 100.0 + WINDOW_SECONDS) == ["BLOCKED 198.51.100.7:23 (telnet) proto=TCP x47"]
    assert log.take([], 1e9) == []


def test_another_port_or_protocol_of_a_source_is_news() -> None:
    log, source = Log(), "198.51.100.7"
    log.take([(key(source), 1)], 0.0)
    assert [log.window.is_news(place, 0.0) for place in (key(source), key(source, 22), key("2001:db8::7"))] == [
        False,
        True,
        True,
    ]
    lines = log.texts([(key(source), 1), (key(source, 22), 1), (key(source, 23, 17), 1)], 1.0)
    assert [line.split()[1] for line in lines] == ["198.51.100.7:22", "198.51.100.7:23"]


def test_what_is_told_at_once_or_waits_for_its_window_is_no_news() -> None:
    log = Log()
    sources = [key(number) for number in range(LINES + 1)]
    assert all(log.window.is_news(source, 0.0) for source in sources)
    # There is no room at once for the last one: it waits.
    assert len(log.take([(source, 1) for source in sources], 0.0)) == LINES
    assert not any(log.window.is_news(source, 0.0) for source in sources)


def test_a_source_is_no_news_at_a_port_for_a_while() -> None:
    log = Log()
    log.take([(key(1), 1)], 0.0)
    log.take([], WINDOW_SECONDS)
    assert log.take([(key(1), 1)], NEWS_SECONDS - 1) == []
    assert [line.packets for line in log.take([], NEWS_SECONDS - 1 + WINDOW_SECONDS)] == [1]


def test_a_source_that_was_silent_for_long_is_news_again() -> None:
    log = Log()
    log.take([(key(1), 1)], 0.0)
    for second in range(1, 1000):
        assert log.take([], float(second)) == []
    assert log.window.is_news(key(1), 1000.0)
    assert [line.packets for line in log.take([(key(1), 1)], 1000.0)] == [1]


def test_a_source_that_fell_silent_is_not_told_again() -> None:
    log = Log()
    log.take([(key(1), 3)], 0.0)
    for second in range(1, 60):
        assert log.take([], float(second)) == []
    assert log.finish() == []


def test_a_source_shows_at_few_ports_at_once_and_leaves_room_for_others() -> None:
    log = Log()
    scan = [(key(1, port), 9) for port in range(200)]
    lines = log.take([*scan, (key(2), 1)], 0.0)
    assert Counter(line.key[0] for line in lines if line.key) == {key(1)[0]: LINES_PER_SOURCE, key(2)[0]: 1}
    # And no more of it later on in the window.
    assert log.take([(key(1, port), 1) for port in range(300, 400)], 1.0) == []
    assert [line.key for line in log.take([(key(3), 1)], 2.0)] == [key(3)]


def test_sources_that_are_after_several_ports_leave_room_for_new_ones() -> None:
    log = Log()
    busy = [(key(source, port), 2) for source in range(7) for port in range(3)]
    lines = log.take(busy, 0.0)
    assert Counter(line.key[0] for line in lines if line.key).total() == 7 + FURTHER_LINES
    # Each further one comes in a look of its own, and at a second port that has no room any more.
    for number in (7, 8, 9):
        assert log.window.is_news(key(number), 1.0)
        assert [line.key for line in log.take([(key(number), 1)], 1.0)] == [key(number)]
        assert not log.window.is_news(key(number, 22), 1.0)
        assert log.take([(key(number, 22), 9)], 1.0) == []
    assert log.take([(key(10), 1)], 1.0) == []
    assert len(log.take([], WINDOW_SECONDS)) == 7 * 3 - 7 - FURTHER_LINES + 3 + 1


def test_small_sources_show_before_large_ones_show_again() -> None:
    log = Log()
    scans = [(key(source, port), 1000) for source in range(4) for port in range(65)]
    lines = log.take([*scans, *((key(source), 1) for source in range(100, 116))], 0.0)
    assert {line.key for line in lines if line.packets == 1} == {key(source) for source in range(100, 116)}
    assert Counter(line.key[0] for line in lines if line.key) == {key(s)[0]: 1 for s in (*range(4), *range(100, 116))}
    # As large as they are, they come first.
    assert [line.packets for line in lines] == [1000] * 4 + [1] * 16


def test_of_new_sources_the_largest_show_at_once() -> None:
    log = Log()
    lines = log.take([(key(number), number) for number in range(1, 101)], 0.0)
    assert [line.packets for line in lines] == list(range(100, 100 - LINES, -1))


def test_the_largest_come_first_and_the_rest_is_one_line() -> None:
    log = Log()
    crowd = [(key(1000 + number), 10**6) for number in range(LINES)]
    assert len(log.take(crowd, 0.0)) == LINES
    assert log.take([(key(number), number * 10) for number in range(1, 51)], 1.0) == []
    lines = log.take([], WINDOW_SECONDS)
    assert [line.packets for line in lines[:-1]] == list(range(500, 300, -10))
    rest = sum(range(10, 310, 10))
    assert lines[-1] == Line(f"BLOCKED 30 more sources x{rest}", rest)
    assert log.window.logged == log.dropped


def test_packets_that_the_kernel_could_not_name_are_one_line() -> None:
    log = Log()
    assert log.take_beside([], 700, 0.0) == []
    assert log.take_beside([], 1000, WINDOW_SECONDS) == [Line("BLOCKED sources that were not told apart x1000", 1000)]
    assert log.take_beside([], 1000, 1e6) == []
    sources = [(key(number), 1) for number in range(2 * LINES + 5)]
    log.take_beside(sources, 1500, 1e6)
    lines = log.take_beside([], 1500, 1e6 + WINDOW_SECONDS)
    rest = 500 - 2 * LINES
    assert lines[-1] == Line(f"BLOCKED 5 more sources and others that were not told apart x{rest}", rest)


def test_packets_of_earlier_runs_are_told_as_far_as_they_were_not() -> None:
    log = Log(1000)
    assert log.take_beside([], 1000, 0.0) == []
    assert log.finish(1000) == []
    assert [line.packets for line in log.finish(1003)] == [3]
    assert log.window.logged == 1003


def test_packets_that_were_named_before_they_were_counted_are_told_once() -> None:
    log = Log()
    # Two of these were still on their way to the rule that counts what is dropped.
    assert [line.packets for line in log.take_beside([(key(1), 10)], 8, 0.0)] == [10]
    assert log.take_beside([(key(1), 5)], 15, 1.0) == []
    assert [line.packets for line in log.take_beside([], 15, WINDOW_SECONDS)] == [5]
    assert log.take_beside([], 15, 1e6) == []
    assert log.finish(15) == []


def test_an_end_tells_what_its_window_holds() -> None:
    log = Log()
    log.take([(key(number), 1) for number in range(LINES + 2)], 0.0)
    assert [line.packets for line in log.finish(log.dropped + 7)] == [1, 1, 7]
    assert log.finish(log.dropped + 7) == []


def test_a_flood_of_new_sources_does_not_flood_the_log() -> None:
    log, lines = Log(), list[Line]()
    for second in range(10):
        # Spoofed sources that are new each time.
        lines += log.take([(key(second * 800 + number), 1) for number in range(800)], float(second))
    assert len(lines) == LINES
    last = log.take([], WINDOW_SECONDS)
    assert len(last) == LINES + 1
    assert last[-1].text == f"BLOCKED {8000 - 2 * LINES} more sources x{8000 - 2 * LINES}"


def test_of_more_sources_than_are_told_apart_the_largest_are_and_every_packet_is_told() -> None:
    log, lines = Log(), list[Line]()
    lines += log.take([(key(10**6), 5)], 0.0)
    for second in range(10):
        lines += log.take([(key(second * 4000 + number), 1) for number in range(4000)], float(second))
        lines += log.take([(key(10**6), 5)], float(second))
        assert len(log.window.waiting) <= FLOWS
    last = log.take([], WINDOW_SECONDS)
    assert last[0] == Line("BLOCKED 10.15.66.64:23 (telnet) proto=TCP x50", 50, key(10**6))
    assert re.fullmatch(r"BLOCKED \d+ more sources and others that were not told apart x\d+", last[-1].text)
    assert sum(line.packets for line in lines + last) == log.dropped == 40_055


def test_what_is_no_news_takes_little_memory() -> None:
    log = Log()
    for second in range(2000):
        log.take([(key(second * 50 + number), 1) for number in range(50)], float(second))
        # What can be told within the time for which it is no news, and within the window before it is forgotten.
        assert len(log.window.logged_at) <= (NEWS_SECONDS / WINDOW_SECONDS + 2) * (2 * LINES) < LOGGED_FLOWS


def test_a_new_window_shows_new_sources_at_once_again() -> None:
    log = Log()
    assert len(log.take([(key(number), 1) for number in range(30)], 0.0)) == LINES
    assert len(log.take([], WINDOW_SECONDS)) == 10
    lines = log.take([(key(100 + number), 1) for number in range(30)], WINDOW_SECONDS + 1)
    assert len(lines) == LINES
    assert log.take([], 2 * WINDOW_SECONDS) == []
    assert len(log.take([], 2 * WINDOW_SECONDS + 1)) == 10


def test_a_port_map_read_anew_is_used() -> None:
    log = Log()
    log.port_map = {23: "ssh"}
    assert log.texts([(key("198.51.100.7"), 1)], 0.0) == ["BLOCKED 198.51.100.7:23 (ssh) proto=TCP x1"]


# A look: the pause before it; packets by source and port; packets that the kernel could not name; and, of its named
# packets, how many were still on their way to the rule that counts what is dropped.
places = st.tuples(st.integers(1, 40), st.integers(1, 4))
few_places = st.tuples(st.integers(1, 12), st.integers(1, 4))
looks = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.2, 1.0, 1.0, 1.0, 4.0, WINDOW_SECONDS, 70.0]),
        st.dictionaries(places, st.integers(1, 50), max_size=60),
        st.sampled_from([0, 0, 1, 1000]),
        st.sampled_from([0, 0, 1, 3]),
    ),
    max_size=40,
)


@settings(max_examples=300)
@given(looks, st.booleans(), st.sampled_from([0, 5000]))
def test_every_packet_is_told_once_in_few_lines(
    drawn: list[tuple[float, dict[tuple[int, int], int], int, int]], finished: bool, earlier: int
) -> None:
    log, now, dropped, late = Log(earlier), 0.0, earlier, 0
    lines: list[tuple[float, Line]] = []
    sent: Counter[FlowKey] = Counter()
    for pause, named, nameless, on_the_way in drawn:
        now += pause
        counts = [(key(source, port), packets) for (source, port), packets in named.items()]
        sent.update(dict(counts))
        dropped += sum(named.values()) + nameless + late
        late = min(on_the_way, sum(named.values()))
        dropped -= late
        found = log.take_beside(counts, dropped, now)
        lines += [(now, line) for line in found]
        assert sum(line.packets for _, line in lines) == log.window.logged - earlier
        # What is named beyond what is dropped will be caught up with.
        assert log.window.logged <= dropped + late
    dropped += late
    end = (
        log.finish(dropped) if finished else log.take_beside([], dropped, now) + log.take_beside([], dropped, now + 10)
    )
    lines += [(now + WINDOW_SECONDS, line) for line in end]
    assert log.window.logged == dropped == earlier + sum(line.packets for _, line in lines)
    assert log.finish(dropped) == log.take_beside([], dropped, now + 1000) == []

    summed: Counter[FlowKey] = Counter()
    for at, line in lines:
        match = re.fullmatch(r"BLOCKED \S.* x(\d+)", line.text)
        assert match
        assert int(match[1]) == line.packets > 0
        if line.key:
            summed[line.key] += line.packets
        # A window's own lines, and those with which the next one begins.
        assert sum(at <= other < at + WINDOW_SECONDS for other, _ in lines) <= 3 * LINES + 1
    assert all(packets <= sent[place] for place, packets in summed.items())
    assert len(lines) <= (2 * LINES + 1) * (now // WINDOW_SECONDS + 1)


@settings(max_examples=200)
@given(st.lists(st.dictionaries(few_places, st.integers(1, 50), min_size=5, max_size=30), min_size=2, max_size=10))
def test_half_of_the_room_is_for_sources_that_are_new(drawn: list[dict[tuple[int, int], int]]) -> None:
    log = Log()
    shown: Counter[bytes] = Counter()
    for second, named in enumerate(drawn):
        before = set(shown)
        lines = log.take([(key(source, port), packets) for (source, port), packets in named.items()], float(second))
        shown.update(line.key[0] for line in lines if line.key)
        assert shown.total() <= LINES
        assert max(shown.values(), default=0) <= LINES_PER_SOURCE
        assert shown.total() - len(shown) <= FURTHER_LINES
        new = {key(source)[0] for source, _ in named} - before
        assert new <= set(shown) or len(shown) >= LINES - FURTHER_LINES


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 30_000), st.integers(1, 4096), st.integers(1, 3)), min_size=1, max_size=12))
def test_no_crowd_is_remembered_beyond_bounds(drawn: list[tuple[int, int, int]]) -> None:
    log, lines = Log(), list[Line]()
    for second, (first, number, packets) in enumerate(drawn):
        lines += log.take([(key(first + further), packets) for further in range(number)], second / 2)
        assert len(log.window.waiting) <= FLOWS
        assert len(log.window.logged_at) <= LOGGED_FLOWS
    lines += log.finish()
    assert sum(line.packets for line in lines) == log.dropped
    assert len(lines) <= 2 * LINES + 1
