"""Counting as a pure step: what comes out of it adds up, and what went in is as it was."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from sikkerguard.core.net.family import Family
from sikkerguard.core.ports.protocols import REPLY
from sikkerguard.core.traffic.counting import (
    Memory,
    apply,
    finish,
    join,
    restore_pending,
    resume,
    summarize,
    take_pending,
)
from sikkerguard.core.traffic.records import SavedTraffic
from sikkerguard.core.traffic.sample import NOTHING, FlowKey, PacketCount, TrafficSample, TrafficStats
from sikkerguard.core.traffic.totals import Totals

DAY = 86_400
# Noon of a day.
NOON = 20_000 * DAY + DAY // 2
COUNTERS = {Family.V4: PacketCount(100, 6000)}


def address(number: int) -> bytes:
    return number.to_bytes(4, "big")


def sample(
    flows: dict[FlowKey, int], nameless: int = 0, counters: dict[Family, PacketCount] | None = None
) -> TrafficSample:
    """All packets of these flows, and some whose source is not known."""
    packets = sum(flows.values()) + nameless
    ports: Counter[tuple[int, int]] = Counter()
    for (_, protocol, port), number in flows.items():
        ports[protocol, port] += number
    return TrafficSample(
        PacketCount(packets, 60 * packets),
        counters or {},
        tuple(flows.items()),
        sum(flows.values()),
        sum(number for (_, protocol, _), number in flows.items() if protocol == REPLY),
        ports,
        [source for source, _, _ in flows],
    )


def step(memory: Memory, given: TrafficSample, at: float = NOON) -> Memory:
    return apply(memory, given, {}, wall=at, monotonic=at)[0]


SSH = (address(1), 6, 22)


def test_what_is_known_and_what_is_to_be_kept_are_of_the_same_packets() -> None:
    memory, lines = apply(Memory(), sample({SSH: 5}, 2, COUNTERS), {}, wall=NOON, monotonic=0.0)
    assert [line.text for line in lines] == ["BLOCKED 0.0.0.1:22 (ssh) proto=TCP x5"]
    assert memory.is_unsaved
    seven = PacketCount(7, 420)
    assert memory.totals == Totals(seven, 20_000, seven, 5, 5, COUNTERS)
    assert summarize(memory, NOON) == TrafficStats(seven, seven, 2, 1, (((6, 22), 5),))
    memory, batch = take_pending(memory)
    assert (batch.flows, batch.overflow, batch.sources, batch.new_day) == ({SSH: 5}, 0, (address(1),), True)
    assert (batch.totals, batch.ports) == (memory.totals, (((6, 22), 5),))
    assert not memory.is_unsaved
    memory, lines = finish(memory, {})
    assert [line.text for line in lines] == ["BLOCKED sources that were not told apart x2"]
    assert (memory.totals.logged, memory.is_unsaved) == (7, True)


def test_nothing_new_is_nothing_to_be_kept() -> None:
    memory, _ = take_pending(step(Memory(), sample({SSH: 5}, counters=COUNTERS)))
    assert not step(memory, sample({}, counters=COUNTERS)).is_unsaved
    # A rule that was made anew has dropped nothing yet, and is known to read nothing.
    assert step(memory, sample({}, counters={Family.V4: NOTHING})).is_unsaved


def test_at_midnight_the_day_is_counted_anew() -> None:
    memory, _ = take_pending(step(Memory(), sample({SSH: 5})))
    memory = step(memory, sample({SSH: 1}), NOON + DAY)
    assert summarize(memory, NOON + DAY) == TrafficStats(PacketCount(6, 360), PacketCount(1, 60), 0, 1, (((6, 22), 1),))
    # Also where nothing was dropped on it yet.
    assert summarize(memory, NOON + 2 * DAY) == TrafficStats(PacketCount(6, 360))
    _, batch = take_pending(memory)
    assert (batch.flows, batch.sources, batch.new_day) == ({SSH: 1}, (address(1),), True)


def test_what_was_not_written_is_taken_again_with_what_came_meanwhile() -> None:
    memory, batch = take_pending(step(Memory(), sample({SSH: 5})))
    memory = step(memory, sample({SSH: 2, (address(2), 6, 22): 1}))
    memory = restore_pending(memory, batch)
    assert memory.is_unsaved
    _, again = take_pending(memory)
    assert again.flows == {SSH: 7, (address(2), 6, 22): 1}
    assert (again.sources, again.new_day) == ((address(1), address(2)), True)
    assert again.totals.dropped.packets == 8


def test_of_many_new_sources_some_are_taken_at_a_time() -> None:
    memory = step(Memory(), sample({(address(number), 6, 22): 1 for number in range(25_000)}))
    taken = list[int]()
    while memory.is_unsaved:
        memory, batch = take_pending(memory)
        taken.append(len(batch.sources))
    assert taken == [10_000, 10_000, 5_000]


def test_a_run_goes_on_from_what_was_saved() -> None:
    saved = SavedTraffic(
        Totals(PacketCount(50, 3000), 20_000, PacketCount(20, 1200), 45, 40, COUNTERS),
        frozenset({address(9)}),
        {(6, 23): 7},
    )
    memory = resume(saved)
    assert summarize(memory, NOON) == TrafficStats(PacketCount(50, 3000), PacketCount(20, 1200), 5, 1, (((6, 23), 7),))
    assert not memory.is_unsaved
    # Ten packets are on no line yet.
    memory, lines = finish(step(memory, sample({SSH: 5})), {})
    assert sum(line.packets for line in lines) == 10
    assert memory.totals.logged == 55


def test_what_was_saved_and_comes_late_is_joined() -> None:
    saved = SavedTraffic(
        Totals(PacketCount(50, 3000), 20_000, PacketCount(20, 1200), 45, 50),
        frozenset({address(1), address(9)}),
        {(6, 22): 7},
    )
    memory = join(step(Memory(), sample({SSH: 5})), saved)
    assert summarize(memory, NOON) == TrafficStats(PacketCount(55, 3300), PacketCount(25, 1500), 5, 2, (((6, 22), 12),))
    _, batch = take_pending(memory)
    # The day's sources that are on disk stay there.
    assert (batch.flows, batch.sources, batch.new_day) == ({SSH: 5}, (address(1),), False)
    assert finish(memory, {})[1] == ()
    # Those of another day do not count.
    other = replace(saved, totals=replace(saved.totals, day=19_999))
    assert summarize(join(step(Memory(), sample({SSH: 5})), other), NOON).sources == 1


flows = st.dictionaries(
    st.tuples(st.integers(1, 9).map(address), st.sampled_from([6, 17, REPLY]), st.integers(1, 3)), st.integers(1, 50)
)


@settings(max_examples=100)
@given(
    st.lists(st.tuples(flows, st.integers(0, 3), st.sampled_from([0, 1, 11, DAY]), st.sampled_from("ksr")), max_size=12)
)
def test_every_packet_is_shown_logged_and_kept_once_and_a_step_changes_nothing_behind_it(
    drawn: list[tuple[dict[FlowKey, int], int, int, str]],
) -> None:
    memory, at, logged = Memory(), float(NOON), 0
    kept: Counter[FlowKey] = Counter()
    sent: Counter[FlowKey] = Counter()
    overflow = nameless = 0
    for packets, unknown, pause, disk in drawn:
        at += pause
        given_sample = sample(packets, unknown)
        before, shown = memory, summarize(memory, at)
        memory, lines = apply(before, given_sample, {}, wall=at, monotonic=at)
        # The same again gives the same: nothing of what went in was changed.
        assert summarize(before, at) == shown
        assert apply(before, given_sample, {}, wall=at, monotonic=at) == (memory, lines)
        logged += sum(line.packets for line in lines)
        sent.update(packets)
        nameless += unknown
        if disk != "s":
            memory, batch = take_pending(memory)
            if disk == "r":
                memory = restore_pending(memory, batch)
            else:
                kept.update(batch.flows)
                overflow += batch.overflow
    memory, lines = finish(memory, {})
    logged += sum(line.packets for line in lines)
    memory, batch = take_pending(memory)
    kept.update(batch.flows)
    total = sent.total() + nameless
    assert memory.totals.dropped.packets == memory.totals.logged == batch.totals.logged == logged == total
    assert (kept, overflow + batch.overflow) == (sent, 0)
    assert memory.totals.unattributed() == nameless
    assert memory.totals.replies == sum(number for (_, protocol, _), number in sent.items() if protocol == REPLY)
