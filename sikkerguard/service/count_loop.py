"""Counting what was dropped: from the kernel to the ledger, to lines of the log, and to what will be reported."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from sikkerguard.core.traffic.attribution import CarriedOver, attribute
from sikkerguard.core.traffic.day_summary import DaySummary
from sikkerguard.core.traffic.log_window import Line, LogWindow, in_fields
from sikkerguard.core.traffic.sample import NOTHING, TrafficStats
from sikkerguard.core.traffic.totals import Totals, day_of
from sikkerguard.core.traffic.unsaved import Unsaved
from sikkerguard.errors import KernelError, RecordError, as_sentence
from sikkerguard.service.disk_thread import LAST_SECONDS, DiskThread

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

    from sikkerguard.core.interfaces import FirewallBackend, TrafficRecords
    from sikkerguard.core.traffic.sample import DropEvent, TrafficSample
    from sikkerguard.service.kernel_thread import KernelThread

log = logging.getLogger(__name__)

# From one reading of the counters to the next: the first hit of a source shows within a second. A line of the kernel's
# log that is news has them read sooner, but not before they have rested for a while.
_COUNT_SECONDS, _REST_SECONDS = 0.9, 0.2
# Of so many parts of a core's time one may go into counting. But what is shown is never older than two seconds, the
# time included that it takes to read a full set.
_SHARE, _LONGEST_SECONDS = 20, 1.6
# So long the kernel may refuse its counters before that is said.
_REFUSED_SECONDS = 10.0
# Ports that are kept from one run to the next, and those that are shown.
_PORTS, _SHOWN_PORTS = 64, 10
# New sources that are written to disk in one go; of a flood the rest follows.
_SOURCES_AT_ONCE = 10_000
# So long is waited for what earlier runs have counted, before counting begins without, and for what was counted to be
# on disk, before it is shown all the same. Records that can't be read are tried again this often.
_LOAD_SECONDS, _SAVE_SECONDS, _AGAIN_SECONDS = 2.0, 1.0, 5.0


_Result = TypeVar("_Result")


class CountLoop:
    """`prepare` before the kernel's rules are touched, then `count_forever` until it is cancelled, then `finish`.

    `tell` gets what is counted each time it has changed, and `trouble` a sentence when nothing of it can be kept, and
    an empty one when it can again. Without `records` nothing is kept on disk; `disk` is the thread that does it, for
    which nobody waits but a moment."""

    def __init__(
        self,
        kernel: FirewallBackend,
        owner: KernelThread,
        records: TrafficRecords | None,
        port_map: Mapping[int, str],
        tell: Callable[[TrafficStats], None],
        trouble: Callable[[str], None] = lambda sentence: None,
        disk: DiskThread | None = None,
    ) -> None:
        self._kernel = kernel
        self._owner = owner
        self._records = records
        self._tell = tell
        self._ledger = Totals()
        self._today = DaySummary(0)
        self._tally = LogWindow(port_map)
        self._owed: CarriedOver = {}
        self._unsaved = Unsaved()
        self._changed = False
        self._tell_trouble = trouble
        self._trouble = ""
        self._disk = disk or DiskThread("records")
        self._loaded = self._resumed = False
        self._loading: asyncio.Future[tuple[Totals, list[bytes], dict[tuple[int, int], int]]] | None = None
        self._load_at = 0.0
        self._saving: tuple[asyncio.Future[None], Unsaved] | None = None
        self._watched: set[bytes] | None = None
        self._counted_at = 0.0
        self._refused = False
        self._spent = 0.0
        self._noticed = asyncio.Event()
        self._under_way: asyncio.Task[None] | None = None

    def set_port_map(self, port_map: Mapping[int, str]) -> None:
        """Names for ports, from now on."""
        self._tally.port_map = port_map

    @contextmanager
    def watch_sources(self) -> Iterator[Collection[bytes]]:
        """A set that collects the sources, packed, of packets that are dropped meanwhile."""
        self._watched = set[bytes]()
        try:
            yield self._watched
        finally:
            self._watched = None

    def notice(self, event: DropEvent) -> None:
        """A line of the kernel's log: it proves nothing, but says that it may be worth looking now."""
        if self._tally.is_news((event.address, event.protocol, event.port), time.monotonic()):
            self._noticed.set()

    async def prepare(self) -> None:
        """Lose nothing of what the kernel counts until it is known where the last run ended."""
        await self._owner.run(self._kernel.await_resume)

    async def begin(self, seconds: float = _LOAD_SECONDS) -> None:
        """Go on from where the last run ended, if the disk tells within so many seconds; else join it when it does."""
        self._counted_at = asyncio.get_running_loop().time()
        if self._records is not None:
            await self._load(seconds)
        if not self._resumed:
            self._resumed = True
            await self._owner.run(self._kernel.resume, {})
        self._tell(self._counted())

    async def _load(self, seconds: float) -> None:
        """Take what earlier runs have counted, if it comes within so many seconds."""
        if self._records is None or self._loaded:
            return
        if self._loading is None:
            self._loading = self._disk.start(self._records.load)
        if not await self._disk.soon(self._loading, seconds):
            if self._disk.hangs():
                self._say_trouble("The records of earlier runs are not read yet: the disk does not answer")
            return
        loading, self._loading = self._loading, None
        try:
            ledger, sources, ports = loading.result()
        except RecordError as error:
            # What can't be read must not be written over either.
            self._say_trouble(as_sentence(error))
            self._load_at = asyncio.get_running_loop().time() + _AGAIN_SECONDS
            return
        self._loaded = True
        if self._resumed:
            await asyncio.to_thread(self._join, ledger, sources, ports)
            self._changed = True
        else:
            self._resumed = True
            self._ledger, self._today = ledger, DaySummary(ledger.day, sources, ports)
            await self._owner.run(self._kernel.resume, ledger.counters)
        self._tally.told = self._ledger.told
        self._say("")

    def _join(self, ledger: Totals, sources: list[bytes], ports: dict[tuple[int, int], int]) -> None:
        """Both are one account from here on."""
        self._ledger = self._ledger.after(ledger)
        if self._today.day in (0, ledger.day):
            self._today.day = ledger.day
            self._today.join(sources, ports)
            self._unsaved.new_day = False

    async def count_forever(self) -> None:
        """Log what falls due, keep what is counted, and tell it."""
        now = asyncio.get_running_loop().time
        if not self._resumed:
            await self.begin()
        while True:
            if not self._loaded and (self._loading is not None or now() >= self._load_at):
                await self._load(0.0)
            started, self._spent = now(), 0.0
            # Not to be broken off: what was read is nowhere else until it is kept.
            self._under_way = asyncio.create_task(self.count_once())
            await asyncio.shield(self._under_way)
            log.debug("counting took %.0f ms of CPU time", self._spent * 1000)
            # A source that fills the sets must not have us do nothing but read them.
            took = now() - started
            rest = max(_REST_SECONDS, min(_SHARE * self._spent, _LONGEST_SECONDS - took))
            await asyncio.sleep(rest)
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, _COUNT_SECONDS - took - rest)):
                    await self._noticed.wait()
            self._noticed.clear()

    async def finish(self, *, final: bool) -> None:
        """After `count_forever` was cancelled: have what was read kept. At an orderly end, take into account all that
        the rules have counted, and say what was not said yet."""
        if self._under_way is not None:
            await self._under_way
        if not self._resumed:
            await self.begin(LAST_SECONDS)
        if final:
            await self.count_once(final=True)
            if self._saving is not None and await self._is_saved(LAST_SECONDS) and self._changed:
                await self._keep()

    async def count_once(self, *, final: bool = False) -> None:
        """Take into account what was counted until now, where the kernel tells; with `final` no more will come."""
        try:
            await self._count(final)
        except KernelError as error:
            # Most often the look that repairs has it put right before it is worth a word.
            log.debug("counters can't be read now: %s", error)
            if not self._refused and asyncio.get_running_loop().time() - self._counted_at > _REFUSED_SECONDS:
                self._refused = True
                log.error(
                    "%s. What is blocked stays blocked, and the kernel goes on counting; what is shown of it stays as "
                    "it is until its counters can be read again.",
                    as_sentence(error),
                )
        else:
            self._counted_at, self._refused = asyncio.get_running_loop().time(), False

    async def _count(self, final: bool) -> None:
        for drain in await self._owner.run(self._timed, self._kernel.drain):
            if any(drain.sources) or any(drain.repliers):
                lines = await asyncio.to_thread(self._timed, self._take, drain)
            else:
                lines = self._take(drain)  # nothing to read: quicker than a thread
            self._tell(self._counted())
            await self._show(lines)
        if final:
            lines = self._tally.finish(self._ledger.dropped.packets)
            self._ledger = replace(self._ledger, told=self._tally.told)
            self._changed = True
            await self._show(lines)

    def _timed(self, action: Callable[..., _Result], *arguments: object) -> _Result:
        """Do this, and add what it takes of this thread's time."""
        started = time.thread_time()
        try:
            return action(*arguments)
        finally:
            self._spent += time.thread_time() - started

    def _take(self, drain: TrafficSample) -> list[Line]:
        named = attribute(drain, self._owed)
        self._owed = named.owed
        ledger = self._ledger.with_drain(drain, named.packets, time.time(), named.replies())
        if ledger.day != self._today.day:
            self._today = DaySummary(ledger.day)
            self._unsaved.turn_over()
        fresh = self._today.add(drain, named.ports)
        lines = self._tally.take(named.largest, ledger.dropped.packets, time.monotonic())
        # Also where a rule was made, and has dropped nothing yet: from then on it is known where it stands.
        anew = ledger.counters != self._ledger.counters
        self._ledger = replace(ledger, told=self._tally.told)
        if self._records is not None:
            self._unsaved.add(named.largest, named.packets - sum(packets for _, packets in named.largest), fresh)
        watched = self._watched  # this may be a thread, and the watch end meanwhile
        if watched is not None:
            watched.update(key[0] for key, _ in named.largest)
        self._changed |= bool(lines or drain.dropped.packets or named.packets or self._unsaved.fresh or anew)
        return lines

    async def _show(self, lines: list[Line]) -> None:
        if self._changed:
            # Kept before they are shown: whoever dies in between says nothing twice. But a disk keeps nobody waiting.
            await self._keep()
        for line in lines:
            log.info("%s", line.text, extra={"fields": in_fields(line, self._tally.port_map)})

    async def _keep(self) -> None:
        """Have what is known on disk, or as much of it as the disk takes in a moment. What it does not take waits."""
        if self._records is None or not self._loaded:
            self._changed = self._records is not None
            return
        if self._saving is not None and not await self._is_saved(0.0):
            return
        taken = self._unsaved.take(_SOURCES_AT_ONCE)
        save = partial(
            self._records.save,
            self._ledger,
            tuple(taken.blocked.items()),
            taken.fresh,
            self._today.top_ports(_PORTS),
            new_day=taken.new_day,
            unfiled=taken.unfiled,
        )
        self._changed = bool(self._unsaved.fresh)
        self._saving = self._disk.start(partial(self._timed, save)), taken
        await self._is_saved(_SAVE_SECONDS)

    async def _is_saved(self, seconds: float) -> bool:
        """Whether the last save has come to an end in this time, whatever it was."""
        assert self._saving is not None
        job, taken = self._saving
        if not await self._disk.soon(job, seconds):
            self._changed = True
            if self._disk.hangs():
                self._say_trouble("Nothing that is counted can be kept: the disk does not answer")
            return False
        self._saving = None
        try:
            job.result()
        except RecordError as error:
            self._unsaved.give_back(taken)
            self._changed = True
            self._say_trouble(as_sentence(error))
        else:
            self._say("")
        return True

    def _say_trouble(self, what: str) -> None:
        self._say(
            f"{what}. Blocking and counting go on, and what is counted waits in memory: it is kept and reported when "
            "the disk takes it, and lost where the service ends before."
        )

    def _say(self, trouble: str) -> None:
        if trouble != self._trouble:
            self._trouble = trouble
            self._tell_trouble(trouble)

    def _counted(self) -> TrafficStats:
        ledger, today = self._ledger, self._today
        if ledger.is_over(now := time.time()):
            # A day on which nothing was dropped yet.
            ledger, today = replace(ledger, dropped_today=NOTHING), DaySummary(day_of(now))
        return TrafficStats(
            ledger.dropped,
            ledger.dropped_today,
            ledger.unnamed(),
            today.sources,
            tuple(today.top_ports(_SHOWN_PORTS)),
            ledger.replies,
        )
