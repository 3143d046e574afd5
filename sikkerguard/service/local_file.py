"""The list that the owner of the host keeps in a file: when it is read, and what is the matter with it."""

from __future__ import annotations

import asyncio
import logging
import math
from typing import TYPE_CHECKING, Protocol

from sikkerguard.core.durations import duration_text
from sikkerguard.core.lists.generations import Change
from sikkerguard.core.lists.parse import merge_content
from sikkerguard.core.lists.sources import LOCAL_FILE
from sikkerguard.core.schedule import retry_delay
from sikkerguard.errors import HeldBackError, ListError, SikkerGuardError, UnexpectedError, as_sentence
from sikkerguard.service.feed_reader import read_forgivingly

if TYPE_CHECKING:
    from pathlib import Path

    from sikkerguard.config.settings import Config
    from sikkerguard.core.interfaces import Clock, Feed, Signal
    from sikkerguard.service.list_in_force import ListInForce
    from sikkerguard.service.pull_journal import PullJournal
    from sikkerguard.service.supervision import UnexpectedErrors
    from sikkerguard.service.update_runner import UpdateRunner
    from sikkerguard.service.wakeup import Watched

log = logging.getLogger(__name__)

# How often the file is looked at. One that differs is read when it has stayed the same for as long, since whoever
# writes it may be in the middle; and one that never does after so many looks.
_LOOK_SECONDS, _PATIENCE = 1.0, 10
# A file that changes while it is read is read again, so many times in all.
_READINGS = 3
NO_MEMORY = "there is not enough memory for the list; give the service more, or block fewer addresses"


class LocalLists(Protocol):
    """Makes feeds of files."""

    def local_list(self, path: Path) -> Feed:
        """The list in this file."""


class LocalFile:
    """Has versions of the file put in force. `trouble` says why the present one is not used, or is empty; `signal` is
    set when there is a new one."""

    work = "watching the list file"

    def __init__(
        self,
        feeds: LocalLists,
        runner: UpdateRunner,
        journal: PullJournal,
        lists: ListInForce,
        config: Watched[Config],
        clock: Clock,
        unexpected: UnexpectedErrors,
        signal: Signal,
    ) -> None:
        self._feeds = feeds
        self._runner = runner
        self._journal = journal
        self._lists = lists
        self._config = config
        self._clock = clock
        self._unexpected = unexpected
        self._signal = signal
        self._failures = 0
        self._feed: tuple[Path, Feed] | None = None
        # The version that was judged last.
        self._judged: object = None
        self._is_wanted = False
        self.trouble = ""

    def want(self) -> None:
        """Have the file looked at, and earlier failures forgotten."""
        self._is_wanted = True
        self._signal.set()

    def take_wish(self) -> bool:
        """Whether `want` was called since this was asked last."""
        wanted, self._is_wanted = self._is_wanted, False
        return wanted

    async def run(self) -> None:
        """Have the file read whenever it, or the setting that names it, has changed, until cancelled."""
        read = before = await self._version()
        looks = 0
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            found = await self._version()
            looks = looks + 1 if found != read else 0
            if looks and (found == before or looks >= _PATIENCE):
                read, looks = found, 0
                self.want()
            before = found

    async def attempt(self, *, accept: bool, anew: bool) -> float:
        """Bring the present version in force, if it is another one; `anew` forgets earlier failures. It needs no answer
        of SikkerAPI's. Returns the seconds until it has to be tried again, infinite where only another version can
        help."""
        if anew:
            self._failures = 0
        if self._lists.value is None and self._runner.state.protecting:
            # The kernel blocks by a list that is not known in full: what takes its place must have SikkerAPI's part.
            return math.inf
        if not accept and not await self.is_new():
            return math.inf
        pause, trouble, outlook = math.inf, "", "it is read again when it has changed"
        try:
            with self._unexpected.as_kind(UnexpectedError, ListError(NO_MEMORY)):
                async with self._journal.marked():
                    change = await self.change()
                    if change is not None:
                        await self._runner.put_in_force([change], accept=accept)
        except SikkerGuardError as error:
            self._failures += 1
            await self._journal.note_refusal(error, LOCAL_FILE)
            trouble = f"{as_sentence(error)}; {self._runner.local_file_stays()}"
            if not isinstance(error, ListError) or isinstance(error, HeldBackError):
                pause = retry_delay(error, self._failures, self._clock.random)
                outlook = f"next try in {duration_text(pause)}"
        else:
            self._failures = 0
        await self.judge(trouble, final=pause == math.inf, outlook=outlook)
        self._runner.note_trouble(LOCAL_FILE, trouble)
        return pause

    async def is_new(self) -> bool:
        """Whether the present version has yet to be judged. Does not read the file."""
        return await self._version() != self._judged

    async def change(self) -> Change | None:
        """The present version, or that the file is no longer wanted; None where that is in force already.

        Raises:
            ListError: the file can't be read, is empty, or nothing in it can be understood.
        """
        path, known = self._config.value.custom_blacklist, self._lists.content_of(LOCAL_FILE)
        if path is None:
            return Change(LOCAL_FILE) if known else None
        for _ in range(_READINGS):
            version = await self._version()
            change = await read_forgivingly(self._feed_of(path), str(path))
            if await self._version() == version:
                break
        if not known:
            return change if change.content else None
        same = await asyncio.to_thread(merge_content, known) == change.content
        return None if same else change

    async def judge(self, trouble: str, *, final: bool, outlook: str) -> None:
        """The present version is in force (no trouble), or is not used for that reason, which is logged once. Only a
        final judgement keeps it from being read again; `outlook` says what happens next."""
        self._judged = await self._version() if final else None
        if trouble and trouble != self.trouble:
            log.error("%s; %s.", trouble, outlook)
        self.trouble = trouble

    async def _version(self) -> object:
        """What differs for another version."""
        path = self._config.value.custom_blacklist
        return None if path is None else await self._feed_of(path).version()

    def _feed_of(self, path: Path) -> Feed:
        if self._feed is None or self._feed[0] != path:
            self._feed = path, self._feeds.local_list(path)
        return self._feed[1]
