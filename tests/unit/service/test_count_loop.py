"""The count loop over a scripted kernel, in virtual time: what it logs, keeps and shows agrees, and is all that was
dropped."""

from __future__ import annotations

import asyncio
import logging
import re
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sikkerguard.config.settings import Config
from sikkerguard.core.net.family import Family
from sikkerguard.core.ports.protocols import REPLY
from sikkerguard.core.traffic.attribution import SetListing, attribute
from sikkerguard.core.traffic.records import SavedTraffic
from sikkerguard.core.traffic.sample import NOTHING, UNATTRIBUTED, DropEvent, PacketCount, TrafficSample, TrafficStats
from sikkerguard.core.traffic.totals import Totals, day_of
from sikkerguard.errors import KernelError, RecordError
from sikkerguard.service.count_loop import CountLoop, TrafficState
from sikkerguard.service.disk_thread import DiskThread
from sikkerguard.service.kernel_thread import KernelThread
from sikkerguard.service.wakeup import Wakeup, Watched
from tests.unit.service.virtual_time import BEGINNING, VirtualClock, run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from sikkerguard.core.interfaces import FirewallBackend
    from sikkerguard.core.traffic.records import PendingTraffic
    from sikkerguard.core.traffic.sample import FlowKey

_Result = TypeVar("_Result")

LOGGERS = {"sikkerguard.service.count_loop": logging.INFO, "sikkerguard.service.traffic_saver": logging.DEBUG}
BROKEN = "/state/records.sqlite3 can't be used (disk full); make room, or fix its permissions"
TODAY = day_of(BEGINNING)


def now() -> float:
    return asyncio.get_running_loop().time()


class Kernel:
    """Gives these samples, some of them each time it is asked, and then empty ones; an error is raised instead."""

    def __init__(self, *script: list[TrafficSample] | KernelError) -> None:
        self.script = list(script)
        self.held = False
        self.resumed: Mapping[Family, PacketCount] | None = None
        self.asked: list[float] = []
        self.counters: Mapping[Family, PacketCount] = {}

    def hold_counters(self) -> None:
        assert not self.asked
        self.held = True

    def resume_counters(self, counters: Mapping[Family, PacketCount]) -> None:
        self.resumed = counters

    def read_traffic(self) -> tuple[TrafficSample, ...]:
        assert self.resumed is not None
        self.asked.append(now())
        found = self.script.pop(0) if self.script else [TrafficSample(counters=self.counters)]
        if isinstance(found, KernelError):
            raise found
        self.counters = found[-1].counters if found else self.counters
        return tuple(found)


class GatedThread(KernelThread):
    """While `gate` is closed, what the kernel said is not yet known to the loop; and it `takes` so many seconds."""

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(cast("FirewallBackend", kernel))
        self.gate = asyncio.Event()
        self.gate.set()
        self.takes = 0.0

    async def read_traffic(self) -> tuple[TrafficSample, ...]:
        found = await super().read_traffic()
        await asyncio.sleep(self.takes)
        await self.gate.wait()
        return found


class Records:
    """What is kept. `logged` says how many packets are on lines by now."""

    def __init__(self, logged: Callable[[], int]) -> None:
        self.totals = Totals()
        self.sources: set[bytes] = set()
        self.ports: dict[tuple[int, int], int] = {}
        self.flows: Counter[FlowKey] = Counter()
        self.overflow = 0
        self.saves = 0
        self.broken = ""
        self._logged = logged

    def close(self) -> None:
        """Nothing is open."""

    def load(self) -> SavedTraffic:
        self._try()
        return SavedTraffic(self.totals, frozenset(self.sources), dict(self.ports))

    def save(self, pending: PendingTraffic) -> None:
        self._try()
        # What is kept is on lines already, or about to be: never is it logged first.
        assert self._logged() <= pending.totals.logged
        self.saves += 1
        self.totals = pending.totals
        self.flows.update(pending.flows)
        self.overflow += pending.overflow
        self.sources = {*pending.sources} | (set() if pending.new_day else self.sources)
        self.ports = dict(pending.ports)

    def _try(self) -> None:
        if self.broken:
            raise RecordError(self.broken)


