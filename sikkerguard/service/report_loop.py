"""Reporting what was blocked: every interval, within the day's quota, each row once.

Nothing here can hold up the blocking. What fails is said in one sentence, waits in the outbox, and is tried again; what
may have been accepted is not.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from sikkerguard.core.durations import duration_text
from sikkerguard.core.reports.rows import dropped_line, reported_line, row_of, spent_line
from sikkerguard.core.reports.stats import ReportStats
from sikkerguard.core.schedule import jittered, retry_delay
from sikkerguard.core.traffic.totals import day_of
from sikkerguard.errors import FetchError, RecordError, UnansweredError, as_sentence
from sikkerguard.service.disk_thread import DiskThread
from sikkerguard.service.report_screen import ReportScreening
from sikkerguard.service.report_sender import ReportSender

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from sikkerguard.config.settings import Config
    from sikkerguard.core.interfaces import Recovered, ReportClient, ReportOutbox
    from sikkerguard.core.lists.allowlist import AllowEntry
    from sikkerguard.core.lists.sources import ListedSource
    from sikkerguard.errors import SikkerGuardError

log = logging.getLogger(__name__)

# The first round comes soon, so that a service that is restarted again and again reports too.
_FIRST_SECONDS = 60.0
# How old what is shown may be while nothing happens: days pass, and what had no room is counted elsewhere.
_SHOW_SECONDS = 1.0
# At a stop, a request that is on its way has so long to be answered.
_LAST_SECONDS = 2.0
# Requests of one round: enough for all that may wait, be each second one refused, and an end for what has none.
_MOST_REQUESTS = 100
# What is further ahead was not said by a server: the clock was put back.
_LONGEST_PAUSE = 2.0 * 86400


class ReportLoop:
    """`report_forever` is its whole life. `config`, `allowed`, all that may never be blocked, and `lists`, those in
    force or None where none is known, are asked anew each round and before each request, `make_api` in a thread and
    only when there is something to send; `tell` hears how reporting stands. `reach` is asked before that: it finds the
    way to SikkerAPI, says whether what may never be blocked has changed by it, and raises `FetchError` where there is
    none. `disk` is the thread of the records. `clock` (Unix seconds), `chance` and `retry` are for tests to put in."""

    def __init__(
        self,
        outbox: ReportOutbox,
        make_api: Callable[[Config], ReportClient],
        config: Callable[[], Config],
        allowed: Callable[[], Iterable[AllowEntry]],
        lists: Callable[[], tuple[ListedSource, ...] | None],
        tell: Callable[[ReportStats], None],
        *,
        reach: Callable[[Config], Awaitable[bool]] | None = None,
        disk: DiskThread | None = None,
        clock: Callable[[], float] = time.time,
        chance: Callable[[], float] = random.random,
        retry: Callable[[SikkerGuardError, int, Callable[[], float]], float] = retry_delay,
    ) -> None:
        self._outbox = outbox
        self._screening = ReportScreening(config, allowed, lists)
        self._disk = disk or DiskThread("records")
        self._sender = ReportSender(outbox, make_api, self._screening, clock, self._disk)
        self._config = config
        self._tell = tell
        self._reach = reach
        self._clock = clock
        self._chance = chance
        self._retry = retry
        self._woken = asyncio.Event()
        self._wakes = 0
        self._recovered = False
        self._failures = 0
        self._not_before = 0.0
        # Why nothing is sent: what the disk refused, and how often in a row, and what SikkerAPI did.
        self._disk_trouble = ""
        self._refusals = 0
        self._trouble = ""
        self._spent: tuple[int, str] | None = None
        self._dropped: int | None = None
        self.numbers = ReportStats()

    def wake(self) -> None:
        """The configuration changed: report now, whatever was the matter before."""
        self._failures, self._not_before = 0, 0.0
        self._wakes += 1
        self._woken.set()

    def disk_healed(self) -> None:
        """The records can be written again: what was refused for their sake is tried now."""
        if self._disk_trouble:
            self._woken.set()

    async def report_forever(self) -> None:
        """Report until cancelled; a request that is on its way then has two seconds to come to its end."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._show_forever())
            pause = min(self._config().report_interval, _FIRST_SECONDS)
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self._woken.wait()
                self._woken.clear()
                pause = await self.report_once()

    async def report_once(self) -> float:
        """One round; gives the seconds until the next."""
        config, wakes = self._config(), self._wakes
        interval = jittered(config.report_interval, self._chance)
        try:
            await self._gather(config)
            self._disk_trouble, self._refusals = "", 0
            wait = self._not_before - self._clock()
            if 0 < wait < _LONGEST_PAUSE:
                return min(wait, interval)
            if await self._reached(config):
                # SikkerAPI's own new address may be among the rows.
                await self._gather(config)
            await self._send_all(wakes)
            self._failures, self._trouble = 0, ""
        except RecordError as error:
            return min(self._disk_failed(error), interval)
        except FetchError as error:
            return min(self._failed(error, woken=wakes != self._wakes), interval)
        finally:
            self._publish()
            if self._sender.reported:
                log.info("%s", reported_line(self._sender.reported))
                self._sender.reported.clear()
        return interval if wakes == self._wakes else 0.0

    async def _gather(self, config: Config) -> None:
        """Have all that was blocked in the outbox, and nothing there that is neither waiting nor done with."""
        if not self._recovered:
            found = await self._disk.run(self._outbox.recover)
            self._recovered = True
            _say_recovered(found)
        await self._sender.pay()
        if self._dropped is None:
            await self._show()
            self._dropped = self.numbers.dropped
        if not config.report_enabled:
            await self._disk.run(self._outbox.discard)
        elif (screen := await self._screening.now()) is not None:
            decide = partial(row_of, port_map=config.port_map, spoofable=config.report_spoofable)
            await self._disk.run(self._outbox.gather, day_of(self._clock()), decide, screen)
        await self._show()
        if self.numbers.dropped > self._dropped:
            log.warning("%s", dropped_line(self.numbers.dropped - self._dropped))
        self._dropped = self.numbers.dropped

    async def _reached(self, config: Config) -> bool:
        """Have a way to SikkerAPI where there is something to send; says whether other addresses are allowed by it."""
        nothing = not self.numbers.waiting or self.numbers.quota_remaining == 0
        if self._reach is None or nothing or not config.report_enabled:
            return False
        return await self._reach(config)

    async def _send_all(self, wakes: int) -> None:
        """Send requests until nothing waits, the day's quota is used up, or nobody wants it any more."""

        def wanted() -> bool:
            # Who was allowed a moment ago is still among the rows: another round sees to it, and begins at once.
            return self._wakes == wakes and self._config().report_enabled

        more, requests = True, 0
        while more and requests < _MOST_REQUESTS and self.numbers.waiting and wanted():
            requests += 1
            step = asyncio.create_task(self._sender.send_next(self._config(), wanted))
            try:
                more = await asyncio.shield(step)
            except asyncio.CancelledError:
                await _end(step)
                raise
            except FetchError:
                await self._show()
                raise
            await self._show()
        self._say_spent()

    async def _show_forever(self) -> None:
        while True:
            # A disk that refuses is met, and said, by the next round.
            with suppress(RecordError):
                await self._show()
            await asyncio.sleep(_SHOW_SECONDS)

    async def _show(self) -> None:
        self.numbers = await self._disk.run(self._outbox.numbers, day_of(self._clock()), self._config().api_key)
        self._publish()

    def _publish(self) -> None:
        trouble = self._disk_trouble or self._trouble or spent_line(self.numbers)
        self._tell(replace(self.numbers, trouble=trouble))

    # What is said

    def _disk_failed(self, error: RecordError) -> float:
        """Say it, once; gives the seconds until the next try."""
        self._refusals += 1
        trouble = (
            f"{as_sentence(error)}; nothing is reported meanwhile, since it could be reported twice; blocking goes on, "
            "and it is tried again."
        )
        if trouble != self._disk_trouble:
            log.error("%s", trouble)
        self._disk_trouble = trouble
        return self._retry(error, self._refusals, self._chance)

    def _failed(self, error: FetchError, *, woken: bool) -> float:
        """Say it, once; gives the seconds until the next try. A configuration that is newer than the failure has
        nothing to do with it."""
        pause = 0.0
        if not woken:
            self._failures += 1
            pause = self._retry(error, self._failures, self._chance)
        again = self._clock() + pause
        if not woken:
            self._not_before = again
        stays = f"blocking and counting go on, {self.numbers.waiting} rows wait; next try"
        self._trouble = f"{as_sentence(error)}; {stays} at {time.strftime('%H:%M', time.gmtime(again))} UTC."
        if isinstance(error, UnansweredError):  # what happened is said already, and what it means for its rows
            log.warning("%s in %s.", stays[:1].upper() + stays[1:], duration_text(pause))
        else:
            log.error("%s; %s in %s.", as_sentence(error), stays, duration_text(pause))
        return pause

    def _say_spent(self) -> None:
        now = day_of(self._clock()), self._config().api_key
        if (line := spent_line(self.numbers)) and now != self._spent:
            self._spent = now
            log.warning("%s", line)


async def _end(step: asyncio.Task[bool]) -> None:
    """Let a request that is on its way come to its end, or else have it decided by how far it got."""
    await asyncio.wait({step}, timeout=_LAST_SECONDS)
    step.cancel()
    await asyncio.wait({step})
    if not step.cancelled() and step.exception() is not None:
        log.debug("reporting ended by the stop: %s", step.exception())


def _say_recovered(found: Recovered) -> None:
    if found.unanswered:
        log.warning(
            "The service ended before SikkerAPI answered: %d reports may have been accepted; the server does not tell "
            "reports apart, so they are not sent again.",
            found.unanswered,
        )
    if found.waiting:
        log.info("%d reports had not left yet when the service ended; they wait again.", found.waiting)
