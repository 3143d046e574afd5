"""The way to SikkerAPI: which addresses requests are sent to, and which are allowed because of that.

Each pull and each round of reports asks here first, so that an API that moved is found again by the next request. An
address that has yet to prove itself is let through for the seconds in which it may, since it may be on the list.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any

from sikkerguard.core.lists.allowlist import PROXY
from sikkerguard.core.sikkerapi.endpoint import (
    Known,
    candidates,
    entry_of,
    from_record,
    is_due,
    settled,
    to_record,
    usable,
)
from sikkerguard.errors import FetchError, KernelError

if TYPE_CHECKING:
    from collections.abc import Callable

    from sikkerguard.config.settings import Config
    from sikkerguard.core.interfaces import ApiConnector
    from sikkerguard.core.sikkerapi.endpoint import Way
    from sikkerguard.service.repair_loop import Keeper
    from sikkerguard.service.state_writer import StateWriter

log = logging.getLogger(__name__)

# For a handshake, all candidates at once: a distant server needs three round trips, a busy one a second.
_PROVE_SECONDS = 5.0


class ApiEndpoint:
    """Owns what is known of the addresses. `way` says what requests connect to, without reading any library; `make`,
    called in a thread, gives the edge that connects. Without a `disk` nothing is kept. `clock` gives Unix
    seconds, and `prove_seconds` is the time limit for a handshake."""

    def __init__(
        self,
        way: Callable[[Config], Way],
        make: Callable[[Config], ApiConnector],
        keeper: Keeper,
        disk: StateWriter | None,
        clock: Callable[[], float] = time.time,
        prove_seconds: float = _PROVE_SECONDS,
    ) -> None:
        self._way_of = way
        self._make = make
        self._keeper = keeper
        self._disk = disk
        # As it is on disk, or will be.
        self._record: dict[str, Any] = {}
        self._clock = clock
        self._prove_seconds = prove_seconds
        self._opening = asyncio.Lock()
        self._way: Way | None = None
        self._known = Known()
        self._door: tuple[tuple[str, str], ApiConnector] | None = None

    def begin(self, config: Config) -> None:
        """Have allowed what proved itself in an earlier run."""
        if self._disk is not None:
            self._record = self._disk.kept.ways
        self._take(self._way_of(config))

    async def open(self, config: Config) -> bool:
        """Find out where requests have to go, and have just that allowed; says whether that changed what is allowed.

        Raises:
            FetchError: there is no way to SikkerAPI now, or the settings allow none.
        """
        if config.refusal:
            raise FetchError(config.refusal, retryable=False)
        # One at a time: pulls and reports would both ask all addresses.
        async with self._opening:
            before = self._keeper.ways
            try:
                await self._open(config)
            except KernelError as error:
                raise FetchError(f"SikkerAPI's addresses can't be allowed ({error})", retryable=True) from error
            return self._keeper.ways != before

    async def _open(self, config: Config) -> None:
        door = await self._door_of(config)
        way = self._way_of(config)
        if way != self._way:
            self._take(way)
            await self._keeper.follow_host()
        if way.literal:
            return
        resolved = await door.resolve()
        why = ""
        if door.broken or is_due(self._known, resolved, self._clock()):
            why = await self._prove(door, way, candidates(self._known, resolved))
        elif not resolved:
            log.debug("%s does not resolve; the addresses that it had are used.", way.host)
        if why:
            raise FetchError(why, retryable=True)
        door.use(usable(self._known, resolved))

    async def _prove(self, door: ApiConnector, way: Way, tried: tuple[str, ...]) -> str:
        """Let these addresses prove themselves; gives a sentence where none does."""
        if not tried:
            return (
                "the proxy's name does not resolve; check the resolvers, HTTPS_PROXY and HTTP_PROXY"
                if way.reason == PROXY
                else "SikkerAPI's name does not resolve; check the resolvers and SIKKER_API_URL"
            )
        async with self._keeper.tentatively([entry_of(address, way.reason) for address in tried]):
            answers = await _ask_all(door, tried, self._prove_seconds)
            former = self._known
            self._known = settled(former, {address: not why for address, why in answers.items()}, self._clock())
            self._show(way)
            # What proved itself is allowed for good before it is no longer allowed for these seconds.
            await self._keeper.follow_host()
        if self._known.proofs != former.proofs:
            self._keep(way)
        for address, why in answers.items():
            log.debug("%s: %s", way, f"{address} is not used: {why}" if why else f"{address} is genuine")
        if not all(answers.values()):
            return ""
        address, why = next(iter(answers.items()))
        what = f"the proxy {way.host} port {way.port}" if way.reason == PROXY else way.host
        others = f", and {len(answers) - 1} more" if len(answers) > 1 else ""
        return f"SikkerAPI can't be reached: no address of {what} is genuine ({address}: {why}{others})"

    def _take(self, way: Way) -> None:
        self._way = way
        self._known = Known()
        if not way.literal:
            self._known = from_record(self._record, way, self._clock())
        self._show(way)

    def _show(self, way: Way) -> None:
        addresses = (way.literal,) if way.literal else usable(self._known, ())
        # In an order of their own, so that what is allowed changes only where an address comes or goes.
        self._keeper.ways = tuple(entry_of(address, way.reason) for address in sorted(addresses))

    def _keep(self, way: Way) -> None:
        self._record = to_record(way, self._known)
        if self._disk is not None:
            self._disk.save_ways(self._record)

    async def _door_of(self, config: Config) -> ApiConnector:
        place = config.api_url, config.api_key
        if self._door is None or self._door[0] != place:
            # In a thread: what it imports, and the certificates, take a while to read.
            self._door = place, await asyncio.to_thread(self._make, config)
        return self._door[1]


async def _ask_all(door: ApiConnector, addresses: tuple[str, ...], seconds: float) -> dict[str, str]:
    """Why each of these addresses is not genuine, or empty, by what is known when the time is up."""
    asked = {address: asyncio.create_task(door.prove(address)) for address in addresses}
    try:
        await asyncio.wait(asked.values(), timeout=seconds)
        return {
            address: task.result() if task.done() else f"it does not answer within {seconds:g} s"
            for address, task in asked.items()
        }
    finally:
        for task in asked.values():
            task.cancel()
        await asyncio.gather(*asked.values(), return_exceptions=True)
