"""Counting as one pure step: what is known, and a sample of the kernel's counts, give what is known now, the lines that
the log gets, and what the records get.

All of it is values, so that a step that is broken off in the middle leaves what was known before it, and a big one can
be computed in another thread. That costs little: of what a step changes, the largest parts are copied in some hundred
microseconds (8,192 waiting flows, 16,384 pending ones), but for the day's sources, which are made to be added to
(`core.traffic.day_summary.SourceSet`).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from sikkerguard.core.traffic.day_summary import DaySummary
from sikkerguard.core.traffic.log_window import LogWindow
from sikkerguard.core.traffic.records import PendingTraffic
from sikkerguard.core.traffic.sample import NOTHING, TrafficStats
from sikkerguard.core.traffic.totals import Totals, day_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sikkerguard.core.traffic.log_window import Line
    from sikkerguard.core.traffic.records import SavedTraffic
    from sikkerguard.core.traffic.sample import TrafficSample

# Ports that are kept from one run to the next, and those that are shown.
_MAX_SAVED_PORTS, _MAX_SHOWN_PORTS = 64, 10
# New sources that are written to disk in one go; of a flood the rest follows.
_MAX_SOURCES_PER_SAVE = 10_000


@dataclass(frozen=True, slots=True)
class Memory:
    """All that is known of dropped packets. `is_unsaved` says whether the records lack anything of it."""

    totals: Totals = field(default_factory=Totals)
    day: DaySummary = field(default_factory=DaySummary)
    window: LogWindow = field(default_factory=LogWindow)
    pending: PendingTraffic = field(default_factory=PendingTraffic)
    is_unsaved: bool = False


def resume(saved: SavedTraffic) -> Memory:
    """Begin with what earlier runs have counted."""
    today = DaySummary().join(saved.totals.day, saved.sources, saved.ports)
    return Memory(saved.totals, today, LogWindow(logged=saved.totals.logged))


def join(memory: Memory, saved: SavedTraffic) -> Memory:
    """Add what earlier runs have counted to what was counted without knowing of it."""
    totals, today, pending = memory.totals.join(saved.totals), memory.day, memory.pending
    if today.day in (0, saved.totals.day):
        today = today.join(saved.totals.day, saved.sources, saved.ports)
        pending = replace(pending, new_day=False)
    return Memory(totals, today, replace(memory.window, logged=totals.logged), pending, is_unsaved=True)


def apply(
    memory: Memory, sample: TrafficSample, port_map: Mapping[int, str], *, wall: float, monotonic: float
) -> tuple[Memory, tuple[Line, ...]]:
    """Take a sample into account; gives what is known now, and the lines that are due. `port_map` names ports, `wall`
    is the time in Unix seconds, `monotonic` that of a clock that never goes back."""
    totals, today, pending = memory.totals.add(sample, wall), memory.day, memory.pending
    if totals.day != today.day:
        today, pending = DaySummary(totals.day), pending.begin_day()
    today, new_sources = today.add(sample)
    pending = pending.add(sample.flows, sample.attributed - sum(packets for _, packets in sample.flows), new_sources)
    window, lines = memory.window.take(sample.flows, totals.dropped.packets, monotonic, port_map)
    # Also where a rule was made, and has dropped nothing yet: its reading is known from then on.
    moved = totals.counters != memory.totals.counters
    changed = bool(lines or sample.dropped.packets or sample.attributed or new_sources or moved)
    totals = replace(totals, logged=window.logged)
    return Memory(totals, today, window, pending, memory.is_unsaved or changed), lines


def finish(memory: Memory, port_map: Mapping[int, str]) -> tuple[Memory, tuple[Line, ...]]:
    """Close the window that is open: no more packets will come."""
    window, lines = memory.window.finish(memory.totals.dropped.packets, port_map)
    totals = replace(memory.totals, logged=window.logged)
    return replace(memory, totals=totals, window=window, is_unsaved=True), lines


def take_pending(memory: Memory) -> tuple[Memory, PendingTraffic]:
    """Take what the records are to get now; it is no longer in the memory."""
    batch, left = memory.pending.split(_MAX_SOURCES_PER_SAVE)
    batch = replace(batch, totals=memory.totals, ports=memory.day.top_ports(_MAX_SAVED_PORTS))
    return replace(memory, pending=left, is_unsaved=bool(left.sources)), batch


def restore_pending(memory: Memory, batch: PendingTraffic) -> Memory:
    """Put back what was taken for the records, and was not written."""
    return replace(memory, pending=memory.pending.restore(batch), is_unsaved=True)


def summarize(memory: Memory, wall: float) -> TrafficStats:
    """What the status shows at this time (Unix seconds)."""
    totals, today = memory.totals, memory.day
    if totals.is_over(wall):
        # A day on which nothing was dropped yet.
        totals, today = replace(totals, dropped_today=NOTHING), DaySummary(day_of(wall))
    return TrafficStats(
        dropped=totals.dropped,
        dropped_today=totals.dropped_today,
        unattributed=totals.unattributed(),
        sources=len(today.sources),
        top_ports=today.top_ports(_MAX_SHOWN_PORTS),
        replies=totals.replies,
    )
