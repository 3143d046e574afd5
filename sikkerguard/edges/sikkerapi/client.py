"""SikkerAPI over HTTP, as all its endpoints have it: the client, the key, refusals and quotas."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

import httpx

from sikkerguard.core.text import printable
from sikkerguard.edges.sikkerapi.connector import USER_AGENT, PinnedConnector
from sikkerguard.edges.sikkerapi.failures import reason
from sikkerguard.errors import BodyRefused, FetchError, KeyRefused, QuotaSpent, SettingsRefused, Unreachable

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence

TIMEOUT = httpx.Timeout(30.0, connect=10.0)
# Where a key comes from if nothing else is known.
KEY_SOURCE = "SIKKER_API_KEY"
# Under this name a response's `extensions` have its Location header, or None.
LOCATION = "sikkerguard.location"
_PASSING = frozenset({408, 425})
# A refusal of the body, and whether it is for what is in it.
_BODY_REFUSED = {400: True, 422: True, 413: False}
# The headers that tell the quota of pulls, by the beginnings of their names.
PULL_QUOTA = ("X-RateLimit", "X-Daily")


@dataclass(frozen=True, slots=True)
class Quota:
    """What an answer said of the day's quota, None where it said nothing: in requests, or in rows of reports."""

    limit: int | None
    remaining: int | None


class _Bearer(httpx.Auth):
    """The key as a header. Being an `Auth`, it keeps a .netrc from putting something else in its place."""

    def __init__(self, key: str) -> None:
        self._key = key

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        request.headers["Authorization"] = f"Bearer {self._key}"
        yield request


class ApiClient:
    """The API at `url` with this key, which was read from `key_source`. `connector` says where its requests go, by
    default to whatever the name stands for; `transport` stands in for it in tests.

    Raises:
        SettingsRefused: the connector can't be made.
    """

    def __init__(
        self,
        url: str,
        key: str,
        *,
        key_source: str = KEY_SOURCE,
        connector: PinnedConnector | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.url = url
        self.auth = _Bearer(key)
        self.key_source = key_source
        self._connector = connector if connector is not None or transport is not None else PinnedConnector(url)
        self._transport = transport

    def http(self, accept: str, coding: str = "gzip") -> httpx.AsyncClient:
        """A new client of httpx that asks for this type of content in this coding. The key is not in it: `auth` goes
        with each request.

        Raises:
            SettingsRefused: the environment names a proxy that can't be one.
        """
        try:
            return httpx.AsyncClient(
                timeout=TIMEOUT,
                transport=self._connector.transport() if self._connector is not None else self._transport,
                # Neither a proxy nor a password that the connector does not know of.
                trust_env=False,
                headers={"User-Agent": USER_AGENT, "Accept": accept, "Accept-Encoding": coding},
                event_hooks={"response": [_take_location]},
            )
        except (ImportError, ValueError, OSError) as error:
            raise SettingsRefused(
                f"the environment's proxy can't be used ({reason(error)}); check ALL_PROXY, HTTPS_PROXY and HTTP_PROXY"
            ) from error


async def _take_location(response: httpx.Response) -> None:
    """Move the address of a redirect to where httpx does not see it. It works out where that leads also where it is not
    to follow it, and for some values ends the request with whatever the parsing of addresses ends with."""
    response.extensions[LOCATION] = response.headers.pop("Location", None)


def refusal(
    response: httpx.Response, quota_headers: Sequence[str] = PULL_QUOTA, *, key_source: str = KEY_SOURCE
) -> FetchError:
    """The error that an answer with another status than 200 stands for. `quota_headers` tell the quota, by the
    beginnings of their names, and `key_source` is the place where the key is to be corrected."""
    status = response.status_code
    if status == 401:
        return KeyRefused(f"SikkerAPI does not know this key (401); correct it in {key_source}")
    if status == 403:
        return KeyRefused(
            f"SikkerAPI refuses this key (403): it is disabled or has expired; put a new one into {key_source}"
        )
    if status == 429:
        quota = quota_of(response.headers, *quota_headers)
        return QuotaSpent(
            f"SikkerAPI refuses for now (429), with {quota.remaining} left of the day's quota"
            if quota.remaining
            else "SikkerAPI says that the day's quota is used up (429)",
            retry_after=_retry_after(response.headers, reset="X-RateLimit" in quota_headers),
            remaining=quota.remaining,
            limit=quota.limit,
        )
    message = f"SikkerAPI answered {status} {printable(response.reason_phrase)}".rstrip()
    retry_after = _retry_after(response.headers)
    if status in _BODY_REFUSED:
        return BodyRefused(message, content=_BODY_REFUSED[status], retry_after=retry_after)
    if status in _PASSING or status >= 500:
        return Unreachable(message, retry_after=retry_after)
    return SettingsRefused(message, retry_after=retry_after)


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
    """The quota by the first of these kinds of headers that has a number: `X-Daily` stands for X-Daily-Limit and
    X-Daily-Remaining."""

    def number(name: str) -> int | None:
        for kind in kinds:
            text = headers.get(f"{kind}-{name}", "")
            if text.isascii() and text.isdigit():
                return int(text[:12])
        return None

    return Quota(limit=number("Limit"), remaining=number("Remaining"))
