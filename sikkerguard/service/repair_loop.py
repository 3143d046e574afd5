"""Keeping the kernel as it should be: observed against desired, every few seconds and whenever the host changed."""

from __future__ import annotations

import asyncio
import logging
import math
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from sikkerguard.core.firewall.diff import summarize
from sikkerguard.core.state import RepairState
from sikkerguard.errors import BusyError, KernelError, as_sentence
from sikkerguard.service.said import Said
from sikkerguard.service.wakeup import Wakeup

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from sikkerguard.core.firewall.diff import Operation
    from sikkerguard.core.interfaces import Clock, Signal
    from sikkerguard.core.net.networks import Blocklist
    from sikkerguard.service.allowlist_tracker import AllowlistTracker
    from sikkerguard.service.kernel_thread import KernelThread
    from sikkerguard.service.supervision import UnexpectedErrors

log = logging.getLogger(__name__)

_Result = TypeVar("_Result")

_LOOK_SECONDS = 5.0  # how often the kernel is compared with what it should hold
_SETTLE_SECONDS = 0.1  # a change of the host comes as several events; act when they are through
_SHORTEST_SECONDS = 1.0  # from one look to the next, however much changes meanwhile
_BUSY_SECONDS = 0.2  # from one try to the next while another program is in the way
_NO_MEMORY = "there is not enough memory to look after the rules, which stay as they are"


class RepairLoop:
    """Has the allowlist follow the host, and repairs our rules. `host_changed` is set by whoever sees a change."""

    work = "looking after the rules"

    def __init__(
        self,
        kernel: KernelThread,
        tracker: AllowlistTracker,
        clock: Clock,
        unexpected: UnexpectedErrors,
        changes: Signal,
    ) -> None:
        self._kernel = kernel
        self._tracker = tracker
        self._clock = clock
        self._unexpected = unexpected
        self._changes = changes
        self._said = Said(log)
        self.host_changed = Wakeup()
        self.state = RepairState()

    async def adopt(
        self, blocklist: Blocklist, stopped: asyncio.Event, patience: float = math.inf
    ) -> tuple[Operation, ...] | None:
        """Have the kernel hold this list. Another program that is in the way is waited for, at most `patience`
        seconds. Returns what had to be done, or None where it was `stopped` first.

        Raises:
            KernelError: the kernel refused, or another program was in the way for longer than that.
        """
        since = self._clock.monotonic()
        done: tuple[Operation, ...] = ()
        begin = True
        while not stopped.is_set():
            began = self._clock.monotonic()
            try:
                # What is left to do after a first try is a repair, which does no work twice.
                if begin:
                    done += await self._attempt(self._kernel.adopt(blocklist, self._tracker.in_kernel))
                    break
                done += await self._attempt(self._kernel.repair(self._tracker.in_kernel))
                begin = True
            except BusyError as error:
                if self._clock.monotonic() - since > patience:
                    raise
                begin = False
                self._note_busy(error)
                with suppress(TimeoutError):
                    async with asyncio.timeout(max(_BUSY_SECONDS, self._clock.monotonic() - began)):
                        await stopped.wait()
        else:
            return None
        self._note_right(())
        return done

    async def run(self) -> None:
        """Look until cancelled."""
        looked_at = self._clock.monotonic()
        pause = _LOOK_SECONDS
        while True:
            if await self.host_changed.wait(pause):
                settled_at = max(self._clock.monotonic() + _SETTLE_SECONDS, looked_at + _SHORTEST_SECONDS)
                await asyncio.sleep(settled_at - self._clock.monotonic())
                self.host_changed.clear()
            looked_at = self._clock.monotonic()
            pause = await self._look()

    async def _look(self) -> float:
        """Follow the host, and repair. Returns the seconds until the next look."""
        errors: list[KernelError] = []
        operations: tuple[Operation, ...] = ()
        # Each by itself: what keeps us from following the host must not keep our rules from being repaired.
        try:
            await self._attempt(self._tracker.follow())
        except KernelError as error:
            errors.append(error)
        try:
            operations = await self._attempt(self._kernel.repair(self._tracker.in_kernel))
        except KernelError as error:
            errors.append(error)
        if not errors:
            self._note_right(operations)
        elif all(isinstance(error, BusyError) for error in errors):
            self._note_busy(*errors)
            if not await self._repair_when_free():
                return 0.0  # the time until the next look has passed in it
        else:
            self._note_trouble(f"{_sentences(errors)}; tried again every {_LOOK_SECONDS:g} s.")
        return _LOOK_SECONDS

    async def _repair_when_free(self) -> bool:
        """Repair in the moment in which it is possible, until the next look. Returns whether that came about."""
        until = self._clock.monotonic() + _LOOK_SECONDS
        pause = _BUSY_SECONDS
        while self._clock.monotonic() + pause < until and not self.host_changed.is_set():
            await asyncio.sleep(pause)
            began = self._clock.monotonic()
            try:
                self._note_right(await self._attempt(self._kernel.repair(self._tracker.in_kernel)))
            except BusyError as error:
                self._note_busy(error)
                # What takes long is not done all the time: others want the kernel too.
                pause = max(_BUSY_SECONDS, 2 * (self._clock.monotonic() - began))
            except KernelError as error:
                log.debug("%s; the next look says it if it lasts.", as_sentence(error))
                return False
            else:
                return True
        return False

    async def _attempt(self, work: Awaitable[_Result]) -> _Result:
        """Turn every failure into a `KernelError`, so that the loop goes on at its usual pace."""
        with self._unexpected.as_kind(KernelError, KernelError(_NO_MEMORY)):
            return await work

    def _note_right(self, operations: tuple[Operation, ...]) -> None:
        now = self._clock.monotonic()
        self.state = replace(self.state, verified_ok_at=now, alive_at=now, trouble="")
        self._said.say("")
        if operations:
            what = summarize(operations)
            log.warning("Another program changed our rules (%s); repaired.", what)
            for operation in operations:
                log.debug("Repaired: %s", operation.describe())
            self.state = replace(self.state, repairs=self.state.repairs + 1, last_repair=what)
        self._changes.set()

    def _note_busy(self, *errors: KernelError) -> None:
        # Whoever restarted us for it would end what makes progress, and change nothing: this counts as being alive.
        self.state = replace(self.state, alive_at=self._clock.monotonic())
        self._note_trouble(f"{_sentences(errors)}; it is put right as soon as that is possible.")

    def _note_trouble(self, trouble: str) -> None:
        self._said.say(trouble)
        self.state = replace(self.state, trouble=trouble)
        self._changes.set()


def _sentences(errors: tuple[KernelError, ...] | list[KernelError]) -> str:
    return "; ".join(dict.fromkeys(as_sentence(error) for error in errors))
