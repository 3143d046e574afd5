"""SikkerAPI over HTTP: clients of it, and the pull. What a list means is none of its business."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

import httpx

from sikkerguard.core.sikkerapi.body import LARGEST_BODY, PIECE, Pace, Unpacker, too_large
from sikkerguard.core.text import printable
from sikkerguard.edges.sikkerapi.connector import USER_AGENT, PinnedConnector
from sikkerguard.edges.sikkerapi.failures import reason, sentence, within
from sikkerguard.errors import FetchError, Objection

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence

TIMEOUT = httpx.Timeout(30.0, connect=10.0)
_MOST_REDIRECTS = 5
_LONGEST_PULL = 300.0
# Where a key comes from if nothing else is known.
KEY_SOURCE = "SIKKER_API_KEY"
_RETRYABLE = frozenset({408, 425})
_OBJECTIONS = {400: Objection.CONTENT, 422: Objection.CONTENT, 413: Objection.SIZE}
# The headers that tell the quota of pulls, by the beginnings of their names.
_PULLS = ("X-RateLimit", "X-Daily")
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_LOCATION = "sikkerguard.location"


@dataclass(frozen=True, slots=True)
class Quota:
    """What the answer said of the day's quota, where it did; in requests."""

    limit: int | None
    remaining: int | None


class _Bearer(httpx.Auth):
    """The key as a header. Being an `Auth`, it keeps a .netrc from putting something else in its place."""

    def __init__(self, key: str) -> None:
        self._key = key

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        request.headers["Authorization"] = f"Bearer {self._key}"
        yield request


class SikkerApi:
    """A client of the API at `url` with this key, which was read from `key_source`. `door` says where its requests go,
    by default to whatever the name stands for. `transport`, in place of a door, `clock` (seconds) and `longest`, the
    time limit for a pull in seconds, are for tests to put in.

    Raises:
        FetchError: there can be no door.
    """

    def __init__(
        self,
        url: str,
        key: str,
        *,
        key_source: str = KEY_SOURCE,
        door: PinnedConnector | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        clock: Callable[[], float] = time.monotonic,
        longest: float = _LONGEST_PULL,
    ) -> None:
        self.url = url
        self.auth = _Bearer(key)
        self.key_source = key_source
        self._door = door if door is not None or transport is not None else PinnedConnector(url)
        self._transport = transport
        self._clock = clock
        self._longest = longest

    async def pull(self, score_min: int, sink: Callable[[bytes], Awaitable[None]]) -> Quota:
        """Fetch the blacklist and hand its bytes to `sink`, unpacked, piece by piece.

        Raises:
            FetchError: the list could not be had, or not whole. What `sink` raises passes through.
            MemoryError: there is not enough of it.
        """
        refused: list[Exception] = []

        async def hand_on(piece: bytes) -> None:
            try:
                await sink(piece)
            except Exception as error:
                refused.append(error)
                raise

        try:
            return await within(self._longest, self._pull(score_min, hand_on))
        except (FetchError, MemoryError):
            raise
        except Exception as error:
            if refused:
                raise
            if isinstance(error, TimeoutError):
                problem = f"SikkerAPI took longer than {self._longest:g} s for the list"
            else:
                problem = sentence(error)
            raise FetchError(problem, retryable=True) from error

    def client(self, accept: str, packing: str = "gzip") -> httpx.AsyncClient:
        """A client that asks for this type of content, packed this way or not at all. The key is not in it: `auth`
        goes with each request.

        Raises:
            FetchError: the environment names a proxy that can't be one.
        """
        try:
            return httpx.AsyncClient(
                timeout=TIMEOUT,
                transport=self._door.transport() if self._door is not None else self._transport,
                # Neither a proxy nor a password that the door does not know of.
                trust_env=False,
                headers={"User-Agent": USER_AGENT, "Accept": accept, "Accept-Encoding": packing},
                event_hooks={"response": [_take_location]},
            )
        except (ImportError, ValueError, OSError) as error:
            raise FetchError(
                f"the environment's proxy can't be used ({reason(error)}); check ALL_PROXY, HTTPS_PROXY and HTTP_PROXY",
                retryable=False,
            ) from error

    async def _pull(self, score_min: int, sink: Callable[[bytes], Awaitable[None]]) -> Quota:
        url = httpx.URL(f"{self.url}/v1/key/blacklist", params={"plaintext": "true", "scoreMinimum": str(score_min)})
        async with self.client("text/plain") as client:
            return await self._follow(client, url, sink)

    async def _follow(
        self, client: httpx.AsyncClient, url: httpx.URL, sink: Callable[[bytes], Awaitable[None]]
    ) -> Quota:
        origin = _origin(url)
        for _ in range(_MOST_REDIRECTS):
            async with client.stream("GET", url, auth=self.auth) as response:
                location = response.extensions[_LOCATION]
                if response.status_code in _REDIRECTS and location is not None:
                    url = _joined(url, location)
                    if _origin(url) != origin:
                        raise FetchError(
                            f"SikkerAPI redirects to {_shown(url)}, where the key must not go; check SIKKER_API_URL",
                            retryable=False,
                        )
                    continue
                if response.status_code != 200:
                    raise refusal(response, key_source=self.key_source)
                await self._receive(response, sink)
                return quota_of(response.headers, *_PULLS)
        raise FetchError("SikkerAPI redirects in a circle; check SIKKER_API_URL", retryable=False)

    async def _receive(self, response: httpx.Response, sink: Callable[[bytes], Awaitable[None]]) -> None:
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


