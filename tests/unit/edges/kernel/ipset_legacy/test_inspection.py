"""What is read of a kernel in which anything of ours may be missing, or be of another kind."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import pytest

from sikkerguard.core.firewall.names import set_names
from sikkerguard.core.firewall.rules import chain_rules
from sikkerguard.core.firewall.state import Inspection, ObservedFamily
from sikkerguard.core.net.family import Family
from sikkerguard.core.net.packed import Prefix
from sikkerguard.edges.kernel.ipset_legacy.inspection import Inspector
from sikkerguard.edges.kernel.ipset_legacy.set_contents import SetContents
from sikkerguard.edges.kernel.ipset_legacy.set_kinds import kind_of
from sikkerguard.edges.kernel.ipset_legacy.set_netlink import SetHeader
from sikkerguard.errors import BusyError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sikkerguard.core.firewall.rules import Rule
    from sikkerguard.edges.kernel.ipset_legacy.chains import Chains
    from sikkerguard.edges.kernel.ipset_legacy.sets import Sets

FAMILY = Family.V4
NAMES = set_names(FAMILY)
SINGLE, IN_RANGE, INNOCENT = 0xCB007107, 0xCB007109, 0xCB007120
RANGE, WIDE = Prefix(0xCB007108, 29), Prefix(0xCB007100, 24)


@dataclass
class Kernel:
    """Sets and chains of IPv4. An entry is (packets, whether it is `nomatch`)."""

    sets: dict[str, dict[Prefix, tuple[int, bool]]] = field(default_factory=lambda: {name: {} for name in NAMES.all()})
    rules: tuple[Rule, ...] | None = chain_rules(FAMILY)
    jumps: tuple[int, ...] = (0,)
    other_kind: set[str] = field(default_factory=set)
    readable: bool = True

    def names(self) -> list[str]:
        return list(self.sets)

    def header(self, name: str) -> SetHeader | None:
        if name not in self.sets:
            return None
        kind = kind_of(FAMILY, name)[0]
        type_name = "bitmap:port" if name in self.other_kind else kind.type_name
        timeout = kind.timeout is not None
        return SetHeader(type_name, FAMILY.number, len(self.sets[name]), 1024, 1, kind.counters, timeout)

    def contains(self, name: str, family: Family, address: bytes) -> bool:
        assert family is FAMILY
        found = int.from_bytes(address, "big")
        covering = [each for each in self.sets[name] if each.first <= found <= each.last(family)]
        return bool(covering) and not self.sets[name][max(covering, key=lambda each: each.length)][1]

    def prefixes(self, name: str, family: Family) -> Iterator[tuple[bytes, int, bool]]:
        for prefix, (_, nomatch) in self.sets[name].items():
            yield prefix.first.to_bytes(family.size, "big"), prefix.length, nomatch

    def packets(self, name: str, family: Family, prefix: Prefix) -> int:
        return self.sets[name][prefix][0]

    def read(self, family: Family) -> tuple[tuple[Rule, ...] | None, tuple[int, ...]]:
        if not self.readable:
            raise BusyError("python-iptables can't be used")
        return self.rules, self.jumps

    def inspector(self) -> Inspector:
        sets = cast("Sets", self)
        return Inspector(sets, SetContents(sets), cast("Chains", self), (FAMILY,))


@pytest.fixture
def kernel() -> Kernel:
    made = Kernel()
    made.sets[NAMES.singles] = {Prefix(SINGLE, 32): (3, False)}
    made.sets[NAMES.ranges] = {WIDE: (0, True), RANGE: (5, False)}
    made.sets[NAMES.allow] = {Prefix(INNOCENT, 32): (0, False)}
    return made


def test_a_listed_address_is_found_with_the_packets_of_its_entry(kernel: Kernel) -> None:
    inspect = kernel.inspector().inspect
    assert inspect(FAMILY, SINGLE) == Inspection(active=True, listed=True, allowed=False, packets=3)
    assert inspect(FAMILY, IN_RANGE) == Inspection(active=True, listed=True, allowed=False, packets=5)
    assert inspect(FAMILY, SINGLE).blocked
    # An exception is no entry.
    assert inspect(FAMILY, INNOCENT) == Inspection(active=True, listed=False, allowed=True, packets=0)


def test_what_is_allowed_is_not_blocked_though_it_is_listed(kernel: Kernel) -> None:
    kernel.sets[NAMES.allow][Prefix(SINGLE, 32)] = (0, False)
    found = kernel.inspector().inspect(FAMILY, SINGLE)
    assert found == Inspection(active=True, listed=True, allowed=True, packets=3)
    assert not found.blocked


def test_nothing_is_blocked_while_a_part_of_ours_is_missing(kernel: Kernel) -> None:
    def found() -> Inspection:
        return kernel.inspector().inspect(FAMILY, SINGLE)

    assert found().active
    kernel.jumps = ()
    assert not found().active
    kernel.jumps = (3,)  # packets meet our rules there too
    assert found().active
    kernel.rules = None
    assert not found().active
    kernel.rules = chain_rules(FAMILY)
    for name in NAMES.all():
        entries = kernel.sets.pop(name)
        assert found() == Inspection(
            active=False, listed=name != NAMES.singles, allowed=False, packets=3 * (name != NAMES.singles)
        )
        kernel.sets[name] = entries
    kernel.sets.clear()
    assert found() == Inspection(active=False, listed=False, allowed=False, packets=0)


def test_state_is_found_without_reading_any_rule(kernel: Kernel) -> None:
    kernel.readable = False
    assert kernel.inspector().has_state()
    kernel.sets = {"sikkerguard-load-v4": {}}
    assert kernel.inspector().has_state()
    kernel.sets = {}
    assert not kernel.inspector().has_state()
    with pytest.raises(BusyError):
        kernel.inspector().inspect(FAMILY, SINGLE)


def test_all_of_ours_is_observed(kernel: Kernel) -> None:
    kernel.sets[NAMES.allow][Prefix(IN_RANGE, 32)] = (0, True)
    counts = {name: len(entries) for name, entries in kernel.sets.items()}
    assert kernel.inspector().observe() == {
        FAMILY: ObservedFamily(
            counts,
            allow=frozenset({Prefix(INNOCENT, 32)}),
            excepted=frozenset({Prefix(IN_RANGE, 32)}),
            rules=chain_rules(FAMILY),
            jumps=(0,),
        )
    }
    kernel.other_kind = {NAMES.trial, NAMES.allow}
    del kernel.sets[NAMES.hits]
    found = kernel.inspector().observe()[FAMILY]
    assert sorted(found.misfits) == sorted(kernel.other_kind)
    assert found.sets == {name: n for name, n in counts.items() if name not in (NAMES.hits, *kernel.other_kind)}
    # What a set of another kind holds can't be read as ranges.
    assert (found.allow, found.excepted) == (frozenset(), frozenset())
    kernel.sets, kernel.rules, kernel.jumps = {}, None, ()
    assert kernel.inspector().observe() == {FAMILY: ObservedFamily()}
