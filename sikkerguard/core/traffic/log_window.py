"""The kernel's counts to lines that a person can read while under attack.

The first packets of a source show at once, and so do those at its next ports while that leaves room for others' first;
what follows is summed for a window of seconds. Lines are for people: there are never more than a few in a window, the
largest first, and the rest is one line, so that all lines together name every packet that was dropped.
"""

from __future__ import annotations

import socket
from collections import Counter
from dataclasses import dataclass
from heapq import nlargest
from typing import TYPE_CHECKING

from sikkerguard.core.net.family import Family, family_of
from sikkerguard.core.services.lookup import service_of
from sikkerguard.core.services.protocols import PROTOCOLS, REPLY, WITH_PORTS, WITH_TYPES
from sikkerguard.core.traffic.sample import UNATTRIBUTED

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence, Set

    from sikkerguard.core.traffic.sample import FlowKey

WINDOW_SECONDS = 10.0
# Lines of a window that are given at once, and as many that are given at its end. Of those at once, how many may be of
# one source, and how many may be anything but the first line of a source.
_LINES, _LINES_OF_A_SOURCE, _FURTHER_LINES = 20, 3, 10
# Sources, protocols and ports that a window tells apart; of more the largest are kept. About two megabytes.
_KEYS = 8192
# Seconds for which a source is no news at a port, and how many of them are remembered.
_NEWS_SECONDS, _KNOWN = 60.0, 4096


@dataclass(frozen=True, slots=True)
class Line:
    """So many packets in words. `key` says whose, where they are of one source, protocol and port."""

    text: str
    packets: int
    key: FlowKey | None = None


