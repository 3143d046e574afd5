"""All that the outside may know of the service."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sikkerguard.core.reports.stats import ReportStats
from sikkerguard.core.traffic.sample import TrafficStats

if TYPE_CHECKING:
    from sikkerguard.core.lists.sources import SourceStatus


@dataclass(frozen=True, slots=True)
class PullResult:
    """How the last pull went: when it ended (Unix seconds), and the sentence that says why it failed, or empty."""

    at: float
    failure: str


@dataclass(frozen=True, slots=True)
class State:
    """All that the outside may know of the service; replaced as a whole, never changed. Times are Unix seconds, but
    `settled_at`, which is on the monotonic clock: when the kernel was last seen to hold what it should. `troubles` are
    named sentences on what does not work though the list blocks: an operator has to hear of them. Wishes for a pull are
    numbered from 1, and `pull_answered` is the last one that a finished pull has answered."""

    started_at: float
    dry_run: bool
    blocked_v4: int = 0
    blocked_v6: int = 0
    verified_at: float | None = None
    protecting: bool = False
    last_pull: PullResult | None = None
    next_pull_at: float | None = None
    pulls: int = 0
    pulling: bool = False
    pull_answered: int = 0
    quota_remaining: int | None = None
    allowlist: str = ""
    lists: tuple[SourceStatus, ...] = ()
    covered_v4: float = 0.0
    covered_v6: float = 0.0
    left_out: tuple[str, ...] = ()
    settled_at: float | None = None
    trouble: str = ""
    troubles: tuple[tuple[str, str], ...] = ()
    repairs: int = 0
    last_repair: str = ""
    counted: TrafficStats = field(default_factory=TrafficStats)
    reports: ReportStats = field(default_factory=ReportStats)
    log_source: str = "counters"
    log_lost: int = 0
    on_trial: bool = False
