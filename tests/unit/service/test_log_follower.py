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

from sikkerguard.core.net.family import Family
from sikkerguard.core.traffic.sample import DropEvent
from sikkerguard.service.log_follower import follow, watch_forever

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

HEAD = "SIKKERGUARD IN=eth0 OUT= MAC= SRC=198.51.100.7 DST=198.51.100.10 LEN=40 TOS=0x00 PREC=0x00 TTL=64 ID=1 "
GONE = OSError(errno.ENODEV, "No such device")


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
        self.threads = {threading.get_ident()}
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


class Watcher:
    """What a follower was told."""

    def __init__(self) -> None:
        self.events: list[DropEvent] = []
        self.lost: list[int] = []
        self.told: list[tuple[str, int]] = []

    def tell(self, name: str, lost: int) -> None:
        self.told.append((name, lost))

    async def sees(self, number: int, seconds: float = 10.0) -> None:
        """Wait for so many drops."""
        await until("the drop", lambda: len(self.events) == number, seconds)

    def ends(self) -> list[int]:
        """How much was lost each time when there was no source any more."""
        return [lost for name, lost in self.told if name == "counters"]


async def until(what: str, condition: Callable[[], object], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s"
        await asyncio.sleep(0.005)


async def cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def following(
    work: Callable[[Source, Watcher, asyncio.Task[None]], Coroutine[None, None, None]], source: Source
) -> None:
    """Run this beside a follower of the source, end the follower, and see that nothing of it is left in the loop."""
    watcher = Watcher()

    async def run() -> None:
        task = asyncio.create_task(follow(source, watcher.events.append, watcher.lost.append))
        try:
            await work(source, watcher, task)
        finally:
            if not task.done():
                await cancelled(task)
        assert not asyncio.get_running_loop().remove_reader(source.fileno())

    asyncio.run(run())
    source.close()


def test_drops_are_given_at_once_and_other_messages_are_not() -> None:
    async def work(source: Source, watcher: Watcher, task: asyncio.Task[None]) -> None:
        for port in range(1, 6):
            await asyncio.sleep(0.05)
            source.put("usb 1-1: new device", line(port), "SIKKERGUARD", "")
            await watcher.sees(port, 0.9)
        assert watcher.events == [event(port) for port in range(1, 6)]
        assert watcher.lost == []
        assert not source.closed

    following(work, Source())


def test_a_source_that_wakes_nobody_is_looked_at_every_second() -> None:
    async def work(source: Source, watcher: Watcher, task: asyncio.Task[None]) -> None:
        await until("the first look", lambda: source.reads)
        source.put(line(1))
        await watcher.sees(1)
        # About one look a second, no more.
        before = source.reads
        await asyncio.sleep(1.5)
        assert source.reads - before <= 2

    following(work, Source(deaf=True))


def test_what_was_lost_is_told_when_it_grew() -> None:
    async def work(source: Source, watcher: Watcher, task: asyncio.Task[None]) -> None:
        await until("the first look", lambda: source.reads)
        assert watcher.lost == []
        source.put(line(1), lost=5)
        await until("the number", lambda: watcher.lost == [5])
        source.put(line(2))
        await watcher.sees(2)
        source.put(lost=2)
        await until("the number", lambda: watcher.lost == [5, 7])

    following(work, Source())


@pytest.mark.parametrize("size", [1, 256])
def test_a_flood_costs_little(size: int) -> None:
    source = Source()
    source.endless = [line(7), *["usb 1-1: new device"] * (size - 1)]

    async def work(source: Source, watcher: Watcher, task: asyncio.Task[None]) -> None:
        await until("the first drops", lambda: len(watcher.events) > 3)
        began, spent, before = time.monotonic(), time.process_time(), len(watcher.events)
        await asyncio.sleep(2)
        share = (time.process_time() - spent) / (time.monotonic() - began)
        assert share < 0.04
        assert len(watcher.events) - before > 5

    following(work, source)


def test_one_sentence_says_that_a_source_ended(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "sikkerguard")

    async def work(source: Source, watcher: Watcher, task: asyncio.Task[None]) -> None:
        source.put(line(1))
        await watcher.sees(1)
        source.put(failure=GONE)
        await asyncio.wait_for(task, 10)

    following(work, Source())
    assert [(each.levelno, each.getMessage()) for each in caplog.records] == [
        (
            logging.WARNING,
            "The kernel's log in kmsg can't be read any more (No such device); blocked connections are counted all "
            "the same, by the kernel's counters; tried again every 60 s.",
        )
    ]


def watching(
    work: Callable[[Watcher, asyncio.Task[None]], Coroutine[None, None, None]],
    *found: Source | None,
    retry_seconds: float = 0.05,
) -> Watcher:
    """Run this beside a watcher who finds these sources, one after the other, and then none."""
    watcher = Watcher()
    left = list(found)

    def open_source() -> Source | None:
        source = left.pop(0) if left else None
        if source is not None:
            source.threads = {threading.get_ident()}
        return source

    async def run() -> None:
        task = asyncio.create_task(watch_forever(open_source, watcher.events.append, watcher.tell, retry_seconds))
        try:
            await work(watcher, task)
        finally:
            await cancelled(task)

    asyncio.run(run())
    return watcher


def test_a_source_is_opened_followed_and_closed_by_one_thread() -> None:
    source = Source()

    async def work(watcher: Watcher, task: asyncio.Task[None]) -> None:
        source.put(line(1), line(2))
        await watcher.sees(2)
        source.put(lost=3)
        await until("the number", lambda: len(watcher.told) == 2)

    watcher = watching(work, source)
    assert watcher.events == [event(1), event(2)]
    assert watcher.told == [("kmsg", 0), ("kmsg", 3)]
    assert source.closed == 1
    assert len(source.threads) == 1
    assert source.threads != {threading.get_ident()}


def test_without_a_source_it_is_tried_again() -> None:
    source = Source("journald")

    async def work(watcher: Watcher, task: asyncio.Task[None]) -> None:
        source.put(line(1))
        await watcher.sees(1)

    watcher = watching(work, None, None, source)
    assert watcher.told == [("counters", 0), ("counters", 0), ("journald", 0)]
    assert source.closed == 1


def test_a_source_that_ended_is_followed_by_the_next_and_losses_add_up(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "sikkerguard")
    sources = [Source("journald"), Source("kmsg"), Source("kmsg"), Source("kmsg")]

    async def work(watcher: Watcher, task: asyncio.Task[None]) -> None:
        for port, source in enumerate(sources, 1):
            source.put(line(port), lost=port)
            await watcher.sees(port)
            if source is sources[-1]:
                break
            source.put(failure=GONE)
            await until("the end", lambda: len(watcher.ends()) == watcher.events[-1].port)

    watcher = watching(work, *sources)
    assert [source.closed for source in sources] == [1, 1, 1, 1]
    assert watcher.ends() == [1, 3, 6]
    assert watcher.told[-1] == ("kmsg", 10)
    sentences = [each.getMessage().partition(" can't")[0] for each in caplog.records]
    assert sentences == [f"The kernel's log in {name}" for name in ("journald", "kmsg", "kmsg")]
    assert [each.levelno for each in caplog.records[:2]] == [logging.WARNING] * 2


def test_a_source_that_ends_again_and_again_is_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "sikkerguard")
    sources = [Source() for _ in range(5)]
    for source in sources:
        source.put(failure=GONE)

    async def work(watcher: Watcher, task: asyncio.Task[None]) -> None:
        await until("the end of all", lambda: all(source.closed for source in sources))
        await until("word of it", lambda: len(watcher.told) >= 10)

    # Each lives for less than this.
    watching(work, *sources, retry_seconds=0.5)
    assert [each.levelno for each in caplog.records] == [logging.WARNING, *[logging.DEBUG] * 4]


