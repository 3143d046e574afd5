"""An event loop whose time passes only when nothing is left to do: hours take milliseconds, and nothing depends on how
fast the machine is."""

from __future__ import annotations

import asyncio
import selectors
from typing import TYPE_CHECKING, Any, TypeVar, TypeVarTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

_Result = TypeVar("_Result")
_Arguments = TypeVarTuple("_Arguments")
# 2026-01-01 00:00 UTC.
BEGINNING = 1_767_225_600.0
# So many turns in a row take no time at all.
_MAX_TURNS = 10_000


class _Selector(selectors.SelectSelector):
    """Does not wait: the loop's clock is set forward instead."""

    def __init__(self) -> None:
        super().__init__()
        self.passed = 0.0
        self.turns = self._idle = 0
        self.at_turn: dict[int, Callable[[], object]] = {}

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.turns += 1
        if action := self.at_turn.pop(self.turns, None):
            action()
        ready = super().select(0)
        self._idle = 0 if timeout else self._idle + 1
        if self._idle > _MAX_TURNS:
            # In life each turn takes a moment: what waits for less than the clock can tell apart gets on.
            self.passed += 1e-6
        if not ready:
            if timeout is None:
                raise AssertionError("everything waits, and nothing will ever happen")
            self.passed += max(0.0, timeout)
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """What is given to other threads is carried out at once, in this one. As with threads, whoever waits for it hears
    of it in a later turn of the loop, and may be cancelled before that."""

    def __init__(self) -> None:
        self.virtual = _Selector()
        super().__init__(self.virtual)

    def time(self) -> float:
        return self.virtual.passed

    def run_in_executor(
        self, executor: object, func: Callable[[*_Arguments], _Result], *args: *_Arguments
    ) -> asyncio.Future[_Result]:
        future = self.create_future()
        try:
            self.call_soon(_settle, future.set_result, func(*args), future)
        except Exception as error:  # noqa: BLE001 - it is raised where the outcome is waited for
            self.call_soon(_settle, future.set_exception, error, future)
        return future


def _settle(settle: Callable[[Any], None], outcome: object, future: asyncio.Future[Any]) -> None:
    if not future.done():
        settle(outcome)


class VirtualClock:
    """A `Clock` by the loop that runs. `offset` is how far the wall clock was set forward or back; `chance` is what
    `random` gives."""

    def __init__(self, chance: float = 0.5) -> None:
        self.offset = 0.0
        self.chance = chance

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()

    def wall(self) -> float:
        return BEGINNING + self.monotonic() + self.offset

    def random(self) -> float:
        return self.chance


def run(main: Coroutine[Any, Any, _Result]) -> _Result:
    """`asyncio.run` in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


def run_cancelled_at(turn: int, main: Coroutine[Any, Any, None]) -> bool:
    """Run this in virtual time, and cancel it in this turn of the loop: over all numbers, at each point at which it
    waits. Returns whether it was still running then."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        loop = runner.get_loop()
        assert isinstance(loop, VirtualLoop)
        task = loop.create_task(main)
        loop.virtual.at_turn[turn] = task.cancel
        try:
            loop.run_until_complete(task)
        except asyncio.CancelledError:
            return True
        return False
