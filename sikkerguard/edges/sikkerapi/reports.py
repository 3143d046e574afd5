"""Reports to SikkerAPI over HTTP, sent so that it is known afterwards whether they can have been accepted.

A server can't accept a request of which it has not got the last byte. So that byte goes out alone, and until it is
handed over, whatever happens is no acceptance. What happens afterwards is one of these:

answered      200 with the counts of rows that were accepted and rejected.
not accepted  401, 403, 429 and all other 4xx: the server says that it did not do what was asked. 301, 302, 307, 308:
              it sent the request elsewhere. 503 with a Retry-After: it asks for the request later. 501, 505, and 521,
              523, 525, 526 of a proxy in front: nobody served it
              (https://developers.cloudflare.com/support/troubleshooting/http-status-codes/cloudflare-5xx-errors/).
unanswered    The connection broke or the time was up; a 200 that is no such answer; another 2xx; a 303, which points
              to what became of a request; 500, 502, 504 and the like, by a server that may have done part of it, or a
              proxy that lost the answer. 503 alone: a proxy says so too of a request that it had delivered, where its
              server then broke off.
"""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Any

import httpx

from sikkerguard.core.reports.rows import ReportAnswer
from sikkerguard.core.sikkerapi.body import Pace, Unpacker
from sikkerguard.core.text import printable
from sikkerguard.edges.sikkerapi.client import TIMEOUT, quota_of, refusal
from sikkerguard.edges.sikkerapi.failures import sentence, within
from sikkerguard.errors import FetchError, SendingFailed, SettingsRefused, Unanswered, Unreachable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from sikkerguard.edges.sikkerapi.client import ApiClient, Quota

_MAX_SECONDS = 120.0
# Ten thousand errors of 400 bytes.
_MAX_ANSWER = 4 << 20
_MAX_REASON = 100
_REDIRECTS = frozenset({301, 302, 307, 308})
_UNSERVED = frozenset({501, 505, 521, 523, 525, 526})
# The headers that tell the quota of reports. X-RateLimit is of other things: the documentation has it for pulls.
_REPORT_QUOTA = ("X-Report", "X-Daily")
# So much is handed over at a time: the time limit for writing holds for each piece, and a slow line is no broken one.
_PIECE = 64 << 10
# An answer may take as long as the whole: a server that has ten thousand rows to store is not given up before.
_PATIENT = httpx.Timeout(connect=TIMEOUT.connect, write=TIMEOUT.write, pool=TIMEOUT.pool, read=None)


class BulkReportClient:
    """Sends reports to SikkerAPI by `client`. `max_seconds` is the time limit for one request."""

    def __init__(self, client: ApiClient, *, max_seconds: float = _MAX_SECONDS) -> None:
        self._client = client
        self._max_seconds = max_seconds

    async def report(self, body: bytes, before_last_byte: Callable[[], None]) -> ReportAnswer:
        """Send this request, once. `before_last_byte` is called immediately before the last byte of it is handed to
        the connection; what it raises is raised here, and the byte is not sent.

        Raises:
            Unanswered: it may have been accepted.
            FetchError: it was certainly not accepted.
        """
        content = _Body(body, before_last_byte)
        try:
            return await within(self._max_seconds, self._post(content))
        except FetchError:
            raise
        except Exception as error:
            if content.withheld:
                raise
            if isinstance(error, TimeoutError):
                problem = f"SikkerAPI took longer than {self._max_seconds:g} s for a report"
            else:
                problem = sentence(error)
            raise content.failure(problem) from error

    async def _post(self, content: _Body) -> ReportAnswer:
        headers = {"Content-Type": "application/json", "Content-Length": str(content.length)}
        url = f"{self._client.url}/v1/key/bulk-report"
        async with (
            self._client.http("application/json", "identity") as http,
            # A redirect must not be followed: the body would go out a second time.
            http.stream(
                "POST",
                url,
                content=content,
                headers=headers,
                auth=self._client.auth,
                follow_redirects=False,
                timeout=_PATIENT,
            ) as response,
        ):
            return await _answer(response, complete=content.complete, key_source=self._client.key_source)


class _Body:
    """The body in pieces, the last byte alone. `complete` is True from the moment at which that byte may leave, and
    `withheld` where the caller kept it back."""

    def __init__(self, body: bytes, before_last_byte: Callable[[], None]) -> None:
        self.length = len(body)
        self._body = body
        self._before_last_byte = before_last_byte
        self._begun = False
        self.withheld = False
        self.complete = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        last = self.length - 1
        for start in range(0, last, _PIECE):
            yield self._body[start : min(start + _PIECE, last)]
            self._begun = True
        try:
            self._before_last_byte()
        except Exception:
            self.withheld = True
            raise
        self.complete = True
        yield self._body[-1:]

    def failure(self, message: str) -> FetchError:
        """The error for a request that broke off at this point; of one that was under way a smaller part may arrive."""
        if self.complete:
            return Unanswered(message)
        return SendingFailed(message) if self._begun else Unreachable(message)


async def _answer(response: httpx.Response, *, complete: bool, key_source: str) -> ReportAnswer:
    status = response.status_code
    error = refusal(response, _REPORT_QUOTA, key_source=key_source)
    if status in _REDIRECTS:
        raise SettingsRefused(f"{error}, a redirect, which reports don't follow; check SIKKER_API_URL")
    if 400 <= status < 500 or status in _UNSERVED or (status == 503 and "Retry-After" in response.headers):
        raise error
    if not complete:
        raise Unreachable(f"SikkerAPI answered {status} before it had the whole report")
    if status != 200:
        raise Unanswered(str(error), retry_after=error.retry_after)
    body = bytearray()
    try:
        pace, unpacker = Pace(), Unpacker(response.headers)
        async for raw in response.aiter_raw():
            rest = pace.take(len(raw), time.monotonic())
            for piece in unpacker.feed(raw):
                body += piece
                if len(body) > _MAX_ANSWER:
                    raise Unanswered(f"SikkerAPI's answer is larger than {_MAX_ANSWER >> 20} MiB")
            if rest:
                await asyncio.sleep(rest)
        unpacker.finish()
    except FetchError as failure:
        raise Unanswered(str(failure)) from failure
    try:
        return _parsed(json.loads(body), quota_of(response.headers, *_REPORT_QUOTA))
    except (ValueError, RecursionError) as fault:
        raise Unanswered(f"SikkerAPI's answer to a report can't be understood ({printable(str(fault))})") from fault


def _parsed(value: Any, quota: Quota) -> ReportAnswer:
    """Raises `ValueError` with a few words where this is not what the documentation describes, or contradicts
    itself."""
    match value:
        case {"total": int(total), "accepted": int(accepted), "rejected": int(rejected)}:
            errors = value.get("errors") or []
        case _:
            raise ValueError("no counts of rows")
    if not isinstance(errors, list) or not all(isinstance(error, dict) for error in errors):
        raise ValueError("its errors are no list of objects")
    if min(total, accepted, rejected) < 0 or accepted + rejected != total or len(errors) != rejected:
        raise ValueError(f"{total} rows, {accepted} accepted, {rejected} rejected, {len(errors)} errors")
    named = tuple((_shown(error.get("ip")), _shown(error.get("error", "no reason"))) for error in errors)
    return ReportAnswer(total, accepted, named, quota.remaining, quota.limit)


def _shown(value: Any) -> str:
    """A server's text, cut so short that a log line may have twenty of them."""
    return printable(str(value), _MAX_REASON)
