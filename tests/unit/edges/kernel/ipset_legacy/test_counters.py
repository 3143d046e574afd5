"""The counter reader over a kernel in which packets, other programs and refusals come at any moment: what it gives away
is all that was dropped, once.

Sets and chains are those of the tests of `core.firewall.diff`, reached as the reader reaches them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sikkerguard.core.firewall.names import set_names
from sikkerguard.core.net.family import Family
from sikkerguard.core.ports.protocols import REPLY
from sikkerguard.core.traffic.attribution import SourceAddresses
from sikkerguard.core.traffic.counter_resets import CounterResets
from sikkerguard.core.traffic.sample import NOTHING, UNATTRIBUTED, PacketCount, TrafficSample
from sikkerguard.edges.kernel.ipset_legacy.counters import CounterReader
from sikkerguard.edges.kernel.ipset_legacy.set_netlink import SetHeader
from sikkerguard.errors import BusyError, KernelError
from tests.unit.core.firewall.netfilter import OCTETS, PORTS, Netfilter, Packet

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sikkerguard.core.traffic.attribution import Hit, Source
    from sikkerguard.core.traffic.sample import FlowKey
    from sikkerguard.edges.kernel.ipset_legacy.chains import Chains
    from sikkerguard.edges.kernel.ipset_legacy.sets import Sets


class Host:
    """Both families' chains and sets, and what happens to them while the reader is at work.

    `before` is called with each call's name before it is carried out; a call that is in `refused` raises, once.
    `dips` are what the DROP rule's counters are short of while another program changes the table.
    """

    def __init__(self, *families: Family) -> None:
        self.families = families or tuple(Family)
        self.netfilters = {
            family: Netfilter(family, frozenset({set_names(family).singles})) for family in self.families
        }
        self.set_back = dict.fromkeys(self.families, 0)
        self.dips = dict.fromkeys(self.families, 0)
        self.gone: set[Family] = set()
        self.made = True
        # Sets that another program is listing.
        self.listed: set[str] = set()
        self.calls: list[str] = []
        self.refused: list[str] = []
        self.slept: list[float] = []
        self.before: Callable[[str], None] = lambda call: None

    def reader(self) -> CounterReader:
        return CounterReader(cast("Sets", self), cast("Chains", self), self.families, sleep=self.slept.append)

    def send(
        self,
        number: int = 1,
        source: int = 1,
        port: int | None = 23,
        family: Family = Family.V4,
        *,
        reply: bool = False,
    ) -> None:
        for _ in range(number):
            self.netfilters[family].run(Packet(source, port, reply))

    def scan(self, ports: int, source: int = 1, family: Family = Family.V4) -> None:
        for port in range(ports):
            self.send(1, source, port, family)

    def dropped(self) -> int:
        return sum(netfilter.dropped for netfilter in self.netfilters.values())

    def zero(self, family: Family = Family.V4) -> None:
        """Another program sets the DROP rule's counter to zero."""
        self.restore(0, family)

    def restore(self, packets: int, family: Family = Family.V4) -> None:
        """Another program sets the DROP rule's counter to this."""
        self.set_back[family] = self.netfilters[family].dropped - packets

    def take_away(self, family: Family = Family.V4) -> None:
        """There is no DROP rule until the chain is made anew."""
        self.gone.add(family)

    def repair(
        self, reader: CounterReader, family: Family = Family.V4, *, meanwhile: Callable[[], object] = int
    ) -> None:
        """The chain is made anew, as the kernel edge does it; `meanwhile` something happens."""
        # Under the lock, so that nobody else is in the middle of a change.
        self.dips[family] = 0
        reader.collect()
        there = -1 if family in self.gone else self.netfilters[family].dropped - self.set_back[family]
        goes_on_from = max(there, reader.reading(family).packets)
        meanwhile()
        self.restore(goes_on_from, family)
        self.gone.discard(family)

    # What the reader asks of chains and sets.

    def counters(self, family: Family, *, settled: bool = False) -> PacketCount | None:
        self._called("settled" if settled else "counters")
        if family in self.gone:
            return None
        if settled:
            self.dips[family] = 0
        packets = self.netfilters[family].dropped - self.set_back[family] - self.dips[family]
        return PacketCount(packets, packets * OCTETS)

    def header(self, set_name: str) -> SetHeader | None:
        self._called("header")
        entries = self._set(set_name)
        room = self._of(set_name).room.get(self._filled(set_name), 65_536)
        return SetHeader("hash:ip", 2, len(entries), room, 0, counters=True, timeout=False) if self.made else None

    def swap(self, one: str, other: str, seconds: float = 2.0) -> None:
        self._called("swap")
        if self.listed & {one, other}:
            raise BusyError(f"another program is listing the set {one} or {other}")
        self._of(one).swap(one, other)

    def flush(self, set_name: str) -> None:
        self._called("flush")
        self._set(set_name).clear()

    def hits(self, set_name: str) -> list[Hit]:
        self._called("hits")
        family = Family.V6 if set_name.endswith("v6") else Family.V4
        assert self.listed or set_name in (set_names(family).old_hits, set_names(family).old_replies)
        return [
            (address(family, each[0]), each[1], 6, packets * OCTETS, packets)
            for each, packets in self._set(set_name).items()
            if isinstance(each, tuple)
        ]

    def counts(self, set_name: str) -> list[Source]:
        self._called("counts")
        family = Family.V6 if set_name.endswith("v6") else Family.V4
        assert self.listed or set_name in (set_names(family).old_sources, set_names(family).old_repliers)
        return [
            (address(family, each), packets * OCTETS, packets)
            for each, packets in self._set(set_name).items()
            if isinstance(each, int)
        ]

    def _called(self, call: str) -> None:
        self.calls.append(call)
        self.before(call)
        if call in self.refused:
            self.refused.remove(call)
            raise KernelError(f"the kernel refused: {call}")

    def _filled(self, set_name: str) -> str:
        return set_name.replace("old", "", 1)

    def _of(self, set_name: str) -> Netfilter:
        return self.netfilters[Family.V6 if set_name.endswith("v6") else Family.V4]

    def _set(self, set_name: str) -> dict[Any, int]:
        return cast("dict[Any, int]", self._of(set_name).sets[set_name])


