"""The operations that turn what is in the kernel into what is to be there.

An operation is a value: the dry run prints its description, a backend carries it out.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Protocol

from sikkerguard.core.firewall.names import CHAIN, CHAINS, HOOK, TABLE, set_names, tool_name
from sikkerguard.core.firewall.rules import Rule, chain_rules
from sikkerguard.core.firewall.state import Candidate
from sikkerguard.core.net.address import to_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sikkerguard.core.firewall.state import DesiredFamily, ObservedFamily
    from sikkerguard.core.net.family import Family
    from sikkerguard.core.net.packed import Prefix

# A description names at most this many allowed ranges: a host may have thousands of addresses, and a line of the log
# should be readable.
_MAX_NAMED = 20


class Operation(Protocol):
    """One thing that a backend does to the kernel. Those below are for ipset and iptables; another backend may have
    others."""

    @property
    def family(self) -> Family:
        """The family whose objects it changes."""

    def describe(self) -> str:
        """What it does, beginning with a verb, to be read behind "would" or "had to". Details may follow on further
        lines."""

    def objects(self) -> tuple[str, int]:
        """What it changes, as a noun in the singular, and how many of these: `("set", 3)`."""


@dataclass(frozen=True, slots=True)
class _OnSets:
    """Changes these sets of one family."""

    _description: ClassVar[str]
    family: Family
    names: tuple[str, ...]

    def describe(self) -> str:
        return self._description.format(", ".join(self.names))

    def objects(self) -> tuple[str, int]:
        return "set", len(self.names)


class DropMisfits(_OnSets):
    """Replace sets that have our names but are of another kind. Where the kernel refuses to swap two kinds of sets,
    the set is destroyed, and before it the rules that refer to it; later operations make both anew."""

    _description = "replace the sets {}, which are of another kind"


class CreateSets(_OnSets):
    """Create the sets that are missing."""

    _description = "create the sets {}"


class EmptySets(_OnSets):
    """Empty the sets that are for a candidate, while there is none: an address in them would be blocked."""

    _description = "empty the sets {}, since nothing is on trial"


@dataclass(frozen=True, slots=True)
class FillAllow:
    """Make the allow set hold exactly these ranges."""

    family: Family
    allow: frozenset[Prefix]

    def describe(self) -> str:
        """See `Operation`."""
        ordered = sorted(self.allow)
        entries = ", ".join(to_text(self.family, prefix) for prefix in ordered[:_MAX_NAMED])
        more = f" and {len(ordered) - _MAX_NAMED} more" if len(ordered) > _MAX_NAMED else ""
        return f"allow {entries}{more} in {set_names(self.family).allow}"

    def objects(self) -> tuple[str, int]:
        """See `Operation`."""
        return "allowed network", len(self.allow)


@dataclass(frozen=True, slots=True)
class FillCommitted:
    """Make the two block sets hold exactly the committed list, which has so many single addresses and ranges."""

    family: Family
    singles: int
    ranges: int

    def describe(self) -> str:
        """See `Operation`."""
        names = set_names(self.family)
        return f"block {self.singles} addresses in {names.singles} and {self.ranges} ranges in {names.ranges}"

    def objects(self) -> tuple[str, int]:
        """See `Operation`."""
        return "blocked network", self.singles + self.ranges


@dataclass(frozen=True, slots=True)
class WriteChains:
    """Make our chains consist of exactly these rules, in one step."""

    family: Family
    rules: tuple[Rule, ...]

    def describe(self) -> str:
        """See `Operation`. One line for each rule follows."""
        lines = "".join(f"\n    {rule.chain}: {rule}" for rule in self.rules)
        return f"write the chains {', '.join(CHAINS)} of {tool_name(self.family)}, table {TABLE}:{lines}"

    def objects(self) -> tuple[str, int]:
        """See `Operation`."""
        return "chain", len(CHAINS)


@dataclass(frozen=True, slots=True)
class PlaceJump:
    """Have exactly one jump to our chain, at the top of the hook, for packets that do not come from `lo`."""

    family: Family

    def describe(self) -> str:
        """See `Operation`."""
        return f"put the jump to {CHAIN} at the top of {HOOK} of {tool_name(self.family)}, table {TABLE}"

    def objects(self) -> tuple[str, int]:
        """See `Operation`."""
        return "jump", 1


Step = DropMisfits | CreateSets | EmptySets | FillAllow | FillCommitted | WriteChains | PlaceJump


def diff(desired: Mapping[Family, DesiredFamily], observed: Mapping[Family, ObservedFamily]) -> tuple[Step, ...]:
    """What has to be done, in a safe order: a packet never meets a rule whose sets are not ready, and the allow set is
    right before anything is blocked. What was observed of a family that is not desired is ignored."""
    return tuple(step for family, wanted in desired.items() for step in _steps(family, wanted, observed[family]))


def _steps(family: Family, wanted: DesiredFamily, found: ObservedFamily) -> list[Step]:
    names, steps = set_names(family), list[Step]()
    if found.misfits:
        steps.append(DropMisfits(family, found.misfits))
        found = replace(found, rules=None, jumps=(), misfits=())
    if missing := tuple(name for name in names.all() if name not in found.sets):
        steps.append(CreateSets(family, missing))
    to_empty = {
        Candidate.ABSENT: (names.trial, names.new_singles, names.new_ranges),
        Candidate.STAGED: (names.trial,),
        Candidate.ON_TRIAL: (),
    }[wanted.candidate]
    if filled := tuple(name for name in to_empty if found.sets.get(name)):
        steps.append(EmptySets(family, filled))
    if found.allow != wanted.allow or found.excepted:
        steps.append(FillAllow(family, wanted.allow))
    held = (found.sets.get(names.singles, 0), found.sets.get(names.ranges, 0))
    if held != (wanted.singles, wanted.ranges):
        steps.append(FillCommitted(family, wanted.singles, wanted.ranges))
    rules = chain_rules(family)
    if found.rules != rules:
        steps.append(WriteChains(family, rules))
    if found.jumps != (0,):
        steps.append(PlaceJump(family))
    return steps


def summarize(operations: Iterable[Operation]) -> str:
    """What these operations change, both families together: `28 sets, 8 chains, 2 jumps`."""
    totals = Counter[str]()
    for operation in operations:
        noun, number = operation.objects()
        totals[noun] += number
    return ", ".join(f"{number:,} {noun}{'s' * (number != 1)}" for noun, number in totals.items())
