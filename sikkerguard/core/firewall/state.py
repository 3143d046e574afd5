"""What is to be in the kernel, what is there, and what one address meets."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sikkerguard.core.firewall.rules import Rule
    from sikkerguard.core.lists.allowlist import Allowlist
    from sikkerguard.core.net.family import Family
    from sikkerguard.core.net.networks import Blocklist
    from sikkerguard.core.net.packed import Prefix


class Candidate(Enum):
    """How far a list has come that is to replace the committed one."""

    # There is none. Its sets are to be empty, and the trial's: an address in both would be blocked.
    ABSENT = auto()
    # It is loaded, and no packet meets it: the trial's set is to be empty.
    STAGED = auto()
    # It blocks too, or may: nothing of it is touched. So it is after a process that died in the middle of an update.
    ON_TRIAL = auto()


@dataclass(frozen=True, slots=True)
class DesiredFamily:
    """What is to be in the kernel for one family: the number of single addresses and of ranges of the committed list,
    what is allowed, and how far the candidate has come."""

    singles: int
    ranges: int
    allow: frozenset[Prefix]
    candidate: Candidate = Candidate.ABSENT


@dataclass(frozen=True, slots=True)
class ObservedFamily:
    """What is in the kernel for one family, as ipset and iptables have it; by default nothing of ours.

    sets: the number of entries of each set of ours that is there and of the right kind, by name.
    misfits: the names of those that are of another kind.
    allow: what the allow set matches.
    excepted: what the allow set has as `nomatch`, so that it is not allowed.
    rules: those of our chains, or None without the chain that the hook jumps to.
    jumps: the positions in the hook, from 0, of the jumps to our chain; -1 for one that is not as we write it.
    """

    sets: Mapping[str, int] = field(default_factory=dict)
    misfits: tuple[str, ...] = ()
    allow: frozenset[Prefix] = frozenset()
    excepted: frozenset[Prefix] = frozenset()
    rules: tuple[Rule, ...] | None = None
    jumps: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Inspection:
    """What one address meets.

    active: our rules meet packets, and all of their sets are there.
    listed: an entry of the committed list covers the address.
    allowed: the allowlist in the kernel covers it.
    packets: those that the entry has matched since its list was loaded.
    """

    active: bool
    listed: bool
    allowed: bool
    packets: int

    @property
    def blocked(self) -> bool:
        """Whether a packet from the address is dropped now."""
        return self.active and self.listed and not self.allowed


def desired_state(
    families: Sequence[Family], committed: Blocklist, allowlist: Allowlist, candidate: Candidate = Candidate.ABSENT
) -> dict[Family, DesiredFamily]:
    """What is to be in the kernel for these families when this list is committed."""
    desired = {}
    for family in families:
        networks = committed.of(family)
        ranges = len(networks.ranges)
        desired[family] = DesiredFamily(len(networks) - ranges, ranges, allowlist.prefixes(family), candidate)
    return desired
