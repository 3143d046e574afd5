"""What the host is connected by."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sikkerguard.core.lists.allowlist import Allowlist

if TYPE_CHECKING:
    from sikkerguard.core.lists.allowlist import AllowEntry
    from sikkerguard.core.net.family import Family


@dataclass(frozen=True, slots=True)
class Gateway:
    """A way out: a default gateway, and the index of the interface behind which it is. `address` is empty where the
    default route leads straight out of the interface, as with ppp, WireGuard and other tunnels."""

    family: Family
    address: str
    interface: int


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What was found out about this host: what is allowed because of it, in the order in which it was found (an address
    may be there twice, for different reasons), and its ways out."""

    allowed: tuple[AllowEntry, ...]
    gateways: frozenset[Gateway]


@dataclass(frozen=True, slots=True)
class HostAllowlist:
    """All that is never blocked now, by the host, the settings and SikkerAPI's addresses, and the host's ways out."""

    allowlist: Allowlist = field(default_factory=Allowlist)
    gateways: frozenset[Gateway] = frozenset()

    @property
    def entries(self) -> tuple[AllowEntry, ...]:
        """The allowlist's entries."""
        return self.allowlist.entries
