"""What is in force: brought there from the cache, by new versions of the sources, and by changes of the allowlist."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from sikkerguard.core.durations import duration_text
from sikkerguard.core.lists.admission import admit
from sikkerguard.core.lists.coverage import extent_of
from sikkerguard.core.lists.parse import merge_content
from sikkerguard.core.lists.pull_memory import believable, source_statuses
from sikkerguard.core.lists.size_guard import Limits
from sikkerguard.core.lists.sources import LOCAL_FILE
from sikkerguard.core.net.family import Family
from sikkerguard.core.state import ListState
from sikkerguard.service.feed_reader import read_strictly
from sikkerguard.service.list_in_force import InForce
from sikkerguard.service.list_update import Conditions
from sikkerguard.service.trial import SelfTest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sikkerguard.config.settings import Config
    from sikkerguard.core.interfaces import Clock, Feed, Probes, Signal
    from sikkerguard.core.lists.generations import Change
    from sikkerguard.core.lists.pull_memory import PullMemory
    from sikkerguard.core.net.networks import Blocklist
    from sikkerguard.service.allowlist_tracker import AllowlistTracker
    from sikkerguard.service.api_endpoint import ApiEndpoint
    from sikkerguard.service.list_in_force import ListInForce
    from sikkerguard.service.list_update import ListUpdate
    from sikkerguard.service.pull_journal import PullJournal
    from sikkerguard.service.state_writer import SavedState, StateWriter
    from sikkerguard.service.wakeup import Watched

log = logging.getLogger(__name__)


class PullAdapters(Protocol):
    """Makes what a pull needs; for a thread."""

    def blacklist(self, config: Config) -> Feed:
        """SikkerAPI's list. Raises `FetchError`."""

    def probes(self, config: Config) -> Probes:
        """The self-test."""


