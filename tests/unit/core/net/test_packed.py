"""Packed records and ranges against the plain objects that they stand for."""

from __future__ import annotations

import tracemalloc
from bisect import bisect_left, bisect_right
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sikkerguard.core.net.family import Family
from sikkerguard.core.net.networks import Networks
from sikkerguard.core.net.packed import PIECE, Prefix, Ranges, Runs, divided, pack, pieces, position
from tests.unit.core.net.test_intervals import addresses, families, prefixes, some_networks

if TYPE_CHECKING:
    from collections.abc import Callable

steady = settings(deadline=None, max_examples=150)
# Whatever is done with packed records, it must not need as much as they would take as objects.
OBJECT = 40  # bytes, of the smallest

ends = st.one_of(st.none(), st.integers(-12, 12))
slices = st.builds(slice, ends, ends, st.one_of(st.none(), st.integers(-4, 4).filter(bool)))


def some_prefixes(family: Family) -> st.SearchStrategy[tuple[Prefix, ...]]:
    """Ascending; they may overlap, and come twice."""
    return st.lists(prefixes(family), max_size=10).map(lambda found: tuple(sorted(found)))


def outcome(action: Callable[[], Any]) -> Any:
    """What it gives, or the kind of error."""
    try:
        return action()
    except (IndexError, ValueError) as error:
        return type(error)


@steady
@given(st.data(), families)
def test_ranges_are_what_the_tuple_of_them_is(data: st.DataObject, family: Family) -> None:
    plain = data.draw(some_prefixes(family))
    ranges = Ranges.of(family, plain)

    assert tuple(ranges) == plain
    assert all(type(prefix) is Prefix for prefix in ranges)
    assert (len(ranges), bool(ranges)) == (len(plain), bool(plain))
    assert len(ranges.packed) == len(plain) * (family.size + 1)
    assert tuple(reversed(ranges)) == plain[::-1]
    assert ranges == plain
    assert plain == ranges
    assert hash(ranges) == hash(plain)
    assert Ranges.of(family, ranges) is ranges
    assert Ranges(family, ranges.packed) == ranges
    assert [prefix.last(family) for prefix in ranges] == [prefix.last(family) for prefix in plain]

    at = data.draw(st.integers(-12, 12))
    assert outcome(lambda: ranges[at]) == outcome(lambda: plain[at])
    part = data.draw(slices)
    assert isinstance(ranges[part], Ranges)
    assert ranges[part] == plain[part]

    other = data.draw(some_prefixes(family))
    assert (ranges == other) == (plain == other)
    assert (ranges == Ranges.of(family, other)) == (plain == other)
    for prefix in (*plain, *other, data.draw(prefixes(family))):
        assert (prefix in ranges) == (prefix in plain)
        assert ranges.count(prefix) == plain.count(prefix)
        assert outcome(partial(ranges.index, prefix)) == outcome(partial(plain.index, prefix))
        assert bisect_left(ranges, prefix) == bisect_left(plain, prefix)
        assert bisect_right(ranges, prefix) == bisect_right(plain, prefix)


def test_ranges_of_other_families_and_other_things_differ() -> None:
    v4 = Ranges.of(Family.V4, [Prefix(0, 8)] * 17)
    v6 = Ranges(Family.V6, v4.packed)
    assert v4 != v6
    assert v4[:0] == v6[:0] == ()
    assert v4 != list(v4)
    assert "Ranges" in repr(v4)


@pytest.mark.parametrize("family", Family)
def test_bytes_that_are_half_a_range_are_refused(family: Family) -> None:
    with pytest.raises(ValueError, match="no whole number of ranges"):
        Ranges(family, bytes(family.size))


@steady
@given(st.data(), families)
def test_the_span_is_of_the_ranges_that_reach_into_it(data: st.DataObject, family: Family) -> None:
    ranges = data.draw(some_networks(family)).ranges
    first, last = sorted([data.draw(addresses(family)), data.draw(addresses(family))])
    inside = [at for at, each in enumerate(ranges) if each.first <= last and each.last(family) >= first]
    low, high = ranges.span(first, last)
    assert list(range(low, high)) == inside


@steady
@given(st.data(), families)
def test_the_first_addresses_are_grouped_by_length(data: st.DataObject, family: Family) -> None:
    plain = data.draw(some_prefixes(family))
    expected: dict[int, bytes] = {}
    for first, length in plain:
        expected[length] = expected.get(length, b"") + first.to_bytes(family.size, "big")
    assert Ranges.of(family, plain).by_length() == expected