class Lines(logging.Handler):
    """What is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.warnings: list[str] = []
        self.errors: list[str] = []
        # Told at level debug, since the announcer logs them aloud.
        self.troubles: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        of_level = {
            logging.ERROR: self.errors,
            logging.WARNING: self.warnings,
            logging.INFO: self.texts,
            logging.DEBUG: self.troubles,
        }
        of_level[record.levelno].append(record.getMessage())

    def packets(self) -> int:
        found = [re.fullmatch(r"BLOCKED .* x(\d+)", text) for text in self.texts]
        assert all(found)
        return sum(int(match[1]) for match in found if match)


@contextmanager
def logged() -> Iterator[Lines]:
    lines, loggers = Lines(), [logging.getLogger(name) for name in LOGGERS]
    before = [(logger.level, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.addHandler(lines)
        logger.setLevel(LOGGERS[logger.name])
        logger.propagate = False
    try:
        yield lines
    finally:
        for logger, (level, propagate) in zip(loggers, before, strict=True):
            logger.removeHandler(lines)
            logger.setLevel(level)
            logger.propagate = propagate


class Desk:
    """A count loop with all that it works with. To be made within the event loop."""

    def __init__(
        self,
        lines: Lines,
        kernel: Kernel,
        records: Records | None = None,
        disk: DiskThread | None = None,
        port_map: dict[int, str] | None = None,
        *,
        without_records: bool = False,
    ) -> None:
        self.lines = lines
        self.kernel = kernel
        self.records = records or Records(lines.packets)
        self.thread = GatedThread(kernel)
        self.config = Watched(Config(port_map=port_map or {}))
        self.clock = VirtualClock()
        self.healed, self.changes = Wakeup(), Wakeup()
        self.counting = CountLoop(
            self.thread,
            None if without_records else self.records,
            disk or DiskThread("records"),
            self.config,
            self.clock,
            self.healed,
            self.changes,
        )
        self.task: asyncio.Task[None] | None = None

    @property
    def stats(self) -> TrafficStats:
        return self.counting.state.stats

    @property
    def trouble(self) -> str:
        return self.counting.state.trouble

    async def start(self) -> None:
        await self.counting.begin()
        self.task = asyncio.create_task(self.counting.run())

    async def asked(self, times: int) -> None:
        """Wait until the kernel was asked so often, and all that was in it is digested."""
        while len(self.kernel.asked) < times:
            if self.task is not None and self.task.done():
                self.task.result()
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.01)

    async def stop(self, *, final: bool = True) -> None:
        assert self.task is not None
        self.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await self.task
        await self.counting.finish(final=final)


def address(number: int) -> bytes:
    return number.to_bytes(4, "big")


def attributed(dropped: PacketCount, counters: Mapping[Family, PacketCount], *listings: SetListing) -> TrafficSample:
    """As the kernel backend attributes these listings, all of whose packets are there."""
    found, _ = attribute(listings, {})
    return replace(found, dropped=dropped, counters=counters)


def sample(
    packets: Mapping[tuple[int, int], int], counter: int, nameless: int = 0, on_the_way: int = 0
) -> TrafficSample:
    """{(source, port): packets}, all over TCP, and others; the DROP rule's counter then read so much."""
    total = sum(packets.values())
    hits = [(address(source), port, 6, 60 * number, number) for (source, port), number in packets.items()]
    entries = Counter(source for source, _ in packets)
    sources = [(address(source), 60 * number, number) for source, number in entries.items()]
    dropped = total + nameless - on_the_way
    counters = {Family.V4: PacketCount(counter, 60 * counter)}
    return attributed(PacketCount(dropped, 60 * dropped), counters, SetListing(hits, sources))


def event(source: int, port: int) -> DropEvent:
    return DropEvent(Family.V4, address(source), 6, port)


