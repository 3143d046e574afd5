"""The plan against a kernel of dictionaries: what is wrong is mended, by the right steps, in a safe order; and the
rules, walked through as a packet does, say what the design says."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field, replace
from itertools import product
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sikkerguard.core.firewall.diff import (
    CreateSets,
    DropMisfits,
    EmptySets,
    FillAllow,
    FillCommitted,
    Operation,
    PlaceJump,
    WriteChain,
    diff,
)
from sikkerguard.core.firewall.names import (
    CHAIN,
    CHAINS,
    COUNT_CHAIN,
    LOG_PREFIX,
    NEWS_CHAIN,
    REPLIES_CHAIN,
    loading,
    set_names,
)
from sikkerguard.core.firewall.rules import Extension, Rule, chain_rules
from sikkerguard.core.firewall.state import DesiredFamily, ObservedFamily, desired_state
from sikkerguard.core.lists.allowlist import AllowEntry, Allowlist
from sikkerguard.core.net.address import parse_prefix
from sikkerguard.core.net.family import Family
from sikkerguard.core.net.networks import Blocklist
from sikkerguard.core.net.packed import Prefix
from tests.unit.core.firewall import test_headers as headers
from tests.unit.core.net.test_intervals import families, gather, prefixes
from tests.unit.u32 import matches

if TYPE_CHECKING:
    from collections.abc import Generator, Hashable, Iterator

# The longest name of a set that the kernel takes: IPSET_MAXNAMELEN of linux/netfilter/ipset/ip_set.h less its end.
LONGEST_NAME = 31


def test_names_are_ours_and_fit_into_the_kernel() -> None:
    names = [name for family in Family for name in set_names(family).all()]
    names += [loading(name) for name in names]
    assert len(names) == len(set(names)) == 2 * 2 * 14
    assert all(name.startswith("sikkerguard") and len(name) <= LONGEST_NAME for name in names)


# What a source has room for until the counts are read: ports that are told apart, and lines of the kernel's log.
PORTS, LOG_LINES = 64, 5
OCTETS = 60


@dataclass(frozen=True)
class Packet:
    """A packet from one source that begins something at one port, None being that of one cut off, which names none; or
    a reply from one port."""

    source: int
    port: int | None
    reply: bool = False
    raw: bytes = b""

    def on_wire(self, family: Family) -> bytes:
        """Its bytes."""
        if self.raw:
            return self.raw
        whole = headers.v4 if family is Family.V4 else headers.v6
        if self.reply:
            carried = headers.tcp(headers.ACK | headers.SYN, source=self.port or 0)
            return whole(6, carried if self.port is not None else carried[:4])
        return whole(17, b"") if self.port is None else whole(6, headers.tcp(headers.SYN, target=self.port))


@dataclass
class Netfilter:
    """Our chains and sets of one family, and what becomes of the packets that meet them.

    `member` are the sets of lists that every packet's source is in; `room` is what the sets that packets fill have
    room for; `dropped` is the DROP rule's counter, and `logged` the sources of log lines.
    """

    family: Family
    member: frozenset[str] = frozenset()
    room: dict[str, int] = field(default_factory=dict)
    dropped: int = 0
    logged: list[int] = field(default_factory=list)
    counted: list[str] = field(default_factory=list)
    sets: dict[str, dict[Hashable, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = set_names(self.family)
        self.chains: dict[str, list[Rule]] = {}
        for rule in chain_rules(self.family):
            self.chains.setdefault(rule.chain, []).append(rule)
        for counting in (names.counting_begun(), names.counting_replies()):
            self.sets |= {name: {} for name in counting.all()}

    def run(self, packet: Packet, *, within_limit: bool = True) -> str:
        """The verdict."""
        steps = self.steps(packet, within_limit=within_limit)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                return str(end.value)

    def steps(self, packet: Packet, *, within_limit: bool = True, chain: str = CHAIN) -> Generator[None, None, str]:
        """The way of a packet through a chain, in steps between which other things may happen; and the verdict."""
        for rule in self.chains[chain]:
            for match in rule.matches:
                yield
                if not self._matches(match, packet, within_limit):
                    break
            else:
                yield
                verdict = self._target(rule.target, packet)
                if rule.target.name in self.chains:
                    verdict = yield from self.steps(packet, within_limit=within_limit, chain=rule.target.name)
                if (verdict == "RETURN" and chain != CHAIN) or (rule.goto and not verdict):
                    break
                if verdict:
                    return verdict
        return ""

    def _matches(self, match: Extension, packet: Packet, within_limit: bool) -> bool:
        options = dict(match.options)
        if match.name == "limit":
            return within_limit
        if match.name == "u32":
            *inverted, expression = options["u32"]
            return matches(expression, packet.on_wire(self.family)) != (inverted == ["!"])
        assert match.name == "set"
        *inverted, name, direction = options["match-set"]
        count = options.get("update-counters") != ("!",)
        found = name in self.member
        if name in self.sets:
            # As the kernel's ip_set_match_extensions: first the packet is counted, then the counter is compared.
            entries, key = self.sets[name], _key(packet, direction)
            found = key in entries
            if found:
                entries[key] += count
                found = "packets-lt" not in options or entries[key] < int(options["packets-lt"][0])
        if found and count:
            self.counted.append(name)
        return found != (inverted == ["!"])

    def _target(self, target: Extension, packet: Packet) -> str:
        if target.name == "SET":
            ((_, (name, direction)),) = target.options
            entries, key = self.sets[name], _key(packet, direction)
            # To add what is there already would set its counters back, if the kernel did it.
            assert key not in entries
            if key is not None and len(entries) < self.room.get(name, 1 << 16):
                entries[key] = 1
        elif target.name == "LOG":
            self.logged.append(packet.source)
        elif target.name == "DROP":
            self.dropped += 1
            return "DROP"
        elif target.name == "RETURN":
            return "RETURN"
        else:
            assert target.name in self.chains
        return ""

    def swap(self, one: str, other: str) -> None:
        """Exchange the contents of two sets."""
        self.sets[one], self.sets[other] = self.sets[other], self.sets[one]

    def named(self) -> int:
        """What the sets that packets fill know by now: by port and by source, less one for each entry by port."""
        names, total = set_names(self.family), 0
        for counting in (names.counting_begun(), names.counting_replies()):
            by_port, by_source = self.sets[counting.by_port], self.sets[counting.by_source]
            total += sum(by_port.values()) + sum(by_source.values()) - len(by_port)
        return total


def _key(packet: Packet, direction: str) -> Hashable:
    if direction == "src":
        return packet.source
    # To look into the other's set would count it there.
    assert direction == ("src,src" if packet.reply else "src,dst")
    return None if packet.port is None else (packet.source, packet.port)


def memberships(family: Family) -> Iterator[frozenset[str]]:
    names = set_names(family)
    counting = (*names.counting_begun().all(), *names.counting_replies().all())
    lists = [name for name in names.in_rules() if name not in counting]
    for chosen in product([False, True], repeat=6):
        yield frozenset(name for name, inside in zip(lists, chosen, strict=True) if inside)


def remembered(family: Family, *, reply: bool) -> Iterator[dict[str, dict[Hashable, int]]]:
    """Every state of what the sets know of the packet (1, 23)."""
    names = set_names(family)
    counting = names.counting_replies() if reply else names.counting_begun()
    for told_apart, packets in product([False, True], [0, 1, LOG_LINES, PORTS, PORTS + 1]):
        yield {
            counting.by_port: {(1, 23): 7} if told_apart else {},
            counting.by_source: {1: packets} if packets else {},
        }


def is_blocked(family: Family, member: frozenset[str]) -> bool:
    names = set_names(family)
    candidate = bool(member & {names.new_singles, names.new_ranges}) and names.trial in member
    return (bool(member & {names.singles, names.ranges}) or candidate) and names.allow not in member


@pytest.mark.parametrize("family", Family)
def test_a_packet_is_dropped_if_it_is_listed_or_on_trial_and_not_allowed(family: Family) -> None:
    for reply in (False, True):
        states = product(memberships(family), remembered(family, reply=reply), [False, True])
        for member, known, within_limit in states:
            netfilter = Netfilter(family, member)
            netfilter.sets |= known
            before, blocked = netfilter.named(), is_blocked(family, member)
            verdict = netfilter.run(Packet(1, 23, reply), within_limit=within_limit)
            assert verdict == ("DROP" if blocked else "RETURN"), member
            assert netfilter.dropped == blocked
            assert netfilter.named() - before == blocked
            if reply or not blocked:
                assert netfilter.logged == []


@pytest.mark.parametrize("family", Family)
def test_what_the_link_can_not_do_without_is_let_go_and_counted_nowhere(family: Family) -> None:
    let_go = (
        [headers.v4(17, headers.udp(67, 68))]
        if family is Family.V4
        else [
            headers.v6(58, bytes([135, 0]) + bytes(22), hops=255),
            headers.v6(58, bytes([136, 0]) + bytes(22), hops=255),
            headers.v6(17, headers.udp(547, 546), target=headers.LINK_LOCAL),
        ]
    )
    for member, raw in product(memberships(family), let_go):
        netfilter = Netfilter(family, member)
        assert netfilter.run(Packet(1, None, raw=raw)) == "RETURN"
        assert (netfilter.dropped, netfilter.named(), netfilter.logged) == (0, 0, [])


@pytest.mark.parametrize("family", Family)
def test_only_what_would_be_dropped_is_looked_at_for_its_headers(family: Family) -> None:
    rules = [rule for rule in chain_rules(family) if rule.chain == CHAIN]
    read = [any(match.name == "u32" for match in rule.matches) for rule in rules]
    (allows,) = [at for at, rule in enumerate(rules) if set_names(family).allow in str(rule)]
    assert not any(read[: allows + 1])
    assert [rule.target.name for rule in rules[allows + 1 :]] == ["RETURN"] * sum(read) + [COUNT_CHAIN, "DROP"]


@pytest.mark.parametrize("family", Family)
def test_a_reply_is_counted_apart_from_what_its_source_begins(family: Family) -> None:
    names = set_names(family)
    netfilter = Netfilter(family, frozenset({names.singles}))
    for packet in (Packet(1, 23), Packet(1, 443, reply=True), Packet(1, 443, reply=True), Packet(1, None, reply=True)):
        netfilter.run(packet)
    held = {name: entries for name, entries in netfilter.sets.items() if entries}
    assert held == {
        names.hits: {(1, 23): 1},
        names.sources: {1: 1},
        names.replies: {(1, 443): 2},
        names.repliers: {1: 2},
    }
    assert (netfilter.dropped, netfilter.named(), netfilter.logged) == (4, 4, [1])


@pytest.mark.parametrize("family", Family)
def test_a_packet_is_counted_in_the_list_that_blocks_it_by_one_rule_alone(family: Family) -> None:
    names = set_names(family)
    lists = (names.singles, names.ranges, names.new_singles, names.new_ranges)
    for member in memberships(family):
        netfilter = Netfilter(family, member)
        netfilter.run(Packet(1, 23))
        counted = [name for name in netfilter.counted if name in lists]
        assert len(counted) == bool(member & {names.singles, names.ranges})


Burst = tuple[int, int | None, int, bool, bool]
bursts = st.lists(
    st.tuples(
        st.integers(0, 4), st.none() | st.integers(0, 9), st.integers(1, PORTS + 9), st.booleans(), st.booleans()
    ),
    max_size=12,
)


def packets_of(drawn: list[Burst]) -> Iterator[tuple[Packet, bool]]:
    """Scans of some ports in a row, or so many packets that name none, or replies of either kind; each with what the
    limit of the log says meanwhile."""
    for source, first, number, reply, within_limit in drawn:
        for further in range(number):
            yield Packet(source, None if first is None else first + further, reply), within_limit


@settings(deadline=None, max_examples=150)
@given(families, bursts, st.sampled_from([0, 1, 3, 100, 1000]), st.integers(0, 5))
def test_a_dropped_packet_is_counted_exactly_once_where_its_source_has_room(
    family: Family, drawn: list[Burst], hits_room: int, sources_room: int
) -> None:
    names = set_names(family)
    room = {names.hits: hits_room, names.sources: sources_room}
    room |= {names.replies: sources_room, names.repliers: hits_room}
    netfilter = Netfilter(family, frozenset({names.singles}), room)
    for number, (packet, within_limit) in enumerate(packets_of(drawn), 1):
        before = netfilter.named()
        assert netfilter.run(packet, within_limit=within_limit) == "DROP"
        by_source = names.repliers if packet.reply else names.sources
        sources = netfilter.sets[by_source]
        assert packet.source in sources or len(sources) == room[by_source]
        assert netfilter.named() - before == (packet.source in sources)
        assert netfilter.dropped == number


@settings(deadline=None, max_examples=150)
@given(families, bursts)
def test_a_source_has_its_share_of_the_sets_and_of_the_log_and_no_more(family: Family, drawn: list[Burst]) -> None:
    names = set_names(family)
    netfilter = Netfilter(family, frozenset({names.singles}))
    first: dict[tuple[int, bool], list[Packet]] = {}
    for packet, within_limit in packets_of(drawn):
        before = len(netfilter.logged)
        netfilter.run(packet, within_limit=within_limit)
        assert len(netfilter.logged) - before <= (within_limit and not packet.reply)
        first.setdefault((packet.source, packet.reply), []).append(packet)
    for (source, reply), sent in first.items():
        assert netfilter.logged.count(source) <= LOG_LINES
        # The first ports are told apart, whatever comes behind them.
        ports = {(source, packet.port) for packet in sent[:PORTS] if packet.port is not None}
        hits = list(netfilter.sets[names.replies if reply else names.hits])
        assert ports <= set(hits)
        assert len([each for each in hits if isinstance(each, tuple) and each[0] == source]) <= PORTS


@pytest.mark.parametrize("family", Family)
def test_a_new_source_is_logged_however_many_packets_there_were_of_others(family: Family) -> None:
    netfilter = Netfilter(family, frozenset({set_names(family).singles}))
    for port in range(1000):
        netfilter.run(Packet(1, port))
    netfilter.run(Packet(2, 23))
    assert netfilter.logged == [1] * LOG_LINES + [2]


@pytest.mark.parametrize("family", Family)
def test_the_log_is_limited_in_all(family: Family) -> None:
    (rule,) = [rule for rule in chain_rules(family) if rule.target.name == "LOG"]
    assert dict(rule.target.options)["log-prefix"] == (LOG_PREFIX,) == ("SIKKERGUARD ",)
    # Debian's kernels print what is more urgent on the console.
    assert dict(rule.target.options)["log-level"] == ("7",)
    # Last of the matches, so that only what would be logged takes from it.
    limit = dict(rule.matches[-1].options)
    assert rule.matches[-1].name == "limit"
    assert limit == {"limit": ("10/sec",), "limit-burst": ("50",)}


@pytest.mark.parametrize("family", Family)
def test_no_rule_drops_but_the_last_one_whose_counter_is_read(family: Family) -> None:
    rules = chain_rules(family)
    # A hashlimit whose table is full drops the packet by itself, past that counter; so do tcp, udp and icmp6 where a
    # header is cut off.
    assert {match.name for rule in rules for match in rule.matches} == {"set", "limit", "u32"}
    assert tuple(dict.fromkeys(rule.chain for rule in rules)) == CHAINS
    assert CHAINS == (CHAIN, COUNT_CHAIN, NEWS_CHAIN, REPLIES_CHAIN)
    # A chain can be taken away once none before it is there that jumps to it.
    for rule in rules:
        assert rule.target.name not in CHAINS[: CHAINS.index(rule.chain) + 1]
    (drop,) = [rule for rule in rules if rule.target.name == "DROP"]
    assert drop == [rule for rule in rules if rule.chain == CHAIN][-1]
    assert drop.matches == ()


WANTED = DesiredFamily(singles=3, ranges=2, allow=frozenset({Prefix(0, 8), Prefix(1 << 24, 16)}))


def sound(family: Family, wanted: DesiredFamily = WANTED) -> ObservedFamily:
    names = set_names(family)
    sets = dict.fromkeys(names.all(), 0) | {
        names.singles: wanted.singles,
        names.ranges: wanted.ranges,
        names.allow: len(wanted.allow),
        names.hits: 17,
    }
    return ObservedFamily(sets, wanted.allow, chain_rules(family), (0,))


def plan(family: Family, observed: ObservedFamily, wanted: DesiredFamily = WANTED) -> tuple[Operation, ...]:
    return diff({family: wanted}, {family: observed})


def lacking(observed: ObservedFamily, name: str) -> ObservedFamily:
    sets = {known: entries for known, entries in observed.sets.items() if known != name}
    return replace(observed, sets=sets, allow=frozenset() if "allow" in name else observed.allow)


@pytest.mark.parametrize("family", Family)
def test_nothing_is_done_where_nothing_is_wrong(family: Family) -> None:
    assert plan(family, sound(family)) == ()
    nothing = DesiredFamily(0, 0, frozenset())
    assert plan(family, sound(family, nothing), nothing) == ()


@pytest.mark.parametrize("family", Family)
@pytest.mark.parametrize(
    "which",
    [
        *("new_singles", "new_ranges", "trial", "hits", "sources", "old_hits", "old_sources"),
        *("replies", "repliers", "old_replies", "old_repliers"),
    ],
)
def test_a_set_that_is_filled_by_others_is_only_made(family: Family, which: str) -> None:
    name = getattr(set_names(family), which)
    assert plan(family, lacking(sound(family), name)) == (CreateSets(family, (name,)),)


@pytest.mark.parametrize("family", Family)
@pytest.mark.parametrize("which", ["singles", "ranges"])
def test_a_block_set_that_is_gone_is_made_and_filled(family: Family, which: str) -> None:
    name = getattr(set_names(family), which)
    assert plan(family, lacking(sound(family), name)) == (CreateSets(family, (name,)), FillCommitted(family, 3, 2))


@pytest.mark.parametrize("family", Family)
def test_an_allow_set_that_is_gone_is_made_and_filled(family: Family) -> None:
    name = set_names(family).allow
    found = plan(family, lacking(sound(family), name))
    assert found == (CreateSets(family, (name,)), FillAllow(family, WANTED.allow))


@pytest.mark.parametrize("family", Family)
@pytest.mark.parametrize(
    "allow", [frozenset[Prefix](), frozenset({Prefix(0, 8)}), WANTED.allow | {Prefix(5, 32)}, frozenset({Prefix(0, 9)})]
)
def test_an_allow_set_with_other_entries_is_filled(family: Family, allow: frozenset[Prefix]) -> None:
    assert plan(family, replace(sound(family), allow=allow)) == (FillAllow(family, WANTED.allow),)


@pytest.mark.parametrize("family", Family)
def test_what_is_excepted_from_what_is_allowed_is_allowed_again(family: Family) -> None:
    observed = replace(sound(family), excepted=frozenset({Prefix(5, 32)}))
    assert plan(family, observed) == (FillAllow(family, WANTED.allow),)


@pytest.mark.parametrize("family", Family)
def test_what_lies_in_the_sets_of_a_trial_that_there_is_not_is_taken_out(family: Family) -> None:
    names, observed = set_names(family), sound(family)
    wanted = replace(WANTED, idle=(names.trial, names.new_singles, names.new_ranges))
    assert plan(family, observed, wanted) == ()
    filled = replace(observed, sets={**observed.sets, names.trial: 1, names.new_ranges: 2})
    assert plan(family, filled, wanted) == (EmptySets(family, (names.trial, names.new_ranges)),)
    # During a trial they hold what is on trial.
    assert plan(family, filled) == ()


@pytest.mark.parametrize("family", Family)
@pytest.mark.parametrize(("singles", "ranges"), [(0, 0), (2, 2), (4, 2), (3, 0), (3, 3), (2, 3)])
def test_block_sets_with_other_entries_are_filled(family: Family, singles: int, ranges: int) -> None:
    names, observed = set_names(family), sound(family)
    observed = replace(observed, sets={**observed.sets, names.singles: singles, names.ranges: ranges})
    assert plan(family, observed) == (FillCommitted(family, 3, 2),)


@pytest.mark.parametrize("family", Family)
def test_block_sets_of_an_empty_list_are_emptied(family: Family) -> None:
    nothing = replace(WANTED, singles=0, ranges=0)
    assert plan(family, sound(family), nothing) == (FillCommitted(family, 0, 0),)


@pytest.mark.parametrize("family", Family)
def test_a_chain_of_other_rules_is_written(family: Family) -> None:
    right = chain_rules(family)
    other = chain_rules(Family.V6 if family is Family.V4 else Family.V4)
    hole, side_door = Rule((), Extension("RETURN")), Rule((), Extension("ACCEPT"), NEWS_CHAIN)
    moved = (*right[:-1], replace(right[-1], chain=CHAIN))
    news = tuple(rule for rule in right if rule.chain == NEWS_CHAIN)
    wider = tuple(
        replace(rule, matches=tuple(match for match in rule.matches if match.name != "u32")) for rule in right
    )
    comes_back = tuple(replace(rule, goto=False) for rule in right)
    for rules in ((), right[:-1], right[1:], right[::-1], (*right, hole), (hole, *right), other, moved, news):
        assert plan(family, replace(sound(family), rules=rules)) == (WriteChain(family, right),)
    for rules in (wider, comes_back):
        assert plan(family, replace(sound(family), rules=rules)) == (WriteChain(family, right),)
    for rules in ((*right, side_door), tuple(rule for rule in right if rule.chain == CHAIN)):
        assert plan(family, replace(sound(family), rules=rules)) == (WriteChain(family, right),)
    assert plan(family, replace(sound(family), rules=None, jumps=())) == (
        WriteChain(family, right),
        PlaceJump(family, missing=True),
    )


@pytest.mark.parametrize("family", Family)
@pytest.mark.parametrize("jumps", [(), (1,), (7,), (0, 1), (0, 3), (1, 2), (-1,), (0, -1)])
def test_one_jump_is_placed_at_the_top(family: Family, jumps: tuple[int, ...]) -> None:
    assert plan(family, replace(sound(family), jumps=jumps)) == (PlaceJump(family, missing=not jumps),)


@pytest.mark.parametrize("family", Family)
def test_a_set_of_another_kind_goes_with_the_rules_that_hold_it_and_all_of_it_is_made_anew(family: Family) -> None:
    right, name = chain_rules(family), set_names(family).trial
    observed = replace(lacking(sound(family), name), misfits=(name,))
    assert plan(family, observed) == (
        DropMisfits(family, (name,)),
        CreateSets(family, (name,)),
        WriteChain(family, right),
        PlaceJump(family, missing=True),
    )


def test_families_are_mended_each_by_itself() -> None:
    observed = {Family.V4: sound(Family.V4), Family.V6: replace(sound(Family.V6), jumps=())}
    assert diff(dict.fromkeys(Family, WANTED), observed) == (PlaceJump(Family.V6, missing=True),)
    # A host without IPv6: what is not wanted is not looked at.
    assert diff({Family.V4: WANTED}, observed) == ()


def carry_out(operation: Operation, observed: ObservedFamily, wanted: DesiredFamily) -> ObservedFamily:
    """What the kernel is after one operation. Like the kernel it refuses what can't be done yet."""
    family = operation.family
    names = set_names(family)
    match operation:
        case DropMisfits(_, misfits):
            assert misfits == observed.misfits != ()
            return replace(observed, misfits=(), rules=None, jumps=())
        case CreateSets(_, missing):
            assert missing
            assert not set(missing) & {*observed.sets, *observed.misfits}, "the kernel has a set of that name"
            return replace(observed, sets={**observed.sets, **dict.fromkeys(missing, 0)})
        case FillAllow(_, allow):
            assert names.allow in observed.sets
            sets = {**observed.sets, names.allow: len(allow)}
            return replace(observed, allow=allow, excepted=frozenset(), sets=sets)
        case EmptySets(_, filled):
            assert filled
            assert all(observed.sets[name] for name in filled), "empty already"
            return replace(observed, sets={**observed.sets, **dict.fromkeys(filled, 0)})
        case FillCommitted(_, singles, ranges):
            assert {names.singles, names.ranges} <= observed.sets.keys()
            assert observed.allow == wanted.allow, "blocks before it allows"
            return replace(observed, sets={**observed.sets, names.singles: singles, names.ranges: ranges})
        case WriteChain(_, rules):
            assert set(names.in_rules()) <= observed.sets.keys(), "a rule can't name a set that is not there"
            assert observed.allow == wanted.allow, "blocks before it allows"
            return replace(observed, rules=rules)
        case PlaceJump(_, missing):
            assert observed.rules == chain_rules(family), "a packet meets a chain that is not ready"
            assert missing == (not observed.jumps)
            return replace(observed, jumps=(0,))


