"""Whether a list may be what it says: how much it covers, and how much it changed since its last good version.

Each source of addresses is measured by itself, against its own history, so that a change of one can't hide another's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sikkerguard.core.lists.coverage import Extent, covered_text
from sikkerguard.core.net.family import Family
from sikkerguard.errors import HeldBackError, ListError

if TYPE_CHECKING:
    from collections.abc import Iterable

# Growth is measured against the largest version of so many seconds: four weeks.
MEMORY_SECONDS = 28 * 86400.0
_DAY_SECONDS = 86400.0
# So many versions in a row of less than half the largest one's size, and theirs is the size to measure by.
_NEW_BASE = 3
# Under a half of the version before, a list is held back once; under a tenth, until a second one says the same.
_HALF, _TENTH = 0.5, 0.1
# Coverage may grow freely up to this share of a family: below it, no mistake reaches many.
_FREE_SHARE = 0.001
# What has another query (score, URL or key) may differ this many times from what came before.
_WIDE = 100.0
# Smaller local files are their owner's business.
_OWNERS_ENTRIES = 1000
# More entries than this share that are shorter than the source's floor, and it is no list for this host.
_SHORT_SHARE = 0.01
HALVED, SHRUNK, CUT_OFF = "halved", "shrunk", "cut off"
_ACCEPT = "take it once with 'sikkerguard pull --accept'"


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a source's list that was put in force: when (Unix seconds), and its size."""

    taken_at: float
    extent: Extent