def address(family: Family, number: int) -> bytes:
    return number.to_bytes(family.size, "big")


class Taker:
    """Takes what a reader gives away, and sums it up."""

    def __init__(self, reader: CounterReader) -> None:
        self.reader = reader
        self.dropped = NOTHING
        self.attributed = 0
        self.flows: Counter[FlowKey] = Counter()
        self.replies = 0
        self.counters: dict[Family, PacketCount] = {}

    def take(self) -> PacketCount:
        """How much was dropped since the last time."""
        before = self.dropped
        for sample in self.reader.read():
            self.attributed += sample.attributed
            self.replies += sample.replies
            assert sum(sample.ports.values()) == sample.attributed
            for flow, packets in sample.flows:
                self.flows[flow] += packets
            self.dropped = self.dropped.plus(sample.dropped)
            self.counters = dict(sample.counters) or self.counters
        return self.dropped.minus(before)


def flows_in(samples: Sequence[TrafficSample]) -> dict[FlowKey, int]:
    flows: Counter[FlowKey] = Counter()
    for sample in samples:
        flows.update(dict(sample.flows))
    return dict(flows)


def dropped_in(samples: Sequence[TrafficSample]) -> PacketCount:
    return PacketCount(sum(each.dropped.packets for each in samples), sum(each.dropped.bytes for each in samples))


