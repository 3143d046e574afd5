"""What each loop knows, and all of it as one value. Replaced as a whole, never changed.

Times are Unix seconds, but those named `..._ok_at` and `alive_at`, which are on the clock that never goes back.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sikkerguard.core.reports.outcomes import ReportStats
from sikkerguard.core.traffic.sample import TrafficStats

if TYPE_CHECKING:
    from sikkerguard.core.lists.sources import SourceStatus


@dataclass(frozen=True, slots=True)
class PullResult:
    """How a pull went: when it ended, and the sentence that says why it failed, or empty."""

    at: float
    failure: str


@dataclass(frozen=True, slots=True)
class ListState:
    """The list in force: its entries by family, when it was verified, the shares of each family that it covers, from 0
    to 1, its sources, and addresses left out of it after a trial. And what the day's quota of pulls has left."""

    blocked_v4: int = 0
    blocked_v6: int = 0
    verified_at: float | None = None
    covered_v4: float = 0.0
    covered_v6: float = 0.0
    sources: tuple[SourceStatus, ...] = ()
    left_out: tuple[str, ...] = ()
    quota_remaining: int | None = None

    @property
    def blocked(self) -> int:
        """Entries of the list in force."""
        return self.blocked_v4 + self.blocked_v6

    @property
    def protecting(self) -> bool:
        """Whether any list is in force."""
        return self.blocked > 0


@dataclass(frozen=True, slots=True)
class PullState:
    """How pulling goes. Requests for a pull are numbered from 1: `pull_answered` is the last one that a finished pull
    has answered."""

    last_pull: PullResult | None = None
    next_pull_at: float | None = None
    pulls: int = 0
    pulling: bool = False
    pull_answered: int = 0

    @property
    def failure(self) -> str:
        """Why the last pull failed, or empty."""
        return self.last_pull.failure if self.last_pull else ""


@dataclass(frozen=True, slots=True)
class RepairState:
    """Of the repair loop: when the kernel was last seen to hold what it should, when the loop last did its work (also
    where another program kept it from being done), the sentence that says what it can't repair, and the repairs."""

    verified_ok_at: float | None = None
    alive_at: float | None = None
    trouble: str = ""
    repairs: int = 0
    last_repair: str = ""


@dataclass(frozen=True, slots=True)
class AllowlistState:
    """Of the allowlist tracker: what is allowed, in the product's words, and why that may be out of date, or empty."""

    summary: str = ""
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class LogState:
    """Of the log follower: the source of the kernel's log lines, `counters` without one, and the records lost."""

    source: str = "counters"
    lost: int = 0


@dataclass(frozen=True, slots=True)
class State:
    """The service, as the page, the service manager and commands may see it. `troubles` are named sentences on what
    does not work though the list blocks: an operator has to hear of them."""

    started_at: float
    dry_run: bool
    lists: ListState = field(default_factory=ListState)
    pull: PullState = field(default_factory=PullState)
    repair: RepairState = field(default_factory=RepairState)
    allowlist: AllowlistState = field(default_factory=AllowlistState)
    traffic: TrafficStats = field(default_factory=TrafficStats)
    reports: ReportStats = field(default_factory=ReportStats)
    log: LogState = field(default_factory=LogState)
    on_trial: bool = False
    troubles: tuple[tuple[str, str], ...] = ()
