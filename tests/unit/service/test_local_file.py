"""The owner's file: when it is read, what is in force of it, and what is the matter with it."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sikkerguard.config.settings import Config
from sikkerguard.core.lists.coverage import Extent
from sikkerguard.core.lists.generations import Change
from sikkerguard.core.lists.sources import LOCAL_FILE, SIKKERAPI, Admission, ListedSource, VerifiedList
from sikkerguard.core.state import ListState
from sikkerguard.errors import (
    HeldBackError,
    KernelError,
    ListError,
    SelfTestError,
    UnexpectedError,
)
from sikkerguard.service.list_in_force import InForce, ListInForce
from sikkerguard.service.local_file import LocalFile
from sikkerguard.service.pull_journal import PullJournal
from sikkerguard.service.supervision import UnexpectedErrors
from sikkerguard.service.update_runner import UpdateRunner
from sikkerguard.service.wakeup import Wakeup, Watched
from tests.unit.core.lists.test_admission import listing
from tests.unit.service.fakes import Feed, dry_writer
from tests.unit.service.virtual_time import VirtualClock, run

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence

    from sikkerguard.core.net.networks import Blocklist

PATH, ELSEWHERE = Path("/etc/sikkerguard/mine.txt"), Path("/etc/sikkerguard/other.txt")
ONE, OTHER = "198.51.100.7", "198.51.100.8"


def in_force(*contents: tuple[str, Blocklist]) -> InForce:
    sources = tuple(ListedSource(name, content, float(number)) for number, (name, content) in enumerate(contents))
    return InForce(VerifiedList(sources, 0.0), listing(), Admission(listing(), {}), Extent(0, 0, 0))


class File(Feed):
    """A file that can be written to. `restless` ones are written to at each look, `during` is done in each reading."""

    def __init__(self, path: Path) -> None:
        super().__init__(LOCAL_FILE)
        self.path = path
        self.present = 0
        self.restless = False
        self.during: Callable[[], None] | None = None

    def write(self, *lines: str) -> None:
        self.pieces = [f"{line}\n".encode() for line in lines]
        self.touch()

    def touch(self) -> None:
        assert isinstance(self.present, int)
        self.present += 1

    async def version(self) -> object:
        if self.restless:
            self.touch()
        return await super().version()

    async def stream(self) -> AsyncGenerator[bytes, None]:
        if self.during is not None:
            self.during()
        async for piece in super().stream():
            yield piece

    @property
    def readings(self) -> int:
        return self.steps.count("stream")


class Bench:
    """A file that is set, in force as these addresses, if any."""

    def __init__(self, *known: str) -> None:
        self.files = {PATH: File(PATH), ELSEWHERE: File(ELSEWHERE)}
        self.file = self.files[PATH]
        self.file.write(ONE)
        self.config = Watched(Config(custom_blacklist=PATH))
        self.lists = ListInForce()
        if known:
            self.lists.value = in_force((LOCAL_FILE, listing(*known)))
        self.signal = Wakeup()
        self.runner = Runner()
        self.journal = PullJournal(dry_writer())
        unexpected = UnexpectedErrors()
        self.local = LocalFile(
            self, self.runner, self.journal, self.lists, self.config, VirtualClock(), unexpected, self.signal
        )

    def local_list(self, path: Path) -> File:
        return self.files[path]

    def attempt(self, *, accept: bool = False, anew: bool = False) -> float:
        return run(self.local.attempt(accept=accept, anew=anew))

    def set(self, path: Path | None) -> None:
        self.config.set(replace(self.config.value, custom_blacklist=path))


# What has changed


def test_another_version_is_what_is_in_it() -> None:
    bench = Bench(ONE)
    bench.file.write(OTHER)
    change = run(bench.local.change())
    assert change is not None
    assert (change.name, change.content) == (LOCAL_FILE, listing(OTHER))
    assert change.offer is not None
    assert change.offer.local


def test_a_version_that_is_in_force_already_is_none() -> None:
    bench = Bench()
    # In two generations, and with another source beside it.
    known = (LOCAL_FILE, listing(ONE)), (LOCAL_FILE, listing(OTHER)), (SIKKERAPI, listing("203.0.113.1"))
    bench.lists.value = in_force(*known)
    bench.file.write(OTHER, ONE, "# a comment")
    assert run(bench.local.change()) is None


def test_a_file_that_is_no_longer_wanted_is_taken_out_once() -> None:
    bench = Bench(ONE)
    bench.set(None)
    assert run(bench.local.change()) == Change(LOCAL_FILE)
    bench.lists.value = None
    assert run(bench.local.change()) is None
    assert bench.file.readings == 0


def test_a_file_that_another_setting_names_is_another_one() -> None:
    bench = Bench(ONE)
    bench.files[ELSEWHERE].write(OTHER)
    assert run(bench.local.change()) is None
    bench.set(ELSEWHERE)
    change = run(bench.local.change())
    assert change is not None
    assert change.content == listing(OTHER)


@pytest.mark.parametrize(("changes", "readings"), [(0, 1), (1, 2), (2, 3), (99, 3)])
def test_a_file_that_changes_while_it_is_read_is_read_again_but_not_for_ever(changes: int, readings: int) -> None:
    bench = Bench()

    def touch() -> None:
        if bench.file.readings < changes:
            bench.file.touch()

    bench.file.during = touch
    assert run(bench.local.change()) is not None
    assert bench.file.readings == readings


def test_comments_alone_block_nothing_which_is_a_change_where_something_was() -> None:
    for known in ((), (ONE,)):
        bench = Bench(*known)
        bench.file.write("# nobody yet")
        assert run(bench.local.change()) == (Change(LOCAL_FILE, listing()) if known else None)


# When it is read


def wishes(bench: Bench, *steps: tuple[float, Callable[[], object]], seconds: float = 60.0) -> list[float]:
    """When the file was wanted, while it is watched and these steps are done at their seconds."""
    found = []

    async def work() -> None:
        now = asyncio.get_running_loop().time

        async def note() -> None:
            while True:
                await bench.signal.wait()
                assert bench.local.take_wish()
                assert not bench.local.take_wish()
                found.append(now())

        tasks = [asyncio.create_task(bench.local.run()), asyncio.create_task(note())]
        for at, step in steps:
            await asyncio.sleep(at - now())
            step()
        await asyncio.sleep(seconds - now())
        for task in tasks:
            task.cancel()

    run(work())
    return found


def test_it_is_read_once_it_has_changed_and_stayed_so_for_a_second() -> None:
    bench = Bench()
    assert wishes(bench, (10.5, lambda: bench.file.write(OTHER))) == [12.0]


def test_one_that_stays_as_it_is_is_not_read() -> None:
    assert wishes(Bench()) == []


def test_one_that_is_put_back_as_it_was_is_not_read() -> None:
    bench = Bench()
    before = bench.file.present

    def put_back() -> None:
        bench.file.present = before

    assert wishes(bench, (10.5, bench.file.touch), (11.5, put_back)) == []


def test_one_that_is_written_all_the_time_is_read_all_the_same() -> None:
    bench = Bench()
    bench.file.restless = True
    assert wishes(bench, seconds=35) == [10.0, 20.0, 30.0]


def test_another_setting_has_it_read_too() -> None:
    bench = Bench()
    assert wishes(bench, (10.5, lambda: bench.set(None)), (30.5, lambda: bench.set(ELSEWHERE))) == [12.0, 32.0]


def test_what_is_asked_for_is_wanted_at_once() -> None:
    bench = Bench()
    assert wishes(bench, (10.5, bench.local.want)) == [10.5]


# What is the matter with it


def test_a_version_is_judged_once_and_its_trouble_said_once(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()

    async def work() -> None:
        assert await bench.local.is_new()
        for _ in range(2):
            await bench.local.judge("It is empty", final=True, outlook="it is read again when it has changed")
            assert not await bench.local.is_new()
            assert bench.local.trouble == "It is empty"
        bench.file.touch()
        assert await bench.local.is_new()
        await bench.local.judge("It is too large", final=False, outlook="next try in 1h")
        # That was not the last word.
        assert await bench.local.is_new()
        await bench.local.judge("", final=True, outlook="")
        assert not await bench.local.is_new()
        assert bench.local.trouble == ""

    run(work())
    assert caplog.messages == ["It is empty; it is read again when it has changed.", "It is too large; next try in 1h."]


# Bringing it in force


class Runner(UpdateRunner):
    """Puts changes in force, or raises."""

    def __init__(self) -> None:
        self.state = ListState()
        self.taken: list[tuple[Sequence[Change], bool]] = []
        self.error: BaseException | None = None
        self.troubles: list[tuple[str, str]] = []

    async def put_in_force(self, changes: Sequence[Change], *, accept: bool) -> None:
        if self.error is not None:
            raise self.error
        self.taken.append((changes, accept))

    def local_file_stays(self) -> str:
        return "its version of 1h ago (1 entry) stays in force"

    def note_trouble(self, name: str, trouble: str) -> None:
        self.troubles.append((name, trouble))


def test_a_new_version_is_put_in_force_once() -> None:
    bench = Bench()
    assert bench.attempt() == math.inf
    ((changes, accept),) = bench.runner.taken
    assert [change.content for change in changes] == [listing(ONE)]
    assert not accept
    assert bench.attempt() == math.inf
    assert len(bench.runner.taken) == bench.file.readings == 1
    bench.file.write(OTHER)
    bench.attempt()
    assert len(bench.runner.taken) == 2
    assert bench.runner.troubles == [(LOCAL_FILE, "")] * 2


def test_one_that_is_accepted_is_read_again_though_it_was_judged() -> None:
    bench = Bench()
    bench.attempt()
    bench.attempt(accept=True)
    assert [accept for _, accept in bench.runner.taken] == [False, True]


def test_nothing_takes_the_place_of_a_list_that_only_the_kernel_knows() -> None:
    bench = Bench()
    bench.runner.state = ListState(blocked_v4=8000)
    assert bench.attempt(accept=True, anew=True) == math.inf
    assert bench.file.readings == 0
    bench.lists.value = in_force((SIKKERAPI, listing("203.0.113.1")))
    bench.attempt()
    assert len(bench.runner.taken) == 1


def test_one_that_says_what_is_in_force_touches_nothing() -> None:
    bench = Bench(ONE)
    assert bench.attempt() == math.inf
    assert bench.runner.taken == []
    assert bench.runner.troubles == [(LOCAL_FILE, "")]


@pytest.mark.parametrize(
    ("error", "pause", "trouble"),
    [
        # Only another version can help.
        (ListError("it covers too much"), math.inf, "It covers too much"),
        # If it is the same when it is read again, it is believed.
        (HeldBackError("it shrank", frozenset({"halved"})), 900 * (1 - 0.25 / 2), "It shrank"),
        (SelfTestError("the self-test failed"), 300.0, "The self-test failed"),
        (KernelError("it refuses"), 300.0, "It refuses"),
        (
            MemoryError(),
            math.inf,
            "There is not enough memory for the list; give the service more, or block fewer addresses",
        ),
        (ZeroDivisionError("a defect"), 300.0, "An error that nobody expected (ZeroDivisionError: a defect)"),
    ],
)
def test_what_a_failure_means_for_the_next_try(
    error: Exception, pause: float, trouble: str, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench()
    bench.runner.error = error
    assert bench.attempt() == pause
    said = f"{trouble}; its version of 1h ago (1 entry) stays in force"
    assert bench.runner.troubles == [(LOCAL_FILE, said)]
    assert bench.local.trouble == said
    assert caplog.messages[-1].startswith(f"{said}; ")
    # What will be tried again is read again; what will not, is not.
    bench.attempt()
    assert bench.file.readings == (1 if pause == math.inf else 2)
    # It is read when someone asks for it with another version.
    bench.runner.error = None
    bench.file.write(OTHER)
    assert bench.attempt(anew=True) == math.inf
    assert bench.local.trouble == ""
    assert bench.runner.troubles[-1] == (LOCAL_FILE, "")


def test_pauses_grow_and_begin_anew_when_somebody_asks() -> None:
    bench = Bench()
    bench.runner.error = UnexpectedError("an error")
    pauses = [bench.attempt() for _ in range(4)]
    assert pauses == sorted(set(pauses))
    assert bench.attempt(anew=True) == pauses[0]
    bench.runner.error = None
    bench.attempt()
    bench.runner.error = UnexpectedError("an error")
    bench.file.touch()
    bench.file.write(OTHER)
    assert bench.attempt() == pauses[0]


def test_for_what_a_version_was_held_back_is_remembered() -> None:
    bench = Bench()
    bench.runner.error = HeldBackError("it shrank", frozenset({"halved"}))
    bench.attempt()
    assert bench.journal.memory.of(LOCAL_FILE).held_back == {"halved"}
    bench.runner.error = ListError("it covers too much")
    bench.attempt()
    assert bench.journal.memory.of(LOCAL_FILE).held_back == frozenset()
    assert bench.journal.memory.unfinished == 0


def test_a_file_that_can_not_be_read_leaves_what_is_in_force(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench(ONE)
    bench.file.fail("stream", *[ListError(f"{PATH} can't be read (No such file or directory)")] * 2)
    assert bench.attempt() == math.inf
    bench.attempt()
    assert bench.runner.taken == []
    said = f"{PATH} can't be read (No such file or directory); its version of 1h ago (1 entry) stays in force"
    assert caplog.messages == [f"{said}; it is read again when it has changed."]


def test_a_stop_in_the_middle_is_no_failure() -> None:
    bench = Bench()
    bench.file.seconds = 10.0

    async def work() -> None:
        task = asyncio.create_task(bench.local.attempt(accept=False, anew=False))
        await asyncio.sleep(5)
        assert bench.journal.memory.unfinished == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert bench.journal.memory.unfinished == 0
        assert bench.local.trouble == ""
        assert await bench.local.is_new()

    run(work())
    assert bench.runner.troubles == []
