"""Counting what was dropped: from the kernel to the totals, to lines of the log, and to what will be reported."""

from __future__ import annotations

import asyncio
import logging
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from sikkerguard.core.traffic import counting
from sikkerguard.core.traffic.counting import Memory
from sikkerguard.core.traffic.log_window import in_fields
from sikkerguard.core.traffic.sample import TrafficStats
from sikkerguard.errors import KernelError, as_sentence
from sikkerguard.service.disk_thread import LAST_SECONDS
from sikkerguard.service.said import Said
from sikkerguard.service.traffic_saver import TrafficSaver
from sikkerguard.service.wakeup import Wakeup, Watched

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from sikkerguard.config.settings import Config
    from sikkerguard.core.interfaces import Clock, Signal, TrafficRecords
    from sikkerguard.core.traffic.log_window import Line
    from sikkerguard.core.traffic.sample import DropEvent, TrafficSample
    from sikkerguard.service.disk_thread import DiskThread
    from sikkerguard.service.kernel_thread import KernelThread

log = logging.getLogger(__name__)

# From one reading of the counters to the next: the first hit of a source shows within a second. A line of the kernel's
# log that is news has them read sooner, but not before they have rested for a while.
_COUNT_SECONDS, _REST_SECONDS = 0.9, 0.2
# After a count the loop rests for so many times as long as the count took, so that counting uses at most 1/20 of one
# core. But what is shown is never older than two seconds, the time included that it takes to read a full set.
_RESTS_PER_COUNT, _LONGEST_SECONDS = 20, 1.6
# Log an error once counters have been unreadable for this long.
_REFUSED_SECONDS = 10.0
# How long the start waits for what earlier runs have counted, before counting begins without.
_LOAD_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class TrafficState:
    """What was counted, and a sentence that says why it can't be kept on disk; empty where it can."""

    stats: TrafficStats = field(default_factory=TrafficStats)
    trouble: str = ""


