"""The local pages over real sockets, asked as a browser, a health check and a vandal would."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from sikkerguard.edges.http.page import Page
from sikkerguard.errors import ListenError
from sikkerguard.version import VERSION

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

STATUS: dict[str, object] = {
    "status": "active",
    "blockedIps": 8774,
    "lastReport": None,
    "allowlist": "8 IPs + 8 CIDR ranges",
}
LOCAL = ("127.0.0.1", "::1")
SECONDS = 5.0
"""Within which whatever is answered at once must be answered, on a machine that is busy too."""


def free_port(host: str) -> int:
    """A port that nobody had a moment ago."""
    with socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as taken:
        return int(taken.getsockname()[1])


@dataclass(frozen=True)
class Answer:
    """What came back, until the server closed."""

    status: int
    headers: dict[str, str]
    body: bytes


class Pages:
    """A running server, and what it is told of the service's health."""

    def __init__(self, host: str) -> None:
        self.host = host
        self.port = free_port(host)
        self.reasons: tuple[str, ...] = ()
        self.page = Page(host, self.port, self)

    def failures(self) -> tuple[str, ...]:
        return self.reasons

    def status(self) -> dict[str, object]:
        return STATUS

    def reload(self, *, accept: bool) -> dict[str, object]:
        raise AssertionError("nobody may change anything here")

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(self.host, self.port)

    async def raw(self, request: bytes) -> bytes:
        """All that comes back for these bytes until the server closes, which it must."""
        reader, writer = await self.connect()
        try:
            with contextlib.suppress(ConnectionError):
                writer.write(request)
                await writer.drain()
            return await _rest(reader)
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def ask(self, path: str, *, method: str = "GET", host: str | None = "localhost") -> Answer:
        line = "" if host is None else f"Host: {host}\r\n"
        text = await self.raw(f"{method} {path} HTTP/1.1\r\n{line}\r\n".encode())
        assert text, "closed without an answer"
        head, _, body = text.partition(b"\r\n\r\n")
        first, *lines = head.decode("ascii").split("\r\n")
        version, status, _ = first.split(" ", 2)
        assert version == "HTTP/1.1"
        return Answer(int(status), {name.lower(): value for name, _, value in (x.partition(": ") for x in lines)}, body)


async def _rest(reader: asyncio.StreamReader) -> bytes:
    """What is still to come; a connection that was reset has said all that it had to."""
    got = b""
    async with asyncio.timeout(SECONDS):
        with contextlib.suppress(ConnectionError):
            while piece := await reader.read(65536):
                got += piece
    return got


@contextlib.asynccontextmanager
async def running(host: str = LOCAL[0]) -> AsyncIterator[Pages]:
    pages = Pages(host)
    await pages.page.open()
    try:
        yield pages
    finally:
        await pages.page.close()


def with_pages(action: Callable[[Pages], Awaitable[Any]], host: str = LOCAL[0]) -> Any:
    """Run this with a server, and see that the server still answers afterwards."""

    async def run() -> Any:
        async with running(host) as pages:
            outcome = await action(pages)
            assert (await pages.ask("/healthz")).status in (200, 503)
            return outcome

    return asyncio.run(run())


def asked(path: str, at: str = LOCAL[0], **options: Any) -> Answer:
    answer = with_pages(lambda pages: pages.ask(path, **options), at)
    assert isinstance(answer, Answer)
    return answer


# Answers


@pytest.mark.parametrize("host", LOCAL)
def test_a_healthy_service_says_ok(host: str) -> None:
    answer = asked("/healthz", host)
    assert (answer.status, answer.body) == (200, b"OK\n")
    assert answer.headers["content-type"].startswith("text/plain")


@pytest.mark.parametrize("host", LOCAL)
def test_an_unhealthy_service_says_503_and_every_reason(host: str) -> None:
    async def unhealthy(pages: Pages) -> Answer:
        pages.reasons = ("No list is in force yet: the API can't be reached.", "The kernel refuses: größer.")
        return await pages.ask("/healthz")

    answer = with_pages(unhealthy, host)
    assert answer.status == 503
    assert answer.body.decode("utf-8").splitlines() == [
        "No list is in force yet: the API can't be reached.",
        "The kernel refuses: größer.",
    ]


