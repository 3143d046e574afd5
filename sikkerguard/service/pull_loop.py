"""Bringing lists: what is in force, when the next version of a source is fetched, and what a failure means for it."""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sikkerguard.core.durations import duration_text
from sikkerguard.core.lists.admission import admit, without_special
from sikkerguard.core.lists.coverage import extent_of
from sikkerguard.core.lists.parse import merge_content
from sikkerguard.core.lists.pull_memory import PullMemory, from_json
from sikkerguard.core.lists.size_guard import Limits, SourceHistory, Version, check_coverage
from sikkerguard.core.lists.sources import LOCAL_FILE, SIKKERAPI, SourceStatus
from sikkerguard.core.net.family import Family
from sikkerguard.core.schedule import after_unfinished, jittered, retry_delay
from sikkerguard.core.state import PullResult
from sikkerguard.errors import FetchError, HeldBackError, ListError, SikkerGuardError, UnexpectedError, as_sentence
from sikkerguard.service.list_update import Change, InForce, ListUpdate, fetch
from sikkerguard.service.local_file import LocalFile
from sikkerguard.service.trial import Trial

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterable
    from contextlib import AbstractContextManager

    from sikkerguard.config.settings import Config
    from sikkerguard.core.interfaces import BlacklistClient, Probes
    from sikkerguard.core.lists.allowlist import AllowEntry, Allowlist
    from sikkerguard.core.lists.sources import VerifiedList
    from sikkerguard.core.net.networks import Blocklist
    from sikkerguard.core.state import State
    from sikkerguard.service.adapters import Adapters
    from sikkerguard.service.api_endpoint import ApiEndpoint
    from sikkerguard.service.kernel_thread import KernelThread
    from sikkerguard.service.repair_loop import Keeper
    from sikkerguard.service.state_writer import StateWriter
    from sikkerguard.service.supervision import Unknown

log = logging.getLogger(__name__)

# A host that has just started may have no network yet: a pull waits for a default gateway, but not for ever, since
# SikkerAPI may be reached without one. Behind the route come the resolvers, a moment later.
_NETWORK_SECONDS, _RESOLVERS_SECONDS = 30.0, 2.0
# An update does not wait longer than this for its mark to be on disk, and the word that a list is in force not longer
# than that for the list to be.
_MARK_SECONDS, _LIST_SECONDS = 1.0, 5.0


