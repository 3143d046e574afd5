"""The account: the whole, its parts, and the day."""

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


def test_a_drain_is_added_to_the_whole_and_to_its_day() -> None:
    first = Totals().with_drain(TrafficSample(PacketCount(100, 6000), COUNTERS), 90, 20_000 * DAY)
    assert first == Totals(PacketCount(100, 6000), 20_000, PacketCount(100, 6000), 90, 0, COUNTERS)
    moved = {Family.V4: PacketCount(103, 6180)}
    second = first.with_drain(TrafficSample(PacketCount(3, 180), moved), 3, 20_001 * DAY - 0.001)
    assert second == Totals(PacketCount(103, 6180), 20_000, PacketCount(103, 6180), 93, 0, moved)
    third = second.with_drain(TrafficSample(PacketCount(5, 300), COUNTERS), 5, 20_001 * DAY)
    assert third == Totals(PacketCount(108, 6480), 20_001, PacketCount(5, 300), 98, 0, COUNTERS)


def test_a_drain_of_nothing_begins_a_day_and_changes_no_total() -> None:
    ledger = Totals(PacketCount(100, 6000), 20_000, PacketCount(100, 6000), 90, 80, COUNTERS)
    assert ledger.with_drain(TrafficSample(NOTHING, COUNTERS), 0, 20_001 * DAY) == replace(
        ledger, day=20_001, dropped_today=NOTHING
    )


def test_a_clock_put_back_over_midnight_does_not_bring_yesterday_back() -> None:
    ledger = Totals().with_drain(TrafficSample(PacketCount(1000, 60_000)), 1000, 20_000 * DAY + 50)
    # As a host does that has found out the time, and again.
    ledger = ledger.with_drain(TrafficSample(), 0, 20_000 * DAY - 2)
    assert not ledger.is_over(20_000 * DAY - 2)
    ledger = ledger.with_drain(TrafficSample(PacketCount(1, 60)), 1, 20_000 * DAY + 51)
    assert (ledger.day, ledger.dropped_today) == (20_000, PacketCount(1001, 60_060))


@pytest.mark.parametrize("days", [-3000, -2, 1, 2, 3000])
def test_a_clock_that_was_wrong_by_more_begins_a_day(days: int) -> None:
    ledger = Totals().with_drain(TrafficSample(PacketCount(1000, 60_000)), 1000, 20_000 * DAY)
    assert ledger.is_over((20_000 + days) * DAY)
    ledger = ledger.with_drain(TrafficSample(PacketCount(1, 60)), 1, (20_000 + days) * DAY)
    assert (ledger.day, ledger.dropped_today, ledger.dropped) == (
        20_000 + days,
        PacketCount(1, 60),
        PacketCount(1001, 60_060),
    )


def test_a_drain_that_knows_no_counters_leaves_them() -> None:
    # As of sets that a dead process had changed and not read.
    ledger = Totals(PacketCount(100, 6000), 20_000, PacketCount(100, 6000), 90, 80, COUNTERS)
    assert ledger.with_drain(TrafficSample(), 7, 20_000 * DAY) == replace(ledger, named=97)


def test_replies_are_summed_over_the_days() -> None:
    ledger = Totals().with_drain(TrafficSample(PacketCount(10, 600)), 10, 20_000 * DAY, 4)
    assert ledger.with_drain(TrafficSample(PacketCount(5, 300)), 5, 20_001 * DAY, 3).replies == 7


@pytest.mark.parametrize(("dropped", "named", "unnamed"), [(0, 0, 0), (10, 7, 3), (10, 10, 0), (10, 12, 0)])
def test_what_is_not_named_is_the_difference(dropped: int, named: int, unnamed: int) -> None:
    # Packets that were on their way to the DROP rule are named before it counts them.
    assert Totals(dropped=PacketCount(dropped, 0), named=named).unnamed() == unnamed


@settings(deadline=None)
@given(st.integers(0, 4_000_000_000), st.sampled_from([0.0, 0.25]))
def test_days_are_those_of_utc(seconds: int, part: float) -> None:
    days = timedelta(days=day_of(seconds + part))
    assert datetime.fromtimestamp(0, UTC).date() + days == datetime.fromtimestamp(seconds, UTC).date()


drains = st.tuples(st.integers(0, 10**6), st.integers(0, 10**9), st.integers(0, 10**6), st.integers(0, 2 * DAY))


@settings(deadline=None)
@given(st.lists(drains))
def test_nothing_is_lost_from_the_account(drawn: list[tuple[int, int, int, int]]) -> None:
    ledger, now = Totals(told=17), 20_000 * DAY
    days: dict[int, list[PacketCount]] = {}
    for packets, octets, named, pause in drawn:
        now += pause
        days.setdefault(now // DAY, []).append(PacketCount(packets, octets))
        ledger = ledger.with_drain(TrafficSample(PacketCount(packets, octets)), min(named, packets), now)
        assert ledger.day == now // DAY
        assert ledger.dropped_today == PacketCount(*map(sum, zip(*days[now // DAY], strict=True)))
    every = [count for counts in days.values() for count in counts]
    assert ledger.dropped == PacketCount(sum(count.packets for count in every), sum(count.octets for count in every))
    assert ledger.named + ledger.unnamed() == ledger.dropped.packets
    assert ledger.told == 17


counts = st.builds(PacketCount, st.integers(0, 1000), st.integers(0, 60_000))


@given(counts, counts, st.integers(0, 1000), st.integers(0, 1000))
def test_two_ledgers_are_one_account(earlier: PacketCount, later: PacketCount, stood: int, stands: int) -> None:
    """What the counter says of the time between, where it went on, is in neither."""
    one = Totals(earlier, 5, earlier, earlier.packets, earlier.packets, {Family.V4: PacketCount(stood, 60 * stood)})
    other = Totals(later, 5, later, later.packets, 0, {Family.V4: PacketCount(stands, 60 * stands)})
    joined = other.after(one)
    dropped = max(later.packets, stands - stood)
    assert joined.dropped.packets == joined.dropped_today.packets == earlier.packets + dropped
    assert joined.named == earlier.packets + later.packets
    assert joined.unnamed() == dropped - later.packets
    assert joined.counters == other.counters
    assert replace(other, day=6).after(one).dropped_today.packets == dropped
    assert Totals().after(one) == one
