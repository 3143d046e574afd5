"""The stand-in as a whole: start it, point a client at it, make it fail, read what it got."""

from __future__ import annotations

import itertools
import threading
import time
from typing import TYPE_CHECKING, Self

from sikkerguard.errors import SikkerGuardError
from tests.standin.api import Api
from tests.standin.faults import Fault, FaultQueue, kind_of
from tests.standin.listener import Listener
from tests.standin.messages import Answer, Endpoint, Request, endpoint_of, gzipped
from tests.standin.record import Record, RequestRecord
from tests.standin.reports import MOST_BYTES
from tests.standin.tiers import Key
from tests.standin.wire import Wire, misbehave

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tests.standin.entries import Entry

DEMO_KEY = "sk_free_demo"

_POLL_SECONDS = 0.01
"""How long `stop` may have to wait for the accepting thread, which wakes as often."""


class Standin:
    """A SikkerAPI on a socket of this machine; every method may be called from any thread.

    `address` is an IPv4 or IPv6 address, `port` 0 any free one; a Standin that was stopped starts again on
    the same port. `keys` are texts, of free keys, or Key objects with quotas of their own. `clock` gives Unix seconds:
    quotas turn over at its midnight. Without `quota_headers` only Retry-After tells of quotas. `record_limit` bounds
    what the record keeps. `on_answer` hears of each request once it is over, `on_request` of each as soon as it has
    arrived whole, whatever becomes of it.
    """

    def __init__(
        self,
        address: str = "127.0.0.1",
        port: int = 0,
        *,
        entries: Iterable[Entry] = (),
        keys: Iterable[str | Key] = (DEMO_KEY,),
        clock: Callable[[], float] = time.time,
        quota_headers: bool = True,
        record_limit: int = 100_000,
        on_answer: Callable[[RequestRecord], None] | None = None,
        on_request: Callable[[Request], None] = lambda request: None,
    ) -> None:
        self.record = Record(clock, record_limit)
        self._address = address
        self._port = port
        self._faults = FaultQueue()
        self._api = Api(self.record, clock, quota_headers=quota_headers)
        self._on_answer = on_answer
        self._on_request = on_request
        self._numbers = itertools.count(1)
        self._life = threading.Lock()
        self._running: tuple[Listener, threading.Thread] | None = None
        self.set_keys(keys)
        self.replace(entries)

    def start(self) -> None:
        """Listens from here on. Raises SikkerGuardError if the address can't be listened on."""
        with self._life:
            if self._running is not None:
                raise RuntimeError("the stand-in runs already")
            try:
                listener = Listener(self._address, self._port, self._exchange, MOST_BYTES)
            except (OSError, OverflowError) as error:
                reason = getattr(error, "strerror", None) or error
                raise SikkerGuardError(
                    f"The stand-in can't listen on {self._address} port {self._port}: {reason}."
                ) from error
            self._port = listener.server_address[1]
            thread = threading.Thread(target=listener.serve_forever, args=(_POLL_SECONDS,), name="standin", daemon=True)
            thread.start()
            self._running = listener, thread

    def stop(self) -> None:
        """Closes the listening socket and every connection; without effect unless it runs."""
        with self._life:
            if self._running is None:
                return
            listener, thread = self._running
            self._running = None
            listener.shutdown()
            thread.join()
            listener.server_close()
            listener.close_all()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def port(self) -> int:
        """The port listened on; what was asked for, before the first start."""
        return self._port

    @property
    def url(self) -> str:
        """What SIKKER_API_URL must be; a wildcard address shows as loopback."""
        shown = self._address
        if shown in ("0.0.0.0", "::"):
            shown = "::1" if ":" in shown else "127.0.0.1"
        return f"http://[{shown}]:{self._port}" if ":" in shown else f"http://{shown}:{self._port}"

    @property
    def entry_count(self) -> int:
        """How many entries are served, over all confidence levels."""
        return len(self._api.entries)

    def replace(self, entries: Iterable[Entry]) -> None:
        """Serves another list from the next request on."""
        self._api.entries = tuple(sorted(entries, key=lambda entry: (-entry.confidence, -entry.last_seen)))

    def set_keys(self, keys: Iterable[str | Key]) -> None:
        """Knows exactly these keys from the next request on; what they used today stays counted."""
        self._api.set_keys([key if isinstance(key, Key) else Key(key) for key in keys])

    def fault(self, endpoint: str, fault: Fault, times: int = 1) -> None:
        """Lets the next `times` requests of an endpoint (blacklist, bulk-report, status) meet
        `fault`, after those queued before. Raises ValueError for an unknown endpoint."""
        self._faults.put(Endpoint(endpoint), fault, times)

    def clear_faults(self) -> None:
        """Forgets the faults that no request has met yet."""
        self._faults.clear()

    def _exchange(self, request: Request, wire: Wire) -> None:
        number = next(self._numbers)
        self._on_request(request)
        endpoint = endpoint_of(request.path)
        fault = self._faults.take(endpoint) if endpoint is not None else None
        self.record.open(number, request, kind_of(fault) if fault is not None else None)
        wire.on_status = lambda status: self.record.settle(number, status)

        def respond() -> Answer:
            answer = self._api.answer(request, number)
            return gzipped(answer) if request.accepts_gzip else answer

        try:
            if fault is None:
                wire.deliver(respond())
            else:
                misbehave(wire, fault, respond)
        finally:
            known = self.record.find(number)
            if self._on_answer is not None and known is not None:
                self._on_answer(known)
