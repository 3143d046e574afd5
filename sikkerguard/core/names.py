"""The names of everything of ours in the kernel, in one place (design, section 3).

A set's name has at most 31 characters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sikkerguard.core.model import Family

OURS = "sikkerguard"
CHAIN = "SIKKERGUARD"
NEWS_CHAIN = "SIKKERGUARD-NEW"
TABLE = "raw"
HOOK = "PREROUTING"
LOG_PREFIX = "SIKKERGUARD "


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

    def all(self) -> tuple[str, ...]:
        """Every set that lies in the kernel for as long as we block."""
        return (*self.in_rules(), self.old_hits, self.old_sources)

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
        )

    def counting(self) -> tuple[str, ...]:
        """The sets that packets fill, and those that they are changed for to be read."""
        return self.hits, self.sources, self.old_hits, self.old_sources


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
    )


def loading(name: str) -> str:
    """The name under which a set's new content is loaded, before a swap puts it in its place."""
    return name.replace(OURS, f"{OURS}-load", 1)
