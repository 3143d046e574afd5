"""What one pull has to know of those before it: each source's history, and pulls that did not come to their end.

Kept on disk as JSON: `{"sources": {NAME: {"query", "terminated", "heldBack", "versions"}}, "unfinished": 0}`, a version
being [Unix seconds, entries, IPv4 addresses, /64s of IPv6].
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from sikkerguard.core.lists.admission import without_special
from sikkerguard.core.lists.coverage import Extent, extent_of
from sikkerguard.core.lists.parse import merge_content
from sikkerguard.core.lists.size_guard import SourceHistory, Version, check_coverage
from sikkerguard.core.lists.sources import SourceStatus
from sikkerguard.core.net.family import Family
from sikkerguard.errors import ListError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from sikkerguard.core.lists.size_guard import Limits
    from sikkerguard.core.lists.sources import VerifiedList


@dataclass(frozen=True, slots=True)
class PullMemory:
    """`sources` has the history of each source by name. `unfinished` is how many pulls in a row were begun and did not
    end, since the process died in them."""

    sources: Mapping[str, SourceHistory] = field(default_factory=dict)
    unfinished: int = 0

    def of(self, name: str) -> SourceHistory:
        """The history of this source; an empty one where none is known."""
        return self.sources.get(name, SourceHistory())

    def with_source(self, name: str, history: SourceHistory | None) -> PullMemory:
        """With this history of the source, or without one where it is no longer wanted."""
        others = {other: known for other, known in self.sources.items() if other != name}
        return replace(self, sources=others if history is None else {**others, name: history})

    def as_json(self) -> dict[str, object]:
        """What `from_json` reads."""
        return {
            "sources": {
                name: {
                    "query": history.query,
                    "terminated": history.terminated,
                    "heldBack": sorted(history.held_back),
                    "versions": [[each.taken_at, *each.extent] for each in history.versions],
                }
                for name, history in self.sources.items()
            },
            "unfinished": self.unfinished,
        }


def from_json(known: Mapping[str, object]) -> PullMemory:
    """What `as_json` gave; whatever can't be read of it is left out."""
    sources = known.get("sources")
    unfinished = known.get("unfinished")
    histories: dict[str, SourceHistory] = {}
    for name, fields in sources.items() if isinstance(sources, dict) else ():
        try:
            histories[str(name)] = SourceHistory(
                versions=tuple(
                    Version(float(at), Extent(int(entries), int(v4), int(v6)))
                    for at, entries, v4, v6 in fields["versions"]
                ),
                query=str(fields["query"]),
                terminated=bool(fields["terminated"]),
                held_back=frozenset(map(str, fields["heldBack"])),
            )
        except (ValueError, TypeError, KeyError, OverflowError):
            continue
    return PullMemory(histories, unfinished if isinstance(unfinished, int) and unfinished > 0 else 0)


def source_statuses(
    memory: PullMemory, in_force: Collection[str], troubles: Mapping[str, str]
) -> tuple[SourceStatus, ...]:
    """One for each source that is known or in trouble. `in_force` has the names of those in the list in force, and
    `troubles` says by name why a newer version is not used."""
    statuses = []
    for name in sorted(memory.sources.keys() | troubles.keys(), reverse=True):
        versions = memory.of(name).versions if name in in_force else ()
        extent = versions[-1].extent if versions else None
        statuses.append(
            SourceStatus(
                name,
                entries=extent.entries if extent else 0,
                taken_at=versions[-1].taken_at if versions else None,
                covered_v4=extent.share(Family.V4) if extent else 0.0,
                covered_v6=extent.share(Family.V6) if extent else 0.0,
                trouble=troubles.get(name, ""),
            )
        )
    return tuple(statuses)


def believable(
    verified: VerifiedList, memory: PullMemory, limits: Limits
) -> tuple[VerifiedList, PullMemory, tuple[str, ...]]:
    """The cached list without sources of which no history is known and which cover too much: a version of ours that had
    no such guard took them. Every other source has a history in the memory that is returned. The sentences, without
    full stops, say what is not used and why."""
    complaints = []
    left_out = set[str]()
    for name in sorted({source.name for source in verified.sources} - memory.sources.keys()):
        content = merge_content([source.content for source in verified.content_of(name)])
        extent = extent_of(without_special(content))
        try:
            check_coverage(f"The list of {name} that is kept on disk", extent, limits)
        except ListError as error:
            complaints.append(f"{error}. It is not used, and the next one is measured as a first one")
            left_out.add(name)
        else:
            memory = memory.with_source(name, SourceHistory((Version(verified.verified_at, extent),)))
    kept = tuple(source for source in verified.sources if source.name not in left_out)
    return replace(verified, sources=kept), memory, tuple(complaints)
