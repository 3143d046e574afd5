"""The tests' stand-in against its contract: over real sockets, since what it must get right is on the wire."""

from __future__ import annotations

import gzip
import json
import socket
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from sikkerguard.errors import SikkerGuardError
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
    GzipBomb,
    Reset,
    Understate,
)
from tests.standin.server import Standin
from tests.standin.tiers import FREE, Key

if TYPE_CHECKING:
    from collections.abc import Iterator

KEY = "sk_free_demo"
BLACKLIST = "/v1/key/blacklist"
BULK = "/v1/key/bulk-report"
PLAIN: dict[str, Any] = {"trust_env": False, "verify": False}
"""No proxy of the machine's, and no certificates loaded, which takes longer than most of these tests."""

NOON = 20_000 * 86_400 + 43_200
"""Noon UTC of some day, in Unix seconds."""

ENTRIES = (
    Entry("192.0.2.1", 60, 100),
    Entry("192.0.2.2", 97, 50),
    Entry("192.0.2.3", 97, 90),
    Entry("198.51.100.0/24", 80, 10),
    Entry("2001:db8::1", 55, 10),
    Entry("203.0.113.9", 49, 500),
)
DEFAULT_ORDER = ["192.0.2.3", "192.0.2.2", "198.51.100.0/24", "192.0.2.1", "2001:db8::1"]


class Clock:
    """A clock that moves only when told to."""

    def __init__(self, now: float = NOON) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture(name="standin")
def _standin() -> Iterator[Standin]:
    with Standin(entries=ENTRIES) as standin:
        yield standin


def client_of(standin: Standin, key: str = KEY, timeout: float = 10.0) -> httpx.Client:
    headers = {"Authorization": f"Bearer {key}", "User-Agent": "test/1"}
    return httpx.Client(base_url=standin.url, headers=headers, **PLAIN, timeout=timeout)


def get(standin: Standin, path: str = BLACKLIST, key: str = KEY, **parameters: str) -> httpx.Response:
    with client_of(standin, key) as client:
        return client.get(path, params={"plaintext": "true", **parameters})


def post(standin: Standin, path: str, value: object, key: str = KEY) -> httpx.Response:
    with client_of(standin, key) as client:
        return client.post(path, json=value)


def pulled(standin: Standin, **parameters: str) -> list[str]:
    answer = get(standin, **parameters)
    assert answer.status_code == 200, answer.text
    return answer.text.splitlines()


def bulk(count: int, ip: str = "203.0.113.42") -> dict[str, object]:
    return {"reports": [{"ip": ip, "category": "brute_force", "protocol": "ssh"}] * count}


def raw_request(path: str, *, method: str = "GET", body: bytes = b"", headers: str = "") -> bytes:
    length = f"Content-Length: {len(body)}\r\n" if body or method == "POST" else ""
    head = f"{method} {path} HTTP/1.1\r\nHost: test\r\nAuthorization: Bearer {KEY}\r\n{length}{headers}\r\n"
    return head.encode() + body


def connect(standin: Standin) -> socket.socket:
    return socket.create_connection(("127.0.0.1", standin.port), timeout=10)


def read_to_end(connection: socket.socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(65_536), b""))


