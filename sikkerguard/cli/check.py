"""`sikkerguard check ADDRESS`: what the kernel does with an address, and which entry of which list says so."""

from __future__ import annotations

import datetime
import json
import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from sikkerguard.core.net.address import parse_prefix, to_text
from sikkerguard.edges.kernel.ipset_legacy.backend import IpsetBackend
from sikkerguard.edges.storage.store import Store
from sikkerguard.errors import ConfigError, ListError, SikkerGuardError

if TYPE_CHECKING:
    from pathlib import Path

    from sikkerguard.core.lists.sources import VerifiedList
    from sikkerguard.core.net.family import Family
    from sikkerguard.core.net.packed import Prefix


@dataclass(frozen=True, slots=True)
class ListedBy:
    """One list's entry that covers the address; `since` is in Unix seconds."""

    source: str
    entry: str
    since: float


@dataclass(frozen=True, slots=True)
class Finding:
    """All that is known of an address. `allowed_by` is the allowlist's line that protects it; `packets` is what was
    dropped from the entry that blocks it, since the list was loaded; `left_out` names the self-test that failed with
    it, where it is left out of the list for that."""

    address: str
    blocked: bool
    listings: tuple[ListedBy, ...]
    allowed_by: str | None
    packets: int
    left_out: str | None = None

    def as_json(self) -> str:
        """As one JSON object."""
        # What is not ASCII is escaped already, and of what is, this alone is a control character.
        return json.dumps(asdict(self), indent=2).replace("\x7f", "\\u007f")

    def as_text(self) -> str:
        """As sentences."""
        verdict = "is blocked" if self.blocked else "is not blocked"
        lines = [f"{self.address} {verdict}."]
        for listing in self.listings:
            since = datetime.datetime.fromtimestamp(listing.since, datetime.UTC)
            lines.append(f"Listed by {listing.source} as {listing.entry}, since {since:%Y-%m-%d %H:%M} UTC.")
        if not self.listings:
            lines.append("It is on no list.")
        if self.allowed_by:
            lines.append(f"The allowlist protects it: {self.allowed_by}.")
        if self.left_out:
            lines.append(
                f"It is left out of the list: with it, '{self.left_out}' failed in the trial. The next pull tests it "
                "again."
            )
        elif not self.allowed_by and self.listings and not self.blocked:
            lines.append("No rule blocks it now: is the service running?")
        if self.blocked:
            lines.append(f"Packets dropped: {self.packets:,}.")
        return "\n".join(lines)


def check(state_dir: Path, text: str) -> Finding:
    """Ask the kernel, the cached list and the kept allowlist about one address.

    Raises:
        ConfigError: it is not an address.
        SikkerGuardError: the kernel or the state directory can't be read.
    """
    try:
        family, prefix = parse_prefix(text)
    except ValueError as error:
        raise ConfigError([f"{text!r} can't be checked: {error}."]) from None
    if prefix.length != family.bits:
        raise ConfigError([f"{text!r} can't be checked: it is a range; name one address."])
    store = Store(state_dir)
    verified = _verified(store)
    protector = store.load_allowlist().protector(family, prefix.first)
    kernel = IpsetBackend()
    try:
        blocked = kernel.blocks(family, prefix.first)
        listings = _listings(verified, family, prefix.first)
        packets = kernel.packets_from(family, prefix.first) if blocked else 0
    finally:
        kernel.close()
    left_out = (
        next((each.test for each in verified.left_out if (each.family, each.address) == (family, prefix.first)), None)
        if verified
        else None
    )
    return Finding(to_text(family, prefix), blocked, listings, str(protector) if protector else None, packets, left_out)


def _verified(store: Store) -> VerifiedList | None:
    try:
        return store.peek_list()
    except ListError as error:
        raise SikkerGuardError(f"{error}{_advice()}") from error


def _advice() -> str:
    return "" if os.geteuid() == 0 else "; run it as root (sudo)"


def _listings(verified: VerifiedList | None, family: Family, address: int) -> tuple[ListedBy, ...]:
    if verified is None:
        return ()
    found = []
    for source in verified.sources:
        entry: Prefix | None = source.content.of(family).find(address)
        if entry is not None:
            found.append(ListedBy(source.name, to_text(family, entry), source.since))
    return tuple(found)
