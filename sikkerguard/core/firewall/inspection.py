"""What the kernel does with packets from one address."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Inspection:
    """What one address meets.

    active: our rules meet packets, and all of their sets are there.
    listed: an entry of the committed list covers the address.
    allowed: the allowlist in the kernel covers it.
    packets: those that the entry has matched since its list was loaded.
    """

    active: bool
    listed: bool
    allowed: bool
    packets: int

    @property
    def blocked(self) -> bool:
        """Whether a packet from the address is dropped now."""
        return self.active and self.listed and not self.allowed