def test_what_is_logged_kept_and_shown_is_the_same() -> None:
    first, second = sample({(1, 23): 47, (2, 22): 3}, 60, nameless=10), sample({(1, 23): 5, (3, 80): 1}, 66)
    with logged() as lines:
        desk = Desk(lines, Kernel([first], [second]))

        async def work() -> None:
            await desk.start()
            await desk.asked(1)
            assert lines.texts == [
                "BLOCKED 0.0.0.1:23 (telnet) proto=TCP x47",
                "BLOCKED 0.0.0.2:22 (ssh) proto=TCP x3",
            ]
            await desk.asked(4)
            await desk.stop()

        run(work())
    records, stats = desk.records, desk.stats
    assert lines.texts[2:] == [
        "BLOCKED 0.0.0.3:80 (http) proto=TCP x1",
        "BLOCKED 0.0.0.1:23 (telnet) proto=TCP x5",
        "BLOCKED sources that were not told apart x10",
    ]
    assert lines.packets() == records.totals.logged == records.totals.dropped.packets == stats.dropped.packets == 66
    assert records.flows == {(address(1), 6, 23): 52, (address(2), 6, 22): 3, (address(3), 6, 80): 1}
    assert (records.totals.attributed, stats.unattributed) == (56, 10)
    assert records.sources == {address(1), address(2), address(3)}
    assert (stats.sources, stats.top_ports) == (3, (((6, 23), 52), ((6, 22), 3), ((6, 80), 1)))
    assert stats.dropped == stats.dropped_today == records.totals.dropped == PacketCount(66, 66 * 60)
    assert lines.errors == []


def test_replies_are_logged_and_counted() -> None:
    listing = SetListing([(address(1), 443, 6, 480, 8)], [(address(1), 60, 1), (address(2), 240, 4)], replies=True)
    replied = attributed(PacketCount(12, 720), {Family.V4: PacketCount(12, 720)}, listing)
    with logged() as lines:
        desk = Desk(lines, Kernel([replied]))

        async def work() -> None:
            await desk.start()
            await desk.asked(1)
            await desk.stop()

        run(work())
    assert lines.texts == [
        "BLOCKED 0.0.0.1 (reply from port 443) proto=TCP x8",
        "BLOCKED 0.0.0.2 (further replies) proto=any x4",
    ]
    records, stats = desk.records, desk.stats
    assert (stats.replies, stats.unattributed, stats.sources) == (12, 0, 2)
    assert stats.top_ports == (((REPLY, 443), 8), ((REPLY, UNATTRIBUTED), 4))
    assert (records.totals.replies, records.totals.attributed, records.totals.logged) == (12, 12, 12)


def test_where_nothing_happens_nothing_is_written_and_nobody_is_woken() -> None:
    with logged() as lines:
        desk = Desk(lines, Kernel())

        async def work() -> None:
            await desk.start()
            await desk.asked(10)
            await desk.stop(final=False)

        run(work())
    assert (desk.records.saves, lines.texts, lines.errors) == (0, [], [])
    assert desk.counting.state == TrafficState()
    assert not desk.changes.is_set()


def test_whoever_shows_the_state_is_woken_when_it_changes() -> None:
    with logged() as lines:
        desk = Desk(lines, Kernel([], [sample({(1, 23): 4}, 4)], [], [sample({(1, 23): 3}, 7)]))
        changed = list[bool]()

        async def work() -> None:
            await desk.start()
            for number in range(1, 5):
                await desk.asked(number)
                changed.append(desk.changes.is_set())
                desk.changes.clear()
            await desk.stop(final=False)

        run(work())
    assert changed == [False, True, False, True]
    assert desk.stats.dropped.packets == 7


def test_without_records_it_counts_and_logs_and_keeps_nothing_in_memory_for_them() -> None:
    with logged() as lines:
        desk = Desk(lines, Kernel([sample({(1, 23): 4}, 4)], [sample({(2, 23): 3}, 7)]), without_records=True)

        async def work() -> None:
            await desk.start()
            await desk.asked(3)
            await desk.stop()

        run(work())
    assert (lines.packets(), desk.stats.dropped.packets, desk.stats.sources) == (7, 7, 2)
    assert (desk.records.saves, lines.errors) == (0, [])
    memory = desk.counting._memory
    assert (memory.pending.flows, memory.pending.sources, memory.is_unsaved) == ({}, (), False)