@st.composite
def kernels(draw: st.DrawFn, family: Family) -> tuple[DesiredFamily, ObservedFamily]:
    """What is wanted, and a kernel in any state that others can bring it into; at times the right one in parts."""
    counts = st.one_of(st.just(0), st.integers(0, 3))
    allowed = st.frozensets(prefixes(family), max_size=3)
    wanted = DesiredFamily(draw(counts), draw(counts), draw(allowed))
    names, right = set_names(family), chain_rules(family)
    known = draw(st.frozensets(st.sampled_from(names.all())) | st.just(frozenset(names.all())))
    sets = {name: draw(counts) for name in known}
    unknown = [name for name in names.all() if name not in known]
    misfits = draw(st.lists(st.sampled_from(unknown), unique=True)) if unknown else []
    allow = draw(allowed | st.just(wanted.allow)) if names.allow in known else frozenset[Prefix]()
    rules = draw(st.sampled_from([None, (), right, right, right[:3], right[::-1]]))
    jumps = draw(st.lists(st.integers(-1, 9), unique=True, max_size=3).map(sorted)) if rules is not None else []
    idle = draw(st.sampled_from([(), (names.trial,), (names.trial, names.new_singles, names.new_ranges)]))
    excepted = draw(allowed) if names.allow in known else frozenset[Prefix]()
    return replace(wanted, idle=idle), ObservedFamily(sets, allow, rules, tuple(jumps), tuple(misfits), excepted)


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_whatever_the_kernel_holds_the_plan_mends_it(data: st.DataObject) -> None:
    wanted, observed = {}, {}
    for family in data.draw(st.sampled_from([[Family.V4], [Family.V4, Family.V6]])):
        wanted[family], observed[family] = data.draw(kernels(family))
    operations = diff(wanted, observed)
    for operation in operations:
        family = operation.family
        before = observed[family]
        observed[family] = carry_out(operation, before, wanted[family])
        # No step is for nothing; but the block sets, which are loaded as a pair.
        assert observed[family] != before or isinstance(operation, FillCommitted)
    assert diff(wanted, observed) == ()
    for family, known in observed.items():
        names = set_names(family)
        held = (known.sets[names.singles], known.sets[names.ranges], known.allow)
        assert held == (wanted[family].singles, wanted[family].ranges, wanted[family].allow)
        assert not any(known.sets[name] for name in wanted[family].idle)
        assert not known.excepted
        assert (known.rules, known.jumps) == (chain_rules(family), (0,))


