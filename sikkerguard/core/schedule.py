"""When to do it again: what follows from each kind of failure, in one table. Time and chance are passed in.

The pauses after failures, in seconds: the first one, doubled with each further failure in a row, and the longest one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from sikkerguard.errors import (
    BodyRefused,
    FetchError,
    HeldBackError,
    KeyRefused,
    ListError,
    QuotaSpent,
    SettingsRefused,
    SikkerGuardError,
    Unanswered,
    Unreachable,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_MINUTE, _HOUR = 60.0, 3600.0


class Pauses(NamedTuple):
    """The pauses after one kind of failure, in seconds."""

    first: float
    longest: float


# A line that is down comes back at any moment.
_PASSING = Pauses(5.0, _HOUR)
# Only a person can put it right, and a change of the settings is noticed.
_NEEDS_A_PERSON = Pauses(_HOUR, 24 * _HOUR)
# By the kind of error; one that is not named has the pauses of the kind above it.
PAUSES: Mapping[type[SikkerGuardError], Pauses] = {
    Unreachable: _PASSING,
    Unanswered: _PASSING,
    # Where the server did not say when to come again. Where it did, it knows better: see `retry_delay`.
    QuotaSpent: Pauses(15 * _MINUTE, 6 * _HOUR),
    KeyRefused: _NEEDS_A_PERSON,
    SettingsRefused: _NEEDS_A_PERSON,
    BodyRefused: _NEEDS_A_PERSON,
    # A new list may be right; asking for it costs quota.
    ListError: Pauses(15 * _MINUTE, 6 * _HOUR),
    # The next pull decides, and that is at most so far away.
    HeldBackError: Pauses(15 * _MINUTE, 15 * _MINUTE),
    # This host failed: the kernel refused, the self-test found a lost connection, the disk is full.
    SikkerGuardError: Pauses(5 * _MINUTE, 6 * _HOUR),
}
# A process that died in a pull may die in the next one too; each try costs quota.
_UNFINISHED = Pauses(_MINUTE, 6 * _HOUR)
# Quotas are reset at midnight UTC: no honest Retry-After is longer than a day.
_MAX_RETRY_AFTER = 26 * _HOUR
# Shares by which pauses differ, so that a thousand servers don't come at the same second.
_RETRY_JITTER, _INTERVAL_JITTER = 0.25, 0.05


def jittered(interval: float, chance: Callable[[], float]) -> float:
    """Seconds until it is done again after it went well, where `interval` seconds are wanted. `chance` gives numbers
    from 0 to 1."""
    return interval * (1 + _INTERVAL_JITTER * (2 * chance() - 1))


def retry_delay(error: SikkerGuardError, failures: int, chance: Callable[[], float]) -> float:
    """Seconds until what failed with this error is tried again. `failures`: how many tries failed in a row, this one
    included. `chance` gives numbers from 0 to 1."""
    if isinstance(error, HeldBackError):
        return PAUSES[HeldBackError].longest * (1 - _RETRY_JITTER * chance())
    wish = error.retry_after if isinstance(error, FetchError) else None
    kind = Unreachable if isinstance(error, QuotaSpent) and wish is not None else type(error)
    pause = _growing(_pauses_after(kind), failures, chance)
    if wish is None:
        return pause
    # Never earlier than asked for, not all at once when the hour has come, and not without end at the pace of a server
    # that always says "at once".
    return max(pause, min(wish, _MAX_RETRY_AFTER) + _MINUTE * chance())


def needs_a_person(error: SikkerGuardError) -> bool:
    """Whether this is tried again as rarely as it is because only a person can put it right: a key, or a setting."""
    return _pauses_after(type(error)) is _NEEDS_A_PERSON


def after_unfinished(unfinished: int, chance: Callable[[], float], *, protecting: bool) -> float:
    """Seconds for which a start waits with its first pull, where so many pulls in a row were begun and not ended. While
    nothing is blocked at all it waits a minute at most: the service manager waits with it."""
    pause = _growing(_UNFINISHED, unfinished, chance)
    return pause if protecting else min(pause, _UNFINISHED.first)


def _growing(pauses: Pauses, failures: int, chance: Callable[[], float]) -> float:
    return min(pauses.first * 2.0 ** min(failures - 1, 30), pauses.longest) * (1 + _RETRY_JITTER * (2 * chance() - 1))


def _pauses_after(kind: type[SikkerGuardError]) -> Pauses:
    return next(PAUSES[each] for each in kind.__mro__ if each in PAUSES)