def test_it_goes_on_from_where_the_last_run_ended() -> None:
    counters = {Family.V4: PacketCount(50, 3000), Family.V6: NOTHING}
    with logged() as lines:
        desk = Desk(lines, Kernel([sample({(1, 23): 4}, 54)]))
        # Ten packets were on no line when that run ended.
        desk.records.totals = Totals(PacketCount(50, 3000), TODAY, PacketCount(20, 1200), 45, 40, counters)
        desk.records.sources, desk.records.ports = {address(1), address(9)}, {(6, 23): 7}

        async def work() -> None:
            await desk.counting.prepare()
            assert desk.kernel.held
            await desk.counting.begin()
            assert desk.kernel.resumed == counters
            assert desk.stats == TrafficStats(PacketCount(50, 3000), PacketCount(20, 1200), 5, 2, (((6, 23), 7),))
            desk.task = asyncio.create_task(desk.counting.run())
            await desk.asked(2)
            await desk.stop()

        run(work())
    assert lines.packets() == 14
    assert desk.records.totals.logged == desk.records.totals.dropped.packets == 54
    assert desk.stats == TrafficStats(PacketCount(54, 3240), PacketCount(24, 1440), 5, 2, (((6, 23), 11),))


def test_a_day_that_is_over_is_not_gone_on_with() -> None:
    with logged() as lines:
        desk = Desk(lines, Kernel([TrafficSample()], [sample({(9, 22): 4}, 54)]))
        desk.records.totals = Totals(PacketCount(50, 3000), TODAY - 1, PacketCount(20, 1200), 50, 50)
        desk.records.sources, desk.records.ports = {address(1), address(9)}, {(6, 23): 7}

        async def work() -> None:
            await desk.counting.begin()
            assert desk.stats == TrafficStats(PacketCount(50, 3000))
            desk.task = asyncio.create_task(desk.counting.run())
            await desk.asked(3)
            await desk.stop()

        run(work())
    assert desk.stats == TrafficStats(PacketCount(54, 3240), PacketCount(4, 240), 0, 1, (((6, 22), 4),))
    assert (desk.records.sources, desk.records.ports) == ({address(9)}, {(6, 22): 4})


def test_records_that_can_not_be_read_are_said_once_and_not_written_over() -> None:
    with logged() as lines:
        desk = Desk(lines, Kernel([sample({(1, 23): 4}, 4)], [sample({(2, 23): 1}, 5)]))
        desk.records.broken = BROKEN

        async def work() -> None:
            await desk.start()
            assert desk.kernel.resumed == {}
            await desk.asked(4)
            await desk.stop()

        run(work())
    (trouble,) = lines.troubles
    assert trouble.startswith(BROKEN)
    assert "Blocking and counting go on" in trouble
    assert desk.trouble == trouble
    assert desk.records.saves == 0
    assert not desk.healed.is_set()
    assert lines.packets() == desk.stats.dropped.packets == 5


@pytest.mark.parametrize("stood", [None, 50, 40, 9000])
def test_records_that_come_late_are_joined_and_nothing_is_counted_twice(stood: int | None) -> None:
    """The rule's counter stood at `stood` when an earlier run kept it, and at 50 when this one began."""
    with logged() as lines:
        desk = Desk(lines, Kernel([sample({(1, 23): 4}, 54)], [sample({(2, 22): 1}, 55)]))
        counters = {} if stood is None else {Family.V4: PacketCount(stood, 60 * stood)}
        desk.records.totals = Totals(PacketCount(500, 30_000), TODAY, PacketCount(20, 1200), 490, 500, counters)
        desk.records.sources, desk.records.ports = {address(1), address(9)}, {(6, 23): 7}
        desk.records.broken = BROKEN

        async def work() -> None:
            await desk.start()
            await desk.asked(2)
            assert desk.stats.dropped.packets == 5
            assert desk.records.saves == 0
            desk.records.broken = ""
            await desk.asked(12)
            await desk.stop()

        run(work())
    between = 10 if stood == 40 else 0
    kept = desk.records.totals
    assert kept.dropped == PacketCount(505 + between, 60 * (505 + between))
    assert kept.dropped_today == PacketCount(25 + between, 60 * (25 + between))
    assert (kept.logged, kept.attributed) == (kept.dropped.packets, 495)
    assert lines.packets() == 5 + between
    assert desk.records.flows == {(address(1), 6, 23): 4, (address(2), 6, 22): 1}
    assert desk.records.sources == {address(1), address(2), address(9)}
    assert desk.records.ports == {(6, 23): 11, (6, 22): 1}
    assert len(lines.troubles) == 1
    assert lines.warnings == ["What is counted is kept on disk again."]
    assert desk.trouble == ""
    assert desk.healed.is_set()


