"""The kernel's sets and chains as one: observe, settle, stage, try, commit, roll back, remove.

For the thread that owns netfilter only. Every method raises `KernelError` when the kernel refuses, and leaves the
committed list in force when it does.
"""

from __future__ import annotations

import logging
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from sikkerguard.core.model import Allowlist, Blocklist, Family, Networks, Prefix
from sikkerguard.core.names import loading, set_names
from sikkerguard.core.plan import (
    CreateSets,
    DropMisfits,
    FillAllow,
    FillCommitted,
    ObservedFamily,
    Operation,
    PlaceJump,
    WriteChain,
    desired_state,
    diff,
)
from sikkerguard.core.ranges import Sorter, canonical
from sikkerguard.edges.chains import Chains
from sikkerguard.edges.ipset import SetKind, Sets
from sikkerguard.edges.meter import Meter
from sikkerguard.errors import KernelError, as_sentence

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sikkerguard.core.model import Count, Drain

log = logging.getLogger(__name__)

# Seconds for which the kernel remembers the trial without being told again. Long enough for a host that is busy,
# short enough that a person at a dead terminal has not yet reached for the console.
TRIAL_SECONDS = 10

_SINGLES = SetKind("hash:ip", counters=True)
_RANGES = SetKind("hash:net", counters=True)
_ALLOW = SetKind("hash:net")
_TRIAL = SetKind("hash:net", timeout=TRIAL_SECONDS)
_HITS = SetKind("hash:ip,port", counters=True, filled_by_packets=True)
_SOURCES = SetKind("hash:ip", counters=True, filled_by_packets=True)
# Half of what the sets have room for, until they are read a second later. To read them when they are full takes a
# twentieth of that second; the sources of more packets than that stay unknown, and the packets are counted.
_HITS_ENTRIES = 16384
_SOURCES_ENTRIES = 32768
# Of replies there are fewer, and nobody is reported for them: half as much, which is a megabyte and a half less.
_REPLIES_ENTRIES, _REPLIERS_ENTRIES = _HITS_ENTRIES // 2, _SOURCES_ENTRIES // 2
# To begin with; a set that is outgrown is made anew.
_ALLOW_ENTRIES = 4096
# Entries of a set that are asked for when it is read back or looked at, some 10 microseconds each.
_SAMPLE = 128
# A stop has five seconds for all of it.
_REMOVAL_LOCK_SECONDS, _UNHOOK_LOCK_SECONDS = 2.0, 0.5


def usable_families() -> tuple[Family, ...]:
    """The families that this host speaks: a kernel without IPv6 has no packets to protect from and no such table."""
    return tuple(Family) if Path("/proc/self/net/if_inet6").exists() else (Family.V4,)


