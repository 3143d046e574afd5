"""Waiting for an event or for a time, whichever comes first."""

from __future__ import annotations

import asyncio
import math
from contextlib import suppress


class Wakeup:
    """Wakes the one loop that waits for it. A `set` while nobody waits is remembered."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def set(self) -> None:
        """Wake the loop; what there is to do, it finds out itself."""
        self._event.set()

    def is_set(self) -> bool:
        """Whether the next `wait` returns at once."""
        return self._event.is_set()

    def clear(self) -> None:
        """Forget a `set` that nobody has waited for."""
        self._event.clear()

    async def wait(self, seconds: float = math.inf) -> bool:
        """Return when `set` was called, or after so many seconds. Whether it was called; that is forgotten then."""
        with suppress(TimeoutError):
            async with asyncio.timeout(None if seconds == math.inf else max(0.0, seconds)):
                await self._event.wait()
        was_set = self._event.is_set()
        self._event.clear()
        return was_set
