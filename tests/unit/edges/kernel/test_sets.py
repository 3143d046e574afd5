"""Patience with a program that lists a set, and how the trial lives through it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, cast

import pytest

from sikkerguard.core.firewall.names import set_names
from sikkerguard.core.net.family import Family
from sikkerguard.edges.kernel.ipset_legacy import set_netlink
from sikkerguard.edges.kernel.ipset_legacy.sets import SetHeader, Sets
from sikkerguard.edges.kernel.ipset_legacy.trial import TrialSets
from sikkerguard.errors import BusyError, KernelError

if TYPE_CHECKING:
    from collections.abc import Iterator

EBUSY, IPSET_ERR_BUSY, IPSET_ERR_TYPE_MISMATCH = 16, 4100, 4102
ONE, OTHER = "sikkerguard-v4", "sikkerguard-load-v4"


class Netlink:
    """The kernel, which says that a set is busy until this moment."""

    def __init__(self, code: int) -> None:
        self.code = code
        self.until = 0.0
        self.tries = 0

    def close(self) -> None:
        pass

    def swap(self, one: str, other: str) -> None:
        self.tries += 1
        if time.monotonic() < self.until:
            raise set_netlink._refused("swapped", one, self.code)


class Host:
    """Sets over that, and how often something was done while they waited."""

    def __init__(self, code: int) -> None:
        self.netlink = Netlink(code)
        self.waits = 0
        self.sets = Sets(self.note)
        self.sets.close()
        self.sets._netlink = cast("Any", self.netlink)

    def note(self) -> None:
        self.waits += 1


@pytest.fixture(params=[EBUSY, IPSET_ERR_BUSY])
def host(request: pytest.FixtureRequest) -> Iterator[Host]:
    made = Host(request.param)
    yield made
    made.sets.close()


def test_a_listing_that_ends_in_time_delays_a_swap_alone(host: Host) -> None:
    host.netlink.until = time.monotonic() + 0.2
    host.sets.swap(ONE, OTHER)
    assert time.monotonic() - host.netlink.until < 0.2
    # Often enough to get in between two listings, and with a word each time to who renews the trial.
    assert host.netlink.tries > 10
    assert host.waits == host.netlink.tries - 1


def test_one_that_does_not_end_is_given_up_and_not_waited_for_again(host: Host) -> None:
    host.netlink.until = time.monotonic() + 60
    began = time.monotonic()
    with pytest.raises(BusyError, match="another program is listing the set sikkerguard-v4 or sikkerguard-load-v4"):
        host.sets.swap(ONE, OTHER, 0.2)
    assert time.monotonic() - began >= 0.2
    tries = host.netlink.tries
    began = time.monotonic()
    with pytest.raises(BusyError):
        host.sets.swap("sikkerguard-v4", "sikkerguard-new-v4", 5.0)
    assert time.monotonic() - began < 0.2
    assert host.netlink.tries == tries + 1
    # Another one is, and so is this one once it was let go.
    host.netlink.until = time.monotonic() + 0.1
    host.sets.swap("sikkerguard-v6", "sikkerguard-new-v6", 5.0)
    host.sets.swap(ONE, OTHER)
    host.netlink.until = time.monotonic() + 0.1
    host.sets.swap(ONE, OTHER)


def test_what_else_the_kernel_refuses_is_final() -> None:
    host = Host(IPSET_ERR_TYPE_MISMATCH)
    try:
        host.netlink.until = time.monotonic() + 60
        with pytest.raises(KernelError, match="the two sets are of different types") as raised:
            host.sets.swap(ONE, OTHER)
        assert not isinstance(raised.value, BusyError)
        assert host.netlink.tries == 1
    finally:
        host.sets.close()


class Clock:
    """The trial's sets, which forget what was not renewed for ten seconds."""

    def __init__(self) -> None:
        self.now = 100.0
        self.armed: dict[str, float] = {}
        self.emptied: set[str] = set()

    def add(self, name: str, family: Family, *, ranges: object, timeout: int) -> None:
        self.armed[name] = self.now + timeout
        self.emptied.discard(name)

    def flush(self, name: str) -> None:
        self.armed.pop(name, None)

    def header(self, name: str) -> SetHeader:
        there = self.armed.get(name, 0.0) > self.now and name not in self.emptied
        return SetHeader("hash:net", 2, 2 if there else 0, 1024, 1, counters=False, timeout=True)

    def trial(self) -> TrialSets:
        return TrialSets(cast("Sets", self), tuple(Family), lambda: self.now)

    def covers(self, *families: Family) -> bool:
        return all(self.header(set_names(family).trial).entries == 2 for family in families)


def test_a_trial_does_not_lapse_while_a_swap_is_waited_for() -> None:
    clock = Clock()
    trial = clock.trial()
    trial.begin()
    for _ in range(300):
        clock.now += 0.1
        trial.keep()
        assert clock.covers(*Family)
    trial.renew()
    trial.end()
    clock.now += 20
    trial.keep()
    assert not clock.covers(Family.V4)


def test_a_trial_that_another_program_ended_meanwhile_proves_nothing() -> None:
    clock = Clock()
    trial = clock.trial()
    trial.begin()
    clock.emptied = {set_names(Family.V4).trial}
    clock.now += 1.5
    trial.keep()
    # What covers both lists is back; what was tested in between counts for nothing.
    assert clock.covers(*Family)
    with pytest.raises(KernelError, match="another program changed our rules or the set sikkerguard-trial-v4"):
        trial.renew()


def test_a_trial_that_lapsed_is_not_brought_back() -> None:
    clock = Clock()
    trial = clock.trial()
    trial.begin()
    clock.now += 10
    trial.keep()
    assert not clock.covers(Family.V4)
    with pytest.raises(KernelError, match="the trial lapsed"):
        trial.renew()


def test_a_repair_covers_its_family_for_as_long_as_it_takes() -> None:
    clock = Clock()
    trial = clock.trial()
    with trial.covering(Family.V6):
        for _ in range(300):
            clock.now += 0.1
            trial.keep()
            assert clock.covers(Family.V6)
        assert not trial.runs
    assert not clock.covers(Family.V4)
    trial.release((Family.V6,))
    clock.now += 1
    trial.keep()
    assert not clock.covers(Family.V6)
