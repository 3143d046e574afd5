"""One request of reports: from the outbox to what became of each of its rows, and how large the next one may be."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

from sikkerguard.core.reports.outcomes import PROBE_ROWS, LeftUnanswered, QuotaNoted, Released, Settled, after_refusal
from sikkerguard.core.reports.rows import MAX_ROWS, judge
from sikkerguard.core.reports.sentences import rejected_line, unanswered_line
from sikkerguard.core.traffic.totals import day_of
from sikkerguard.errors import BodyRefused, FetchError, QuotaSpent, RecordError, Unanswered, as_sentence

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sikkerguard.config.settings import Config
    from sikkerguard.core.interfaces import Clock, ReportClient, ReportOutbox
    from sikkerguard.core.reports.outcomes import Outcome
    from sikkerguard.core.reports.rows import BatchResult, ReportAnswer, ReportBatch
    from sikkerguard.core.reports.screen import Screen
    from sikkerguard.service.disk_thread import DiskThread
    from sikkerguard.service.report_screen import ReportScreening
    from sikkerguard.service.wakeup import Watched

log = logging.getLogger(__name__)

# After so many rows that were each refused alone, with nothing accepted in between, it may be the server's fault.
_MAX_SINGLE_REJECTIONS = 3


class ReportEndpoint(Protocol):
    """Where reports are sent to."""

    async def open(self, config: Config) -> bool:
        """Find addresses of SikkerAPI that are genuine, and have them allowed. Returns whether other addresses than
        before are allowed by it.

        Raises:
            FetchError: there are none now, or the settings allow none.
        """


class ReportClients(Protocol):
    """Makes clients for reports."""

    def reports(self, config: Config) -> ReportClient:
        """The client for these settings. May read libraries and certificates from the disk: called in a thread.

        Raises:
            SettingsRefused: by these settings there can be none.
        """


@dataclass(frozen=True, slots=True)
class _Request:
    """A request that was taken from the outbox by these settings and this screen, on this day (since 1970-01-01, UTC).
    `remaining`: what the day's quota had left then, None where nobody said."""

    batch: ReportBatch
    config: Config
    screen: Screen
    day: int
    remaining: int | None

    def quota(self, remaining: int, limit: int | None) -> QuotaNoted:
        """What the answer says of the quota belongs to the day on which it was asked."""
        return QuotaNoted(self.day, self.config.api_key, remaining, limit)


class _WithdrawnError(Exception):
    """The last byte of a request was kept back."""


