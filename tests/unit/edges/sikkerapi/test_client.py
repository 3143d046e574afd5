"""The client of SikkerAPI against a stand-in on loopback: what it sends, what it hands on, and what it refuses."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import re
import socket
import threading
import time
import zlib
from typing import TYPE_CHECKING

import httpx
import pytest

from sikkerguard.core.lists.parse import ApiParser
from sikkerguard.core.lists.sources import SIKKERAPI
from sikkerguard.core.sikkerapi.body import CRUMBS, LARGEST_BODY, REST_SECONDS
from sikkerguard.edges.sikkerapi import failures
from sikkerguard.edges.sikkerapi.blacklist import Blacklist
from sikkerguard.edges.sikkerapi.client import ApiClient
from sikkerguard.edges.sikkerapi.failures import sentence
from sikkerguard.errors import (
    BodyRefused,
    FetchError,
    KeyRefused,
    ListError,
    QuotaSpent,
    SettingsRefused,
    Unreachable,
)
from sikkerguard.version import VERSION
from tests.standin.entries import Entry
from tests.standin.faults import (
    MEBIBYTE,
    Canned,
    CutOff,
    Delay,
    Drip,
    Drop,
    Endless,
    Fault,
    GzipBomb,
    Reset,
    Understate,
)
from tests.standin.server import DEMO_KEY, Standin
from tests.standin.tiers import Key

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from sikkerguard.core.interfaces import Feed

ADDRESSES = [f"203.0.113.{number}" for number in range(256)] + [f"2001:db8::{number:x}" for number in range(1, 257)]
LIST = "".join(f"{address}\n" for address in ADDRESSES).encode()
PIECE = 256 << 10
READ = 64 << 10  # httpcore's, for one read of a socket


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's own proxies and passwords are not part of any test."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("NETRC", "/nonexistent")


@pytest.fixture(name="standin")
def _standin() -> Iterator[Standin]:
    now = int(time.time())
    entries = [Entry(address, last_seen=now - number) for number, address in enumerate(ADDRESSES)]
    with Standin(entries=entries) as standin:
        yield standin


def feed_of(
    url: str,
    key: str = DEMO_KEY,
    *,
    transport: httpx.AsyncBaseTransport | None = None,
    score_min: int = 50,
    clock: Callable[[], float] = time.monotonic,
    max_seconds: float = 300.0,
) -> Blacklist:
    client = ApiClient(url, key, transport=transport)
    return Blacklist(client, score_min=score_min, interval=3600.0, clock=clock, max_seconds=max_seconds)


class Pieces:
    """Takes the pieces, and keeps them where there is not too much of them."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.content = b""

    def take(self, piece: bytes) -> None:
        self.sizes.append(len(piece))
        if len(self.content) < MEBIBYTE:
            self.content += piece


def pulled(feed: Blacklist, pieces: Pieces | None = None) -> bytes:
    pieces = pieces or Pieces()
    asyncio.run(read(feed, pieces.take))
    return pieces.content


async def read(feed: Blacklist, take: Callable[[bytes], None]) -> None:
    async with contextlib.aclosing(feed.stream()) as stream:
        async for piece in stream:
            take(piece)


def refused(feed: Blacklist, pieces: Pieces | None = None) -> FetchError:
    with pytest.raises(FetchError) as caught:
        pulled(feed, pieces)
    return caught.value


def client(standin: Standin, key: str = DEMO_KEY) -> Blacklist:
    return feed_of(standin.url, key)


def meeting(standin: Standin, fault: Fault, times: int = 1) -> Blacklist:
    standin.fault("blacklist", fault, times)
    return client(standin)


def answering(*headers: tuple[str, str], status: int = 200, body: bytes = LIST) -> Canned:
    return Canned(status, body=body, content_type="text/plain", headers=headers)


# What is sent


def test_a_feed_says_what_it_is(standin: Standin) -> None:
    feed: Feed = client(standin)
    assert (feed.name, feed.interval, feed.remaining) == (SIKKERAPI, 3600.0, None)
    assert asyncio.run(feed.version()) is None
    assert standin.record.requests_total == 0


def test_the_query_asks_for_plain_lines_of_the_wanted_score(standin: Standin) -> None:
    pulled(feed_of(standin.url, score_min=77))
    (request,) = standin.record.requests
    assert (request.method, request.path) == ("GET", "/v1/key/blacklist")
    assert dict(request.query) == {"plaintext": "true", "scoreMinimum": "77"}


def test_the_headers_carry_the_key_the_product_and_the_wish_for_gzip(standin: Standin) -> None:
    pulled(client(standin))
    (request,) = standin.record.requests
    assert request.header("Authorization") == f"Bearer {DEMO_KEY}"
    assert request.header("User-Agent") == f"SikkerGuard/{VERSION}"
    assert request.header("Accept-Encoding") == "gzip"
    assert request.header("Cookie") == ""


def test_a_path_in_front_of_the_api_is_kept(standin: Standin) -> None:
    refused(feed_of(f"{standin.url}/proxied/sikker"))
    (request,) = standin.record.requests
    assert request.path == "/proxied/sikker/v1/key/blacklist"


