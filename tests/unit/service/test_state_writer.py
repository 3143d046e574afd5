"""The disk as the service sees it: what is kept, what is tried again, and that nothing waits for one that hangs."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from sikkerguard.core.lists.allowlist import API, AllowEntry, Allowlist
from sikkerguard.core.lists.pull_memory import PullMemory
from sikkerguard.core.net.address import parse_prefix
from sikkerguard.service.disk_thread import HUNG_SECONDS, LAST_SECONDS, DiskThread
from sikkerguard.service.state_writer import SavedState, StateWriter
from tests.unit.edges.storage.test_store import ENDPOINT, NEW, OLD, PULLS
from tests.unit.service.fakes import Changes, Store
from tests.unit.service.virtual_time import VirtualClock, run

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

    import pytest

_Result = TypeVar("_Result")

FULL = OSError(errno.ENOSPC, "No space left on device")
ALLOWED = Allowlist((AllowEntry(*parse_prefix("192.0.2.1"), API),))


def now() -> float:
    return asyncio.get_running_loop().time()


class Disk(DiskThread):
    """Does one job after the other in the loop's time, each once it `may_go` on."""

    def __init__(self) -> None:
        super().__init__("disk", now)
        self.may_go = asyncio.Event()
        self.may_go.set()
        self._turn = asyncio.Lock()
        self.is_shut = False
        self._tasks = set[asyncio.Task[None]]()

    def start(self, action: Callable[[], _Result]) -> asyncio.Future[_Result]:
        job: asyncio.Future[_Result] = asyncio.get_running_loop().create_future()
        job.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._tasks.add(asyncio.create_task(self._do(action, job)))
        return job

    def shutdown(self, wait: bool = False, *, cancel_futures: bool = False) -> None:
        self.is_shut = True

    async def _do(self, action: Callable[[], _Result], job: asyncio.Future[_Result]) -> None:
        async with self._turn:
            self._began = now()
            await self.may_go.wait()
            self._began = None
            try:
                job.set_result(action())
            except Exception as error:  # noqa: BLE001 - it is raised where the outcome is asked for
                job.set_exception(error)


class Bench:
    """A writer that looks after its disk from `look` on."""

    def __init__(self) -> None:
        self.store = Store()
        self.disk = Disk()
        self.changes = Changes()
        self.writer = StateWriter(self.store, Path("/state"), VirtualClock(), self.changes, self.disk)
        self.looking: asyncio.Task[None] | None = None

    def look(self) -> None:
        self.looking = asyncio.create_task(self.writer.run())

    def written(self) -> list[str]:
        return [step for step in self.store.steps if step.startswith("save")]


def with_bench(work: Callable[[Bench], Coroutine[Any, Any, None]]) -> None:
    async def whole() -> None:
        bench = Bench()
        try:
            await work(bench)
        finally:
            if bench.looking is not None:
                bench.looking.cancel()

    run(whole())


def memory(number: int) -> PullMemory:
    return PullMemory(unfinished=number)


# What is kept


def test_what_is_kept_is_written_by_another_thread_and_the_newest_only() -> None:
    async def work(bench: Bench) -> None:
        bench.writer.save(memory(0))
        bench.disk.may_go.clear()
        for number in range(1, 50):
            bench.writer.save(memory(number))
            await asyncio.sleep(0)
        bench.writer.save(NEW)
        assert bench.written() == []
        bench.disk.may_go.set()
        await bench.writer.settled(5)
        assert bench.store.pulls == memory(49)
        assert bench.store.verified == NEW
        assert bench.written() == ["save PullMemory", "save PullMemory", "save VerifiedList"]
        assert bench.writer.trouble == ""

    with_bench(work)


def test_each_kind_is_kept_and_comes_back() -> None:
    async def work(bench: Bench) -> None:
        bench.writer.save(NEW)
        bench.writer.save(ALLOWED)
        bench.writer.save(PULLS)
        bench.writer.save(ENDPOINT)
        bench.writer.save({"SIKKER_SCORE_MIN": "70"})
        await bench.writer.settled(5)
        assert bench.store.settings == {"SIKKER_SCORE_MIN": "70"}
        assert await bench.writer.load() == SavedState(NEW, ALLOWED, PULLS, ENDPOINT)

    with_bench(work)


def test_a_directory_that_was_made_again_gets_all_that_was_in_it(caplog: pytest.LogCaptureFixture) -> None:
    async def work(bench: Bench) -> None:
        bench.store.verified, bench.store.pulls, bench.store.endpoint = OLD, memory(1), ENDPOINT
        assert await bench.writer.load() == SavedState(OLD, Allowlist(), memory(1), ENDPOINT)
        bench.writer.claim()
        await bench.writer.settled(5)
        assert bench.written() == []
        bench.store.lose()
        bench.writer.save(memory(2))
        bench.writer.claim()
        await bench.writer.settled(5)
        assert (bench.store.verified, bench.store.pulls, bench.store.endpoint) == (OLD, memory(2), ENDPOINT)

    with_bench(work)
    assert caplog.messages == ["/state was deleted; it is there again, with what this service knows."]


def test_that_it_is_gone_is_seen_within_seconds() -> None:
    async def work(bench: Bench) -> None:
        bench.look()
        bench.writer.save(NEW)
        await asyncio.sleep(10)
        bench.store.lose()
        await asyncio.sleep(6)
        assert bench.store.verified == NEW

    with_bench(work)


# What is refused