def test_whatever_goes_wrong_in_a_source_ends_the_source_alone(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "sikkerguard")
    sources = [Source(), Source(), Source(), Source()]
    for source in sources[:3]:
        source.put(failure=AttributeError("no such thing"))

    async def work(watcher: Watcher, task: asyncio.Task[None]) -> None:
        sources[-1].put(line(1))
        await watcher.sees(1)
        assert not task.done()

    watcher = watching(work, *sources, retry_seconds=0.2)
    assert [source.closed for source in sources] == [1, 1, 1, 1]
    assert [name for name, _ in watcher.told] == ["kmsg", "counters"] * 3 + ["kmsg"]
    assert [each.levelno for each in caplog.records] == [logging.ERROR, logging.DEBUG, logging.DEBUG]
    assert caplog.records[0].getMessage() == (
        "The kernel's log can't be read any more (AttributeError: no such thing); blocked connections are counted all "
        "the same, by the kernel's counters; tried again every 60 s."
    )
    # Where it went wrong, once.
    assert [bool(each.exc_info) for each in caplog.records] == [True, False, False]


def test_whatever_goes_wrong_in_opening_a_source_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    source = Source()
    outcomes: list[Exception | Source] = [KeyError("opened"), KeyError("opened"), source]

    def open_source() -> Source:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def run() -> None:
        watcher = Watcher()
        task = asyncio.create_task(watch_forever(open_source, watcher.events.append, watcher.tell, 0.05))
        source.put(line(1))
        await watcher.sees(1)
        await cancelled(task)
        assert [name for name, _ in watcher.told] == ["counters", "counters", "kmsg"]

    asyncio.run(run())
    assert [(each.levelno, bool(each.exc_info)) for each in caplog.records] == [(logging.ERROR, True)]


def test_whatever_goes_wrong_in_closing_a_source_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    class Sticky(Source):
        def close(self) -> None:
            super().close()
            raise RuntimeError("it sticks")

    sticky, source = Sticky(), Source()
    sticky.put(failure=GONE)

    async def work(watcher: Watcher, task: asyncio.Task[None]) -> None:
        source.put(line(1))
        await watcher.sees(1)

    watching(work, sticky, source)
    assert "RuntimeError: it sticks" in caplog.text
    assert (sticky.closed, source.closed) == (1, 1)


def test_it_can_be_cancelled_while_a_source_is_being_opened() -> None:
    source = Source()
    opening, go_on = threading.Event(), threading.Event()

    def open_source() -> Source:
        opening.set()
        go_on.wait(10)
        return source

    async def run() -> None:
        task = asyncio.create_task(watch_forever(open_source, print, print))
        await until("the opening", opening.is_set)
        task.cancel()
        await asyncio.sleep(0)
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert source.closed == 1
        assert source.reads == 0

    asyncio.run(run())


def test_it_can_be_cancelled_while_it_waits_for_the_next_try() -> None:
    async def work(watcher: Watcher, task: asyncio.Task[None]) -> None:
        await until("word", lambda: watcher.told)

    assert watching(work, retry_seconds=60).told == [("counters", 0)]
