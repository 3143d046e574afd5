"""The sources and ports of a day, within bounds."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from sikkerguard.core.ports.protocols import REPLY, WITH_PORTS
from sikkerguard.core.traffic.day_summary import MAX_SOURCES, DaySummary, SourceSet
from sikkerguard.core.traffic.sample import UNATTRIBUTED, TrafficSample

# Ports that are told apart.
PORTS = 4096
Ports = dict[tuple[int, int], int]


def address(number: int) -> bytes:
    return number.to_bytes(4, "big")


def sample(*sources: int, ports: Ports | None = None) -> TrafficSample:
    return TrafficSample(sources=list(map(address, sources)), ports=ports or {})


class Day:
    """A day, and what is added to it one after the other."""

    def __init__(self, summary: DaySummary | None = None) -> None:
        self.summary = summary or DaySummary(20_000)

    def add(self, *sources: int, ports: Ports | None = None) -> tuple[bytes, ...]:
        """The sources that are new today."""
        self.summary, new = self.summary.add(sample(*sources, ports=ports))
        return new


def test_a_source_is_new_once_a_day() -> None:
    day = Day()
    assert day.add(1, 2) == (address(1), address(2))
    assert day.add(2, 3) == (address(3),)
    assert day.add() == ()
    assert len(day.summary.sources) == 3
    # The next day is another one.
    assert Day(DaySummary(20_001)).add(2) == (address(2),)


def test_a_source_that_comes_twice_is_one() -> None:
    summary, new = DaySummary(20_000).add(TrafficSample(sources=[address(1), bytes(16), address(1)]))
    assert new == (address(1), bytes(16))
    assert len(summary.sources) == 2


def test_replies_have_the_port_they_came_from() -> None:
    day = Day()
    day.add(1, 2, ports={(6, 443): 1, (REPLY, 443): 5, (REPLY, 80): 3, (REPLY, UNATTRIBUTED): 2})
    assert day.summary.top_ports(3) == (((REPLY, 443), 5), ((REPLY, 80), 3), ((REPLY, UNATTRIBUTED), 2))


def test_what_is_known_of_a_day_is_gone_on_with() -> None:
    day = Day(DaySummary().join(20_000, [address(1)], {(6, 23): 5}))
    assert day.summary.day == 20_000
    assert day.add(1, 2, ports={(6, 23): 2, (17, 53): 9}) == (address(2),)
    day.summary = day.summary.join(20_000, [address(2), address(3)], {(6, 23): 1, (6, 22): 1})
    assert len(day.summary.sources) == 3
    assert day.summary.top_ports(10) == (((17, 53), 9), ((6, 23), 8), ((6, 22), 1))


def test_what_was_known_before_a_step_is_not_changed_by_it() -> None:
    before = DaySummary(20_000)
    for number in range(3000):
        after, _ = before.add(sample(number, ports={(6, 23): 1}))
        assert (len(before.sources), dict(before.ports).get((6, 23), 0)) == (number, number)
        before = after


def test_the_busiest_ports_come_first_and_no_more_than_asked_for() -> None:
    day = Day()
    day.add(ports={(6, port): port for port in range(1, 101)} | {(UNATTRIBUTED, UNATTRIBUTED): 1000})
    assert day.summary.top_ports(3) == (((UNATTRIBUTED, UNATTRIBUTED), 1000), ((6, 100), 100), ((6, 99), 99))
    assert day.summary.top_ports(0) == ()
    assert len(day.summary.top_ports(1000)) == 101


def test_no_more_sources_are_remembered_than_there_is_room_for() -> None:
    day = Day(DaySummary().join(20_000, map(address, range(MAX_SOURCES - 2)), {}))
    # Those that find no room are no news either: they would be written to disk again and again.
    assert day.add(*range(MAX_SOURCES - 3, MAX_SOURCES + 100)) == (address(MAX_SOURCES - 2), address(MAX_SOURCES - 1))
    assert day.add(MAX_SOURCES + 1) == ()
    assert len(day.summary.sources) == MAX_SOURCES


def test_of_too_many_ports_the_busiest_are_kept() -> None:
    day = Day()
    for start in range(0, 65_536, 1024):
        day.add(ports={(6, port): 1 for port in range(start, start + 1024)} | {(6, 23): 10, (17, 53): 1000})
        assert len(day.summary.ports) <= PORTS
    assert [port for port, _ in day.summary.top_ports(2)] == [(17, 53), (6, 23)]
    assert day.summary.top_ports(1) == (((17, 53), 64_000),)


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 3000)), max_size=12))
def test_a_set_of_sources_has_each_once_and_copies_little(drawn: list[tuple[int, int]]) -> None:
    found, expected = SourceSet(), set[bytes]()
    for first, number in drawn:
        added = [address(each) for each in range(first, first + number)]
        older = found.older
        found, new = found.add(added)
        assert set(new) == set(added) - expected
        expected |= set(added)
        assert len(found) == len(expected)
        assert found.older | found.recent == expected
        assert not found.older & found.recent
        # What is copied at each step is small, or was not for a while and is copied once.
        assert found.older is older or len(found.older) > len(older) + len(older) // 8
        assert len(found.recent) <= max(1024, len(found.older) // 8)


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(0, 30), max_size=20),
            st.dictionaries(st.tuples(st.sampled_from([1, 6, 17]), st.integers(0, 5)), st.integers(1, 1000)),
        )
    )
)
def test_sources_are_distinct_and_packets_are_summed(drawn: list[tuple[list[int], Ports]]) -> None:
    day, new, packets = Day(), list[bytes](), Counter[tuple[int, int]]()
    for sources, ports in drawn:
        new += day.add(*sources, ports=ports)
        for (protocol, port), number in ports.items():
            packets[protocol, port if protocol in WITH_PORTS or protocol == UNATTRIBUTED else 0] += number
    assert len(new) == len(set(new)) == len(day.summary.sources)
    assert set(new) == {address(number) for sources, _ in drawn for number in sources}
    assert dict(day.summary.top_ports(100)) == dict(packets)
    assert [count for _, count in day.summary.top_ports(100)] == sorted(packets.values(), reverse=True)
