"""The service's tiers and the keys that belong to them."""

from __future__ import annotations

import re
from dataclasses import dataclass

_KEY = re.compile(r"sk_(free|tier_[1-9])_[A-Za-z0-9_-]+")


@dataclass(frozen=True, slots=True)
class Tier:
    """What a key may do.

    `blacklist_addresses` caps one pull; the others are units a UTC day: `lookups` of check, `reports` in rows
    over both report endpoints, `pulls` of the blacklist, `taxii` indicators. `range_alerts` is only shown.
    """

    id: str
    name: str
    blacklist_addresses: int
    lookups: int
    reports: int
    taxii: int
    range_alerts: int
    pulls: int = 1_000


# From https://sikkerapi.com/docs, which tells neither the reports of the paid tiers (taken to equal their
# lookups, as they do for the free one) nor the daily pulls of any (a number no honest client reaches).
FREE = Tier("free", "Free", 5_000, 1_000, 1_000, 1_000, 1)
TIERS = {
    tier.id: tier
    for tier in (
        FREE,
        Tier("tier_1", "Basic", 50_000, 7_000, 7_000, 7_000, 5),
        Tier("tier_2", "Small Business", 75_000, 14_000, 14_000, 14_000, 10),
        Tier("tier_3", "Medium Business", 150_000, 30_000, 30_000, 30_000, 20),
        Tier("tier_4", "Large Business", 350_000, 100_000, 100_000, 100_000, 40),
    )
}


@dataclass(frozen=True, slots=True)
class Key:
    """A key that the stand-in knows; one that is not `enabled` is answered 403."""

    text: str
    tier: Tier = FREE
    enabled: bool = True

    @classmethod
    def of(cls, text: str) -> Key:
        """The key `sk_<tier>_...` with the quotas of its tier. Raises ValueError for another form."""
        match = _KEY.fullmatch(text)
        if match is None or match[1] not in TIERS:
            raise ValueError(f"a key reads sk_<tier>_..., with one of the tiers {', '.join(TIERS)}")
        return cls(text, TIERS[match[1]])
