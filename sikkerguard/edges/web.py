"""`/healthz` and `/status` over HTTP, for this host only.

The address is a loopback one, and a request must say in its Host header that it meant it: a web page that was made to
resolve to 127.0.0.1 (DNS rebinding) names its own domain there and is refused.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import os
import socket
from typing import TYPE_CHECKING, Any

from sikkerguard.errors import ConfigError
from sikkerguard.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import h11

log = logging.getLogger(__name__)

_IDLE_SECONDS = 10.0
_MOST_CONNECTIONS = 32


class Web:
    """The local server. `health` gives the reasons why the service is not healthy, none when it is; `status` gives
    what `/status` shows."""

    def __init__(
        self, host: str, port: int, health: Callable[[], tuple[str, ...]], status: Callable[[], Mapping[str, Any]]
    ) -> None:
        self._host = host
        self._port = port
        self._health = health
        self._status = status
        self._socket: socket.socket | None = None
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    def bind(self) -> None:
        """Take the address, before anything else is begun; nothing is answered yet.

        Raises:
            ConfigError: the address is taken or can't be had.
        """
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        try:
            self._socket = socket.create_server((self._host, self._port), family=family)
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else error
            raise ConfigError(
                [
                    f"SIKKER_HEALTH_ADDRESS: {self._host} port {self._port} can't be listened on "
                    f"({reason}). Name a free one, or stop the program that has it."
                ]
            ) from error

    async def start(self) -> None:
        """Begin to answer; what was asked since `bind` has waited."""
        if self._socket is None:
            self.bind()
        self._server = await asyncio.start_server(self._connected, sock=self._socket)

    async def stop(self) -> None:
        """Close the server and what is still connected."""
        if self._server is None:
            if self._socket is not None:
                self._socket.close()
        else:
            self._server.close()
            for connection in self._connections:
                connection.cancel()
            await asyncio.gather(*self._connections, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(self._connections) >= _MOST_CONNECTIONS:
            writer.close()
            return
        self._connections.add(task)
        try:
            async with asyncio.timeout(_IDLE_SECONDS):
                await self._serve(reader, writer)
        except (TimeoutError, OSError) as error:
            log.debug("a request for the health page broke off: %r", error)
        finally:
            self._connections.discard(task)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request, one answer: those who ask come rarely, and a kept connection would only hold a place."""
        import h11  # at the first request: a start has better things to do first

        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=8192)
        try:
            while (event := connection.next_event()) is h11.NEED_DATA:
                connection.receive_data(await reader.read(8192))
        except h11.RemoteProtocolError as error:
            log.debug("a request for the health page is not HTTP: %s", error)
            return
        if not isinstance(event, h11.Request):
            return
        status, kind, body = self._answer(event)
        headers = [
            ("Content-Type", kind),
            ("Content-Length", str(len(body))),
            ("Connection", "close"),
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
            ("Server", f"SikkerGuard/{VERSION}"),
        ]
        writer.write(connection.send(h11.Response(status_code=status, headers=headers)) or b"")
        if event.method != b"HEAD":
            writer.write(connection.send(h11.Data(data=body)) or b"")
        await writer.drain()

    def _answer(self, request: h11.Request) -> tuple[int, str, bytes]:
        plain = "text/plain; charset=utf-8"
        host = next((value for name, value in request.headers if name == b"host"), b"")
        if not _is_local(host.decode("ascii", "replace")):
            return 403, plain, b"This page is for this host only.\n"
        if request.method not in (b"GET", b"HEAD"):
            return 405, plain, b"Only GET is answered.\n"
        path = request.target.partition(b"?")[0]
        if path == b"/healthz":
            reasons = self._health()
            return (503, plain, ("\n".join(reasons) + "\n").encode()) if reasons else (200, plain, b"OK\n")
        if path == b"/status":
            return 200, "application/json", json.dumps(self._status(), indent=2).encode() + b"\n"
        return 404, plain, b"There are /healthz and /status.\n"


def _is_local(host: str) -> bool:
    """Whether a Host header names this host: localhost, or a loopback address, with or without a port."""
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() and not host.endswith("]") else host
    if name.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(name.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False
