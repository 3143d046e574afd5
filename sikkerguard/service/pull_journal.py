"""What the next pull must know of earlier ones, kept on disk before it can be needed."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from sikkerguard.core.lists.pull_memory import PullMemory
from sikkerguard.errors import HeldBackError, ListError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sikkerguard.errors import SikkerGuardError
    from sikkerguard.service.state_writer import StateWriter

# An update does not wait longer than this for its mark to be on disk, and the word that a list is in force not longer
# than that for the list to be; in seconds.
_MARK_SECONDS, _LIST_SECONDS = 1.0, 5.0


class PullJournal:
    """Holds the `memory`."""

    def __init__(self, writer: StateWriter) -> None:
        self._writer = writer
        self._under_way = 0
        self.memory = PullMemory()

    @asynccontextmanager
    async def marked(self) -> AsyncIterator[None]:
        """Have it on disk that an update is under way. A process that dies of one is not to try it again at once."""
        self._under_way += 1
        try:
            if self._under_way == 1:
                await self._save(replace(self.memory, unfinished=self.memory.unfinished + 1))
            yield
        except asyncio.CancelledError:
            await self._save(self._without_mark())
            raise
        except BaseException:
            # What failed is noted on disk after this; after what is no error of ours, the mark stays there.
            self.memory = self._without_mark()
            raise
        else:
            if self.memory != (unmarked := self._without_mark()):
                await self._save(unmarked)
        finally:
            self._under_way -= 1

    async def note_committed(self, memory: PullMemory) -> None:
        """An update has ended well. Before it is said: whoever ends the process then does not end it in the middle of
        an update."""
        self.memory = memory
        await self._save(self._without_mark(), _LIST_SECONDS)

    async def note_refusal(self, error: SikkerGuardError, name: str) -> None:
        """Remember for which signs a version of this source was held back; any other refusal ends that. What could not
        be had at all says nothing."""
        memory = self.memory
        if isinstance(error, ListError):
            signs = error.suspicions if isinstance(error, HeldBackError) else frozenset[str]()
            refused = error.source or name
            if signs or refused in memory.sources:
                memory = memory.with_source(refused, memory.of(refused).with_held_back(signs))
        await self._save(memory)

    def _without_mark(self) -> PullMemory:
        """What is remembered when the update at hand has ended: no mark, unless another one is under way."""
        return self.memory if self._under_way > 1 else replace(self.memory, unfinished=0)

    async def _save(self, memory: PullMemory, seconds: float = _MARK_SECONDS) -> None:
        self.memory = memory
        self._writer.save(memory)
        await self._writer.settled(seconds)
