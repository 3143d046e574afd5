"""Pulls without a kernel, a network or a disk: what is put in force, what is refused, and when it is tried again."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from sikkerguard.config.settings import Config
from sikkerguard.core.host.surroundings import Gateway, Surroundings
from sikkerguard.core.lists.allowlist import GATEWAY, AllowEntry, Allowlist
from sikkerguard.core.lists.sources import SIKKERAPI, ListedSource, VerifiedList
from sikkerguard.core.net.address import parse_prefix
from sikkerguard.core.net.family import Family
from sikkerguard.core.state import State
from sikkerguard.errors import FetchError, ListError
from sikkerguard.service.adapters import Adapters
from sikkerguard.service.kernel_thread import KernelThread
from sikkerguard.service.pull_loop import PullLoop
from sikkerguard.service.repair_loop import Keeper
from sikkerguard.service.state_writer import StateWriter
from sikkerguard.service.supervision import Unknown
from tests.unit.core.host.test_connections import flow, own
from tests.unit.core.lists.test_admission import listing
from tests.unit.service.test_trial import Host, Kernel

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence

    from sikkerguard.core.host.flows import Flow
    from sikkerguard.service.list_update import InForce

CROWD = [f"198.51.{number >> 8}.{number & 255}" for number in range(100 << 8, (100 << 8) + 2000)]
CROWD_LINES = "".join(f"{line}\n" for line in CROWD).encode()
FILE = Path("/nowhere/mine.txt")


class Store:
    """A disk, in memory."""

    def __init__(self) -> None:
        self.list: VerifiedList | None = None
        self.pulls: dict[str, Any] = {}
        self.written: list[int] = []

    def claim(self) -> bool:
        return False

    def save_list(self, verified: VerifiedList) -> None:
        self.list = verified

    def load_list(self) -> VerifiedList | None:
        return self.list

    def save_allowlist(self, allowlist: Allowlist) -> None:
        pass

    def load_allowlist(self) -> Allowlist:
        return Allowlist()

    def save_pulls(self, known: dict[str, Any]) -> None:
        self.pulls = known
        self.written.append(known["unfinished"])

    def load_pulls(self) -> dict[str, Any]:
        return self.pulls

    def load_ways(self) -> dict[str, Any]:
        return {}

    def save_ways(self, known: Mapping[str, Any]) -> None:
        pass

    def save_settings(self, texts: Mapping[str, str]) -> None:
        pass


@dataclass
class Api:
    """SikkerAPI: gives these lines, or raises."""

    lines: list[str] = field(default_factory=list)
    error: BaseException | None = None
    remaining: int | None = None
    asked: int = 0
    hangs: bool = False
    scores: list[int] = field(default_factory=list)
    held: asyncio.Event | None = None

    async def pull(self, score_min: int, sink: Callable[[bytes], Awaitable[None]]) -> Api:
        self.asked += 1
        self.scores.append(score_min)
        if self.hangs:
            await asyncio.Event().wait()
        if self.held is not None:
            await self.held.wait()
        if self.error is not None:
            raise self.error
        await sink("".join(f"{line}\n" for line in self.lines).encode())
        return self


class Open:
    """The way to SikkerAPI, always open."""

    async def open(self, config: Config) -> bool:
        return False


@dataclass
class File:
    """The owner's file."""

    content: bytes | None = None
    version: int = 0
    error: BaseException | None = None
    restless: bool = False
    readings: int = 0
    marks: set[int] = field(default_factory=set)
    store: Store | None = None

    def write(self, content: bytes | None) -> None:
        self.content, self.version = content, self.version + 1

    def stamp(self, path: str) -> object:
        self.version += self.restless
        return self.version

    def read(self, path: str) -> bytes:
        self.readings += 1
        if self.store is not None and self.store.pulls:
            self.marks.add(self.store.pulls["unfinished"])
        if self.error is not None:
            raise self.error
        if self.content is None:
            raise ListError(f"{path} can't be read (No such file or directory)")
        return self.content


