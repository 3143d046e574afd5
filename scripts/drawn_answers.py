"""Answers of a server that means no good, drawn from a source of chance: what is right but for a few bytes, and what is
wrong in each of the ways that a part of an answer can be."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from random import Random

SENT = tuple(f"203.0.113.{number}" for number in range(4))
LIST = "".join(f"{address}\n" for address in (*SENT, "198.51.100.0/24", "2001:db8::1", "2001:db8:7::/48")).encode()
REPORTED = json.dumps({"total": 4, "accepted": 4, "rejected": 0}).encode()
STATUS = json.dumps({"tier": {"id": "free"}, "quotas": {"reports": {"limit": 1000}}}).encode()

# How a connection ends once all is sent: closed, broken, or silent until the time is up.
CLOSED, BROKEN, SILENT = "closed", "broken", "silent"

_REDIRECTS = (301, 302, 303, 307, 308)
_CODES = (204, 206, 304, 400, 401, 403, 404, 407, 408, 413, 422, 425, 429, 429, 500, 501, 502, 503, 503, 504, 521)
_ODD_CODES = (100, 101, 103, 199, 299, 599, 0, 99, 600, 999, 1000, 99999)
_VERSIONS = (
    b"HTTP/1.1",
    b"HTTP/1.1",
    b"HTTP/1.1",
    b"HTTP/1.0",
    b"HTTP/2",
    b"HTTP/0.9",
    b"HTTP/1.",
    b"http/1.1",
    b"ICY",
)
# What acts on a terminal, or deceives its reader; letters of other scripts as UTF-8 and as Latin-1.
_FOREIGN = (
    b"\x1b[2K\x1b[1A",
    b"\x1b]0;title\x07",
    b"\x9b31m",
    b"\x00",
    b"\x07\x08\x7f",
    b"\r",
    b"\n",
    b"\r\n",
    b"\t\x0b\x0c",
    "\u202eevil\u2066".encode(),
    "\u0440\u0430ypal".encode(),
    "\ud7ff\u2028\x85".encode(),
    b"\xff\xfe\xf0\x9f",
    b"A" * 3000,
    b"%s%n%(x)s{0}",
    b"<3>",
)
_NUMBERS = (
    *(b"0", b"1", b"-1", b"+7", b"3", b"12345", b"1.5", b"1e9", b" 7 ", b"0x10", b"1_000", b"9" * 5000, b""),
    *(b"18446744073709551616", b"NaN", b"inf", b"\xb2", "\u0663".encode(), b"5, 5", b"5, 6", b"1;2", b"null"),
)
_DATES = (
    *(b"Sun, 06 Nov 1994 08:49:37 GMT", b"Sunday, 06-Nov-94 08:49:37 GMT", b"Sun Nov  6 08:49:37 1994"),
    *(b"Fri, 31 Dec 9999 23:59:59 GMT", b"Mon, 01 Jan 0001 00:00:00 +2359", b"Thu, 01 Jan 1970 00:00:00 -0000"),
    *(b"Sun, 06 Nov 1994 08:49:37 +99999999999999", b"Sun, 06 Nov", b",", b", ,", b"0 0 0 0", b"06 Nov 94 08.49.37"),
    *(b"Sun, 99 Nov 1994 99:99:99 GMT", b"Sun, 06 Nov 99999999999 08:49:37 GMT", b"Mon, : : : GMT"),
)
_SCHEMES = (b"", b"http:", b"https:", b"HTTP:", b"ftp:", b"file:", b"javascript:", b"http", b"://", b"1:", b"\xc3\xa9:")
_USERS = (b"", b"", b"", b"user@", b"user:secret@", b"%00@", b"a@b@", b"[@", b"]@", b"x[", b":@")
_HOSTS = (
    *(b"api.example.net", b"API.example.net.", b"192.0.2.1", b"[2001:db8::1]", b"[::1", b"::1]", b"[", b"]", b"[]"),
    *(b"[fe80::1%25eth0]", b"[v1.x]", b"[vz.x]", b"[192.0.2.1]", b"[::ffff:192.0.2.1]", b"[1:2]", b"[x]y", b"x[::1]"),
    *("\u0440\u0430ypal.example".encode(), b"xn--", b"xn--a", b"xn--ypal-43d9g.example", b"\x80", b"%41%00", b"a..b"),
    *("\u2100.example".encode(), "\uff0f.example".encode(), b"a" * 64 + b".example", b"a." * 200, b"-", b"", b"*"),
    *(b"0x7f.1", b"127.1", b"999.1.1.1", b"a b", b"a\\b", b"a#b", b"a?b", b"\x00", b"\x1b]0;x\x07", b"localhost"),
)
_PORTS = (b"", b"", b"", b":80", b":443", b":0", b":-1", b":65536", b":99999999999", b":x", b":", b":\xb2", b":8 0")
_PATHS = (
    *(b"", b"/", b"/v1/key/blacklist", b"/v1/key/blacklist?plaintext=true", b"?", b"#", b"//", b"///", b"/../..", b"."),
    *(
        b"/%",
        b"/%zz",
        b"/%00",
        b"/\x1b[2K",
        "/\u0440".encode(),
        b"/ a",
        b"/" + b"x" * 9000,
        b"?" + b"&" * 2000,
        b"/[",
        b";",
    ),
    *(b"?\x01", b"/?x=\xff", b"/#\x80", b"\\", b"/a:b", b"?[::1", b"@", b"/@x", b"*"),
)
_CODINGS = (b"gzip", b"GZIP", b"x-gzip", b"identity", b"br", b"deflate", b"zstd", b"gzip, gzip", b"gzip;q=1", b"")
_TRANSFERS = (
    b"chunked",
    b"Chunked",
    b"gzip, chunked",
    b"chunked, chunked",
    b"identity",
    b"xchunked",
    b"\x0bchunked",
    b"",
)
_COOKIES = (
    *(b"a=b", b"=", b";", b"a", b"a=b; Domain=.example; Path=/", b"a=b; Expires=Sun, 06 Nov", b"a=b; Max-Age=x"),
    *(
        b"a=b; expires=" + b"9" * 200,
        b"a=\x1b[2K",
        b"a=b; Version=x; Port=y",
        b"a=b; Expires=Mon, 01-Jan-0000 00:00:00",
    ),
)
_NAMES = (
    *(b"Location", b"Retry-After", b"Content-Encoding", b"Content-Length", b"Transfer-Encoding", b"X-RateLimit-Limit"),
    *(b"X-RateLimit-Remaining", b"X-RateLimit-Reset", b"X-Daily-Limit", b"X-Daily-Remaining", b"X-Report-Limit"),
    *(b"X-Report-Remaining", b"Set-Cookie", b"Content-Type", b"Connection", b"Upgrade", b"Date", b"WWW-Authenticate"),
    *(b"Proxy-Authenticate", b"Trailer", b"Content-Range", b"X", b" X", b"X ", b"\xff", b""),
)
_INSERTED = (
    *_FOREIGN,
    b"[",
    b"]",
    b":",
    b"//",
    b"%",
    b"@",
    b"-",
    b"0",
    b" ",
    b"\x00" * 9,
    b"{",
    b'"',
    b"\\ud800",
    b"]" * 9,
)


@dataclass(frozen=True, slots=True)
class Answer:
    """What comes in one connection: pieces as they arrive, and how it ends."""

    pieces: tuple[bytes, ...]
    end: str


def draw(chance: Random, kind: str, origin: bytes) -> Answer:
    """One answer to a request of this kind, `pull`, `report` or `prove`; `origin` is the host, with a port or without,
    whose redirects to itself may be followed."""
    body = _body(chance, kind)
    framed = body
    headers: list[tuple[bytes, bytes]] = []
    if chance.random() < 0.15:
        body = _packed(chance, body)
        headers += [(b"Content-Encoding", b"gzip")] * (chance.random() < 0.95)
    framing = chance.random()
    if framing < 0.45:
        headers.append((b"Content-Length", b"%d" % max(0, len(body) + _off(chance))))
        framed = body
    elif framing < 0.75:
        headers.append((b"Transfer-Encoding", b"chunked"))
        framed = _chunked(chance, body)
    else:
        framed = body
    code = _code(chance)
    headers += [_header(chance, origin) for _ in range(chance.choice((0, 0, 1, 1, 2, 5)))]
    if code in _REDIRECTS and chance.random() < 0.9:
        headers.append((b"Location", _location(chance, origin)))
    if chance.random() < 0.02:
        headers += [(b"X%d" % number, b"y" * chance.randrange(200)) for number in range(chance.randrange(300))]
    chance.shuffle(headers)
    end_of_line = b"\n" if chance.random() < 0.02 else b"\r\n"
    raw = b"".join(
        (
            *(b"HTTP/1.1 %d Early\r\n\r\n" % chance.choice((100, 102, 103)) for _ in range(_early(chance))),
            _status_line(chance, code) + end_of_line,
            *(name + b": " + value + end_of_line for name, value in headers),
            end_of_line,
            framed,
        )
    )
    if chance.random() < 0.35:
        raw = mutated(chance, raw)
    if chance.random() < 0.05:
        raw = raw[: chance.randrange(len(raw) + 1)]
    return Answer(_pieces(chance, raw), chance.choices((CLOSED, BROKEN, SILENT), (8, 1, 1))[0])


def mutated(chance: Random, raw: bytes) -> bytes:
    """With a few bytes changed, put in, taken out or doubled."""
    changed = bytearray(raw)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
        # Most of what is read of an answer stands at its beginning.
        reach = len(changed) if chance.random() < 0.4 else min(len(changed), 300)
        at = chance.randrange(reach + 1)
        kind = chance.randrange(5)
        if kind == 0 and at < len(changed):
            changed[at] = chance.randrange(256)
        elif kind == 1:
            changed[at:at] = chance.choice(_INSERTED)
        elif kind == 2:
            del changed[at : at + chance.choice((1, 2, 5, 20))]
        elif kind == 3:
            changed[at:at] = changed[at : at + chance.randrange(40)]
        elif at < len(changed):
            changed[at] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _early(chance: Random) -> int:
    return chance.choice((1, 1, 2, 40)) if chance.random() < 0.03 else 0


def _code(chance: Random) -> int:
    return chance.choice(chance.choices(((200,), _REDIRECTS, _CODES, _ODD_CODES), (5, 2, 2, 1))[0])


def _status_line(chance: Random, code: int) -> bytes:
    reason = chance.choice((b"", b" ", b" OK", b" OK", b" Moved", b" Too Many Requests"))
    if chance.random() < 0.2:
        reason = b" " + _around(chance, chance.choice(_FOREIGN))
    version = b"HTTP/1.1" if chance.random() < 0.9 else chance.choice(_VERSIONS)
    return version + b" %d" % code + reason


def _header(chance: Random, origin: bytes) -> tuple[bytes, bytes]:
    name = chance.choice(_NAMES)
    value = _value(chance, name, origin)
    if chance.random() < 0.15:
        value = _around(chance, value)
    return name, value


def _value(chance: Random, name: bytes, origin: bytes) -> bytes:
    if chance.random() < 0.05:
        return chance.choice(_FOREIGN)
    if name == b"Location":
        return _location(chance, origin)
    if name == b"Retry-After":
        return chance.choice(_NUMBERS if chance.random() < 0.5 else _DATES)
    if name == b"Date":
        return chance.choice(_DATES)
    by_name: dict[bytes, Sequence[bytes]] = {
        b"Content-Encoding": _CODINGS,
        b"Transfer-Encoding": _TRANSFERS,
        b"Set-Cookie": _COOKIES,
        b"Connection": (b"close", b"keep-alive", b"upgrade", b""),
        b"Content-Type": (b"text/plain", b"text/plain; charset=\xff", b"application/json; charset=utf-7", b""),
    }
    return chance.choice(by_name.get(name, _NUMBERS))


def _location(chance: Random, origin: bytes) -> bytes:
    if chance.random() < 0.25:
        return chance.choice(_PATHS)
    if chance.random() < 0.2:
        return chance.choice((b"", b"http:", b"https:")) + b"//" + origin + chance.choice(_PATHS)
    slashes = b"//" if chance.random() < 0.8 else chance.choice((b"", b"/", b"///", b"////", b"//////", b"\\\\"))
    # Behind what is a path at a first reading, a second one may find an address.
    before = chance.choice((b":", b"/", b"1:", b"..", b"?", b"//", b"a:")) if chance.random() < 0.3 else b""
    host, port = chance.choice(_HOSTS), chance.choice(_PORTS)
    return before + chance.choice(_SCHEMES) + slashes + chance.choice(_USERS) + host + port + chance.choice(_PATHS)


def _around(chance: Random, value: bytes) -> bytes:
    other = chance.choice(_FOREIGN)
    return other + value if chance.random() < 0.5 else value + other


def _body(chance: Random, kind: str) -> bytes:
    makers: dict[str, Callable[[Random], bytes]] = {"pull": _list, "report": _reported, "prove": _status}
    if chance.random() < 0.8:
        return makers[kind](chance)
    return chance.choice((*makers.values(), _rubbish))(chance)


def _list(chance: Random) -> bytes:
    body = LIST * chance.choice((1, 1, 1, 20))
    return body if chance.random() < 0.7 else mutated(chance, body)


def _reported(chance: Random) -> bytes:
    if chance.random() < 0.3:
        return mutated(chance, REPORTED)
    rejected = chance.randrange(5)
    odd: tuple[object, ...] = (7, -1, 4.0, None, True, "4", [], {}, 10**30, "\x1b[2K", "\ud800", "\u202e" * 300)
    errors = [
        {
            "ip": chance.choice(odd) if chance.random() < 0.1 else SENT[number],
            "error": chance.choice(("Invalid", "Daily quota reached", "<b>\u0440</b>", "x" * 3000, *odd)),
        }
        for number in range(rejected)
    ]
    answer: dict[str, object] = {"total": 4, "accepted": 4 - rejected, "rejected": rejected, "errors": errors}
    if chance.random() < 0.2:
        answer[chance.choice(list(answer))] = chance.choice(odd)
    if chance.random() < 0.1:
        del answer[chance.choice(list(answer))]
    return json.dumps(answer, ensure_ascii=chance.random() < 0.5).encode(errors="surrogatepass")


def _status(chance: Random) -> bytes:
    return STATUS if chance.random() < 0.5 else mutated(chance, STATUS)


def _rubbish(chance: Random) -> bytes:
    return chance.choice(
        (b"", b"[" * 5000, b'{"total":' + b"9" * 5000 + b"}", b"<html>", chance.randbytes(200), b"\xef\xbb\xbf" + LIST)
    )


def _packed(chance: Random, body: bytes) -> bytes:
    packed = gzip.compress(body, 1, mtime=0) * chance.choice((1, 1, 1, 3))
    return packed if chance.random() < 0.5 else mutated(chance, packed)


def _chunked(chance: Random, body: bytes) -> bytes:
    chunks: list[bytes] = []
    at = 0
    while at < len(body):
        size = chance.choice((1, 7, 100, 5000)) if len(chunks) < 20 else len(body)
        chunk = body[at : at + size]
        length = b"%x" % max(0, len(chunk) + _off(chance))
        extension = chance.choice((b";x=y", b";\x1b[2K", b" ", b";" * 50)) if chance.random() < 0.03 else b""
        chunks.append(length + extension + b"\r\n" + chunk + b"\r\n")
        at += size
    last = chance.choice((b"", b"0\r\n", b"0\r\nX: y\r\n\r\n", b"-1\r\n\r\n", b"0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n"))
    return b"".join(chunks) + (b"0\r\n\r\n" if chance.random() < 0.9 else last)


def _off(chance: Random) -> int:
    return chance.choice((-1, 1, -7, 1000, 10**12)) if chance.random() < 0.04 else 0


def _pieces(chance: Random, raw: bytes) -> tuple[bytes, ...]:
    if chance.random() < 0.6 or len(raw) < 2:
        return (raw,)
    cuts = sorted(chance.randrange(1, len(raw)) for _ in range(chance.choice((1, 2, 5, 20))))
    return tuple(raw[start:end] for start, end in zip((0, *cuts), (*cuts, len(raw)), strict=True) if end > start)
