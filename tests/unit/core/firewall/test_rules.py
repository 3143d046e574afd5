"""The rules, walked through as a packet does: who is dropped, and that each dropped packet is counted once."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sikkerguard.core.firewall.names import CHAIN, CHAINS, COUNT_CHAIN, LOG_PREFIX, NEW_CHAIN, REPLIES_CHAIN, set_names
from sikkerguard.core.firewall.rules import chain_rules
from sikkerguard.core.net.family import Family
from tests.unit.core.firewall import test_headers as headers
from tests.unit.core.firewall.netfilter import LOG_LINES, PORTS, Netfilter, Packet, in_rules
from tests.unit.core.net.test_intervals import families

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator


def memberships(family: Family) -> Iterator[frozenset[str]]:
    names = set_names(family)
    counting = (*names.counting_begun().all(), *names.counting_replies().all())
    lists = [name for name in in_rules(family) if name not in counting]
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


@settings(max_examples=150)
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


@settings(max_examples=150)
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
    assert CHAINS == (CHAIN, COUNT_CHAIN, NEW_CHAIN, REPLIES_CHAIN)
    # A chain can be removed once no chain before it is there, which could jump to it.
    for rule in rules:
        assert rule.target.name not in CHAINS[: CHAINS.index(rule.chain) + 1]
    (drop,) = [rule for rule in rules if rule.target.name == "DROP"]
    assert drop == [rule for rule in rules if rule.chain == CHAIN][-1]
    assert drop.matches == ()
