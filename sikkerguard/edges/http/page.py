"""`/healthz` and `/status` over HTTP, for this host only.

The address is a loopback one, and a request must say in its Host header that it meant it: a web page that was made to
resolve to 127.0.0.1 (DNS rebinding) names its own domain there and is refused.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from typing import TYPE_CHECKING

from sikkerguard.edges.http.server import Answer, HttpServer, Request, read
from sikkerguard.errors import ListenError

if TYPE_CHECKING:
    from sikkerguard.core.interfaces import Operations


class Page:
    """The local page."""

    name = "page"

    def __init__(self, host: str, port: int, operations: Operations) -> None:
        self._host = host
        self._port = port
        self._operations = operations
        self._server = HttpServer(self._answer)
        self._is_open = False

    async def open(self) -> None:
        """Answer from now on, unless that is so already.

        Raises:
            ListenError: the address is taken or can't be had.
        """
        if self._is_open:
            return
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        try:
            listening = socket.create_server((self._host, self._port), family=family)
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else error
            raise ListenError(
                f"{self._host} port {self._port} can't be listened on ({reason}), so that nobody is told there how "
                "things are. Protection goes on, commands work, and it is tried again. Stop the program that has the "
                "port, or name a free one in SIKKER_HEALTH_ADDRESS"
            ) from error
        self._server.serve(listening)
        self._is_open = True

    async def close(self) -> None:
        """Close the server and what is still connected."""
        await self._server.close()

    def _answer(self, request: Request, _: socket.socket) -> Answer:
        if not _is_local(request.host):
            return Answer(403, b"This page is for this host only.\n")
        if request.method not in ("GET", "HEAD"):
            return Answer(405, b"Only GET is answered.\n")
        return read(request, self._operations) or Answer(404, b"There are /healthz and /status.\n")


def _is_local(host: str) -> bool:
    """Whether a Host header names this host: localhost, or a loopback address, with or without a port."""
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() and not host.endswith("]") else host
    if name.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(name.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False
