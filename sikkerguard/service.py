"""The service: the cycle and its tasks, from the first rule to the last one taken away.

Every edge is passed in. One task pulls, one keeps the kernel as it should be and follows the host, one shows what was
blocked; the owner's thread alone touches netfilter, and its progress is what feeds the watchdog.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sikkerguard.core import health
from sikkerguard.core.model import Attempt, Blocklist, State
from sikkerguard.core.parse import merge_content
from sikkerguard.core.policy import Baseline, HeldBackError, admit
from sikkerguard.core.schedule import duration_text, next_pull, next_try
from sikkerguard.counting import Counting
from sikkerguard.cycle import Cycle, InForce, Owner
from sikkerguard.errors import ConfigError, KernelError, ListError, SikkerGuardError, as_sentence
from sikkerguard.keeping import Keeper
from sikkerguard.reporting import Reporter
from sikkerguard.watching import watch_forever

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable

    from sikkerguard.config import Config
    from sikkerguard.core.faces import (
        ApiFace,
        CountsFace,
        KernelFace,
        LogFace,
        NotifierFace,
        ProbesFace,
        StoreFace,
        WatchFace,
        WebFace,
    )
    from sikkerguard.core.model import AllowEntry, Allowlist
    from sikkerguard.reporting import OutboxFace, ReportFace

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


@dataclass(frozen=True, slots=True)
class Edges:
    """All that the service needs from outside. `detect` gets the whitelist and the API's addresses and gives what is
    allowed; `make_api`, `make_reports` and `make_probes` are asked again when the configuration changes; `make_watch`
    gets what to call when the surroundings changed; `open_log` gets the setting of the log source. `counts` and
    `outbox` are None where nothing is to be kept or reported."""

    kernel: KernelFace
    store: StoreFace
    counts: CountsFace | None
    outbox: OutboxFace | None
    notifier: NotifierFace
    detect: Callable[[Iterable[AllowEntry], Iterable[str]], tuple[AllowEntry, ...]]
    make_api: Callable[[Config], ApiFace]
    make_reports: Callable[[Config], ReportFace]
    make_probes: Callable[[Config], ProbesFace]
    make_watch: Callable[[Callable[[], None]], WatchFace]
    open_log: Callable[[str], LogFace | None]


class Service:
    """`run` is its whole life; `stop` and `reload` may be called by signal handlers of the loop."""

    def __init__(self, config: Config, edges: Edges, reread: Callable[[], Config]) -> None:
        self._config = config
        self._edges = edges
        self._reread = reread
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="netfilter")
        self._owner = Owner(self._executor)
        self._api: tuple[Config, ApiFace] | None = None
        self._in_force: InForce | None = None
        self._failures = 0
        self._stopped = asyncio.Event()
        self._work_wanted = asyncio.Event()
        self._pull_wanted = self._readmission_wanted = False
        self._keeper = Keeper(
            edges.kernel,
            self._owner,
            None if config.dry_run else edges.store,
            lambda addresses: edges.detect(self._config.whitelist, addresses),
            self._allowed_changed,
            self._change,
            edges.notifier.alive,
        )
        self._counting = Counting(
            edges.kernel, self._owner, edges.counts, config.port_map, lambda counted: self._change(counted=counted)
        )
        self._reporter = None
        if edges.outbox is not None:
            self._reporter = Reporter(
                edges.outbox,
                edges.make_reports,
                lambda: self._config,
                lambda numbers: self._change(reports=numbers),
            )
        self._ready = False
        self.state = State(started_at=time.time(), dry_run=config.dry_run)

    def stop(self) -> None:
        """Have `run` come to its end."""
        self._stopped.set()

    def reload(self) -> None:
        """Read the configuration again, and pull now."""
        try:
            fresh = self._reread()
        except ConfigError as error:
            log.error("The new configuration is not used, the one before it stays: %s", " ".join(error.complaints))
        else:
            self._take_config(fresh)
        self._pull_wanted = True
        self._work_wanted.set()

    def health(self) -> tuple[str, ...]:
        """Why the service is not healthy; empty when it is."""
        return health.reasons(self.state, time.time(), time.monotonic(), self._config.pull_interval)

    def status(self) -> dict[str, Any]:
        """What `/status` shows."""
        return health.status(self.state, time.time(), self.health(), self._config.port_map)

    async def run(self, web: WebFace) -> None:
        """Protect until `stop`, then take everything of ours away.

        If it ends by an error instead, what is committed in the kernel goes on blocking, for the next start to adopt.

        Raises:
            KernelError: the kernel can't be used at all, or not everything could be removed at the end.
        """
        tasks: set[asyncio.Task[None]] = set()
        watch = self._edges.make_watch(self._keeper.notice)
        try:
            await web.start()
            await self._begin()
            watch.start()
            tasks |= {asyncio.create_task(work) for work in self._works()}
            await self._until_stopped(tasks)
        finally:
            self._edges.notifier.stopping()
            watch.stop()
            await web.stop()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            try:
                await self._end()
            finally:
                await self._owner.run(self._edges.kernel.close)
                self._executor.shutdown(wait=True)

    def _works(self) -> list[Coroutine[Any, Any, None]]:
        works = [self._pull_forever(), self._keeper.look_forever(), self._counting.count_forever()]
        if self._reporter is not None:
            works.append(self._reporter.report_forever())
        if not self._config.dry_run:
            # Nothing of ours is in the kernel's log where nothing of ours is in the kernel.
            works.append(
                watch_forever(
                    lambda: self._edges.open_log(self._config.log_source),
                    self._counting.notice,
                    lambda name, lost: self._change(log_source=name, log_lost=lost),
                )
            )
        return works

    async def _end(self) -> None:
        """Where a stop was asked for, take the rules away; what they counted is read when no packet meets them any
        more, and before they are gone."""
        if not self._stopped.is_set():
            await self._counting.finish(unhooked=False)
            return
        try:
            await self._owner.run(self._edges.kernel.unhook)
        except KernelError as error:
            log.debug("our rules can't be unhooked before they are removed: %s", error)  # the removal says it aloud
        await self._counting.finish(unhooked=True)
        await self._owner.run(self._edges.kernel.remove)
        log.info("Stopped: nothing of ours is left in the kernel.")

    async def _until_stopped(self, tasks: set[asyncio.Task[None]]) -> None:
        stopped = asyncio.create_task(self._stopped.wait())
        done, _ = await asyncio.wait({stopped, *tasks}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        for task in done & tasks:
            task.result()  # none of them ends by itself: what ended one is a defect, and is raised here

    async def _begin(self) -> None:
        """Block by the cached list, or by what a process that died left in the kernel, before anything else."""
        await self._counting.begin()
        await self._keeper.begin(self._edges.store.load_allowlist())
        self._in_force = await asyncio.to_thread(self._load_cached)
        cached = self._in_force.verified if self._in_force else None
        if self._in_force is not None:
            blocklist = self._in_force.admitted.blocklist
        else:
            blocklist = await self._owner.run(self._edges.kernel.read_committed)
        await self._owner.run(self._edges.kernel.adopt, blocklist, self._keeper.allowlist)
        log.info("Safety whitelist: %s", self._keeper.allowlist.summary())
        self._change(settled_at=time.monotonic(), allowlist=self._keeper.allowlist.summary())
        if len(blocklist):
            self._show(blocklist, cached.verified_at if cached else None)
            age = f"from the cache, verified {duration_text(time.time() - cached.verified_at)} ago" if cached else ""
            log.info("%s (%s)", self._blocking(blocklist), age or "found in the kernel, left by an earlier run")
        self._say_ready()
        await self._keeper.keep()

    def _load_cached(self) -> InForce | None:
        try:
            verified = self._edges.store.load_list()
        except ListError as error:
            log.error("%s.", as_sentence(error))
            return None
        if verified is None:
            return None
        listed = merge_content([source.content for source in verified.sources])
        return InForce(verified, listed, admit(listed, self._keeper.allowlist))

    # Pulling

    async def _pull_forever(self) -> None:
        next_at, readmit_at = time.monotonic(), math.inf
        while True:
            self._work_wanted.clear()
            if self._readmission_wanted or time.monotonic() >= readmit_at:
                self._readmission_wanted = False
                pause = await self._attempt_readmission()
                readmit_at = time.monotonic() + pause
            if self._pull_wanted or time.monotonic() >= next_at:
                self._pull_wanted = False
                self._change(pulling=True)
                pause = await self._attempt_pull()
                next_at = time.monotonic() + pause
            self._change(next_pull_at=time.time() + next_at - time.monotonic())
            self._edges.notifier.status(health.sentence(self.state, time.time()))
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, min(next_at, readmit_at) - time.monotonic())):
                    await self._work_wanted.wait()

    async def _attempt_pull(self) -> float:
        """Pull; what goes wrong is said in one line, with what stays protected and when it is tried again. Gives the
        seconds until the next one."""
        try:
            await self._pull()
        except SikkerGuardError as error:
            self._failures += 1
            pause = next_try(error, self._failures, random.random)
            if isinstance(error, ListError):
                await self._remember_pull(error.signs if isinstance(error, HeldBackError) else frozenset())
            self._report_failure(error, pause)
            self._pulled(str(error))
            return pause
        self._failures = 0
        self._pulled("")
        return next_pull(self._config.pull_interval, random.random)

    async def _attempt_readmission(self) -> float:
        """Admit the list in force anew; gives the seconds until it has to be tried again, for ever where it went
        well. The rhythm of the pulls is not touched by it."""
        try:
            await self._readmit()
        except SikkerGuardError as error:
            pause = next_try(error, 1, random.random)
            self._report_failure(error, pause)
            return pause
        return math.inf

    def _pulled(self, failure: str) -> None:
        self._change(last_pull=Attempt(time.time(), failure), pulls=self.state.pulls + 1, pulling=False)

    def _report_failure(self, error: SikkerGuardError, pause: float) -> None:
        if self._in_force is not None:
            entries = len(self._in_force.admitted.blocklist)
            age = duration_text(time.time() - self._in_force.verified.verified_at)
            stays = f"the list verified {age} ago ({entries} entries) stays in force"
        else:
            stays = "no list is in force yet" if not self.state.protecting else "what the kernel blocks stays"
        log.error("%s; %s; next try in %s.", as_sentence(error), stays, duration_text(pause))

    async def _pull(self) -> None:
        # Whatever becomes of this pull, the wish to accept what it brings is for no other.
        accept = not self._config.dry_run and self._edges.store.take_acceptance()
        config = self._config
        if self._api is None or self._api[0] is not config:
            # In a thread, as are the probes: what they import takes a while to read.
            self._api = config, await asyncio.to_thread(self._edges.make_api, config)
        api = self._api[1]
        self._keeper.api_addresses = await api.addresses() or self._keeper.api_addresses
        await self._keeper.follow_host()
        cycle = await self._cycle(config)
        pulled = await cycle.pull(config, api)
        allowlist = self._keeper.allowlist
        in_force = await cycle.put_in_force(
            pulled,
            allowlist,
            self._in_force,
            self._baseline(),
            max_growth=config.max_growth,
            accept=accept,
            api_addresses=self._keeper.api_addresses,
        )
        self._change(quota_remaining=pulled.quota_remaining)
        await self._remember_pull(frozenset())
        await self._committed(in_force, allowlist)

    async def _readmit(self) -> None:
        if self._in_force is None:
            return
        cycle = await self._cycle(self._config)
        allowlist = self._keeper.allowlist
        await self._committed(await cycle.readmit(self._in_force, allowlist, self._keeper.api_addresses), allowlist)

    async def _cycle(self, config: Config) -> Cycle:
        return Cycle(
            self._edges.kernel,
            self._owner,
            await asyncio.to_thread(self._edges.make_probes, config),
            on_trial=lambda running: self._change(on_trial=running),
        )

    def _baseline(self) -> Baseline | None:
        if self._in_force is None:
            return None
        verified = self._in_force.verified
        held_back = self._edges.store.load_pulls().get("heldBack", [])
        signs = frozenset(map(str, held_back)) if isinstance(held_back, list) else frozenset[str]()
        return Baseline(verified.size, verified.fingerprint, verified.terminated, signs)

    async def _committed(self, in_force: InForce, allowlist: Allowlist) -> None:
        self._in_force = in_force
        if allowlist != self._keeper.allowlist:
            # The host changed while the list was tried: it was admitted with what was allowed before.
            self._readmission_wanted = True
            self._work_wanted.set()
        blocklist = in_force.admitted.blocklist
        self._show(blocklist, in_force.verified.verified_at)
        if not self._config.dry_run:
            try:
                await asyncio.to_thread(self._edges.store.save_list, in_force.verified)
            except OSError as error:
                log.error(
                    "The list is in force but could not be kept on disk (%s); after a reboot, protection waits "
                    "for a new pull. Make room or mend the state directory.",
                    error,
                )
        log.info("%s", self._blocking(blocklist))
        self._say_ready()

    def _blocking(self, blocklist: Blocklist) -> str:
        return f"{'Dry run: would be blocking' if self._config.dry_run else 'Blocking'} {len(blocklist)} IPs"

    async def _remember_pull(self, held_back: frozenset[str]) -> None:
        if self._config.dry_run:
            return
        try:
            await asyncio.to_thread(self._edges.store.save_pulls, {"heldBack": sorted(held_back)})
        except OSError as error:
            log.warning("The state directory can't be written (%s); a list held back twice will not be taken.", error)

    # Changing what is known and told

    def _allowed_changed(self, changed: Iterable[AllowEntry]) -> None:
        if self._in_force is not None and any(
            self._in_force.listed.of(entry.family).overlaps(entry.prefix.first, entry.prefix.last(entry.family))
            for entry in changed
        ):
            self._readmission_wanted = True
            self._work_wanted.set()

    def _take_config(self, fresh: Config) -> None:
        for name, variable in _FIXED.items():
            if getattr(fresh, name) != getattr(self._config, name):
                log.warning("The new %s takes effect with the next start only.", variable)
        self._config = replace(fresh, **{name: getattr(self._config, name) for name in _FIXED})
        self._counting.set_port_map(self._config.port_map)
        if self._reporter is not None:
            self._reporter.wake()
        self._failures = 0
        self._keeper.notice()
        log.info("The configuration was read again.")

    def _show(self, blocklist: Blocklist, verified_at: float | None) -> None:
        self._change(
            blocked_v4=len(blocklist.v4), blocked_v6=len(blocklist.v6), verified_at=verified_at, protecting=True
        )

    def _say_ready(self) -> None:
        """READY means that rules are live: with the first list that is, and not before."""
        sentence = health.sentence(self.state, time.time())
        if self.state.protecting and not self._ready:
            self._ready = True
            self._edges.notifier.ready(sentence)
        else:
            self._edges.notifier.status(sentence)

    def _change(self, **changes: Any) -> None:
        self.state = replace(self.state, **changes)
