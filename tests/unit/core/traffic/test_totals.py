"""The totals: the whole, its parts, and the day."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sikkerguard.core.net.family import Family
from sikkerguard.core.traffic.sample import NOTHING, PacketCount, TrafficSample
from sikkerguard.core.traffic.totals import Totals, day_of

DAY = 86_400
COUNTERS = {Family.V4: PacketCount(100, 6000), Family.V6: PacketCount(7, 420)}


def sample(
    packets: int = 0,
    size: int = 0,
    counters: dict[Family, PacketCount] | None = None,
    attributed: int = 0,
    replies: int = 0,
) -> TrafficSample:
    return TrafficSample(PacketCount(packets, size), counters or {}, attributed=attributed, replies=replies)


def test_a_sample_is_added_to_the_whole_and_to_its_day() -> None:
    first = Totals().add(sample(100, 6000, COUNTERS, 90), 20_000 * DAY)
    assert first == Totals(PacketCount(100, 6000), 20_000, PacketCount(100, 6000), 90, 0, COUNTERS)
    moved = {Family.V4: PacketCount(103, 6180)}
    second = first.add(sample(3, 180, moved, 3), 20_001 * DAY - 0.001)
    assert second == Totals(PacketCount(103, 6180), 20_000, PacketCount(103, 6180), 93, 0, moved)
    third = second.add(sample(5, 300, COUNTERS, 5), 20_001 * DAY)
    assert third == Totals(PacketCount(108, 6480), 20_001, PacketCount(5, 300), 98, 0, COUNTERS)


def test_a_sample_of_nothing_begins_a_day_and_changes_no_total() -> None:
    totals = Totals(PacketCount(100, 6000), 20_000, PacketCount(100, 6000), 90, 80, COUNTERS)
    assert totals.add(sample(0, 0, COUNTERS), 20_001 * DAY) == replace(totals, day=20_001, dropped_today=NOTHING)


def test_a_clock_put_back_over_midnight_does_not_bring_yesterday_back() -> None:
    totals = Totals().add(sample(1000, 60_000, attributed=1000), 20_000 * DAY + 50)
    # As a host does that has found out the time, and again.
    totals = totals.add(sample(), 20_000 * DAY - 2)
    assert not totals.is_over(20_000 * DAY - 2)
    totals = totals.add(sample(1, 60, attributed=1), 20_000 * DAY + 51)
    assert (totals.day, totals.dropped_today) == (20_000, PacketCount(1001, 60_060))


@pytest.mark.parametrize("days", [-3000, -2, 1, 2, 3000])
def test_a_clock_that_was_wrong_by_more_begins_a_day(days: int) -> None:
    totals = Totals().add(sample(1000, 60_000, attributed=1000), 20_000 * DAY)
    assert totals.is_over((20_000 + days) * DAY)
    totals = totals.add(sample(1, 60, attributed=1), (20_000 + days) * DAY)
    assert (totals.day, totals.dropped_today, totals.dropped) == (
        20_000 + days,
        PacketCount(1, 60),
        PacketCount(1001, 60_060),
    )


def test_a_sample_that_knows_no_counters_leaves_them() -> None:
    # As of sets that a dead process had changed and not read.
    totals = Totals(PacketCount(100, 6000), 20_000, PacketCount(100, 6000), 90, 80, COUNTERS)
    assert totals.add(sample(attributed=7), 20_000 * DAY) == replace(totals, attributed=97)


def test_replies_are_summed_over_the_days() -> None:
    totals = Totals().add(sample(10, 600, attributed=10, replies=4), 20_000 * DAY)
    assert totals.add(sample(5, 300, attributed=5, replies=3), 20_001 * DAY).replies == 7


@pytest.mark.parametrize(("dropped", "attributed", "unattributed"), [(0, 0, 0), (10, 7, 3), (10, 10, 0), (10, 12, 0)])
def test_what_is_not_attributed_is_the_difference(dropped: int, attributed: int, unattributed: int) -> None:
    # Packets that were on their way to the DROP rule are attributed before it counts them.
    assert Totals(dropped=PacketCount(dropped, 0), attributed=attributed).unattributed() == unattributed


@settings(deadline=None)
@given(st.integers(0, 4_000_000_000), st.sampled_from([0.0, 0.25]))
def test_days_are_those_of_utc(seconds: int, part: float) -> None:
    days = timedelta(days=day_of(seconds + part))
    assert datetime.fromtimestamp(0, UTC).date() + days == datetime.fromtimestamp(seconds, UTC).date()


samples = st.tuples(st.integers(0, 10**6), st.integers(0, 10**9), st.integers(0, 10**6), st.integers(0, 2 * DAY))


@settings(deadline=None)
@given(st.lists(samples))
def test_nothing_is_lost_from_the_totals(drawn: list[tuple[int, int, int, int]]) -> None:
    totals, now = Totals(logged=17), 20_000 * DAY
    days: dict[int, list[PacketCount]] = {}
    for packets, size, attributed, pause in drawn:
        now += pause
        days.setdefault(now // DAY, []).append(PacketCount(packets, size))
        totals = totals.add(sample(packets, size, attributed=min(attributed, packets)), now)
        assert totals.day == now // DAY
        assert totals.dropped_today == PacketCount(*map(sum, zip(*days[now // DAY], strict=True)))
    every = [count for counts in days.values() for count in counts]
    assert totals.dropped == PacketCount(sum(count.packets for count in every), sum(count.bytes for count in every))
    assert totals.attributed + totals.unattributed() == totals.dropped.packets
    assert totals.logged == 17


counts = st.builds(PacketCount, st.integers(0, 1000), st.integers(0, 60_000))


@given(counts, counts, st.integers(0, 1000), st.integers(0, 1000))
def test_totals_of_two_runs_are_joined(earlier: PacketCount, later: PacketCount, before: int, now: int) -> None:
    """What the counter says of the time between, where it went on, is in neither."""
    one = Totals(earlier, 5, earlier, earlier.packets, earlier.packets, {Family.V4: PacketCount(before, 60 * before)})
    other = Totals(later, 5, later, later.packets, 0, {Family.V4: PacketCount(now, 60 * now)})
    joined = other.join(one)
    dropped = max(later.packets, now - before)
    assert joined.dropped.packets == joined.dropped_today.packets == earlier.packets + dropped
    assert joined.attributed == earlier.packets + later.packets
    assert joined.unattributed() == dropped - later.packets
    assert joined.counters == other.counters
    assert replace(other, day=6).join(one).dropped_today.packets == dropped
    assert Totals().join(one) == one
