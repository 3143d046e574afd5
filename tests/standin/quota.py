"""Daily quotas, counted per key and kind, forgotten at midnight UTC."""

from __future__ import annotations

import enum
import math
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.standin.tiers import Key, Tier

_DAY = 86_400


class Kind(enum.StrEnum):
    """What is counted; the values are the names that the status endpoint uses."""

    LOOKUPS = "lookups"
    REPORTS = "reports"
    BLACKLIST = "blacklist"
    TAXII = "taxii"


@dataclass(frozen=True, slots=True)
class Usage:
    """Of one key and kind, today."""

    limit: int
    used: int

    @property
    def remaining(self) -> int:
        """Units left, never below 0."""
        return max(0, self.limit - self.used)


class QuotaBook:
    """Thread-safe counters; `clock` gives Unix seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._day = 0
        self._used: dict[tuple[str, Kind], int] = {}

    def usage(self, key: Key, kind: Kind) -> Usage:
        """Today's count."""
        with self._lock:
            return Usage(limit_of(key.tier, kind), self._today().get((key.text, kind), 0))

    def take(self, key: Key, kind: Kind, wanted: int) -> int:
        """Spends up to `wanted` units and returns how many were left to spend."""
        with self._lock:
            used = self._today()
            before = used.get((key.text, kind), 0)
            granted = max(0, min(wanted, limit_of(key.tier, kind) - before))
            used[key.text, kind] = before + granted
            return granted

    def reset_at(self) -> int:
        """The next midnight UTC, in Unix seconds."""
        return (int(self._clock() // _DAY) + 1) * _DAY

    def seconds_left(self) -> int:
        """Whole seconds until the reset, at least 1."""
        return max(1, math.ceil(self.reset_at() - self._clock()))

    def _today(self) -> dict[tuple[str, Kind], int]:
        day = int(self._clock() // _DAY)
        if day != self._day:
            self._day, self._used = day, {}
        return self._used


def limit_of(tier: Tier, kind: Kind) -> int:
    """Units a day."""
    limits = {
        Kind.LOOKUPS: tier.lookups,
        Kind.REPORTS: tier.reports,
        Kind.BLACKLIST: tier.pulls,
        Kind.TAXII: tier.taxii,
    }
    return limits[kind]
