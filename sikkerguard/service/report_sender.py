"""One request of reports, from the outbox to what became of each of its rows, and how large the next one may be."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from functools import partial
from typing import TYPE_CHECKING

from sikkerguard.core.reports.rows import MOST_ROWS, judge, rejected_line
from sikkerguard.core.traffic.totals import day_of
from sikkerguard.errors import FetchError, Objection, RecordError, UnansweredError, as_sentence

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sikkerguard.config.settings import Config
    from sikkerguard.core.interfaces import ReportClient, ReportOutbox
    from sikkerguard.core.reports.rows import BatchResult, ReportAnswer, ReportBatch
    from sikkerguard.service.disk_thread import DiskThread
    from sikkerguard.service.report_screen import ReportScreening

log = logging.getLogger(__name__)

_DAY_SECONDS = 86400
# Rows of a request that follows one whose answer was lost, or that met a quota nobody knows: a server that answers none
# must not use up all we have, and what is left of a quota may be less than a large request asks for.
_PROBE_ROWS = 100
# Rows that were each refused alone, with nothing accepted in between: from there on it may be the server's fault.
_MOST_ALONE = 3
# A server's wish to be left alone that ends so near to midnight UTC means the day's quota.
_NEAR_MIDNIGHT = 60.0


class _WithdrawnError(Exception):
    """The last byte of a request was kept back."""


class ReportSender:
    """Sends what waits, request by request. `reported` counts the rows accepted by their protocol, for whoever says
    so, and empties it. `screening` says who may be reported, `clock` gives Unix seconds, and
    `disk` is the thread of the records."""

    def __init__(
        self,
        outbox: ReportOutbox,
        make_api: Callable[[Config], ReportClient],
        screening: ReportScreening,
        clock: Callable[[], float],
        disk: DiskThread,
    ) -> None:
        self._disk = disk
        self._outbox = outbox
        self._make_api = make_api
        self._screening = screening
        self._clock = clock
        self._api: tuple[tuple[str, str], ReportClient] | None = None
        # What became of a request and all that follows from it, as far as the disk has not taken it yet.
        self._owed: deque[Callable[[], None]] = deque()
        self._most = MOST_ROWS
        self._alone = 0
        self.reported = Counter[str]()

    async def pay(self) -> None:
        """Put down what is owed; nothing may be sent before that is done. Raises `RecordError`."""
        if self._owed:
            await self._disk.run(self._pay)

    async def send_next(self, config: Config, wanted: Callable[[], bool]) -> bool:
        """One request; says whether there may be another one at once. `wanted` says whether rows that were taken may
        still be sent.

        Raises:
            FetchError: nothing is to be sent for a while.
            RecordError: nothing is to be sent before the disk takes what is owed.
        """
        day, key = day_of(self._clock()), config.api_key
        remaining = await self._disk.run(self._outbox.quota, day, key)
        if remaining == 0:
            return False
        api = await self._api_for(config)
        # Where nobody said what is left, it is at most what there is on a whole day.
        bound = await self._disk.run(self._outbox.quota_limit, key) if remaining is None else remaining
        most = self._most if bound is None else min(self._most, max(1, bound))
        # As late as can be: what is allowed, listed and set may have changed since the rows were made.
        screen = await self._screening.now()
        parcel = None if screen is None else await self._disk.run(self._outbox.take, most, screen)
        if screen is None or parcel is None:
            return False
        if not wanted():
            await self._put_down(partial(self._outbox.release, parcel.request))
            return False
        try:
            answer, verdict = await self._send(
                api, parcel, lambda: wanted() and self._screening.still(screen, parcel.rows)
            )
        except _WithdrawnError:
            # Taken anew, the rows that may not go are left out.
            await self._put_down(partial(self._outbox.release, parcel.request))
            return True
        except UnansweredError:
            raise
        except FetchError as error:
            return await self._refused(parcel, error, partial(self._outbox.note_quota, day, key))
        return await self._answered(parcel, answer, verdict, remaining, partial(self._outbox.note_quota, day, key))

    async def _send(
        self, api: ReportClient, parcel: ReportBatch, may_go: Callable[[], bool]
    ) -> tuple[ReportAnswer, BatchResult]:
        """Raises a `FetchError` that is no `UnansweredError`, or a `_WithdrawnError`, with the rows still on their
        way, else without."""
        on_wire = False

        def before_last_byte() -> None:
            nonlocal on_wire
            if not may_go():
                raise _WithdrawnError
            self._disk.at_once(partial(self._outbox.on_wire, parcel.request))
            on_wire = True

        try:
            answer = await api.report(parcel.body, before_last_byte)
            return answer, judge(parcel.rows, answer)
        except UnansweredError as error:
            await self._doubt(parcel, as_sentence(error))
            raise
        except RecordError:
            await self._put_down(partial(self._outbox.release, parcel.request))
            raise
        except asyncio.CancelledError:
            if on_wire:
                await self._doubt(parcel, "The service was stopped before SikkerAPI answered")
            else:
                await self._put_down(partial(self._outbox.release, parcel.request))
            raise

    async def _doubt(self, parcel: ReportBatch, why: str) -> None:
        self._most = min(self._most, _PROBE_ROWS)
        log.warning(
            "%s: %d reports may have been accepted; the server does not tell reports apart, so they are not sent "
            "again.",
            why,
            len(parcel.rows),
        )
        await self._put_down(partial(self._outbox.unanswered, parcel.request))

    async def _answered(
        self,
        parcel: ReportBatch,
        answer: ReportAnswer,
        verdict: BatchResult,
        remaining: int | None,
        note_quota: Callable[[int, int | None], None],
    ) -> bool:
        """Rows that only a limit kept out wait for another round: asking for them at once would have no end."""
        self._most = min(MOST_ROWS, 2 * self._most)
        if answer.accepted:
            self._alone = 0
        known = answer.limit if remaining is None else remaining
        left = answer.remaining
        if left is None and verdict.postponed:
            left = 0
        if left is None and known is not None:
            left = max(0, known - answer.accepted)
        steps = [
            partial(self._outbox.settle, parcel.request, verdict.rejected, verdict.postponed, self._clock()),
            partial(self._tell, parcel, verdict.rejected, verdict.postponed),
        ]
        if left is not None:
            # Of the day on which it was asked: what it means for the next one, the next answer tells.
            steps.append(partial(note_quota, left, answer.limit))
        await self._put_down(*steps)
        return not verdict.postponed

    async def _refused(
        self, parcel: ReportBatch, error: FetchError, note_quota: Callable[[int, int | None], None]
    ) -> bool:
        """What follows from a request that was certainly not accepted. Raises the error where only time helps."""
        rows = len(parcel.rows)
        if rows == 1 and error.objection is Objection.CONTENT:
            await self._give_up(parcel, str(error))
            if self._alone >= _MOST_ALONE:
                raise error
            return True
        steps = [partial(self._outbox.release, parcel.request)]
        if error.quota:
            again, left = self._after_quota(rows, error)
            if left is not None:
                steps.append(partial(note_quota, left, error.limit))
        else:
            # A line that is too slow or breaks is given time as well; a server that says no is told less at once.
            again = error.objection is not None and rows > 1 and not error.retryable
            if error.objection is not None:
                self._most = max(1, rows // 2)
        await self._put_down(*steps)
        if not again:
            raise error
        return True

    def _after_quota(self, rows: int, error: FetchError) -> tuple[bool, int | None]:
        """Whether to go on after a refusal for the quota's sake, and what is left of the quota, if that is known."""
        left = error.remaining
        if not self._means_today(error.retry_after):
            return False, left or None
        if left is not None and left < rows:
            return True, left
        if rows > _PROBE_ROWS:
            # It may be that a part of a request is not taken where there is no room for all of it.
            self._most = _PROBE_ROWS
            return True, left
        # A server that says how much is left does not mean the day; of one that does not, it is all that is known.
        return (True, 0) if left is None else (False, left)

    async def _give_up(self, parcel: ReportBatch, reason: str) -> None:
        """A row that was refused alone, for what it is: it must not hold up all others."""
        self._alone += 1
        rejected = {row.address: reason for row in parcel.rows}
        await self._put_down(
            partial(self._outbox.settle, parcel.request, rejected, frozenset(), self._clock()),
            partial(self._tell, parcel, rejected, frozenset()),
        )

    def _tell(self, parcel: ReportBatch, rejected: Mapping[bytes, str], postponed: frozenset[bytes]) -> None:
        refused = rejected.keys() | postponed
        self.reported.update(row.protocol for row in parcel.rows if row.address not in refused)
        named = [(row.ip(), rejected[row.address]) for row in parcel.rows if row.address in rejected]
        if named:
            log.warning("%s", rejected_line(named))

    async def _put_down(self, *steps: Callable[[], None]) -> None:
        """Put down what became of a request; where the disk does not take it now, before anything else is sent."""
        self._owed.extend(steps)
        await self.pay()

    def _pay(self) -> None:
        while self._owed:
            self._owed[0]()
            self._owed.popleft()

    async def _api_for(self, config: Config) -> ReportClient:
        place = config.api_url, config.api_key
        if self._api is None or self._api[0] != place:
            self._api = place, await asyncio.to_thread(self._make_api, config)
        return self._api[1]

    def _means_today(self, retry_after: float | None) -> bool:
        """Whether a server that refused for the quota's sake, and wants to be left alone so long, means the day."""
        left = _DAY_SECONDS - self._clock() % _DAY_SECONDS
        return retry_after is None or retry_after >= left - _NEAR_MIDNIGHT
