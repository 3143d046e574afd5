"""The life of the service, from its first rule to its last file, in virtual time and with every edge in memory."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from sikkerguard.config.settings import Config
from sikkerguard.core.lists.allowlist import Allowlist
from sikkerguard.core.lists.sources import SIKKERAPI, ListedSource, VerifiedList
from sikkerguard.errors import BusyError, ConfigError, KernelError, KeyRefused, SikkerGuardError
from sikkerguard.service.lifecycle import Service
from sikkerguard.service.listeners import Listeners
from tests.unit.core.lists.test_admission import listing
from tests.unit.service.assembly import CROWD, FakeAdapters, Reader, entries, lines
from tests.unit.service.test_count_loop import Records, sample
from tests.unit.service.virtual_time import BEGINNING, run, run_cancelled_at

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine
    from typing import Any

TWO = listing("203.0.113.7", "203.0.113.8")
KEPT = VerifiedList((ListedSource(SIKKERAPI, TWO, BEGINNING - 7200),), BEGINNING - 7200)


class Life:
    """A service with fakes."""

    def __init__(self, adapters: FakeAdapters, **settings: Any) -> None:
        self.adapters = adapters
        self.reader = Reader(replace(Config(api_key="sk_free_x", texts={"SIKKER_SCORE_MIN": "50"}), **settings))
        self.service = Service(self.reader.config, adapters, self.reader)

    def told(self, word: str) -> list[str]:
        return [line for line in self.adapters.manager.lines if line.startswith(word)]

    async def run(self) -> None:
        await self.service.run(Listeners((), self.service.parts.changes))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.run())
        try:
            yield
        finally:
            self.service.stop()
            await task

    async def until(self, condition: Callable[[], object], seconds: float = 100.0) -> None:
        async with asyncio.timeout(seconds):
            while not condition():
                await asyncio.sleep(0.1)


def lived(
    play: Callable[[Life], Coroutine[Any, Any, None]], adapters: FakeAdapters | None = None, **settings: Any
) -> Life:
    """Run a service while this is played, and stop it then."""

    async def main() -> Life:
        life = Life(adapters or FakeAdapters(), **settings)
        async with life.running():
            await play(life)
        return life

    return run(main())


def kept() -> FakeAdapters:
    """What an earlier run left on disk, and nothing in the kernel."""
    adapters = FakeAdapters()
    adapters.store.verified = KEPT
    return adapters


def is_clean(adapters: FakeAdapters) -> bool:
    """Whether nothing of ours is in the kernel."""
    return not adapters.backend.present and not len(adapters.backend.committed)


# From the first rule to the last


def test_the_first_start_blocks_when_its_list_is_there_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    async def play(life: Life) -> None:
        await life.until(lambda: len(life.adapters.backend.committed) == 2000)
        await asyncio.sleep(30)
        status = life.service.status()
        assert (status["status"], status["blockedIps"], status["reasons"]) == ("active", 2000, [])
        assert life.service.failures() == ()

    with caplog.at_level("INFO"):
        life = lived(play)
    (ready,) = life.told("READY")
    assert ready.startswith("READY Blocking 2,000 addresses")
    assert life.adapters.manager.lines[-1] == "STOPPING"
    assert is_clean(life.adapters)
    assert life.adapters.backend.closed
    order = ["SikkerGuard", "Safety whitelist", "Firewall ready", "Monitoring", "Blocking 2000 IPs", "Stopped: nothing"]
    places = [caplog.text.index(text) for text in order]
    assert places == sorted(places)
    assert " ERROR " not in caplog.text


@pytest.mark.parametrize("when", ["while it runs", "at its end"])
def test_what_is_counted_and_can_not_be_kept_is_said_once(caplog: pytest.LogCaptureFixture, when: str) -> None:
    adapters, records = FakeAdapters(), Records(lambda: 0)
    adapters.records = records

    async def play(life: Life) -> None:
        await life.until(lambda: life.told("READY"))
        await asyncio.sleep(30)
        records.broken = "Records can't be written (disk full)"
        adapters.backend.samples.append(sample({(1, 23): 4}, 4))
        if when == "while it runs":
            await asyncio.sleep(30)

    lived(play, adapters)
    (said,) = [line.getMessage() for line in caplog.records if line.levelname == "ERROR"]
    assert said.startswith(records.broken)


def test_a_start_from_the_cache_blocks_before_anything_is_pulled(caplog: pytest.LogCaptureFixture) -> None:
    adapters = kept()
    adapters.sikkerapi.held.clear()

    async def play(life: Life) -> None:
        await life.until(lambda: life.told("READY"))
        assert adapters.backend.committed == TWO
        assert life.told("READY")[0].startswith("READY Blocking 2 addresses; list of 2h ago")

    with caplog.at_level("INFO"):
        lived(play, adapters)
    assert "Blocking 2 IPs (from the cache, verified 2h ago)" in caplog.text


def test_what_a_dead_process_left_in_the_kernel_goes_on_blocking(caplog: pytest.LogCaptureFixture) -> None:
    adapters = FakeAdapters()
    adapters.backend.committed = listing("203.0.113.9")
    adapters.sikkerapi.held.clear()

    async def play(life: Life) -> None:
        await life.until(lambda: life.told("READY"))
        assert adapters.backend.committed == listing("203.0.113.9")
        assert life.service.status()["listVerified"] is None

    with caplog.at_level("INFO"):
        lived(play, adapters)
    assert "Blocking 1 IPs (found in the kernel, left by an earlier run)" in caplog.text


def test_ready_waits_for_the_chain_and_a_stop_does_not(caplog: pytest.LogCaptureFixture) -> None:
    adapters = kept()
    adapters.backend.fail("adopt", *[BusyError("another program has held the lock")] * 1000)
    adapters.backend.fail("repair", *[BusyError("another program has held the lock")] * 100)

    async def play(life: Life) -> None:
        await asyncio.sleep(15)
        assert life.told("READY") == []
        assert len(life.told("EXTEND_TIMEOUT 60")) > 10
        assert life.told("WATCHDOG")
        assert life.service.status()["status"] == "starting"
        adapters.backend.failures.clear()
        await life.until(lambda: life.told("READY"), 1)

    assert is_clean(lived(play, adapters).adapters)
    assert caplog.text.count("Another program has held the lock") == 1

    async def stop_at_once(life: Life) -> None:
        await asyncio.sleep(3)

    adapters = kept()
    adapters.backend.fail("adopt", *[BusyError("another program has held the lock")] * 1000)
    adapters.backend.fail("repair", *[BusyError("another program has held the lock")] * 1000)
    life = lived(stop_at_once, adapters)
    assert life.told("READY") == []
    # No loop was begun.
    assert life.adapters.observer.monitors == []
    assert life.adapters.sikkerapi.steps == []


@pytest.mark.parametrize("job", ["restart", "shutdown"])
def test_what_blocks_stays_where_another_run_begins_or_the_host_goes_down(job: str) -> None:
    async def play(life: Life) -> None:
        await life.until(lambda: len(life.adapters.backend.committed) == 2000)
        life.adapters.manager.job = job

    life = lived(play)
    assert len(life.adapters.backend.committed) == 2000
    assert "remove" not in life.adapters.backend.steps
    assert "unhook" not in life.adapters.backend.steps


def test_what_can_not_be_removed_is_said_and_all_else_is_done(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def play(life: Life) -> None:
        await life.until(lambda: life.told("READY"))
        life.adapters.backend.fail("unhook", KernelError("refused"))
        life.adapters.backend.fail("remove", BusyError("a set is used by another program's rule"))

    life = lived(play)
    assert "Stopped: a set is used by another program's rule." in caplog.text
    assert life.adapters.backend.closed

    async def fail(life: Life) -> None:
        await life.until(lambda: life.told("READY"))
        life.adapters.backend.fail("remove", KernelError("refused"))

    with pytest.raises(KernelError):
        lived(fail)


def test_a_kernel_that_can_not_be_used_ends_the_start_and_what_it_holds_stays() -> None:
    adapters = kept()
    adapters.backend.committed = listing("203.0.113.9")
    adapters.backend.fail("adopt", KernelError("the module ip_set can't be loaded"))

    async def main() -> None:
        await Life(adapters).run()

    with pytest.raises(KernelError, match="ip_set"):
        run(main())
    assert adapters.backend.committed == listing("203.0.113.9")
    assert "remove" not in adapters.backend.steps
    assert adapters.backend.closed
    assert not [line for line in adapters.manager.lines if line.startswith("READY")]


STARTS = {
    "hold_counters": "backend",
    "load_list": "store",
    "load_allowlist": "store",
    "load_pull_memory": "store",
    "load_endpoint": "store",
    "save Allowlist": "store",
    "save dict": "store",
    "claim": "store",
    "observe": "observer",
    "monitor": "observer",
}


@pytest.mark.parametrize("step", STARTS)
@pytest.mark.parametrize("error", [RuntimeError("of a library"), MemoryError(), OSError(5, "Input/output error")])
def test_what_nobody_expects_at_a_step_of_the_start_keeps_it_from_blocking_nothing(step: str, error: Exception) -> None:
    adapters = kept()
    adapters.sikkerapi.pieces = [lines(*CROWD[:3])]
    getattr(adapters, STARTS[step]).fail(step, error)

    async def play(life: Life) -> None:
        await life.until(lambda: life.told("READY"))
        await life.until(lambda: len(adapters.backend.committed) == 3)

    assert is_clean(lived(play, adapters).adapters)


def test_a_service_that_restores_blocks_by_its_list_and_ends() -> None:
    async def main(adapters: FakeAdapters) -> Life:
        life = Life(adapters)
        await life.service.restore()
        return life

    adapters = kept()
    adapters.store.allowlist = Allowlist(entries("192.0.2.9"))
    life = run(main(adapters))
    assert len(adapters.backend.committed) == 2
    assert adapters.backend.closed
    assert adapters.sikkerapi.steps == []
    assert life.told("READY") == []
    adapters = kept()
    adapters.backend.fail("adopt", *[BusyError("a lock")] * 1000)
    adapters.backend.fail("repair", *[BusyError("a lock")] * 1000)
    with pytest.raises(SikkerGuardError):
        run(main(adapters))
    assert adapters.backend.closed


def test_a_dry_run_writes_nothing_and_reads_no_log() -> None:
    async def play(life: Life) -> None:
        await life.until(lambda: life.service.status()["pulls"])
        assert life.service.status()["status"] == "dry-run"

    adapters = lived(play, dry_run=True).adapters
    assert not [step for step in adapters.store.steps if step.startswith(("save", "claim"))]


# Reloads


def test_a_reload_is_answered_by_the_number_of_its_pull() -> None:
    async def play(life: Life) -> None:
        await life.until(lambda: life.service.status()["pulls"] == 1)
        life.reader.config = replace(life.reader.config, score_min=90)
        answer = life.service.reload()
        assert answer["complaint"] == ""
        await life.until(lambda: life.service.status()["pullAnswered"] == answer["pull"])
        assert life.adapters.sikkerapi.scores == [50, 90]
        assert [line.split()[0] for line in life.told("R")] == ["READY", "RELOADING", "READY"]

    lived(play)


def test_wrong_settings_change_nothing_and_are_said_until_they_are_right(caplog: pytest.LogCaptureFixture) -> None:
    async def play(life: Life) -> None:
        await life.until(lambda: life.told("READY"))
        life.reader.error = ConfigError(["SIKKER_SCORE_MIN must be from 1 to 100."])
        answer = life.service.reload()
        assert "SIKKER_SCORE_MIN must be" in str(answer["complaint"])
        await asyncio.sleep(1)
        assert any("SIKKER_SCORE_MIN" in str(reason) for reason in life.service.status()["reasons"])  # type: ignore[attr-defined]
        # Corrected: it is noticed without being told.
        life.reader.error = None
        life.adapters.stamp = "another version"
        await life.until(lambda: not life.service.parts.settings.trouble, 2)
        assert life.service.status()["reasons"] == []

    lived(play)
    assert caplog.text.count("SIKKER_SCORE_MIN must be") == 1


def test_a_corrected_key_is_noticed_within_a_second() -> None:
    async def play(life: Life) -> None:
        await life.until(lambda: life.service.status()["lastPullError"])
        asked = life.adapters.sikkerapi.steps.count("stream")
        await asyncio.sleep(100)
        assert life.adapters.sikkerapi.steps.count("stream") == asked
        life.adapters.stamp = "another version"
        life.reader.config = replace(life.reader.config, api_key="sk_free_y")
        await life.until(lambda: len(life.adapters.backend.committed) == 2000, 3)

    adapters = FakeAdapters()
    adapters.sikkerapi.fail("stream", KeyRefused("SikkerAPI does not know this key (401)"))
    lived(play, adapters)


def test_a_reload_before_the_chain_stands_is_taken() -> None:
    adapters = kept()
    adapters.backend.fail("adopt", *[BusyError("a lock")] * 1000)
    adapters.backend.fail("repair", *[BusyError("a lock")] * 50)

    async def play(life: Life) -> None:
        await asyncio.sleep(1)
        life.reader.config = replace(life.reader.config, score_min=70)
        number = life.service.reload()["pull"]
        assert life.told("RELOADING") == []
        adapters.backend.failures.clear()
        await life.until(lambda: life.service.status()["pullAnswered"] == number)
        assert adapters.sikkerapi.scores == [70]

    lived(play, adapters)


# Wherever it ends


def test_a_stop_at_any_point_leaves_nothing_of_ours_and_no_mark() -> None:
    async def stopped_after(seconds: float, adapters: FakeAdapters) -> None:
        life = Life(adapters)
        async with life.running():
            await asyncio.sleep(seconds)

    for step in range(60):
        adapters = kept()
        adapters.sikkerapi.pieces = [lines(*CROWD[:3])]
        run(stopped_after(step * 0.05, adapters))
        assert is_clean(adapters), step
        assert adapters.store.pulls.unfinished == 0, step
        assert adapters.backend.closed


def test_an_end_by_cancellation_at_any_point_leaves_what_is_committed() -> None:
    """As where the process is ended by an error: what blocks stays, and what is half done is undone."""
    turn, cancelled = 0, True
    while cancelled:
        turn += 1
        adapters = kept()
        adapters.sikkerapi.pieces = [lines(*CROWD[:3])]

        async def play(adapters: FakeAdapters = adapters) -> None:
            life = Life(adapters)
            task = asyncio.create_task(life.run())
            try:
                await asyncio.sleep(8)
            finally:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await asyncio.shield(asyncio.wait({task}))
                await asyncio.wait({task})

        cancelled = run_cancelled_at(turn, play())
        backend = adapters.backend
        assert (backend.staged, backend.on_trial) == (None, False), turn
        assert "remove" not in backend.steps
        assert backend.closed or not backend.steps, turn
        assert adapters.store.pulls.unfinished == 0, turn
    assert turn > 100