def test_records_that_can_not_be_written_are_said_once_and_wait_in_memory() -> None:
    script = [[sample({(number, 23): 1}, number)] for number in range(1, 7)]
    with logged() as lines:
        desk = Desk(lines, Kernel(*script))

        async def work() -> None:
            await desk.start()
            await desk.asked(1)
            desk.records.broken = BROKEN
            await desk.asked(3)
            desk.records.broken = BROKEN.replace("disk full", "it is locked")
            await desk.asked(4)
            desk.records.broken = ""
            await desk.asked(5)
            desk.records.broken = BROKEN
            await desk.asked(6)
            desk.records.broken = ""
            await desk.stop()

        run(work())
    assert ["disk full" in trouble for trouble in lines.troubles] == [True, False, True]
    assert "it is locked" in lines.troubles[1]
    assert lines.warnings == ["What is counted is kept on disk again."] * 2
    assert desk.trouble == ""
    assert desk.healed.is_set()
    assert lines.packets() == 6
    # Nothing of it is lost: neither totals, nor the day's sources, nor what will be reported.
    assert (desk.records.totals.dropped.packets, desk.records.totals.logged) == (6, 6)
    assert desk.records.sources == {address(number) for number in range(1, 7)}
    assert desk.records.flows == {(address(number), 6, 23): 1 for number in range(1, 7)}


def test_a_disk_that_hangs_keeps_no_line_and_no_count_waiting() -> None:
    script = [[sample({(number, 23): 1}, number)] for number in range(1, 5)]
    held = Held()
    with logged() as lines:
        desk = Desk(lines, Kernel(*script), Records(lambda: 0), disk=held)

        async def work() -> None:
            await desk.start()
            await desk.asked(1)
            held.hold()
            await desk.asked(5)
            assert lines.packets() == desk.stats.dropped.packets == 4
            assert desk.records.saves == 1
            assert held.waiting() == 1  # and not one more each second
            assert "the disk does not answer" in desk.trouble
            held.let_go()
            await desk.asked(8)
            assert desk.trouble == ""
            held.hold()
            await desk.stop()

        # A stop waits for it as little.
        run(work())
    assert desk.records.totals.dropped.packets == 4
    assert desk.records.flows == {(address(number), 6, 23): 1 for number in range(1, 5)}


class Held(DiskThread):
    """A disk that can be made to hang."""

    def __init__(self) -> None:
        super().__init__("held")
        self._held: list[Callable[[], None]] | None = None

    def hold(self) -> None:
        self._held = []

    def hangs(self) -> bool:
        return bool(self._held)

    def waiting(self) -> int:
        return len(self._held or ())

    def let_go(self) -> None:
        held, self._held = self._held or [], None
        for finish in held:
            finish()

    def start(self, action: Callable[[], _Result]) -> asyncio.Future[_Result]:
        if self._held is None:
            return super().start(action)
        future: asyncio.Future[_Result] = asyncio.get_running_loop().create_future()
        self._held.append(lambda: future.set_result(action()))
        return future


def test_records_of_a_disk_that_hangs_are_joined_when_it_answers() -> None:
    held = Held()
    with logged() as lines:
        desk = Desk(lines, Kernel([sample({(1, 23): 4}, 54)]), disk=held)
        desk.records.totals = Totals(PacketCount(500, 30_000), TODAY, PacketCount(20, 1200), 490, 500)

        async def work() -> None:
            held.hold()
            await desk.start()
            # The start waits for it for no longer than the disk is known to hang.
            assert now() <= 2.0
            assert "not read yet: the disk does not answer" in desk.trouble
            await desk.asked(2)
            assert desk.stats.dropped.packets == 4
            held.let_go()
            await desk.asked(4)
            await desk.stop()

        run(work())
    assert desk.records.totals.dropped.packets == desk.stats.dropped.packets == 504
    assert (len(lines.troubles), len(lines.warnings), desk.trouble) == (1, 1, "")


