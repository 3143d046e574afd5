"""The life of the service: it blocks by what an earlier run left, runs its loops until it is stopped, and takes its
rules away."""

from __future__ import annotations

import asyncio
import logging
import math
from typing import TYPE_CHECKING

from sikkerguard.errors import BusyError, KernelError
from sikkerguard.service.composition import Composition
from sikkerguard.service.disk_thread import LAST_SECONDS
from sikkerguard.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sikkerguard.config.settings import Config
    from sikkerguard.core.interfaces import HostMonitor
    from sikkerguard.service.adapters import Adapters
    from sikkerguard.service.listeners import Listeners
    from sikkerguard.service.settings import SettingsReader

log = logging.getLogger(__name__)

# A boot is not held up by another program for longer; the service does it later.
_RESTORE_PATIENCE_SECONDS = 10.0
_UNWATCHED = "Changes of the host are not seen at once (%s); it is looked every few seconds."


class Service:
    """`run` is its whole life; `restore` blocks by the cached list and returns. `stop` and `reload` may be called by
    signal handlers of the loop."""

    def __init__(self, config: Config, adapters: Adapters, reader: SettingsReader) -> None:
        self._adapters = adapters
        self._stopped = asyncio.Event()
        self.parts = Composition(config, adapters, reader)

    def stop(self) -> None:
        """Have `run` come to its end."""
        self._stopped.set()

    def reload(self, *, accept: bool = False) -> Mapping[str, object]:
        """Read the settings again and pull now: see `core.interfaces.Operations`."""
        number = self.parts.reload.now(accept=accept)
        return {"pull": number, "complaint": self.parts.settings.trouble}

    def failures(self) -> tuple[str, ...]:
        """Why it can't be said that the list blocks; empty where it does."""
        return self.parts.failures()

    def status(self) -> Mapping[str, object]:
        """What `/status` shows."""
        return self.parts.status()

    async def run(self, listeners: Listeners) -> None:
        """Protect until `stop`, then take everything of ours away.

        If it ends by an error instead, or is being restarted, what is committed in the kernel goes on
        blocking, for the next start to adopt.

        Raises:
            KernelError: the kernel can't be used at all, or not everything could be removed at the end.
        """
        parts, unexpected = self.parts, self.parts.unexpected
        parts.listeners = listeners
        tasks = {asyncio.create_task(parts.supervisor.keep(parts.announcer))}
        monitor: HostMonitor | None = None
        try:
            log.info("SikkerGuard %s", VERSION)
            log.info("%s", parts.settings.config.value.summary())
            listeners.start()
            await self._begin()
            if not self._stopped.is_set():
                with unexpected.survived(_UNWATCHED):
                    monitor = self._adapters.observer.monitor(parts.repairs.host_changed)
                    monitor.start()
                log.info("Monitoring blocked connections")
                tasks |= {asyncio.create_task(parts.supervisor.keep(loop)) for loop in parts.loops()}
            await self._until_stopped(tasks)
        finally:
            # Whatever one of these meets, the next is done, and the rules are taken away.
            with unexpected.survived():
                self._adapters.manager.stopping()
            with unexpected.survived():
                if monitor is not None:
                    monitor.stop()
            with unexpected.survived():
                await listeners.stop()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            try:
                await self._end()
            finally:
                await self._close()

    async def restore(self) -> None:
        """Block by the cached list, and leave it at that: at a boot, before the network is up.

        Raises:
            KernelError: the kernel can't be used.
        """
        counting = self.parts.counting
        try:
            if await self._begin(_RESTORE_PATIENCE_SECONDS):
                # What was read while rules were made anew is nowhere else. What comes now, the service takes.
                await counting.begin()
                await counting.count_once()
            self.parts.announcer.log_troubles(self.parts.state)
        finally:
            await self._close()

    async def _begin(self, patience: float = math.inf) -> bool:
        """Block by the cached list, or by what a process that died left in the kernel, before anything else. Returns
        whether anything had to be done for that. Another program that is in the way is waited for, at most `patience`
        seconds."""
        parts, unexpected = self.parts, self.parts.unexpected
        config = parts.settings.config.value
        parts.settings.begin()
        with unexpected.survived():
            await parts.counting.prepare()
        saved = await parts.disk.load()
        with unexpected.survived():
            parts.endpoint.begin(config, saved.endpoint)
        await parts.tracker.begin(saved.allowlist)
        with unexpected.survived():
            await asyncio.to_thread(parts.runner.load, saved)
        if parts.lists.value is None:
            parts.lists.found = await parts.kernel.read_committed()
        operations = await parts.repairs.adopt(parts.lists.blocklist, self._stopped, patience)
        if operations is None:
            return False  # stopped while another program was in the way
        log.info("Safety whitelist: %s", parts.tracker.allowlist.summary())
        log.info("Firewall ready")
        parts.runner.show_adopted()
        parts.tracker.save()
        parts.disk.claim()
        parts.settings.save()
        return bool(operations)

    async def _until_stopped(self, tasks: set[asyncio.Task[None]]) -> None:
        stopped = asyncio.create_task(self._stopped.wait())
        done, _ = await asyncio.wait({stopped, *tasks}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        for task in done & tasks:
            task.result()  # the supervisor lets none of them end: what did is raised here

    async def _end(self) -> None:
        """Where a stop was asked for, take the rules away; what they counted is read when no packet meets them any
        more, and before they are gone."""
        kernel, unexpected = self.parts.kernel, self.parts.unexpected
        if not self._stopped.is_set():
            await self._finish_counting(final=False)
            return
        job = ""
        with unexpected.survived():
            job = await asyncio.to_thread(self._adapters.manager.pending_job)
        if job in ("restart", "shutdown"):
            await self._finish_counting(final=True)
            if job == "restart":
                log.info("Stopped for a restart: what is blocked stays blocked meanwhile.")
            else:
                log.info("Stopped as the host goes down: what is blocked stays blocked.")
            return
        try:
            with unexpected.survived():
                await kernel.unhook()
        except KernelError as error:
            log.debug("our rules can't be unhooked before they are removed: %s", error)  # the removal says it aloud
        await self._finish_counting(final=True)
        try:
            await kernel.remove()
        except BusyError as error:
            log.warning("Stopped: %s.", error)
        else:
            log.info("Stopped: nothing of ours is left in the kernel.")

    async def _finish_counting(self, *, final: bool) -> None:
        with self.parts.unexpected.survived():
            await self.parts.counting.finish(final=final)
        self.parts.announcer.log_troubles(self.parts.state)  # that of the last save, which nobody else announces

    async def _close(self) -> None:
        """Have what is known on disk, as far as it takes that in time, and close everything."""
        parts, records = self.parts, self._adapters.records
        await parts.disk.finish()
        if records is not None and not await parts.records.soon(parts.records.start(records.close), LAST_SECONDS):
            log.error("The disk does not answer: what was counted last is lost. The process ends when it does.")
        parts.records.shutdown()
        await parts.kernel.close()
        parts.tracker.close()
