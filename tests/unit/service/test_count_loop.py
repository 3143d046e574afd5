"""Counting over a scripted kernel: what it logs, keeps and tells is the same, and all of what was dropped.

The loop keeps a time of its own, in which a pause takes none, and does in its own thread what is meant for others.
"""

from __future__ import annotations

import asyncio
import logging
import re
import selectors
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar, TypeVarTuple, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sikkerguard.core.net.family import Family
from sikkerguard.core.services.protocols import REPLY
from sikkerguard.core.traffic.sample import NOTHING, UNATTRIBUTED, DropEvent, PacketCount, TrafficSample, TrafficStats
from sikkerguard.core.traffic.totals import Totals, day_of
from sikkerguard.errors import KernelError, RecordError
from sikkerguard.service.count_loop import CountLoop
from sikkerguard.service.disk_thread import DiskThread

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
    from concurrent.futures import Executor

    from sikkerguard.core.interfaces import FirewallBackend, TrafficRecords
    from sikkerguard.core.traffic.sample import FlowKey
    from sikkerguard.service.kernel_thread import KernelThread

_Arguments = TypeVarTuple("_Arguments")
_Result = TypeVar("_Result")

LOGGER = "sikkerguard.service.count_loop"
BROKEN = "/state/records.sqlite3 can't be used (disk full); make room, or fix its permissions"


class Timeless(selectors.SelectSelector):
    """Waits by setting the time."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert timeout is not None, "nothing will ever happen any more"
        self.now += timeout
        return super().select(0)


class Loop(asyncio.SelectorEventLoop):
    """A loop in which nothing takes time but what says so."""

    def __init__(self) -> None:
        self.clock = Timeless()
        super().__init__(self.clock)

    def time(self) -> float:
        return self.clock.now

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[*_Arguments], _Result], *args: *_Arguments
    ) -> asyncio.Future[_Result]:
        future: asyncio.Future[_Result] = self.create_future()
        try:
            future.set_result(func(*args))
        except (RecordError, KernelError) as error:
            future.set_exception(error)
        return future


def run(work: Coroutine[None, None, None]) -> None:
    with asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(work)


def now() -> float:
    return asyncio.get_running_loop().time()


class Kernel:
    """Gives these drains, one list of them each time it is asked, and then none; an error is raised instead."""

    def __init__(self, *script: list[TrafficSample] | KernelError) -> None:
        self.script = list(script)
        self.resumed: Mapping[Family, PacketCount] | None = None
        self.asked: list[float] = []
        self.counters: Mapping[Family, PacketCount] = {}

    def await_resume(self) -> None:
        assert not self.asked

    def resume(self, counters: Mapping[Family, PacketCount]) -> None:
        self.resumed = counters

    def drain(self) -> list[TrafficSample]:
        self.asked.append(now())
        found = self.script.pop(0) if self.script else [TrafficSample(NOTHING, self.counters)]
        if isinstance(found, KernelError):
            raise found
        self.counters = found[-1].counters if found else self.counters
        return found


class Thread:
    """The owner's thread. While `gate` is closed, what it has done is not yet known to the loop."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()

    async def run(self, action: Callable[..., Any], *arguments: object) -> Any:
        result = action(*arguments)
        await self.gate.wait()
        return result


class Records:
    """What is kept. `shown` says how many packets stand on lines by now."""

    def __init__(self, shown: Callable[[], int]) -> None:
        self.ledger = Totals()
        self.sources: set[bytes] = set()
        self.ports: dict[tuple[int, int], int] = {}
        self.blocked: Counter[FlowKey] = Counter()
        self.unfiled = 0
        self.saves = 0
        self.broken = ""
        self._shown = shown

    def close(self) -> None:
        """Nothing is open."""

    def load(self) -> tuple[Totals, list[bytes], dict[tuple[int, int], int]]:
        self._try()
        return self.ledger, list(self.sources), dict(self.ports)

    def save(
        self,
        ledger: Totals,
        blocked: Iterable[tuple[FlowKey, int]],
        fresh_sources: Sequence[bytes],
        ports: Sequence[tuple[tuple[int, int], int]],
        *,
        new_day: bool,
        unfiled: int,
    ) -> None:
        self._try()
        # What is kept is on lines already, or about to be: never is it shown first.
        assert self._shown() <= ledger.told
        self.saves += 1
        self.ledger = ledger
        self.blocked.update(dict(blocked))
        self.unfiled += unfiled
        self.sources = {*fresh_sources} | (set() if new_day else self.sources)
        self.ports = dict(ports)

    def _try(self) -> None:
        if self.broken:
            raise RecordError(self.broken)


