"""Keeping the kernel as it should be: every five seconds, when the host changed, and when another program lets go; in
virtual time."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from sikkerguard.core.firewall.diff import FillCommitted, PlaceJump
from sikkerguard.core.net.family import Family
from sikkerguard.core.net.networks import Blocklist
from sikkerguard.errors import BusyError, KernelError
from tests.unit.core.lists.test_admission import listing
from tests.unit.service.assembly import AT_HOME, Assembly, FakeAdapters, assembled, entries
from tests.unit.service.virtual_time import run, run_cancelled_at

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

LIST = listing("203.0.113.7")
BUSY = BusyError("another program has held the lock")
SAID_BUSY = "Another program has held the lock; it is put right as soon as that is possible."


class Looks:
    """Notes when a method of the fake backend was called."""

    def __init__(self, made: Assembly, method: str) -> None:
        self.times: list[float] = []
        backend, clock = made.adapters.backend, made.adapters.clock
        before = backend.step

        def step(method_called: str) -> None:
            if method_called == method:
                self.times.append(clock.monotonic())
            before(method_called)

        vars(backend)["step"] = step


@asynccontextmanager
async def repairing(made: Assembly) -> AsyncIterator[None]:
    task = asyncio.create_task(made.parts.repairs.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled(), task


def test_it_looks_every_five_seconds() -> None:
    async def main() -> None:
        made = assembled()
        await made.begin()
        looks = Looks(made, "repair")
        async with repairing(made):
            await asyncio.sleep(60)
        assert {round(later - earlier, 1) for earlier, later in pairwise(looks.times)} == {5.0}
        assert made.parts.repairs.state.alive_at == made.parts.repairs.state.verified_ok_at == looks.times[-1]
        assert made.parts.repairs.state.repairs == 0

    run(main())


def test_however_much_changes_it_looks_once_a_second_at_most() -> None:
    async def main() -> None:
        made = assembled()
        await made.begin()
        looks = Looks(made, "repair")
        async with repairing(made):
            for _ in range(200):
                made.parts.repairs.host_changed.set()
                await asyncio.sleep(0.02)
        assert 3 <= len(looks.times) <= 5
        assert min(later - earlier for earlier, later in pairwise(looks.times)) > 0.95

    run(main())


def test_what_changes_behind_a_look_is_allowed_within_two_seconds() -> None:
    async def main() -> None:
        made = assembled()
        await made.begin()
        (new,) = entries("192.0.2.8")
        async with repairing(made):
            await made.until(lambda: "repair" in made.adapters.backend.steps)
            changed = made.adapters.clock.monotonic()
            made.adapters.observer.found = replace(AT_HOME, allowed=(*AT_HOME.allowed, new))
            made.parts.repairs.host_changed.set()
            await made.until(lambda: new in made.adapters.backend.allowlist.entries)
            assert made.adapters.clock.monotonic() - changed < 2.0

    run(main())


def test_what_another_program_changed_is_repaired_said_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        made = assembled()
        await made.begin()
        made.adapters.backend.changed = [(), (FillCommitted(Family.V4, 1, 0), PlaceJump(Family.V4)), ()]
        async with repairing(made):
            await asyncio.sleep(30)
        state = made.parts.repairs.state
        assert state.repairs == 1
        assert state.last_repair == "1 blocked network, 1 jump"

    run(main())
    assert caplog.text.count("Another program changed our rules (1 blocked network, 1 jump); repaired.") == 1


@pytest.mark.parametrize("where", ["observe", "allow", "repair"])
@pytest.mark.parametrize(
    ("error", "said"),
    [
        (KernelError("the kernel refused"), "The kernel refused"),
        (MemoryError(), "There is not enough memory to look after the rules, which stay as they are"),
        (ValueError("of a library"), "An error that nobody expected (ValueError: of a library)"),
    ],
)
def test_what_nobody_else_is_to_blame_for_starves_the_watchdog_and_keeps_the_rest_from_nothing(
    where: str, error: Exception, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        made = assembled()
        await made.begin()
        alive_at = made.parts.repairs.state.alive_at
        # So that there is something to tell the kernel.
        made.adapters.observer.found = replace(AT_HOME, allowed=(*AT_HOME.allowed, *entries("192.0.2.8")))
        failing = made.adapters.observer if where == "observe" else made.adapters.backend
        failing.fail(where, *[error] * 4)
        async with repairing(made):
            await asyncio.sleep(18)
            state = made.parts.repairs.state
            assert state.alive_at == alive_at
            assert state.trouble == f"{said}; tried again every 5 s."
            assert state.trouble in made.parts.failures()
            if where != "repair":
                assert made.adapters.backend.steps.count("repair") == 3
            await asyncio.sleep(10)
            assert made.parts.repairs.state.trouble == ""
            assert made.parts.repairs.state.alive_at != alive_at

    run(main())
    assert caplog.text.count("tried again every 5 s.") == 1


def test_a_look_that_hangs_starves_the_watchdog() -> None:
    async def main() -> None:
        made = assembled()
        await made.begin()
        never = asyncio.Event()
        async with repairing(made):
            await asyncio.sleep(6)
            alive_at = made.parts.repairs.state.alive_at
            made.parts.tracker.follow = never.wait  # type: ignore[assignment]
            await asyncio.sleep(60)
            assert (alive_at, made.parts.repairs.state.alive_at) == (5.0, 5.0)
            assert any("last seen to be right" in reason for reason in made.parts.failures())

    run(main())


def test_a_lock_that_another_program_holds_feeds_the_watchdog_and_is_said(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        made = assembled()
        await made.begin()
        verified = made.parts.repairs.state.verified_ok_at
        made.adapters.backend.fail("repair", *[BUSY] * 10_000)
        async with repairing(made):
            await asyncio.sleep(60)
            state = made.parts.repairs.state
            assert state.trouble == SAID_BUSY
            assert state.verified_ok_at == verified
            assert state.alive_at is not None
            assert made.adapters.clock.monotonic() - state.alive_at < 1
            made.adapters.backend.failures.clear()
            freed = made.adapters.clock.monotonic()
            await made.until(lambda: not made.parts.repairs.state.trouble)
            assert made.adapters.clock.monotonic() - freed < 1

    run(main())
    assert caplog.text.count(SAID_BUSY) == 1


def test_another_program_that_is_in_the_way_gives_way_to_what_nobody_else_is_to_blame_for() -> None:
    async def main() -> None:
        made = assembled()
        await made.begin()
        made.adapters.backend.fail("repair", BUSY, KernelError("the kernel refused"), KernelError("the kernel refused"))
        async with repairing(made):
            await asyncio.sleep(5.1)
            assert made.parts.repairs.state.trouble == SAID_BUSY
            await made.until(lambda: made.parts.repairs.state.trouble.startswith("The kernel refused"), 6)
            await made.until(lambda: not made.parts.repairs.state.trouble)

    run(main())


# Starts


def test_a_start_goes_on_when_another_program_lets_go() -> None:
    async def main() -> None:
        adapters = FakeAdapters()
        made = assembled(adapters)
        await made.parts.tracker.begin(adapters.store.allowlist)
        # The first try broke off in the middle; what is left to do is a repair, and then another try.
        adapters.backend.fail("adopt", BUSY)
        adapters.backend.fail("repair", *[BUSY] * 50)
        adopting = asyncio.create_task(made.parts.repairs.adopt(LIST, asyncio.Event()))
        await asyncio.sleep(5)
        assert made.parts.repairs.state.trouble == SAID_BUSY
        assert made.parts.repairs.state.verified_ok_at is None
        assert made.parts.repairs.state.alive_at is not None
        assert await adopting == ()
        assert adapters.backend.steps.count("adopt") == 2
        state = made.parts.repairs.state
        assert (state.trouble, state.alive_at) == ("", state.verified_ok_at)
        assert adapters.backend.committed == LIST

    run(main())


@pytest.mark.parametrize("error", [KernelError("the kernel refused"), ValueError("of a library"), MemoryError()])
def test_a_start_ends_where_the_kernel_refuses(error: Exception) -> None:
    async def main() -> None:
        made = assembled()
        made.adapters.backend.fail("adopt", error)
        with pytest.raises(KernelError):
            await made.parts.repairs.adopt(LIST, asyncio.Event())
        assert made.parts.repairs.state.verified_ok_at is None

    run(main())


def test_a_start_that_is_stopped_while_it_waits_ends_at_once() -> None:
    async def main() -> None:
        made = assembled()
        made.adapters.backend.fail("adopt", *[BUSY] * 1000)
        made.adapters.backend.fail("repair", *[BUSY] * 1000)
        stopped = asyncio.Event()
        adopting = asyncio.create_task(made.parts.repairs.adopt(LIST, stopped))
        await asyncio.sleep(3)
        assert not adopting.done()
        stopped.set()
        began = made.adapters.clock.monotonic()
        assert await adopting is None
        assert made.adapters.clock.monotonic() == began

    run(main())


def test_a_boot_waits_for_another_program_no_longer_than_it_may() -> None:
    async def main() -> None:
        made = assembled()
        made.adapters.backend.fail("adopt", *[BUSY] * 1000)
        made.adapters.backend.fail("repair", *[BUSY] * 1000)
        began = made.adapters.clock.monotonic()
        with pytest.raises(BusyError):
            await made.parts.repairs.adopt(Blocklist(), asyncio.Event(), patience=10.0)
        assert 10 <= made.adapters.clock.monotonic() - began < 11

    run(main())


def test_a_cancellation_at_any_point_is_one() -> None:
    async def play() -> None:
        made = assembled()
        await made.begin()
        made.adapters.backend.fail("repair", BUSY, None, KernelError("refused"))
        async with asyncio.timeout(25):
            await made.parts.repairs.run()

    turn = 0
    while True:
        turn += 1
        try:
            cancelled = run_cancelled_at(turn, play())
        except TimeoutError:
            break
        assert cancelled, turn
    assert turn > 30
