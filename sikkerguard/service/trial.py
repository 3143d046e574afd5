"""The trial of a candidate: it blocks for some seconds, and is committed only where the host stays connected.

Nothing but packets that this host sent first can have an address left out of a list: whoever merely sends packets to it
must stay blocked.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from sikkerguard.core.host.connections import MOST_LEFT_OUT, explain
from sikkerguard.core.host.flows import Flow, NewlyCovered
from sikkerguard.core.net.address import to_text
from sikkerguard.core.net.family import family_of
from sikkerguard.core.net.packed import Prefix
from sikkerguard.core.selftest import already_failing, only_gone, regressions
from sikkerguard.errors import KernelError, SelfTestError
from sikkerguard.service.flow_watch import FlowWatch

if TYPE_CHECKING:
    from collections.abc import Collection
    from contextlib import AbstractContextManager

    from sikkerguard.core.host.connections import Explanation
    from sikkerguard.core.interfaces import Connections, Probes, Signal
    from sikkerguard.core.net.networks import Blocklist
    from sikkerguard.core.selftest import ProbeResult
    from sikkerguard.service.kernel_thread import KernelThread

log = logging.getLogger(__name__)

# The kernel forgets the trial after ten seconds: five renewals may be late before it does.
_RENEW_SECONDS = 2.0
# Sources of dropped packets that are named.
_SHOWN_SOURCES = 8
# After a trial a forwarder may need a moment until it asks its upstream again: so often the self-test is repeated, and
# after so many seconds each.
_RECOVERIES, _RECOVERY_SECONDS = 5, 2.0
# How often a trial is made anew in a row because the host changed in the middle of it.
_MAX_RESTARTS = 3


class DropWatch(Protocol):
    """Sees whose packets are dropped."""

    def watch_sources(self) -> AbstractContextManager[Collection[bytes]]:
        """A collection that gathers the sources, packed, of packets that are dropped while the context lasts."""


@dataclass(frozen=True, slots=True)
class SelfTest:
    """The probes, and the addresses of the API that they connect to."""

    probes: Probes
    api_addresses: tuple[str, ...]

    async def run(self) -> tuple[ProbeResult, ...]:
        """What works now, and what does not."""
        return await self.probes.run(self.api_addresses)


class _LostError(SelfTestError):
    """The host lost connections in the trial: `tests` that passed `before` failed, while it had these `flows` to
    addresses of the candidate, of which packets of these sources were `dropped`. `gone` says that they were none of
    the host's any more."""

    def __init__(
        self,
        tests: tuple[ProbeResult, ...],
        before: tuple[ProbeResult, ...],
        flows: tuple[Flow, ...],
        dropped: tuple[str, ...],
        *,
        gone: bool,
    ) -> None:
        shown = "; ".join(map(str, tests))
        sources = f"; it dropped packets of {', '.join(dropped)}" if dropped else ""
        super().__init__(f"the self-test failed: {shown}{sources}")
        self.tests = tests
        self.before = before
        self.flows = flows
        self.gone = gone


