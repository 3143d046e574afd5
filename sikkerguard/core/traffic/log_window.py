"""The kernel's counts as lines that a person can read while under attack.

The first packets of a source are logged at once, and so are those to its next ports while that leaves room for other
sources' first ones; what follows is summed for a window of seconds. Lines are for people: there are never more than a
few in a window, the largest first, and the rest is one line, so that all lines together have every packet that was
dropped.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from heapq import nlargest
from typing import TYPE_CHECKING

from sikkerguard.core.net.address import packed_to_text
from sikkerguard.core.net.family import Family, family_of
from sikkerguard.core.ports.lookup import service_of
from sikkerguard.core.ports.protocols import PROTOCOLS, REPLY, WITH_PORTS, WITH_TYPES
from sikkerguard.core.traffic.sample import UNATTRIBUTED

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sikkerguard.core.traffic.sample import FlowKey

WINDOW_SECONDS = 10.0
# Lines of a window that are logged at once, and as many at its end. Of those at once: at most 3 per source, and at most
# 10 that are not a source's first.
_MAX_LINES, _MAX_LINES_PER_SOURCE, _MAX_FURTHER_LINES = 20, 3, 10
# Flows that a window tells apart; of more the largest are kept. About two megabytes.
_MAX_WINDOW_FLOWS = 8192
# Seconds for which a flow that was logged is no news, and how many such flows are remembered.
_NEWS_SECONDS, _MAX_LOGGED_FLOWS = 60.0, 4096


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the log, and the packets on it; `key` is their flow, or None where they are of several."""

    text: str
    packets: int
    key: FlowKey | None = None


