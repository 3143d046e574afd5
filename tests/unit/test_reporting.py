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
from typing import TYPE_CHECKING

import pytest

from sikkerguard.config import Config
from sikkerguard.core.reports import row_of
from sikkerguard.edges.database import FILE, Database
from sikkerguard.edges.outbox import Outbox
from sikkerguard.edges.reportapi import ReportApi
from sikkerguard.edges.sikkerapi import SikkerApi
from sikkerguard.errors import FetchError
from sikkerguard.reporting import Reporter
from sikkerguard.standin.faults import Canned, CutOff, Delay, Drop, Fault, Reset
from sikkerguard.standin.server import DEMO_KEY, Standin
from sikkerguard.standin.tiers import FREE, Key

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Coroutine, Iterator, Mapping
    from pathlib import Path

    from sikkerguard.core.model import ReportNumbers
    from sikkerguard.errors import SikkerGuardError
    from sikkerguard.reporting import ReportFace

NOON = 20_000 * 86_400 + 43_200.0
MIDNIGHT = NOON + 43_200
SSH, HTTP, TELNET, DNS = (6, 22), (6, 80), (6, 23), (17, 53)
BLOCK = "INSERT INTO blocked VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET packets = packets + excluded.packets"
decide = partial(row_of, port_map={}, spoofable=False)
LOST = "the server does not tell reports apart, so they are not sent again"


def source(number: int) -> bytes:
    return (0x20010DB8 << 96 | number).to_bytes(16, "big")


class Bench:
    """A reporter with its outbox and a stand-in, all of one clock, `now`."""

    def __init__(self, directory: Path, standin: Standin, config: Config) -> None:
        self.now = NOON
        self.standin = standin
        self.config = config
        self.database = Database(directory)
        self.outbox = Outbox(self.database)
        self.told: list[ReportNumbers] = []
        self.apis = 0
        self.pauses: list[float] = []
        self.reporter = self.fresh()

    def fresh(self) -> Reporter:
        """As after a restart."""
        self.reporter = Reporter(
            self.outbox,
            self.api,
            lambda: self.config,
            self.told.append,
            clock=lambda: self.now,
            chance=lambda: 0.5,
            retry=self.retry,
        )
        return self.reporter

    def api(self, config: Config) -> ReportFace:
        self.apis += 1
        return ReportApi(SikkerApi(config.api_url, config.api_key), longest=10)

    def retry(self, error: SikkerGuardError, failures: int, chance: Callable[[], float]) -> float:
        pause: float = 5 * 2 ** (failures - 1)
        if isinstance(error, FetchError) and error.retry_after is not None:
            pause = max(pause, error.retry_after)
        self.pauses.append(pause)
        return pause

    def block(self, blocked: Mapping[int, Mapping[tuple[int, int], int]]) -> None:
        with self.database.transaction() as connection:
            for number, packets in blocked.items():
                connection.executemany(BLOCK, [(source(number), *key, count) for key, count in packets.items()])

    def round(self) -> float:
        return asyncio.run(self.reporter.report_once())

    def accepted(self) -> list[int]:
        """The numbers of the sources that the stand-in accepted, in their order."""
        return [int(report.row.ip.rpartition(":")[2] or "0", 16) for report in self.standin.record.reports]

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
    with Standin(keys=[key_of(1000)], clock=lambda: holder[0].now) as standin:
        bench = Bench(tmp_path, standin, Config(api_key=DEMO_KEY, api_url=standin.url))
        holder.append(bench)
        yield bench
        bench.database.close()


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
    numbers = bench.told[-1]
    assert (numbers.sent, numbers.withheld, numbers.waiting, numbers.quota_remaining) == (4, 1, 0, 996)
    assert numbers.last_report_at == NOON


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
    assert bench.outbox.accounted() == 3


def test_disabled_in_the_middle_of_a_round_sends_no_further_request(bench: Bench) -> None:
    bench.standin.set_keys([key_of(100_000)])
    bench.block({number: {SSH: 1} for number in range(10_005)})
    bench.standin._on_request = lambda _: setattr(bench, "config", replace(bench.config, report_enabled=False))
    bench.round()
    assert bench.standin.record.requests_total == 1
    assert bench.told[-1].waiting == 5


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
    assert bench.told[-1].quota_remaining == 0
    bench.now = MIDNIGHT + 1
    bench.round()
    assert bench.accepted() == [0, 1, 2, 3, 4, 5]
    bench.now = MIDNIGHT + 86_400
    bench.round()
    assert bench.accepted() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert bench.told[-1].rejected == bench.told[-1].unanswered == 0


