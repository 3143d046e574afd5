"""What the log says of reports. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sikkerguard.core.reports.outcomes import ReportStats

_MAX_NAMED = 5
_MAX_REJECTED_NAMED = 20


def reported_line(counts: Mapping[str, int]) -> str:
    """The log line `Reported 247 blocked IPs (ssh: 89, http: 63, ...)`; `counts` are rows by protocol."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    named = [f"{name}: {count}" for name, count in ordered[:_MAX_NAMED]] + ["..."] * (len(ordered) > _MAX_NAMED)
    return f"Reported {sum(counts.values())} blocked IPs ({', '.join(named)})"


def spent_line(stats: ReportStats) -> str:
    """The sentence that says that rows wait because the day's quota is used up; empty where they don't."""
    if stats.quota_remaining != 0 or not stats.waiting:
        return ""
    return (
        f"The day's quota of reports is used up; blocking and counting go on, {stats.waiting} rows wait for midnight "
        "UTC."
    )


def dropped_line(dropped: int) -> str:
    """The sentence about sources that are not reported, because too many waited or for too long."""
    return (
        f"{dropped} sources had no room among what waits to be reported, or waited for more than a day; their packets "
        "are counted."
    )


def unanswered_line(why: str, rows: int) -> str:
    """The sentence about the rows of a request that may have been accepted; `why` says what happened."""
    return (
        f"{why}: {rows} reports may have been accepted; the server does not tell reports apart, so they are not sent "
        "again."
    )


def rejected_line(rejected: Iterable[tuple[str, str]]) -> str:
    """One sentence that names the first rejected rows by address and reason, and counts the others."""
    rows = list(rejected)
    named = [f"{ip} ({reason})" for ip, reason in rows[:_MAX_REJECTED_NAMED]]
    if len(rows) > _MAX_REJECTED_NAMED:
        named.append(f"and {len(rows) - _MAX_REJECTED_NAMED} more")
    return f"SikkerAPI rejected these reports, which are dropped: {', '.join(named)}."
