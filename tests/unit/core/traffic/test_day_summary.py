"""The sources and ports of a day, within bounds."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from sikkerguard.core.services.protocols import REPLY, WITH_PORTS
from sikkerguard.core.traffic.day_summary import MOST_SOURCES, DaySummary
from sikkerguard.core.traffic.sample import UNATTRIBUTED, Source, TrafficSample

# Ports that are told apart.
PORTS = 4096


def address(number: int) -> bytes:
    return number.to_bytes(4, "big")


def listing(*numbers: int) -> list[Source]:
    return [(address(number), 60, 1) for number in numbers]


def test_a_source_is_new_once_a_day() -> None:
    today = DaySummary(20_000)
    assert today.add(TrafficSample(sources=[listing(1, 2)]), {}) == [address(1), address(2)]
    assert today.add(TrafficSample(sources=[listing(2, 3)]), {}) == [address(3)]
    assert today.add(TrafficSample(), {}) == []
    assert today.sources == 3
    # The next day is another one.
    assert DaySummary(20_001).sources == 0
    assert DaySummary(20_001).add(TrafficSample(sources=[listing(2)]), {}) == [address(2)]


def test_a_source_that_two_listings_have_is_one() -> None:
    today = DaySummary(20_000)
    v6 = [(bytes(16), 60, 1)]
    assert today.add(TrafficSample(sources=[listing(1), v6, listing(1)]), {}) == [address(1), bytes(16)]
    assert today.sources == 2


def test_who_replied_is_a_source_and_replies_have_the_port_they_came_from() -> None:
    today = DaySummary(20_000)
    drain = TrafficSample(sources=[listing(1)], repliers=[listing(1, 2)])
    assert today.add(drain, {(6, 443): 1, (REPLY, 443): 5, (REPLY, 80): 3, (REPLY, UNATTRIBUTED): 2}) == [
        address(1),
        address(2),
    ]
    assert today.sources == 2
    assert today.top_ports(3) == [((REPLY, 443), 5), ((REPLY, 80), 3), ((REPLY, UNATTRIBUTED), 2)]


def test_what_is_known_of_a_day_is_gone_on_with() -> None:
    today = DaySummary(20_000, [address(1)], {(6, 23): 5})
    assert today.day == 20_000
    assert today.add(TrafficSample(sources=[listing(1, 2)]), {(6, 23): 2, (17, 53): 9}) == [address(2)]
    assert today.sources == 2
    assert today.top_ports(10) == [((17, 53), 9), ((6, 23), 7)]


def test_what_was_given_at_the_beginning_is_not_changed() -> None:
    sources, ports = [address(1)], {(6, 23): 5}
    DaySummary(20_000, sources, ports).add(TrafficSample(sources=[listing(2)]), {(6, 23): 1})
    assert (sources, ports) == ([address(1)], {(6, 23): 5})


def test_the_busiest_ports_come_first_and_no_more_than_asked_for() -> None:
    today = DaySummary(0)
    today.add(TrafficSample(), {(6, port): port for port in range(1, 101)} | {(UNATTRIBUTED, UNATTRIBUTED): 1000})
    assert today.top_ports(3) == [((UNATTRIBUTED, UNATTRIBUTED), 1000), ((6, 100), 100), ((6, 99), 99)]
    assert today.top_ports(0) == []
    assert len(today.top_ports(1000)) == 101


def test_no_more_sources_are_remembered_than_there_is_room_for() -> None:
    today = DaySummary(0, map(address, range(MOST_SOURCES - 2)))
    # Those that find no room are no news either: they would be written to disk again and again.
    assert today.add(TrafficSample(sources=[listing(*range(MOST_SOURCES - 3, MOST_SOURCES + 100))]), {}) == [
        address(MOST_SOURCES - 2),
        address(MOST_SOURCES - 1),
    ]
    assert today.add(TrafficSample(sources=[listing(MOST_SOURCES + 1)]), {}) == []
    assert today.sources == MOST_SOURCES


def test_of_too_many_ports_the_busiest_are_kept() -> None:
    today = DaySummary(0)
    for start in range(0, 65_536, 1024):
        today.add(
            TrafficSample(), {(6, port): 1 for port in range(start, start + 1024)} | {(6, 23): 10, (17, 53): 1000}
        )
        assert len(today.top_ports(10**6)) <= PORTS
    assert [place for place, _ in today.top_ports(2)] == [(17, 53), (6, 23)]
    assert today.top_ports(1) == [((17, 53), 64_000)]


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.lists(st.lists(st.integers(0, 30), unique=True), max_size=2),
            st.dictionaries(st.tuples(st.sampled_from([1, 6, 17]), st.integers(0, 5)), st.integers(1, 1000)),
        )
    )
)
def test_sources_are_distinct_and_packets_are_summed(
    drawn: list[tuple[list[list[int]], dict[tuple[int, int], int]]],
) -> None:
    today, fresh, packets = DaySummary(0), list[bytes](), Counter[tuple[int, int]]()
    for sources, ports in drawn:
        fresh += today.add(TrafficSample(sources=[listing(*each) for each in sources]), ports)
        for (protocol, port), number in ports.items():
            packets[protocol, port if protocol in WITH_PORTS or protocol == UNATTRIBUTED else 0] += number
    assert len(fresh) == len(set(fresh)) == today.sources
    assert set(fresh) == {address(number) for sources, _ in drawn for each in sources for number in each}
    assert dict(today.top_ports(100)) == dict(packets)
    assert [count for _, count in today.top_ports(100)] == sorted(packets.values(), reverse=True)
