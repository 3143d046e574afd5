"""Reads what of ours is in the kernel, and what it does with an address. Nothing here changes anything."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sikkerguard.core.firewall.names import set_names
from sikkerguard.core.firewall.state import Inspection, ObservedFamily
from sikkerguard.core.net.packed import Prefix
from sikkerguard.edges.kernel.ipset_legacy.set_kinds import kind_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sikkerguard.core.net.family import Family
    from sikkerguard.edges.kernel.ipset_legacy.chains import Chains
    from sikkerguard.edges.kernel.ipset_legacy.set_contents import SetContents
    from sikkerguard.edges.kernel.ipset_legacy.sets import Sets


class Inspector:
    """Every method raises `KernelError` when the kernel refuses."""

    def __init__(self, sets: Sets, contents: SetContents, chains: Chains, families: Sequence[Family]) -> None:
        self._sets = sets
        self._contents = contents
        self._chains = chains
        self._families = families

    def observe(self) -> dict[Family, ObservedFamily]:
        """What of ours is in the kernel now."""
        observed = {}
        for family in self._families:
            names = set_names(family)
            headers = {name: header for name in names.all() if (header := self._sets.header(name)) is not None}
            sets = {
                name: header.entries
                for name, header in headers.items()
                if kind_of(family, name)[0].fits(header, family)
            }
            misfits = tuple(name for name in headers if name not in sets)
            nothing = frozenset[Prefix]()
            allow, excepted = self._contents.allowed(names.allow, family) if names.allow in sets else (nothing, nothing)
            rules, jumps = self._chains.read(family)
            observed[family] = ObservedFamily(sets, misfits, allow, excepted, rules, jumps)
        return observed

    def inspect(self, family: Family, address: int) -> Inspection:
        """What the kernel does with packets from this address now. `BusyError` where python-iptables can't be read."""
        names, packed = set_names(family), address.to_bytes(family.size, "big")
        present = set(self._sets.names())
        rules, jumps = self._chains.read(family)

        def covers(name: str) -> bool:
            return name in present and self._sets.contains(name, family, packed)

        listing = next(filter(covers, (names.singles, names.ranges)), None)
        return Inspection(
            active=bool(rules and jumps) and present.issuperset(names.all()),
            listed=listing is not None,
            allowed=covers(names.allow),
            packets=self._packets(listing, family, address) if listing else 0,
        )

    def has_state(self) -> bool:
        """Whether there is any set of ours: our rules can't be without our sets. python-iptables is not read for this,
        which can't be while it is being installed."""
        return bool(self._sets.names())

    def _packets(self, name: str, family: Family, address: int) -> int:
        """How many packets the entry matched that covers this address."""
        covering = Prefix(address, family.bits)
        if name == set_names(family).ranges:
            # Read to its end: the kernel begins no other listing on the same socket before.
            for first, length, nomatch in self._sets.prefixes(name, family):
                prefix = Prefix(int.from_bytes(first, "big"), length)
                if not nomatch and prefix.first <= address <= prefix.last(family):
                    covering = prefix
        return self._sets.packets(name, family, covering)