def test_a_kernel_that_can_not_be_read_is_asked_again() -> None:
    with logged() as lines:
        desk = Desk(lines, Kernel(KernelError("refused"), [sample({(1, 23): 4}, 4)], KernelError("refused")))

        async def work() -> None:
            await desk.start()
            await desk.asked(4)
            await desk.stop()

        run(work())
    assert (lines.packets(), desk.records.totals.dropped.packets, lines.errors) == (4, 4, [])


def test_a_kernel_that_refuses_for_long_is_complained_of_once() -> None:
    refusals = [KernelError("refused") for _ in range(30)]
    with logged() as lines:
        desk = Desk(lines, Kernel(*refusals, [sample({(1, 23): 4}, 4)]))

        async def work() -> None:
            await desk.start()
            await desk.asked(5)
            assert lines.errors == []
            await desk.asked(32)
            await desk.stop()

        run(work())
    (error,) = lines.errors
    assert error.startswith("Refused. What is blocked stays blocked")
    assert (lines.packets(), desk.records.totals.dropped.packets) == (4, 4)


def test_what_had_no_room_among_the_largest_is_known_to_be_in_no_report() -> None:
    number = 5000
    hits = {(source, 23): 1 + source % 2 for source in range(1, number + 1)}
    packets = sum(hits.values())
    with logged() as lines:
        desk = Desk(lines, Kernel([sample(hits, packets)], [sample({(1, 23): 1}, packets + 1)]))

        async def work() -> None:
            await desk.start()
            await desk.asked(2)
            await desk.stop()

        run(work())
    assert desk.records.totals.dropped.packets == packets + 1
    assert desk.records.flows.total() + desk.records.overflow == packets + 1
    assert desk.records.overflow > 0


@pytest.mark.parametrize("final", [False, True])
def test_cancelled_in_the_middle_of_a_count_nothing_is_lost(final: bool) -> None:
    with logged() as lines:
        desk = Desk(lines, Kernel([sample({(1, 23): 4}, 4)], [sample({(1, 23): 3}, 7)]))

        async def work() -> None:
            await desk.counting.begin()
            desk.thread.gate.clear()
            desk.task = asyncio.create_task(desk.counting.run())
            # Read from the kernel, and nowhere else yet.
            await desk.asked(1)
            assert desk.records.saves == 0
            desk.task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await desk.task
            assert desk.records.saves == 0
            finishing = asyncio.create_task(desk.counting.finish(final=final))
            await asyncio.sleep(1)
            assert not finishing.done()
            desk.thread.gate.set()
            await finishing

        run(work())
    assert desk.records.totals.dropped.packets == (7 if final else 4)
    assert lines.packets() == desk.records.totals.logged == desk.records.totals.dropped.packets


@pytest.mark.parametrize("steps", range(40))
def test_cancelled_anywhere_all_is_kept_and_joined(steps: int) -> None:
    with logged() as lines:
        desk = Desk(lines, Kernel([sample({(1, 23): 4}, 54)], [sample({(2, 23): 3}, 57)], [sample({(1, 22): 1}, 58)]))
        counters = {Family.V4: PacketCount(50, 3000)}
        desk.records.totals = Totals(PacketCount(50, 3000), TODAY, PacketCount(20, 1200), 50, 50, counters)

        async def work() -> None:
            await desk.counting.prepare()
            desk.task = asyncio.create_task(desk.counting.run())
            for _ in range(steps):
                await asyncio.sleep(0)
            await desk.stop()
            while desk.kernel.script:
                await desk.counting.count_once(final=True)

        run(work())
    assert desk.kernel.resumed == counters
    assert desk.records.totals.dropped.packets == desk.records.totals.logged == 58
    assert sum(desk.records.flows.values()) == lines.packets() == 8


def test_an_end_while_the_rules_stay_leaves_their_counters_to_the_next_run() -> None:
    with logged() as lines:
        desk = Desk(lines, Kernel([sample({(1, 23): 4}, 4)], [sample({(1, 23): 3}, 7)]))

        async def work() -> None:
            await desk.start()
            await desk.asked(2)
            await desk.stop(final=False)

        run(work())
    assert desk.records.totals.counters == {Family.V4: PacketCount(7, 420)}
    # What is on no line yet is for the next run to say.
    assert lines.packets() == desk.records.totals.logged == 4


