"""Packets that come without a pause, and a count of those that get through."""

from __future__ import annotations

import selectors
import socket
import threading
from collections import Counter
from typing import TYPE_CHECKING

from scripts.laboratory.network import HOST, HOST_V6
from scripts.laboratory.tools import wait_for

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

    from scripts.laboratory.network import Laboratory, Namespace

_PORT = 40_000
_EVERY = 0.001  # seconds; a gap in the protection that is as long as this lets a packet through
_SO_RCVBUFFORCE = 33  # asm-generic/socket.h; Python has no name for it
_BUFFER = 1 << 22  # bytes: seconds of packets, should the receiver have to wait for its turn


class Traffic:
    """A UDP packet of each source to the host every millisecond, from entering until leaving.

    `innocent` sources may always pass, and each of their packets must: they show that there is a way, and that
    nothing good is lost on it.
    """

    def __init__(self, lab: Laboratory, *, innocent: Sequence[str], listed: Sequence[str]) -> None:
        self._innocent = tuple(innocent)
        self._listed = tuple(listed)
        self._sent: Counter[str] = Counter()
        self._arrived: Counter[str] = Counter()
        self._stopped = threading.Event()
        # The innocent come last: when their packets are here, so are all that were sent before.
        self._senders = {source: _bound(lab.internet, lab.own(source)) for source in (*listed, *innocent)}
        self._receivers = [_bound(lab.host, "0.0.0.0", _PORT), _bound(lab.host, "::", _PORT)]
        self._threads = [threading.Thread(target=self._send), threading.Thread(target=self._receive)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()
        for each in (*self._senders.values(), *self._receivers):
            each.close()

    def check(self) -> None:
        """Of all that was sent until now, every innocent packet arrived, and no other."""
        sent = {source: self._sent[source] for source in self._innocent}
        assert min(sent.values()) > 20
        wait_for(
            f"the innocent packets ({sent} were sent, {self._arrived} are here)",
            lambda: all(self._arrived[source] >= number for source, number in sent.items()),
            2,
        )
        leaked = self.leaked()
        assert not leaked, f"of {max(sent.values())} packets of each source, these got through: {leaked}"

    def leaked(self) -> dict[str, int]:
        """The packets of listed sources that have arrived until now."""
        return {source: self._arrived[source] for source in self._listed if self._arrived[source]}

    def _send(self) -> None:
        while not self._stopped.wait(_EVERY):
            for source, sender in self._senders.items():
                sender.sendto(b"", (HOST_V6 if ":" in source else HOST, _PORT))
                self._sent[source] += 1

    def _receive(self) -> None:
        with selectors.DefaultSelector() as selector:
            for receiver in self._receivers:
                selector.register(receiver, selectors.EVENT_READ)
            while not self._stopped.is_set():
                for key, _ in selector.select(0.1):
                    assert isinstance(key.fileobj, socket.socket)
                    self._arrived[key.fileobj.recvfrom(64)[1][0]] += 1


def _bound(namespace: Namespace, address: str, port: int = 0) -> socket.socket:
    def make() -> socket.socket:
        made = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
        if ":" in address:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
        made.bind((address, port))
        return made

    return namespace.inside(make)
