"""The disk as the service sees it: nothing that protects waits for it.

What is to be kept is handed over and written by a thread of its own, the newest version of each file only; what the
disk refuses is tried again until it takes it. A thread in the hands of a disk that hangs can't be ended, so that each
such thread is one for which neither the loop nor the end of the process waits.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from sikkerguard.core.lists.allowlist import Allowlist
from sikkerguard.errors import ListError, as_sentence
from sikkerguard.service.disk_thread import LAST_SECONDS, DiskThread

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sikkerguard.core.interfaces import StateStore
    from sikkerguard.core.lists.sources import VerifiedList

log = logging.getLogger(__name__)

_Result = TypeVar("_Result")

# So long that is its own affair. A busy host syncs for seconds.
_SAID_SECONDS = 5.0
# What a start reads may take so long: the largest list from a slow card.
_LOAD_SECONDS = 10.0
# What was refused is tried again, and the disk looked at, this often.
_AGAIN_SECONDS, _LOOK_SECONDS = 5.0, 1.0


@dataclass(frozen=True, slots=True)
class SavedState:
    """What an earlier run left on disk. `complaint` says what is the matter with its list, if anything."""

    verified: VerifiedList | None = None
    allowlist: Allowlist = field(default_factory=Allowlist)
    pulls: dict[str, Any] = field(default_factory=dict)
    ways: dict[str, Any] = field(default_factory=dict)
    complaint: str = ""


class StateWriter:
    """Keeps files by a `store`. The savers return at once; `settled` waits a little for what they started. `trouble`
    gets a sentence when the disk does not do what it should, and an empty one when it does. For the event loop."""

    def __init__(self, store: StateStore, place: object, trouble: Callable[[str], None]) -> None:
        self._store = store
        self._place = place
        self._tell = trouble
        self._trouble = ""
        self._thread = DiskThread("disk")
        # What was kept last, by name, for a directory that is made again; what is to be written, and what was refused.
        self._newest: dict[str, Callable[[], object]] = {}
        self._waiting: dict[str, Callable[[], object]] = {}
        self._refused: dict[str, OSError] = {}
        self._again_at = 0.0
        self._hung_since = ""
        self._writing: asyncio.Task[None] | None = None
        self.kept = SavedState()

    async def load(self) -> None:
        """Read what an earlier run left, as far as the disk gives it in time."""
        job = self._thread.start(partial(_read, self._store))
        done, _ = await asyncio.wait({job}, timeout=_LOAD_SECONDS)
        if done:
            self.kept = kept = job.result()
            if kept.verified is not None:
                self._newest["list"] = partial(self._store.save_list, kept.verified)
            self._newest["pulls"] = partial(self._store.save_pulls, kept.pulls)
            self._newest["ways"] = partial(self._store.save_ways, kept.ways)
        else:
            self.kept = SavedState(complaint=f"{self._place} has not answered for {_LOAD_SECONDS:g} s: no list is read")

    def claim(self) -> None:
        """Have the directory be this service's, again and again."""
        self._put("claim", self._store.claim)

    def save_list(self, verified: VerifiedList) -> None:
        """Keep a list that passed its trial."""
        self._put("list", partial(self._store.save_list, verified))

    def save_allowlist(self, allowlist: Allowlist) -> None:
        """Keep what is allowed and why."""
        self._put("allowlist", partial(self._store.save_allowlist, allowlist))

    def save_pulls(self, known: dict[str, Any]) -> None:
        """Keep what the next pull has to know of the last ones."""
        self._put("pulls", partial(self._store.save_pulls, known))

    def save_ways(self, known: dict[str, Any]) -> None:
        """Keep at which addresses SikkerAPI, or a proxy, proved to be there."""
        self._put("ways", partial(self._store.save_ways, known))

    def save_settings(self, texts: Mapping[str, str]) -> None:
        """Keep good settings for a start that meets wrong ones."""
        self._put("settings", partial(self._store.save_settings, texts))

    async def settled(self, seconds: float) -> None:
        """Wait until all that is to be kept was written or refused, but no longer than so many seconds, and not for a
        disk that hangs."""
        if self._writing is not None:
            await self._thread.soon(self._writing, seconds)

    async def watch_forever(self) -> None:
        """Try again what was refused, and say how the disk is."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            if time.monotonic() >= self._again_at and not self._waiting:
                self._again_at = time.monotonic() + _AGAIN_SECONDS
                for name in self._refused:
                    self._put(name, self._newest[name])
                self.claim()
            self._say()

    async def finish(self) -> None:
        """Have what is to be kept written, as far as the disk does it in time."""
        await self.settled(LAST_SECONDS)
        if self._writing is not None:
            self._writing.cancel()
            await asyncio.wait({self._writing})
        self._thread.shutdown()

    def _put(self, name: str, action: Callable[[], object]) -> None:
        self._newest[name] = self._waiting[name] = action
        if self._writing is None:
            self._writing = asyncio.create_task(self._write())

    async def _write(self) -> None:
        try:
            while self._waiting:
                name = next(iter(self._waiting))
                job = self._thread.start(self._waiting.pop(name))
                try:
                    anew = await asyncio.shield(job)
                except OSError as error:
                    log.debug("%s of %s is not kept: %s", name, self._place, error)
                    self._refused[name] = error
                except Exception as error:
                    if name not in self._refused:
                        log.exception("%s of %s is not kept.", name, self._place)
                    self._refused[name] = OSError(0, f"{type(error).__name__}: {error}")
                else:
                    self._refused.pop(name, None)
                    if name == "claim" and anew:
                        log.warning("%s was deleted; it is there again, with what this service knows.", self._place)
                        self._waiting = {**self._newest, **self._waiting}
                        del self._waiting["claim"]
        finally:
            self._writing = None
        self._say()

    def _say(self) -> None:
        if (trouble := self._judged()) == self._trouble:
            return
        self._trouble = trouble
        self._tell(trouble)
        if not trouble:
            log.warning("%s can be written again, and has all that was to be kept.", self._place)

    def _judged(self) -> str:
        if (took := self._thread.took()) > _SAID_SECONDS:
            # In words that stay the same for as long as it lasts.
            self._hung_since = self._hung_since or time.strftime("%H:%M:%S", time.gmtime(time.time() - took))
            return (
                f"{self._place} has not answered since {self._hung_since} UTC: blocking goes on, and what is to be "
                "kept for the next start waits. Look at the disk, or at the network that it is reached by."
            )
        self._hung_since = ""
        if not self._refused:
            return ""
        reason = next(iter(self._refused.values()))
        return (
            f"{self._place} can't be written ({reason.strerror or reason}): blocking goes on, but {self._lost()}. Make "
            "room, or mend the disk or its rights; it is tried again by itself."
        )

    def _lost(self) -> str:
        if "list" in self._refused:
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
        _read_or(store.load_pulls, {}),
        _read_or(store.load_ways, {}),
        complaint,
    )


def _read_or(load: Callable[[], _Result], otherwise: _Result) -> _Result:
    """What there is, or this: nothing on disk is a reason not to protect."""
    try:
        return load()
    except Exception:
        log.exception("What an earlier run knew can't be read, and is learned anew.")
        return otherwise
