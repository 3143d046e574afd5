"""The kernel's sets and chains as one: observe, settle, stage, try, commit, roll back, remove.

For the thread that owns netfilter only. Every method raises `KernelError` when the kernel refuses, and leaves the
committed list in force when it does.
"""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sikkerguard.core.firewall.diff import (
    CreateSets,
    DropMisfits,
    EmptySets,
    FillAllow,
    FillCommitted,
    Operation,
    PlaceJump,
    WriteChain,
    diff,
)
from sikkerguard.core.firewall.names import set_names
from sikkerguard.core.firewall.state import ObservedFamily, desired_state
from sikkerguard.core.lists.allowlist import Allowlist
from sikkerguard.core.net.family import Family
from sikkerguard.core.net.intervals import Sorter, canonical
from sikkerguard.core.net.networks import Blocklist, Networks
from sikkerguard.core.net.packed import Prefix
from sikkerguard.edges.kernel.ipset_legacy.chains import Chains
from sikkerguard.edges.kernel.ipset_legacy.counters import CounterReader
from sikkerguard.edges.kernel.ipset_legacy.misfits import Misfits
from sikkerguard.edges.kernel.ipset_legacy.removal import Removal
from sikkerguard.edges.kernel.ipset_legacy.set_contents import SetContents, only_ranges, only_singles
from sikkerguard.edges.kernel.ipset_legacy.set_kinds import ALLOW, RANGES, SINGLES, kind_of
from sikkerguard.edges.kernel.ipset_legacy.sets import Sets
from sikkerguard.edges.kernel.ipset_legacy.trial import TrialSets
from sikkerguard.errors import BusyError, KernelError, as_sentence

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sikkerguard.core.traffic.sample import PacketCount, TrafficSample

log = logging.getLogger(__name__)

_NO_ONE: frozenset[Prefix] = frozenset()
# A stop has five seconds for all of it.
_UNHOOK_LOCK_SECONDS = 0.5


def usable_families() -> tuple[Family, ...]:
    """The families that this host speaks: a kernel without IPv6 has no packets to protect from and no such table."""
    return tuple(Family) if Path("/proc/self/net/if_inet6").exists() else (Family.V4,)