class UpdateRunner:
    """The one writer of `lists`. Updates are not to be run at the same time; a fetch may be beside one."""

    def __init__(
        self,
        adapters: PullAdapters,
        update: ListUpdate,
        endpoint: ApiEndpoint,
        tracker: AllowlistTracker,
        journal: PullJournal,
        writer: StateWriter,
        lists: ListInForce,
        config: Watched[Config],
        clock: Clock,
        changes: Signal,
    ) -> None:
        self._adapters = adapters
        self._update = update
        self._endpoint = endpoint
        self._tracker = tracker
        self._journal = journal
        self._writer = writer
        self._lists = lists
        self._config = config
        self._clock = clock
        self._changes = changes
        self._probes: tuple[Config, Probes] | None = None
        # Why a newer version of a source is not used, by its name.
        self._troubles: dict[str, str] = {}
        # Seconds between two pulls that go well.
        self.interval = config.value.pull_interval
        self.state = ListState()

    def load(self, saved: SavedState) -> None:
        """Take the list that was on disk and what is known of earlier pulls, and admit the list against the allowlist.
        Neither the disk nor the kernel is touched."""
        if saved.complaint:
            log.error("%s.", saved.complaint)
        self._journal.memory = saved.pulls
        if saved.verified is None:
            return
        verified, memory, complaints = believable(saved.verified, saved.pulls, self._limits())
        for complaint in complaints:
            log.error("%s.", complaint)
        self._journal.memory = memory
        listed = merge_content([source.content for source in verified.sources])
        admission = admit(listed, self._tracker.allowlist, verified.left_out)
        self._lists.value = InForce(verified, listed, admission, extent_of(admission.blocklist))

    def show_adopted(self) -> None:
        """The kernel blocks by the list that was found at the start."""
        if not len(self._lists.blocklist):
            self._publish()
            return
        remark = "found in the kernel, left by an earlier run"
        if self._lists.value is not None:
            age = duration_text(self._clock.wall() - self._lists.value.verified.verified_at)
            remark = f"from the cache, verified {age} ago"
        self._show(self._lists.blocklist, f" ({remark})")

    async def fetch(self) -> Change:
        """Pull and read SikkerAPI's list, and note what is left of the day's quota of pulls.

        Raises:
            FetchError: the list could not be had.
            ListError: what came is not a list.
        """
        config = self._config.value
        # In a thread, as are the probes: what they import takes a while to read.
        feed = await asyncio.to_thread(self._adapters.blacklist, config)
        async with self._journal.marked():
            await self._endpoint.open(config)
            await self._tracker.follow()
            query = (config.api_url, str(config.score_min), config.api_key)
            change = await read_strictly(feed, query, self._changes)
            self.state, self.interval = replace(self.state, quota_remaining=feed.remaining), feed.interval
            return change

    async def put_in_force(self, changes: Sequence[Change], *, accept: bool) -> None:
        """Put new versions of these sources in force. Raises what `ListUpdate.put_in_force` raises."""
        conditions = await self._conditions(accept=accept)
        in_force, memory = await self._update.put_in_force(changes, self._lists.value, self._journal.memory, conditions)
        await self._committed(in_force, memory)

    async def readmit(self) -> None:
        """Apply the allowlist of now to the list in force. Raises what `ListUpdate.readmit` raises."""
        if self._lists.value is not None:
            in_force = await self._update.readmit(self._lists.value, await self._conditions())
            await self._committed(in_force, self._journal.memory)

    def note_trouble(self, name: str, trouble: str) -> None:
        """Why a newer version of this source is not used; empty where it is."""
        self._troubles.pop(name, None)
        if trouble:
            self._troubles[name] = trouble
        self._publish()

    def stays(self) -> str:
        """What stays in force after a failure, in words."""
        if self._lists.value is None:
            return "what the kernel blocks stays" if self.state.protecting else "no list is in force yet"
        age = duration_text(self._clock.wall() - self._lists.value.verified.verified_at)
        return f"the list verified {age} ago ({_entries(self.state.blocked)}) stays in force"

    def local_file_stays(self) -> str:
        """The same for the local file."""
        known = self._journal.memory.of(LOCAL_FILE).versions if self._lists.content_of(LOCAL_FILE) else ()
        if not known:
            return "nothing is blocked by it, and everything else stays"
        age = duration_text(self._clock.wall() - known[-1].taken_at)
        return f"its version of {age} ago ({_entries(known[-1].extent.entries)}) stays in force"

    def _limits(self) -> Limits:
        return Limits(self._config.value.max_growth, self._config.value.max_coverage)

    async def _conditions(self, *, accept: bool = False) -> Conditions:
        config = self._config.value
        if self._probes is None or self._probes[0] is not config:
            self._probes = config, await asyncio.to_thread(self._adapters.probes, config)
        test = SelfTest(self._probes[1], self._tracker.api_addresses)
        return Conditions(self._tracker.allowlist, self._limits(), test, accept)

    async def _committed(self, in_force: InForce, memory: PullMemory) -> None:
        self._lists.value = in_force
        self._writer.save(in_force.verified)
        await self._journal.note_committed(memory)
        self._show(in_force.admitted.blocklist)

    def _show(self, blocklist: Blocklist, remark: str = "") -> None:
        self._publish()
        doing = "Dry run: would be blocking" if self._config.value.dry_run else "Blocking"
        log.info("%s", f"{doing} {len(blocklist)} IPs{remark}")

    def _publish(self) -> None:
        """Have the state show what is in force."""
        in_force, blocklist = self._lists.value, self._lists.blocklist
        names = {source.name for source in self._lists.sources or ()}
        self.state = replace(
            self.state,
            blocked_v4=len(blocklist.v4),
            blocked_v6=len(blocklist.v6),
            sources=source_statuses(self._journal.memory, names, self._troubles),
        )
        if in_force is not None:
            self.state = replace(
                self.state,
                verified_at=in_force.verified.verified_at,
                covered_v4=in_force.extent.share(Family.V4),
                covered_v6=in_force.extent.share(Family.V6),
                left_out=tuple(map(str, in_force.verified.left_out)),
            )
        self._changes.set()


def _entries(number: int) -> str:
    return f"{number} entr{'y' if number == 1 else 'ies'}"
