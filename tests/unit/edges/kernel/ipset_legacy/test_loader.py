"""Lists take each other's place: an address that stays listed is blocked at each moment, whatever another program lists
and whatever the kernel refuses."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sikkerguard.core.firewall.state import Candidate
from sikkerguard.core.net.family import Family
from sikkerguard.core.net.networks import Blocklist
from sikkerguard.core.net.packed import Prefix
from sikkerguard.edges.kernel.ipset_legacy.loader import ListLoader
from sikkerguard.edges.kernel.ipset_legacy.set_contents import candidate_contents, committed_contents
from sikkerguard.edges.kernel.ipset_legacy.set_kinds import kind_of
from sikkerguard.edges.kernel.ipset_legacy.trial import TrialSets
from sikkerguard.errors import KernelError
from tests.unit.edges.kernel.ipset_legacy.test_set_contents import BASE, NAMES, Kernel, covered, held, lists, written

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sikkerguard.core.net.networks import Networks
    from sikkerguard.edges.kernel.ipset_legacy.set_netlink import NetlinkSets, SetHeader
    from sikkerguard.edges.kernel.ipset_legacy.sets import Sets

V4 = Family.V4
HALVES = (Prefix(0, 1), Prefix(1 << 31, 1))


class Host(Kernel):
    """Its sets as an empty list leaves them. `blocked` is what the rules make of them; swaps of `stuck` sets are
    refused for no reason that passes."""

    def __init__(self) -> None:
        super().__init__()
        for name in NAMES.all():
            self.create(name, kind_of(V4, name)[0], V4, 0)
        self.stuck: set[str] = set()

    def loader(self) -> ListLoader:
        self.trial = TrialSets(cast("NetlinkSets", Trial(self)), (V4,), lambda: 0.0)
        return ListLoader(cast("Sets", self), self.contents(), self.trial, (V4,))

    def names(self) -> list[str]:
        return list(self.sets)

    def swap(self, one: str, other: str, seconds: float = 2.0) -> None:
        if self.stuck & {one, other}:
            raise KernelError(f"set {one} could not be swapped")
        super().swap(one, other, seconds)

    def blocked(self) -> frozenset[int]:
        committed = held(self, NAMES.singles, NAMES.ranges)
        if self.sets[NAMES.trial]:
            assert set(self.sets[NAMES.trial]) == set(HALVES)
            return committed | held(self, NAMES.new_singles, NAMES.new_ranges)
        return committed

    def holds(self, networks: Networks) -> bool:
        """Whether the committed sets hold exactly this, and nothing is left of an update."""
        wanted = {
            content.name: {*content.networks.ranges, *(Prefix(each, 32) for each in singles_of(content.networks))}
            for content in (*committed_contents(V4, Blocklist(v4=networks)), *candidate_contents(V4, Blocklist()))
        }
        return not self.sets[NAMES.trial] and all(set(self.sets[name]) == entries for name, entries in wanted.items())


class Trial:
    """The socket over which the trial's set is changed."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def add(self, name: str, family: Family, batches: Iterable[bytes]) -> None:
        assert len(list(batches)) == 1
        self._host.sets[name] = dict.fromkeys(HALVES, False)
        self._host.look()

    def flush(self, name: str) -> None:
        self._host.flush(name)

    def header(self, name: str) -> SetHeader | None:
        return self._host.header(name)


def singles_of(networks: Networks) -> list[int]:
    return [int.from_bytes(each, "big") for piece in networks.single_pieces() for each in piece]


def begin(host: Host, networks: Networks) -> ListLoader:
    """A loader whose committed list this is."""
    loader = host.loader()
    loader.committed = Blocklist(v4=networks)
    loader.load_committed(V4)
    assert host.holds(networks)
    return loader


def watched(host: Host, old: Networks, new: Networks) -> Callable[[], None]:
    """Nobody is uncovered who stays listed, and nobody is blocked who never was."""
    stay, either = covered(old) & covered(new), covered(old) | covered(new)

    def look() -> None:
        assert stay <= host.blocked() <= either

    return look


