"""The name server on the laboratory's internet."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import TYPE_CHECKING

from scripts.laboratory.network import API, RESOLVER

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scripts.laboratory.network import Namespace


class Resolver:
    """A name server: it knows one name, `api.example.net`, which stands for `answers`, and says of every other that
    there is none. With `silent` it says nothing. What is too long for a datagram is had over TCP."""

    NAME = "api.example.net"

    def __init__(self, namespace: Namespace, address: str = RESOLVER) -> None:
        self._sockets = namespace.inside(lambda: self._bound(address))
        self._threads = [
            threading.Thread(target=serve, daemon=True) for serve in (self._serve_datagrams, self._serve_connections)
        ]
        self.questions = 0
        self.answers: Sequence[str] = (API,)
        self.silent = False

    @staticmethod
    def _bound(address: str) -> tuple[socket.socket, socket.socket]:
        bound = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        bound.bind((address, 53))
        return bound, socket.create_server((address, 53))

    def __enter__(self) -> Resolver:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        # shutdown wakes the threads that wait for a question; close alone would not.
        for each in self._sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for each in self._sockets:
            each.close()

    def _serve_datagrams(self) -> None:
        datagrams, _ = self._sockets
        while True:
            try:
                question, asker = datagrams.recvfrom(2048)
            except OSError:
                return
            if not question:
                return
            self.questions += 1
            if self.silent:
                continue
            reply = self._reply(question)
            if len(reply) > 512:
                # The flag that it was cut off (RFC 1035, section 4.1.1), and no answers.
                reply = reply[:2] + bytes([reply[2] | 2]) + reply[3:6] + b"\0\0" + reply[8 : self._end(question)]
            with contextlib.suppress(OSError):
                datagrams.sendto(reply, asker)

    def _serve_connections(self) -> None:
        _, listener = self._sockets
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                connection.settimeout(5)
                # Two questions may come in one connection, for both families.
                while length := connection.recv(2, socket.MSG_WAITALL):
                    question = connection.recv(int.from_bytes(length, "big"), socket.MSG_WAITALL)
                    reply = self._reply(question)
                    connection.sendall(len(reply).to_bytes(2, "big") + reply)

    @staticmethod
    def _end(question: bytes) -> int:
        return question.index(b"\0", 12) + 5

    def _reply(self, question: bytes) -> bytes:
        wanted = b"".join(bytes([len(label)]) + label.encode() for label in self.NAME.split(".")) + b"\0"
        end = self._end(question)
        known = question[12 : 12 + len(wanted)].lower() == wanted
        kind = question[end - 4 : end - 2] if known else b""
        family = {b"\0\1": socket.AF_INET, b"\0\x1c": socket.AF_INET6}.get(kind)
        packed = [
            socket.inet_pton(family, answer)
            for answer in self.answers
            if family is not None and (":" in answer) == (family == socket.AF_INET6)
        ]
        records = b"".join(
            b"\xc0\x0c" + kind + b"\0\1\0\0\0\x3c" + len(address).to_bytes(2, "big") + address for address in packed
        )
        flags = bytes([0x81, 0x80 if known else 0x83])
        counts = b"\0\1" + len(packed).to_bytes(2, "big") + b"\0\0\0\0"
        return question[:2] + flags + counts + question[12:end] + records