async def _take_location(response: httpx.Response) -> None:
    """Take the address of a redirect out of httpx's sight. It works out where that leads also where it is not to
    follow it, and for some values ends the request with whatever the parsing of addresses ends with."""
    response.extensions[_LOCATION] = response.headers.pop("Location", None)


def _joined(url: httpx.URL, location: str) -> httpx.URL:
    try:
        return url.join(location)
    except Exception as error:
        # By version that is an InvalidURL, a ValueError, a UnicodeError or rfc3986's ResolutionError.
        raise FetchError(
            f"SikkerAPI redirects to what is no address ({printable(location)}); check SIKKER_API_URL", retryable=True
        ) from error


def _origin(url: httpx.URL) -> tuple[bytes, bytes, int | None]:
    # As they are on the wire: a host that is shown decoded may look like another one.
    return url.raw_scheme, url.raw_host, url.port


def _shown(url: httpx.URL) -> str:
    host = url.raw_host.decode("ascii", "replace")
    host = f"[{host}]" if ":" in host else host
    return printable(f"{url.scheme}://{host}" + (f":{url.port}" if url.port is not None else ""))


def refusal(response: httpx.Response, kinds: Sequence[str] = _PULLS, *, key_source: str = KEY_SOURCE) -> FetchError:
    """The error that an answer with another status than 200 stands for; `kinds` of headers tell the quota, and
    `key_source` is the place where the key is to be corrected."""
    status = response.status_code
    if status == 401:
        return FetchError(f"SikkerAPI does not know this key (401); correct it in {key_source}", retryable=False)
    if status == 403:
        return FetchError(
            f"SikkerAPI refuses this key (403): it is disabled or has expired; put a new one into {key_source}",
            retryable=False,
        )
    if status == 429:
        quota = quota_of(response.headers, *kinds)
        return FetchError(
            f"SikkerAPI refuses for now (429), with {quota.remaining} left of the day's quota"
            if quota.remaining
            else "SikkerAPI says that the day's quota is used up (429)",
            retryable=True,
            retry_after=_retry_after(response.headers, reset="X-RateLimit" in kinds),
            quota=True,
            remaining=quota.remaining,
            limit=quota.limit,
        )
    return FetchError(
        f"SikkerAPI answered {status} {printable(response.reason_phrase)}".rstrip(),
        retryable=status in _RETRYABLE or status >= 500,
        retry_after=_retry_after(response.headers),
        objection=_OBJECTIONS.get(status),
    )


def _retry_after(headers: Mapping[str, str], *, reset: bool = False) -> float | None:
    """Seconds, from `Retry-After`, or else, with `reset`, from `X-RateLimit-Reset` (Unix seconds)."""
    text = headers.get("Retry-After", "")
    if text.isascii() and text.isdigit():
        return float(text[:9])
    if text:
        # The other form that RFC 9110 allows (section 10.2.3); what is neither says nothing.
        with suppress(ValueError, OverflowError):
            moment = parsedate_to_datetime(text)
            # Of its three forms (section 5.6.7), asctime's names no zone; all are in UTC.
            moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
            return max(0.0, moment.timestamp() - time.time())
    full = headers.get("X-RateLimit-Reset", "")
    if reset and full.isascii() and full.isdigit():
        return max(0.0, float(full[:12]) - time.time())
    return None


def quota_of(headers: Mapping[str, str], *kinds: str) -> Quota:
    """The quota by the first of these kinds of headers that tells it: X-Daily is X-Daily-Limit, X-Daily-Remaining."""

    def number(name: str) -> int | None:
        for kind in kinds:
            text = headers.get(f"{kind}-{name}", "")
            if text.isascii() and text.isdigit():
                return int(text[:12])
        return None

    return Quota(limit=number("Limit"), remaining=number("Remaining"))
