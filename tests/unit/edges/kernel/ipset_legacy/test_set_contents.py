"""Contents of sets, changed whatever another program lists: who stays listed is blocked in each moment, and who never
was is blocked in none."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sikkerguard.core.firewall.names import loading_names, set_names
from sikkerguard.core.net.family import Family
from sikkerguard.core.net.networks import Blocklist
from sikkerguard.core.net.packed import Prefix
from sikkerguard.edges.kernel.ipset_legacy.set_contents import (
    Content,
    SetContents,
    candidate_contents,
    committed_contents,
)
from sikkerguard.edges.kernel.ipset_legacy.set_kinds import ALLOW, RANGES, SINGLES
from sikkerguard.edges.kernel.ipset_legacy.set_netlink import SetHeader
from sikkerguard.edges.kernel.ipset_legacy.sets import SetKind
from sikkerguard.errors import BusyError, FullError, KernelError
from tests.unit.core.net.test_intervals import gather

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from sikkerguard.core.net.networks import Networks
    from sikkerguard.edges.kernel.ipset_legacy.sets import Sets

# Addresses that are looked at.
UNIVERSE = range(1 << 6)
BASE = 0xCB007100
NAMES = set_names(Family.V4)
LOADING = loading_names(NAMES.singles)[0]


class Kernel:
    """Sets as the kernel has them, of IPv4 alone. `listed` ones can't be swapped or destroyed; `look` is called behind
    each change of an entry."""

    def __init__(self) -> None:
        self.sets: dict[str, dict[Prefix, bool]] = {}
        self.limits: dict[str, int] = {}
        self.listed: set[str] = set()
        self.look: Callable[[], None] = lambda: None
        self.waited: list[float] = []

    def contents(self) -> SetContents:
        return SetContents(cast("Sets", self))

    def header(self, name: str) -> SetHeader | None:
        if name not in self.sets:
            return None
        kind = "hash:ip"
        return SetHeader(kind, 2, len(self.sets[name]), self.limits[name], 0, counters=True, timeout=False)

    def create(self, name: str, kind: SetKind, family: Family, entries: int) -> None:
        if name in self.sets:
            raise KernelError(f"there is a set {name}")
        self.sets[name], self.limits[name] = {}, max(2 * entries, kind.limit)

    def destroy(self, name: str, seconds: float = 0.5) -> None:
        self.waited.append(seconds)
        if name not in self.sets:
            raise KernelError(f"there is no set {name}")
        if name in self.listed:
            raise BusyError(f"another program is listing the set {name}")
        del self.sets[name], self.limits[name]

    def swap(self, one: str, other: str, seconds: float = 2.0) -> None:
        if self.listed & {one, other}:
            raise BusyError(f"another program is listing the set {one} or {other}")
        for held in (self.sets, self.limits):
            mapping = cast("dict[str, object]", held)
            mapping[one], mapping[other] = mapping[other], mapping[one]
        self.look()

    def flush(self, name: str) -> None:
        self.sets[name].clear()
        self.look()

    def add(self, name: str, family: Family, singles: bytes = b"", ranges: Iterable[Prefix] = ()) -> None:
        for prefix in (*split(singles), *ranges):
            if prefix not in self.sets[name] and len(self.sets[name]) >= self.limits[name]:
                raise FullError(f"set {name} could not be changed: the set is full")
            self.sets[name][prefix] = False
            self.look()

    def delete(self, name: str, family: Family, ranges: Iterable[Prefix] = (), singles: bytes = b"") -> None:
        for prefix in (*split(singles), *ranges):
            self.sets[name].pop(prefix, None)
            self.look()

    def prefixes(self, name: str, family: Family) -> Iterator[tuple[bytes, int, bool]]:
        for prefix, nomatch in list(self.sets.get(name, {}).items()):
            yield prefix.first.to_bytes(4, "big"), prefix.length, nomatch

    def contains(self, name: str, family: Family, address: bytes) -> bool:
        return self.matches(name, int.from_bytes(address, "big"))

    def matches(self, name: str, address: int) -> bool:
        covering = [each for each in self.sets[name] if each.first <= address <= each.last(Family.V4)]
        return bool(covering) and not self.sets[name][max(covering, key=lambda each: each.length)]

    def put(self, name: str, kind: SetKind, networks: Networks) -> None:
        """Have the set hold this from the beginning."""
        self.create(name, kind, Family.V4, len(networks))
        self.add(name, Family.V4, networks.singles, networks.ranges)


def split(singles: bytes) -> list[Prefix]:
    return [Prefix(int.from_bytes(singles[at : at + 4], "big"), 32) for at in range(0, len(singles), 4)]


def covered(networks: Networks) -> frozenset[int]:
    return frozenset(address for address in UNIVERSE if networks.find(BASE + address) is not None)


def written(*texts: tuple[int, int]) -> Networks:
    prefixes = [Prefix((BASE + first) >> (32 - length) << (32 - length), length) for first, length in texts]
    return gather(Family.V4, [], prefixes)


lists = st.lists(st.tuples(st.sampled_from(UNIVERSE), st.sampled_from([32, 32, 31, 30, 29, 28])), max_size=12).map(
    lambda drawn: written(*drawn)
)


def committed(networks: Networks) -> tuple[Content, Content]:
    return committed_contents(Family.V4, Blocklist(v4=networks))


def candidate(networks: Networks) -> tuple[Content, Content]:
    return candidate_contents(Family.V4, Blocklist(v4=networks))


def put_all(kernel: Kernel, contents: Iterable[Content]) -> None:
    for content in contents:
        kernel.put(*content)


def held(kernel: Kernel, singles: str, ranges: str) -> frozenset[int]:
    return frozenset(
        address for address in UNIVERSE if any(kernel.matches(name, BASE + address) for name in (singles, ranges))
    )


@settings(max_examples=300)
@given(lists, lists, st.frozensets(st.sampled_from([NAMES.singles, NAMES.ranges, NAMES.new_singles, NAMES.new_ranges])))
def test_an_update_under_a_trial_uncovers_nobody_who_stays_listed(
    old: Networks, new: Networks, listed: frozenset[str]
) -> None:
    kernel = Kernel()
    put_all(kernel, (*committed(old), *candidate(new)))
    kernel.listed = set(listed)

    def look() -> None:
        # The trial is on: what lies in the candidate's place blocks as well.
        blocked = held(kernel, NAMES.singles, NAMES.ranges) | held(kernel, NAMES.new_singles, NAMES.new_ranges)
        assert covered(new) <= blocked <= covered(old) | covered(new)

    kernel.look = look
    kernel.contents().exchange(
        [(to.name, loaded.name, to.networks) for to, loaded in zip(committed(new), candidate(new), strict=True)]
    )
    assert held(kernel, NAMES.singles, NAMES.ranges) == covered(new)


@settings(max_examples=300)
@given(lists, lists)
def test_entry_by_entry_nobody_is_uncovered_who_stays_listed(old: Networks, new: Networks) -> None:
    kernel = Kernel()
    put_all(kernel, committed(old))

    def look() -> None:
        blocked = held(kernel, NAMES.singles, NAMES.ranges)
        assert covered(old) & covered(new) <= blocked <= covered(old) | covered(new)

    kernel.look = look
    kernel.contents().rewrite([(name, networks) for name, _, networks in committed(new)])
    assert held(kernel, NAMES.singles, NAMES.ranges) == covered(new)
    assert set(kernel.sets[NAMES.singles]) == set(split(new.singles))
    assert set(kernel.sets[NAMES.ranges]) == set(new.ranges)


@settings(max_examples=100)
@given(lists, lists, st.data())
def test_what_another_program_put_there_is_taken_out(old: Networks, new: Networks, data: st.DataObject) -> None:
    kernel = Kernel()
    put_all(kernel, committed(old))
    # Single addresses among the ranges, exceptions, and whatever else.
    for prefix in [*kernel.sets[NAMES.ranges], *data.draw(lists).ranges, Prefix(BASE + 3, 32)]:
        kernel.sets[NAMES.ranges][prefix] = data.draw(st.booleans())
    kernel.listed = {NAMES.singles, NAMES.ranges}
    contents = kernel.contents()
    for content in committed(new):
        contents.load(*content)
    assert kernel.sets[NAMES.ranges] == dict.fromkeys(new.ranges, False)
    assert held(kernel, NAMES.singles, NAMES.ranges) == covered(new)
    assert kernel.sets.keys() == {NAMES.singles, NAMES.ranges}


def test_a_list_is_loaded_by_a_swap_where_nobody_lists_it() -> None:
    kernel = Kernel()
    put_all(kernel, committed(written((1, 32))))
    counted = []
    kernel.look = lambda: counted.append(held(kernel, NAMES.singles, NAMES.ranges))
    kernel.contents().load(NAMES.singles, SINGLES, written((2, 32), (5, 32)))
    assert set(counted) == {frozenset({1}), frozenset({2, 5})}


def test_a_set_without_room_is_left_until_it_is_let_go(caplog: pytest.LogCaptureFixture) -> None:
    kernel = Kernel()
    kernel.put(NAMES.singles, SetKind("hash:ip", counters=True, limit=2), written((1, 32)))
    kernel.listed = {NAMES.singles}
    contents, wanted = kernel.contents(), written((2, 32), (5, 32), (9, 32))
    with pytest.raises(BusyError, match="listing the set sikkerguard-v4, which has no room"):
        contents.load(NAMES.singles, SINGLES, wanted)
    assert Prefix(BASE + 1, 32) in kernel.sets[NAMES.singles]
    with pytest.raises(BusyError):
        contents.load(NAMES.singles, SINGLES, wanted)
    assert [record.getMessage() for record in caplog.records] == [
        "Another program is listing the set sikkerguard-v4, so that it can't be exchanged at once; it is changed entry "
        "by entry instead."
    ]
    kernel.listed = set()
    contents.load(NAMES.singles, SINGLES, wanted)
    assert set(kernel.sets[NAMES.singles]) == set(split(wanted.singles))
    assert kernel.limits[NAMES.singles] == SINGLES.limit


def test_a_new_set_has_room_for_two_of_the_longest_lists() -> None:
    kernel = Kernel()
    kernel.create(NAMES.singles, SINGLES, Family.V4, 0)
    assert kernel.limits[NAMES.singles] >= 2 * 2_000_000


def test_what_is_listed_as_it_is_loaded_is_emptied_and_destroyed_later() -> None:
    kernel = Kernel()
    contents = kernel.contents()
    kernel.put(NAMES.singles, SINGLES, written((1, 32)))

    def list_what_was_loaded() -> None:
        kernel.listed = {LOADING}

    kernel.look = list_what_was_loaded
    contents.load(NAMES.singles, SINGLES, written((2, 32)))
    kernel.look = lambda: None
    assert kernel.sets[LOADING] == {}
    # The next one goes by another name meanwhile.
    kernel.put(NAMES.ranges, RANGES, written((8, 29)))
    contents.load(NAMES.ranges, RANGES, written((16, 29)))
    kernel.listed = {LOADING}
    contents.load(NAMES.singles, SINGLES, written((4, 32)))
    assert set(kernel.sets) == {NAMES.singles, NAMES.ranges, LOADING}
    kernel.listed = set()
    contents.tidy()
    assert set(kernel.sets) == {NAMES.singles, NAMES.ranges}
    assert kernel.waited[-1] == 0.0


def test_where_all_that_is_loaded_is_listed_it_goes_entry_by_entry_too() -> None:
    kernel = Kernel()
    kernel.put(NAMES.singles, SINGLES, written((1, 32)))
    kernel.listed = set(loading_names(NAMES.singles))
    for name in kernel.listed:
        kernel.put(name, SINGLES, written((9, 32)))
    kernel.contents().load(NAMES.singles, SINGLES, written((2, 32)))
    assert held(kernel, NAMES.singles, NAMES.singles) == {2}
    assert not any(kernel.sets[name] for name in kernel.listed)


def test_an_exception_is_taken_from_what_is_allowed() -> None:
    kernel = Kernel()
    wide, narrow, new = (Prefix(BASE + first, length) for first, length in ((0, 28), (3, 32), (32, 28)))
    kernel.create(NAMES.allow, ALLOW, Family.V4, 8)
    kernel.sets[NAMES.allow] = {wide: True, narrow: True}
    contents = kernel.contents()
    assert contents.allowed(NAMES.allow, Family.V4) == (frozenset(), frozenset({wide, narrow}))
    contents.fill(NAMES.allow, ALLOW, Family.V4, frozenset({wide, new}))
    assert kernel.sets[NAMES.allow] == {wide: False, new: False}
