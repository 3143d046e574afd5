"""Puts lists into their sets: the candidate beside the committed list, and either in the committed list's place."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from sikkerguard.core.firewall.names import set_names
from sikkerguard.core.firewall.state import Candidate
from sikkerguard.core.net.family import Family
from sikkerguard.core.net.intervals import canonical
from sikkerguard.core.net.networks import Blocklist, Networks
from sikkerguard.core.net.packed import Prefix, Runs
from sikkerguard.edges.kernel.ipset_legacy.set_contents import candidate_contents, committed_contents
from sikkerguard.errors import KernelError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sikkerguard.edges.kernel.ipset_legacy.set_contents import SetContents
    from sikkerguard.edges.kernel.ipset_legacy.sets import Sets
    from sikkerguard.edges.kernel.ipset_legacy.trial import TrialSets

log = logging.getLogger(__name__)


class ListLoader:
    """`committed` is what is to block; the kernel may hold something else until it is repaired.

    Every method raises `KernelError` when the kernel refuses; the committed list goes on blocking then.
    """

    def __init__(self, sets: Sets, contents: SetContents, trial: TrialSets, families: Sequence[Family]) -> None:
        self._sets = sets
        self._contents = contents
        self._trial = trial
        self._families = families
        self.committed = Blocklist()
        self._candidate = Blocklist()

    @property
    def candidate(self) -> Candidate:
        """How far the candidate has come."""
        if self._trial.runs:
            return Candidate.ON_TRIAL
        return Candidate.STAGED if len(self._candidate) else Candidate.ABSENT

    def read_committed(self) -> Blocklist:
        """The list in the committed sets, whoever put it there; empty where there are none."""
        networks = {family: Networks(family) for family in Family}
        for family in self._families:
            names = set_names(family)
            singles = Runs(family.size)
            singles.add([address for address, _, _ in self._sets.prefixes(names.singles, family)])
            ranges = (
                Prefix(int.from_bytes(address, "big"), length)
                for address, length, nomatch in self._sets.prefixes(names.ranges, family)
                if not nomatch
            )
            networks[family] = canonical(family, singles, ranges)
        return Blocklist(networks[Family.V4], networks[Family.V6])

    def has_committed(self, family: Family) -> bool:
        """Whether the committed sets hold the committed list, by their counts and a sample of their entries."""
        contents = committed_contents(family, self.committed)
        return not any(self._contents.disagreement(each.name, each.networks) for each in contents)

    def load_committed(self, family: Family) -> None:
        """Put the committed list into its sets, whatever they hold. As in an update, both sets change while the trial
        set covers the old and the new content, so that an address that moves from a range to the singles is covered all
        the time. That takes the candidate's sets; while there is a candidate in them, the two change one by one."""
        free = self.candidate is Candidate.ABSENT
        for content in (candidate_contents if free else committed_contents)(family, self.committed):
            self._contents.load(*content)
        if free:
            with self._trial.covering(family):
                self._exchange(family, self.committed)
            self._trial.empty(family)
            self._unload_candidate(family)

    def stage(self, blocklist: Blocklist) -> None:
        """Load a candidate and read it back. No packet meets it yet."""
        self._candidate = blocklist
        for family in self._families:
            for content in candidate_contents(family, blocklist):
                self._contents.load(*content)

    def commit(self) -> None:
        """Put the candidate in the committed list's place.

        All swaps happen while the trial still covers both lists, so that there is no moment with neither. A set that
        another program keeps from being swapped is changed entry by entry, likewise.
        """
        self._trial.renew()
        for family in self._families:
            for name, _, networks in candidate_contents(family, self._candidate):
                if disagreement := self._contents.disagreement(name, networks):
                    raise KernelError(f"another program changed the set {name} during the trial: it {disagreement}")
        try:
            for family in self._families:
                self._exchange(family, self._candidate)
        except KernelError:
            # Nobody renews a trial that failed; its sets are free for the list before it.
            self._trial.end()
            self._candidate = Blocklist()
            for family in self._families:
                self.load_committed(family)
            raise
        self.committed = self._candidate
        try:
            self.rollback()
        except KernelError as error:
            log.warning("%s. The new list is in force all the same; the trial ends by itself.", error)

    def rollback(self) -> None:
        """End the trial, and empty the candidate's sets."""
        self._trial.end()
        self._candidate = Blocklist()
        for family in self._families:
            self._trial.empty(family)
        for family in self._families:
            self._unload_candidate(family)

    def discard_leftovers(self) -> None:
        """Empty and destroy what a process that died left of an update."""
        present = set(self._sets.names())
        wanted = {name for family in self._families for name in set_names(family).all()}
        for family in self._families:
            if set_names(family).trial in present:
                self._trial.empty(family)
        for name in sorted(present - wanted):
            self._contents.discard(name)
        for family in self._families:
            for content in candidate_contents(family, Blocklist()):
                header = self._sets.header(content.name)
                if header is not None and header.entries:
                    self._contents.load(*content)

    def _exchange(self, family: Family, blocklist: Blocklist) -> None:
        """Put what is in the candidate's sets, which is this list, into the committed ones."""
        pairs = zip(committed_contents(family, blocklist), candidate_contents(family, blocklist), strict=True)
        self._contents.exchange([(old.name, new.name, new.networks) for old, new in pairs])

    def _unload_candidate(self, family: Family) -> None:
        # Not a flush: the set would keep the memory of its big table.
        for content in candidate_contents(family, Blocklist()):
            self._contents.load(*content)
