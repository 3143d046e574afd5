"""The guards: what a list may cover, and how much it may change at once."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sikkerguard.core.lists.coverage import UNITS, Extent
from sikkerguard.core.lists.size_guard import (
    CUT_OFF,
    HALVED,
    SHRUNK,
    Limits,
    Offer,
    SourceHistory,
    Version,
    check_change,
    check_coverage,
)
from sikkerguard.core.net.family import Family
from sikkerguard.errors import HeldBackError, ListError

DAY = 86400.0
NOW = 1_800_000_000.0
LIMITS = Limits(max_growth=2.0, max_coverage=0.02)
PERCENT_V4, PERCENT_V6 = UNITS[Family.V4] // 100, UNITS[Family.V6] // 100


def history(*entries: int, held: frozenset[str] = frozenset(), step: float = DAY, query: str = "same") -> SourceHistory:
    """Versions of these sizes, a day apart, the last one a day ago."""
    found = SourceHistory()
    for number, count in enumerate(entries):
        at = NOW - (len(entries) - number) * step
        found = found.taken(Version(at, Extent(count, count, 0)), query=query, terminated=True)
    return found.with_held_back(held)


def offer(
    entries: int,
    *,
    v4: int | None = None,
    v6: int = 0,
    short: int = 0,
    query: str = "same",
    terminated: bool = True,
    local: bool = False,
) -> Offer:
    extent = Extent(entries, entries if v4 is None else v4, v6)
    return Offer("SikkerAPI's list", extent, entries + short, short, query, terminated, local)


def check(offered: Offer, known: SourceHistory, *, accept: bool = False, limits: Limits = LIMITS) -> None:
    check_change(offered, known, limits, NOW, accept=accept)


def refusal(offered: Offer, known: SourceHistory, limits: Limits = LIMITS) -> ListError:
    with pytest.raises(ListError) as refused:
        check(offered, known, limits=limits)
    assert "--accept" in str(refused.value)
    check(offered, known, accept=True, limits=limits)
    return refused.value


def final(offered: Offer, known: SourceHistory, limits: Limits = LIMITS) -> str:
    """The words with which it is refused, however often it comes."""
    error = refusal(offered, known, limits)
    assert not isinstance(error, HeldBackError)
    every = frozenset({HALVED, SHRUNK, CUT_OFF})
    assert not isinstance(refusal(offered, known.with_held_back(every), limits), HeldBackError)
    return str(error)


def signs(offered: Offer, known: SourceHistory) -> frozenset[str]:
    """The signs for which it is held back, once."""
    error = refusal(offered, known)
    assert isinstance(error, HeldBackError)
    check(offered, known.with_held_back(error.suspicions))
    return error.suspicions


# Empty, too wide, too much


@pytest.mark.parametrize("known", [SourceHistory(), history(1000)])
@pytest.mark.parametrize("accept", [False, True])
@pytest.mark.parametrize("local", [False, True])
def test_an_empty_list_is_never_taken(known: SourceHistory, accept: bool, local: bool) -> None:
    with pytest.raises(ListError) as refused:
        check(offer(0, local=local), known, accept=accept)
    assert not isinstance(refused.value, HeldBackError)


@pytest.mark.parametrize(("short", "taken"), [(0, True), (10, True), (11, False)])
def test_more_than_one_wide_range_in_a_hundred_is_refused(short: int, taken: bool) -> None:
    for known in (SourceHistory(), history(990)):
        offered = offer(1000 - short, short=short)
        if taken:
            check(offered, known)
        else:
            assert "11 of 1000 entries" in final(offered, known)


@pytest.mark.parametrize("known", [SourceHistory(), history(2502)], ids=["first", "later"])
def test_what_covers_too_much_is_refused_the_first_time_too(known: SourceHistory) -> None:
    check(offer(2502, v4=PERCENT_V4 // 10), known)
    words = final(offer(2725, v4=223 << 24), known)
    assert "87.1% of IPv4, more than the 2% that are allowed" in words
    assert "SIKKER_MAX_COVERAGE" in words
    assert "3% of IPv6" in final(offer(2502, v6=3 * PERCENT_V6), known)


def test_the_bound_on_coverage_is_the_setting() -> None:
    exactly = offer(10, v4=2 * UNITS[Family.V4] // 100)
    check(exactly, SourceHistory())
    assert final(exactly, SourceHistory(), Limits(2.0, 0.019))
    check(offer(10, v4=86 * PERCENT_V4), SourceHistory(), limits=Limits(2.0, 1.0))
    with pytest.raises(ListError, match="All of what is listed"):
        check_coverage("All of what is listed together", Extent(4, 3 * PERCENT_V4, 0), LIMITS)


@pytest.mark.parametrize("family", Family)
def test_coverage_may_grow_freely_only_while_it_is_small(family: Family) -> None:
    def extent(share: float) -> Extent:
        covered = int(share * UNITS[family])
        return Extent(2500, *((covered, 0) if family is Family.V4 else (0, covered)))

    def offered(share: float) -> Offer:
        found = extent(share)
        return offer(found.entries, v4=found.v4, v6=found.v6)

    def known(share: float) -> SourceHistory:
        return SourceHistory().taken(Version(NOW - DAY, extent(share)), query="same", terminated=True)

    check(offered(0.001), known(0.0))
    check(offered(0.0019), known(0.001))
    assert "grew from 0% of" in final(offered(0.0011), known(0.0))
    assert "grew from 0.1% of" in final(offered(0.0021), known(0.001))
    check(offered(0.002), known(0.0011))


# Growth


@pytest.mark.parametrize("size", [500, 999, 1000, 1001, 2000])
def test_a_list_of_a_likely_size_is_taken(size: int) -> None:
    check(offer(size), history(1000))


def test_growth_beyond_belief_is_refused_however_often_it_comes() -> None:
    words = final(offer(2001), history(1000))
    assert "SikkerAPI's list grew from 1000 to 2001 entries, more than 2 times" in words
    assert "SIKKER_MAX_GROWTH" in words


@pytest.mark.parametrize("growth", [1.5, 2.0, 3.0, 10.0])
@settings(deadline=None)
@given(size=st.integers(1, 10**7), before=st.integers(1, 10**6))
def test_change_is_measured_against_the_limits(size: int, before: int, growth: float) -> None:
    grown = size > before * Fraction(growth)
    shrunk = 2 * size < before
    try:
        check(offer(size, v4=0), history(before), limits=Limits(growth, 1.0))
    except HeldBackError:
        assert shrunk
    except ListError:
        assert grown
    else:
        assert not grown
        assert not shrunk


def test_after_one_short_list_the_real_one_is_taken() -> None:
    check(offer(2502), history(2502, 600))
    check(offer(2502), history(2502, 2502, 600, 600))
    assert final(offer(5005), history(2502, 600))


def test_three_versions_of_the_new_size_are_the_base() -> None:
    assert "grew from 620 to 2502" in final(offer(2502), history(2502, 2502, 600, 610, 620))
    check(offer(1240), history(2502, 2502, 600, 610, 620))
    # Not where they only vary.
    check(offer(4000), history(2502, 2000, 2000, 2000))


def test_growth_is_measured_against_four_weeks() -> None:
    def known(age: float) -> SourceHistory:
        found = SourceHistory()
        for at, entries in ((NOW - age * DAY, 2502), (NOW - 2 * DAY, 600), (NOW - DAY, 600)):
            found = found.taken(Version(at, Extent(entries, entries, 0)), query="same", terminated=True)
        return found

    check(offer(2502), known(27.9))
    assert final(offer(2502), known(28.1))
    # The version in force counts however long the host was off.
    old = SourceHistory().taken(Version(NOW - 99 * DAY, Extent(1000, 0, 0)), query="same", terminated=True)
    check(offer(2000), old)
    assert final(offer(2001), old)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(1, 10_000), st.floats(1.0, 5 * DAY)), min_size=1, max_size=120))
def test_what_is_remembered_is_bounded_and_loses_no_largest_one(steps: list[tuple[int, float]]) -> None:
    found, every, at = SourceHistory(), [], NOW
    for entries, pause in steps:
        at += pause
        every.append(Version(at, Extent(entries, entries, 0)))
        found = found.taken(every[-1], query="same", terminated=True)
    assert len(found.versions) <= 32
    assert found.versions[-3:] == tuple(every[-3:])
    recent = [each.extent.entries for each in every if at - each.taken_at <= 27 * DAY]
    newest = max(each.extent.entries for each in every[-3:])
    base = found.base(at)
    assert base is not None
    assert base.entries in {newest, *(each.extent.entries for each in every)}
    assert base.entries >= max(recent) or newest * 2 < max(each.extent.entries for each in every)


# Shrinkage


@pytest.mark.parametrize("size", [100, 250, 499])
def test_under_a_half_is_held_back_once(size: int) -> None:
    assert signs(offer(size), history(1000)) == {HALVED}
    check(offer(499), history(1000, held=frozenset({HALVED})))


def test_under_a_tenth_is_believed_when_it_is_said_again() -> None:
    assert signs(offer(99), history(1000)) == {HALVED, SHRUNK}
    # What was only under a half before says something else.
    assert isinstance(refusal(offer(99), history(1000, held=frozenset({HALVED}))), HeldBackError)
    # And who was warned of the worse is not warned of the better.
    check(offer(300), history(1000, held=frozenset({HALVED, SHRUNK})))


def test_reasons_that_take_turns_hold_a_list_back_once_each() -> None:
    error = refusal(offer(499), history(1000, held=frozenset({"connections"})))
    assert isinstance(error, HeldBackError)
    assert error.suspicions == {HALVED, "connections"}


def test_shrinkage_is_measured_against_the_version_before() -> None:
    check(offer(600), history(2502, 1000))
    check(offer(400), history(2502, 600))


def test_a_list_that_was_cut_off_is_held_back_and_then_believed() -> None:
    assert signs(offer(1000, terminated=False), history(1000)) == {CUT_OFF}
    never = SourceHistory().taken(Version(NOW, Extent(1000, 0, 0)), query="same", terminated=False)
    check(offer(1000, terminated=False), never)


def test_a_refusal_says_all_that_is_wrong_once() -> None:
    error = refusal(offer(99, terminated=False), history(1000))
    assert isinstance(error, HeldBackError)
    assert error.suspicions == {HALVED, SHRUNK, CUT_OFF}
    assert str(error).count("shrank from 1000 to 99 entries, to less than a tenth") == 1
    assert "middle of a line" in str(error)


# Another query, another source


def test_another_query_has_a_wide_bound_and_not_none() -> None:
    for size in (2001, 30, 10, 100_000):
        check(offer(size, v4=0, query="other"), history(1000))
    assert "more than 100 times" in final(offer(100_001, v4=0, query="other"), history(1000))
    assert signs(offer(9, query="other"), history(1000)) == {SHRUNK}
    assert "of IPv4" in final(offer(1000, v4=3 * PERCENT_V4, query="other"), history(1000))
    # Of a history that does not know its query nothing is assumed.
    assert final(offer(2001), history(1000, query=""))


def test_a_small_local_file_is_its_owner_s_business() -> None:
    check(offer(999, local=True), history(3))
    check(offer(1, local=True), history(999))
    check(offer(2000, local=True), history(3))
    assert final(offer(2001, local=True), history(3))
    assert signs(offer(499, local=True), history(1000)) == {HALVED}
    assert signs(offer(1, local=True), history(5000)) == {HALVED, SHRUNK}
    check(offer(999, v4=PERCENT_V4, local=True), history(3))
    assert "of IPv4" in final(offer(1000, v4=PERCENT_V4, local=True), history(600))
    assert "2% that are allowed" in final(offer(7, v4=3 * PERCENT_V4, local=True), history(3))


@settings(deadline=None)
@given(size=st.integers(1, 5000), terminated=st.booleans(), before=st.integers(1, 5000), local=st.booleans())
def test_what_is_held_back_is_believed_by_its_second_pull(
    size: int, terminated: bool, before: int, local: bool
) -> None:
    offered = offer(size, terminated=terminated, local=local)
    try:
        check(offered, history(before))
    except HeldBackError as refused:
        check(offered, history(before).with_held_back(refused.suspicions))
    except ListError:
        assert size > 2 * before