def test_what_was_dropped_is_given_away_once() -> None:
    host = Host()
    reader = host.reader()
    host.send(47)
    host.send(3, port=None)
    host.send(2, source=2, family=Family.V6)
    (sample,) = reader.read()
    v4, v6 = address(Family.V4, 1), address(Family.V6, 2)
    assert sample.dropped == PacketCount(52, 52 * OCTETS)
    assert sample.counters == {Family.V4: PacketCount(50, 50 * OCTETS), Family.V6: PacketCount(2, 2 * OCTETS)}
    assert sample.flows == (((v4, 6, 23), 47), ((v4, UNATTRIBUTED, UNATTRIBUTED), 3), ((v6, 6, 23), 2))
    assert sample.ports == {(6, 23): 49, (UNATTRIBUTED, UNATTRIBUTED): 3}
    assert (sample.attributed, sample.replies, list(sample.sources)) == (52, 0, [v4, v6])
    assert reader.read() == (replace(TrafficSample(), counters=sample.counters, sources=SourceAddresses(())),)
    host.send(1)
    assert flows_in(reader.read()) == {(v4, 6, 23): 1}


def test_replies_are_given_away_apart() -> None:
    host = Host()
    reader = host.reader()
    host.send(4, port=443, reply=True)
    host.send(2, port=23)
    host.send(3, source=2, port=None, family=Family.V6, reply=True)
    (sample,) = reader.read()
    v4, v6 = address(Family.V4, 1), address(Family.V6, 2)
    assert sample.dropped == PacketCount(9, 9 * OCTETS)
    assert dict(sample.flows) == {(v4, 6, 23): 2, (v4, REPLY, 443): 4, (v6, REPLY, UNATTRIBUTED): 3}
    assert (sample.attributed, sample.replies) == (9, 7)
    assert set(sample.sources) == {v4, v6}
    (again,) = reader.read()
    assert (again.dropped, again.attributed, again.replies) == (NOTHING, 0, 0)
    # Where the counter is set back, the sets of replies tell of it as the others do.
    host.send(5, port=443, reply=True)
    host.zero()
    assert dropped_in(reader.read()) == PacketCount(5, 5 * OCTETS)


def test_nothing_is_given_away_before_it_is_known_where_the_last_run_ended() -> None:
    host = Host(Family.V4)
    first = Taker(host.reader())
    host.send(5)
    first.take()
    host.send(4)
    reader = host.reader()
    reader.hold()
    host.repair(reader)
    assert reader.read() == ()
    reader.resume(first.counters)
    host.send(3)
    second = Taker(reader)
    second.take()
    assert (second.dropped.packets, second.attributed) == (7, 7)


def test_where_nothing_is_dropped_no_set_is_changed() -> None:
    host = Host()
    reader = host.reader()
    reader.read()
    host.calls.clear()
    for _ in range(3):
        assert dropped_in(reader.read()) == NOTHING
    # Of each family its counter, and of both kinds whether there is a source.
    assert host.calls == ["counters", "counters", *["header"] * 4] * 3
    assert host.slept == []


def test_sets_that_are_yet_to_be_made_are_passed_over() -> None:
    host = Host()
    host.made = False
    reader = host.reader()
    assert flows_in(reader.read()) == {}
    host.repair(reader)
    assert dropped_in(reader.read()) == NOTHING
    assert "swap" not in host.calls
    assert "flush" not in host.calls
    host.made = True
    host.send(3)
    taker = Taker(reader)
    assert taker.take() == PacketCount(3, 3 * OCTETS)
    assert taker.attributed == 3


def test_packets_that_come_while_the_sets_are_changed_are_given_away_the_next_time() -> None:
    host = Host(Family.V4)
    taker = Taker(host.reader())
    taker.take()
    host.send(5)
    # One more at each step of the reading, from a source and to a port that is new in each.
    host.before = lambda call: host.scan(3, source=len(host.calls))
    taker.take()
    host.before = lambda call: None
    assert taker.dropped.packets < host.dropped()
    taker.take()
    taker.take()
    assert (taker.dropped.packets, taker.attributed, taker.reader._carry_over) == (host.dropped(), host.dropped(), {})


