"""Reporting what was blocked: every interval, within the day's quota, each row once.

Nothing here can hold up the blocking. What fails is said in one sentence, waits in the outbox, and is tried again; what
may have been accepted is not.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import Counter
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Protocol

from sikkerguard.core.ledger import day_of
from sikkerguard.core.model import ReportNumbers
from sikkerguard.core.reports import MOST_ROWS, judge, rejected_line, reported_line, row_of
from sikkerguard.core.schedule import duration_text, next_pull, next_try
from sikkerguard.errors import FetchError, RecordError, UnansweredError, as_sentence

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Mapping

    from sikkerguard.config import Config
    from sikkerguard.core.reports import Parcel, ReportAnswer, Row, Verdict
    from sikkerguard.errors import SikkerGuardError

log = logging.getLogger(__name__)

_DAY_SECONDS = 86400
# The first round comes soon, so that a service that is restarted again and again reports too.
_FIRST_SECONDS = 60.0
# At a stop, a request that is on its way has so long to be answered.
_LAST_SECONDS = 2.0
# Rows of a request that follows one whose answer was lost: a server that answers none must not use up all we have.
_PROBE_ROWS = 100
# What is further ahead was not said by a server: the clock was put back.
_LONGEST_PAUSE = 2.0 * _DAY_SECONDS
# A server's wish to be left alone that ends so near to midnight UTC means the day's quota.
_NEAR_MIDNIGHT = 60.0


class RecoveredFace(Protocol):
    """Rows of requests that were cut off: those that wait again, and those that are not sent again."""

    @property
    def waiting(self) -> int: ...
    @property
    def unanswered(self) -> int: ...


class OutboxFace(Protocol):
    """Rows on disk. Every method raises `RecordError`; `on_wire` alone is called in the event loop."""

    def recover(self) -> RecoveredFace: ...
    def gather(self, day: int, decide: Callable[[bytes, Mapping[tuple[int, int], int]], Row | None]) -> None: ...
    def discard(self) -> None: ...
    def take(self, most: int) -> Parcel | None: ...
    def on_wire(self, request: int) -> None: ...
    def settle(self, request: int, rejected: Container[bytes], postponed: Container[bytes], now: float) -> None: ...
    def release(self, request: int) -> None: ...
    def unanswered(self, request: int) -> None: ...
    def quota(self, day: int, key: str) -> int | None: ...
    def note_quota(self, day: int, key: str, remaining: int) -> None: ...
    def numbers(self, day: int, key: str) -> ReportNumbers: ...


class ReportFace(Protocol):
    """SikkerAPI. `report` raises `UnansweredError` or another `FetchError`, and what its second argument raises."""

    async def report(self, body: bytes, before_last_byte: Callable[[], None]) -> ReportAnswer: ...


class Reporter:
    """`report_forever` is its whole life. `config` is asked anew each round, `make_api` in a thread and only when
    there is something to send; `tell` hears how reporting stands. `clock` (Unix seconds), `chance` and `retry` are
    for tests to put in."""

    def __init__(
        self,
        outbox: OutboxFace,
        make_api: Callable[[Config], ReportFace],
        config: Callable[[], Config],
        tell: Callable[[ReportNumbers], None],
        *,
        clock: Callable[[], float] = time.time,
        chance: Callable[[], float] = random.random,
        retry: Callable[[SikkerGuardError, int, Callable[[], float]], float] = next_try,
    ) -> None:
        self._outbox = outbox
        self._make_api = make_api
        self._config = config
        self._tell = tell
        self._clock = clock
        self._chance = chance
        self._retry = retry
        self._api: tuple[tuple[str, str], ReportFace] | None = None
        self._woken = asyncio.Event()
        self._recovered = False
        # What became of a request, where the disk did not take it: nothing is sent before it has.
        self._owed: Callable[[], None] | None = None
        self._failures = 0
        self._not_before = 0.0
        self._in_doubt = False
        self._trouble = ""
        self._spent_on: int | None = None
        self.numbers = ReportNumbers()

    def wake(self) -> None:
        """The configuration changed: report now, whatever was the matter before."""
        self._failures, self._not_before = 0, 0.0
        self._woken.set()

    async def report_forever(self) -> None:
        """Report until cancelled; a request that is on its way then has two seconds to come to its end."""
        pause = min(self._config().report_interval, _FIRST_SECONDS)
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._woken.wait()
            self._woken.clear()
            pause = await self.report_once()

    async def report_once(self) -> float:
        """One round; gives the seconds until the next."""
        config = self._config()
        interval = next_pull(config.report_interval, self._chance)
        reported = Counter[str]()
        try:
            await self._gather(config)
            wait = self._not_before - self._clock()
            if 0 < wait < _LONGEST_PAUSE:
                return min(wait, interval)
            await self._send_all(reported)
            self._failures, self._trouble = 0, ""
        except RecordError as error:
            self._failures += 1
            pause = self._retry(error, self._failures, self._chance)
            self._say_trouble(error)
            return min(pause, interval)
        except FetchError as error:
            self._failures += 1
            pause = self._retry(error, self._failures, self._chance)
            self._not_before = self._clock() + pause
            self._say_failure(error, pause)
            return min(pause, interval)
        finally:
            if reported:
                log.info("%s", reported_line(reported))
        return interval

    async def _gather(self, config: Config) -> None:
        """Have all that was blocked in the outbox, and nothing there that is neither waiting nor done with."""
        if not self._recovered:
            found = await asyncio.to_thread(self._outbox.recover)
            self._recovered = True
            _say_recovered(found)
        if self._owed is not None:
            await asyncio.to_thread(self._owed)
            self._owed = None
        if config.report_enabled:
            decide = partial(row_of, port_map=config.port_map, spoofable=config.report_spoofable)
            await asyncio.to_thread(self._outbox.gather, self._day(), decide)
        else:
            await asyncio.to_thread(self._outbox.discard)
        await self._show(config)

    async def _send_all(self, reported: Counter[str]) -> None:
        """Send requests until nothing waits, the day's quota is used up, or nobody wants it any more."""
        more = True
        while more and (config := self._config()).report_enabled:
            step = asyncio.create_task(self._send_next(config, reported))
            try:
                more = await asyncio.shield(step)
            except asyncio.CancelledError:
                await _end(step)
                raise
            except FetchError:
                await self._show(config)
                raise
            if more:
                await self._show(config)

    async def _send_next(self, config: Config, reported: Counter[str]) -> bool:
        """One request, from the outbox to what became of it; says whether there may be another."""
        if not self.numbers.waiting:
            return False
        day, key = self._day(), config.api_key
        remaining = await asyncio.to_thread(self._outbox.quota, day, key)
        if remaining == 0:
            self._say_spent(day)
            return False
        api = await self._api_for(config)
        most = _PROBE_ROWS if self._in_doubt else MOST_ROWS
        parcel = await asyncio.to_thread(self._outbox.take, most if remaining is None else min(most, remaining))
        if parcel is None:
            return False
        try:
            answer, verdict = await self._send(api, parcel)
        except FetchError as error:
            if not (error.quota and self._means_today(error.retry_after)):
                raise
            await asyncio.to_thread(self._outbox.note_quota, day, key, 0)
            return True
        self._in_doubt = False
        refused = verdict.rejected.keys() | verdict.postponed
        reported.update(row.protocol for row in parcel.rows if row.address not in refused)
        rejected = [(row.ip(), verdict.rejected[row.address]) for row in parcel.rows if row.address in verdict.rejected]
        if rejected:
            log.warning("%s", rejected_line(rejected))
        left = 0 if verdict.postponed else answer.remaining
        if left is None and remaining is not None:
            left = max(0, remaining - answer.accepted)
        if left is not None:
            # Of the day on which it was asked: what it means for the next one, the next answer tells.
            await asyncio.to_thread(self._outbox.note_quota, day, key, left)
        return True

    async def _send(self, api: ReportFace, parcel: Parcel) -> tuple[ReportAnswer, Verdict]:
        on_wire = False

        def before_last_byte() -> None:
            nonlocal on_wire
            self._outbox.on_wire(parcel.request)
            on_wire = True

        try:
            answer = await api.report(parcel.body, before_last_byte)
            verdict = judge(parcel.rows, answer)
        except UnansweredError as error:
            await self._doubt(parcel, as_sentence(error))
            raise
        except (FetchError, RecordError):
            await self._note(self._outbox.release, parcel.request)
            raise
        except asyncio.CancelledError:
            if on_wire:
                await self._doubt(parcel, "The service was stopped before SikkerAPI answered")
            else:
                await self._note(self._outbox.release, parcel.request)
            raise
        await self._note(self._outbox.settle, parcel.request, verdict.rejected, verdict.postponed, self._clock())
        return answer, verdict

    async def _doubt(self, parcel: Parcel, why: str) -> None:
        self._in_doubt = True
        log.warning(
            "%s: %d reports may have been accepted; the server does not tell reports apart, so they are not sent "
            "again.",
            why,
            len(parcel.rows),
        )
        await self._note(self._outbox.unanswered, parcel.request)

    async def _note(self, action: Callable[..., None], *arguments: object) -> None:
        """Put down what became of a request; where the disk does not take it now, before anything else is sent."""
        self._owed = partial(action, *arguments)
        await asyncio.to_thread(self._owed)
        self._owed = None

    async def _api_for(self, config: Config) -> ReportFace:
        place = config.api_url, config.api_key
        if self._api is None or self._api[0] != place:
            self._api = place, await asyncio.to_thread(self._make_api, config)
        return self._api[1]

    def _day(self) -> int:
        return day_of(self._clock())

    def _means_today(self, retry_after: float | None) -> bool:
        """Whether a server that refused for the quota's sake, and wants to be left alone so long, means the day."""
        left = _DAY_SECONDS - self._clock() % _DAY_SECONDS
        return retry_after is None or retry_after >= left - _NEAR_MIDNIGHT

    async def _show(self, config: Config) -> None:
        self.numbers = await asyncio.to_thread(self._outbox.numbers, self._day(), config.api_key)
        self._tell(self.numbers)

    # What is said

    def _say_trouble(self, error: RecordError) -> None:
        if str(error) != self._trouble:
            log.error(
                "%s; nothing is reported meanwhile, since it could be reported twice; blocking goes on, and it is "
                "tried again.",
                as_sentence(error),
            )
        self._trouble = str(error)

    def _say_failure(self, error: FetchError, pause: float) -> None:
        stays = f"blocking and counting go on, {self.numbers.waiting} rows wait; next try in {duration_text(pause)}."
        if isinstance(error, UnansweredError):  # what happened is said already, and what it means for its rows
            log.warning("%s", stays[:1].upper() + stays[1:])
        else:
            log.error("%s; %s", as_sentence(error), stays)

    def _say_spent(self, day: int) -> None:
        if day != self._spent_on:
            self._spent_on = day
            log.warning(
                "The day's quota of reports is used up; blocking and counting go on, %d rows wait for midnight UTC.",
                self.numbers.waiting,
            )


async def _end(step: asyncio.Task[bool]) -> None:
    """Let a request that is on its way come to its end, or else have it decided by how far it got."""
    await asyncio.wait({step}, timeout=_LAST_SECONDS)
    step.cancel()
    await asyncio.wait({step})
    if not step.cancelled() and step.exception() is not None:
        log.debug("reporting ended by the stop: %s", step.exception())


def _say_recovered(found: RecoveredFace) -> None:
    if found.unanswered:
        log.warning(
            "The service ended before SikkerAPI answered: %d reports may have been accepted; the server does not tell "
            "reports apart, so they are not sent again.",
            found.unanswered,
        )
    if found.waiting:
        log.info("%d reports had not left yet when the service ended; they wait again.", found.waiting)
