"""One update, from a new version of a source to a verdict: admit, guard, try, commit or roll back.

It is given what is in force and returns what is in force afterwards. Whatever goes wrong is raised, with the committed
list as it was.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sikkerguard.core.host.connections import MOST_LEFT_OUT
from sikkerguard.core.lists.admission import admit, allowed_though_listed, describe_removed
from sikkerguard.core.lists.allowlist import SSH
from sikkerguard.core.lists.coverage import extent_of
from sikkerguard.core.lists.generations import sources_after
from sikkerguard.core.lists.parse import check_together, merge_content
from sikkerguard.core.lists.size_guard import Version, check_change, nothing_left
from sikkerguard.core.lists.sources import SIKKERAPI, VerifiedList
from sikkerguard.core.net.networks import Blocklist
from sikkerguard.errors import ListError
from sikkerguard.service.flow_watch import check_connections
from sikkerguard.service.list_in_force import InForce

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sikkerguard.core.interfaces import Clock, Connections
    from sikkerguard.core.lists.allowlist import Allowlist
    from sikkerguard.core.lists.generations import Change
    from sikkerguard.core.lists.pull_memory import PullMemory
    from sikkerguard.core.lists.size_guard import Limits
    from sikkerguard.core.lists.sources import Admission, LeftOut
    from sikkerguard.service.trial import SelfTest, Trial

log = logging.getLogger(__name__)

# Entries of the allowlist that are listed, which are named one by one.
_SHOWN_ENTRIES = 20


@dataclass(frozen=True, slots=True)
class Conditions:
    """By what an update is judged: what may never be blocked, how large a list may be, and what has to work with it.
    `accept`: a person takes the new version whatever its size."""

    allowlist: Allowlist
    limits: Limits
    test: SelfTest
    accept: bool = False


class ListUpdate:
    """The steps after reading."""

    def __init__(self, trial: Trial, connections: Connections, clock: Clock) -> None:
        self._trial = trial
        self._connections = connections
        self._clock = clock
        # Sentences on this host's own connections that were said already.
        self._said = set[str]()

    async def put_in_force(
        self, changes: Sequence[Change], before: InForce | None, memory: PullMemory, conditions: Conditions
    ) -> tuple[InForce, PullMemory]:
        """Admit new versions of these sources, try them, and commit them, beside the other sources that are in force.
        Returns also what is remembered afterwards.

        Raises:
            ListError: a version is refused before it touches the kernel; `source` says whose.
            SelfTestError: the host lost a connection in the trial; the list before it is in force.
            KernelError: the kernel refused; the list before it is in force.
        """
        now, allowlist = self._clock.wall(), conditions.allowlist
        for change in changes:
            try:
                await _check(change, memory, conditions, now)
            except ListError as error:
                error.source = change.name
                raise
        sources = await asyncio.to_thread(sources_after, None if before is None else before.verified, changes, now)
        check_together(source.content for source in sources)
        listed = await asyncio.to_thread(merge_content, [source.content for source in sources])
        verified_at: float | None = None
        left_out: tuple[LeftOut, ...] = ()
        if (
            before is not None
            and before.verified.content_of(SIKKERAPI)
            and all(change.name != SIKKERAPI for change in changes)
        ):
            # The list is as old as SikkerAPI's part, and what is left out is tested again when that is pulled.
            verified_at, left_out = before.verified.verified_at, before.verified.left_out
        candidate = await asyncio.to_thread(admit, listed, allowlist, left_out)
        # Before the trial: what both need of memory would add up after it.
        extent = await asyncio.to_thread(extent_of, candidate.blocklist)
        await self._log_what_is_left_out(candidate, listed, allowlist)
        await self._check_connections(changes, candidate, before, memory, conditions)
        committed = Blocklist() if before is None else before.admitted.blocklist
        admission, left_out = await self._try(candidate, committed, listed, left_out, conditions)
        if admission is not candidate:
            extent = await asyncio.to_thread(extent_of, admission.blocklist)
        for change in changes:
            history = None
            if change.offer is not None:
                version = Version(now, change.offer.extent)
                known = memory.of(change.name)
                history = known.taken(version, query=change.offer.query, terminated=change.offer.terminated)
            memory = memory.with_source(change.name, history)
        verified = VerifiedList(sources, self._clock.wall() if verified_at is None else verified_at, left_out)
        return InForce(verified, listed, admission, extent), memory

    async def readmit(self, in_force: InForce, conditions: Conditions) -> InForce:
        """Apply a changed allowlist to the list in force: through a trial, since what is no longer allowed is newly
        blocked.

        Raises:
            SelfTestError, KernelError: as above; the list in force stays as it was.
        """
        known = in_force.verified
        admission = await asyncio.to_thread(admit, in_force.listed, conditions.allowlist, known.left_out)
        admission, left_out = await self._try(
            admission, in_force.admitted.blocklist, in_force.listed, known.left_out, conditions
        )
        extent = await asyncio.to_thread(extent_of, admission.blocklist)
        return InForce(VerifiedList(known.sources, known.verified_at, left_out), in_force.listed, admission, extent)

    async def _check_connections(
        self,
        changes: Sequence[Change],
        admission: Admission,
        before: InForce | None,
        memory: PullMemory,
        conditions: Conditions,
    ) -> None:
        """Raises `HeldBackError` where the list would cut too many connections of this host's own."""
        held_back = frozenset[str]().union(*(memory.of(change.name).held_back for change in changes))
        # A source's first version is never held back for this: there is no earlier one to go on with.
        first = any(change.content is not None and not memory.of(change.name).versions for change in changes)
        try:
            await check_connections(
                self._connections,
                admission.blocklist,
                None if before is None else before.admitted.blocklist,
                held_back,
                sessions=sum(entry.reason == SSH for entry in conditions.allowlist.entries),
                accept=conditions.accept or first,
            )
        except ListError as error:
            error.source = changes[0].name
            raise

    async def _try(
        self,
        admission: Admission,
        committed: Blocklist,
        listed: Blocklist,
        left_out: tuple[LeftOut, ...],
        conditions: Conditions,
    ) -> tuple[Admission, tuple[LeftOut, ...]]:
        """Commit the admission, or what is left of it without what explains a failed self-test."""
        more = MOST_LEFT_OUT - len(left_out)
        explanation = await self._trial.run(admission.blocklist, committed, conditions.test, most_left_out=more)
        if explanation is None:
            return admission, left_out
        narrowed = (*left_out, *explanation.left_out)
        smaller = await asyncio.to_thread(admit, listed, conditions.allowlist, narrowed)
        await self._trial.run_again(smaller.blocklist, committed, explanation, conditions.test)
        return smaller, narrowed

    async def _log_what_is_left_out(self, admission: Admission, listed: Blocklist, allowlist: Allowlist) -> None:
        if admission.removed:
            log.info("Left out of the list: %s.", describe_removed(admission.removed))
        sentences = await asyncio.to_thread(allowed_though_listed, listed, allowlist)
        news = [sentence for sentence in sentences if sentence not in self._said]
        for sentence in news[:_SHOWN_ENTRIES]:
            log.warning("%s", sentence)
        if len(news) > _SHOWN_ENTRIES:
            log.warning("%d more of what is allowed are on the list and stay allowed.", len(news) - _SHOWN_ENTRIES)
        # What is no longer so is said again when it is so again.
        self._said.intersection_update(sentences)
        self._said.update(sentences)


async def _check(change: Change, memory: PullMemory, conditions: Conditions, now: float) -> None:
    """Raises `ListError` if this version can't be what it says, or blocks nobody."""
    if change.content is None or change.offer is None:
        return
    alone = await asyncio.to_thread(admit, change.content, conditions.allowlist)
    if not len(alone.blocklist):
        raise nothing_left(change.offer.name)
    check_change(change.offer, memory.of(change.name), conditions.limits, now, accept=conditions.accept)