def test_what_is_refused_is_said_once_and_written_when_there_is_room(caplog: pytest.LogCaptureFixture) -> None:
    async def work(bench: Bench) -> None:
        bench.look()
        bench.store.fail("save PullMemory", FULL, FULL, FULL)
        bench.writer.save(memory(1))
        await asyncio.sleep(0.5)
        trouble = bench.writer.trouble
        assert trouble.startswith("/state can't be written (No space left on device): blocking goes on")
        assert "not kept for the next start" in trouble
        assert bench.changes.times == 1
        bench.store.fail("save VerifiedList", FULL, FULL)
        bench.writer.save(OLD)
        bench.writer.save(NEW)
        await asyncio.sleep(0.5)
        assert "after a reboot an older one blocks until the next pull" in bench.writer.trouble
        assert bench.changes.times == 2
        await asyncio.sleep(10)
        # The list was taken, the memory was not yet.
        assert (bench.writer.trouble, bench.changes.times) == (trouble, 3)
        assert bench.store.verified == NEW
        await asyncio.sleep(10)
        assert (bench.writer.trouble, bench.changes.times) == ("", 4)
        assert bench.store.pulls == memory(1)

    with_bench(work)
    assert caplog.messages == ["/state can be written again, and has all that was to be kept."]


def test_a_directory_that_can_not_be_had_is_trouble_too() -> None:
    async def work(bench: Bench) -> None:
        bench.store.fail("claim", OSError(errno.EROFS, "Read-only file system"))
        bench.look()
        await asyncio.sleep(2)
        assert "can't be written (Read-only file system)" in bench.writer.trouble
        await asyncio.sleep(5)
        assert bench.writer.trouble == ""

    with_bench(work)


def test_a_defect_is_logged_with_its_trace_and_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    async def work(bench: Bench) -> None:
        bench.look()
        bench.store.fail("save EndpointMemory", ZeroDivisionError("a defect"), ZeroDivisionError("a defect"))
        bench.writer.save(ENDPOINT)
        await asyncio.sleep(0.5)
        assert "can't be written (ZeroDivisionError: a defect)" in bench.writer.trouble
        await asyncio.sleep(20)
        assert bench.writer.trouble == ""
        assert bench.store.endpoint == ENDPOINT

    with_bench(work)
    assert [record.getMessage() for record in caplog.records if record.exc_info] == [
        "Not everything is kept in /state."
    ]


# What hangs


def test_a_disk_that_hangs_keeps_nobody_waiting_and_is_said_with_the_time() -> None:
    async def work(bench: Bench) -> None:
        bench.look()
        bench.disk.may_go.clear()
        bench.writer.save(memory(1))
        for longest in (HUNG_SECONDS + 0.3, 0.0, 0.0):
            began = now()
            bench.writer.save(NEW)
            await bench.writer.settled(10)
            assert now() - began <= longest
        assert bench.writer.trouble == ""
        await asyncio.sleep(10)
        trouble = bench.writer.trouble
        # Virtual time begins at midnight.
        assert trouble.startswith("/state has not answered since 00:00:00 UTC: blocking goes on")
        await asyncio.sleep(3600)
        assert (bench.writer.trouble, bench.changes.times) == (trouble, 1)
        bench.disk.may_go.set()
        await asyncio.sleep(2)
        assert (bench.writer.trouble, bench.changes.times) == ("", 2)
        assert bench.store.verified == NEW

    with_bench(work)


def test_a_stop_waits_a_second_and_no_longer() -> None:
    async def work(bench: Bench) -> None:
        bench.disk.may_go.clear()
        bench.writer.save(NEW)
        began = now()
        await bench.writer.finish()
        assert now() - began == LAST_SECONDS
        assert bench.disk.is_shut

    with_bench(work)


def test_a_stop_has_written_what_was_to_be_kept() -> None:
    async def work(bench: Bench) -> None:
        bench.writer.save(NEW)
        await bench.writer.finish()
        assert bench.store.verified == NEW
        assert bench.disk.is_shut
        assert now() == 0

    with_bench(work)


# A start


def test_a_start_does_not_wait_for_a_list_that_can_not_be_read() -> None:
    async def work(bench: Bench) -> None:
        bench.store.allowlist = ALLOWED
        bench.store.is_damaged = True
        assert await bench.writer.load() == SavedState(allowlist=ALLOWED, complaint="The cached list is damaged")
        bench.disk.may_go.clear()
        began = now()
        saved = await bench.writer.load()
        assert now() - began == 10
        assert saved == SavedState(complaint="/state has not answered for 10 s: no list is read")

    with_bench(work)


def test_nothing_on_disk_keeps_a_start_from_protecting(caplog: pytest.LogCaptureFixture) -> None:
    async def work(bench: Bench) -> None:
        bench.store.endpoint = ENDPOINT
        for load in ("load_list", "load_allowlist", "load_pull_memory"):
            bench.store.fail(load, RecursionError("too deep"))
        saved = await bench.writer.load()
        complaint = "The list that was kept can't be read (RecursionError); a new one is pulled"
        assert saved == SavedState(endpoint=ENDPOINT, complaint=complaint)

    with_bench(work)
    assert [record.getMessage().partition(" can't")[0] for record in caplog.records if record.exc_info] == [
        "The list that was kept",
        "What an earlier run knew",
        "What an earlier run knew",
    ]


def test_what_could_not_be_read_is_not_written_over() -> None:
    async def work(bench: Bench) -> None:
        bench.store.is_damaged = True
        await bench.writer.load()
        bench.store.lose()
        bench.writer.claim()
        await bench.writer.settled(5)
        assert bench.written() == ["save PullMemory", "save EndpointMemory"]

    with_bench(work)