class Lines(logging.Handler):
    """What is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.errors: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.ERROR:
            self.errors.append(record.getMessage())
        elif record.levelno == logging.INFO:
            self.texts.append(record.getMessage())

    def packets(self) -> int:
        found = [re.fullmatch(r"BLOCKED .* x(\d+)", text) for text in self.texts]
        assert all(found)
        return sum(int(match[1]) for match in found if match)


@contextmanager
def logged() -> Iterator[Lines]:
    lines, logger = Lines(), logging.getLogger(LOGGER)
    level, propagate = logger.level, logger.propagate
    logger.addHandler(lines)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield lines
    finally:
        logger.removeHandler(lines)
        logger.setLevel(level)
        logger.propagate = propagate


class Desk:
    """A counting with all that it works with."""

    def __init__(
        self, lines: Lines, kernel: Kernel, records: Records | None = None, disk: DiskThread | None = None
    ) -> None:
        self.lines = lines
        self.kernel = kernel
        self.records = records or Records(lines.packets)
        self.thread = Thread()
        self.told: list[TrafficStats] = []
        self.troubles: list[str] = []
        self.counting = CountLoop(
            cast("FirewallBackend", kernel),
            cast("KernelThread", self.thread),
            cast("TrafficRecords", self.records),
            {},
            self.told.append,
            self.troubles.append,
            disk,
        )
        self.task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await self.counting.begin()
        self.task = asyncio.create_task(self.counting.count_forever())

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


def drain(
    packets: Mapping[tuple[int, int], int], counter: int, nameless: int = 0, on_the_way: int = 0
) -> TrafficSample:
    """{(source, port): packets}, all over TCP, and others; the DROP rule's counter then stood there."""
    total = sum(packets.values())
    hits = [(address(source), port, 6, 60 * number, number) for (source, port), number in packets.items()]
    entries = Counter(source for source, _ in packets)
    sources = [(address(source), 60 * number, number) for source, number in entries.items()]
    dropped = total + nameless - on_the_way
    return TrafficSample(
        PacketCount(dropped, 60 * dropped), {Family.V4: PacketCount(counter, 60 * counter)}, [hits], [sources]
    )


def event(source: int, port: int) -> DropEvent:
    return DropEvent(Family.V4, address(source), 6, port)


def test_what_is_logged_kept_and_told_is_the_same() -> None:
    first, second = drain({(1, 23): 47, (2, 22): 3}, 60, nameless=10), drain({(1, 23): 5, (3, 80): 1}, 66)
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
    records, told = desk.records, desk.told[-1]
    assert lines.texts[2:] == [
        "BLOCKED 0.0.0.3:80 (http) proto=TCP x1",
        "BLOCKED 0.0.0.1:23 (telnet) proto=TCP x5",
        "BLOCKED sources that were not told apart x10",
    ]
    assert lines.packets() == records.ledger.told == records.ledger.dropped.packets == told.dropped.packets == 66
    assert records.blocked == {(address(1), 6, 23): 52, (address(2), 6, 22): 3, (address(3), 6, 80): 1}
    assert (records.ledger.named, told.unnamed) == (56, 10)
    assert records.sources == {address(1), address(2), address(3)}
    assert (told.sources, told.top_ports) == (3, (((6, 23), 52), ((6, 22), 3), ((6, 80), 1)))
    assert told.dropped == told.dropped_today == records.ledger.dropped == PacketCount(66, 66 * 60)
    assert lines.errors == []


def test_replies_are_told_and_counted() -> None:
    replied = TrafficSample(
        PacketCount(12, 720),
        {Family.V4: PacketCount(12, 720)},
        replies=[[(address(1), 443, 6, 480, 8)]],
        repliers=[[(address(1), 60, 1), (address(2), 240, 4)]],
    )
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
    records, told = desk.records, desk.told[-1]
    assert (told.replies, told.unnamed, told.sources) == (12, 0, 2)
    assert told.top_ports == (((REPLY, 443), 8), ((REPLY, UNATTRIBUTED), 4))
    assert (records.ledger.replies, records.ledger.named, records.ledger.told) == (12, 12, 12)


def test_where_nothing_happens_nothing_is_written() -> None:
    with logged() as lines:
        desk = Desk(lines, Kernel())

        async def work() -> None:
            await desk.start()
            await desk.asked(10)
            await desk.stop(final=False)

        run(work())
    assert (desk.records.saves, lines.texts, lines.errors) == (0, [], [])
    assert len(desk.told) > 5


