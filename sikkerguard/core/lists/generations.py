"""Since when an entry has been on a list: a list is kept as generations, each with the moment it was first seen.

A generation holds what came with one pull and is still listed. Together they are the list, and none shares an entry
with another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sikkerguard.core.lists.parse import merge_content
from sikkerguard.core.lists.sources import ListedSource, VerifiedList
from sikkerguard.core.net.networks import Blocklist, Networks
from sikkerguard.core.net.packed import Ranges, divided

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sikkerguard.core.lists.size_guard import Offer

# The oldest ones beyond this number become one, with the moment of the youngest of them: nobody asks for the hour of an
# entry that has been listed for a month.
MAX_GENERATIONS = 32


@dataclass(frozen=True, slots=True)
class Change:
    """A new version of one source. Without `content` the source is no longer wanted; without an `offer` nothing has to
    be believed of it."""

    name: str
    content: Blocklist | None = None
    offer: Offer | None = None


def sources_after(before: VerifiedList | None, changes: Iterable[Change], now: float) -> tuple[ListedSource, ...]:
    """The generations of every source when these changes have been made at `now` (Unix seconds), in the order of the
    sources' names."""
    verified = VerifiedList((), now) if before is None else before
    generations = {source.name: verified.content_of(source.name) for source in verified.sources}
    for change in changes:
        earlier = generations.pop(change.name, ())
        if change.content is not None:
            generations[change.name] = split_generations(earlier, ListedSource(change.name, change.content, now))
    return tuple(source for name in sorted(generations, reverse=True) for source in generations[name])


def split_generations(before: Iterable[ListedSource], fresh: ListedSource) -> tuple[ListedSource, ...]:
    """The fresh list, split into what earlier generations of the same name had already, oldest first, and what is
    new. What is no longer listed is gone. There is always at least one generation, if an empty one."""
    left = fresh.content
    generations: list[ListedSource] = []
    for earlier in _limited([source for source in before if source.name == fresh.name]):
        kept_v4, left_v4 = _split(left.v4, earlier.content.v4)
        kept_v6, left_v6 = _split(left.v6, earlier.content.v6)
        left = Blocklist(left_v4, left_v6)
        if len(kept_v4) or len(kept_v6):
            generations.append(ListedSource(fresh.name, Blocklist(kept_v4, kept_v6), earlier.since))
    if len(left) or not generations:
        generations.append(ListedSource(fresh.name, left, fresh.since))
    return tuple(generations)


def _limited(generations: list[ListedSource]) -> list[ListedSource]:
    ordered = sorted(generations, key=lambda source: source.since)
    surplus = len(ordered) - MAX_GENERATIONS + 1
    if surplus < 2:
        return ordered
    oldest = ordered[:surplus]
    merged = ListedSource(oldest[-1].name, merge_content([each.content for each in oldest]), oldest[-1].since)
    return [merged, *ordered[surplus:]]


def _split(networks: Networks, earlier: Networks) -> tuple[Networks, Networks]:
    """What of these networks is in the earlier ones, entry by entry, and what is not."""
    family = networks.family
    kept, left = divided(networks.singles, earlier.singles, family.size)
    kept_ranges, left_ranges = divided(networks.ranges.packed, earlier.ranges.packed, family.size + 1)
    return (
        Networks(family, kept, Ranges(family, kept_ranges)),
        Networks(family, left, Ranges(family, left_ranges)),
    )