def records_of(size: int) -> st.SearchStrategy[list[bytes]]:
    """Records of which many are alike."""
    number = st.one_of(st.integers(0, 30), st.integers(0, (1 << 8 * size) - 1))
    return st.lists(number.map(lambda each: each.to_bytes(size, "big")), max_size=40)


sizes = st.sampled_from([4, 5, 16, 17])


@steady
@given(st.data(), sizes)
def test_a_record_is_looked_for_as_in_a_list(data: st.DataObject, size: int) -> None:
    row = sorted(set(data.draw(records_of(size))))
    (record,) = data.draw(records_of(size).filter(bool))[:1]
    low = data.draw(st.integers(0, bisect_left(row, record)))
    assert position(b"".join(row), size, record, low) == bisect_left(row, record)
    assert position(b"".join(row), size, record, low, behind=True) == bisect_right(row, record)


@steady
@given(st.data(), sizes)
def test_runs_become_one_row_with_each_record_once(data: st.DataObject, size: int) -> None:
    groups = data.draw(st.lists(records_of(size), max_size=6))
    runs = Runs(size)
    for group in groups:
        if data.draw(st.booleans()):
            runs.add(group)
        else:
            runs.add_row(b"".join(sorted(set(group))))
    row = b"".join(sorted({record for group in groups for record in group}))
    assert runs.blob() == row
    assert runs.blob() == row


@pytest.mark.parametrize("size", [4, 17])
@pytest.mark.parametrize("factor", [1, -1, 0x9E3779B1, 0], ids=["ascending", "descending", "in no order", "all alike"])
def test_a_great_many_records_are_sorted_in_little_room(size: int, factor: int) -> None:
    number = 100_000
    tracemalloc.start()
    runs = Runs(size)
    for start in range(0, number, 5_000):
        group = [(each * factor % (1 << 24)).to_bytes(size, "big") for each in range(start, start + 5_000)]
        runs.add(group)
        runs.add(group[::7])
    row = runs.blob()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert runs.count == number + 20 * 715
    assert row == b"".join(sorted({(each * factor % (1 << 24)).to_bytes(size, "big") for each in range(number)}))
    # The runs, the row in parts and as a whole, and the objects of a few pieces.
    assert peak < 3.5 * size * number + 6 * PIECE * (OBJECT + size)


@steady
@given(st.data(), sizes)
def test_a_row_is_divided_by_what_another_has(data: st.DataObject, size: int) -> None:
    row, known = (sorted(set(data.draw(records_of(size)))) for _ in range(2))
    kept, left = divided(b"".join(row), b"".join(known), size)
    assert kept == b"".join(record for record in row if record in known)
    assert left == b"".join(record for record in row if record not in known)


def test_a_row_that_did_not_change_is_not_there_twice() -> None:
    row = b"".join(each.to_bytes(4, "big") for each in range(3 * PIECE))
    kept, left = divided(row, row, 4)
    assert kept is row
    assert left == b""
    kept, left = divided(row, b"", 4)
    assert left is row
    assert kept == b""


def test_a_few_records_are_looked_for_among_a_great_many_in_little_room() -> None:
    known = b"".join(each.to_bytes(4, "big") for each in range(0, 600_000, 2))
    few = b"".join(each.to_bytes(4, "big") for each in range(0, 600_000, 1_000)) + (599_999).to_bytes(4, "big")
    tracemalloc.start()
    kept, left = divided(few, known, 4)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (kept, left) == (few[:-4], few[-4:])
    assert peak < len(known) + 6 * PIECE * OBJECT


@pytest.mark.parametrize("size", [4, 16])
def test_pieces_are_all_of_it(size: int) -> None:
    blob = b"".join(each.to_bytes(size, "big") for each in range(2 * PIECE + 5))
    found = list(pieces(blob, size))
    assert [len(piece) for piece in found] == [PIECE, PIECE, 5]
    assert b"".join(record for piece in found for record in piece) == blob
    assert list(pieces(b"", size)) == []


def test_networks_without_ranges_have_none_of_either_family() -> None:
    for family in Family:
        empty = Networks(family)
        assert (len(empty), len(empty.ranges), empty.find(0), empty.overlaps(0, 1)) == (0, 0, None, False)
        assert empty == Networks(family, b"", Ranges(family))


@steady
@given(st.data(), families)
def test_a_range_is_packed_as_the_list_on_disk_has_it(data: st.DataObject, family: Family) -> None:
    prefix = data.draw(prefixes(family))
    assert pack(family, *prefix) == prefix.first.to_bytes(family.size, "big") + bytes([prefix.length])