class ReportSender:
    """Sends what waits, request by request. `reported`: accepted rows by their protocol since the caller last cleared
    it. `disk` is the thread of the records."""

    def __init__(
        self,
        outbox: ReportOutbox,
        clients: ReportClients,
        config: Watched[Config],
        screening: ReportScreening,
        disk: DiskThread,
        clock: Clock,
    ) -> None:
        self._outbox = outbox
        self._clients = clients
        self._config = config
        self._screening = screening
        self._disk = disk
        self._clock = clock
        # What the disk has not taken yet of what became of requests, in its order.
        self._pending_writes: deque[Outcome] = deque()
        self._max_rows = MAX_ROWS
        self._single_rejections = 0
        self.reported = Counter[str]()

    async def flush(self) -> None:
        """Write what became of earlier requests; nothing may be sent before that is done. Raises `RecordError`."""
        if self._pending_writes:
            await self._disk.run(self._write_pending)

    async def send_next(self, config: Config) -> bool:
        """Send one request by these settings. Returns whether there may be another one at once. Once the settings have
        changed, rows that were taken are not sent any more.

        Raises:
            FetchError: nothing is to be sent for a while.
            RecordError: nothing is to be sent before the disk takes what became of this request.
        """
        day, key = day_of(self._clock.wall()), config.api_key
        remaining, limit = await self._disk.run(self._outbox.quota, day, key)
        if remaining == 0:
            return False
        client = await asyncio.to_thread(self._clients.reports, config)
        # Where nobody said what is left, it is at most what there is on a whole day.
        bound = limit if remaining is None else remaining
        most = self._max_rows if bound is None else min(self._max_rows, max(1, bound))
        # As late as can be: what is allowed, listed and set may have changed since the rows were made.
        screen = await self._screening.now()
        batch = None if screen is None else await self._disk.run(self._outbox.take, most, screen)
        if screen is None or batch is None:
            return False
        if self._config.value is not config:
            await self._record(Released(batch.request))
            return False
        request = _Request(batch, config, screen, day, remaining)
        try:
            answer, result = await self._send(client, request)
        except _WithdrawnError:
            # Taken anew, the rows that may not go are left out.
            await self._record(Released(batch.request))
            return True
        except Unanswered:
            raise
        except FetchError as error:
            return await self._refused(request, error)
        return await self._answered(request, answer, result)

    async def _send(self, client: ReportClient, request: _Request) -> tuple[ReportAnswer, BatchResult]:
        """On a `FetchError` that is not `Unanswered`, and on `_WithdrawnError`, the rows stay marked as sending; on any
        other error they are recorded before it is raised."""
        batch, on_wire = request.batch, False

        def before_last_byte() -> None:
            nonlocal on_wire
            if self._config.value is not request.config or not self._screening.still_passes(request.screen, batch.rows):
                raise _WithdrawnError
            self._disk.at_once(partial(self._outbox.on_wire, batch.request))
            on_wire = True

        try:
            answer = await client.report(batch.body, before_last_byte)
            return answer, judge(batch.rows, answer)
        except Unanswered as error:
            await self._mark_unanswered(batch, as_sentence(error))
            raise
        except RecordError:
            await self._record(Released(batch.request))
            raise
        except asyncio.CancelledError:
            if on_wire:
                await self._mark_unanswered(batch, "The service was stopped before SikkerAPI answered")
            else:
                await self._record(Released(batch.request))
            raise

    async def _mark_unanswered(self, batch: ReportBatch, why: str) -> None:
        self._max_rows = min(self._max_rows, PROBE_ROWS)
        log.warning("%s", unanswered_line(why, len(batch.rows)))
        await self._record(LeftUnanswered(batch.request))

    async def _answered(self, request: _Request, answer: ReportAnswer, result: BatchResult) -> bool:
        """Rows that only a limit kept out wait for another round: asking for them at once would have no end."""
        self._max_rows = min(MAX_ROWS, 2 * self._max_rows)
        if answer.accepted:
            self._single_rejections = 0
        known = answer.limit if request.remaining is None else request.remaining
        left = answer.remaining
        if left is None and result.postponed:
            left = 0
        if left is None and known is not None:
            left = max(0, known - answer.accepted)
        notes = () if left is None else (request.quota(left, answer.limit),)
        await self._record(self._settled(request, result.rejected, result.postponed), *notes)
        return not result.postponed

    async def _refused(self, request: _Request, error: FetchError) -> bool:
        """What follows from a request that was certainly not accepted. Raises the error where only time helps."""
        rows = request.batch.rows
        if len(rows) == 1 and isinstance(error, BodyRefused) and error.content:
            # Refused for what it is, this row must not hold up all others.
            self._single_rejections += 1
            await self._record(self._settled(request, {row.address: str(error) for row in rows}, frozenset()))
            if self._single_rejections >= _MAX_SINGLE_REJECTIONS:
                raise error
            return True
        next_request = after_refusal(error, len(rows), self._clock.wall())
        if next_request.max_rows is not None:
            self._max_rows = next_request.max_rows
        left = next_request.remaining
        limit = error.limit if isinstance(error, QuotaSpent) else None
        notes = () if left is None else (request.quota(left, limit),)
        await self._record(Released(request.batch.request), *notes)
        if not next_request.at_once:
            raise error
        return True

    def _settled(self, request: _Request, rejected: Mapping[bytes, str], postponed: frozenset[bytes]) -> Settled:
        return Settled(request.batch.request, request.batch.rows, rejected, postponed, self._clock.wall())

    async def _record(self, *outcomes: Outcome) -> None:
        """Write what became of a request: now or, where the disk refuses, before anything else is sent."""
        self._pending_writes.extend(outcomes)
        await self.flush()

    def _write_pending(self) -> None:
        """Runs in the disk's thread to its end, whoever is cancelled meanwhile: what is written is written once."""
        while self._pending_writes:
            outcome = self._pending_writes[0]
            self._outbox.apply(outcome)
            self._pending_writes.popleft()
            if isinstance(outcome, Settled):
                self.reported.update(outcome.accepted())
                if rejections := outcome.rejections():
                    log.warning("%s", rejected_line(rejections))
