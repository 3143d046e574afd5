"""`sikkerguard check ADDRESS`: what the kernel does with an address, and which entry of which list says so."""

from __future__ import annotations

import datetime
import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from sikkerguard.cli.command import Command, Outcome, add_json_option, print_json, print_lines, settings_reader
from sikkerguard.core.net.address import parse_prefix, to_text
from sikkerguard.errors import ConfigError, ListError, SikkerGuardError

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

    from sikkerguard.core.firewall.state import Inspection
    from sikkerguard.core.lists.allowlist import Allowlist
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
    """All that is known of an address. `listings` is None where no list is kept on disk; `allowed_by` is the entry of
    the allowlist that protects it; `packets` counts those that the entry which blocks it has dropped, since the list
    was loaded; `left_out` names the self-test that failed while it was blocked, where it is left out of the list for
    that."""

    address: str
    blocked: bool
    listings: tuple[ListedBy, ...] | None
    allowed_by: str | None
    packets: int
    left_out: str | None = None

    def as_text(self, state_dir: Path) -> str:
        """Format it as sentences, one a line; `state_dir` is where a list would be kept."""
        verdict = "is blocked" if self.blocked else "is not blocked"
        lines = [f"{self.address} {verdict}."]
        for listing in self.listings or ():
            since = datetime.datetime.fromtimestamp(listing.since, datetime.UTC)
            lines.append(f"Listed by {listing.source} as {listing.entry}, since {since:%Y-%m-%d %H:%M} UTC.")
        if self.listings is None:
            lines.append(f"No list is kept in {state_dir}, so it is not known whether it is listed.")
        elif not self.listings:
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


def read_address(text: str) -> tuple[Family, Prefix]:
    """Read one address, a prefix of full length.

    Raises:
        ConfigError: it is none, or a range.
    """
    try:
        family, prefix = parse_prefix(text)
    except ValueError as error:
        raise ConfigError([f"{text!r} can't be checked: {error}."]) from None
    if prefix.length != family.bits:
        raise ConfigError([f"{text!r} can't be checked: it is a range; name one address."])
    return family, prefix


def combine(
    family: Family, prefix: Prefix, verified: VerifiedList | None, allowlist: Allowlist, seen: Inspection
) -> Finding:
    """Put together what the kernel, the cached list (None where there is none) and the kept allowlist say."""
    protector = allowlist.protector(family, prefix.first)
    left_out = verified.left_out if verified is not None else ()
    return Finding(
        address=to_text(family, prefix),
        blocked=seen.blocked,
        listings=None
        if verified is None
        else tuple(
            ListedBy(source.name, to_text(family, entry), source.since)
            for source in verified.sources
            if (entry := source.content.of(family).find(prefix.first)) is not None
        ),
        allowed_by=str(protector) if protector else None,
        packets=seen.packets if seen.blocked else 0,
        left_out=next((each.test for each in left_out if (each.family, each.address) == (family, prefix.first)), None),
    )


def _run(options: argparse.Namespace) -> Outcome:
    family, prefix = read_address(options.address)
    from sikkerguard.edges.kernel.select import open_backend
    from sikkerguard.edges.storage.store import Store

    state_dir = settings_reader(options).state_dir()
    store = Store(state_dir)
    try:
        verified = store.peek_list()
    except ListError as error:
        advice = "" if os.geteuid() == 0 else "; run it as root (sudo)"
        raise SikkerGuardError(f"{error}{advice}") from error
    allowlist = store.load_allowlist()
    backend = open_backend(dry_run=False)
    try:
        found = combine(family, prefix, verified, allowlist, backend.inspect(family, prefix.first))
    finally:
        backend.close()
    if options.json:
        print_json(asdict(found))
    else:
        print_lines(found.as_text(state_dir).splitlines())
    return Outcome.BLOCKED if found.blocked else Outcome.FINE


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("address", metavar="ADDRESS", help="an IPv4 or IPv6 address")
    add_json_option(parser)


COMMAND = Command("check", "say whether an address is blocked, and why (exit code 3 if it is)", _run, _add_options)
