"""The plan against a kernel of dictionaries: what is wrong is repaired, by the right steps, in a safe order."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sikkerguard.core.firewall.diff import (
    CreateSets,
    DropMisfits,
    EmptySets,
    FillAllow,
    FillCommitted,
    PlaceJump,
    Step,
    WriteChains,
    diff,
    summarize,
)
from sikkerguard.core.firewall.names import CHAIN, COUNT_CHAIN, NEW_CHAIN, REPLIES_CHAIN, set_names
from sikkerguard.core.firewall.rules import Extension, Rule, chain_rules
from sikkerguard.core.firewall.state import Candidate, DesiredFamily, ObservedFamily
from sikkerguard.core.net.address import parse_prefix
from sikkerguard.core.net.family import Family
from sikkerguard.core.net.packed import Prefix
from tests.unit.core.firewall.netfilter import in_rules
from tests.unit.core.net.test_intervals import families, prefixes

WANTED = DesiredFamily(singles=3, ranges=2, allow=frozenset({Prefix(0, 8), Prefix(1 << 24, 16)}))


def sound(family: Family, wanted: DesiredFamily = WANTED) -> ObservedFamily:
    names = set_names(family)
    sets = dict.fromkeys(names.all(), 0) | {
        names.singles: wanted.singles,
        names.ranges: wanted.ranges,
        names.allow: len(wanted.allow),
        names.hits: 17,
    }
    return ObservedFamily(sets, allow=wanted.allow, rules=chain_rules(family), jumps=(0,))


def plan(family: Family, observed: ObservedFamily, wanted: DesiredFamily = WANTED) -> tuple[Step, ...]:
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
    filled = replace(observed, sets={**observed.sets, names.trial: 1, names.new_ranges: 2})
    for candidate, emptied in (
        (Candidate.ABSENT, (EmptySets(family, (names.trial, names.new_ranges)),)),
        (Candidate.STAGED, (EmptySets(family, (names.trial,)),)),
        (Candidate.ON_TRIAL, ()),
    ):
        wanted = replace(WANTED, candidate=candidate)
        assert plan(family, observed, wanted) == ()
        assert plan(family, filled, wanted) == emptied


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
    hole, side_door = Rule((), Extension("RETURN")), Rule((), Extension("ACCEPT"), NEW_CHAIN)
    moved = (*right[:-1], replace(right[-1], chain=CHAIN))
    news = tuple(rule for rule in right if rule.chain == NEW_CHAIN)
    wider = tuple(
        replace(rule, matches=tuple(match for match in rule.matches if match.name != "u32")) for rule in right
    )
    comes_back = tuple(replace(rule, goto=False) for rule in right)
    for rules in ((), right[:-1], right[1:], right[::-1], (*right, hole), (hole, *right), other, moved, news):
        assert plan(family, replace(sound(family), rules=rules)) == (WriteChains(family, right),)
    for rules in (wider, comes_back):
        assert plan(family, replace(sound(family), rules=rules)) == (WriteChains(family, right),)
    for rules in ((*right, side_door), tuple(rule for rule in right if rule.chain == CHAIN)):
        assert plan(family, replace(sound(family), rules=rules)) == (WriteChains(family, right),)
    assert plan(family, replace(sound(family), rules=None, jumps=())) == (
        WriteChains(family, right),
        PlaceJump(family),
    )


@pytest.mark.parametrize("family", Family)
@pytest.mark.parametrize("jumps", [(), (1,), (7,), (0, 1), (0, 3), (1, 2), (-1,), (0, -1)])
def test_one_jump_is_placed_at_the_top(family: Family, jumps: tuple[int, ...]) -> None:
    assert plan(family, replace(sound(family), jumps=jumps)) == (PlaceJump(family),)


@pytest.mark.parametrize("family", Family)
def test_a_set_of_another_kind_goes_with_the_rules_that_hold_it_and_all_of_it_is_made_anew(family: Family) -> None:
    right, name = chain_rules(family), set_names(family).trial
    observed = replace(lacking(sound(family), name), misfits=(name,))
    assert plan(family, observed) == (
        DropMisfits(family, (name,)),
        CreateSets(family, (name,)),
        WriteChains(family, right),
        PlaceJump(family),
    )


def test_families_are_repaired_each_by_itself() -> None:
    observed = {Family.V4: sound(Family.V4), Family.V6: replace(sound(Family.V6), jumps=())}
    assert diff(dict.fromkeys(Family, WANTED), observed) == (PlaceJump(Family.V6),)
    # A host without IPv6: what is not wanted is not looked at.
    assert diff({Family.V4: WANTED}, observed) == ()


def carry_out(operation: Step, observed: ObservedFamily, wanted: DesiredFamily) -> ObservedFamily:
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
        case WriteChains(_, rules):
            assert set(in_rules(family)) <= observed.sets.keys(), "a rule can't name a set that is not there"
            assert observed.allow == wanted.allow, "blocks before it allows"
            return replace(observed, rules=rules)
        case PlaceJump():
            assert observed.rules == chain_rules(family), "a packet meets a chain that is not ready"
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
    wanted = replace(wanted, candidate=draw(st.sampled_from(Candidate)))
    excepted = draw(allowed) if names.allow in known else frozenset[Prefix]()
    return wanted, ObservedFamily(sets, tuple(misfits), allow, excepted, rules, tuple(jumps))


@pytest.mark.slow
@settings(max_examples=300)
@given(st.data())
def test_whatever_the_kernel_holds_the_plan_repairs_it(data: st.DataObject) -> None:
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
        if wanted[family].candidate is not Candidate.ON_TRIAL:
            assert not known.sets[names.trial]
        if wanted[family].candidate is Candidate.ABSENT:
            assert not known.sets[names.new_singles]
            assert not known.sets[names.new_ranges]
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


@pytest.mark.parametrize(("family", "tool"), [(Family.V4, " iptables"), (Family.V6, " ip6tables")])
def test_a_plan_can_be_read(family: Family, tool: str) -> None:
    names, nothing = set_names(family), ObservedFamily()
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


def test_operations_are_summed_up_over_both_families() -> None:
    everything = diff(dict.fromkeys(Family, WANTED), dict.fromkeys(Family, ObservedFamily()))
    assert summarize(everything) == "28 sets, 4 allowed networks, 10 blocked networks, 8 chains, 2 jumps"
    assert summarize([CreateSets(Family.V4, ("sikkerguard-v4",)), PlaceJump(Family.V6)]) == "1 set, 1 jump"
    assert summarize([FillCommitted(Family.V4, 8_000, 774)]) == "8,774 blocked networks"
    assert summarize([]) == ""
