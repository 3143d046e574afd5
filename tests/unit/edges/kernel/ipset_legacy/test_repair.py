"""A repair carries out what differs, family by family, whatever fails in one of them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pytest

from sikkerguard.core.firewall.names import set_names
from sikkerguard.core.firewall.rules import chain_rules
from sikkerguard.core.firewall.state import Candidate, ObservedFamily
from sikkerguard.core.lists.allowlist import Allowlist
from sikkerguard.core.net.family import Family
from sikkerguard.core.net.networks import Blocklist
from sikkerguard.core.traffic.sample import PacketCount
from sikkerguard.edges.kernel.ipset_legacy.repair import Repair
from sikkerguard.edges.kernel.ipset_legacy.set_netlink import SetHeader
from sikkerguard.errors import BusyError, KernelError

if TYPE_CHECKING:
    from sikkerguard.core.firewall.rules import Rule
    from sikkerguard.core.net.networks import Networks


def sound(family: Family) -> ObservedFamily:
    return ObservedFamily(dict.fromkeys(set_names(family).all(), 0), rules=chain_rules(family), jumps=(0,))


@dataclass
class Parts:
    """All parts of a repair in one: they note what they are called for, and raise what they are to."""

    observed: dict[Family, ObservedFamily] = field(default_factory=lambda: {each: sound(each) for each in Family})
    other_entries: set[Family] = field(default_factory=set)
    failures: dict[str, KernelError] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    headers: dict[str, SetHeader] = field(default_factory=dict)
    invalid: int = 0
    committed: Blocklist = field(default_factory=Blocklist)

    def _called(self, call: str) -> None:
        if call in self.failures:
            raise self.failures[call]
        self.calls.append(call)

    # The inspector, the loader and the trial.
    def observe(self) -> dict[Family, ObservedFamily]:
        return self.observed

    def has_committed(self, family: Family) -> bool:
        return family not in self.other_entries

    def load_committed(self, family: Family) -> None:
        self._called(f"load {family.label}")

    def invalidate(self) -> None:
        self.invalid += 1

    # Sets and their contents.
    def tidy(self) -> None:
        self._called("tidy")

    def change_sample(self) -> None:
        self._called("sample")

    def header(self, name: str) -> SetHeader | None:
        return self.headers.get(name)

    def create(self, name: str, kind: object, family: Family, entries: int) -> None:
        self._called(f"create {name}")

    def flush(self, name: str) -> None:
        self._called(f"flush {name}")

    def fill(self, name: str, kind: object, family: Family, wanted: object) -> None:
        self._called(f"fill {name}")

    def replace(self, name: str, kind: object, networks: Networks, entries: int) -> None:
        self._called(f"replace {name}")

    def destroy(self, name: str) -> None:
        self._called(f"destroy {name}")

    # Chains and their counters.
    def read(self, family: Family) -> tuple[tuple[Rule, ...] | None, tuple[int, ...]]:
        return self.observed[family].rules, self.observed[family].jumps

    def write(self, family: Family, rules: tuple[Rule, ...], dropped: PacketCount) -> None:
        assert (rules, dropped) == (chain_rules(family), (7, 420))
        self._called(f"write {family.label}")

    def remove(self, family: Family) -> None:
        self._called(f"remove {family.label}")

    def collect(self) -> None:
        self._called("collect")

    def reading(self, family: Family) -> PacketCount:
        return PacketCount(7, 420)

    def place_jump(self, family: Family) -> None:
        self._called(f"jump {family.label}")

    def repair(self) -> Repair:
        part: Any = self
        return Repair(part, part, part, part, part, part, part, tuple(Family))

    def run(self, candidate: Candidate = Candidate.ABSENT) -> list[str]:
        """What is done, but for what always is, by name; and what is reported must be that."""
        done = self.repair().run(Allowlist(), candidate)
        assert (self.calls[0], self.calls.count("sample")) == ("tidy", 1)
        assert bool(self.invalid) == bool(done)
        return [type(step).__name__ for step in done]


def test_nothing_is_done_where_all_is_right() -> None:
    parts = Parts()
    assert parts.run() == []
    assert parts.calls == ["tidy", "sample"]


def test_all_is_made_in_a_safe_order() -> None:
    parts = Parts(observed={Family.V4: ObservedFamily(), Family.V6: sound(Family.V6)})
    parts.observed[Family.V4] = ObservedFamily(misfits=("sikkerguard-v4",))
    assert parts.run() == ["DropMisfits", "CreateSets", "WriteChains", "PlaceJump"]
    created = [f"create {name}" for name in set_names(Family.V4).all()]
    assert parts.calls == ["tidy", "replace sikkerguard-v4", *created, "collect", "write v4", "jump v4", "sample"]


def test_what_is_left_of_a_trial_is_emptied_the_switch_first() -> None:
    parts, names = Parts(), set_names(Family.V6)
    parts.observed[Family.V6] = ObservedFamily(
        {**sound(Family.V6).sets, names.new_singles: 1, names.trial: 2}, rules=chain_rules(Family.V6), jumps=(0,)
    )
    assert parts.run(Candidate.ON_TRIAL) == []
    parts = Parts(observed=parts.observed)
    assert parts.run() == ["EmptySets"]
    assert parts.calls[1:-1] == ["flush sikkerguard-trial-v6", "flush sikkerguard-new-v6"]


def test_other_entries_in_the_same_number_are_found_by_the_sample() -> None:
    parts = Parts(other_entries={Family.V4})
    assert parts.run() == ["FillCommitted"]
    assert parts.calls == ["tidy", "sample", "load v4"]


def test_what_fails_in_one_family_keeps_the_other_from_nothing(caplog: pytest.LogCaptureFixture) -> None:
    parts = Parts(observed=dict.fromkeys(Family, ObservedFamily()))
    parts.failures["write v4"] = BusyError("the lock is held")
    with pytest.raises(BusyError, match=r"^the lock is held$"):
        parts.run()
    assert "jump v4" not in parts.calls
    assert parts.calls[-2:] == ["jump v6", "sample"]
    assert [record.getMessage() for record in caplog.records] == ["Repaired in part: 28 sets, 4 chains, 1 jump."]


def test_failures_of_both_families_are_one_error() -> None:
    parts = Parts(observed=dict.fromkeys(Family, ObservedFamily()))
    parts.failures |= {"write v4": BusyError("the lock is held"), "write v6": KernelError("no such table")}
    with pytest.raises(KernelError, match=r"^the lock is held; no such table$") as raised:
        parts.run()
    assert not isinstance(raised.value, BusyError)


@pytest.mark.parametrize(
    ("observed", "invalid"),
    [
        (sound(Family.V4), 0),
        (ObservedFamily(sound(Family.V4).sets, rules=(), jumps=(0,)), 1),
        (ObservedFamily(sound(Family.V4).sets, rules=chain_rules(Family.V4), jumps=(1,)), 1),
        # What is in the sets is none of the rules' business.
        (ObservedFamily(dict.fromkeys(sound(Family.V4).sets, 3), rules=chain_rules(Family.V4), jumps=(0,)), 0),
    ],
)
def test_a_trial_is_invalid_once_the_rules_were_changed(observed: ObservedFamily, invalid: int) -> None:
    parts = Parts(observed={Family.V4: observed, Family.V6: sound(Family.V6)})
    parts.repair().check_rules()
    assert (parts.invalid, parts.calls) == (invalid, [])


@pytest.mark.parametrize("failure", [None, KernelError("no such set")])
def test_counters_are_read_before_a_rule_goes_and_blocking_does_not_wait_for_it(
    failure: KernelError | None, caplog: pytest.LogCaptureFixture
) -> None:
    name = set_names(Family.V4).singles
    parts = Parts(observed={each: replace(sound(each), rules=()) for each in Family})
    parts.observed[Family.V4] = replace(sound(Family.V4), misfits=(name,))
    # Of another kind, so that it can't be swapped; and all rules that refer to it are ours.
    parts.failures[f"replace {name}"] = KernelError("of different types")
    parts.headers = {name: SetHeader("hash:net", Family.V4.number, 0, 1024, 2, counters=True, timeout=False)}
    if failure is not None:
        parts.failures["collect"] = failure
    assert parts.run() == ["DropMisfits", "WriteChains", "PlaceJump", "WriteChains"]
    collected = ["collect"] * (failure is None)
    destroyed = [*collected, "remove v4", f"destroy {name}"]
    assert parts.calls[1:-1] == [*destroyed, *collected, "write v4", "jump v4", *collected, "write v6"]
    assert len(caplog.records) == 3 * (failure is not None)


def test_a_set_of_another_kind_that_another_program_refers_to_is_kept_with_our_rules() -> None:
    name = set_names(Family.V4).singles
    parts = Parts()
    parts.observed[Family.V4] = replace(sound(Family.V4), misfits=(name,))
    parts.failures[f"replace {name}"] = BusyError("another program is listing it")
    with pytest.raises(BusyError, match=r"^another program is listing it$"):
        parts.run()
    assert parts.calls == ["tidy", "sample"]