def test_without_headers_the_answers_tell_the_quota(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    now = [NOON]
    with Standin(keys=[key_of(3)], clock=lambda: now[0], quota_headers=False) as standin:
        bench = Bench(tmp_path, standin, Config(api_key=DEMO_KEY, api_url=standin.url))
        bench.block({number: {SSH: 100 - number} for number in range(8)})
        for moment in (NOON, NOON + 1800, MIDNIGHT + 1, MIDNIGHT + 1800, MIDNIGHT + 86_401):
            bench.now = now[0] = moment
            bench.round()
        # Of each day the first request brought rows back: they are the next day's, and nobody is told that they were
        # wrong.
        assert bench.accepted() == [0, 1, 2, 3, 4, 5, 6, 7]
        assert standin.record.requests_total == 3
        assert bench.told[-1].rejected == 0
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
    assert bench.round() == 600
    ((level, message),) = lines(caplog)
    assert level == "ERROR"
    assert "quota is used up (429); blocking and counting go on, 1 rows wait; next try in 10m." in message
    bench.now = NOON + 599
    assert bench.round() == 1
    assert bench.standin.record.requests_total == 1
    bench.now = NOON + 600
    bench.round()
    assert bench.accepted() == [1]


def test_another_key_has_a_quota_of_its_own(bench: Bench) -> None:
    bench.standin.set_keys([key_of(0), Key("sk_free_paid", replace(FREE, reports=10))])
    bench.block({1: {SSH: 1}})
    bench.round()
    bench.config = replace(bench.config, api_key="sk_free_paid")
    bench.reporter.wake()
    bench.round()
    assert bench.accepted() == [1]


def test_an_answer_after_midnight_tells_of_the_day_that_it_was_asked_on(bench: Bench) -> None:
    bench.now = MIDNIGHT - 1
    bench.standin.set_keys([key_of(1)])
    bench.standin._on_answer = lambda _: setattr(bench, "now", MIDNIGHT + 1)
    bench.block({1: {SSH: 2}, 2: {SSH: 1}})
    bench.round()
    assert bench.accepted() == [1, 2]


# What goes wrong


def test_rejected_rows_are_named_and_dropped(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    error = {"row": 1, "ip": "2001:db8::2", "error": "whitelisted"}
    answer = {"total": 3, "accepted": 2, "rejected": 1, "errors": [error]}
    bench.meet(Canned(200, body=json.dumps(answer).encode()))
    bench.block({1: {SSH: 3}, 2: {SSH: 2}, 3: {SSH: 1}})
    bench.round()
    bench.round()
    assert bench.standin.record.requests_total == 1
    assert lines(caplog) == [
        ("WARNING", "SikkerAPI rejected these reports, which are dropped: 2001:db8::2 (whitelisted)."),
        ("INFO", "Reported 2 blocked IPs (ssh: 2)"),
    ]
    assert (bench.told[-1].sent, bench.told[-1].rejected) == (2, 1)


@pytest.mark.parametrize(
    "fault",
    [Canned(401), Canned(403), Canned(404), Canned(400), Canned(503), Canned(307), Canned(413)],
    ids=lambda fault: str(fault.status),
)
def test_what_was_certainly_not_accepted_is_sent_again(
    bench: Bench, fault: Fault, caplog: pytest.LogCaptureFixture
) -> None:
    bench.meet(fault)
    bench.block({1: {SSH: 2}, 2: {SSH: 1}})
    assert bench.round() == 5
    ((level, message),) = lines(caplog)
    assert level == "ERROR"
    assert message.endswith("; blocking and counting go on, 2 rows wait; next try in 5s.")
    bench.round()
    assert bench.standin.record.requests_total == 1  # not before its time
    bench.now += 5
    bench.round()
    assert bench.accepted() == [1, 2]
    assert bench.told[-1].unanswered == 0


def test_a_server_that_is_not_there_is_tried_again_ever_less_often(bench: Bench) -> None:
    bench.standin.stop()
    bench.block({1: {SSH: 1}})
    for _ in range(3):
        bench.now += bench.round()
    assert bench.pauses == [5, 10, 20]
    bench.standin.start()
    assert bench.round() == bench.config.report_interval
    assert bench.accepted() == [1]
    bench.meet(Canned(503))
    bench.block({2: {SSH: 1}})
    assert bench.round() == 5


def test_a_clock_that_was_put_back_by_years_holds_nothing_up(bench: Bench) -> None:
    bench.meet(Canned(503))
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
    bench.reporter.wake()
    bench.round()
    assert bench.accepted() == [1]


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
    assert (bench.told[-1].sent, bench.told[-1].unanswered) == (0, 2)


def test_a_server_that_answers_nothing_does_not_use_up_all_there_is(bench: Bench) -> None:
    bench.standin.set_keys([key_of(100_000)])
    bench.block({number: {SSH: 1} for number in range(12_000)})
    bench.meet(*[Drop(accepted=False)] * 5)
    for _ in range(5):
        bench.now += bench.round()
    assert bench.told[-1].unanswered == 10_000 + 4 * 100
    bench.round()
    assert bench.told[-1].waiting == 0
    assert bench.told[-1].sent == 1600


def test_what_a_killed_process_left_is_decided_and_said(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.block({1: {SSH: 2}, 2: {SSH: 1}})
    bench.outbox.gather(20_000, decide)
    parcel = bench.outbox.take(1)
    assert parcel is not None
    bench.round()
    assert ("INFO", "1 reports had not left yet when the service ended; they wait again.") in lines(caplog)
    assert bench.accepted() == [1, 2]
    bench.block({3: {SSH: 2}})
    bench.outbox.gather(20_000, decide)
    parcel = bench.outbox.take(1)
    assert parcel is not None
    bench.outbox.on_wire(parcel.request)
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
    with no_room((tmp_path / f"{FILE}-wal").stat().st_size):
        for _ in range(3):
            assert bench.round() in (5, 10, 20)
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

    def settle(self, request: int, rejected: Container[bytes], postponed: Container[bytes], now: float) -> None:
        with self._room("settle"):
            super().settle(request, rejected, postponed, now)

    def unanswered(self, request: int) -> None:
        with self._room("unanswered"):
            super().unanswered(request)


def test_a_mark_that_can_not_be_made_keeps_the_last_byte_back(bench: Bench, tmp_path: Path) -> None:
    bench.outbox = Filling(bench.database, tmp_path, on_wire=1)
    bench.fresh()
    bench.block({1: {SSH: 2}})
    assert bench.round() == 5
    assert bench.standin.record.requests_total == 0
    bench.round()
    assert bench.accepted() == [1]


@pytest.mark.parametrize(("fault", "end"), [(Delay(0), "settle"), (Drop(accepted=True), "unanswered")], ids=str)
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
    assert bench.told[-1].sent + bench.told[-1].unanswered == 2


def test_after_a_kill_an_outcome_that_was_never_kept_is_not_sent_again(bench: Bench, tmp_path: Path) -> None:
    bench.outbox = Filling(bench.database, tmp_path, settle=1)
    bench.fresh()
    bench.block({1: {SSH: 2}})
    bench.round()
    bench.fresh()
    bench.round()
    assert bench.accepted() == [1]
    assert bench.told[-1].unanswered == 1


# A whole life


def living(bench: Bench, meanwhile: Callable[[], Coroutine[object, object, None]]) -> float:
    """Have it report for ever, until this is over; gives the seconds that its end took."""

    async def live() -> float:
        task = asyncio.create_task(bench.reporter.report_forever())
        await meanwhile()
        assert not task.done()
        began = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return time.monotonic() - began

    return asyncio.run(live())


async def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


async def until_quiet(bench: Bench) -> None:
    """Until no round has been made for as long as some took before."""
    told, since, deadline = -1, 0.0, time.monotonic() + 10
    while time.monotonic() - since < 0.3:
        assert time.monotonic() < deadline
        if len(bench.told) != told:
            told, since = len(bench.told), time.monotonic()
        await asyncio.sleep(0.01)


def test_it_reports_every_interval_and_follows_the_configuration(bench: Bench) -> None:
    async def meanwhile() -> None:
        await until(lambda: bench.accepted() == [1])
        bench.block({2: {SSH: 1}})
        await until(lambda: bench.accepted() == [1, 2])
        bench.config = replace(bench.config, report_interval=3600.0)
        await until_quiet(bench)
        bench.block({3: {SSH: 1}})
        assert bench.accepted() == [1, 2]
        assert bench.told[-1].waiting == 0
        bench.reporter.wake()
        await until(lambda: bench.accepted() == [1, 2, 3])

    bench.config = replace(bench.config, report_interval=0.02)
    bench.block({1: {SSH: 1}})
    living(bench, meanwhile)


@pytest.mark.parametrize(
    ("seconds", "sent", "unanswered"), [(0.5, 1, 0), (30, 0, 1)], ids=["answered in time", "not answered"]
)
def test_a_stop_gives_a_request_on_its_way_two_seconds(
    bench: Bench, seconds: float, sent: int, unanswered: int, caplog: pytest.LogCaptureFixture
) -> None:
    bench.config = replace(bench.config, report_interval=0.01)
    bench.meet(Delay(seconds))
    bench.block({1: {SSH: 1}})

    async def meanwhile() -> None:
        await until(lambda: bench.standin.record.reports_total)

    took = living(bench, meanwhile)
    assert took < 3
    bench.fresh()
    bench.round()
    assert bench.accepted() == [1]
    assert (bench.told[-1].sent, bench.told[-1].unanswered, bench.told[-1].waiting) == (sent, unanswered, 0)
    levels = Counter(level for level, _ in lines(caplog))
    assert levels == ({"INFO": 1} if sent else {"WARNING": 1})


class Stuck:
    """A client whose connection does not come about."""

    def __init__(self) -> None:
        self.asked = False

    async def report(self, body: bytes, before_last_byte: Callable[[], None]) -> None:
        self.asked = True
        await asyncio.sleep(60)


def test_a_stop_before_the_last_byte_leaves_the_rows_waiting(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    stuck = Stuck()
    bench.config = replace(bench.config, report_interval=0.01)
    bench.api = lambda config: stuck  # type: ignore[method-assign,assignment,return-value]
    bench.fresh()
    bench.block({1: {SSH: 1}})

    async def meanwhile() -> None:
        await until(lambda: stuck.asked)

    assert 1.5 < living(bench, meanwhile) < 3
    assert lines(caplog) == []
    del bench.api
    bench.fresh()
    bench.round()
    assert bench.accepted() == [1]
    assert lines(caplog) == [("INFO", "Reported 1 blocked IPs (ssh: 1)")]