def test_it_goes_on_from_where_the_last_run_ended() -> None:
    counters = {Family.V4: PacketCount(50, 3000), Family.V6: NOTHING}
    today = day_of(time.time())
    with logged() as lines:
        desk = Desk(lines, Kernel([drain({(1, 23): 4}, 54)]))
        # Ten packets stood on no line when that run ended.
        desk.records.ledger = Totals(PacketCount(50, 3000), today, PacketCount(20, 1200), 45, 40, counters)
        desk.records.sources, desk.records.ports = {address(1), address(9)}, {(6, 23): 7}

        async def work() -> None:
            await desk.counting.begin()
            assert desk.kernel.resumed == counters
            assert desk.told == [TrafficStats(PacketCount(50, 3000), PacketCount(20, 1200), 5, 2, (((6, 23), 7),))]
            desk.task = asyncio.create_task(desk.counting.count_forever())
            await desk.asked(2)
            await desk.stop()

        run(work())
    assert lines.packets() == 14
    assert desk.records.ledger.told == desk.records.ledger.dropped.packets == 54
    assert desk.told[-1] == TrafficStats(PacketCount(54, 3240), PacketCount(24, 1440), 5, 2, (((6, 23), 11),))


def test_a_day_that_is_over_is_not_gone_on_with() -> None:
    with logged() as lines:
        desk = Desk(lines, Kernel([TrafficSample()], [drain({(9, 22): 4}, 54)]))
        desk.records.ledger = Totals(PacketCount(50, 3000), day_of(time.time()) - 1, PacketCount(20, 1200), 50, 50)
        desk.records.sources, desk.records.ports = {address(1), address(9)}, {(6, 23): 7}

        async def work() -> None:
            await desk.counting.begin()
            assert desk.told == [TrafficStats(PacketCount(50, 3000))]
            desk.task = asyncio.create_task(desk.counting.count_forever())
            await desk.asked(3)
            await desk.stop()

        run(work())
    assert desk.told[-1] == TrafficStats(PacketCount(54, 3240), PacketCount(4, 240), 0, 1, (((6, 22), 4),))
    assert (desk.records.sources, desk.records.ports) == ({address(9)}, {(6, 22): 4})


def test_records_that_can_not_be_read_are_said_once_and_not_written_over() -> None:
    with logged() as lines:
        desk = Desk(lines, Kernel([drain({(1, 23): 4}, 4)], [drain({(2, 23): 1}, 5)]))
        desk.records.broken = BROKEN

        async def work() -> None:
            await desk.start()
            assert desk.kernel.resumed == {}
            await desk.asked(4)
            await desk.stop()

        run(work())
    (trouble,) = desk.troubles
    assert trouble.startswith(BROKEN)
    assert "Blocking and counting go on" in trouble
    assert desk.records.saves == 0
    assert lines.packets() == desk.told[-1].dropped.packets == 5


@pytest.mark.parametrize("stood", [None, 50, 40, 9000])
def test_records_that_come_late_are_joined_and_nothing_is_counted_twice(stood: int | None) -> None:
    """The rule's counter stood at `stood` when an earlier run kept it, and at 50 when this one began."""
    today = day_of(time.time())
    with logged() as lines:
        desk = Desk(lines, Kernel([drain({(1, 23): 4}, 54)], [drain({(2, 22): 1}, 55)]))
        counters = {} if stood is None else {Family.V4: PacketCount(stood, 60 * stood)}
        desk.records.ledger = Totals(PacketCount(500, 30_000), today, PacketCount(20, 1200), 490, 500, counters)
        desk.records.sources, desk.records.ports = {address(1), address(9)}, {(6, 23): 7}
        desk.records.broken = BROKEN

        async def work() -> None:
            await desk.start()
            await desk.asked(2)
            assert desk.told[-1].dropped.packets == 5
            assert desk.records.saves == 0
            desk.records.broken = ""
            await desk.asked(12)
            await desk.stop()

        run(work())
    between = 10 if stood == 40 else 0
    kept = desk.records.ledger
    assert kept.dropped == PacketCount(505 + between, 60 * (505 + between))
    assert kept.dropped_today == PacketCount(25 + between, 60 * (25 + between))
    assert (kept.told, kept.named) == (kept.dropped.packets, 495)
    assert lines.packets() == 5 + between
    assert desk.records.blocked == {(address(1), 6, 23): 4, (address(2), 6, 22): 1}
    assert desk.records.sources == {address(1), address(2), address(9)}
    assert desk.records.ports == {(6, 23): 11, (6, 22): 1}
    assert [bool(trouble) for trouble in desk.troubles] == [True, False]


