"""Daily quotas, counted per key and endpoint, forgotten at midnight UTC."""

from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING

from tests.standin.messages import Endpoint

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.standin.tiers import Key

_DAY = 86_400


class QuotaBook:
    """Thread-safe counters; `clock` gives Unix seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._day = 0
        self._used: dict[tuple[str, Endpoint], int] = {}

    def used(self, key: Key, endpoint: Endpoint) -> int:
        """Units spent today."""
        with self._lock:
            return self._today().get((key.text, endpoint), 0)

    def remaining(self, key: Key, endpoint: Endpoint) -> int:
        """Units left today, never below 0."""
        return max(0, limit_of(key, endpoint) - self.used(key, endpoint))

    def take(self, key: Key, endpoint: Endpoint, wanted: int) -> int:
        """Spend up to `wanted` units; returns how many were left to spend."""
        with self._lock:
            used = self._today()
            before = used.get((key.text, endpoint), 0)
            granted = max(0, min(wanted, limit_of(key, endpoint) - before))
            used[key.text, endpoint] = before + granted
            return granted

    def reset_at(self) -> int:
        """The next midnight UTC, in Unix seconds."""
        return (int(self._clock() // _DAY) + 1) * _DAY

    def seconds_left(self) -> int:
        """Whole seconds until the reset, at least 1."""
        return max(1, math.ceil(self.reset_at() - self._clock()))

    def _today(self) -> dict[tuple[str, Endpoint], int]:
        day = int(self._clock() // _DAY)
        if day != self._day:
            self._day, self._used = day, {}
        return self._used


def limit_of(key: Key, endpoint: Endpoint) -> int:
    """Units a day."""
    return key.tier.pulls if endpoint is Endpoint.BLACKLIST else key.tier.reports
