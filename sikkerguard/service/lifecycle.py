"""The service: the cycle and its tasks, from the first rule to the last one taken away.

Every edge is passed in. One task pulls, one keeps the kernel as it should be and follows the host, one counts and shows
what was blocked, one reports it; the owner's thread alone touches netfilter, and its progress is what feeds the
watchdog.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from sikkerguard.core import health
from sikkerguard.core.durations import duration_text
from sikkerguard.core.net.networks import Blocklist
from sikkerguard.core.state import State
from sikkerguard.errors import BusyError, ConfigError, KernelError
from sikkerguard.service.api_endpoint import ApiEndpoint
from sikkerguard.service.count_loop import CountLoop
from sikkerguard.service.disk_thread import LAST_SECONDS, DiskThread, within
from sikkerguard.service.kernel_thread import KernelThread
from sikkerguard.service.log_follower import watch_forever
from sikkerguard.service.pull_loop import PullLoop
from sikkerguard.service.repair_loop import Keeper
from sikkerguard.service.report_loop import ReportLoop
from sikkerguard.service.settings_watch import SettingsWatch
from sikkerguard.service.state_writer import SavedState, StateWriter
from sikkerguard.service.supervision import Supervisor, Unknown
from sikkerguard.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable
    from pathlib import Path

    from sikkerguard.config.settings import Config
    from sikkerguard.core.firewall.diff import Operation
    from sikkerguard.core.interfaces import HostMonitor, Server
    from sikkerguard.core.net.family import Family
    from sikkerguard.service.adapters import Adapters

log = logging.getLogger(__name__)

# These can't change under a running service: sockets are open and files locked by them.
_FIXED = {
    "dry_run": "SIKKER_DRY_RUN",
    "health_host": "SIKKER_HEALTH_ADDRESS",
    "health_port": "SIKKER_HEALTH_ADDRESS",
    "state_dir": "SIKKER_STATE_DIR",
    "log_level": "SIKKER_LOG_LEVEL",
    "log_source": "SIKKER_LOG_SOURCE",
}
# The trouble that wrong settings are.
_SETTINGS = "settings"
# Seconds that a start may still take when some of its work has just been done.
_MORE_SECONDS = 60.0
# A boot is not held up by another program for longer; the service does it later.
_RESTORE_PATIENCE_SECONDS = 10.0
# What the files of settings may take to be read, while all else waits.
_READ_SECONDS = 2.0
# So long a start waits for its first list before it is called ready without one.
_READY_SECONDS = 10.0


class Service:
    """`run` is its whole life, `restore` that of one which ends when it blocks; `stop` and `reload` may be called by
    signal handlers of the loop. `reread` gives the settings as they are by then, `files` those that it reads."""

    def __init__(
        self,
        config: Config,
        edges: Adapters,
        reread: Callable[[], Config],
        files: Callable[[], Iterable[Path]] = tuple,
    ) -> None:
        self._config = config
        self._edges = edges
        self._reread = reread
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="netfilter")
        self._owner = KernelThread(self._executor)
        self._stopped = asyncio.Event()
        self._unknown = unknown = Unknown()
        self._supervisor = Supervisor(self.trouble, unknown)
        self._disk = StateWriter(edges.store, config.state_dir, lambda sentence: self.trouble("disk", sentence))
        self._records = DiskThread("records")
        self._keeper = Keeper(
            edges.kernel,
            self._owner,
            None if config.dry_run else self._disk,
            lambda ways: edges.detect(self._config.whitelist, ways, self._config.ssh_ports, self._is_listed),
            lambda changed: self._puller.allowed_changed(changed),
            lambda: self._puller.routed(),
            self._change,
            self._looked,
            unknown,
        )
        self._door = ApiEndpoint(edges.way, edges.make_door, self._keeper, None if config.dry_run else self._disk)
        self._puller = PullLoop(
            edges,
            self._disk,
            self._owner,
            self._keeper,
            self._door,
            lambda: self._config,
            lambda: self.state,
            self._change,
            lambda in_force: self._live(in_force.admitted.blocklist, in_force.verified.verified_at),
            self._tell,
            self._get_on,
            lambda: self._counting.watch_sources(),
            unknown,
        )
        self._counting = CountLoop(
            edges.kernel,
            self._owner,
            edges.counts,
            config.port_map,
            lambda counted: self._change(counted=counted),
            self._records_trouble,
            self._records,
        )
        self._reporter = None
        if edges.outbox is not None:
            self._reporter = ReportLoop(
                edges.outbox,
                edges.make_reports,
                lambda: self._config,
                # The keeper follows a new whitelist only a moment later, and a report can't be taken back.
                lambda: (*self._keeper.allowlist.entries, *self._config.whitelist),
                lambda: self._puller.in_force.verified.sources if self._puller.in_force else None,
                lambda numbers: self._change(reports=numbers),
                reach=self._door.open,
                disk=self._records,
            )
        self._corrections = SettingsWatch(
            files,
            edges.list_file.stamp,
            lambda: self._puller.uncorrected or any(name == _SETTINGS for name, _ in self.state.troubles),
            self.reload,
        )
        self._ready = False
        self._said = ""
        self._found = Blocklist()
        self.state = State(started_at=time.time(), dry_run=config.dry_run)

    def stop(self) -> None:
        """Have `run` come to its end."""
        self._stopped.set()

    def reload(self, *, accept: bool = False) -> dict[str, Any]:
        """Read the configuration again, and pull now, taking that list whatever its size if `accept` says so. Gives the
        number of this wish, `pull` (see `State.pull_answered`), and `complaint`, what is wrong with the settings."""
        with self._unknown.survived():
            if self._ready:
                self._edges.notifier.reloading()
            self._corrections.note()
        try:
            # A disk that does not answer is waited for by nobody, and so not by the loop.
            fresh = within(_READ_SECONDS, self._reread)
        except TimeoutError:
            self.trouble(_SETTINGS, f"The settings can't be read within {_READ_SECONDS:g} s; those before stay.")
        except ConfigError as error:
            what = " ".join(error.complaints)
            self.trouble(_SETTINGS, f"The new configuration is not used, the one before it stays: {what}")
            if error.key is not None:
                key, source = error.key
                self._config = replace(self._config, api_key=key, key_source=source, key_missing="")
        else:
            self._take_config(fresh)
        number = self._puller.pull_now(accept=accept)
        if self._ready:
            self._edges.notifier.ready(self._said)
        return {"pull": number, "complaint": dict(self.state.troubles).get(_SETTINGS, "")}

    def trouble(self, name: str, sentence: str) -> None:
        """Something besides the list does not work, or works again where the sentence is empty. The status is degraded
        for as long, and the log says so once."""
        others = {known: said for known, said in self.state.troubles if known != name}
        if sentence and (name, sentence) not in self.state.troubles:
            log.error("%s", sentence)
        self._change(troubles=tuple(sorted({**others, **({name: sentence} if sentence else {})}.items())))

    def _records_trouble(self, sentence: str) -> None:
        self.trouble("records", sentence)
        if not sentence:
            log.warning("What is counted is kept on disk again.")
            if self._reporter is not None:
                self._reporter.disk_healed()

    def health(self) -> tuple[str, ...]:
        """Why it can't be said that the list blocks; empty where it does."""
        return health.failures(self.state, time.monotonic())

    def reasons(self) -> tuple[str, ...]:
        """All that is not as it should be; empty when all is well."""
        return health.reasons(self.state, time.time(), time.monotonic(), self._config.pull_interval)

    def status(self) -> dict[str, Any]:
        """What `/status` shows."""
        return health.status(self.state, time.time(), self.reasons(), self._config.port_map)

    async def run(self, web: Server) -> None:
        """Protect until `stop`, then take everything of ours away.

        If it ends by an error instead, or for another run to begin at once, what is committed in the kernel goes on
        blocking, for the next start to adopt.

        Raises:
            KernelError: the kernel can't be used at all, or not everything could be removed at the end.
        """
        tasks: set[asyncio.Task[None]] = set()
        watch: HostMonitor | None = None
        late: asyncio.TimerHandle | None = None
        try:
            log.info("SikkerGuard %s", VERSION)
            log.info("%s", self._config.summary())
            await web.start()
            await self._begin()
            with self._unknown.survived(self._say_unwatched):
                watch = self._edges.make_watch(self._keeper.notice)
                watch.start()
            late = asyncio.get_running_loop().call_later(_READY_SECONDS, self._be_ready)
            log.info("Monitoring blocked connections")
            tasks |= {asyncio.create_task(self._supervisor.keep(name, begin)) for name, begin in self._works().items()}
            await self._until_stopped(tasks)
        finally:
            # Whatever one of these meets, the next is done, and the rules are taken away.
            with self._unknown.survived():
                self._edges.notifier.stopping()
            with self._unknown.survived():
                if watch is not None:
                    watch.stop()
            if late is not None:
                late.cancel()
            with self._unknown.survived():
                await web.stop()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            try:
                await self._end()
            finally:
                await self._close_disk()
                await self._owner.run(self._edges.kernel.close)
                self._executor.shutdown(wait=True)
                self._keeper.close()

    async def restore(self) -> None:
        """Block by the cached list, and leave it at that: at a boot, before the network is up.

        Raises:
            KernelError: the kernel can't be used.
        """
        try:
            if await self._begin(_RESTORE_PATIENCE_SECONDS):
                # What was read while rules were made anew is nowhere else. What comes now, the service takes and tells.
                await self._counting.begin()
                await self._counting.count_once()
        finally:
            await self._close_disk()
            await self._owner.run(self._edges.kernel.close)
            self._executor.shutdown(wait=True)
            self._keeper.close()

    def _works(self) -> dict[str, Callable[[], Coroutine[Any, Any, None]]]:
        """The loops, by what they do."""
        works: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {
            "pulling lists": self._puller.pull_forever,
            "watching the list file": self._puller.watch_file_forever,
            "looking after the rules": self._keeper.look_forever,
            "counting": self._counting.count_forever,
            "watching for corrections": self._corrections.watch_forever,
        }
        if self._reporter is not None:
            works["reporting"] = self._reporter.report_forever
        if not self._config.dry_run:
            works["looking after the disk"] = self._disk.watch_forever
            # Nothing of ours is in the kernel's log where nothing of ours is in the kernel.
            works["following the kernel's log"] = partial(
                watch_forever,
                lambda: self._edges.open_log(self._config.log_source),
                self._counting.notice,
                lambda name, lost: self._change(log_source=name, log_lost=lost),
            )
        return works

    async def _end(self) -> None:
        """Where a stop was asked for, take the rules away; what they counted is read when no packet meets them any
        more, and before they are gone."""
        if not self._stopped.is_set():
            await self._finish_counting(final=False)
            return
        job = ""
        with self._unknown.survived():
            job = await asyncio.to_thread(self._edges.notifier.job)
        if job in ("restart", "shutdown"):
            await self._finish_counting(final=True)
            if job == "restart":
                log.info("Stopped for a restart: what is blocked stays blocked meanwhile.")
            else:
                log.info("Stopped as the host goes down: what is blocked stays blocked.")
            return
        try:
            with self._unknown.survived():
                await self._owner.run(self._edges.kernel.unhook)
        except KernelError as error:
            log.debug("our rules can't be unhooked before they are removed: %s", error)  # the removal says it aloud
        await self._finish_counting(final=True)
        try:
            await self._owner.run(self._edges.kernel.remove)
        except BusyError as error:
            log.warning("Stopped: %s.", error)
        else:
            log.info("Stopped: nothing of ours is left in the kernel.")

    async def _finish_counting(self, *, final: bool) -> None:
        with self._unknown.survived():
            await self._counting.finish(final=final)

    def _say_unwatched(self, what: str) -> None:
        log.error("Changes of the host are not told at once (%s); it is looked every few seconds.", what)

    async def _close_disk(self) -> None:
        """Have what is known on disk, as far as it takes that in time."""
        await self._disk.finish()
        counts = self._edges.counts
        if counts is not None and not await self._records.soon(self._records.start(counts.close), LAST_SECONDS):
            log.error("The disk does not answer: what was counted last is lost. The process ends when it does.")
        self._records.shutdown()

    async def _until_stopped(self, tasks: set[asyncio.Task[None]]) -> None:
        stopped = asyncio.create_task(self._stopped.wait())
        done, _ = await asyncio.wait({stopped, *tasks}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        for task in done & tasks:
            task.result()  # the supervisor lets none of them end: what did is raised here

    async def _begin(self, patience: float = math.inf) -> tuple[Operation, ...]:
        """Block by the cached list, or by what a process that died left in the kernel, before anything else. Gives
        what had to be done for that. Another program that is in the way is waited for with so many seconds' patience.
        """
        self.trouble(_SETTINGS, " ".join(self._config.troubles))
        with self._unknown.survived():
            await self._counting.prepare()
        await self._disk.load()
        with self._unknown.survived():
            self._door.begin(self._config)
        await self._keeper.begin(self._disk.kept.allowlist)
        with self._unknown.survived():
            await asyncio.to_thread(self._puller.load_cached)
        in_force = self._puller.in_force
        if in_force is not None:
            blocklist = in_force.admitted.blocklist
        else:
            blocklist = self._found = await self._owner.run(self._edges.kernel.read_committed)
        operations = await self._keeper.adopt(blocklist, self._go_on_waiting, self._stopped, patience)
        if operations is None:
            return ()  # stopped while another program was in the way
        log.info("Safety whitelist: %s", self._keeper.allowlist.summary())
        log.info("Firewall ready")
        self._change(settled_at=time.monotonic(), allowlist=self._keeper.allowlist.summary())
        if len(blocklist):
            verified_at = in_force.verified.verified_at if in_force else None
            age = f"from the cache, verified {duration_text(time.time() - verified_at)} ago" if verified_at else ""
            self._live(blocklist, verified_at, age or "found in the kernel, left by an earlier run")
        self._tell()
        self._disk.kept = SavedState()
        self._keeper.keep()
        if not self._config.dry_run:
            self._disk.claim()
        self._keep_settings()
        return operations

    # Changing what is known and told

    def _take_config(self, fresh: Config) -> None:
        for name, variable in _FIXED.items():
            if getattr(fresh, name) != getattr(self._config, name):
                log.warning("The new %s takes effect with the next start only.", variable)
        self._config = replace(fresh, **{name: getattr(self._config, name) for name in _FIXED})
        self._counting.set_port_map(self._config.port_map)
        if self._reporter is not None:
            self._reporter.wake()
        self._keeper.notice()
        self.trouble(_SETTINGS, " ".join(self._config.troubles))
        self._keep_settings()
        log.info("The configuration was read again.")

    def _keep_settings(self) -> None:
        """Where all of them are good, for a start that meets wrong ones."""
        for hint in self._config.hints:
            log.warning("%s", hint)
        if self._config.texts is not None and not self._config.dry_run:
            self._disk.save_settings(self._config.texts)

    def _is_listed(self, family: Family, address: int) -> bool:
        """Whether the list in force has this address, whether it is allowed or not. For any thread."""
        in_force = self._puller.in_force
        listed = self._found if in_force is None else in_force.listed
        return listed.of(family).find(address) is not None

    def _live(self, blocklist: Blocklist, verified_at: float | None, remark: str = "") -> None:
        """This list is in force."""
        self._change(
            blocked_v4=len(blocklist.v4),
            blocked_v6=len(blocklist.v6),
            verified_at=verified_at,
            protecting=len(blocklist) > 0,
        )
        doing = "Dry run: would be blocking" if self._config.dry_run else "Blocking"
        log.info("%s", f"{doing} {len(blocklist)} IPs" + (f" ({remark})" if remark else ""))
        self._tell()

    def _be_ready(self) -> None:
        """READY means that all is done that can be: the chain stands, and a list blocks, or a pull was tried. Nothing
        that waits for us, as a boot does, waits for a server that takes its time."""
        if self._ready:
            return
        self._ready = True
        self._said = health.sentence(self.state, time.time())
        self._edges.notifier.ready(self._said)

    def _looked(self) -> None:
        """The kernel is as it should be: this feeds the watchdog."""
        self._edges.notifier.alive()
        # Without their number, which grows: each sentence is a line of that log.
        self.trouble("log", "Nobody reads the log: lines of it are lost." if self._edges.lines_lost() else "")
        self._tell()

    def _tell(self) -> None:
        if self.state.protecting or self.state.pulls:
            self._be_ready()
        sentence = health.sentence(self.state, time.time())
        if sentence != self._said:
            self._said = sentence
            self._edges.notifier.status(sentence)

    def _get_on(self) -> None:
        """A start that gets on is not to be broken off for taking long."""
        if not self._ready:
            self._edges.notifier.extend(_MORE_SECONDS)

    def _go_on_waiting(self, seconds: float) -> None:
        """Another program has been in the way for so long. Who waits for us does not wait for it as well."""
        self._get_on()
        if seconds > _READY_SECONDS:
            self._be_ready()

    def _change(self, **changes: Any) -> None:
        self.state = replace(self.state, **changes)
