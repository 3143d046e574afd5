"""Reporting as a whole: real outbox, real client, and a stand-in with every fault; only clocks and dice are put in."""

from __future__ import annotations

import asyncio
import json
import logging
import resource
import time
from collections import Counter
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from ipaddress import IPv6Address
from typing import TYPE_CHECKING, TypeVar

import pytest

from sikkerguard.config.settings import Config
from sikkerguard.core.host.surroundings import HostAllowlist
from sikkerguard.core.lists.allowlist import AllowEntry, Allowlist
from sikkerguard.core.lists.lookup import Listings
from sikkerguard.core.lists.sources import LOCAL_FILE, ListedSource
from sikkerguard.core.net.address import parse_prefix
from sikkerguard.core.net.family import Family
from sikkerguard.core.net.networks import Blocklist, Networks
from sikkerguard.core.net.packed import Ranges
from sikkerguard.core.reports.outcomes import QuotaNoted, Recovered
from sikkerguard.core.reports.rows import ReportAnswer, row_of
from sikkerguard.core.reports.screen import Screen
from sikkerguard.core.traffic.totals import day_of
from sikkerguard.edges.sikkerapi.client import ApiClient
from sikkerguard.edges.sikkerapi.reports import BulkReportClient
from sikkerguard.edges.storage.database import FILE, Database
from sikkerguard.edges.storage.outbox import Outbox
from sikkerguard.errors import KeyRefused, RecordError, SendingFailed, Unreachable
from sikkerguard.service.disk_thread import DiskThread
from sikkerguard.service.report_loop import ReportLoop
from sikkerguard.service.wakeup import Wakeup, Watched
from tests.standin.faults import Canned, CutOff, Delay, Drop, Fault, Reset
from tests.standin.server import DEMO_KEY, Standin
from tests.standin.tiers import FREE, Key
from tests.unit.edges.storage.test_outbox import accounted
from tests.unit.service.virtual_time import VirtualClock, run

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping
    from pathlib import Path

    from sikkerguard.core.interfaces import ReportClient
    from sikkerguard.core.reports.outcomes import Outcome, ReportStats
    from sikkerguard.core.reports.rows import ReportBatch
    from sikkerguard.service.report_sender import ReportClients
    from tests.standin.messages import Request

_Result = TypeVar("_Result")

NOON = 20_000 * 86_400 + 43_200.0
MIDNIGHT = NOON + 43_200
SSH, HTTP, TELNET, DNS = (6, 22), (6, 80), (6, 23), (17, 53)
BLOCK = "INSERT INTO blocked VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET packets = packets + excluded.packets"
make_row = partial(row_of, port_map={}, spoofable=False)
# A server that asks for the request later, which it does not by 503 alone.
DOWN = Canned(503, headers=(("Retry-After", "1"),))
LOST = "the server does not tell reports apart, so they are not sent again"


def source(number: int) -> bytes:
    """An address of the /64 that has this number."""
    return (0x20010DB8 << 96 | number << 64).to_bytes(16, "big")


def listed_as(name: str, *numbers: int, range_: str = "") -> ListedSource:
    """A list of single addresses of these sources, and of a range."""
    singles = b"".join(source(number) for number in sorted(numbers))
    ranges = (parse_prefix(range_)[1],) if range_ else ()
    return ListedSource(name, Blocklist(v6=Networks(Family.V6, singles, Ranges.of(Family.V6, ranges))), NOON)


# All sources of this file, but where a test says otherwise.
LISTED = (listed_as("SikkerAPI", *range(21_000)),)
ANYONE = Screen((), Listings(LISTED).of, custom=False)


