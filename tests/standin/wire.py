"""Puts answers on a socket, rightly or in one of the wrong ways."""

from __future__ import annotations

import http
import socket
import struct
import zlib
from email.utils import formatdate
from typing import TYPE_CHECKING

from sikkerguard.version import VERSION
from tests.standin.faults import (
    LISTED_LINE,
    Canned,
    CutOff,
    Delay,
    Drip,
    Drop,
    Endless,
    Fault,
    GzipBomb,
    Reset,
    Understate,
)
from tests.standin.messages import PLAIN, Answer, error_answer

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterable

_BLOCK = LISTED_LINE * (65_536 // len(LISTED_LINE))
_CHUNKED = ("Transfer-Encoding", "chunked")
_CLOSE = ("Connection", "close")


class Wire:
    """The sending half of one exchange. `stopping` cuts waits short; `closing` says that the client expects
    no further answer on this connection; `on_status` hears the status just before it is sent."""

    def __init__(
        self,
        connection: socket.socket,
        stopping: threading.Event,
        *,
        closing: bool,
        bodiless: bool,
    ) -> None:
        self._connection = connection
        self._bodiless = bodiless
        self.stopping = stopping
        self.closing = closing
        self.on_status: Callable[[int], None] = lambda status: None

    def head(self, status: int, headers: Iterable[tuple[str, str]]) -> None:
        """The status line and the headers, with the few that every answer has."""
        self.on_status(status)
        try:
            reason = http.HTTPStatus(status).phrase
        except ValueError:
            reason = "Unnamed"
        common = [("Date", formatdate(usegmt=True)), ("Server", f"sikkerguard-standin/{VERSION}")]
        closing = [_CLOSE] if self.closing else []
        lines = [f"HTTP/1.1 {status} {reason}"]
        lines += [f"{name}: {value}" for name, value in (*common, *headers, *closing)]
        self._connection.sendall("\r\n".join([*lines, "", ""]).encode("latin-1"))

    def body(self, data: bytes) -> None:
        """In blocks, since the socket's timeout counts for each send as a whole."""
        if self._bodiless:
            return
        view = memoryview(data)
        for start in range(0, len(view), len(_BLOCK)):
            self._connection.sendall(view[start : start + len(_BLOCK)])

    def chunk(self, data: bytes) -> None:
        """One chunk of a chunked body; an empty one ends it."""
        self._connection.sendall(b"%x\r\n%b\r\n" % (len(data), data))

    def reset(self) -> None:
        """Makes the close that follows a RST. The listener must then close without a shutdown before."""
        self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def deliver(self, answer: Answer, *, claimed: int | None = None) -> None:
        """A whole answer; `claimed` replaces the true Content-Length."""
        self.answer_head(answer, claimed=claimed)
        self.body(answer.body)

    def answer_head(self, answer: Answer, *, claimed: int | None = None) -> None:
        """Only the head of an answer."""
        length = len(answer.body) if claimed is None else claimed
        own = [("Content-Type", answer.content_type), ("Content-Length", str(length))]
        if answer.status == http.HTTPStatus.NO_CONTENT:
            own = []
        self.head(answer.status, (*own, *answer.headers))


def misbehave(wire: Wire, fault: Fault, respond: Callable[[], Answer]) -> None:
    """Serves `fault`. `respond` lets the request take effect and gives the right answer; it is called at
    most once. Sets `wire.closing` where the connection is of no more use."""
    match fault:
        case Canned():
            wire.deliver(_canned(fault))
        case Delay():
            answer = respond()
            wire.stopping.wait(fault.seconds)
            wire.deliver(answer)
        case Drip():
            _drip(wire, fault, respond())
        case _:
            wire.closing = True
            _break(wire, fault, respond)


def _break(wire: Wire, fault: Fault, respond: Callable[[], Answer]) -> None:
    """The faults after which the connection is closed."""
    match fault:
        case CutOff():
            answer = respond()
            wire.answer_head(answer)
            wire.body(answer.body[: max(0, len(answer.body) - fault.missing)])
        case Understate():
            answer = respond()
            wire.deliver(answer, claimed=max(0, len(answer.body) - fault.extra))
        case Reset(after=None):
            wire.reset()
        case Reset():
            answer = respond()
            wire.answer_head(answer)
            wire.body(answer.body[: fault.after])
            wire.reset()
        case Drop():
            if fault.accepted:
                respond()
        case GzipBomb():
            _bomb(wire, fault)
        case Endless():
            _endless(wire, fault)


def _canned(fault: Canned) -> Answer:
    if fault.status in (http.HTTPStatus.NO_CONTENT, http.HTTPStatus.NOT_MODIFIED):
        return Answer(fault.status, b"", fault.content_type, fault.headers)
    if fault.body is None:
        error = error_answer(fault.status, f"The stand-in was told to answer {fault.status}")
        return Answer(fault.status, error.body, fault.content_type, fault.headers)
    return Answer(fault.status, fault.body, fault.content_type, fault.headers)


def _drip(wire: Wire, fault: Drip, answer: Answer) -> None:
    wire.answer_head(answer)
    for start in range(0, len(answer.body), fault.step):
        if wire.stopping.wait(fault.interval if start else 0):
            wire.closing = True
            return
        wire.body(answer.body[start : start + fault.step])


def _bomb(wire: Wire, fault: GzipBomb) -> None:
    wire.head(200, (("Content-Type", PLAIN), ("Content-Encoding", "gzip"), _CHUNKED))
    packer = zlib.compressobj(9, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
    for start in range(0, fault.unpacked, len(_BLOCK)):
        # The packer keeps most of its output back; an empty chunk would end the body.
        piece = packer.compress(_BLOCK[: fault.unpacked - start])
        if piece:
            wire.chunk(piece)
    wire.chunk(packer.flush())
    wire.chunk(b"")


def _endless(wire: Wire, fault: Endless) -> None:
    wire.head(200, (("Content-Type", fault.content_type), _CHUNKED))
    for start in range(0, fault.cap, len(_BLOCK)):
        wire.chunk(_BLOCK[: fault.cap - start])
