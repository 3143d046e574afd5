"""Connections to SikkerAPI, or to a proxy: the addresses of its name, proof that they are genuine, and requests to
those alone.

Names are looked up here and nowhere else, so that a request connects to no other address than one that was proved.
Behind a proxy nothing can be proved of SikkerAPI itself, nor is any address of it connected to.
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
from sikkerguard.edges.sikkerapi.failures import EXPECTED, log_unexpected, reason
from sikkerguard.edges.sikkerapi.proxies import endpoint_of, proxy_of
from sikkerguard.errors import SettingsRefused
from sikkerguard.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

USER_AGENT = f"SikkerGuard/{VERSION}"
_CONNECT_SECONDS = 10.0
# Where there are several addresses, each has so long; the last one has all the time.
_CONNECT_SECONDS_EACH = 3.0
# With these nothing was sent. The last one passes httpx where httpcore is older than 1.0.6, as on Debian 12.
_UNCONNECTED = (httpx.ConnectError, httpx.ConnectTimeout, ssl.SSLCertVerificationError)
_MAX_STATUS = 64 << 10
# SikkerAPI's answers to a request without a key, or with one that it does not know or refuses.
_REFUSALS = frozenset({401, 403, 429})
# Without https no certificate is asked for, and none is good: reading all authorities takes a while.
_NO_AUTHORITIES = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


class PinnedConnector:
    """Connects to the API at `url`, or to the proxy that `environment` names for it. `look_up`, which returns the
    addresses of a name, and `resolve_seconds`, its time limit, are for tests to put in.

    Raises:
        SettingsRefused: the proxy can't be one, or the certificates of authorities can't be read.
    """

    def __init__(
        self,
        url: str,
        environment: Mapping[str, str] = os.environ,
        *,
        look_up: Callable[[str], Iterable[str]] = resolution.look_up,
        resolve_seconds: float = resolution.MAX_SECONDS,
    ) -> None:
        self._url = url
        self._look_up = look_up
        self._resolve_seconds = resolve_seconds
        self._proxy = proxy_of(url, environment)
        self.way = endpoint_of(url, environment)
        # Reading the certificates of all authorities takes a while: once, and not in the event loop.
        self._tls: ssl.SSLContext | None = None
        if url.startswith("https:"):
            self._tls = tls_context("" if self._proxy or self.way.literal else self.way.host)
        self._addresses: tuple[str, ...] = ()
        self.broken = False

    def use(self, addresses: Sequence[str]) -> None:
        """Send requests to these addresses from now on, trying them in this order; with none, to whatever the host of
        the URL stands for."""
        self._addresses = tuple(addresses)
        self.broken = False

    async def resolve(self) -> tuple[str, ...]:
        """The addresses that the name has now; empty where it does not resolve in time."""
        found = await resolution.resolve(self.way.host, self._resolve_seconds, self._look_up)
        return tuple(address for address in found if is_address(address))

    async def prove(self, address: str) -> str:
        """Connect to this address. Returns why it is not SikkerAPI's (or the proxy's); empty where it is.

        By https, SikkerAPI is a server that completes a handshake with a certificate for its name that an authority
        vouches for. By http, it is one that answers a request for the key's status, made without a key, as SikkerAPI
        does. A proxy is any host that takes a connection.
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
        except EXPECTED as error:
            return reason(error)
        except Exception as error:  # noqa: BLE001 - it is logged, and this address is not proved
            log_unexpected(error)
            return type(error).__name__
        return ""

    def transport(self) -> httpx.AsyncBaseTransport:
        """A new transport for a client of httpx, to the addresses of the last `use`.

        Raises:
            ImportError, ValueError: httpx can't use the proxy.
        """
        if not self._addresses:
            return self._connect("")
        transports = {address: self._connect(address) for address in self._addresses}
        return _FirstReachable(transports, self._address_of, self._failed)

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
                if len(body) > _MAX_STATUS:
                    return "it answers with too much to be SikkerAPI"
        if not _is_status(response.status_code, body):
            return f"it answers {response.status_code}, not as SikkerAPI does"
        return ""

    def _connect(self, address: str) -> httpx.AsyncBaseTransport:
        """A transport to one address of SikkerAPI or of the proxy; with an empty one, to what the name stands for."""
        proxy = None
        if self._proxy is not None:
            # A proxy that itself is spoken to by TLS is known by its name.
            host = address if address and self._proxy.scheme != "https" else self._proxy.host
            url = httpx.URL(scheme=self._proxy.scheme, host=host, port=self._proxy.port)
            proxy = httpx.Proxy(url, auth=self._proxy.auth)
        transport = httpx.AsyncHTTPTransport(verify=self._tls or _NO_AUTHORITIES, trust_env=False, proxy=proxy)
        host = address if proxy is None else proxy.url.host
        return (
            _ResolvingTransport(transport, self.resolve) if not is_address(host) and not self.way.literal else transport
        )

    def _address_of(self, url: httpx.URL, address: str) -> httpx.URL:
        return url if self._proxy is not None else url.copy_with(host=address)

    def _failed(self) -> None:
        self.broken = True


class _FirstReachable(httpx.AsyncBaseTransport):
    """Sends a request to the first of these addresses that can be connected to, each by a transport of its own.
    `address_of` returns the URL to ask for at an address, and `failed` is called where an address could not be
    connected to. A request that was sent is not sent again."""

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
        """See httpx.AsyncBaseTransport."""
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


class _ResolvingTransport(httpx.AsyncBaseTransport):
    """Sends a request by a host name, if `resolve` finds addresses in time. The transport below looks the name up once
    more, but without a deadline, in a thread which a stop has to wait for: a name that hangs must not get there."""

    def __init__(self, transport: httpx.AsyncBaseTransport, resolve: Callable[[], Awaitable[tuple[str, ...]]]) -> None:
        self._transport = transport
        self._resolve = resolve

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """See httpx.AsyncBaseTransport."""
        if not await self._resolve():
            raise httpx.ConnectError("the name does not resolve", request=request)
        return await self._transport.handle_async_request(request)

    async def aclose(self) -> None:
        """Close all connections."""
        await self._transport.aclose()


class _SingleNameContext(ssl.SSLContext):
    """Expects a certificate for `name`, whatever the connection was addressed to: httpx on Debian 12 has no other way
    to connect to an address and to verify a name."""

    name: str

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        """See ssl.SSLContext.wrap_bio; the name is replaced."""
        return super().wrap_bio(incoming, outgoing, server_side, self.name, session)


def tls_context(name: str) -> ssl.SSLContext:
    """The TLS settings that httpx has by default; with a `name`, for connections to this name alone. Reads the
    certificates of all authorities from the disk.

    Raises:
        SettingsRefused: they can't be read.
    """
    try:
        context = httpx.create_ssl_context()
    except OSError as error:
        raise SettingsRefused(
            f"the certificates of authorities can't be read ({reason(error)}); check SSL_CERT_FILE and SSL_CERT_DIR",
        ) from error
    if name:
        context.__class__ = _SingleNameContext
    if isinstance(context, _SingleNameContext):
        context.name = name
    return context


def _is_status(code: int, body: bytes) -> bool:
    """Whether this is how SikkerAPI answers a request for the key's status."""
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        return False
    if not isinstance(answer, dict):
        return False
    if code == 200:
        return isinstance(answer.get("quotas"), dict) or isinstance(answer.get("tier"), dict)
    return code in _REFUSALS and isinstance(answer.get("error"), str)
