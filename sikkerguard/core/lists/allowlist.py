"""What is never blocked, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sikkerguard.core.net.address import parse_prefix, to_text

if TYPE_CHECKING:
    from sikkerguard.core.net.family import Family
    from sikkerguard.core.net.packed import Prefix

# Reasons for which an entry is allowed, where someone asks for them.
GATEWAY, RESOLVER, API, PROXY, SSH = "default gateway", "resolver", "SikkerAPI", "proxy", "SSH session"


@dataclass(frozen=True, slots=True)
class AllowEntry:
    """A range that is never blocked, and why: `default gateway`, `resolver`, ..."""

    family: Family
    prefix: Prefix
    reason: str

    def __str__(self) -> str:
        return f"{to_text(self.family, self.prefix)} ({self.reason})"


# What every host talks to and no list can know better about.
ALWAYS_ALLOWED = tuple(
    AllowEntry(*parse_prefix(text), reason)
    for reason, text in (
        ("loopback", "127.0.0.0/8"),
        ("loopback", "::1"),
        ("private network", "10.0.0.0/8"),
        ("private network", "172.16.0.0/12"),
        ("private network", "192.168.0.0/16"),
        ("link-local", "169.254.0.0/16"),
        ("link-local", "fe80::/10"),
        ("private network", "fc00::/7"),
    )
)


@dataclass(frozen=True, slots=True)
class Allowlist:
    """All that is never blocked, in the order in which it was found."""

    entries: tuple[AllowEntry, ...] = ()

    def prefixes(self, family: Family) -> frozenset[Prefix]:
        """The ranges of one family that no other one covers, each once: the fewest entries that allow all of it."""
        kept: list[Prefix] = []
        end = -1
        # Two ranges are disjoint or one covers the other, and that one comes first.
        for prefix in sorted({entry.prefix for entry in self.entries if entry.family is family}):
            if prefix.first > end:
                kept.append(prefix)
                end = prefix.last(family)
        return frozenset(kept)

    def protector(self, family: Family, address: int) -> AllowEntry | None:
        """The most specific entry that covers this address, or None."""
        covering = [
            entry
            for entry in self.entries
            if entry.family is family and entry.prefix.first <= address <= entry.prefix.last(family)
        ]
        return max(covering, key=lambda entry: entry.prefix.length, default=None)

    def summary(self) -> str:
        """In the product's words: `8 IPs + 8 CIDR ranges`."""
        distinct = {(entry.family, entry.prefix) for entry in self.entries}
        addresses = sum(1 for family, prefix in distinct if prefix.length == family.bits)
        return f"{addresses} IPs + {len(distinct) - addresses} CIDR ranges"
