"""What is not on disk yet: nothing of it is lost or kept twice, whatever the disk does, and it is bounded."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from sikkerguard.core.traffic.records import PendingTraffic


def key(number: int) -> tuple[bytes, int, int]:
    return number.to_bytes(4, "big"), 6, 22


class Disk:
    """What was written."""

    def __init__(self) -> None:
        self.flows = Counter[tuple[bytes, int, int]]()
        self.overflow = 0
        self.sources = list[bytes]()

    def write(self, batch: PendingTraffic) -> None:
        self.flows.update(batch.flows)
        self.overflow += batch.overflow
        self.sources = [*([] if batch.new_day else self.sources), *batch.sources]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 9), st.sampled_from(["", "kept", "refused", "turned"]))))
def test_every_packet_is_kept_once(steps: list[tuple[int, int, str]]) -> None:
    pending, disk, counted = PendingTraffic(), Disk(), 0
    added = list[bytes]()
    for number, packets, what in steps:
        address = key(number)[0]
        pending = pending.add([(key(number), packets)], 1, [] if address in added else [address])
        if address not in added:
            added.append(address)
        counted += packets + 1
        if what == "turned":
            pending = pending.begin_day()
            added.clear()
        if what in ("kept", "refused"):
            batch, pending = pending.split(2)
            pending = pending.add([(key(9), 1)], 0, [])
            counted += 1
            if what == "refused":
                pending = pending.restore(batch)
            else:
                disk.write(batch)
    while pending.sources or pending.flows or pending.new_day:
        batch, pending = pending.split(2)
        disk.write(batch)
    assert disk.flows.total() + disk.overflow + pending.overflow == counted
    assert disk.sources == added


def test_it_is_bounded_and_the_largest_stay() -> None:
    pending = PendingTraffic()
    for first in range(0, 40_000, 1000):
        pending = pending.add([(key(number), 1 + (number == 7)) for number in range(first, first + 1000)], 0, [])
    assert len(pending.flows) <= 16_384
    assert pending.flows[key(7)] == 2
    assert sum(pending.flows.values()) + pending.overflow == 40_001


def test_what_is_refused_by_a_day_that_is_over_names_no_source_of_the_next_one() -> None:
    batch, pending = PendingTraffic().add([(key(1), 5)], 0, [key(1)[0]]).split(10)
    pending = pending.begin_day().add([(key(2), 3)], 0, [key(2)[0]]).restore(batch)
    assert (pending.flows, pending.sources, pending.new_day) == ({key(1): 5, key(2): 3}, (key(2)[0],), True)
