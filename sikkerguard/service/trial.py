"""The trial of a candidate: it blocks for some seconds, and is committed only where the host stays connected.

Nothing but packets that this host sent first can have an address left out of a list: whoever merely sends packets to it
must stay blocked.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sikkerguard.core.host.connections import CONNECTIONS, MOST_LEFT_OUT, cut_connections, explain, hold_back
from sikkerguard.core.host.flows import Flow, NewlyCovered, opened_since
from sikkerguard.core.net.address import to_text
from sikkerguard.core.net.family import family_of
from sikkerguard.core.net.networks import Blocklist
from sikkerguard.core.net.packed import Prefix
from sikkerguard.core.selftest import already_failing, only_gone, regressions
from sikkerguard.core.services.protocols import TCP
from sikkerguard.errors import KernelError, SelfTestError, as_sentence

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from contextlib import AbstractContextManager

    from sikkerguard.core.host.connections import Explanation
    from sikkerguard.core.interfaces import Connections, FirewallBackend, PacketWatch, Probes
    from sikkerguard.core.net.family import Family
    from sikkerguard.core.selftest import ProbeResult
    from sikkerguard.service.kernel_thread import KernelThread

log = logging.getLogger(__name__)

# The kernel forgets the trial after ten seconds: five renewals may be late before it does.
_RENEW_SECONDS = 2.0
# How often connections are looked at while the self-test runs: a resolver that does not answer is asked every second.
_FLOW_SECONDS = 0.4
_NAMED = 8
# After a trial a forwarder may need a moment until it asks its upstream again: so often the self-test is repeated.
_RECOVERIES = 5
# How often a trial is made anew in a row because the host changed in the middle of it.
_CHANGES = 3


class _LostError(SelfTestError):
    """The host lost connections in the trial: `tests` of those that passed `before`, while it had these `flows` to
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