@dataclass
class Desk:
    """A puller with all that it needs, and what it told."""

    puller: PullLoop
    disk: StateWriter
    complaints: list[str]
    kernel: Kernel
    store: Store
    api: Api
    file: File
    states: list[State]
    live: list[InForce] = field(default_factory=list)
    config: Config = field(default_factory=lambda: Config(api_key="sk_free_x"))

    @property
    def state(self) -> State:
        return self.states[-1]

    async def until(self, condition: Callable[[], object], seconds: float = 5) -> None:
        async with asyncio.timeout(seconds):
            while not condition():
                await asyncio.sleep(0.005)

    @contextlib.asynccontextmanager
    async def running(self) -> Any:
        tasks = [asyncio.create_task(self.puller.pull_forever())]
        tasks.append(asyncio.create_task(self.puller.watch_file_forever()))
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            for outcome in await asyncio.gather(*tasks, return_exceptions=True):
                assert isinstance(outcome, asyncio.CancelledError), outcome
            await self.disk.settled(5)

    def has_pulled(self, times: int) -> bool:
        return self.state.pulls == times

    def pauses(self) -> float:
        assert self.state.next_pull_at is not None
        return self.state.next_pull_at - time.time()


@contextmanager
def desk(store: Store | None = None, flows: Sequence[Flow] = (), **settings: Any) -> Iterator[Desk]:
    with ThreadPoolExecutor(1) as pool:
        owner, kernel, api, file = KernelThread(pool), Kernel(), Api(CROWD), File()
        host = Host(kernel, flows)
        known = file.store = store or Store()
        unknown = Unknown()
        states = [State(started_at=time.time(), dry_run=False)]
        complaints: list[str] = []

        def change(**changes: Any) -> None:
            states.append(replace(states[-1], **changes))

        here = Surroundings(
            (AllowEntry(*parse_prefix("192.0.2.1"), GATEWAY),), frozenset({Gateway(Family.V4, "192.0.2.1", 1)})
        )
        disk = StateWriter(known, "/state", complaints.append)
        keeper = Keeper(
            kernel,
            owner,
            disk,
            lambda ways: here,
            lambda changed: None,
            lambda: None,
            change,
            lambda: None,
            unknown,
        )
        keeper.gateways = here.gateways
        edges = Adapters(
            kernel=kernel,
            store=known,
            list_file=file,
            connections=host,
            counts=None,
            outbox=None,
            notifier=None,  # type: ignore[arg-type]
            way=None,  # type: ignore[arg-type]
            make_door=None,  # type: ignore[arg-type]
            detect=lambda *_: here,
            make_api=lambda config: api,
            make_reports=None,  # type: ignore[arg-type]
            make_probes=lambda config: host,
            make_watch=None,  # type: ignore[arg-type]
            open_log=lambda choice: None,
        )

        def live(in_force: InForce) -> None:
            made.live.append(in_force)
            change(protecting=len(in_force.admitted.blocklist) > 0)

        puller = PullLoop(
            edges,
            disk,
            owner,
            keeper,
            Open(),  # type: ignore[arg-type]
            lambda: made.config,
            lambda: states[-1],
            change,
            live,
            lambda: None,
            lambda: None,
            lambda: nullcontext(frozenset()),
            unknown,
        )
        made = Desk(puller, disk, complaints, kernel, known, api, file, states)
        made.config = replace(made.config, **settings)
        yield made
        keeper.close()


def test_a_list_is_pulled_and_its_size_remembered() -> None:
    async def run(made: Desk) -> None:
        async with made.running():
            await made.until(lambda: made.state.pulls)

    with desk() as made:
        asyncio.run(run(made))
        assert [len(each.admitted.blocklist) for each in made.live] == [2000]
        assert made.state.lists[0].entries == 2000
        assert made.state.lists[0].covered_v4 == 2000 / 2**32
        assert made.store.written[0] == 1
        assert made.store.written[-1] == 0
        assert 0.9 * 86400 < made.pauses() < 1.1 * 86400


