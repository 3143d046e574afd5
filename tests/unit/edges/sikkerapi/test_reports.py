"""Reports against a stand-in on loopback: what goes out, in which pieces, and what is known of it afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import socket
import threading
import time
from dataclasses import replace
from inspect import signature
from typing import TYPE_CHECKING

import httpx
import pytest

from sikkerguard.core.reports.rows import ReportAnswer, Row, first_request
from sikkerguard.edges.sikkerapi import failures
from sikkerguard.edges.sikkerapi.client import ApiClient
from sikkerguard.edges.sikkerapi.reports import BulkReportClient
from sikkerguard.errors import (
    BodyRefused,
    FetchError,
    KeyRefused,
    QuotaSpent,
    RecordError,
    SendingFailed,
    SettingsRefused,
    Unanswered,
    Unreachable,
)
from sikkerguard.version import VERSION
from tests.standin.faults import Canned, CutOff, Delay, Drip, Drop, Endless, Fault, GzipBomb, Reset, Understate
from tests.standin.server import DEMO_KEY, Standin
from tests.standin.tiers import FREE, Key
from tests.unit.edges.sikkerapi.test_client import ESCAPES, NO_ADDRESSES, Raw, every_kind

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from tests.standin.messages import Request

ROWS = [Row(bytes([203, 0, 113, number]), "brute_force", "ssh", 1) for number in range(20)]
BODY = first_request(ROWS)[1]


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's own proxies and passwords are not part of any test."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("NETRC", "/nonexistent")


@pytest.fixture(name="arrived")
def _arrived() -> list[Request]:
    return []


@pytest.fixture(name="standin")
def _standin(arrived: list[Request]) -> Iterator[Standin]:
    with Standin(on_request=arrived.append) as standin:
        yield standin


class Mark:
    """Counts how often it was told that the last byte is about to leave."""

    def __init__(self, error: Exception | None = None) -> None:
        self.calls = 0
        self._error = error

    def __call__(self) -> None:
        self.calls += 1
        if self._error is not None:
            raise self._error


def api_of(url: str, key: str = DEMO_KEY, transport: httpx.AsyncBaseTransport | None = None) -> BulkReportClient:
    return BulkReportClient(ApiClient(url, key, transport=transport), max_seconds=5)


def reported(standin: Standin, body: bytes = BODY, mark: Mark | None = None) -> ReportAnswer:
    return asyncio.run(api_of(standin.url).report(body, mark or Mark()))


def failing(api: BulkReportClient, mark: Mark | None = None, body: bytes = BODY) -> FetchError:
    with pytest.raises(FetchError) as caught:
        asyncio.run(api.report(body, mark or Mark()))
    return caught.value


def meeting(standin: Standin, fault: Fault) -> BulkReportClient:
    standin.fault("bulk-report", fault)
    return api_of(standin.url)


def answering(status: int = 200, value: object = None, **headers: str) -> Canned:
    pairs = tuple((name.replace("_", "-"), text) for name, text in headers.items())
    return Canned(status, body=None if value is None else json.dumps(value).encode(), headers=pairs)


# What goes out


def test_a_report_is_what_the_documentation_says_and_no_more(standin: Standin, arrived: list[Request]) -> None:
    answer = reported(standin)
    assert answer == ReportAnswer(20, 20, (), 980, 1000)
    (request,) = arrived
    assert (request.method, request.path, request.query) == ("POST", "/v1/key/bulk-report", ())
    assert request.body == BODY
    assert request.header("Authorization") == f"Bearer {DEMO_KEY}"
    assert request.header("User-Agent") == f"SikkerGuard/{VERSION}"
    assert request.header("Content-Type") == "application/json"
    assert request.header("Content-Length") == str(len(BODY))
    assert request.header("Transfer-Encoding") == ""
    assert {report.row.fields for report in standin.record.reports} == {("category", "ip", "protocol")}
    assert [report.row.ip for report in standin.record.reports] == [row.ip() for row in ROWS]


def test_two_megabytes_arrive_whole(standin: Standin, arrived: list[Request]) -> None:
    standin.set_keys([Key(DEMO_KEY, replace(FREE, reports=20_000))])
    rows = [
        Row((0x20010DB8 << 96 | number).to_bytes(16, "big"), "exploited_host", "x" * 32, 1) for number in range(10**4)
    ]
    body = first_request(rows)[1]
    assert reported(standin, body) == ReportAnswer(10_000, 10_000, (), 10_000, 20_000)
    assert arrived[0].body == body


class Dumb:
    """A server that takes what comes and answers only when told; what it got is in `got`, `closed` when no more
    comes."""

    def __init__(self, *, reads: bool = True) -> None:
        self.got = bytearray()
        self.closed = threading.Event()
        self._reads = reads
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Dumb:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def body(self) -> bytes:
        return bytes(self.got).partition(b"\r\n\r\n")[2]

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            connection, _ = self._listener.accept()
            with connection:
                while self._reads and (piece := connection.recv(65536)):
                    self.got += piece
                self.closed.wait(0 if self._reads else 30)
        self.closed.set()


def test_the_last_byte_does_not_leave_before_the_mark_is_made() -> None:
    seen: list[bytes] = []

    def look() -> None:
        deadline = time.monotonic() + 5
        while len(server.body()) < len(BODY) - 1 and time.monotonic() < deadline:
            time.sleep(0.001)  # the event loop stands still meanwhile: nothing more can leave
        time.sleep(0.05)
        seen.append(server.body())

    async def report() -> None:
        task = asyncio.create_task(api_of(server.url).report(BODY, look))
        deadline = time.monotonic() + 5
        while server.body() != BODY and time.monotonic() < deadline:
            await asyncio.sleep(0.001)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    with Dumb() as server:
        asyncio.run(report())
        assert server.closed.wait(5)
    assert seen == [BODY[:-1]]
    assert server.body() == BODY


def test_what_the_mark_raises_passes_through_and_the_byte_does_not_leave() -> None:
    with Dumb() as server:
        with pytest.raises(RecordError, match="the disk is full"):
            asyncio.run(api_of(server.url).report(BODY, Mark(RecordError("the disk is full"))))
        assert server.closed.wait(5)
    assert server.body() == BODY[:-1]


def test_each_report_has_a_connection_of_its_own(standin: Standin) -> None:
    # One that was kept from before may be closed by the server at any moment, and then nothing is known.
    async def twice() -> None:
        api = api_of(standin.url)
        for _ in range(2):
            await api.report(BODY, Mark())

    asyncio.run(twice())
    assert standin.record.requests_total == 2


# What is answered


def test_rejected_rows_are_named(standin: Standin) -> None:
    body = json.dumps(
        {"reports": [{"ip": "203.0.113.1", "category": "brute_force"}, {"ip": "203.0.113.2", "category": "nothing"}]}
    ).encode()
    assert reported(standin, body) == ReportAnswer(2, 1, (("203.0.113.2", "category is unknown"),), 999, 1000)


def test_rows_beyond_the_quota_are_rejected_with_its_word(standin: Standin) -> None:
    standin.set_keys([Key(DEMO_KEY, replace(FREE, reports=18))])
    answer = reported(standin)
    assert (answer.total, answer.accepted, answer.remaining) == (20, 18, 0)
    assert {ip for ip, _ in answer.errors} == {ROWS[18].ip(), ROWS[19].ip()}
    assert all("quota" in reason for _, reason in answer.errors)


@pytest.mark.parametrize(
    ("headers", "remaining"),
    [
        ({}, None),
        ({"X-Report-Remaining": "7", "X-Daily-Remaining": "8", "X-RateLimit-Remaining": "9"}, 7),
        ({"X-Daily-Remaining": "8", "X-RateLimit-Remaining": "9"}, 8),
        ({"X-Report-Remaining": "many", "X-Daily-Remaining": "8"}, 8),
        ({"X-Report-Limit": "10"}, None),
        # Of pulls, and elsewhere often of a minute: it says nothing of the day's reports.
        ({"X-RateLimit-Limit": "60", "X-RateLimit-Remaining": "9"}, None),
    ],
)
def test_the_quota_is_read_where_it_is_told(standin: Standin, headers: dict[str, str], remaining: int | None) -> None:
    standin.fault("bulk-report", answering(200, {"total": 20, "accepted": 20, "rejected": 0, "errors": []}, **headers))
    assert reported(standin).remaining == remaining


def test_a_packed_answer_is_read_though_none_was_asked_for(standin: Standin) -> None:
    packed = gzip.compress(json.dumps({"total": 20, "accepted": 20, "rejected": 0}).encode())
    standin.fault("bulk-report", Canned(200, body=packed, headers=(("Content-Encoding", "gzip"),)))
    assert reported(standin) == ReportAnswer(20, 20, (), None)


def test_an_answer_that_comes_byte_by_byte_is_one(standin: Standin) -> None:
    standin.fault("bulk-report", Drip(interval=0))
    assert reported(standin).accepted == 20


def test_a_server_s_words_are_bounded_and_stay_on_one_line(standin: Standin) -> None:
    error = {"ip": "203.0.113.0", "error": "first\nERROR second\x1b[2J" + "x" * 1000}
    standin.fault("bulk-report", answering(200, {"total": 20, "accepted": 19, "rejected": 1, "errors": [error]}))
    ((_, reason),) = reported(standin).errors
    assert reason.isprintable()
    assert len(reason) == 100


# Certainly not accepted


@pytest.mark.parametrize(
    ("status", "kind", "phrase"),
    [
        (400, BodyRefused, "answered 400"),
        (401, KeyRefused, "does not know this key"),
        (403, KeyRefused, "disabled or has expired"),
        (404, SettingsRefused, "answered 404"),
        (408, Unreachable, "answered 408"),
        (411, SettingsRefused, "answered 411"),
        (413, BodyRefused, "answered 413"),
        (422, BodyRefused, "answered 422"),
        (429, QuotaSpent, "quota is used up"),
        (501, Unreachable, "answered 501"),
        (521, Unreachable, "answered 521"),
        (301, SettingsRefused, "SIKKER_API_URL"),
        (302, SettingsRefused, "SIKKER_API_URL"),
        (307, SettingsRefused, "SIKKER_API_URL"),
        (308, SettingsRefused, "SIKKER_API_URL"),
    ],
)
def test_a_server_that_says_no_has_accepted_nothing(
    standin: Standin, status: int, kind: type[FetchError], phrase: str
) -> None:
    mark = Mark()
    error = failing(meeting(standin, answering(status, Location=f"{standin.url}/v1/key/bulk-report")), mark)
    assert type(error) is kind
    assert phrase in str(error)
    assert mark.calls == 1
    # Nothing was sent a second time, least of all by following a redirect.
    assert standin.record.requests_total == 1


def test_a_server_that_asks_for_the_request_later_has_accepted_nothing(standin: Standin) -> None:
    error = failing(meeting(standin, answering(503, Retry_After="90")))
    assert type(error) is Unreachable
    assert "answered 503" in str(error)


@pytest.mark.parametrize(("status", "content"), [(400, True), (422, True), (413, False)])
def test_a_body_that_is_refused_is_refused_for_its_content_or_its_size(
    standin: Standin, status: int, content: bool
) -> None:
    error = failing(meeting(standin, answering(status)))
    assert isinstance(error, BodyRefused)
    assert error.content is content


@pytest.mark.parametrize(
    ("headers", "remaining", "limit", "phrase"),
    [
        ({}, None, None, "quota is used up (429)"),
        ({"X-Report-Remaining": "0", "X-Report-Limit": "1000"}, 0, 1000, "quota is used up (429)"),
        ({"X-Daily-Remaining": "12"}, 12, None, "refuses for now (429), with 12 left of the day's quota"),
        ({"X-RateLimit-Remaining": "12", "X-RateLimit-Reset": "4000000000"}, None, None, "quota is used up (429)"),
    ],
    ids=str,
)
def test_a_429_says_what_is_left(
    standin: Standin, headers: dict[str, str], remaining: int | None, limit: int | None, phrase: str
) -> None:
    error = failing(meeting(standin, answering(429, None, **headers)))
    assert isinstance(error, QuotaSpent)
    assert (error.remaining, error.limit, error.retry_after) == (remaining, limit, None)
    assert phrase in str(error)


@pytest.mark.parametrize("status", [429, 503])
def test_the_pause_that_the_server_asks_for_is_told(standin: Standin, status: int) -> None:
    assert failing(meeting(standin, answering(status, Retry_After="90"))).retry_after == 90


def test_a_spent_quota_is_told_by_the_service_itself(standin: Standin) -> None:
    standin.set_keys([Key(DEMO_KEY, replace(FREE, reports=0))])
    error = failing(api_of(standin.url))
    assert isinstance(error, QuotaSpent)
    assert error.retry_after is not None
    assert 0 < error.retry_after <= 86_400


def test_a_port_that_nobody_listens_on_gets_nothing(standin: Standin) -> None:
    standin.stop()
    mark = Mark()
    error = failing(api_of(standin.url), mark)
    assert type(error) is Unreachable
    assert mark.calls == 0


def test_a_name_that_does_not_resolve_gets_nothing() -> None:
    mark = Mark()
    error = failing(api_of("http://api.invalid"), mark)
    assert "can't be reached" in str(error)
    assert not isinstance(error, Unanswered)
    assert mark.calls == 0


def test_a_server_without_tls_gets_nothing(standin: Standin) -> None:
    mark = Mark()
    error = failing(api_of(standin.url.replace("http:", "https:")), mark)
    assert not isinstance(error, Unanswered)
    assert (mark.calls, standin.record.requests_total) == (0, 0)


def test_a_server_that_stops_reading_before_the_end_has_accepted_nothing() -> None:
    rows = [Row((0x20010DB8 << 96 | number).to_bytes(16, "big"), "brute_force", "x" * 32, 1) for number in range(10**4)]
    body = first_request(rows)[1] * 10  # more than the kernels at both ends hold
    mark = Mark()
    with Dumb(reads=False) as server:
        error = failing(BulkReportClient(ApiClient(server.url, DEMO_KEY), max_seconds=0.5), mark, body)
        server.closed.set()
    assert not isinstance(error, Unanswered)
    assert "took longer than 0.5 s" in str(error)
    assert mark.calls == 0


# Perhaps accepted


@pytest.mark.parametrize(
    "fault",
    [
        Drop(accepted=True),
        Drop(accepted=False),
        CutOff(1),
        CutOff(30),
        Understate(5),
        Reset(),
        Reset(after=0),
        Reset(after=10),
        Endless(cap=8 << 20),
        GzipBomb(unpacked=8 << 20),
        Canned(200, body=b""),
        Canned(200, body=b"<html>Welcome to our network</html>", content_type="text/html"),
        Canned(200, body=b"[]"),
        Canned(200, body=b"{}"),
        Canned(200, body=b"[" * 100_000),
        Canned(200, body=b'{"total": 20, "accepted": 20, "rejected": 0, "errors": [],', headers=()),
        Canned(200, body=b"\xff\xfe"),
        Canned(200, body=b"{}", headers=(("Content-Encoding", "br"),)),
        Canned(200, body=b"{}", headers=(("Content-Encoding", "gzip"),)),
        answering(200, {"total": 20, "accepted": "20", "rejected": 0}),
        answering(200, {"total": 20, "accepted": 19, "rejected": 0}),
        answering(200, {"total": 20, "accepted": 21, "rejected": -1}),
        answering(200, {"total": 20, "accepted": 19, "rejected": 1, "errors": []}),
        answering(200, {"total": 20, "accepted": 20, "rejected": 0, "errors": "none"}),
        answering(200, {"total": 20, "accepted": 19, "rejected": 1, "errors": ["203.0.113.1"]}),
        *(answering(status) for status in (201, 202, 204, 303, 304, 500, 502, 503, 504, 520, 522, 524)),
    ],
    ids=lambda fault: str(fault)[:60],
)
def test_what_says_nothing_clear_may_have_been_accepted(standin: Standin, fault: Fault) -> None:
    mark = Mark()
    error = failing(meeting(standin, fault), mark)
    assert isinstance(error, Unanswered)
    assert str(error).startswith("SikkerAPI")
    assert mark.calls == 1
    assert standin.record.requests_total == 1


def test_an_answer_that_comes_too_late_is_none(standin: Standin) -> None:
    standin.fault("bulk-report", Delay(30))
    error = failing(BulkReportClient(ApiClient(standin.url, DEMO_KEY), max_seconds=0.2))
    assert isinstance(error, Unanswered)
    assert "took longer than 0.2 s" in str(error)
    assert standin.record.reports_total == 20


class Transport(httpx.AsyncBaseTransport):
    """Sees a request before it is whole, which httpx's own mock does not."""

    def __init__(self, answer: Callable[[AsyncIterator[bytes]], Awaitable[httpx.Response]]) -> None:
        self._answer = answer

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        assert isinstance(request.stream, httpx.AsyncByteStream)
        return await self._answer(aiter(request.stream))


