"""The ways in which the stand-in can go wrong, as values, and the queue that deals them out.

Those that change the right answer (CutOff, Understate, Drip, Delay, a Reset in the body, a Drop after
accepting) let the request take effect first: quotas are spent and reports accepted. The others don't.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass

from tests.standin.messages import JSON, PLAIN, Endpoint

MEBIBYTE = 1 << 20
_DAY = 86_400
LISTED_LINE = b"198.51.100.7\n"
"""What bombs and endless bodies consist of: lines that a parser takes for a list."""


@dataclass(frozen=True, slots=True)
class Canned:
    """Any status, headers and body in place of the right answer; no body means `{"error": ...}`.

    A captive portal is `Canned(body=b"<html>...", content_type="text/html")`, a redirect
    `Canned(302, headers=(("Location", "http://..."),))`, a 429 says Retry-After only if `headers` has it.
    """

    status: int = 200
    body: bytes | None = None
    content_type: str = JSON
    headers: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        _require(200 <= self.status <= 599, "status must be 200 to 599")
        texts = (self.content_type, *(text for pair in self.headers for text in pair))
        _require(all(_fits_header(text) for text in texts), "headers must be printable Latin-1")


@dataclass(frozen=True, slots=True)
class CutOff:
    """The right answer with its true Content-Length, closed `missing` bytes before the end of the body."""

    missing: int = 1

    def __post_init__(self) -> None:
        _require(self.missing > 0, "missing must be above 0")


@dataclass(frozen=True, slots=True)
class Understate:
    """The whole right answer under a Content-Length that is `extra` bytes too small (at least 0)."""

    extra: int = 1

    def __post_init__(self) -> None:
        _require(self.extra > 0, "extra must be above 0")


@dataclass(frozen=True, slots=True)
class GzipBomb:
    """A plaintext list of `unpacked` bytes, packed about 500 to 1 and sent as it is made."""

    unpacked: int = 1024 * MEBIBYTE

    def __post_init__(self) -> None:
        _require(self.unpacked > 0, "unpacked must be above 0")


@dataclass(frozen=True, slots=True)
class Endless:
    """A plaintext list that never ends: chunks until the client hangs up, or `cap` bytes, then a plain close."""

    cap: int = 1024 * MEBIBYTE
    content_type: str = PLAIN

    def __post_init__(self) -> None:
        _require(self.cap > 0, "cap must be above 0")
        _require(_fits_header(self.content_type), "content_type must be printable Latin-1")


@dataclass(frozen=True, slots=True)
class Reset:
    """RST: in place of any answer, or once `after` bytes of the right answer's body are out."""

    after: int | None = None

    def __post_init__(self) -> None:
        _require(self.after is None or self.after >= 0, "after must not be negative")


@dataclass(frozen=True, slots=True)
class Drip:
    """The right answer, its body `step` bytes at a time with `interval` seconds between."""

    interval: float
    step: int = 1

    def __post_init__(self) -> None:
        _require(0 <= self.interval <= _DAY, "interval must be 0 to 86400 seconds")
        _require(self.step > 0, "step must be above 0")


@dataclass(frozen=True, slots=True)
class Drop:
    """Closes without a byte of an answer; `accepted` says whether the request took effect before."""

    accepted: bool


@dataclass(frozen=True, slots=True)
class Delay:
    """The right answer, `seconds` after the request took effect."""

    seconds: float

    def __post_init__(self) -> None:
        _require(0 <= self.seconds <= _DAY, "seconds must be 0 to 86400")


Fault = Canned | CutOff | Understate | GzipBomb | Endless | Reset | Drip | Drop | Delay


def kind_of(fault: Fault) -> str:
    """Its name in the record, such as `cutoff`."""
    return type(fault).__name__.lower()


class FaultQueue:
    """Thread-safe; each endpoint has its own queue, first in, first served."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._queues: dict[Endpoint, deque[Fault]] = {endpoint: deque() for endpoint in Endpoint}

    def put(self, endpoint: Endpoint, fault: Fault, times: int) -> None:
        """For the next `times` requests of the endpoint that nothing queued before claims."""
        _require(1 <= times <= 100_000, "times must be 1 to 100000")
        with self._lock:
            self._queues[endpoint].extend([fault] * times)

    def take(self, endpoint: Endpoint) -> Fault | None:
        """The fault that this request meets."""
        with self._lock:
            queue = self._queues[endpoint]
            return queue.popleft() if queue else None

    def clear(self) -> None:
        """From here on every request is answered right."""
        with self._lock:
            for queue in self._queues.values():
                queue.clear()


def _fits_header(text: str) -> bool:
    return text.isprintable() and all(ord(character) < 256 for character in text)


def _require(condition: bool, sentence: str) -> None:
    if not condition:
        raise ValueError(sentence)
