"""Noticing that a person has mended what only a person could: a key, or a setting."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

# A file that has stayed as it is from one look to the next has been written to its end.
_LOOK_SECONDS = 0.3


class SettingsWatch:
    """Looks at the files from which settings and the key are read. `files` gives their paths, and `stamp` something
    that differs once the one at a path has changed; it may read the disk. `needed` says whether there is anything to
    be mended, and `mended` is called where a file differs from what it was at the last `note`, and there is."""

    def __init__(
        self,
        files: Callable[[], Iterable[Path]],
        stamp: Callable[[str], object],
        needed: Callable[[], bool],
        mended: Callable[[], object],
        look_seconds: float = _LOOK_SECONDS,
    ) -> None:
        self._files = files
        self._stamp = stamp
        self._needed = needed
        self._mended = mended
        self._look_seconds = look_seconds
        self._noted = self._look()

    def note(self) -> None:
        """The files are about to be read."""
        self._noted = self._look()

    async def watch_forever(self) -> None:
        """Until it is cancelled."""
        before: object = None
        while True:
            await asyncio.sleep(self._look_seconds)
            if not self._needed():
                continue
            found = await asyncio.to_thread(self._look)
            if found == before and found != self._noted:
                self._noted = found
                self._mended()
            before = found

    def _look(self) -> dict[str, object]:
        return {str(file): self._stamp(str(file)) for file in self._files()}
