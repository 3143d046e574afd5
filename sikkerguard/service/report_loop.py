"""Reporting what was blocked: every interval, within the day's quota, each row once.

Nothing here can hold up the blocking. What fails is said in one sentence, waits in the outbox, and is tried again; what
may have been accepted is not.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from sikkerguard.core.durations import duration_text
from sikkerguard.core.reports.outcomes import ReportStats
from sikkerguard.core.reports.rows import row_of
from sikkerguard.core.reports.sentences import dropped_line, reported_line, spent_line, unanswered_line
from sikkerguard.core.schedule import jittered, retry_delay
from sikkerguard.core.traffic.totals import day_of
from sikkerguard.errors import FetchError, RecordError, Unanswered, as_sentence
from sikkerguard.service.report_screen import ReportScreening
from sikkerguard.service.report_sender import ReportSender
from sikkerguard.service.said import Said

if TYPE_CHECKING:
    from sikkerguard.config.settings import Config
    from sikkerguard.core.host.surroundings import HostAllowlist
    from sikkerguard.core.interfaces import Clock, ReportOutbox, Signal
    from sikkerguard.service.disk_thread import DiskThread
    from sikkerguard.service.report_screen import ListedSources
    from sikkerguard.service.report_sender import ReportClients, ReportEndpoint
    from sikkerguard.service.wakeup import Wakeup, Watched

log = logging.getLogger(__name__)

# The first round comes soon, so that a service that is restarted again and again reports too.
_FIRST_SECONDS = 60.0
# How often the state is read anew while nothing is sent: days pass, and counting drops rows.
_REFRESH_SECONDS = 1.0
# At a stop, a request that is on its way has so long to be answered.
_LAST_SECONDS = 2.0
# Requests of one round: enough for all that may wait, be each second one refused, and an end for what has none.
_MAX_REQUESTS = 100
# A longer pause than this can only come from a clock that was set back: it is ignored. In seconds.
_MAX_PAUSE = 2.0 * 86400


class ReportLoop:
    """`run` is its whole life; `state` is how reporting stands, and `changes` is set when it has changed.

    The settings, the allowlist and the list in force are read anew for each round and each request. `disk` is the
    thread of the records. `healed` is set where the records can be written again; the loop waits for it, and for a
    change of the settings. `clock` is time and chance.
    """

    work = "reporting"

    def __init__(
        self,
        outbox: ReportOutbox,
        clients: ReportClients,
        config: Watched[Config],
        allowlist: Watched[HostAllowlist],
        lists: ListedSources,
        endpoint: ReportEndpoint,
        disk: DiskThread,
        clock: Clock,
        healed: Wakeup,
        changes: Signal,
    ) -> None:
        self._outbox = outbox
        self._config, self._endpoint = config, endpoint
        self._disk, self._clock, self._changes = disk, clock, changes
        self._screening = ReportScreening(config, allowlist, lists)
        self._sender = ReportSender(outbox, clients, config, self._screening, disk, clock)
        self._wakeup = healed
        config.wake(healed)
        # The settings that the last round began with.
        self._known = config.value
        self._recovered = False
        # Why nothing is sent, and how often in a row that was so: the disk refuses, or SikkerAPI does, which is not
        # asked before this time (Unix seconds).
        self._disk_trouble, self._disk_failures = Said(log), 0
        self._trouble, self._failures, self._not_before = "", 0, 0.0
        # The day and the key for which it was said that the quota is used up.
        self._spent: tuple[int, str] | None = None
        self._dropped: int | None = None
        self.state = ReportStats()

    async def run(self) -> None:
        """Report until cancelled; a request that is on its way then has two seconds to come to its end."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._refresh_forever())
            pause = min(self._config.value.report_interval, _FIRST_SECONDS)
            while True:
                await self._wait(pause)
                pause = await self.report_once()

    async def report_once(self) -> float:
        """One round. Returns the seconds until the next one."""
        config = self._config.value
        if config is not self._known:
            # What failed by other settings is tried at once.
            self._known, self._failures, self._not_before = config, 0, 0.0
        interval = jittered(config.report_interval, self._clock.random)
        try:
            await self._gather(config)
            self._disk_trouble.say("")
            self._disk_failures = 0
            wait = self._not_before - self._clock.wall()
            if 0 < wait < _MAX_PAUSE:
                return min(wait, interval)
            if await self._open_endpoint(config):
                # SikkerAPI's own new address may be among the rows.
                await self._gather(config)
            await self._send_all(config)
            self._failures, self._trouble = 0, ""
        except RecordError as error:
            return min(self._disk_failed(error), interval)
        except FetchError as error:
            return min(self._failed(error, config), interval)
        finally:
            self._publish(self.state)
            if self._sender.reported:
                log.info("%s", reported_line(self._sender.reported))
                self._sender.reported.clear()
        return interval if self._config.value is config else 0.0

    async def _wait(self, seconds: float) -> None:
        """Until so many seconds have passed, or the settings changed, or records that failed can be written again."""
        due = self._clock.monotonic() + seconds
        while await self._wakeup.wait(due - self._clock.monotonic()):
            if self._config.value is not self._known or self._disk_trouble.sentence:
                return

    async def _gather(self, config: Config) -> None:
        """Move what was blocked into the outbox, and resolve requests that a dead process left open."""
        if not self._recovered:
            found = await self._disk.run(self._outbox.recover)
            self._recovered = True
            if found.unanswered:
                log.warning("%s", unanswered_line("The service ended before SikkerAPI answered", found.unanswered))
            if found.waiting:
                log.info("%d reports had not left yet when the service ended; they wait again.", found.waiting)
        await self._sender.flush()
        if self._dropped is None:
            await self._refresh()
            self._dropped = self.state.dropped
        if not config.report_enabled:
            await self._disk.run(self._outbox.discard)
        elif (screen := await self._screening.now()) is not None:
            make_row = partial(row_of, port_map=config.port_map, spoofable=config.report_spoofable)
            await self._disk.run(self._outbox.gather, day_of(self._clock.wall()), make_row, screen)
        await self._refresh()
        if self.state.dropped > self._dropped:
            log.warning("%s", dropped_line(self.state.dropped - self._dropped))
        self._dropped = self.state.dropped

    async def _open_endpoint(self, config: Config) -> bool:
        """Where there is something to send, find where to. Returns whether other addresses are allowed by it."""
        if not self.state.waiting or self.state.quota_remaining == 0 or not config.report_enabled:
            return False
        return await self._endpoint.open(config)

    async def _send_all(self, config: Config) -> None:
        """Send requests until nothing waits, the day's quota is used up, or the settings change: a source that was
        allowed by that is still among the rows, and another round begins at once."""
        more, requests = config.report_enabled, 0
        while more and requests < _MAX_REQUESTS and self.state.waiting and self._config.value is config:
            requests += 1
            step = asyncio.create_task(self._sender.send_next(config))
            try:
                more = await asyncio.shield(step)
            except asyncio.CancelledError:
                await _end(step)
                raise
            except FetchError:
                await self._refresh()
                raise
            await self._refresh()
        self._say_spent()

    async def _refresh_forever(self) -> None:
        while True:
            # A disk that refuses is met, and said, by the next round.
            with suppress(RecordError):
                await self._refresh()
            await asyncio.sleep(_REFRESH_SECONDS)

    async def _refresh(self) -> None:
        """Read the state from the outbox."""
        day, key = day_of(self._clock.wall()), self._config.value.api_key
        self._publish(await self._disk.run(self._outbox.stats, day, key))

    def _publish(self, stats: ReportStats) -> None:
        trouble = self._disk_trouble.sentence or self._trouble or spent_line(stats)
        state = replace(stats, trouble=trouble)
        if state != self.state:
            self.state = state
            self._changes.set()

    def _disk_failed(self, error: RecordError) -> float:
        """Say it, once. Returns the seconds until the next try."""
        self._disk_failures += 1
        self._disk_trouble.say(
            f"{as_sentence(error)}; nothing is reported meanwhile, since it could be reported twice; blocking goes on, "
            "and it is tried again."
        )
        return retry_delay(error, self._disk_failures, self._clock.random)

    def _failed(self, error: FetchError, config: Config) -> float:
        """Say it. Returns the seconds until the next try: none where the settings have changed since the round began,
        since the failure says nothing about the new ones."""
        pause = 0.0
        if self._config.value is config:
            self._failures += 1
            pause = retry_delay(error, self._failures, self._clock.random)
            self._not_before = self._clock.wall() + pause
        again = time.strftime("%H:%M", time.gmtime(self._clock.wall() + pause))
        stays = f"blocking and counting go on, {self.state.waiting} rows wait; next try"
        self._trouble = f"{as_sentence(error)}; {stays} at {again} UTC."
        if isinstance(error, Unanswered):  # what happened is said already, and what it means for its rows
            log.warning("%s in %s.", stays[:1].upper() + stays[1:], duration_text(pause))
        else:
            log.error("%s; %s in %s.", as_sentence(error), stays, duration_text(pause))
        return pause

    def _say_spent(self) -> None:
        now = day_of(self._clock.wall()), self._config.value.api_key
        if (line := spent_line(self.state)) and now != self._spent:
            self._spent = now
            log.warning("%s", line)


async def _end(step: asyncio.Task[bool]) -> None:
    """Let a request that is on its way come to its end, or else have it decided by how far it got."""
    await asyncio.wait({step}, timeout=_LAST_SECONDS)
    step.cancel()
    await asyncio.wait({step})
    if not step.cancelled() and step.exception() is not None:
        log.debug("reporting ended by the stop: %s", step.exception())
