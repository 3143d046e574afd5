"""Waiting for an event or for a time, whichever comes first; and values that wake those who watch them."""

from __future__ import annotations

import asyncio
import math

from sikkerguard.service.wakeup import Wakeup, Watched
from tests.unit.service.fakes import Changes
from tests.unit.service.virtual_time import run


def now() -> float:
    return asyncio.get_running_loop().time()


def test_a_wait_ends_when_it_is_woken_or_the_time_is_up() -> None:
    async def work() -> None:
        wakeup = Wakeup()
        assert not await wakeup.wait(30)
        assert now() == 30
        asyncio.get_running_loop().call_later(7, wakeup.set)
        assert await wakeup.wait(30)
        assert now() == 37
        # Also where there is no time limit.
        asyncio.get_running_loop().call_later(3600, wakeup.set)
        assert await wakeup.wait()
        assert now() == 3637

    run(work())


def test_what_is_set_while_nobody_waits_is_remembered_once() -> None:
    async def work() -> None:
        wakeup = Wakeup()
        for _ in range(3):
            wakeup.set()
        assert wakeup.is_set()
        assert await wakeup.wait(math.inf)
        assert not wakeup.is_set()
        assert not await wakeup.wait(0)
        wakeup.set()
        wakeup.clear()
        assert not wakeup.is_set()
        assert not await wakeup.wait(5)
        assert now() == 5

    run(work())


def test_a_time_that_has_passed_is_no_time() -> None:
    async def work() -> None:
        wakeup = Wakeup()
        assert not await wakeup.wait(-5)
        wakeup.set()
        assert await wakeup.wait(-math.inf)
        assert now() == 0

    run(work())


def test_a_wait_that_is_cancelled_forgets_nothing() -> None:
    async def work() -> None:
        wakeup = Wakeup()
        waiting = asyncio.create_task(wakeup.wait(30))
        await asyncio.sleep(1)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert waiting.cancelled()
        wakeup.set()
        assert await wakeup.wait(30)

    run(work())


def test_a_value_that_is_replaced_wakes_all_who_watch_it() -> None:
    watched, one, other = Watched(1), Changes(), Changes()
    watched.wake(one)
    watched.set(2)
    watched.wake(other)
    assert (watched.value, one.times, other.times) == (2, 1, 0)
    watched.set(2)
    assert (watched.value, one.times, other.times) == (2, 2, 1)


def test_whoever_is_woken_finds_the_new_value() -> None:
    class Reader:
        seen = 0

        def set(self) -> None:
            self.seen = watched.value

    watched, reader = Watched(1), Reader()
    watched.wake(reader)
    watched.set(2)
    assert reader.seen == 2
