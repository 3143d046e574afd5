"""Whether it is healthy, and what it says of itself."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sikkerguard.core.health import STALLED_SECONDS, failures, reasons, sentence, status
from sikkerguard.core.lists.sources import SourceStatus
from sikkerguard.core.ports.protocols import REPLY
from sikkerguard.core.reports.outcomes import ReportStats
from sikkerguard.core.state import (
    AllowlistState,
    ListState,
    LogState,
    PullResult,
    PullState,
    RepairState,
    State,
)
from sikkerguard.core.traffic.sample import UNATTRIBUTED, PacketCount, TrafficStats
from sikkerguard.version import VERSION

DAY = 86400.0
NOW = 1_800_000_000.0
UP = 5000.0
BLOCKING = State(
    started_at=NOW - 3 * DAY,
    dry_run=False,
    lists=ListState(
        blocked_v4=8770,
        blocked_v6=4,
        verified_at=NOW - 7200,
        covered_v4=0.0000020426,
        covered_v6=0.25,
        sources=(
            SourceStatus("SikkerAPI", 8770, NOW - 7200, 0.0000020426, 0.25),
            SourceStatus("SIKKER_CUSTOM_BLACKLIST", 4, None, 0.0, 0.0, "The file can't be read."),
        ),
        left_out=("203.0.113.53",),
        quota_remaining=7,
    ),
    pull=PullState(PullResult(NOW - 7200, ""), next_pull_at=NOW + 22 * 3600, pulls=3, pull_answered=2),
    repair=RepairState(UP - 2, UP - 1, repairs=1, last_repair="2 sets"),
    allowlist=AllowlistState("8 IPs + 8 CIDR ranges"),
    traffic=TrafficStats(
        dropped=PacketCount(12345, 678900),
        dropped_today=PacketCount(1234, 67890),
        unattributed=45,
        sources=321,
        top_ports=(
            ((6, 23), 900),
            ((1, 8 << 8), 200),
            ((17, 53), 100),
            ((UNATTRIBUTED, UNATTRIBUTED), 30),
            ((99, 0), 4),
        ),
        replies=67,
    ),
    reports=ReportStats(247, 31, 2, 1, 9, 4750, NOW - 60, 5),
    log=LogState("journald", 12),
)
STARTING = State(started_at=NOW, dry_run=False)
FAILED = PullResult(NOW - 5, "SikkerAPI can't be reached (no route)")


def with_lists(state: State = BLOCKING, **changes: Any) -> State:
    return replace(state, lists=replace(state.lists, **changes))


def with_pull(state: State = BLOCKING, **changes: Any) -> State:
    return replace(state, pull=replace(state.pull, **changes))


def with_repair(**changes: Any) -> State:
    return replace(BLOCKING, repair=replace(BLOCKING.repair, **changes))


def why(state: State, now: float = NOW) -> tuple[str, ...]:
    return reasons(state, now, UP, DAY)


def test_a_host_that_is_protected_is_healthy() -> None:
    assert why(BLOCKING) == ()


def test_no_list_is_no_health() -> None:
    assert why(STARTING) == ("No list is in force yet; the first pull has yet to begin.",)
    assert why(with_pull(STARTING, pulling=True)) == ("No list is in force yet; the first pull is under way.",)
    assert why(with_pull(STARTING, last_pull=FAILED)) == (f"No list is in force yet: {FAILED.failure}.",)


@pytest.mark.parametrize(("age", "old"), [(0, False), (DAY, False), (3 * DAY, False), (3 * DAY + 1, True)])
def test_a_list_is_old_after_three_intervals(age: float, old: bool) -> None:
    state = with_pull(with_lists(verified_at=NOW - age), last_pull=FAILED)
    assert why(state) == (
        (f"The list in force is 3d old: {FAILED.failure}.",) if old else (f"The last pull failed: {FAILED.failure}.",)
    )
    assert failures(state, UP) == ()


def test_an_old_list_from_the_cache_says_that_no_pull_brought_another() -> None:
    (reason,) = why(with_pull(with_lists(verified_at=NOW - 10 * DAY), last_pull=None))
    assert "10d old" in reason
    assert reason.endswith("no pull has brought a newer one yet.")


def test_a_list_found_in_the_kernel_has_no_age() -> None:
    assert why(with_lists(verified_at=None)) == ()


def test_a_reason_is_a_whole_sentence_where_the_last_pull_went_well() -> None:
    # As when the interval was just made shorter: the list is old by the new one, and nothing has failed.
    (reason,) = reasons(BLOCKING, NOW, UP, 600.0)
    assert "2h old" in reason
    assert not reason.endswith(": .")


def test_a_failed_pull_degrades_at_once_and_lets_the_list_block() -> None:
    state = replace(with_pull(last_pull=FAILED), troubles=(("page", "The page can't be served."),))
    assert why(state) == (f"The last pull failed: {FAILED.failure}.", "The page can't be served.")
    assert failures(state, UP) == ()


@pytest.mark.parametrize(("silence", "stalled"), [(0.0, False), (STALLED_SECONDS, False), (STALLED_SECONDS + 1, True)])
def test_a_kernel_not_seen_for_long_is_a_reason(silence: float, stalled: bool) -> None:
    found = why(with_repair(verified_ok_at=UP - silence))
    assert found == (("The kernel was last seen to be right 31s ago.",) if stalled else ())


def test_a_list_without_sikkerapis_part_is_a_reason() -> None:
    mine = (SourceStatus("SIKKER_CUSTOM_BLACKLIST", 4, NOW, 0.0, 0.0),)
    unknown = (SourceStatus("SikkerAPI", 0, None, 0.0, 0.0), *mine)
    for sources in (mine, unknown):
        state = with_lists(sources=sources)
        assert why(state) == ("No list of SikkerAPI is in force yet.",)
        assert why(with_pull(state, last_pull=FAILED)) == (f"No list of SikkerAPI is in force yet: {FAILED.failure}.",)
        assert failures(state, UP) == ()


def test_every_reason_is_told() -> None:
    ill = with_pull(with_lists(verified_at=NOW - 9 * DAY), last_pull=FAILED)
    repair = replace(ill.repair, trouble="The set is gone.", verified_ok_at=0.0)
    found = why(replace(ill, repair=repair, allowlist=AllowlistState(trouble="The host can't be looked at.")))
    assert len(found) == 4
    assert found[:2] == ("The host can't be looked at.", "The set is gone.")


def test_the_status_has_what_readers_rely_on() -> None:
    found = status(BLOCKING, NOW, ())
    expected = {
        "status": "active",
        "version": VERSION,
        "reasons": [],
        "dryRun": False,
        "uptime": "3d 0h",
        "uptimeSeconds": 259200,
        "blockedIps": 8774,
        "blockedV4": 8770,
        "blockedV6": 4,
        "listVerified": "2027-01-15T06:00:00Z",
        "lastPull": "2027-01-15T06:00:00Z",
        "lastPullError": None,
        "nextPull": "2027-01-16T06:00:00Z",
        "pulls": 3,
        "pulling": False,
        "pullAnswered": 2,
        "quotaRemaining": 7,
        "lastReport": "2027-01-15T07:59:00Z",
        "reports": {
            "sent": 247,
            "withheld": 31,
            "rejected": 2,
            "unanswered": 1,
            "waiting": 9,
            "quotaRemaining": 4750,
            "dropped": 5,
            "trouble": "",
        },
        "allowlist": "8 IPs + 8 CIDR ranges",
        "coverage": {"v4": 0.000204, "v6": 25.0},
        "lists": [
            {
                "name": "SikkerAPI",
                "entries": 8770,
                "taken": "2027-01-15T06:00:00Z",
                "coverage": {"v4": 0.000204, "v6": 25.0},
                "trouble": None,
            },
            {
                "name": "SIKKER_CUSTOM_BLACKLIST",
                "entries": 4,
                "taken": None,
                "coverage": {"v4": 0.0, "v6": 0.0},
                "trouble": "The file can't be read.",
            },
        ],
        "leftOut": ["203.0.113.53"],
        "onTrial": False,
        "repairs": 1,
        "lastRepair": "2 sets",
        "droppedPackets": 12345,
        "droppedBytes": 678900,
        "droppedPacketsToday": 1234,
        "droppedBytesToday": 67890,
        "droppedUnnamed": 45,
        "droppedReplies": 67,
        "sources": 321,
        "topPorts": [
            {"protocol": "TCP", "port": 23, "service": "telnet", "packets": 900},
            {"protocol": "ICMP", "port": None, "service": "icmp", "packets": 200},
            {"protocol": "UDP", "port": 53, "service": "dns", "packets": 100},
            {"protocol": "any", "port": None, "service": "further ports", "packets": 30},
            {"protocol": "99", "port": None, "service": "unknown", "packets": 4},
        ],
        "logSource": "journald",
        "logLost": 12,
    }
    assert found | expected == found
    assert json.loads(json.dumps(found)) == found


def test_trouble_with_reports_is_shown_and_is_no_illness() -> None:
    troubled = replace(BLOCKING, reports=replace(BLOCKING.reports, trouble="SikkerAPI can't be reached."))
    assert why(troubled) == ()
    shown = status(troubled, NOW, ())
    assert shown["status"] == "active"
    assert shown["reports"]["trouble"] == "SikkerAPI can't be reached."
    assert sentence(troubled, NOW) == sentence(BLOCKING, NOW)


def test_replies_are_shown_with_the_port_they_came_from() -> None:
    replied = replace(
        BLOCKING, traffic=replace(BLOCKING.traffic, top_ports=(((REPLY, 443), 5), ((REPLY, UNATTRIBUTED), 4)))
    )
    shown = status(replied, NOW, (), {443: "ssh"})
    assert shown["topPorts"] == [
        {"protocol": "TCP", "port": 443, "service": "reply", "packets": 5},
        {"protocol": "any", "port": None, "service": "further replies", "packets": 4},
    ]


def test_the_status_names_ports_as_the_port_map_does() -> None:
    busy = replace(BLOCKING, traffic=replace(BLOCKING.traffic, top_ports=(((6, 64222), 5), ((17, 64222), 4))))
    unknown, mapped = status(busy, NOW, ()), status(busy, NOW, (), {64222: "ssh"})
    assert [port["service"] for port in unknown["topPorts"]] == ["unknown", "unknown"]
    assert [port["service"] for port in mapped["topPorts"]] == ["ssh", "ssh"]
    assert [port["protocol"] for port in mapped["topPorts"]] == ["TCP", "UDP"]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(-1, 255), st.integers(0, 65535)), max_size=10))
def test_the_status_has_each_busy_port_in_its_order(places: list[tuple[int, int]]) -> None:
    top = tuple((place, 100 - number) for number, place in enumerate(places))
    shown = status(replace(BLOCKING, traffic=TrafficStats(top_ports=top)), NOW, ())["topPorts"]
    assert [port["packets"] for port in shown] == [packets for _, packets in top]
    for port, (number, place) in zip(shown, places, strict=True):
        assert port["protocol"]
        assert port["service"]
        # A number that is no port, as of ICMP's types, is not shown as one.
        assert port["port"] == (place if number in (6, 17, 132, 136) else None)


@pytest.mark.parametrize(
    ("state", "unhealthy", "word"),
    [
        (STARTING, ("No list.",), "starting"),
        (with_pull(STARTING, last_pull=FAILED), ("No list.",), "degraded"),
        (BLOCKING, ("The list is old.",), "degraded"),
        (BLOCKING, (), "active"),
        (replace(BLOCKING, dry_run=True), (), "dry-run"),
        (replace(BLOCKING, dry_run=True), ("The list is old.",), "degraded"),
    ],
)
def test_the_status_is_one_word(state: State, unhealthy: tuple[str, ...], word: str) -> None:
    found = status(state, NOW, unhealthy)
    assert (found["status"], found["reasons"]) == (word, list(unhealthy))


def test_the_status_of_a_start_has_the_same_keys_and_says_nothing_untrue() -> None:
    found = status(STARTING, NOW + 1.4, ())
    assert found.keys() == status(BLOCKING, NOW, ()).keys()
    assert {name for name, value in found.items() if value is None} >= {"lastPull", "nextPull", "listVerified"}
    assert (found["uptime"], found["uptimeSeconds"], found["blockedIps"]) == ("1s", 1, 0)
    assert all(found[name] == 0 for name in found if name.startswith("dropped") or name in ("sources", "logLost"))
    assert (found["topPorts"], found["logSource"]) == ([], "counters")
    assert (
        status(with_pull(replace(STARTING, dry_run=True), last_pull=FAILED), NOW, ())["lastPullError"] == FAILED.failure
    )
    assert status(replace(STARTING, dry_run=True, on_trial=True), NOW, ())["dryRun"] is True
    assert status(replace(STARTING, on_trial=True), NOW, ())["onTrial"] is True


@settings(deadline=None)
@given(st.floats(0, 4e9))
def test_times_are_utc_to_the_second(at: float) -> None:
    shown = status(with_pull(next_pull_at=at), NOW, ())["nextPull"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", shown)
    assert abs(datetime.fromisoformat(shown).timestamp() - at) <= 1


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (STARTING, "Starting: the first pull is under way"),
        (with_pull(STARTING, next_pull_at=NOW + 28), "Starting: next try in 28s"),
        (with_pull(STARTING, last_pull=FAILED, pulling=True), f"No list yet: {FAILED.failure}; a pull is under way"),
        (
            with_pull(STARTING, last_pull=FAILED, next_pull_at=NOW + 3600),
            f"No list yet: {FAILED.failure}; next try in 1h",
        ),
        (BLOCKING, "Blocking 8,774 addresses; list of 2h ago; next pull in 22h; 1,234 packets dropped today"),
        (
            with_pull(last_pull=FAILED),
            f"Blocking 8,774 addresses; last pull failed: {FAILED.failure}; next pull in 22h; "
            "1,234 packets dropped today",
        ),
        (
            with_pull(with_lists(verified_at=None), last_pull=None, next_pull_at=None),
            "Blocking 8,774 addresses; 1,234 packets dropped today",
        ),
        (
            with_pull(next_pull_at=NOW - 1),
            "Blocking 8,774 addresses; list of 2h ago; next pull in 0s; 1,234 packets dropped today",
        ),
    ],
)
def test_the_state_in_one_sentence(state: State, said: str) -> None:
    assert sentence(state, NOW) == said
