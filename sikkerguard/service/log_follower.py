"""Following the kernel's log lines, as hints of what is blocked now: exact numbers come from the kernel's counters."""

from __future__ import annotations

import asyncio
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING

from sikkerguard.core.traffic.drop_line import parse_drop_line

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor

    from sikkerguard.core.interfaces import KernelLog
    from sikkerguard.core.traffic.sample import DropEvent

log = logging.getLogger(__name__)

# How often a source is looked at unasked: what wakes us for the journal, inotify, can be deaf.
_LOOK_SECONDS = 1.0
_RETRY_SECONDS = 60.0
# The part of one core's time that reading may take, whatever floods the log.
_SHARE = 0.02
# What one look costs in the loop and between threads, beside what is measured.
_LOOK_COSTS = 0.0003


async def follow(
    source: KernelLog,
    notice: Callable[[DropEvent], None],
    tell_lost: Callable[[int], None],
    executor: Executor | None = None,
) -> None:
    """Give each drop that the source tells of, and the number of lost records whenever it grew, until the source
    ends; then say so in one sentence. The source is read by threads of the executor, and left open."""
    log.warning("%s", await _follow(source, notice, tell_lost, executor))


async def watch_forever(
    open_source: Callable[[], KernelLog | None],
    notice: Callable[[DropEvent], None],
    tell: Callable[[str, int], None],
    retry_seconds: float = _RETRY_SECONDS,
) -> None:
    """Open a source, follow it, and try again every minute where there was none or it ended, in whichever way: what
    gives nothing but hints must not end the protection.

    `tell` gets the source's name, or `counters` without one, and the number of records lost since the beginning.
    """
    # One thread from the opening to the end: a journal may only be used by the thread that opened it.
    executor = ThreadPoolExecutor(1, thread_name_prefix="kernel-log")
    before = lost = 0
    said = ""

    def tell_all(name: str, number: int) -> None:
        nonlocal lost
        lost = before + number
        tell(name, lost)

    try:
        while True:
            began, before = time.monotonic(), lost
            level, trouble = logging.WARNING, None
            try:
                sentence = await _follow_one(open_source, notice, tell_all, executor)
            except Exception as error:  # noqa: BLE001 - of libraries that we do not know, say
                level, trouble = logging.ERROR, error
                sentence = _ended("The kernel's log", f"{type(error).__name__}: {error}")
            if sentence:
                # A source that ends again and again is told of once, and anew when it had worked for a while.
                again = sentence == said and time.monotonic() - began < retry_seconds
                log.log(logging.DEBUG if again else level, "%s", sentence, exc_info=None if again else trouble)
                said = sentence
            tell("counters", lost)
            await asyncio.sleep(retry_seconds)
    finally:
        executor.shutdown(wait=False)


async def _follow_one(
    open_source: Callable[[], KernelLog | None],
    notice: Callable[[DropEvent], None],
    tell: Callable[[str, int], None],
    executor: Executor,
) -> str:
    """How the source ended, or an empty text where there was none."""
    loop = asyncio.get_running_loop()
    held = _Held(open_source)
    try:
        source = await loop.run_in_executor(executor, held.open)
        if source is None:
            return ""
        name = source.name
        tell(name, source.lost)
        return await _follow(source, notice, lambda lost: tell(name, lost), executor)
    finally:
        # The thread comes to this after the opening, even where we were cancelled and did not wait for that.
        await loop.run_in_executor(executor, held.close)


class _Held:
    """A source between its opening and its closing, which are one thread's."""

    def __init__(self, open_source: Callable[[], KernelLog | None]) -> None:
        self._open = open_source
        self._source: KernelLog | None = None

    def open(self) -> KernelLog | None:
        self._source = self._open()
        return self._source

    def close(self) -> None:
        if self._source is not None:
            self._source.close()


async def _follow(
    source: KernelLog, notice: Callable[[DropEvent], None], tell_lost: Callable[[int], None], executor: Executor | None
) -> str:
    """How the source ended, in a sentence."""
    loop = asyncio.get_running_loop()
    lost = source.lost
    try:
        while True:
            events, more, spent = await loop.run_in_executor(executor, _look, source)
            started = time.thread_time()
            for event in events:
                notice(event)
            if source.lost != lost:
                lost = source.lost
                tell_lost(lost)
            spent += time.thread_time() - started + _LOOK_COSTS
            # What is overwritten meanwhile is counted as lost: lines are hints, and the kernel's counters count.
            await asyncio.sleep(spent / _SHARE - spent)
            if not more:
                await _readable(source.fileno())
    except OSError as error:
        return _ended(f"The kernel's log in {source.name}", error.strerror or str(error))


def _ended(what: str, why: str) -> str:
    return (
        f"{what} can't be read any more ({why}); blocked connections are counted all the same, by the kernel's "
        f"counters; tried again every {_RETRY_SECONDS:g} s."
    )


def _look(source: KernelLog) -> tuple[list[DropEvent], bool, float]:
    """The drops among the messages that are there, whether there were any messages, and the processor's seconds."""
    started = time.thread_time()
    messages = source.read()
    events = [event for message in messages if (event := parse_drop_line(message)) is not None]
    return events, bool(messages), time.thread_time() - started


async def _readable(descriptor: int) -> None:
    """Wait until there is something to read, or it is time to look."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(descriptor, ready.set)
    try:
        with suppress(TimeoutError):
            async with asyncio.timeout(_LOOK_SECONDS):
                await ready.wait()
    finally:
        loop.remove_reader(descriptor)
