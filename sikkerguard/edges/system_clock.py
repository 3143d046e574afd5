"""This machine's time and chance."""

from __future__ import annotations

import random
import time


class SystemClock:
    """The `Clock` of a service that really runs."""

    def wall(self) -> float:
        """Unix seconds."""
        return time.time()

    def monotonic(self) -> float:
        """Seconds that never go back; the event loop counts the same ones."""
        return time.monotonic()

    def random(self) -> float:
        """A number from 0 to 1, 1 excluded. Nothing secret depends on it."""
        return random.random()
