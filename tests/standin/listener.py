"""The sockets: HTTP/1.1 with keep-alive, a thread for each connection, and an end that waits for them."""

from __future__ import annotations

import socket
import socketserver
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from tests.standin.messages import Answer, Request, error_answer
from tests.standin.wire import Wire

if TYPE_CHECKING:
    from collections.abc import Callable

_IDLE_SECONDS = 60.0
_CLOSING_SECONDS = 5.0
_DRAINED_BYTES = 64 << 20
_BLOCK = 1 << 16


class Handler(BaseHTTPRequestHandler):
    """Reads requests and hands them on; whatever is sent, `Wire` sends."""

    server: Listener
    protocol_version = "HTTP/1.1"
    timeout = _IDLE_SECONDS
    disable_nagle_algorithm = True

    def _serve(self) -> None:
        # urlsplit would raise on some of what clients may send.
        path, _, query = self.path.partition("?")
        body, problem = self._read_body(self.server.body_limit)
        wire = Wire(
            self.connection,
            self.server.stopping,
            closing=self.close_connection,
            bodiless=self.command == "HEAD",
        )
        request = Request(
            client=str(self.client_address[0]),
            method=self.command,
            path=path,
            query=tuple(parse_qsl(query, keep_blank_values=True)),
            headers=tuple(self.headers.items()),
            body=body,
            problem=problem,
        )
        self.server.exchange(request, wire)
        self.close_connection = wire.closing

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _serve

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the record is the log."""

    def _read_body(self, limit: int) -> tuple[bytes, Answer | None]:
        """The body, or the answer to one that isn't taken. Raises ConnectionError if the client leaves.

        What is refused is read all the same, up to a bound: closing on unread bytes sends a RST, which may
        overtake the answer.
        """
        if self.headers.get("Transfer-Encoding") is not None:
            self.close_connection = True
            return b"", error_answer(411, "A request body needs a Content-Length")
        text = self.headers.get("Content-Length")
        if text is None:
            missing = self.command in ("POST", "PUT", "PATCH")
            return b"", error_answer(411, "A request body needs a Content-Length") if missing else None
        if not (text.isascii() and text.isdigit()):
            self.close_connection = True
            return b"", error_answer(400, "Content-Length must be a whole number")
        length = int(text)
        if length <= limit:
            return self._read(length, keep=True), None
        if length > _DRAINED_BYTES:
            self.close_connection = True
        else:
            self._read(length, keep=False)
        return b"", error_answer(413, f"The body is larger than {limit} bytes")

    def _read(self, length: int, *, keep: bool) -> bytes:
        kept = bytearray()
        while length:
            block = self.rfile.read(min(length, _BLOCK))
            if not block:
                raise ConnectionError("the client left before its request was complete")
            length -= len(block)
            if keep:
                kept += block
        return bytes(kept)


class Listener(ThreadingHTTPServer):
    """A listening socket. `exchange` serves one request; `body_limit` is how many bytes a body may have.

    Raises OSError if the address can't be bound.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self,
        address: str,
        port: int,
        exchange: Callable[[Request, Wire], None],
        body_limit: int,
    ) -> None:
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.exchange = exchange
        self.body_limit = body_limit
        self.stopping = threading.Event()
        self._open: set[socket.socket] = set()
        self._changed = threading.Condition()
        super().__init__((address, port), Handler)

    def server_bind(self) -> None:
        """Without the base class's look-up of the host's name, which may wait for DNS."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]

    def process_request(self, request: Any, client_address: Any) -> None:
        """Notes the connection before its thread exists, so that `close_all` can't miss it."""
        with self._changed:
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """A connection that shall end in a RST must not be shut down first: that would send a FIN."""
        lingering = request.fileno() >= 0 and request.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER)
        if lingering:
            self.close_request(request)
        else:
            super().shutdown_request(request)
        with self._changed:
            self._open.discard(request)
            self._changed.notify_all()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hung up is no error of ours; anything else is shown."""
        if not isinstance(sys.exc_info()[1], (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)

    def close_all(self) -> None:
        """Ends every connection and waits, for seconds at most, until their threads have let go of them."""
        self.stopping.set()
        with self._changed:
            for connection in self._open:
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:
                    # It is closed, or the client was faster.
                    continue
            self._changed.wait_for(lambda: not self._open, _CLOSING_SECONDS)