class Bench:
    """A reporter with its outbox and a stand-in, all of one clock, `now`. To the reporter it is the clock, the clients,
    the endpoint, the list in force, and what hears of changes."""

    def __init__(self, directory: Path, standin: Standin, config: Config) -> None:
        self.now = NOON
        self.standin = standin
        self.settings = Watched(config)
        self.database = Database(directory)
        self.outbox = Outbox(self.database)
        self.allowlist = Watched(HostAllowlist())
        self.sources: tuple[ListedSource, ...] | None = LISTED
        self.changes = 0
        self.sizes: list[int] = []
        self.apis = 0
        self.reach: Callable[[Config], Awaitable[bool]] | None = None
        self.make_api: Callable[[Config], ReportClient] = self.api
        self.disk = DiskThread("records")
        self.healed = Wakeup()
        self.reporter = self.fresh()

    def fresh(self) -> ReportLoop:
        """As after a restart."""
        self.healed = Wakeup()
        self.reporter = ReportLoop(
            self.outbox,
            clients=self,
            config=self.settings,
            allowlist=self.allowlist,
            lists=self,
            endpoint=self,
            disk=self.disk,
            clock=self,
            healed=self.healed,
            changes=self,
        )
        return self.reporter

    @property
    def config(self) -> Config:
        return self.settings.value

    @config.setter
    def config(self, config: Config) -> None:
        self.settings.set(config)

    def reload(self) -> None:
        """The settings are read again, and are as they were."""
        self.config = replace(self.config)

    @property
    def allowed(self) -> tuple[AllowEntry, ...]:
        return self.allowlist.value.entries

    @allowed.setter
    def allowed(self, entries: tuple[AllowEntry, ...]) -> None:
        self.allowlist.set(HostAllowlist(Allowlist(entries)))

    @property
    def state(self) -> ReportStats:
        return self.reporter.state

    # As its reporter sees it

    def wall(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return time.monotonic()

    def random(self) -> float:
        return 0.5

    def set(self) -> None:
        self.changes += 1

    async def open(self, config: Config) -> bool:
        return self.reach is not None and await self.reach(config)

    def reports(self, config: Config) -> ReportClient:
        return self.make_api(config)

    # What it does

    def api(self, config: Config) -> ReportClient:
        self.apis += 1
        return BulkReportClient(ApiClient(config.api_url, config.api_key), max_seconds=10)

    def block(self, blocked: Mapping[int, Mapping[tuple[int, int], int]]) -> None:
        with self.database.transaction() as connection:
            for number, packets in blocked.items():
                connection.executemany(BLOCK, [(source(number), *key, count) for key, count in packets.items()])

    def round(self) -> float:
        return asyncio.run(self.reporter.report_once())

    def accepted(self) -> list[int]:
        """The numbers of the sources that the stand-in accepted, in their order."""
        return [int(IPv6Address(report.row.ip)) >> 64 & 0xFFFFFFFF for report in self.standin.record.reports]

    def meet(self, *faults: Fault) -> None:
        for fault in faults:
            self.standin.fault("bulk-report", fault)


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's own proxies are not part of any test."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(name="bench")
def _bench(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Iterator[Bench]:
    caplog.set_level(logging.INFO, "sikkerguard")
    holder: list[Bench] = []

    def note(request: Request) -> None:
        holder[0].sizes.append(len(json.loads(request.body)["reports"]))

    with Standin(keys=[key_of(1000)], clock=lambda: holder[0].now, on_request=note) as standin:
        bench = Bench(tmp_path, standin, Config(api_key=DEMO_KEY, api_url=standin.url))
        holder.append(bench)
        yield bench
        bench.database.close()


def answering(status: int = 200, value: object = None, **headers: object) -> Canned:
    pairs = tuple((name.replace("_", "-"), str(text)) for name, text in headers.items())
    return Canned(status, body=None if value is None else json.dumps(value).encode(), headers=pairs)


def allowing(*texts: str) -> tuple[AllowEntry, ...]:
    return tuple(AllowEntry(*parse_prefix(text), "SIKKER_WHITELIST") for text in texts)


def key_of(quota: int) -> Key:
    return Key(DEMO_KEY, replace(FREE, reports=quota))


def lines(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    found = [(record.levelname, record.getMessage()) for record in caplog.records if record.name.startswith("sikker")]
    caplog.clear()
    return found


# What goes well


def test_a_round_reports_what_was_blocked_in_one_line(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.block({1: {SSH: 9}, 2: {SSH: 8}, 3: {HTTP: 7}, 4: {DNS: 50}, 5: {TELNET: 1}})
    assert bench.round() == bench.config.report_interval
    assert bench.accepted() == [1, 2, 3, 5]
    assert lines(caplog) == [("INFO", "Reported 4 blocked IPs (ssh: 2, http: 1, telnet: 1)")]
    state = bench.state
    assert (state.sent, state.withheld, state.waiting, state.quota_remaining) == (4, 1, 0, 996)
    assert state.last_report_at == NOON


def test_of_nothing_new_nothing_is_said_or_sent(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.block({1: {SSH: 9}})
    bench.round()
    caplog.clear()
    bench.block({1: {SSH: 9}})
    bench.round()
    assert bench.standin.record.requests_total == 1
    assert lines(caplog) == []


def test_where_nothing_waits_no_client_is_made(bench: Bench) -> None:
    bench.block({1: {DNS: 9}})
    bench.round()
    assert bench.apis == 0


def test_what_can_be_forged_is_reported_where_it_is_wanted(bench: Bench) -> None:
    bench.config = replace(bench.config, report_spoofable=True)
    bench.block({1: {DNS: 9}})
    bench.round()
    (report,) = bench.standin.record.reports
    assert (report.row.category, report.row.protocol) == ("dns_abuse", "dns")


def test_the_port_map_of_the_hour_counts(bench: Bench) -> None:
    bench.config = replace(bench.config, port_map={4711: "ssh"})
    bench.block({1: {(6, 4711): 9}})
    bench.round()
    assert bench.standin.record.reports[0].row.category == "brute_force"


def test_more_than_one_request_holds_goes_in_several(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.standin.set_keys([key_of(100_000)])
    bench.block({number: {SSH: 1} for number in range(10_005)})
    bench.round()
    assert bench.standin.record.requests_total == 2
    assert bench.standin.record.reports_total == 10_005
    assert lines(caplog) == [("INFO", "Reported 10005 blocked IPs (ssh: 10005)")]


def test_a_new_key_is_used_from_the_next_request_on(bench: Bench) -> None:
    bench.block({1: {SSH: 1}})
    bench.round()
    bench.config = replace(bench.config, api_key="sk_free_other")
    bench.standin.set_keys(["sk_free_other"])
    bench.block({2: {SSH: 1}})
    bench.round()
    assert [report.key for report in bench.standin.record.reports] == [DEMO_KEY, "sk_free_other"]
    assert bench.apis == 2


# Not wanted


def test_disabled_sends_nothing_makes_no_connection_and_does_not_grow(bench: Bench) -> None:
    bench.config = replace(bench.config, report_enabled=False)
    for number in range(3):
        bench.block({number: {SSH: 1}})
        bench.round()
    assert bench.apis == 0
    assert bench.standin.record.requests_total == 0
    with bench.database.transaction() as connection:
        assert connection.execute("SELECT count(*) FROM blocked").fetchone() == (0,)
        assert connection.execute("SELECT count(*) FROM outbox").fetchone() == (0,)
    assert accounted(bench.outbox) == 3


def test_disabled_in_the_middle_of_a_round_sends_no_further_request(bench: Bench) -> None:
    bench.standin.set_keys([key_of(100_000)])
    bench.block({number: {SSH: 1} for number in range(10_005)})
    bench.standin._on_request = lambda _: setattr(bench, "config", replace(bench.config, report_enabled=False))
    bench.round()
    assert bench.standin.record.requests_total == 1
    assert bench.state.waiting == 5


# The day's quota


def test_within_the_day_s_quota_the_largest_go_and_the_others_after_midnight(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.standin.set_keys([key_of(3)])
    bench.block({number: {SSH: 100 - number} for number in range(8)})
    bench.round()
    assert bench.accepted() == [0, 1, 2]
    assert lines(caplog) == [
        (
            "WARNING",
            "The day's quota of reports is used up; blocking and counting go on, 5 rows wait for midnight UTC.",
        ),
        ("INFO", "Reported 3 blocked IPs (ssh: 3)"),
    ]
    for bench.now in (NOON + 1800, MIDNIGHT - 1):
        bench.round()
    # The quota is remembered: nobody asks for what there is not, nor says so again.
    assert lines(caplog) == []
    bench.fresh()
    bench.round()
    assert bench.standin.record.requests_total <= 2
    assert bench.state.quota_remaining == 0
    bench.now = MIDNIGHT + 1
    bench.round()
    assert bench.accepted() == [0, 1, 2, 3, 4, 5]
    bench.block({6: {SSH: 1}, 7: {SSH: 1}})
    bench.round()
    bench.now = MIDNIGHT + 86_400
    bench.round()
    assert bench.accepted() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert bench.state.rejected == bench.state.unanswered == 0
    # Only on the very first day nobody knew how many rows there are on one.
    assert bench.sizes == [8, 3, 2]


def test_without_headers_the_answers_tell_the_quota(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    now = [NOON]
    with Standin(keys=[key_of(3)], clock=lambda: now[0], quota_headers=False) as standin:
        bench = Bench(tmp_path, standin, Config(api_key=DEMO_KEY, api_url=standin.url))
        bench.block({number: {SSH: 100 - number} for number in range(8)})
        for moment in (NOON, NOON + 1800, MIDNIGHT + 1, MIDNIGHT + 1800, MIDNIGHT + 86_401):
            bench.now = now[0] = moment
            if moment == MIDNIGHT + 1800:
                bench.block({6: {SSH: 1}, 7: {SSH: 1}})  # what nobody has seen for a day is not reported any more
            bench.round()
        # Of each day the first request brought rows back: they are the next day's, and nobody is told that they were
        # wrong.
        assert bench.accepted() == [0, 1, 2, 3, 4, 5, 6, 7]
        assert standin.record.requests_total == 3
        assert bench.state.rejected == 0
        assert "rejected" not in caplog.text
        bench.database.close()


def test_a_spent_quota_that_a_429_tells_waits_for_midnight(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.standin.set_keys([key_of(0)])
    bench.block({1: {SSH: 1}})
    bench.round()
    bench.now = NOON + 7200
    bench.fresh()
    bench.round()
    assert bench.standin.record.requests_total == 1
    assert [message for _, message in lines(caplog)] == [
        "The day's quota of reports is used up; blocking and counting go on, 1 rows wait for midnight UTC."
    ] * 2  # once for each start
    bench.standin.set_keys([key_of(5)])
    bench.now = MIDNIGHT + 1
    bench.round()
    assert bench.accepted() == [1]


def test_a_429_without_a_time_waits_for_midnight_too(bench: Bench) -> None:
    bench.meet(Canned(429))
    bench.block({1: {SSH: 1}})
    bench.round()
    bench.now = MIDNIGHT - 1
    bench.round()
    assert bench.standin.record.requests_total == 1
    bench.now = MIDNIGHT
    bench.round()
    assert bench.accepted() == [1]


def test_a_429_that_names_a_shorter_time_is_waited_out(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.meet(Canned(429, headers=(("Retry-After", "600"),)))
    bench.block({1: {SSH: 1}})
    assert bench.round() == 630  # and half a minute, for there are others who wait as long
    ((level, message),) = lines(caplog)
    assert level == "ERROR"
    assert "quota is used up (429); blocking and counting go on, 1 rows wait; next try in 10m." in message
    bench.now = NOON + 629
    assert bench.round() == 1
    assert bench.standin.record.requests_total == 1
    bench.now = NOON + 630
    bench.round()
    assert bench.accepted() == [1]


def test_another_key_has_a_quota_of_its_own(bench: Bench) -> None:
    bench.standin.set_keys([key_of(0), Key("sk_free_paid", replace(FREE, reports=10))])
    bench.block({1: {SSH: 1}})
    bench.round()
    bench.config = replace(bench.config, api_key="sk_free_paid")
    bench.reload()
    bench.round()
    assert bench.accepted() == [1]


def test_an_answer_after_midnight_tells_of_the_day_that_it_was_asked_on(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.now = MIDNIGHT - 1
    bench.standin.set_keys([key_of(1)])
    settle = bench.standin.record.settle

    def settle_at_midnight(number: int, status: int) -> None:
        # The answer is made, and about to be sent.
        bench.now = MIDNIGHT + 1
        settle(number, status)

    monkeypatch.setattr(bench.standin.record, "settle", settle_at_midnight)
    bench.block({1: {SSH: 2}, 2: {SSH: 1}})
    bench.round()
    assert bench.state.quota_remaining is None
    bench.round()
    assert bench.accepted() == [1, 2]


def test_a_429_that_leaves_some_of_the_quota_is_followed_by_so_many_rows(bench: Bench) -> None:
    bench.meet(answering(429, X_Report_Remaining=2, X_Report_Limit=1000))
    bench.block({number: {SSH: 100 - number} for number in range(5)})
    bench.round()
    assert bench.sizes == [5, 2, 3]
    assert bench.accepted() == [0, 1, 2, 3, 4]
    assert bench.outbox.quota(0, DEMO_KEY)[1] == 1000


def test_a_429_that_leaves_nothing_is_the_end_of_the_day(bench: Bench) -> None:
    bench.meet(answering(429, X_Daily_Remaining=0))
    bench.block({number: {SSH: 1} for number in range(150)})
    assert bench.round() == bench.config.report_interval
    assert bench.sizes == [150]
    assert bench.state.quota_remaining == 0


@pytest.mark.parametrize("remaining", [{}, {"X_Report_Remaining": 150}, {"X_Report_Remaining": 5000}], ids=str)
def test_a_429_to_many_rows_is_followed_by_fewer(bench: Bench, remaining: dict[str, int]) -> None:
    bench.meet(answering(429, **remaining))
    bench.block({number: {SSH: 1} for number in range(150)})
    bench.round()
    assert bench.sizes == [150, 100, 50]
    assert bench.standin.record.reports_total == 150


def test_a_429_to_few_rows_too_is_the_end_of_the_day(bench: Bench) -> None:
    bench.meet(*[Canned(429)] * 2)
    bench.block({number: {SSH: 1} for number in range(150)})
    assert bench.round() == bench.config.report_interval
    bench.now = MIDNIGHT - 1
    bench.round()
    assert bench.sizes == [150, 100]
    assert bench.state.quota_remaining == 0


def test_a_server_that_refuses_few_rows_with_much_of_the_quota_left_is_left_alone_for_a_while(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.meet(*[answering(429, X_Report_Remaining=700)] * 2)
    bench.block({number: {SSH: 1} for number in range(150)})
    assert bench.round() == 900
    assert bench.sizes == [150, 100]
    assert bench.state.quota_remaining == 700
    ((level, message),) = lines(caplog)
    assert level == "ERROR"
    assert message.startswith("SikkerAPI refuses for now (429), with 700 left of the day's quota; ")
    bench.now += 900
    bench.round()
    assert bench.standin.record.reports_total == 150


def test_a_429_that_names_a_short_time_is_waited_out_and_what_is_left_is_known_then(bench: Bench) -> None:
    bench.meet(answering(429, X_Report_Remaining=2, Retry_After=60))
    bench.block({number: {SSH: 1} for number in range(5)})
    assert bench.round() == 90
    assert bench.sizes == [5]
    bench.now += 90
    bench.round()
    assert bench.sizes == [5, 2, 3]


def test_a_round_ends_though_there_is_always_less(bench: Bench) -> None:
    bench.standin.set_keys([key_of(100_000)])
    bench.meet(*[answering(429, X_Report_Remaining=number) for number in range(399, 199, -1)])
    bench.block({number: {SSH: 1} for number in range(400)})
    assert bench.round() == bench.config.report_interval
    assert len(bench.sizes) == 100


def test_the_first_request_of_a_day_is_no_larger_than_a_day_s_quota(bench: Bench) -> None:
    bench.block({number: {SSH: 9} for number in range(2)})
    bench.meet(answering(200, {"total": 2, "accepted": 2, "rejected": 0}, X_Report_Limit=3))
    bench.round()
    assert bench.state.quota_remaining == 1  # at most
    bench.now = MIDNIGHT + 1
    bench.fresh()
    bench.block({number: {SSH: 9} for number in range(10, 20)})
    bench.round()
    assert bench.sizes == [2, 3, 7]


def test_a_quota_of_nothing_is_asked_for_once_a_day(bench: Bench) -> None:
    bench.standin.set_keys([key_of(0)])
    bench.block({1: {SSH: 2}, 2: {SSH: 1}})
    bench.round()
    bench.now = MIDNIGHT + 1
    bench.round()
    assert bench.sizes == [2, 1]
    bench.standin.set_keys([key_of(10)])  # it may be paid for meanwhile
    bench.block({1: {SSH: 2}, 2: {SSH: 1}})
    bench.round()
    bench.now = MIDNIGHT + 86_401
    bench.round()
    assert bench.accepted() == [1, 2]


@pytest.mark.parametrize(("headers", "remaining"), [({"X_Report_Remaining": 500}, 500), ({}, 0)], ids=str)
def test_a_row_that_a_limit_kept_out_waits_for_another_round(
    bench: Bench, headers: dict[str, int], remaining: int
) -> None:
    error = {"row": 1, "ip": "2001:db8:0:2::", "error": "rate limit hit"}
    bench.meet(answering(200, {"total": 3, "accepted": 2, "rejected": 1, "errors": [error]}, **headers))
    bench.block({1: {SSH: 3}, 2: {SSH: 2}, 3: {SSH: 1}})
    assert bench.round() == bench.config.report_interval
    assert bench.sizes == [3]
    assert (bench.state.waiting, bench.state.quota_remaining) == (1, remaining)
    bench.now = MIDNIGHT + 1 if not remaining else NOON + 1800
    bench.round()
    assert bench.sizes == [3, 1]


# What goes wrong


def test_rejected_rows_are_named_and_dropped(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    error = {"row": 1, "ip": "2001:db8:0:2::", "error": "whitelisted"}
    answer = {"total": 3, "accepted": 2, "rejected": 1, "errors": [error]}
    bench.meet(Canned(200, body=json.dumps(answer).encode()))
    bench.block({1: {SSH: 3}, 2: {SSH: 2}, 3: {SSH: 1}})
    bench.round()
    bench.round()
    assert bench.standin.record.requests_total == 1
    assert lines(caplog) == [
        ("WARNING", "SikkerAPI rejected these reports, which are dropped: 2001:db8:0:2:: (whitelisted)."),
        ("INFO", "Reported 2 blocked IPs (ssh: 2)"),
    ]
    assert (bench.state.sent, bench.state.rejected) == (2, 1)


@pytest.mark.parametrize(
    ("fault", "pause", "said"),
    [
        *((Canned(status), 3600, "1h") for status in (401, 403, 404, 409, 307)),
        (Canned(408), 5, "5s"),
        (DOWN, 31, "31s"),
    ],
    ids=str,
)
def test_what_was_certainly_not_accepted_is_sent_again(
    bench: Bench, fault: Fault, pause: float, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    bench.meet(fault)
    bench.block({1: {SSH: 2}, 2: {SSH: 1}})
    # What comes in meanwhile is taken up as often as ever.
    assert bench.round() == min(pause, bench.config.report_interval)
    ((level, message),) = lines(caplog)
    assert level == "ERROR"
    assert message.endswith(f"; blocking and counting go on, 2 rows wait; next try in {said}.")
    bench.now += pause - 1
    assert bench.round() == 1
    assert bench.standin.record.requests_total == 1  # not before its time
    bench.now += 1
    bench.round()
    assert bench.accepted() == [1, 2]
    assert bench.state.unanswered == 0


def test_a_server_that_is_not_there_is_tried_again_ever_less_often(bench: Bench) -> None:
    bench.standin.stop()
    bench.block({1: {SSH: 1}})
    pauses = []
    for _ in range(3):
        pauses.append(bench.round())
        bench.now += pauses[-1]
    assert pauses == [5, 10, 20]
    bench.standin.start()
    assert bench.round() == bench.config.report_interval
    assert bench.accepted() == [1]
    bench.meet(Canned(408))
    bench.block({2: {SSH: 1}})
    assert bench.round() == 5


def test_a_clock_that_was_put_back_by_years_holds_nothing_up(bench: Bench) -> None:
    bench.meet(DOWN)
    bench.block({1: {SSH: 1}})
    bench.round()
    bench.now -= 10 * 365 * 86_400
    bench.round()
    assert bench.accepted() == [1]


def test_a_change_of_the_configuration_is_acted_on_at_once(bench: Bench) -> None:
    bench.standin.stop()
    bench.block({1: {SSH: 1}})
    bench.round()
    bench.standin.start()
    bench.reload()
    bench.round()
    assert bench.accepted() == [1]


# Rows and requests that are refused for what they are


def test_a_request_that_is_refused_for_what_is_in_it_is_made_smaller(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.meet(Canned(400), Canned(422), Canned(400))
    bench.block({number: {SSH: 100 - number} for number in range(1, 9)})
    assert bench.round() == bench.config.report_interval
    assert bench.sizes == [8, 4, 2, 1, 2, 4, 1]
    assert bench.accepted() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [level for level, _ in lines(caplog)] == ["INFO"]


def test_a_row_that_is_refused_alone_is_named_and_the_others_go_on(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.meet(*[Canned(400)] * 3)
    bench.block({number: {SSH: 100 - number} for number in range(1, 5)})
    assert bench.round() == bench.config.report_interval
    assert bench.sizes == [4, 2, 1, 1, 2]
    assert bench.accepted() == [2, 3, 4]
    assert (bench.state.sent, bench.state.rejected, bench.state.waiting) == (3, 1, 0)
    assert lines(caplog) == [
        (
            "WARNING",
            "SikkerAPI rejected these reports, which are dropped: 2001:db8:0:1:: (SikkerAPI answered 400 Bad Request).",
        ),
        ("INFO", "Reported 3 blocked IPs (ssh: 3)"),
    ]


def test_a_server_that_refuses_every_row_alone_does_not_get_all_of_them(bench: Bench) -> None:
    bench.meet(*[Canned(422)] * 50)
    bench.block({number: {SSH: 100 - number} for number in range(20)})
    bench.round()
    assert bench.sizes == [20, 10, 5, 2, 1, 1, 1]
    assert (bench.state.rejected, bench.state.waiting) == (3, 17)
    bench.now += 3600
    bench.round()
    assert (bench.state.rejected, bench.state.waiting) == (4, 16)
    bench.standin.clear_faults()
    bench.now += 7200
    bench.round()
    assert bench.sizes[8:] == [1, 2, 4, 8, 1]
    assert bench.state.sent == 16


def test_a_request_that_is_too_large_is_made_smaller_and_a_row_that_is_is_kept(bench: Bench) -> None:
    bench.meet(*[Canned(413)] * 3)
    bench.block({number: {SSH: 100 - number} for number in range(4)})
    bench.round()
    assert bench.sizes == [4, 2, 1]
    assert (bench.state.rejected, bench.state.waiting) == (0, 4)
    bench.now += 3600
    bench.round()
    assert bench.sizes == [4, 2, 1, 1, 2, 1]
    assert bench.accepted() == [0, 1, 2, 3]


class Narrow:
    """A line on which no more than so many rows arrive before it breaks off."""

    def __init__(self, api: ReportClient, rows: int, sizes: list[int]) -> None:
        self._api = api
        self._rows = rows
        self._sizes = sizes

    async def report(self, body: bytes, before_last_byte: Callable[[], None]) -> ReportAnswer:
        self._sizes.append(len(json.loads(body)["reports"]))
        if self._sizes[-1] > self._rows:
            raise SendingFailed("SikkerAPI did not answer in time")
        return await self._api.report(body, before_last_byte)


def test_a_line_that_breaks_off_is_given_less_the_next_time(bench: Bench) -> None:
    asked: list[int] = []
    bench.make_api = lambda config: Narrow(bench.api(config), 5, asked)
    bench.fresh()
    bench.block({number: {SSH: 1} for number in range(16)})
    bench.now += bench.round()
    bench.now += bench.round()
    assert asked == [16, 8]
    bench.round()
    assert asked == [16, 8, 4, 8]
    assert bench.state.sent == 4


# Who is allowed


def test_who_is_allowed_is_not_reported(bench: Bench) -> None:
    bench.allowed = allowing("2001:db8:0:1::", "2001:db8:0:8::/61")
    bench.block({1: {SSH: 9}, 2: {SSH: 8}, 9: {SSH: 7}, 16: {SSH: 6}})
    bench.round()
    assert bench.accepted() == [2, 16]
    assert (bench.state.withheld, bench.state.waiting) == (2, 0)


def test_who_is_allowed_now_is_not_reported_though_it_waits(bench: Bench) -> None:
    bench.meet(DOWN)
    bench.block({1: {SSH: 9}, 2: {SSH: 8}})
    bench.round()
    assert bench.state.waiting == 2
    bench.allowed = allowing("2001:db8:0:1::")
    bench.reload()
    bench.round()
    assert bench.accepted() == [2]
    assert bench.state.withheld == 1


def test_who_is_allowed_in_the_middle_of_a_round_is_not_reported(bench: Bench) -> None:
    """The configuration changes after rows were gathered, and before or after they are taken."""

    class Reconfigured(Outbox):
        def take(self, most: int, screen: Screen) -> ReportBatch | None:
            if not bench.allowed:
                bench.allowed = allowing("2001:db8:0:1::")
                bench.reload()
            return super().take(most, screen)

    bench.outbox = Reconfigured(bench.database)
    bench.fresh()
    bench.block({1: {SSH: 9}, 2: {SSH: 8}})
    assert bench.round() == 0
    assert bench.sizes == []
    bench.round()
    assert bench.accepted() == [2]


def test_who_is_allowed_between_two_requests_is_not_reported(bench: Bench) -> None:
    bench.standin.set_keys([key_of(100_000)])
    bench.block({number: {SSH: 20_000 - number} for number in range(10_005)})

    def meanwhile(_: object) -> None:
        bench.allowed = allowing("2001:db8:0:2714::")  # the last but one
        bench.reload()

    bench.standin._on_answer = meanwhile
    assert bench.round() == 0
    assert bench.standin.record.reports_total == 10_000
    bench.standin._on_answer = lambda _: None
    bench.round()
    assert bench.accepted()[10_000:] == [10_000, 10_001, 10_002, 10_003]


def test_the_way_is_looked_for_where_there_is_something_to_send_and_before_it_is_sent(bench: Bench) -> None:
    reached: list[int] = []

    async def reach(config: Config) -> bool:
        assert config == bench.config
        reached.append(bench.standin.record.requests_total)
        # SikkerAPI was found at an address of which packets were blocked until now.
        bench.allowed = allowing("2001:db8:0:1::")
        return True

    bench.reach = reach
    bench.fresh()
    bench.round()
    assert reached == []
    bench.block({1: {SSH: 9}, 2: {SSH: 9}})
    bench.round()
    assert reached == [0]
    assert bench.accepted() == [2]
    bench.standin.set_keys([key_of(1)])
    bench.block({number: {SSH: 9} for number in range(3, 9)})
    bench.round()
    assert len(reached) == 2
    # Nor is it looked for on a day on which nothing can be sent any more, or where nothing is wanted.
    bench.now += 3600
    bench.round()
    bench.config = replace(bench.config, report_enabled=False)
    bench.round()
    assert len(reached) == 2


def test_without_a_way_rows_wait_and_it_is_told(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    async def reach(config: Config) -> bool:
        raise Unreachable("SikkerAPI's name does not resolve")

    bench.reach = reach
    bench.fresh()
    bench.block({1: {SSH: 9}})
    assert bench.round() == 5
    assert bench.standin.record.requests_total == 0
    assert bench.state.waiting == 1
    (line,) = lines(caplog)
    assert line[1].startswith("SikkerAPI's name does not resolve; blocking and counting go on, 1 rows wait; next try")
    bench.reach = None
    bench.now += 5
    bench.fresh()
    bench.round()
    assert bench.accepted() == [1]


class Interrupted(Outbox):
    """An outbox that does this before rows are taken for the first time."""

    def __init__(self, database: Database, meanwhile: Callable[[], None], *, at: str) -> None:
        super().__init__(database)
        self._meanwhile = [meanwhile]
        self._at = at

    def quota(self, day: int, key: str) -> tuple[int | None, int | None]:
        self._interrupt("quota")
        return super().quota(day, key)

    def take(self, most: int, screen: Screen) -> ReportBatch | None:
        self._interrupt("take")
        return super().take(most, screen)

    def _interrupt(self, at: str) -> None:
        if at == self._at and self._meanwhile:
            self._meanwhile.pop()()


def interrupt(bench: Bench, at: str, **changes: object) -> None:
    """Change this of the bench in the middle of its next round."""

    def meanwhile() -> None:
        for name, value in changes.items():
            setattr(bench, name, value)

    bench.outbox = Interrupted(bench.database, meanwhile, at=at)
    bench.fresh()


@pytest.mark.parametrize("at", ["quota", "take"], ids=["before rows are taken", "after that"])
def test_who_is_allowed_when_a_request_is_made_is_not_in_it_though_nobody_says_so(bench: Bench, at: str) -> None:
    interrupt(bench, at, allowed=allowing("2001:db8:0:1::"))
    bench.block({1: {SSH: 9}, 2: {SSH: 8}})
    assert bench.round() == bench.config.report_interval
    assert bench.accepted() == [2]
    assert bench.sizes == [1]
    assert (bench.state.sent, bench.state.withheld, bench.state.waiting) == (1, 1, 0)
    assert accounted(bench.outbox) == 17


def test_a_request_that_names_who_is_allowed_in_its_last_moment_never_gets_whole(bench: Bench) -> None:
    """The allowlist changes while the request is on its way, once for somebody in it and once for somebody else."""
    begun: list[int] = []

    class Slow:
        def __init__(self, api: ReportClient) -> None:
            self._api = api

        async def report(self, body: bytes, before_last_byte: Callable[[], None]) -> ReportAnswer:
            begun.append(len(json.loads(body)["reports"]))
            bench.allowed = allowing("2001:db8:0:1::") if len(begun) == 1 else allowing("2001:db8:0:1::", "192.0.2.1")
            return await self._api.report(body, before_last_byte)

    bench.make_api = lambda config: Slow(bench.api(config))
    bench.fresh()
    bench.block({1: {SSH: 9}, 2: {SSH: 8}, 3: {SSH: 7}})
    assert bench.round() == bench.config.report_interval
    assert begun == [3, 2]
    assert bench.sizes == [2]
    assert bench.accepted() == [2, 3]
    state = bench.state
    assert (state.sent, state.withheld, state.unanswered, state.waiting) == (2, 1, 0, 0)


def test_a_configuration_that_is_read_while_a_request_is_on_its_way_keeps_its_last_byte_back(bench: Bench) -> None:
    class Slow:
        def __init__(self, api: ReportClient) -> None:
            self._api = api

        async def report(self, body: bytes, before_last_byte: Callable[[], None]) -> ReportAnswer:
            if bench.config.report_enabled:
                bench.config = replace(bench.config, report_enabled=False)
                bench.reload()
            return await self._api.report(body, before_last_byte)

    bench.make_api = lambda config: Slow(bench.api(config))
    bench.fresh()
    bench.block({1: {SSH: 9}})
    assert bench.round() == 0
    assert bench.sizes == []
    bench.round()
    assert (bench.state.sent, bench.state.unanswered, bench.state.waiting) == (0, 0, 0)


# Which lists are in force

CUSTOM_TOO = (listed_as("SikkerAPI", 2, 3), listed_as(LOCAL_FILE, 1, 3))


def test_what_the_custom_list_alone_has_is_not_reported_unless_that_is_wanted(bench: Bench) -> None:
    bench.sources = CUSTOM_TOO
    bench.block({1: {SSH: 9}, 2: {SSH: 8}, 3: {SSH: 7}})
    bench.round()
    assert bench.accepted() == [2, 3]
    assert (bench.state.withheld, bench.state.waiting) == (1, 0)
    bench.config = replace(bench.config, report_custom=True)
    bench.block({1: {SSH: 1}, 2: {SSH: 1}})
    bench.round()
    assert bench.accepted() == [2, 3, 1]


@pytest.mark.parametrize("change", [{"sources": CUSTOM_TOO}, {"report_custom": False}], ids=str)
def test_what_the_custom_list_alone_has_when_a_request_is_made_is_not_in_it(
    bench: Bench, change: dict[str, object]
) -> None:
    bench.sources = LISTED if "sources" in change else CUSTOM_TOO
    bench.config = replace(bench.config, report_custom=True)
    stays = replace(bench.config, report_custom=False)
    if "sources" in change:
        bench.config = stays
        interrupt(bench, "quota", sources=CUSTOM_TOO)
    else:
        interrupt(bench, "quota", config=stays)
    bench.block({1: {SSH: 9}, 2: {SSH: 8}})
    if bench.round() == 0:
        # Other settings end a round, and begin another one at once.
        assert bench.sizes == []
        bench.round()
    assert bench.accepted() == [2]
    assert (bench.state.withheld, bench.state.waiting) == (1, 0)


def test_what_no_list_has_any_more_stays_at_home(bench: Bench) -> None:
    bench.sources = (listed_as("SikkerAPI", 2),)
    bench.block({1: {SSH: 9}, 2: {SSH: 8}})
    bench.meet(DOWN)
    bench.round()
    # What was known to be SikkerAPI's when its row was made may go.
    bench.sources = (listed_as("SikkerAPI", 5),)
    bench.now += 60
    bench.round()
    assert bench.accepted() == [2]
    assert bench.state.withheld == 1


def test_as_long_as_no_list_is_known_nothing_is_made_of_what_was_blocked_and_nothing_is_sent(bench: Bench) -> None:
    bench.meet(DOWN)
    bench.block({1: {SSH: 9}})
    bench.round()
    bench.sources = None
    bench.now += 60
    bench.block({2: {SSH: 8}})
    bench.fresh()
    assert bench.round() == bench.config.report_interval
    assert bench.sizes == [1]
    assert (bench.state.waiting, bench.state.withheld) == (1, 0)
    bench.sources = LISTED
    bench.round()
    assert bench.accepted() == [1, 2]


def test_of_a_listed_range_as_many_rows_go_as_the_others_leave(bench: Bench) -> None:
    bench.standin.set_keys([key_of(7)])
    bench.sources = (listed_as("SikkerAPI", 1, 2, 3, 4, 5, range_="2001:db8:1::/48"),)
    crowd = range(0x10000, 0x10000 + 1500)
    bench.block({number: {SSH: 50} for number in crowd} | {number: {SSH: 1} for number in range(1, 6)})
    bench.round()
    assert bench.sizes == [1505]  # of which the first seven are taken
    assert sorted(bench.accepted())[:5] == [1, 2, 3, 4, 5]
    # The next day too, though all that is new of the others is smaller.
    bench.now = MIDNIGHT + 1
    bench.block({number: {SSH: 50} for number in crowd} | {number: {SSH: 1} for number in range(1, 6)})
    bench.round()
    assert sorted(bench.accepted()[7:])[:5] == [1, 2, 3, 4, 5]
    assert len(bench.accepted()) == 14


# What may have been accepted


@pytest.mark.parametrize(
    ("fault", "was_accepted"),
    [
        (Drop(accepted=True), True),
        (Drop(accepted=False), False),
        (CutOff(10), True),
        (Reset(), False),
        (Reset(after=3), True),
        (Canned(500), False),
        (Canned(502), False),
        (Canned(503), False),
        (Canned(200, body=b"<html>"), False),
        (Canned(200, body=b'{"total": 7, "accepted": 7, "rejected": 0, "errors": []}'), False),
    ],
    ids=str,
)
def test_what_may_have_been_accepted_is_not_sent_again_and_that_is_said(
    bench: Bench, fault: Fault, was_accepted: bool, caplog: pytest.LogCaptureFixture
) -> None:
    bench.meet(fault)
    bench.block({1: {SSH: 2}, 2: {SSH: 1}})
    assert bench.round() == 5
    first, second = lines(caplog)
    assert first[0] == second[0] == "WARNING"
    assert f"2 reports may have been accepted; {LOST}." in first[1]
    assert second[1] == "Blocking and counting go on, 0 rows wait; next try in 5s."
    for bench.now in (NOON + 10, NOON + 3600):
        bench.block({1: {SSH: 1}})
        bench.round()
    bench.fresh()
    bench.round()
    assert bench.accepted() == ([1, 2] if was_accepted else [])
    assert bench.standin.record.requests_total == 1
    assert (bench.state.sent, bench.state.unanswered) == (0, 2)


def test_a_server_that_answers_nothing_does_not_use_up_all_there_is(bench: Bench) -> None:
    bench.standin.set_keys([key_of(100_000)])
    bench.block({number: {SSH: 1} for number in range(12_000)})
    bench.meet(*[Drop(accepted=False)] * 5)
    for _ in range(5):
        bench.now += bench.round()
    assert bench.state.unanswered == 10_000 + 4 * 100
    bench.round()
    assert bench.sizes == [10_000, 100, 100, 100, 100, 100, 200, 400, 800, 100]
    assert bench.state.waiting == 0
    assert bench.state.sent == 1600


def test_what_a_killed_process_left_is_decided_and_said(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.block({1: {SSH: 2}, 2: {SSH: 1}})
    bench.outbox.gather(20_000, make_row, ANYONE)
    batch = bench.outbox.take(1, ANYONE)
    assert batch is not None
    bench.round()
    assert ("INFO", "1 reports had not left yet when the service ended; they wait again.") in lines(caplog)
    assert bench.accepted() == [1, 2]
    bench.block({3: {SSH: 2}})
    bench.outbox.gather(20_000, make_row, ANYONE)
    batch = bench.outbox.take(1, ANYONE)
    assert batch is not None
    bench.outbox.on_wire(batch.request)
    bench.fresh()
    bench.round()
    ((level, message),) = lines(caplog)
    assert level == "WARNING"
    assert f"1 reports may have been accepted; {LOST}." in message
    assert bench.accepted() == [1, 2]


# The disk


@contextmanager
def no_room(size: int) -> Iterator[None]:
    """No file can grow beyond this size: the kernel itself cuts the write off, for root too."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_without_a_disk_to_write_on_nothing_is_sent_and_it_is_said_once(
    bench: Bench, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bench.block({1: {SSH: 2}})
    pauses = []
    with no_room((tmp_path / f"{FILE}-wal").stat().st_size):
        for _ in range(3):
            pauses.append(bench.round())
    assert pauses == [300, 600, 1200]
    ((level, message),) = lines(caplog)
    assert level == "ERROR"
    assert "nothing is reported meanwhile, since it could be reported twice; blocking goes on" in message
    assert (bench.apis, bench.standin.record.requests_total) == (0, 0)
    bench.round()
    assert bench.accepted() == [1]


class Filling(Outbox):
    """An outbox on a disk that is full when these methods are called, for as many times as is said."""

    def __init__(self, database: Database, tmp_path: Path, **times: int) -> None:
        super().__init__(database)
        self._wal = tmp_path / f"{FILE}-wal"
        self._times = Counter(times)

    @contextmanager
    def _room(self, name: str) -> Iterator[None]:
        self._times[name] -= 1
        with no_room(self._wal.stat().st_size) if self._times[name] >= 0 else nullcontext():
            yield

    def on_wire(self, request: int) -> None:
        with self._room("on_wire"):
            super().on_wire(request)

    def apply(self, outcome: Outcome) -> None:
        with self._room(type(outcome).__name__):
            super().apply(outcome)


def test_a_mark_that_can_not_be_made_keeps_the_last_byte_back(bench: Bench, tmp_path: Path) -> None:
    bench.outbox = Filling(bench.database, tmp_path, on_wire=1)
    bench.fresh()
    bench.block({1: {SSH: 2}})
    assert bench.round() == 300
    assert bench.standin.record.requests_total == 0
    bench.round()
    assert bench.accepted() == [1]


@pytest.mark.parametrize(("fault", "end"), [(Delay(0), "Settled"), (Drop(accepted=True), "LeftUnanswered")], ids=str)
def test_an_outcome_that_can_not_be_kept_is_kept_before_anything_else_is_sent(
    bench: Bench, tmp_path: Path, fault: Fault, end: str
) -> None:
    bench.outbox = Filling(bench.database, tmp_path, **{end: 2})
    bench.fresh()
    bench.meet(fault)
    bench.block({1: {SSH: 2}})
    bench.round()
    bench.block({2: {SSH: 2}})
    bench.now += 60
    bench.round()
    assert bench.accepted() == [1]
    bench.now += 60
    bench.round()
    assert bench.accepted() == [1, 2]
    assert bench.state.sent + bench.state.unanswered == 2


def test_after_a_kill_an_outcome_that_was_never_kept_is_not_sent_again(bench: Bench, tmp_path: Path) -> None:
    bench.outbox = Filling(bench.database, tmp_path, Settled=1)
    bench.fresh()
    bench.block({1: {SSH: 2}})
    bench.round()
    bench.fresh()
    bench.round()
    assert bench.accepted() == [1]
    assert bench.state.unanswered == 1


def test_what_follows_from_an_answer_follows_when_the_disk_takes_it(
    bench: Bench, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    error = {"row": 1, "ip": "2001:db8:0:2::", "error": "whitelisted"}
    answer = {"total": 3, "accepted": 2, "rejected": 1, "errors": [error]}
    bench.meet(answering(200, answer, X_Report_Remaining=7, X_Report_Limit=9))
    bench.outbox = Filling(bench.database, tmp_path, Settled=2)
    bench.fresh()
    bench.block({1: {SSH: 3}, 2: {SSH: 2}, 3: {SSH: 1}})
    for _ in range(2):
        bench.now += bench.round()
    assert [level for level, _ in lines(caplog)] == ["ERROR"]
    bench.round()
    assert lines(caplog) == [
        ("WARNING", "SikkerAPI rejected these reports, which are dropped: 2001:db8:0:2:: (whitelisted)."),
        ("INFO", "Reported 2 blocked IPs (ssh: 2)"),
    ]
    state = bench.state
    assert (state.sent, state.rejected, state.quota_remaining, state.trouble) == (2, 1, 7, "")
    assert bench.outbox.quota(0, DEMO_KEY)[1] == 9


# What is shown


def test_that_the_disk_refuses_is_shown_until_it_does_not(bench: Bench, tmp_path: Path) -> None:
    bench.block({1: {SSH: 2}})
    with no_room((tmp_path / f"{FILE}-wal").stat().st_size):
        bench.round()
    assert f"{FILE} can't be used" in bench.state.trouble
    assert bench.state.trouble.endswith("blocking goes on, and it is tried again.")
    bench.round()
    assert bench.state.trouble == ""


@pytest.mark.parametrize(
    ("fault", "pause", "at"), [(Canned(401), 3600, "13:00"), (Drop(accepted=True), 5, "12:00")], ids=str
)
def test_that_reports_are_refused_is_shown_until_they_are_not(
    bench: Bench, fault: Fault, pause: float, at: str
) -> None:
    bench.meet(fault)
    bench.block({1: {SSH: 2}})
    bench.round()
    trouble = bench.state.trouble
    assert trouble.startswith("SikkerAPI")
    assert trouble.endswith(f" rows wait; next try at {at} UTC.")
    bench.now += 1
    bench.round()
    assert bench.state.trouble == trouble
    bench.now += pause
    bench.round()
    assert bench.state.trouble == ""


def test_a_disk_that_refuses_for_a_moment_hides_for_no_longer_what_sikkerapi_refuses(
    bench: Bench, tmp_path: Path
) -> None:
    bench.meet(Canned(401))
    bench.block({1: {SSH: 2}})
    bench.round()
    refused = bench.state.trouble
    bench.block({2: {SSH: 2}})
    with no_room((tmp_path / f"{FILE}-wal").stat().st_size):
        bench.round()
    assert f"{FILE} can't be used" in bench.state.trouble
    bench.round()
    assert bench.state.trouble == refused


def test_that_the_quota_is_used_up_is_shown_as_long_as_rows_wait_for_it(bench: Bench) -> None:
    bench.standin.set_keys([key_of(1)])
    bench.block({1: {SSH: 2}, 2: {SSH: 1}})
    bench.round()
    assert bench.state.trouble.startswith("The day's quota of reports is used up; ")
    bench.now = MIDNIGHT + 1
    bench.round()
    assert bench.state.trouble == ""


def test_sources_that_had_no_room_are_said_once_a_round(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.config = replace(bench.config, report_interval=60.0)
    bench.standin.stop()
    bench.outbox = Outbox(bench.database, max_waiting=3)
    bench.fresh()
    bench.block({number: {SSH: 1} for number in range(5)})
    bench.round()
    said = "2 sources had no room among what waits to be reported, or waited for more than a day; their packets are "
    assert ("WARNING", f"{said}counted.") in lines(caplog)
    bench.round()
    bench.fresh()
    bench.round()
    assert "no room" not in str(lines(caplog))
    assert bench.state.dropped == 2


# A whole life, in virtual time: records and clients take none, so that each moment is what the loop makes it.


class Accepting:
    """A client whose server takes `seconds` and accepts everything; `at` are the moments at which it had it all, and
    `rows` how many there were."""

    def __init__(self, clock: VirtualClock, seconds: float = 0.0) -> None:
        self._clock = clock
        self.seconds = seconds
        self.at: list[float] = []
        self.rows: list[int] = []

    def reports(self, config: Config) -> ReportClient:
        return self

    async def report(self, body: bytes, before_last_byte: Callable[[], None]) -> ReportAnswer:
        rows = len(json.loads(body)["reports"])
        before_last_byte()
        self.at.append(self._clock.monotonic())
        self.rows.append(rows)
        await asyncio.sleep(self.seconds)
        return ReportAnswer(rows, rows, (), None)


class NoEndpoint:
    """An endpoint that is always open."""

    async def open(self, config: Config) -> bool:
        return False


class Sources:
    """The list in force."""

    sources: tuple[ListedSource, ...] | None = LISTED


class Life:
    """A reporter in virtual time, which begins to report when this is entered."""

    def __init__(
        self,
        directory: Path,
        client: ReportClients,
        clock: VirtualClock,
        outbox: Outbox | None = None,
        disk: DiskThread | None = None,
    ) -> None:
        self.database = Database(directory)
        self.settings = Watched(Config(api_key=DEMO_KEY, report_interval=1800.0))
        self.healed, self.changes = Wakeup(), Wakeup()
        self.outbox = outbox or Outbox(self.database)
        self.reporter = ReportLoop(
            self.outbox,
            client,
            self.settings,
            Watched(HostAllowlist()),
            Sources(),
            NoEndpoint(),
            disk or DiskThread("records"),
            clock,
            self.healed,
            self.changes,
        )
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Life:
        self._task = asyncio.create_task(self.reporter.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()
        self.database.close()

    async def stop(self) -> float:
        """Cancel it; gives the seconds that its end took."""
        assert self._task is not None
        began = asyncio.get_running_loop().time()
        self._task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await self._task
        return asyncio.get_running_loop().time() - began

    def block(self, *numbers: int) -> None:
        with self.database.transaction() as connection:
            connection.executemany(BLOCK, [(source(number), *SSH, 1) for number in numbers])


def test_the_first_round_comes_after_a_minute_and_then_one_every_interval(tmp_path: Path) -> None:
    async def main() -> None:
        clock = VirtualClock()
        client = Accepting(clock)
        async with Life(tmp_path, client, clock) as life:
            for number in range(4):
                life.block(number)
                await asyncio.sleep(1800)
            assert client.at == [60, 1860, 3660, 5460]
            assert life.reporter.state.sent == 4

    run(main())


def test_pauses_between_rounds_differ_by_chance(tmp_path: Path) -> None:
    async def main() -> None:
        clock = VirtualClock(chance=0.0)
        client = Accepting(clock)
        async with Life(tmp_path, client, clock) as life:
            life.block(1)
            await asyncio.sleep(100)
            life.block(2)
            await asyncio.sleep(1800)
            assert client.at == [60, 60 + 1800 * 0.95]

    run(main())


def test_new_settings_are_acted_on_at_once_and_what_is_set_to_the_same_begins_no_round_twice(tmp_path: Path) -> None:
    async def main() -> None:
        clock = VirtualClock()
        client = Accepting(clock)
        async with Life(tmp_path, client, clock) as life:
            await asyncio.sleep(100)
            life.block(1)
            life.settings.set(replace(life.settings.value, report_interval=600.0))
            await asyncio.sleep(1)
            assert client.at == [100]
            life.block(2)
            await asyncio.sleep(1000)
            assert client.at == [100, 700]

    run(main())


def test_records_that_can_be_written_again_begin_a_round_where_they_could_not_and_only_there(tmp_path: Path) -> None:
    class Full(Outbox):
        full = False

        def recover(self) -> Recovered:
            if self.full:
                raise RecordError("the disk is full")
            return super().recover()

    async def main() -> None:
        clock = VirtualClock()
        client = Accepting(clock)
        outbox = Full(Database(tmp_path))
        outbox.full = True
        async with Life(tmp_path, client, clock, outbox) as life:
            await asyncio.sleep(61)
            assert life.reporter.state.trouble.startswith("The disk is full; nothing is reported meanwhile")
            outbox.full = False
            await asyncio.sleep(10)
            with outbox._database.transaction() as connection:
                connection.execute(BLOCK, (source(1), *SSH, 1))
            life.healed.set()
            await asyncio.sleep(1)
            assert client.at == [71]
            assert life.reporter.state.trouble == ""
            with outbox._database.transaction() as connection:
                connection.execute(BLOCK, (source(2), *SSH, 1))
            life.healed.set()
            await asyncio.sleep(100)
            assert client.at == [71]
            await asyncio.sleep(1800)
            assert client.at == [71, 71 + 1800]
            outbox._database.close()

    run(main())


@pytest.mark.parametrize(
    ("seconds", "took", "sent", "unanswered"),
    [(1.5, 1.5, 1, 0), (30.0, 2.0, 0, 1)],
    ids=["answered in time", "not answered"],
)
def test_a_stop_gives_a_request_on_its_way_two_seconds(
    tmp_path: Path, seconds: float, took: float, sent: int, unanswered: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "sikkerguard")

    async def main() -> None:
        clock = VirtualClock()
        client = Accepting(clock, seconds)
        life = Life(tmp_path, client, clock)
        async with life:
            life.block(1)
            await asyncio.sleep(60)
            while not client.at:
                await asyncio.sleep(0)
            assert await life.stop() == took
            stats = life.outbox.stats(day_of(clock.wall()), DEMO_KEY)
            assert (stats.sent, stats.unanswered, stats.waiting) == (sent, unanswered, 0)

    run(main())
    levels = Counter(level for level, _ in lines(caplog))
    assert levels == ({"INFO": 1} if sent else {"WARNING": 1})


class Stuck:
    """A client whose connection does not come about."""

    def __init__(self) -> None:
        self.asked = 0

    def reports(self, config: Config) -> ReportClient:
        return self

    async def report(self, body: bytes, before_last_byte: Callable[[], None]) -> ReportAnswer:
        self.asked += 1
        await asyncio.sleep(60)
        raise AssertionError("nobody waits for so long")


def test_a_stop_before_the_last_byte_leaves_the_rows_waiting(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        clock, stuck = VirtualClock(), Stuck()
        life = Life(tmp_path, stuck, clock)
        async with life:
            life.block(1)
            await asyncio.sleep(70)
            assert stuck.asked == 1
            assert await life.stop() == 2.0
            stats = life.outbox.stats(day_of(clock.wall()), DEMO_KEY)
            assert (stats.waiting, stats.unanswered) == (1, 0)
            # The next process sends them.
            assert life.outbox.recover() == Recovered(0, 0)

    run(main())
    assert lines(caplog) == []


class Unreadable(Outbox):
    """An outbox that can't be read for as many times as is said."""

    def __init__(self, database: Database, times: int) -> None:
        super().__init__(database)
        self._times = times

    def stats(self, day: int, key: str) -> ReportStats:
        self._times -= 1
        if self._times >= 0:
            raise RecordError("the disk is gone")
        return super().stats(day, key)


def test_the_state_is_there_at_once_and_follows_the_day_and_each_change_is_signalled(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        clock = VirtualClock()
        clock.offset = 86_000.0  # 400 s before midnight
        database = Database(tmp_path)
        today = day_of(clock.wall())
        outbox = Unreadable(database, 1)
        outbox.apply(QuotaNoted(today, DEMO_KEY, 999))
        client = Accepting(clock)
        async with Life(tmp_path, client, clock, outbox) as life:
            assert await life.changes.wait(5)
            first = life.reporter.state
            assert first.quota_remaining == 999
            assert clock.monotonic() == 1
            # Nothing changes until midnight, but for the first round.
            assert not await life.changes.wait(390)
            assert await life.changes.wait(20)
            midnight = life.reporter.state
            assert midnight.quota_remaining is None
            assert 400 <= clock.monotonic() <= 401
            assert client.at == []
            database.close()

    run(main())
    assert lines(caplog) == []


class Renewed(Accepting):
    """A client whose key is refused, after another one was set meanwhile."""

    life: Life

    def reports(self, config: Config) -> ReportClient:
        return _OldKey(self) if config.api_key == DEMO_KEY else self


class _OldKey:
    def __init__(self, renewed: Renewed) -> None:
        self._renewed = renewed

    async def report(self, body: bytes, before_last_byte: Callable[[], None]) -> ReportAnswer:
        settings = self._renewed.life.settings
        settings.set(replace(settings.value, api_key="sk_free_new"))
        raise KeyRefused("SikkerAPI does not know this key (401)", retry_after=3600)


def test_a_new_key_does_not_wait_for_what_the_old_one_brought_about(tmp_path: Path) -> None:
    async def main() -> None:
        clock = VirtualClock()
        client = Renewed(clock)
        client.life = Life(tmp_path, client, clock)
        async with client.life as life:
            life.block(1)
            await asyncio.sleep(61)
            assert client.at == [60]
            assert (life.reporter.state.sent, life.reporter.state.trouble) == (1, "")

    run(main())


class SlowDisk(DiskThread):
    """A disk on which everything takes ten milliseconds, at the end of which it is done."""

    SECONDS = 0.01

    def start(self, action: Callable[[], _Result]) -> asyncio.Future[_Result]:
        return asyncio.ensure_future(self._later(action))

    async def _later(self, action: Callable[[], _Result]) -> _Result:
        await asyncio.sleep(self.SECONDS)
        return action()

    def at_once(self, action: Callable[[], None]) -> None:
        action()


# A round that sends one request waits for the disk eleven times, and for the server for 20 ms.
STEPS = 21


@pytest.mark.parametrize("step", range(STEPS))
def test_wherever_it_is_cancelled_no_row_is_lost_and_none_is_left_undecided(tmp_path: Path, step: int) -> None:
    """Cancelled so many times 5 ms after the beginning of a round that sends a request."""

    async def main() -> None:
        clock = VirtualClock()
        client = Accepting(clock, 0.02)
        life = Life(tmp_path, client, clock, disk=SlowDisk("records"))
        life.block(1, 2, 3)
        async with life:
            await asyncio.sleep(60 + (step + 0.5) * SlowDisk.SECONDS / 2)
            done = life.reporter.state.sent
            assert (done == 3) is (step == STEPS - 1), "the steps are all those of a round"
            await life.stop()
            recovered = life.outbox.recover()
            stats = life.outbox.stats(day_of(clock.wall()), DEMO_KEY)
            with life.database.transaction() as connection:
                ((left,),) = connection.execute("SELECT count(*) FROM blocked").fetchall()
            # What the server had is sent, for it answered within two seconds, and nothing else is.
            assert recovered == Recovered(0, 0)
            assert (stats.sent, stats.unanswered) == (sum(client.rows), 0)
            assert stats.waiting + left == 3 - sum(client.rows)

    run(main())


@pytest.mark.parametrize("step", range(STEPS))
def test_wherever_it_is_cancelled_while_the_server_is_silent_rows_wait_or_are_given_up(
    tmp_path: Path, step: int
) -> None:
    async def main() -> None:
        clock = VirtualClock()
        client = Accepting(clock, 30.0)
        life = Life(tmp_path, client, clock, disk=SlowDisk("records"))
        life.block(1, 2, 3)
        async with life:
            await asyncio.sleep(60 + (step + 0.5) * SlowDisk.SECONDS / 2)
            assert await life.stop() < 3.1
            assert life.outbox.recover() == Recovered(0, 0)
            stats = life.outbox.stats(day_of(clock.wall()), DEMO_KEY)
            assert (stats.sent, stats.unanswered) == (0, sum(client.rows))

    run(main())
