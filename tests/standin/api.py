"""The service itself, without sockets: requests in, answers out, quotas and reports remembered."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING
from urllib.parse import unquote

from tests.standin.blacklist import parse_selection, render
from tests.standin.entries import Catalogue, packed
from tests.standin.messages import (
    Answer,
    Endpoint,
    Refused,
    Request,
    checked_address,
    endpoint_of,
    error_answer,
    json_answer,
)
from tests.standin.quota import Kind, QuotaBook
from tests.standin.reports import MOST_ROWS, Row, parse_body, parse_row, shown_address
from tests.standin.reputation import reputation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tests.standin.record import Record
    from tests.standin.tiers import Key

_METHODS = {
    Endpoint.BLACKLIST: "GET",
    Endpoint.BULK_REPORT: "POST",
    Endpoint.REPORT: "POST",
    Endpoint.CHECK: "GET",
    Endpoint.STATUS: "GET",
}


class Api:
    """Thread-safe. `first_row` numbers the first row of a bulk report in its errors."""

    def __init__(self, record: Record, clock: Callable[[], float], *, quota_headers: bool, first_row: int) -> None:
        self.catalogue = Catalogue(())
        self._record = record
        self._clock = clock
        self._quota_headers = quota_headers
        self._first_row = first_row
        self._book = QuotaBook(clock)
        self._keys: dict[str, Key] = {}
        self._reporting = threading.Lock()

    def set_keys(self, keys: Iterable[Key]) -> None:
        """From here on exactly these keys are known; what they have used today stays counted."""
        self._keys = {key.text: key for key in keys}

    def answer(self, request: Request, number: int) -> Answer:
        """The right answer; `number` is what accepted reports are noted under."""
        endpoint = endpoint_of(request.path)
        if endpoint is None:
            return error_answer(404, "Not found")
        if request.method != _METHODS[endpoint]:
            return error_answer(405, "Method not allowed", Allow=_METHODS[endpoint])
        scheme, _, secret = request.header("Authorization").partition(" ")
        key = self._keys.get(secret.strip())
        if scheme.lower() != "bearer" or key is None:
            return error_answer(401, "Invalid API key", WWW_Authenticate="Bearer")
        if not key.enabled:
            return error_answer(403, "API key disabled or expired")
        if request.problem is not None:
            return request.problem
        match endpoint:
            case Endpoint.BLACKLIST:
                return self._blacklist(request, key)
            case Endpoint.BULK_REPORT:
                return self._bulk_report(request, key, number)
            case Endpoint.REPORT:
                return self._report(request, key, number)
            case Endpoint.CHECK:
                return self._check(request, key)
            case Endpoint.STATUS:
                return self._status(key)

    def _blacklist(self, request: Request, key: Key) -> Answer:
        try:
            selection = parse_selection(dict(request.query))
        except Refused as error:
            return self._with_quota(error_answer(400, str(error)), key, Kind.BLACKLIST)
        if not self._book.take(key, Kind.BLACKLIST, 1):
            return self._spent(key, Kind.BLACKLIST)
        answer = render(self.catalogue, selection, cap=key.tier.blacklist_addresses, now=self._clock())
        return self._with_quota(answer, key, Kind.BLACKLIST)

    def _bulk_report(self, request: Request, key: Key, number: int) -> Answer:
        try:
            values = parse_body(request.body).get("reports")
        except Refused as error:
            return self._with_quota(error_answer(400, str(error)), key, Kind.REPORTS)
        if not isinstance(values, list) or not 1 <= len(values) <= MOST_ROWS:
            problem = error_answer(400, f"reports must be an array of 1 to {MOST_ROWS} reports")
            return self._with_quota(problem, key, Kind.REPORTS)
        rows: list[Row] = []
        errors: list[dict[str, object]] = []
        # One bulk report at a time: rows are granted one by one, and two requests would share the rest.
        with self._reporting:
            left = self._book.usage(key, Kind.REPORTS).remaining
            if not left:
                return self._spent(key, Kind.REPORTS)
            for position, value in enumerate(values, start=self._first_row):
                try:
                    row = parse_row(value)
                    if len(rows) == left:
                        raise Refused("the daily report quota is spent")
                    rows.append(row)
                except Refused as error:
                    errors.append({"row": position, "ip": shown_address(value), "error": str(error)})
            self._book.take(key, Kind.REPORTS, len(rows))
        self._record.accept(number, key.text, rows)
        counts = {"total": len(values), "accepted": len(rows), "rejected": len(errors), "errors": errors}
        return self._with_quota(json_answer(counts), key, Kind.REPORTS)

    def _report(self, request: Request, key: Key, number: int) -> Answer:
        try:
            value = parse_body(request.body)
        except Refused as error:
            return self._with_quota(error_answer(400, str(error)), key, Kind.REPORTS)
        try:
            row = parse_row(value)
        except Refused as error:
            answer = json_answer({"success": False, "error": str(error)})
            return self._with_quota(answer, key, Kind.REPORTS)
        with self._reporting:
            if not self._book.take(key, Kind.REPORTS, 1):
                return self._spent(key, Kind.REPORTS)
        self._record.accept(number, key.text, [row])
        return self._with_quota(json_answer({"success": True}), key, Kind.REPORTS)

    def _check(self, request: Request, key: Key) -> Answer:
        address = unquote(checked_address(request.path))
        try:
            packed(address)
        except ValueError:
            return self._with_quota(error_answer(400, "Invalid IP address"), key, Kind.LOOKUPS)
        if not self._book.take(key, Kind.LOOKUPS, 1):
            return self._spent(key, Kind.LOOKUPS)
        found = self.catalogue.find(address)
        return self._with_quota(json_answer(reputation(address, found)), key, Kind.LOOKUPS)

    def _status(self, key: Key) -> Answer:
        quotas = {}
        for kind in Kind:
            usage = self._book.usage(key, kind)
            quotas[kind.value] = {"used": usage.used, "limit": usage.limit, "remaining": usage.remaining}
        limits = {
            "ipAlerts": 0,
            "rangeAlerts": key.tier.range_alerts,
            "usernameAlerts": 0,
            "emailAlerts": 0,
        }
        alerts = {name: {"current": 0, "limit": limit} for name, limit in limits.items()}
        tier = {"id": key.tier.id, "name": key.tier.name}
        return json_answer({"tier": tier, "quotas": quotas, "alerts": alerts})

    def _spent(self, key: Key, kind: Kind) -> Answer:
        message = f"Daily {kind.value} quota exceeded"
        answer = error_answer(429, message, Retry_After=str(self._book.seconds_left()))
        return self._with_quota(answer, key, kind)

    def _with_quota(self, answer: Answer, key: Key, kind: Kind) -> Answer:
        if not self._quota_headers:
            return answer
        usage = self._book.usage(key, kind)
        limit, remaining = str(usage.limit), str(usage.remaining)
        headers = [
            ("X-Daily-Limit", limit),
            ("X-Daily-Used", str(usage.used)),
            ("X-Daily-Remaining", remaining),
        ]
        if kind is Kind.BLACKLIST:
            headers += [("X-RateLimit-Limit", limit), ("X-RateLimit-Remaining", remaining)]
            headers += [("X-RateLimit-Reset", str(self._book.reset_at()))]
        if kind is Kind.REPORTS:
            headers += [("X-Report-Limit", limit), ("X-Report-Remaining", remaining)]
        return Answer(answer.status, answer.body, answer.content_type, (*answer.headers, *headers))