def test_counters_that_dip_while_another_program_changes_the_table_are_read_when_it_is_done() -> None:
    host = Host(Family.V4)
    taker = Taker(host.reader())
    host.send(100)
    taker.take()
    host.dips[Family.V4] = 100
    host.send(7)
    assert taker.take() == PacketCount(7, 7 * OCTETS)
    assert host.calls.count("settled") == 1
    assert taker.take() == NOTHING
    assert (taker.dropped.packets, taker.attributed) == (107, 107)
    assert taker.counters[Family.V4].packets == 107


def test_counters_that_dip_and_can_not_be_read_settled_are_read_the_next_time() -> None:
    host = Host(Family.V4)
    taker = Taker(host.reader())
    host.send(100)
    taker.take()
    host.dips[Family.V4] = 100
    host.refused = ["settled"]
    with pytest.raises(KernelError):
        taker.take()
    host.send(1)
    taker.take()
    assert (taker.dropped.packets, taker.attributed) == (101, 101)


def test_a_counter_that_another_program_has_not_added_again_is_waited_for() -> None:
    # A program that takes another lock than ours.
    host = Host(Family.V4)
    taker = Taker(host.reader())
    host.send(100)
    taker.take()
    host.send(7)
    host.zero()
    host.before = lambda call: host.restore(107) if len(host.slept) == 2 else None
    assert taker.take() == PacketCount(7, 7 * OCTETS)
    assert taker.counters[Family.V4].packets == 107


@pytest.mark.parametrize("stopped", [False, True])
def test_a_counter_that_comes_back_later_is_not_counted_twice(stopped: bool) -> None:
    host = Host(Family.V4)
    taker = Taker(host.reader())
    for number in (5000, 50):
        host.send(number)
        taker.take()
        taker.take()
    # Stopped in the middle of a change, or a restore of what was saved before.
    before = host.dropped()
    host.zero()
    host.send(3)
    taker.take()
    host.send(4)
    host.restore(before + 7 if stopped else before - 1000)
    taker.take()
    host.send(10)
    taker.take()
    assert (taker.dropped.packets, taker.attributed) == (host.dropped(), host.dropped())


@pytest.mark.parametrize("quiet", [0, 1, 2])
def test_a_counter_that_comes_back_after_a_rest_is_not_counted_twice(quiet: int) -> None:
    host = Host(Family.V4)
    taker = Taker(host.reader())
    for number in (5000, 50):
        host.send(number)
        taker.take()
    host.zero()
    for _ in range(quiet):
        taker.take()
    host.restore(5050)
    taker.take()
    host.send(3)
    taker.take()
    assert (taker.dropped.packets, taker.attributed) == (5053, 5053)


def test_a_counter_that_comes_back_to_a_process_begun_in_a_flood_is_hardly_counted_twice() -> None:
    host = Host(Family.V4)
    host.before = lambda call: host.send(3)
    first = Taker(host.reader())
    for _ in range(20):
        host.send(1000)
        first.take()
    heir = Taker(host.reader())
    heir.reader.resume(first.counters)
    for _ in range(3):
        host.send(1000)
        heir.take()
    stood = host.dropped()
    host.zero()
    heir.take()
    host.send(1000)
    heir.take()
    host.restore(stood)
    host.before = lambda call: None
    for _ in range(3):
        heir.take()
    # At most by what came during one reading.
    assert 0 <= first.dropped.packets + heir.dropped.packets - host.dropped() < 60


def test_a_counter_that_passes_its_old_place_with_smaller_packets_has_gone_back() -> None:
    resets = CounterResets(last_reading=PacketCount(100, 150_000), unsettled_max=0)
    resets.read(PacketCount(200, 8000))
    resets.add_attributed(PacketCount(200, 8000))
    assert resets.settle(resets.last_reading, complete=True) == PacketCount(200, 8000)


