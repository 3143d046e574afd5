"""The server of `sikkerguard demo`: as much of SikkerAPI (https://sikkerapi.com/docs) as the service uses. It serves a
list as plain text, takes reports, and knows one key and no quotas."""

from __future__ import annotations

import json
import socket
import socketserver
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qsl

from sikkerguard.core.net.address import parse_prefix
from sikkerguard.errors import SikkerGuardError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

_MAX_BODY_BYTES = 2_000_000  # of a report, by the documentation


class Entry(NamedTuple):
    """One line of the list: an address or a range, and its confidence level from 1 to 100."""

    text: str
    score: int = 75


class Report(NamedTuple):
    """One reported address, as it was sent."""

    ip: str
    category: str
    protocol: str


class Answer(NamedTuple):
    """A status code, the body, and its type."""

    status: int
    body: bytes
    content_type: str = "application/json"


def load_list(file: Path) -> list[Entry]:
    """Read a list: an address or range a line, optionally followed by the number of public lists that name it, as in
    https://github.com/stamparm/ipsum; `#` begins a comment. One list makes a score of 50, each further one 5 more.

    Raises:
        SikkerGuardError: it can't be read, or has a line of another form.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise SikkerGuardError(f"The list {file} can't be read: {reason}.") from error
    entries = []
    for number, line in enumerate(lines, start=1):
        words = line.partition("#")[0].split()
        try:
            if words:
                entries.append(_read_entry(*words))
        except (TypeError, ValueError) as error:
            raise SikkerGuardError(f"Line {number} of {file} can't be served: {line[:100]!r}.") from error
    return entries


def _read_entry(text: str, count: str = "") -> Entry:
    parse_prefix(text)
    return Entry(text, min(100, 45 + 5 * max(1, int(count)))) if count else Entry(text)


class DemoServer(ThreadingHTTPServer):
    """Listens from its making on; `serve_forever` serves. `say` gets a line for each request and each reported address.

    `entries` may be replaced at any time, `reports` has all that were taken. Raises `SikkerGuardError` where it can't
    listen on the address."""

    daemon_threads = True

    def __init__(
        self, address: str, port: int, entries: Iterable[Entry], *, key: str, say: Callable[[str], None]
    ) -> None:
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.entries = tuple(entries)
        self.reports: list[Report] = []
        self.say = say
        self._key = key
        try:
            super().__init__((address, port), _Handler)
        except OSError as error:
            raise SikkerGuardError(f"The demo can't listen on {address} port {port}: {error.strerror}.") from error

    @property
    def url(self) -> str:
        """What SIKKER_API_URL must be; a wildcard address shows as loopback."""
        address, port = self.server_address[:2]
        shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(str(address), str(address))  # noqa: S104 - it binds nothing
        return f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"

    def answer(self, method: str, target: str, authorization: str, body: bytes) -> Answer:
        """Answer one request; without the right key all are refused, as by SikkerAPI."""
        if authorization != f"Bearer {self._key}":
            return _refuse(401, "Invalid API key")
        path, _, query = target.partition("?")
        match method, path:
            case "GET", "/v1/key/blacklist":
                return self.answer_blacklist(dict(parse_qsl(query)))
            case "POST", "/v1/key/bulk-report":
                return self._answer_report(body)
        return _refuse(404, "Not found")

    def answer_blacklist(self, parameters: dict[str, str]) -> Answer:
        """Give the entries whose score is high enough, the highest first."""
        minimum = parameters.get("scoreMinimum", "50")
        if not minimum.isdecimal():
            return _refuse(400, "scoreMinimum must be a whole number")
        chosen = sorted((each for each in self.entries if each.score >= int(minimum)), key=lambda entry: -entry.score)
        return Answer(200, "".join(f"{entry.text}\n" for entry in chosen).encode(), "text/plain; charset=utf-8")

    def _answer_report(self, body: bytes) -> Answer:
        try:
            rows = list(json.loads(body)["reports"])
        except (ValueError, LookupError, TypeError, RecursionError):
            return _refuse(400, "the body must be a JSON object with an array of reports")
        errors: list[dict[str, Any]] = []
        for number, row in enumerate(rows, start=1):
            try:
                report = Report(str(row["ip"]), str(row["category"]), str(row.get("protocol", "")))
                socket.inet_pton(socket.AF_INET6 if ":" in report.ip else socket.AF_INET, report.ip)
            except (LookupError, TypeError, AttributeError, OSError):
                ip = row.get("ip", "") if isinstance(row, dict) else ""
                errors.append({"row": number, "ip": ip, "error": "a report needs an IP address and a category"})
                continue
            self.reports.append(report)
            self.say(f"  reported: {report.ip} {report.category} {report.protocol}")
        counts = {"total": len(rows), "accepted": len(rows) - len(errors), "rejected": len(errors), "errors": errors}
        return Answer(200, json.dumps(counts).encode())

    def server_bind(self) -> None:
        """Bind without the base class's look-up of the host's name, which may wait for DNS."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hung up is no error; anything else is shown."""
        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: DemoServer
    timeout = 60.0

    def _answer(self) -> None:
        length = self.headers.get("Content-Length", "")
        body = self.rfile.read(min(int(length), _MAX_BODY_BYTES)) if length.isdecimal() else b""
        answer = self.server.answer(self.command, self.path, self.headers.get("Authorization", ""), body)
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        self.wfile.write(answer.body)

    do_GET = do_POST = _answer

    def log_message(self, format: str, *args: Any) -> None:
        self.server.say(f"{self.client_address[0]} {format % args}")


def _refuse(status: int, sentence: str) -> Answer:
    return Answer(status, json.dumps({"error": sentence}).encode())
