"""What the next pull must know of earlier ones: on disk before it can be needed."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sikkerguard.core.lists.pull_memory import PullMemory
from sikkerguard.core.lists.size_guard import SourceHistory
from sikkerguard.errors import FetchError, HeldBackError, ListError, SikkerGuardError
from sikkerguard.service.pull_journal import PullJournal
from sikkerguard.service.state_writer import StateWriter
from tests.unit.edges.storage.test_store import PULLS
from tests.unit.service.fakes import Changes, Store, dry_writer
from tests.unit.service.virtual_time import VirtualClock, run

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

    from sikkerguard.core.interfaces import Saved


class Disk(Store):
    """Remembers each memory that was written."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[PullMemory] = []

    def save(self, value: Saved) -> None:
        super().save(value)
        assert isinstance(value, PullMemory)
        self.written.append(value)

    @property
    def marks(self) -> list[int]:
        return [memory.unfinished for memory in self.written]


def with_journal(work: Callable[[PullJournal, Disk], Coroutine[Any, Any, None]]) -> Disk:
    disk = Disk()

    async def whole() -> None:
        writer = StateWriter(disk, Path("/state"), VirtualClock(), Changes())
        await work(PullJournal(writer), disk)
        await writer.settled(5)

    run(whole())
    return disk


def test_an_update_is_marked_on_disk_for_as_long_as_it_is_under_way() -> None:
    async def work(journal: PullJournal, disk: Disk) -> None:
        async with journal.marked():
            # Before anything else is done.
            assert disk.pulls.unfinished == 1
        assert disk.pulls.unfinished == 0

    assert with_journal(work).marks == [1, 0]


def test_updates_that_did_not_end_are_counted() -> None:
    async def work(journal: PullJournal, disk: Disk) -> None:
        journal.memory = PullMemory(unfinished=2)
        async with journal.marked():
            assert disk.pulls.unfinished == 3

    assert with_journal(work).marks == [3, 0]


def test_of_two_at_once_the_last_one_takes_the_mark_away() -> None:
    async def work(journal: PullJournal, disk: Disk) -> None:
        async with journal.marked():
            async with journal.marked():
                await journal.note_committed(replace(journal.memory, sources=PULLS.sources))
            assert disk.pulls == PullMemory(PULLS.sources, unfinished=1)
        assert disk.pulls == PullMemory(PULLS.sources)

    with_journal(work)


def test_that_an_update_ended_well_is_on_disk_before_it_is_said() -> None:
    async def work(journal: PullJournal, disk: Disk) -> None:
        async with journal.marked():
            await journal.note_committed(replace(PULLS, unfinished=1))
            assert disk.pulls == replace(PULLS, unfinished=0)
        # Nothing is left to be written.
        assert disk.marks == [1, 0]

    with_journal(work)


def test_a_stop_is_no_update_that_the_process_died_of() -> None:
    async def work(journal: PullJournal, disk: Disk) -> None:
        async def update() -> None:
            async with journal.marked():
                await asyncio.sleep(10)

        task = asyncio.create_task(update())
        await asyncio.sleep(5)
        assert disk.pulls.unfinished == 1
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled()
        assert disk.pulls.unfinished == 0

    with_journal(work)


def test_after_a_failure_the_mark_goes_with_what_is_noted_of_it() -> None:
    async def work(journal: PullJournal, disk: Disk) -> None:
        error = HeldBackError("it shrank", frozenset({"halved"}))
        with pytest.raises(HeldBackError):
            async with journal.marked():
                raise error
        assert disk.pulls.unfinished == 1
        await journal.note_refusal(error, "SikkerAPI")
        assert disk.pulls == PullMemory({"SikkerAPI": SourceHistory(held_back=frozenset({"halved"}))})

    with_journal(work)


HELD_BACK = {name: SourceHistory(query=name, held_back=frozenset({"halved"})) for name in ("SikkerAPI", "mine")}


@pytest.mark.parametrize(
    ("error", "source", "held_back"),
    [
        (HeldBackError("it shrank", frozenset({"halved", "cut off"})), "", {"halved", "cut off"}),
        (ListError("it covers too much"), "", set[str]()),
        # What could not be had says nothing.
        (FetchError("no route"), "", {"halved"}),
        # It was the other one's version.
        (ListError("it covers too much"), "mine", {"halved"}),
    ],
)
def test_for_what_a_version_was_held_back_is_remembered_until_another_refusal(
    error: SikkerGuardError, source: str, held_back: set[str]
) -> None:
    if isinstance(error, ListError):
        error.source = source

    async def work(journal: PullJournal, disk: Disk) -> None:
        journal.memory = PullMemory(HELD_BACK)
        await journal.note_refusal(error, "SikkerAPI")
        assert journal.memory.of("SikkerAPI") == replace(HELD_BACK["SikkerAPI"], held_back=frozenset(held_back))
        assert journal.memory.of("mine").held_back == (frozenset() if source else {"halved"})

    with_journal(work)


def test_a_refusal_of_a_source_that_nobody_knows_is_not_remembered() -> None:
    async def work(journal: PullJournal, disk: Disk) -> None:
        await journal.note_refusal(ListError("it covers too much"), "SikkerAPI")
        assert journal.memory == PullMemory()

    with_journal(work)


def test_a_dry_run_remembers_it_all_the_same() -> None:
    async def work() -> None:
        journal = PullJournal(dry_writer())
        async with journal.marked():
            assert journal.memory.unfinished == 1
            await journal.note_committed(replace(PULLS, unfinished=1))
        assert journal.memory == replace(PULLS, unfinished=0)

    run(work())