def exchange(standin: Standin, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """Sends one request and reads until the server closes; the body is all that came behind the head."""
    with connect(standin) as connection:
        connection.sendall(request)
        return parsed(read_to_end(connection))


def parsed(answer: bytes) -> tuple[int, dict[str, str], bytes]:
    head, separator, body = answer.partition(b"\r\n\r\n")
    assert separator, answer
    status, *lines = head.decode("latin-1").split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    return int(status.split(" ")[1]), headers, body


def read_answer(stream: Any) -> tuple[int, dict[str, str], bytes]:
    """One answer from a buffered keep-alive connection, by its Content-Length."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        line = stream.readline()
        assert line, head
        head += line
    status, headers, _ = parsed(head)
    return status, headers, stream.read(int(headers["content-length"]))


# Blacklist


def test_plaintext_is_one_line_an_address_worst_first(standin: Standin) -> None:
    answer = get(standin)
    assert answer.headers["Content-Type"].startswith("text/plain")
    assert answer.text == "".join(f"{ip}\n" for ip in DEFAULT_ORDER)


@pytest.mark.parametrize(
    ("minimum", "expected"),
    [("1", [*DEFAULT_ORDER, "203.0.113.9"]), ("97", DEFAULT_ORDER[:2]), ("98", []), ("50", DEFAULT_ORDER)],
)
def test_the_score_selects(standin: Standin, minimum: str, expected: list[str]) -> None:
    assert pulled(standin, scoreMinimum=minimum) == expected


@pytest.mark.parametrize("parameters", [{"scoreMinimum": "0"}, {"scoreMinimum": "high"}, {"plaintext": "maybe"}])
def test_wrong_parameter_is_refused_and_costs_nothing(standin: Standin, parameters: dict[str, str]) -> None:
    answer = get(standin, **parameters)
    assert answer.status_code == 400
    assert any(name in answer.json()["error"] for name in parameters)
    assert get(standin).headers["X-Daily-Used"] == "1"


def test_list_can_be_replaced_while_it_is_served(standin: Standin) -> None:
    assert pulled(standin) == DEFAULT_ORDER
    standin.replace([Entry("203.0.113.77")])
    assert pulled(standin) == ["203.0.113.77"]
    standin.replace([])
    assert get(standin).content == b""


# Keys, methods, paths


@pytest.mark.parametrize("header", [None, "Bearer", "Bearer sk_free_other", f"Basic {KEY}", KEY, f"Bearer {KEY}x"])
def test_unknown_key_is_401(standin: Standin, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header}
    answer = httpx.get(standin.url + BLACKLIST, headers=headers, **PLAIN)
    assert answer.status_code == 401
    assert answer.json()["error"]
    assert "X-Daily-Limit" not in answer.headers


def test_disabled_key_is_403_and_keys_can_change(standin: Standin) -> None:
    assert get(standin).status_code == 200
    standin.set_keys([Key(KEY, enabled=False), "sk_free_other"])
    assert get(standin).status_code == 403
    assert get(standin, key="sk_free_other").status_code == 200
    standin.set_keys([])
    assert get(standin).status_code == 401


def test_unknown_paths_and_methods(standin: Standin) -> None:
    for path in ("/", "/v1/key/blacklist/", "/v1/key/nothing", "//["):
        status, _, body = exchange(standin, raw_request(path, headers="Connection: close\r\n"))
        assert (status, json.loads(body)) == (404, {"error": "Not found"})
    with client_of(standin) as client:
        wrong = [client.post(BLACKLIST, json={}), client.get(BULK), client.delete("/v1/key/status")]
        head = client.head("/v1/key/status")
        assert [answer.status_code for answer in wrong] == [405, 405, 405]
        assert [answer.headers["Allow"] for answer in wrong] == ["GET", "POST", "GET"]
        assert (head.status_code, head.content) == (405, b"")
        assert client.get("/v1/key/status").status_code == 200


# Quotas


def test_quota_headers_count_down(standin: Standin) -> None:
    first, second = get(standin), get(standin)
    limit = FREE.pulls
    for answer, used in ((first, 1), (second, 2)):
        assert answer.headers["X-Daily-Limit"] == str(limit)
        assert answer.headers["X-Daily-Used"] == str(used)
        assert answer.headers["X-Daily-Remaining"] == str(limit - used)
        assert answer.headers["X-RateLimit-Limit"] == str(limit)
        assert answer.headers["X-RateLimit-Remaining"] == str(limit - used)
        assert int(answer.headers["X-RateLimit-Reset"]) % 86_400 == 0
    report = post(standin, BULK, bulk(3))
    assert report.headers["X-Report-Limit"] == report.headers["X-Daily-Limit"] == "1000"
    assert report.headers["X-Report-Remaining"] == report.headers["X-Daily-Remaining"] == "997"
    assert "X-RateLimit-Limit" not in report.headers


def test_spent_quota_is_429_until_midnight_utc() -> None:
    clock = Clock(NOON + 0.5)
    keys = [Key(name, replace(FREE, pulls=2)) for name in ("sk_free_a", "sk_free_b")]
    with Standin(entries=ENTRIES, keys=keys, clock=clock) as standin:
        assert [get(standin, key="sk_free_a").status_code for _ in range(3)] == [200, 200, 429]
        spent = get(standin, key="sk_free_a")
        assert spent.json()["error"]
        assert spent.headers["Retry-After"] == "43200"
        assert spent.headers["X-RateLimit-Remaining"] == "0"
        assert spent.headers["X-RateLimit-Reset"] == str(NOON + 43_200)
        assert get(standin, key="sk_free_b").status_code == 200
        clock.now = NOON + 43_199.5
        assert get(standin, key="sk_free_a").headers["Retry-After"] == "1"
        clock.now = NOON + 43_200
        assert get(standin, key="sk_free_a").status_code == 200


def test_quota_headers_may_be_absent() -> None:
    keys = [Key(KEY, replace(FREE, pulls=1))]
    with Standin(entries=ENTRIES, keys=keys, quota_headers=False) as standin:
        served, spent = get(standin), get(standin)
    assert (served.status_code, spent.status_code) == (200, 429)
    assert not [name for name in (*served.headers, *spent.headers) if name.lower().startswith("x-")]
    assert int(spent.headers["Retry-After"]) > 0


# Reports


def test_bulk_report_succeeds_in_part(standin: Standin) -> None:
    rows = [
        {"ip": "203.0.113.42", "category": "brute_force", "protocol": "ssh", "comment": "x"},
        {"ip": "203.0.113", "category": "spam"},
        {"ip": "2001:db8::5", "category": "other"},
        {"category": "spam"},
        {"ip": "192.0.2.1"},
        {"ip": "192.0.2.1", "category": "rudeness"},
        {"ip": "192.0.2.1", "category": 17},
        {"ip": "192.0.2.1", "category": True},
        {"ip": "192.0.2.1", "category": "spam", "protocol": "p" * 33},
        {"ip": "192.0.2.1", "category": "spam", "comment": "c" * 1001},
        {"ip": "192.0.2.1", "category": "spam", "protocol": 5},
        {"ip": "192.0.2.0/24", "category": "spam"},
        "192.0.2.1",
        {"ip": "192.0.2.7", "category": "spam", "protocol": "p" * 32, "comment": "c" * 1000},
    ]
    answer = post(standin, BULK, {"reports": rows})
    assert answer.status_code == 200
    value = answer.json()
    assert (value["total"], value["accepted"], value["rejected"]) == (14, 3, 11)
    assert [error["row"] for error in value["errors"]] == [2, *range(4, 14)]
    assert value["errors"][0]["ip"] == "203.0.113"
    assert all(error["error"] for error in value["errors"])
    reports = standin.record.reports
    assert [(report.row.ip, report.row.category, report.row.protocol) for report in reports] == [
        ("203.0.113.42", "brute_force", "ssh"),
        ("2001:db8::5", "other", None),
        ("192.0.2.7", "spam", "p" * 32),
    ]
    assert reports[0].row.fields == ("category", "comment", "ip", "protocol")
    assert (reports[0].key, reports[0].request) == (KEY, standin.record.requests[-1].number)


def test_same_row_twice_counts_twice(standin: Standin) -> None:
    post(standin, BULK, bulk(2))
    post(standin, BULK, bulk(2))
    assert [report.row.ip for report in standin.record.reports] == ["203.0.113.42"] * 4
    assert standin.record.reports_total == 4


def test_report_quota_is_granted_row_by_row() -> None:
    with Standin(keys=[Key(KEY, replace(FREE, reports=5))]) as standin:
        first = post(standin, BULK, bulk(3)).json()
        second = post(standin, BULK, bulk(3))
        third = post(standin, BULK, bulk(1))
        total = standin.record.reports_total
    assert (first["accepted"], second.json()["accepted"], second.json()["rejected"]) == (3, 2, 1)
    assert "quota" in second.json()["errors"][0]["error"]
    assert second.headers["X-Report-Remaining"] == "0"
    assert (third.status_code, total) == (429, 5)
    assert "Retry-After" in third.headers


def test_parallel_reports_never_exceed_the_quota() -> None:
    with Standin(keys=[Key(KEY, replace(FREE, reports=500))]) as standin:
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: post(standin, BULK, bulk(90)), range(8)))
        assert sum(answer.json().get("accepted", 0) for answer in answers) == 500
        assert standin.record.reports_total == len(standin.record.reports) == 500


def test_row_limit() -> None:
    with Standin(keys=[Key(KEY, replace(FREE, reports=100_000))]) as standin:
        most = post(standin, BULK, bulk(10_000))
        over = post(standin, BULK, bulk(10_001))
        assert most.json()["accepted"] == 10_000
        assert (over.status_code, standin.record.reports_total) == (400, 10_000)


def test_size_limit_leaves_the_connection_usable(standin: Standin) -> None:
    large = b'{"reports": [' + b" " * 2_000_000 + b"]}"
    with connect(standin) as connection, connection.makefile("rb") as stream:
        for _ in range(2):
            connection.sendall(raw_request(BULK, method="POST", body=large))
            status, _, body = read_answer(stream)
            assert (status, "larger" in json.loads(body)["error"]) == (413, True)
        connection.sendall(raw_request("/v1/key/status"))
        assert read_answer(stream)[0] == 200


def test_absurd_size_is_refused_unread(standin: Standin) -> None:
    head = f"POST {BULK} HTTP/1.1\r\nAuthorization: Bearer {KEY}\r\nContent-Length: {1 << 40}\r\n\r\n"
    assert exchange(standin, head.encode())[0] == 413


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'"x"', b"{}", b'{"reports": []}', b'{"reports": {}}', b"\xff", b"[" * 100_000]
)
def test_body_that_is_no_report_is_400(standin: Standin, body: bytes) -> None:
    request = raw_request(BULK, method="POST", body=body, headers="Connection: close\r\n")
    status, headers, answer = exchange(standin, request)
    assert (status, headers["x-report-remaining"]) == (400, "1000")
    assert json.loads(answer)["error"]
    assert standin.record.reports == ()


# The wire


def test_gzip_only_for_those_who_accept_it(standin: Standin) -> None:
    standin.replace([Entry(f"192.0.2.{number}") for number in range(100)])
    path = f"{BLACKLIST}?plaintext=true"
    bodies = {}
    for offer in ("", "gzip", "deflate, gzip;q=0.5", "gzip;q=0", "identity, br"):
        headers = f"Accept-Encoding: {offer}\r\nConnection: close\r\n"
        status, answered, body = exchange(standin, raw_request(path, headers=headers))
        assert (status, int(answered["content-length"])) == (200, len(body))
        bodies[offer] = (answered.get("content-encoding"), body)
    plain = bodies[""][1]
    assert len(plain.splitlines()) == 100
    for offer in ("gzip", "deflate, gzip;q=0.5"):
        assert bodies[offer][0] == "gzip"
        assert gzip.decompress(bodies[offer][1]) == plain
    for offer in ("gzip;q=0", "identity, br"):
        assert bodies[offer] == (None, plain)


def test_keep_alive_and_pipelining(standin: Standin) -> None:
    body = json.dumps(bulk(1)).encode()
    requests = raw_request("/v1/key/status") + raw_request(BULK, method="POST", body=body)
    with connect(standin) as connection, connection.makefile("rb") as stream:
        connection.sendall(requests * 3)
        assert [read_answer(stream)[0] for _ in range(6)] == [200] * 6
    assert standin.record.reports_total == 3


def test_old_and_closing_clients_are_hung_up_on(standin: Standin) -> None:
    old = f"GET /v1/key/status HTTP/1.0\r\nAuthorization: Bearer {KEY}\r\n\r\n".encode()
    for request in (old, raw_request("/v1/key/status", headers="Connection: close\r\n")):
        status, headers, body = exchange(standin, request)
        assert (status, headers["connection"], int(headers["content-length"])) == (200, "close", len(body))
        assert headers["server"] == f"sikkerguard-standin/{VERSION}"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ("Content-Length: some\r\n", 400),
        ("Content-Length: -1\r\n", 400),
        ("Transfer-Encoding: chunked\r\n", 411),
        ("Connection: close\r\n", 411),
    ],
)
def test_body_without_a_length_is_refused(standin: Standin, headers: str, status: int) -> None:
    head = f"POST {BULK} HTTP/1.1\r\nHost: test\r\nAuthorization: Bearer {KEY}\r\n{headers}\r\n"
    assert exchange(standin, head.encode())[0] == status


def test_half_a_request_has_no_effect(standin: Standin, capfd: pytest.CaptureFixture[str]) -> None:
    body = json.dumps(bulk(1)).encode()
    with connect(standin) as connection:
        connection.sendall(raw_request(BULK, method="POST", body=body)[:-1])
        connection.shutdown(socket.SHUT_WR)
        assert read_to_end(connection) == b""
    assert (standin.record.reports, standin.record.requests) == ((), ())
    assert capfd.readouterr().err == ""


# The record


def test_record_has_every_request(standin: Standin) -> None:
    get(standin, scoreMinimum="70", plaintext="true")
    get(standin, "/nowhere", key="sk_free_other")
    post(standin, BULK, bulk(1))
    first, second, third = standin.record.requests
    assert (first.method, first.path, first.status) == ("GET", BLACKLIST, 200)
    assert dict(first.query) == {"scoreMinimum": "70", "plaintext": "true"}
    assert first.header("authorization") == f"Bearer {KEY}"
    assert first.header("user-agent") == "test/1"
    assert (second.path, second.status) == ("/nowhere", 404)
    assert (third.method, third.body_bytes > 50, first.fault) == ("POST", True, None)


def test_record_is_bounded_and_its_totals_are_not() -> None:
    with Standin(record_limit=3) as standin:
        for _ in range(5):
            post(standin, BULK, bulk(2))
        assert [request.number for request in standin.record.requests] == [3, 4, 5]
        assert (standin.record.requests_total, standin.record.reports_total) == (5, 10)
        assert [report.request for report in standin.record.reports] == [4, 5, 5]


def test_waiting_for_the_record(standin: Standin) -> None:
    assert not standin.record.wait_for(lambda record: record.reports_total == 2, 0)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(standin.record.wait_for, lambda record: record.reports_total == 2, 10)
        post(standin, BULK, bulk(2))
        assert waiting.result()


# Faults


def test_faults_are_queued_for_one_endpoint(standin: Standin) -> None:
    standin.fault("blacklist", Canned(500), times=2)
    standin.fault("blacklist", Canned(503))
    assert get(standin, "/v1/key/status").status_code == 200
    assert [get(standin).status_code for _ in range(4)] == [500, 500, 503, 200]
    assert [request.fault for request in standin.record.requests] == [None, *["canned"] * 3, None]
    assert get(standin).headers["X-Daily-Used"] == "2"
    standin.fault("status", Canned(500))
    standin.clear_faults()
    assert get(standin, "/v1/key/status").status_code == 200
    with pytest.raises(ValueError, match="nothing"):
        standin.fault("nothing", Canned())


def test_canned_answers(standin: Standin) -> None:
    page = "<html>Log in to the wireless network</html>".encode("utf-16")
    standin.fault("blacklist", Canned(body=page, content_type="text/html"))
    standin.fault("blacklist", Canned(429))
    standin.fault("blacklist", Canned(429, headers=(("Retry-After", "7"),)))
    standin.fault("blacklist", Canned(302, headers=(("Location", "http://192.0.2.1/"),)))
    standin.fault("blacklist", Canned(204))
    standin.fault("blacklist", Canned(599, b""))
    with client_of(standin) as client:
        portal, bare, timed, moved, empty, odd = (client.get(BLACKLIST) for _ in range(6))
        assert client.get(BLACKLIST, params={"plaintext": "true"}).text.splitlines() == DEFAULT_ORDER
    assert (portal.status_code, portal.content) == (200, page)
    assert portal.headers["Content-Type"] == "text/html"
    assert (bare.status_code, "Retry-After" in bare.headers, bool(bare.json()["error"])) == (429, False, True)
    assert timed.headers["Retry-After"] == "7"
    assert (moved.status_code, moved.headers["Location"]) == (302, "http://192.0.2.1/")
    assert (empty.status_code, empty.content) == (204, b"")
    assert (odd.status_code, odd.content) == (599, b"")


def test_cut_off_sends_less_than_it_claims(standin: Standin) -> None:
    whole = "".join(f"{ip}\n" for ip in DEFAULT_ORDER).encode()
    standin.fault("blacklist", CutOff(missing=5), times=2)
    status, headers, body = exchange(standin, raw_request(f"{BLACKLIST}?plaintext=true"))
    assert (status, int(headers["content-length"]), body) == (200, len(whole), whole[:-5])
    with pytest.raises(httpx.RemoteProtocolError, match="without sending complete"):
        get(standin)


def test_understate_sends_more_than_it_claims(standin: Standin) -> None:
    whole = "".join(f"{ip}\n" for ip in DEFAULT_ORDER).encode()
    standin.fault("blacklist", Understate(extra=14), times=2)
    _, headers, body = exchange(standin, raw_request(f"{BLACKLIST}?plaintext=true"))
    assert (int(headers["content-length"]), body) == (len(whole) - 14, whole)
    assert get(standin).content == whole[:-14]


def test_gzip_bomb_is_small_on_the_wire(standin: Standin) -> None:
    standin.fault("blacklist", GzipBomb(unpacked=32 * MEBIBYTE))
    with client_of(standin) as client, client.stream("GET", BLACKLIST) as answer:
        assert answer.headers["Content-Encoding"] == "gzip"
        packed = b"".join(answer.iter_raw())
    unpacker = zlib.decompressobj(16 + zlib.MAX_WBITS)
    unpacked = unpacker.decompress(packed)
    assert (len(unpacked), unpacker.eof) == (32 * MEBIBYTE, True)
    assert set(unpacked.split(b"\n")[:-1]) == {b"198.51.100.7"}
    assert len(packed) * 200 < len(unpacked)


def test_endless_body_ends_with_the_client_or_the_cap(standin: Standin) -> None:
    standin.fault("blacklist", Endless(cap=1 << 50))
    standin.fault("blacklist", Endless(cap=200_000))
    received = 0
    with client_of(standin) as client, client.stream("GET", BLACKLIST) as answer:
        for piece in answer.iter_raw():
            received += len(piece)
            if received > 8 * MEBIBYTE:
                break
    assert received > 8 * MEBIBYTE
    with pytest.raises(httpx.RemoteProtocolError):
        get(standin)
    assert pulled(standin) == DEFAULT_ORDER


def test_reset_before_and_within_the_answer(standin: Standin) -> None:
    standin.fault("blacklist", Reset())
    standin.fault("blacklist", Reset(after=10))
    standin.fault("bulk-report", Reset())
    with connect(standin) as connection:
        connection.sendall(raw_request(BLACKLIST))
        with pytest.raises(ConnectionResetError):
            read_to_end(connection)
    received: list[bytes] = []
    with connect(standin) as connection:
        connection.sendall(raw_request(f"{BLACKLIST}?plaintext=true"))
        with pytest.raises(ConnectionResetError):
            received.extend(iter(lambda: connection.recv(65_536), b""))
    # A RST may overtake what was sent before it; what did arrive is the start of the right answer.
    head, _, body = b"".join(received).partition(b"\r\n\r\n")
    assert head[:15] in (b"", b"HTTP/1.1 200 OK")
    assert b"192.0.2.3\n".startswith(body)
    with pytest.raises(httpx.TransportError):
        post(standin, BULK, bulk(1))
    assert standin.record.reports == ()
    assert [request.status for request in standin.record.requests] == [None, 200, None]


def test_drip_comes_in_pieces(standin: Standin) -> None:
    standin.replace([Entry("192.0.2.1")])
    standin.fault("blacklist", Drip(interval=0.02, step=2))
    began = time.monotonic()
    with client_of(standin) as client, client.stream("GET", BLACKLIST, params={"plaintext": "true"}) as answer:
        pieces = list(answer.iter_raw())
    assert b"".join(pieces) == b"192.0.2.1\n"
    assert len(pieces) > 1
    assert time.monotonic() - began >= 4 * 0.02


def test_delay_lets_the_request_take_effect_first(standin: Standin) -> None:
    standin.fault("bulk-report", Delay(seconds=600))
    standin.fault("bulk-report", Delay(seconds=0.1))
    with client_of(standin, timeout=0.2) as client, pytest.raises(httpx.ReadTimeout):
        client.post(BULK, json=bulk(1))
    assert standin.record.reports_total == 1
    began = time.monotonic()
    assert post(standin, BULK, bulk(1)).json()["accepted"] == 1
    assert time.monotonic() - began >= 0.1


@pytest.mark.parametrize(("accepted", "expected"), [(True, 2), (False, 0)])
def test_dropped_answer_to_a_report(standin: Standin, accepted: bool, expected: int) -> None:
    standin.fault("bulk-report", Drop(accepted=accepted))
    with pytest.raises(httpx.RemoteProtocolError, match="without sending"):
        post(standin, BULK, bulk(2))
    assert standin.record.reports_total == expected
    assert standin.record.requests[0].status is None
    assert post(standin, BULK, bulk(1)).headers["X-Report-Remaining"] == str(1000 - expected - 1)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Canned(100),
        lambda: Canned(headers=(("X-A", "b\r\nX-C: d"),)),
        lambda: CutOff(0),
        lambda: Understate(0),
        lambda: GzipBomb(0),
        lambda: Endless(0),
        lambda: Reset(-1),
        lambda: Drip(-1),
        lambda: Drip(1, 0),
        lambda: Delay(float("nan")),
    ],
)
def test_impossible_fault_is_refused(make: Any) -> None:
    with pytest.raises(ValueError, match=r"must (be|not be)"):
        make()


# Starting and stopping


def test_taken_port_is_one_sentence(standin: Standin) -> None:
    with pytest.raises(SikkerGuardError, match=rf"^The stand-in can't listen on .* {standin.port}: .* in use\.$"):
        Standin(port=standin.port).start()


@pytest.mark.parametrize(("address", "port"), [("192.0.2.1", 0), ("127.0.0.1", 70_000)])
def test_impossible_address_is_one_sentence(address: str, port: int) -> None:
    with pytest.raises(SikkerGuardError, match=rf"^The stand-in can't listen on {address} port {port}: .*\.$"):
        Standin(address, port).start()


def test_stopped_standin_is_gone_and_comes_back_on_its_port() -> None:
    standin = Standin(entries=ENTRIES)
    with standin:
        url, port = standin.url, standin.port
        assert port > 0
        post(standin, BULK, bulk(1))
        with pytest.raises(RuntimeError):
            standin.start()
    with pytest.raises(httpx.ConnectError):
        get(standin)
    with standin:
        assert (standin.url, standin.port) == (url, port)
        assert pulled(standin) == DEFAULT_ORDER
        assert standin.record.reports_total == 1
    standin.stop()


def test_stop_ends_idle_and_busy_connections(capfd: pytest.CaptureFixture[str]) -> None:
    standin = Standin(entries=ENTRIES)
    standin.start()
    standin.fault("status", Delay(600))
    standin.fault("bulk-report", Drip(600))
    standin.fault("blacklist", Endless(1 << 50))
    report = raw_request(BULK, method="POST", body=json.dumps(bulk(1)).encode())
    # The last one idles after its answer: that it has one shows that it is past the listening queue.
    requests = (raw_request("/v1/key/status"), report, raw_request(BLACKLIST), raw_request("/nowhere"))
    connections = [connect(standin) for _ in requests]
    for connection, request in zip(connections, requests, strict=True):
        connection.sendall(request)
    assert standin.record.wait_for(lambda record: record.requests_total == 4, 10)
    began = time.monotonic()
    standin.stop()
    assert time.monotonic() - began < 3
    for connection in connections:
        with connection:
            connection.settimeout(5)
            read_to_end(connection)
    assert capfd.readouterr().err == ""
    standin.stop()


def test_listening_on_ipv6() -> None:
    standin = Standin("::1", entries=ENTRIES)
    if "00000000000000000000000000000001" in _own_ipv6():
        with standin:
            assert standin.url == f"http://[::1]:{standin.port}"
            assert pulled(standin) == DEFAULT_ORDER
            assert standin.record.requests[0].client == "::1"
    else:
        with pytest.raises(SikkerGuardError, match="::1"):
            standin.start()


def _own_ipv6() -> str:
    path = Path("/proc/net/if_inet6")
    return path.read_text(encoding="ascii") if path.exists() else ""


def test_wildcard_address_shows_as_loopback() -> None:
    with Standin("0.0.0.0", entries=ENTRIES) as standin:
        assert standin.url == f"http://127.0.0.1:{standin.port}"
        assert pulled(standin) == DEFAULT_ORDER


def test_many_clients_at_once() -> None:
    heard: list[int | None] = []
    with Standin(entries=ENTRIES, on_answer=lambda request: heard.append(request.status)) as standin:
        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(lambda _: pulled(standin), range(80)))
        assert answers == [DEFAULT_ORDER] * 80
        assert get(standin).headers["X-Daily-Used"] == "81"
        assert sorted(request.number for request in standin.record.requests) == list(range(1, 82))
    assert heard == [200] * 81
