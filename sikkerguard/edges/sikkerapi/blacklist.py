"""SikkerAPI's blacklist as a feed: one request, its redirects, and the body as it arrives. What a list means is none of
its business."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import httpx

from sikkerguard.core.lists.sources import SIKKERAPI
from sikkerguard.core.sikkerapi.body import LARGEST_BODY, PIECE, Pace, Unpacker, too_large
from sikkerguard.core.text import printable
from sikkerguard.edges.sikkerapi.client import LOCATION, PULL_QUOTA, quota_of, refusal
from sikkerguard.edges.sikkerapi.failures import sentence, within
from sikkerguard.errors import FetchError, SettingsRefused, Unreachable

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from sikkerguard.edges.sikkerapi.client import ApiClient

    Sink = Callable[[bytes], Awaitable[None]]

_MAX_REDIRECTS = 5
_MAX_SECONDS = 300.0
_REDIRECTS = frozenset({301, 302, 303, 307, 308})


class Blacklist:
    """The addresses with a score of `score_min` or more, pulled by `client` every `interval` seconds. `clock` (seconds
    that never go back) and `max_seconds`, the time limit for a pull, are for tests to put in."""

    name = SIKKERAPI

    def __init__(
        self,
        client: ApiClient,
        *,
        score_min: int,
        interval: float,
        clock: Callable[[], float] = time.monotonic,
        max_seconds: float = _MAX_SECONDS,
    ) -> None:
        self._client = client
        self._score_min = score_min
        self._clock = clock
        self._max_seconds = max_seconds
        self.interval = interval
        self.remaining: int | None = None

    async def version(self) -> None:
        """None: only a pull can tell whether there is a new list."""

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """Fetch the list: its bytes, unpacked, in pieces of about 256 KiB. Closing the stream closes the connection.

        The request is made by a task of its own, and only what it has received comes through here. So no time limit and
        no cancel scope of a library is open while the caller has the turn, which would end whatever the caller does
        then, or fail because it ends in another task than it began in. One piece is fetched ahead; the time for which
        the caller leaves it there counts.

        Raises:
            FetchError: the list could not be had, or not whole.
            MemoryError: there is not enough of it.
        """
        self.remaining = None
        pieces: asyncio.Queue[bytes | Exception | None] = asyncio.Queue(1)
        fetching = asyncio.create_task(self._fetch(pieces))
        try:
            while isinstance(piece := await pieces.get(), bytes):
                yield piece
            if piece is not None:
                raise piece
        finally:
            fetching.cancel()
            await asyncio.wait({fetching})

    async def _fetch(self, pieces: asyncio.Queue[bytes | Exception | None]) -> None:
        """Put all pieces into the queue, and behind them None, or the error that ended it."""
        try:
            await within(self._max_seconds, self._pull(pieces.put))
        except (FetchError, MemoryError) as error:
            await pieces.put(error)
        except Exception as error:  # noqa: BLE001 - raised by `stream`, as an error of ours
            problem = (
                f"SikkerAPI took longer than {self._max_seconds:g} s for the list"
                if isinstance(error, TimeoutError)
                else sentence(error)
            )
            failure = Unreachable(problem)
            failure.__cause__ = error
            await pieces.put(failure)
        else:
            await pieces.put(None)

    async def _pull(self, sink: Sink) -> None:
        parameters = {"plaintext": "true", "scoreMinimum": str(self._score_min)}
        url = httpx.URL(f"{self._client.url}/v1/key/blacklist", params=parameters)
        origin = _origin(url)
        async with self._client.http("text/plain") as http:
            for _ in range(_MAX_REDIRECTS):
                async with http.stream("GET", url, auth=self._client.auth) as response:
                    location = response.extensions[LOCATION]
                    if response.status_code in _REDIRECTS and location is not None:
                        url = _joined(url, location)
                        if _origin(url) != origin:
                            raise SettingsRefused(
                                f"SikkerAPI redirects to {_shown(url)}, where the key must not go; check SIKKER_API_URL"
                            )
                        continue
                    if response.status_code != 200:
                        raise refusal(response, key_source=self._client.key_source)
                    await self._receive(response, sink)
                    self.remaining = quota_of(response.headers, *PULL_QUOTA).remaining
                    return
        raise SettingsRefused("SikkerAPI redirects in a circle; check SIKKER_API_URL")

    async def _receive(self, response: httpx.Response, sink: Sink) -> None:
        pace, unpacker = Pace(), Unpacker(response.headers)
        held = bytearray()
        length = 0
        # One loop for all of it: a server may send a list byte by byte, and what is done here is done for each.
        async for raw in response.aiter_raw():
            rest = pace.take(len(raw), self._clock())
            for piece in unpacker.feed(raw):
                length += len(piece)
                if length > LARGEST_BODY:
                    raise too_large()
                held += piece
                if len(held) >= PIECE:
                    await sink(bytes(held))
                    held.clear()
            if rest:
                await asyncio.sleep(rest)
        unpacker.finish()
        if held:
            await sink(bytes(held))


def _joined(url: httpx.URL, location: str) -> httpx.URL:
    try:
        return url.join(location)
    except Exception as error:
        # By version that is an InvalidURL, a ValueError, a UnicodeError or rfc3986's ResolutionError.
        raise Unreachable(
            f"SikkerAPI redirects to what is no address ({printable(location)}); check SIKKER_API_URL"
        ) from error


def _origin(url: httpx.URL) -> tuple[bytes, bytes, int | None]:
    # As they are on the wire: a host that is shown decoded may look like another one.
    return url.raw_scheme, url.raw_host, url.port


def _shown(url: httpx.URL) -> str:
    host = url.raw_host.decode("ascii", "replace")
    host = f"[{host}]" if ":" in host else host
    return printable(f"{url.scheme}://{host}" + (f":{url.port}" if url.port is not None else ""))
