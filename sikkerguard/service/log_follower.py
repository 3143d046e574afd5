"""Following the kernel's log lines, as hints of what is blocked now: exact numbers come from the kernel's counters."""

from __future__ import annotations

import asyncio
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from sikkerguard.core.state import LogState
from sikkerguard.core.traffic.drop_line import parse_drop_line
from sikkerguard.service.said import Said
from sikkerguard.service.wakeup import Wakeup, Watched

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from sikkerguard.config.settings import Config
    from sikkerguard.core.interfaces import Clock, KernelLog, Signal
    from sikkerguard.core.traffic.sample import DropEvent

log = logging.getLogger(__name__)

# How often a source is looked at unasked: what wakes us for the journal, inotify, can be deaf.
_LOOK_SECONDS = 1.0
_RETRY_SECONDS = 60.0
# The part of one core's time that reading may take, whatever floods the log.
_READING_SHARE = 0.02
# What one look costs in the loop and between threads, beside what is measured, in seconds of the processor.
_LOOK_COSTS = 0.0003


class DropHints(Protocol):
    """Takes hints of dropped packets."""

    def notice(self, event: DropEvent) -> None:
        """A line of the kernel's log tells of this drop. It proves nothing."""


class KernelLogs(Protocol):
    """Opens the kernel's log."""

    def kernel_log(self, config: Config) -> KernelLog | None:
        """The kernel's log lines, or None where they can't be read. To be used by the thread that calls this."""


class LogFollower:
    """Gives each drop that the kernel's log tells of to `hints`. Where there is no log, or it ended in whichever way,
    it is tried again every minute: what gives nothing but hints must not end the protection."""

    work = "following the kernel's log"

    def __init__(
        self,
        logs: KernelLogs,
        hints: DropHints,
        config: Watched[Config],
        clock: Clock,
        changes: Signal,
    ) -> None:
        self._logs = logs
        self._hints = hints
        self._config = config
        self._clock = clock
        self._changes = changes
        self.state = LogState()

    async def run(self) -> None:
        """Follow until cancelled."""
        # One thread from the opening to the end: a journal may only be used by the thread that opened it.
        executor = ThreadPoolExecutor(1, thread_name_prefix="kernel-log")
        said = Said(log)
        try:
            while True:
                began = self._clock.monotonic()
                level, trouble = logging.WARNING, None
                try:
                    sentence = await self._follow_one(executor)
                except Exception as error:  # noqa: BLE001 - of libraries that we do not know, say
                    level, trouble = logging.ERROR, error
                    sentence = _ended("The kernel's log", f"{type(error).__name__}: {error}")
                # A source that ends again and again is said once, and anew when it had worked for a while.
                if self._clock.monotonic() - began >= _RETRY_SECONDS:
                    said.sentence = ""
                if sentence:
                    said.say(sentence, level, trouble)
                self._note(replace(self.state, source="counters"))
                await asyncio.sleep(_RETRY_SECONDS)
        finally:
            executor.shutdown(wait=False)

    async def _follow_one(self, executor: Executor) -> str:
        """Follow one source to its end. Returns how it ended, or an empty text where there was none."""
        loop = asyncio.get_running_loop()
        opened = ExitStack()
        try:
            source = await loop.run_in_executor(executor, _open, self._logs, self._config.value, opened)
            return "" if source is None else await self._follow(source, executor)
        finally:
            # The thread comes to this after the opening, even where we were cancelled and did not wait for that.
            await loop.run_in_executor(executor, opened.close)

    async def _follow(self, source: KernelLog, executor: Executor) -> str:
        loop = asyncio.get_running_loop()
        earlier = self.state.lost
        self._note(LogState(source.name, earlier + source.lost))
        try:
            while True:
                events, more, spent = await loop.run_in_executor(executor, _read_batch, source)
                started = time.thread_time()
                for event in events:
                    self._hints.notice(event)
                self._note(LogState(source.name, earlier + source.lost))
                spent += time.thread_time() - started + _LOOK_COSTS
                # What is overwritten meanwhile is counted as lost: lines are hints, and the kernel's counters count.
                await asyncio.sleep(spent / _READING_SHARE - spent)
                if not more:
                    await _readable(source.fileno())
        except OSError as error:
            self._note(LogState(source.name, earlier + source.lost))
            return _ended(f"The kernel's log in {source.name}", error.strerror or str(error))

    def _note(self, state: LogState) -> None:
        if state != self.state:
            self.state = state
            self._changes.set()


def _open(logs: KernelLogs, config: Config, opened: ExitStack) -> KernelLog | None:
    source = logs.kernel_log(config)
    if source is not None:
        opened.callback(source.close)
    return source


def _ended(what: str, why: str) -> str:
    return (
        f"{what} can't be read any more ({why}); blocked connections are counted all the same, by the kernel's "
        f"counters; tried again every {_RETRY_SECONDS:g} s."
    )


def _read_batch(source: KernelLog) -> tuple[list[DropEvent], bool, float]:
    """The drops among the messages that are there, whether there were any messages, and the processor's seconds."""
    started = time.thread_time()
    messages = source.read()
    events = [event for message in messages if (event := parse_drop_line(message)) is not None]
    return events, bool(messages), time.thread_time() - started


async def _readable(descriptor: int) -> None:
    """Wait until there is something to read, or it is time to look."""
    loop = asyncio.get_running_loop()
    ready = Wakeup()
    loop.add_reader(descriptor, ready.set)
    try:
        await ready.wait(_LOOK_SECONDS)
    finally:
        loop.remove_reader(descriptor)
