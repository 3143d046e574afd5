"""Pings of many sources that never pause, also while the host is away, and a count of those that are answered."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections import Counter
from typing import TYPE_CHECKING

from scripts.laboratory.network import HOST, HOST_V6

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

    from scripts.laboratory.network import Laboratory

_EVERY = 0.005  # seconds
_REQUESTS = {socket.AF_INET: 8, socket.AF_INET6: 128}  # RFC 792 and RFC 4443; each answer's type is 0 and 129


class Pings:
    """From entering until leaving, each source pings the host. Those that nobody answers are lost, and that is all."""

    def __init__(self, lab: Laboratory, *, innocent: Sequence[str], listed: Sequence[str]) -> None:
        self._stopped = threading.Event()
        self._answered: Counter[str] = Counter()
        self._sockets = {source: _bound(lab, source) for source in (*listed, *innocent)}
        self._threads = [threading.Thread(target=self._send)]
        self._threads += [threading.Thread(target=self._receive, args=(source,)) for source in self._sockets]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()
        for each in self._sockets.values():
            each.close()

    def answers(self, source: str) -> int:
        """How many pings of this source have been answered."""
        return self._answered[source]

    def forget(self) -> None:
        """Count from now on."""
        self._answered.clear()

    def _send(self) -> None:
        while not self._stopped.wait(_EVERY):
            for source, pinging in self._sockets.items():
                # No route, no neighbour: the host is away.
                with contextlib.suppress(OSError):
                    pinging.sendto(_request(pinging.family), (HOST_V6 if ":" in source else HOST, 0))

    def _receive(self, source: str) -> None:
        pinging = self._sockets[source]
        pinging.settimeout(0.1)
        while not self._stopped.is_set():
            with contextlib.suppress(OSError):
                packet, sender = pinging.recvfrom(2048)
                offset = 0 if ":" in source else (packet[0] & 15) * 4
                if sender[0] in (HOST, HOST_V6) and packet[offset] == (129 if ":" in source else 0):
                    self._answered[source] += 1


def _bound(lab: Laboratory, source: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in source else socket.AF_INET
    protocol = socket.IPPROTO_ICMPV6 if ":" in source else socket.IPPROTO_ICMP
    lab.own(source)
    made = lab.internet.inside(lambda: socket.socket(family, socket.SOCK_RAW, protocol))
    made.bind((source, 0))
    return made


def _request(family: int) -> bytes:
    """A ping without data. The kernel fills in the checksum of ICMPv6."""
    head = struct.pack("!BBHHH", _REQUESTS[socket.AddressFamily(family)], 0, 0, 7, 1)
    if family == socket.AF_INET6:
        return head
    total = sum(struct.unpack("!4H", head))
    return head[:2] + struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF) + head[4:]
