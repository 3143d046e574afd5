"""The door to SikkerAPI: what its name, or a proxy's, stands for; which of that is genuine; and requests to just that.

Names are looked up here and nowhere else, so that a request connects to the addresses that proved themselves and to no
other. Behind a proxy nothing can be proved of SikkerAPI itself, nor is any address of it connected to.
"""

from __future__ import annotations

import asyncio
import json
import os
import ssl
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import httpx

from sikkerguard.core.lists.allowlist import PROXY
from sikkerguard.core.sikkerapi.endpoint import is_address
from sikkerguard.core.text import printable
from sikkerguard.edges.sikkerapi import resolution
from sikkerguard.edges.sikkerapi.failures import FORESEEN, reason, tell
from sikkerguard.edges.sikkerapi.proxies import proxy_of, way_of
from sikkerguard.errors import FetchError
from sikkerguard.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

USER_AGENT = f"SikkerGuard/{VERSION}"
_CONNECT_SECONDS = 10.0
# Where there are several addresses, each has so long; the last one has all the time.
_CONNECT_SECONDS_EACH = 3.0
# With these nothing was sent. The last one is what httpx on Debian 12 lets through.
_UNCONNECTED = (httpx.ConnectError, httpx.ConnectTimeout, ssl.SSLCertVerificationError)
_LARGEST_STATUS = 64 << 10
# With these SikkerAPI says that it knows no such key, or refuses it; a request without one is answered so.
_REFUSALS = frozenset({401, 403, 429})
# Without https no certificate is asked for, and none is good: reading all authorities takes a while.
_NO_AUTHORITIES = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


class PinnedConnector:
    """The door to the API at `url`. `environment` names the proxies; `look_up`, which gives the addresses of a name,
    and `resolve_seconds`, its time limit, are for tests to put in.

    Raises:
        FetchError: the proxy can't be one, or the certificates of authorities can't be read.
    """

    def __init__(
        self,
        url: str,
        environment: Mapping[str, str] = os.environ,
        *,
        look_up: Callable[[str], Iterable[str]] = resolution.look_up,
        resolve_seconds: float = resolution.LONGEST_SECONDS,
    ) -> None:
        self._url = url
        self._look_up = look_up
        self._resolve_seconds = resolve_seconds
        self._proxy = proxy_of(url, environment)
        self.way = way_of(url, environment)
        # Reading the certificates of all authorities takes a while: once, and not in the event loop.
        self._tls: ssl.SSLContext | None = None
        if url.startswith("https:"):
            self._tls = tls_context("" if self._proxy or self.way.literal else self.way.host)
        self._addresses: tuple[str, ...] = ()
        self.broken = False

    def use(self, addresses: Sequence[str]) -> None:
        """Send requests to these addresses from here on, the first one first; with none, to whatever the name in the
        address stands for, or to the address in it."""
        self._addresses = tuple(addresses)
        self.broken = False

    async def resolve(self) -> tuple[str, ...]:
        """The addresses that the name stands for now; empty where it does not resolve in time."""
        found = await resolution.resolve(self.way.host, self._resolve_seconds, self._look_up)
        return tuple(address for address in found if is_address(address))

    async def prove(self, address: str) -> str:
        """Connect to this address, and say why it is not what the name stands for; empty where it is.

        By https SikkerAPI is who completes a handshake with a certificate for its name that an authority vouches for.
        By http it is who answers a request for the key's status, made without a key, as SikkerAPI does. A proxy is who
        takes a connection.
        """
        try:
            if self.way.reason != PROXY and self._tls is None:
                return await self._answers(address)
            tls = None if self.way.reason == PROXY else self._tls
            name = None if tls is None else self.way.host
            _, writer = await asyncio.open_connection(address, self.way.port, ssl=tls, server_hostname=name)
            writer.transport.abort()
        except ssl.SSLCertVerificationError as error:
            return f"its certificate is not SikkerAPI's: {printable(error.verify_message.rstrip('.'))}"
        except FORESEEN as error:
            return reason(error)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is told, and this address has not proved itself
            tell(error)
            return type(error).__name__
        return ""

    def transport(self) -> httpx.AsyncBaseTransport:
        """What a client of httpx sends its requests by.

        Raises:
            ImportError, ValueError: httpx can't use the proxy.
        """
        if not self._addresses:
            return self._connect("")
        transports = {address: self._connect(address) for address in self._addresses}
        return _Ways(transports, self._address_of, self._failed)

    async def _answers(self, address: str) -> str:
        url = httpx.URL(f"{self._url}/v1/key/status")
        headers = {"Host": urlsplit(self._url).netloc, "Accept": "application/json", "Accept-Encoding": "identity"}
        body = b""
        async with (
            httpx.AsyncClient(transport=self._connect(address), trust_env=False) as client,
            client.stream(
                "GET", url.copy_with(host=address), headers={"User-Agent": USER_AGENT, **headers}
            ) as response,
        ):
            async for piece in response.aiter_raw():
                body += piece
                if len(body) > _LARGEST_STATUS:
                    return "it answers with too much to be SikkerAPI"
        if not _is_status(response.status_code, body):
            return f"it answers {response.status_code}, not as SikkerAPI does"
        return ""

    def _connect(self, address: str) -> httpx.AsyncBaseTransport:
        """To one address of SikkerAPI or of the proxy, or, where it is empty, to whatever the name stands for."""
        proxy = None
        if self._proxy is not None:
            # A proxy that itself is spoken to by TLS is known by its name.
            host = address if address and self._proxy.scheme != "https" else self._proxy.host
            url = httpx.URL(scheme=self._proxy.scheme, host=host, port=self._proxy.port)
            proxy = httpx.Proxy(url, auth=self._proxy.auth)
        transport = httpx.AsyncHTTPTransport(verify=self._tls or _NO_AUTHORITIES, trust_env=False, proxy=proxy)
        host = address if proxy is None else proxy.url.host
        return _Named(transport, self.resolve) if not is_address(host) and not self.way.literal else transport

    def _address_of(self, url: httpx.URL, address: str) -> httpx.URL:
        return url if self._proxy is not None else url.copy_with(host=address)

    def _failed(self) -> None:
        self.broken = True