def test_an_end_without_rules_takes_the_last_packets() -> None:
    with logged() as lines:
        desk = Desk(lines, Kernel([sample({(1, 23): 4}, 4)]))

        async def work() -> None:
            await desk.start()
            await desk.asked(1)
            desk.kernel.script = [[sample({(1, 23): 3, (2, 22): 1}, 8, nameless=2)]]
            await desk.stop(final=True)

        run(work())
    # Each place once, though the end is kept by itself.
    assert desk.records.flows == {(address(1), 6, 23): 7, (address(2), 6, 22): 1}
    assert lines.packets() == desk.records.totals.logged == desk.records.totals.dropped.packets == 10
    assert desk.stats.dropped.packets == 10


def test_several_drains_at_once_are_each_taken_into_account() -> None:
    # As of a dead process's sets, or of a rule that was written anew meanwhile.
    leftover = replace(sample({(1, 23): 10}, 0), dropped=NOTHING, counters={})
    with logged() as lines:
        desk = Desk(lines, Kernel([leftover, sample({(1, 23): 4}, 14, nameless=10)]))

        async def work() -> None:
            await desk.start()
            await desk.asked(2)
            await desk.stop()

        run(work())
    assert lines.packets() == desk.records.totals.dropped.packets == desk.records.totals.attributed == 14
    assert desk.records.flows == {(address(1), 6, 23): 14}


def test_packets_that_are_named_before_they_are_counted_are_kept_for_the_reports() -> None:
    late = sample({(1, 23): 3}, 4, on_the_way=3)
    with logged() as lines:
        # No line is due for them, and none of them is counted as dropped yet.
        desk = Desk(lines, Kernel([sample({(1, 23): 4}, 4)], [late], [sample({}, 7, nameless=3)]))

        async def work() -> None:
            await desk.start()
            await desk.asked(2)
            assert desk.records.flows == {(address(1), 6, 23): 7}
            await desk.asked(3)
            await desk.stop()

        run(work())
    assert lines.packets() == desk.records.totals.attributed == desk.records.totals.dropped.packets == 7


def test_only_news_has_the_counters_read_sooner() -> None:
    with logged() as lines:
        desk = Desk(lines, Kernel([sample({(1, 23): 4}, 4)]))

        async def pause_after(noticed: DropEvent | None) -> float:
            """How long after the last reading the next one came."""
            times = len(desk.kernel.asked)
            if noticed is not None:
                desk.counting.notice(noticed)
            await desk.asked(times + 1)
            return desk.kernel.asked[-1] - desk.kernel.asked[-2]

        async def work() -> None:
            await desk.start()
            await desk.asked(1)
            assert await pause_after(None) == pytest.approx(0.9, abs=0.05)
            assert await pause_after(event(1, 23)) == pytest.approx(0.9, abs=0.05)
            # Not at once: a flood of news must not have us do nothing but read.
            assert await pause_after(event(2, 23)) == pytest.approx(0.2, abs=0.05)
            assert await pause_after(event(1, 22)) == pytest.approx(0.2, abs=0.05)
            assert await pause_after(None) == pytest.approx(0.9, abs=0.05)
            await desk.stop()

        run(work())


def test_a_port_map_read_anew_is_used() -> None:
    with logged() as lines:
        desk = Desk(lines, Kernel([sample({(1, 2222): 4}, 4)], [sample({(2, 2222): 1}, 5)]), port_map={2222: "ssh"})

        async def work() -> None:
            await desk.start()
            await desk.asked(1)
            desk.config.set(Config(port_map={2222: "mysql"}))
            await desk.asked(2)
            await desk.stop()

        run(work())
    assert lines.texts == [
        "BLOCKED 0.0.0.1:2222 (ssh) proto=TCP x4",
        "BLOCKED 0.0.0.2:2222 (mysql) proto=TCP x1",
    ]


