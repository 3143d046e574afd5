"""Removal where another program is in the way: everything else goes, and what stays blocks nobody."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest

from sikkerguard.core.firewall.names import set_names
from sikkerguard.core.net.family import Family
from sikkerguard.edges.kernel.ipset_legacy.removal import Removal
from sikkerguard.edges.kernel.ipset_legacy.set_netlink import SetHeader
from sikkerguard.errors import BusyError, KernelError

if TYPE_CHECKING:
    from sikkerguard.edges.kernel.ipset_legacy.chains import Chains
    from sikkerguard.edges.kernel.ipset_legacy.sets import Sets

NAMES = set_names(Family.V4)


class Host:
    """Sets by name with their number of entries, and chains. `listed` sets are let go when they were tried so often;
    `refused` calls raise."""

    def __init__(self) -> None:
        self.sets = dict.fromkeys(NAMES.all(), 1)
        self.listed: dict[str, float] = {}
        self.refused: set[str] = set()
        self.chains = True

    def remove(self, family: Family, lock_seconds: float) -> tuple[str, ...]:
        assert lock_seconds <= 2.0
        if "remove" in self.refused:
            raise BusyError("another program has held /run/xtables.lock since 12:00:00; rules are left as they are")
        self.chains = False
        return ()

    def names(self) -> list[str]:
        if "names" in self.refused:
            raise KernelError("sets can't be read")
        return sorted(self.sets)

    def destroy(self, name: str, seconds: float) -> None:
        assert not self.chains
        assert seconds == 0.0
        if self.listed.get(name, 0) > 0:
            self.listed[name] -= 1
            raise BusyError(f"another program is listing the set {name}")
        del self.sets[name]

    def flush(self, name: str) -> None:
        if f"flush {name}" in self.refused:
            raise KernelError(f"the kernel refused to flush the set {name}")
        self.sets[name] = 0

    def header(self, name: str) -> SetHeader | None:
        if name not in self.sets:
            return None
        return SetHeader("hash:ip", 2, self.sets[name], 1024, 0, counters=True, timeout=False)

    def run(self) -> None:
        Removal(cast("Sets", self), cast("Chains", self), (Family.V4,)).run()


def test_all_goes_where_nothing_is_in_the_way() -> None:
    host = Host()
    host.run()
    assert (host.sets, host.chains) == ({}, False)


def test_a_set_that_is_let_go_in_time_goes_too() -> None:
    host = Host()
    host.listed = {NAMES.singles: 5, NAMES.hits: 2}
    host.run()
    assert host.sets == {}


def test_a_set_that_goes_on_being_listed_is_emptied_and_told() -> None:
    host = Host()
    host.listed = {NAMES.ranges: float("inf")}
    with pytest.raises(BusyError) as raised:
        host.run()
    assert host.sets == {NAMES.ranges: 0}
    assert str(raised.value) == (
        "not everything could be removed: the set sikkerguard-v4-net stays, empty: another program is listing it. "
        "Nobody is blocked any more; when it is let go, 'sikkerguard cleanup' removes it"
    )


def test_rules_that_a_held_lock_keeps_are_left_with_nobody_to_block() -> None:
    host = Host()
    host.refused = {"remove"}
    with pytest.raises(KernelError, match="Nobody is blocked any more") as raised:
        host.run()
    # Our rules are still in their place, which is no clean end.
    assert not isinstance(raised.value, BusyError)
    blocking = (NAMES.singles, NAMES.ranges, NAMES.new_singles, NAMES.new_ranges, NAMES.trial)
    assert all(host.sets[name] == 0 for name in blocking)
    # Who was allowed is not blocked by what can't be emptied.
    assert host.sets[NAMES.allow] == 1


@pytest.mark.parametrize("refused", [f"flush {NAMES.singles}", "names"])
def test_what_goes_on_blocking_is_told(refused: str) -> None:
    host = Host()
    host.refused = {"remove", refused}
    with pytest.raises(KernelError, match="What is left goes on blocking"):
        host.run()
