"""The connections of this host that a candidate would cut: how many, and which explain a failed self-test."""

from __future__ import annotations

import asyncio
import logging
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING

from sikkerguard.core.host.connections import CONNECTIONS, cut_connections, hold_back
from sikkerguard.core.host.flows import Flow, NewlyCovered, opened_since
from sikkerguard.core.net.networks import Blocklist
from sikkerguard.core.ports.protocols import TCP
from sikkerguard.errors import KernelError, as_sentence

if TYPE_CHECKING:
    from sikkerguard.core.interfaces import Connections, PacketWatch

log = logging.getLogger(__name__)

# How often connections are looked at while the self-test runs, in seconds: a resolver that does not answer is asked
# every second.
_LOOK_SECONDS = 0.4


class FlowWatch:
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
            await asyncio.to_thread(self._open)
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
            await asyncio.sleep(_LOOK_SECONDS)

    def outgoing(self) -> tuple[Flow, ...]:
        """First the flows that this host, or something behind it, opened during the trial or got no answer to; then
        older outgoing ones that are not TCP: a tunnel is older than the trial, and all packets through it are lost in
        it."""
        found = sorted(self._found, key=Flow.rank)
        opened = opened_since(self._before, found, self._sent)
        older = (flow for flow in found if flow.outgoing and flow.protocol != TCP)
        return tuple(dict.fromkeys((*opened, *older)))

    def _open(self) -> None:
        with self._lock:
            # A call whose task is cancelled is carried out all the same, maybe after the end.
            if not self._ended:
                self._packets = self._stack.enter_context(self._connections.watch())

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


async def check_connections(
    connections: Connections,
    candidate: Blocklist,
    committed: Blocklist | None,
    held_back: frozenset[str],
    *,
    sessions: int,
    accept: bool,
) -> None:
    """Say which established connections the candidate would newly cut. Without a `committed` list this is all.

    Raises:
        HeldBackError: they are too large a share of the connections that this host opened, its SSH `sessions` included.
            Not raised a second time in a row, nor with `accept`.
    """
    try:
        flows = await asyncio.to_thread(connections.flows)
    except KernelError as error:
        log.warning("%s; whether the new list cuts connections of this host is not known.", as_sentence(error))
        return
    cut = await asyncio.to_thread(cut_connections, flows, candidate, committed or Blocklist())
    if not cut.peers:
        return
    log.warning("%s", cut.sentence())
    if committed is not None and not accept and CONNECTIONS not in held_back:
        hold_back(cut, sessions, held_back)
