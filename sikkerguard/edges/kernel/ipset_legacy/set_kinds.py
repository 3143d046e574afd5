"""What each set of ours is: its kind, and how many entries it is to hold."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sikkerguard.core.firewall.names import set_names
from sikkerguard.edges.kernel.ipset_legacy.sets import SetKind

if TYPE_CHECKING:
    from sikkerguard.core.net.family import Family

# The kernel ends a trial that nobody renewed for so many seconds. Long enough for a busy host, short enough for someone
# at a dead terminal who has not reached for the console yet.
TRIAL_SECONDS = 10

# A limit costs nothing until it is used. This one has room for two of the largest lists that are accepted, so that one
# list can be changed into another entry by entry while another program keeps the set from being swapped.
_LIST_LIMIT = 1 << 22
SINGLES = SetKind("hash:ip", counters=True, limit=_LIST_LIMIT)
RANGES = SetKind("hash:net", counters=True, limit=_LIST_LIMIT)
ALLOW = SetKind("hash:net", limit=1 << 17)
_TRIAL = SetKind("hash:net", timeout=TRIAL_SECONDS)
_HITS = SetKind("hash:ip,port", counters=True, filled_by_packets=True)
_SOURCES = SetKind("hash:ip", counters=True, filled_by_packets=True)
# Half of what the sets have room for; they are read every second. Reading full ones takes a twentieth of that second.
# Where there was no room, the source of a packet stays unknown; it is counted all the same.
_HITS_ENTRIES = 16384
_SOURCES_ENTRIES = 32768
# There are fewer replies, and nobody is reported for them: half as much, which saves a megabyte and a half.
_REPLIES_ENTRIES, _REPLIERS_ENTRIES = _HITS_ENTRIES // 2, _SOURCES_ENTRIES // 2
# To begin with; the table grows with what it holds.
_ALLOW_ENTRIES = 4096


def kind_of(family: Family, name: str) -> tuple[SetKind, int]:
    """The kind of the set of this name, and the number of entries to create it for."""
    names = set_names(family)
    return {
        names.singles: (SINGLES, 0),
        names.new_singles: (SINGLES, 0),
        names.ranges: (RANGES, 0),
        names.new_ranges: (RANGES, 0),
        names.allow: (ALLOW, _ALLOW_ENTRIES),
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
