"""A value with one writer and many readers, some of whom are woken when it changes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from sikkerguard.core.interfaces import Signal

_Value = TypeVar("_Value")


class Watched(Generic[_Value]):
    """Only its owner calls `set`; everyone else reads `value` when it is needed, and keeps no copy."""

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
