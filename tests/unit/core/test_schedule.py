"""When it is done again: never sooner than asked, never a thousand servers in the same second, never too late."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sikkerguard.core.durations import duration_text, span_text
from sikkerguard.core.schedule import jittered, needs_a_person, retry_delay
from sikkerguard.errors import (
    BodyRefused,
    FetchError,
    HeldBackError,
    KernelError,
    KeyRefused,
    ListError,
    QuotaSpent,
    SelfTestError,
    SendingFailed,
    SettingsRefused,
    SikkerGuardError,
    Unanswered,
    Unreachable,
)

MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0
UNREACHABLE = Unreachable("no route")
QUOTA = QuotaSpent("used up")
REFUSED = KeyRefused("key unknown")
LIST, KERNEL, SELF_TEST = ListError("HTML"), KernelError("refused"), SelfTestError("no gateway")
ERRORS = [UNREACHABLE, QUOTA, REFUSED, LIST, KERNEL, SELF_TEST]

chances = st.floats(0, 1)


@settings(deadline=None)
@given(st.floats(10, 90 * DAY), chances)
def test_a_pull_is_repeated_near_its_interval(interval: float, chance: float) -> None:
    assert interval * 0.949 <= jittered(interval, lambda: chance) <= interval * 1.051
    assert jittered(interval, lambda: 0.5) == interval


def test_servers_do_not_come_at_the_same_second() -> None:
    assert jittered(DAY, lambda: 0.0) + HOUR < jittered(DAY, lambda: 1.0)
    for error in ERRORS:
        assert retry_delay(error, 3, lambda: 0.0) * 1.5 < retry_delay(error, 3, lambda: 1.0)
    asked = Unreachable("later", retry_after=HOUR)
    assert retry_delay(asked, 1, lambda: 0.0) + 30 < retry_delay(asked, 1, lambda: 1.0)


@pytest.mark.parametrize("error", ERRORS)
def test_pauses_double_up_to_the_longest(error: SikkerGuardError) -> None:
    pauses = [retry_delay(error, failures, lambda: 0.5) for failures in range(1, 40)]
    longest = pauses[-1]
    assert pauses[0] < longest
    for before, behind in pairwise(pauses):
        assert behind == min(2 * before, longest)


@pytest.mark.parametrize(
    ("error", "first", "longest"),
    [(UNREACHABLE, MINUTE, HOUR), (QUOTA, HOUR, DAY), (REFUSED, 2 * HOUR, DAY), (LIST, HOUR, DAY), (KERNEL, HOUR, DAY)],
)
def test_what_may_mend_itself_soon_is_tried_soon(error: SikkerGuardError, first: float, longest: float) -> None:
    assert first / 30 < retry_delay(error, 1, lambda: 0.0) < retry_delay(error, 1, lambda: 1.0) <= first
    assert retry_delay(error, 1000, lambda: 0.5) <= longest
    assert (
        retry_delay(error, 1000, lambda: 0.1)
        < retry_delay(error, 1000, lambda: 0.5)
        < retry_delay(error, 1000, lambda: 0.9)
    )


def every_kind(kind: type[SikkerGuardError]) -> list[type[SikkerGuardError]]:
    """This type of errors.py, and all below it."""
    below = [child for child in kind.__subclasses__() if child.__module__ == SikkerGuardError.__module__]
    return [kind, *(found for child in below for found in every_kind(child))]


# Of each type: the first pause and the longest, at the middle of their spread, in seconds.
FIGURES: dict[type[SikkerGuardError], tuple[float, float]] = {
    Unreachable: (5, HOUR),
    SendingFailed: (5, HOUR),
    Unanswered: (5, HOUR),
    QuotaSpent: (15 * MINUTE, 6 * HOUR),
    KeyRefused: (HOUR, DAY),
    SettingsRefused: (HOUR, DAY),
    BodyRefused: (HOUR, DAY),
    ListError: (15 * MINUTE, 6 * HOUR),
    HeldBackError: (13.125 * MINUTE, 13.125 * MINUTE),
}


@pytest.mark.parametrize("kind", every_kind(SikkerGuardError), ids=lambda kind: kind.__name__)
def test_each_type_of_error_has_its_own_pauses(kind: type[SikkerGuardError]) -> None:
    error = kind.__new__(kind)
    error.__dict__.update(retry_after=None)
    first, longest = FIGURES.get(kind, (5 * MINUTE, 6 * HOUR))
    assert (retry_delay(error, 1, lambda: 0.5), retry_delay(error, 1000, lambda: 0.5)) == (first, longest)


@pytest.mark.parametrize("kind", every_kind(SikkerGuardError), ids=lambda kind: kind.__name__)
def test_a_person_is_needed_where_the_key_the_settings_or_the_request_is_refused(kind: type[SikkerGuardError]) -> None:
    error = kind.__new__(kind)
    assert needs_a_person(error) is (kind in (KeyRefused, SettingsRefused, BodyRefused))


def test_every_failure_of_a_request_is_in_the_table() -> None:
    """One that was forgotten would have the pauses of this host's own failures."""
    for kind in every_kind(FetchError):
        assert kind is FetchError or kind in FIGURES, kind