class PullLoop:
    """Knows the list in force, and brings the next one with `pull_forever`; `watch_file_forever` runs beside it.

    `settings` gives the configuration of the moment and `state` what is known; `change` takes changes of that; `live`
    gets the list that was put in force; `tell` says in a sentence how things are; `progress` is called as the work of a
    pull gets on; `watch_drops` gives a set that collects the sources of dropped packets; `unknown` tells of what nobody
    thought of. `uncorrected` says whether the last pull failed for what only another setting or key can mend.
    """

    def __init__(
        self,
        edges: Adapters,
        disk: StateWriter,
        owner: KernelThread,
        keeper: Keeper,
        door: ApiEndpoint,
        settings: Callable[[], Config],
        state: Callable[[], State],
        change: Callable[..., None],
        live: Callable[[InForce], None],
        tell: Callable[[], None],
        progress: Callable[[], None],
        watch_drops: Callable[[], AbstractContextManager[Collection[bytes]]],
        unknown: Unknown,
    ) -> None:
        self._edges = edges
        self._disk = disk
        self._owner = owner
        self._keeper = keeper
        self._door = door
        self._settings = settings
        self._state = state
        self._change = change
        self._live = live
        self._tell = tell
        self._progress = progress
        self._watch_drops = watch_drops
        self._unknown = unknown
        self._api: tuple[Config, BlacklistClient] | None = None
        self._memory = PullMemory()
        self._troubles: dict[str, str] = {}
        self._said_of_connections = set[str]()
        self._failures = self._file_failures = 0
        self._unreachable = False
        self._next_at = self._file_at = -math.inf
        self._work_wanted = asyncio.Event()
        self._pull_wanted = self._readmission_wanted = self._file_wanted = False
        self._file = LocalFile(
            edges.list_file,
            lambda: settings().custom_blacklist,
            lambda: self._content_of(LOCAL_FILE),
            self._file_changed,
        )
        self._probes: tuple[Config, Probes] | None = None
        self._fetching: asyncio.Task[tuple[Change, int | None]] | None = None
        self._accept = self._accept_wanted = False
        # The last wish for a pull, and the last one that the pull under way answers.
        self._wish = self._serving = 0
        self._under_way = 0
        self.in_force: InForce | None = None
        self.uncorrected = False

    def pull_now(self, *, accept: bool = False) -> int:
        """Pull now, by the settings of now, and take that list whatever its size if `accept` says so; earlier failures
        are forgotten. A fetch that is under way is broken off for it, a trial comes to its end first. Gives the number
        of this wish: see `State.pull_answered`."""
        self._wish += 1
        self._accept_wanted = self._accept_wanted or accept
        self._failures = self._file_failures = 0
        self._pull_wanted = self._file_wanted = True
        if self._fetching is not None and not self._fetching.cancelling() and self._fetching.cancel():
            log.info("The pull that is under way is broken off, and begun anew with the settings as they are now.")
        self._work_wanted.set()
        return self._wish

    def _file_changed(self) -> None:
        self._file_failures = 0
        self._file_wanted = True
        self._work_wanted.set()

    async def watch_file_forever(self) -> None:
        """Have the local file read again whenever it, or the setting that names it, has changed."""
        await self._file.watch_forever()

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
            self._file_at = min(self._file_at, self._next_at)
            self._work_wanted.set()

    def load_cached(self) -> None:
        """Take the list that was on disk and what is known of earlier pulls, and admit the list against the allowlist.
        Neither the disk nor the kernel is touched."""
        kept = self._disk.kept
        self._memory = from_json(kept.pulls)
        if kept.complaint:
            log.error("%s.", kept.complaint)
        if kept.verified is None:
            return
        verified = self._believable(kept.verified)
        listed = merge_content([source.content for source in verified.sources])
        admission = admit(listed, self._keeper.allowlist, verified.left_out)
        self.in_force = InForce(verified, listed, admission, extent_of(admission.blocklist))
        self._show_lists()

    def _believable(self, verified: VerifiedList) -> VerifiedList:
        """The list without sources of which no history is known and which cover too much: a version that had no such
        guard took them. Every other source has a history from here on."""
        left_out = set[str]()
        for name in {source.name for source in verified.sources} - self._memory.sources.keys():
            content = merge_content([source.content for source in verified.content_of(name)])
            extent = extent_of(without_special(content))
            try:
                check_coverage(f"The list of {name} that is kept on disk", extent, self._limits())
            except ListError as error:
                log.error("%s. It is not used, and the next one is measured as a first one.", error)
                left_out.add(name)
            else:
                history = SourceHistory((Version(verified.verified_at, extent),))
                self._memory = self._memory.with_source(name, history)
        return replace(verified, sources=tuple(source for source in verified.sources if source.name not in left_out))

    def _limits(self) -> Limits:
        return Limits(self._settings().max_growth, self._settings().max_coverage)

    async def pull_forever(self) -> None:
        """Pull at once and then in the rhythm of the settings, sooner where it failed or is asked for."""
        try:
            await self._work_forever()
        finally:
            fetching, self._fetching = self._fetching, None
            if fetching is not None:
                fetching.cancel()
                await asyncio.gather(fetching, return_exceptions=True)

    async def _work_forever(self) -> None:
        """What is put in force is one after the other. What is fetched is beside it: a server that takes its time keeps
        neither the local file nor a changed allowlist waiting."""
        readmit_at = math.inf
        self._next_at = self._file_at = time.monotonic() + self._first_pause()
        while True:
            self._work_wanted.clear()
            now = time.monotonic()
            if self._readmission_wanted or now >= readmit_at:
                self._readmission_wanted = False
                readmit_at = await _after(self._attempt_readmission())
            pulling = self._fetching is None and (self._pull_wanted or now >= self._next_at)
            if pulling:
                self._pull_wanted = False
                # Whatever becomes of it, the wish to accept what it brings is for no other, unless it is broken off.
                self._accept, self._accept_wanted = self._accept or self._accept_wanted, False
                self._serving = self._wish
            if self._file_wanted or pulling or now >= self._file_at:
                self._file_wanted = False
                self._file_at = await _after(self._attempt_file(accept=pulling and self._accept))
            if pulling:
                self._change(pulling=True)
                self._fetching = asyncio.create_task(self._fetch())
                self._fetching.add_done_callback(lambda _: self._work_wanted.set())
            elif self._fetching is not None and self._fetching.done():
                fetched, self._fetching = self._fetching, None
                if fetched.cancelled():
                    # For a pull that is wanted now; were it for another reason, it is not to be repeated all the time.
                    self._next_at = time.monotonic() + _NETWORK_SECONDS
                else:
                    accept, self._accept = self._accept, False
                    self._next_at = await _after(self._attempt_pull(fetched, accept=accept))
            next_at = math.inf
            if self._fetching is None and self._pull_wanted:
                continue  # wanted while the one before was under way
            if self._fetching is None:
                next_at = self._next_at
                self._change(next_pull_at=time.time() + next_at - time.monotonic())
            self._tell()
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, min(next_at, self._file_at, readmit_at) - time.monotonic())):
                    await self._work_wanted.wait()

    def _first_pause(self) -> float:
        """Seconds until the first pull."""
        pause = 0.0
        if not self._keeper.gateways:
            self._unreachable = True
            pause = _NETWORK_SECONDS
        if unfinished := self._memory.unfinished:
            pause = max(pause, after_unfinished(unfinished, random.random, protecting=self._state().protecting))
            self._failures = unfinished
            log.warning(
                "The last run ended in the middle of an update%s; the next one begins in %s.",
                f", as did {unfinished - 1} before it" if unfinished > 1 else "",
                duration_text(pause),
            )
        return pause

    # What is tried, and what a failure means

    async def _attempt_pull(self, fetched: asyncio.Task[tuple[Change, int | None]], *, accept: bool) -> float:
        """Put in force what was fetched; what went wrong with either is said in one line, with what stays protected and
        when it is tried again. Gives the seconds until the next pull."""
        self._unreachable = False
        try:
            with self._unknown.told_as(UnexpectedError):
                change, remaining = fetched.result()
                first = self.in_force is None
                async with self._marked():
                    await self._update([change], accept=accept, quota_remaining=remaining)
            if first:
                self._file_changed()  # where only the kernel knew what to block, the file had to wait
        except (SikkerGuardError, MemoryError) as caught:
            error = _told_apart(caught)
            self._failures += 1
            self._unreachable = isinstance(error, FetchError) and error.retryable and error.retry_after is None
            self.uncorrected = isinstance(error, FetchError) and not error.retryable
            pause = retry_delay(error, self._failures, random.random)
            await self._note_refusal(error, SIKKERAPI)
            self._troubles[SIKKERAPI] = as_sentence(error)
            self._report_failure(error, pause)
            self._pulled(str(error))
            return pause
        self._failures = 0
        self.uncorrected = False
        self._troubles.pop(SIKKERAPI, None)
        self._pulled("")
        return jittered(self._settings().pull_interval, random.random)

    async def _attempt_readmission(self) -> float:
        """Admit the list in force anew; gives the seconds until it has to be tried again, for ever where it went
        well. The rhythm of the pulls is not touched by it."""
        try:
            with self._unknown.told_as(UnexpectedError):
                await self._readmit()
        except (SikkerGuardError, MemoryError) as caught:
            error = _told_apart(caught)
            pause = retry_delay(error, 1, random.random)
            self._report_failure(error, pause)
            return pause
        return math.inf

    async def _attempt_file(self, *, accept: bool) -> float:
        """Bring the local file's present version in force, if it is another one. It needs no answer of SikkerAPI's.
        Gives the seconds until it has to be tried again, for ever where only another version can help."""
        if self.in_force is None and self._state().protecting:
            # The kernel blocks by a list that is not known in full: what takes its place must have SikkerAPI's part.
            return math.inf
        if not accept and not await self._file.is_new():
            return math.inf
        try:
            with self._unknown.told_as(UnexpectedError):
                async with self._marked():
                    change = await self._file.change()
                    if change is not None:
                        await self._update([change], accept=accept, quota_remaining=self._state().quota_remaining)
        except (SikkerGuardError, MemoryError) as caught:
            error = _told_apart(caught)
            self._file_failures += 1
            await self._note_refusal(error, LOCAL_FILE)
            return await self._judge_file(error)
        self._file_failures = 0
        await self._judge_file(None)
        return math.inf

    async def _judge_file(self, error: SikkerGuardError | None) -> float:
        """Say what is the matter with the local file, if anything; gives the seconds until it is tried again."""
        pause, trouble, outlook = math.inf, "", "it is read again when it has changed"
        if error is not None:
            trouble = f"{as_sentence(error)}; {self._file_stays()}"
            if not isinstance(error, ListError) or isinstance(error, HeldBackError):
                pause = retry_delay(error, self._file_failures, random.random)
                outlook = f"next try in {duration_text(pause)}"
        await self._file.judge(trouble, final=pause == math.inf, outlook=outlook)
        self._show_lists()
        return pause

    @asynccontextmanager
    async def _marked(self) -> AsyncIterator[None]:
        """Have it on disk that an update is under way. A process that dies of one is not to try it again at once."""
        self._under_way += 1
        if self._under_way == 1:
            await self._remember(replace(self._memory, unfinished=self._memory.unfinished + 1))
        try:
            yield
        except asyncio.CancelledError:
            await self._remember(self._without_mark())
            raise
        except BaseException:
            # What failed is noted on disk behind this; after what is no error of ours, the mark stays there.
            self._memory = self._without_mark()
            raise
        else:
            if self._memory != (unmarked := self._without_mark()):
                await self._remember(unmarked)
        finally:
            self._under_way -= 1

    def _without_mark(self) -> PullMemory:
        """What is remembered when the update at hand has ended: no mark, unless another one is under way."""
        return self._memory if self._under_way > 1 else replace(self._memory, unfinished=0)

    async def _note_refusal(self, error: SikkerGuardError, name: str) -> None:
        """Remember for which signs a version was held back; any other refusal ends that. What could not be had at all
        says nothing."""
        memory = self._memory
        if isinstance(error, ListError):
            signs = error.signs if isinstance(error, HeldBackError) else frozenset[str]()
            refused = error.source or name
            if signs or refused in memory.sources:
                memory = memory.with_source(refused, memory.of(refused).with_held_back(signs))
        await self._remember(memory)

    def _pulled(self, failure: str) -> None:
        self._show_lists()
        self._change(
            last_pull=PullResult(time.time(), failure),
            pulls=self._state().pulls + 1,
            pulling=False,
            pull_answered=self._serving,
        )

    def _report_failure(self, error: SikkerGuardError, pause: float) -> None:
        if self.in_force is not None:
            entries = len(self.in_force.admitted.blocklist)
            age = duration_text(time.time() - self.in_force.verified.verified_at)
            stays = f"the list verified {age} ago ({_entries(entries)}) stays in force"
        else:
            stays = "no list is in force yet" if not self._state().protecting else "what the kernel blocks stays"
        log.error("%s; %s; next try in %s.", as_sentence(error), stays, duration_text(pause))

    def _file_stays(self) -> str:
        known = self._memory.of(LOCAL_FILE).versions if self._content_of(LOCAL_FILE) else ()
        if not known:
            return "nothing is blocked by it, and everything else stays"
        age = duration_text(time.time() - known[-1].taken_at)
        return f"its version of {age} ago ({_entries(known[-1].extent.entries)}) stays in force"

    # What is done

    async def _fetch(self) -> tuple[Change, int | None]:
        """SikkerAPI's list, and what is left of the day's quota of pulls. Raises what `fetch` raises."""
        config = self._settings()
        if self._api is None or self._api[0] is not config:
            # In a thread, as are the probes: what they import takes a while to read.
            self._api = config, await asyncio.to_thread(self._edges.make_api, config)
        api = self._api[1]
        async with self._marked():
            await self._door.open(config)
            await self._keeper.follow_host()
            return await fetch(config, api, self._progress)

    async def _update(self, changes: list[Change], *, accept: bool, quota_remaining: int | None) -> None:
        config = self._settings()
        allowlist = self._keeper.allowlist
        cycle = await self._cycle(config)
        in_force, memory = await cycle.put_in_force(
            changes,
            allowlist,
            self.in_force,
            self._memory,
            accept=accept,
            api_addresses=self._keeper.api_addresses,
        )
        self._change(quota_remaining=quota_remaining)
        self._memory = memory
        await self._committed(in_force, allowlist)

    async def _readmit(self) -> None:
        if self.in_force is None:
            return
        cycle = await self._cycle(self._settings())
        allowlist = self._keeper.allowlist
        await self._committed(await cycle.readmit(self.in_force, allowlist, self._keeper.api_addresses), allowlist)

    def _content_of(self, name: str) -> list[Blocklist]:
        """The generations of a source in force; empty without."""
        if self.in_force is None:
            return []
        return [source.content for source in self.in_force.verified.content_of(name)]

    async def _cycle(self, config: Config) -> ListUpdate:
        if self._probes is None or self._probes[0] is not config:
            self._probes = config, await asyncio.to_thread(self._edges.make_probes, config)
        trial = Trial(
            self._edges.kernel,
            self._owner,
            self._probes[1],
            self._edges.connections,
            self._watch_drops,
            on_trial=lambda running: self._change(on_trial=running),
            progress=self._progress,
        )
        return ListUpdate(trial, self._limits(), self._said_of_connections)

    async def _committed(self, in_force: InForce, allowlist: Allowlist) -> None:
        self.in_force = in_force
        if allowlist != self._keeper.allowlist:
            # The host changed while the list was tried: it was admitted with what was allowed before.
            self._want_readmission()
        if not self._settings().dry_run:
            self._disk.save_list(in_force.verified)
            # Before it is said: whoever ends the process then does not end it in the middle of an update.
            await self._remember(self._without_mark(), _LIST_SECONDS)
        self._show_lists()
        self._live(in_force)

    def _show_lists(self) -> None:
        troubles = {**self._troubles, LOCAL_FILE: self._file.trouble} if self._file.trouble else self._troubles
        names = sorted(self._memory.sources.keys() | troubles.keys(), reverse=True)
        lists = []
        for name in names:
            versions = self._memory.of(name).versions if self._content_of(name) else ()
            extent = versions[-1].extent if versions else None
            lists.append(
                SourceStatus(
                    name,
                    entries=extent.entries if extent else 0,
                    taken_at=versions[-1].taken_at if versions else None,
                    covered_v4=extent.share(Family.V4) if extent else 0.0,
                    covered_v6=extent.share(Family.V6) if extent else 0.0,
                    trouble=troubles.get(name, ""),
                )
            )
        self._change(lists=tuple(lists))
        if self.in_force is not None:
            extent = self.in_force.extent
            self._change(
                covered_v4=extent.share(Family.V4),
                covered_v6=extent.share(Family.V6),
                left_out=tuple(map(str, self.in_force.verified.left_out)),
            )

    async def _remember(self, memory: PullMemory, seconds: float = _MARK_SECONDS) -> None:
        self._memory = memory
        if self._settings().dry_run:
            return
        self._disk.save_pulls(memory.as_json())
        await self._disk.settled(seconds)

    def _want_readmission(self) -> None:
        self._readmission_wanted = True
        self._work_wanted.set()


async def _after(attempt: Coroutine[Any, Any, float]) -> float:
    """When to try again: so many seconds after the attempt's end, on the monotonic clock."""
    pause = await attempt
    return time.monotonic() + pause


def _told_apart(caught: SikkerGuardError | MemoryError) -> SikkerGuardError:
    """The error as one of ours."""
    if isinstance(caught, SikkerGuardError):
        return caught
    return ListError("there is not enough memory for the list; give the service more, or block fewer addresses")


def _entries(number: int) -> str:
    return f"{number} entr{'y' if number == 1 else 'ies'}"
