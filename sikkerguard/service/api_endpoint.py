"""The way to SikkerAPI: which addresses requests are sent to, and which are allowed because of that.

Each pull and each round of reports asks here first, so that an API that moved is found again by the next request. An
address that has yet to prove itself is let through for the seconds in which it may, since it may be on the list.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Protocol

from sikkerguard.core.lists.allowlist import PROXY
from sikkerguard.core.sikkerapi.endpoint import (
    EndpointMemory,
    Known,
    candidates,
    entry_of,
    is_due,
    settled,
    usable,
)
from sikkerguard.errors import KernelError, SettingsRefused, Unreachable

if TYPE_CHECKING:
    from sikkerguard.config.settings import Config
    from sikkerguard.core.interfaces import ApiConnector, Clock
    from sikkerguard.core.sikkerapi.endpoint import Endpoint
    from sikkerguard.service.allowlist_tracker import AllowlistTracker
    from sikkerguard.service.state_writer import StateWriter

log = logging.getLogger(__name__)

# For a handshake, all candidates at once: a distant server needs three round trips, a busy one a second.
_PROVE_SECONDS = 5.0


class Connectors(Protocol):
    """Makes what connects to SikkerAPI."""

    def endpoint(self, config: Config) -> Endpoint:
        """What requests connect to by these settings and the environment. Imports and reads nothing."""

    def connector(self, config: Config) -> ApiConnector:
        """What finds and proves the endpoint's addresses. For a thread. Raises `FetchError`."""


class ApiEndpoint:
    """Owns what is known of the addresses."""

    def __init__(self, connectors: Connectors, tracker: AllowlistTracker, writer: StateWriter, clock: Clock) -> None:
        self._connectors = connectors
        self._tracker = tracker
        self._writer = writer
        self._clock = clock
        # As it is on disk, or will be.
        self._memory = EndpointMemory()
        self._opening = asyncio.Lock()
        self._endpoint: Endpoint | None = None
        self._known = Known()

    def begin(self, config: Config, memory: EndpointMemory) -> None:
        """Have allowed what proved itself in an earlier run."""
        self._memory = memory
        self._take(self._connectors.endpoint(config))

    async def open(self, config: Config) -> bool:
        """Find out where requests have to go, and have just that allowed. Returns whether that changed what is allowed.

        Raises:
            SettingsRefused: by these settings nothing may be asked.
            FetchError: there is no way to SikkerAPI now.
        """
        if config.refusal:
            raise SettingsRefused(config.refusal)
        # One at a time: pulls and reports would both ask all addresses.
        async with self._opening:
            before = self._tracker.endpoint
            try:
                await self._open(config)
            except KernelError as error:
                raise Unreachable(f"SikkerAPI's addresses can't be allowed ({error})") from error
            return self._tracker.endpoint != before

    async def _open(self, config: Config) -> None:
        # In a thread: what it imports, and the certificates, take a while to read.
        connector = await asyncio.to_thread(self._connectors.connector, config)
        endpoint = self._connectors.endpoint(config)
        if endpoint != self._endpoint:
            self._take(endpoint)
            await self._tracker.follow()
        if endpoint.literal:
            return
        resolved = await connector.resolve()
        failure = ""
        if connector.broken or is_due(self._known, resolved, self._clock.wall()):
            failure = await self._prove(connector, endpoint, candidates(self._known, resolved))
        elif not resolved:
            log.debug("%s does not resolve; the addresses that it had are used.", endpoint.host)
        if failure:
            raise Unreachable(failure)
        connector.use(usable(self._known, resolved))

    async def _prove(self, connector: ApiConnector, endpoint: Endpoint, tried: tuple[str, ...]) -> str:
        """Let these addresses prove themselves. Returns a sentence where none does."""
        if not tried:
            return (
                "the proxy's name does not resolve; check the resolvers, HTTPS_PROXY and HTTP_PROXY"
                if endpoint.reason == PROXY
                else "SikkerAPI's name does not resolve; check the resolvers and SIKKER_API_URL"
            )
        async with self._tracker.tentatively([entry_of(address, endpoint.reason) for address in tried]):
            answers = await _ask_all(connector, tried)
            former = self._known
            proven = {address: not failure for address, failure in answers.items()}
            self._known = settled(former, proven, self._clock.wall())
            self._publish(endpoint)
            # What proved itself is allowed for good before it is no longer allowed for these seconds.
            await self._tracker.follow()
        if self._known.proofs != former.proofs:
            self._memory = EndpointMemory(str(endpoint), self._known.proofs)
            self._writer.save(self._memory)
        for address, failure in answers.items():
            outcome = f"{address} is not used: {failure}" if failure else f"{address} is genuine"
            log.debug("%s: %s", endpoint, outcome)
        return "" if any(proven.values()) else _no_address(endpoint, answers)

    def _take(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._known = Known() if endpoint.literal else self._memory.recall(endpoint, self._clock.wall())
        self._publish(endpoint)

    def _publish(self, endpoint: Endpoint) -> None:
        addresses = (endpoint.literal,) if endpoint.literal else usable(self._known, ())
        # In an order of their own, so that what is allowed changes only where an address comes or goes.
        self._tracker.set_endpoint(entry_of(address, endpoint.reason) for address in sorted(addresses))


def _no_address(endpoint: Endpoint, failures: dict[str, str]) -> str:
    """The sentence that says why none of these addresses is used."""
    address, failure = next(iter(failures.items()))
    what = f"the proxy {endpoint.host} port {endpoint.port}" if endpoint.reason == PROXY else endpoint.host
    others = f", and {len(failures) - 1} more" if len(failures) > 1 else ""
    return f"SikkerAPI can't be reached: no address of {what} is genuine ({address}: {failure}{others})"


async def _ask_all(connector: ApiConnector, addresses: tuple[str, ...]) -> dict[str, str]:
    """Why each of these addresses is not genuine, or empty, by what is known when the time is up."""
    asked = {address: asyncio.create_task(connector.prove(address)) for address in addresses}
    try:
        await asyncio.wait(asked.values(), timeout=_PROVE_SECONDS)
        return {
            address: task.result() if task.done() else f"it does not answer within {_PROVE_SECONDS:g} s"
            for address, task in asked.items()
        }
    finally:
        for task in asked.values():
            task.cancel()
        await asyncio.gather(*asked.values(), return_exceptions=True)