@dataclass(frozen=True, slots=True)
class LogWindow:
    """What is on lines, and what is yet to be. Times are in seconds of a clock that never goes back.

    `logged`: packets on all lines so far, those of earlier runs included.
    `waiting`: packets by flow that are logged when the window ends, at `ends_at`; None where no window is open.
    `immediate`: lines of this window so far, by source.
    `crowded`: whether this window had more flows than it tells apart.
    `logged_at`: when a flow was last on a line.
    """

    logged: int = 0
    waiting: Mapping[FlowKey, int] = field(default_factory=dict)
    ends_at: float | None = None
    immediate: Mapping[bytes, int] = field(default_factory=dict)
    crowded: bool = False
    logged_at: Mapping[FlowKey, float] = field(default_factory=dict)

    def is_news(self, key: FlowKey, now: float) -> bool:
        """Whether packets of this flow would be logged at once."""
        return key not in self.waiting and not self._was_logged(key, now) and _has_room(key[0], Counter(self.immediate))

    def take(
        self, flows: Sequence[tuple[FlowKey, int]], dropped: int, now: float, port_map: Mapping[int, str]
    ) -> tuple[LogWindow, tuple[Line, ...]]:
        """With these further packets by flow, when so many packets have been dropped in all; and the lines that are
        due: new flows at once, all others when their window ends. `port_map` names ports."""
        waiting = dict(self.waiting)
        for key, packets in flows:
            waiting[key] = waiting.get(key, 0) + packets
        chosen = self._choose_news(flows, waiting, now)
        for key, _ in chosen:
            del waiting[key]
        immediate = Counter(self.immediate)
        immediate.update(key[0] for key, _ in chosen)
        logged, ends_at, crowded = self.logged + sum(packets for _, packets in chosen), self.ends_at, self.crowded
        if len(waiting) > _MAX_WINDOW_FLOWS:
            # To half, so that this is not done again for each that comes.
            waiting, crowded = dict(nlargest(_MAX_WINDOW_FLOWS // 2, waiting.items(), key=_size)), True
        if ends_at is None and (waiting or immediate or dropped > logged):
            ends_at = now + WINDOW_SECONDS
        logged_at = {**self.logged_at, **{key: now for key, _ in chosen}}
        window = LogWindow(logged, waiting, ends_at, immediate, crowded, logged_at)
        lines = _lines(chosen, port_map)
        if ends_at is None or now < ends_at:
            return window, lines
        window, due = window._close(dropped, now, port_map)
        return window, (*lines, *due)

    def finish(self, dropped: int, port_map: Mapping[int, str]) -> tuple[LogWindow, tuple[Line, ...]]:
        """The window closed before its time, and its lines: no more packets will come."""
        return self._close(dropped, 0.0, port_map) if self.waiting or dropped > self.logged else (self, ())

    def _close(self, dropped: int, now: float, port_map: Mapping[int, str]) -> tuple[LogWindow, tuple[Line, ...]]:
        largest = nlargest(_MAX_LINES, self.waiting.items(), key=_size)
        lines, logged = _lines(largest, port_map), self.logged + sum(packets for _, packets in largest)
        # Also what the window had no room for, and what the kernel could not attribute. Packets that are logged before
        # they are counted as dropped are not in the rest of the next time.
        if dropped > logged:
            lines = (*lines, self._rest(dropped - logged, dict(largest)))
            logged = dropped
        young = {key: at for key, at in self.logged_at.items() if now - at < _NEWS_SECONDS}
        young |= {key: now for key, _ in largest}
        if len(young) > _MAX_LOGGED_FLOWS:
            young = dict(nlargest(_MAX_LOGGED_FLOWS, young.items(), key=_size))
        return LogWindow(logged, logged_at=young), lines

    def _rest(self, packets: int, largest: Mapping[FlowKey, int]) -> Line:
        """The line for all packets that are on no other line of this window."""
        left = [(key[0], number) for key, number in self.waiting.items() if key not in largest]
        sources = len({source for source, _ in left} - {key[0] for key in largest} - self.immediate.keys())
        what = []
        if sources:
            what.append(f"{sources} more source{'s' if sources > 1 else ''}")
        if self.crowded or packets > sum(number for _, number in left):
            what.append(f"{'others' if sources else 'sources'} that were not told apart")
        return Line(f"BLOCKED {' and '.join(what) or 'further ports of these sources'} x{packets}", packets)

    def _was_logged(self, key: FlowKey, now: float) -> bool:
        at = self.logged_at.get(key)
        return at is not None and now - at < _NEWS_SECONDS

    def _choose_news(
        self, flows: Sequence[tuple[FlowKey, int]], waiting: Mapping[FlowKey, int], now: float
    ) -> list[tuple[FlowKey, int]]:
        """Which of these flows are logged at once, the largest first, with all of their packets that wait."""
        lines = Counter(self.immediate)
        if lines.total() >= _MAX_LINES:
            return []
        keys = dict.fromkeys(key for key, _ in flows)
        news = [(key, waiting[key]) for key in keys if not self._was_logged(key, now)]
        news.sort(key=_size, reverse=True)
        chosen: dict[FlowKey, int] = {}
        # Every source that has no line yet gets one before any source gets a second.
        for further in (False, True):
            for key, packets in news:
                if (key[0] in lines) is further and key not in chosen and _has_room(key[0], lines):
                    lines[key[0]] += 1
                    chosen[key] = packets
        return sorted(chosen.items(), key=_size, reverse=True)


def _lines(flows: Sequence[tuple[FlowKey, int]], port_map: Mapping[int, str]) -> tuple[Line, ...]:
    return tuple(Line(in_words(key, packets, port_map), packets, key) for key, packets in flows)


def in_fields(line: Line, port_map: Mapping[int, str]) -> dict[str, str]:
    """A line's parts as fields of the journal: `SIKKER_SRC=192.0.2.7`, `SIKKER_DPT=23`, ..."""
    fields = {"SIKKER_PACKETS": str(line.packets)}
    if line.key is not None:
        address, protocol, port = line.key
        name = _protocol(protocol, port)
        fields |= {"SIKKER_SRC": packed_to_text(address), "SIKKER_PROTO": name}
        if protocol == REPLY:
            # Not SIKKER_DPT, which is a port of this host that was aimed at.
            fields |= {"SIKKER_SERVICE": "reply"} | ({} if port == UNATTRIBUTED else {"SIKKER_SPT": str(port)})
        elif protocol in WITH_PORTS:
            fields |= {"SIKKER_DPT": str(port), "SIKKER_SERVICE": service_of(name, port, port_map).name}
    return fields


def in_words(key: FlowKey, packets: int, port_map: Mapping[int, str]) -> str:
    """A flow and its packets as a line: `BLOCKED 192.0.2.7:23 (telnet) proto=TCP x47`. `port_map` has names for ports
    that go before those of `core.ports`."""
    address, protocol, port = key
    source = packed_to_text(address)
    name = _protocol(protocol, port)
    what = ""
    if protocol == UNATTRIBUTED:
        what = " (further ports)"
    elif protocol == REPLY:
        what = " (further replies)" if port == UNATTRIBUTED else f" (reply from port {port})"
    elif protocol in WITH_PORTS:
        source = f"[{source}]:{port}" if family_of(address) is Family.V6 else f"{source}:{port}"
        what = f" ({service_of(name, port, port_map).name})"
    elif protocol in WITH_TYPES:
        what = f" (type {port >> 8} code {port & 255})"
    return f"BLOCKED {source}{what} proto={name} x{packets}"


def _protocol(protocol: int, port: int) -> str:
    if protocol == REPLY and port != UNATTRIBUTED:
        return "TCP"
    return "any" if protocol in (UNATTRIBUTED, REPLY) else PROTOCOLS.get(protocol, str(protocol))


def _has_room(source: bytes, lines: Counter[bytes]) -> bool:
    """Whether this source may have one more line at once, beside these."""
    further = lines.total() - len(lines)
    share = source not in lines or (lines[source] < _MAX_LINES_PER_SOURCE and further < _MAX_FURTHER_LINES)
    return share and lines.total() < _MAX_LINES


def _size(item: tuple[FlowKey, float]) -> float:
    return item[1]
