"""Lists with the names of their sources, as they were read, verified and admitted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sikkerguard.core.net.address import to_text
from sikkerguard.core.net.packed import Prefix

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sikkerguard.core.net.family import Family
    from sikkerguard.core.net.networks import Blocklist


@dataclass(frozen=True, slots=True)
class Admission:
    """What a list came to: `blocklist` is to be blocked; `removed` counts what was taken out, by reason."""

    blocklist: Blocklist
    removed: Mapping[str, int]


# The names of the sources.
SIKKERAPI, LOCAL_FILE = "SikkerAPI", "SIKKER_CUSTOM_BLACKLIST"


@dataclass(frozen=True, slots=True)
class ListedSource:
    """One list as it was read: its `name`, its canonical content, and since when it is in force (Unix seconds)."""

    name: str
    content: Blocklist
    since: float


@dataclass(frozen=True, slots=True)
class LeftOut:
    """An address that is listed and not blocked, because with it the host lost a connection in a trial. `test` names
    the self-test that failed."""

    family: Family
    address: int
    test: str

    def __str__(self) -> str:
        return to_text(self.family, Prefix(self.address, self.family.bits))


@dataclass(frozen=True, slots=True)
class VerifiedList:
    """A list that passed a trial, as the cache keeps it.

    `sources` are before the allowlist and `left_out` are cut out, so that a changed allowlist can be applied to them
    anew; `verified_at`, in Unix seconds, is when SikkerAPI's part passed its trial; for a list without one, when the
    whole list did."""

    sources: tuple[ListedSource, ...]
    verified_at: float
    left_out: tuple[LeftOut, ...] = ()

    def content_of(self, name: str) -> tuple[ListedSource, ...]:
        """The generations of one source, oldest first."""
        return tuple(source for source in self.sources if source.name == name)


@dataclass(frozen=True, slots=True)
class SourceStatus:
    """One source of the list in force: its entries, when that version was taken (Unix seconds), the shares of IPv4 and
    IPv6 that it covers, from 0 to 1, and the sentence that says why a newer version is not used, or empty."""

    name: str
    entries: int
    taken_at: float | None
    covered_v4: float
    covered_v6: float
    trouble: str = ""
