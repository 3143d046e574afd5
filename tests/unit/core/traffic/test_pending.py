"""What is not on disk yet: nothing of it is lost or kept twice, whatever the disk does, and it is bounded."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st
from sikkerguard.core.traffic.unsaved import Unsaved


def key(number: int) -> tuple[bytes, int, int]:
    return number.to_bytes(4, "big"), 6, 22


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 9), st.sampled_from(["", "kept", "refused", "turned"]))))
def test_every_packet_is_kept_once(steps: list[tuple[int, int, str]]) -> None:
    unsaved, disk, fresh = Unsaved(), Counter[tuple[bytes, int, int]](), list[bytes]()
    unfiled, counted = 0, 0
    added = list[bytes]()
    for number, packets, what in steps:
        address = key(number)[0]
        unsaved.add([(key(number), packets)], 1, [] if address in added else [address])
        if address not in added:
            added.append(address)
        counted += packets + 1
        if what == "turned":
            unsaved.turn_over()
            added.clear()
        if what in ("kept", "refused"):
            taken = unsaved.take(2)
            unsaved.add([(key(9), 1)], 0, [])
            counted += 1
            if what == "refused":
                unsaved.give_back(taken)
            else:
                disk += taken.blocked
                unfiled += taken.unfiled
                fresh = [] if taken.new_day else fresh
                fresh += taken.fresh
    while unsaved.fresh or unsaved.blocked or unsaved.new_day:
        taken = unsaved.take(2)
        disk += taken.blocked
        unfiled += taken.unfiled
        fresh = ([] if taken.new_day else fresh) + taken.fresh
    assert disk.total() + unfiled + unsaved.unfiled == counted
    assert fresh == added


def test_it_is_bounded_and_the_largest_stay() -> None:
    unsaved = Unsaved()
    for number in range(40_000):
        unsaved.add([(key(number), 1 + (number == 7))], 0, [])
    assert len(unsaved.blocked) <= 16_384
    assert unsaved.blocked[key(7)] == 2
    assert unsaved.blocked.total() + unsaved.unfiled == 40_001
