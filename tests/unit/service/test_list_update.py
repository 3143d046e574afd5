"""One update: what is admitted, tried and committed, what is raised where it is not, and what is remembered."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from sikkerguard.core.host.connections import CONNECTIONS
from sikkerguard.core.lists.allowlist import SSH, Allowlist
from sikkerguard.core.lists.coverage import extent_of
from sikkerguard.core.lists.generations import Change
from sikkerguard.core.lists.pull_memory import PullMemory
from sikkerguard.core.lists.size_guard import Limits, Offer
from sikkerguard.core.lists.sources import LOCAL_FILE, SIKKERAPI
from sikkerguard.errors import BusyError, HeldBackError, KernelError, ListError, SelfTestError
from sikkerguard.service.kernel_thread import KernelThread
from sikkerguard.service.list_update import Conditions, ListUpdate
from sikkerguard.service.trial import SelfTest, Trial
from tests.unit.core.host.test_connections import flow, own
from tests.unit.core.lists.test_admission import listing
from tests.unit.service.assembly import entries
from tests.unit.service.fakes import FAILS, WORKS, Backend, Changes, HostConnections, Probes
from tests.unit.service.virtual_time import BEGINNING, VirtualClock, run, run_cancelled_at

if TYPE_CHECKING:
    from collections.abc import Collection
    from contextlib import AbstractContextManager

    from sikkerguard.core.net.networks import Blocklist
    from sikkerguard.service.list_in_force import InForce


# No two of these make a range.
APART = [f"198.51.100.{2 * number}" for number in range(100)]
LIMITS = Limits(2.0, 0.02)


class NoDrops:
    """Nobody's packets are dropped."""

    def watch_sources(self) -> AbstractContextManager[Collection[bytes]]:
        return nullcontext(frozenset())


class Desk:
    """An update over fakes; `in_force` and `memory` are those after the last one that went well."""

    def __init__(self, connections: HostConnections | None = None) -> None:
        self.backend = Backend()
        self.connections = connections or HostConnections()
        self.probes = Probes()
        trial = Trial(KernelThread(self.backend), self.connections, NoDrops(), Changes())
        self.update = ListUpdate(trial, self.connections, VirtualClock())
        self.in_force: InForce | None = None
        self.memory = PullMemory()
        self.conditions = Conditions(Allowlist(), LIMITS, SelfTest(self.probes, ("203.0.113.80",)))

    async def take(self, *changes: Change, accept: bool = False) -> None:
        conditions = replace(self.conditions, accept=accept)
        self.in_force, self.memory = await self.update.put_in_force(changes, self.in_force, self.memory, conditions)


def version(content: Blocklist, name: str = SIKKERAPI) -> Change:
    extent = extent_of(content)
    return Change(
        name, content, Offer(f"the list of {name}", extent, extent.entries, query="q", local=name == LOCAL_FILE)
    )


CHANGE = version(listing(*APART[:10]))
MINE = version(listing("203.0.113.7"), LOCAL_FILE)


def test_sources_are_in_force_beside_each_other_and_one_that_is_not_wanted_goes() -> None:
    async def main() -> None:
        desk = Desk()
        await desk.take(CHANGE)
        await desk.take(MINE)
        assert desk.in_force is not None
        assert len(desk.backend.committed) == 11
        # The list is as old as SikkerAPI's part.
        assert desk.in_force.verified.verified_at == BEGINNING + 2
        assert [source.name for source in desk.in_force.verified.sources] == [SIKKERAPI, LOCAL_FILE]
        assert desk.memory.of(LOCAL_FILE).versions[0].extent.entries == 1
        assert desk.in_force.extent.entries == 11
        await desk.take(Change(LOCAL_FILE))
        assert len(desk.backend.committed) == 10
        assert LOCAL_FILE not in desk.memory.sources

    run(main())


def test_what_is_allowed_is_cut_out_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        desk = Desk()
        desk.conditions = replace(desk.conditions, allowlist=Allowlist(entries(APART[3], reason="default gateway")))
        for _ in range(3):
            await desk.take(CHANGE)
        assert len(desk.backend.committed) == 9

    with caplog.at_level("INFO"):
        run(main())
    assert caplog.text.count("Left out of the list: 1 allowlisted.") == 3
    assert caplog.text.count("and stays allowed.") == 1


def test_of_many_that_are_allowed_the_first_are_named_and_the_rest_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        desk = Desk()
        allowed = entries(*APART[:25], reason="default gateway")
        desk.conditions = replace(desk.conditions, allowlist=Allowlist(allowed))
        await desk.take(version(listing(*APART[:30])))

    run(main())
    assert caplog.text.count("and stays allowed.") == 20
    assert "5 more of what is allowed are on the list and stay allowed." in caplog.text


@pytest.mark.parametrize(
    ("change", "allowed", "reason"),
    [
        (version(listing(*APART[:10])), APART[:10], "nothing is left of the list of SikkerAPI"),
        (version(listing(*APART[:100])), (), "grew from 10 to 100 entries"),
        (version(listing(*(f"{first}.0.0.0/8" for first in range(1, 100)))), (), "covers"),
    ],
)
def test_a_version_that_is_refused_does_not_touch_the_kernel(
    change: Change, allowed: tuple[str, ...], reason: str
) -> None:
    async def main() -> None:
        desk = Desk()
        await desk.take(CHANGE)
        before, steps = desk.in_force, [*desk.backend.steps]
        desk.conditions = replace(desk.conditions, allowlist=Allowlist(entries(*allowed)))
        with pytest.raises(ListError, match=reason) as caught:
            await desk.take(change)
        assert caught.value.source == SIKKERAPI
        assert (desk.in_force, desk.backend.steps) == (before, steps)

    run(main())