class IpsetBackend:
    """All that is done to the kernel. What it believes to be committed, it believes only once that lies there."""

    def __init__(self, families: Sequence[Family] | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.families = tuple(families or usable_families())
        self._sets = Sets(lambda: self._trial.keep())
        self._trial = TrialSets(self._sets, self.families, clock)
        self._contents = SetContents(self._sets)
        self._chains = Chains()
        self._misfits = Misfits(self._sets, self._contents, self._chains, self._count_before)
        self._meter = CounterReader(self._sets, self._chains, self.families)
        self._committed = Blocklist()
        self._candidate = Blocklist()

    def close(self) -> None:
        """Let go of the sockets; nothing in the kernel changes."""
        self._sets.close()

    def observe(self) -> dict[Family, ObservedFamily]:
        """What of ours lies in the kernel now."""
        observed = {}
        for family in self.families:
            names = set_names(family)
            sets, misfits = {}, []
            for name in names.all():
                header = self._sets.header(name)
                if header is None:
                    continue
                if kind_of(family, name)[0].fits(header, family):
                    sets[name] = header.entries
                else:
                    misfits.append(name)
            allow, excepted = self._contents.allowed(names.allow, family) if names.allow in sets else (_NO_ONE, _NO_ONE)
            rules, jumps = self._chains.read(family)
            observed[family] = ObservedFamily(sets, allow, rules, jumps, tuple(misfits), excepted)
        return observed

    def adopt(self, verified: Blocklist, allowlist: Allowlist) -> tuple[Operation, ...]:
        """Begin with a list that passed its trial earlier: end whatever a process that died was in the middle of,
        and make the kernel hold the list, without a gap where it blocks already. Says what had to be done. Where it
        raises, `settle` may go on, and this is to be called again behind it."""
        self._committed = verified
        left = [family for family in self.families if self._sets.header(set_names(family).singles) is not None]
        # A trial that still runs covers what a death in the middle of the swaps left uncovered.
        operations = self._settle(allowlist, {})
        filled = {operation.family for operation in operations if isinstance(operation, FillCommitted)}
        for family in left:
            # After a death between two swaps all counts can agree, and no sample find the odd entry.
            if family not in filled:
                self._replace_committed(family)
        self._discard_leftovers()
        return operations

    def settle(self, allowlist: Allowlist) -> tuple[Operation, ...]:
        """Make the kernel hold the committed list and this allowlist, whatever someone else did to it. Says what had
        to be done. One family that can't be mended keeps the other from nothing."""
        return self._settle(allowlist, {family: self._idle(family) for family in self.families})

    def _settle(self, allowlist: Allowlist, idle: Mapping[Family, tuple[str, ...]]) -> tuple[Operation, ...]:
        self._contents.tidy()
        desired = {
            family: replace(wanted, idle=idle.get(family, ()))
            for family, wanted in desired_state(self.families, self._committed, allowlist).items()
        }
        operations = diff(desired, self.observe())
        if operations:
            self._trial.disturb()
        done: list[Operation] = []
        failures: dict[Family, KernelError] = {}
        for operation in operations:
            if operation.family not in failures:
                try:
                    self._execute(operation)
                except KernelError as error:
                    failures[operation.family] = error
                else:
                    done.append(operation)
        self._contents.look += 1
        for family in self.families:
            if family not in failures and not self._holds(family, self._committed):
                # As many entries, but other ones.
                self._trial.disturb()
                try:
                    self._replace_committed(family)
                except KernelError as error:
                    failures[family] = error
                else:
                    done.append(FillCommitted(family, desired[family].singles, desired[family].ranges))
        if failures:
            if done:
                log.warning("Put right: %s", "; ".join(each.describe().partition("\n")[0].rstrip(":") for each in done))
            raise _as_one(list(failures.values()))
        return tuple(done)

    def _idle(self, family: Family) -> tuple[str, ...]:
        """The sets in which nothing may be now."""
        names = set_names(family)
        if self._trial.runs:
            return ()
        return (names.trial,) if len(self._candidate) else (names.trial, names.new_singles, names.new_ranges)

    def read_committed(self) -> Blocklist:
        """The list that the kernel blocks by now, whoever put it there; empty where there is none."""
        networks = {family: Networks(family) for family in Family}
        for family in self.families:
            names = set_names(family)
            singles = Sorter(family)
            singles.add([address for address, _, _ in self._sets.prefixes(names.singles, family)])
            ranges = (
                Prefix(int.from_bytes(address, "big"), length)
                for address, length, nomatch in self._sets.prefixes(names.ranges, family)
                if not nomatch
            )
            networks[family] = canonical(family, singles, ranges)
        return Blocklist(networks[Family.V4], networks[Family.V6])

    def _discard_leftovers(self) -> None:
        present = set(self._sets.names())
        wanted = {name for family in self.families for name in set_names(family).all()}
        for family in self.families:
            names = set_names(family)
            if names.trial in present:
                self._sets.flush(names.trial)
        for name in sorted(present - wanted):
            self._contents.discard(name)
        for family in self.families:
            names = set_names(family)
            for name, kind in ((names.new_singles, SINGLES), (names.new_ranges, RANGES)):
                header = self._sets.header(name)
                if header is not None and header.entries:
                    # Not a flush: that would keep the memory of the big table.
                    self._contents.load(name, kind, Networks(family))

    def _holds(self, family: Family, blocklist: Blocklist) -> bool:
        """Whether the committed sets hold this list: by their counts and a sample of their entries, another one each
        time, so that in the long run all of them are looked at."""
        names, networks = set_names(family), blocklist.of(family)
        parts = ((names.singles, only_singles(networks)), (names.ranges, only_ranges(networks)))
        return not any(self._contents.disagreement(name, part) for name, part in parts)

    def allow(self, allowlist: Allowlist) -> None:
        """Make the allow sets hold this allowlist: what is new is added first, then what is gone is taken out. A set
        that someone took away is left to `settle`."""
        for family in self.families:
            name = set_names(family).allow
            if self._sets.header(name) is not None:
                self._contents.fill(name, ALLOW, family, allowlist.prefixes(family))

    def stage(self, blocklist: Blocklist) -> None:
        """Load a candidate beside the committed list and read it back. No packet meets it yet."""
        self._candidate = blocklist
        for family in self.families:
            names, networks = set_names(family), blocklist.of(family)
            self._contents.load(names.new_singles, SINGLES, only_singles(networks))
            self._contents.load(names.new_ranges, RANGES, only_ranges(networks))

    def begin_trial(self) -> None:
        """Have the candidate block too, for as long as `renew_trial` is called in time."""
        self._trial.begin()

    def renew_trial(self) -> None:
        """Prolong the trial.

        Raises:
            KernelError: the trial had lapsed in between, or another program had ended it, so that what was tested
                meanwhile proves nothing.
        """
        self._trial.renew()

    def commit(self) -> None:
        """Put the candidate in the committed list's place.

        All swaps happen while the trial still covers both lists, so that there is no moment with neither. A set that
        another program keeps from being swapped is changed entry by entry, likewise.
        """
        # A rule that is missing now may have been missing while the self-test ran.
        desired = desired_state(self.families, self._committed, Allowlist())
        operations = diff(desired, self.observe())
        if any(isinstance(operation, WriteChain | PlaceJump) for operation in operations):
            self._trial.disturb()
        self._trial.renew()
        for family in self.families:
            names, networks = set_names(family), self._candidate.of(family)
            for name, part in (
                (names.new_singles, only_singles(networks)),
                (names.new_ranges, only_ranges(networks)),
            ):
                if disagreement := self._contents.disagreement(name, part):
                    raise KernelError(f"another program changed the set {name} during the trial: it {disagreement}")
        try:
            for family in self.families:
                self._exchange(family, self._candidate)
        except KernelError:
            # Nobody renews a trial that failed; its sets are free for the list before it.
            self._trial.end()
            self._candidate = Blocklist()
            for family in self.families:
                self._replace_committed(family)
            raise
        self._committed = self._candidate
        try:
            self.rollback()
        except KernelError as error:
            log.warning("%s. The new list is in force all the same; the trial ends by itself.", error)

    def rollback(self) -> None:
        """End the trial, and free what lies in the candidate's place."""
        self._trial.end()
        self._candidate = Blocklist()
        self._end_trial(self.families)

    def remove(self) -> None:
        """Take away everything of ours. Each step is tried whatever became of the others; what failed is raised at
        the end, together.

        Raises:
            BusyError: what is left blocks nobody, and another program keeps it from being removed.
        """
        Removal(self._sets, self._chains, self.families).run()

    def await_resume(self) -> None:
        """Where our DROP rules' counters stood will be told later, by `resume` and before the first `drain`."""
        self._meter.await_resume()

    def resume(self, counters: Mapping[Family, PacketCount]) -> None:
        """Our DROP rules' counters stood there when they were last taken into account."""
        self._meter.resume(counters)

    def drain(self) -> list[TrafficSample]:
        """What was dropped since the last time."""
        return self._meter.drain()

    def unhook(self) -> None:
        """Have no packet meet our rules any more, so that their counters are final."""
        for family in self.families:
            self._chains.unhook(family, _UNHOOK_LOCK_SECONDS)

    def packets_from(self, family: Family, address: int) -> int:
        """How many packets the entry that blocks this address matched since its list was loaded."""
        names = set_names(family)
        single = Prefix(address, family.bits)
        if self._sets.contains(names.singles, family, address.to_bytes(family.size, "big")):
            return self._sets.packets(names.singles, family, single)
        for entry in self._sets.entries(names.ranges, family):
            prefix = Prefix(int.from_bytes(entry.address, "big"), entry.length)
            if prefix.first <= address <= prefix.last(family):
                return entry.packets
        return 0

    def blocks(self, family: Family, address: int) -> bool:
        """Whether a packet from this address is dropped now: the chain is in its place, a committed set matches,
        and the allow set does not."""
        packed = address.to_bytes(family.size, "big")
        names = set_names(family)
        present = set(self._sets.names())
        rules, jumps = self._chains.read(family)
        return (
            bool(rules and jumps)
            and present.issuperset(names.all())
            and any(self._sets.contains(name, family, packed) for name in (names.singles, names.ranges))
            and not self._sets.contains(names.allow, family, packed)
        )

    def _execute(self, operation: Operation) -> None:
        match operation:
            case DropMisfits(family, misfits):
                for name in misfits:
                    self._misfits.replace(family, name, self._committed.of(family))
            case CreateSets(family, missing):
                for name in missing:
                    # One that took a misfit's place is there already.
                    if self._sets.header(name) is None:
                        kind, entries = kind_of(family, name)
                        self._sets.create(name, kind, family, entries)
            case EmptySets(family, filled):
                # The trial's own set first: without it nothing is met that is in the others.
                for name in sorted(filled, key=lambda name: name != set_names(family).trial):
                    self._sets.flush(name)
            case FillAllow(family, prefixes):
                self._contents.fill(set_names(family).allow, ALLOW, family, prefixes)
            case FillCommitted(family):
                self._replace_committed(family)
            case WriteChain(family, rules):
                self._count_before()
                self._chains.write(family, rules, self._meter.stood(family))
            case PlaceJump(family):
                self._chains.place_jump(family)

    def _count_before(self) -> None:
        """Take what was counted until now, before a rule goes. Blocking does not wait for it."""
        try:
            self._meter.collect()
        except KernelError as error:
            log.warning(
                "%s. Our rules are repaired all the same; whose packets were dropped in the last moments may stay "
                "unknown.",
                as_sentence(error),
            )

    def _replace_committed(self, family: Family) -> None:
        """Put the committed list into its sets, whatever they hold. As in an update both sets change while the trial
        set covers the old and the new, so that an address that moves from a range to the singles is never uncovered.
        Only while a candidate lies in its sets they are not free for that."""
        names, networks = set_names(family), self._committed.of(family)
        free = not self._trial.runs and not len(self._candidate)
        self._contents.load(names.new_singles if free else names.singles, SINGLES, only_singles(networks))
        self._contents.load(names.new_ranges if free else names.ranges, RANGES, only_ranges(networks))
        if free:
            with self._trial.covering(family):
                self._exchange(family, self._committed)
            self._end_trial((family,))

    def _exchange(self, family: Family, blocklist: Blocklist) -> None:
        """Put into the committed sets what lies in the candidate's place, which is this list."""
        names, networks = set_names(family), blocklist.of(family)
        self._contents.exchange(
            [
                (names.singles, names.new_singles, only_singles(networks)),
                (names.ranges, names.new_ranges, only_ranges(networks)),
            ]
        )

    def _end_trial(self, families: Sequence[Family]) -> None:
        self._trial.release(families)
        for family in families:
            names = set_names(family)
            self._contents.load(names.new_singles, SINGLES, Networks(family))
            self._contents.load(names.new_ranges, RANGES, Networks(family))


def _as_one(failures: Sequence[KernelError]) -> KernelError:
    """All of them; another program's doing where each is."""
    kind = BusyError if all(isinstance(each, BusyError) for each in failures) else KernelError
    return kind("; ".join(dict.fromkeys(map(str, failures))))
