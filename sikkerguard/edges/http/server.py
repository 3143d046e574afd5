"""HTTP as far as our two servers need it: one request, one answer, and no harm by whoever sends something else."""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sikkerguard.version import VERSION

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Mapping

    from sikkerguard.core.interfaces import Operations

log = logging.getLogger(__name__)

PLAIN = "text/plain; charset=utf-8"
# Within which a request must be here and its answer gone.
_REQUEST_SECONDS = 10.0
# One more, and the one that has said nothing for longest gives way.
_MOST_CONNECTIONS = 32
# Where no connection can be taken, for want of files perhaps.
_PAUSE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked: the method as it was sent, the path, what follows its first `?`, and the Host header, or nothing.
    What is not ASCII in these is U+FFFD."""

    method: str
    path: str
    query: str
    host: str


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP status code, the body, and what it is."""

    code: int
    body: bytes
    kind: str = PLAIN


def as_json(value: Mapping[str, object]) -> Answer:
    """The answer that is this object."""
    return Answer(200, json.dumps(value, indent=2).encode() + b"\n", "application/json")


def read(request: Request, operations: Operations) -> Answer | None:
    """The answer to a request for `/healthz` or `/status`; None for any other path."""
    if request.path == "/healthz":
        reasons = operations.failures()
        return Answer(503, ("\n".join(reasons) + "\n").encode()) if reasons else Answer(200, b"OK\n")
    if request.path == "/status":
        return as_json(operations.status())
    return None


class HttpServer:
    """Answers at one listening socket. `answer` gets the request and the connection, of which it may ask who is at its
    other end."""

    def __init__(self, answer: Callable[[Request, socket.socket], Answer]) -> None:
        self._answer = answer
        self._listening: socket.socket | None = None
        self._pause: asyncio.TimerHandle | None = None
        self._closed = False
        self._tasks: set[asyncio.Task[None]] = set()
        # Those that have no answer yet, the oldest first.
        self._waiting: dict[socket.socket, asyncio.StreamWriter] = {}

    def serve(self, listening: socket.socket) -> None:
        """Answer from now on at this socket, which is ours from here on."""
        listening.setblocking(False)
        self._listening = listening
        self._begin()

    def silence(self) -> None:
        """Close the socket; who is connected is still answered."""
        if self._pause is not None:
            self._pause.cancel()
        if self._listening is not None:
            asyncio.get_running_loop().remove_reader(self._listening)
            self._listening.close()
        self._listening = self._pause = None

    async def close(self) -> None:
        """Close the socket and what is connected."""
        self.silence()
        self._closed = True
        for writer in self._waiting.values():
            writer.transport.abort()
        await asyncio.gather(*self._tasks)

    def _begin(self) -> None:
        self._pause = None
        if self._listening is not None:
            asyncio.get_running_loop().add_reader(self._listening, self._accept, self._listening)

    def _accept(self, listening: socket.socket) -> None:
        """Take one connection. asyncio's own servers take many at once, and lose sight of some as they are closed."""
        loop = asyncio.get_running_loop()
        try:
            connection, _ = listening.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError as error:
            log.warning("Nobody can ask for a moment: %s.", error.strerror or error)
            loop.remove_reader(listening)
            self._pause = loop.call_later(_PAUSE_SECONDS, self._begin)
            return
        task = loop.create_task(self._connected(connection))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connected(self, connection: socket.socket) -> None:
        reader, writer = await asyncio.open_connection(sock=connection)
        try:
            if self._closed:
                return
            if len(self._waiting) >= _MOST_CONNECTIONS:
                self._waiting.pop(next(iter(self._waiting))).transport.abort()
            self._waiting[connection] = writer
            async with asyncio.timeout(_REQUEST_SECONDS):
                await self._serve(reader, writer, connection)
        except (TimeoutError, OSError) as error:
            log.debug("a request broke off: %r", error)
        finally:
            self._waiting.pop(connection, None)
            writer.close()

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, connection: socket.socket
    ) -> None:
        """One request, one answer: those who ask come rarely, and a kept connection would only hold a place."""
        import h11  # at the first request: a start has better things to do first

        protocol = h11.Connection(h11.SERVER, max_incomplete_event_size=8192)
        try:
            while (event := protocol.next_event()) is h11.NEED_DATA:
                protocol.receive_data(await reader.read(8192))
        except h11.RemoteProtocolError as error:
            log.debug("a request is not HTTP: %s", error)
            return
        if not isinstance(event, h11.Request):
            return
        path, _, query = event.target.decode("ascii", "replace").partition("?")
        host = next((value for name, value in event.headers if name == b"host"), b"").decode("ascii", "replace")
        request = Request(event.method.decode("ascii", "replace"), path, query, host)
        answer = self._answer(request, connection)
        headers = [
            ("Content-Type", answer.kind),
            ("Content-Length", str(len(answer.body))),
            ("Connection", "close"),
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
            ("Server", f"SikkerGuard/{VERSION}"),
        ]
        writer.write(protocol.send(h11.Response(status_code=answer.code, headers=headers)) or b"")
        if request.method != "HEAD":
            writer.write(protocol.send(h11.Data(data=answer.body)) or b"")
        await writer.drain()
