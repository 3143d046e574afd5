"""Pulling: the list in force, when the next one is fetched, and what a failure means for it."""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from sikkerguard.core.model import Attempt
from sikkerguard.core.parse import merge_content
from sikkerguard.core.policy import Baseline, HeldBackError, admit
from sikkerguard.core.schedule import duration_text, next_pull, next_try
from sikkerguard.cycle import Cycle, InForce
from sikkerguard.errors import FetchError, ListError, SikkerGuardError, as_sentence

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sikkerguard.config import Config
    from sikkerguard.core.faces import ApiFace
    from sikkerguard.core.model import AllowEntry, Allowlist, Blocklist, State
    from sikkerguard.cycle import Owner
    from sikkerguard.door import Door
    from sikkerguard.keeping import Keeper
    from sikkerguard.needs import Edges

log = logging.getLogger(__name__)

# A host that has just started may have no network yet: a pull waits for a default gateway, but not for ever, since
# SikkerAPI may be reached without one. Behind the route come the resolvers, a moment later.
_NETWORK_SECONDS, _RESOLVERS_SECONDS = 30.0, 2.0


class Puller:
    """Knows the list in force, and brings the next one with `pull_forever`.

    `settings` gives the configuration of the moment and `state` what is known; `change` takes changes of that; `live`
    gets a list that was put in force and when it was verified; `tell` says in a sentence how things are; `progress` is
    called as the work of a pull gets on.
    """

    def __init__(
        self,
        edges: Edges,
        owner: Owner,
        keeper: Keeper,
        door: Door,
        settings: Callable[[], Config],
        state: Callable[[], State],
        change: Callable[..., None],
        live: Callable[[Blocklist, float], None],
        tell: Callable[[], None],
        progress: Callable[[], None],
    ) -> None:
        self._edges = edges
        self._owner = owner
        self._keeper = keeper
        self._door = door
        self._settings = settings
        self._state = state
        self._change = change
        self._live = live
        self._tell = tell
        self._progress = progress
        self._api: tuple[Config, ApiFace] | None = None
        self._failures = 0
        self._unreachable = False
        self._next_at = -math.inf
        self._work_wanted = asyncio.Event()
        self._pull_wanted = self._readmission_wanted = False
        self.in_force: InForce | None = None

    def pull_now(self) -> None:
        """Pull as soon as what is under way has ended; earlier failures are forgotten."""
        self._failures = 0
        self._pull_wanted = True
        self._work_wanted.set()

    def allowed_changed(self, changed: Iterable[AllowEntry]) -> None:
        """The allowlist has these entries more, or less: see what that means for the list in force."""
        if self.in_force is not None and any(
            self.in_force.listed.of(entry.family).overlaps(entry.prefix.first, entry.prefix.last(entry.family))
            for entry in changed
        ):
            self._want_readmission()

    def routed(self) -> None:
        """There is another way out: a pull that could not be had without is tried again soon."""
        if self._unreachable:
            self._next_at = min(self._next_at, time.monotonic() + _RESOLVERS_SECONDS)
            self._work_wanted.set()

    def load_cached(self) -> None:
        """Have the list on disk in force, but for the kernel, as far as the allowlist lets it. Reads the disk."""
        try:
            verified = self._edges.store.load_list()
        except ListError as error:
            log.error("%s.", as_sentence(error))
            return
        if verified is not None:
            listed = merge_content([source.content for source in verified.sources])
            self.in_force = InForce(verified, listed, admit(listed, self._keeper.allowlist))

    async def pull_forever(self) -> None:
        """Pull at once and then in the rhythm of the settings, sooner where it failed or is asked for."""
        readmit_at = math.inf
        self._next_at = time.monotonic()
        if not self._keeper.gateways:
            self._unreachable = True
            self._next_at += _NETWORK_SECONDS
        while True:
            self._work_wanted.clear()
            if self._readmission_wanted or time.monotonic() >= readmit_at:
                self._readmission_wanted = False
                pause = await self._attempt_readmission()
                readmit_at = time.monotonic() + pause
            if self._pull_wanted or time.monotonic() >= self._next_at:
                self._pull_wanted = False
                self._change(pulling=True)
                pause = await self._attempt_pull()
                self._next_at = time.monotonic() + pause
            self._change(next_pull_at=time.time() + self._next_at - time.monotonic())
            self._tell()
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, min(self._next_at, readmit_at) - time.monotonic())):
                    await self._work_wanted.wait()

    async def _attempt_pull(self) -> float:
        """Pull; what goes wrong is said in one line, with what stays protected and when it is tried again. Gives the
        seconds until the next one."""
        self._unreachable = False
        try:
            await self._pull()
        except SikkerGuardError as error:
            self._failures += 1
            self._unreachable = isinstance(error, FetchError) and error.retryable and error.retry_after is None
            pause = next_try(error, self._failures, random.random)
            if isinstance(error, ListError):
                await self._remember_pull(error.signs if isinstance(error, HeldBackError) else frozenset())
            self._report_failure(error, pause)
            self._pulled(str(error))
            return pause
        self._failures = 0
        self._pulled("")
        return next_pull(self._settings().pull_interval, random.random)

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
        self._change(last_pull=Attempt(time.time(), failure), pulls=self._state().pulls + 1, pulling=False)

    def _report_failure(self, error: SikkerGuardError, pause: float) -> None:
        if self.in_force is not None:
            entries = len(self.in_force.admitted.blocklist)
            age = duration_text(time.time() - self.in_force.verified.verified_at)
            stays = f"the list verified {age} ago ({entries} entries) stays in force"
        else:
            stays = "no list is in force yet" if not self._state().protecting else "what the kernel blocks stays"
        log.error("%s; %s; next try in %s.", as_sentence(error), stays, duration_text(pause))

    async def _pull(self) -> None:
        config = self._settings()
        # Whatever becomes of this pull, the wish to accept what it brings is for no other.
        accept = not config.dry_run and self._edges.store.take_acceptance()
        if self._api is None or self._api[0] is not config:
            # In a thread, as are the probes: what they import takes a while to read.
            self._api = config, await asyncio.to_thread(self._edges.make_api, config)
        api = self._api[1]
        await self._door.open(config)
        await self._keeper.follow_host()
        cycle = await self._cycle(config)
        pulled = await cycle.pull(config, api)
        allowlist = self._keeper.allowlist
        in_force = await cycle.put_in_force(
            pulled,
            allowlist,
            self.in_force,
            self._baseline(),
            max_growth=config.max_growth,
            accept=accept,
            api_addresses=self._keeper.api_addresses,
        )
        self._change(quota_remaining=pulled.quota_remaining)
        await self._remember_pull(frozenset())
        await self._committed(in_force, allowlist)

    async def _readmit(self) -> None:
        if self.in_force is None:
            return
        cycle = await self._cycle(self._settings())
        allowlist = self._keeper.allowlist
        await self._committed(await cycle.readmit(self.in_force, allowlist, self._keeper.api_addresses), allowlist)

    async def _cycle(self, config: Config) -> Cycle:
        return Cycle(
            self._edges.kernel,
            self._owner,
            await asyncio.to_thread(self._edges.make_probes, config),
            on_trial=lambda running: self._change(on_trial=running),
            progress=self._progress,
        )

    def _baseline(self) -> Baseline | None:
        if self.in_force is None:
            return None
        verified = self.in_force.verified
        held_back = self._edges.store.load_pulls().get("heldBack", [])
        signs = frozenset(map(str, held_back)) if isinstance(held_back, list) else frozenset[str]()
        return Baseline(verified.size, verified.fingerprint, verified.terminated, signs)

    async def _committed(self, in_force: InForce, allowlist: Allowlist) -> None:
        self.in_force = in_force
        if allowlist != self._keeper.allowlist:
            # The host changed while the list was tried: it was admitted with what was allowed before.
            self._want_readmission()
        if not self._settings().dry_run:
            try:
                await asyncio.to_thread(self._edges.store.save_list, in_force.verified)
            except OSError as error:
                log.error(
                    "The list is in force but could not be kept on disk (%s); after a reboot, protection waits "
                    "for a new pull. Make room or mend the state directory.",
                    error,
                )
        self._live(in_force.admitted.blocklist, in_force.verified.verified_at)

    async def _remember_pull(self, held_back: frozenset[str]) -> None:
        if self._settings().dry_run:
            return
        try:
            await asyncio.to_thread(self._edges.store.save_pulls, {"heldBack": sorted(held_back)})
        except OSError as error:
            log.warning("The state directory can't be written (%s); a list held back twice will not be taken.", error)

    def _want_readmission(self) -> None:
        self._readmission_wanted = True
        self._work_wanted.set()