@pytest.mark.parametrize("more", [0, 1, 99, 100, 300])
def test_what_a_rule_had_counted_that_others_set_back_is_known_from_the_sets(more: int) -> None:
    host = Host(Family.V4)
    taker = Taker(host.reader())
    host.send(100)
    taker.take()
    host.send(100, source=2)
    host.zero()
    # Also where the counter is past its old place by the time of the next look.
    host.send(more)
    taker.take()
    assert (taker.dropped, taker.attributed) == (PacketCount(host.dropped(), host.dropped() * OCTETS), host.dropped())


@pytest.mark.parametrize("call", ["counters", "swap", "hits", "flush"])
def test_packets_that_come_while_a_counter_that_was_set_back_is_read_are_given_away_by_and_by(call: str) -> None:
    host = Host(Family.V4)
    taker = Taker(host.reader())
    host.send(10)
    taker.take()
    taker.take()
    host.zero()
    host.before = lambda called: host.send(3) if called == call else None
    for _ in range(3):
        taker.take()
        assert taker.dropped.packets <= host.dropped()
    host.before = lambda called: None
    taker.take()
    taker.take()
    assert (taker.dropped.packets, taker.attributed, taker.reader._carry_over) == (host.dropped(), host.dropped(), {})


@pytest.mark.parametrize("looked", [False, True])
def test_what_a_rule_had_counted_that_others_took_away_is_known_from_the_sets(looked: bool) -> None:
    host = Host(Family.V4)
    taker = Taker(host.reader())
    host.send(1000)
    host.scan(PORTS + 10)
    if looked:
        taker.take()
        host.send(20)
        host.scan(PORTS + 10, source=2)
    host.take_away()
    if looked:
        # The reader may come before the look that repairs, and finds no rule.
        taker.take()
        assert taker.dropped.packets == host.dropped()
    host.repair(taker.reader)
    host.send(3)
    taker.take()
    assert (taker.dropped.packets, taker.attributed) == (host.dropped(), host.dropped())
    # The rule goes on from where the one before it would stand.
    assert taker.counters == {Family.V4: PacketCount(host.dropped(), host.dropped() * OCTETS)}


def test_a_rule_is_written_anew_and_nothing_is_counted_twice() -> None:
    host = Host()
    taker = Taker(host.reader())
    for number in range(1, 4):
        host.send(10 * number)
        host.send(number, family=Family.V6)
        host.repair(taker.reader)
        host.repair(taker.reader, Family.V6)
    taker.take()
    assert (taker.dropped.packets, taker.attributed) == (66, 66)
    assert taker.counters == {Family.V4: PacketCount(60, 60 * OCTETS), Family.V6: PacketCount(6, 6 * OCTETS)}


def test_packets_that_come_while_a_rule_is_written_anew_are_counted_and_named_once() -> None:
    host = Host(Family.V4)
    taker = Taker(host.reader())
    host.send(10)
    host.repair(taker.reader, meanwhile=lambda: host.send(7))
    host.send(4)
    taker.take()
    assert (taker.dropped.packets, taker.attributed) == (21, 21)
    assert taker.reader._carry_over == {}


def test_a_process_that_dies_after_it_wrote_a_rule_anew_has_lost_no_count() -> None:
    host = Host(Family.V4)
    first = Taker(host.reader())
    host.send(100)
    first.take()
    host.send(50)
    # What was read for this is in no ledger yet.
    host.repair(first.reader)
    host.send(3)
    second = Taker(host.reader())
    second.reader.resume(first.counters)
    second.take()
    assert first.dropped.packets + second.dropped.packets == 153