@dataclass(slots=True)
class Trial:
    """The steps, with what they need. `watch_drops` gives a set that collects the sources, packed, of packets that are
    dropped meanwhile. `on_trial` is called with True and False as a trial begins and ends, and `progress` each time
    that something has been done. `recovery_seconds` lie between two looks at whether the host has recovered."""

    kernel: FirewallBackend
    owner: KernelThread
    probes: Probes
    connections: Connections
    watch_drops: Callable[[], AbstractContextManager[Collection[bytes]]]
    on_trial: Callable[[bool], None] = field(default=lambda running: None)
    progress: Callable[[], None] = field(default=lambda: None)
    recovery_seconds: float = 2.0

    async def check_connections(
        self,
        candidate: Blocklist,
        committed: Blocklist | None,
        held_back: frozenset[str],
        *,
        sessions: int,
        accept: bool,
    ) -> None:
        """Say which established connections the candidate would newly cut. Without a `committed` list this is all.

        Raises:
            HeldBackError: they are too many of those that this host opened, which with its `sessions` of people logged
                in are its own business; not where that has been said once, or with `accept`.
        """
        try:
            flows = await asyncio.to_thread(self.connections.flows)
        except KernelError as error:
            log.warning("%s; whether the new list cuts connections of this host is not known.", as_sentence(error))
            return
        self.progress()
        cut = await asyncio.to_thread(cut_connections, flows, candidate, committed or Blocklist())
        if not cut.peers:
            return
        log.warning("%s", cut.sentence())
        if committed is not None and not accept and CONNECTIONS not in held_back:
            hold_back(cut, sessions, held_back)

    async def run(
        self,
        candidate: Blocklist,
        committed: Blocklist,
        api_addresses: tuple[str, ...],
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
            await self._try_until_settled(candidate, committed, api_addresses)
        except _LostError as error:
            explanation = explain(error.flows, error.tests, error.before, most_left_out)
            if explanation is None:
                raise
            log.warning("The new list is tried once more without %s: %s.", explanation.shown(), error)
            return explanation
        return None

    async def _try_until_settled(
        self, candidate: Blocklist, committed: Blocklist, api_addresses: tuple[str, ...]
    ) -> None:
        """Try it anew where the host became another one meanwhile, but not for ever."""
        for _ in range(_CHANGES):
            try:
                await self._try(candidate, committed, None, api_addresses)
            except _LostError as error:
                if not error.gone:
                    raise
                log.info("Gateways or resolvers of this host became others during the trial; it is made once more.")
            else:
                return
        await self._try(candidate, committed, None, api_addresses)

    async def run_again(
        self, candidate: Blocklist, committed: Blocklist, explanation: Explanation, api_addresses: tuple[str, ...]
    ) -> None:
        """The same for what is left of a candidate without the addresses of the explanation.

        Raises:
            SelfTestError, KernelError: as above.
        """
        await self._wait_for_recovery(explanation, api_addresses)
        try:
            await self._try(candidate, committed, explanation.before, api_addresses)
        except _LostError as error:
            raise SelfTestError(f"{error}, also without {explanation.shown()}") from error

    async def _wait_for_recovery(self, explanation: Explanation, api_addresses: tuple[str, ...]) -> None:
        """What failed in the trial works again without it, or the trial was not the reason."""
        for _ in range(_RECOVERIES):
            self.progress()
            failed = regressions(explanation.before, await self.probes.run(api_addresses))
            if not failed:
                return
            await asyncio.sleep(self.recovery_seconds)
        raise SelfTestError(
            f"the self-test failed and goes on failing without the new list: {'; '.join(map(str, failed))}"
        )

    async def _try(
        self,
        candidate: Blocklist,
        committed: Blocklist,
        before: tuple[ProbeResult, ...] | None,
        api_addresses: tuple[str, ...],
    ) -> None:
        """Stage, try and commit; `before` are the findings to compare with, if they are known already."""
        watch = _FlowWatch(self.connections, await asyncio.to_thread(NewlyCovered, candidate, committed))
        try:
            self.progress()
            await self.owner.run(self.kernel.stage, candidate)
            self.progress()
            if before is None:
                before = await self.probes.run(api_addresses)
                for result in already_failing(before):
                    log.warning("Self-test: %s already before the trial; the list is not to blame for it.", result)
                self.progress()
            await watch.begin()
            await self.owner.run(self.kernel.begin_trial)
            self.on_trial(True)
            with self.watch_drops() as dropped:
                during = await self._probe_while_renewing(watch, api_addresses)
            if failed := regressions(before, during):
                sources = _named(dropped, watch.covers)
                raise _LostError(failed, before, watch.outgoing(), sources, gone=only_gone(failed, during))
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
            # Not before: it may wait for a look that is under way, and nobody would renew the trial meanwhile.
            await watch.end()

    async def _probe_while_renewing(self, watch: _FlowWatch, api_addresses: tuple[str, ...]) -> tuple[ProbeResult, ...]:
        keeper = asyncio.create_task(self._keep_trial())
        watching = asyncio.create_task(watch.look_forever())
        probing = asyncio.ensure_future(self.probes.run(api_addresses))
        try:
            await asyncio.wait({keeper, probing}, return_when=asyncio.FIRST_COMPLETED)
            if keeper.done():
                keeper.result()  # it only ends by raising
            return await probing
        finally:
            for task in (keeper, watching, probing):
                task.cancel()
            await asyncio.gather(keeper, watching, probing, return_exceptions=True)

    async def _keep_trial(self) -> None:
        while True:
            await asyncio.sleep(_RENEW_SECONDS)
            await self.owner.run(self.kernel.renew_trial)


class _FlowWatch:
    """Collects the connections that this host opens, or has open, to addresses which only the candidate blocks, from
    `begin`, which comes before the trial, until `end`."""

    def __init__(self, connections: Connections, covers: NewlyCovered) -> None:
        self.covers = covers
        self._connections = connections
        self._stack = ExitStack()
        self._lock = threading.Lock()
        self._ended = False
        self._packets: PacketWatch | None = None
        self._before: tuple[Flow, ...] = ()
        # Replaced as a whole: a look may still be under way in its thread when they are read.
        self._found: frozenset[Flow] = frozenset()
        self._sent: frozenset[Flow] = frozenset()

    async def begin(self) -> None:
        """Look at what there is before the trial."""
        try:
            self._before = await asyncio.to_thread(self._connections.flows, self.covers)
            self._packets = await asyncio.to_thread(self._stack.enter_context, self._connections.watch())
        except KernelError as error:
            log.warning("%s; what explains a failed self-test may stay unknown.", as_sentence(error))

    async def end(self) -> None:
        """Let go of what is watched."""
        await asyncio.to_thread(self._close)

    async def look_forever(self) -> None:
        """Until it is cancelled, or connections can't be read."""
        while True:
            try:
                await asyncio.to_thread(self._look)
            except KernelError as error:
                log.warning("%s; what explains a failed self-test may stay unknown.", as_sentence(error))
                return
            await asyncio.sleep(_FLOW_SECONDS)

    def outgoing(self) -> tuple[Flow, ...]:
        """What this host, or something behind it, began meanwhile, or had no answer to; behind that what it went on
        with and is no TCP: a tunnel is older than the trial, and all packets through it are lost in it."""
        found = sorted(self._found, key=Flow.rank)
        opened = opened_since(self._before, found, self._sent)
        older = (flow for flow in found if flow.outgoing and flow.protocol != TCP)
        return tuple(dict.fromkeys((*opened, *older)))

    def _look(self) -> None:
        # What it reads must not be closed under it.
        with self._lock:
            if self._ended:
                return
            self._found |= frozenset(self._connections.flows(self.covers))
            if self._packets is not None:
                sent = self._packets.seen()
                self._sent |= {flow for flow in sent if self.covers(flow.family, flow.peer)}

    def _close(self) -> None:
        with self._lock:
            self._ended = True
            self._stack.close()


def _named(dropped: Collection[bytes], covers: Callable[[Family, int], bool]) -> tuple[str, ...]:
    """The sources of dropped packets that only the candidate blocks: the first few, and how many more."""
    sources = []
    for address in sorted(dropped):
        family, number = family_of(address), int.from_bytes(address, "big")
        if covers(family, number):
            sources.append(to_text(family, Prefix(number, family.bits)))
    more = [f"and {len(sources) - _NAMED} more"] if len(sources) > _NAMED else []
    return (*sources[:_NAMED], *more)