def test_a_password_file_does_not_replace_the_key(
    standin: Standin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passwords = tmp_path / ".netrc"
    passwords.write_text("machine 127.0.0.1 login someone password secret\ndefault login someone password secret\n")
    passwords.chmod(0o600)
    monkeypatch.setenv("NETRC", str(passwords))
    monkeypatch.setenv("HOME", str(tmp_path))
    body = pulled(client(standin))
    assert body == LIST
    assert standin.record.requests[0].header("Authorization") == f"Bearer {DEMO_KEY}"


def test_a_proxy_with_a_password_does_not_replace_the_key(standin: Standin, monkeypatch: pytest.MonkeyPatch) -> None:
    # The stand-in plays the proxy: it answers 404 to the absolute address that a proxy is sent, and keeps the headers.
    monkeypatch.setenv("http_proxy", standin.url.replace("http://", "http://someone:secret@"))
    refused(feed_of("http://api.example.net"))
    (request,) = standin.record.requests
    assert request.path == "http://api.example.net/v1/key/blacklist"
    assert request.header("Authorization") == f"Bearer {DEMO_KEY}"


# What is handed on


def test_the_list_arrives_byte_for_byte_whether_it_was_packed_or_not(standin: Standin) -> None:
    packed = pulled(client(standin))
    plain = pulled(meeting(standin, answering()))
    assert packed == plain == LIST


@pytest.mark.parametrize("pack", [False, True], ids=["plain", "gzip"])
def test_pieces_handed_on_are_bounded(standin: Standin, pack: bool) -> None:
    body = LIST * (5 * MEBIBYTE // len(LIST))
    sent = gzip.compress(body, 1) if pack else body
    headers = (("Content-Encoding", "gzip"),) if pack else ()
    pieces = Pieces()
    pulled(meeting(standin, answering(*headers, body=sent)), pieces)
    assert sum(pieces.sizes) == len(body)
    # What was held back was less than a piece, and one read, or one bang of the unpacker, came on top.
    assert max(pieces.sizes) <= PIECE + (PIECE if pack else READ)
    assert min(pieces.sizes[:-1]) >= PIECE


@pytest.mark.parametrize("length", [0, 1, 2, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE])
@pytest.mark.parametrize("pack", [False, True], ids=["plain", "gzip"])
def test_a_body_of_any_length_arrives_whole(standin: Standin, length: int, pack: bool) -> None:
    body = (LIST * (length // len(LIST) + 1))[:length]
    sent = gzip.compress(body) if pack else body
    pieces = Pieces()
    got = pulled(meeting(standin, answering(*((("Content-Encoding", "gzip"),) if pack else ()), body=sent)), pieces)
    assert got == body
    assert 0 not in pieces.sizes


def test_a_body_that_comes_byte_by_byte_arrives_whole(standin: Standin) -> None:
    standin.replace([Entry("203.0.113.7"), Entry("2001:db8::7")])
    got = pulled(meeting(standin, Drip(interval=0, step=1)))
    assert sorted(got.split()) == [b"2001:db8::7", b"203.0.113.7"]


def test_a_gzip_body_of_several_members_is_not_cut_behind_the_first(standin: Standin) -> None:
    # RFC 1952, section 2.2: a file is a series of members; who stops at the first believes in half of the list.
    first, second = LIST[: len(LIST) // 2], LIST[len(LIST) // 2 :]
    sent = gzip.compress(first) + gzip.compress(second)
    got = pulled(meeting(standin, answering(("Content-Encoding", "gzip"), body=sent)))
    assert got == LIST


@pytest.mark.parametrize(
    ("fault", "limit"),
    [
        (Endless(cap=LARGEST_BODY + MEBIBYTE), LARGEST_BODY),
        (GzipBomb(unpacked=LARGEST_BODY + MEBIBYTE), LARGEST_BODY),
        # Empty blocks (RFC 1951, section 3.2.4) unpack to nothing at all: what counts here are the bytes that came.
        (
            answering(
                ("Content-Encoding", "gzip"),
                body=gzip.compress(b"")[:10] + b"\0\0\0\xff\xff" * ((LARGEST_BODY + MEBIBYTE) // 5),
            ),
            0,
        ),
    ],
    ids=["plain", "gzip bomb", "packed and endless"],
)
def test_no_more_than_64_mebibytes_are_taken(standin: Standin, fault: Fault, limit: int) -> None:
    pieces = Pieces()
    error = refused(meeting(standin, fault), pieces)
    assert "larger than 64 MiB" in str(error)
    assert type(error) is Unreachable
    assert sum(pieces.sizes) <= limit


def test_a_list_of_exactly_the_largest_size_is_taken(standin: Standin) -> None:
    pieces = Pieces()
    pulled(meeting(standin, GzipBomb(unpacked=LARGEST_BODY)), pieces)
    assert sum(pieces.sizes) == LARGEST_BODY


class Crumbs(httpx.AsyncByteStream):
    """A body of the same line, byte by byte, as fast as it is taken."""

    def __init__(self, size: int) -> None:
        self._size = size

    async def __aiter__(self) -> AsyncIterator[bytes]:
        line = b"198.51.100.7\n"
        for at in range(self._size):
            yield line[at % len(line) :][:1]


def crumbs(size: int) -> Blacklist:
    transport = httpx.MockTransport(lambda request: httpx.Response(200, stream=Crumbs(size)))
    return feed_of("http://192.0.2.1", transport=transport)


def test_a_body_may_come_byte_by_byte_and_leaves_most_of_the_time_to_others() -> None:
    pieces = Pieces()
    spent, started = time.process_time(), time.monotonic()
    pulled(crumbs(CRUMBS * 200), pieces)
    spent, passed = time.process_time() - spent, time.monotonic() - started
    # One call, not one for each of the bytes.
    assert pieces.sizes == [CRUMBS * 200]
    assert passed > 200 * REST_SECONDS
    assert spent < passed / 2


def test_a_list_with_too_much_in_it_is_not_fetched_to_its_end(standin: Standin) -> None:
    pieces, parser = Pieces(), ApiParser()

    def take(piece: bytes) -> None:
        pieces.take(piece)
        parser.feed(piece)

    standin.fault("blacklist", Endless(cap=LARGEST_BODY))
    with pytest.raises(ListError, match="more than 2,000,000 entries"):
        asyncio.run(read(client(standin), take))
    assert sum(pieces.sizes) < LARGEST_BODY / 2


# Quotas


@pytest.mark.parametrize(
    ("headers", "limit", "remaining"),
    [
        ({}, None, None),
        ({"X-Daily-Limit": "5", "X-Daily-Remaining": "3"}, 5, 3),
        ({"X-RateLimit-Limit": "7", "X-RateLimit-Remaining": "6"}, 7, 6),
        ({"X-Daily-Limit": "5", "X-RateLimit-Limit": "7", "x-ratelimit-remaining": "0"}, 7, 0),
        ({"X-Daily-Limit": "many", "X-Daily-Remaining": "-3"}, None, None),
        ({"X-RateLimit-Limit": "", "X-Daily-Limit": "5"}, 5, None),
        ({"X-RateLimit-Limit": "\xb2", "X-RateLimit-Remaining": "1.5"}, None, None),
        ({"X-RateLimit-Limit": " 8 ", "X-RateLimit-Remaining": "+8"}, 8, None),
    ],
)
def test_quota_headers_are_read_where_they_are_numbers(
    standin: Standin, headers: dict[str, str], limit: int | None, remaining: int | None
) -> None:
    feed = meeting(standin, answering(*headers.items()))
    pulled(feed)
    assert feed.remaining == remaining
    refusal = refused(meeting(standin, answering(*headers.items(), status=429)))
    assert isinstance(refusal, QuotaSpent)
    assert (refusal.limit, refusal.remaining) == (limit, remaining)


def test_a_quota_of_a_thousand_digits_is_a_number_that_can_be_shown(standin: Standin) -> None:
    # int() refuses more than 4,300 digits, and a status page should not fill with nines.
    feed = meeting(standin, answering(("X-RateLimit-Remaining", "9" * 5000)))
    pulled(feed)
    assert feed.remaining is not None
    assert feed.remaining < 10**13


def test_the_quota_that_the_service_tells_is_read(standin: Standin) -> None:
    feed = client(standin)
    found = [feed.remaining]
    for _ in range(2):
        pulled(feed)
        found.append(feed.remaining)
    assert found == [None, 999, 998]
    # Of a pull that failed nobody knows.
    refused(feed_of(standin.url, "sk_free_other"))
    standin.fault("blacklist", Reset())
    refused(feed)
    assert feed.remaining is None


# Refusals of the server


@pytest.mark.parametrize(
    ("status", "kind", "phrase"),
    [
        (401, KeyRefused, "SIKKER_API_KEY"),
        (403, KeyRefused, "disabled or has expired"),
        (404, SettingsRefused, "answered 404 Not Found"),
        (400, BodyRefused, "answered 400 Bad Request"),
        (204, SettingsRefused, "answered 204"),
        (304, SettingsRefused, "answered 304"),
        (408, Unreachable, "answered 408"),
        (429, QuotaSpent, "quota"),
        *((status, Unreachable, f"answered {status}") for status in (500, 502, 503, 504)),
        # What stands in front of the service has numbers of its own: a line to it that is down is no answer of it.
        *((status, Unreachable, f"answered {status}") for status in (507, 520, 521, 522, 523, 524, 530)),
    ],
)
def test_each_status_says_whether_trying_again_helps(
    standin: Standin, status: int, kind: type[FetchError], phrase: str
) -> None:
    pieces = Pieces()
    error = refused(meeting(standin, Canned(status)), pieces)
    assert phrase in str(error)
    assert type(error) is kind
    assert error.retry_after is None
    assert pieces.sizes == []


def test_an_unknown_and_a_disabled_key_are_told_apart(standin: Standin) -> None:
    standin.set_keys([Key(DEMO_KEY, enabled=False)])
    assert "does not know this key (401)" in str(refused(client(standin, "sk_free_other")))
    assert "refuses this key (403)" in str(refused(client(standin)))


def test_the_key_is_in_no_message(standin: Standin) -> None:
    secret = "sk_free_very-secret"
    faults: list[Fault] = [Canned(401), Canned(403), Canned(500), Canned(302, headers=(("Location", "http://x/"),))]
    for fault in [*faults, Reset(), Reset(after=10), Drop(accepted=False)]:
        standin.fault("blacklist", fault)
        error = refused(client(standin, secret))
        shown = f"{error!r} {error.__cause__!r}"
        assert secret not in shown


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "120"}, 120.0),
        ({"Retry-After": "0"}, 0.0),
        ({"Retry-After": " 7 "}, 7.0),
        ({"Retry-After": "9" * 5000}, 999_999_999.0),
        # Not a number of seconds: as if it were not there.
        ({"Retry-After": "-5"}, None),
        ({"Retry-After": "1.5"}, None),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": ""}, None),
        ({"Retry-After": "\xb2"}, None),
        ({"X-RateLimit-Reset": "-1"}, None),
        ({"X-RateLimit-Reset": "\xb3"}, None),
        ({"X-RateLimit-Reset": "1e9"}, None),
        # A moment that has passed is now.
        ({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
        ({"X-RateLimit-Reset": "0"}, 0.0),
        ({"X-RateLimit-Reset": "1000000000"}, 0.0),
        ({"Retry-After": "60", "X-RateLimit-Reset": "99999999999"}, 60.0),
    ],
)
def test_the_pause_that_the_server_asks_for_is_read(
    standin: Standin, headers: dict[str, str], seconds: float | None
) -> None:
    error = refused(meeting(standin, answering(*headers.items(), status=429)))
    assert error.retry_after == seconds
    assert isinstance(error, QuotaSpent)


def test_the_reset_of_the_quota_is_a_moment_and_becomes_a_pause(standin: Standin) -> None:
    reset = int(time.time()) + 3600
    error = refused(meeting(standin, answering(("X-RateLimit-Reset", str(reset)), status=429)))
    assert error.retry_after is not None
    assert 3500 < error.retry_after <= 3600


@pytest.mark.parametrize("zone", ["UTC", "Pacific/Kiritimati", "America/Los_Angeles", "XXX-12:34"])
@pytest.mark.parametrize("form", ["%a, %d %b %Y %H:%M:%S GMT", "%A, %d-%b-%y %H:%M:%S GMT", "%a %b %e %H:%M:%S %Y"])
def test_each_form_of_a_date_is_in_utc_wherever_the_host_is(
    standin: Standin, monkeypatch: pytest.MonkeyPatch, form: str, zone: str
) -> None:
    # RFC 9110, section 5.6.7; the last one, asctime's, does not say so itself.
    with monkeypatch.context() as patched:
        patched.setenv("TZ", zone)
        time.tzset()
        moment = time.strftime(form, time.gmtime(time.time() + 3600))
        error = refused(meeting(standin, answering(("Retry-After", moment), status=503)))
    time.tzset()
    assert error.retry_after is not None
    assert 3590 < error.retry_after <= 3600


@pytest.mark.parametrize(
    "text", ["Sun, 06 Nov", ",", ", ,", "0 0 0 0", "Mon, : : : GMT", "Sun, 06 Nov 94 08:49:37 +9999999"]
)
def test_what_is_no_date_says_nothing(standin: Standin, text: str) -> None:
    assert refused(meeting(standin, answering(("Retry-After", text), status=503))).retry_after is None


def test_a_reset_in_a_million_years_is_a_number(standin: Standin) -> None:
    error = refused(meeting(standin, answering(("X-RateLimit-Reset", "9" * 5000), status=429)))
    assert error.retry_after is not None
    assert 0 < error.retry_after < 10**12


def test_a_server_that_is_being_mended_says_when_to_come_again(standin: Standin) -> None:
    assert refused(meeting(standin, answering(("Retry-After", "90"), status=503))).retry_after == 90


def test_the_reset_of_the_quota_is_no_reason_to_stay_away_after_a_passing_error(standin: Standin) -> None:
    # Quota headers come with every answer: midnight is when the quota is full again, not when the error is over.
    midnight = str(int(time.time()) + 20 * 3600)
    error = refused(meeting(standin, answering(("X-RateLimit-Reset", midnight), status=502)))
    assert type(error) is Unreachable
    assert error.retry_after is None


# Redirects


def to(location: str, status: int = 302) -> Canned:
    return Canned(status, headers=(("Location", location),))


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_within_the_origin_is_followed_with_the_key(standin: Standin, status: int) -> None:
    got = pulled(meeting(standin, to("/v1/key/blacklist?plaintext=true&scoreMinimum=60", status)))
    assert got == LIST
    _, second = standin.record.requests
    assert second.header("Authorization") == f"Bearer {DEMO_KEY}"
    assert ("scoreMinimum", "60") in second.query


def test_a_redirect_to_the_whole_address_of_the_same_origin_is_followed(standin: Standin) -> None:
    got = pulled(meeting(standin, to(f"{standin.url}/v1/key/blacklist?plaintext=true")))
    assert got == LIST


@pytest.mark.parametrize(
    "location",
    ["http://127.0.0.1:{port}/v1/key/blacklist", "//127.0.0.1:{port}/", "http://user:secret@127.0.0.1:{port}/"],
)
def test_a_redirect_to_another_port_is_refused_and_nothing_is_asked_there(standin: Standin, location: str) -> None:
    with Standin() as other:
        error = refused(meeting(standin, to(location.format(port=other.port))))
        assert "where the key must not go" in str(error)
        assert "SIKKER_API_URL" in str(error)
        assert isinstance(error, SettingsRefused)
        assert other.record.requests_total == 0
    assert standin.record.requests_total == 1


@pytest.mark.parametrize(
    "location",
    ["https://127.0.0.1/", "http://localhost/", "ftp://127.0.0.1/", "http://evil.example/", "file:///etc/passwd"],
)
def test_a_redirect_to_another_host_or_scheme_is_refused(standin: Standin, location: str) -> None:
    error = refused(meeting(standin, to(location)))
    assert "where the key must not go" in str(error)
    assert isinstance(error, SettingsRefused)


def test_a_redirect_in_a_circle_ends(standin: Standin) -> None:
    error = refused(meeting(standin, to("/v1/key/blacklist"), times=100))
    assert "redirects in a circle" in str(error)
    assert isinstance(error, SettingsRefused)
    assert standin.record.requests_total <= 10


@pytest.mark.parametrize(
    "location",
    ["http://api:b/", "http://\x80/", "?\x01", "http://xn--/", "http://xn--a/", "http://api..example.net/", "http://["],
)
def test_a_redirect_to_what_is_no_address_is_an_error_of_the_api(location: str) -> None:
    # Such bytes come on the wire as they are; the stand-in is too polite to send all of them.
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(302, headers=[(b"Location", location.encode("latin-1"))])

    refused(feed_of("http://api.example.net", transport=httpx.MockTransport(answer)))


# By version of httpx, Python or rfc3986, each of these has ended a request with something that was no error of httpx.
NO_ADDRESSES = [
    b"http://[",
    b"http:////[@x.example/",
    b":http://%00@x[::1]:80///",
    b":http://[@api.example.net",
    b"///[",
    b"/[",
    b":////[",
    b"?[::1",
    b"1:/user@[::1:",
    b"http://xn--/",
    b"http://xn--yl-43d9g.example\xc1",
    b"https://" + "\u2100".encode() + b".example/",
    b"http://[v1.x]/",
    b"http://[1:2]/",
    b"http:[::1",
    b"\xff\xfe",
    b"http://a\x1b[2K/",
    b"http://api.example.net:65536/",
    b"http://api.example.net:\xb2/",
    b"",
]


@pytest.mark.parametrize("location", NO_ADDRESSES)
@pytest.mark.parametrize("status", [200, 302, 308])
def test_no_address_of_a_redirect_ends_anything(location: bytes, status: int, caplog: pytest.LogCaptureFixture) -> None:
    length = b"Content-Length: 12\r\n\r\n203.0.113.7\n"
    with Raw(b"HTTP/1.1 %d X\r\nLocation: " % status + location + b"\r\n" + length) as server:
        api = feed_of(server.url)
        if status == 200:
            # Nobody is sent anywhere, whatever stands there.
            assert pulled(api) == b"203.0.113.7\n"
        else:
            error = str(refused(api))
            assert "SIKKER_API_URL" in error
            assert error.isascii()
            assert error.isprintable()
    assert caplog.records == []


@pytest.mark.parametrize(
    ("location", "shown"),
    [
        # Letters that look like those of another name are shown as they are on the wire (RFC 3492).
        ("http://r\u0430ypal.example/x".encode(), "http://xn--rypal-4ve.example,"),
        (b"http://xn--rypal-4ve.example/", "http://xn--rypal-4ve.example,"),
        (b"https://EVIL.example:8443/", "https://evil.example:8443,"),
        (b"http://user:secret@evil.example/", "http://evil.example,"),
        (b"http://[2001:db8::1]:81/", "http://[2001:db8::1]:81,"),
        (b"http://" + b"a." * 500 + b"example/", "..., where"),
    ],
)
def test_where_a_redirect_leads_is_said_in_plain_letters(location: bytes, shown: str) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(302, headers=[(b"Location", location)])

    error = refused(feed_of("http://api.example.net", transport=httpx.MockTransport(answer)))
    assert shown in str(error)
    assert "where the key must not go" in str(error)
    assert "secret" not in str(error)
    assert str(error).isascii()
    assert len(str(error)) < 300


# What acts on a terminal

ESCAPES = b"\x1b[2K\x1b[1A\x1b]0;title\x07\x9b31m" + "\u202e\u0430".encode() + b"A" * 2000


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 503 " + ESCAPES + b"\r\n\r\n",
        b"HTTP/1.1 404 " + ESCAPES + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: " + ESCAPES + b"\r\nContent-Length: 1\r\n\r\nx",
        b"HTTP/1.1 302 OK\r\nLocation: " + ESCAPES + b"\r\n\r\n",
        b"HTTP/1.1 302 OK\r\nLocation: http://" + ESCAPES + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + ESCAPES + b"\r\n\r\n",
        ESCAPES + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: " + ESCAPES + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: " + ESCAPES + b"\r\n\r\n",
        # Of some thousand digits Python makes no number, and h11 0.14 no error of its own.
        b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + ESCAPES + b"\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2100\r\n\r\n" + ESCAPES + b"\n",
    ],
)
def test_what_a_server_says_acts_on_no_terminal_and_has_an_end(answer: bytes, caplog: pytest.LogCaptureFixture) -> None:
    with Raw(answer) as server, pytest.raises((FetchError, ListError)) as caught:
        asyncio.run(read(feed_of(server.url), ApiParser().feed))
    error = str(caught.value)
    assert error.isascii()
    assert error.isprintable()
    assert len(error) < 400
    assert caplog.records == []


# What breaks on the way


@pytest.mark.parametrize("kind", [KeyError, RuntimeError, AssertionError, ZeroDivisionError])
def test_what_nobody_has_thought_of_is_our_error_and_told_once(
    kind: type[Exception], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        raise kind("odd")

    monkeypatch.setattr(failures, "_logged", set())
    for _ in range(3):
        error = refused(feed_of("http://api.example.net", transport=httpx.MockTransport(answer)))
        assert type(error) is Unreachable
        assert f"({kind.__name__}: " in str(error)
    (record,) = caplog.records
    assert record.exc_info


@pytest.mark.parametrize("kind", [ListError, KeyError, OSError, TimeoutError, ValueError, httpx.ReadError, MemoryError])
def test_what_the_reader_raises_stays_as_it_is(
    standin: Standin, kind: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    own = kind("the reader's")

    def take(piece: bytes) -> None:
        raise own

    with pytest.raises(kind) as caught:
        asyncio.run(read(client(standin), take))
    assert caught.value is own
    assert caplog.records == []


def test_what_a_library_cancels_is_our_error_and_no_stop() -> None:
    async def answer(request: httpx.Request) -> httpx.Response:
        raise asyncio.CancelledError

    error = refused(feed_of("http://api.example.net", transport=httpx.MockTransport(answer)))
    assert type(error) is Unreachable


def every_kind(kind: type[httpx.TransportError]) -> list[type[httpx.TransportError]]:
    below = [found for child in kind.__subclasses__() for found in every_kind(child)]
    return [kind, *below]


@pytest.mark.parametrize("kind", every_kind(httpx.TransportError), ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("in_body", [False, True], ids=["before the answer", "in the body"])
def test_whatever_breaks_is_said_as_our_error_and_tried_again(kind: type[httpx.TransportError], in_body: bool) -> None:
    class Body(httpx.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield LIST
            raise kind("the words of the library")

    def answer(request: httpx.Request) -> httpx.Response:
        if in_body:
            return httpx.Response(200, stream=Body())
        raise kind("the words of the library")

    error = refused(feed_of("http://api.example.net", transport=httpx.MockTransport(answer)))
    assert type(error) is Unreachable
    assert error.retry_after is None
    assert str(error).startswith("SikkerAPI")
    assert "the words of the library" in str(error)
    assert isinstance(error.__cause__, kind)


def test_an_error_without_words_is_named_by_its_kind() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        raise httpx.PoolTimeout("")

    error = refused(feed_of("http://api.example.net", transport=httpx.MockTransport(answer)))
    assert "PoolTimeout" in str(error)


def test_a_port_that_nobody_listens_on_is_unreachable(standin: Standin) -> None:
    standin.stop()
    error = refused(client(standin))
    assert "can't be reached" in str(error)
    assert type(error) is Unreachable


@pytest.mark.parametrize("address", ["api..example.net", f"{'a' * 64}.example.net", "xn--a.example.net"])
def test_a_name_that_can_be_no_name_is_an_api_that_can_not_be_had(address: str) -> None:
    refused(feed_of(f"http://{address}"))


@pytest.mark.parametrize(
    "fault",
    [
        CutOff(1),
        CutOff(100),
        Understate(1),
        Understate(100),
        Reset(),
        Reset(after=0),
        Reset(after=100),
        Drop(accepted=False),
        Drop(accepted=True),
    ],
    ids=str,
)
def test_a_packed_answer_that_breaks_off_is_refused(standin: Standin, fault: Fault) -> None:
    assert type(refused(meeting(standin, fault))) is Unreachable


@pytest.mark.parametrize("fault", [CutOff(1), CutOff(100), Reset(after=0), Reset(after=100)], ids=str)
def test_a_plain_answer_that_breaks_off_is_refused(standin: Standin, fault: Fault) -> None:
    # Too short to be packed, as a new service's or a strict score's list is.
    standin.replace([Entry(address) for address in ADDRESSES[:10]])
    assert type(refused(meeting(standin, fault))) is Unreachable


@pytest.mark.parametrize(
    ("body", "phrase"),
    [
        (b"<html>", "can't be unpacked"),
        (gzip.compress(LIST, mtime=0)[:-1], "broke off before its end"),
        (gzip.compress(LIST, mtime=0)[:-8], "broke off before its end"),
        (gzip.compress(LIST, mtime=0)[:12], "broke off before its end"),
        (gzip.compress(LIST, mtime=0)[:-8] + bytes(8), "can't be unpacked"),
        (zlib.compress(LIST), "can't be unpacked"),
        (b"", "broke off before its end"),
    ],
    ids=["html", "last byte", "no checksum", "head only", "wrong checksum", "zlib", "nothing"],
)
def test_a_broken_gzip_body_is_refused(standin: Standin, body: bytes, phrase: str) -> None:
    error = refused(meeting(standin, answering(("Content-Encoding", "gzip"), body=body)))
    assert phrase in str(error)
    assert type(error) is Unreachable


@pytest.mark.parametrize("coding", ["br", "deflate", "zstd", "gzip, gzip", "x"])
def test_a_coding_that_was_not_asked_for_is_refused(standin: Standin, coding: str) -> None:
    pieces = Pieces()
    error = refused(meeting(standin, answering(("Content-Encoding", coding))), pieces)
    assert coding in str(error)
    assert type(error) is Unreachable
    assert pieces.sizes == []


@pytest.mark.parametrize("coding", ["gzip", "GZIP", "x-gzip", " gzip "])
def test_gzip_is_known_however_it_is_written(standin: Standin, coding: str) -> None:
    got = pulled(meeting(standin, answering(("Content-Encoding", coding), body=gzip.compress(LIST))))
    assert got == LIST


def test_two_lengths_that_disagree_are_refused(standin: Standin) -> None:
    error = refused(meeting(standin, answering(("Content-Length", "10"))))
    assert "not HTTP" in str(error)


def test_several_answers_in_one_connection_do_not_mix(standin: Standin) -> None:
    # A keep-alive answer that was too long for its length must not become the beginning of the next one.
    standin.replace([Entry(address) for address in ADDRESSES[:10]])
    api = client(standin)
    standin.fault("blacklist", Understate(20))
    pulled(api)
    whole = pulled(api)
    assert len(whole.split()) == 10


def _receive(connection: socket.socket) -> None:
    """Take a request whole: what is left unread would break the connection before the answer is read."""
    request = b""
    while b"\r\n\r\n" not in request:
        request += _some(connection)
    head, _, body = request.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: (\d+)", head)
    left = int(length[1]) - len(body) if length else 0
    while left > 0:
        left -= len(_some(connection))


def _some(connection: socket.socket) -> bytes:
    received = connection.recv(65536)
    if not received:
        raise ConnectionResetError
    return received


class Raw:
    """A server of a few bytes, for what no HTTP library would send."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Raw:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                _receive(connection)
                connection.sendall(self._answer)


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\x15\x03\x01\x00\x02\x02\x46",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n203.0.113.7\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n203.0.113.7\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n203.0.113.7\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nc\r\n203.0.113.7\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: " + b"y" * (2 << 20) + b"\r\n\r\n203.0.113.7\n",
        b"HTTP/1.1 999999 What\r\n\r\n",
        b"\0" * 100_000,
    ],
    ids=["ssh", "tls", "length", "two lengths", "chunk", "last chunk missing", "header", "status", "zeros"],
)
def test_what_is_not_http_is_refused(answer: bytes) -> None:
    with Raw(answer) as server:
        error = refused(feed_of(server.url))
    assert type(error) is Unreachable
    assert "broke off or is not HTTP" in str(error)


# Time


def at_pace(*pieces: bytes, thinking: float = 0.0, pause: float = 0.0) -> Blacklist:
    """A client of a server that thinks for so many seconds and then sends these pieces, each after a pause. Its clock
    is the server's: nobody waits."""
    now = 0.0

    class Body(httpx.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            nonlocal now
            for piece in pieces:
                now += pause
                yield piece

    def answer(request: httpx.Request) -> httpx.Response:
        nonlocal now
        now += thinking
        return httpx.Response(200, stream=Body())

    return feed_of("http://api.example.net", transport=httpx.MockTransport(answer), clock=lambda: now)


def test_a_server_that_drips_is_given_up() -> None:
    error = refused(at_pace(*[b"203.0.113.7\n"] * 100, pause=1))
    assert "too slow to wait for" in str(error)
    assert type(error) is Unreachable


def test_a_slow_line_that_keeps_its_pace_is_waited_for() -> None:
    got = pulled(at_pace(*[LIST[:2048]] * 100, pause=1))
    assert len(got) == 204_800


def test_a_short_list_that_begins_late_and_comes_at_once_is_not_slow() -> None:
    # The time limit for an answer's first byte is 30 s; how fast the body comes is told by the body's own time.
    got = pulled(at_pace(LIST[:2048], thinking=20))
    assert got == LIST[:2048]


def test_a_pull_that_takes_too_long_is_given_up_and_no_more_than_that(standin: Standin) -> None:
    # Whoever asked goes on: it was the pull that ran out of time, not the service that was stopped.
    standin.fault("blacklist", Drip(interval=0.02))
    error = refused(feed_of(standin.url, max_seconds=0.3))
    assert "took longer than 0.3 s" in str(error)
    assert type(error) is Unreachable


def test_a_pull_can_be_cancelled_and_leaves_no_connection(standin: Standin) -> None:
    async def cancelled() -> None:
        task = asyncio.create_task(read(client(standin), Pieces().take))
        while not standin.record.requests_total:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    standin.fault("blacklist", Delay(30))
    began = time.monotonic()
    asyncio.run(cancelled())
    standin.stop()
    assert time.monotonic() - began < 5


# The end of a stream that is not read to its end


class Counted(httpx.AsyncBaseTransport):
    """An answer that never ends, and how many pieces of it were asked for and how many bodies were closed."""

    def __init__(self) -> None:
        self.pieces = self.opened = self.closed = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.opened += 1
        return httpx.Response(200, stream=_Body(self))


class _Body(httpx.AsyncByteStream):
    def __init__(self, counted: Counted) -> None:
        self._counted = counted

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            self._counted.pieces += 1
            yield b"203.0.113.7\n" * (PIECE // 12 + 1)
            await asyncio.sleep(0)

    async def aclose(self) -> None:
        self._counted.closed += 1


async def no_task_is_left() -> None:
    for _ in range(10):  # generators that the library has dropped are closed by tasks of the loop
        await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}


def test_a_stream_that_nobody_begins_asks_for_nothing() -> None:
    transport = Counted()

    async def main() -> None:
        stream = feed_of("http://192.0.2.1", transport=transport).stream()
        await stream.aclose()
        await no_task_is_left()

    asyncio.run(main())
    assert transport.opened == 0


@pytest.mark.parametrize("pieces", [1, 3])
def test_a_stream_that_is_closed_early_has_closed_its_connection_by_then(pieces: int) -> None:
    transport = Counted()

    async def main() -> None:
        async with contextlib.aclosing(feed_of("http://192.0.2.1", transport=transport).stream()) as stream:
            for _ in range(pieces):
                await anext(stream)
        assert (transport.opened, transport.closed) == (1, 1)
        await no_task_is_left()

    asyncio.run(main())


def test_a_reader_that_is_cancelled_while_it_works_has_closed_the_connection_by_then() -> None:
    transport = Counted()

    async def reading(working: asyncio.Event) -> None:
        async with contextlib.aclosing(feed_of("http://192.0.2.1", transport=transport).stream()) as stream:
            async for _ in stream:
                working.set()
                await asyncio.sleep(60)

    async def main() -> None:
        working = asyncio.Event()
        task = asyncio.create_task(reading(working))
        await working.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (transport.opened, transport.closed) == (1, 1)
        await no_task_is_left()

    asyncio.run(main())


@pytest.mark.parametrize("turns", range(30))
def test_a_reader_that_is_cancelled_as_the_answer_ends_ends_too(turns: int) -> None:
    """Whichever turn of the loop after the last byte that is: a cancellation that is lost there would last for ever."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        readers: list[asyncio.Task[None]] = []

        def count_down(left: int) -> None:
            if left:
                loop.call_soon(count_down, left - 1)
            else:
                readers[0].cancel()

        class Body(httpx.AsyncByteStream):
            async def __aiter__(self) -> AsyncIterator[bytes]:
                yield b"203.0.113.7\n"
                count_down(turns)

        def answer(_: httpx.Request) -> httpx.Response:
            return httpx.Response(200, headers={"Content-Type": "text/plain"}, stream=Body())

        async def read() -> None:
            feed = feed_of("http://192.0.2.1", transport=httpx.MockTransport(answer))
            async with contextlib.aclosing(feed.stream()) as stream:
                async for _ in stream:
                    await asyncio.sleep(0.05)

        readers.append(asyncio.create_task(read()))
        async with asyncio.timeout(5):
            await asyncio.wait(readers)
        assert readers[0].cancelled()
        await no_task_is_left()

    asyncio.run(main())


def test_the_server_sees_the_end_of_a_stream_that_is_closed_early() -> None:
    """By a real connection, which a client of httpx would otherwise keep for the next request."""

    async def main() -> None:
        closed = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n" + b"203.0.113.7\n" * 30_000)
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
            closed.set()
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            async with contextlib.aclosing(feed_of(f"http://127.0.0.1:{port}").stream()) as stream:
                assert await anext(stream)
            async with asyncio.timeout(5):
                await closed.wait()

    asyncio.run(main())


def test_no_more_than_one_piece_is_fetched_ahead_of_its_reader() -> None:
    transport = Counted()

    async def main() -> None:
        async with contextlib.aclosing(feed_of("http://192.0.2.1", transport=transport).stream()) as stream:
            for read in range(1, 4):
                await anext(stream)
                for _ in range(50):
                    await asyncio.sleep(0)
                # One was given, one waits, one could not be put behind it.
                assert transport.pieces <= read + 2

    asyncio.run(main())


def test_the_time_limit_ends_the_pull_and_not_what_its_reader_does() -> None:
    transport, done = Counted(), []

    async def main() -> None:
        feed = feed_of("http://192.0.2.1", transport=transport, max_seconds=0.1)
        async with contextlib.aclosing(feed.stream()) as stream:
            async for _ in stream:
                await asyncio.sleep(0.3)
                done.append(transport.closed)

    with pytest.raises(Unreachable, match=r"longer than 0\.1 s"):
        asyncio.run(main())
    # The connection was closed when the time was up, the reader finished its work, and heard of it then.
    assert done
    assert done[0] == 1


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (httpx.ReadError(""), "SikkerAPI can't be reached (the connection was closed)"),
        (httpx.ReadTimeout(""), "SikkerAPI did not answer in time (nothing came)"),
        (httpx.ConnectError("Connection refused"), "SikkerAPI can't be reached (Connection refused)"),
    ],
)
def test_what_comes_without_words_is_said_in_words(error: Exception, said: str) -> None:
    assert sentence(error) == said