@settings(deadline=None)
@given(st.data(), families, st.integers(0, 5))
def test_a_repair_that_was_cut_off_is_finished_by_the_next(data: st.DataObject, family: Family, done: int) -> None:
    wanted, observed = data.draw(kernels(family))
    for operation in plan(family, observed, wanted)[:done]:
        observed = carry_out(operation, observed, wanted)
    for operation in plan(family, observed, wanted):
        observed = carry_out(operation, observed, wanted)
    assert plan(family, observed, wanted) == ()


def test_what_is_wanted_is_counted_from_the_list() -> None:
    v4 = gather(Family.V4, [b"\xc6\x33\x64\x07", b"\xc6\x33\x64\x09"], [Prefix(0xCB007100, 24)])
    allowlist = Allowlist(
        tuple(AllowEntry(*parse_prefix(text), "resolver") for text in ("198.51.100.1", "2001:db8::1"))
    )
    resolver_v4, resolver_v6 = (frozenset(allowlist.prefixes(family)) for family in Family)
    assert desired_state(tuple(Family), Blocklist(v4=v4), allowlist) == {
        Family.V4: DesiredFamily(2, 1, resolver_v4),
        Family.V6: DesiredFamily(0, 0, resolver_v6),
    }
    assert resolver_v4 == {Prefix(int(ipaddress.IPv4Address("198.51.100.1")), 32)}
    assert desired_state((Family.V4,), Blocklist(), Allowlist()) == {Family.V4: DesiredFamily(0, 0, frozenset())}


