"""The list that the owner of the host keeps in a file: when it is read, and what is the matter with it."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import TYPE_CHECKING

from sikkerguard.core.lists.parse import merge_content
from sikkerguard.core.lists.sources import LOCAL_FILE
from sikkerguard.service.disk_thread import HUNG_SECONDS, DiskThread
from sikkerguard.service.list_update import Change, read_file

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from sikkerguard.core.interfaces import ListFiles
    from sikkerguard.core.net.networks import Blocklist

log = logging.getLogger(__name__)

# How often the file is looked at. One that differs is read when it has stayed the same for as long, since whoever
# writes it may be in the middle; and one that never does after so many looks.
_LOOK_SECONDS, _PATIENCE = 1.0, 10
# A file that changes while it is read is read again, so many times in all.
_READINGS = 3


class LocalFile:
    """Knows which version of the file was judged last. `path` is the setting of the moment, `in_force` gives the
    generations of it that are in force, and `wake` is called when there is a new version."""

    def __init__(
        self,
        files: ListFiles,
        path: Callable[[], Path | None],
        in_force: Callable[[], Sequence[Blocklist]],
        wake: Callable[[], None],
    ) -> None:
        self._files = files
        self._path = path
        self._in_force = in_force
        self._wake = wake
        self._disk = DiskThread("list file")
        self._seen: object = None
        self._judged: object = None
        self.trouble = ""

    async def watch_forever(self) -> None:
        """Wake the puller whenever the file, or the setting that names it, has changed."""
        read = before = await self._stamp()
        looks = 0
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            found = await self._stamp()
            looks = looks + 1 if found != read else 0
            if looks and (found == before or looks >= _PATIENCE):
                read, looks = found, 0
                self._wake()
            before = found

    async def is_new(self) -> bool:
        """Whether the present version has yet to be judged. Does not read the file."""
        return await self._stamp() != self._judged

    async def change(self) -> Change | None:
        """The present version, or that the file is no longer wanted; None where that is in force already.

        Raises:
            ListError: the file can't be read, is empty, or nothing in it can be understood.
        """
        path, known = self._path(), self._in_force()
        if path is None:
            return Change(LOCAL_FILE) if known else None
        for _ in range(_READINGS):
            stamp = await self._stamp()
            change = await read_file(path, self._files, self._disk)
            if await self._stamp() == stamp:
                break
        if not known:
            return change if change.content else None
        same = await asyncio.to_thread(merge_content, known) == change.content
        return None if same else change

    async def judge(self, trouble: str, *, final: bool, outlook: str) -> None:
        """The present version is in force (no trouble), or is not used for that reason, which is said once. Only a
        final judgement keeps it from being read again; `outlook` says what happens next."""
        self._judged = await self._stamp() if final else None
        if trouble and trouble != self.trouble:
            log.error("%s; %s.", trouble, outlook)
        self.trouble = trouble

    async def _stamp(self) -> object:
        """What differs for another version. While the file's disk hangs, it is the one that was seen last."""
        path = self._path()
        if path is None:
            return path, None
        if not self._disk.hangs():
            job = self._disk.start(partial(self._files.stamp, str(path)))
            if (await asyncio.wait({job}, timeout=HUNG_SECONDS))[0]:
                self._seen = job.result()
        return path, self._seen
