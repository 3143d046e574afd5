"""What is recorded of a request: frozen operations that the outbox applies, at once or when its disk works again."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sikkerguard.core.reports.rows import Row


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


Outcome = Settled | Released | LeftUnanswered | QuotaNoted
