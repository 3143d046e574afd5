"""Who may be reported now: asked of the configuration, the allowlist and the lists in force, before each request."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from sikkerguard.core.lists.lookup import Listings
from sikkerguard.core.reports.screen import Screen

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sikkerguard.config.settings import Config
    from sikkerguard.core.lists.allowlist import AllowEntry
    from sikkerguard.core.lists.sources import ListedSource
    from sikkerguard.core.reports.rows import Row


class ReportScreening:
    """`config` gives the settings of the moment, `allowed` all that may never be blocked, and `lists` the lists in
    force, source by source as they were read, or None where none is known."""

    def __init__(
        self,
        config: Callable[[], Config],
        allowed: Callable[[], Iterable[AllowEntry]],
        lists: Callable[[], tuple[ListedSource, ...] | None],
    ) -> None:
        self._config = config
        self._allowed = allowed
        self._lists = lists
        self._listings: tuple[tuple[ListedSource, ...], Listings] | None = None

    async def now(self) -> Screen | None:
        """Who may be reported by what is known now. None where no list is known to be in force: what blocks may then be
        the local file's, and nothing is reported until it is known."""
        lists = self._lists()
        if lists is None:
            return None
        if self._listings is None or self._listings[0] is not lists:
            self._listings = None  # the memory of the one before, while the next is made
            self._listings = lists, await asyncio.to_thread(Listings, lists)
        return Screen(self._allowed(), self._listings[1].of, custom=self._config().report_custom)

    def still(self, screen: Screen, rows: Iterable[Row]) -> bool:
        """Whether rows that passed this screen may go. Asked when the last byte of a request is about to leave, so
        this asks only who was allowed meanwhile."""
        return screen.still_passes(rows, tuple(self._allowed()))