def test_health_is_asked_anew_each_time() -> None:
    async def change(pages: Pages) -> list[int]:
        statuses = [(await pages.ask("/healthz")).status]
        pages.reasons = ("trouble",)
        statuses.append((await pages.ask("/healthz")).status)
        pages.reasons = ()
        return [*statuses, (await pages.ask("/healthz")).status]

    assert with_pages(change) == [200, 503, 200]


@pytest.mark.parametrize("host", LOCAL)
def test_the_status_is_json(host: str) -> None:
    answer = asked("/status", host)
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    assert json.loads(answer.body) == STATUS


@pytest.mark.parametrize("path", ["/healthz?verbose=1", "/status?", "/status?a=b?c"])
def test_a_query_changes_nothing(path: str) -> None:
    assert asked(path).status == 200


@pytest.mark.parametrize("path", ["/healthz", "/status"])
def test_an_answer_has_its_length_and_ends_the_connection(path: str) -> None:
    answer = asked(path)
    assert answer.headers["content-length"] == str(len(answer.body))
    assert answer.headers["connection"] == "close"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["server"] == f"SikkerGuard/{VERSION}"


def test_a_page_of_another_site_may_not_read_the_answer() -> None:
    answer = asked("/status")
    assert "access-control-allow-origin" not in answer.headers
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("path", ["/healthz", "/status", "/nothing"])
def test_head_gives_the_headers_of_get_and_no_body(path: str) -> None:
    async def both(pages: Pages) -> tuple[Answer, Answer]:
        return await pages.ask(path), await pages.ask(path, method="HEAD")

    get, head = with_pages(both)
    assert (head.status, head.headers) == (get.status, get.headers)
    assert head.body == b""


@pytest.mark.parametrize(
    "path", ["/", "/nothing", "/healthz/", "/status/../status", "/STATUS", "//status", "/%73tatus", "*"]
)
def test_there_are_no_other_pages(path: str) -> None:
    answer = asked(path)
    assert answer.status == 404
    assert b"/healthz" in answer.body


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH", "get", "BREW"])
def test_nothing_can_be_told_to_the_service(method: str) -> None:
    assert asked("/status", method=method).status == 405


def test_a_request_with_a_body_is_answered_without_reading_it() -> None:
    async def post(pages: Pages) -> bytes:
        return await pages.raw(b"POST /status HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nhello")

    assert with_pages(post).startswith(b"HTTP/1.1 405 ")


def test_an_old_client_is_answered() -> None:
    async def old(pages: Pages) -> bytes:
        return await pages.raw(b"GET /healthz HTTP/1.0\r\nHost: localhost\r\n\r\n")

    answer = with_pages(old)
    assert answer.split(b" ")[1] == b"200"
    assert answer.endswith(b"\r\n\r\nOK\n")


def test_a_request_that_comes_byte_by_byte_is_answered() -> None:
    async def typed(pages: Pages) -> bytes:
        reader, writer = await pages.connect()
        for byte in b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n":
            writer.write(bytes([byte]))
            await writer.drain()
        answer = await _rest(reader)
        writer.close()
        return answer

    assert with_pages(typed).endswith(b"OK\n")