class Kernel:
    """All that is done to the kernel. What it believes to be committed, it believes only once that lies there."""

    def __init__(self, families: Sequence[Family] | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.families = tuple(families or usable_families())
        self._sets = Sets()
        self._chains = Chains()
        self._meter = Meter(self._sets, self._chains, self.families)
        self._clock = clock
        self._renewed_at: float | None = None
        self._disturbed = False
        self._looks = 0
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
                if _kind_of(family, name)[0].fits(header, family):
                    sets[name] = header.entries
                else:
                    misfits.append(name)
            allow = frozenset(
                Prefix(int.from_bytes(entry.address, "big"), entry.length)
                for entry in self._sets.entries(names.allow, family)
                if names.allow in sets
            )
            rules, jumps = self._chains.read(family)
            observed[family] = ObservedFamily(sets, allow, rules, jumps, tuple(misfits))
        return observed

    def adopt(self, verified: Blocklist, allowlist: Allowlist) -> tuple[Operation, ...]:
        """Begin with a list that passed its trial earlier: end whatever a process that died was in the middle of,
        and make the kernel hold the list, without a gap where it blocks already. Says what had to be done."""
        self._committed = verified
        left = [family for family in self.families if self._sets.header(set_names(family).singles) is not None]
        operations = self.settle(allowlist)
        filled = {operation.family for operation in operations if isinstance(operation, FillCommitted)}
        for family in left:
            # After a death between two swaps all counts can agree, and no sample find the odd entry.
            if family not in filled:
                self._replace_committed(family)
        # Last: a trial that still runs covers what a death in the middle of the swaps left uncovered.
        self._discard_leftovers()
        return operations

    def settle(self, allowlist: Allowlist) -> tuple[Operation, ...]:
        """Make the kernel hold the committed list and this allowlist, whatever someone else did to it. Says what had
        to be done."""
        desired = desired_state(self.families, self._committed, allowlist)
        operations = diff(desired, self.observe())
        if operations and self._renewed_at is not None:
            self._disturbed = True
        for operation in operations:
            self._execute(operation)
        if self._holds(self._committed):
            return operations
        # As many entries, but other ones.
        self._disturbed = self._disturbed or self._renewed_at is not None
        for family in self.families:
            self._replace_committed(family)
        return operations + tuple(
            FillCommitted(family, wanted.singles, wanted.ranges) for family, wanted in desired.items()
        )

    def read_committed(self) -> Blocklist:
        """The list that the kernel blocks by now, whoever put it there; empty where there is none."""
        networks = {family: Networks(family) for family in Family}
        for family in self.families:
            names = set_names(family)
            singles = Sorter(family)
            singles.add([entry.address for entry in self._sets.entries(names.singles, family)])
            ranges = (
                Prefix(int.from_bytes(entry.address, "big"), entry.length)
                for entry in self._sets.entries(names.ranges, family)
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
            self._sets.destroy(name)
        for family in self.families:
            names = set_names(family)
            for name, kind in ((names.new_singles, _SINGLES), (names.new_ranges, _RANGES)):
                header = self._sets.header(name)
                if header is not None and header.entries:
                    self._empty(family, name, kind)

    def _holds(self, blocklist: Blocklist) -> bool:
        """Whether the committed sets hold this list: by their counts and a sample of their entries, another one each
        time, so that in the long run all of them are looked at."""
        self._looks += 1
        for family in self.families:
            names, networks = set_names(family), blocklist.of(family)
            for name, part in ((names.singles, _only_singles(networks)), (names.ranges, _only_ranges(networks))):
                if self._disagreement(name, part):
                    return False
        return True

    def allow(self, allowlist: Allowlist) -> None:
        """Make the allow sets hold this allowlist: what is new is added first, then what is gone is taken out. A set
        that someone took away is left to `settle`."""
        for family in self.families:
            if self._sets.header(set_names(family).allow) is None:
                continue
            self._fill_allow(family, allowlist.prefixes(family))

    def stage(self, blocklist: Blocklist) -> None:
        """Load a candidate beside the committed list and read it back. No packet meets it yet."""
        self._candidate = blocklist
        for family in self.families:
            names, networks = set_names(family), blocklist.of(family)
            self._load(names.new_singles, _SINGLES, _only_singles(networks))
            self._load(names.new_ranges, _RANGES, _only_ranges(networks))

    def begin_trial(self) -> None:
        """Have the candidate block too, for as long as `renew_trial` is called in time."""
        self._disturbed = False
        self._renewed_at = self._clock()
        self._arm(self.families)

    def renew_trial(self) -> None:
        """Prolong the trial.

        Raises:
            KernelError: the trial had lapsed in between, or another program had ended it, so that what was tested
                meanwhile proves nothing.
        """
        self._check_trial()
        self._renewed_at = self._clock()
        self._arm(self.families)

    def commit(self) -> None:
        """Put the candidate in the committed list's place.

        All swaps happen while the trial still covers both lists, so that there is no moment with neither.
        """
        # A rule that is missing now may have been missing while the self-test ran.
        desired = desired_state(self.families, self._committed, Allowlist())
        operations = diff(desired, self.observe())
        self._disturbed |= any(isinstance(operation, WriteChain | PlaceJump) for operation in operations)
        self.renew_trial()
        for family in self.families:
            names, networks = set_names(family), self._candidate.of(family)
            for name, part in (
                (names.new_singles, _only_singles(networks)),
                (names.new_ranges, _only_ranges(networks)),
            ):
                if disagreement := self._disagreement(name, part):
                    raise KernelError(f"another program changed the set {name} during the trial: it {disagreement}")
        try:
            for family in self.families:
                self._swap(family)
        except KernelError:
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
        self._renewed_at = None
        self._candidate = Blocklist()
        self._end_trial(self.families)

    def remove(self) -> None:
        """Take away everything of ours. Each step is tried whatever became of the others; what failed is raised at
        the end, together."""
        failures: list[str] = []

        def attempt(action: Callable[[], None]) -> None:
            try:
                action()
            except KernelError as error:
                failures.append(str(error))

        in_use: set[str] = set()
        for family in self.families:
            before = len(failures)
            attempt(partial(self._chains.remove, family, _REMOVAL_LOCK_SECONDS))
            if len(failures) > before:
                in_use.update(set_names(family).all())
        try:
            names = self._sets.names()
        except KernelError as error:
            names = []
            failures.append(str(error))
        for name in names:
            if name not in in_use:
                attempt(partial(self._sets.destroy, name))
        if failures:
            raise KernelError(
                "not everything could be removed: " + "; ".join(dict.fromkeys(failures)) + ". What is left goes on "
                "blocking; 'sikkerguard cleanup' removes it"
            )

    def await_resume(self) -> None:
        """Where our DROP rules' counters stood will be told later, by `resume` and before the first `drain`."""
        self._meter.await_resume()

    def resume(self, counters: Mapping[Family, Count]) -> None:
        """Our DROP rules' counters stood there when they were last taken into account."""
        self._meter.resume(counters)

    def drain(self) -> list[Drain]:
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
                self._count_before()
                self._chains.remove(family)
                for name in misfits:
                    self._sets.destroy(name)
            case CreateSets(family, missing):
                for name in missing:
                    kind, entries = _kind_of(family, name)
                    self._sets.create(name, kind, family, entries)
            case FillAllow(family, prefixes):
                self._fill_allow(family, prefixes)
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
        Only while a trial runs its sets are not free for that."""
        names, networks = set_names(family), self._committed.of(family)
        in_trial = self._renewed_at is not None
        singles = names.singles if in_trial else names.new_singles
        ranges = names.ranges if in_trial else names.new_ranges
        self._load(singles, _SINGLES, _only_singles(networks))
        self._load(ranges, _RANGES, _only_ranges(networks))
        if not in_trial:
            self._arm((family,))
            self._swap(family)
            self._end_trial((family,))

    def _swap(self, family: Family) -> None:
        names = set_names(family)
        self._sets.swap(names.singles, names.new_singles)
        self._sets.swap(names.ranges, names.new_ranges)

    def _fill_allow(self, family: Family, wanted: frozenset[Prefix]) -> None:
        name = set_names(family).allow
        held = {
            Prefix(int.from_bytes(entry.address, "big"), entry.length) for entry in self._sets.entries(name, family)
        }
        header = self._sets.header(name)
        if header is not None and len(held | wanted) > header.limit:
            self._outgrow_allow(name, family, wanted)
            return
        self._sets.add(name, family, ranges=sorted(wanted - held))
        self._sets.delete(name, family, sorted(held - wanted))

    def _outgrow_allow(self, name: str, family: Family, wanted: frozenset[Prefix]) -> None:
        """Put a larger set in the place of one that has no room; the rules go on to refer to its name."""
        fresh = self._fresh(name, _ALLOW, family, max(len(wanted), _ALLOW_ENTRIES))
        try:
            self._sets.add(fresh, family, ranges=sorted(wanted))
            self._sets.swap(fresh, name)
        finally:
            self._sets.destroy(fresh)

    def _load(self, name: str, kind: SetKind, networks: Networks) -> None:
        """Fill a fresh set, read it back, and swap it in under this name."""
        fresh = self._fresh(name, kind, networks.family, len(networks))
        try:
            self._sets.add(fresh, networks.family, networks.singles, networks.ranges)
            disagreement = self._disagreement(fresh, networks)
            if disagreement:
                raise KernelError(f"set {name} was loaded but {disagreement}; it is discarded")
            self._sets.swap(fresh, name)
        finally:
            self._sets.destroy(fresh)

    def _empty(self, family: Family, name: str, kind: SetKind) -> None:
        # Not a flush: that would keep the memory of the big table.
        self._load(name, kind, Networks(family))

    def _fresh(self, name: str, kind: SetKind, family: Family, entries: int) -> str:
        fresh = loading(name)
        if self._sets.header(fresh) is not None:
            self._sets.destroy(fresh)
        self._sets.create(fresh, kind, family, entries)
        return fresh

    def _disagreement(self, name: str, networks: Networks) -> str:
        """How a set differs from what it is to hold, by its count and a sample; empty where it does not."""
        header = self._sets.header(name)
        if header is None:
            return "is not there"
        if header.entries != len(networks):
            return f"holds {header.entries} entries instead of {len(networks)}"
        size, blob = networks.family.size, networks.singles
        step = max(1, len(blob) // size // _SAMPLE)
        sample = [blob[at : at + size] for at in range(self._looks % step * size, len(blob), step * size)]
        step = max(1, len(networks.ranges) // _SAMPLE)
        ranges = networks.ranges[self._looks % step :: step]
        sample += [prefix.first.to_bytes(size, "big") for prefix in ranges]
        for address in sample:
            if not self._sets.contains(name, networks.family, address):
                return f"lacks {address.hex()}"
        return ""

    def _arm(self, families: Sequence[Family]) -> None:
        for family in families:
            self._sets.add(set_names(family).trial, family, ranges=_halves(family), timeout=TRIAL_SECONDS)

    def _check_trial(self) -> None:
        if self._renewed_at is None or self._clock() - self._renewed_at >= TRIAL_SECONDS:
            raise KernelError(
                f"the trial lapsed: it was not renewed for {TRIAL_SECONDS} s, as happens on a host that was stopped "
                "or is overloaded. The list before it stays in force"
            )
        for family in self.families:
            name = set_names(family).trial
            header = self._sets.header(name)
            if self._disturbed or header is None or header.entries != len(_halves(family)):
                raise KernelError(
                    f"another program changed our rules or the set {name} during the trial, so that it proves nothing"
                )

    def _end_trial(self, families: Sequence[Family]) -> None:
        for family in families:
            self._sets.flush(set_names(family).trial)
        for family in families:
            names = set_names(family)
            self._empty(family, names.new_singles, _SINGLES)
            self._empty(family, names.new_ranges, _RANGES)


def _halves(family: Family) -> tuple[Prefix, Prefix]:
    """All addresses: a set of ranges can't hold the whole address space as one entry."""
    return Prefix(0, 1), Prefix(1 << (family.bits - 1), 1)


def _only_singles(networks: Networks) -> Networks:
    return Networks(networks.family, networks.singles)


def _only_ranges(networks: Networks) -> Networks:
    return Networks(networks.family, ranges=networks.ranges)


def _kind_of(family: Family, name: str) -> tuple[SetKind, int]:
    """What kind of set this name stands for, and the entries to make room for."""
    names = set_names(family)
    return {
        names.singles: (_SINGLES, 0),
        names.new_singles: (_SINGLES, 0),
        names.ranges: (_RANGES, 0),
        names.new_ranges: (_RANGES, 0),
        names.allow: (_ALLOW, _ALLOW_ENTRIES),
        names.trial: (_TRIAL, 2),
        names.hits: (_HITS, _HITS_ENTRIES),
        names.old_hits: (_HITS, _HITS_ENTRIES),
        names.sources: (_SOURCES, _SOURCES_ENTRIES),
        names.old_sources: (_SOURCES, _SOURCES_ENTRIES),
        names.replies: (_HITS, _REPLIES_ENTRIES),
        names.old_replies: (_HITS, _REPLIES_ENTRIES),
        names.repliers: (_SOURCES, _REPLIERS_ENTRIES),
        names.old_repliers: (_SOURCES, _REPLIERS_ENTRIES),
    }[name]
