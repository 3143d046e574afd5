"""When lists are pulled, read and admitted anew, and what a failure means for the next try."""

from __future__ import annotations

import asyncio
import logging
import math
from dataclasses import replace
from typing import TYPE_CHECKING

from sikkerguard.core.durations import duration_text
from sikkerguard.core.lists.sources import SIKKERAPI
from sikkerguard.core.schedule import after_unfinished, jittered, needs_a_person, retry_delay
from sikkerguard.core.state import PullResult, PullState
from sikkerguard.errors import ListError, SikkerGuardError, UnexpectedError, Unreachable, as_sentence
from sikkerguard.service.local_file import NO_MEMORY

if TYPE_CHECKING:
    from sikkerguard.core.host.surroundings import HostAllowlist
    from sikkerguard.core.interfaces import Clock, Signal
    from sikkerguard.core.lists.generations import Change
    from sikkerguard.service.list_in_force import ListInForce
    from sikkerguard.service.local_file import LocalFile
    from sikkerguard.service.pull_journal import PullJournal
    from sikkerguard.service.supervision import UnexpectedErrors
    from sikkerguard.service.update_runner import UpdateRunner
    from sikkerguard.service.wakeup import Wakeup, Watched

log = logging.getLogger(__name__)

# A host that has just started may have no network yet: a pull waits for a default gateway, but not for ever, since
# SikkerAPI may be reached without one. Behind the route come the resolvers, a moment later.
_NETWORK_SECONDS, _RESOLVERS_SECONDS = 30.0, 2.0


