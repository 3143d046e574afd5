"""The names of everything of ours in the kernel, in one place.

The kernel takes names of sets up to 31 characters (`IPSET_MAXNAMELEN` of linux/netfilter/ipset/ip_set.h less the
terminating zero).
"""

from __future__ import annotations

from dataclasses import astuple, dataclass

from sikkerguard.core.net.family import Family

# All names of ours begin with this.
OURS = "sikkerguard"
LOG_PREFIX = "SIKKERGUARD "

TABLE = "raw"
HOOK = "PREROUTING"
# Decides about a packet; the hook jumps to it.
CHAIN = "SIKKERGUARD"
# Counts a packet that will be dropped, by sending it through one of the next two.
COUNT_CHAIN = "SIKKERGUARD-COUNT"
NEW_CHAIN = "SIKKERGUARD-NEW"
REPLIES_CHAIN = "SIKKERGUARD-REPLIES"
# In the order in which they can be removed: each jumps only to chains that come after it.
CHAINS = (CHAIN, COUNT_CHAIN, NEW_CHAIN, REPLIES_CHAIN)


def tool_name(family: Family) -> str:
    """The command that shows a family's rules."""
    return "iptables" if family is Family.V4 else "ip6tables"


@dataclass(frozen=True, slots=True)
class CountingSets:
    """Sets that packets fill together: `by_port` has an entry for a source, protocol and port; `by_source` counts the
    packets that met no such entry. To be read, both are swapped with the empty `old_by_port` and `old_by_source`."""

    by_port: str
    by_source: str
    old_by_port: str
    old_by_source: str

    def all(self) -> tuple[str, ...]:
        """All four."""
        return self.by_port, self.by_source, self.old_by_port, self.old_by_source


@dataclass(frozen=True, slots=True)
class SetNames:
    """The sets of one family.

    `singles` and `ranges` hold the committed list, `new_singles` and `new_ranges` the candidate; `allow` is never
    blocked; `trial` holds all addresses while the candidate is on trial. Packets fill `hits` (by source, protocol and
    port) and `sources` with what a source may have begun, `replies` and `repliers` with what it answered; the `old_...`
    sets are empty ones to swap these with.
    """

    singles: str
    ranges: str
    new_singles: str
    new_ranges: str
    allow: str
    trial: str
    hits: str
    sources: str
    replies: str
    repliers: str
    old_hits: str
    old_sources: str
    old_replies: str
    old_repliers: str

    def all(self) -> tuple[str, ...]:
        """Every set that is in the kernel while we block."""
        return astuple(self)

    def counting_begun(self) -> CountingSets:
        """The sets that count what a source may have begun."""
        return CountingSets(self.hits, self.sources, self.old_hits, self.old_sources)

    def counting_replies(self) -> CountingSets:
        """The sets that count replies: what a source did not begin, or can't be shown to have begun."""
        return CountingSets(self.replies, self.repliers, self.old_replies, self.old_repliers)


def set_names(family: Family) -> SetNames:
    """The names of a family's sets."""
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
        replies=f"{OURS}-replies-{label}",
        repliers=f"{OURS}-repliers-{label}",
        old_hits=f"{OURS}-oldhits-{label}",
        old_sources=f"{OURS}-oldsources-{label}",
        old_replies=f"{OURS}-oldreplies-{label}",
        old_repliers=f"{OURS}-oldrepliers-{label}",
    )


def loading_names(name: str) -> tuple[str, ...]:
    """Names under which a set's new content can be loaded, before a swap puts it in its place. The later ones are for
    where an earlier one is taken by a set that can't be destroyed, since another program is listing it."""
    return tuple(name.replace(OURS, f"{OURS}-{word}", 1) for word in ("load", "next", "more"))
