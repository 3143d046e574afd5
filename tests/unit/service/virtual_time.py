"""An event loop whose time passes only when nothing is left to do: hours take milliseconds, and nothing depends on how
fast the machine is."""

from __future__ import annotations

import asyncio
import selectors
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

_Result = TypeVar("_Result")
# 2026-01-01 00:00 UTC.
BEGINNING = 1_767_225_600.0


class _Selector(selectors.SelectSelector):
    """Does not wait: the loop's clock is set forward instead."""

    def __init__(self) -> None:
        super().__init__()
        self.passed = 0.0
        self.passes = 0
        self.at_pass: dict[int, Callable[[], object]] = {}

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.passes += 1
        if action := self.at_pass.pop(self.passes, None):
            action()
        ready = super().select(0)
        if not ready:
            if timeout is None:
                raise AssertionError("everything waits, and nothing will ever happen")
            self.passed += max(0.0, timeout)
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """What is given to other threads is carried out soon, in this one. `passes` counts how often the loop went round."""

    def __init__(self) -> None:
        self.virtual = _Selector()
        super().__init__(self.virtual)

    @property
    def passes(self) -> int:
        return self.virtual.passes

    def time(self) -> float:
        return self.virtual.passed

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:
        future = self.create_future()

        def run() -> None:
            try:
                result = func(*args)
            except Exception as error:
                if not future.done():
                    future.set_exception(error)
            else:
                if not future.done():
                    future.set_result(result)

        # Not before the caller waits for it, as with a real thread: so it may be cancelled there.
        self.call_soon(run)
        return future


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


def run_cancelled_at(passes: int, main: Coroutine[Any, Any, None]) -> bool:
    """Run this in virtual time, and cancel it when the loop has gone round so many times: for each number, that is
    another one of the points at which it waits. Whether it was still running then."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        loop = runner.get_loop()
        assert isinstance(loop, VirtualLoop)
        task = loop.create_task(main)
        loop.virtual.at_pass[passes] = task.cancel
        try:
            loop.run_until_complete(task)
        except asyncio.CancelledError:
            return True
        return False