class PullLoop:
    """Pulls SikkerAPI's list at once and then in the rhythm of the settings, sooner where it failed or is asked for;
    reads the local file when that changed; and applies changes of the allowlist to the list in force. What is put in
    force is one after the other. A fetch is beside it: a server that takes its time keeps neither the local file nor a
    changed allowlist waiting. `wakeup` is set by the allowlist, which is `allowed`, and by the local file.
    """

    work = "pulling lists"

    def __init__(
        self,
        runner: UpdateRunner,
        local_file: LocalFile,
        journal: PullJournal,
        lists: ListInForce,
        allowed: Watched[HostAllowlist],
        wakeup: Wakeup,
        clock: Clock,
        unexpected: UnexpectedErrors,
        changes: Signal,
    ) -> None:
        self._runner = runner
        self._local_file = local_file
        self._journal = journal
        self._lists = lists
        self._allowed = allowed
        self._wakeup = wakeup
        self._clock = clock
        self._unexpected = unexpected
        self._changes = changes
        self._known_allowed = allowed.value
        allowed.wake(wakeup)
        self._failures = 0
        self._unreachable = False
        # On the monotonic clock.
        self._next_at = self._file_at = self._readmit_at = math.inf
        self._is_wanted = False
        self._fetching: asyncio.Task[Change] | None = None
        self._accept = self._accept_wanted = False
        # The number of the last request for a pull, and of the last one that the pull under way answers.
        self._request = self._serving = 0
        self.needs_correction = False
        self.state = PullState()

    def pull_now(self, *, accept: bool = False) -> int:
        """Pull now, by the settings of now, and take that list whatever its size if `accept` says so; earlier failures
        are forgotten. A fetch that is under way is broken off for it, a trial comes to its end first. Returns the
        number of this request: see `PullState.pull_answered`."""
        self._request += 1
        self._accept_wanted = self._accept_wanted or accept
        self._failures = 0
        self._is_wanted = True
        if self._fetching is not None and not self._fetching.cancelling() and self._fetching.cancel():
            log.info("The pull that is under way is broken off, and begun anew with the settings as they are now.")
        self._local_file.want()
        return self._request

    async def run(self) -> None:
        """Work until cancelled."""
        self._next_at = self._file_at = self._clock.monotonic() + self._first_pause()
        try:
            while True:
                await self._step()
                if self._fetching is None and self._is_wanted:
                    continue  # asked for while the one before was under way
                await self._wakeup.wait(self._pause())
        finally:
            fetching, self._fetching = self._fetching, None
            if fetching is not None:
                fetching.cancel()
                await asyncio.gather(fetching, return_exceptions=True)

    async def _step(self) -> None:
        """Do all that is due."""
        now = self._clock.monotonic()
        self._note_allowed()
        if now >= self._readmit_at:
            self._readmit_at = self._in(await self._attempt_readmission())
        begins = self._fetching is None and (self._is_wanted or now >= self._next_at)
        if begins:
            self._is_wanted = False
            # `accept` holds for this pull alone; one that is broken off hands it to the next.
            self._accept, self._accept_wanted = self._accept or self._accept_wanted, False
            self._serving = self._request
        anew = self._local_file.take_wish()
        if anew or begins or now >= self._file_at:
            accept = begins and self._accept
            self._file_at = self._in(await self._local_file.attempt(accept=accept, anew=anew))
        if begins:
            self._fetching = asyncio.create_task(self._runner.fetch())
            self._fetching.add_done_callback(self._note_fetched)
            self.state = replace(self.state, pulling=True)
            self._changes.set()
        elif self._fetching is not None and self._fetching.done():
            fetched, self._fetching = self._fetching, None
            if fetched.cancelled():
                # For a pull that is wanted now; were it for another reason, it is not to be repeated all the time.
                self._next_at = self._in(_NETWORK_SECONDS)
            else:
                accept, self._accept = self._accept, False
                self._next_at = self._in(await self._attempt_pull(fetched, accept=accept))

    def _note_fetched(self, _: asyncio.Task[Change]) -> None:
        self._wakeup.set()

    def _pause(self) -> float:
        """Seconds until something is due."""
        times = [self._file_at, self._readmit_at]
        if self._fetching is None:
            times.append(self._next_at)
            next_pull_at = self._clock.wall() + self._next_at - self._clock.monotonic()
            self.state = replace(self.state, next_pull_at=next_pull_at)
            self._changes.set()
        return max(0.0, min(times) - self._clock.monotonic())

    def _in(self, seconds: float) -> float:
        return self._clock.monotonic() + seconds

    def _first_pause(self) -> float:
        """Seconds until the first pull."""
        pause = 0.0
        if not self._allowed.value.gateways:
            self._unreachable = True
            pause = _NETWORK_SECONDS
        if unfinished := self._journal.memory.unfinished:
            protecting = self._runner.state.protecting
            pause = max(pause, after_unfinished(unfinished, self._clock.random, protecting=protecting))
            self._failures = unfinished
            log.warning(
                "The last run ended in the middle of an update%s; the next one begins in %s.",
                f", as did {unfinished - 1} before it" if unfinished > 1 else "",
                duration_text(pause),
            )
        return pause

    def _note_allowed(self) -> None:
        """See what a change of the allowlist, or a new way out, means for the list in force and for the next pull."""
        before, allowed = self._known_allowed, self._allowed.value
        self._known_allowed = allowed
        if self._unreachable and allowed.gateways - before.gateways:
            self._next_at = min(self._next_at, self._in(_RESOLVERS_SECONDS))
            self._file_at = min(self._file_at, self._next_at)
        if self._lists.value is not None and any(
            self._lists.listed.of(entry.family).overlaps(entry.prefix.first, entry.prefix.last(entry.family))
            for entry in set(before.entries) ^ set(allowed.entries)
        ):
            self._readmit_at = -math.inf

    # What is tried, and what a failure means

    async def _attempt_pull(self, fetched: asyncio.Task[Change], *, accept: bool) -> float:
        """Put in force what was fetched; what went wrong with either is logged in one line, with what stays protected
        and when it is tried again. Returns the seconds until the next pull."""
        self._unreachable = False
        first = self._lists.value is None
        try:
            with self._unexpected.as_kind(UnexpectedError, ListError(NO_MEMORY)):
                change = fetched.result()
                async with self._journal.marked():
                    await self._runner.put_in_force([change], accept=accept)
        except SikkerGuardError as error:
            self._failures += 1
            self._unreachable = isinstance(error, Unreachable) and error.retry_after is None
            self.needs_correction = needs_a_person(error)
            pause = retry_delay(error, self._failures, self._clock.random)
            await self._journal.note_refusal(error, SIKKERAPI)
            self._runner.note_trouble(SIKKERAPI, as_sentence(error))
            self._log_failure(error, pause)
            self._note_pulled(str(error))
            return pause
        self._failures = 0
        self.needs_correction = False
        self._runner.note_trouble(SIKKERAPI, "")
        self._note_pulled("")
        if first:
            self._local_file.want()  # where only the kernel knew what to block, the file had to wait
        return jittered(self._runner.interval, self._clock.random)

    async def _attempt_readmission(self) -> float:
        """Apply the allowlist to the list in force. Returns the seconds until it has to be tried again, infinite where
        it went well. The rhythm of the pulls is not touched by it."""
        try:
            with self._unexpected.as_kind(UnexpectedError, ListError(NO_MEMORY)):
                await self._runner.readmit()
        except SikkerGuardError as error:
            pause = retry_delay(error, 1, self._clock.random)
            self._log_failure(error, pause)
            return pause
        return math.inf

    def _note_pulled(self, failure: str) -> None:
        result = PullResult(self._clock.wall(), failure)
        self.state = replace(
            self.state, last_pull=result, pulls=self.state.pulls + 1, pulling=False, pull_answered=self._serving
        )
        self._changes.set()

    def _log_failure(self, error: SikkerGuardError, pause: float) -> None:
        log.error("%s; %s; next try in %s.", as_sentence(error), self._runner.stays(), duration_text(pause))