def test_records_that_can_not_be_written_are_said_once_and_wait_in_memory() -> None:
    script = [[drain({(number, 23): 1}, number)] for number in range(1, 7)]
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
    assert [("disk full" in trouble, "it is locked" in trouble) for trouble in desk.troubles] == [
        (True, False),
        (False, True),
        (False, False),
        (True, False),
        (False, False),
    ]
    assert lines.packets() == 6
    # Nothing of it is lost: neither totals, nor the day's sources, nor what will be reported.
    assert (desk.records.ledger.dropped.packets, desk.records.ledger.told) == (6, 6)
    assert desk.records.sources == {address(number) for number in range(1, 7)}
    assert desk.records.blocked == {(address(number), 6, 23): 1 for number in range(1, 7)}


def test_a_disk_that_hangs_keeps_no_line_and_no_count_waiting() -> None:
    script = [[drain({(number, 23): 1}, number)] for number in range(1, 5)]
    held = Held()
    with logged() as lines:
        desk = Desk(lines, Kernel(*script), Records(lambda: 0), disk=held)

        async def work() -> None:
            await desk.start()
            await desk.asked(1)
            held.hold()
            await desk.asked(5)
            assert lines.packets() == desk.told[-1].dropped.packets == 4
            assert desk.records.saves == 1
            assert held.waiting() == 1  # and not one more each second
            (trouble,) = desk.troubles
            assert "the disk does not answer" in trouble
            held.let_go()
            await desk.asked(8)
            assert desk.troubles[1:] == [""]
            held.hold()
            await desk.stop()

        # A stop waits for it as little.
        run(work())
    assert desk.records.ledger.dropped.packets == 4
    assert desk.records.blocked == {(address(number), 6, 23): 1 for number in range(1, 5)}


class Held(DiskThread):
    """A disk that can be made to hang."""

    def __init__(self) -> None:
        super().__init__("held")
        self._held: list[tuple[asyncio.Future[Any], Callable[[], Any]]] | None = None

    def hold(self) -> None:
        self._held = []

    def hangs(self) -> bool:
        return bool(self._held)

    def waiting(self) -> int:
        return len(self._held or ())

    def let_go(self) -> None:
        held, self._held = self._held or [], None
        for future, action in held:
            future.set_result(action())

    def start(self, action: Callable[[], Any]) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if self._held is None:
            return super().start(action)
        self._held.append((future, action))
        return future


def test_a_kernel_that_can_not_be_read_is_asked_again() -> None:
    with logged() as lines:
        desk = Desk(lines, Kernel(KernelError("refused"), [drain({(1, 23): 4}, 4)], KernelError("refused")))

        async def work() -> None:
            await desk.start()
            await desk.asked(4)
            await desk.stop()

        run(work())
    assert (lines.packets(), desk.records.ledger.dropped.packets, lines.errors) == (4, 4, [])


def test_a_kernel_that_refuses_for_long_is_complained_of_once() -> None:
    refusals = [KernelError("refused") for _ in range(30)]
    with logged() as lines:
        desk = Desk(lines, Kernel(*refusals, [drain({(1, 23): 4}, 4)]))

        async def work() -> None:
            await desk.start()
            await desk.asked(5)
            assert lines.errors == []
            await desk.asked(32)
            await desk.stop()

        run(work())
    (error,) = lines.errors
    assert error.startswith("Refused. What is blocked stays blocked")
    assert (lines.packets(), desk.records.ledger.dropped.packets) == (4, 4)


def test_what_had_no_room_among_the_largest_is_known_to_be_in_no_report() -> None:
    number = 5000
    hits = {(source, 23): 1 + source % 2 for source in range(1, number + 1)}
    packets = sum(hits.values())
    with logged() as lines:
        desk = Desk(lines, Kernel([drain(hits, packets)], [drain({(1, 23): 1}, packets + 1)]))

        async def work() -> None:
            await desk.start()
            await desk.asked(2)
            await desk.stop()

        run(work())
    assert desk.records.ledger.dropped.packets == packets + 1
    assert desk.records.blocked.total() + desk.records.unfiled == packets + 1
    assert desk.records.unfiled > 0


