"""The backend `ipset-legacy`: what `core.interfaces.FirewallBackend` promises, done with ipset and iptables-legacy.

For one thread alone. Its parts are beside this file; here is who does what.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from sikkerguard.core.firewall.diff import FillCommitted
from sikkerguard.core.firewall.names import set_names
from sikkerguard.core.firewall.state import Candidate
from sikkerguard.edges.kernel.ipset_legacy.chains import Chains
from sikkerguard.edges.kernel.ipset_legacy.counters import CounterReader
from sikkerguard.edges.kernel.ipset_legacy.inspection import Inspector
from sikkerguard.edges.kernel.ipset_legacy.loader import ListLoader
from sikkerguard.edges.kernel.ipset_legacy.removal import Removal
from sikkerguard.edges.kernel.ipset_legacy.repair import Repair
from sikkerguard.edges.kernel.ipset_legacy.set_contents import SetContents
from sikkerguard.edges.kernel.ipset_legacy.set_kinds import ALLOW
from sikkerguard.edges.kernel.ipset_legacy.set_netlink import NetlinkSets
from sikkerguard.edges.kernel.ipset_legacy.sets import Sets
from sikkerguard.edges.kernel.ipset_legacy.trial import TrialSets

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sikkerguard.core.firewall.diff import Operation
    from sikkerguard.core.firewall.state import Inspection
    from sikkerguard.core.lists.allowlist import Allowlist
    from sikkerguard.core.net.family import Family
    from sikkerguard.core.net.networks import Blocklist
    from sikkerguard.core.traffic.sample import PacketCount, TrafficSample

# How long `unhook` waits for the lock of iptables: a stop has five seconds for everything.
_UNHOOK_LOCK_SECONDS = 0.5


class IpsetBackend:
    """What the methods promise, and which errors they raise, is said in `core.interfaces.FirewallBackend`."""

    name = "ipset-legacy"

    def __init__(self, sets: Sets, trial: TrialSets, chains: Chains, families: Sequence[Family]) -> None:
        self._sets = sets
        self._trial = trial
        self._chains = chains
        self._families = tuple(families)
        self._contents = SetContents(sets)
        self._counters = CounterReader(sets, chains, self._families)
        self._inspector = Inspector(sets, self._contents, chains, self._families)
        self._loader = ListLoader(sets, self._contents, trial, self._families)
        self._repair = Repair(
            sets, self._contents, chains, self._counters, trial, self._loader, self._inspector, self._families
        )

    @classmethod
    def build(cls, families: Sequence[Family], netlink: NetlinkSets | None = None) -> Self:
        """The backend for the kernel of this network namespace, over a netlink socket of its own, or over this one.

        Raises:
            KernelError: netlink can't be opened.
        """
        netlink = netlink or NetlinkSets()
        trial = TrialSets(netlink, families)
        return cls(Sets(netlink, trial.keep_alive), trial, Chains(), families)

    def adopt(self, verified: Blocklist, allowlist: Allowlist) -> tuple[Operation, ...]:
        """Begin with a list that passed its trial earlier."""
        self._loader.committed = verified
        left = [family for family in self._families if self._sets.header(set_names(family).singles) is not None]
        # A trial that still runs covers what a death in the middle of the swaps left uncovered.
        operations = self._repair.run(allowlist, Candidate.ON_TRIAL)
        filled = {operation.family for operation in operations if isinstance(operation, FillCommitted)}
        for family in left:
            # After a death between two swaps all counts can agree, and no sample find the odd entry.
            if family not in filled:
                self._loader.load_committed(family)
        self._loader.discard_leftovers()
        return operations

    def repair(self, allowlist: Allowlist) -> tuple[Operation, ...]:
        """Make the kernel hold the committed list and this allowlist."""
        return self._repair.run(allowlist, self._loader.candidate)

    def read_committed(self) -> Blocklist:
        """The list that the kernel blocks by now."""
        return self._loader.read_committed()

    def allow(self, allowlist: Allowlist) -> None:
        """Make the allow sets hold this allowlist. One that was destroyed is left to `repair`."""
        for family in self._families:
            name = set_names(family).allow
            if self._sets.header(name) is not None:
                self._contents.fill(name, ALLOW, family, allowlist.prefixes(family))

    def stage(self, blocklist: Blocklist) -> None:
        """Load a candidate."""
        self._loader.stage(blocklist)

    def begin_trial(self) -> None:
        """Let the candidate block too."""
        self._trial.begin()

    def renew_trial(self) -> None:
        """Prolong the trial."""
        self._trial.renew()

    def commit(self) -> None:
        """Put the candidate in the committed list's place."""
        # A rule that is missing now may have been missing while the self-test ran.
        self._repair.check_rules()
        self._loader.commit()

    def rollback(self) -> None:
        """End the trial and discard the candidate."""
        self._loader.rollback()

    def unhook(self) -> None:
        """Remove our jumps."""
        for family in self._families:
            self._chains.unhook(family, _UNHOOK_LOCK_SECONDS)

    def remove(self) -> None:
        """Remove every object of ours."""
        Removal(self._sets, self._chains, self._families).run()

    def hold_counters(self) -> None:
        """Give nothing to `read_traffic` until `resume_counters`."""
        self._counters.hold()

    def resume_counters(self, counters: Mapping[Family, PacketCount]) -> None:
        """Count on from these readings."""
        self._counters.resume(counters)

    def read_traffic(self) -> tuple[TrafficSample, ...]:
        """What was dropped since the last call."""
        return self._counters.read()

    def inspect(self, family: Family, address: int) -> Inspection:
        """What the kernel does with packets from this address now."""
        return self._inspector.inspect(family, address)

    def has_state(self) -> bool:
        """Whether any set of ours is in the kernel."""
        return self._inspector.has_state()

    def close(self) -> None:
        """Close the sockets."""
        self._sets.close()