def test_counters_go_on_from_where_they_were_last_taken_into_resets() -> None:
    host = Host()
    Taker(host.reader()).take()
    host.send(100)
    host.send(9, family=Family.V6)
    first = Taker(host.reader())
    first.take()
    host.send(5)
    host.send(1, family=Family.V6)
    second = Taker(host.reader())
    second.reader.resume(first.counters)
    second.take()
    assert (first.dropped.packets, first.attributed) == (109, 109)
    assert (second.dropped.packets, second.attributed) == (6, 6)


def test_counters_of_a_family_that_is_not_spoken_are_not_gone_on_with() -> None:
    reader = Host(Family.V4).reader()
    reader.resume({Family.V6: PacketCount(7, 420)})
    (sample,) = reader.read()
    assert sample.counters == {Family.V4: NOTHING}


def test_counters_that_stood_higher_in_the_last_run_begin_anew() -> None:
    host = Host(Family.V4)
    taker = Taker(host.reader())
    taker.reader.resume({Family.V4: PacketCount(1000, 60_000)})
    host.send(3)
    taker.take()
    assert (taker.dropped, taker.attributed) == (PacketCount(3, 3 * OCTETS), 3)


def test_a_counter_of_which_nobody_knows_where_it_stood_is_taken_from_now_on() -> None:
    # The records were lost, and with them what has told of it.
    host = Host()
    host.send(1000)
    Taker(host.reader()).take()
    host.send(5)
    taker = Taker(host.reader())
    taker.reader.resume({Family.V6: NOTHING})
    taker.take()
    # But what the sets hold is of the last second, and is told.
    assert (taker.dropped.packets, taker.attributed) == (5, 5)
    assert taker.counters == {Family.V4: PacketCount(1005, 1005 * OCTETS), Family.V6: NOTHING}
    host.send(7)
    taker.take()
    assert (taker.dropped.packets, taker.attributed) == (12, 12)


def test_a_rule_made_after_a_reboot_goes_on_from_where_the_last_one_stood() -> None:
    host = Host(Family.V4)
    host.take_away()
    taker = Taker(host.reader())
    taker.reader.resume({Family.V4: PacketCount(1000, 60_000)})
    host.repair(taker.reader)
    host.send(3)
    taker.take()
    assert (taker.dropped, taker.attributed) == (PacketCount(3, 3 * OCTETS), 3)
    assert taker.counters[Family.V4].packets == 1003


@pytest.mark.parametrize(
    ("call", "at"),
    [*product(["swap"], [2, 3, 4]), *product(["hits", "counts"], [1, 2]), *product(["flush"], [1, 2, 3, 4])],
)
def test_what_a_dead_process_had_not_read_is_read_once(call: str, at: int) -> None:
    host = Host(Family.V4)
    Taker(host.reader()).take()
    host.send(100)
    host.scan(5, source=2)
    host.send(20, port=443, reply=True)

    def die(called: str) -> None:
        if called == call and host.calls.count(call) == at:
            raise KeyboardInterrupt

    host.calls.clear()
    host.before = die
    with pytest.raises(KeyboardInterrupt):
        host.reader().read()
    host.before = lambda called: None
    host.send(7)
    heir = Taker(host.reader())
    heir.take()
    heir.take()
    assert heir.dropped.packets == 132
    # What was emptied before it was written down is nameless, and never named twice.
    assert heir.attributed <= 132
    assert heir.replies <= 20
    if (call, at) not in [("hits", 2), ("counts", 2), ("flush", 2), ("flush", 3), ("flush", 4)]:
        assert (heir.attributed, heir.replies) == (132, 20)


def refused_once(host: Host, taker: Taker, call: str, at: int) -> None:
    """Read while the kernel refuses this call at its n-th time, and then for as long as there is something to read."""
    host.calls.clear()

    def refuse(called: str) -> None:
        if called == call and host.calls.count(call) == at:
            raise KernelError("the kernel refused")

    host.before = refuse
    with pytest.raises(KernelError):
        taker.take()
    host.send(5)
    host.send(5, source=3)
    host.before = lambda called: None
    for _ in range(3):
        taker.take()


