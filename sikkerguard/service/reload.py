"""Reading the settings again and pulling by them, as SIGHUP, `sikkerguard pull` and a corrected key ask for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sikkerguard.service.announcer import Announcer
    from sikkerguard.service.pull_loop import PullLoop
    from sikkerguard.service.settings import Settings
    from sikkerguard.service.supervision import UnexpectedErrors


@dataclass(frozen=True, slots=True)
class Reload:
    """What a reload consists of."""

    settings: Settings
    pulls: PullLoop
    announcer: Announcer
    unexpected: UnexpectedErrors

    def now(self, *, accept: bool = False) -> int:
        """Read the settings again, and pull now, taking that list whatever its size if `accept` says so. Returns the
        number of the pull: see `PullState.pull_answered`."""
        with self.unexpected.survived():
            self.announcer.reloading()
        with self.unexpected.survived("The settings can't be read (%s); those before stay."):
            self.settings.reload()
        number = self.pulls.pull_now(accept=accept)
        self.announcer.reloaded()
        return number
