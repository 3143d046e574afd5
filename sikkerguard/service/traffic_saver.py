"""Keeping what is counted on disk, which may be slow, full, or not answer at all."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING

from sikkerguard.core.traffic import counting
from sikkerguard.errors import RecordError, as_sentence
from sikkerguard.service.disk_thread import LAST_SECONDS, DiskThread
from sikkerguard.service.said import Said

if TYPE_CHECKING:
    import asyncio

    from sikkerguard.core.interfaces import Clock, Signal, TrafficRecords
    from sikkerguard.core.traffic.counting import Memory
    from sikkerguard.core.traffic.records import PendingTraffic, SavedTraffic

log = logging.getLogger(__name__)

# How long a save is waited for before what was counted is shown all the same; and how often records that can't be read
# are tried again.
_SAVE_SECONDS, _RETRY_SECONDS = 1.0, 5.0


class TrafficSaver:
    """Loads the records once, and then adds to them what was counted. Without `records` nothing is kept. `disk` is the
    thread that does it, for which nobody waits but a moment; `healed` is set when the records can be used again."""

    def __init__(self, records: TrafficRecords | None, disk: DiskThread, clock: Clock, healed: Signal) -> None:
        self._records = records
        self._disk = disk
        self._clock = clock
        self._healed = healed
        self._said = Said(log)
        # Nothing is written before all was read: a save replaces the totals.
        self._loaded = records is None
        self._loading: asyncio.Future[SavedTraffic] | None = None
        self._load_at = 0.0
        self._saving: tuple[asyncio.Future[None], PendingTraffic] | None = None

    @property
    def trouble(self) -> str:
        """Why the records can't be used, in a sentence; empty where they can."""
        return self._said.sentence

    async def load(self, seconds: float) -> SavedTraffic | None:
        """What earlier runs have counted, if it comes within so many seconds; None otherwise, and once it has come.
        To be called again and again: records that can't be read are tried every five seconds."""
        if self._loaded or self._records is None:
            return None
        if self._loading is None:
            if self._clock.monotonic() < self._load_at:
                return None
            self._loading = self._disk.start(self._records.load)
        if not await self._disk.soon(self._loading, seconds):
            if self._disk.hangs():
                self._say_trouble("The records of earlier runs are not read yet: the disk does not answer")
            return None
        loading, self._loading = self._loading, None
        try:
            saved = loading.result()
        except RecordError as error:
            self._say_trouble(as_sentence(error))
            self._load_at = self._clock.monotonic() + _RETRY_SECONDS
            return None
        self._loaded = True
        self._say_well()
        return saved

    async def save(self, memory: Memory) -> Memory:
        """Have on disk what is not there yet, or as much of it as the disk takes in a moment. Returns the memory
        without what was taken, and with what was refused."""
        if self._saving is not None:
            memory = await self._end_save(memory, 0.0)
        if self._saving is not None or not self._loaded or not memory.is_unsaved:
            return memory
        memory, batch = counting.take_pending(memory)
        if self._records is not None:
            self._saving = self._disk.start(partial(self._records.save, batch)), batch
            memory = await self._end_save(memory, _SAVE_SECONDS)
        return memory

    async def finish(self, memory: Memory) -> Memory:
        """The same for the last time: a save that is not through is waited for."""
        if self._saving is not None:
            memory = await self._end_save(memory, LAST_SECONDS)
            memory = await self.save(memory)
        return memory

    async def _end_save(self, memory: Memory, seconds: float) -> Memory:
        """Wait for the save that is under way, for so many seconds. Returns the memory with what it did not write."""
        if self._saving is None:
            return memory
        job, batch = self._saving
        if not await self._disk.soon(job, seconds):
            if self._disk.hangs():
                self._say_trouble("Nothing that is counted can be kept: the disk does not answer")
            return memory
        self._saving = None
        try:
            job.result()
        except RecordError as error:
            self._say_trouble(as_sentence(error))
            return counting.restore_pending(memory, batch)
        self._say_well()
        return memory

    def _say_trouble(self, what: str) -> None:
        # The announcer logs it, as it does all troubles.
        self._said.say(
            f"{what}. Blocking and counting go on, and what is counted waits in memory: it is kept and reported when "
            "the disk takes it, and lost where the service ends before.",
            logging.DEBUG,
        )

    def _say_well(self) -> None:
        if self._said.say(""):
            log.warning("What is counted is kept on disk again.")
            self._healed.set()
