"""The connector to SikkerAPI against servers on loopback: who proves to be it, and where requests go and don't go."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sikkerguard.core.lists.allowlist import API, PROXY
from sikkerguard.edges.sikkerapi.blacklist import Blacklist
from sikkerguard.edges.sikkerapi.client import ApiClient
from sikkerguard.edges.sikkerapi.connector import PinnedConnector
from sikkerguard.edges.sikkerapi.reports import BulkReportClient
from sikkerguard.errors import FetchError
from tests.fronts import Authority, Front, ProxyServer
from tests.standin.entries import Entry
from tests.standin.faults import Canned, Endless, Fault
from tests.standin.server import DEMO_KEY, Standin

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

NAME, LISTED = "localhost", "203.0.113.7"
GENUINE, LIAR, ALSO_GENUINE = "127.0.0.2", "127.0.0.3", "127.0.0.4"
NOBODY = "::1"  # nobody listens there: the servers below are of IPv4 alone
REPORT = b'{"reports": [{"ip": "203.0.113.9", "category": "brute_force"}]}'


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(name="standin")
def _standin() -> Iterator[Standin]:
    with Standin(entries=[Entry(LISTED)]) as standin:
        yield standin


@pytest.fixture(params=["http", "https"])
def scheme(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture
def front(standin: Standin, authority: Authority, scheme: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Front]:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    tls = (authority.context(NAME), authority.context("other.example.net")) if scheme == "https" else None
    target = ("127.0.0.1", standin.port)
    with Front(here, target, {GENUINE, ALSO_GENUINE}, address="0.0.0.0", tls=tls) as made:
        yield made


@pytest.fixture
def connector(front: Front, scheme: str) -> PinnedConnector:
    return PinnedConnector(f"{scheme}://{NAME}:{front.port}", {})


def here(action: Callable[[], object]) -> object:
    return action()


def proved(connector: PinnedConnector, address: str) -> str:
    return asyncio.run(connector.prove(address))


def pulled(connector: PinnedConnector, url: str) -> bytes:
    client = ApiClient(url, DEMO_KEY, connector=connector)
    return asyncio.run(whole(Blacklist(client, score_min=50, interval=3600.0)))


async def whole(feed: Blacklist) -> bytes:
    return b"".join([piece async for piece in feed.stream()])


# Names


def test_a_name_stands_for_each_of_its_addresses_once() -> None:
    found = asyncio.run(PinnedConnector("http://localhost", {}).resolve())
    assert "127.0.0.1" in found
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("host", ["api.invalid", "api..example.net", f"{'a' * 64}.example.net"])
def test_a_name_that_does_not_resolve_stands_for_nothing(host: str) -> None:
    assert asyncio.run(PinnedConnector(f"http://{host}", {}).resolve()) == ()


def test_what_the_resolver_gives_is_taken_if_it_is_an_address() -> None:
    def look_up(host: str) -> Iterable[str]:
        return ["192.0.2.1", "::ffff:192.0.2.2", "2001:db8::1", "192.0.2.1", "nonsense", "192.0.2.0/24"]

    connector = PinnedConnector("http://api.example.net", {}, look_up=look_up)
    assert asyncio.run(connector.resolve()) == ("192.0.2.1", "2001:db8::1")


def test_a_look_up_that_hangs_holds_up_nothing_and_is_not_joined_by_others() -> None:
    asked, go_on = [], threading.Event()

    def look_up(host: str) -> Iterable[str]:
        asked.append(host)
        go_on.wait(20)
        return ["192.0.2.1"]

    connector = PinnedConnector("http://api.example.net", {}, look_up=look_up, resolve_seconds=0.05)
    for _ in range(3):
        # Each in a loop of its own: that one ended does not disturb who still looks.
        assert asyncio.run(connector.resolve()) == ()
    assert asked == ["api.example.net"]

    async def at_last() -> tuple[str, ...]:
        while not (found := await connector.resolve()):
            pass
        return found

    go_on.set()
    assert asyncio.run(at_last()) == ("192.0.2.1",)
    asyncio.run(connector.resolve())


# Proof


def test_who_it_is_proves_it_and_who_it_is_not_does_not(connector: PinnedConnector, front: Front, scheme: str) -> None:
    assert proved(connector, GENUINE) == ""
    lie = "its certificate is not SikkerAPI's: Hostname mismatch" if scheme == "https" else "it answers 200, not as"
    assert proved(connector, LIAR).startswith(lie)
    assert proved(connector, NOBODY)
    assert front.tried == {GENUINE: 1, LIAR: 1}


def test_an_authority_that_nobody_knows_vouches_for_nobody(
    standin: Standin, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    tls = authority.context(NAME), authority.context(NAME)
    with Front(here, ("127.0.0.1", standin.port), {GENUINE}, address="0.0.0.0", tls=tls) as front:
        connector = PinnedConnector(f"https://{NAME}:{front.port}", {})
        assert "its certificate is not SikkerAPI's: " in proved(connector, GENUINE)


def status(code: int, body: str) -> Canned:
    return Canned(code, body=body.encode(), content_type="application/json")


@pytest.mark.parametrize(
    ("fault", "genuine"),
    [
        (status(200, '{"tier": {"id": "free"}, "quotas": {}}'), True),
        (status(200, '{"quotas": {"reports": {}}}'), True),
        (status(401, '{"error": "Invalid API key"}'), True),
        (status(403, '{"error": "expired"}'), True),
        (status(429, '{"error": "Daily quota exceeded"}'), True),
        (status(200, '{"status": "ok"}'), False),
        (status(200, '{"tier": "free", "quotas": 7}'), False),
        (status(200, "[]"), False),
        (status(200, ""), False),
        (status(200, "[" * 60_000), False),
        (status(401, "Unauthorized"), False),
        (status(401, '{"error": {}}'), False),
        (status(404, '{"error": "Not found"}'), False),
        (status(503, '{"error": "later"}'), False),
        (Canned(301, headers=(("Location", "https://127.0.0.1/"),)), False),
        (Endless(), False),
    ],
)
def test_by_http_it_is_who_answers_as_it_does(standin: Standin, fault: Fault, genuine: bool) -> None:
    connector = PinnedConnector(f"http://{NAME}:{standin.port}", {})
    standin.fault("status", fault)
    began = time.monotonic()
    assert (proved(connector, "127.0.0.1") == "") is genuine
    assert time.monotonic() - began < 5
    (request,) = standin.record.requests
    assert (request.method, request.path) == ("GET", "/v1/key/status")
    assert request.header("Host") == f"{NAME}:{standin.port}"
    # A stranger is not shown the key.
    assert request.header("Authorization") == ""


def test_nobody_who_does_not_speak_http_proves_anything(standin: Standin) -> None:
    with Front(here, ("127.0.0.1", standin.port), set(), address="0.0.0.0") as front:
        connector = PinnedConnector(f"https://{NAME}:{front.port}", {})
        assert proved(connector, GENUINE)


# Requests


def test_requests_go_to_the_addresses_in_use_alone(
    connector: PinnedConnector, front: Front, standin: Standin, scheme: str
) -> None:
    url = f"{scheme}://{NAME}:{front.port}"
    connector.use([GENUINE])
    assert pulled(connector, url) == f"{LISTED}\n".encode()
    answer = asyncio.run(BulkReportClient(ApiClient(url, DEMO_KEY, connector=connector)).report(REPORT, lambda: None))
    assert answer.accepted == 1
    assert front.tried == {GENUINE: 2}
    assert {request.header("Host") for request in standin.record.requests} == {f"{NAME}:{front.port}"}
    assert not connector.broken


def test_where_one_can_not_be_connected_to_the_next_one_is_and_a_report_goes_out_once(
    connector: PinnedConnector, front: Front, standin: Standin, scheme: str
) -> None:
    url = f"{scheme}://{NAME}:{front.port}"
    connector.use([NOBODY, ALSO_GENUINE, GENUINE])
    answer = asyncio.run(BulkReportClient(ApiClient(url, DEMO_KEY, connector=connector)).report(REPORT, lambda: None))
    assert answer.accepted == 1
    assert [record.row.ip for record in standin.record.reports] == ["203.0.113.9"]
    assert front.tried == {ALSO_GENUINE: 1}
    # The next request has them prove themselves first.
    assert connector.broken
    connector.use([ALSO_GENUINE])
    assert not connector.broken


@pytest.mark.parametrize("scheme", ["https"], indirect=True)
def test_an_address_in_use_that_is_another_s_now_does_not_get_the_key(
    connector: PinnedConnector, front: Front, standin: Standin
) -> None:
    connector.use([LIAR])
    with pytest.raises(FetchError, match="can't be reached"):
        pulled(connector, f"https://{NAME}:{front.port}")
    assert front.tried == {LIAR: 1}
    assert not front.asked
    assert connector.broken
    connector.use([LIAR, GENUINE])
    assert pulled(connector, f"https://{NAME}:{front.port}")
    assert front.asked == {GENUINE: 1}


def test_what_was_sent_is_not_sent_again_elsewhere(standin: Standin) -> None:
    with Front(here, ("127.0.0.1", standin.port), set(), address="0.0.0.0") as front:
        url = f"http://{NAME}:{front.port}"
        connector = PinnedConnector(url, {})
        connector.use([LIAR, GENUINE])
        with pytest.raises(FetchError):
            asyncio.run(BulkReportClient(ApiClient(url, DEMO_KEY, connector=connector)).report(REPORT, lambda: None))
    assert front.tried == {LIAR: 1}


# A proxy


@pytest.fixture
def proxy(front: Front, standin: Standin, scheme: str) -> Iterator[ProxyServer]:
    """Whatever it is asked for, it has it from a genuine server."""
    target = (GENUINE, front.port) if scheme == "https" else ("127.0.0.1", standin.port)
    with ProxyServer(here, target, address="127.0.0.1") as made:
        yield made


@pytest.mark.parametrize(
    "used", [[], ["127.0.0.1"], [NOBODY, "127.0.0.1"]], ids=["by name", "by address", "by another"]
)
def test_requests_go_through_the_proxy_that_the_environment_names(
    proxy: ProxyServer, standin: Standin, scheme: str, used: list[str]
) -> None:
    environment = {f"{scheme.upper()}_PROXY": f"http://someone:s%40cret@127.0.0.1:{proxy.port}"}
    # The certificate is for the name that is asked for, whatever it stands for here.
    url = f"{scheme}://{NAME}:4433"
    connector = PinnedConnector(url, environment)
    assert (connector.way.reason, connector.way.host, connector.way.port) == (PROXY, "127.0.0.1", proxy.port)
    connector.use(used)
    assert pulled(connector, url) == f"{LISTED}\n".encode()
    asked = f"CONNECT {NAME}:4433" if scheme == "https" else f"GET http://{NAME}:4433/v1/key/blacklist?"
    assert proxy.asked[0].startswith(asked)
    assert "proxy-authorization: basic c29tzw9uztpzqgnyzxq=" in proxy.headers[0].lower()
    assert (DEMO_KEY in proxy.headers[0]) == (scheme == "http")
    assert standin.record.requests[-1].header("Authorization") == f"Bearer {DEMO_KEY}"
    assert proved(connector, "127.0.0.1") == ""
    assert proved(connector, NOBODY)


def test_what_the_environment_names_otherwise_is_no_proxy(
    connector: PinnedConnector, front: Front, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The connector was made without: neither the client nor the library looks at the environment for itself.
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "::/0,[::1")
    connector.use([GENUINE])
    assert pulled(connector, f"{scheme}://{NAME}:{front.port}")
    assert connector.way.reason == API


# httpx 0.28 refuses to build a client for some of these, where it is let to look at the environment.
NO_PROXIES = [
    "fd00::/8,[::1],::1/128,10.0.0.0/8,*.example",
    "localhost,10.0.0.0/8,::1/128,fe80::/10,[fd00::]/8",
    "[::1]:8080,[fd00::/8]:443",
    "::/0",
    "[::1",
    "::1]",
    "[]",
    "[fe80::1%25eth0],fe80::1%eth0",
    "::ffff:0:0/96",
    "1::/129,:,[:],http://[::1]/",
    "*.*,%,\u00e9.example,\x01",
]


@pytest.mark.parametrize("no_proxy", NO_PROXIES)
@pytest.mark.parametrize("excepted", [False, True])
@pytest.mark.parametrize("scheme", ["http"], indirect=True)
def test_whatever_no_proxy_says_a_client_is_built_and_asks_where_it_says(
    no_proxy: str, excepted: bool, proxy: ProxyServer, standin: Standin, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
    monkeypatch.setenv("NO_PROXY", no_proxy + ",127.0.0.1" * excepted)
    monkeypatch.setenv("no_proxy", no_proxy + ",127.0.0.1" * excepted)
    connector = PinnedConnector(standin.url)
    assert pulled(connector, standin.url) == f"{LISTED}\n".encode()
    report = BulkReportClient(ApiClient(standin.url, DEMO_KEY, connector=connector)).report(REPORT, lambda: None)
    assert asyncio.run(report).accepted == 1
    assert proved(connector, "127.0.0.1") == ""
    assert bool(proxy.asked) is not excepted


@pytest.mark.parametrize("no_proxy", ["::1", "[::1]", "::1/128", "fd00::/8,[::1],10.0.0.0/8", "::/0", "*"])
@pytest.mark.parametrize("excepted", [False, True])
def test_an_api_by_its_address_of_ipv6_is_asked_straight_where_no_proxy_covers_it(
    no_proxy: str, excepted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n203.0.113.7\n")
        writer.close()

    async def asking() -> None:
        server = await asyncio.start_server(answer, "::1", 0)
        async with server:
            url = f"http://[::1]:{server.sockets[0].getsockname()[1]}"
            client = ApiClient(url, DEMO_KEY, connector=PinnedConnector(url))
            assert await whole(Blacklist(client, score_min=50, interval=3600.0)) == b"203.0.113.7\n"

    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    for name in ("HTTP_PROXY", "http_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", no_proxy if excepted else "fd00::/8,[::2],10.0.0.0/8")
    if excepted:
        asyncio.run(asking())
    else:
        with pytest.raises(FetchError, match="can't be reached"):
            asyncio.run(asking())
    assert len(asked) == excepted


def test_a_proxy_that_needs_what_is_not_installed_is_told_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "socksio", None)
    connector = PinnedConnector("http://api.example.net", {"ALL_PROXY": "socks5://someone:secret@192.0.2.1"})
    with pytest.raises(FetchError, match=r"the environment's proxy can't be used \(.*socksio.*\)") as caught:
        pulled(connector, "http://api.example.net")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("scheme", ["http"], indirect=True)
def test_an_error_of_a_proxy_does_not_tell_its_password(proxy: ProxyServer) -> None:
    environment = {"ALL_PROXY": f"http://someone:secret@127.0.0.1:{proxy.port}"}
    proxy.__exit__()
    connector = PinnedConnector("http://api.example.net", environment)
    with pytest.raises(FetchError, match="can't be reached") as caught:
        pulled(connector, "http://api.example.net")
    assert "secret" not in str(caught.value)
    assert "secret" not in proved(connector, "127.0.0.1")


BEGINNINGS = [b"", b"HTTP/1.1 401 No\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"]


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200), st.sampled_from(BEGINNINGS))
def test_whatever_a_server_answers_it_proves_nothing_and_ends_nothing(rubbish: bytes, begin: bytes) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1 << 16)
        writer.write(begin + rubbish)
        writer.close()

    async def asked() -> list[str]:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            return [
                await PinnedConnector(f"{scheme}://{NAME}:{port}", {}).prove("127.0.0.1")
                for scheme in ("http", "https")
            ]

    assert all(asyncio.run(asked()))


def test_what_nobody_thought_of_is_no_proof_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    class Odd(PinnedConnector):
        async def _answers(self, address: str) -> str:
            raise KeyError(address)

    assert proved(Odd("http://api.example.net", {}), "192.0.2.1") == "KeyError"
    assert "error that was not expected" in caplog.text
    assert caplog.records[0].exc_info
