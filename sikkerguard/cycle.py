"""One pull, from bytes to a verdict: fetch, parse, merge, admit, guard, stage, try, commit or roll back.

It is told what is in force and gives back what is in force afterwards. Whatever goes wrong is raised, with the
committed list as it was.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeVar

from sikkerguard.core.history import carried
from sikkerguard.core.model import Admission, ListedSource, VerifiedList
from sikkerguard.core.parse import LARGEST_FILE, ApiParser, Parsed, check_together, merge_content, read_custom
from sikkerguard.core.policy import Baseline, admit, allowed_though_listed, describe_removed, guard
from sikkerguard.core.selftest import already_failing, lost
from sikkerguard.errors import KernelError, ListError, SelfTestError

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor
    from pathlib import Path

    from sikkerguard.config import Config
    from sikkerguard.core.faces import ApiFace, KernelFace, ProbesFace
    from sikkerguard.core.model import Allowlist, Blocklist, ProbeResult

log = logging.getLogger(__name__)

_API, _CUSTOM = "SikkerAPI", "SIKKER_CUSTOM_BLACKLIST"
# The kernel forgets the trial after ten seconds: five renewals may be late before it does.
_RENEW_SECONDS = 2.0
# Lines of the custom list that can't be read and are named one by one.
_SHOWN = 20

_Result = TypeVar("_Result")


class Owner:
    """The one thread that touches netfilter, seen from the event loop."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    async def run(self, action: Callable[..., _Result], *arguments: object) -> _Result:
        """Run this in the owner's thread, behind whatever it is at."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, action, *arguments)


@dataclass(frozen=True, slots=True)
class InForce:
    """The list in force: as it was read, source by source (`verified`), all sources as one before the allowlist was
    cut out (`listed`), and what is blocked (`admitted`)."""

    verified: VerifiedList
    listed: Blocklist
    admitted: Admission


@dataclass(frozen=True, slots=True)
class Pulled:
    """What a pull brought: its sources, merged too, and what the next one is measured by."""

    sources: tuple[ListedSource, ...]
    listed: Blocklist
    fingerprint: str
    terminated: bool
    quota_remaining: int | None


@dataclass(slots=True)
class Cycle:
    """The steps, with what they need. `on_trial` is called with True and False as a trial begins and ends, and
    `progress` each time that something has been done."""

    kernel: KernelFace
    owner: Owner
    probes: ProbesFace
    on_trial: Callable[[bool], None] = field(default=lambda running: None)
    progress: Callable[[], None] = field(default=lambda: None)

    async def pull(self, config: Config, api: ApiFace) -> Pulled:
        """Fetch and read the API's list and the custom one.

        Raises:
            FetchError: the list could not be had.
            ListError: what came is not a list.
        """
        parser = ApiParser()

        async def sink(piece: bytes) -> None:
            # In a thread, so that the loop goes on answering while a megabyte is read.
            await asyncio.to_thread(parser.feed, piece)
            self.progress()

        quota = await api.pull(config.score_min, sink)
        parsed = await asyncio.to_thread(parser.finish)
        if parsed.rejected:
            log.warning(
                "SikkerAPI's list: %s skipped (%s).", describe_removed(parsed.rejected), "; ".join(parsed.samples)
            )
        now = time.time()
        sources = [ListedSource(_API, parsed.content, now)]
        custom_digest = ""
        if config.custom_blacklist is not None:
            custom, custom_digest = await asyncio.to_thread(_read_custom_file, config.custom_blacklist)
            sources.append(ListedSource(_CUSTOM, custom.content, now))
        check_together(source.content for source in sources)
        listed = await asyncio.to_thread(merge_content, [source.content for source in sources])
        return Pulled(tuple(sources), listed, fingerprint(config, custom_digest), parsed.terminated, quota.remaining)

    async def put_in_force(
        self,
        pulled: Pulled,
        allowlist: Allowlist,
        before: InForce | None,
        baseline: Baseline | None,
        *,
        max_growth: float,
        accept: bool,
        api_addresses: tuple[str, ...],
    ) -> InForce:
        """Admit a list, try it, and commit it. `before` is what is in force now, for the sake of its history.

        Raises:
            ListError: it is refused before it touches the kernel.
            SelfTestError: the host lost a connection in the trial; the list before it is in force.
            KernelError: the kernel refused; the list before it is in force.
        """
        admission = await asyncio.to_thread(admit, pulled.listed, allowlist)
        size = len(admission.blocklist)
        guard(size, pulled.fingerprint, pulled.terminated, baseline, max_growth=max_growth, accept=accept)
        if admission.removed:
            log.info("Not blocked: %s.", describe_removed(admission.removed))
        for sentence in allowed_though_listed(pulled.listed, allowlist):
            log.warning("%s", sentence)
        await self._try(admission.blocklist, api_addresses)
        earlier = before.verified.sources if before else ()
        sources = await asyncio.to_thread(
            lambda: tuple(generation for source in pulled.sources for generation in carried(earlier, source))
        )
        verified = VerifiedList(sources, time.time(), pulled.fingerprint, size, pulled.terminated)
        return InForce(verified, pulled.listed, admission)

    async def readmit(self, in_force: InForce, allowlist: Allowlist, api_addresses: tuple[str, ...]) -> InForce:
        """Apply a changed allowlist to the list in force: through a trial, since what is no longer allowed is newly
        blocked.

        Raises:
            SelfTestError, KernelError: as above; the list in force stays as it was.
        """
        admission = await asyncio.to_thread(admit, in_force.listed, allowlist)
        await self._try(admission.blocklist, api_addresses)
        verified = replace(in_force.verified, size=len(admission.blocklist))
        return InForce(verified, in_force.listed, admission)

    async def _try(self, candidate: Blocklist, api_addresses: tuple[str, ...]) -> None:
        try:
            self.progress()
            await self.owner.run(self.kernel.stage, candidate)
            self.progress()
            before = await self.probes.run(api_addresses)
            for result in already_failing(before):
                log.warning("Self-test: %s already before the trial; the list is not to blame for it.", result)
            self.progress()
            await self.owner.run(self.kernel.begin_trial)
            self.on_trial(True)
            failed = lost(before, await self._probe_while_renewing(api_addresses))
            if failed:
                raise SelfTestError("the self-test failed: " + "; ".join(str(result) for result in failed))
            await self.owner.run(self.kernel.commit)
        except BaseException:
            # Whatever it was, a cancellation too: what was staged or is on trial must not outlive it.
            try:
                await self.owner.run(self.kernel.rollback)
            except KernelError as error:
                # The kernel forgets the trial by itself; a cancellation must not be lost for this.
                log.error("The trial could not be ended (%s); the kernel ends it within seconds.", error)
            raise
        finally:
            self.on_trial(False)

    async def _probe_while_renewing(self, api_addresses: tuple[str, ...]) -> tuple[ProbeResult, ...]:
        keeper = asyncio.create_task(self._keep_trial())
        probing = asyncio.ensure_future(self.probes.run(api_addresses))
        try:
            await asyncio.wait({keeper, probing}, return_when=asyncio.FIRST_COMPLETED)
            if keeper.done():
                keeper.result()  # it only ends by raising
            return await probing
        finally:
            keeper.cancel()
            probing.cancel()
            await asyncio.gather(keeper, probing, return_exceptions=True)

    async def _keep_trial(self) -> None:
        while True:
            await asyncio.sleep(_RENEW_SECONDS)
            await self.owner.run(self.kernel.renew_trial)


def fingerprint(config: Config, custom_digest: str) -> str:
    """What a list's size depends on: with another query or another custom list, sizes can't be compared. The key is
    part of it, since the tier limits the list; only a digest of it is kept."""
    parts = [config.api_url, str(config.score_min), config.api_key, str(config.custom_blacklist or ""), custom_digest]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _read_custom_file(path: Path) -> tuple[Parsed, str]:
    """The custom list, and a digest of the file.

    Raises:
        ListError: the file can't be read. Going on without it would unblock what someone blocked on purpose.
    """
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise ListError(f"SIKKER_CUSTOM_BLACKLIST: {path} can't be read ({error.strerror})") from error
    parsed, skipped = read_custom(str(path), content)
    for sentence in skipped[:_SHOWN]:
        log.warning("SIKKER_CUSTOM_BLACKLIST: %s.", sentence)
    if len(skipped) > _SHOWN:
        log.warning("SIKKER_CUSTOM_BLACKLIST: %d more lines of %s are skipped.", len(skipped) - _SHOWN, path)
    return parsed, hashlib.sha256(content).hexdigest()