# Who is meant


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.0.0.1:8080", "localhost", "LOCALHOST:1", "[::1]:8080", "[::1]", "127.8.9.10", "localhost:65535"],
)
def test_a_host_header_that_names_this_host_is_accepted(host: str) -> None:
    assert asked("/status", host=host).status == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8080",
        "192.0.2.1",
        "192.0.2.1:8080",
        "[2001:db8::1]:8080",
        "",
        ":",
        ":8080",
        "127.0.0.1.evil.example",
        "127.0.0.1:8080.evil.example",
        "localhost.evil.example",
        "localhost@evil.example",
        "evil.example:127.0.0.1",
        "127.0.0.1,evil.example",
        "127.0.0.1 evil.example",
        "0.0.0.0",
        "[::]",
        "0x7f.1",
        "2130706433",
        "[::ffff:192.0.2.1]",
        "\xb2\xb9",
        "a" * 4000,
    ],
)
@pytest.mark.parametrize("path", ["/status", "/healthz", "/nothing"])
def test_a_host_header_that_names_another_host_is_refused(host: str, path: str) -> None:
    async def ask(pages: Pages) -> bytes:
        return await pages.raw(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode("latin-1"))

    answer = with_pages(ask)
    assert answer.startswith(b"HTTP/1.1 403 ")
    assert b"8774" not in answer
    assert b"OK\n" not in answer


def test_refusal_comes_before_anything_is_told_of_methods() -> None:
    assert asked("/status", method="POST", host="evil.example").status == 403