class Trial:
    """The steps of a trial. `running` says whether a candidate blocks on trial."""

    def __init__(self, kernel: KernelThread, connections: Connections, drops: DropWatch, changes: Signal) -> None:
        self._kernel = kernel
        self._connections = connections
        self._drops = drops
        self._changes = changes
        self.running = False

    async def run(
        self,
        candidate: Blocklist,
        committed: Blocklist,
        test: SelfTest,
        *,
        most_left_out: int = MOST_LEFT_OUT,
    ) -> Explanation | None:
        """Commit the candidate if the host stays connected with it. If not, and the host had opened connections to
        addresses that only the candidate has, these are the answer, for another try without them.

        Raises:
            SelfTestError: the host lost a connection, and nothing explains it; the committed list stays in force.
            KernelError: the kernel refused, likewise.
        """
        try:
            await self._try_until_settled(candidate, committed, test)
        except _LostError as error:
            explanation = explain(error.flows, error.tests, error.before, most_left_out)
            if explanation is None:
                raise
            log.warning("The new list is tried once more without %s: %s.", explanation.shown(), error)
            return explanation
        return None

    async def _try_until_settled(self, candidate: Blocklist, committed: Blocklist, test: SelfTest) -> None:
        """Try it anew where the host became another one meanwhile, but not for ever."""
        for _ in range(_MAX_RESTARTS):
            try:
                await self._try(candidate, committed, None, test)
            except _LostError as error:
                if not error.gone:
                    raise
                log.info("Gateways or resolvers of this host became others during the trial; it is made once more.")
            else:
                return
        await self._try(candidate, committed, None, test)

    async def run_again(
        self, candidate: Blocklist, committed: Blocklist, explanation: Explanation, test: SelfTest
    ) -> None:
        """The same for what is left of a candidate without the addresses of the explanation.

        Raises:
            SelfTestError, KernelError: as above.
        """
        await self._wait_for_recovery(explanation, test)
        try:
            await self._try(candidate, committed, explanation.before, test)
        except _LostError as error:
            raise SelfTestError(f"{error}, also without {explanation.shown()}") from error

    async def _wait_for_recovery(self, explanation: Explanation, test: SelfTest) -> None:
        """What failed in the trial works again without it, or the trial was not the reason."""
        for _ in range(_RECOVERIES):
            self._changes.set()
            failed = regressions(explanation.before, await test.run())
            if not failed:
                return
            await asyncio.sleep(_RECOVERY_SECONDS)
        raise SelfTestError(
            f"the self-test failed and goes on failing without the new list: {'; '.join(map(str, failed))}"
        )

    async def _try(
        self,
        candidate: Blocklist,
        committed: Blocklist,
        before: tuple[ProbeResult, ...] | None,
        test: SelfTest,
    ) -> None:
        """Stage, try and commit; `before` are the findings to compare with, if they are known already."""
        watch = FlowWatch(self._connections, await asyncio.to_thread(NewlyCovered, candidate, committed))
        try:
            self._changes.set()
            await self._kernel.stage(candidate)
            self._changes.set()
            if before is None:
                before = await test.run()
                for result in already_failing(before):
                    log.warning("Self-test: %s already before the trial; the list is not to blame for it.", result)
                self._changes.set()
            await watch.begin()
            await self._kernel.begin_trial()
            self._set_running(True)
            with self._drops.watch_sources() as dropped:
                during = await self._probe_while_renewing(watch, test)
            if failed := regressions(before, during):
                sources = _shown_sources(dropped, watch.covers)
                raise _LostError(failed, before, watch.outgoing(), sources, gone=only_gone(failed, during))
            await self._kernel.commit()
        except BaseException:
            # Whatever it was, a cancellation too: what was staged or is on trial must not outlive it.
            try:
                await self._kernel.rollback()
            except KernelError as error:
                # The kernel forgets the trial by itself; a cancellation must not be lost for this.
                log.error("The trial could not be ended (%s); the kernel ends it within seconds.", error)
            raise
        finally:
            self._set_running(False)
            # Not before: it may wait for a look that is under way, and nobody would renew the trial meanwhile.
            await watch.end()

    async def _probe_while_renewing(self, watch: FlowWatch, test: SelfTest) -> tuple[ProbeResult, ...]:
        renewing = asyncio.create_task(self._renew_forever())
        watching = asyncio.create_task(watch.look_forever())
        probing = asyncio.ensure_future(test.run())
        try:
            await asyncio.wait({renewing, probing}, return_when=asyncio.FIRST_COMPLETED)
            if renewing.done():
                renewing.result()  # it only ends by raising
            return await probing
        finally:
            for task in (renewing, watching, probing):
                task.cancel()
            await asyncio.gather(renewing, watching, probing, return_exceptions=True)

    async def _renew_forever(self) -> None:
        while True:
            await asyncio.sleep(_RENEW_SECONDS)
            await self._kernel.renew_trial()

    def _set_running(self, running: bool) -> None:
        self.running = running
        self._changes.set()


def _shown_sources(dropped: Collection[bytes], covers: NewlyCovered) -> tuple[str, ...]:
    """The sources of dropped packets that only the candidate blocks: the first few, and how many more."""
    sources = []
    for address in sorted(dropped):
        family, number = family_of(address), int.from_bytes(address, "big")
        if covers(family, number):
            sources.append(to_text(family, Prefix(number, family.bits)))
    more = [f"and {len(sources) - _SHOWN_SOURCES} more"] if len(sources) > _SHOWN_SOURCES else []
    return (*sources[:_SHOWN_SOURCES], *more)
