"""What becomes of a request: what is recorded, what follows from a refusal, and how reporting stands. Pure."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sikkerguard.errors import BodyRefused, QuotaSpent, SendingFailed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sikkerguard.core.reports.rows import Row
    from sikkerguard.errors import FetchError

_DAY_SECONDS = 86400
# Rows of a request that follows one whose answer was lost, or that met a quota nobody knows: a server that answers none
# must not use up all we have, and what is left of a quota may be less than a large request asks for.
PROBE_ROWS = 100
# A Retry-After that ends so near to midnight UTC means the day's quota. In seconds.
_NEAR_MIDNIGHT = 60.0


@dataclass(frozen=True, slots=True)
class Settled:
    """The request with these rows was answered, at `at` (Unix seconds). `rejected`: packed addresses whose rows were
    rejected for good, with the reason; `postponed`: those whose rows wait again. All others were accepted."""

    request: int
    rows: tuple[Row, ...]
    rejected: Mapping[bytes, str]
    postponed: frozenset[bytes]
    at: float

    def accepted(self) -> Counter[str]:
        """The number of rows that were accepted, by their protocol."""
        refused = self.rejected.keys() | self.postponed
        return Counter(row.protocol for row in self.rows if row.address not in refused)

    def rejections(self) -> list[tuple[str, str]]:
        """Each rejected row: its address as text, and the reason."""
        return [(row.ip(), self.rejected[row.address]) for row in self.rows if row.address in self.rejected]


@dataclass(frozen=True, slots=True)
class Released:
    """The request was certainly not accepted: its rows wait again."""

    request: int


@dataclass(frozen=True, slots=True)
class LeftUnanswered:
    """The request may have been accepted: its rows are not sent again."""

    request: int


@dataclass(frozen=True, slots=True)
class QuotaNoted:
    """This API key may still send `remaining` rows on this day (since 1970-01-01, UTC), and `limit` rows on any whole
    day, where that is known."""

    day: int
    key: str
    remaining: int
    limit: int | None = None


# Frozen operations that the outbox applies, at once or when its disk works again.
Outcome = Settled | Released | LeftUnanswered | QuotaNoted


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


@dataclass(frozen=True, slots=True)
class ReportStats:
    """Rows ever `sent` (accepted by SikkerAPI), `withheld`, `rejected` and `unanswered`; rows `waiting` now; what the
    day's quota has left, None where nobody said; when a row was last sent (Unix seconds); rows and sources ever
    `dropped`, because too many waited or for too long; and the sentence that says why rows wait, or empty."""

    sent: int = 0
    withheld: int = 0
    rejected: int = 0
    unanswered: int = 0
    waiting: int = 0
    quota_remaining: int | None = None
    last_report_at: float | None = None
    dropped: int = 0
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class Recovered:
    """What a start found of requests that were cut off: rows that wait again, and rows that are not sent again."""

    waiting: int
    unanswered: int