@pytest.mark.parametrize(("family", "tool"), [(Family.V4, " iptables"), (Family.V6, " ip6tables")])
def test_a_plan_can_be_read(family: Family, tool: str) -> None:
    names, nothing = set_names(family), ObservedFamily({}, frozenset(), None, ())
    create, allow, fill, write, jump = (step.describe() for step in plan(family, nothing))
    assert all(name in create for name in names.all())
    assert names.allow in allow
    assert "3 addresses" in fill
    assert "2 ranges" in fill
    assert tool in write
    assert write.count("\n") == len(chain_rules(family))
    assert f"    {CHAIN}: always -> DROP\n    {COUNT_CHAIN}: " in write
    assert f"    {COUNT_CHAIN}: always => {REPLIES_CHAIN}\n" in write
    assert all(f"    {rule.chain}: {rule}" in write for rule in chain_rules(family))
    assert f"set match-set {names.allow} src -> RETURN" in write
    assert (CHAIN in jump, tool in jump) == (True, True)


def test_it_is_said_which_sets_are_of_another_kind() -> None:
    described = DropMisfits(Family.V4, ("sikkerguard-v4", "sikkerguard-hits-v4")).describe()
    assert "sikkerguard-v4, sikkerguard-hits-v4" in described
    assert "of another kind" in described


def test_allowed_ranges_are_written_in_order() -> None:
    allow = frozenset(parse_prefix(text)[1] for text in ("198.51.100.9", "192.0.2.0/24", "198.51.100.0/24"))
    described = FillAllow(Family.V4, allow).describe()
    assert described == "allow 192.0.2.0/24, 198.51.100.0/24, 198.51.100.9 in sikkerguard-allow-v4"
    many = frozenset(Prefix(0xCB007100 + number, 32) for number in range(100))
    described = FillAllow(Family.V4, many).describe()
    assert described.startswith("allow 203.0.113.0, 203.0.113.1, ")
    assert described.endswith(", 203.0.113.19 and 80 more in sikkerguard-allow-v4")
