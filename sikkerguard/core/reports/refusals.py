"""What follows from a request of reports that was certainly not accepted. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sikkerguard.errors import BodyRefused, QuotaSpent, SendingFailed

if TYPE_CHECKING:
    from sikkerguard.errors import FetchError

_DAY_SECONDS = 86400
# Rows of a request that follows one whose answer was lost, or that met a quota nobody knows: a server that answers none
# must not use up all we have, and what is left of a quota may be less than a large request asks for.
PROBE_ROWS = 100
# A Retry-After that ends so near to midnight UTC means the day's quota. In seconds.
_NEAR_MIDNIGHT = 60.0


@dataclass(frozen=True, slots=True)
class NextRequest:
    """`at_once`: whether there may be another request without a pause. `max_rows`: it may have so many rows, None where
    nothing speaks against as many as before. `remaining`: what the day's quota has left, None where that is not known.
    """

    at_once: bool = False
    max_rows: int | None = None
    remaining: int | None = None


def after_refusal(error: FetchError, rows: int, now: float) -> NextRequest:
    """The next request after one of so many rows that was refused, or broke off, with this error at `now` (Unix
    seconds)."""
    match error:
        # After a refusal of the body, halve the request and send it now; after a broken connection, wait and halve it.
        case BodyRefused():
            return NextRequest(at_once=rows > 1, max_rows=max(1, rows // 2))
        case SendingFailed():
            return NextRequest(max_rows=max(1, rows // 2))
        case QuotaSpent():
            return _after_quota(error, rows, now)
        case _:
            return NextRequest()


def _after_quota(error: QuotaSpent, rows: int, now: float) -> NextRequest:
    left = error.remaining
    if error.retry_after is not None and error.retry_after < _DAY_SECONDS - now % _DAY_SECONDS - _NEAR_MIDNIGHT:
        # Not the day's quota is spent, but one of a minute or an hour.
        return NextRequest(remaining=left or None)
    if left is not None and left < rows:
        return NextRequest(at_once=True, remaining=left)
    if rows > PROBE_ROWS:
        # It may be that a part of a request is not taken where there is no room for all of it.
        return NextRequest(at_once=True, max_rows=PROBE_ROWS, remaining=left)
    # A server that says how much is left does not mean the day; of one that does not, it is all that is known.
    return NextRequest(at_once=True, remaining=0) if left is None else NextRequest(remaining=left)
