"""What is to lie in the kernel, what does lie there, and the operations that turn one into the other.

An operation is a value: the dry run prints its description, the kernel edge carries it out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sikkerguard.core.firewall.names import (
    CHAIN,
    CHAINS,
    HOOK,
    TABLE,
    set_names,
)
from sikkerguard.core.firewall.rules import Rule, chain_rules
from sikkerguard.core.net.address import to_text
from sikkerguard.core.net.family import Family

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sikkerguard.core.firewall.state import DesiredFamily, ObservedFamily
    from sikkerguard.core.net.packed import Prefix


# Entries that a description names: a host may have thousands of addresses, and a line of the log should be read.
_SHOWN = 20


@dataclass(frozen=True, slots=True)
class DropMisfits:
    """Put sets of the right kind in the place of such as are of another. Where the kernel lets no set of another kind
    be exchanged, take it away, and before it the rules that hold on to it; all is made anew behind it."""

    family: Family
    names: tuple[str, ...]

    def describe(self) -> str:
        """In words."""
        return f"replace the sets {', '.join(self.names)}, which are of another kind"


@dataclass(frozen=True, slots=True)
class CreateSets:
    """Make the sets that are missing."""

    family: Family
    names: tuple[str, ...]

    def describe(self) -> str:
        """In words."""
        return f"create the sets {', '.join(self.names)}"


@dataclass(frozen=True, slots=True)
class EmptySets:
    """Empty what is for a trial, while there is none: an entry that stays in both of its sets would be blocked."""

    family: Family
    names: tuple[str, ...]

    def describe(self) -> str:
        """In words."""
        return f"empty the sets {', '.join(self.names)}, since nothing is on trial"


@dataclass(frozen=True, slots=True)
class FillAllow:
    """Put into the allow set what is to be in it, and nothing else."""

    family: Family
    allow: frozenset[Prefix]

    def describe(self) -> str:
        """In words."""
        ordered = sorted(self.allow)
        entries = ", ".join(to_text(self.family, prefix) for prefix in ordered[:_SHOWN])
        more = f" and {len(ordered) - _SHOWN} more" if len(ordered) > _SHOWN else ""
        return f"allow {entries}{more} in {set_names(self.family).allow}"


@dataclass(frozen=True, slots=True)
class FillCommitted:
    """Put the committed list's entries into the two block sets."""

    family: Family
    singles: int
    ranges: int

    def describe(self) -> str:
        """In words."""
        names = set_names(self.family)
        return f"block {self.singles} addresses in {names.singles} and {self.ranges} ranges in {names.ranges}"


@dataclass(frozen=True, slots=True)
class WriteChain:
    """Make our chains consist of exactly these rules, in one step."""

    family: Family
    rules: tuple[Rule, ...]

    def describe(self) -> str:
        """In words."""
        tool = "iptables" if self.family is Family.V4 else "ip6tables"
        lines = "".join(f"\n    {rule.chain}: {rule}" for rule in self.rules)
        return f"write the chains {', '.join(CHAINS)} of {tool}, table {TABLE}:{lines}"


@dataclass(frozen=True, slots=True)
class PlaceJump:
    """Have exactly one jump to the chain, at the top of the hook, for what does not come from `lo`."""

    family: Family
    missing: bool

    def describe(self) -> str:
        """In words."""
        tool = "iptables" if self.family is Family.V4 else "ip6tables"
        return f"put the jump to {CHAIN} at the top of {HOOK} of {tool}, table {TABLE}"


Operation = DropMisfits | CreateSets | EmptySets | FillAllow | FillCommitted | WriteChain | PlaceJump


def diff(desired: Mapping[Family, DesiredFamily], observed: Mapping[Family, ObservedFamily]) -> tuple[Operation, ...]:
    """What has to be done, in the order in which it is safe: a packet never meets a rule whose sets are not ready,
    and the allow set is right before anything is blocked."""
    operations: list[Operation] = []
    for family, wanted in desired.items():
        found, names = observed[family], set_names(family)
        if found.misfits:
            operations.append(DropMisfits(family, found.misfits))
            found = replace(found, rules=None, jumps=(), misfits=())
        missing = tuple(name for name in names.all() if name not in found.sets)
        if missing:
            operations.append(CreateSets(family, missing))
        if filled := tuple(name for name in wanted.idle if found.sets.get(name)):
            operations.append(EmptySets(family, filled))
        if found.allow != wanted.allow or found.excepted:
            operations.append(FillAllow(family, wanted.allow))
        held = (found.sets.get(names.singles), found.sets.get(names.ranges))
        # Sets just made are empty, which is all that an empty list wants.
        if held != (wanted.singles, wanted.ranges) and (any(held) or wanted.singles or wanted.ranges):
            operations.append(FillCommitted(family, wanted.singles, wanted.ranges))
        rules = chain_rules(family)
        if found.rules != rules:
            operations.append(WriteChain(family, rules))
        if found.jumps != (0,):
            operations.append(PlaceJump(family, missing=not found.jumps))
    return tuple(operations)