def all_accepted() -> httpx.Response:
    """An answer whose body is still to be read, as one of the network is."""
    return httpx.Response(200, stream=httpx.ByteStream(b'{"total": 20, "accepted": 20, "rejected": 0}'))


@pytest.mark.parametrize("kind", every_kind(httpx.TransportError), ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("whole", [False, True])
def test_whatever_breaks_is_told_by_whether_the_last_byte_may_have_left(
    kind: type[httpx.TransportError], whole: bool
) -> None:
    async def answer(pieces: AsyncIterator[bytes]) -> httpx.Response:
        for _ in range(2 if whole else 1):
            await anext(pieces)
        raise kind("the words of the library")

    mark = Mark()
    error = failing(api_of("http://api.example.net", transport=Transport(answer)), mark)
    assert type(error) is (Unanswered if whole else Unreachable)
    assert mark.calls == whole
    assert "the words of the library" in str(error)


@pytest.mark.parametrize("length", [2, 64 << 10, (64 << 10) + 1, (64 << 10) + 2, 300_000])
def test_the_body_goes_out_in_pieces_and_its_last_byte_alone(length: int) -> None:
    body = (bytes(range(256)) * 2000)[:length]
    mark = Mark()
    got: list[tuple[bytes, int]] = []

    async def answer(pieces: AsyncIterator[bytes]) -> httpx.Response:
        async for piece in pieces:
            got.append((piece, mark.calls))
        return all_accepted()

    asyncio.run(api_of("http://api.example.net", transport=Transport(answer)).report(body, mark))
    assert b"".join(piece for piece, _ in got) == body
    # The time limit for writing is one for each piece.
    assert max(len(piece) for piece, _ in got) <= 64 << 10
    # The mark is made when all but the last byte is out, and that byte is all that follows.
    assert [calls for _, calls in got] == [0] * (len(got) - 1) + [1]
    assert len(got[-1][0]) == 1


def test_a_request_that_broke_off_on_its_way_may_be_made_smaller() -> None:
    async def answer(pieces: AsyncIterator[bytes]) -> httpx.Response:
        await anext(pieces)
        await anext(pieces)
        raise httpx.WriteTimeout("too slow")

    async def nothing(pieces: AsyncIterator[bytes]) -> httpx.Response:
        raise httpx.ConnectTimeout("nobody there")

    body = bytes(200_000)
    error = failing(api_of("http://api.example.net", transport=Transport(answer)), body=body)
    assert type(error) is SendingFailed
    error = failing(api_of("http://api.example.net", transport=Transport(nothing)), body=body)
    assert type(error) is Unreachable


def test_an_answer_is_waited_for_as_long_as_the_whole_may_take() -> None:
    seen: list[dict[str, float | None]] = []

    class Seeing(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            seen.append(request.extensions["timeout"])
            await request.aread()
            return all_accepted()

    asyncio.run(api_of("http://api.example.net", transport=Seeing()).report(BODY, Mark()))
    # It is the limit of the whole, two minutes, that ends it, and no shorter one for a single read.
    assert seen == [{"connect": 10.0, "read": None, "write": 30.0, "pool": 30.0}]
    assert signature(BulkReportClient).parameters["max_seconds"].default == 120.0


@pytest.mark.parametrize("status", [200, 202, 500, 503])
def test_an_answer_to_half_a_request_is_no_acceptance(status: int) -> None:
    async def answer(pieces: AsyncIterator[bytes]) -> httpx.Response:
        await anext(pieces)
        return httpx.Response(status, json={"total": 20, "accepted": 20, "rejected": 0})

    error = failing(api_of("http://api.example.net", transport=Transport(answer)))
    assert not isinstance(error, Unanswered)
    assert "before it had the whole report" in str(error)


def test_the_key_is_in_no_message(standin: Standin) -> None:
    secret = "sk_free_very-secret"
    for fault in (Canned(401), Canned(500), Reset(), Drop(accepted=False), Canned(302)):
        standin.fault("bulk-report", fault)
        error = failing(api_of(standin.url, secret))
        assert secret not in f"{error!r} {error.__cause__!r}"


# What ends nothing


@pytest.mark.parametrize("location", NO_ADDRESSES)
@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_to_whatever_it_may_be_is_certainly_no_acceptance(
    location: bytes, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    with Raw(b"HTTP/1.1 %d X\r\nContent-Length: 0\r\nLocation: " % status + location + b"\r\n\r\n") as server:
        error = failing(api_of(server.url))
    assert not isinstance(error, Unanswered)
    assert "a redirect, which reports don't follow" in str(error)
    assert caplog.records == []


@pytest.mark.parametrize("answer", [b"HTTP/1.1 503 " + ESCAPES, b"HTTP/1.1 418 " + ESCAPES, b"HTTP/1.1 200 " + ESCAPES])
def test_what_a_server_says_of_a_report_acts_on_no_terminal(answer: bytes) -> None:
    with Raw(answer + b"\r\nContent-Length: 0\r\n\r\n") as server:
        error = str(failing(api_of(server.url)))
    assert error.isascii()
    assert error.isprintable()
    assert len(error) < 300


def test_the_words_for_a_rejected_row_act_on_no_terminal(standin: Standin) -> None:
    errors = [{"ip": "203.0.113.0\u202e", "error": ESCAPES.decode("latin-1")}]
    value = {"total": 20, "accepted": 19, "rejected": 1, "errors": errors}
    ((address, reason),) = asyncio.run(meeting(standin, answering(value=value)).report(BODY, Mark())).errors
    assert address == "203.0.113.0?"
    assert reason.startswith("?[2K?[1A?]0;title??31m")
    assert reason.isascii()
    assert len(reason) == 100


@pytest.mark.parametrize("kind", [KeyError, RuntimeError, ValueError, MemoryError])
@pytest.mark.parametrize("sent", [False, True])
def test_whatever_ends_a_request_is_our_error_and_known_for_what_it_is(
    kind: type[Exception], sent: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Odd(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            if sent:
                await request.aread()
            raise kind("odd")

    monkeypatch.setattr(failures, "_logged", set())
    for _ in range(2):
        error = failing(api_of("http://api.example.net", transport=Odd()))
        assert type(error) is (Unanswered if sent else Unreachable)
    assert len(caplog.records) == (0 if kind is ValueError else 1)


@pytest.mark.parametrize("kind", [RecordError, KeyError, ValueError, OSError, TimeoutError])
def test_whatever_withholds_the_last_byte_passes_through(
    standin: Standin, kind: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    own = kind("withheld")
    with pytest.raises(kind) as caught:
        asyncio.run(api_of(standin.url).report(BODY, Mark(own)))
    assert caught.value is own
    assert caplog.records == []
