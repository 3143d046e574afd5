"""Keeping the kernel as it should be, and what is allowed in step with the host."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, TypeVar

from sikkerguard.core.lists.allowlist import GATEWAY, RESOLVER, Allowlist, always_allowed
from sikkerguard.core.net.address import to_text
from sikkerguard.errors import BusyError, KernelError, as_sentence

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

    from sikkerguard.core.firewall.diff import Operation
    from sikkerguard.core.host.surroundings import Gateway, Surroundings
    from sikkerguard.core.interfaces import FirewallBackend
    from sikkerguard.core.lists.allowlist import AllowEntry
    from sikkerguard.core.net.networks import Blocklist
    from sikkerguard.service.kernel_thread import KernelThread
    from sikkerguard.service.state_writer import StateWriter
    from sikkerguard.service.supervision import Unknown

log = logging.getLogger(__name__)

_Result = TypeVar("_Result")

_LOOK_SECONDS = 5.0  # how often the kernel is compared with what it should hold
_SETTLE_SECONDS = 0.1  # a change of the host comes as several events; act when they are through
_SHORTEST_SECONDS = 1.0  # from one look to the next, however much changes meanwhile
_BUSY_SECONDS = 0.2  # from one try to the next while another program is in the way


class Keeper:
    """Looks at the kernel and the host again and again, and mends what differs.

    `detect` gets the addresses to which requests go and gives the host's surroundings; it has a thread of its own, so
    that a host that takes long to look at keeps nobody from the kernel. `changed` hears of entries that came or went,
    and `routed` of a way out that came; `change` takes changes of the service's state; `alive` is called after each
    look that was good, or that failed for nothing but another program's doing; `unknown` tells of what nobody thought
    of. Without a `disk` nothing is kept.

    `ways` are the addresses to which requests go, SikkerAPI's or a proxy's; whoever sets them has them followed.
    """

    def __init__(
        self,
        kernel: FirewallBackend,
        owner: KernelThread,
        disk: StateWriter | None,
        detect: Callable[[Iterable[AllowEntry]], Surroundings],
        changed: Callable[[Iterable[AllowEntry]], None],
        routed: Callable[[], None],
        change: Callable[..., None],
        alive: Callable[[], None],
        unknown: Unknown,
    ) -> None:
        self._kernel = kernel
        self._owner = owner
        self._disk = disk
        self._detect = detect
        self._changed = changed
        self._routed = routed
        self._change = change
        self._alive = alive
        self._unknown = unknown
        self._looking = ThreadPoolExecutor(1, thread_name_prefix="surroundings")
        self._surroundings_changed = asyncio.Event()
        self._following = asyncio.Lock()
        self._trouble = ""
        self._repairs = 0
        self._kept: tuple[AllowEntry, ...] = ()
        self._tentative: tuple[AllowEntry, ...] = ()
        # What the allow sets should hold: the allowlist, and what is allowed for seconds only.
        self._told = Allowlist()
        self.gateways: frozenset[Gateway] = frozenset()
        self.allowlist = Allowlist()
        self.ways: tuple[AllowEntry, ...] = ()

    @property
    def api_addresses(self) -> tuple[str, ...]:
        """What the self-test connects to: the addresses of `ways`."""
        return tuple(to_text(entry.family, entry.prefix) for entry in self.ways)

    def notice(self) -> None:
        """The surroundings changed: look now."""
        self._surroundings_changed.set()

    async def begin(self, kept: Allowlist) -> None:
        """Find out what is allowed; `kept` is what was when the last run ended."""
        self._kept = tuple(entry for entry in kept.entries if entry.reason in (GATEWAY, RESOLVER))
        try:
            self.allowlist = self._told = await self._attempt(self._detected())
        except KernelError as error:
            # All that was allowed then; the looks that follow find out what is now.
            self._say_trouble(f"{as_sentence(error)}; what was allowed before stays so, and it is looked again.")
            self.allowlist = self._told = Allowlist(tuple(dict.fromkeys((*always_allowed(), *kept.entries))))

    def close(self) -> None:
        """End the thread that looks at the host."""
        self._looking.shutdown(wait=True)

    async def look_forever(self) -> None:
        """Follow the host and repair our rules, every few seconds and whenever the surroundings changed."""
        looked_at = time.monotonic()
        pause = _LOOK_SECONDS
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._surroundings_changed.wait()
                await asyncio.sleep(max(_SETTLE_SECONDS, looked_at + _SHORTEST_SECONDS - time.monotonic()))
            pause = _LOOK_SECONDS
            self._surroundings_changed.clear()
            looked_at = time.monotonic()
            trouble: list[KernelError] = []
            operations: tuple[Operation, ...] = ()
            # Each by itself: what keeps us from following the host must not keep our rules from being repaired.
            try:
                await self._attempt(self.follow_host())
            except KernelError as error:
                trouble.append(error)
            try:
                operations = await self._attempt(self._owner.run(self._kernel.settle, self._told))
            except KernelError as error:
                trouble.append(error)
            if not trouble:
                self._right(operations)
            elif all(isinstance(error, BusyError) for error in trouble):
                self._say_busy(*trouble)
                # Whoever restarted us for it would end what gets on, and change nothing.
                self._alive()
                if not await self._settle_when_let_go():
                    pause = 0.0  # the time until the next look has passed in it
            else:
                sentences = dict.fromkeys(as_sentence(error) for error in trouble)
                self._say_trouble(f"{'; '.join(sentences)}; tried again every {_LOOK_SECONDS:g} s.")

    async def adopt(
        self,
        blocklist: Blocklist,
        waiting: Callable[[float], None],
        stopped: asyncio.Event,
        patience: float = math.inf,
    ) -> tuple[Operation, ...] | None:
        """Have the kernel hold this list, for as long as it takes where another program is in the way: `waiting` is
        called meanwhile with the seconds since then, and the watchdog is fed. Gives what had to be done, or None if it
        was `stopped` first.

        Raises:
            KernelError: the kernel refused, or another program was in the way for longer than `patience`, in seconds.
        """
        since = time.monotonic()
        done: tuple[Operation, ...] = ()
        begin = True
        while not stopped.is_set():
            began = time.monotonic()
            try:
                # What is left to do behind a first try is a repair, which does no work twice.
                if begin:
                    done += await self._attempt(self._owner.run(self._kernel.adopt, blocklist, self._told))
                    break
                done += await self._attempt(self._owner.run(self._kernel.settle, self._told))
                begin = True
            except BusyError as error:
                if time.monotonic() - since > patience:
                    raise
                begin = False
                self._say_busy(error)
                waiting(time.monotonic() - since)
                self._alive()
                with suppress(TimeoutError):
                    async with asyncio.timeout(max(_BUSY_SECONDS, time.monotonic() - began)):
                        await stopped.wait()
        else:
            return None
        self._trouble = ""
        self._change(trouble="")
        return done

    async def follow_host(self) -> None:
        """Allow what the host has become, and block again what it no longer is.

        Raises:
            KernelError: the allow sets could not be changed.
        """
        # One at a time: of two that look at different moments, the older look might otherwise have the last word.
        async with self._following:
            await self._follow_host_alone()

    @asynccontextmanager
    async def tentatively(self, entries: Iterable[AllowEntry]) -> AsyncIterator[None]:
        """Have these allowed in the kernel too, for as long as this lasts. They are never on the allowlist for it, nor
        on disk: a start after a death knows nothing of them, and takes them out.

        Raises:
            KernelError: the allow sets could not be changed.
        """
        try:
            async with self._following:
                await self._allow(self.allowlist, tuple(entries))
            yield
        finally:
            # Also where the kernel refused: what is noted is done by the next look.
            async with self._following:
                try:
                    await self._allow(self.allowlist, ())
                except KernelError as error:
                    log.error("%s; what was allowed for seconds is taken out by the next look.", as_sentence(error))

    def keep(self) -> None:
        """Have what is allowed on disk, for `sikkerguard check` and for a start without network."""
        if self._disk is not None:
            self._disk.save_allowlist(self.allowlist)

    async def _detected(self) -> Allowlist:
        found = await asyncio.get_running_loop().run_in_executor(self._looking, self._detect, self.ways)
        self.gateways = found.gateways
        if self.gateways:
            self._kept = ()
        # Before the network is up, the way to it is the one that led there before: it must not be cut off meanwhile.
        return Allowlist(tuple(dict.fromkeys((*always_allowed(), *found.allowed, *self._kept))))

    async def _follow_host_alone(self) -> None:
        former = self.gateways
        allowlist = await self._detected()
        if self.gateways - former:
            self._routed()
        if allowlist == self.allowlist and self._told == _together(allowlist, self._tentative):
            return
        await self._allow(allowlist, self._tentative)
        if allowlist == self.allowlist:
            return  # what the kernel had refused in between is undone
        changed = set(allowlist.entries) ^ set(self.allowlist.entries)
        log.info("Safety whitelist: %s", allowlist.summary())
        for entry in sorted(changed, key=str):
            log.debug("Safety whitelist: %s %s", "now with" if entry in allowlist.entries else "without", entry)
        self.allowlist = allowlist
        self._change(allowlist=allowlist.summary())
        self.keep()
        self._changed(changed)

    async def _allow(self, allowlist: Allowlist, tentative: tuple[AllowEntry, ...]) -> None:
        """Have the kernel allow just that. It is noted before it is done, so that no look in between undoes it."""
        self._tentative = tentative
        self._told = _together(allowlist, tentative)
        await self._owner.run(self._kernel.allow, self._told)

    async def _settle_when_let_go(self) -> bool:
        """Repair in the moment in which it is possible, until the next look; says whether that came about."""
        until = time.monotonic() + _LOOK_SECONDS
        pause = _BUSY_SECONDS
        while time.monotonic() + pause < until and not self._surroundings_changed.is_set():
            await asyncio.sleep(pause)
            began = time.monotonic()
            try:
                self._right(await self._attempt(self._owner.run(self._kernel.settle, self._told)))
            except BusyError as error:
                self._say_busy(error)
                # What takes long is not done all the time: others want the kernel too.
                pause = max(_BUSY_SECONDS, 2 * (time.monotonic() - began))
            except KernelError as error:
                log.debug("%s; the next look says it if it lasts.", as_sentence(error))
                return False
            else:
                return True
        return False

    async def _attempt(self, work: Awaitable[_Result]) -> _Result:
        """Whatever goes wrong with it is a `KernelError`: the next look comes as soon as after any other."""
        try:
            with self._unknown.told_as(KernelError):
                return await work
        except MemoryError as error:
            raise KernelError("there is not enough memory to look after the rules, which stay as they are") from error

    def _right(self, operations: tuple[Operation, ...]) -> None:
        self._repaired(operations)
        self._trouble = ""
        self._change(settled_at=time.monotonic(), trouble="")
        self._alive()

    def _say_busy(self, *errors: KernelError) -> None:
        sentences = "; ".join(dict.fromkeys(as_sentence(error) for error in errors))
        self._say_trouble(f"{sentences}; it is put right as soon as that is possible.")

    def _say_trouble(self, trouble: str) -> None:
        if trouble != self._trouble:
            log.error("%s", trouble)
        self._trouble = trouble
        self._change(trouble=trouble)

    def _repaired(self, operations: tuple[Operation, ...]) -> None:
        if not operations:
            return
        what = "; ".join(operation.describe().partition("\n")[0].rstrip(":") for operation in operations)
        log.warning("Someone changed our rules; repaired: %s", what)
        self._repairs += 1
        self._change(repairs=self._repairs, last_repair=what)


def _together(allowlist: Allowlist, tentative: tuple[AllowEntry, ...]) -> Allowlist:
    return Allowlist(tuple(dict.fromkeys((*allowlist.entries, *tentative)))) if tentative else allowlist