def test_want_of_memory_is_a_failed_pull() -> None:
    async def run(made: Desk) -> None:
        made.api.error = MemoryError()
        async with made.running():
            await made.until(lambda: made.state.pulls)
            made.api.error = None
            made.puller.pull_now()
            await made.until(lambda: made.state.pulls == 2)

    with desk() as made:
        asyncio.run(run(made))
        failed = next(state for state in made.states if state.pulls == 1)
        assert failed.last_pull is not None
        assert "not enough memory" in failed.last_pull.failure
        assert len(made.live) == 1
        assert made.store.pulls["unfinished"] == 0


def test_want_of_memory_in_the_file_leaves_the_list(caplog: pytest.LogCaptureFixture) -> None:
    async def run(made: Desk) -> None:
        async with made.running():
            await made.until(lambda: made.state.pulls)

    with desk(custom_blacklist=FILE) as made:
        made.file.error = MemoryError()
        asyncio.run(run(made))
        assert [len(each.admitted.blocklist) for each in made.live] == [2000]
    assert "not enough memory for the list" in caplog.text


def test_a_process_that_dies_in_a_pull_leaves_a_mark_by_which_the_next_one_waits(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = Store()

    async def die(made: Desk) -> None:
        made.api.hangs = True
        async with made.running():
            await made.until(lambda: made.api.asked)
            # What a process that is killed here leaves on the disk.
            made.store.pulls = dict(made.store.pulls)
            left.append(dict(made.store.pulls))

    left: list[dict[str, Any]] = []
    with desk(store) as made:
        asyncio.run(die(made))
    # A stop in the middle of a pull is no death.
    assert left[0]["unfinished"] == 1
    assert store.pulls["unfinished"] == 0

    async def begin(made: Desk) -> None:
        await made.disk.load()
        made.puller.load_cached()
        async with made.running():
            await made.until(lambda: "began" in caplog.text or "ended in the middle" in caplog.text)
            await asyncio.sleep(0.05)

    for died, longest in ((1, 60 * 1.25), (4, 60.0)):
        store.pulls = {**left[0], "unfinished": died}
        caplog.clear()
        with desk(store) as made:
            asyncio.run(begin(made))
            assert made.api.asked == 0
            assert 40 < made.pauses() <= longest
        assert "The last run ended in the middle of an update" in caplog.text
        assert (", as did 3 before it" in caplog.text) == (died == 4)


def test_what_is_held_back_is_asked_for_again_after_a_quarter_of_an_hour() -> None:
    async def run(made: Desk) -> None:
        async with made.running():
            await made.until(lambda: made.state.pulls)
            for pulls in (2, 3):
                made.api.lines = CROWD[:600]
                made.puller.pull_now()
                await made.until(partial(made.has_pulled, pulls))
                pauses.append(made.pauses())

    pauses: list[float] = []
    with desk() as made:
        asyncio.run(run(made))
        assert 600 < pauses[0] <= 900
        assert pauses[1] > 3600
        assert [len(each.admitted.blocklist) for each in made.live] == [2000, 600]


@pytest.mark.parametrize("first", ["SikkerAPI", "the file"])
def test_a_source_s_first_version_is_never_held_back_for_what_it_cuts(first: str) -> None:
    async def run(made: Desk) -> None:
        made.file.write(b"203.0.113.7\n" if first == "SikkerAPI" else CROWD_LINES)
        made.api.lines = CROWD if first == "SikkerAPI" else ["203.0.113.7"]
        if first == "the file":
            made.config = replace(made.config, custom_blacklist=None)
        async with made.running():
            await made.until(lambda: made.state.pulls)
            made.config = replace(made.config, custom_blacklist=FILE)
            await made.until(lambda: len(made.live) == 2)
            # A later version is, once.
            if first == "SikkerAPI":
                made.api.lines = [*CROWD, *(f"198.51.200.{number}" for number in range(9))]
                made.puller.pull_now()
                await made.until(lambda: made.state.pulls == 2)
                assert "cuts connections" in last_failure(made)
                made.puller.pull_now()
                await made.until(lambda: len(made.live) == 3)

    with desk(custom_blacklist=FILE, flows=[*own(6), *(flow(f"198.51.200.{number}") for number in range(9))]) as made:
        asyncio.run(run(made))


def last_failure(made: Desk) -> str:
    assert made.state.last_pull is not None
    return made.state.last_pull.failure


def test_a_server_that_takes_its_time_keeps_the_file_from_nothing() -> None:
    async def run(made: Desk) -> None:
        made.api.hangs = True
        async with made.running():
            await made.until(lambda: made.api.asked)
            made.file.write(b"203.0.113.7\n")
            await made.until(lambda: made.live)
            assert made.state.pulling
            # Another update has ended, and the pull is still under way.
            assert made.store.pulls["unfinished"] == 1

    with desk(custom_blacklist=FILE) as made:
        asyncio.run(run(made))
        assert made.store.pulls["unfinished"] == 0


def test_a_fetch_that_is_under_way_is_broken_off_for_newer_settings(caplog: pytest.LogCaptureFixture) -> None:
    async def run(made: Desk) -> None:
        made.api.hangs = True
        async with made.running():
            await made.until(lambda: made.api.asked)
            made.api.hangs = False
            made.config = replace(made.config, score_min=90)
            number = made.puller.pull_now()
            await made.until(lambda: made.state.pulls == 1)
            assert (made.api.asked, made.api.scores) == (2, [50, 90])
            assert made.state.pull_answered == number
            assert not made.state.pulling
            assert made.store.pulls["unfinished"] == 0

    with desk() as made, caplog.at_level("INFO"):
        made.store.list = VerifiedList((ListedSource(SIKKERAPI, listing("203.0.113.7"), time.time()),), time.time())
        made.puller.load_cached()
        # The wish to take a list of whatever size is for the one that is broken off, and then for the next.
        made.puller.pull_now(accept=True)
        asyncio.run(run(made))
        assert [len(each.admitted.blocklist) for each in made.live] == [2000]
    assert "broken off, and begun anew" in caplog.text


def test_a_trial_that_is_under_way_comes_to_its_end(caplog: pytest.LogCaptureFixture) -> None:
    async def run(made: Desk) -> None:
        async with made.running():
            await made.until(lambda: "begin" in made.kernel.steps)
            numbers = [made.puller.pull_now() for _ in range(2)]
            await made.until(lambda: made.state.pulls == 2)
            # The one that was under way answers neither wish, the one behind it both.
            assert [state.pull_answered for state in made.states if state.pulls == 1][-1] < numbers[0]
            assert made.state.pull_answered == numbers[1]

    with desk() as made, caplog.at_level("INFO"):
        asyncio.run(run(made))
        assert made.api.asked == 2
        assert "rollback" not in made.kernel.steps
    assert "broken off" not in caplog.text


@pytest.mark.parametrize("where", ["fetch", "file", "trial"])
def test_what_nobody_expected_is_a_failed_pull_and_the_next_one_is_made(
    where: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = ValueError("Invalid IPv6 URL \x1b[2J")

    async def run(made: Desk) -> None:
        async with made.running():
            await made.until(lambda: made.state.pulls)
            for pulls in (2, 3):
                made.puller.pull_now()
                await made.until(partial(made.has_pulled, pulls))
            assert made.state.last_pull is not None
            if where != "file":
                assert (
                    made.state.last_pull.failure == "an error that nobody expected (ValueError: Invalid IPv6 URL ?[2J)"
                )
                assert 200 < made.pauses() < 3600
            else:
                assert len(made.live) == 3
            monkeypatch.undo()
            made.api.error = made.file.error = None
            made.puller.pull_now()
            await made.until(partial(made.has_pulled, 4))
            assert made.state.last_pull.failure == ""

    def fail(*_: object) -> None:
        raise error

    with desk(custom_blacklist=FILE) as made:
        if where == "fetch":
            made.api.error = error
        elif where == "file":
            made.file.error = error
        else:
            monkeypatch.setattr(made.kernel, "stage", fail)
        asyncio.run(run(made))
    # Its trace is told once, however often it comes.
    assert len([record for record in caplog.records if record.exc_info]) == 1
    assert "\x1b" not in "".join(record.getMessage() for record in caplog.records)


def test_only_a_person_can_mend_a_key() -> None:
    async def run(made: Desk) -> None:
        async with made.running():
            for pulls, error, uncorrected in (
                (1, FetchError("does not know this key (401)", retryable=False), True),
                (2, FetchError("no answer", retryable=True), False),
                (3, None, False),
            ):
                made.api.error = error
                made.puller.pull_now()
                await made.until(partial(made.has_pulled, pulls))
                assert made.puller.uncorrected == uncorrected

    with desk() as made:
        asyncio.run(run(made))


def test_a_bad_file_keeps_sikkerapi_s_first_list_from_nothing() -> None:
    async def run(made: Desk) -> None:
        made.file.write(b"203.0.113.7\n" * 20 + b"2.0.0.0/7\n")
        async with made.running():
            await made.until(lambda: made.state.pulls)
            assert [len(each.admitted.blocklist) for each in made.live] == [2000]

    for protecting in (False, True):
        with desk(custom_blacklist=FILE) as made:
            # With True, as after a start that found a list in the kernel and none on the disk.
            made.states[-1] = replace(made.states[-1], protecting=protecting)
            asyncio.run(run(made))


def test_a_list_that_an_earlier_version_took_though_it_covers_too_much_is_not_used(
    caplog: pytest.LogCaptureFixture,
) -> None:
    wide = listing(*(f"{first}.0.0.0/8" for first in range(1, 224)))
    mine = listing("203.0.113.7")
    store = Store()
    store.list = VerifiedList(
        (ListedSource("SikkerAPI", wide, 0.0), ListedSource("SIKKER_CUSTOM_BLACKLIST", mine, 0.0)), time.time()
    )
    with desk(store, custom_blacklist=FILE) as made:
        made.file.write(b"203.0.113.7\n")
        asyncio.run(made.disk.load())
        made.puller.load_cached()
        assert made.puller.in_force is not None
        assert made.puller.in_force.admitted.blocklist == mine
        # What is pulled then is a first version.
        made.store.list = None
        asyncio.run(pull_once(made))
        assert len(made.live[-1].admitted.blocklist) == 2000 + 1
    assert "The list of SikkerAPI that is kept on disk covers 86.2% of IPv4" in caplog.text


async def pull_once(made: Desk) -> None:
    async with made.running():
        await made.until(lambda: made.state.pulls)


def test_the_file_is_read_again_only_where_it_may_have_changed() -> None:
    async def run(made: Desk) -> None:
        made.file.write(b"<html>\n")
        async with made.running():
            await made.until(lambda: made.state.pulls)
            readings.append(made.file.readings)
            made.puller.pull_now()
            await made.until(partial(made.has_pulled, 2))
            readings.append(made.file.readings)
            made.file.write(b"203.0.113.7\n")
            await made.until(lambda: len(made.live) == 3)

    readings: list[int] = []
    with desk(custom_blacklist=FILE) as made:
        asyncio.run(run(made))
        assert readings[0] == readings[1]
        # A process that dies while it reads leaves a mark too.
        assert made.file.marks == {1}


def test_a_file_that_never_rests_is_read_in_the_end() -> None:
    async def run(made: Desk) -> None:
        made.file.write(b"203.0.113.7\n")
        async with made.running():
            await made.until(lambda: made.state.pulls)
            made.file.restless = True
            made.file.write(b"203.0.113.8\n")
            await made.until(lambda: len(made.live) == 3, 20)

    with desk(custom_blacklist=FILE) as made:
        asyncio.run(run(made))


def test_the_file_is_in_force_while_sikkerapi_does_not_answer() -> None:
    async def run(made: Desk) -> None:
        made.api.error = FetchError("SikkerAPI says no (429)", retryable=True, quota=True)
        made.file.write(b"203.0.113.7\n")
        async with made.running():
            await made.until(lambda: made.state.pulls)
            made.file.write(b"203.0.113.7\n203.0.113.8\n")
            await made.until(lambda: len(made.live) == 2)
            made.file.write(b"")
            await made.until(lambda: made.state.lists[-1].trouble and made.state.lists[0].trouble)
            made.file.write(b"# nobody\n")
            await made.until(lambda: len(made.live) == 3)

    with desk(custom_blacklist=FILE) as made:
        asyncio.run(run(made))
        assert [len(each.admitted.blocklist) for each in made.live] == [1, 2, 0]
        assert made.api.asked == 1
        assert not made.state.protecting


def test_a_file_that_cannot_be_read_holds_up_nothing() -> None:
    async def run(made: Desk) -> None:
        async with made.running():
            await made.until(lambda: made.state.pulls)
            made.file.write(b"203.0.113.7\n")
            await made.until(lambda: len(made.live) == 2)

    with desk(custom_blacklist=FILE) as made:
        asyncio.run(run(made))
        assert [len(each.admitted.blocklist) for each in made.live] == [2000, 2001]


def test_the_wish_to_accept_counts_for_both_sources_and_once() -> None:
    async def run(made: Desk) -> None:
        made.file.write(b"203.0.113.7\n")
        async with made.running():
            await made.until(lambda: made.state.pulls)
            made.api.lines = CROWD[:20]
            made.file.write(b"".join(b"203.0.%d.%d\n" % (number >> 8, number & 255) for number in range(3000)))
            made.puller.pull_now(accept=True)
            await made.until(lambda: made.state.pulls == 2)
            made.api.lines = CROWD
            made.puller.pull_now()
            await made.until(lambda: made.state.pulls == 3)

    with desk(custom_blacklist=FILE, max_growth=1.1) as made:
        asyncio.run(run(made))
        # 20 addresses are in force: their 100-fold is within what four weeks have seen, and no more is accepted.
        assert [len(each.admitted.blocklist) for each in made.live][-2:] == [3020, 5000]


# A disk that hangs


def test_an_update_does_not_wait_for_its_mark_on_a_disk_that_hangs() -> None:
    store, may_go = Store(), threading.Event()
    saved = store.save_pulls

    def hang(known: dict[str, Any]) -> None:
        may_go.wait(30)
        saved(known)

    async def run(made: Desk) -> None:
        began = time.monotonic()
        async with made.running():
            await made.until(lambda: made.live, 10)
            assert time.monotonic() - began < 8
            assert store.written == []
            made.puller.pull_now()
            began = time.monotonic()
            await made.until(partial(made.has_pulled, 2), 10)
            # From then on it is known to hang.
            assert time.monotonic() - began < 2
            # A stop in the middle of a pull waits for it as little.
            made.api.hangs = True
            made.puller.pull_now()
            await made.until(lambda: made.api.asked == 3)
            began = time.monotonic()
        assert time.monotonic() - began < 7
        may_go.set()
        await made.until(lambda: store.list is not None and store.written[-1] == 0)

    with desk(store) as made, pytest.MonkeyPatch.context() as patched:
        patched.setattr(store, "save_pulls", hang)
        asyncio.run(run(made))


def test_the_list_file_s_disk_may_hang_and_pulls_go_on() -> None:
    may_go = threading.Event()

    async def run(made: Desk) -> None:
        stamp = made.file.stamp

        def hang(path: str) -> object:
            may_go.wait(30)
            return stamp(path)

        async with made.running():
            await made.until(partial(made.has_pulled, 1), 10)
            made.file.stamp = hang  # type: ignore[method-assign]
            for pulls in (2, 3):
                made.puller.pull_now()
                await made.until(partial(made.has_pulled, pulls), 10)
            may_go.set()
            made.file.stamp = stamp  # type: ignore[method-assign]
            made.file.write(b"203.0.113.9\n")
            await made.until(lambda: len(made.live[-1].admitted.blocklist) == 2001, 15)

    with desk(custom_blacklist=FILE) as made:
        made.file.write(b"# nothing yet\n")
        asyncio.run(run(made))
