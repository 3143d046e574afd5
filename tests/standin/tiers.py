"""Keys, and what each may do."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tier:
    """Units a UTC day: pulls of the blacklist, and rows of reports."""

    pulls: int
    reports: int


# Of the free tier; how often it may pull is not documented: as often as no honest client does.
FREE = Tier(pulls=1_000, reports=1_000)


@dataclass(frozen=True, slots=True)
class Key:
    """A key that the stand-in knows; one that is not `enabled` is answered 403."""

    text: str
    tier: Tier = FREE
    enabled: bool = True
