"""What is to lie in the kernel, and what does lie there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sikkerguard.core.firewall.rules import Rule
    from sikkerguard.core.lists.allowlist import Allowlist
    from sikkerguard.core.net.family import Family
    from sikkerguard.core.net.networks import Blocklist
    from sikkerguard.core.net.packed import Prefix


@dataclass(frozen=True, slots=True)
class ObservedFamily:
    """What lies in the kernel for one family: the number of entries of each set of ours that is there; what the allow
    set holds; the chains' rules, or None without the chain that the hook jumps to; where in the hook our jumps stand,
    0 being the top (-1 for one that is not as we write it); `misfits`, sets with a name of ours that are of another
    kind; and `excepted`, what the allow set has as `nomatch`, so that it is not allowed."""

    sets: Mapping[str, int]
    allow: frozenset[Prefix]
    rules: tuple[Rule, ...] | None
    jumps: tuple[int, ...]
    misfits: tuple[str, ...] = ()
    excepted: frozenset[Prefix] = frozenset()


@dataclass(frozen=True, slots=True)
class DesiredFamily:
    """What is to lie in the kernel: the number of entries of the two committed sets, what is allowed, and the sets
    that are to be empty, since nothing is on trial."""

    singles: int
    ranges: int
    allow: frozenset[Prefix]
    idle: tuple[str, ...] = ()


def desired_state(
    families: Sequence[Family], blocklist: Blocklist, allowlist: Allowlist
) -> dict[Family, DesiredFamily]:
    """What is to lie in the kernel when this list is committed."""
    return {
        family: DesiredFamily(
            singles=len(blocklist.of(family)) - len(blocklist.of(family).ranges),
            ranges=len(blocklist.of(family).ranges),
            allow=allowlist.prefixes(family),
        )
        for family in families
    }
