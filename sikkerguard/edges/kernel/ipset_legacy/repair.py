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
from sikkerguard.core.net.networks import Networks
from sikkerguard.edges.kernel.ipset_legacy.references import References
from sikkerguard.edges.kernel.ipset_legacy.set_contents import committed_contents
from sikkerguard.edges.kernel.ipset_legacy.set_kinds import ALLOW, kind_of
from sikkerguard.errors import BusyError, KernelError, as_sentence

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sikkerguard.core.firewall.diff import Step
    from sikkerguard.core.firewall.rules import Rule
    from sikkerguard.core.net.family import Family
    from sikkerguard.edges.kernel.ipset_legacy.chains import Chains
    from sikkerguard.edges.kernel.ipset_legacy.counters import CounterReader
    from sikkerguard.edges.kernel.ipset_legacy.inspection import Inspector
    from sikkerguard.edges.kernel.ipset_legacy.loader import ListLoader
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
        chains: Chains,
        counters: CounterReader,
        trial: TrialSets,
        loader: ListLoader,
        inspector: Inspector,
        families: Sequence[Family],
    ) -> None:
        self._sets = sets
        self._contents = contents
        self._chains = chains
        self._counters = counters
        self._trial = trial
        self._loader = loader
        self._inspector = inspector
        self._families = families

    def run(self, allowlist: Allowlist, candidate: Candidate) -> tuple[Step, ...]:
        """Make the kernel hold the committed list and this allowlist, with the candidate in this stage. Returns what
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
                    self._replace_misfit(family, name)
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
                self._keep_counts()
                # The DROP rule goes on counting from its last reading.
                self._chains.write(family, step.rules, self._counters.reading(family))
            case PlaceJump():
                self._chains.place_jump(family)

    def _replace_misfit(self, family: Family, name: str) -> None:
        """Make a set that has our name but is of another kind be of its own, with what it is to hold of the committed
        list; or, where two kinds can't be swapped, destroy it.

        For that our chains are removed only where it is certain that the set can be destroyed then. Otherwise nothing
        would block meanwhile, and if another program keeps the set, for good.
        """
        kind, entries = kind_of(family, name)
        wanted = {content.name: content.networks for content in committed_contents(family, self._loader.committed)}
        try:
            self._contents.replace(name, kind, wanted.get(name, Networks(family)), entries)
        except BusyError:
            raise
        except KernelError as error:
            log.debug("%s; it is destroyed instead.", as_sentence(error))
        else:
            return
        header = self._sets.header(name)
        rules, _ = self._chains.read(family)
        if header is not None and header.references > _mentions(name, rules or ()):
            raise BusyError(
                f"the set {name} is of another kind, and {References(self._sets).sentence(name)}; rules are left as "
                "they are"
            )
        if header is not None and header.references:
            self._keep_counts()
            self._chains.remove(family)
        self._sets.destroy(name)

    def _keep_counts(self) -> None:
        """Read the counters before rules go, so that nothing that they counted is lost. Blocking does not wait for
        it."""
        try:
            self._counters.collect()
        except KernelError as error:
            log.warning(
                "%s. Our rules are repaired all the same; whose packets were dropped in the last moments may stay "
                "unknown.",
                as_sentence(error),
            )


def _mentions(name: str, rules: Iterable[Rule]) -> int:
    """How often these rules refer to a set."""
    extensions = (each for rule in rules for each in (*rule.matches, rule.target))
    return sum(name in values for each in extensions for _, values in each.options)


def _as_one(failures: Sequence[KernelError]) -> KernelError:
    """All of them as one error; a `BusyError` where each is."""
    kind = BusyError if all(isinstance(each, BusyError) for each in failures) else KernelError
    return kind("; ".join(dict.fromkeys(map(str, failures))))
