"""Waiting for an event or for a time, whichever comes first; and values that wake those who watch them."""

from __future__ import annotations

import asyncio
import math
from contextlib import suppress
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from sikkerguard.core.interfaces import Signal

_Value = TypeVar("_Value")


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


class Watched(Generic[_Value]):
    """A value with one writer and many readers. Only its owner calls `set`; everyone else reads `value` when it is
    needed, and keeps no copy."""

    def __init__(self, value: _Value) -> None:
        self._value = value
        self._signals: list[Signal] = []

    @property
    def value(self) -> _Value:
        """The value of now."""
        return self._value

    def set(self, value: _Value) -> None:
        """Replace the value, and wake those who watch it."""
        self._value = value
        for signal in self._signals:
            signal.set()

    def wake(self, signal: Signal) -> None:
        """Have this signal set whenever the value is replaced."""
        self._signals.append(signal)
