"""What the stand-in was asked, and what it got."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tests.standin.messages import Request
    from tests.standin.reports import Row


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One request: `at` in Unix seconds, `status` None for as long as no answer began, `fault` the kind that
    was served in place of, or on top of, the right answer."""

    number: int
    at: float
    client: str
    method: str
    path: str
    query: tuple[tuple[str, str], ...]
    headers: tuple[tuple[str, str], ...]
    body_bytes: int
    fault: str | None = None
    status: int | None = None

    def header(self, name: str) -> str:
        """The first header of that name, in whatever case, or nothing."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), "")


@dataclass(frozen=True, slots=True)
class ReportRecord:
    """One accepted row; `request` is the number of the request that brought it."""

    request: int
    at: float
    key: str
    row: Row


class Record:
    """Thread-safe. Keeps the last `limit` requests and as many report rows; the totals count them all."""

    def __init__(self, clock: Callable[[], float], limit: int) -> None:
        self._clock = clock
        self._limit = limit
        self._changed = threading.Condition()
        self._requests: dict[int, RequestRecord] = {}
        self._reports: deque[ReportRecord] = deque(maxlen=limit)
        self._requests_total = 0
        self._reports_total = 0

    @property
    def requests(self) -> tuple[RequestRecord, ...]:
        """In the order of arrival."""
        with self._changed:
            return tuple(self._requests.values())

    @property
    def reports(self) -> tuple[ReportRecord, ...]:
        """In the order of acceptance."""
        with self._changed:
            return tuple(self._reports)

    @property
    def requests_total(self) -> int:
        """Since the start."""
        with self._changed:
            return self._requests_total

    @property
    def reports_total(self) -> int:
        """Accepted rows since the start."""
        with self._changed:
            return self._reports_total

    def wait_for(self, condition: Callable[[Record], bool], seconds: float) -> bool:
        """Waits until `condition(self)` holds, at most `seconds`; returns whether it does."""
        with self._changed:
            return self._changed.wait_for(lambda: condition(self), seconds)

    def open(self, number: int, request: Request, fault: str | None) -> None:
        """Notes a request that has arrived under a number of its own."""
        with self._changed:
            self._requests[number] = RequestRecord(
                number=number,
                at=self._clock(),
                client=request.client,
                method=request.method,
                path=request.path,
                query=request.query,
                headers=request.headers,
                body_bytes=len(request.body),
                fault=fault,
            )
            self._requests_total += 1
            while len(self._requests) > self._limit:
                del self._requests[next(iter(self._requests))]
            self._changed.notify_all()

    def settle(self, number: int, status: int) -> None:
        """Notes that the answer to a request begins."""
        with self._changed:
            known = self._requests.get(number)
            if known is not None:
                self._requests[number] = replace(known, status=status)
            self._changed.notify_all()

    def find(self, number: int) -> RequestRecord | None:
        """The request of that number, unless it was forgotten."""
        with self._changed:
            return self._requests.get(number)

    def accept(self, number: int, key: str, rows: Iterable[Row]) -> None:
        """Notes accepted report rows."""
        now = self._clock()
        with self._changed:
            for row in rows:
                self._reports.append(ReportRecord(number, now, key, row))
                self._reports_total += 1
            self._changed.notify_all()
