"""Who may be reported now, by the settings, the allowlist and the lists in force; asked before each request."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

from sikkerguard.core.lists.lookup import Listings
from sikkerguard.core.reports.screen import Screen

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sikkerguard.config.settings import Config
    from sikkerguard.core.host.surroundings import HostAllowlist
    from sikkerguard.core.lists.allowlist import AllowEntry
    from sikkerguard.core.lists.sources import ListedSource
    from sikkerguard.core.reports.rows import Row
    from sikkerguard.service.wakeup import Watched


class ListedSources(Protocol):
    """The list in force, source by source."""

    @property
    def sources(self) -> tuple[ListedSource, ...] | None:
        """The sources as they were read; None where no list is known to be in force. Another tuple for another list."""


class ReportScreening:
    """Makes screens of what is known at a moment."""

    def __init__(self, config: Watched[Config], allowlist: Watched[HostAllowlist], lists: ListedSources) -> None:
        self._config = config
        self._allowlist = allowlist
        self._lists = lists
        self._listings: tuple[tuple[ListedSource, ...], Listings] | None = None

    async def now(self) -> Screen | None:
        """Who may be reported by what is known now. None where no list is known to be in force: what blocks may then be
        the local file's, and nothing is reported until it is known."""
        sources = self._lists.sources
        if sources is None:
            return None
        if self._listings is None or self._listings[0] is not sources:
            self._listings = None  # frees the memory of the one before while the next is made
            self._listings = sources, await asyncio.to_thread(Listings, sources)
        return Screen(self._allowed(), self._listings[1].of, custom=self._config.value.report_custom)

    def still_passes(self, screen: Screen, rows: Iterable[Row]) -> bool:
        """Whether rows that passed this screen may still be sent. Called when the last byte of a request is about to
        leave, so it looks only at what was allowed meanwhile."""
        return screen.still_passes(rows, self._allowed())

    def _allowed(self) -> tuple[AllowEntry, ...]:
        # The tracker follows a new whitelist only a moment later, and a report can't be taken back.
        return (*self._allowlist.value.entries, *self._config.value.whitelist)
