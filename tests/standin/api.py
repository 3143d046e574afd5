"""The service itself, without sockets: requests in, right answers out, quotas and reports remembered."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from tests.standin.messages import PLAIN, Answer, Endpoint, Refused, Request, endpoint_of, error_answer, json_answer
from tests.standin.quota import QuotaBook, limit_of
from tests.standin.reports import Row, parse_body, parse_row, shown_address

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tests.standin.entries import Entry
    from tests.standin.record import Record
    from tests.standin.tiers import Key

_METHODS = {Endpoint.BLACKLIST: "GET", Endpoint.BULK_REPORT: "POST", Endpoint.STATUS: "GET"}


class Api:
    """Thread-safe. `entries` are served in their order."""

    def __init__(self, record: Record, clock: Callable[[], float], *, quota_headers: bool) -> None:
        self.entries: tuple[Entry, ...] = ()
        self._record = record
        self._quota_headers = quota_headers
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
            case Endpoint.STATUS:
                return json_answer({"tier": {"id": "free", "name": "Free"}, "quotas": {}})

    def _blacklist(self, request: Request, key: Key) -> Answer:
        """Plain text alone: the service asks for no other form."""
        query = dict(request.query)
        minimum = query.get("scoreMinimum", "50")
        if query.get("plaintext") != "true" or not minimum.isdigit() or not 1 <= int(minimum) <= 100:
            return error_answer(400, "plaintext must be true and scoreMinimum a whole number from 1 to 100")
        if not self._book.take(key, Endpoint.BLACKLIST, 1):
            return self._spent(key, Endpoint.BLACKLIST)
        lines = (f"{entry.ip}\n" for entry in self.entries if entry.confidence >= int(minimum))
        return self._with_quota(Answer(200, "".join(lines).encode(), PLAIN), key, Endpoint.BLACKLIST)

    def _bulk_report(self, request: Request, key: Key, number: int) -> Answer:
        endpoint = Endpoint.BULK_REPORT
        try:
            values = parse_body(request.body)
        except Refused as error:
            return self._with_quota(error_answer(400, str(error)), key, endpoint)
        rows: list[Row] = []
        errors: list[dict[str, object]] = []
        # One report at a time: rows are granted one by one, and two requests would share the rest.
        with self._reporting:
            left = self._book.remaining(key, endpoint)
            if not left:
                return self._spent(key, endpoint)
            for position, value in enumerate(values, start=1):
                try:
                    row = parse_row(value)
                    if len(rows) == left:
                        raise Refused("the daily report quota is spent")
                    rows.append(row)
                except Refused as error:
                    errors.append({"row": position, "ip": shown_address(value), "error": str(error)})
            self._book.take(key, endpoint, len(rows))
        self._record.accept(number, key.text, rows)
        counts = {"total": len(values), "accepted": len(rows), "rejected": len(errors), "errors": errors}
        return self._with_quota(json_answer(counts), key, endpoint)

    def _spent(self, key: Key, endpoint: Endpoint) -> Answer:
        message = f"Daily {'blacklist' if endpoint is Endpoint.BLACKLIST else 'reports'} quota exceeded"
        answer = error_answer(429, message, Retry_After=str(self._book.seconds_left()))
        return self._with_quota(answer, key, endpoint)

    def _with_quota(self, answer: Answer, key: Key, endpoint: Endpoint) -> Answer:
        if not self._quota_headers:
            return answer
        limit, used = limit_of(key, endpoint), self._book.used(key, endpoint)
        remaining = self._book.remaining(key, endpoint)
        headers = {"X-Daily-Limit": limit, "X-Daily-Used": used, "X-Daily-Remaining": remaining}
        if endpoint is Endpoint.BLACKLIST:
            headers |= {"X-RateLimit-Limit": limit, "X-RateLimit-Remaining": remaining}
            headers["X-RateLimit-Reset"] = self._book.reset_at()
        else:
            headers |= {"X-Report-Limit": limit, "X-Report-Remaining": remaining}
        pairs = tuple((name, str(value)) for name, value in headers.items())
        return Answer(answer.status, answer.body, answer.content_type, (*answer.headers, *pairs))