def test_what_takes_long_is_done_seldom_but_never_too_seldom() -> None:
    with logged() as lines:
        desk = Desk(lines, Kernel())

        async def pause(takes: float) -> float:
            desk.thread.takes = takes
            await desk.asked(len(desk.kernel.asked) + 3)
            return desk.kernel.asked[-1] - desk.kernel.asked[-2]

        async def work() -> None:
            await desk.start()
            assert await pause(0.0) == pytest.approx(0.9, abs=0.02)
            assert await pause(0.05) == pytest.approx(1.05, abs=0.02)
            # What is shown is never older than two seconds.
            assert await pause(0.3) == pytest.approx(1.6, abs=0.02)
            assert await pause(1.5) == pytest.approx(1.7, abs=0.02)
            await desk.stop(final=False)

        run(work())


def test_sources_are_watched_for_as_long_as_somebody_wants_it() -> None:
    with logged() as lines:
        desk = Desk(lines, Kernel(*([sample({(number, 23): 1}, number)] for number in range(1, 5))))

        async def work() -> None:
            await desk.start()
            await desk.asked(1)
            with desk.counting.watch_sources() as seen:
                assert not seen
                await desk.asked(3)
                assert set(seen) == {address(2), address(3)}
            await desk.asked(4)
            assert set(seen) == {address(2), address(3)}
            await desk.stop()

        run(work())


def test_a_day_begins_at_midnight_though_nothing_is_dropped() -> None:
    with logged() as lines:
        desk = Desk(lines, Kernel([sample({(1, 23): 4}, 4)]))

        async def work() -> None:
            await desk.start()
            await desk.asked(1)
            assert (desk.stats.dropped_today.packets, desk.stats.sources) == (4, 1)
            desk.clock.offset = 86_400.0
            await desk.asked(3)
            assert (desk.stats.dropped.packets, desk.stats.dropped_today, desk.stats.sources) == (4, NOTHING, 0)
            await desk.stop()

        run(work())


def test_the_last_lines_are_logged_though_the_kernel_can_not_be_read_any_more() -> None:
    with logged() as lines:
        desk = Desk(lines, Kernel([sample({(1, 23): 4}, 4)], [sample({(1, 23): 3}, 7)]))

        async def work() -> None:
            await desk.start()
            await desk.asked(2)
            desk.kernel.script = [KernelError("refused")]
            await desk.stop(final=True)

        run(work())
    assert lines.packets() == desk.records.totals.logged == desk.records.totals.dropped.packets == 7


counts = st.tuples(
    st.dictionaries(st.tuples(st.integers(1, 30), st.integers(1, 4)), st.integers(1, 50), max_size=40),
    st.sampled_from([0, 0, 5]),
    st.sampled_from([0, 0, 1]),
    st.booleans(),
)


@settings(max_examples=60)
@given(st.lists(counts, max_size=8), st.booleans())
def test_the_lines_the_totals_and_the_reports_agree(
    drawn: list[tuple[dict[tuple[int, int], int], int, int, bool]], restarted: bool
) -> None:
    script: list[list[TrafficSample] | KernelError] = []
    sent: Counter[FlowKey] = Counter()
    counter = late = nameless = 0
    for packets, more, on_the_way, refused in drawn:
        if refused:
            script.append(KernelError("refused"))
        behind = min(on_the_way, sum(packets.values()))
        counter += sum(packets.values()) + more + late - behind
        script.append([sample(packets, counter, more + late, behind)])
        late, nameless = behind, nameless + more
        sent.update({(address(source), 6, port): number for (source, port), number in packets.items()})
    counter += late
    script.append([sample({}, counter, late)])
    half = len(script) // 2 if restarted else len(script)
    with logged() as lines:
        first = Desk(lines, Kernel(*script[:half]))
        second = Desk(lines, Kernel(*script[half:]), first.records)

        async def work(desk: Desk, asked: int, final: bool) -> None:
            await desk.start()
            await desk.asked(asked)
            await desk.stop(final=final)

        run(work(first, half, not restarted))
        if restarted:
            run(work(second, len(script) - half, True))
    totals = first.records.totals
    assert lines.packets() == totals.logged == totals.dropped.packets == counter
    assert totals.attributed == sum(sent.values()) == counter - nameless
    assert first.records.flows == sent
    assert (second if restarted else first).stats.dropped.packets == counter
    assert lines.errors == []
