"""Whether the service is healthy, and what it says of itself."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Any

from sikkerguard.core.durations import duration_text, span_text
from sikkerguard.core.lists.sources import SIKKERAPI
from sikkerguard.core.services.lookup import service_of
from sikkerguard.core.services.protocols import PROTOCOLS, REPLY, TCP, WITH_PORTS
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
    if not state.protecting:
        failure = state.last_pull.failure if state.last_pull else ""
        first = "the first pull is under way" if state.pulling else "the first pull has yet to begin"
        found.append("No list is in force yet" + (f": {failure}." if failure else f"; {first}."))
    if state.trouble:
        found.append(state.trouble)
    if state.settled_at is not None and monotonic - state.settled_at > STALLED_SECONDS:
        found.append(f"The kernel was last seen to be right {duration_text(monotonic - state.settled_at)} ago.")
    return tuple(found)


def reasons(state: State, now: float, monotonic: float, pull_interval: float) -> tuple[str, ...]:
    """All that is not as it should be, whether the list blocks or not, a sentence each; empty when all is well. Times
    in seconds, Unix and monotonic."""
    found = list(failures(state, monotonic))
    if not state.protecting:
        pass
    elif state.verified_at is not None and now - state.verified_at > _OLD_INTERVALS * pull_interval:
        age = duration_text(now - state.verified_at)
        failure = state.last_pull.failure if state.last_pull else ""
        found.append(f"The list in force is {age} old: {failure or 'no pull has brought a newer one yet'}.")
    elif state.lists and not any(source.name == SIKKERAPI and source.taken_at for source in state.lists):
        failure = state.last_pull.failure if state.last_pull else ""
        found.append("No list of SikkerAPI is in force yet" + (f": {failure}." if failure else "."))
    elif state.last_pull is not None and state.last_pull.failure:
        found.append(f"The last pull failed: {state.last_pull.failure}.")
    found += [sentence for _, sentence in state.troubles]
    return tuple(found)


def status(
    state: State, now: float, unhealthy: tuple[str, ...], port_map: Mapping[int, str] | None = None
) -> dict[str, Any]:
    """What `/status` answers. Times are ISO 8601 in UTC, "today" is the day in UTC, `coverage` in percent of IPv4, and
    of 2000::/3 counted in /64s, `uptime` a text such as `2h 15m`."""
    port_map = port_map or {}
    return {
        "status": _word(state, unhealthy),
        "version": VERSION,
        "reasons": list(unhealthy),
        "dryRun": state.dry_run,
        "uptime": span_text(now - state.started_at),
        "uptimeSeconds": round(now - state.started_at),
        "blockedIps": state.blocked_v4 + state.blocked_v6,
        "blockedV4": state.blocked_v4,
        "blockedV6": state.blocked_v6,
        "listVerified": _iso(state.verified_at),
        "lastPull": _iso(state.last_pull.at if state.last_pull else None),
        "lastPullError": (state.last_pull.failure or None) if state.last_pull else None,
        "nextPull": _iso(state.next_pull_at),
        "pulls": state.pulls,
        "pulling": state.pulling,
        "pullAnswered": state.pull_answered,
        "quotaRemaining": state.quota_remaining,
        "lastReport": _iso(state.reports.last_report_at),
        "reports": {
            "sent": state.reports.sent,
            "withheld": state.reports.withheld,
            "rejected": state.reports.rejected,
            "unanswered": state.reports.unanswered,
            "waiting": state.reports.waiting,
            "quotaRemaining": state.reports.quota_remaining,
            "dropped": state.reports.dropped,
            "trouble": state.reports.trouble,
        },
        "allowlist": state.allowlist,
        "coverage": {"v4": _percent(state.covered_v4), "v6": _percent(state.covered_v6)},
        "lists": [_list(each) for each in state.lists],
        "leftOut": list(state.left_out),
        "onTrial": state.on_trial,
        "repairs": state.repairs,
        "lastRepair": state.last_repair or None,
        "droppedPackets": state.counted.dropped.packets,
        "droppedBytes": state.counted.dropped.octets,
        "droppedPacketsToday": state.counted.dropped_today.packets,
        "droppedBytesToday": state.counted.dropped_today.octets,
        "droppedUnnamed": state.counted.unnamed,
        "droppedReplies": state.counted.replies,
        "sources": state.counted.sources,
        "topPorts": [_port(*each, port_map) for each in state.counted.top_ports],
        "logSource": state.log_source,
        "logLost": state.log_lost,
    }


def _word(state: State, unhealthy: tuple[str, ...]) -> str:
    if not state.protecting and state.last_pull is None:
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
    if not state.protecting:
        failure = state.last_pull.failure if state.last_pull else ""
        if state.pulling or state.next_pull_at is None:
            doing = "a pull is under way" if failure else "the first pull is under way"
        else:
            doing = f"next try in {duration_text(state.next_pull_at - now)}"
        return f"No list yet: {failure}; {doing}" if failure else f"Starting: {doing}"
    parts = [f"Blocking {state.blocked_v4 + state.blocked_v6:,} addresses"]
    if state.last_pull and state.last_pull.failure:
        parts.append(f"last pull failed: {state.last_pull.failure}")
    elif state.verified_at is not None:
        parts.append(f"list of {duration_text(now - state.verified_at)} ago")
    if state.next_pull_at is not None:
        parts.append(f"next pull in {duration_text(state.next_pull_at - now)}")
    parts.append(f"{state.counted.dropped_today.packets:,} packets dropped today")
    return "; ".join(parts)


def _iso(at: float | None) -> str | None:
    if at is None:
        return None
    return datetime.datetime.fromtimestamp(at, datetime.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
