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
from sikkerguard.core.lists.sources import VerifiedList
from sikkerguard.core.sikkerapi.endpoint import EndpointMemory
from sikkerguard.errors import ListError, as_sentence
from sikkerguard.service.disk_thread import LAST_SECONDS, DiskThread

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sikkerguard.core.interfaces import Clock, Saved, Signal, StateStore

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
    """Keeps files by a `store` in `place`, and only reads them where it `writes` nothing, as in a dry run. `save` and
    `claim` return at once; `settled` waits a little for what they started. `trouble` is a sentence while the disk does
    not do what it should, else empty. For the event loop."""

    work = "looking after the disk"

    def __init__(
        self,
        store: StateStore,
        place: Path,
        clock: Clock,
        changes: Signal,
        thread: DiskThread | None = None,
        *,
        writes: bool = True,
    ) -> None:
        self._store = store
        self._place = place
        self._clock = clock
        self._changes = changes
        self._thread = thread or DiskThread("disk")
        self._writes = writes
        # By kind, None being the claim to the directory itself: the newest values, for a directory that is made again;
        # those that wait; and those that were refused.
        self._newest: dict[type, Saved | None] = {}
        self._waiting: dict[type, Saved | None] = {}
        self._refused: dict[type, OSError] = {}
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
        known: tuple[Saved | None, ...] = (saved.pulls, saved.endpoint, saved.verified)
        self._newest |= {type(value): value for value in known if value is not None}
        return saved

    def claim(self) -> None:
        """Take ownership of the directory; `run` repeats this."""
        self._put(None)

    def save(self, value: Saved) -> None:
        """Keep this in place of what was kept of its kind."""
        self._put(value)

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

    def _put(self, value: Saved | None) -> None:
        if not self._writes:
            return
        self._newest[type(value)] = self._waiting[type(value)] = value
        if self._writing is None:
            self._writing = asyncio.create_task(self._write())

    async def _write(self) -> None:
        try:
            while self._waiting:
                kind = next(iter(self._waiting))
                job = self._thread.start(partial(_write, self._store, self._waiting.pop(kind)))
                try:
                    made_again = await asyncio.shield(job)
                except OSError as error:
                    log.debug("%s is not kept in %s: %s", kind.__name__, self._place, error)
                    self._refused[kind] = error
                except Exception as error:
                    if kind not in self._refused:
                        log.exception("Not everything is kept in %s.", self._place)
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
        loss = "what is learned from now on is not kept for the next start"
        if VerifiedList in self._refused:
            loss = "the list in force is not kept, so that after a reboot an older one blocks until the next pull"
        return (
            f"{self._place} can't be written ({reason.strerror or reason}): blocking goes on, but {loss}. Make room, "
            "or repair the disk or its permissions; it is tried again by itself."
        )


def _write(store: StateStore, value: Saved | None) -> bool:
    """Returns whether the directory had to be made again."""
    if value is None:
        return store.claim()
    store.save(value)
    return False


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