@pytest.mark.parametrize(
    ("call", "at"),
    [
        *product(["header", "swap", "flush"], range(1, 7)),
        *product(["counters", "hits", "counts"], [1, 2]),
    ],
)
def test_a_refusal_loses_no_packet_and_names_none_twice(call: str, at: int) -> None:
    host = Host()
    taker = Taker(host.reader())
    taker.take()
    host.send(10)
    host.send(10, port=443, reply=True)
    host.scan(4, source=2, family=Family.V6)
    refused_once(host, taker, call, at)
    assert taker.dropped.packets == host.dropped()
    assert taker.attributed <= host.dropped()
    assert taker.replies <= 10
    assert taker.reader._carry_over == {}


@pytest.mark.parametrize("call", ["counters", "header", "swap", "hits", "counts"])
@pytest.mark.parametrize("at", [1, 2])
def test_what_was_read_before_a_refusal_and_what_could_not_be_read_is_named_later(call: str, at: int) -> None:
    host = Host()
    taker = Taker(host.reader())
    taker.take()
    host.send(10)
    host.scan(4, source=2, family=Family.V6)
    refused_once(host, taker, call, at)
    assert taker.attributed == host.dropped()


@pytest.mark.parametrize("listed", ["hits", "sources", "old_hits", "old_sources", "replies", "old_repliers"])
def test_what_counts_is_read_in_place_while_another_program_lists_it(listed: str) -> None:
    host = Host(Family.V4)
    taker = Taker(host.reader())
    taker.take()
    host.listed = {getattr(set_names(Family.V4), listed)}
    for _ in range(3):
        host.scan(5)
        host.send(3, source=2, port=80)
        host.send(2, source=3, port=443, reply=True)
        taker.take()
        assert taker.dropped.packets == host.dropped()
        assert taker.attributed == host.dropped()
    host.listed = set()
    host.scan(5, source=4)
    taker.take()
    assert (taker.dropped.packets, taker.attributed) == (host.dropped(), host.dropped())


def test_packets_that_come_while_a_listed_set_is_read_are_counted_and_named_once_at_most() -> None:
    for call, at in product(("hits", "counts", "flush"), range(1, 5)):
        host = Host(Family.V4)
        taker = Taker(host.reader())
        taker.take()
        host.listed = {set_names(Family.V4).sources}
        host.scan(5)
        calls = Counter[str]()

        def meanwhile(called: str, host: Host = host, calls: Counter[str] = calls, when: object = (call, at)) -> None:
            calls[called] += 1
            if (called, calls[called]) == when:
                host.scan(3, source=2)

        host.before = meanwhile
        taker.take()
        host.before = lambda called: None
        host.scan(5)
        taker.take()
        assert taker.dropped.packets == host.dropped()
        assert host.dropped() - 3 <= taker.attributed <= host.dropped()


def test_packets_of_a_rule_that_was_taken_away_before_it_was_looked_at_are_known_from_the_sets() -> None:
    host = Host()
    taker = Taker(host.reader())
    taker.take()
    host.send(10)
    host.send(3, family=Family.V6)
    host.take_away(Family.V4)
    taker.take()
    host.repair(taker.reader)
    taker.take()
    assert (taker.dropped.packets, taker.attributed) == (13, 13)


def test_a_rule_that_was_taken_away_is_made_up_for_whatever_the_other_family_had_no_room_for() -> None:
    host = Host()
    names = set_names(Family.V4)
    host.netfilters[Family.V4].room = {names.sources: 1, names.hits: 1}
    taker = Taker(host.reader())
    host.send(1)
    host.send(1, family=Family.V6)
    taker.take()
    for source in range(100):
        host.send(1, source)
    host.send(50, family=Family.V6)
    host.take_away(Family.V6)
    host.repair(taker.reader, Family.V6)
    taker.take()
    assert taker.dropped.packets == host.dropped() == 152


