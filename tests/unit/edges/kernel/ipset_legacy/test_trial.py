"""A trial is kept alive while something takes long, and proves nothing once it lapsed or another program ended it."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest

from sikkerguard.core.firewall.names import set_names
from sikkerguard.core.net.family import Family
from sikkerguard.core.net.packed import Prefix
from sikkerguard.edges.kernel.ipset_legacy.set_kinds import TRIAL_SECONDS
from sikkerguard.edges.kernel.ipset_legacy.set_netlink import SetHeader, encode_batches
from sikkerguard.edges.kernel.ipset_legacy.trial import TrialSets
from sikkerguard.errors import KernelError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sikkerguard.edges.kernel.ipset_legacy.set_netlink import NetlinkSets

# All addresses of a family, as a set of ranges can hold them.
HALVES = {family: (Prefix(0, 1), Prefix(1 << (family.bits - 1), 1)) for family in Family}


class Kernel:
    """The trial's sets, which forget what was not renewed for ten seconds, and the time."""

    def __init__(self) -> None:
        self.now = 100.0
        self.armed: dict[str, float] = {}
        self.emptied: set[str] = set()

    def add(self, name: str, family: Family, batches: Iterable[bytes]) -> None:
        assert list(batches) == list(encode_batches(family, b"", HALVES[family], TRIAL_SECONDS))
        self.armed[name] = self.now + TRIAL_SECONDS
        self.emptied.discard(name)

    def flush(self, name: str) -> None:
        self.armed.pop(name, None)

    def header(self, name: str) -> SetHeader:
        there = self.armed.get(name, 0.0) > self.now and name not in self.emptied
        return SetHeader("hash:net", 2, 2 if there else 0, 1024, 1, counters=False, timeout=True)

    def trial(self) -> TrialSets:
        return TrialSets(cast("NetlinkSets", self), tuple(Family), lambda: self.now)

    def covers(self, *families: Family) -> bool:
        return all(self.header(set_names(family).trial).entries == 2 for family in families)


def test_a_trial_does_not_lapse_while_a_swap_is_waited_for() -> None:
    kernel = Kernel()
    trial = kernel.trial()
    trial.begin()
    for _ in range(300):
        kernel.now += 0.1
        trial.keep_alive()
        assert kernel.covers(*Family)
    trial.renew()
    trial.end()
    kernel.now += 20
    trial.keep_alive()
    assert not kernel.covers(Family.V4)


def test_a_trial_that_another_program_ended_meanwhile_proves_nothing() -> None:
    kernel = Kernel()
    trial = kernel.trial()
    trial.begin()
    kernel.emptied = {set_names(Family.V4).trial}
    kernel.now += 1.5
    trial.keep_alive()
    # What covers both lists is back; what was tested in between counts for nothing.
    assert kernel.covers(*Family)
    with pytest.raises(KernelError, match="another program changed our rules or the set sikkerguard-trial-v4"):
        trial.renew()


def test_a_trial_that_lapsed_is_not_brought_back() -> None:
    kernel = Kernel()
    trial = kernel.trial()
    trial.begin()
    kernel.now += 10
    trial.keep_alive()
    assert not kernel.covers(Family.V4)
    with pytest.raises(KernelError, match="the trial lapsed"):
        trial.renew()


def test_a_repair_covers_its_family_for_as_long_as_it_takes() -> None:
    kernel = Kernel()
    trial = kernel.trial()
    with trial.covering(Family.V6):
        for _ in range(300):
            kernel.now += 0.1
            trial.keep_alive()
            assert kernel.covers(Family.V6)
        assert not trial.runs
    assert not kernel.covers(Family.V4)
    trial.empty(Family.V6)
    kernel.now += 1
    trial.keep_alive()
    assert not kernel.covers(Family.V6)


def test_a_disturbance_ends_the_trial_that_runs_and_not_the_next() -> None:
    kernel = Kernel()
    trial = kernel.trial()
    trial.invalidate()  # none runs
    trial.begin()
    trial.renew()
    trial.invalidate()
    with pytest.raises(KernelError, match="another program changed our rules"):
        trial.renew()
    trial.end()
    trial.begin()
    trial.renew()
