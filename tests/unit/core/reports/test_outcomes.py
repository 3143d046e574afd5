"""What is recorded of a request, what is said of it, and what follows from one that was not accepted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sikkerguard.core.reports.outcomes import PROBE_ROWS, NextRequest, Settled, after_refusal
from sikkerguard.core.reports.rows import Row
from sikkerguard.errors import (
    BodyRefused,
    FetchError,
    KeyRefused,
    QuotaSpent,
    SendingFailed,
    SettingsRefused,
    Unreachable,
)

ROWS = tuple(
    Row(bytes([203, 0, 113, number]), "brute_force", protocol, 1)
    for number, protocol in enumerate(("ssh", "ssh", "http", "telnet"))
)


def test_what_was_neither_rejected_nor_postponed_was_accepted() -> None:
    settled = Settled(7, ROWS, {ROWS[1].address: "whitelisted"}, frozenset({ROWS[3].address}), 0.0)
    assert settled.accepted() == {"ssh": 1, "http": 1}
    assert settled.rejections() == [("203.0.113.1", "whitelisted")]


def test_a_request_without_any_objection_was_accepted_whole() -> None:
    settled = Settled(7, ROWS, {}, frozenset(), 0.0)
    assert settled.accepted() == {"ssh": 2, "http": 1, "telnet": 1}
    assert settled.rejections() == []


NOON = 20_000 * 86_400 + 43_200.0
TO_MIDNIGHT = 43_200.0


@pytest.mark.parametrize("error", [Unreachable("down"), KeyRefused("401"), SettingsRefused("404")])
def test_where_only_time_or_a_person_helps_nothing_is_sent_and_nothing_made_smaller(error: FetchError) -> None:
    assert after_refusal(error, 10, NOON) == NextRequest(at_once=False, max_rows=None, remaining=None)


@pytest.mark.parametrize("content", [False, True])
def test_a_body_that_is_refused_is_halved_and_sent_at_once_but_for_a_single_row(content: bool) -> None:
    error = BodyRefused("no", content=content)
    assert after_refusal(error, 9, NOON) == NextRequest(at_once=True, max_rows=4)
    assert after_refusal(error, 1, NOON) == NextRequest(at_once=False, max_rows=1)


def test_a_body_that_broke_off_on_its_way_is_halved_after_a_pause() -> None:
    assert after_refusal(SendingFailed("broke"), 9, NOON) == NextRequest(at_once=False, max_rows=4)


@pytest.mark.parametrize(
    ("rows", "remaining", "retry_after", "expected"),
    [
        # The day's quota, as nothing else is said, or a time that ends at midnight.
        (5, None, None, NextRequest(at_once=True, remaining=0)),
        (5, 2, None, NextRequest(at_once=True, remaining=2)),
        (5, 0, TO_MIDNIGHT, NextRequest(at_once=True, remaining=0)),
        (5, None, TO_MIDNIGHT - 59, NextRequest(at_once=True, remaining=0)),
        (5, 700, None, NextRequest(at_once=False, remaining=700)),
        (PROBE_ROWS + 1, None, None, NextRequest(at_once=True, max_rows=PROBE_ROWS)),
        (PROBE_ROWS + 1, 5000, None, NextRequest(at_once=True, max_rows=PROBE_ROWS, remaining=5000)),
        # A shorter one: what is left of the day is known, but for a 0 that means the shorter one.
        (5, 2, 60.0, NextRequest(at_once=False, remaining=2)),
        (5, 0, 60.0, NextRequest(at_once=False)),
        (5, None, TO_MIDNIGHT - 61, NextRequest(at_once=False)),
    ],
)
def test_a_spent_quota(rows: int, remaining: int | None, retry_after: float | None, expected: NextRequest) -> None:
    error = QuotaSpent("429", remaining=remaining, retry_after=retry_after)
    assert after_refusal(error, rows, NOON) == expected


@given(st.integers(1, 10_000), st.none() | st.integers(0, 20_000), st.none() | st.floats(0, 1e6), st.floats(0, 4e9))
def test_each_request_after_a_spent_quota_is_smaller_or_comes_later(
    rows: int, remaining: int | None, retry_after: float | None, now: float
) -> None:
    """Or else a round would have no end."""
    found = after_refusal(QuotaSpent("429", remaining=remaining, retry_after=retry_after), rows, now)
    most = min(rows if each is None else each for each in (found.max_rows, found.remaining))
    assert not found.at_once or most < rows
