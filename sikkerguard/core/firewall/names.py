"""The names of everything of ours in the kernel, in one place (design, section 3).

A set's name has at most 31 characters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sikkerguard.core.net.family import Family

OURS = "sikkerguard"
CHAIN = "SIKKERGUARD"
COUNT_CHAIN = "SIKKERGUARD-COUNT"
NEWS_CHAIN = "SIKKERGUARD-NEW"
REPLIES_CHAIN = "SIKKERGUARD-REPLIES"
# In the order in which they can be taken away: each jumps to such as come behind it.
CHAINS = (CHAIN, COUNT_CHAIN, NEWS_CHAIN, REPLIES_CHAIN)
TABLE = "raw"
HOOK = "PREROUTING"
LOG_PREFIX = "SIKKERGUARD "


@dataclass(frozen=True, slots=True)
class CountingSets:
    """Sets that packets fill together: `by_port` has an entry for a source, protocol and port, `by_source` counts
    those packets that had none. `old_by_port` and `old_by_source` are what they are changed for to be read."""

    by_port: str
    by_source: str
    old_by_port: str
    old_by_source: str

    def all(self) -> tuple[str, ...]:
        """All four."""
        return self.by_port, self.by_source, self.old_by_port, self.old_by_source


@dataclass(frozen=True, slots=True)
class SetNames:
    """The sets of one family."""

    singles: str
    ranges: str
    new_singles: str
    new_ranges: str
    allow: str
    trial: str
    hits: str
    sources: str
    old_hits: str
    old_sources: str
    replies: str
    repliers: str
    old_replies: str
    old_repliers: str

    def all(self) -> tuple[str, ...]:
        """Every set that lies in the kernel for as long as we block."""
        return (*self.in_rules(), self.old_hits, self.old_sources, self.old_replies, self.old_repliers)

    def in_rules(self) -> tuple[str, ...]:
        """Every set that a rule refers to."""
        return (
            self.singles,
            self.ranges,
            self.new_singles,
            self.new_ranges,
            self.allow,
            self.trial,
            self.hits,
            self.sources,
            self.replies,
            self.repliers,
        )

    def counting_begun(self) -> CountingSets:
        """The sets that count what a source may have begun."""
        return CountingSets(self.hits, self.sources, self.old_hits, self.old_sources)

    def counting_replies(self) -> CountingSets:
        """The sets that count replies: what a source has not begun, or can't be shown to have."""
        return CountingSets(self.replies, self.repliers, self.old_replies, self.old_repliers)


def set_names(family: Family) -> SetNames:
    """The names of the family's sets."""
    label = family.label
    return SetNames(
        singles=f"{OURS}-{label}",
        ranges=f"{OURS}-{label}-net",
        new_singles=f"{OURS}-new-{label}",
        new_ranges=f"{OURS}-new-{label}-net",
        allow=f"{OURS}-allow-{label}",
        trial=f"{OURS}-trial-{label}",
        hits=f"{OURS}-hits-{label}",
        sources=f"{OURS}-sources-{label}",
        old_hits=f"{OURS}-oldhits-{label}",
        old_sources=f"{OURS}-oldsources-{label}",
        replies=f"{OURS}-replies-{label}",
        repliers=f"{OURS}-repliers-{label}",
        old_replies=f"{OURS}-oldreplies-{label}",
        old_repliers=f"{OURS}-oldrepliers-{label}",
    )


def loading(name: str) -> str:
    """The name under which a set's new content is loaded, before a swap puts it in its place."""
    return name.replace(OURS, f"{OURS}-load", 1)


def further_loading(name: str) -> tuple[str, ...]:
    """Names for the same where the first one is taken by a set that can't be destroyed, as one that is being listed."""
    return tuple(name.replace(OURS, f"{OURS}-{word}", 1) for word in ("next", "more"))
