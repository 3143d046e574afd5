"""Makes the kernel hold what it is to hold: observe, compare, and carry out the operations."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from sikkerguard.core.firewall.diff import (
    CreateSets,
    DropMisfits,
    EmptySets,
    FillAllow,
    FillCommitted,
    PlaceJump,
    WriteChains,
    diff,
    summarize,
)
from sikkerguard.core.firewall.names import set_names
from sikkerguard.core.firewall.state import Candidate, desired_state
from sikkerguard.core.lists.allowlist import Allowlist
from sikkerguard.edges.kernel.ipset_legacy.set_kinds import ALLOW, kind_of
from sikkerguard.errors import BusyError, KernelError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sikkerguard.core.firewall.diff import Step
    from sikkerguard.core.net.family import Family
    from sikkerguard.edges.kernel.ipset_legacy.counted_chains import CountedChains
    from sikkerguard.edges.kernel.ipset_legacy.inspection import Inspector
    from sikkerguard.edges.kernel.ipset_legacy.loader import ListLoader
    from sikkerguard.edges.kernel.ipset_legacy.misfits import Misfits
    from sikkerguard.edges.kernel.ipset_legacy.set_contents import SetContents
    from sikkerguard.edges.kernel.ipset_legacy.sets import Sets
    from sikkerguard.edges.kernel.ipset_legacy.trial import TrialSets

log = logging.getLogger(__name__)


class Repair:
    """Repairs these families, each by itself: one that can't be repaired does not keep the other from it."""

    def __init__(
        self,
        sets: Sets,
        contents: SetContents,
        chains: CountedChains,
        misfits: Misfits,
        trial: TrialSets,
        loader: ListLoader,
        inspector: Inspector,
        families: Sequence[Family],
    ) -> None:
        self._sets = sets
        self._contents = contents
        self._chains = chains
        self._misfits = misfits
        self._trial = trial
        self._loader = loader
        self._inspector = inspector
        self._families = families

    def run(self, allowlist: Allowlist, candidate: Candidate) -> tuple[Step, ...]:
        """Make the kernel hold the committed list and this allowlist, with the candidate as far as this. Returns what
        was done.

        Raises:
            BusyError: other programs kept something from being repaired, and nothing else did.
            KernelError: something was not repaired.
        """
        self._contents.tidy()
        desired = desired_state(self._families, self._loader.committed, allowlist, candidate)
        done: list[Step] = []
        failures: dict[Family, KernelError] = {}
        for step in diff(desired, self._inspector.observe()):
            self._trial.invalidate()
            self._attempt(step, done, failures)
        self._contents.change_sample()
        for family, wanted in desired.items():
            if family not in failures and not self._loader.has_committed(family):
                # As many entries, but other ones.
                self._trial.invalidate()
                self._attempt(FillCommitted(family, wanted.singles, wanted.ranges), done, failures)
        if failures:
            if done:
                log.warning("Repaired in part: %s.", summarize(done))
            raise _as_one(list(failures.values()))
        return tuple(done)

    def check_rules(self) -> None:
        """Invalidate a trial that runs unless our rules are as they should be."""
        desired = desired_state(self._families, self._loader.committed, Allowlist(), Candidate.ON_TRIAL)
        if any(isinstance(step, WriteChains | PlaceJump) for step in diff(desired, self._inspector.observe())):
            self._trial.invalidate()

    def _attempt(self, step: Step, done: list[Step], failures: dict[Family, KernelError]) -> None:
        if step.family in failures:
            return
        try:
            self._carry_out(step)
        except KernelError as error:
            failures[step.family] = error
        else:
            done.append(step)

    def _carry_out(self, step: Step) -> None:
        family = step.family
        match step:
            case DropMisfits():
                for name in step.names:
                    self._misfits.replace(family, name, self._loader.committed)
            case CreateSets():
                for name in step.names:
                    # One that replaced a misfit is there already.
                    if self._sets.header(name) is None:
                        kind, entries = kind_of(family, name)
                        self._sets.create(name, kind, family, entries)
            case EmptySets():
                # The trial's own set first: without it no packet meets the others.
                for name in sorted(step.names, key=lambda name: name != set_names(family).trial):
                    self._sets.flush(name)
            case FillAllow():
                self._contents.fill(set_names(family).allow, ALLOW, family, step.allow)
            case FillCommitted():
                self._loader.load_committed(family)
            case WriteChains():
                self._chains.write(family, step.rules)
            case PlaceJump():
                self._chains.place_jump(family)


def _as_one(failures: Sequence[KernelError]) -> KernelError:
    """All of them as one error; a `BusyError` where each is."""
    kind = BusyError if all(isinstance(each, BusyError) for each in failures) else KernelError
    return kind("; ".join(dict.fromkeys(map(str, failures))))