@pytest.mark.parametrize(
    "request_text",
    [
        "GET /status HTTP/1.1\r\n\r\n",
        "GET /status HTTP/1.0\r\n\r\n",
        "GET /status HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
        "GET /status HTTP/1.1\r\nHost: evil.example\r\nHost: localhost\r\n\r\n",
        "GET /status\r\n\r\n",
        "GET http://evil.example/status HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ],
    ids=["missing", "missing in 1.0", "two, ours first", "two, theirs first", "no version", "absolute address"],
)
def test_a_request_that_does_not_say_whom_it_means_learns_nothing(request_text: str) -> None:
    answer = with_pages(lambda pages: pages.raw(request_text.encode()))
    assert b"8774" not in answer
    assert b" 200 " not in answer.partition(b"\r\n")[0]


# Vandals


@pytest.mark.parametrize(
    "rubbish",
    [
        b"",
        b"\r\n",
        b"\r\n" * 10_000,
        b"\0" * 100_000,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
        b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n",
        b"GET /" + b"a" * 1_000_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /status HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 1_000_000 + b"\r\n\r\n",
        b"GET /status HTTP/1.1\r\nHost: localhost\r\n" + b"X: a\r\n" * 100_000 + b"\r\n",
        b"GET /status HTTP/1.1\r\nHost: localhost\r\nContent-Length: nine\r\n\r\n",
        b"GET /status HTTP/1.1\r\nHost: localhost\r\nno colon\r\n\r\n",
        b"GET /st\xfftus HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ],
    ids=[
        "nothing",
        "line",
        "lines",
        "zeros",
        "tls",
        "version",
        "long target",
        "long header",
        "many headers",
        "length",
        "no header",
        "bytes",
    ],
)
def test_rubbish_ends_its_own_connection_only(rubbish: bytes) -> None:
    async def vandal(pages: Pages) -> bytes:
        reader, writer = await pages.connect()
        with contextlib.suppress(ConnectionError):
            writer.write(rubbish)
            await writer.drain()
            writer.write_eof()
        answer = await _rest(reader)
        writer.close()
        return answer

    answer = with_pages(vandal)
    assert b"8774" not in answer


def test_a_client_that_hangs_up_in_the_middle_harms_nobody() -> None:
    async def hang_up(pages: Pages) -> None:
        for request in (b"", b"GET /sta", b"GET /status HTTP/1.1\r\nHost: localhost\r\n\r\n"):
            for reset in (False, True):
                _, writer = await pages.connect()
                writer.write(request)
                await writer.drain()
                if reset:
                    opened = writer.get_extra_info("socket")
                    opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.close()
                with contextlib.suppress(ConnectionError):
                    await writer.wait_closed()

    with_pages(hang_up)


def test_connections_that_say_nothing_are_closed_in_time_and_give_way_to_others() -> None:
    async def crowd(pages: Pages) -> None:
        began = time.monotonic()
        silent = [await pages.connect() for _ in range(16)]
        slow = [await pages.connect() for _ in range(84)]
        closed: set[int] = set()

        async def watch(index: int, reader: asyncio.StreamReader) -> float:
            async with asyncio.timeout(30):
                with contextlib.suppress(ConnectionError):
                    assert await reader.read() == b""
            closed.add(index)
            return time.monotonic() - began

        async def drip(writer: asyncio.StreamWriter) -> None:
            # Each byte is progress of a kind: what is limited is the whole request, not the pause.
            with contextlib.suppress(ConnectionError):
                for byte in b"GET /status HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 1000:
                    writer.write(bytes([byte]))
                    await writer.drain()
                    await asyncio.sleep(0.5)

        watched = [asyncio.create_task(watch(number, pair[0])) for number, pair in enumerate([*silent, *slow])]
        dripping = [asyncio.create_task(drip(writer)) for _, writer in slow]
        times = await asyncio.gather(*watched)
        for task in dripping:
            task.cancel()
        await asyncio.gather(*dripping, return_exceptions=True)
        for _, writer in [*silent, *slow]:
            writer.close()
        assert len(closed) == 100
        assert max(times) < 15
        # Those that gave way learned it at once, and the first ones did.
        assert sorted(times)[50] < SECONDS
        assert max(times[:16]) < SECONDS

    async def served(pages: Pages) -> None:
        """Idle connections are no outage: the oldest gives way."""
        idle = [await pages.connect() for _ in range(40)]
        for _ in range(20):
            assert (await pages.ask("/status")).status == 200
        for _, writer in idle:
            writer.close()

    with_pages(served)

    with_pages(crowd)


def test_a_crowd_that_asks_properly_one_after_the_other_is_served() -> None:
    async def many(pages: Pages) -> None:
        for _ in range(100):
            assert (await pages.ask("/healthz")).status == 200

    with_pages(many)


def test_as_many_as_ask_at_the_same_moment_are_served() -> None:
    async def many(pages: Pages) -> list[Answer]:
        return await asyncio.gather(*(pages.ask("/status") for _ in range(20)))

    assert [answer.status for answer in with_pages(many)] == [200] * 20


# Beginning and end


@pytest.mark.parametrize("host", LOCAL)
def test_a_taken_port_is_said_and_had_once_it_is_free(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET

    async def freed() -> str:
        pages = Pages(host)
        with socket.create_server((host, pages.port), family=family), pytest.raises(ListenError) as caught:
            await pages.page.open()
        await pages.page.open()
        assert (await pages.ask("/healthz")).status == 200
        await pages.page.close()
        return str(caught.value)

    sentence = asyncio.run(freed())
    assert sentence.startswith(f"{host} port ")
    assert "Address already in use" in sentence
    assert "SIKKER_HEALTH_ADDRESS" in sentence
    assert "Protection goes on" in sentence


def test_an_address_that_this_host_does_not_have_is_said() -> None:
    with pytest.raises(ListenError, match="SIKKER_HEALTH_ADDRESS"):
        asyncio.run(Page("192.0.2.254", 1, Pages(LOCAL[0])).open())


def test_to_open_what_is_open_is_nothing() -> None:
    async def again(pages: Pages) -> None:
        await pages.page.open()

    with_pages(again)


def test_close_ends_open_connections_and_gives_the_port_back() -> None:
    async def stopped() -> None:
        async with running() as pages:
            silent = [await pages.connect() for _ in range(3)]
            # An answered request shows that the server has taken those before it.
            assert (await pages.ask("/healthz")).status == 200
            began = time.monotonic()
            await pages.page.close()
            for reader, writer in silent:
                assert await _rest(reader) == b""
                writer.close()
            assert time.monotonic() - began < 1
            with pytest.raises(ConnectionRefusedError):
                await pages.connect()
            again = Page(pages.host, pages.port, pages)
            await again.open()
            await again.close()

    asyncio.run(stopped())


def test_close_without_anything_is_nothing() -> None:
    asyncio.run(Pages(LOCAL[0]).page.close())