@pytest.mark.parametrize("final", [False, True])
def test_cancelled_in_the_middle_of_a_count_nothing_is_lost(final: bool) -> None:
    with logged() as lines:
        desk = Desk(lines, Kernel([drain({(1, 23): 4}, 4)], [drain({(1, 23): 3}, 7)]))

        async def work() -> None:
            desk.thread.gate.set()
            await desk.counting.begin()
            desk.thread.gate.clear()
            desk.task = asyncio.create_task(desk.counting.count_forever())
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
    assert desk.records.ledger.dropped.packets == (7 if final else 4)
    assert lines.packets() == desk.records.ledger.told == desk.records.ledger.dropped.packets


def test_an_end_while_the_rules_stay_leaves_their_counters_to_the_next_run() -> None:
    with logged() as lines:
        desk = Desk(lines, Kernel([drain({(1, 23): 4}, 4)], [drain({(1, 23): 3}, 7)]))

        async def work() -> None:
            await desk.start()
            await desk.asked(2)
            await desk.stop(final=False)

        run(work())
    assert desk.records.ledger.counters == {Family.V4: PacketCount(7, 420)}
    # What stands on no line yet is for the next run to say.
    assert lines.packets() == desk.records.ledger.told == 4


def test_an_end_without_rules_takes_the_last_packets() -> None:
    with logged() as lines:
        desk = Desk(lines, Kernel([drain({(1, 23): 4}, 4)]))

        async def work() -> None:
            await desk.start()
            await desk.asked(1)
            desk.kernel.script = [[drain({(1, 23): 3, (2, 22): 1}, 8, nameless=2)]]
            await desk.stop(final=True)

        run(work())
    # Each place once, though the end is kept by itself.
    assert desk.records.blocked == {(address(1), 6, 23): 7, (address(2), 6, 22): 1}
    assert lines.packets() == desk.records.ledger.told == desk.records.ledger.dropped.packets == 10
    assert desk.told[-1].dropped.packets == 10


def test_several_drains_at_once_are_each_taken_into_account() -> None:
    # As of a dead process's sets, or of a rule that was written anew meanwhile.
    leftover = replace(drain({(1, 23): 10}, 0), dropped=NOTHING, counters={})
    with logged() as lines:
        desk = Desk(lines, Kernel([leftover, drain({(1, 23): 4}, 14, nameless=10)]))

        async def work() -> None:
            await desk.start()
            await desk.asked(2)
            await desk.stop()

        run(work())
    assert lines.packets() == desk.records.ledger.dropped.packets == desk.records.ledger.named == 14
    assert desk.records.blocked == {(address(1), 6, 23): 14}


def test_packets_that_are_named_before_they_are_counted_are_kept_for_the_reports() -> None:
    late = drain({(1, 23): 3}, 4, on_the_way=3)
    with logged() as lines:
        # No line is due for them, and none of them is counted as dropped yet.
        desk = Desk(lines, Kernel([drain({(1, 23): 4}, 4)], [late], [drain({}, 7, nameless=3)]))

        async def work() -> None:
            await desk.start()
            await desk.asked(2)
            assert desk.records.blocked == {(address(1), 6, 23): 7}
            await desk.asked(3)
            await desk.stop()

        run(work())
    assert lines.packets() == desk.records.ledger.named == desk.records.ledger.dropped.packets == 7


def test_only_news_has_the_counters_read_sooner() -> None:
    with logged() as lines:
        desk = Desk(lines, Kernel([drain({(1, 23): 4}, 4)]))

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
        desk = Desk(lines, Kernel([drain({(1, 2222): 4}, 4)]))

        async def work() -> None:
            desk.counting.set_port_map({2222: "mysql"})
            await desk.start()
            await desk.asked(1)
            await desk.stop()

        run(work())
    assert lines.texts == ["BLOCKED 0.0.0.1:2222 (mysql) proto=TCP x4"]


counts = st.tuples(
    st.dictionaries(st.tuples(st.integers(1, 30), st.integers(1, 4)), st.integers(1, 50), max_size=40),
    st.sampled_from([0, 0, 5]),
    st.sampled_from([0, 0, 1]),
    st.booleans(),
)


@settings(deadline=None, max_examples=60)
@given(st.lists(counts, max_size=8), st.booleans())
def test_the_lines_the_ledger_and_the_reports_agree(
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
        script.append([drain(packets, counter, more + late, behind)])
        late, nameless = behind, nameless + more
        sent.update({(address(source), 6, port): number for (source, port), number in packets.items()})
    counter += late
    script.append([drain({}, counter, late)])
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
    ledger = first.records.ledger
    assert lines.packets() == ledger.told == ledger.dropped.packets == counter
    assert ledger.named == sum(sent.values()) == counter - nameless
    assert first.records.blocked == sent
    assert (second if restarted else first).told[-1].dropped.packets == counter
    assert lines.errors == []
