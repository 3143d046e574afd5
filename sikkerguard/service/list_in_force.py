"""The list in force: written by the pull loop alone, read by whoever asks what is listed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sikkerguard.core.net.networks import Blocklist

if TYPE_CHECKING:
    from sikkerguard.core.lists.coverage import Extent
    from sikkerguard.core.lists.sources import Admission, ListedSource, VerifiedList


@dataclass(frozen=True, slots=True)
class InForce:
    """A committed list: as it was read, source by source (`verified`), all sources as one before the allowlist was cut
    out (`listed`), what is blocked (`admitted`), and the size of that (`extent`)."""

    verified: VerifiedList
    listed: Blocklist
    admitted: Admission
    extent: Extent


class ListInForce:
    """`value` is None while no list is known. `found` is what the kernel blocked at the start, where no list on disk
    says what that is."""

    def __init__(self) -> None:
        self.value: InForce | None = None
        self.found = Blocklist()

    @property
    def blocklist(self) -> Blocklist:
        """What is blocked."""
        return self.found if self.value is None else self.value.admitted.blocklist

    @property
    def listed(self) -> Blocklist:
        """What is listed, whether it is allowed or not."""
        return self.found if self.value is None else self.value.listed

    @property
    def sources(self) -> tuple[ListedSource, ...] | None:
        """The sources as they were read; None while no list is known."""
        return None if self.value is None else self.value.verified.sources

    def content_of(self, name: str) -> tuple[Blocklist, ...]:
        """The generations of one source, oldest first; empty without."""
        return tuple(source.content for source in self.sources or () if source.name == name)
