"""One update, from bytes to a verdict: read, admit, guard, try, commit or roll back.

It is told what is in force and gives back what is in force afterwards. Whatever goes wrong is raised, with the
committed list as it was.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from sikkerguard.core.host.connections import MOST_LEFT_OUT
from sikkerguard.core.lists.admission import admit, allowed_though_listed, describe_removed, without_special
from sikkerguard.core.lists.allowlist import SSH
from sikkerguard.core.lists.coverage import Extent, extent_of
from sikkerguard.core.lists.generations import split_generations
from sikkerguard.core.lists.parse import ApiParser, check_together, merge_content, read_custom
from sikkerguard.core.lists.size_guard import Offer, Version, check_change, nothing_left
from sikkerguard.core.lists.sources import LOCAL_FILE, SIKKERAPI, Admission, ListedSource, VerifiedList
from sikkerguard.core.net.networks import Blocklist
from sikkerguard.errors import ListError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from sikkerguard.config.settings import Config
    from sikkerguard.core.interfaces import BlacklistClient, ListFiles
    from sikkerguard.core.lists.allowlist import Allowlist
    from sikkerguard.core.lists.parse import Parsed
    from sikkerguard.core.lists.pull_memory import PullMemory
    from sikkerguard.core.lists.size_guard import Limits
    from sikkerguard.core.lists.sources import LeftOut
    from sikkerguard.service.disk_thread import DiskThread
    from sikkerguard.service.trial import Trial

log = logging.getLogger(__name__)

_IN_WORDS = {SIKKERAPI: "SikkerAPI's list", LOCAL_FILE: "the file of SIKKER_CUSTOM_BLACKLIST"}
# Lines of the local file that can't be read, and entries of the allowlist that are listed, which are named one by one.
_SHOWN = 20
# Seconds that the largest file may take from a slow disk.
_READ_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class InForce:
    """The list in force: as it was read, source by source (`verified`), all sources as one before the allowlist was
    cut out (`listed`), and what is blocked (`admitted`), of this `extent`."""

    verified: VerifiedList
    listed: Blocklist
    admitted: Admission
    extent: Extent


@dataclass(frozen=True, slots=True)
class Change:
    """A new version of one source. Without `content` the source is no longer wanted; without an `offer` nothing has to
    be believed of it."""

    name: str
    content: Blocklist | None = None
    offer: Offer | None = None


async def fetch(config: Config, api: BlacklistClient, progress: Callable[[], None]) -> tuple[Change, int | None]:
    """Fetch and read SikkerAPI's list; with it, what is left of the day's quota of pulls, where that is known.

    Raises:
        FetchError: the list could not be had.
        ListError: what came is not a list.
    """
    parser = ApiParser()

    async def sink(piece: bytes) -> None:
        # In a thread, so that the loop goes on answering while a megabyte is read.
        await asyncio.to_thread(parser.feed, piece)
        progress()

    quota = await api.pull(config.score_min, sink)
    parsed = await asyncio.to_thread(parser.finish)
    if parsed.rejected:
        log.warning("SikkerAPI's list: %s skipped (%s).", describe_removed(parsed.rejected), "; ".join(parsed.samples))
    offer = Offer(
        _IN_WORDS[SIKKERAPI],
        await asyncio.to_thread(_extent_of, parsed),
        lines=parsed.lines + parsed.short,
        short=parsed.short,
        query=_digest(config.api_url, str(config.score_min), config.api_key),
        terminated=parsed.terminated,
    )
    return Change(SIKKERAPI, parsed.content, offer), quota.remaining


async def read_file(path: Path, files: ListFiles, disk: DiskThread) -> Change:
    """Read the list that the host's owner keeps, by the thread of its disk. Lines that can't be read are named in the
    log.

    Raises:
        ListError: the file can't be read, is empty, or nothing in it can be understood.
    """
    job = disk.start(partial(files.read, str(path)))
    if not (await asyncio.wait({job}, timeout=_READ_SECONDS))[0]:
        raise ListError(f"{path} can't be read (its disk has not answered for {_READ_SECONDS:g} s)")
    content = job.result()
    parsed, skipped = await asyncio.to_thread(read_custom, str(path), content)
    for sentence in skipped[:_SHOWN]:
        log.warning("SIKKER_CUSTOM_BLACKLIST: %s.", sentence)
    if len(skipped) > _SHOWN:
        log.warning("SIKKER_CUSTOM_BLACKLIST: %d more lines of %s are skipped.", len(skipped) - _SHOWN, path)
    if not parsed.lines and not parsed.short:
        return Change(LOCAL_FILE, parsed.content)  # comments alone: nothing is to be blocked by it
    extent = await asyncio.to_thread(_extent_of, parsed)
    lines = parsed.lines + parsed.short
    offer = Offer(_IN_WORDS[LOCAL_FILE], extent, lines, parsed.short, query=_digest(str(path)), local=True)
    return Change(LOCAL_FILE, parsed.content, offer)


@dataclass(slots=True)
class ListUpdate:
    """The steps behind reading. `told` has the sentences on this host's own connections that were said already."""

    trial: Trial
    limits: Limits
    told: set[str] = field(default_factory=set)

    async def put_in_force(
        self,
        changes: Sequence[Change],
        allowlist: Allowlist,
        before: InForce | None,
        memory: PullMemory,
        *,
        accept: bool,
        api_addresses: tuple[str, ...],
    ) -> tuple[InForce, PullMemory]:
        """Admit new versions of these sources, try them, and commit them, beside the other sources that are in force;
        with it, what is remembered afterwards.

        Raises:
            ListError: a version is refused before it touches the kernel; `source` says whose.
            SelfTestError: the host lost a connection in the trial; the list before it is in force.
            KernelError: the kernel refused; the list before it is in force.
        """
        now = time.time()
        for change in changes:
            try:
                await self._check(change, memory, allowlist, now, accept=accept)
            except ListError as error:
                error.source = change.name
                raise
        sources = await asyncio.to_thread(_sources_after, before, changes, now)
        check_together(source.content for source in sources)
        listed = await asyncio.to_thread(merge_content, [source.content for source in sources])
        verified_at: float | None = None
        spared: tuple[LeftOut, ...] = ()
        if (
            before is not None
            and before.verified.content_of(SIKKERAPI)
            and all(change.name != SIKKERAPI for change in changes)
        ):
            # The list is as old as SikkerAPI's part, and what is left out is tested again when that is pulled.
            verified_at, spared = before.verified.verified_at, before.verified.left_out
        admission = await asyncio.to_thread(admit, listed, allowlist, spared)
        extent = await asyncio.to_thread(extent_of, admission.blocklist)
        await self._say_what_is_left_out(admission, listed, allowlist)
        held_back = frozenset[str]().union(*(memory.of(change.name).held_back for change in changes))
        # A source's first version is never held back for this: there is no earlier one to go on with.
        first = any(change.content is not None and not memory.of(change.name).versions for change in changes)
        try:
            await self.trial.check_connections(
                admission.blocklist,
                None if before is None else before.admitted.blocklist,
                held_back,
                sessions=sum(entry.reason == SSH for entry in allowlist.entries),
                accept=accept or first,
            )
        except ListError as error:
            error.source = changes[0].name
            raise
        committed = Blocklist() if before is None else before.admitted.blocklist
        admission, left_out = await self._try(admission, committed, listed, allowlist, spared, api_addresses)
        if left_out:
            extent = await asyncio.to_thread(extent_of, admission.blocklist)
        for change in changes:
            history = None
            if change.offer is not None:
                version = Version(now, change.offer.extent)
                known = memory.of(change.name)
                history = known.taken(version, query=change.offer.query, terminated=change.offer.terminated)
            memory = memory.with_source(change.name, history)
        verified = VerifiedList(sources, time.time() if verified_at is None else verified_at, left_out)
        return InForce(verified, listed, admission, extent), memory

    async def readmit(self, in_force: InForce, allowlist: Allowlist, api_addresses: tuple[str, ...]) -> InForce:
        """Apply a changed allowlist to the list in force: through a trial, since what is no longer allowed is newly
        blocked.

        Raises:
            SelfTestError, KernelError: as above; the list in force stays as it was.
        """
        known = in_force.verified
        admission = await asyncio.to_thread(admit, in_force.listed, allowlist, known.left_out)
        admission, left_out = await self._try(
            admission, in_force.admitted.blocklist, in_force.listed, allowlist, known.left_out, api_addresses
        )
        extent = await asyncio.to_thread(extent_of, admission.blocklist)
        return InForce(VerifiedList(known.sources, known.verified_at, left_out), in_force.listed, admission, extent)

    async def _try(
        self,
        admission: Admission,
        committed: Blocklist,
        listed: Blocklist,
        allowlist: Allowlist,
        left_out: tuple[LeftOut, ...],
        api_addresses: tuple[str, ...],
    ) -> tuple[Admission, tuple[LeftOut, ...]]:
        """Commit the admission, or what is left of it without what explains a failed self-test."""
        more = MOST_LEFT_OUT - len(left_out)
        explaining = await self.trial.run(admission.blocklist, committed, api_addresses, most_left_out=more)
        if explaining is None:
            return admission, left_out
        narrowed = (*left_out, *explaining.left_out)
        smaller = await asyncio.to_thread(admit, listed, allowlist, narrowed)
        await self.trial.run_again(smaller.blocklist, committed, explaining, api_addresses)
        return smaller, narrowed

    async def _check(
        self, change: Change, memory: PullMemory, allowlist: Allowlist, now: float, *, accept: bool
    ) -> None:
        """Raises `ListError` if this version can't be what it says, or blocks nobody."""
        if change.content is None or change.offer is None:
            return
        alone = await asyncio.to_thread(admit, change.content, allowlist)
        if not len(alone.blocklist):
            raise nothing_left(change.offer.name)
        check_change(change.offer, memory.of(change.name), self.limits, now, accept=accept)

    async def _say_what_is_left_out(self, admission: Admission, listed: Blocklist, allowlist: Allowlist) -> None:
        if admission.removed:
            log.info("Not blocked: %s.", describe_removed(admission.removed))
        sentences = await asyncio.to_thread(allowed_though_listed, listed, allowlist)
        news = [sentence for sentence in sentences if sentence not in self.told]
        for sentence in news[:_SHOWN]:
            log.warning("%s", sentence)
        if len(news) > _SHOWN:
            log.warning("%d more of what is allowed are on the list and stay allowed.", len(news) - _SHOWN)
        # What is no longer so is said again when it is so again.
        self.told.intersection_update(sentences)
        self.told.update(sentences)


def _sources_after(before: InForce | None, changes: Iterable[Change], now: float) -> tuple[ListedSource, ...]:
    """The generations of every source when these changes have been made, in the order of the sources' names."""
    verified = VerifiedList((), now) if before is None else before.verified
    generations = {source.name: verified.content_of(source.name) for source in verified.sources}
    for change in changes:
        earlier = generations.pop(change.name, ())
        if change.content is not None:
            generations[change.name] = split_generations(earlier, ListedSource(change.name, change.content, now))
    return tuple(source for name in sorted(generations, reverse=True) for source in generations[name])


def _extent_of(parsed: Parsed) -> Extent:
    """The size of a list by its entries as they were read: those that touch become one, and many wide ranges few."""
    return extent_of(without_special(parsed.content))._replace(entries=parsed.lines)


def _digest(*parts: str) -> str:
    """A fingerprint of what a list's size depends on. The key is part of it, since the tier limits the list; only a
    digest of it is kept."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
