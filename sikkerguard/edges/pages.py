"""HTTP as far as our two servers need it: one request, one answer, and no harm by whoever sends something else."""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sikkerguard.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

log = logging.getLogger(__name__)

PLAIN = "text/plain; charset=utf-8"
# Within which a request must be here and its answer gone.
_REQUEST_SECONDS = 10.0
# One more, and the one that has said nothing for longest gives way.
_MOST_CONNECTIONS = 32


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


def as_json(value: Mapping[str, Any]) -> Answer:
    """The answer that is this object."""
    return Answer(200, json.dumps(value, indent=2).encode() + b"\n", "application/json")


def read(
    request: Request, health: Callable[[], tuple[str, ...]], status: Callable[[], Mapping[str, Any]]
) -> Answer | None:
    """The answer to who asks how things are, by `/healthz` or `/status`; None to any other path."""
    if request.path == "/healthz":
        reasons = health()
        return Answer(503, ("\n".join(reasons) + "\n").encode()) if reasons else Answer(200, b"OK\n")
    if request.path == "/status":
        return as_json(status())
    return None


class Pages:
    """Answers the connections of one server. `answer` gets the request and the connection's socket, of which it may
    ask who is at its other end."""

    def __init__(self, answer: Callable[[Request, Any], Answer]) -> None:
        self._answer = answer
        self._tasks: set[asyncio.Task[None]] = set()
        # Those that have no answer yet, the oldest first.
        self._waiting: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection, to its end."""
        task = asyncio.current_task()
        assert task is not None
        if len(self._waiting) >= _MOST_CONNECTIONS:
            self._waiting.pop(next(iter(self._waiting))).transport.abort()
        self._waiting[task] = writer
        self._tasks.add(task)
        try:
            async with asyncio.timeout(_REQUEST_SECONDS):
                await self._serve(reader, writer)
        except (TimeoutError, OSError) as error:
            log.debug("a request broke off: %r", error)
        finally:
            self._tasks.discard(task)
            self._waiting.pop(task, None)
            writer.close()

    async def close(self) -> None:
        """Close what is still connected."""
        for writer in self._waiting.values():
            writer.transport.abort()
        await asyncio.gather(*self._tasks)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request, one answer: those who ask come rarely, and a kept connection would only hold a place."""
        import h11  # at the first request: a start has better things to do first

        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=8192)
        try:
            while (event := connection.next_event()) is h11.NEED_DATA:
                connection.receive_data(await reader.read(8192))
        except h11.RemoteProtocolError as error:
            log.debug("a request is not HTTP: %s", error)
            return
        if not isinstance(event, h11.Request):
            return
        path, _, query = event.target.decode("ascii", "replace").partition("?")
        host = next((value for name, value in event.headers if name == b"host"), b"").decode("ascii", "replace")
        request = Request(event.method.decode("ascii", "replace"), path, query, host)
        answer = self._answer(request, writer.get_extra_info("socket"))
        headers = [
            ("Content-Type", answer.kind),
            ("Content-Length", str(len(answer.body))),
            ("Connection", "close"),
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
            ("Server", f"SikkerGuard/{VERSION}"),
        ]
        writer.write(connection.send(h11.Response(status_code=answer.code, headers=headers)) or b"")
        if request.method != "HEAD":
            writer.write(connection.send(h11.Data(data=answer.body)) or b"")
        await writer.drain()
