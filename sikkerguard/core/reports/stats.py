"""How reporting stands."""

from __future__ import annotations

from dataclasses import dataclass


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
