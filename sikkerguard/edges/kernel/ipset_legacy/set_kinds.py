"""What each set of ours is: its kind, and the room that it needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sikkerguard.core.firewall.names import set_names
from sikkerguard.edges.kernel.ipset_legacy.sets import SetKind

if TYPE_CHECKING:
    from sikkerguard.core.net.family import Family

# Seconds for which the kernel remembers the trial without being told again. Long enough for a host that is busy,
# short enough that a person at a dead terminal has not yet reached for the console.
TRIAL_SECONDS = 10

# A limit costs nothing until it is used. It has room for two of the largest lists that are taken, so that one list can
# be changed into another entry by entry while somebody keeps the set from being swapped.
_LIST_LIMIT = 1 << 22
SINGLES = SetKind("hash:ip", counters=True, limit=_LIST_LIMIT)
RANGES = SetKind("hash:net", counters=True, limit=_LIST_LIMIT)
ALLOW = SetKind("hash:net", limit=1 << 17)
_TRIAL = SetKind("hash:net", timeout=TRIAL_SECONDS)
_HITS = SetKind("hash:ip,port", counters=True, filled_by_packets=True)
_SOURCES = SetKind("hash:ip", counters=True, filled_by_packets=True)
# Half of what the sets have room for, until they are read a second later. To read them when they are full takes a
# twentieth of that second; the sources of more packets than that stay unknown, and the packets are counted.
_HITS_ENTRIES = 16384
_SOURCES_ENTRIES = 32768
# Of replies there are fewer, and nobody is reported for them: half as much, which is a megabyte and a half less.
_REPLIES_ENTRIES, _REPLIERS_ENTRIES = _HITS_ENTRIES // 2, _SOURCES_ENTRIES // 2
# To begin with; its table grows with what it holds.
ALLOW_ENTRIES = 4096


def kind_of(family: Family, name: str) -> tuple[SetKind, int]:
    """What kind of set this name stands for, and the entries to make room for."""
    names = set_names(family)
    return {
        names.singles: (SINGLES, 0),
        names.new_singles: (SINGLES, 0),
        names.ranges: (RANGES, 0),
        names.new_ranges: (RANGES, 0),
        names.allow: (ALLOW, ALLOW_ENTRIES),
        names.trial: (_TRIAL, 2),
        names.hits: (_HITS, _HITS_ENTRIES),
        names.old_hits: (_HITS, _HITS_ENTRIES),
        names.sources: (_SOURCES, _SOURCES_ENTRIES),
        names.old_sources: (_SOURCES, _SOURCES_ENTRIES),
        names.replies: (_HITS, _REPLIES_ENTRIES),
        names.old_replies: (_HITS, _REPLIES_ENTRIES),
        names.repliers: (_SOURCES, _REPLIERS_ENTRIES),
        names.old_repliers: (_SOURCES, _REPLIERS_ENTRIES),
    }[name]
