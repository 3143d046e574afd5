"""What a blacklist consists of: one entry an address or range, and the whole list in the order it is served."""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

SEVERITIES = ("low", "medium", "high", "very_high")
"""From the mildest to the worst, as the parameter `minSeverity` spells them."""

_SEVERITY_FLOORS = ((90, "very_high"), (75, "high"), (50, "medium"))


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the blacklist.

    `ip` is an address or CIDR range, served as written. `confidence` is 1-100, `last_seen` Unix seconds.
    An empty `severity` follows from the confidence; an empty country or ASN means that it is not known.
    `benign` marks a known harmless scanner: left out unless the client says `ignoreWhitelist`.
    Raises ValueError for anything that is no address, range, confidence or severity.
    """

    ip: str
    confidence: int = 75
    last_seen: int = 0
    sessions: int = 1
    protocols: tuple[str, ...] = ()
    severity: str = ""
    country: str = ""
    asn: str = ""
    asn_org: str = ""
    benign: bool = False

    def __post_init__(self) -> None:
        check_address(self.ip)
        if not 1 <= self.confidence <= 100:
            raise ValueError(f"a confidence is 1 to 100, not {self.confidence}")
        if self.severity and self.severity not in SEVERITIES:
            raise ValueError(f"a severity is one of {', '.join(SEVERITIES)}, not {self.severity!r}")

    @property
    def version(self) -> int:
        """4 or 6."""
        return 6 if ":" in self.ip else 4

    @property
    def severity_rank(self) -> int:
        """0 for low to 3 for very_high; the thresholds are ours, since the service doesn't publish its own."""
        if self.severity:
            return SEVERITIES.index(self.severity)
        for floor, name in _SEVERITY_FLOORS:
            if self.confidence >= floor:
                return SEVERITIES.index(name)
        return 0


def check_address(text: str) -> None:
    """Raises ValueError unless `text` is an IPv4 or IPv6 address or CIDR range.

    Single addresses go through inet_pton: strict, and twenty times as fast on a list of 350,000.
    """
    if "/" not in text:
        packed(text)
        return
    try:
        ipaddress.ip_network(text, strict=False)
    except ValueError as error:
        raise ValueError(f"{text!r} is neither an address nor a range") from error


def packed(address: str) -> bytes:
    """The 4 or 16 bytes of one address, so that two spellings compare equal. Raises ValueError."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        return socket.inet_pton(family, address)
    except OSError as error:
        raise ValueError(f"{address!r} is neither an address nor a range") from error


class Catalogue:
    """A whole list, immutable, in the order the service uses: confidence, highest first, then recency."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self.entries = tuple(sorted(entries, key=lambda entry: (-entry.confidence, -entry.last_seen)))

    def find(self, address: str) -> Entry | None:
        """The entry with the highest confidence that is, or contains, `address`. Raises ValueError."""
        exact = self._singles.get(packed(address))
        parsed = ipaddress.ip_address(address)
        covering = next((entry for network, entry in self._ranges if parsed in network), None)
        if exact is None or covering is None:
            return exact or covering
        return max(exact, covering, key=lambda entry: entry.confidence)

    @cached_property
    def _singles(self) -> dict[bytes, Entry]:
        # Backwards, so that the first and therefore worst of two equal addresses stays.
        return {packed(entry.ip): entry for entry in reversed(self.entries) if "/" not in entry.ip}

    @cached_property
    def _ranges(self) -> list[tuple[IpNetwork, Entry]]:
        return [(ipaddress.ip_network(entry.ip, strict=False), entry) for entry in self.entries if "/" in entry.ip]
