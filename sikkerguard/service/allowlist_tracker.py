"""What is never blocked: found out again and again, kept in step with the host, and told to the kernel."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from sikkerguard.core.host.surroundings import HostAllowlist
from sikkerguard.core.lists.allowlist import ALWAYS_ALLOWED, GATEWAY, RESOLVER, Allowlist
from sikkerguard.core.net.address import to_text
from sikkerguard.core.state import AllowlistState
from sikkerguard.errors import KernelError, as_sentence
from sikkerguard.service.wakeup import Watched

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from sikkerguard.config.settings import Config
    from sikkerguard.core.interfaces import HostObserver, Signal
    from sikkerguard.core.lists.allowlist import AllowEntry
    from sikkerguard.service.kernel_thread import KernelThread
    from sikkerguard.service.list_in_force import ListInForce
    from sikkerguard.service.state_writer import StateWriter
    from sikkerguard.service.supervision import UnexpectedErrors

log = logging.getLogger(__name__)


class AllowlistTracker:
    """The one writer of `allowed`. The host is looked at in a thread of its own, so that a host that takes long to look
    at keeps nobody from the kernel.

    `follow` is called by the repair loop every few seconds and when the host changed, and by whoever needs the
    allowlist to be right at once."""

    def __init__(
        self,
        observer: HostObserver,
        kernel: KernelThread,
        config: Watched[Config],
        lists: ListInForce,
        writer: StateWriter,
        unexpected: UnexpectedErrors,
        changes: Signal,
    ) -> None:
        self._observer = observer
        self._kernel = kernel
        self._config = config
        self._lists = lists
        self._writer = writer
        self._unexpected = unexpected
        self._changes = changes
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="surroundings")
        self._following = asyncio.Lock()
        # Gateways and resolvers of the last run, until a way out is found.
        self._earlier: tuple[AllowEntry, ...] = ()
        self._tentative: tuple[AllowEntry, ...] = ()
        # Where requests go: SikkerAPI's addresses, or a proxy's.
        self.endpoint: tuple[AllowEntry, ...] = ()
        self.allowed = Watched(HostAllowlist())
        # What the allow sets should hold: the allowlist, and what is allowed for seconds only.
        self.in_kernel = Allowlist()
        self.state = AllowlistState()

    @property
    def allowlist(self) -> Allowlist:
        """What is never blocked."""
        return self.allowed.value.allowlist

    @property
    def api_addresses(self) -> tuple[str, ...]:
        """Where requests go, as texts: what the self-test connects to."""
        return tuple(to_text(entry.family, entry.prefix) for entry in self.endpoint)

    def set_endpoint(self, entries: Iterable[AllowEntry]) -> None:
        """Requests go to these addresses from now on. The next `follow` allows them, and no others."""
        self.endpoint = tuple(entries)

    async def begin(self, earlier: Allowlist) -> None:
        """Find out what is allowed, without touching the kernel. `earlier` is the allowlist of the last run: all of it
        is used where the host can't be looked at."""
        self._earlier = tuple(entry for entry in earlier.entries if entry.reason in (GATEWAY, RESOLVER))
        try:
            with self._unexpected.as_kind(KernelError, KernelError("there is not enough memory to look at the host")):
                allowed = await self._observed()
        except KernelError as error:
            trouble = f"{as_sentence(error)}; what was allowed before stays so, and it is looked again."
            log.error("%s", trouble)
            self.state = AllowlistState(trouble=trouble)
            allowed = HostAllowlist(Allowlist(tuple(dict.fromkeys((*ALWAYS_ALLOWED, *earlier.entries)))))
        self.in_kernel = allowed.allowlist
        self.allowed.set(allowed)
        self.state = replace(self.state, summary=allowed.allowlist.summary())

    async def follow(self) -> None:
        """Allow what the host has become, and block again what it no longer is.

        Raises:
            KernelError: the host can't be looked at, or the allow sets could not be changed.
        """
        # One at a time: of two that look at different moments, the older look might otherwise have the last word.
        async with self._following:
            await self._follow()

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

    def save(self) -> None:
        """Have what is allowed on disk, for `sikkerguard check` and for a start without network."""
        self._writer.save(self.allowlist)

    def close(self) -> None:
        """End the thread that looks at the host."""
        self._executor.shutdown(wait=True)

    async def _observed(self) -> HostAllowlist:
        config = self._config.value
        found = await asyncio.get_running_loop().run_in_executor(
            self._executor, self._observer.observe, config.ssh_ports, self._lists.listed
        )
        if found.gateways:
            self._earlier = ()
        # Before the network is up, the way to it is the one that led there before: it must not be cut off meanwhile.
        entries = (*ALWAYS_ALLOWED, *found.allowed, *self.endpoint, *config.whitelist, *self._earlier)
        return HostAllowlist(Allowlist(tuple(dict.fromkeys(entries))), found.gateways)

    async def _follow(self) -> None:
        before, allowed = self.allowed.value, await self._observed()
        # The second: what the kernel had refused in between is undone.
        if allowed.allowlist != before.allowlist or self.in_kernel != _joined(allowed.allowlist, self._tentative):
            await self._allow(allowed.allowlist, self._tentative)
        summary = allowed.allowlist.summary()
        if self.state != (state := AllowlistState(summary)):
            self.state = state
            self._changes.set()
        if allowed != before:
            self.allowed.set(allowed)
        if allowed.allowlist == before.allowlist:
            return
        log.info("Safety whitelist: %s", summary)
        for entry in sorted(set(allowed.entries) ^ set(before.entries), key=str):
            log.debug("Safety whitelist: %s %s", "now with" if entry in allowed.entries else "without", entry)
        self.save()

    async def _allow(self, allowlist: Allowlist, tentative: tuple[AllowEntry, ...]) -> None:
        """Have the kernel allow just that. It is noted before it is done, so that no look in between undoes it."""
        self._tentative = tentative
        self.in_kernel = _joined(allowlist, tentative)
        await self._kernel.allow(self.in_kernel)


def _joined(allowlist: Allowlist, tentative: tuple[AllowEntry, ...]) -> Allowlist:
    return Allowlist(tuple(dict.fromkeys((*allowlist.entries, *tentative)))) if tentative else allowlist