actions = st.lists(
    st.tuples(
        st.sampled_from(
            ["packets", "packets", "read", "read", "flushed", "zeroed", "restored", "rewritten", "dip", "restart"]
        ),
        st.sampled_from(Family),
        st.integers(1, 3),
        st.none() | st.integers(0, 5),
        st.integers(1, PORTS + 3),
    ),
    max_size=15,
)


@settings(max_examples=60)
@given(actions)
def test_whatever_happens_all_that_was_dropped_is_given_away_and_named_once(
    drawn: list[tuple[str, Family, int, int | None, int]],
) -> None:
    host = Host()
    taker = Taker(host.reader())
    replies = 0

    def dips_end(call: str) -> None:
        # They take microseconds: whatever comes after the first reading finds the counters right.
        if call != "counters":
            host.dips = dict.fromkeys(Family, 0)

    host.before = dips_end
    for what, family, source, port, number in drawn:
        match what:
            case "packets":
                for further in range(number):
                    replies += further % 3 == 1
                    to = None if port is None else port + further // 2
                    host.send(1, source, to, family, reply=further % 3 == 1)
            case "read":
                taker.take()
                # A counter that went back to just where it stood is not noticed, and read when it is right again.
                taker.take()
                assert taker.dropped.packets == host.dropped() == taker.attributed
            case "flushed":
                # Someone takes our rule away; the look that repairs comes before or after the next reading.
                host.dips = dict.fromkeys(Family, 0)
                taker.take()
                host.scan(number, source, family)
                host.take_away(family)
                if number % 2:
                    taker.take()
                host.repair(taker.reader, family)
            case "rewritten":
                host.repair(taker.reader, family, meanwhile=partial(host.send, number, source, port, family))
            case "zeroed":
                host.zero(family)
            case "restored":
                stands = host.netfilters[family].dropped - host.set_back[family]
                host.restore(stands * number // (PORTS + 3), family)
            case "dip":
                found = host.netfilters[family].dropped - host.set_back[family]
                host.dips[family] = min(found, taker.counters.get(family, NOTHING).packets)
            case "restart":
                taker.take()
                # What a dip kept back, the counter tells a second later; but not after a restart, if it is zeroed then.
                taker.take()
                taker.reader = host.reader()
                taker.reader.resume(taker.counters)
    taker.take()
    taker.take()
    assert (taker.dropped.packets, taker.attributed, taker.reader._carry_over) == (host.dropped(), host.dropped(), {})
    sent = sum(taker.flows.values())
    assert sent == host.dropped()
    assert taker.replies == replies


@given(st.lists(st.integers(0, 50), max_size=4), st.integers(0, 100), st.integers(0, 100))
def test_where_a_counter_stood_may_be_told_after_it_was_read(steps: list[int], stood: int, stands: int) -> None:
    """What was told late is as good as what was told before the first reading."""
    known = PacketCount(stood, 60 * stood)
    readings = [
        PacketCount(sum(steps[:each], stands), 60 * sum(steps[:each], stands)) for each in range(len(steps) + 1)
    ]
    early, late = CounterResets(last_reading=None), CounterResets(last_reading=None)
    early.resume(known)
    for reading in readings:
        early.read(reading)
        late.read(reading)
    late.resume(known)
    assert replace(late, first_reading=None) == early
    unknown = CounterResets(last_reading=None)
    for reading in readings:
        unknown.read(reading)
    unknown.resume(None)
    assert unknown.advanced.packets == sum(steps)


def test_a_rule_that_was_made_since_has_counted_nothing_before() -> None:
    resets = CounterResets(last_reading=None)
    resets.read(None)
    resets.resume(PacketCount(500, 30_000))
    resets.read(PacketCount(3, 180))
    assert resets.settle(PacketCount(3, 180), complete=True).packets == 3