sets = st.frozensets(
    st.sampled_from([NAMES.singles, NAMES.ranges, NAMES.new_singles, NAMES.new_ranges, "sikkerguard-load-v4"])
)


@settings(max_examples=300)
@given(lists, lists, sets)
def test_an_update_uncovers_nobody_who_stays_listed(old: Networks, new: Networks, listed: frozenset[str]) -> None:
    host = Host()
    loader = begin(host, old)
    host.listed = set(listed)
    host.look = watched(host, old, new)
    loader.stage(Blocklist(v4=new))
    assert host.blocked() == covered(old)
    states = [loader.candidate]
    host.trial.begin()
    states.append(loader.candidate)
    assert host.blocked() == covered(old) | covered(new)
    loader.commit()
    assert host.holds(new)
    assert loader.has_committed(V4)
    assert loader.read_committed() == loader.committed == Blocklist(v4=new)
    states.append(loader.candidate)
    assert states == [Candidate.STAGED if len(new) else Candidate.ABSENT, Candidate.ON_TRIAL, Candidate.ABSENT]


@settings(max_examples=200)
@given(lists, lists, st.booleans(), sets)
def test_a_repair_uncovers_nobody_who_stays_listed(
    wanted: Networks, found: Networks, staged: bool, listed: frozenset[str]
) -> None:
    host = Host()
    begin(host, found)
    loader = host.loader()
    loader.committed = Blocklist(v4=wanted)
    candidate = Blocklist(v4=written((60, 32), (50, 31)))
    if staged:
        loader.stage(candidate)
    host.listed = set(listed)
    if not staged:
        host.look = watched(host, found, wanted)
    loader.load_committed(V4)
    assert loader.has_committed(V4)
    assert host.blocked() == covered(wanted)
    if staged:
        # Its sets are not needed for the repair, and still hold it.
        assert held(host, NAMES.new_singles, NAMES.new_ranges) == covered(candidate.v4)
        loader.rollback()
    assert host.holds(wanted)


@pytest.mark.parametrize("stuck", [NAMES.singles, NAMES.ranges])
def test_where_a_commit_fails_the_list_before_it_is_in_force(stuck: str) -> None:
    host, old, new = Host(), written((1, 32), (8, 29)), written((2, 32), (8, 30), (12, 32))
    loader = begin(host, old)
    loader.stage(Blocklist(v4=new))
    host.trial.begin()
    host.stuck = {stuck}
    host.look = watched(host, old, new)
    with pytest.raises(KernelError, match="could not be swapped"):
        loader.commit()
    host.stuck = set()
    assert loader.committed == Blocklist(v4=old)
    loader.load_committed(V4)
    assert host.holds(old)


def test_a_candidate_that_another_program_changed_is_not_committed() -> None:
    host, old, new = Host(), written((1, 32)), written((2, 32), (8, 29))
    loader = begin(host, old)
    loader.stage(Blocklist(v4=new))
    host.trial.begin()
    del host.sets[NAMES.new_ranges][Prefix(BASE + 8, 29)]
    with pytest.raises(KernelError, match="another program changed the set sikkerguard-new-v4-net during the trial"):
        loader.commit()
    loader.rollback()
    assert host.holds(old)


def test_leftovers_of_a_process_that_died_are_gone_and_its_list_blocks_on() -> None:
    host, old = Host(), written((1, 32), (8, 29))
    begin(host, old)
    died = host.loader()
    died.stage(Blocklist(v4=written((2, 32), (40, 31))))
    host.trial.begin()
    host.put("sikkerguard-load-v4", kind_of(V4, NAMES.singles)[0], written((2, 32)))
    loader = host.loader()
    assert loader.read_committed() == Blocklist(v4=old)
    loader.committed = Blocklist(v4=old)
    host.look = watched(host, old, written((1, 32), (2, 32), (8, 29), (40, 31)))
    loader.discard_leftovers()
    assert host.holds(old)
    assert set(host.sets) == set(NAMES.all())