class _Ways(httpx.AsyncBaseTransport):
    """Sends a request to the first of these addresses that can be connected to, each by a transport of its own.
    `address_of` gives the URL to ask for at one, and `failed` hears that one could not be connected to. What was sent
    is not sent again."""

    def __init__(
        self,
        transports: Mapping[str, httpx.AsyncBaseTransport],
        address_of: Callable[[httpx.URL, str], httpx.URL],
        failed: Callable[[], None],
    ) -> None:
        self._transports = transports
        self._address_of = address_of
        self._failed = failed

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """As httpx wants it."""
        *others, last = self._transports
        for address in others:
            try:
                return await self._send(request, address, _CONNECT_SECONDS_EACH)
            except _UNCONNECTED:
                continue
        return await self._send(request, last, _CONNECT_SECONDS)

    async def aclose(self) -> None:
        """Close all connections."""
        for transport in self._transports.values():
            await transport.aclose()

    async def _send(self, request: httpx.Request, address: str, seconds: float) -> httpx.Response:
        timeouts = {**request.extensions.get("timeout", {}), "connect": seconds}
        there = httpx.Request(
            request.method,
            self._address_of(request.url, address),
            # Host, which names SikkerAPI and not the address, is among them.
            headers=request.headers,
            stream=request.stream,
            extensions={**request.extensions, "timeout": timeouts},
        )
        try:
            return await self._transports[address].handle_async_request(there)
        except _UNCONNECTED:
            self._failed()
            raise


class _Named(httpx.AsyncBaseTransport):
    """Sends a request to whatever a name stands for, if `resolve` finds that out in time. What sends it looks the name
    up once more, but without a deadline, and in a thread which a stop has to wait for."""

    def __init__(self, transport: httpx.AsyncBaseTransport, resolve: Callable[[], Awaitable[tuple[str, ...]]]) -> None:
        self._transport = transport
        self._resolve = resolve

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """As httpx wants it."""
        if not await self._resolve():
            raise httpx.ConnectError("the name does not resolve", request=request)
        return await self._transport.handle_async_request(request)

    async def aclose(self) -> None:
        """Close all connections."""
        await self._transport.aclose()


class _OneName(ssl.SSLContext):
    """Wants a certificate for this name, whatever the connection was addressed to: httpx on Debian 12 knows no other
    way to connect to an address and to verify a name."""

    name: str

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        """As `ssl.SSLContext` has it, but for the name."""
        return super().wrap_bio(incoming, outgoing, server_side, self.name, session)


def tls_context(name: str) -> ssl.SSLContext:
    """The settings for TLS as httpx has them, for connections to this name alone unless it is empty. Reads the
    certificates of all authorities.

    Raises:
        FetchError: they can't be read.
    """
    try:
        context = httpx.create_ssl_context()
    except OSError as error:
        raise FetchError(
            f"the certificates of authorities can't be read ({reason(error)}); check SSL_CERT_FILE and SSL_CERT_DIR",
            retryable=False,
        ) from error
    if name:
        context.__class__ = _OneName
        assert isinstance(context, _OneName)
        context.name = name
    return context


def _is_status(code: int, body: bytes) -> bool:
    """Whether SikkerAPI answers a request for the key's status so."""
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        return False
    if not isinstance(answer, dict):
        return False
    if code == 200:
        return isinstance(answer.get("quotas"), dict) or isinstance(answer.get("tier"), dict)
    return code in _REFUSALS and isinstance(answer.get("error"), str)
