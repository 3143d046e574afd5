"""The state directory as the service sees it: nothing that protects waits for its disk.

What is to be kept is handed over and written by a thread of its own, the newest version of each file only; what the
disk refuses is tried again until it takes it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from sikkerguard.core.lists.allowlist import Allowlist
from sikkerguard.core.lists.pull_memory import PullMemory
from sikkerguard.core.sikkerapi.endpoint import EndpointMemory
from sikkerguard.errors import ListError, as_sentence
from sikkerguard.service.disk_thread import LAST_SECONDS, DiskThread
from sikkerguard.service.pending_writes import (
    Claim,
    PendingWrite,
    SaveAllowlist,
    SaveEndpoint,
    SaveList,
    SavePullMemory,
    SaveSettings,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from sikkerguard.core.interfaces import Clock, Signal, StateStore
    from sikkerguard.core.lists.sources import VerifiedList

log = logging.getLogger(__name__)

_Result = TypeVar("_Result")

# A busy host syncs for seconds; a disk that takes longer for one thing is worth a word.
_SAID_SECONDS = 5.0
# What a start reads may take so many seconds: the largest list from a slow card.
_LOAD_SECONDS = 10.0
# What was refused is tried again, and the disk looked at, this often.
_RETRY_SECONDS, _LOOK_SECONDS = 5.0, 1.0


@dataclass(frozen=True, slots=True)
class SavedState:
    """What an earlier run left on disk. `complaint` says what is the matter with its list, if anything."""

    verified: VerifiedList | None = None
    allowlist: Allowlist = field(default_factory=Allowlist)
    pulls: PullMemory = field(default_factory=PullMemory)
    endpoint: EndpointMemory = field(default_factory=EndpointMemory)
    complaint: str = ""


class StateWriter:
    """Keeps files by a `store` in `place`. The savers return at once; `settled` waits a little for what they started.
    `trouble` is a sentence while the disk does not do what it should, else empty. For the event loop."""

    work = "looking after the disk"

    def __init__(
        self, store: StateStore, place: Path, clock: Clock, changes: Signal, thread: DiskThread | None = None
    ) -> None:
        self._store = store
        self._place = place
        self._clock = clock
        self._changes = changes
        self._thread = thread or DiskThread("disk")
        # What was to be written last, by kind, for a directory that is made again; what waits; and what was refused.
        self._newest: dict[str, PendingWrite] = {}
        self._waiting: dict[str, PendingWrite] = {}
        self._refused: dict[str, OSError] = {}
        self._retry_at = 0.0
        self._hung_since = ""
        self._writing: asyncio.Task[None] | None = None
        self.trouble = ""

    async def load(self) -> SavedState:
        """Read what an earlier run left, as far as the disk gives it in time."""
        job = self._thread.start(partial(_read, self._store))
        done, _ = await asyncio.wait({job}, timeout=_LOAD_SECONDS)
        if not done:
            return SavedState(complaint=f"{self._place} has not answered for {_LOAD_SECONDS:g} s: no list is read")
        saved = job.result()
        writes: list[PendingWrite] = [SavePullMemory(saved.pulls), SaveEndpoint(saved.endpoint)]
        if saved.verified is not None:
            writes.append(SaveList(saved.verified))
        self._newest |= {write.kind: write for write in writes}
        return saved

    def claim(self) -> None:
        """Have the directory be this service's, again and again."""
        self._put(Claim())

    def save_list(self, verified: VerifiedList) -> None:
        """Keep a list that passed its trial."""
        self._put(SaveList(verified))

    def save_allowlist(self, allowlist: Allowlist) -> None:
        """Keep what is allowed, and why."""
        self._put(SaveAllowlist(allowlist))

    def save_pull_memory(self, memory: PullMemory) -> None:
        """Keep what the next pull has to know of earlier ones."""
        self._put(SavePullMemory(memory))

    def save_endpoint(self, memory: EndpointMemory) -> None:
        """Keep at which addresses SikkerAPI, or a proxy, was proven to be."""
        self._put(SaveEndpoint(memory))

    def save_settings(self, texts: Mapping[str, str]) -> None:
        """Keep good settings for a start that meets wrong ones."""
        self._put(SaveSettings(texts))

    async def settled(self, seconds: float) -> None:
        """Wait until all that is to be kept was written or refused, but no longer than so many seconds, and not for a
        disk that hangs."""
        if self._writing is not None:
            await self._thread.soon(self._writing, seconds)

    async def run(self) -> None:
        """Try again what was refused, and see how the disk is, until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            if self._clock.monotonic() >= self._retry_at and not self._waiting:
                self._retry_at = self._clock.monotonic() + _RETRY_SECONDS
                for kind in self._refused:
                    self._put(self._newest[kind])
                self.claim()
            self._judge()

    async def finish(self) -> None:
        """Have what is to be kept written, as far as the disk does it in time, and end the thread."""
        await self.settled(LAST_SECONDS)
        if self._writing is not None:
            self._writing.cancel()
            await asyncio.wait({self._writing})
        self._thread.shutdown()

    def _put(self, write: PendingWrite) -> None:
        self._newest[write.kind] = self._waiting[write.kind] = write
        if self._writing is None:
            self._writing = asyncio.create_task(self._write())

    async def _write(self) -> None:
        try:
            while self._waiting:
                kind = next(iter(self._waiting))
                job = self._thread.start(partial(self._waiting.pop(kind).write, self._store))
                try:
                    made_again = await asyncio.shield(job)
                except OSError as error:
                    log.debug("%s of %s is not kept: %s", kind, self._place, error)
                    self._refused[kind] = error
                except Exception as error:
                    if kind not in self._refused:
                        log.exception("%s of %s is not kept.", kind, self._place)
                    self._refused[kind] = OSError(0, f"{type(error).__name__}: {error}")
                else:
                    self._refused.pop(kind, None)
                    if made_again:
                        log.warning("%s was deleted; it is there again, with what this service knows.", self._place)
                        self._waiting = {**self._newest, **self._waiting}
                        del self._waiting[kind]
        finally:
            self._writing = None
        self._judge()

    def _judge(self) -> None:
        if (trouble := self._found_trouble()) == self.trouble:
            return
        self.trouble = trouble
        if not trouble:
            log.warning("%s can be written again, and has all that was to be kept.", self._place)
        self._changes.set()

    def _found_trouble(self) -> str:
        if (took := self._thread.took()) > _SAID_SECONDS:
            # In words that stay the same for as long as it lasts.
            since = time.gmtime(self._clock.wall() - took)
            self._hung_since = self._hung_since or time.strftime("%H:%M:%S", since)
            return (
                f"{self._place} has not answered since {self._hung_since} UTC: blocking goes on, and what is to be "
                "kept for the next start waits. Look at the disk, or at the network that it is reached by."
            )
        self._hung_since = ""
        if not self._refused:
            return ""
        reason = next(iter(self._refused.values()))
        return (
            f"{self._place} can't be written ({reason.strerror or reason}): blocking goes on, but {self._loss()}. Make "
            "room, or repair the disk or its permissions; it is tried again by itself."
        )

    def _loss(self) -> str:
        if SaveList.kind in self._refused:
            return "the list in force is not kept, so that after a reboot an older one blocks until the next pull"
        return "what is learned from now on is not kept for the next start"


def _read(store: StateStore) -> SavedState:
    verified, complaint = None, ""
    try:
        verified = store.load_list()
    except ListError as error:
        complaint = as_sentence(error)
    except Exception as error:
        log.exception("The list that was kept can't be read.")
        complaint = f"The list that was kept can't be read ({type(error).__name__}); a new one is pulled"
    return SavedState(
        verified,
        _read_or(store.load_allowlist, Allowlist()),
        _read_or(store.load_pull_memory, PullMemory()),
        _read_or(store.load_endpoint, EndpointMemory()),
        complaint,
    )


def _read_or(load: Callable[[], _Result], otherwise: _Result) -> _Result:
    """What there is, or this: nothing on disk is a reason not to protect."""
    try:
        return load()
    except Exception:
        log.exception("What an earlier run knew can't be read, and is learned anew.")
        return otherwise
