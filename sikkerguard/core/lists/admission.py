"""What of a list may be blocked: all but the special ranges, the allowlist, and what was left out after a trial."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from sikkerguard.core.lists.allowlist import ALWAYS_ALLOWED, AllowEntry, Allowlist
from sikkerguard.core.lists.sources import Admission
from sikkerguard.core.net.address import Interval
from sikkerguard.core.net.family import Family
from sikkerguard.core.net.intervals import cut, merge, subtract, touched
from sikkerguard.core.net.networks import Blocklist, Networks
from sikkerguard.core.net.special import ALL_HOLES, HOLES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sikkerguard.core.lists.sources import LeftOut


def admit(listed: Blocklist, allowlist: Allowlist, left_out: Sequence[LeftOut] = ()) -> Admission:
    """Cut from a list what is never blocked, what is allowed and what is left out, exactly, and count it by reason.

    An entry that is dropped or narrowed counts once for each reason that touched it; special ranges count as special
    even if the allowlist has them too."""
    removed: Counter[str] = Counter()
    networks: dict[Family, Networks] = {}
    for family in Family:
        found, special = listed.of(family), ALL_HOLES[family]
        allowed = merge(Interval(prefix.first, prefix.last(family)) for prefix in allowlist.prefixes(family))
        for reason, holes in HOLES[family].items():
            removed[reason] += touched(found, holes)
        removed["allowlisted"] += touched(found, [part for each in allowed for part in subtract(each, special)])
        cut_out = merge(Interval(each.address, each.address) for each in left_out if each.family is family)
        removed["left out after a failed self-test"] += touched(found, cut_out)
        networks[family] = cut(found, [*special, *allowed, *cut_out])
    return Admission(
        Blocklist(networks[Family.V4], networks[Family.V6]), {reason: n for reason, n in removed.items() if n}
    )


def without_special(listed: Blocklist) -> Blocklist:
    """A list without the ranges that are never blocked anywhere: by this its size is measured."""
    return Blocklist(cut(listed.v4, ALL_HOLES[Family.V4]), cut(listed.v6, ALL_HOLES[Family.V6]))


def describe_removed(removed: Mapping[str, int]) -> str:
    """`3 private, 1 allowlisted`, the most frequent reason first; empty where nothing was removed."""
    ordered = sorted(removed.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count} {reason}" for reason, count in ordered)


def allowed_though_listed(listed: Blocklist, allowlist: Allowlist) -> tuple[str, ...]:
    """A sentence for each of this host's own connections that the list would have cut."""
    always = {(entry.family, entry.prefix) for entry in ALWAYS_ALLOWED}
    return tuple(
        f"{entry} {_listed_as(entry)} and stays allowed."
        for entry in allowlist.entries
        if (entry.family, entry.prefix) not in always
        and listed.of(entry.family).overlaps(entry.prefix.first, entry.prefix.last(entry.family))
    )


def _listed_as(entry: AllowEntry) -> str:
    return "is on the list" if entry.prefix.length == entry.family.bits else "has addresses that are on the list"