def test_a_line_that_is_down_is_tried_every_hour_at_the_latest() -> None:
    assert retry_delay(UNREACHABLE, 1000, lambda: 0.5) == HOUR
    # Half of the servers before that time, half of them behind it.
    assert retry_delay(UNREACHABLE, 1000, lambda: 0.0) + retry_delay(UNREACHABLE, 1000, lambda: 1.0) == 2 * HOUR


def test_a_line_that_is_down_is_tried_sooner_than_what_only_a_person_can_mend() -> None:
    unreachable, quota, refused = (retry_delay(error, 1, lambda: 0.5) for error in (UNREACHABLE, QUOTA, REFUSED))
    assert unreachable < quota < refused


@settings(deadline=None)
@given(st.floats(0, 26 * HOUR), chances, st.integers(1, 10**9), st.sampled_from([QuotaSpent, Unreachable, KeyRefused]))
def test_a_server_that_named_a_time_is_not_asked_before_it(
    wish: float, chance: float, failures: int, kind: type[FetchError]
) -> None:
    asked = kind("later", retry_after=wish)
    # What it named counts, not what is the rule for a spent quota; but there is always the pause of any failure.
    usual = retry_delay(REFUSED if kind is KeyRefused else UNREACHABLE, failures, lambda: chance)
    pause = retry_delay(asked, failures, lambda: chance)
    assert max(wish, usual) <= pause <= max(wish + 61, usual)


@pytest.mark.parametrize("wish", [27 * HOUR, 365 * DAY, 1e18, float("inf")])
def test_no_server_can_keep_us_away_for_ever(wish: float) -> None:
    error = Unreachable("never", retry_after=wish)
    assert 24 * HOUR < retry_delay(error, 1, lambda: 1.0) <= 27 * HOUR


@pytest.mark.parametrize("wish", [0.0, -1.0, -1e18, float("-inf")])
def test_no_server_can_have_us_ask_without_a_pause(wish: float) -> None:
    error = Unreachable("now", retry_after=wish)
    assert retry_delay(error, 1, lambda: 0.0) > 1
    # Nor does it get one answer after the other for ever.
    assert retry_delay(error, 20, lambda: 0.0) > HOUR / 2


@settings(deadline=None)
@given(st.sampled_from(ERRORS), st.integers(1, 10**12), chances)
def test_there_is_always_a_pause_and_an_end_of_it(error: SikkerGuardError, failures: int, chance: float) -> None:
    assert 1 < retry_delay(error, failures, lambda: chance) <= 1.25 * DAY


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "0s"),
        (0, "0s"),
        (45, "45s"),
        (59, "59s"),
        (60, "1m"),
        (720, "12m"),
        (3600, "1h"),
        (22 * HOUR, "22h"),
        (DAY, "24h"),
        (47 * HOUR, "47h"),
        (2 * DAY - 1, "48h"),
        (2 * DAY, "2d"),
        (3 * DAY, "3d"),
        (400 * DAY, "400d"),
    ],
)
def test_a_length_of_time_as_people_say_it(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "0s"),
        (0.9, "0s"),
        (45, "45s"),
        (60, "1m 0s"),
        (725, "12m 5s"),
        (2 * HOUR + 15 * MINUTE + 59, "2h 15m"),
        (DAY - 1, "23h 59m"),
        (3 * DAY, "3d 0h"),
        (400 * DAY + 5 * HOUR, "400d 5h"),
    ],
)
def test_a_span_has_its_two_largest_units(seconds: float, text: str) -> None:
    assert span_text(seconds) == text


@settings(deadline=None)
@given(st.floats(0, 1000 * DAY))
def test_a_length_of_time_is_right_to_a_third(seconds: float) -> None:
    match = re.fullmatch(r"(\d+)([smhd])", duration_text(seconds))
    assert match
    said = int(match[1]) * {"s": 1, "m": MINUTE, "h": HOUR, "d": DAY}[match[2]]
    assert abs(said - seconds) <= max(seconds / 3, 1)