def test_a_person_may_take_it_once() -> None:
    async def main() -> None:
        desk = Desk()
        await desk.take(CHANGE)
        await desk.take(version(listing(*APART[:100])), accept=True)
        assert len(desk.backend.committed) == 100

    run(main())


def test_a_list_that_cuts_this_host_s_own_connections_is_held_back_once_and_never_a_first_one() -> None:
    peers = [f"198.51.200.{2 * number}" for number in range(9)]
    connections = HostConnections([*own(6), *map(flow, peers)])
    cutting = version(listing(*APART[:10], *peers))

    async def main() -> None:
        desk = Desk(connections)
        await desk.take(cutting)
        assert len(desk.backend.committed) == 19
        desk = Desk(connections)
        desk.conditions = replace(desk.conditions, allowlist=Allowlist(entries("192.0.2.9", reason=SSH)))
        await desk.take(CHANGE)
        with pytest.raises(HeldBackError, match="cuts connections") as caught:
            await desk.take(cutting)
        assert caught.value.source == SIKKERAPI
        assert caught.value.suspicions == {CONNECTIONS}
        history = desk.memory.of(SIKKERAPI).with_held_back(caught.value.suspicions)
        desk.memory = desk.memory.with_source(SIKKERAPI, history)
        await desk.take(cutting)
        assert len(desk.backend.committed) == 19

    run(main())


def test_an_update_goes_on_where_connections_can_not_be_read(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        connections = HostConnections()
        connections.fail("flows", KernelError("connections can't be read"))
        desk = Desk(connections)
        await desk.take(CHANGE)
        assert len(desk.backend.committed) == 10

    run(main())
    assert "whether the new list cuts connections of this host is not known" in caplog.text


def test_what_explains_a_failed_self_test_is_left_out_and_tested_again_with_the_next_list() -> None:
    peer = APART[3]

    async def main() -> None:
        desk = Desk(HostConnections(sent=[replace(flow(peer), protocol=17, port=53)]))
        desk.probes.results = [WORKS, FAILS, WORKS, WORKS]
        await desk.take(CHANGE)
        assert desk.in_force is not None
        assert [str(each) for each in desk.in_force.verified.left_out] == [peer]
        assert len(desk.backend.committed) == 9
        assert desk.in_force.extent.entries == 9
        # The file's version is no test of it; SikkerAPI's next one is.
        await desk.take(MINE)
        assert len(desk.backend.committed) == 10
        await desk.take(CHANGE)
        assert desk.in_force.verified.left_out == ()
        assert len(desk.backend.committed) == 11

    run(main())


STEPS = ("stage", "begin_trial", "commit")
ERRORS = (KernelError("refused"), BusyError("a lock"), ValueError("of a library"), MemoryError())


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("readmission", [False, True])
def test_each_step_that_fails_leaves_the_list_before(step: str, error: BaseException, readmission: bool) -> None:
    async def main() -> None:
        desk = Desk()
        await desk.take(CHANGE)
        before = desk.in_force, desk.memory
        desk.backend.fail(step, error)
        assert desk.in_force is not None
        again = desk.update.readmit(desk.in_force, desk.conditions)
        attempt = again if readmission else desk.take(version(listing(*APART[:8])))
        with pytest.raises(type(error)):
            await attempt
        again.close()
        assert (desk.in_force, desk.memory) == before
        assert len(desk.backend.committed) == 10
        assert (desk.backend.staged, desk.backend.on_trial) == (None, False)

    run(main())


def test_a_self_test_that_fails_without_an_explanation_leaves_the_list_before() -> None:
    async def main() -> None:
        desk = Desk()
        await desk.take(CHANGE)
        desk.probes.results = [WORKS, FAILS]
        with pytest.raises(SelfTestError):
            await desk.take(version(listing(*APART[:8])))
        assert len(desk.backend.committed) == 10

    run(main())


def test_a_changed_allowlist_is_applied_to_what_is_listed_and_nothing_else_changes() -> None:
    async def main() -> None:
        desk = Desk()
        await desk.take(CHANGE)
        assert desk.in_force is not None
        allowing = replace(desk.conditions, allowlist=Allowlist(entries(APART[0])))
        narrowed = await desk.update.readmit(desk.in_force, allowing)
        assert len(desk.backend.committed) == narrowed.extent.entries == 9
        assert (narrowed.listed, narrowed.verified) == (desk.in_force.listed, desk.in_force.verified)
        again = await desk.update.readmit(narrowed, desk.conditions)
        assert again == desk.in_force

    run(main())


@pytest.mark.parametrize("readmission", [False, True])
def test_a_cancellation_at_any_point_leaves_either_list_whole(readmission: bool) -> None:
    committed = set[int]()
    turn, cancelled = 0, True
    while cancelled:
        turn += 1
        desks: list[Desk] = []

        async def play(desks: list[Desk] = desks) -> None:
            desk = Desk()
            desks.append(desk)
            await desk.take(CHANGE)
            if readmission:
                assert desk.in_force is not None
                allowing = replace(desk.conditions, allowlist=Allowlist(entries(APART[0])))
                await desk.update.readmit(desk.in_force, allowing)
            else:
                await desk.take(version(listing(*APART[:8])))
            await asyncio.sleep(1)

        cancelled = run_cancelled_at(turn, play())
        for desk in desks:
            assert (desk.backend.staged, desk.backend.on_trial) == (None, False), turn
            committed.add(len(desk.backend.committed))
    assert turn > 20
    assert committed == {0, 10, 9 if readmission else 8}