class CountLoop:
    """Call `prepare` before the kernel's rules are touched, then have `run` run until it is cancelled, then `finish`.

    Without `records` nothing is kept on disk; `disk` is the thread that does it, for which nobody waits but a moment.
    `config` is read for its port map. `changes` is set whenever `state` has changed, and `healed` when the records can
    be written again."""

    work = "counting"

    def __init__(
        self,
        kernel: KernelThread,
        records: TrafficRecords | None,
        disk: DiskThread,
        config: Watched[Config],
        clock: Clock,
        healed: Signal,
        changes: Signal,
    ) -> None:
        self._kernel = kernel
        self._saver = TrafficSaver(records, disk, clock, healed)
        self._config = config
        self._clock = clock
        self._changes = changes
        self.state = TrafficState()
        # Replaced by this loop's own task only, as a whole.
        self._memory = Memory()
        self._resumed = False
        self._dropped_sources: set[bytes] | None = None
        self._counted_at = 0.0
        self._wakeup = Wakeup()
        self._refusal = Said(log)
        self._under_way: asyncio.Task[None] | None = None

    @contextmanager
    def watch_sources(self) -> Iterator[Collection[bytes]]:
        """A set that collects the sources, packed, of packets that are dropped meanwhile: of some thousand at once."""
        self._dropped_sources = set[bytes]()
        try:
            yield self._dropped_sources
        finally:
            self._dropped_sources = None

    def notice(self, event: DropEvent) -> None:
        """A line of the kernel's log proves nothing, but says that it may be worth reading the counters now."""
        flow = (event.address, event.protocol, event.port)
        if self._memory.window.is_news(flow, self._clock.monotonic()):
            self._wakeup.set()

    async def prepare(self) -> None:
        """Lose nothing of what the kernel counts until it is known where the last run ended."""
        await self._kernel.hold_counters()

    async def begin(self, seconds: float = _LOAD_SECONDS) -> None:
        """Resume from the saved totals if they load within so many seconds; else join them when they arrive."""
        self._counted_at = self._clock.monotonic()
        await self._load(seconds)
        if not self._resumed:
            self._resumed = True
            await self._kernel.resume_counters({})
        self._publish()

    async def run(self) -> None:
        """Count until cancelled: log what falls due, and keep what is counted."""
        if not self._resumed:
            await self.begin()
        while True:
            await self._load(0.0)
            self._publish()
            started = self._clock.monotonic()
            # Not to be broken off: what was read is nowhere else until it is kept.
            self._under_way = asyncio.create_task(self.count_once())
            await asyncio.shield(self._under_way)
            took = self._clock.monotonic() - started
            log.debug("counting took %.0f ms", took * 1000)
            # A source that fills the sets must not have us do nothing but read them.
            rest = max(_REST_SECONDS, min(_RESTS_PER_COUNT * took, _LONGEST_SECONDS - took))
            await asyncio.sleep(rest)
            await self._wakeup.wait(_COUNT_SECONDS - took - rest)

    async def finish(self, *, final: bool) -> None:
        """After `run` was cancelled: have what was read kept. With `final`, which is for an orderly end, also take into
        account all that the rules have counted, and log what was not logged yet."""
        if self._under_way is not None:
            await self._under_way
        if not self._resumed:
            await self.begin(LAST_SECONDS)
        if final:
            await self.count_once(final=True)
            self._memory = await self._saver.finish(self._memory)

    async def count_once(self, *, final: bool = False) -> None:
        """Take into account what was counted until now, where the kernel tells; with `final` no more will come."""
        try:
            samples = await self._kernel.read_traffic()
        except KernelError as error:
            # Most often the repair that follows puts it right before it is worth a line.
            log.debug("counters can't be read now: %s", error)
            refused = self._clock.monotonic() - self._counted_at
            if refused > _REFUSED_SECONDS and not self._refusal.sentence:
                self._refusal.say(
                    f"{as_sentence(error)}. What is blocked stays blocked, and the kernel goes on counting; what is "
                    "shown of it stays as it is until its counters can be read again."
                )
            samples = ()
        else:
            self._counted_at = self._clock.monotonic()
            self._refusal.say("")
        for sample in samples:
            await self._save_and_log(await self._apply(sample))
        if final:
            self._memory, lines = counting.finish(self._memory, self._config.value.port_map)
            await self._save_and_log(lines)

    async def _apply(self, sample: TrafficSample) -> tuple[Line, ...]:
        apply = partial(
            counting.apply,
            self._memory,
            sample,
            self._config.value.port_map,
            wall=self._clock.wall(),
            monotonic=self._clock.monotonic(),
        )
        # Full sets take a while, so in a thread; an empty sample is quicker done here.
        self._memory, lines = await asyncio.to_thread(apply) if sample.attributed else apply()
        if self._dropped_sources is not None:
            self._dropped_sources.update(source for (source, _, _), _ in sample.flows)
        return lines

    async def _load(self, seconds: float) -> None:
        saved = await self._saver.load(seconds)
        # No await between the load and this: a save in between would replace what is on disk.
        if saved is not None and self._resumed:
            self._memory = counting.join(self._memory, saved)
        elif saved is not None:
            self._resumed, self._memory = True, counting.resume(saved)
            await self._kernel.resume_counters(saved.totals.counters)

    async def _save_and_log(self, lines: tuple[Line, ...]) -> None:
        self._publish()
        # Saved before they are logged: a run that is killed in between logs nothing twice. But no line waits for long.
        self._memory = await self._saver.save(self._memory)
        if self._saver.trouble != self.state.trouble:
            self._publish()
        port_map = self._config.value.port_map
        for line in lines:
            log.info("%s", line.text, extra={"fields": in_fields(line, port_map)})

    def _publish(self) -> None:
        state = TrafficState(counting.summarize(self._memory, self._clock.wall()), self._saver.trouble)
        if state != self.state:
            self.state = state
            self._changes.set()
