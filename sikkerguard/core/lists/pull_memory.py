"""What one pull has to know of those before it: each source's history, and pulls that did not come to their end.

Kept on disk as JSON: `{"sources": {NAME: {"query", "terminated", "heldBack", "versions"}}, "unfinished": 0}`, a version
being [Unix seconds, entries, IPv4 addresses, /64s of IPv6].
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from sikkerguard.core.lists.coverage import Extent
from sikkerguard.core.lists.size_guard import SourceHistory, Version

if TYPE_CHECKING:
    from collections.abc import Mapping


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

    def as_json(self) -> dict[str, Any]:
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


def from_json(known: Mapping[str, Any]) -> PullMemory:
    """What `as_json` gave; whatever cannot be read of it is left out."""
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