@dataclass(frozen=True, slots=True)
class SourceHistory:
    """What a source's next version is measured against: `versions`, oldest first; the fingerprint of the `query` that
    the last one came from; whether that was `terminated` by a newline; and the signs for which the one after it was
    `held_back`, if it was."""

    versions: tuple[Version, ...] = ()
    query: str = ""
    terminated: bool = False
    held_back: frozenset[str] = frozenset()

    def last(self) -> Extent | None:
        """The size of the version in force."""
        return self.versions[-1].extent if self.versions else None

    def base(self, now: float) -> Extent | None:
        """The size to measure growth by: the largest of four weeks, each part by itself, unless the last three
        versions in a row had less than half as many entries. The version in force counts however old it is."""
        if not self.versions:
            return None
        recent = [each.extent for each in self.versions[:-1] if now - each.taken_at <= MEMORY_SECONDS]
        recent.append(self.versions[-1].extent)
        largest = _largest(recent)
        newest = _largest(recent[-_NEW_BASE:])
        return newest if len(recent) > _NEW_BASE and newest.entries < _HALF * largest.entries else largest

    def taken(self, version: Version, *, query: str, terminated: bool) -> SourceHistory:
        """After this version was put in force. Of each day the largest one is remembered, and the last three."""
        versions = [*self.versions, version]
        days: dict[int, Version] = {}
        for each in versions[:-_NEW_BASE]:
            if not 0 <= version.taken_at - each.taken_at <= MEMORY_SECONDS:
                continue  # too old, or of a clock that was wrong
            day = int(each.taken_at // _DAY_SECONDS)
            known = days.get(day, each)
            days[day] = Version(each.taken_at, _largest([known.extent, each.extent]))
        return SourceHistory((*days.values(), *versions[-_NEW_BASE:]), query, terminated)

    def with_held_back(self, signs: frozenset[str]) -> SourceHistory:
        """After a version was held back for these signs, or refused (none)."""
        return replace(self, held_back=signs)


@dataclass(frozen=True, slots=True)
class Offer:
    """A new version of a source: its size once the special ranges are cut out; how many of its `lines` are `short`,
    ranges that cover more at once than the source may block; the fingerprint of the query that it answers; whether it
    ended with a newline; and whether the source is a file that the host's owner keeps."""

    name: str
    extent: Extent
    lines: int
    short: int = 0
    query: str = ""
    terminated: bool = True
    local: bool = False


@dataclass(frozen=True, slots=True)
class Limits:
    """`max_growth`: how many times as large as before a list may be. `max_coverage`: the share of a family that it may
    cover, from 0 to 1."""

    max_growth: float
    max_coverage: float


def check_coverage(name: str, extent: Extent, limits: Limits) -> None:
    """Refuse what covers more of a family than any list of attackers does.

    Raises:
        ListError: it does.
    """
    for family in Family:
        if extent.share(family) > limits.max_coverage:
            raise ListError(
                f"{name} covers {covered_text(extent, family)}, more than the {100 * limits.max_coverage:g}% that are "
                f"allowed; if that is right, {_ACCEPT} or raise SIKKER_MAX_COVERAGE"
            )


def nothing_left(name: str) -> ListError:
    """What to say of a list that blocks nobody."""
    return ListError(f"nothing is left of {name} once private, reserved and allowlisted addresses are cut out")


def check_change(offer: Offer, history: SourceHistory, limits: Limits, now: float, *, accept: bool) -> None:
    """Refuse a version that is empty, covers too much, or changed beyond belief. `now` in Unix seconds.

    `accept` waives all but emptiness once. A first version has no history: only its coverage is judged.

    Raises:
        ListError: the version is refused; the message says why and what to do. `HeldBackError` if the same, said again
            by the next one, will be believed.
    """
    if not offer.extent.entries:
        raise nothing_left(offer.name)
    if accept:
        return
    if offer.short > _SHORT_SHARE * offer.lines:
        raise ListError(
            f"{offer.short} of {offer.lines} entries of {offer.name} are wider ranges than it may block; if that is "
            f"right, {_ACCEPT}, without them"
        )
    check_coverage(offer.name, offer.extent, limits)
    base, last = history.base(now), history.last()
    if base is None or last is None:
        return
    same = not history.query or not offer.query or history.query == offer.query
    _check_growth(offer, base, limits.max_growth if same else max(_WIDE, limits.max_growth))
    signs = _shrinkage(offer, last, same=same)
    if history.terminated and not offer.terminated and same:
        signs[CUT_OFF] = f"{offer.name} ends in the middle of a line, as one that was cut off does"
    if not signs.keys() <= history.held_back:
        raise HeldBackError(
            f"{', and '.join(dict.fromkeys(signs.values()))}; it is taken if the next pull says the same, or now with "
            "'sikkerguard pull --accept'",
            # What was seen before stays so: of reasons that take turns, each holds a list back once.
            history.held_back | signs.keys(),
        )


def _check_growth(offer: Offer, base: Extent, most: float) -> None:
    entries = max(base.entries, _OWNERS_ENTRIES) if offer.local else base.entries
    if offer.extent.entries > most * entries:
        raise ListError(
            f"{offer.name} grew from {base.entries} to {offer.extent.entries} entries, more than {most:g} times; if "
            f"that is right, {_ACCEPT} or raise SIKKER_MAX_GROWTH"
        )
    if offer.local and offer.extent.entries < _OWNERS_ENTRIES:
        return
    for family in Family:
        covered, before = offer.extent.covered(family), base.covered(family)
        if offer.extent.share(family) > _FREE_SHARE and covered > most * before:
            raise ListError(
                f"{offer.name} grew from {covered_text(base, family)} to {covered_text(offer.extent, family)}, more "
                f"than {most:g} times; if that is right, {_ACCEPT} or raise SIKKER_MAX_GROWTH"
            )


def _shrinkage(offer: Offer, last: Extent, *, same: bool) -> dict[str, str]:
    """The signs, each with the words for it; a tenth is under a half as well."""
    if offer.local and last.entries < _OWNERS_ENTRIES:
        return {}
    size = f"{offer.name} shrank from {last.entries} to {offer.extent.entries} entries, to less than"
    if not same:
        return {SHRUNK: f"{size} a hundredth"} if offer.extent.entries * _WIDE < last.entries else {}
    if offer.extent.entries < _TENTH * last.entries:
        return dict.fromkeys((HALVED, SHRUNK), f"{size} a tenth")
    if offer.extent.entries < _HALF * last.entries:
        return {HALVED: f"{size} a half"}
    return {}


def _largest(extents: Iterable[Extent]) -> Extent:
    return Extent(*map(max, zip(*extents, strict=True)))
