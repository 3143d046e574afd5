"""The kernel's counts to lines that a person can read while under attack.

The first packets of a source show at once; what follows is summed for a window of seconds. Lines are for people: there
are never more than a few in a window, the largest first, and the rest is one line.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sikkerguard.core.model import Family, Hits
from sikkerguard.core.ports import service_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

WINDOW_SECONDS = 10.0
_LINES = 20

# Names of IP protocols by IANA's number, for those without ports too.
_PROTOCOLS = {1: "ICMP", 2: "IGMP", 6: "TCP", 17: "UDP", 33: "DCCP", 41: "IPv6", 47: "GRE", 50: "ESP", 51: "AH"}
_PROTOCOLS |= {58: "ICMPv6", 89: "OSPF", 132: "SCTP", 136: "UDPLite"}
_WITH_PORTS = frozenset({6, 17, 33, 132, 136})
_ICMP = frozenset({1, 58})

_Key = tuple[Family, bytes, int, int]


@dataclass(frozen=True, slots=True)
class Blocked:
    """Packets of one source to one port within a window."""

    family: Family
    address: bytes
    protocol: int
    port: int
    packets: int

    def source(self) -> str:
        """The address as text."""
        return socket.inet_ntop(self.family.number, self.address)

    def protocol_name(self) -> str:
        """`TCP`, `UDP`, ..., or the number of a protocol that is rarely met."""
        return _PROTOCOLS.get(self.protocol, str(self.protocol))

    def line(self, port_map: Mapping[int, str]) -> str:
        """In the product's words: `BLOCKED 192.0.2.7:23 (telnet) proto=TCP x47`."""
        source = self.source()
        protocol = self.protocol_name()
        if self.protocol in _WITH_PORTS:
            place = f"[{source}]:{self.port}" if self.family is Family.V6 else f"{source}:{self.port}"
            what = f" ({service_of(protocol, self.port, port_map).name})"
        else:
            place = source
            what = f" (type {self.port >> 8} code {self.port & 255})" if self.protocol in _ICMP else ""
        return f"BLOCKED {place}{what} proto={protocol} x{self.packets}"


class Tally:
    """Takes the kernel's counts again and again, and gives the lines that are due. Time, in seconds, is passed in."""

    def __init__(self, port_map: Mapping[int, str]) -> None:
        self.port_map = port_map
        self._seen: dict[_Key, int] = {}
        self._window: dict[_Key, int] = {}
        self._window_ends: float | None = None
        self._shown = 0

    def begin(self, hits: Iterable[Hits]) -> None:
        """Take these counts as known: they were made before we looked."""
        self._seen = {_key(hit): hit.packets for hit in hits}

    def take(self, hits: Iterable[Hits], now: float) -> list[str]:
        """The lines that are due after these counts: new sources at once, all others when their window ends."""
        lines = self.due(now)
        seen: dict[_Key, int] = {}
        for hit in hits:
            key = _key(hit)
            seen[key] = hit.packets
            before = self._seen.get(key, 0)
            # An entry that the kernel forgot and made again counts from the beginning.
            packets = hit.packets - before if hit.packets >= before else hit.packets
            if not packets:
                continue
            if key not in self._seen and self._shown < _LINES:
                lines.append(Blocked(*key, packets).line(self.port_map))
                self._shown += 1
            else:
                self._window[key] = self._window.get(key, 0) + packets
            if self._window_ends is None:
                self._window_ends = now + WINDOW_SECONDS
        self._seen = seen
        return lines

    def due(self, now: float) -> list[str]:
        """The lines of a window that has ended; none before."""
        if self._window_ends is None or now < self._window_ends:
            return []
        blocked = sorted((Blocked(*key, packets) for key, packets in self._window.items()), key=_order)
        lines = [each.line(self.port_map) for each in blocked[:_LINES]]
        rest = blocked[_LINES:]
        if rest:
            sources = len({(each.family, each.address) for each in rest})
            packets = sum(each.packets for each in rest)
            lines.append(f"BLOCKED {sources} more sources x{packets}")
        self._window, self._window_ends, self._shown = {}, None, 0
        return lines


def _key(hit: Hits) -> _Key:
    return hit.family, hit.address, hit.protocol, hit.port


def _order(blocked: Blocked) -> tuple[int, str, bytes, int, int]:
    return -blocked.packets, blocked.family.label, blocked.address, blocked.protocol, blocked.port
