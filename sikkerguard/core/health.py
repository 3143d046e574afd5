"""Whether the service is healthy, and what it says of itself."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Any

from sikkerguard.core.durations import duration_text, span_text
from sikkerguard.core.lists.sources import SIKKERAPI
from sikkerguard.core.ports.lookup import service_of
from sikkerguard.core.ports.protocols import PROTOCOLS, REPLY, TCP, WITH_PORTS
from sikkerguard.core.traffic.sample import UNATTRIBUTED
from sikkerguard.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sikkerguard.core.lists.sources import SourceStatus
    from sikkerguard.core.state import State

# The kernel is looked at every 5 s; six times that without a good look is no longer a busy host.
STALLED_SECONDS = 30.0
# So many pull intervals without a new list, and the list is called old.
_OLD_INTERVALS = 3


def failures(state: State, monotonic: float) -> tuple[str, ...]:
    """Why it can't be said that the list blocks, a sentence each; empty where it does. `monotonic` in seconds."""
    found = []
    lists, pull, repair = state.lists, state.pull, state.repair
    if not lists.protecting:
        first = "the first pull is under way" if pull.pulling else "the first pull has yet to begin"
        found.append("No list is in force yet" + (f": {pull.failure}." if pull.failure else f"; {first}."))
    found += [trouble for trouble in (state.allowlist.trouble, repair.trouble) if trouble]
    if repair.verified_ok_at is not None and monotonic - repair.verified_ok_at > STALLED_SECONDS:
        found.append(f"The kernel was last seen to be right {duration_text(monotonic - repair.verified_ok_at)} ago.")
    return tuple(found)


def reasons(state: State, now: float, monotonic: float, pull_interval: float) -> tuple[str, ...]:
    """All that is not as it should be, whether the list blocks or not, a sentence each; empty when all is well. Times
    in seconds, Unix and monotonic."""
    found = list(failures(state, monotonic))
    lists, pull = state.lists, state.pull
    if not lists.protecting:
        pass
    elif lists.verified_at is not None and now - lists.verified_at > _OLD_INTERVALS * pull_interval:
        age = duration_text(now - lists.verified_at)
        found.append(f"The list in force is {age} old: {pull.failure or 'no pull has brought a newer one yet'}.")
    elif lists.sources and not any(source.name == SIKKERAPI and source.taken_at for source in lists.sources):
        found.append("No list of SikkerAPI is in force yet" + (f": {pull.failure}." if pull.failure else "."))
    elif pull.failure:
        found.append(f"The last pull failed: {pull.failure}.")
    found += [sentence for _, sentence in state.troubles]
    return tuple(found)


def status(
    state: State, now: float, unhealthy: tuple[str, ...], port_map: Mapping[int, str] | None = None
) -> dict[str, Any]:
    """What `/status` answers. Times are ISO 8601 in UTC, "today" is the day in UTC, `coverage` in percent of IPv4, and
    of 2000::/3 counted in /64s, `uptime` a text such as `2h 15m`."""
    port_map = port_map or {}
    lists, pull, traffic, reports = state.lists, state.pull, state.traffic, state.reports
    return {
        "status": _word(state, unhealthy),
        "version": VERSION,
        "reasons": list(unhealthy),
        "dryRun": state.dry_run,
        "uptime": span_text(now - state.started_at),
        "uptimeSeconds": round(now - state.started_at),
        "blockedIps": lists.blocked,
        "blockedV4": lists.blocked_v4,
        "blockedV6": lists.blocked_v6,
        "listVerified": _iso(lists.verified_at),
        "lastPull": _iso(pull.last_pull.at if pull.last_pull else None),
        "lastPullError": pull.failure or None,
        "nextPull": _iso(pull.next_pull_at),
        "pulls": pull.pulls,
        "pulling": pull.pulling,
        "pullAnswered": pull.pull_answered,
        "quotaRemaining": lists.quota_remaining,
        "lastReport": _iso(reports.last_report_at),
        "reports": {
            "sent": reports.sent,
            "withheld": reports.withheld,
            "rejected": reports.rejected,
            "unanswered": reports.unanswered,
            "waiting": reports.waiting,
            "quotaRemaining": reports.quota_remaining,
            "dropped": reports.dropped,
            "trouble": reports.trouble,
        },
        "allowlist": state.allowlist.summary,
        "coverage": {"v4": _percent(lists.covered_v4), "v6": _percent(lists.covered_v6)},
        "lists": [_list(each) for each in lists.sources],
        "leftOut": list(lists.left_out),
        "onTrial": state.on_trial,
        "repairs": state.repair.repairs,
        "lastRepair": state.repair.last_repair or None,
        "droppedPackets": traffic.dropped.packets,
        "droppedBytes": traffic.dropped.bytes,
        "droppedPacketsToday": traffic.dropped_today.packets,
        "droppedBytesToday": traffic.dropped_today.bytes,
        "droppedUnnamed": traffic.unattributed,
        "droppedReplies": traffic.replies,
        "sources": traffic.sources,
        "topPorts": [_port(*each, port_map) for each in traffic.top_ports],
        "logSource": state.log.source,
        "logLost": state.log.lost,
    }


def _word(state: State, unhealthy: tuple[str, ...]) -> str:
    if not state.lists.protecting and state.pull.last_pull is None:
        return "starting"
    if unhealthy:
        return "degraded"
    return "dry-run" if state.dry_run else "active"


def _list(source: SourceStatus) -> dict[str, Any]:
    return {
        "name": source.name,
        "entries": source.entries,
        "taken": _iso(source.taken_at),
        "coverage": {"v4": _percent(source.covered_v4), "v6": _percent(source.covered_v6)},
        "trouble": source.trouble or None,
    }


def _percent(share: float) -> float:
    return float(f"{100 * share:.3g}")


def _port(place: tuple[int, int], packets: int, port_map: Mapping[int, str]) -> dict[str, Any]:
    number, port = place
    if number == REPLY:
        # The port that they came from.
        known = port != UNATTRIBUTED
        return {
            "protocol": PROTOCOLS[TCP] if known else "any",
            "port": port if known else None,
            "service": "reply" if known else "further replies",
            "packets": packets,
        }
    protocol = "any" if number == UNATTRIBUTED else PROTOCOLS.get(number, str(number))
    service = "further ports" if number == UNATTRIBUTED else service_of(protocol, port, port_map).name
    shown = port if number in WITH_PORTS else None
    return {"protocol": protocol, "port": shown, "service": service, "packets": packets}


def sentence(state: State, now: float) -> str:
    """The state in one sentence, for `systemctl status`."""
    lists, pull = state.lists, state.pull
    if not lists.protecting:
        if pull.pulling or pull.next_pull_at is None:
            doing = "a pull is under way" if pull.failure else "the first pull is under way"
        else:
            doing = f"next try in {duration_text(pull.next_pull_at - now)}"
        return f"No list yet: {pull.failure}; {doing}" if pull.failure else f"Starting: {doing}"
    parts = [f"Blocking {lists.blocked:,} addresses"]
    if pull.failure:
        parts.append(f"last pull failed: {pull.failure}")
    elif lists.verified_at is not None:
        parts.append(f"list of {duration_text(now - lists.verified_at)} ago")
    if pull.next_pull_at is not None:
        parts.append(f"next pull in {duration_text(pull.next_pull_at - now)}")
    parts.append(f"{state.traffic.dropped_today.packets:,} packets dropped today")
    return "; ".join(parts)


def _iso(at: float | None) -> str | None:
    if at is None:
        return None
    return datetime.datetime.fromtimestamp(at, datetime.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
