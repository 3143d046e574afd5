"""Following a source of log lines: at once, at little cost, and to a clean end."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import select
import threading
import time
from typing import TYPE_CHECKING

import pytest

from sikkerguard.config.settings import Config
from sikkerguard.core.net.family import Family
from sikkerguard.core.state import LogState
from sikkerguard.core.traffic.sample import DropEvent
from sikkerguard.service.log_follower import LogFollower
from sikkerguard.service.wakeup import Watched
from tests.unit.service.fakes import Changes
from tests.unit.service.virtual_time import VirtualClock, run

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

HEAD = "SIKKERGUARD IN=eth0 OUT= MAC= SRC=198.51.100.7 DST=198.51.100.10 LEN=40 TOS=0x00 PREC=0x00 TTL=64 ID=1 "
GONE = OSError(errno.ENODEV, "No such device")
CONFIG = Config(log_source="kmsg")


def line(port: int) -> str:
    return f"{HEAD}PROTO=TCP SPT=40000 DPT={port} WINDOW=1024 RES=0x00 SYN URGP=0 "


def event(port: int) -> DropEvent:
    return DropEvent(Family.V4, bytes([198, 51, 100, 7]), 6, port)


class Source:
    """A source whose messages are put in by the test; `deaf` ones wake nobody."""

    def __init__(self, name: str = "kmsg", *, deaf: bool = False) -> None:
        self.name = name
        self.lost = 0
        self.closed = 0
        self.reads = 0
        self.threads = set[int]()
        self.waiting: list[str] = []
        self.failure: Exception | None = None
        self.endless: list[str] = []
        self._deaf = deaf
        self._reading, self._writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def put(self, *messages: str, lost: int = 0, failure: Exception | None = None) -> None:
        self.waiting += messages
        self.lost += lost
        self.failure = failure
        if not self._deaf:
            os.write(self._writing, b"x")

    def fileno(self) -> int:
        return self._reading

    def read(self) -> list[str]:
        assert not self.closed
        self.reads += 1
        self.threads.add(threading.get_ident())
        if select.select([self._reading], [], [], 0)[0]:
            os.read(self._reading, 4096)
        if self.failure is not None:
            raise self.failure
        taken, self.waiting = self.waiting, []
        return taken + self.endless

    def close(self) -> None:
        self.closed += 1
        self.threads.add(threading.get_ident())
        os.close(self._reading)
        os.close(self._writing)


class Bench:
    """A follower that finds these sources, one after the other, or meets these errors; and then nothing."""

    def __init__(self, *found: Source | Exception | None) -> None:
        self.left = list(found)
        self.configs: list[Config] = []
        self.events: list[DropEvent] = []
        self.changes = Changes()
        self.states: list[LogState] = []
        self.config = Watched(CONFIG)
        self.follower = LogFollower(self, self, self.config, VirtualClock(), self)

    def kernel_log(self, config: Config) -> Source | None:
        self.configs.append(config)
        found = self.left.pop(0) if self.left else None
        if isinstance(found, Exception):
            raise found
        if found is not None:
            found.threads.add(threading.get_ident())
        return found

    def notice(self, event: DropEvent) -> None:
        self.events.append(event)

    def set(self) -> None:
        self.states.append(self.follower.state)

    @property
    def ports(self) -> list[int]:
        return [event.port for event in self.events]


def following(
    work: Callable[[Bench], Coroutine[None, None, None]],
    *found: Source | Exception | None,
    run: Callable[[Coroutine[None, None, None]], None] = run,
) -> Bench:
    """Run this beside a follower, end that, and see that nothing of it is left."""
    bench = Bench(*found)

    async def whole() -> None:
        task = asyncio.create_task(bench.follower.run())
        try:
            await work(bench)
        finally:
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        for source in found:
            if isinstance(source, Source):
                assert source.closed == 1
                assert not asyncio.get_running_loop().remove_reader(source.fileno())

    run(whole())
    return bench


# One source


def test_drops_are_given_at_once_and_other_messages_are_not() -> None:
    source = Source()

    async def work(bench: Bench) -> None:
        for port in range(1, 6):
            await asyncio.sleep(5.1)
            source.put("usb 1-1: new device", line(port), "SIKKERGUARD", "")
            await asyncio.sleep(0.1)
            assert bench.events == [event(each) for each in range(1, port + 1)]

    bench = following(work, source)
    assert bench.states == [LogState("kmsg", 0)]
    assert bench.configs == [CONFIG]


def test_a_source_that_wakes_nobody_is_looked_at_every_second() -> None:
    source = Source(deaf=True)

    async def work(bench: Bench) -> None:
        await asyncio.sleep(10)
        assert 9 <= source.reads <= 11
        source.put(line(1))
        await asyncio.sleep(1.1)
        assert bench.ports == [1]

    following(work, source)


def test_what_was_lost_is_shown_when_it_grew() -> None:
    source = Source()

    async def work(bench: Bench) -> None:
        for lost in (5, 0, 2):
            await asyncio.sleep(1)
            source.put(line(1), lost=lost)
        await asyncio.sleep(1)

    assert following(work, source).states == [LogState("kmsg", 0), LogState("kmsg", 5), LogState("kmsg", 7)]


@pytest.mark.parametrize("size", [1, 256])
def test_a_flood_costs_little(size: int) -> None:
    source = Source()
    source.endless = [line(7), *["usb 1-1: new device"] * (size - 1)]

    async def work(bench: Bench) -> None:
        clock = asyncio.get_running_loop().time
        await asyncio.sleep(1)
        # What the processor really does against the time that is taken for it.
        began, spent, before = clock(), time.process_time(), len(bench.events)
        await asyncio.sleep(10)
        assert (time.process_time() - spent) / (clock() - began) < 0.04
        assert len(bench.events) - before > 5

    following(work, source)


def test_a_source_is_opened_followed_and_closed_by_one_thread() -> None:
    source = Source()

    async def work(bench: Bench) -> None:
        source.put(line(1), line(2), lost=3)
        async with asyncio.timeout(10):
            while bench.states != [LogState("kmsg", 0), LogState("kmsg", 3)] and bench.ports != [1, 2]:
                await asyncio.sleep(0.005)

    # In real time: threads are what this is about.
    following(work, source, run=asyncio.run)
    assert len(source.threads) == 1
    assert source.threads != {threading.get_ident()}


# Without a source, and when it ends


def test_without_a_source_it_is_tried_again_every_minute_by_the_settings_of_then() -> None:
    source = Source("journald")
    source.put(line(1))
    other = Config(log_source="journald")

    async def work(bench: Bench) -> None:
        await asyncio.sleep(70)
        bench.config.set(other)
        await asyncio.sleep(45)
        assert bench.ports == []
        await asyncio.sleep(10)
        assert bench.ports == [1]

    bench = following(work, None, None, source)
    assert bench.configs == [CONFIG, CONFIG, other]
    # Nobody is woken to hear that there is none still.
    assert bench.states == [LogState("journald", 0)]


def test_one_sentence_says_that_a_source_ended(caplog: pytest.LogCaptureFixture) -> None:
    source = Source()

    async def work(bench: Bench) -> None:
        source.put(line(1))
        await asyncio.sleep(1)
        source.put(failure=GONE)
        await asyncio.sleep(1)
        assert bench.follower.state == LogState("counters", 0)

    following(work, source)
    assert [(each.levelno, each.getMessage()) for each in caplog.records] == [
        (
            logging.WARNING,
            "The kernel's log in kmsg can't be read any more (No such device); blocked connections are counted all "
            "the same, by the kernel's counters; tried again every 60 s.",
        )
    ]


def test_a_source_that_ended_is_followed_by_the_next_and_losses_add_up() -> None:
    sources = [Source("journald"), Source("kmsg"), Source("kmsg"), Source("kmsg")]

    async def work(bench: Bench) -> None:
        for port, source in enumerate(sources, 1):
            source.put(line(port), lost=port)
            await asyncio.sleep(1)
            if source is not sources[-1]:
                source.put(failure=GONE)
                await asyncio.sleep(60)

    bench = following(work, *sources)
    assert bench.ports == [1, 2, 3, 4]
    assert [state.lost for state in bench.states if state.source == "counters"] == [1, 3, 6]
    assert bench.states[-1] == LogState("kmsg", 10)


def test_a_source_that_ends_again_and_again_is_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "sikkerguard")
    sources = [Source() for _ in range(6)]

    async def work(bench: Bench) -> None:
        for source in sources[:5]:
            source.put(failure=GONE)
        await asyncio.sleep(5 * 60 + 1)
        assert len(caplog.records) == 1
        # One that works for a while, and ends in the same way, is told of.
        await asyncio.sleep(100)
        sources[-1].put(failure=GONE)
        await asyncio.sleep(1)

    following(work, *sources)
    assert [each.levelno for each in caplog.records] == [logging.WARNING] * 2


def test_whatever_goes_wrong_in_a_source_ends_the_source_alone(caplog: pytest.LogCaptureFixture) -> None:
    sources = [Source(), Source(), Source(), Source()]
    for source in sources[:3]:
        source.put(failure=AttributeError("no such thing"))
    sources[-1].put(line(1))

    async def work(bench: Bench) -> None:
        await asyncio.sleep(181)
        assert bench.ports == [1]

    bench = following(work, *sources)
    assert [state.source for state in bench.states] == ["kmsg", "counters"] * 3 + ["kmsg"]
    # Once, and where it went wrong.
    assert [(each.levelno, each.getMessage(), bool(each.exc_info)) for each in caplog.records] == [
        (
            logging.ERROR,
            "The kernel's log can't be read any more (AttributeError: no such thing); blocked connections are counted "
            "all the same, by the kernel's counters; tried again every 60 s.",
            True,
        )
    ]


def test_whatever_goes_wrong_in_opening_a_source_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    source = Source()
    source.put(line(1))

    async def work(bench: Bench) -> None:
        await asyncio.sleep(121)
        assert bench.ports == [1]

    bench = following(work, KeyError("opened"), KeyError("opened"), source)
    assert bench.states == [LogState("kmsg", 0)]
    assert [(each.levelno, bool(each.exc_info)) for each in caplog.records] == [(logging.ERROR, True)]


def test_whatever_goes_wrong_in_closing_a_source_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    class Sticky(Source):
        def close(self) -> None:
            super().close()
            raise RuntimeError("it sticks")

    sticky, source = Sticky(), Source()
    sticky.put(failure=GONE)
    source.put(line(1))

    async def work(bench: Bench) -> None:
        await asyncio.sleep(61)
        assert bench.ports == [1]

    following(work, sticky, source)
    assert "RuntimeError: it sticks" in caplog.text


# A stop


def test_it_can_be_cancelled_while_a_source_is_being_opened() -> None:
    source, opening, go_on = Source(), threading.Event(), threading.Event()

    class Slow(Bench):
        def kernel_log(self, config: Config) -> Source | None:
            opening.set()
            assert go_on.wait(10)
            return super().kernel_log(config)

    async def work() -> None:
        task = asyncio.create_task(Slow(source).follower.run())
        assert await asyncio.to_thread(opening.wait, 10)
        task.cancel()
        await asyncio.sleep(0)
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert source.closed == 1
        assert source.reads == 0

    asyncio.run(work())


def test_it_can_be_cancelled_at_any_moment() -> None:
    for turn in range(1, 40):
        source = Source()
        source.put(line(1), line(2))

        async def work(bench: Bench, turn: int = turn, source: Source = source) -> None:
            for each in range(turn):
                await asyncio.sleep(0)
                if each == 20:
                    source.put(failure=GONE)

        following(work, source)