class LogWindow:
    """Takes what was counted again and again, and gives the lines that are due. Time, in seconds, is passed in;
    `told` is how many packets stand on lines, those of earlier runs included."""

    def __init__(self, port_map: Mapping[int, str], told: int = 0) -> None:
        self.port_map = port_map
        self.told = told
        self._window: dict[FlowKey, int] = {}
        self._window_ends: float | None = None
        self._at_once: Counter[bytes] = Counter()
        self._crowded = False
        self._known: dict[FlowKey, float] = {}

    def is_news(self, key: FlowKey, now: float) -> bool:
        """Whether a packet of this source, protocol and port would be told at once."""
        return key not in self._window and not self._is_known(key, now) and _has_room(key[0], self._at_once)

    def take(self, named: Sequence[tuple[FlowKey, int]], dropped: int, now: float) -> list[Line]:
        """The lines that are due after these new counts, when so many packets have been dropped in all: new sources
        at once, all others when their window ends."""
        window = self._window
        for key, packets in named:
            window[key] = window.get(key, 0) + packets
        lines = []
        for key, packets in self._news(named, now):
            lines.append(self._told(key, packets, now))
            self._at_once[key[0]] += 1
            del window[key]
        if len(window) > _KEYS:
            # To half, so that this is not done again for each that comes.
            self._window = dict(nlargest(_KEYS // 2, window.items(), key=_size))
            self._crowded = True
        if self._window_ends is None and (self._window or self._at_once or dropped > self.told):
            self._window_ends = now + WINDOW_SECONDS
        return lines + self._due(dropped, now)

    def finish(self, dropped: int) -> list[Line]:
        """The lines of the window that is under way: no more packets will come."""
        if self._window or dropped > self.told:
            self._window_ends = 0.0
        return self._due(dropped, 0.0)

    def _due(self, dropped: int, now: float) -> list[Line]:
        """The lines of a window that has ended; none before."""
        if self._window_ends is None or now < self._window_ends:
            return []
        largest = nlargest(_LINES, self._window.items(), key=_size)
        lines = [self._told(key, packets, now) for key, packets in largest]
        for key, _ in largest:
            del self._window[key]
        # Also what the window had no room for, and what the kernel could not name. Of packets that were on their way
        # while it was asked, those that are told already are counted as dropped the next time.
        if dropped > self.told:
            lines.append(self._rest(dropped - self.told, {key[0] for key, _ in largest} | self._at_once.keys()))
        self._forget(now)
        return lines

    def _rest(self, packets: int, told: Set[bytes]) -> Line:
        sources = len({address for address, _, _ in self._window} - told)
        what = []
        if sources:
            what.append(f"{sources} more source{'s' if sources > 1 else ''}")
        if self._crowded or packets > sum(self._window.values()):
            what.append(f"{'others' if sources else 'sources'} that were not told apart")
        self.told += packets
        return Line(f"BLOCKED {' and '.join(what) or 'further ports of these sources'} x{packets}", packets)

    def _forget(self, now: float) -> None:
        self._window, self._window_ends, self._crowded = {}, None, False
        self._at_once.clear()
        young = [item for item in self._known.items() if now - item[1] < _NEWS_SECONDS]
        self._known = dict(nlargest(_KNOWN, young, key=_size) if len(young) > _KNOWN else young)

    def _told(self, key: FlowKey, packets: int, now: float) -> Line:
        self._known[key] = now
        self.told += packets
        return Line(in_words(key, packets, self.port_map), packets, key)

    def _is_known(self, key: FlowKey, now: float) -> bool:
        told_at = self._known.get(key)
        return told_at is not None and now - told_at < _NEWS_SECONDS

    def _news(self, named: Sequence[tuple[FlowKey, int]], now: float) -> list[tuple[FlowKey, int]]:
        """What is to be told at once of these, the largest first."""
        lines = self._at_once.copy()
        if lines.total() >= _LINES:
            return []
        keys = dict.fromkeys(key for key, _ in named)
        news = [(key, self._window[key]) for key in keys if not self._is_known(key, now)]
        news.sort(key=_size, reverse=True)
        chosen: dict[FlowKey, int] = {}
        # Whoever has no line yet has one before anyone has a second.
        for further in (False, True):
            for key, packets in news:
                if (key[0] in lines) is further and key not in chosen and _has_room(key[0], lines):
                    lines[key[0]] += 1
                    chosen[key] = packets
        return sorted(chosen.items(), key=_size, reverse=True)


def in_fields(line: Line, port_map: Mapping[int, str]) -> dict[str, str]:
    """The same for the journal, each part in a field of its own: `SIKKER_SRC=192.0.2.7`, `SIKKER_DPT=23`, ..."""
    fields = {"SIKKER_PACKETS": str(line.packets)}
    if line.key is not None:
        address, protocol, port = line.key
        name = _protocol(protocol, port)
        fields |= {"SIKKER_SRC": _text(address), "SIKKER_PROTO": name}
        if protocol == REPLY:
            # Not SIKKER_DPT, which is a port of this host that was aimed at.
            fields |= {"SIKKER_SERVICE": "reply"} | ({} if port == UNATTRIBUTED else {"SIKKER_SPT": str(port)})
        elif protocol in WITH_PORTS:
            fields |= {"SIKKER_DPT": str(port), "SIKKER_SERVICE": service_of(name, port, port_map).name}
    return fields


def in_words(key: FlowKey, packets: int, port_map: Mapping[int, str]) -> str:
    """In the product's words: `BLOCKED 192.0.2.7:23 (telnet) proto=TCP x47`."""
    address, protocol, port = key
    place = _text(address)
    name = _protocol(protocol, port)
    what = ""
    if protocol == UNATTRIBUTED:
        what = " (further ports)"
    elif protocol == REPLY:
        what = " (further replies)" if port == UNATTRIBUTED else f" (reply from port {port})"
    elif protocol in WITH_PORTS:
        place = f"[{place}]:{port}" if family_of(address) is Family.V6 else f"{place}:{port}"
        what = f" ({service_of(name, port, port_map).name})"
    elif protocol in WITH_TYPES:
        what = f" (type {port >> 8} code {port & 255})"
    return f"BLOCKED {place}{what} proto={name} x{packets}"


def _protocol(protocol: int, port: int) -> str:
    if protocol == REPLY and port != UNATTRIBUTED:
        return "TCP"
    return "any" if protocol in (UNATTRIBUTED, REPLY) else PROTOCOLS.get(protocol, str(protocol))


def _has_room(source: bytes, lines: Counter[bytes]) -> bool:
    """Whether this source may have one more line at once, beside these."""
    further = lines.total() - len(lines)
    share = source not in lines or (lines[source] < _LINES_OF_A_SOURCE and further < _FURTHER_LINES)
    return share and lines.total() < _LINES


def _text(address: bytes) -> str:
    return socket.inet_ntop(family_of(address).number, address)


def _size(item: tuple[FlowKey, float]) -> float:
    return item[1]
