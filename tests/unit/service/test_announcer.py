"""What the service manager hears, and when: READY once and never before the chain stands; in virtual time."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st

from sikkerguard.core.state import ListState, PullResult, PullState, RepairState, State
from sikkerguard.service.announcer import Announcer
from sikkerguard.service.wakeup import Wakeup
from tests.unit.service.fakes import Manager
from tests.unit.service.virtual_time import BEGINNING, VirtualClock, run, run_cancelled_at

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine
    from typing import Any

    import pytest

STANDS = RepairState(verified_ok_at=0.0, alive_at=0.0)
BLOCKS = ListState(blocked_v4=3, verified_at=BEGINNING)
TRIED = PullState(last_pull=PullResult(BEGINNING, "no answer"), pulls=1)


class Desk:
    """An announcer, and the state that it pulls."""

    def __init__(self) -> None:
        self.state = State(BEGINNING, dry_run=False)
        self.manager = Manager()
        self.changes = Wakeup()
        self.announcer = Announcer(self.manager, VirtualClock(), self.changes, self)

    def change(self, **changes: Any) -> None:
        self.state = replace(self.state, **changes)
        self.changes.set()

    def told(self, word: str) -> list[str]:
        return [line for line in self.manager.lines if line.startswith(word)]

    @asynccontextmanager
    async def announcing(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.announcer.run())
        await asyncio.sleep(0)
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait({task})


def at_desk(play: Callable[[Desk], Coroutine[Any, Any, None]]) -> Desk:
    async def main() -> Desk:
        desk = Desk()
        async with desk.announcing():
            await play(desk)
        return desk

    return run(main())


def test_ready_is_sent_once_when_the_chain_stands_and_a_list_blocks() -> None:
    async def play(desk: Desk) -> None:
        desk.change(lists=BLOCKS)
        await asyncio.sleep(100)
        assert desk.told("READY") == []
        desk.change(repair=STANDS)
        await asyncio.sleep(0.01)
        assert desk.told("READY") == ["READY Blocking 3 addresses; list of 2m ago; 0 packets dropped today"]
        for second in range(200):
            desk.change(repair=replace(STANDS, alive_at=float(second)), pull=replace(TRIED, pulls=second))
            await asyncio.sleep(1)
        assert len(desk.told("READY")) == 1

    at_desk(play)


def test_without_a_list_it_is_ready_when_a_pull_was_tried() -> None:
    async def play(desk: Desk) -> None:
        desk.change(repair=STANDS)
        await asyncio.sleep(3)
        assert desk.told("READY") == []
        desk.change(pull=TRIED)
        await asyncio.sleep(0.01)
        assert desk.told("READY") == ["READY No list yet: no answer; a pull is under way"]

    at_desk(play)


def test_nothing_that_waits_for_us_waits_for_a_server_that_takes_its_time() -> None:
    async def play(desk: Desk) -> None:
        desk.change(repair=STANDS, pull=PullState(pulling=True))
        await asyncio.sleep(9.9)
        assert desk.told("READY") == []
        await asyncio.sleep(0.2)
        assert desk.told("READY") == ["READY Starting: the first pull is under way"]

    at_desk(play)


def test_a_chain_that_does_not_stand_is_waited_for_and_the_start_is_extended() -> None:
    async def play(desk: Desk) -> None:
        for second in range(120):
            # Another program is in the way: the loop lives, and says so five times a second.
            desk.change(repair=RepairState(alive_at=float(second), trouble="Another program has held the lock."))
            await asyncio.sleep(0.2)
        assert desk.told("READY") == []
        # At most one a second.
        assert 20 <= len(desk.told("EXTEND_TIMEOUT 60")) <= 25
        assert len(desk.told("WATCHDOG")) == 120
        desk.change(repair=STANDS, lists=BLOCKS)
        await asyncio.sleep(0.01)
        assert len(desk.told("READY")) == 1
        extended = len(desk.told("EXTEND"))
        desk.change(pull=TRIED)
        await asyncio.sleep(5)
        assert len(desk.told("EXTEND")) == extended

    at_desk(play)


def test_a_start_that_makes_no_progress_is_not_extended() -> None:
    async def play(desk: Desk) -> None:
        await asyncio.sleep(100)
        assert desk.manager.lines == ["STATUS Starting: the first pull is under way"]

    at_desk(play)


def test_the_watchdog_is_fed_by_the_repair_loop_s_progress_alone() -> None:
    async def play(desk: Desk) -> None:
        desk.change(repair=STANDS, lists=BLOCKS)
        await asyncio.sleep(1)
        assert len(desk.told("WATCHDOG")) == 1
        for pulls in range(50):
            desk.change(pull=replace(TRIED, pulls=pulls))
            await asyncio.sleep(1)
        assert len(desk.told("WATCHDOG")) == 1
        desk.change(repair=replace(STANDS, alive_at=5.0))
        await asyncio.sleep(0.01)
        assert len(desk.told("WATCHDOG")) == 2

    at_desk(play)


def test_the_sentence_follows_the_state_but_not_each_packet() -> None:
    async def play(desk: Desk) -> None:
        desk.change(repair=STANDS, lists=BLOCKS)
        await asyncio.sleep(3)
        desk.change(lists=replace(BLOCKS, blocked_v4=4))
        await asyncio.sleep(0.01)
        assert desk.told("STATUS")[-1].startswith("STATUS Blocking 4 addresses")
        before = len(desk.told("STATUS"))
        for packets in range(100):
            desk.change(lists=replace(BLOCKS, blocked_v4=packets + 5))
            await asyncio.sleep(0.1)
        assert len(desk.told("STATUS")) - before <= 6
        # The last one comes though nothing changes any more.
        await asyncio.sleep(2.1)
        assert desk.told("STATUS")[-1].startswith("STATUS Blocking 104 addresses")

    at_desk(play)


def test_a_reload_is_said_only_to_whom_waits_for_nothing_else() -> None:
    async def play(desk: Desk) -> None:
        desk.announcer.reloading()
        desk.announcer.reloaded()
        assert desk.told("RELOADING") == desk.told("READY") == []
        desk.change(repair=STANDS, lists=BLOCKS)
        await asyncio.sleep(0.01)
        desk.announcer.reloading()
        desk.announcer.reloaded()
        assert [line.split()[0] for line in desk.manager.lines[-2:]] == ["RELOADING", "READY"]

    at_desk(play)


def test_each_trouble_is_said_once_for_as_long_as_it_lasts(caplog: pytest.LogCaptureFixture) -> None:
    async def play(desk: Desk) -> None:
        for _ in range(5):
            for troubles in ((("disk", "It is full."),), (("disk", "It is full."), ("page", "The port is taken."))):
                desk.change(troubles=troubles)
                await asyncio.sleep(1)
        desk.change(troubles=())
        await asyncio.sleep(1)
        desk.change(troubles=(("disk", "It is full."),))
        await asyncio.sleep(1)

    at_desk(play)
    assert caplog.text.count("It is full.") == 2
    assert caplog.text.count("The port is taken.") == 5


MOMENTS = st.lists(
    st.tuples(
        st.floats(0.0, 8.0),
        st.fixed_dictionaries(
            {},
            optional={
                "lists": st.sampled_from([ListState(), BLOCKS]),
                "pull": st.sampled_from([PullState(), TRIED, PullState(pulling=True)]),
                "repair": st.sampled_from([RepairState(), RepairState(alive_at=1.0), STANDS]),
            },
        ),
    ),
    max_size=30,
)


@given(moments=MOMENTS)
@settings(max_examples=200)
def test_whatever_happens_ready_comes_at_most_once_and_never_before_the_chain_stands(
    moments: list[tuple[float, dict[str, Any]]],
) -> None:
    async def play(desk: Desk) -> None:
        stood = False
        for seconds, changes in moments:
            desk.change(**changes)
            stood = stood or desk.state.repair.verified_ok_at is not None
            await asyncio.sleep(seconds)
            assert len(desk.told("READY")) <= 1
            assert stood or not desk.told("READY")

    at_desk(play)


def test_a_cancellation_at_any_point_sends_nothing_twice() -> None:
    turn, cancelled = 0, True
    while cancelled:
        turn += 1
        desks: list[Desk] = []

        async def play(desks: list[Desk] = desks) -> None:
            desk = Desk()
            desks.append(desk)
            async with desk.announcing():
                desk.change(repair=STANDS)
                await asyncio.sleep(1)
                desk.change(lists=BLOCKS)
                await asyncio.sleep(1)
            # A loop that is begun anew, as after an error.
            async with desk.announcing():
                await asyncio.sleep(10)

        cancelled = run_cancelled_at(turn, play())
        for desk in desks:
            assert len(desk.told("READY")) <= 1
    assert turn > 5
