"""When to do it again. Time and chance are passed in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sikkerguard.errors import FetchError, HeldBackError, ListError, SikkerGuardError

if TYPE_CHECKING:
    from collections.abc import Callable

_HOUR = 3600.0
# Seconds to the first new try, doubled with each further failure, and the longest pause, by what went wrong.
_UNREACHABLE = (5.0, _HOUR)  # a line that is down comes back at any moment
_QUOTA_USED_UP = (15 * 60.0, 6 * _HOUR)  # where the server did not say when to come again
_KEY_REFUSED = (_HOUR, 24 * _HOUR)  # only a person can mend it, and SIGHUP tells us that one did
_LIST_REFUSED = (15 * 60.0, 6 * _HOUR)  # a new list may be right; asking costs quota
_OURS = (5 * 60.0, 6 * _HOUR)  # the kernel refused, or the self-test failed
_HELD_BACK = 15 * 60.0  # the next pull decides: at most so late
_UNFINISHED = (60.0, 6 * _HOUR)  # the process died in it, and may again; each try costs quota
_LONGEST_WISH = 26 * _HOUR  # quotas are reset at midnight UTC: no honest Retry-After is longer than a day
# Shares by which pauses differ, so that a thousand servers don't come at the same second.
_RETRY_JITTER, _INTERVAL_JITTER = 0.25, 0.05


def jittered(interval: float, chance: Callable[[], float]) -> float:
    """Seconds until the next pull after one that went well. `chance` gives numbers from 0 to 1."""
    return interval * (1 + _INTERVAL_JITTER * (2 * chance() - 1))


def retry_delay(error: SikkerGuardError, failures: int, chance: Callable[[], float]) -> float:
    """Seconds until a pull that failed is tried again; `failures` is how many failed in a row, this one included."""
    if isinstance(error, HeldBackError):
        return _HELD_BACK * (1 - _RETRY_JITTER * chance())
    pause = _growing(_pause(error), failures, chance)
    if isinstance(error, FetchError) and error.retry_after is not None:
        # Never earlier than asked for, not all at once when the hour has come, and not without end at the pace of a
        # server that always says "at once".
        return max(pause, min(error.retry_after, _LONGEST_WISH) + 60 * chance())
    return pause


def after_unfinished(unfinished: int, chance: Callable[[], float], *, protecting: bool) -> float:
    """Seconds for which a start waits with its first pull, where so many pulls in a row were begun and not ended. While
    nothing is blocked at all it waits a minute at most: the service manager waits with it."""
    pause = _growing(_UNFINISHED, unfinished, chance)
    return pause if protecting else min(pause, _UNFINISHED[0])


def _growing(pauses: tuple[float, float], failures: int, chance: Callable[[], float]) -> float:
    first, longest = pauses
    return min(first * 2.0 ** min(failures - 1, 30), longest) * (1 + _RETRY_JITTER * (2 * chance() - 1))


def _pause(error: SikkerGuardError) -> tuple[float, float]:
    if isinstance(error, FetchError):
        if not error.retryable:
            return _KEY_REFUSED
        # A server that names a time knows better than we when the quota is there again.
        return _QUOTA_USED_UP if error.quota and error.retry_after is None else _UNREACHABLE
    return _LIST_REFUSED if isinstance(error, ListError) else _OURS
